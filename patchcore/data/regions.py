"""The regions of a mask on their way to the network's size: none is lost without being counted."""

from dataclasses import astuple, dataclass

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray
from PIL import Image

TOUCHING = np.ones((3, 3), dtype=bool)  # pixels that meet at a corner are one region


@dataclass(frozen=True)
class Regions:
    """Numbers of a mask's 8-connected regions by what became of them."""

    marked: int = 0  # in the file
    outside: int = 0  # wholly outside the crop
    cut: int = 0  # partly outside the crop
    lost: int = 0  # in resizing
    merged: int = 0  # one with another region since resizing
    most: int = 0  # 1 if they cover more than half of the image, as those of inverted masks do

    @property
    def unseen(self) -> bool:
        """Whether regions lie outside the crop, and none inside."""
        return self.outside > 0 and self.outside + self.lost == self.marked

    def counts(self) -> NDArray[np.int64]:
        """The numbers, (6,) int64, as `patchcore.metrics.MaskCounts` takes them."""
        return np.array(astuple(self), dtype=np.int64)


def resize_regions(
    mask: NDArray[np.bool_], size: tuple[int, int]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Number a mask's regions and resize them.

    A pixel takes the region of the nearest pixel in the mask, as Pillow's NEAREST does. A region of
    two or more pixels that no pixel would take then gets those that it covers at least half as much
    as the one it covers most. A region of one pixel may be lost: it is a speck of the drawing.

    Args:
        mask: (H, W), True where marked.
        size: H' and W'.

    Returns:
        (H', W') the number of the region at each pixel, from 1 on, 0 where there is none; and (R,)
        the areas of the R regions in the mask, pixels.
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
    """Follow a mask's regions through a resize to `size` (H', W') and a crop."""
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
    """Pixels of a side that NEAREST takes from `start` on, and where it puts them.

    Args:
        length: Of the side, pixels.
        resized: Its new length.
        start: First pixel that is asked for.
        extent: How many are.
    """
    ramp = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    taken = np.array(ramp.resize((resized, 1), Image.Resampling.NEAREST))[0].astype(np.int64)
    places = np.flatnonzero((taken >= start) & (taken < start + extent))
    return taken[places] - start, places
