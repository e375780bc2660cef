"""The faster decoder of plain PNG files gives what Pillow gives, pixels or error."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from patchcore.data import png
from patchcore.data.images import bits_in_use, read_image, read_mask
from patchcore.errors import InputError
from tests.images import write_png

pytest.importorskip("imagecodecs", reason="needs the extra png")


def pixels(mode: str, height: int, width: int) -> np.ndarray:
    """Random pixels, of which half repeat, so that every filter of PNG is used."""
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    chance = np.random.default_rng(height * 1000 + width)
    values = chance.integers(0, 256, shape, np.uint8)
    values[height // 2 :] = np.arange(width, dtype=np.uint8).reshape(-1, *[1] * (len(shape) - 2))
    return values


def chunk(name: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def insert(path: Path, before: bytes, *chunks: bytes) -> None:
    """Insert chunks into a PNG file before the first chunk named `before`."""
    data = path.read_bytes()
    place = data.index(before) - 4
    path.write_bytes(data[:place] + b"".join(chunks) + data[place:])


def opened(path: Path) -> Image.Image | None:
    with Image.open(path) as file:
        return png.plain_png(file, path)


@pytest.mark.parametrize("compressed", [True, False])
def test_more_text_than_is_read_is_told(tmp_path: Path, compressed: bool) -> None:
    text = PngInfo()
    for number in range(1 if compressed else 9):
        text.add_text(f"Comment {number}", "x" * (8 << 20), zip=compressed)
    Image.new("L", (8, 8)).save(tmp_path / "0.png", pnginfo=text)
    with pytest.raises(InputError, match=r"\(it holds more text than is read\); save it again"):
        read_image(tmp_path / "0.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    "damaged",
    [chunk(b"iCCP", b"icc\0\0" + zlib.compress(b"nonsense" * 9)), chunk(b"sRGB", b"\x09")],
    ids=["profile", "intent"],
)
def test_libraries_print_nothing_of_damaged_notes(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    dtype: type,
    damaged: bytes,
) -> None:
    colours = pixels("RGB", 10, 12)
    path = write_png(tmp_path / "0.png", colours.astype(dtype) * (257 if dtype == np.uint16 else 1))
    insert(path, b"IDAT", damaged)
    np.testing.assert_array_equal(read_image(path), colours)
    assert bits_in_use(path) == (16 if dtype == np.uint16 else None)  # read by another library
    assert capfd.readouterr() == ("", "") and not caplog.records


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 70), (61, 2), (33, 47), (300, 257)])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_pixels_are_pillows(tmp_path: Path, mode: str, height: int, width: int, level: int) -> None:
    values, path = pixels(mode, height, width), tmp_path / "a.png"
    Image.fromarray(values).save(path, compress_level=level)
    decoded = opened(path)
    assert decoded is not None and decoded.mode == mode
    assert np.array_equal(np.asarray(decoded), values)
    expected = values if mode == "RGB" else np.repeat(values[..., None], 3, -1)
    assert np.array_equal(read_image(path), expected)


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(b"gAMA", struct.pack(">I", 100_000))],
        [chunk(b"sBIT", bytes([3, 3, 3]))],
        [chunk(b"sRGB", b"\0"), chunk(b"pHYs", struct.pack(">IIB", 100, 200, 1))],
        [chunk(b"cHRM", struct.pack(">8I", *range(30_000, 30_008)))],
        [chunk(b"bKGD", struct.pack(">3H", 9, 9, 9))],
    ],
    ids=["gamma", "significant bits", "sRGB", "chromaticities", "background"],
)
def test_colour_information_changes_no_pixel(tmp_path: Path, chunks: list[bytes]) -> None:
    values, path = pixels("RGB", 20, 30), tmp_path / "a.png"
    Image.fromarray(values).save(path)
    insert(path, b"IDAT", *chunks)
    assert opened(path) is not None
    assert np.array_equal(read_image(path), values)


def test_an_exif_orientation_is_applied(tmp_path: Path) -> None:
    values, path = pixels("RGB", 20, 30), tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(path, exif=exif)
    assert opened(path) is not None
    assert np.array_equal(read_image(path), np.rot90(values, -1))


def test_comments_after_the_pixels_do_not_matter(tmp_path: Path) -> None:
    values, path = pixels("L", 20, 30), tmp_path / "a.png"
    Image.fromarray(values).save(path)
    insert(path, b"IEND", chunk(b"tEXt", b"date:create\x002026"), chunk(b"tIME", bytes(7)))
    assert opened(path) is not None
    assert np.array_equal(read_image(path)[..., 0], values)


def late_exif(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels("RGB", 20, 30)).save(path)
    insert(path, b"IEND", chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))


def late_profile(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = exif.tobytes()
    text = b"Raw profile type exif\0\nexif\n%8d\n%s\n" % (len(content), content.hex().encode())
    Image.fromarray(pixels("RGB", 20, 30)).save(path)
    insert(path, b"IEND", chunk(b"tEXt", text))


def transparent(path: Path) -> None:
    Image.fromarray(pixels("RGB", 20, 30)).save(path, transparency=(1, 2, 3))


def sixteen_bits(path: Path) -> None:
    grey = np.arange(600, dtype=np.uint16).reshape(20, 30) * 100
    Image.fromarray(grey).save(path)


def palette(path: Path) -> None:
    Image.fromarray(pixels("RGB", 20, 30)).quantize(16).save(path)


def with_alpha(path: Path) -> None:
    Image.fromarray(pixels("RGB", 20, 30)).convert("RGBA").save(path)


def one_bit(path: Path) -> None:
    Image.fromarray(pixels("L", 20, 30)).convert("1").save(path)


def late_description(path: Path) -> None:
    Image.fromarray(pixels("RGB", 20, 30)).save(path)
    insert(path, b"IEND", chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x/>"))


def interlaced(path: Path) -> None:
    """Write 1 × 1 pixel: the first pass alone holds something."""
    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 1)
    content = chunk(b"IDAT", zlib.compress(b"\0\1\2\3"))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + content + chunk(b"IEND", b""))


@pytest.mark.parametrize(
    "write",
    [
        late_exif,
        late_profile,
        late_description,
        transparent,
        sixteen_bits,
        palette,
        with_alpha,
        one_bit,
        interlaced,
    ],
)
def test_other_files_are_left_to_pillow(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "a.png"
    write(path)
    assert opened(path) is None
    read_image(path)
    if write in (late_exif, late_profile):
        assert np.array_equal(read_image(path), np.rot90(pixels("RGB", 20, 30), -1))


def test_without_the_extra_pillow_decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(pixels("RGB", 20, 30)).save(path)
    monkeypatch.setattr(png, "_decoder", lambda: None)
    assert opened(path) is None
    assert np.array_equal(read_image(path), pixels("RGB", 20, 30))


def test_masks_are_read_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(255 * (pixels("L", 20, 30) > 99).astype(np.uint8)).save(path)
    with Image.open(path) as file:
        assert png.plain_png(file, path) is not None
    fast = read_mask(path)
    monkeypatch.setattr(png, "_decoder", lambda: None)
    assert fast.any() and np.array_equal(fast, read_mask(path))


@settings(max_examples=40)
@given(
    mode=st.sampled_from(["RGB", "L"]),
    places=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=3),
    kept=st.floats(0, 1) | st.just(1.0),
)
def test_damage_has_the_same_outcome(
    tmp_path_factory: pytest.TempPathFactory,
    mode: str,
    places: list[tuple[float, int]],
    kept: float,
) -> None:
    path = tmp_path_factory.mktemp("damage") / "a.png"
    text = PngInfo()
    text.add_text("Comment", "drawn")
    Image.fromarray(pixels(mode, 21, 34)).save(path, pnginfo=text, dpi=(100, 100))
    data = bytearray(path.read_bytes())
    for place, change in places:
        data[min(int(place * len(data)), len(data) - 1)] ^= change
    path.write_bytes(data[: int(kept * len(data))])

    def outcome() -> str:
        try:
            return f"{read_image(path).tolist()}"
        except InputError as error:
            return str(error)

    fast = outcome()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(png, "_decoder", lambda: None)
        assert fast == outcome()
