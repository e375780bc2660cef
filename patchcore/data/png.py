"""PNG files: a faster decoder of plain ones, greys that count as transparent, damaged notes."""

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageFile

_SIGNATURE = 8  # bytes before the first chunk
_HARMLESS = (b"IDAT", b"IEND", b"tIME")
"""Chunks that do not change how an image looks if they follow the first pixels."""
_NEEDED = (b"tRNS", b"acTL", b"fcTL", b"fdAT")
"""Chunks for transparency and animations; of the others, those that matter begin in upper case."""


def plain_png(image: ImageFile.ImageFile, path: Path) -> Image.Image | None:
    """Decode a plain PNG file with imagecodecs, which takes about half of Pillow's time.

    The pixels are the same. A file is plain if it holds 8 bits of grey or RGB without transparency
    or interlacing, and if nothing after its pixels says how to show them.

    Args:
        image: Opened file, whose pixels are not decoded yet.
        path: The file.

    Returns:
        The image, of mode L or RGB, with the file's `info`; or None, which means that Pillow should
        decode: imagecodecs is not installed (extra `png`), or the file is not plain or is damaged.
    """
    if image.format != "PNG" or image.mode not in ("L", "RGB") or len(image.tile) != 1:
        return None
    if image.tile[0].args != image.mode or image.info.keys() & {"transparency", "interlace"}:
        return None
    decode = _decoder()
    if decode is None:
        return None
    data = path.read_bytes()
    if not _ends_plainly(data):
        return None
    try:
        pixels = decode(data)  # (H, W, 3) or (H, W) uint8
    except MemoryError:
        raise
    except Exception:  # Pillow decides whether the damage matters, and says what it is
        return None
    bands = (3,) if image.mode == "RGB" else ()
    if pixels.shape != (image.height, image.width, *bands) or pixels.dtype != "uint8":
        return None
    decoded = Image.fromarray(pixels)
    decoded.info = image.info
    return decoded


def scale_transparent_grey(image: ImageFile.ImageFile) -> None:
    """Scale the grey that a PNG file of 2 or 4 bits declares transparent, as Pillow does pixels."""
    if image.format != "PNG" or not image.tile or "transparency" not in image.info:
        return
    factor = {"L;2": 85, "L;4": 17}.get(str(image.tile[0].args), 1)
    if factor > 1:
        image.info["transparency"] *= factor


def pixels_alone(data: bytes) -> bytes:
    """Return the content of a file, if of PNG without the chunks that change no pixels.

    Of damaged ones, such as a colour profile, OpenCV prints warnings that name no file.
    """
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    parts, place = [data[:_SIGNATURE]], _SIGNATURE
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        name = data[place + 4 : place + 8]
        if name[:1].isupper() or name in _NEEDED:
            parts.append(data[place:end])
        place = end
    return b"".join([*parts, data[place:]])


@cache
def _decoder() -> Callable[[bytes], Any] | None:
    """Decoder of the optional package imagecodecs; several threads may use it at once."""
    try:
        from imagecodecs import png_decode
    except ImportError:
        return None
    logging.getLogger("imagecodecs").setLevel(logging.ERROR)  # its warnings name no file
    decode: Callable[[bytes], Any] = png_decode
    return decode


def _ends_plainly(data: bytes) -> bool:
    """Whether the chunks of a PNG file are whole, and those after the pixels are harmless."""
    place, pixels = _SIGNATURE, False
    while place + 12 <= len(data):  # length, name, content, checksum
        size = int.from_bytes(data[place : place + 4], "big")
        name = data[place + 4 : place + 8]
        if name == b"IEND":
            return True
        pixels = pixels or name == b"IDAT"
        if pixels and name not in _HARMLESS:
            # Exif data may be kept as text, too; other comments follow the pixels in many files.
            text = name == b"tEXt" and data[place + 8 : place + 11].lower() != b"raw"
            if not text:
                return False
        place += size + 12
    return False
