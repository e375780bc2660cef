"""Frozen feature extractors: any timm network, cut after the deepest layer used."""

import difflib
import urllib.error
import urllib.request
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from patchcore.errors import InputError
from patchcore.settings import setting


@dataclass
class BackboneConfig:
    """Which network, and where its weights come from."""

    name: str = "wide_resnet50_2"  # a timm architecture, or "embedded": the one that ships with us
    weights: str = "tv_in1k"  # a timm tag, a .safetensors / .pth file, or "none": random
    # of the random weights
    seed: int = setting(0, effect=lambda network: network["weights"] == "none")


@dataclass
class LayersConfig:
    """Whose outputs are used, finest first: hierarchy levels j of the paper, or module names.

    Level j is the last output at 1/2^(j+1) of the image's size (`layer2` of a ResNet for "2",
    `features.denseblock3` of a DenseNet for "3"), or the block at j quarters of a vision
    transformer's depth.
    """

    names: list[str] = field(default_factory=lambda: ["2", "3"])

    def __post_init__(self) -> None:
        if not self.names:
            raise InputError("layers.names is empty: name at least one level or module")
        if len(set(self.names)) < len(self.names):
            raise InputError(f"layers.names repeats a layer: {self.names}")


class Backbone(nn.Module):
    """Feature maps of chosen layers, from a network that never trains.

    Modules that run after the deepest layer are dropped, so they cost neither time nor memory.

    Attributes:
        layers: Module names of the layers, in the order of the output.
        channels: Channels C of each.

    Raises:
        InputError: Unknown network, tag or layer; weights that cannot be read or do not fit.
    """

    def __init__(self, config: BackboneConfig, layers: LayersConfig) -> None:
        super().__init__()
        # A frozen network may be shared by several models; it keeps no state between calls.
        self.network = _build(config)
        self.layers = [_resolve(self.network, name) for name in layers.names]
        self._maps: dict[str, Tensor] = {}
        side = _input_side(self.network)
        self._deepest = _cut(self.network, self.layers, torch.zeros(1, 3, side, side))
        if Path(config.weights).suffix in _FILE_SUFFIXES:
            _load_file(self.network, Path(config.weights))
        for name in self.layers:
            self.network.get_submodule(name).register_forward_hook(self._keep(name))
        self.requires_grad_(False).eval()
        self.to(memory_format=torch.channels_last)  # a third faster on CPU, more on GPU
        self.channels = [x.shape[1] for x in self(torch.zeros(1, 3, side, side))]

    @torch.inference_mode()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Layer maps [(B, C, h, w), …] of normalised images (B, 3, H, W)."""
        images = images.contiguous(memory_format=torch.channels_last)
        self._check_size(images)
        try:
            self.network(images)
        except _DeepestLayerReached:
            return [_as_map(self.network, self._maps.pop(name), images) for name in self.layers]
        finally:
            self._maps.clear()
        raise RuntimeError(f"the network never ran {self._deepest}")

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in evaluation mode: batch statistics of the training images must not leak in."""
        return super().train(False)

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            self._maps[name] = output
            if name == self._deepest:
                raise _DeepestLayerReached

        return hook

    def _check_size(self, images: Tensor) -> None:
        patch = _token_size(self.network)
        height, width = images.shape[-2:]
        if patch and (height % patch or width % patch):
            raise InputError(
                f"image.crop must be a multiple of {patch} px for this vision transformer, got an "
                f"image of {height} × {width}; try {round(height / patch) * patch}"
            )


class _DeepestLayerReached(Exception):  # noqa: N818 (not an error)
    """Ends a forward pass once everything that is wanted has been computed."""


_FILE_SUFFIXES = {".safetensors", ".pt", ".pth", ".bin", ".ckpt"}


def _build(config: BackboneConfig) -> nn.Module:
    """The whole network, with weights unless they come from a file."""
    is_file = Path(config.weights).suffix in _FILE_SUFFIXES
    if is_file and not Path(config.weights).is_file():
        raise InputError(f"backbone.weights: no such file: {config.weights}")
    if config.name == "embedded":
        from patchcore.embedded import load_embedded

        return load_embedded()
    import timm  # a second of import time that `import patchcore` need not pay

    if config.name not in timm.list_models():
        close = difflib.get_close_matches(config.name, timm.list_models(), 3, 0.5)
        raise InputError(
            f"backbone.name: timm has no network {config.name!r}"
            + (f"; did you mean {', '.join(close)}?" if close else "")
        )
    name, pretrained = config.name, not is_file and config.weights != "none"
    if pretrained:
        name = f"{config.name}.{config.weights}"
        tags = [n.partition(".")[2] for n in timm.list_pretrained(f"{config.name}.*")]
        if config.weights not in tags:
            raise InputError(
                f"backbone.weights: timm has no weights {name!r}; give one of {', '.join(tags)}, "
                "a .safetensors or .pth file, or none"
            )
        _require_weights(name, timm.get_pretrained_cfg(name).hf_hub_id)
    elif config.weights == "none":
        warnings.warn(
            f"backbone {config.name} has random weights: its scores are no better than chance",
            stacklevel=2,
        )
    # Vision transformers are built for one image size unless told otherwise.
    sizes = {"dynamic_img_size": True} if _is_vit(timm, config.name) else {}
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return timm.create_model(name, pretrained=pretrained, **sizes)


