"""Locally aware patch features (Roth et al., Eq. 1–4) as one fixed linear map.

Around every position of a layer's map the paper takes the p × p neighbourhood and pools it to one
vector; the layers' vectors are joined and pooled again. The reference implementation does this
literally: it unfolds the map (p² copies), pools the flattened C·p² values adaptively to 1024, and
pools the L·1024 values of all layers adaptively to the final 1024.

Both poolings average *runs* of neighbouring entries, and so does their composition: an output
channel is a weighted sum over a run of a layer's flattened (channel, row, column) entries, hence
over a short run of channels, each with its own p × p window of weights. That is a depthwise
convolution for the first channel of every run, plus one for the second, and so on: no unfolding, no
copies. Bilinear interpolation to the first layer's grid is linear too and acts on other axes, so it
may come last, when there are fewest values to interpolate. The literal version is `patch_features`
in tests/reference.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from patchcore._traced import traced
from patchcore.errors import InputError
from patchcore.settings import Choice, Settings, setting


class Mapping(Choice):
    """Pooling of a neighbourhood's channels."""

    reference = "reference"  # to `layer_channels`, then all layers to `channels`
    average = "average"  # each channel over the neighbourhood; layers joined, channels kept
    auto = "auto"  # reference where the layers have more than `channels`, else average


