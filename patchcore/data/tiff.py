"""TIFF files: layouts of pixels that Pillow misreads, and tags that it does not heed."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from patchcore.data.formats import CAMERA
from patchcore.errors import InputError

PLANES = ("RGB", "RGBA", "RGBX", "CMYK")  # modes that Pillow puts together from separate planes
_FOREIGN = re.compile(r";\d+B" if sys.byteorder == "little" else r";\d+(?![BN\d])")
"""Settings of a decoder for numbers whose bytes are in another order than this machine's."""


def prepare(image: Image.Image, path: Path) -> None:
    """Refuse a TIFF file whose layout Pillow misreads; make it read others rightly.

    Files of other formats are left as they are.

    Args:
        image: The file, opened; its pixels are not loaded.
        path: Path of the file, for the message.

    Raises:
        InputError: The file is a camera's, by its extension. It lists too few strips or tiles, or
            leaves out some. It keeps its channels in separate planes, and they have more than
            8 bits or are not those of a colour. Or its compressed numbers are floating-point or
            signed, and in another byte order.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    if path.suffix.lower() in CAMERA:
        raise InputError(
            f"{path}: is a raw file of a camera, which is not supported; convert it to PNG"
        )
    if image.size != stored_size(image):  # or Pillow maps the file by its size turned upright
        image.filename = ""
    if gap := _gap(image.tag_v2):
        raise InputError(f"{path}: {gap}, so pixels are missing; replace it")
    bits = np.atleast_1d(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, 1))
    planar = image.tag_v2.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) == 2 and len(bits) > 1
    if planar and (max(bits) > 8 or image.mode not in PLANES):
        raise InputError(
            f"{path}: keeps its {len(bits)} channels of {max(bits)} bits in separate planes "
            "(PlanarConfiguration 2), which is not supported; save it with interleaved channels"
        )
    for tile in image.tile:
        if tile.codec_name == "libtiff" and _FOREIGN.search(str(tile.args)):
            raise InputError(
                f"{path}: holds compressed floating-point or signed numbers in another byte order "
                f"than this machine's ({sys.byteorder}-endian), which is not supported; save it "
                "in this order or without compression"
            )


def _gap(tags: Any) -> str:
    """Return what the file's list of strips or tiles lacks; "" if it is whole."""
    height, width = tags[TiffImagePlugin.IMAGELENGTH], tags[TiffImagePlugin.IMAGEWIDTH]
    if tiled := TiffImagePlugin.TILEOFFSETS in tags:
        across = -(-width // tags[TiffImagePlugin.TILEWIDTH])
        needed = across * -(-height // tags[TiffImagePlugin.TILELENGTH])
    else:
        needed = -(-height // tags.get(TiffImagePlugin.ROWSPERSTRIP, height))
    if tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) == 2:
        needed *= tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
    kind = "tiles" if tiled else "strips"
    offsets = np.atleast_1d(
        tags.get(TiffImagePlugin.TILEOFFSETS if tiled else TiffImagePlugin.STRIPOFFSETS, ())
    )
    if len(offsets) < needed:
        return f"lists {len(offsets)} of {needed} {kind}"
    missing = int((offsets[:needed] == 0).sum())
    return f"holds no data for {missing} of {needed} {kind}" if missing else ""


def stored_size(image: Any) -> tuple[int, int]:
    """Return the width and height of the pixels of an opened file, before it is turned upright."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # Pillow tells the size of the turned one
        return int(image.tag_v2[TiffImagePlugin.IMAGEWIDTH]), int(
            image.tag_v2[TiffImagePlugin.IMAGELENGTH]
        )
    return int(image.width), int(image.height)


def is_white_zero(image: Image.Image) -> bool:
    """Whether 0 is white in a TIFF file that Pillow does not invert, as it does those of 8 bits."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or image.mode not in ("I;16", "F"):
        return False
    return image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
