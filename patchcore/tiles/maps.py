"""Layer maps of images in tiles, band by band, and features of these maps."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, overload

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from patchcore.errors import InputError
from patchcore.tiles.raster import Axis, axis_of, cells_of

PIXELS = 1 << 20  # most pixels of a batch of tiles, unless one tile has more
AREA = 1 << 11  # most units of a band, unless one row of units has more
QUARTER = 4  # 1/4 of a tile is shared with each neighbour if the network's reach is not limited


class Tiling:
    """Geometry of tiles: how images are cut, and how the tiles' layer maps are joined.

    Args:
        network: The `Backbone` that computes the maps.
        side: Side of a tile, px.
        overlap: Pixels that neighbouring tiles share; None: twice the network's reach, or a quarter
            of the tile if its cells depend on the whole tile; rounded up to a multiple of two
            units.
        halo: Extra units on every side of a band, which the neighbourhoods of patches need.
        multiple: Factor by which a unit is larger than `Cells.unit`: the stride of the patches.
        normalisation: Offset and scale, (3,) each, for pixels 0–255; see `offset_and_scale`.

    Attributes:
        overlap: Pixels that neighbouring tiles share; never None.
        cut: Pixels at a tile's border without weight.
        unit: Side of a unit, px, a multiple of the cells of all layers.

    Raises:
        InputError: `side` or `overlap` does not fit the network's cells.
    """

    def __init__(
        self,
        network: Any,
        side: int,
        overlap: int | None = None,
        halo: int = 0,
        multiple: int = 1,
        normalisation: tuple[Float[Tensor, "3"], Float[Tensor, "3"]] | None = None,
    ) -> None:
        cells = cells_of(network)
        unit = cells.unit * multiple
        self.side, self.unit, self.halo, self.strides = side, unit, halo, cells.strides
        self.normalisation = normalisation
        if side % unit:
            raise InputError(
                f"image.tiles: {network.name} needs a multiple of {unit} px, got {side}; the "
                f"nearest is image.tiles={max(1, round(side / unit)) * unit}"
            )
        if overlap is None:
            wanted = side / QUARTER if cells.reach is None else 2 * cells.reach
            overlap = math.ceil(wanted / (2 * unit)) * 2 * unit
            if overlap >= side:
                raise InputError(
                    f"image.tiles: tiles of {side} px are too small, because {network.name} needs "
                    f"neighbours to share {overlap} px; set image.tiles={2 * overlap} or larger"
                )
        if overlap % (2 * unit):
            nearest = round(overlap / (2 * unit)) * 2 * unit
            raise InputError(
                f"image.overlap: {network.name} needs a multiple of {2 * unit} px, got {overlap}; "
                f"the nearest is image.overlap={nearest}"
            )
        if overlap >= side:
            raise InputError(f"image.overlap must be less than image.tiles ({side}), got {overlap}")
        self.overlap = overlap
        exact = cells.reach is not None and 2 * cells.reach <= overlap
        self.cut = overlap // 2 if exact else 0

    def maps(self, network: Any, images: Tensor) -> "TiledMaps":
        """Return the layer maps of images (B, 3, H, W), computed on demand.

        Images are normalised floating-point values, or uint8 pixels; the latter are normalised tile
        by tile.

        Raises:
            InputError: shape or dtype is another, or pixels need a normalisation that is missing.
        """
        pixels = images.dtype == torch.uint8
        if images.ndim != 4 or images.shape[1] != 3 or not (pixels or images.is_floating_point()):
            raise InputError(
                "images must be normalised floats or uint8 (B, 3, H, W), got "
                f"{tuple(images.shape)} {str(images.dtype).removeprefix('torch.')}"
            )
        if pixels and self.normalisation is None:
            raise InputError("images in uint8 need the tiling's normalisation, and it has none")
        return TiledMaps(self, network, images)

    def axis(self, length: int) -> "Axis":
        """Return the raster of tiles along a side of an image of `length` px."""
        return axis_of(length, self.side, self.overlap, self.cut, self.unit, self.halo)

    def tile(
        self,
        images: Shaped[Tensor, "images 3 height width"],
        rows: Int64[Tensor, " side"],
        columns: Int64[Tensor, " side"],
    ) -> Float[Tensor, "images 3 side side"]:
        """Return the pixels of a tile (B, 3, side, side), normalised."""
        x = images[:, :, rows[:, None], columns]
        if self.normalisation is None or x.dtype != torch.uint8:
            return x
        offset, scale = (each.to(x.device)[:, None, None] for each in self.normalisation)
        return (x.float() - offset) * scale


@dataclass
class Band:
    """Layer maps of some rows of an image, with a halo around them.

    Attributes:
        maps: [(B, C, h, w), …], without layers that have no cells, such as class tokens.
        units: Rows and columns of the maps, in units, including the halo.
        halo: Units of the halo on every side.
        share: Share of the image's rows in this band and all bands before it, in (0, 1].
    """

    maps: list[Float[Tensor, "images _ _ _"]]
    units: tuple[int, int]
    halo: int
    share: float

    def cropped(self, features: Any) -> Any:
        """Return features (B, h, w, D), or a list of them, without the halo."""
        if isinstance(features, list):
            return [self.cropped(each) for each in features]
        slices = []
        for length, units in zip(features.shape[1:3], self.units, strict=True):
            if length % units:
                raise ValueError(f"{length} cells are not a multiple of {units} units")
            edge = length // units * self.halo
            slices.append(slice(edge, length - edge))
        return features[:, slices[0], slices[1]]


class TiledMaps(Sequence[Tensor]):
    """Layer maps of images in tiles: `bands` of them, or, as a sequence, the whole maps.

    Attributes:
        watch: Function that returns the context in which the network is called, such as a timer.
    """

    def __init__(self, tiling: Tiling, network: Any, images: Tensor) -> None:
        self.tiling, self.images = tiling, images
        self.watch: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._network = network
        self._joined: list[Tensor] | None = None
        self._token: Tensor | None = None
        kind = images.device.type
        self._autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))

    def __len__(self) -> int:
        return len(self.tiling.strides)

    @overload
    def __getitem__(self, which: int) -> Tensor: ...

    @overload
    def __getitem__(self, which: slice) -> list[Tensor]: ...

    def __getitem__(self, which: int | slice) -> Any:
        return self.joined()[which]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.joined())

    def each(self) -> list["TiledMaps"]:
        """Return the maps of each image alone."""
        found = [TiledMaps(self.tiling, self._network, x[None]) for x in self.images]
        for own in found:
            own.watch, own._autocast = self.watch, self._autocast
        return found

    @property
    def token(self) -> Float[Tensor, "images channels 1 1"]:
        """Mean (B, C, 1, 1) of the tiles' class tokens; computes all maps if no bands were made."""
        if self._token is None:
            self.joined()
        assert self._token is not None
        return self._token

    def joined(self) -> list[Float[Tensor, "images _ _ _"]]:
        """Return the whole maps [(B, C, h, w), …] of the images, without halo."""
        if self._joined is None:
            bands = []
            for band in self.bands():
                edges = [x.shape[2] // band.units[0] * band.halo for x in band.maps]
                bands.append(
                    [
                        x[:, :, e : x.shape[2] - e, e : x.shape[3] - e].clone()
                        for x, e in zip(band.maps, edges, strict=True)
                    ]
                )
            maps = iter([torch.cat(rows, 2) for rows in zip(*bands, strict=True)])
            self._joined = [next(maps) if s else self.token for s in self.tiling.strides]
        return self._joined

    def streamed(self, function: Callable[[list[Tensor]], Any]) -> "Streamed":
        """Return features that a function computes from the maps of each band; see `Streamed`."""
        return Streamed(self, function)

    def bands(self) -> Iterator[Band]:
        """Yield bands from top to bottom; use each band before asking for the next one."""
        tiling = self.tiling
        down, across = (tiling.axis(length) for length in self.images.shape[2:])
        strides = [stride for stride in tiling.strides if stride]
        tall, wide = ([axis.weights(s) for s in strides] for axis in (down, across))
        cells = [tiling.unit // s for s in strides]  # cells per side of a unit
        cut, reach = tiling.cut // tiling.unit, tiling.side // tiling.unit
        pending: list[Tensor] = []  # maps (B, C, …, w) of each layer, from unit `top` on
        top, tokens = 0, []
        for number, start in enumerate(down.starts):
            stop = min(start + reach - cut, down.total)  # end of the units that the row adds to
            for place, maps in self._row_of_tiles(down.pixels[number], across.pixels):
                tokens += [x for x, s in zip(maps, tiling.strides, strict=True) if not s]
                maps = [x for x, s in zip(maps, tiling.strides, strict=True) if s]
                if place == 0:
                    pending = pending or [x[:, :, :0] for x in maps]
                    pending = [
                        _taller(x, (stop - top) * n, across.total * n)
                        for x, n in zip(pending, cells, strict=True)
                    ]
                for i, n in enumerate(cells):
                    at = ((start - top) * n, across.starts[place] * n)
                    _add(pending[i], maps[i], at, (tall[i][number], wide[i][place]))
            # Later rows add nothing above this unit.
            final = min([stop, *(x + cut for x in down.starts[number + 1 : number + 2])])
            if final == down.total and tokens:
                self._token = torch.stack(tokens).mean(0)
            base, around = top, 2 * tiling.halo
            while final - top > around:
                end = min(final, top + around + max(1, AREA // across.total))
                part = slice(top - base, end - base)
                maps = [
                    x[:, :, part.start * n : part.stop * n]
                    for x, n in zip(pending, cells, strict=True)
                ]
                share = (end - around) / down.units
                yield Band(maps, (end - top, across.total), tiling.halo, share)
                top = end - around
            gone = top - base
            pending = [x[:, :, gone * n :].clone() for x, n in zip(pending, cells, strict=True)]

    def _row_of_tiles(
        self, rows: Int64[Tensor, " side"], columns: Sequence[Int64[Tensor, " side"]]
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Yield the number and the maps [(B, C, h, w), …] of each tile of a row."""
        tiling, images = self.tiling, self.images
        at_once = max(1, PIXELS // (len(images) * tiling.side**2))
        kind, dtype, enabled = self._autocast
        for start in range(0, len(columns), at_once):
            some = columns[start : start + at_once]
            with torch.inference_mode(), torch.autocast(kind, dtype, enabled), self.watch():
                x = torch.cat([tiling.tile(images, rows, own) for own in some])
                maps = self._network.whole(x)
            split = zip(*(x.split(len(images)) for x in maps), strict=True)
            for number, own in enumerate(split, start):
                yield number, list(own)


class Streamed:
    """Features of images in tiles, computed on demand, band by band.

    Args:
        maps: Layer maps of the images.
        function: Function from the maps of a band, with halo, to features (B, h, w, D), or to a
            list of the features of several layers.
    """

    def __init__(self, maps: TiledMaps, function: Callable[[list[Tensor]], Any]) -> None:
        self._maps, self._function = maps, function

    def __iter__(self) -> Iterator[Any]:
        for features, _ in self.shares():
            yield features

    def shares(self) -> Iterator[tuple[Any, float]]:
        """Yield the features of each band, and the share of the image up to the band's end."""
        for band in self._maps.bands():
            with torch.inference_mode():
                features = band.cropped(self._function(band.maps))
            yield features, band.share

    def each(self) -> list["Streamed"]:
        """Return the features of each image alone."""
        return [Streamed(own, self._function) for own in self._maps.each()]

    def whole(self) -> Any:
        """Return the features (B, h, w, D) of all bands, or a list of them."""
        bands = list(self)
        if isinstance(bands[0], list):
            return [torch.cat(rows, 1) for rows in zip(*bands, strict=True)]
        return torch.cat(bands, 1)


def whole(features: Any) -> Any:
    """Return features as tensors, whether they are `Streamed` or tensors already."""
    return features.whole() if isinstance(features, Streamed) else features


def _taller(
    x: Float[Tensor, "images channels h w"], height: int, width: int
) -> Float[Tensor, "images channels {height} {width}"]:
    """Extend maps (B, C, h, w) with rows of zeros; maps without rows may have any width."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    shape = (len(x), height, width, x.shape[1])
    # Channels last in memory, as in the output of networks and the input of patches.
    found = torch.zeros(shape, dtype=dtype, device=x.device).permute(0, 3, 1, 2)
    if x.shape[2]:
        found[:, :, : x.shape[2]] = x
    return found


def _add(
    joined: Float[Tensor, "images channels height width"],
    maps: Float[Tensor, "images channels h w"],
    at: tuple[int, int],
    weights: tuple[Float[Tensor, " h"], Float[Tensor, " w"]],
) -> None:
    """Add a tile's weighted maps (B, C, h, w) to the joined maps, its first cell at `at`."""
    places, kept, shares = [], [], []
    for start, weight in zip(at, weights, strict=True):
        counted = weight.nonzero()[:, 0]
        first, stop = (int(counted[0]), int(counted[-1]) + 1) if len(counted) else (0, 0)
        kept.append(slice(first, stop))
        places.append(slice(start + first, start + stop))
        shares.append(weight[first:stop])
    x = maps[:, :, kept[0], kept[1]]
    if not all(bool((share == 1).all()) for share in shares):
        x = x * torch.outer(*shares).to(joined)
    joined[:, :, places[0], places[1]] += x