@dataclass
class PatchConfig(Settings):
    """Settings of how layer maps become patch features.

    The reference's mapping was made for wide networks. If a network has fewer channels than the
    mapping's output (ResNet-18: 128 + 256), the mapping splits its neighbourhoods instead of
    pooling them, which costs accuracy. Therefore the default is `auto`.
    """

    GROUP: ClassVar[str] = "patch"

    size: int = setting(
        3,
        "p of Eq. 1: the side of a neighbourhood; has to be odd",
        unit="positions of a layer's map",
        low=1,
    )
    stride: int = setting(
        1, "s of Eq. 3: the stride of the patch grid", unit="positions of a layer's map", low=1
    )
    mapping: Mapping = setting(
        Mapping.auto,
        "reference, average, or auto: reference if the layers have more channels than "
        "patch.channels, else average",
    )
    layer_channels: int = setting(
        1024,
        "number of values to which the neighbourhood of each layer is pooled",
        low=1,
        effect=lambda patch: patch["mapping"] is not Mapping.average,
        idle="with patch.mapping=average",
    )
    channels: int = setting(
        1024,
        "number of values to which all layers together are pooled: the size of a patch feature",
        low=1,
        effect=lambda patch: patch["mapping"] is not Mapping.average,
        idle="with patch.mapping=average",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % 2 == 0:
            raise InputError(f"patch.size must be odd and positive, got {self.size}")

    def maps(self, channels: Sequence[int]) -> bool:
        """Whether layers with so many channels are mapped, rather than averaged."""
        if self.mapping is Mapping.auto:
            return sum(channels) > self.channels
        return self.mapping is Mapping.reference


class PatchFeatures(nn.Module):
    """Layer maps in, patch features out; a fixed linear map with nothing to train.

    Args:
        channels: Channels C of each layer, first (finest) layer first.
        config: Neighbourhood, stride and channel mapping.
    """

    def __init__(self, channels: Sequence[int], config: PatchConfig) -> None:
        super().__init__()
        self.size, self.stride = config.size, config.stride
        mapped = config.maps(channels)
        self.dimension = config.channels if mapped else sum(channels)
        self.rows: list[tuple[int, int]] = []  # output channels [lo, hi) that each layer feeds
        for i, c in enumerate(channels):
            if mapped:
                lo, first, kernels = reference_mapping(
                    c, config.size, i, len(channels), config.layer_channels, config.channels
                )
            else:
                lo = sum(channels[:i])
                first, kernels = neighbourhood_mean(c, config.size)
            self.rows.append((lo, lo + len(first)))
            source = first[:, None] + np.arange(kernels.shape[1])  # (rows, taps)
            in_place = kernels.shape[1] == 1 and np.array_equal(first, np.arange(c))
            self.register_buffer(
                f"source_{i}",
                None if in_place else torch.from_numpy(source.clip(max=c - 1).T.copy()),
                persistent=False,
            )
            kernel = torch.from_numpy(kernels.astype(np.float32))
            self.register_buffer(
                f"kernel_{i}", kernel.transpose(0, 1)[:, :, None], persistent=False
            )  # (taps, rows, 1, p, p)

    def forward(
        self, maps: Sequence[Float[Tensor, "images _ _ _"]]
    ) -> Float[Tensor, "images h w channels"]:
        """Patch features of layer maps [(B, C, H, W), (B, C', H', W'), …].

        The grid (h, w) is the first layer's, thinned by the stride; deeper layers are interpolated
        to it bilinearly. Borders are padded with zeros that count, as in the reference. The result
        has the maps' dtype and is contiguous, so that `reshape(-1, D)` is free.
        """
        if traced():
            return self._joined([self._pool(i, x) for i, x in enumerate(maps)])
        images = len(maps[0])
        if maps[0].is_cuda:
            maps = [padded(x) for x in maps]
        pooled = [self._pool(i, x)[:images] for i, x in enumerate(maps)]
        grid = pooled[0].shape[-2:]
        features = pooled[0].new_empty(pooled[0].shape[0], *grid, self.dimension)  # (B, h, w, D)
        filled = 0
        for (lo, hi), x in zip(self.rows, pooled, strict=True):
            x = _on_grid(x, grid).permute(0, 2, 3, 1)  # (B, rows, h, w) → (B, h, w, rows)
            features[..., lo:filled] += x[..., : filled - lo]  # a channel where two layers meet
            features[..., filled:hi] = x[..., filled - lo :]
            filled = hi
        return features

    def _joined(
        self, pooled: Sequence[Float[Tensor, "images _ _ _"]]
    ) -> Float[Tensor, "images h w channels"]:
        """The layers' shares as `forward` joins them, without writing in place.

        In an exported graph every write in place would copy all channels.
        """
        grid, filled = pooled[0].shape[-2:], 0
        parts: list[Tensor] = []
        for (lo, hi), share in zip(self.rows, pooled, strict=True):
            x = _on_grid(share, grid)
            if lo < filled:  # a channel where two layers meet
                shared = parts[-1][:, lo - filled :] + x[:, : filled - lo]
                parts[-1:] = [parts[-1][:, : lo - filled], shared]
            if hi > filled:
                parts.append(x[:, filled - lo :])  # (B, rows, h, w)
            filled = hi
        return torch.cat(parts, 1).permute(0, 2, 3, 1)  # (B, D, h, w) → (B, h, w, D)

    def _pool(
        self, i: int, x: Float[Tensor, "images channels height width"]
    ) -> Float[Tensor, "images rows h w"]:
        """One layer's share of the output channels."""
        source, kernel = getattr(self, f"source_{i}"), getattr(self, f"kernel_{i}")
        total: Tensor | int = 0
        for tap, weight in enumerate(kernel):  # (rows, 1, p, p)
            run = x if source is None else x[:, source[tap]]  # (B, rows, H, W)
            # On CPU, interpolating channels-last maps is a hundred times faster.
            run = run.contiguous(memory_format=torch.channels_last)
            total = total + F.conv2d(
                run, weight, None, self.stride, self.size // 2, groups=len(weight)
            )
        return torch.as_tensor(total)


def padded(
    x: Float[Tensor, "images channels height width"], least: int = 16
) -> Float[Tensor, "padded channels height width"]:
    """Maps with zeros for further images, up to a power of two, at least `least`, of them.

    cuDNN plans a convolution for each number of images, and takes half a second for one with as
    many groups as channels. With this, an epoch needs no second plan for its last, smaller batch.

    >>> [len(padded(torch.ones(images, 1, 2, 2))) for images in (1, 16, 17, 64)]
    [16, 16, 32, 64]
    """
    size = max(least, 1 << (len(x) - 1).bit_length())
    return x if size == len(x) else F.pad(x, (0, 0, 0, 0, 0, 0, 0, size - len(x)))


def _on_grid(x: Tensor, grid: Sequence[int]) -> Tensor:
    """A map (B, C, h', w') interpolated to (B, C, h, w), where that is another grid."""
    if tuple(x.shape[-2:]) == tuple(grid):
        return x
    return F.interpolate(x, size=tuple(grid), mode="bilinear", align_corners=False)


def neighbourhood_mean(
    channels: int, size: int
) -> tuple[Int64[np.ndarray, " rows"], Float64[np.ndarray, "rows taps size size"]]:
    """Plain mean of each channel over the neighbourhood, in the form of `reference_mapping`."""
    return np.arange(channels), np.full((channels, 1, size, size), 1 / size**2)


@lru_cache(maxsize=16)  # loops in Python, and is the same for all models of a kind
def reference_mapping(
    channels: int, size: int, layer: int, layers: int, layer_channels: int, out_channels: int
) -> tuple[int, Int64[np.ndarray, " rows"], Float64[np.ndarray, "rows taps size size"]]:
    """Compose the reference's two adaptive poolings of one layer into convolution kernels.

    Adaptive pooling of n entries to m makes entry k the mean of the run ⌊k·n/m⌋ … ⌈(k+1)·n/m⌉ − 1.
    Applied first to the C·p² entries of each layer (n = C·p², m = `layer_channels`), then to the
    joined layers (n = layers · `layer_channels`, m = `out_channels`).

    Args:
        channels: C, channels of this layer.
        size: p, side of the neighbourhood.
        layer: Position of this layer among the `layers` used, from 0.

    Returns:
        Read-only, as later calls return the same arrays:

        lo: First output channel that this layer feeds; a channel where two layers meet is fed by
            both, and the contributions add up.
        first: (rows,) first input channel of the run that output channel lo + row reads.
        kernels: (rows, taps, p, p) float64 weights of input channels first, first + 1, …
    """
    window = size * size
    start, stop = layer * layer_channels, (layer + 1) * layer_channels
    lo = start * out_channels // (layers * layer_channels)
    hi = -(-stop * out_channels // (layers * layer_channels))
    runs = []  # for each output channel: entries of the flattened layer, with their weight
    for t in range(lo, hi):
        a, b = _run(t, layers * layer_channels, out_channels)
        inner = [
            _run(k - start, channels * window, layer_channels)
            for k in range(max(a, start), min(b, stop))
        ]
        runs.append([(s, e, 1 / (b - a) / (e - s)) for s, e in inner])
    first = np.array([run[0][0] // window for run in runs])
    taps = max((run[-1][1] - 1) // window - c + 1 for run, c in zip(runs, first, strict=True))
    kernels = np.zeros((len(runs), taps * window))
    for row, (run, c) in enumerate(zip(runs, first, strict=True)):
        for s, e, weight in run:
            kernels[row, s - c * window : e - c * window] += weight
    kernels = kernels.reshape(-1, taps, size, size)
    for array in (first, kernels):
        array.setflags(write=False)
    return lo, first, kernels


def _run(k: int, n: int, m: int) -> tuple[int, int]:
    """Run of entries [start, stop) that entry k averages when n are pooled to m."""
    return k * n // m, -(-(k + 1) * n // m)
