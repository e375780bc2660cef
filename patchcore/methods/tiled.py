"""Detectors that pass images through the network in tiles: see `patchcore.tiles`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from patchcore.methods.detector import Detector, Prediction
from patchcore.scoring import Pool, ScoringConfig, anomaly_maps, highest, pixel_scores
from patchcore.tiles import Tiling

ONE = (1, 1)
"""Size of the maps of single bands and banks, which are not used."""


def tile(
    model: Detector,
    side: int | None,
    overlap: int | None = None,
    normalisation: Sequence[Any] | None = None,
) -> None:
    """Make a detector process its images in tiles, in fitting and in scoring.

    Args:
        model: Fitted or not; a fitted one was fitted to images in the same tiles.
        side: Of the tiles, px; None: it sees images whole again.
        overlap: See `Tiling`.
        normalisation: Offset and scale of pixels, see `offset_and_scale`; None: images are
            normalised already.

    Raises:
        InputError: Tiles do not suit its network.
    """
    backbone, patch = model.backbone, model.parts.patch
    backbone.tiling = None
    if side is not None:
        tensors = [torch.as_tensor(x) for x in normalisation or ()]
        pair = (tensors[0], tensors[1]) if tensors else None
        # Neighbourhoods reach over patch.size // 2 cells, interpolation over one more.
        halo = patch.size // 2 + 1
        backbone.tiling = Tiling(backbone, side, overlap, halo, patch.stride, pair)


def stacked(bands: Sequence[Prediction]) -> tuple[Tensor, Tensor]:
    """Return patch scores and nearest rows (B, h, w) of images by those of their bands."""
    return torch.cat([x.patch_score for x in bands], 1), torch.cat([x.nearest for x in bands], 1)


def predicted(
    bands: Sequence[Prediction], size: tuple[int, int], scoring: ScoringConfig
) -> Prediction:
    """Return scores and maps of images of `size` (H, W) by those of their bands; no reweighting."""
    grid, nearest = stacked(bands)
    maps = anomaly_maps(grid, size, scoring.sigma)
    if scoring.pool is Pool.pixels:
        score = pixel_scores(maps, grid, scoring)
    else:
        score = highest(grid.flatten(1), scoring.top_share)[0].mean(1)
    return Prediction(score, maps, grid, nearest)