def _is_vit(timm: Any, name: str) -> bool:
    return timm.models.get_arch_name(name).startswith(("vit_", "deit", "eva", "beit"))


def _require_weights(name: str, repository: str | None) -> None:
    """Fail within seconds, not after the hub client's minute of retries."""
    from huggingface_hub import constants, try_to_load_from_cache

    files = ("model.safetensors", "pytorch_model.bin")
    if repository and any(isinstance(try_to_load_from_cache(repository, f), str) for f in files):
        return
    try:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        urllib.request.urlopen(request, timeout=5).close()
    except urllib.error.HTTPError:
        return  # it answered
    except OSError as error:
        raise InputError(
            f"the weights {name!r} are not in the local cache and cannot be downloaded "
            f"({error}); give a local file with backbone.weights=FILE.safetensors, or use the "
            "network that ships with this package: backbone=embedded"
        ) from error


def _load_file(network: nn.Module, path: Path) -> None:
    """Load a state dict; everything that the cut network needs must be in it, with its shape."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            loaded: dict[str, Any] = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"backbone.weights: {path} cannot be read: {error}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    state = {key.removeprefix("module."): value for key, value in loaded.items()}
    for key, value in network.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        if key not in state:
            raise InputError(
                f"backbone.weights: {path} lacks {key!r}; is it another network's, or cut before "
                "the deepest of layers.names?"
            )
        if state[key].shape != value.shape:
            raise InputError(
                f"backbone.weights: {path} holds {key!r} as {tuple(state[key].shape)}, but the "
                f"network needs {tuple(value.shape)}"
            )
        value.copy_(state[key])


def _resolve(network: nn.Module, name: str) -> str:
    """The module name of a hierarchy level ("2") or module ("layer2")."""
    modules = [n for n, _ in network.named_modules() if n]
    if name in modules:
        return name
    if name.isdigit():
        stages = _stages(network)
        if int(name) in stages:
            return stages[int(name)]
        raise InputError(
            f"layers.names: the network has no hierarchy level {name}; its levels are "
            + ", ".join(f"{level} ({module})" for level, module in stages.items())
        )
    close = difflib.get_close_matches(name, modules, 4, 0.3) or modules[:4]
    raise InputError(
        f"layers.names: the network has no module {name!r}; did you mean {', '.join(close)}?"
    )


def _stages(network: nn.Module) -> dict[int, str]:
    """Module names of the hierarchy levels j = 1 … 4 that the network has."""
    info = getattr(network, "feature_info", None)
    if info is None:
        return {j: f"layer{j}" for j in range(1, 5) if hasattr(network, f"layer{j}")}
    entries = list(getattr(info, "info", info))
    if _token_size(network):
        return {j: entries[-(-j * len(entries) // 4) - 1]["module"] for j in range(1, 5)}
    by_reduction = {entry["reduction"]: entry["module"] for entry in entries}
    return {j: by_reduction[2 ** (j + 1)] for j in range(1, 5) if 2 ** (j + 1) in by_reduction}


def _input_side(network: nn.Module) -> int:
    """Side in px of a square image that the network surely takes."""
    return getattr(network, "pretrained_cfg", {"input_size": (3, 224, 224)})["input_size"][-1]


def _token_size(network: nn.Module) -> int:
    """Side in px of a vision transformer's token; 0 for other networks."""
    if not hasattr(network, "num_prefix_tokens"):
        return 0
    patch_embed: Any = network.get_submodule("patch_embed")
    return patch_embed.patch_size[0]


def _as_map(network: nn.Module, x: Tensor, images: Tensor) -> Tensor:
    """A layer's output as (B, C, h, w): tokens go back on their grid."""
    if x.ndim == 3:
        size = _token_size(network)
        h, w = (side // size for side in images.shape[-2:])
        tokens = x[:, network.num_prefix_tokens :]  # (B, h·w, C)
        return tokens.transpose(1, 2).unflatten(2, (h, w))  # (B, C, h, w)
    if getattr(network, "output_fmt", "NCHW") == "NHWC":
        return x.permute(0, 3, 1, 2)  # (B, h, w, C) → (B, C, h, w)
    return x


def _cut(network: nn.Module, layers: list[str], images: Tensor) -> str:
    """Drop what runs after the last of `layers` has finished; returns that layer's name."""
    ran: set[str] = set()
    finished: dict[str, set[str]] = {}  # each layer, in order, with all that had started by then
    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, n=name: ran.add(n)))
        if name in layers:
            hook = module.register_forward_hook(lambda *_, n=name: finished.update({n: set(ran)}))
            handles.append(hook)
    with torch.inference_mode():
        network.eval()(images)
    for handle in handles:
        handle.remove()
    for name in layers:
        if name not in finished:
            raise InputError(f"layers.names: the network has {name!r} but does not run it")
    deepest, needed = list(finished.items())[-1]
    for name in sorted(ran - needed, reverse=True):  # children before their parents
        network.set_submodule(name, nn.Identity())
    return deepest
