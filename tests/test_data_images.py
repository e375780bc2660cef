import io
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image, features
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngInfo

from patchcore.data import completeness
from patchcore.data.images import bits_in_use, image_size, read_image, read_mask
from patchcore.errors import InputError
from tests.images import write_image, write_mask, write_png, write_tiff

RAMP = np.arange(0, 240, 2, dtype=np.uint8).reshape(10, 12)


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    image = read_image(save(Image.fromarray(RAMP), tmp_path / "grey.png"))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.repeat(RAMP[..., None], 3, -1))


def test_sixteen_bits_are_scaled_by_the_full_range(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 120).astype(np.uint16).reshape(10, 12)
    image = read_image(save(Image.fromarray(values), tmp_path / "deep.png"))
    np.testing.assert_array_equal(image[..., 0], np.rint(values / 257).astype(np.uint8))
    dark = read_image(save(Image.fromarray(values // 4), tmp_path / "dark.tif"))
    assert dark.max() == 64  # not stretched to its own maximum


def test_palette_becomes_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(RAMP % 2).convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    path = save(image, tmp_path / "palette.png")
    np.testing.assert_array_equal(read_image(path)[0, 0], [10, 20, 30])


def test_inks_in_a_jpeg_file_count_as_in_pillow_whether_or_not_it_names_adobe(
    tmp_path: Path,
) -> None:
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[..., 0], inks[:8, :, 3] = 200, 255
    path = save(Image.fromarray(inks, "CMYK"), tmp_path / "a.jpg", quality=100)
    whole = path.read_bytes()
    start = whole.index(b"\xff\xee")  # the marker APP14
    end = start + 2 + int.from_bytes(whole[start + 2 : start + 4], "big")
    for content in (whole, whole[:start] + whole[end:]):
        path.write_bytes(content)
        with Image.open(path) as file:
            assert ("adobe" in file.info) == (content is whole)
            expected = np.asarray(file.convert("RGB"))
        np.testing.assert_array_equal(read_image(path), expected)
        np.testing.assert_array_equal(expected[[0, -1], 0], [[0, 0, 0], [55, 255, 255]])
        np.testing.assert_array_equal(read_mask(path), expected.any(axis=-1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_black_whatever_they_hide(tmp_path: Path, mode: str) -> None:
    colours = np.full((10, 12, 4), 200, dtype=np.uint8)
    colours[..., 3] = 255
    colours[:5, :, 3] = 0
    if mode == "P":
        image = Image.fromarray((colours[..., 3] > 0).astype(np.uint8)).convert("P")
        image.putpalette([200, 200, 200, 200, 200, 200])
        path = save(image, tmp_path / "image.png", transparency=0)
    else:
        path = save(Image.fromarray(colours).convert(mode), tmp_path / "image.png")
    image = read_image(path)
    assert image.shape == (10, 12, 3)
    assert (image[:5] == 0).all()
    assert (image[5:] == 200).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_colour_that_a_png_declares_transparent_is_black(
    tmp_path: Path, dtype: type, channels: int
) -> None:
    shown, hidden = (201, 200) if dtype == np.uint8 else (201 * 257, 200 * 256 + 7)
    pixels = np.full((10, 12, channels), shown, dtype=dtype)
    pixels[:5] = hidden
    path = write_png(tmp_path / "image.png", pixels, (hidden,) * channels)
    image = read_image(path)
    assert (image[:5] == 0).all()
    assert (image[5:] == 201).all()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_grey_of_few_bits_that_a_png_declares_transparent_is_black(
    tmp_path: Path, bits: int
) -> None:
    white = (1 << bits) - 1
    pixels = np.zeros((9, 12), dtype=np.uint8)
    pixels[:, ::2] = white
    pixels[6:] = hidden = 1
    path = write_png(tmp_path / "image.png", pixels, (hidden,), bits)
    shown = np.where(pixels == hidden, 0, pixels * (255 // white))
    np.testing.assert_array_equal(read_image(path)[..., 0], shown)
    path = write_png(tmp_path / "mask.png", pixels[:6], (0,), bits)
    np.testing.assert_array_equal(read_mask(path), pixels[:6] == white)
    path = write_png(tmp_path / "mask.png", pixels[:6], (white,), bits)
    with pytest.raises(InputError, match="black pixels of this mask are opaque"):
        read_mask(path)


def test_alpha_is_scaled_by_its_own_range(tmp_path: Path) -> None:
    pixels = np.full((10, 12, 4), 4095, dtype=np.uint16)
    for alpha in (4095, 65535):
        pixels[..., 3] = alpha
        assert (read_image(write_png(tmp_path / "camera.png", pixels), bits=12) == 255).all()


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    path = save(Image.new("CMYK", (12, 10), (0, 255, 255, 0)), tmp_path / "red.tif")
    np.testing.assert_array_equal(read_image(path)[0, 0], [255, 0, 0])


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90°
    path = save(Image.fromarray(RAMP), tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(path)[..., 0], np.rot90(RAMP, -1))


def test_damaged_exif_data_are_ignored_with_a_warning(tmp_path: Path) -> None:
    path = save(Image.fromarray(RAMP), tmp_path / "a.png", exif=b"Exif\0\0garbage!!")
    with pytest.warns(UserWarning, match=r"a\.png: its metadata .* damaged \(Corrupt EXIF data"):
        pixels = read_image(path)
    np.testing.assert_array_equal(pixels[..., 0], RAMP)
    assert image_size(path) == (10, 12)  # told once


def test_the_first_view_of_a_phones_photo_is_read(tmp_path: Path) -> None:
    views = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (40, 200)]
    path = save(views[0], tmp_path / "a.jpg", format="MPO", save_all=True, append_images=views[1:])
    assert abs(read_image(path).astype(int) - 40).max() <= 2


def test_truncated_image_is_named(tmp_path: Path) -> None:
    for name in ("image.png", "image.jpg"):
        path = write_image(tmp_path / name, (64, 64))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(InputError, match=rf"{name}: cannot be read as an image \(.+\)"):
            read_image(path)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("half", [None, 128, 90], ids=["varied", "grey", "dark"])
@pytest.mark.parametrize(
    "how", [{}, {"subsampling": 0, "quality": 95}, {"restart_marker_rows": 1}, {"optimize": True}]
)
def test_jpeg_files_that_end_early_are_refused(
    how: dict[str, Any], half: int | None, mode: str, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (70, 93, 3), dtype=np.uint8)
    if half is not None:
        pixels[:, 40:] = half
    path = save(Image.fromarray(pixels).convert(mode), tmp_path / "image.jpg", **how)
    assert read_image(path).shape == (70, 93, 3)  # also where the last blocks are that grey
    data = path.read_bytes()
    begin = data.index(b"\xff\xda") + 20
    for share in (0.1, 0.4, 0.8):
        path.write_bytes(data[: begin + int(share * (len(data) - begin))] + b"\xff\xd9")
        with pytest.raises(
            InputError, match=r"image\.jpg: cannot be read as an image \(it is truncated: its data"
        ):
            read_image(path)


@pytest.mark.parametrize("quality", [75, 98])
def test_a_jpeg_file_that_ends_in_zeros_is_refused(quality: int, tmp_path: Path) -> None:
    data, path = jpeg(quality=quality), tmp_path / "image.jpg"
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) // 2))
    with pytest.raises(InputError, match=r"image\.jpg: cannot be read as an image \(.*truncated"):
        read_image(path)
    path.write_bytes(data + bytes(1000))  # what follows the end is not looked at
    assert read_image(path).shape == (70, 93, 3)


def jpeg(mode: str = "RGB", **how: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (70, 93, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, how.pop("format", "JPEG"), **how)
    return file.getvalue()


@pytest.mark.parametrize("tail", [b"", bytes(99), jpeg()], ids=["", "zeros", "thumbnail"])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_files_of_every_encoding_are_sound(mode: str, tail: bytes, tmp_path: Path) -> None:
    files = [
        jpeg(mode, subsampling=factors, progressive=progressive, optimize=True, **restart)
        for factors in (0, 1, 2)
        for progressive in (False, True)
        for restart in ({}, {"restart_marker_blocks": 1}, {"restart_marker_rows": 2})
    ]
    files.append(jpeg(mode, icc_profile=b"\xff\xd9\xff\xd0" * 30_000, comment=b"\xff\xda"))
    if mode == "RGB":
        files.append(jpeg(format="MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))]))
    one_more = jpeg(mode, restart_marker_rows=3, subsampling=0)  # as some cameras write
    files.append(one_more[:-2] + b"\xff\xd2\xff\xff" + one_more[-2:])
    for data in files:
        path = tmp_path / "image.jpg"
        path.write_bytes(data + tail)
        assert read_image(path).shape == (70, 93, 3)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_jpeg_files_with_markers_in_wrong_places_are_refused(
    kind: str, mode: str, tmp_path: Path
) -> None:
    more = {"save_all": True, "append_images": [Image.new("RGB", (9, 9))]} if kind == "MPO" else {}
    plain = jpeg(mode, format=kind, **more)
    parted = jpeg(mode, format=kind, restart_marker_blocks=2, subsampling=0, **more)
    marks = [found.start() for found in re.finditer(b"\xff[\xd0-\xd7]", parted)]
    begin = plain.index(b"\xff\xda") + 20
    zero = plain.index(b"\xff\x00", begin) + 1
    end = plain.index(b"\xff\xd9", begin)
    middle = (begin + end) // 2
    broken = {
        "one restart is lost": parted[: marks[3]] + parted[marks[4] :],
        "eight are lost": parted[: marks[3]] + parted[marks[11] :],
        "one is another": parted[: marks[3]] + b"\xff\xd6" + parted[marks[3] + 2 :],
        "one is none": parted[: marks[3]] + b"\xfe" + parted[marks[3] + 1 :],
        "restarts of another file": plain[:zero] + b"\xd0" + plain[zero + 1 :],
        "the mark of a size": plain[:zero] + b"\xc0" + plain[zero + 1 :],
        "the mark of a comment": plain[:zero] + b"\xfe\0\7" + plain[zero + 3 :],
        "a comment without end": plain[:zero] + b"\xfe\xff\xff" + plain[zero + 3 :],
        "an early end": plain[:middle] + b"\xff\xd9" + bytes(38) + plain[middle + 40 :],
    }
    for title, data in broken.items():
        path = tmp_path / f"{title}.jpg"
        path.write_bytes(data)
        with pytest.raises(InputError, match=rf"{title}\.jpg: cannot be read as an image \("):
            read_image(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_tiff_files_whose_checksums_fail_are_refused(
    dtype: type, channels: int, tmp_path: Path
) -> None:
    """The decoder ends with the last pixel, and here more follows before the checksum."""
    pixels = np.random.default_rng(0).integers(0, 1 << 15, (70, 93, channels)).astype(dtype)
    packed = zlib.compress(pixels.tobytes() + b"more", 0)
    path = tmp_path / "image.tif"
    plain = read_image(write_tiff(path, pixels))
    np.testing.assert_array_equal(read_image(write_tiff(path, pixels, packed=packed)), plain)
    changed = bytearray(packed)
    changed[1000] ^= 1
    for damaged, words in (
        (packed[:-1] + bytes([packed[-1] ^ 1]), "byte 8 are damaged: .*incorrect data check"),
        (bytes(changed), "byte 8 are damaged: .*incorrect data check"),
        (packed[:-4], "byte 8 are cut off"),
    ):
        with pytest.raises(InputError, match=rf"image\.tif: cannot be read as .*{words}"):
            read_image(write_tiff(path, pixels, packed=damaged))


def test_jpeg_files_are_decoded_twice_only_if_they_end_in_plain_grey(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []

    def decode(file: Any) -> Any:
        decoded.append(file)
        return JpegImageFile(file)

    monkeypatch.setattr(completeness, "JpegImageFile", decode)
    path = write_image(tmp_path / "a.jpg", (64, 64))
    read_image(path)
    assert decoded == []
    save(Image.fromarray(np.full((3, 5), 128, np.uint8)), path)
    assert (read_image(path) == 128).all() and len(decoded) == 1


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(
    width: int, height: int, kind: int, rows: bytes, *more: bytes, passes: int = 0
) -> bytes:
    """A PNG file of 8 bits with these rows, however many they are."""
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, passes)
    chunks = [
        chunk(b"IHDR", header),
        *more,
        chunk(b"IDAT", zlib.compress(rows)),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("value", [0, 9])
@pytest.mark.parametrize("passes", [0, 1], ids=["plain", "interlaced"])
@pytest.mark.parametrize(("width", "height"), [(5, 7), (1, 1), (3, 2), (16, 9), (1, 6), (2, 1)])
def test_png_files_with_missing_rows_are_refused(
    width: int, height: int, passes: int, value: int, tmp_path: Path
) -> None:
    places = np.indices((height, width)).reshape(2, -1).T
    sizes = [(width, height)]
    if passes:  # of the standard: each pixel belongs to the pass that is first in its 8×8 block
        six, others = ["16462646", "56565656", "36463646", "56565656"], 8 * "7"
        block = [[int(c) for c in row] for line in six for row in (line, others)]
        owner = [[block[y % 8][x % 8] for x in range(width)] for y in range(height)]
        sizes = []
        for number in range(1, 8):
            mine = [(y, x) for y, x in places if owner[y][x] == number]
            if mine:
                sizes.append((len({x for _, x in mine}), len({y for y, _ in mine})))
    rows = [b"\0" + bytes([value]) * columns for columns, count in sizes for _ in range(count)]
    path = tmp_path / "image.png"
    path.write_bytes(raw_png(width, height, 0, b"".join(rows), passes=passes))
    assert (read_image(path) == value).all()
    for kept in range(len(rows)):
        path.write_bytes(raw_png(width, height, 0, b"".join(rows[:kept]), passes=passes))
        with pytest.raises(
            InputError, match=r"image\.png: cannot be read as an image \(.*truncated"
        ):
            read_image(path)


@pytest.mark.filterwarnings("ignore:.*its alpha channel makes all of its pixels transparent")
def test_rows_that_pillow_leaves_black_are_missed_in_no_format_of_pixels(tmp_path: Path) -> None:
    for kind, channels in {0: 1, 2: 3, 4: 2, 6: 4}.items():
        whole = b"".join(b"\0" + bytes(3 * channels) for _ in range(4))
        path = tmp_path / f"{kind}.png"
        path.write_bytes(raw_png(3, 4, kind, whole))
        assert not read_image(path).any()
        path.write_bytes(raw_png(3, 4, kind, whole[: -len(whole) // 4]))
        with pytest.raises(
            InputError, match=f"{len(whole) * 3 // 4} of {len(whole)} bytes of pixels"
        ):
            read_image(path)


def test_colours_that_a_palette_lacks_are_refused(tmp_path: Path) -> None:
    rows, colours = b"\0\0\1\2", bytes(range(9))
    path = tmp_path / "image.png"
    path.write_bytes(raw_png(3, 1, 3, rows, chunk(b"PLTE", colours)))
    assert read_image(path)[0].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    path.write_bytes(raw_png(3, 1, 3, rows, chunk(b"PLTE", colours[:6])))
    words = r"image\.png: .*it uses colour 2, and its palette ends before 2"
    for read in (read_image, read_mask):
        with pytest.raises(InputError, match=words):
            read(path)
    bitmap = io.BytesIO()
    Image.fromarray(RAMP).convert("P").save(bitmap, "BMP")
    short = bytearray(bitmap.getvalue())
    short[46:50] = struct.pack("<I", 2)  # number of colours
    (tmp_path / "image.bmp").write_bytes(short)
    with pytest.raises(InputError, match=r"image\.bmp: .*palette ends before 2"):
        read_image(tmp_path / "image.bmp")


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (0.001, "0.004 megapixels; at most 0.001 are"),
        (0.004095, "0.0041 megapixels; at most 0.004095 are"),
    ],
)
def test_sizes_above_the_limit_differ_from_it(limit: float, words: str, tmp_path: Path) -> None:
    path = write_image(tmp_path / "image.png", (64, 64))
    with pytest.raises(InputError, match=f"has 64×64 pixels, {words} decoded"):
        read_image(path, limit=limit)


def test_what_may_not_be_read_says_so(tmp_path: Path) -> None:
    path = write_image(tmp_path / "image.png")
    refused = PermissionError(13, "Permission denied", str(path))  # nothing is unreadable to root
    with (
        mock.patch.object(Image, "open", side_effect=refused),
        pytest.raises(
            InputError, match=r"png: cannot be read \(Permission denied\); change its perm"
        ),
    ):
        read_image(path)


def test_other_bad_files_are_named(tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no image")
    with pytest.raises(InputError, match=r"text\.png: cannot be read"):
        read_image(text)
    with pytest.raises(InputError, match=r"lost\.png: there is no such image"):
        read_image(tmp_path / "lost.png")


def test_depths_by_setting_and_by_file(tmp_path: Path) -> None:
    values = np.linspace(0, 4095, 120).astype(np.uint16).reshape(10, 12)
    expected = np.rint(values * (255 / 4095)).astype(np.uint8)
    for name in ("camera.png", "camera.tif"):
        (tmp_path / name).mkdir()
        path = save(Image.fromarray(values), tmp_path / name / name)
        np.testing.assert_array_equal(read_image(path, bits=12)[..., 0], expected)
        with pytest.warns(UserWarning, match=rf"{name}: .* train the model with image\.bits=12,"):
            assert read_image(path).max() == 16
    ten = save(Image.fromarray(values // 4), tmp_path / "ten.png")
    np.testing.assert_array_equal(
        read_image(ten, bits=10)[..., 0], np.rint(values // 4 * (255 / 1023))
    )
    with pytest.raises(InputError, match=r"camera\.png: .* 0 to 4095, and 10 bits from 0 to 1023"):
        read_image(tmp_path / "camera.png/camera.png", bits=10)
    eight = save(Image.fromarray(RAMP), tmp_path / "eight.png")
    assert (read_image(eight, bits=12)[..., 0] == RAMP).all()  # 8 bits are 8 bits
    scaled = tmp_path / "scaled.pgm"
    scaled.write_bytes(b"P5 12 10 4095\n" + values.astype(">u2").tobytes())
    assert np.abs(read_image(scaled)[..., 0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("top", "bits"), [(255, 8), (256, 10), (1023, 10), (4095, 12)])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_dark_images_are_told_once_a_folder(
    tmp_path: Path, top: int, bits: int, dtype: type, recwarn: pytest.WarningsRecorder
) -> None:
    values = np.linspace(0, top, 120).astype(dtype).reshape(10, 12)
    for name in ("one.tif", "two.tif"):
        path = save(Image.fromarray(values), tmp_path / name)
        assert read_image(path).max() <= 16
        assert read_image(path, bits=bits).max() > 60
    (told,) = [str(each.message) for each in recwarn]
    assert told.startswith(f"{tmp_path / 'one.tif'}: its pixels") and "almost black" in told
    assert f"use only the lowest {bits} bits" in told and f"image.bits={bits}," in told


def test_a_tiff_of_12_bits_says_so(tmp_path: Path) -> None:
    values = np.linspace(0, 4095, 120).astype(np.uint16)
    packed = b"".join(
        bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in values.reshape(-1, 2).tolist()
    )
    tags = [
        *((256, 12), (257, 10), (258, 12), (259, 1), (262, 1)),
        *((273, 8 + 2 + 8 * 12 + 4), (278, 10), (279, len(packed))),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0" * 4
    (tmp_path / "packed.tif").write_bytes(header + packed)
    image = read_image(tmp_path / "packed.tif")
    np.testing.assert_array_equal(image[..., 0].ravel(), np.rint(values * (255 / 4095)))


def test_colours_of_16_bits(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    values = np.random.default_rng(0).integers(0, 65536, (10, 12, 3), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "full.png"), values[..., ::-1])
    np.testing.assert_array_equal(read_image(tmp_path / "full.png"), values >> 8)
    cv2.imwrite(str(tmp_path / "dark.tiff"), values[..., ::-1] >> 4)
    expected = np.rint((values >> 4) * (255 / 4095)).astype(np.uint8)
    np.testing.assert_array_equal(read_image(tmp_path / "dark.tiff", bits=12), expected)
    with pytest.warns(UserWarning, match="use only the lowest 12 bits"):
        read_image(tmp_path / "dark.tiff")


@pytest.mark.parametrize("name", ["camera.ppm", "camera.jp2", "camera.png", "camera.tiff"])
def test_depths_of_colours_in_every_format(tmp_path: Path, name: str) -> None:
    cv2 = pytest.importorskip("cv2")
    values = np.linspace(0, 4000, 3 * 64 * 64).astype(np.uint16).reshape(64, 64, 3)
    path = tmp_path / name
    options = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000] if path.suffix == ".jp2" else []
    cv2.imwrite(str(path), values[..., ::-1], options)
    with pytest.warns(UserWarning, match="use only the lowest 12 bits"):
        assert read_image(path).max() < 17
    with pytest.raises(InputError, match=rf"{name}: .* and 10 bits from 0 to 1023"):
        read_image(path, bits=10)
    wrong = np.abs(read_image(path, bits=12) - np.rint(values * (255 / 4095)))
    assert wrong.max() <= (5 if name == "camera.jp2" else 0)  # which is lossy


def test_a_ppm_of_12_bits_says_so(tmp_path: Path) -> None:
    values = np.linspace(0, 4095, 360).astype(np.uint16).reshape(10, 12, 3)
    path = tmp_path / "camera.ppm"
    path.write_bytes(b"P6 12 10 4095\n" + values.astype(">u2").tobytes())
    expected = np.rint(values * (255 / 4095))
    assert np.abs(read_image(path) - expected).max() <= 1
    np.testing.assert_array_equal(read_image(path, bits=12), expected)
    path.write_bytes(b"P6 12 10 4095\n" + (values // 16).astype(">u2").tobytes())
    assert read_image(path).max() == 16  # dark indeed, so there is no warning
    small = save(Image.fromarray(RAMP).convert("RGB"), tmp_path / "eight.ppm")
    assert (read_image(small, bits=12)[..., 0] == RAMP).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_may_count_white_as_zero(tmp_path: Path, dtype: type) -> None:
    pixels = ~(RAMP.astype(dtype) * dtype(np.iinfo(dtype).max // 255))
    path = write_tiff(tmp_path / "white.tif", pixels, white_is_zero=True)
    np.testing.assert_array_equal(read_image(path)[..., 0], RAMP)


def test_fractions_with_white_as_zero_are_refused(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "real.tif", np.zeros((4, 4), np.float32), white_is_zero=True)
    for read in (read_image, read_mask):
        with pytest.raises(InputError, match=r"real\.tif: 0 is white .* save it with 0 as black"):
            read(path)


def test_fractions_and_32_bits(tmp_path: Path) -> None:
    real = save(Image.fromarray(RAMP.astype(np.float32) / 255), tmp_path / "real.tif")
    np.testing.assert_array_equal(read_image(real)[..., 0], RAMP)
    bytes_ = save(Image.fromarray(RAMP.astype(np.float32)), tmp_path / "bytes.tif")
    np.testing.assert_array_equal(read_image(bytes_, bits=8)[..., 0], RAMP)
    with pytest.raises(
        InputError, match=r"bytes\.tif: .* 0 to 238, and fractions from 0 to 1; set"
    ):
        read_image(bytes_)
    empty = save(Image.new("F", (12, 10), float("nan")), tmp_path / "empty.tif")
    with pytest.raises(InputError, match=r"empty\.tif: holds pixels that are NaN or infinite"):
        read_image(empty)
    wide = save(Image.new("I", (12, 10), 1 << 20), tmp_path / "wide.tif")
    with pytest.raises(
        InputError, match=r"wide\.tif: .*and 16 bits from 0 to 65535; set image.bits"
    ):
        read_image(wide)
    assert read_image(wide, bits=21).max() == 128
    below = save(Image.new("I", (12, 10), -5), tmp_path / "below.tif")
    with pytest.raises(InputError, match=r"below\.tif: its pixels range from -5"):
        read_image(below, bits=16)


@pytest.mark.parametrize("mode", ["LAB", "YCbCr", "1"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    if mode in ("LAB", "YCbCr"):
        path = save(Image.new(mode, (12, 10), (255, 128, 128)), tmp_path / "image.tif")
    else:
        path = save(Image.new("L", (12, 10), 255).convert("1"), tmp_path / "image.png")
    image = read_image(path)
    assert image.shape == (10, 12, 3) and (image >= 254).all()


def test_content_counts_not_the_extension(tmp_path: Path) -> None:
    picture = Image.fromarray(RAMP)
    (tmp_path / "really.jpg").write_bytes(save(picture, tmp_path / "a.png").read_bytes())
    np.testing.assert_array_equal(read_image(tmp_path / "really.jpg")[..., 0], RAMP)
    for extension in (".tga", ".gif", ".webp", ".jfif", ".ppm"):
        options = {"lossless": True} if extension == ".webp" else {}
        path = save(picture.convert("RGB"), tmp_path / f"b{extension}", **options)
        assert np.abs(read_image(path)[..., 0].astype(int) - RAMP).max() <= 6


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "TGA"])
def test_no_other_decoder_runs(tmp_path: Path, kind: str) -> None:
    save(Image.new("RGB", (32, 32), 255), tmp_path / f"picture.{kind.lower()}")
    path = (tmp_path / f"picture.{kind.lower()}").rename(tmp_path / "picture.png")
    with (
        mock.patch("subprocess.Popen", side_effect=AssertionError),
        mock.patch("subprocess.check_call", side_effect=AssertionError),
        pytest.raises(InputError, match=r"picture\.png: cannot be read .*none of (AVIF, )?BMP"),
    ):
        read_image(path)


def test_a_file_whose_metadata_are_damaged_is_told_by_what_it_begins_as(tmp_path: Path) -> None:
    notes = PngInfo()
    notes.add_text("Camera", "left")
    data = bytearray(save(Image.fromarray(RAMP), tmp_path / "a.png", pnginfo=notes).read_bytes())
    data[data.index(b"left")] ^= 1  # so the chunk's checksum is wrong
    (tmp_path / "a.png").write_bytes(data)
    jpeg = save(Image.fromarray(RAMP), tmp_path / "b.jpg")
    jpeg.write_bytes(jpeg.read_bytes()[:20])
    avif = tmp_path / "c.avif"
    avif.write_bytes(b"\0\0\0\x18ftypavif" + bytes(40))
    kinds = [("a.png", "a PNG"), ("b.jpg", "a JPEG")]
    kinds += [("c.avif", "an AVIF")] if features.check("avif") else []
    for name, kind in kinds:
        told = rf"{name}: cannot be read .*begins like {kind} file, but .*; save it as PNG or JPEG"
        with pytest.raises(InputError, match=told):
            read_image(tmp_path / name)


def test_pixels_of_an_unsupported_kind_are_told(tmp_path: Path) -> None:
    write_tiff(tmp_path / "colours.tif", np.zeros((8, 9, 3), np.float32))
    write_tiff(tmp_path / "double.tif", np.zeros((8, 9), np.float64))
    write_tiff(tmp_path / "five.tif", np.zeros((8, 9, 5), np.uint8))
    for name in ("colours", "double", "five"):
        told = rf"{name}\.tif: .* not supported, or is damaged: .*; save it as PNG or JPEG, grey or"
        with pytest.raises(InputError, match=told):
            read_image(tmp_path / f"{name}.tif")


@pytest.mark.parametrize(
    "brands", [b"heic", b"hevc", b"mif1\0\0\0\0mif1heic", b"msf1\0\0\0\0hevcmsf1"]
)
def test_a_photo_of_a_phone_in_heic_is_told(tmp_path: Path, brands: bytes) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"\0\0\0\x18ftyp" + brands + bytes(40))
    with pytest.raises(InputError, match=r"photo\.jpg: .*HEIC, which is not .*; save it as PNG or"):
        read_image(tmp_path / "photo.jpg")


def test_an_empty_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "0.png").touch()
    with pytest.raises(InputError, match=r"0\.png: .* as an image \(the file is empty\)"):
        read_image(tmp_path / "0.png")


def test_all_32_bits_of_a_tiff_file_count(tmp_path: Path) -> None:
    write_tiff(tmp_path / "deep.tif", RAMP.astype(np.uint32) * 0x01010101)
    np.testing.assert_array_equal(read_image(tmp_path / "deep.tif", 32)[..., 0], RAMP)
    assert bits_in_use(tmp_path / "deep.tif") == 32
    mask = write_tiff(tmp_path / "mask.tif", (RAMP > 127).astype(np.uint32) * 0xFFFFFFFF)
    np.testing.assert_array_equal(read_mask(mask), RAMP > 127)
    signed = write_tiff(tmp_path / "signed.tif", RAMP.astype(np.int32) - 1)
    with pytest.raises(
        InputError, match=r"signed\.tif: .* from -1 to .*4294967295; save the image"
    ):
        read_image(signed, 32)


def test_pipes_and_folders_are_no_images(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "folder.png"):
        for read in (read_image, read_mask, image_size):
            with pytest.raises(
                InputError, match=f"^{tmp_path / name}: cannot be read as an image .it is a"
            ):
                read(tmp_path / name)


@pytest.mark.parametrize("turn", range(1, 9))
def test_the_header_tells_the_size_of_the_upright_image(tmp_path: Path, turn: int) -> None:
    exif = Image.Exif()
    exif[274] = turn
    Image.new("RGB", (7, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert image_size(tmp_path / "a.jpg") == read_image(tmp_path / "a.jpg").shape[:2]


@pytest.mark.parametrize("damage", ["cut", "bit"])
def test_a_damaged_png_is_named_by_all_who_ask_for_its_size(tmp_path: Path, damage: str) -> None:
    """Pillow reads past the pixels of a PNG file, where Exif data may be."""
    path = write_image(tmp_path / "a.png", (64, 64))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data if damage == "bit" else data[: len(data) // 2])
    for read in (read_image, read_mask, image_size):
        with pytest.raises(InputError, match=r"a\.png: cannot be read as an image \(.*; replace"):
            read(path)


def test_size_has_a_limit_that_can_be_raised(tmp_path: Path) -> None:
    usual = Image.MAX_IMAGE_PIXELS
    large = save(Image.new("1", (14_000, 13_000), 1), tmp_path / "large.png")
    with pytest.raises(InputError, match=r"large\.png: has 14000×13000 .*most 100 .*image\.limit"):
        read_image(large, limit=100)
    image = read_image(large)  # 182 megapixels, more than Pillow's own limit
    assert image.shape == (13_000, 14_000, 3) and image.strides[-1] == 0
    assert usual == Image.MAX_IMAGE_PIXELS  # Pillow's own stays for everybody else
    bomb = tmp_path / "bomb.png"
    data = large.read_bytes().replace(
        struct.pack(">II", 14_000, 13_000), struct.pack(">II", 2**30, 2**30)
    )
    header = b"IHDR" + data[16:29]
    bomb.write_bytes(data[:29] + struct.pack(">I", zlib.crc32(header)) + data[33:])
    with pytest.raises(InputError, match=r"bomb\.png: has 1073741824×1073741824 pixels"):
        read_image(bomb)


def test_several_frames_are_refused_and_previews_are_none(tmp_path: Path) -> None:
    pages = [Image.fromarray(RAMP), Image.fromarray(RAMP // 2)]
    for name in ("pages.tif", "moving.gif", "moving.png", "moving.webp"):
        path = save(pages[0], tmp_path / name, save_all=True, append_images=pages[1:])
        for read in (read_image, read_mask):
            with pytest.raises(InputError, match=f"{name}: holds 2 frames; save each"):
                read(path)
    small = pages[0].resize((6, 5))
    path = save(pages[0], tmp_path / "preview.tif", save_all=True, append_images=[small])
    np.testing.assert_array_equal(read_image(path)[..., 0], RAMP)
    for first, second in (((25, 17), (12, 9)), ((5, 5), (3, 3)), ((1, 100), (1, 50))):
        whole, half = Image.new("L", first), Image.new("L", second)  # as pyramids round it
        path = save(whole, tmp_path / "pyramid.tif", save_all=True, append_images=[half])
        assert read_image(path).shape == (first[1], first[0], 3)
    for number, size in enumerate([(12, 9), (11, 10), (6, 10)]):  # a cut or another part
        other = Image.fromarray(RAMP).resize(size)
        path = save(pages[0], tmp_path / f"{number}.tif", save_all=True, append_images=[other])
        for read in (read_image, read_mask):
            with pytest.raises(InputError, match=f"{number}.tif: holds 2 frames; save each"):
                read(path)
    other.encoderinfo = {"tiffinfo": {254: 1}}  # marked as a preview
    path = save(pages[0], tmp_path / "marked.tif", save_all=True, append_images=[other])
    np.testing.assert_array_equal(read_image(path)[..., 0], RAMP)
    path = save(small, tmp_path / "first.tif", save_all=True, append_images=[pages[0]])
    with pytest.raises(
        InputError, match=r"first\.tif: its page 2 of 12×10 pixels is larger than the first of 6×5"
    ):
        read_image(path)


def test_mask_threshold_and_modes(tmp_path: Path) -> None:
    for mode in ("1", "RGB", "P", "RGBA"):
        path = save(
            Image.fromarray((RAMP > 127).astype(np.uint8) * 255).convert(mode),
            tmp_path / f"{mode}.png",
        )
        mask = read_mask(path)
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, RAMP > 127)
    assert not read_mask(write_mask(tmp_path / "empty.png", marked=False)).any()
