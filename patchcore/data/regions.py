"""Regions of a mask on their way to the network's size: each that is lost is counted."""

from dataclasses import astuple, dataclass, replace

import numpy as np
import scipy
from numpy.typing import NDArray
from PIL import Image

Mask = NDArray[np.bool_]
TOUCHING = np.ones((3, 3), dtype=bool)  # 8-connectivity: pixels that meet at a corner are connected


@dataclass(frozen=True)
class Regions:
    """Numbers of a mask's 8-connected regions, by what resizing and cropping did to them."""

    marked: int = 0  # regions in the file
    outside: int = 0  # wholly outside the crop
    cut: int = 0  # partly outside the crop
    lost: int = 0  # lost in resizing
    merged: int = 0  # joined with another region by resizing
    most: int = 0  # 1 if all regions cover more than half of the image, as in inverted masks

    @property
    def unseen(self) -> bool:
        """Whether the file marks regions, and none of them shows at the network's size."""
        return 0 < self.marked == self.outside + self.lost + self.merged

    def hidden(self) -> "Regions":
        """Return the numbers if no region shows, though some may when counted by `follow`.

        This occurs where `follow` does not resize the mask as `build_preparation` does: in images
        that are too large to be resized as a whole.
        """
        if self.unseen:
            return self
        return replace(self, cut=0, lost=self.marked - self.outside, merged=0)

    def counts(self) -> NDArray[np.int64]:
        """Return the numbers, (6,) int64, as `patchcore.metrics.MaskCounts` takes them."""
        return np.array(astuple(self), dtype=np.int64)


def resize_regions(
    mask: NDArray[np.bool_], size: tuple[int, int]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Number a mask's regions and resize them.

    Each new pixel takes the region at the nearest pixel of the mask, as Pillow's NEAREST does. A
    region of two or more pixels that would be lost by this gets the free new pixels that it covers
    at least half as much as the one it covers most. A region of one pixel may be lost.

    Args:
        mask: (H, W), True where marked.
        size: H' and W'.

    Returns:
        The number of the region at each new pixel, (H', W') int32, counted from 1, 0 where there is
        none; and the areas of the R regions in the mask, (R,) int64, pixels.
    """
    resized = np.zeros(size, dtype=np.int32)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return resized, np.zeros(0, dtype=np.int64)
    top, left = rows[0], columns[0]
    labels, count = scipy.ndimage.label(
        mask[top : rows[-1] + 1, left : columns[-1] + 1], TOUCHING
    )  # of the box around all
    ys, to_y = _nearest(mask.shape[0], size[0], top, labels.shape[0])
    xs, to_x = _nearest(mask.shape[1], size[1], left, labels.shape[1])
    resized[np.ix_(to_y, to_x)] = labels[np.ix_(ys, xs)]
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    kept = np.bincount(resized.ravel(), minlength=count + 1) > 0
    boxes = scipy.ndimage.find_objects(labels)
    for number in np.flatnonzero(~kept & (areas > 1)):
        box = boxes[number - 1]
        y, x = np.nonzero(labels[box] == number)
        y = (2 * (y + box[0].start + top) + 1) * size[0] // (2 * mask.shape[0])  # of its centre
        x = (2 * (x + box[1].start + left) + 1) * size[1] // (2 * mask.shape[1])
        places, covered = np.unique(y * size[1] + x, return_counts=True)
        places = places[2 * covered >= covered.max()]
        free = places[resized.ravel()[places] == 0]
        resized.ravel()[free] = number
    return resized, areas[1:]


def follow_regions(
    mask: NDArray[np.bool_], size: tuple[int, int], crop: tuple[slice, slice]
) -> Regions:
    """Count what becomes of a mask's regions in a resize to `size` (H', W') and a crop."""
    resized, areas = resize_regions(mask, size)
    count = len(areas)
    if not count:
        return Regions()
    seen = resized[crop]
    everywhere, inside = (np.bincount(x.ravel(), minlength=count + 1)[1:] for x in (resized, seen))
    together, _ = scipy.ndimage.label(seen > 0, TOUCHING)
    found = np.unique(together[seen > 0] * (count + 1) + seen[seen > 0])  # region by component
    per_component = np.bincount(found // (count + 1)) if len(found) else np.zeros(1, dtype=int)
    gone = everywhere == 0  # of more than one pixel: all its places are another region's
    return Regions(
        marked=count,
        outside=int(((everywhere > 0) & (inside == 0)).sum()),
        cut=int(((inside > 0) & (inside < everywhere)).sum()),
        lost=int((gone & (areas == 1)).sum()),
        merged=int((per_component[per_component > 0] - 1).sum() + (gone & (areas > 1)).sum()),
        most=int(2 * int(mask.sum()) > mask.size),
    )


def _nearest(
    length: int, resized: int, start: int, extent: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels that NEAREST takes from a part of a side, relative to `start`, and their new places.

    Args:
        length: Length of the side, px.
        resized: New length of the side, px.
        start: First pixel of the part.
        extent: Length of the part, px.
    """
    ramp = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    taken = np.array(ramp.resize((resized, 1), Image.Resampling.NEAREST))[0].astype(np.int64)
    places = np.flatnonzero((taken >= start) & (taken < start + extent))
    return taken[places] - start, places
