"""Connected regions of masks: by SciPy on the CPU, by PyTorch on a GPU."""

import numpy as np
import scipy
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor


def region_areas(
    masks: Bool[Tensor, "images height width"],
) -> Float32[Tensor, " anomalous"]:
    """Return the area of the 8-connected region that each anomalous pixel belongs to.

    Args:
        masks: True where anomalous.

    Returns:
        Areas in pixels, in the order of `scores[masks]`, on the masks' device.
    """
    if masks.is_cuda:
        some = masks[masks.flatten(1).any(1)]
        region = connected(some)[some]  # (B, H, W) → (A,)
        return region.bincount()[region].float()
    flags = masks.numpy(force=True)
    if not flags.any():
        return torch.empty(0, dtype=torch.float32)
    neighbours = np.zeros((3, 3, 3), dtype=bool)
    neighbours[1] = True  # never from one image to the next
    labels, _ = scipy.ndimage.label(flags, neighbours)
    region = labels[flags]  # (B, H, W) → (A,)
    return torch.from_numpy(np.bincount(region)[region].astype(np.float32))


def connected(masks: Bool[Tensor, "images height width"]) -> Int64[Tensor, "images height width"]:
    """Label the 8-connected regions of masks, by steps that run in parallel on a GPU.

    Labels start as the numbers of the pixels. In each step, every pixel takes the largest label in
    its 3×3 neighbourhood, and then, four times, the label of the pixel with that number. Labels
    never leave their region, so that each region has one label when nothing changes any more.

    Returns:
        Label of the region at each pixel, 1 or larger, not consecutive; 0 elsewhere.
    """
    count, height, width = masks.shape
    padded = torch.zeros(count, height + 2, width + 2, dtype=torch.int64, device=masks.device)
    labels = padded[:, 1:-1, 1:-1]
    numbers = torch.arange(1, masks.numel() + 1, device=masks.device).view(masks.shape)
    labels.copy_(numbers * masks)
    while True:
        rows = torch.maximum(padded[:, :-2], padded[:, 2:]).maximum(padded[:, 1:-1])  # (B, H, W+2)
        around = torch.maximum(rows[..., :-2], rows[..., 2:]).maximum(rows[..., 1:-1]) * masks
        for _ in range(4):  # each jump doubles the distance that a label has moved
            known = torch.cat((around.new_zeros(1), around.flatten()))
            around = known[around]
        if torch.equal(around, labels):
            return around
        labels.copy_(around)


def all_ignored(masks: Tensor, counts: Tensor) -> Tensor:
    """Return whether an image is marked, but only in pixels that do not count, (B,) bool.

    Args:
        masks: (B, H, W) bool, True where anomalous.
        counts: (B, H, W) bool, False for pixels that do not count.
    """
    return masks.flatten(1).any(1) & ~(masks & counts).flatten(1).any(1)
