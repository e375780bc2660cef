"""Cells of a network's layers, and the raster of tiles along the sides of an image."""

import copy
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int64

from patchcore.errors import InputError, counted


@dataclass(frozen=True)
class Cells:
    """Cells of a network's layers, and how far they depend on pixels around them.

    Attributes:
        strides: Side of a cell of each layer, px; 0 for a layer without cells, such as a class
            token.
        unit: Side of the smallest square that consists of whole cells in every layer, px.
        reach: Distance from a tile's border, px, beyond which no cell depends on pixels outside the
            tile; None: in some layer every cell depends on the border of an image of usual size.
    """

    strides: tuple[int, ...]
    unit: int
    reach: int | None


_KNOWN: WeakKeyDictionary[Any, Cells] = WeakKeyDictionary()


def cells_of(network: Any) -> Cells:
    """Return the cells of a `Backbone`, measured with images whose left or right edge is NaN.

    Cells that depend on the edge become NaN. The network runs on the CPU in float64, where
    convolutions are plain sums, so that NaN reaches no other cells and the result is the same for
    all devices. The result is kept for each network.

    Raises:
        InputError: the network's cells do not divide its input.
    """
    if network in _KNOWN:
        return _KNOWN[network]
    side = network.input.side
    alone = copy.deepcopy(network).cpu().double()
    try:
        maps = _seen(alone, side, 2 * side // 7)  # faster than a square
    except InputError:
        maps = _seen(alone, side, side)
    strides, reach, seen_all = [], 0, False
    for x in maps:
        columns = x.shape[-1]
        if columns == 1 and side > 64:  # a class token
            strides.append(0)
            continue
        if side % columns:
            raise InputError(
                f"image.tiles: {network.name} makes {counted(columns, 'cell')} of {side} px, which "
                "cannot be stitched: choose another backbone, or set image.tiles=null"
            )
        strides.append(side // columns)
        cells = int(x.isnan().flatten(1, 2).any(1).sum(1).max())  # of (2, columns)
        seen_all |= cells == columns
        reach = max(reach, cells * strides[-1])
    unit = math.lcm(*(stride for stride in strides if stride))
    _KNOWN[network] = Cells(tuple(strides), unit, None if seen_all else reach)
    return _KNOWN[network]


def _seen(network: Any, side: int, height: int) -> list[Float[torch.Tensor, "2 _ _ _"]]:
    """Maps of two images (3, height, side): one is NaN at its left edge, the other at its right."""
    images = torch.zeros(2, 3, height, side)
    images[0, :, :, 0], images[1, :, :, -1] = math.nan, math.nan
    with torch.autocast("cpu", enabled=False):
        found: list[torch.Tensor] = network.whole(images)
    return found


class Axis:
    """Raster of tiles along one side of an image.

    Args:
        length: Length of the image's side, px.
        side, overlap, cut, unit, halo: See `Tiling`.

    Attributes:
        units: Number of units of the joined grid.
        total: Number of units with the halo on both ends; unit 0 is the first of the halo.
        starts: First unit of each tile, which may be negative.
        pixels: Positions of the tiles' pixels in the image, [(side,), …].
    """

    def __init__(
        self, length: int, side: int, overlap: int, cut: int, unit: int, halo: int
    ) -> None:
        self.units = -(-length // unit)
        self.total = self.units + 2 * halo
        step = side - overlap
        first = (length - self.units * unit) // 2 - halo * unit - overlap // 2  # px of the image
        count = -(-self.total * unit // step)
        self.starts = [(number * step - overlap // 2) // unit for number in range(count)]
        self.pixels = [mirrored(first + number * step, side, length) for number in range(count)]
        self._tile, self._overlap, self._cut, self._unit = side, overlap, cut, unit

    def weights(self, stride: int) -> list[Float[torch.Tensor, " cells"]]:
        """Return the weights of each tile's cells, [(cells,), …], for cells of `stride` px.

        The weights of all tiles sum to 1 at each cell. Cells beyond the grid and its halo have
        weight 0.
        """
        per_unit, cells = self._unit // stride, self._tile // stride
        centres = (torch.arange(cells, dtype=torch.float64) + 0.5) * stride  # px of the tile
        inner = torch.minimum(centres, self._tile - centres)  # to the nearer border
        inner, ramp = inner - self._cut, self._overlap - 2 * self._cut
        own = (inner / ramp).clamp(0, 1) if ramp else (inner > 0).double()
        total = torch.zeros(self.total * per_unit, dtype=torch.float64)
        each = []
        for start in self.starts:
            place = torch.arange(cells) + start * per_unit
            kept = torch.where((place >= 0) & (place < len(total)), own, 0.0)
            total.index_add_(0, place.clamp(0, len(total) - 1), kept)
            each.append((place.clamp(0, len(total) - 1), kept))
        return [(kept / total[place]).float() for place, kept in each]


@lru_cache(maxsize=8)
def axis_of(length: int, side: int, overlap: int, cut: int, unit: int, halo: int) -> Axis:
    """Return the `Axis` for these arguments; recent ones are kept for images of equal size."""
    return Axis(length, side, overlap, cut, unit, halo)


def mirrored(start: int, count: int, length: int) -> Int64[torch.Tensor, " {count}"]:
    """Return `count` positions from `start` on along a side of `length`, mirrored at both ends.

    >>> mirrored(-2, 6, 3).tolist()
    [1, 0, 0, 1, 2, 2]
    """
    places = (torch.arange(count) + start) % (2 * length)
    return torch.where(places < length, places, 2 * length - 1 - places)
