"""Images of any size in tiles: the network sees single tiles, methods see the whole image.

The layer maps of the tiles are stitched. Tiles are `side` − `overlap` px apart, and each cell of a
stitched map is a weighted mean of that cell in the tiles that contain it. A cell of a convolutional
network depends on `reach` px around it. If neighbouring tiles share at least twice as many pixels,
the shared part is cut in the middle, so that the borders of tiles have no influence, and the maps
equal those of the whole image up to rounding. A cell of a transformer depends on its whole tile; in
this case the weights fall linearly towards the tile's borders.

Images are mirrored at their borders, so that all tiles are complete, even for images smaller than a
tile, and cells at the border see the same kind of content as those inside. The size of the stitched
grid is that of the image in units of the coarsest cell, rounded up. The grid is centred on the
image, so its outermost cells may extend up to half a unit beyond the image.

Maps are computed from top to bottom on demand, one row of tiles at a time, so that only a band of
them is in memory. `stitched` in tests/reference.py does the same with loops over whole arrays.
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
