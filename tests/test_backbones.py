import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from patchcore import PatchCore
from patchcore._layers import axes
from patchcore._weights import is_flexible, load_file
from patchcore.backbones import CLASS_TOKEN, Backbone, BackboneConfig, LayersConfig
from patchcore.errors import InputError


def random_backbone(name: str, layers: list[str]) -> Backbone:
    with pytest.warns(UserWarning, match="random weights"):
        return Backbone(BackboneConfig(name, "none"), LayersConfig(layers))


def test_maps_equal_the_whole_networks() -> None:
    backbone = random_backbone("resnet18", ["1", "2", "3"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = timm.create_model("resnet18", features_only=True, out_indices=(1, 2, 3)).eval()
    images = torch.randn(2, 3, 96, 64)
    assert backbone.layers == ["layer1", "layer2", "layer3"]
    assert backbone.channels == [64, 128, 256]
    with torch.inference_mode():
        for ours, theirs in zip(backbone(images), whole(images), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.filterwarnings("ignore:layers.names=.*coarser")
def test_nothing_after_the_deepest_layer_runs_or_is_kept() -> None:
    backbone = random_backbone("resnet18", ["layer2", "layer1"])
    ran = []
    for name, module in backbone.network.named_modules():
        module.register_forward_pre_hook(lambda *_, n=name: ran.append(n))
    maps = backbone(torch.randn(1, 3, 64, 64))
    assert [x.shape[1] for x in maps] == [128, 64]
    assert "layer2.1.conv2" in ran
    assert not any(name.startswith(("layer3", "layer4", "fc")) for name in ran)
    kept = [name for name, _ in backbone.network.named_parameters()]
    assert not any(name.startswith(("layer3", "layer4", "fc")) for name in kept)


@pytest.mark.parametrize(
    ("name", "layer", "deeper"),
    [
        ("embedded", "stage2.0.0", "layer3"),
        ("resnet18", "layer2.1.bn1", "layer3"),
        ("resnet18", "bn1", "layer1"),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_a_layer_is_itself_whatever_runs_after_it(
    name: str, layer: str, deeper: str, inference: bool
) -> None:
    """A ReLU that works in place follows."""
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def maps(*layers: str) -> list[torch.Tensor]:
        config = BackboneConfig() if name == "embedded" else BackboneConfig(name, "none")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*random weights")
            return list(Backbone(config, LayersConfig([*layers])).whole(images))

    with torch.inference_mode(inference):  # as a caller may make it
        (alone,), both = maps(layer), maps(layer, deeper)
    assert alone.min() < 0 and torch.equal(both[0], alone)
    assert torch.equal(both[1], maps(deeper)[0])


def test_is_frozen_and_stays_in_evaluation_mode() -> None:
    backbone = random_backbone("resnet18", ["1"])
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(p.requires_grad for p in backbone.parameters())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(backbone(images)[0][:1], backbone(images[:1])[0])


def test_random_weights_are_seeded() -> None:
    state = torch.get_rng_state()
    first, second = (random_backbone("resnet18", ["1"]).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "levels", "modules", "strides"),
    [
        ("densenet121", ["2", "3"], ["features.denseblock2", "features.denseblock3"], [8, 16]),
        ("mobilenetv2_050", ["2"], ["blocks.2"], [8]),
        ("convnext_atto", ["1", "2"], ["stages.0", "stages.1"], [4, 8]),
        ("swin_tiny_patch4_window7_224", ["2"], ["layers.1"], [8]),
    ],
)
def test_levels_of_convolutional_networks(
    name: str, levels: list[str], modules: list[str], strides: list[int]
) -> None:
    backbone = random_backbone(name, levels)
    assert backbone.layers == modules
    maps = backbone(torch.randn(1, 3, 224, 224))
    assert [tuple(x.shape[1:]) for x in maps] == [
        (c, 224 // s, 224 // s) for c, s in zip(backbone.channels, strides, strict=True)
    ]


@pytest.mark.parametrize(
    ("name", "patch"),
    [
        ("vit_tiny_patch16_224", 16),
        ("vit_small_patch14_dinov2", 14),
        ("vit_small_patch16_dinov3", 16),
    ],
)
def test_transformer_tokens_return_to_their_grid(name: str, patch: int) -> None:
    backbone = random_backbone(name, ["2", "blocks.8"])
    assert backbone.layers == ["blocks.5", "blocks.8"]
    images = torch.randn(1, 3, 4 * patch, 6 * patch)
    maps = backbone(images)
    assert [tuple(x.shape[2:]) for x in maps] == [(4, 6), (4, 6)]
    tokens = []
    block = backbone.network.get_submodule("blocks.5")
    block.register_forward_hook(lambda m, i, output: tokens.append(output))
    backbone(images)
    prefix = backbone.network.num_prefix_tokens
    assert torch.equal(maps[0][0, :, 2, 3], tokens[0][0, prefix + 2 * 6 + 3])
    told = rf"^image.size: {name} takes sides that are multiples of {patch} px, not "
    for sides, nearest in (
        ((4 * patch + 1, 6 * patch), rf"image\.size={4 * patch} image\.view=square$"),
        ((4 * patch - 1, 4 * patch - 1), rf"image\.size={4 * patch}$"),
        ((3, 3), rf"image\.size={patch}$"),
    ):
        with pytest.raises(InputError, match=told + f".* the nearest is {nearest}"):
            backbone(torch.randn(1, 3, *sides))


@pytest.mark.parametrize("name", ["test_vit", "vit_small_patch16_dinov3"])
def test_tokens_are_normalised_as_timm_does(name: str) -> None:
    with pytest.warns(UserWarning, match="random weights"):
        backbone = Backbone(BackboneConfig(name, "none"), LayersConfig(["2", "3"], norm=True))
    assert not any(f"blocks.{i}." in key for key in backbone.state_dict() for i in (9, 10, 11))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = timm.create_model(name, dynamic_img_size=True).eval()
    whole.norm.load_state_dict(backbone.network.norm.state_dict())
    images = torch.randn(1, 3, 64, 96)
    indices = [int(layer.removeprefix("blocks.")) for layer in backbone.layers]
    expected = whole.forward_intermediates(images, indices, norm=True, intermediates_only=True)
    plain = whole.forward_intermediates(images, indices, intermediates_only=True)
    for x, y, z in zip(backbone(images), expected, plain, strict=True):
        assert torch.allclose(x, y, atol=1e-5) and not torch.allclose(x, z, atol=1e-2)


@pytest.mark.filterwarnings("ignore:backbone .* has random weights")
@pytest.mark.parametrize("norm", [False, True])
def test_a_class_token_comes_last(norm: bool) -> None:
    name = "vit_tiny_patch16_224"
    layers = LayersConfig(["2", "3"], norm=norm, token=True)
    backbone = Backbone(BackboneConfig(name, "none"), layers)
    assert backbone.layers == ["blocks.5", "blocks.8", CLASS_TOKEN]
    assert backbone.channels == [192, 192, 192]
    tokens: list[torch.Tensor] = []
    block = backbone.network.get_submodule("blocks.8")
    block.register_forward_hook(lambda m, i, output: tokens.append(output), prepend=True)
    maps = backbone(torch.randn(2, 3, 32, 48))
    assert [tuple(x.shape) for x in maps] == [(2, 192, 2, 3)] * 2 + [(2, 192, 1, 1)]
    expected = backbone.network.norm(tokens[0]) if norm else tokens[0]
    assert torch.allclose(maps[-1].flatten(1), expected[:, 0], atol=1e-5)
    assert torch.allclose(maps[1][:, :, 1, 2], expected[:, 6], atol=1e-5)
    for network, message in (("test_resnet", "has no class token"), ("embedded", "has no class")):
        weights = "none" if network == "test_resnet" else None
        with pytest.raises(InputError, match=rf"^layers.token=true: {network} {message}"):
            Backbone(BackboneConfig(network, weights), LayersConfig(["2"], token=True))


@pytest.mark.filterwarnings("ignore:backbone .* has random weights")
def test_a_norm_that_the_network_has_not_is_refused() -> None:
    for name, layers in (("embedded", ["2"]), ("test_resnet", ["2"])):
        weights = None if name == "embedded" else "none"
        with pytest.raises(InputError, match=r"^layers.norm=true normalises the tokens"):
            Backbone(BackboneConfig(name, weights), LayersConfig(layers, norm=True))
    with pytest.raises(InputError, match=r"^layers.norm=true would normalise"):
        Backbone(BackboneConfig("test_vit", "none"), LayersConfig(["2", "norm"], norm=True))
    network = timm.create_model("test_vit", final_norm=False)
    assert isinstance(network.norm, nn.Identity)
    with (
        mock.patch("patchcore.backbones._build", return_value=network),
        pytest.raises(InputError, match=r"^layers.norm=true: test_vit does not normalise its last"),
    ):
        Backbone(BackboneConfig("test_vit", "none"), LayersConfig(["2"], norm=True))


@pytest.mark.filterwarnings("ignore:backbone .* has random weights")
@pytest.mark.parametrize(
    ("name", "flexible"),
    [
        ("vit_tiny_patch16_224", True),
        ("vit_small_patch14_dinov2.lvd142m", True),
        ("eva02_tiny_patch14_224", True),
        ("deit_tiny_patch16_224", True),
        ("beit_base_patch16_224", False),
        ("vit_relpos_small_patch16_224", False),
        ("vit_srelpos_small_patch16_224", False),
        ("resnet18", False),
    ],
)
def test_transformers_that_take_images_of_any_size(name: str, flexible: bool) -> None:
    assert is_flexible(name) is flexible
    if name.startswith("vit_srelpos"):  # it is built, for its own size
        Backbone(BackboneConfig(name, "none"), LayersConfig(["2"]))


def test_weights_from_files(tmp_path: Path) -> None:
    network = timm.create_model("resnet18")
    state = {k: v for k, v in network.state_dict().items() if not k.startswith(("layer4", "fc"))}
    save_file(state, tmp_path / "cut.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "cut.pth")
    images = torch.randn(1, 3, 64, 64)
    maps = [
        Backbone(BackboneConfig("resnet18", str(tmp_path / file)), LayersConfig())(images)
        for file in ("cut.safetensors", "cut.pth")
    ]
    expected = network.eval().forward_intermediates(images, indices=[2, 3], intermediates_only=True)
    for ours in maps:
        for x, y in zip(ours, expected, strict=True):
            assert torch.allclose(x, y, atol=1e-5)


def test_real_weights_load(resnet18_weights: Path) -> None:
    backbone = Backbone(BackboneConfig("resnet18", str(resnet18_weights)), LayersConfig())
    assert all(torch.isfinite(x).all() for x in backbone(torch.randn(1, 3, 224, 224)))


class Code:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def odd_file(folder: Path, kind: str) -> Path:
    """A file that is no state dict, or one with values that no network can use."""
    state = timm.create_model("test_resnet").state_dict()
    one = "layer1.0.conv1.weight"
    contents = {
        "tensor": torch.zeros(3),
        "list": [torch.zeros(3)],
        "number": 7,
        "empty": {},
        "words": {"epoch": 3, "name": "x"},
        "optimiser": {"optimizer": {"state": {}}, "epoch": 1},
        "integers": {**state, one: state[one].to(torch.int8)},
        "complex": {**state, one: state[one].to(torch.complex64)},
        "nan": {**state, one: state[one] * torch.nan},
        "infinite": {**state, one: state[one].double() * 1e300},
        "code": Code(folder / "executed"),
    }
    path = folder / f"{kind}.pth"
    if kind == "folder":
        path.mkdir()
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"a": 1}, 4))  # PyTorch warns of the protocol
    elif kind == "text":
        path.write_text("these are no weights\n")
    elif kind == "nothing":
        path.touch()
    elif kind == "page":
        path = path.with_suffix(".safetensors")
        path.write_text("<html>404</html>")
    else:
        torch.save(contents[kind], path)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("tensor", r"holds a tensor \(3,\), not a state dict"),
        ("list", "holds an object of type list, not a state dict"),
        ("number", "holds an object of type int, not a state dict"),
        ("empty", r"holds no tensors by name \(nothing\)"),
        ("words", r"holds no tensors by name \(only epoch, name\)"),
        ("optimiser", r"holds no tensors by name \(only optimizer, epoch\)"),
        ("integers", "as int8, but the network needs float32"),
        ("complex", "as complex64, but the network needs float32"),
        ("nan", "NaN or infinite values in 'layer1.0.conv1.weight'"),
        ("infinite", "NaN or infinite values in 'layer1.0.conv1.weight'"),
        ("code", "not a plain file of tensors.*mkdir.*safetensors"),
        ("folder", "is a folder"),
        ("pickle", "not a plain file of tensors"),
        ("text", "cannot be read"),
        ("nothing", "cannot be read"),
        ("page", "cannot be read"),
    ],
)
def test_files_that_hold_no_weights_are_refused_in_one_line(
    tmp_path: Path, kind: str, message: str
) -> None:
    path = odd_file(tmp_path, kind)
    with (
        warnings.catch_warnings(action="error"),
        pytest.raises(InputError, match=f"^backbone.weights: {path} .*{message}") as error,
    ):
        Backbone(BackboneConfig("test_resnet", str(path)), LayersConfig())
    text = str(error.value)
    assert "\n" not in text and not (tmp_path / "executed").exists()
    for advice in ("weights_only", "add_safe_globals", "allowlist", "trust"):
        assert advice not in text


def test_wrapped_and_half_precision_files_load(tmp_path: Path) -> None:
    state = {k: v.half() for k, v in timm.create_model("test_resnet").state_dict().items()}
    torch.save({"model": {"state_dict": state}, "epoch": 3}, tmp_path / "wrapped.PTH")
    save_file(state, tmp_path / "half.safetensors")
    images = torch.randn(1, 3, 64, 64)
    maps = [
        Backbone(BackboneConfig("test_resnet", str(tmp_path / file)), LayersConfig())(images)
        for file in ("wrapped.PTH", "half.safetensors")
    ]
    assert all(torch.equal(x, y) for x, y in zip(*maps, strict=True))
    assert maps[0][0].dtype == torch.float32


def bad_file(tmp_path: Path, kind: str) -> Path:
    state = timm.create_model("resnet34" if kind == "deeper" else "resnet18").state_dict()
    path = tmp_path / f"{kind}.safetensors"
    if kind == "missing":
        del state["layer2.0.conv1.weight"]
    elif kind == "shape":
        state["layer2.0.conv1.weight"] = torch.zeros(1)
    elif kind == "variance":
        state["layer1.0.bn1.running_var"][3] = -1
    elif kind == "nested":  # the name of another part's tensor ends in its name
        del state["bn1.running_var"]
    elif kind == "wrapped":
        state = {f"model.{key}": value for key, value in state.items()}
    save_file(state, path)
    if kind == "torn":
        path.write_bytes(path.read_bytes()[:1000])
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "lacks 'layer2.0.conv1.weight'"),
        ("deeper", r"holds 'layer1\.2\.\S+', for which the network has no place"),
        ("shape", r"'layer2.0.conv1.weight' as \(1,\)"),
        ("variance", "holds negative variances in 'layer1.0.bn1.running_var'"),
        ("nested", r"lacks 'bn1\.running_var'; is it another network's"),
        ("wrapped", r"lacks 'conv1\.weight', but holds 'model\.conv1\.weight': save .* 'model'"),
        ("torn", "torn.safetensors cannot be read.*; replace it with an intact copy$"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, kind: str, message: str) -> None:
    path = bad_file(tmp_path, kind)
    with pytest.raises(InputError, match=message):
        Backbone(BackboneConfig("resnet18", str(path)), LayersConfig())


