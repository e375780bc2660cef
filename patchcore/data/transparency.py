"""Transparent images, which are composited over black."""

import warnings
from pathlib import Path

from PIL import Image

from patchcore.errors import Told, printable

_PREMULTIPLIED = "La"  # mode of grey pixels that are over black already
_told = Told()


def is_transparent(image: Image.Image) -> bool:
    """Return whether some pixels of an image may be transparent."""
    return image.has_transparency_data or image.mode == _PREMULTIPLIED


def over_black(image: Image.Image, path: Path) -> Image.Image:
    """Return an image composited over black, of mode RGBA; warn once a folder if nothing is left.

    Args:
        image: Image of any mode; see `is_transparent`.
        path: Its file, for the warning.
    """
    image = (image.convert("LA") if image.mode == _PREMULTIPLIED else image).convert("RGBA")
    if image.getextrema()[-1] == (0, 0) and _told.first(path.parent):
        warnings.warn(
            f"{printable(str(path))}: its alpha channel makes all of its pixels transparent, and "
            "so they are black, as perhaps in other images of its folder: save such images "
            "without an alpha channel",
            stacklevel=2,
        )
    return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
