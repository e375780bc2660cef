"""Frozen feature extractors: any timm network, cut after the deepest layer used, or our own."""

import copy
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from patchcore._embedded import EmbeddedTrunk, load_embedded
from patchcore._fusion import fuse
from patchcore._layers import axes, cut, resolve, token_size
from patchcore._record import InputRecord
from patchcore._traced import traced
from patchcore._weights import (
    EMBEDDED,
    NONE,
    check_file,
    check_names,
    default_weights,
    input_record,
    is_file,
    is_flexible,
    load_file,
    require_weights,
    unavailable,
)
from patchcore.errors import InputError
from patchcore.settings import Choice, Settings, setting


@dataclass
class BackboneConfig(Settings):
    """Network, and the source of its weights."""

    GROUP: ClassVar[str] = "backbone"

    name: str = setting(
        EMBEDDED, "timm architecture, or embedded: the network that ships with the package"
    )
    weights: str | None = setting(
        None,
        "timm's tag, a .safetensors or .pth file, or none (random weights); null: the shipped "
        "weights for embedded; else tv_in1k if it exists, or timm's default",
    )
    seed: int = setting(
        0,
        "seed of random weights",
        effect=lambda network: network["weights"] == "none",
        idle="without backbone.weights=none",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.weights, str) and not self.weights.strip():
            raise InputError("backbone.weights is empty: name weights, or leave it out")

    def resolved(self) -> str:
        """Weights, by name even where null stands. Raises InputError if there are no such."""
        weights = default_weights(self.name) if self.weights is None else self.weights
        check_names(self.name, weights)
        if weights.startswith("~") and is_file(weights):
            return os.path.expanduser(weights)
        return weights

    def input(self) -> InputRecord:
        """Record of the weights' input (mean, standard deviation, size in px).

        The network is neither built nor downloaded. Raises InputError as `resolved` does.
        """
        return input_record(self.name, self.resolved())


CLASS_TOKEN = "class token"
"""Name of the output that a transformer's class token is."""
NORM = "norm"
"""Module of timm's vision transformers that normalises their last tokens."""


class Join(Choice):
    """Number of memories that the layers have, and the combination of their distances."""

    concat = "concat"  # the paper: one memory of the layers' joined features
    separate = "separate"  # a memory for each layer; the mean of a place's distances
    scaled = "scaled"  # the same, each distance in standard deviations from its nominal mean


