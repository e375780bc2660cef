"""Synthetic defects on nominal images, for judging settings without anomalous images.

A defect is made from the image alone. Defects vary from hardly visible to obvious, so that even
good settings get different scores:

- `paste`: a part of the image in another place (CutPaste: Li et al., CVPR 2021),
- `blend`: parts of the image, rotated or mirrored and tinted, in the shape of smooth noise (as
  DRAEM blends textures: Zavrtanik et al., ICCV 2021),
- `scratch`: a thin line, lighter or darker,
- `stain`: a spot of another shade and colour,
- `warp`: a spot whose content is displaced.

The unit of lengths is 1/256 of the image's shorter side. Defects are placed where the image has
contrast, because real defects are on the part and not on the plain background.
"""

from math import cos, pi, sin

import numpy as np
import scipy
from numpy.typing import NDArray

from patchcore.data.synthesis import UNITS, blob, cover, mix, rise, smooth, stroke

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Array = NDArray[np.floating]

DEFECTS = ("paste", "blend", "scratch", "stain", "warp")
MARGIN = 0.08  # share of each side, at either border, without the centre of any defect
SIZES = {"paste": (6, 16), "blend": (12, 22), "stain": (7, 14), "warp": (7, 14)}
"""Radius at strength 0, and how much larger the radius is at strength 1, by kind."""
SEEN = 0.02  # opacity above which a pixel belongs to the defect
FLOOR = 0.05  # weight of places without contrast, as a share of the mean weight


def draw_defect(
    rng: np.random.Generator,
    pixels: Pixels,
    kind: str,
    strength: float,
    inside: Mask | None = None,
) -> tuple[Pixels, Mask]:
    """Draw a defect on a nominal image.

    Args:
        rng: Source of all random numbers.
        pixels: Image (H, W, 3) uint8; not changed.
        kind: One of DEFECTS.
        strength: From 0, hardly visible, to 1, obvious.
        inside: (H, W) bool, True for pixels that count; the defect's centre is such a pixel.

    Returns:
        Image (H, W, 3) uint8 and mask (H, W) bool of the defect.
    """
    height, width = pixels.shape[:2]
    unit = np.float32(UNITS / min(height, width))
    y, x = np.meshgrid(
        (np.arange(height, dtype=np.float32) + 0.5) * unit,
        (np.arange(width, dtype=np.float32) + 0.5) * unit,
        indexing="ij",
    )
    image = pixels.astype(np.float32)
    row, column = _place(rng, image, inside)
    middle = np.array([x[row, column], y[row, column]])
    if kind == "scratch":
        drawn, share = _scratch(rng, image, strength, x, y, middle)
    else:
        least, more = SIZES[kind]
        distance = blob(rng, x, y, least + more * strength, middle)  # (H, W), negative inside
        if kind == "warp":
            drawn, share = _warp(rng, image, strength, distance, float(unit))
        else:
            over, share = _covered(rng, image, kind, strength, distance)
            drawn = mix(image, over, share)
    return np.rint(drawn).clip(0, 255).astype(np.uint8), share > SEEN


def _covered(
    rng: np.random.Generator, image: Array, kind: str, strength: float, distance: Array
) -> tuple[Array, Array]:
    """Return the picture that covers a blob (H, W, 3), and its opacity at each pixel (H, W)."""
    if kind == "paste":
        over = _elsewhere(rng, image) * rng.uniform(1 - 0.25 * strength, 1 + 0.25 * strength)
        return over, cover(distance, 3) * (0.5 + 0.5 * strength)
    if kind == "blend":
        size = max(distance.shape)
        noise = smooth(rng, size, int(rng.integers(6, 24)))[: len(distance), : distance.shape[1]]
        turned = np.rot90(image, 2) if rng.uniform() < 0.5 else image[:, ::-1]
        tint = _tint(rng, image, 0.3)
        spots = rise(-distance / 4) * rise(noise * 2 - 0.2)
        return turned * tint, spots * (0.25 + 0.6 * strength)
    shade = rng.choice([0.55, 1.45]) * _tint(rng, image, 0.1)
    share = rise(-distance / 5 + 0.3) * (0.25 + 0.55 * strength)
    return image * shade + rng.choice([0, 12]), share


def _tint(rng: np.random.Generator, image: Array, most: float) -> Array:
    """Return factors (3,) of the colours, from 1 − most to 1 + most; grey images stay grey."""
    factors = rng.uniform(1 - most, 1 + most, 3).astype(np.float32)
    grey = bool((image[..., 0] == image[..., 1]).all() and (image[..., 1] == image[..., 2]).all())
    return np.full_like(factors, factors[0]) if grey else factors


def _place(rng: np.random.Generator, image: Array, inside: Mask | None) -> tuple[int, int]:
    """Return row and column of a defect's centre, drawn in proportion to the local contrast."""
    grey = image.mean(-1)
    side = min(grey.shape)
    contrast = scipy.ndimage.gaussian_gradient_magnitude(grey, side / 150)
    weights = scipy.ndimage.gaussian_filter(contrast, side / 40).astype(np.float64)
    weights += FLOOR * weights.mean() + 1e-9
    rows, columns = (round(MARGIN * length) for length in grey.shape)
    within = np.zeros(grey.shape, dtype=bool)
    within[rows : grey.shape[0] - rows, columns : grey.shape[1] - columns] = True
    if inside is not None:
        within = within & inside if (within & inside).any() else inside
    weights[~within] = 0
    chosen = rng.choice(weights.size, p=weights.ravel() / weights.sum())
    row, column = np.unravel_index(chosen, weights.shape)
    return int(row), int(column)


def _elsewhere(rng: np.random.Generator, image: Array) -> Array:
    """Return the image shifted cyclically by a tenth of its sides or more, and maybe mirrored."""
    shift = [int(rng.integers(n // 10, n - n // 10)) for n in image.shape[:2]]
    shifted = np.roll(image, shift, (0, 1))
    return shifted[:, ::-1] if rng.uniform() < 0.5 else shifted


def _scratch(
    rng: np.random.Generator, image: Array, strength: float, x: Array, y: Array, middle: Array
) -> tuple[Array, Array]:
    """Draw a line centred on `middle`: image (H, W, 3) and opacity of the line (H, W)."""
    length = rng.uniform(16, 30) + 50 * strength
    distance = stroke(rng, x, y, length, rng.uniform(0.05, 0.5), middle)
    share = cover(distance - 0.5 - 1.2 * strength, 1.6) * (0.3 + 0.6 * strength)
    return mix(image, np.full_like(image, rng.choice([25, 230])), share), share


def _warp(
    rng: np.random.Generator, image: Array, strength: float, distance: Array, unit: float
) -> tuple[Array, Array]:
    """Displace the content of a blob: image (H, W, 3) and share of the displacement (H, W)."""
    share = rise(-distance / 8)
    push = (3 + 8 * strength) / unit  # pixels
    turn = rng.uniform(0, 2 * pi)
    rows, columns = np.indices(distance.shape, dtype=np.float32)
    places = [rows + push * sin(turn) * share, columns + push * cos(turn) * share]
    bands = (image[..., band] for band in range(3))
    warped = [scipy.ndimage.map_coordinates(x, places, order=1, mode="reflect") for x in bands]
    return np.stack(warped, -1), share
