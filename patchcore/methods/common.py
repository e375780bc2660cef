"""Parts that SPADE and PaDiM share: images of one size, layers on one grid."""

import torch.nn.functional as F
from torch import Tensor

from patchcore.errors import InputError
from patchcore.methods.detector import FeatureBuffer


class ImageBuffer:
    """Features (N, h, w, D) of images of one size, gathered in one allocation.

    Args:
        images: As in `FeatureBuffer`.
    """

    def __init__(self, images: int = 0) -> None:
        self._rows = FeatureBuffer(images)
        self._grid: tuple[int, int] | None = None

    def append(self, features: Tensor) -> None:
        """Add the features (B, h, w, D) of a batch. Raises InputError if its grid is another."""
        height, width = features.shape[1:3]
        self._grid = self._grid or (height, width)
        check_grid((height, width), self._grid)
        self._rows.append(features)

    def take(self) -> Tensor:
        """The features (N, h, w, D), which the buffer forgets. Raises InputError if none came."""
        rows, grid = self._rows.take(), self._grid
        assert grid is not None
        self._grid = None
        return rows.view(-1, *grid, rows.shape[1])  # (N·h·w, D) → (N, h, w, D)


def check_grid(grid: tuple[int, int], fitted: tuple[int, int]) -> None:
    """Raise InputError if images have another grid of patches than those before."""
    if grid != fitted:
        raise InputError(
            f"all images must have one size with this model: {grid[0]} × {grid[1]} patches came "
            f"after {fitted[0]} × {fitted[1]}; set image.crop, or image=px224_square"
        )


def interpolated(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """A layer's map (B, h', w', C) on a finer grid (h, w): (B, h, w, C), bilinear."""
    if x.shape[1:3] == grid:
        return x
    # Channels last, which on CPU is a hundred times faster than channels first.
    x = x.contiguous().permute(0, 3, 1, 2)  # (B, C, h', w')
    x = F.interpolate(x, size=grid, mode="bilinear", align_corners=False)
    return x.permute(0, 2, 3, 1)
