"""TIFF files in the layouts that Pillow misreads: they are read rightly, or refused."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from patchcore.data.depths import TURNS
from patchcore.data.images import bits_in_use, image_size, read_image, read_mask
from patchcore.errors import InputError

HEIGHT, WIDTH = 37, 53
RAMP = (np.arange(HEIGHT * WIDTH * 4).reshape(HEIGHT, WIDTH, 4) * 37 % 251).astype(np.uint8)
GREY, INVERTED, COLOURS, CMYK = 1, 0, 2, 5  # values of PhotometricInterpretation
OPAQUE, PREMULTIPLIED = 2, 1  # of ExtraSamples: the colours are as they are, or over black


def tiff(
    path: Path,
    pixels: NDArray[Any],
    *,
    order: str = "<",
    meaning: int = COLOURS,
    packed: bool = False,
    planes: bool = False,
    rows: int = HEIGHT,
    turned: int = 1,
    extra: int | None = None,
    left_out: tuple[int, ...] = (),
    listed: int | None = None,
) -> Path:
    """A TIFF of pixels (H, W, channels), in strips of some rows.

    Strips `left_out` have neither place nor size, and only the first `listed` strips are listed.
    """
    height, width, channels = pixels.shape
    values = pixels.astype(pixels.dtype.newbyteorder(order))
    parts = np.moveaxis(values, -1, 0) if planes else values[None]
    strips = [part[y : y + rows].tobytes() for part in parts for y in range(0, height, rows)]
    data, places, sizes = bytearray(8), [], []
    for number, strip in enumerate(strips[:listed]):
        strip = zlib.compress(strip) if packed else strip
        gone = number in left_out
        places.append(0 if gone else len(data))
        sizes.append(0 if gone else len(strip))
        data += b"" if gone else strip + bytes(len(strip) % 2)
    kind = "uif".index(pixels.dtype.kind) + 1
    tags = {
        256: [width],
        257: [height],
        258: [8 * pixels.dtype.itemsize] * channels,
        259: [8 if packed else 1],
        262: [meaning],
        273: places,
        274: [turned],
        277: [channels],
        278: [rows],
        279: sizes,
        284: [2 if planes else 1],
        **({} if extra is None else {338: [extra]}),
        339: [kind] * channels,
    }
    entries = b""
    for tag, numbers in tags.items():
        content = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(content) > 4:
            place = len(data)
            data += content
            content = struct.pack(f"{order}I", place)
        entries += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + content
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", len(data))
    path.write_bytes(start + data[8:] + struct.pack(f"{order}H", len(tags)) + entries + bytes(4))
    return path


@pytest.mark.parametrize("turned", range(1, 9))
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("channels", "dtype", "meaning", "extra"),
    [
        (1, np.uint8, GREY, None),
        (1, np.uint16, GREY, None),
        (3, np.uint8, COLOURS, None),
        (3, np.uint16, COLOURS, None),
        (4, np.uint8, COLOURS, OPAQUE),
        (4, np.uint8, COLOURS, PREMULTIPLIED),
        (2, np.uint8, GREY, PREMULTIPLIED),
        (4, np.uint8, CMYK, None),
    ],
)
def test_turned_images_are_upright(
    tmp_path: Path,
    turned: int,
    packed: bool,
    order: str,
    channels: int,
    dtype: type,
    meaning: int,
    extra: int | None,
) -> None:
    pixels = RAMP[..., :channels].copy()
    if extra == PREMULTIPLIED:
        pixels[..., :-1] = np.minimum(pixels[..., :-1], pixels[..., -1:])
    values = pixels.astype(np.float64)
    if meaning == CMYK:
        values = (255 - values[..., :3]) * (255 - values[..., 3:]) / 255
    elif extra is not None:
        values = values[..., :-1] * (values[..., -1:] / 255 if extra == OPAQUE else 1)
    expected = np.broadcast_to(values, (HEIGHT, WIDTH, 3))
    if turned > 1:
        expected = TURNS[turned](expected)
    deep = pixels.astype(dtype) * (257 if dtype is np.uint16 else 1)
    options: Any = {"order": order, "meaning": meaning, "packed": packed, "extra": extra}
    for rows in (HEIGHT, 7):
        path = tiff(tmp_path / f"{rows}.tif", deep, rows=rows, turned=turned, **options)
        found = read_image(path)
        assert image_size(path) == found.shape[:2] == expected.shape[:2]
        # CMYK and premultiplied values are rounded twice.
        assert np.abs(found - expected).max() <= (0 if channels % 2 else 2)
        if dtype is np.uint16:
            assert bits_in_use(path) == 16
        if channels == 1:
            marks = np.where(pixels >= 128, np.iinfo(dtype).max, 0).astype(dtype)
            marked = read_mask(tiff(path, marks, rows=rows, turned=turned, **options))
            np.testing.assert_array_equal(marked, expected[..., 0] >= 128)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rows", [HEIGHT, 7])
def test_channels_in_separate_planes(tmp_path: Path, packed: bool, rows: int) -> None:
    options: Any = {"planes": True, "packed": packed, "rows": rows}
    path = tiff(tmp_path / "rgb.tif", RAMP[..., :3], **options)
    np.testing.assert_array_equal(read_image(path), RAMP[..., :3])
    path = tiff(tmp_path / "rgba.tif", RAMP, extra=OPAQUE, **options)
    plain = tiff(tmp_path / "plain.tif", RAMP, extra=OPAQUE)
    np.testing.assert_array_equal(read_image(path), read_image(plain))
    deep, grey = RAMP[..., :3].astype(np.uint16) * 257, RAMP[..., :2]
    for name, pixels, meaning, extra in (
        ("deep", deep, COLOURS, None),
        ("grey", grey, GREY, OPAQUE),
    ):
        path = tiff(tmp_path / f"{name}.tif", pixels, meaning=meaning, extra=extra, **options)
        told = rf"{name}\.tif: keeps its . channels of .* bits in separate planes .* interleaved"
        for read in (read_image, read_mask, bits_in_use):
            with pytest.raises(InputError, match=told):
                read(path)


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.int32])
def test_compressed_numbers_in_the_other_byte_order_are_refused(
    tmp_path: Path, dtype: type
) -> None:
    """Pillow returns their bytes in the wrong order."""
    pixels = (RAMP[..., :1] / 255).astype(dtype)
    options: Any = {"meaning": GREY}
    plain = read_image(tiff(tmp_path / "plain.tif", pixels, **options))
    for name, order, packed in (("packed", "<", True), ("big", ">", False)):
        path = tiff(tmp_path / f"{name}.tif", pixels, order=order, packed=packed, **options)
        np.testing.assert_array_equal(read_image(path), plain)
    path = tiff(tmp_path / "both.tif", pixels, order=">", packed=True, **options)
    with pytest.raises(InputError, match=r"both\.tif: holds compressed floating-point or signed"):
        read_image(path)


def test_the_preview_in_a_raw_file_of_a_camera_is_not_its_photograph(tmp_path: Path) -> None:
    path = tiff(tmp_path / "7.CR2", RAMP[..., :3])
    for read in (read_image, read_mask, image_size):
        with pytest.raises(InputError, match=r"7\.CR2: is a raw file of a camera, .* it to PNG$"):
            read(path)
    path.write_bytes(b"FUJIFILMCCD-RAW " * 20)
    with pytest.raises(InputError, match=r"its format, \.cr2, is not supported\); save it as PNG"):
        read_image(path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("planes", [False, True])
def test_strips_that_are_not_there_are_no_pixels(
    tmp_path: Path, packed: bool, planes: bool
) -> None:
    pixels, options = RAMP[..., :3], dict[str, Any](rows=7, packed=packed, planes=planes)
    count = 18 if planes else 6
    path = tiff(tmp_path / "sparse.tif", pixels, left_out=(1, 3), **options)
    with pytest.raises(InputError, match=rf"sparse\.tif: holds no data for 2 of {count} strips"):
        read_image(path)
    path = tiff(tmp_path / "short.tif", pixels, listed=count - 1, **options)
    with pytest.raises(InputError, match=rf"short\.tif: lists {count - 1} of {count} strips, so"):
        read_image(path)


def test_images_that_are_transparent_everywhere_are_told_once_a_folder(tmp_path: Path) -> None:
    hidden = np.full((10, 12, 4), 200, np.uint8)
    hidden[..., 3] = 0
    for name in ("a.png", "b.png", "c.tga"):
        Image.fromarray(hidden).save(tmp_path / name)
    with pytest.warns(UserWarning, match=r"a\.png: its alpha channel makes all of its pixels tra"):
        assert not read_image(tmp_path / "a.png").any()
    assert not read_image(tmp_path / "b.png").any()  # a warning would be an error
    assert not read_image(tmp_path / "c.tga").any()
