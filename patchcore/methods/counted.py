"""Positions of the patch grid that count, by the part of an image that a region lets count."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from patchcore.errors import InputError
from patchcore.foreground import foreground
from patchcore.scoring import cell_of


class Counted(NamedTuple):
    """Features of a batch of images, of which some positions count."""

    features: Any
    counts: Tensor  # (B, h, w) bool


class Described(NamedTuple):
    """Features of a batch of images, with what images are compared by as a whole."""

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
    covered = rows.T @ inside.float() @ columns  # (B, h, w) pixels
    area = torch.outer(rows.sum(0), columns.sum(0))  # (h, w)
    counts = (2 * covered >= area) & (area > 0)
    if not bool(counts.flatten(1).any(1).all()):
        raise InputError(
            "data.region: it covers less than half of every patch of an image: mark more of it"
        )
    return counts


def objects(features: Tensor, threshold: float, counts: Tensor | None = None) -> Tensor:
    """Positions (B, h, w) of objects, by patch features (B, h, w, D): see `foreground`.

    Only those that count, if `counts` (B, h, w) says; all of these where none is an object's.
    """
    found = foreground(features, threshold)
    if counts is None:
        return found
    both = found & counts
    return torch.where(both.flatten(1).any(1)[:, None, None], both, counts)


def token_of(features: Any) -> Tensor | None:
    """Class token (B, C) that features come with; None where they do not."""
    return features.token if isinstance(features, Described) else None


def parts(features: Any) -> tuple[Any, Tensor | None]:
    """Features and the positions that count; None where all do."""
    if isinstance(features, Described):
        features = features.features
    return (
        (features.features, features.counts) if isinstance(features, Counted) else (features, None)
    )


def counted_rows(features: Tensor, counts: Tensor | None) -> Tensor:
    """Patch features (N, D), those that count, of (B, h, w, D)."""
    return features.flatten(0, 2) if counts is None else features[counts]
