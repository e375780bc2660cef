"""Pictures of an inspected image: its map as a file of numbers, and regions drawn on the image."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from patchcore.errors import unreadable
from patchcore.writing import complete, fitting

Pixels = NDArray[np.uint8]
Map = NDArray[np.float32]

SCALE = "patchcore.scale"
"""Key of the text in a map's PNG that says which scores its values stand for."""
CONTOUR = (255, 127, 14)  # orange, as the boundaries in the paper's Figure 1
COOL, WARM = (33, 102, 220), (255, 160, 40)  # ends of its gradient
OPACITY = 0.55  # of the highest score
THINNEST = 300  # px of an image's longer side for each px of the contour's width


class MapFormat(Enum):
    """File of an anomaly map at the image's own size."""

    png = "png"  # 16 bits
    npy = "npy"  # float32, NaN where the model did not look: outside the crop or the region


@dataclass(frozen=True)
class Pictures:
    """Pictures to leave of every image.

    Attributes:
        folder: Made; an image's pictures lie at its path below it: see `picture_path`.
        maps: Format of the maps; None: none are written.
        overlays: Whether images with contours are written.
    """

    folder: Path
    maps: MapFormat | None = None
    overlays: bool = False

    def write_map(self, image: Path, values: Map) -> Path | None:
        """Write the map (H, W) of an image; return its path, or None if none is asked for."""
        if self.maps is None:
            return None
        path = picture_path(self.folder, image, f".map.{self.maps.value}")
        _write(path, map_png(values) if self.maps is MapFormat.png else _npy(values))
        return path

    def write_overlay(self, image: Path, picture: Pixels) -> Path:
        """Write a picture (H, W, 3) of an image; return its path."""
        path = picture_path(self.folder, image, ".overlay.png")
        _write(path, png(picture))
        return path


def picture_path(folder: Path, image: Path, ending: str) -> Path:
    """Path of an image's picture: that of the image, extension included, below `folder`.

    No two images share one, and none lies outside: `..` becomes `__`, and a root becomes `_`.
    Folders that have such names get two more `_`. Names that would be too long are shortened: see
    `patchcore.writing.fitting`.
    """
    parts = ["__" if part == ".." else _apart(part) for part in image.parts]
    if image.anchor:
        parts[0] = image.anchor.strip("\\/:") or "_"
    elif parts[0] == "_":
        parts[0] = "___"
    return folder.joinpath(*parts[:-1], fitting(parts[-1], ending))


def _apart(name: str) -> str:
    """A name of two or more `_` alone, with two more; others as they are."""
    return f"{name}__" if len(name) > 1 and not name.strip("_") else name


def map_png(values: Map) -> bytes:
    """A map (H, W) as a PNG of 16 bits, whose text `SCALE` says how to read it.

    The lowest score is 1 and the highest 65535; 0 is where the model did not look (NaN).
    """
    seen = np.isfinite(values)
    low, high = (float(f(values[seen])) for f in (np.min, np.max)) if seen.any() else (0.0, 0.0)
    step = (high - low) / 65534
    levels = np.zeros(values.shape, np.uint16)
    share = (values[seen].astype(np.float64) - low) / (step or 1)
    levels[seen] = 1 + np.rint(share).astype(np.uint16)
    text = PngInfo()
    words = "score = offset + step * value; value 0: not looked at"
    text.add_text(SCALE, json.dumps({"offset": low - step, "step": step, "formula": words}))
    return png(levels, text)


def read_map(path: Path) -> Map:
    """Read a map (H, W) that `Pictures` wrote in either format.

    Raises:
        InputError: It is another file.
    """
    try:
        if path.suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False), np.float32)
        with Image.open(path, formats=["PNG"]) as file:
            scale = json.loads(file.info[SCALE])
            offset, step = float(scale["offset"]), float(scale["step"])
            levels = np.array(file)
    except Exception as error:  # decoders raise many kinds, all of which mean a bad file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise unreadable(path, f"{path}: is not a map that predict wrote ({reason})") from error
    values = (offset + step * levels.astype(np.float64)).astype(np.float32)
    values[levels == 0] = np.nan
    return values


