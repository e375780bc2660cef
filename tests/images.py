"""Small image folders for the tests of data sets."""

import os
import struct
from pathlib import Path
from zlib import compress, crc32

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def write_image(path: Path, size: tuple[int, int] = (12, 10), seed: int | None = None) -> Path:
    """A picture of noise, size being width and height; each name has its own unless seeded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if seed is None:
        seed = crc32(os.fsencode(Path(*path.parts[-3:])))
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def write_mask(path: Path, size: tuple[int, int] = (12, 10), marked: bool = True) -> Path:
    """A mask whose upper left quarter is marked, or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((size[1], size[0]), dtype=np.uint8)
    if marked:
        mask[: size[1] // 2, : size[0] // 2] = 255
    Image.fromarray(mask).save(path)
    return path


def write_png(
    path: Path,
    pixels: NDArray[np.generic],
    hidden: tuple[int, ...] = (),
    bits: int | None = None,
) -> Path:
    """A PNG of 8 or 16 bits with 1 (grey), 2 (grey, alpha), 3 or 4 channels.

    `hidden` is the grey or colour that its tRNS chunk declares transparent. Pillow cannot write
    such files of 16 bits. With `bits`, bytes of grey below 2^bits are packed to so few bits.
    """
    depth = bits or 8 * pixels.dtype.itemsize
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    height, width, channels = pixels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    values = pixels.astype(f">u{pixels.dtype.itemsize}")
    if bits is not None:
        lowest = np.unpackbits(values, axis=-1)[..., -bits:]
        values = np.packbits(lowest.reshape(height, -1), axis=-1)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)),
        *([(b"tRNS", struct.pack(f">{len(hidden)}H", *hidden))] if hidden else []),
        (b"IDAT", compress(rows)),
        (b"IEND", b""),
    ]
    packed = (
        struct.pack(">I", len(x)) + t + x + struct.pack(">I", crc32(t + x)) for t, x in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    return path


def write_tiff(
    path: Path,
    pixels: NDArray[np.generic],
    white_is_zero: bool = False,
    extra: int | None = None,
    packed: bytes = b"",
) -> Path:
    """A TIFF, (H, W) or (H, W, channels); `extra` is the meaning of its last channel.

    `packed` is a zlib stream that holds the pixels. Pillow cannot write white as 0.
    """
    bits, kind = 8 * pixels.dtype.itemsize, "uif".index(pixels.dtype.kind) + 1
    height, width, *rest = pixels.shape
    data, channels = packed or pixels.tobytes(), rest[0] if rest else 1
    size = len(data)
    meaning = (0 if white_is_zero else 1) if channels == 1 else 2
    data += struct.pack(f"<{channels}H", *[bits] * channels)  # of which one alone is in its tag
    depths = 8 + size if channels > 2 else bits
    tags = [
        *((256, 1, width), (257, 1, height), (258, channels, depths), (259, 1, 8 if packed else 1)),
        *((262, 1, meaning), (273, 1, 8), (277, 1, channels), (278, 1, height)),
        *((279, 1, size), *([] if extra is None else [(338, 1, extra)]), (339, 1, kind)),
    ]
    entries = b"".join(
        struct.pack("<HHII", tag, 3 if tag in (258, 338, 339) else 4, count, value)
        for tag, count, value in tags
    )
    directory = struct.pack("<H", len(tags)) + entries + b"\0" * 4
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory)
    return path


def write_mvtec(root: Path, size: tuple[int, int] = (12, 10)) -> Path:
    """Category `nut` with 4 training, 2 good, 2 scratched images (masks) and 1 bent (no mask)."""
    folder = root / "nut"
    for i in range(4):
        write_image(folder / f"train/good/{i:03d}.png", size, i)
    for i in range(2):
        write_image(folder / f"test/good/{i:03d}.png", size, 10 + i)
        write_image(folder / f"test/scratch/{i:03d}.png", size, 20 + i)
        write_mask(folder / f"ground_truth/scratch/{i:03d}_mask.png", size)
    write_image(folder / "test/bent/000.png", size, 30)
    return folder
