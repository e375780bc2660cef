"""Checks that a decoded file held all pixels that it declares.

Pillow leaves missing ones black, and those of a JPEG file grey.
"""

import io
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by the colour type of a PNG file
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
"""Column, row and steps of the first six of an interlaced PNG file's passes."""
PIECE = 1 << 20  # bytes that are unpacked at a time
GREY = 128  # of the blocks of a JPEG file whose data are missing
_END = b"\xff\xd9"  # ends the data of a JPEG file
_MORE = bytes(range(0x11, 0xF0, 7)) * 4  # read as pixels, this is not plain grey


def check_complete(image: Image.Image, path: Path) -> None:
    """Refuse an image that Pillow has decoded although pixels or colours are missing.

    Decoders of other formats than PNG and JPEG refuse files with missing rows themselves.

    Args:
        image: Loaded image, not turned.
        path: Its file.

    Raises:
        ValueError: a PNG or JPEG file holds fewer rows than it declares, or an image uses colours
            that its palette lacks; the message says so without the file's name.
    """
    if image.format == "JPEG":
        _check_jpeg(image, path)
    if image.mode == "P":
        used, known = _highest(image), len(image.getpalette("RGB") or ()) // 3
        if used >= known:
            raise ValueError(f"it uses colour {used}, and its palette ends before {known}")
    if image.format != "PNG":
        return
    last = image.crop((0, image.height - 1, image.width, image.height))
    if not image.info.get("interlace") and np.asarray(last).any():  # missing rows are 0
        return
    found, declared = _sizes(path)
    if found < declared:
        raise ValueError(f"it is truncated: {found:,} of {declared:,} bytes of pixels are there")


def _check_jpeg(image: Image.Image, path: Path) -> None:
    """Refuse a JPEG file that ends, by its mark of the end, before its last row.

    The decoder then leaves the last blocks grey. Further data before the mark change the pixels
    only if some were missing: whatever follows the last block is skipped.
    """
    width, height = image.size
    if image.getpixel((width - 1, height - 1)) not in (GREY, (GREY, GREY, GREY)):  # quick to tell
        return
    last = image.crop((max(0, width - 8), height - 1, width, height))
    if (np.asarray(last) != GREY).any():
        return
    data = path.read_bytes()
    end = data.rfind(_END)
    with JpegImageFile(io.BytesIO(data[:end] + _MORE + data[end:])) as longer:
        if end > 0 and (np.asarray(longer) != np.asarray(image)).any():
            raise ValueError("it is truncated: its data end before its last row")


def _highest(image: Image.Image) -> int:
    extrema = image.getextrema()
    return int(extrema[1])  # type: ignore[arg-type]


def _sizes(path: Path) -> tuple[int, int]:
    """Unpacked bytes that a PNG file holds, and that its header declares."""
    data = path.read_bytes()
    width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
    bits = data[24] * CHANNELS[data[25]]
    passes = [(width, height)]
    if data[28]:
        passes = [
            (-(-(width - x) // across), -(-(height - y) // down)) for x, y, across, down in ADAM7
        ]
        passes.append((width, height // 2))
    declared = sum(
        rows * (1 + -(-columns * bits // 8)) for columns, rows in passes if columns > 0 < rows
    )
    unpack, found = zlib.decompressobj(), 0
    for part in _parts(data):
        while part and not unpack.eof:
            found += len(unpack.decompress(part, PIECE))
            part = unpack.unconsumed_tail
    return found + len(unpack.flush()), declared


def _parts(data: bytes) -> Iterator[bytes]:
    """Yield the contents of the chunks with pixels."""
    place = 8
    while place + 8 <= len(data):
        size, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        if kind == b"IDAT":
            yield data[place + 8 : place + 8 + size]
        place += 12 + size