def test_contents_of_weights_count_not_the_extension(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = timm.create_model("resnet18", num_classes=0)
    save_file(network.state_dict(), tmp_path / "tensors.pth")
    torch.save(network.state_dict(), tmp_path / "plain.safetensors")
    monkeypatch.setenv("HOME", str(tmp_path))
    config = BackboneConfig("resnet18", "~/tensors.pth")
    assert config.resolved() == str(tmp_path / "tensors.pth")
    for name in ("tensors.pth", "plain.safetensors"):
        found = Backbone(BackboneConfig("resnet18", str(tmp_path / name)), LayersConfig(["1"]))
        assert found.network.conv1.weight.equal(network.conv1.weight)


@pytest.mark.parametrize(
    ("config", "layers", "message"),
    [
        (BackboneConfig("resnet81", "none"), ["2"], "no network 'resnet81'; did you mean"),
        (BackboneConfig("resnet18", "tv_in2k"), ["2"], "'resnet18.tv_in2k'; give one of"),
        (BackboneConfig("resnet18", "gone.safetensors"), ["2"], "no such file: gone.safetensors"),
        (BackboneConfig("resnet18.tv_in1k"), ["2"], "use backbone.name=resnet18 backbone"),
        (BackboneConfig("embedded", "tv_in1k"), ["2"], "embedded.tv_in1k'; give one of shipped"),
        (BackboneConfig("coatnet_0_224"), ["2"], "timm has no weights for 'coatnet_0_224'"),
    ],
)
def test_unknown_names_are_named(config: BackboneConfig, layers: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Backbone(config, LayersConfig(layers))


@pytest.mark.filterwarnings("ignore:backbone resnet18 has random weights")
@pytest.mark.parametrize(
    ("layer", "message"), [("layer9", "did you mean layer"), ("7", r"levels are 1 \(layer1\)")]
)
def test_a_layer_that_the_network_lacks(layer: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Backbone(BackboneConfig("resnet18", "none"), LayersConfig([layer]))


def test_levels_of_a_network_that_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchcore._layers.stages", lambda network: {})
    with pytest.raises(InputError, match=r"no hierarchy level 2; it has none: name modules"):
        Backbone(BackboneConfig("embedded"), LayersConfig(["2"]))


@pytest.mark.parametrize(
    ("name", "layers", "message"),
    [
        ("test_resnet", ["2", "layer2"], "repeats a layer: '2' and 'layer2' are both layer2"),
        ("test_vit", ["blocks.2", "3", "2"], "repeats a layer: 'blocks.2' and '2' are both"),
        ("test_resnet", ["fc"], r"'fc' gives no map of the image but of shape \(1, 1000\)"),
        ("test_resnet", ["2", "global_pool"], r"'global_pool' gives no map"),
        ("test_efficientnet", ["blocks.4.0.se.conv_reduce"], "conv_reduce' gives no map"),
        ("test_vit", ["head"], "'head' gives no map"),
        ("test_vit", ["blocks.1.attn.qkv", "fc_norm"], "'fc_norm' gives no map"),
        ("test_efficientnet", ["global_pool.pool"], "'global_pool.pool' gives no map"),
        ("test_maxvit", ["stages.0.blocks.0.attn_block.attn.qkv"], "qkv' gives no map"),
    ],
)
@pytest.mark.filterwarnings("ignore:backbone .* has random weights")
def test_layers_without_a_map_of_their_own(name: str, layers: list[str], message: str) -> None:
    with pytest.raises(InputError, match=f"^layers.names.*{message}") as error:
        Backbone(BackboneConfig(name, "none"), LayersConfig(layers))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("output", [[torch.zeros(1, 8, 4, 4)], None, torch.zeros(2, 8, 4, 4)])
def test_layers_that_give_no_tensor_of_one_image(output: object) -> None:
    with pytest.raises(InputError, match=r"^layers.names: 'x' gives no map"):
        axes(nn.Identity(), "x", output, 32)


@pytest.mark.parametrize(
    ("name", "layer", "shape"),
    [
        ("test_vit", "patch_embed", (64, 4, 6)),  # (B, h, w, C) in a network of tokens
        ("test_convnext", "stages.0.blocks.0.mlp.fc1", (96, 16, 24)),  # inside a block
        ("test_mambaout", "2", (32, 8, 12)),
    ],
)
def test_axes_are_told_apart_by_the_shape(
    name: str, layer: str, shape: tuple[int, int, int]
) -> None:
    backbone = random_backbone(name, [layer])
    images = torch.randn(1, 3, 64, 96)
    raw: list[torch.Tensor] = []
    module = backbone.network.get_submodule(backbone.layers[0])
    hook = module.register_forward_pre_hook(lambda m, args: raw.append(m.forward(*args)))
    (x,) = backbone(images)
    hook.remove()
    assert tuple(x.shape[1:]) == shape and backbone.channels == [shape[0]]
    assert torch.allclose(x, raw[0].permute(0, 3, 1, 2), atol=1e-6)


@pytest.mark.filterwarnings("ignore:backbone .* has random weights")
def test_sizes_that_a_network_refuses() -> None:
    backbone = random_backbone("test_maxvit", ["2"])  # windows
    side = backbone.input.side
    assert backbone(torch.zeros(1, 3, side, side))[0].isfinite().all()
    with pytest.raises(
        InputError, match=r"^image.size: test_maxvit cannot process images of 90 × 70"
    ):
        backbone(torch.zeros(1, 3, 90, 70))
    assert backbone(torch.zeros(1, 3, side, side))[0].isfinite().all()  # as if nothing had been
    for images in (torch.zeros(3, 64, 64), torch.zeros(1, 1, 64, 64)):
        with pytest.raises(InputError, match=r"^images must be normalised floats \(B, 3, H, W\)"):
            backbone(images)
    with pytest.raises(InputError, match=r"got \(1, 3, 64, 64\) uint8"):
        backbone(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_the_default_network_needs_no_download() -> None:
    backbone = PatchCore().backbone
    assert backbone.name == "embedded" and backbone.layers == ["layer2", "layer3"]
    assert BackboneConfig().resolved() == "shipped"
    assert BackboneConfig("wide_resnet50_2").resolved() == "tv_in1k"
    assert BackboneConfig("efficientnet_b0").resolved() == "ra_in1k"


def test_embedded_without_weights_is_random() -> None:
    maps = []
    for seed in (0, 0, 1):
        with pytest.warns(UserWarning, match="backbone embedded has random weights"):
            backbone = Backbone(BackboneConfig("embedded", "none", seed), LayersConfig())
        maps.append(backbone(torch.ones(1, 3, 64, 64))[1])
    shipped = Backbone(BackboneConfig("embedded"), LayersConfig())(torch.ones(1, 3, 64, 64))[1]
    assert torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[0], maps[2]) and not torch.equal(maps[0], shipped)


def test_weights_that_cannot_be_had_name_the_tag_and_the_ways_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError) as error:
        PatchCore(BackboneConfig("wide_resnet50_2"))
    for part in ("wide_resnet50_2.tv_in1k", "backbone.weights=FILE", "backbone=embedded"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    # In Python too it is one error, without the pages of the client that failed.
    assert error.value.__cause__ is None and error.value.__suppress_context__


def test_weights_that_are_damaged_where_the_hub_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **settings: object) -> None:
        raise OSError("Error while deserializing header:\n header too small")

    monkeypatch.setattr("patchcore.backbones.require_weights", lambda name: None)
    monkeypatch.setattr("timm.create_model", fail)
    message = r"^backbone.weights: 'resnet18.tv_in1k' .*header too small\); give a local file"
    with pytest.raises(InputError, match=message) as error:
        Backbone(BackboneConfig("resnet18"), LayersConfig())
    assert error.value.__suppress_context__


def test_layers_are_checked() -> None:
    with pytest.raises(InputError, match=r"layers.names is empty"):
        LayersConfig([])
    with pytest.raises(InputError, match=r"write \['layer2'\]"):
        LayersConfig("layer2")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"layers.names repeats"):
        LayersConfig(["2", "2"])


def test_weights_without_a_name_are_not_the_default() -> None:
    for weights in ("", " "):
        with pytest.raises(InputError, match=r"^backbone.weights is empty: name weights"):
            BackboneConfig(weights=weights)


def test_a_folder_or_a_file_of_another_ending_is_no_tag(tmp_path: Path) -> None:
    (tmp_path / "weights").touch()
    for path, words in ((tmp_path, "is a folder: name"), (tmp_path / "weights", "has to end in")):
        with pytest.raises(InputError, match=rf"^backbone.weights: .*{path} {words}"):
            BackboneConfig(weights=str(path)).resolved()


def test_a_text_in_place_of_weights_is_no_file_of_tensors(tmp_path: Path) -> None:
    (tmp_path / "it.pth").write_text("hello\n")
    with pytest.raises(InputError, match=r"it\.pth cannot be read: it is not a plain file of ten"):
        load_file(nn.Linear(2, 2), tmp_path / "it.pth")


@pytest.mark.filterwarnings("ignore")  # PyTorch's, of tensors of rare kinds
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: x.to("meta"), "'weight' as a tensor without values"),
        (lambda x: torch.nested.nested_tensor([*x]), "'weight' as a nested tensor"),
        (lambda x: x.to_sparse(), "'weight' as a tensor of the layout torch.sparse_coo"),
        (lambda x: x.to_sparse_csr(), "'weight' as a tensor of the layout torch.sparse_csr"),
        (
            lambda x: x.to(torch.uint8).view(torch.float4_e2m1fn_x2),
            "'weight' as float4_e2m1fn_x2, which cannot be converted to float32: export",
        ),
        (
            lambda x: torch.quantize_per_tensor(x, 1.0, 0, torch.qint8),
            "'weight' as qint8, but the network needs float32: export",
        ),
    ],
)
def test_tensors_without_plain_values_are_refused(
    tmp_path: Path, make: Callable[[Tensor], Tensor], message: str
) -> None:
    path = tmp_path / "odd.pth"
    torch.save({"weight": make(torch.ones(2, 2)), "bias": torch.ones(2)}, path)
    with pytest.raises(InputError, match=f"^backbone.weights: {path} holds {message}"):
        load_file(nn.Linear(2, 2), path)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested")
