"""Positions of the patch grid that count, by the part of an image that a region lets count."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from patchcore.errors import InputError
from patchcore.foreground import foreground
from patchcore.methods.detector import Prediction
from patchcore.scoring import (
    Pool,
    ScoringConfig,
    Search,
    anomaly_maps,
    cell_of,
    cell_pixels,
    pixel_scores,
    score_images,
)
from patchcore.tiles import TiledMaps, whole


class Counted(NamedTuple):
    """Features of a batch of images, of which some positions count."""

    features: Any
    counts: Tensor  # (B, h, w) bool


class Described(NamedTuple):
    """Features of a batch of images, and the vectors by which whole images are compared."""

    features: Any
    token: Tensor  # (B, C) class token


def cells(inside: Tensor, grid: tuple[int, int]) -> Tensor:
    """Cells (B, h, w) of a patch grid that count: at least half of their pixels lie inside.

    Args:
        inside: (B, H, W) bool, pixels of the network's input that count.
        grid: h and w.

    Raises:
        InputError: No cell of an image counts.
    """
    rows, columns = (
        F.one_hot(cell_of(length, count), count).float().to(inside.device)  # (H, h), (W, w)
        for length, count in zip(inside.shape[1:], grid, strict=True)
    )
    with torch.autocast(inside.device.type, enabled=False):  # it could not count beyond 256
        covered = rows.T @ inside.float() @ columns  # (B, h, w) pixels
    area = torch.outer(rows.sum(0), columns.sum(0))  # (h, w)
    counts = (2 * covered >= area) & (area > 0)
    if not bool(counts.flatten(1).any(1).all()):
        raise InputError(
            "data.region: it covers less than half of every patch of an image: mark a larger part"
        )
    return counts


def objects(features: Tensor, threshold: float, counts: Tensor | None = None) -> Tensor:
    """Positions (B, h, w) of objects, by patch features (B, h, w, D): see `foreground`.

    If `counts` (B, h, w) is given, only positions that count are returned. An image without any
    object keeps all of them.
    """
    found = foreground(features, threshold)
    if counts is None:
        return found
    both = found & counts
    return torch.where(both.flatten(1).any(1)[:, None, None], both, counts)


def described(features: Any, maps: Sequence[Tensor], token: bool) -> Any:
    """Features with the class token, which is the last of the maps, if they have one."""
    if not token:
        return features
    last = maps.token if isinstance(maps, TiledMaps) else maps[-1]
    return Described(features, last.flatten(1).float())


def token_of(features: Any) -> Tensor | None:
    """Class token (B, C) that features come with; None where they do not."""
    return features.token if isinstance(features, Described) else None


def parts(features: Any) -> tuple[Any, Tensor | None]:
    """Features and the positions that count, as tensors; None where all do."""
    features = whole(features)
    if isinstance(features, Described):
        features = features.features
    return (
        (features.features, features.counts) if isinstance(features, Counted) else (features, None)
    )


def counted_rows(features: Tensor, counts: Tensor | None) -> Tensor:
    """Patch features (N, D), those that count, of (B, h, w, D)."""
    return features.flatten(0, 2) if counts is None else features[counts]


def predict(
    features: Tensor,
    counts: Tensor | None,
    size: tuple[int, int],
    found: tuple[Tensor, Tensor],
    memory: Tensor,
    search: Search,
    scoring: ScoringConfig,
) -> Prediction:
    """Return scores and maps from distances and rows (B·h·w, k) of the nearest in `memory`.

    If some patches do not count, distances and rows are of the others alone.
    """
    squared, rows = found
    if counts is None:
        patches = features.flatten(1, 2)  # (B, h·w, D)
        score, scores = score_images(patches, squared, rows, memory, search, scoring)
        grid = scores.view(features.shape[:3])  # (B, h, w)
        nearest = rows[:, 0].view_as(grid)
    else:
        each = counts.flatten(1).sum(1).tolist()
        own = zip(features[counts].split(each), squared.split(each), rows.split(each), strict=True)
        scored = [score_images(x[None], near, row, memory, search, scoring) for x, near, row in own]
        score = torch.cat([one for one, _ in scored])
        grid = torch.full(counts.shape, torch.nan, device=score.device)
        grid[counts] = torch.cat([patch[0] for _, patch in scored])
        nearest = torch.full(counts.shape, -1, device=score.device)
        nearest[counts] = rows[:, 0]
    maps = anomaly_maps(grid, size, scoring.sigma)
    if scoring.pool is Pool.pixels:
        score = pixel_scores(maps, grid, scoring)
    return Prediction(score, maps, grid, nearest)


def counted_cells(model: Any, grids: Tensor, inside: Tensor) -> Tensor:
    """Cells (B, h, w) bool that count in metrics.

    Those that a method's foreground leaves out do: they are called nominal.

    Args:
        model: Detector.
        grids: (B, h, w) patch scores, NaN where there is none.
        inside: (B, H, W) bool, pixels of the network's input that count.
    """
    if getattr(model.parts.method, "foreground", None) is None:
        return ~grids.isnan()
    return cells(inside.to(grids.device), (grids.shape[1], grids.shape[2]))


def counted_by_all(cells: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Pixels (…, H, W) bool in cells that count by all of `cells`, each (…, h, w) bool."""
    return torch.stack([cell_pixels(each, size) for each in cells]).all(0)


def pixels_in(anomaly_map: Tensor, counted: Sequence[Tensor]) -> Tensor:
    """Pixels (1, P) of a map (H, W) in cells that count by all of `counted`; all if it is empty."""
    if not counted:
        return anomaly_map.flatten()[None]
    size = (anomaly_map.shape[0], anomaly_map.shape[1])
    return anomaly_map[counted_by_all(counted, size).to(anomaly_map.device)][None]


def judged_pixels(
    values: NDArray[np.float32], grid: Tensor | None, threshold: float
) -> NDArray[np.bool_] | None:
    """Return the pixels (H, W) of an image's map that a threshold judges, as they count; None: all.

    Pixels that do not count are 0, so a threshold above 0 need not know them. The patch scores
    (h, w) of an ensemble do not say which pixels these are, only that there are some.
    """
    if threshold > 0 or grid is None or not bool(grid.isnan().any()):
        return None
    return values != 0
