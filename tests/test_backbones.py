from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from patchcore.backbones import Backbone, BackboneConfig, LayersConfig
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
    with pytest.raises(InputError, match=rf"image.crop must be a multiple of {patch}"):
        backbone(torch.randn(1, 3, 4 * patch + 1, 6 * patch))


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


def bad_file(tmp_path: Path, kind: str) -> Path:
    state = timm.create_model("resnet18").state_dict()
    path = tmp_path / f"{kind}.safetensors"
    if kind == "missing":
        del state["layer2.0.conv1.weight"]
    elif kind == "shape":
        state["layer2.0.conv1.weight"] = torch.zeros(1)
    save_file(state, path)
    if kind == "torn":
        path.write_bytes(path.read_bytes()[:1000])
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "lacks 'layer2.0.conv1.weight'"),
        ("shape", r"'layer2.0.conv1.weight' as \(1,\)"),
        ("torn", "torn.safetensors cannot be read"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, kind: str, message: str) -> None:
    path = bad_file(tmp_path, kind)
    with pytest.raises(InputError, match=message):
        Backbone(BackboneConfig("resnet18", str(path)), LayersConfig())


@pytest.mark.parametrize(
    ("config", "layers", "message"),
    [
        (BackboneConfig("resnet81", "none"), ["2"], "no network 'resnet81'; did you mean"),
        (BackboneConfig("resnet18", "tv_in2k"), ["2"], "'resnet18.tv_in2k'; give one of"),
        (BackboneConfig("resnet18", "gone.safetensors"), ["2"], "no such file: gone.safetensors"),
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


def test_weights_that_cannot_be_had_name_the_tag_and_the_ways_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError) as error:
        Backbone(BackboneConfig(), LayersConfig())
    for part in ("wide_resnet50_2.tv_in1k", "backbone.weights=FILE", "backbone=embedded"):
        assert part in str(error.value)


def test_layers_are_checked() -> None:
    with pytest.raises(InputError, match=r"layers.names is empty"):
        LayersConfig([])
    with pytest.raises(InputError, match=r"layers.names repeats"):
        LayersConfig(["2", "2"])
