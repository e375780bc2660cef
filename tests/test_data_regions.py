"""Regions of masks on their way to the network's size."""

import numpy as np
import pytest
import scipy.ndimage
from numpy.typing import NDArray
from PIL import Image

from patchcore.data.regions import Regions, resize_regions
from patchcore.data.transforms import ImageConfig, build_preparation


def blank(height: int = 100, width: int = 100) -> NDArray[np.bool_]:
    return np.zeros((height, width), dtype=bool)


def nearest(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    return np.array(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))


@pytest.mark.parametrize("size", [(64, 64), (31, 77), (256, 200), (100, 140), (7, 5)])
def test_masks_that_lose_nothing_are_those_of_nearest_neighbour(size: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        mask = blank(97, 140)
        for _ in range(3):
            y, x = random.integers(0, (70, 110))
            mask[y : y + 25, x : x + 30] = True
        assert np.array_equal(resize_regions(mask, size)[0] > 0, nearest(mask, size))


@pytest.mark.parametrize("column", range(400, 408))
def test_a_thin_scratch_stays_as_a_line(column: int) -> None:
    mask = blank(1024, 1024)
    mask[300:700, column : column + 2] = True
    numbers, areas = resize_regions(mask, (256, 256))
    assert areas.tolist() == [800]
    rows, columns = np.nonzero(numbers)
    assert (rows.min(), rows.max()) == (75, 174) and len(set(rows)) == 100  # none is missing
    assert {column // 4, (column + 1) // 4} >= set(columns)


@pytest.mark.parametrize("shape", [(2, 1), (1, 2), (2, 2), (3, 3), (1, 300)])
def test_every_small_region_keeps_a_pixel_where_it_is(shape: tuple[int, int]) -> None:
    for offset in range(0, 40, 3):
        mask = blank(900, 1200)
        mask[100 + offset : 100 + offset + shape[0], 500 + offset : 500 + offset + shape[1]] = True
        kept = np.argwhere(resize_regions(mask, (224, 224))[0])
        assert len(kept) >= 1
        centre = (np.argwhere(mask) + 0.5).mean(0) * (224 / 900, 224 / 1200)
        assert (np.abs(kept.mean(0) + 0.5 - centre) <= 1).all()


def test_a_diagonal_hair_and_a_ring_are_kept() -> None:
    mask = blank(600, 600)
    mask[np.arange(100, 300), np.arange(301, 501)] = True
    y, x = np.mgrid[:600, :600]
    mask |= np.abs(np.hypot(y - 450, x - 150) - 60) < 0.7
    count = scipy.ndimage.label(mask, np.ones((3, 3)))[1]
    numbers, areas = resize_regions(mask, (60, 60))
    assert len(areas) == count and set(np.unique(numbers)) == set(range(count + 1))


def test_what_is_lost_cropped_and_merged_is_counted() -> None:
    mask = blank()
    mask[0:3, 0:3] = True  # outside the crop
    mask[40:60, 5:20] = True  # cut by it
    mask[50:60, 50:60] = mask[50:60, 61:70] = True  # merged at half the size
    mask[30, 40] = True  # a speck, lost at half the size: the nearest pixels are odd
    regions = ImageConfig(resize=50, crop=40).follow(mask)
    assert regions == Regions(marked=5, outside=1, cut=1, lost=1, merged=1)
    assert not regions.unseen
    assert ImageConfig(resize=None, crop=None).follow(mask) == Regions(marked=5)
    assert ImageConfig(resize=50, crop=40).follow(blank()) == Regions()
    assert ImageConfig(resize=50, crop=40).follow(~blank()).most == 1


def test_regions_outside_the_crop_alone_are_unseen() -> None:
    mask = blank(100, 320)
    mask[40:60, 4:24] = True
    assert ImageConfig(resize=256, crop=224).follow(mask).unseen
    assert not ImageConfig(resize=224, crop=None, stretch=True).follow(mask).unseen
    mask[40:60, 150:170] = True
    assert not ImageConfig(resize=256, crop=224).follow(mask).unseen


def test_a_line_of_pixels_costs_no_more_than_its_crop() -> None:
    line = np.zeros((1, 60_000, 3), dtype=np.uint8)
    line[:, 30_000:] = 200
    mask = line[..., 0] > 0
    config = ImageConfig()
    pixels, seen = build_preparation(config)(line, mask, 0)
    assert pixels.shape == (224, 224, 3) and seen.shape == (224, 224)
    assert seen[:, 112:].all() and not seen[:, :112].any()
    assert config.follow(mask).marked == 1
    with pytest.raises(ValueError, match="15360000×256 pixels are too many"):
        build_preparation(ImageConfig(crop=None))(line, mask, 0)


def test_the_crop_alone_is_what_it_is_in_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 200, 3), dtype=np.uint8)
    mask = image[..., 0] > 250
    prepare = build_preparation(ImageConfig(resize=70, crop=50))
    whole, marked = prepare(image, mask, 0)
    monkeypatch.setattr("patchcore.data.transforms.LARGEST", 5000)
    part, seen = prepare(image, mask, 0)
    assert np.abs(part.astype(int) - whole).max() <= 1
    assert (seen != marked).mean() < 0.02  # a pixel of the whole may be kept, one here not
