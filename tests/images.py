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


def write_png(path: Path, pixels: NDArray[np.generic], hidden: tuple[int, ...] = ()) -> Path:
    """A PNG of 8 or 16 bits with 1 (grey), 2 (grey, alpha), 3 or 4 channels.

    `hidden` is the grey or colour that its tRNS chunk declares transparent. Pillow cannot write
    such files of 16 bits.
    """
    bits = 8 * pixels.dtype.itemsize
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    height, width, channels = pixels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(f">u{bits // 8}"))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)),
        *([(b"tRNS", struct.pack(f">{len(hidden)}H", *hidden))] if hidden else []),
        (b"IDAT", compress(rows)),
        (b"IEND", b""),
    ]
    packed = (
        struct.pack(">I", len(x)) + t + x + struct.pack(">I", crc32(t + x)) for t, x in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
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
