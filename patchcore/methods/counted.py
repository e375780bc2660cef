"""Positions of the patch grid that count, by the part of an image that a region lets count."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from patchcore.errors import InputError
from patchcore.scoring import cell_of


class Counted(NamedTuple):
    """Features of a batch of images, of which some positions count."""

    features: Any
    counts: Tensor  # (B, h, w) bool


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
    covered = rows.T @ inside.float() @ columns  # (B, h, w) pixels
    area = torch.outer(rows.sum(0), columns.sum(0))  # (h, w)
    counts = (2 * covered >= area) & (area > 0)
    if not bool(counts.flatten(1).any(1).all()):
        raise InputError(
            "data.region: it covers less than half of every patch of an image: mark more of it"
        )
    return counts


def parts(features: Any) -> tuple[Any, Tensor | None]:
    """Features and the positions that count; None where all do."""
    return (
        (features.features, features.counts) if isinstance(features, Counted) else (features, None)
    )
