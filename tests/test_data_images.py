from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchcore.data.images import read_image, read_mask
from patchcore.errors import InputError
from tests.images import write_image, write_mask

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


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    path = save(Image.new("CMYK", (12, 10), (0, 255, 255, 0)), tmp_path / "red.tif")
    np.testing.assert_array_equal(read_image(path)[0, 0], [255, 0, 0])


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90°
    path = save(Image.fromarray(RAMP), tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(path)[..., 0], np.rot90(RAMP, -1))


def test_truncated_image_is_named(tmp_path: Path) -> None:
    for name in ("image.png", "image.jpg"):
        path = write_image(tmp_path / name, (64, 64))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(InputError, match=rf"{name}: cannot be read as an image \(.+\)"):
            read_image(path)


def test_other_bad_files_are_named(tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no image")
    with pytest.raises(InputError, match=r"text\.png: cannot be read"):
        read_image(text)
    with pytest.raises(InputError, match=r"lost\.png: there is no such image"):
        read_image(tmp_path / "lost.png")
    real = save(Image.new("F", (12, 10), 0.5), tmp_path / "real.tif")
    with pytest.raises(InputError, match=r"real\.tif: floating-point"):
        read_image(real)
    wide = save(Image.new("I", (12, 10), 1 << 20), tmp_path / "wide.tif")
    with pytest.raises(InputError, match=r"wide\.tif: 32-bit"):
        read_image(wide)


def test_mask_threshold_and_modes(tmp_path: Path) -> None:
    grey = save(Image.fromarray(RAMP), tmp_path / "grey.png")
    np.testing.assert_array_equal(read_mask(grey), RAMP > 127)
    for mode in ("1", "RGB", "P", "RGBA"):
        path = save(
            Image.fromarray((RAMP > 127).astype(np.uint8) * 255).convert(mode),
            tmp_path / f"{mode}.png",
        )
        mask = read_mask(path)
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, RAMP > 127)
    assert not read_mask(write_mask(tmp_path / "empty.png", marked=False)).any()


def test_mask_of_zeros_and_ones_is_refused(tmp_path: Path) -> None:
    path = save(Image.fromarray((RAMP > 9).astype(np.uint8)), tmp_path / "ones.png")
    with pytest.raises(InputError, match=r"ones\.png: the brightest pixel of this mask is 1"):
        read_mask(path)
