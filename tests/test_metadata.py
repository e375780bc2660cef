"""Damaged metadata of an image file: one warning, which names the file."""

import io
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchcore.data.images import image_size, read_image, read_mask, read_truth
from patchcore.data.sample import Masks

DAMAGED = (  # a text of 500 bytes at byte 4000, where there is nothing; then the orientation
    b"Exif\0\0II*\0\x08\0\0\0\x02\0"
    + struct.pack("<HHII", 0x010E, 2, 500, 4000)
    + struct.pack("<HHII", 0x0112, 3, 1, 1)
    + bytes(4)
)


def damaged(path: Path) -> Path:
    Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(path, "JPEG", exif=DAMAGED)
    return path


def test_each_file_is_named_once_whichever_thread_reads_it(tmp_path: Path) -> None:
    paths = [damaged(tmp_path / f"{number}.jpg") for number in range(20)]
    with warnings.catch_warnings(record=True) as told, ThreadPoolExecutor(4) as pool:
        warnings.simplefilter("always")
        assert all(image.shape == (8, 12, 3) for image in pool.map(read_image, [*paths, *paths]))
        assert {*pool.map(image_size, paths)} == {(8, 12)}
    assert sorted(str(each.message) for each in told) == sorted(
        f"{path}: its metadata (Exif or TIFF tags) are damaged (Tag data larger than file. "
        "Skipping tag 270): check that it is upright, or save it again without them"
        for path in paths
    )


def test_masks_are_named_too(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"a\.jpg: its metadata"):
        read_mask(damaged(tmp_path / "a.jpg"))
    with pytest.warns(UserWarning, match=r"b\.jpg: its metadata"):
        read_truth(Masks((damaged(tmp_path / "b.jpg"),), labels=True))


def test_what_others_read_is_told_in_pillows_words(tmp_path: Path) -> None:
    content = io.BytesIO(damaged(tmp_path / "a.jpg").read_bytes())
    with pytest.warns(UserWarning, match="^Tag data larger than file"):
        Image.open(content).getexif()
