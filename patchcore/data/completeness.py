"""Checks that a decoded file held all pixels that it declares; Pillow leaves missing ones black."""

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by the colour type of a PNG file
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
"""Column, row and steps of the first six of an interlaced PNG file's passes."""
PIECE = 1 << 20  # bytes that are unpacked at a time


def check_complete(image: Image.Image, path: Path) -> None:
    """Refuse an image that Pillow has decoded although pixels or colours are missing.

    Decoders of other formats than PNG refuse files with missing rows themselves, except for JPEG,
    where the end of the data cannot be told from damage.

    Args:
        image: Loaded image, not turned.
        path: Its file.

    Raises:
        ValueError: a PNG file holds fewer rows than it declares, or an image uses colours that its
            palette lacks; the message says so without the file's name.
    """
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
