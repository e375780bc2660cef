"""Rule for the pixels that a ground-truth mask marks, in spite of noise, soft edges and numbers."""

from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from patchcore.errors import InputError

REMEDY = "save masks with 0 for nominal and 255 for anomalous pixels"
FLAT = 0.8  # least share of equal neighbours where grey pixels form areas of one level
LEVELS = 32  # most levels (or colours) of a mask that numbers kinds of defects
MARGIN = 16 / 255  # values this close to black or white may be noise
AREA = 5  # side of a square, pixels; grey that fills such a square is no edge


def marked_pixels(values: NDArray[Any], name: str, lossy: bool = False) -> NDArray[np.bool_]:
    """Return the pixels that a mask marks, (H, W) bool.

    Black (0) is the background. The brightness of a pixel is its largest channel. White is the top
    of the smallest usual range that holds all values: 1 (floating-point masks only), 255 or 65535;
    above these, it is the largest value of the mask.

    - If every pixel is black or brighter than half of white, the latter are marked.
    - If the pixels form areas of few levels or colours, such as 0, 1, 2, 3 or 0, 100, 255, every
      pixel that is not black is marked. Areas are recognised by equal neighbours.
    - Otherwise greys count as soft edges, which come from compression or scaling, and pixels
      brighter than half of white are marked.

    Args:
        values: (H, W) or (H, W, channels), bool, integer or floating.
        name: Name of the file, for messages.
        lossy: Whether the file has a lossy compression. Values near black are then noise, never
            numbers of defects, even where they form stripes along straight edges.

    Raises:
        InputError: values are negative or not finite; no pixel is black, though not all are white;
            greys are neither clean levels nor edges between white and black; or some values are
            nearly black and others nearly white, as after an earlier lossy compression.
    """
    if values.dtype == np.bool_:
        return np.asarray(values if values.ndim == 2 else values.any(axis=-1))
    _check_finite(values, name)
    if values.min() < 0:
        raise InputError(f"{name}: this mask holds negative values; {REMEDY}")
    bright = values if values.ndim == 2 else values.max(axis=-1)  # (H, W)
    coloured = bright > 0
    if not coloured.any():
        return coloured
    white = _white(bright)
    if lossy:
        coloured = bright >= MARGIN * white
        if not coloured.any():
            raise _nearly_black(name)
        bright = np.where(coloured, bright, 0)
        values = bright if values.ndim == 2 else np.where(coloured[..., None], values, 0)
    marked = bright > white / 2
    if not np.array_equal(marked, coloured):
        box = _box(coloured)
        if _clean(values[box], marked[box]):
            if _is_noisy(bright, white):
                raise _nearly_black(name)
            marked = coloured
        elif not marked.any() or _grey_area(bright[box], white):
            raise InputError(
                f"{name}: this mask has areas of blurred grey, which may be marked or not; {REMEDY}"
            )
        elif (level := _enclosed(bright[box], marked[box])) is not None:
            raise InputError(
                f"{name}: this mask has areas of level {level:g} inside brighter ones, which may "
                f"be marked or not; {REMEDY}"
            )
    if marked.all() and values.min() < (1 - MARGIN) * white:
        raise InputError(
            f"{name}: no pixel of this mask is black, so its background is unknown; {REMEDY}"
        )
    return marked