def test_an_odd_tensor_in_place_of_a_state_dict_is_told(tmp_path: Path) -> None:
    torch.save(torch.nested.nested_tensor([torch.ones(2)]), tmp_path / "one.pth")
    with pytest.raises(InputError, match="holds a nested tensor, not a state dict"):
        load_file(nn.Linear(2, 2), tmp_path / "one.pth")


def test_weights_that_are_all_the_same_are_told(tmp_path: Path) -> None:
    network = nn.Linear(2, 2)
    torch.save(network.state_dict(), tmp_path / "sound.pth")
    torch.save({"weight": torch.zeros(2, 2), "bias": torch.randn(2)}, tmp_path / "zero.pth")
    load_file(network, tmp_path / "sound.pth")
    with pytest.warns(UserWarning, match=r"zero\.pth, each tensor holds one value .* than chance"):
        load_file(network, tmp_path / "zero.pth")


def test_layers_that_are_not_finest_first_are_told() -> None:
    told = r"^layers.names=\[3,2\]: .* coarser than that of layer 2: .* write layers.names=\[2,3\]"
    with pytest.warns(UserWarning, match=told):
        Backbone(BackboneConfig("embedded"), LayersConfig(["3", "2"]))
    Backbone(BackboneConfig("embedded"), LayersConfig(["3"]))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "backbone .* has random weights")
        Backbone(BackboneConfig("test_vit", "none"), LayersConfig(["2", "1"]))  # of one grid
