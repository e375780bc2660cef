from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from patchcore.data.synthesis import (
    OBJECT_DEFECTS,
    TEXTURE_DEFECTS,
    Draw,
    _grid,
    _spline,
    draw_object,
    draw_texture,
)

KINDS = [(draw_texture, kind) for kind in TEXTURE_DEFECTS]
KINDS += [(draw_object, kind) for kind in OBJECT_DEFECTS]


@pytest.mark.parametrize("draw", [draw_texture, draw_object])
def test_nominal_pictures_vary(draw: Draw) -> None:
    first, mask = draw(np.random.default_rng(0), 64, None, 1.0)
    again, _ = draw(np.random.default_rng(0), 64, None, 1.0)
    other, _ = draw(np.random.default_rng(1), 64, None, 1.0)
    assert first.shape == (64, 64, 3) and first.dtype == np.uint8
    assert not mask.any()
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(float) - other).mean() > 5


@pytest.mark.parametrize(("draw", "kind"), KINDS)
@pytest.mark.parametrize("size", [64, 128])
def test_masks_mark_a_small_part(draw: Draw, kind: str, size: int) -> None:
    for seed in range(20):
        for strength in (0.0, 1.0):
            _, mask = draw(np.random.default_rng(seed), size, kind, strength)
            assert mask.shape == (size, size) and mask.dtype == bool
            assert 0 < mask.mean() < 0.15


@cache
def nominal_picture(draw: Draw, seed: int) -> NDArray[np.uint8]:
    """The same picture for each kind of defect."""
    return draw(np.random.default_rng(seed), 256, None, 1.0)[0]


@pytest.mark.parametrize(("draw", "kind"), KINDS)
def test_defects_show_in_the_mask_and_nowhere_else(draw: Draw, kind: str) -> None:
    contrasts = []
    for seed in range(8):
        nominal = nominal_picture(draw, seed)
        for strength in (0.0, 1.0):
            picture, mask = draw(np.random.default_rng(seed), 256, kind, strength)
            difference = np.abs(picture.astype(float) - nominal).mean(-1)
            assert difference[~binary_dilation(mask, iterations=8)].max() <= 2  # grey levels
            contrasts.append(difference[mask].mean())
    faint, plain = np.reshape(contrasts, (8, 2)).T  # by strength
    assert faint.min() > 1.5  # grey levels
    assert plain.mean() > 8
    assert plain.mean() >= faint.mean()


def test_arrays_that_are_kept_for_later_pictures_are_read_only() -> None:
    assert not any(array.flags.writeable for array in (*_grid(16), _spline(16, 3)))