def opaque_marks(pixels: NDArray[Any], name: str, lossy: bool = False) -> NDArray[np.bool_]:
    """Return the pixels that a mask with alpha marks; `pixels` are (H, W, 4), of any depth.

    Transparent pixels are background. Black beside transparent pixels is refused: it may be drawn
    on a transparent layer, or be a background with transparent corners.
    """
    hidden, alpha = pixels[..., :3], pixels[..., 3]
    if not alpha.any() and np.ptp(hidden, axis=(0, 1)).any():
        raise InputError(f"{name}: every pixel of this mask is transparent; save it without alpha")
    full = np.iinfo(pixels.dtype).max
    products = hidden.astype(np.uint32) * alpha[..., None]  # of 16 bits at most
    colours = ((products + full // 2) // full).astype(pixels.dtype)  # over black
    black = ~colours.any(axis=-1)  # (H, W)
    faint = black.all() and alpha.min() < alpha.max()
    if faint or (not alpha.all() and (black & (alpha == full)).any()):
        raise InputError(
            f"{name}: black pixels of this mask are opaque, others transparent, so it is not clear "
            "which are the background; save it without transparency, white on black"
        )
    return marked_pixels(colours, name, lossy)


def marked_values(values: NDArray[Any], name: str) -> NDArray[np.bool_]:
    """Return which values of an array of masks or labels are marked: those other than 0.

    Args:
        values: Boolean, integer or floating, of any shape.
        name: Name of the file, for messages.

    Raises:
        InputError: Some are NaN or infinite.
    """
    _check_finite(values, name)
    return np.asarray(values != 0)


def _check_finite(values: NDArray[Any], name: str) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError(f"{name}: this mask holds NaN or infinite values; {REMEDY}")


def _white(bright: NDArray[Any]) -> float:
    top = float(bright.max())
    ranges = (1.0, 255.0, 65535.0) if bright.dtype.kind == "f" else (255.0, 65535.0)
    return next((white for white in ranges if top <= white), top)


def _nearly_black(name: str) -> InputError:
    return InputError(
        f"{name}: this mask holds values that are nearly black, which may be numbers of kinds or "
        f"noise that a compression has left; {REMEDY}"
    )


def _is_noisy(bright: NDArray[Any], white: float) -> bool:
    """Whether some values are nearly black and others nearly white, as after lossy compression."""
    low = (bright > 0) & (bright < MARGIN * white)
    high = (bright > (1 - MARGIN) * white) & (bright < white)
    return bool(low.any() and high.any())


def _box(coloured: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Rows and columns from the first to the last with a coloured pixel."""
    spans = []
    for axis in (1, 0):
        found = np.flatnonzero(coloured.any(axis=axis))
        spans.append(slice(int(found[0]), int(found[-1]) + 1))
    return spans[0], spans[1]


def _clean(values: NDArray[Any], marked: NDArray[np.bool_]) -> bool:
    """Whether grey pixels form areas of few levels: their neighbours are black or equal."""
    if values.ndim == 2:
        codes = np.unique(values, return_inverse=True)[1].reshape(values.shape)  # (H, W)
    else:
        flat = values.reshape(-1, values.shape[-1])
        codes = np.unique(flat, axis=0, return_inverse=True)[1].reshape(values.shape[:2])
    coloured = (values if values.ndim == 2 else values.max(axis=-1)) > 0
    grey = coloured & ~marked
    if len(np.unique(codes[grey])) > LEVELS:
        return False
    pairs = equal = 0
    for one, other in (
        ((slice(1, None), slice(None)), (slice(None, -1), slice(None))),
        ((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
    ):
        both = coloured[one] & coloured[other] & (grey[one] | grey[other])
        pairs += int(both.sum())
        equal += int((both & (codes[one] == codes[other])).sum())
    return equal >= FLAT * pairs


def _grey_area(bright: NDArray[Any], white: float) -> bool:
    """Whether grey, neither nearly black nor nearly white, fills a square of `AREA` pixels."""
    grey = (bright >= MARGIN * white) & (bright <= (1 - MARGIN) * white)
    return bool(scipy.ndimage.binary_erosion(grey, np.ones((AREA, AREA), dtype=bool)).any())


def _enclosed(bright: NDArray[Any], marked: NDArray[np.bool_]) -> float | None:
    """Level of an area of equal grey pixels that touches no black one, so that it is no edge.

    Such areas have at least `AREA` pixels; smaller ones may be holes of a mask that was scaled.
    """
    around = np.pad(bright, 1)  # what lies outside is black
    corners = np.ones((3, 3), dtype=bool)
    areas, number = scipy.ndimage.label((around > 0) & ~np.pad(marked, 1), corners)
    if not number:
        return None
    every = np.arange(1, number + 1)
    beside = scipy.ndimage.binary_dilation(around == 0, corners)
    low, high, edge = (
        np.asarray(found(each, areas, every))
        for found, each in (
            (scipy.ndimage.minimum, around),
            (scipy.ndimage.maximum, around),
            (scipy.ndimage.maximum, beside),
        )
    )
    sizes = np.bincount(areas.ravel(), minlength=number + 1)[1:]
    inner = np.flatnonzero((low == high) & (edge == 0) & (sizes >= AREA))
    return float(low[inner[0]]) if len(inner) else None
