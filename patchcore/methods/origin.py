"""Places that a memory's rows come from: the image, and the position in its grid of patches."""

from collections.abc import Sequence

import torch
from torch import Tensor

UNKNOWN = -1
"""Number of the image, and position, of a row that is no patch of an image."""


def patch_origins(
    patches: Tensor, grids: Sequence[tuple[int, int]], images: Sequence[int]
) -> Tensor:
    """Image number, grid row and grid column of some patches: (R, 3) int32 on the CPU.

    Args:
        patches: (R,) numbers of the patches, counted on from image to image.
        grids: Height and width of each image's grid, in patches.
        images: Number of each image.

    >>> patch_origins(torch.tensor([5, 6]), [(2, 3), (1, 1)], [7, 8]).tolist()
    [[7, 1, 2], [8, 0, 0]]
    """
    patches = patches.cpu()
    widths = torch.tensor([width for _, width in grids])  # (I,)
    ends = torch.tensor([height * width for height, width in grids]).cumsum(0)  # (I,)
    image = torch.searchsorted(ends, patches, right=True)  # (R,)
    first = torch.cat((ends.new_zeros(1), ends))[image]  # (R,)
    place, width = patches - first, widths[image]
    rows = torch.stack((torch.tensor(list(images))[image], place // width, place % width), 1)
    return rows.to(torch.int32)


def position_origins(rows: Tensor, images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Origins (…, 3) int32, as `patch_origins` gives, in a memory of whole images of one grid.

    Args:
        rows: (…) image · h·w + position.
        images: (N,) number of each image.
        grid: h and w.
    """
    positions = grid[0] * grid[1]
    image, place = images.to(rows.device)[rows // positions], rows % positions
    return torch.stack((image, place // grid[1], place % grid[1]), -1).to(torch.int32)
