"""Masks of any depth, colours and file format: the pixels that they mark."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from patchcore.data.images import read_image, read_mask, read_truth
from patchcore.data.marks import marked_pixels
from patchcore.data.sample import Masks
from patchcore.errors import InputError
from tests.images import write_png, write_tiff

FIRST, SECOND = np.zeros((40, 50), dtype=bool), np.zeros((40, 50), dtype=bool)
FIRST[5:15, 5:20], SECOND[22:36, 28:45] = True, True
BOTH = FIRST | SECOND


def levels(first: float, second: float, dtype: Any = np.uint8) -> NDArray[Any]:
    return FIRST.astype(dtype) * dtype(first) + SECOND.astype(dtype) * dtype(second)


def colours(first: tuple[int, ...], second: tuple[int, ...], back: tuple[int, ...]) -> Image.Image:
    pixels = np.zeros((*BOTH.shape, len(back)), dtype=np.uint8)
    pixels[:], pixels[FIRST], pixels[SECOND] = back, first, second
    return Image.fromarray(pixels)


def palette(*entries: int) -> Image.Image:
    image = Image.fromarray(levels(1, 2)).convert("P")
    image.putpalette(entries)
    return image


MASKS = {
    "grey levels.png": Image.fromarray(levels(255, 100)),
    "labels.png": Image.fromarray(levels(1, 3)),
    "dark labels.bmp": Image.fromarray(levels(2, 2)),
    "half.tif": Image.fromarray(levels(127, 128)),
    "16 bits.png": Image.fromarray(levels(65535, 65535, np.uint16)),
    "12 bits.png": Image.fromarray(levels(4095, 4095, np.uint16)),
    "bytes in 16 bits.png": Image.fromarray(levels(255, 255, np.uint16)),
    "labels in 16 bits.tif": Image.fromarray(levels(1, 300, np.uint16)),
    "32 bits.tif": Image.fromarray(levels(7, 1_000_000, np.int32)),
    "fractions.tif": Image.fromarray(levels(1, 0.25, np.float32)),
    "floating labels.tif": Image.fromarray(levels(1, 2, np.float32)),
    "one bit.png": Image.fromarray(BOTH),
    "red and green.png": colours((255, 0, 0), (0, 255, 0), (0, 0, 0)),
    "dark blue.png": colours((0, 0, 128), (64, 0, 0), (0, 0, 0)),
    "clear background.png": colours((255, 0, 0, 255), (0, 0, 255, 255), (255, 255, 255, 0)),
    "faint.png": colours((255, 0, 0, 90), (0, 0, 255, 255), (0, 0, 0, 0)),
    "grey and alpha.png": colours((9, 255), (200, 255), (255, 0)),
    "palette.png": palette(0, 0, 0, 128, 0, 0, 0, 0, 64),
    "palette.gif": palette(0, 0, 0, 128, 0, 0, 0, 0, 64),
    "grey palette.png": Image.fromarray(levels(1, 2)).convert("P"),
    "cmyk.tif": colours((0, 255, 255, 0), (255, 0, 0, 0), (0, 0, 0, 255)).convert("RGB"),
    "plain.pgm": Image.fromarray(levels(255, 90)),
}


@pytest.mark.parametrize("name", MASKS)
def test_every_marked_region_counts(tmp_path: Path, name: str) -> None:
    MASKS[name].save(tmp_path / name)
    mask = read_mask(tmp_path / name)
    np.testing.assert_array_equal(mask, BOTH)
    assert mask.view(np.uint8).max() == 1  # a sum over booleans takes them as they are stored


def test_cmyk_and_16_bit_colours(tmp_path: Path) -> None:
    cmyk = np.zeros((*BOTH.shape, 4), dtype=np.uint8)
    cmyk[..., 3] = 255  # black ink
    cmyk[BOTH] = (0, 255, 255, 0)
    Image.fromarray(cmyk, "CMYK").save(tmp_path / "cmyk.tif")
    np.testing.assert_array_equal(read_mask(tmp_path / "cmyk.tif"), BOTH)
    cv2 = pytest.importorskip("cv2")
    deep = np.zeros((*BOTH.shape, 3), dtype=np.uint16)
    deep[FIRST, 0], deep[SECOND, 2] = 1, 2  # the upper 8 bits alone are all 0
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    np.testing.assert_array_equal(read_mask(tmp_path / "deep.png"), BOTH)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_has_one_rule_in_8_and_16_bits(tmp_path: Path, dtype: Any, channels: int) -> None:
    """Transparent pixels are background, whatever their colour."""
    full = np.iinfo(dtype).max
    pixels = np.full((*BOTH.shape, channels), full, dtype)
    pixels[..., -1] = BOTH * full
    np.testing.assert_array_equal(read_mask(write_png(tmp_path / "white.png", pixels)), BOTH)
    pixels[..., :-1] = 0
    with pytest.raises(InputError, match=r"black\.png: black pixels of this mask are opaque"):
        read_mask(write_png(tmp_path / "black.png", pixels))
    pixels[FIRST, :-1] = full
    with pytest.raises(InputError, match=r"layer\.png: black pixels of this mask are opaque"):
        read_mask(write_png(tmp_path / "layer.png", pixels))
    pixels[..., -1] = 0
    with pytest.raises(InputError, match=r"clear\.png: every pixel of this mask is transparent"):
        read_mask(write_png(tmp_path / "clear.png", pixels))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_colour_is_background_in_any_depth(
    tmp_path: Path, dtype: Any, channels: int
) -> None:
    full = int(np.iinfo(dtype).max)
    pixels = np.full((*BOTH.shape, channels), full - 1, dtype)
    pixels[BOTH] = full
    path = write_png(tmp_path / "mask.png", pixels, hidden=(full - 1,) * channels)
    np.testing.assert_array_equal(read_mask(path), BOTH)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_numbers_of_defects_count_in_any_depth(tmp_path: Path, dtype: Any, channels: int) -> None:
    pixels = np.zeros((*BOTH.shape, channels), dtype)
    if channels in (2, 4):
        pixels[..., -1] = np.iinfo(dtype).max
    pixels[FIRST, 0], pixels[SECOND, 0] = 1, 3
    path = write_png(tmp_path / "labels.png", pixels)
    np.testing.assert_array_equal(read_truth(Masks((path,), labels=True)), BOTH)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_mask_may_count_white_as_zero(tmp_path: Path, dtype: Any) -> None:
    pixels = ~(BOTH.astype(dtype) * np.iinfo(dtype).max)
    path = write_tiff(tmp_path / "mask.tif", pixels, white_is_zero=True)
    np.testing.assert_array_equal(read_mask(path), BOTH)


def test_a_16_bit_colour_that_is_stored_over_black_keeps_its_value(tmp_path: Path) -> None:
    pixels = np.zeros((*BOTH.shape, 4), np.uint16)
    pixels[FIRST], pixels[SECOND] = (1, 0, 0, 9), (0, 3, 0, 65535)
    path = write_tiff(tmp_path / "mask.tif", pixels, extra=1)
    np.testing.assert_array_equal(read_mask(path), BOTH)


def test_soft_edges_are_cut_at_half_of_white(tmp_path: Path) -> None:
    grey = Image.fromarray(BOTH.astype(np.uint8) * 255)
    for quality in (50, 75, 95):
        grey.save(tmp_path / "mask.jpg", quality=quality)
        compressed = np.array(Image.open(tmp_path / "mask.jpg"))
        assert len(np.unique(compressed)) > 4  # or there is nothing to cut
        np.testing.assert_array_equal(read_mask(tmp_path / "mask.jpg"), compressed > 127)
    scaled = np.array(grey.resize((37, 31), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(marked_pixels(scaled, "scaled"), scaled > 127)
    antialiased = np.pad(np.full((10, 10), 255, np.uint8), 1, constant_values=64)
    antialiased = np.pad(antialiased, 3)  # an edge all round that is covered by a quarter
    np.testing.assert_array_equal(marked_pixels(antialiased, "edge"), antialiased > 127)


def rectangle() -> NDArray[np.uint8]:
    """A mask whose straight edges leave stripes of equal noise when it is compressed, (32, 40)."""
    mask = np.zeros((32, 40), dtype=np.uint8)
    mask[:16, :20] = 255
    return mask


@pytest.mark.parametrize(
    ("suffix", "quality"), [("jpg", 30), ("jpg", 40), ("webp", 31), ("tif", 40)]
)
def test_stripes_that_compression_leaves_are_no_numbers(
    tmp_path: Path, suffix: str, quality: int
) -> None:
    file = tmp_path / f"mask.{suffix}"
    kept = {"compression": "jpeg"} if suffix == "tif" else {}
    Image.fromarray(rectangle()).save(file, quality=quality, **kept)
    stored = np.array(Image.open(file).convert("L"))
    assert ((stored > 0) & (stored < 16)).any()  # or there is no noise
    np.testing.assert_array_equal(read_mask(file), rectangle() > 0)


def test_noise_that_is_saved_again_and_numbers_that_are_compressed_are_refused(
    tmp_path: Path,
) -> None:
    Image.fromarray(rectangle()).save(tmp_path / "mask.jpg", quality=40)
    Image.open(tmp_path / "mask.jpg").save(tmp_path / "again.png")
    Image.fromarray(rectangle() // 85).save(tmp_path / "numbers.jpg", quality=100)
    for name in ("again.png", "numbers.jpg"):
        with pytest.raises(InputError, match=f"{name}: this mask holds values .* nearly black"):
            read_mask(tmp_path / name)
    Image.fromarray(rectangle() // 85).save(tmp_path / "numbers.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "numbers.png"), rectangle() > 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (levels(-1, 255, np.int32), "negative values"),
        (levels(1, np.nan, np.float32), "NaN or infinite"),
        (np.where(BOTH, 255, 100).astype(np.uint8), "no pixel of this mask is black"),
        (np.full((8, 8), 1, np.uint8), "no pixel of this mask is black"),
        (np.tile(np.linspace(0, 255, 50).astype(np.uint8), (40, 1)), "areas of blurred grey"),
        (np.random.default_rng(0).integers(0, 99, (40, 50)), "areas of blurred grey"),
    ],
)
def test_what_is_unclear_is_refused(values: NDArray[Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^part.png: .*{message}.*save masks with 0 for nominal"):
        marked_pixels(values, "part.png")


@pytest.mark.parametrize("level", [1, 3, 20, 90])
@pytest.mark.parametrize(("outline", "inner"), [(2, 8), (3, 3), (4, 2)])
def test_numbers_inside_a_white_outline_are_refused(level: int, outline: int, inner: int) -> None:
    """Outlines of 255 are "to be ignored" in some data sets; they alone would count."""
    numbers = np.full((inner, inner + 2), level, np.uint8)
    values = np.pad(np.pad(numbers, outline, constant_values=255), 9)
    with pytest.raises(InputError, match=r"^part\.png: .* (level \d+ inside|areas of blurred)"):
        marked_pixels(values, "part.png")


def test_small_holes_of_a_scaled_mask_are_no_numbers() -> None:
    whole = np.full((40, 40), 255, np.uint8)
    whole[10:12, 10:13] = whole[25:28, 20:23] = 0
    small = np.array(Image.fromarray(np.pad(whole, 8)).resize((19, 19), Image.Resampling.BOX))
    assert len(np.unique(small)) > 4
    np.testing.assert_array_equal(marked_pixels(small, "small"), small > 127)


@pytest.mark.parametrize("grey", [40, 100, 128])
def test_a_compressed_region_of_middle_grey_is_refused(tmp_path: Path, grey: int) -> None:
    Image.fromarray(levels(255, grey)).save(tmp_path / "mask.jpg", quality=80)
    with pytest.raises(InputError, match=r"mask\.jpg: .*areas of blurred grey"):
        read_mask(tmp_path / "mask.jpg")


def test_masks_of_one_colour(tmp_path: Path) -> None:
    for value, dtype in ((255, np.uint8), (65535, np.uint16), (1, np.float32)):
        assert marked_pixels(np.full((8, 8), value, dtype), "white").all()
        assert not marked_pixels(np.zeros((8, 8), dtype), "black").any()
    Image.new("RGBA", (8, 8), (0, 0, 0, 255)).save(tmp_path / "opaque.png")
    assert not read_mask(tmp_path / "opaque.png").any()
    Image.new("RGBA", (8, 8), (255, 255, 255, 0)).save(tmp_path / "clear.png")
    assert not read_mask(tmp_path / "clear.png").any()


def test_what_colours_hide_is_refused(tmp_path: Path) -> None:
    palette(0, 0, 0, 0, 0, 0, 255, 255, 255).save(tmp_path / "palette.png")
    with pytest.raises(InputError, match=r"palette\.png: .*several of its numbers as black"):
        read_mask(tmp_path / "palette.png")
    colours((255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    with pytest.raises(InputError, match=r"clear\.png: every pixel of this mask is transparent"):
        read_mask(tmp_path / "clear.png")
    colours((255, 0, 0, 255), (0, 0, 0, 255), (0, 0, 0, 0)).save(tmp_path / "layer.png")
    with pytest.raises(InputError, match=r"layer\.png: black pixels of this mask are opaque"):
        read_mask(tmp_path / "layer.png")
    colours((255, 0, 0), (0, 0, 255), (255, 255, 255)).save(tmp_path / "paper.png")
    with pytest.raises(InputError, match=r"paper\.png: no pixel of this mask is black"):
        read_mask(tmp_path / "paper.png")


def with_corner(alpha: int) -> Image.Image:
    """A black mask, 8×8, whose first pixels are transparent."""
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[..., 3] = alpha
    pixels[:2, :2, 3] = 0
    return Image.fromarray(pixels)


def clear_entry(number: int) -> Image.Image:
    """A mask of black and white, of which one is transparent."""
    image = Image.fromarray(FIRST.astype(np.uint8)).convert("P")
    image.putpalette((0, 0, 0, 255, 255, 255))
    image.info["transparency"] = number
    return image


@pytest.mark.parametrize("kind", ["png", "gif", "tif", "webp"])
def test_black_beside_transparent_pixels_is_refused(tmp_path: Path, kind: str) -> None:
    drawn = colours((0, 0, 0, 255), (0, 0, 0, 90), (0, 0, 0, 0))
    masks = [with_corner(255), with_corner(90), drawn]
    for mask in masks if kind != "gif" else [clear_entry(1)]:
        mask.save(tmp_path / f"mask.{kind}", **({"lossless": True} if kind == "webp" else {}))
        with pytest.raises(
            InputError,
            match=rf"mask\.{kind}: black pixels of this mask are opaque, others transparent, so it "
            "is not clear which are the background; save it without transparency, white on black",
        ):
            read_mask(tmp_path / f"mask.{kind}")
    clear_entry(1).save(tmp_path / "palette.png")
    with pytest.raises(InputError, match=r"palette\.png: black pixels of this mask are opaque"):
        read_mask(tmp_path / "palette.png")
    clear_entry(0).save(tmp_path / "white.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "white.png"), FIRST)


def test_mask_and_image_turn_alike(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    grey = Image.fromarray(BOTH.astype(np.uint8) * 255)
    grey.save(tmp_path / "turned.png", exif=exif)
    mask = read_mask(tmp_path / "turned.png")
    np.testing.assert_array_equal(mask, np.rot90(BOTH))
    np.testing.assert_array_equal(mask, read_image(tmp_path / "turned.png")[..., 0] > 0)
