"""Places that a memory's rows come from: the image, and the position in its grid of patches."""

from collections.abc import Sequence

import torch
from torch import Tensor

UNKNOWN = -1
"""Number of the image, and position, of a row that is no patch of an image."""


def patch_origins(
    patches: Tensor, places: Sequence[Tensor], widths: Sequence[int], images: Sequence[int]
) -> Tensor:
    """Image number, grid row and grid column of some patches: (R, 3) int32 on the CPU.

    Args:
        patches: (R,) numbers of the patches, counted on from image to image.
        places: Positions of each image's patches in its grid, [(n,), …].
        widths: Width of each image's grid, in patches.
        images: Number of each image.

    >>> places = [torch.arange(6), torch.tensor([3])]
    >>> patch_origins(torch.tensor([5, 6]), places, [3, 2], [7, 8]).tolist()
    [[7, 1, 2], [8, 1, 1]]
    """
    patches = patches.cpu()
    ends = torch.tensor([len(each) for each in places]).cumsum(0)  # (I,)
    image = torch.searchsorted(ends, patches, right=True)  # (R,)
    place, width = torch.cat(list(places))[patches], torch.tensor(list(widths))[image]
    rows = torch.stack((torch.tensor(list(images))[image], place // width, place % width), 1)
    return rows.to(torch.int32)


def position_origins(rows: Tensor, images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return `patch_origins` of a memory that holds whole images of one grid: (…, 3) int32.

    Args:
        rows: (…) image · h·w + position.
        images: (N,) number of each image.
        grid: h and w.
    """
    positions = grid[0] * grid[1]
    image, place = images.to(rows.device)[rows // positions], rows % positions
    return torch.stack((image, place // grid[1], place % grid[1]), -1).to(torch.int32)
