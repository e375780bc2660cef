"""Checks that a decoded file held all pixels that it declares, as far as its format tells.

Pillow leaves missing ones black, and those of a JPEG file grey; and it reads damaged data of a JPEG
file, or of a TIFF file, as other pixels.
"""

import io
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin
from PIL.JpegImagePlugin import JpegImageFile

from patchcore.errors import counted

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by the colour type of a PNG file
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
"""Column, row and steps of the first six of an interlaced PNG file's passes."""
PIECE = 1 << 20  # bytes that are unpacked at a time
GREY = 128  # of the blocks of a JPEG file whose data are missing
_MARKER = re.compile(rb"\xff[^\x00\xff]")  # of a JPEG file; in its pixels, FF 00 stands for FF
_RESTARTS = range(0xD0, 0xD8)  # markers RST0 to RST7, which divide the pixels
_END, _SCAN, _INTERVAL = 0xD9, 0xDA, 0xDD  # markers EOI, SOS and DRI
_LATER = {0xC4, 0xCC, _END, _SCAN, 0xDB, 0xDC, _INTERVAL, *range(0xE0, 0xF0), 0xFE}
"""Markers that may follow the first pixels of a JPEG file, beside restarts."""
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers SOF0 to SOF15, which tell the size
_SEQUENTIAL = (0xC0, 0xC1, 0xC9)  # those of files that may hold all pixels in one scan
_DEFLATED = (8, 32946)  # compressions of a TIFF file whose data are streams of zlib
_PADDING = bytes(64)  # no end of a JPEG file without its marker
_MORE = bytes(range(0x11, 0xF0, 7)) * 4  # read as pixels, this is not plain grey


def check_complete(image: Image.Image, path: Path) -> None:
    """Refuse an image that Pillow has decoded although pixels or colours are missing.

    Decoders of other formats than PNG and JPEG refuse files with missing rows themselves. Also
    checked are the markers between the pixels of a JPEG file, and the checksums of zlib streams in
    a TIFF file, which its decoder may not reach. JPEG and other TIFF files have no checksums.

    Args:
        image: Loaded image, not turned.
        path: Its file.

    Raises:
        ValueError: a PNG or JPEG file holds fewer rows than it declares, a JPEG file holds markers
            that cannot be there or ends in zeros, data of a TIFF file do not fit their checksum, or
            an image uses colours that its palette lacks; the message says so without the file's
            name.
    """
    if image.format in ("JPEG", "MPO"):
        _check_jpeg(image, path)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_deflated(image, path)
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
    """Refuse a JPEG file with wrong markers, or that ends, by its marker, before its last row.

    The decoder then leaves the last blocks grey. Further data before the marker change the pixels
    only if some were missing: whatever follows the last block is skipped.
    """
    data = path.read_bytes()
    end = _pixels_end(data)
    if end == len(data) and data.endswith(_PADDING):
        raise ValueError("it is truncated: it ends in zeros, as copies do that were broken off")
    width, height = image.size
    if image.getpixel((width - 1, height - 1)) not in (GREY, (GREY, GREY, GREY)):  # quick to tell
        return
    last = image.crop((max(0, width - 8), height - 1, width, height))
    if (np.asarray(last) != GREY).any():
        return
    with JpegImageFile(io.BytesIO(data[:end] + _MORE + data[end:])) as longer:
        if (np.asarray(longer) != np.asarray(image)).any():
            raise ValueError("it is truncated: its data end before its last row")