def png(pixels: NDArray[np.uint8] | NDArray[np.uint16], text: PngInfo | None = None) -> bytes:
    """Pixels (H, W), of 8 or 16 bits, or (H, W, 3) as a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1, pnginfo=text)
    return file.getvalue()


def contour(marked: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Pixels (H, W) of marked regions within `width` px of their boundary.

    The image's own border is none: a region that it cuts off stays open there.
    """
    inner = scipy.ndimage.binary_erosion(marked, iterations=width, border_value=1)
    return np.asarray(marked & ~inner)


def overlay(pixels: Pixels, values: Map, threshold: float | None) -> Pixels:
    """An image (H, W, 3) with its anomalous regions in colour, as in the paper's Figure 1.

    From blue at the threshold to orange at the map's highest score, within an orange contour;
    nominal pixels stay as they are. Without a threshold this is `heat`.

    Args:
        values: Map (H, W); NaN where the model did not look.
        threshold: A pixel is anomalous at or above it.
    """
    if threshold is None:
        return heat(pixels, values)
    marked = np.nan_to_num(values, nan=-np.inf) >= threshold
    picture = np.array(pixels)
    if marked.any():
        top = float(values[marked].max())
        share = (values[marked] - threshold) / max(top - threshold, 1e-12)  # (N,)
        picture[marked] = _mixed(picture[marked], share, OPACITY * (1 + share) / 2)
        width = max(1, round(max(marked.shape) / THINNEST))
        picture[contour(marked, width)] = CONTOUR
    return picture


def heat(pixels: Pixels, values: Map, top: float | None = None) -> Pixels:
    """An image (H, W, 3) under its map (H, W), the higher the more opaque, from blue to orange.

    Args:
        values: NaN where the model did not look.
        top: Score of full orange, if the map has none that is higher.
    """
    picture, seen = np.array(pixels), np.isfinite(values)
    if seen.any():
        found = values[seen]
        high = float(found.max()) if top is None else max(float(found.max()), top)
        low = float(found.min())
        share = (found - low) / max(high - low, 1e-12)
        picture[seen] = _mixed(picture[seen], share, OPACITY * share)
    return picture


def _mixed(pixels: Pixels, share: Map, opacity: NDArray[Any]) -> Pixels:
    """Pixels (N, 3) under colours from cool (share 0) to warm (1)."""
    colours = np.outer(1 - share, COOL) + np.outer(share, WARM)
    kept = pixels * (1 - opacity[:, None])
    return np.asarray(kept + colours * opacity[:, None]).astype(np.uint8)


def beside(picture: Pixels, rows: Sequence[tuple[Pixels, Pixels | None, str]]) -> Pixels:
    """A picture (H, W, 3) with rows of two details and a line of words on its right.

    Args:
        rows: A detail of the picture, what it is compared with, if that is to be had, and words on
            both: 36 characters on a first line, 36 on a second.
    """
    side, gap, words = 96, 6, 30  # px
    panel = 2 * side + 3 * gap
    height = max(picture.shape[0], gap + len(rows) * (side + words + gap))
    found = Image.new("RGB", (picture.shape[1] + panel, height), "white")
    found.paste(Image.fromarray(picture))
    draw = ImageDraw.Draw(found)
    for number, (*details, text) in enumerate(rows):
        top = gap + number * (side + words + gap)
        for place, detail in enumerate(details):
            left = picture.shape[1] + gap + place * (side + gap)
            if detail is not None:
                shown = Image.fromarray(detail).resize((side, side), Image.Resampling.BILINEAR)
                found.paste(shown, (left, top))
        for line, part in enumerate((text[:36], text[36:72])):
            at = (picture.shape[1] + gap, top + side + 2 + 13 * line)
            draw.text(at, part.encode("latin-1", "replace").decode("latin-1"), fill="black")
    return np.array(found)


def _npy(values: Map) -> bytes:
    file = io.BytesIO()
    np.save(file, values.astype(np.float32), allow_pickle=False)
    return file.getvalue()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with complete(path) as file:
        file.write(data)