@dataclass
class LayersConfig(Settings):
    """Layers that give outputs, finest first: hierarchy levels j of the paper, or module names.

    Level j is the last output at 1/2^(j+1) of the image's size (`layer2` of a ResNet for "2",
    `features.denseblock3` of a DenseNet for "3"), or the block at j quarters of a vision
    transformer's depth.
    """

    GROUP: ClassVar[str] = "layers"

    names: list[str] = setting(
        factory=lambda: ["2", "3"],
        help="layers whose outputs are used, finest first: hierarchy levels, or module names",
    )
    join: Join = setting(
        Join.concat,
        "concat: one memory bank; separate: one for each layer, distances are averaged; scaled: "
        "the same with standardised distances",
    )
    norm: bool = setting(
        False, "normalise a vision transformer's tokens by the norm after its last layer"
    )
    token: bool = setting(
        False,
        "find similar images (method.retrieval) by the class token of a vision transformer, taken "
        "after the last of the named layers",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.names:
            raise InputError("layers.names is empty: name at least one level or module")
        if len(set(self.names)) < len(self.names):
            raise InputError(f"layers.names repeats a layer: {self.names}")


class Backbone(nn.Module):
    """Feature maps of chosen layers, from a network that never trains.

    Modules that run after the deepest layer are dropped, so they cost neither time nor memory. On
    CUDA a copy computes, whose convolutions do what follows them in the same step.

    Attributes:
        layers: Module names of the layers, in the order of the output; last, where it is asked for,
            `CLASS_TOKEN`: a map (B, C, 1, 1).
        channels: Channels C of each.
        tiling: `patchcore.tiles.Tiling` of images that come in tiles; None: they are seen whole.
        input: Input that the weights were trained for.

    Raises:
        InputError: Unknown network, tag or layer; weights that cannot be read or do not fit; a
            layer that gives no map.
    """

    def __init__(self, config: BackboneConfig, layers: LayersConfig) -> None:
        super().__init__()
        self.name, weights = config.name, config.resolved()
        check_file(weights)
        self.input = input_record(self.name, weights)
        from_file = is_file(weights)
        self.network = _build(self.name, weights, config.seed, from_file)
        self.layers = [resolve(self.network, name) for name in layers.names]
        for i, layer in enumerate(self.layers):
            if layer in self.layers[:i]:
                one, other = layers.names[self.layers.index(layer)], layers.names[i]
                raise InputError(
                    f"layers.names repeats a layer: {one!r} and {other!r} are both {layer}"
                )
        self.tiling: Any = None
        self._maps: dict[str, Any] = {}
        self._fused: dict[torch.dtype, nn.Module] = {}  # by the convolutions' precision
        images = torch.zeros(1, 3, self.input.side, self.input.side)
        self._hooked, whole = list(self.layers), set(dict(self.network.named_modules()))
        self._norm = NORM if layers.norm else ""
        if self._norm and not (token_size(self.network) and hasattr(self.network, NORM)):
            raise InputError(
                f"layers.norm=true normalises the tokens of a vision transformer, but {self.name} "
                "is not one: leave it out"
            )
        if self._norm and isinstance(self.network.get_submodule(NORM), nn.Identity):
            raise InputError(
                f"layers.norm=true: {self.name} does not normalise its last tokens, so there is no "
                "norm to use: leave it out"
            )
        if self._norm in self.layers:
            raise InputError("layers.norm=true would normalise the layer norm twice: leave it out")
        self._deepest, self._overwritten = cut(self.network, self.layers, images, self._norm)
        if from_file:
            load_file(self.network, Path(weights), whole)
        self._handles = [  # kept, so that those of a pickled model stay apart from others
            self.network.get_submodule(name).register_forward_hook(partial(self._keep, name))
            for name in self.layers
        ]
        self.network.register_load_state_dict_post_hook(self._forget)
        self.requires_grad_(False).eval()
        self.to(memory_format=torch.channels_last)  # a third faster on CPU, more on GPU
        with torch.inference_mode():
            outputs = self._outputs(self.network, images)
        self._layouts = [
            axes(self.network, name, x, images.shape[-1])
            for name, x in zip(self.layers, outputs, strict=True)
        ]
        self._token = layers.token
        if self._token:
            has = getattr(self.network, "cls_token", None) is not None
            if not has or self._layouts[-1] != "tokens":
                raise InputError(
                    f"layers.token=true: {self.name} has no class token there: leave it out"
                )
            self.layers.append(CLASS_TOKEN)
        maps = self._as_maps(outputs, images)
        self.channels = [x.shape[1] for x in maps]
        _warn_of_order(layers.names, maps)

    def forward(self, images: Tensor) -> Any:
        """See `whole`; of images in tiles, maps that are made as they are asked for."""
        return self.whole(images) if self.tiling is None else self.tiling.maps(self, images)

    @torch.inference_mode()
    def whole(self, images: Tensor) -> list[Tensor]:
        """Layer maps [(B, C, h, w), …] of normalised images (B, 3, H, W), in the network's dtype.

        Raises:
            InputError: The network takes no images of that size, or none in its precision.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise InputError(
                "images must be normalised floats (B, 3, H, W), got "
                f"{tuple(images.shape)} {str(images.dtype).removeprefix('torch.')}"
            )
        images = images.to(next(self.network.parameters()).dtype)
        images = images.contiguous(memory_format=torch.channels_last)
        self._check_size(images)
        network = self._on_cuda() if images.is_cuda and not traced() else self.network
        return self._as_maps(self._outputs(network, images), images)

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in evaluation mode: batch statistics of the training images must not leak in."""
        return super().train(False)

    def _on_cuda(self) -> nn.Module:
        """Copy of the network that computes on CUDA, in the precision of autocast."""
        own = next(self.network.parameters()).dtype
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else own
        if dtype not in self._fused:
            self._fused[dtype] = self._fuse(dtype)
        return self._fused[dtype]

    def _fuse(self, precision: torch.dtype) -> nn.Module:
        """Copy of the network with fused convolutions in this precision."""
        network = copy.deepcopy(self.network, {id(self): self})
        fuse(network, self._hooked, precision)
        for name in self._hooked:
            network.get_submodule(name).register_forward_hook(partial(self._keep, name))
        return network

    def _forget(self, *_: Any) -> None:
        """Hook of new weights: drop the copies."""
        self._fused.clear()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self._weights()
        super()._apply(fn, recurse)
        if self._weights() != before:
            self._fused.clear()
        return self

    def _weights(self) -> list[tuple[int, torch.dtype]]:
        """Addresses and dtypes of the weights; those that stay where they are have not changed."""
        return [(x.data_ptr(), x.dtype) for x in self.network.state_dict().values()]

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for `copy` and `pickle`."""
        return {**self.__dict__, "_fused": {}}

    def _outputs(self, network: nn.Module, images: Tensor) -> list[Any]:
        """Outputs of the layers, as the network gives them."""
        try:
            network(images)
        except _DeepestLayerReached:
            pass
        except (AssertionError, RuntimeError, ValueError) as error:
            self._maps.clear()
            self._explain(images, error)
            raise
        return [self._maps.pop(name) for name in self._hooked]

    def _keep(self, name: str, module: nn.Module, args: tuple, output: Any) -> None:
        """Hook of a layer: keep its output, and end the pass after the deepest one."""
        exporting = torch.compiler.is_exporting()  # cannot follow the exception; drops the rest
        self._maps[name] = output.clone() if exporting or name in self._overwritten else output
        if name == self._deepest and not exporting:
            raise _DeepestLayerReached

    def _as_maps(self, outputs: list[Any], images: Tensor) -> list[Tensor]:
        """Outputs of the layers as maps (B, C, h, w)."""
        maps = []
        for layout, x in zip(self._layouts, outputs, strict=True):
            if layout == "tokens":  # (B, prefix + h·w, C)
                size = token_size(self.network)
                h, w = (side // size for side in images.shape[-2:])
                tokens = x[:, x.shape[1] - h * w :]  # (B, h·w, C)
                if self._norm:
                    tokens = self.network.get_submodule(self._norm)(tokens)
                x = tokens.transpose(1, 2).unflatten(2, (h, w))
            elif layout == "NHWC":
                x = x.permute(0, 3, 1, 2)
            maps.append(x)
        if self._token:
            token = outputs[-1][:, :1]  # (B, 1, C), before the registers
            if self._norm:
                token = self.network.get_submodule(self._norm)(token)
            maps.append(token.transpose(1, 2)[..., None])  # (B, C, 1, 1)
        return maps

    def _check_size(self, images: Tensor) -> None:
        patch = token_size(self.network)
        height, width = images.shape[-2:]
        if patch and (height % patch or width % patch):
            side = max(patch, round(min(height, width) / patch) * patch)
            # At its own aspect ratio an image's longer side is whatever it is.
            view = "" if height == width else " image.view=square"
            raise InputError(
                f"image.size: {self.name} takes sides that are multiples of {patch} px, not "
                f"{height} × {width}; the nearest is image.size={side}{view}"
            )

    def _explain(self, images: Tensor, error: Exception) -> None:
        """Raise InputError if it is the images' size or precision that the network refuses."""
        text = " ".join(str(error).split())
        height, width = images.shape[-2:]
        side = self.input.side
        if isinstance(error, torch.OutOfMemoryError) or "allocate" in text:
            return
        if "not implemented for" in text:
            raise InputError(
                f"trainer.precision: {self.name} cannot work in "
                f"{str(images.dtype).removeprefix('torch.')} on this device ({text}); use 32-true"
            ) from None
        if (height, width) != (side, side):
            raise InputError(
                f"image.size: {self.name} cannot process images of {height} × {width} px with any "
                f"layers.names ({text}); image.size={side} works"
            ) from None


def _warn_of_order(names: list[str], maps: list[Tensor]) -> None:
    """Warn if the first layer, whose grid the patches have, is coarser than another."""
    cells = [x.shape[-2] * x.shape[-1] for x in maps[: len(names)]]
    if cells[0] < max(cells):
        finest = [name for _, name in sorted(zip(cells, names, strict=True), key=lambda x: -x[0])]
        warnings.warn(
            f"layers.names=[{','.join(names)}]: the patches lie on the grid of the first layer, "
            f"which is coarser than that of layer {finest[0]}: for the finest grid, write "
            f"layers.names=[{','.join(finest)}]",
            stacklevel=3,
        )


class _DeepestLayerReached(Exception):  # noqa: N818 (not an error)
    """Ends a forward pass once everything that is wanted has been computed."""


def _build(name: str, weights: str, seed: int, from_file: bool) -> nn.Module:
    """The whole network, with weights unless they come from a file."""
    pretrained = weights != NONE and not from_file
    if weights == NONE:
        warnings.warn(
            f"backbone {name} has random weights: its scores are no better than chance",
            stacklevel=3,
        )
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # of the CPU: no other device is set up
        if name == EMBEDDED:
            return EmbeddedTrunk() if weights == NONE else load_embedded()
        import timm  # a second of import time that `import patchcore` need not pay

        full = f"{name}.{weights}" if pretrained else name
        # Vision transformers are built for one image size unless told otherwise.
        sizes = {"dynamic_img_size": True} if is_flexible(name) else {}
        if not pretrained:
            return timm.create_model(full, **sizes)
        require_weights(full)
        try:
            return timm.create_model(full, pretrained=True, **sizes)
        except TypeError:
            raise
        except Exception as error:  # the hub client has dozens of its own
            raise unavailable(full, error) from None