def _pixels_end(data: bytes) -> int:
    """Return where the marker of the end stands in a JPEG file, whose markers are checked.

    Before the pixels, whatever is no marker is skipped, as decoders do. What follows the end is not
    looked at: it may be a second view, or notes of a camera.

    Raises:
        ValueError: A marker cannot be where it is, or restart markers are missing.
    """
    place, interval, frame = 2, 0, b""
    inside = scanned = False  # whether pixels come next, and whether some came before
    count, due = 0, None  # restart markers of this scan
    while found := _MARKER.search(data, place):
        start, kind, after = found.start(), found[0][1], found.end()
        if inside and kind in _RESTARTS:
            if not interval or kind != _RESTARTS[count % 8]:
                raise ValueError(f"it is damaged at byte {start:,}: this restart is out of order")
            count, place = count + 1, after
            continue
        if inside and due is not None and count not in (due, due + 1):  # one more at the very end
            how = "truncated" if count < due else "damaged"
            raise ValueError(
                f"it is {how}: its data hold {counted(count, 'restart')} in place of {due}"
            )
        gap = scanned and not inside and data[place:start].strip(b"\xff")
        if gap or (scanned and kind not in _LATER):
            raise ValueError(f"it is damaged at byte {place:,}: something else should be there")
        if kind == _END:
            return start
        if kind in (1, 0xD8, *_RESTARTS):  # they hold nothing
            place = after
            continue
        place = after + int.from_bytes(data[after : after + 2], "big")
        segment = data[after + 2 : place]
        if kind == _INTERVAL:
            interval = int.from_bytes(segment[:2], "big")
        elif kind in _FRAMES:
            frame = bytes([kind]) + segment
        elif kind == _SCAN:
            scanned, count, due = True, 0, _restarts(frame, segment, interval)
        inside = kind == _SCAN
        if scanned and place > len(data):
            raise ValueError(f"it is damaged at byte {start:,}: what begins there has no end")
    return len(data)


def _restarts(frame: bytes, scan: bytes, interval: int) -> int | None:
    """Number of restart markers in a scan; None where it is not easy to tell.

    Args:
        frame: Marker and content of the segment that tells the size of the picture.
        scan: Content of the segment that begins the scan.
        interval: Number of units of pixels between restart markers; 0: there are none.
    """
    height, width = (int.from_bytes(frame[i : i + 2], "big") for i in (2, 4))
    if not interval:
        return 0
    if not height or frame[0] not in _SEQUENTIAL or scan[:1] != frame[6:7]:
        return None  # the size follows the pixels, or channels are in several scans
    factors = frame[8::3] if frame[6] > 1 else b"\x11"  # of each channel, in 4 bits each
    across, down = 8 * max(each >> 4 for each in factors), 8 * max(each & 15 for each in factors)
    units = -(-width // across) * -(-height // down)
    return -(-units // interval) - 1


def _check_deflated(image: TiffImagePlugin.TiffImageFile, path: Path) -> None:
    """Refuse a TIFF file with a zlib stream that is cut, damaged or has another checksum."""
    tags = image.tag_v2
    if tags.get(TiffImagePlugin.COMPRESSION) not in _DEFLATED:
        return
    if tags.get(TiffImagePlugin.FILLORDER, 1) != 1:  # the bits of each byte are in reverse
        return
    pairs = (
        (TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.STRIPBYTECOUNTS),
        (TiffImagePlugin.TILEOFFSETS, TiffImagePlugin.TILEBYTECOUNTS),
    )
    with path.open("rb") as file:
        for places, sizes in pairs:
            for place, size in zip(tags.get(places, ()), tags.get(sizes, ()), strict=False):
                file.seek(place)
                try:
                    _, whole = _unpacked([file.read(size)])
                except zlib.error as error:
                    raise ValueError(f"its data from byte {place:,} are damaged: {error}") from None
                if size and not whole:
                    raise ValueError(f"its data from byte {place:,} are cut off")


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
    return _unpacked(_parts(data))[0], declared


def _unpacked(parts: Iterable[bytes]) -> tuple[int, bool]:
    """Unpacked bytes of a zlib stream, and whether its end is there."""
    unpack, found = zlib.decompressobj(), 0
    for part in parts:
        while part and not unpack.eof:
            found += len(unpack.decompress(part, PIECE))
            part = unpack.unconsumed_tail
    return found + len(unpack.flush()), unpack.eof


def _parts(data: bytes) -> Iterator[bytes]:
    """Yield the contents of the chunks with pixels."""
    place = 8
    while place + 8 <= len(data):
        size, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        if kind == b"IDAT":
            yield data[place + 8 : place + 8 + size]
        place += 12 + size
