"""Images of any size in tiles: the network sees one tile after the other, methods see one image.

What the network says of the tiles is stitched in feature space. Tiles lie on a raster of `side` −
`overlap` px, and each cell of a layer's map is a weighted mean of that cell in the tiles that show
it. A convolutional network sees `reach` px around a cell; where neighbouring tiles share at least
twice as many, the shared part is cut in its middle, no tile's border has any influence, and the
maps are those of the whole image at once up to rounding. The cells of a transformer depend on all
of their tile; their weights then fall towards the tile's borders in a straight line.

Images are mirrored beyond their borders, so that every tile is whole, images smaller than a tile
among them, and borders of the image are as its inside. The joined grid is the image's size in units
of the coarsest layer's cells, rounded up, and lies around the image's middle: its outermost cells
may reach up to half a unit beyond the image.

Maps are made from top to bottom as they are asked for, a row of tiles at a time, so that no more
than a band of them is in memory. Whole-array loops that do the same are `stitched` in
tests/reference.py.
"""

from patchcore.tiles.maps import Band, Streamed, TiledMaps, Tiling, whole
from patchcore.tiles.raster import Axis, Cells, cells_of, mirrored

__all__ = [
    "Axis",
    "Band",
    "Cells",
    "Streamed",
    "TiledMaps",
    "Tiling",
    "cells_of",
    "mirrored",
    "whole",
]
