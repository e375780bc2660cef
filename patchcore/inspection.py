"""Inspection of a stream of images: from paths to scores, verdicts and regions, in their order.

    paths → decode (threads) → batches → score → regions, pictures (threads) → results

Every stage is at most a fixed number of images ahead of the next one, so memory use does not grow
with the number of images.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.ndimage
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchcore.ahead import Pause, ahead
from patchcore.arguments import stream_of
from patchcore.broken import Broken as Broken
from patchcore.data.images import read_image
from patchcore.errors import InputError, printable
from patchcore.explanation import Nearest, cell_at, check_explains, nearest_nominal, own_crop
from patchcore.machine import lacks_memory
from patchcore.methods.counted import judged_pixels
from patchcore.overlays import Map, Pictures, Pixels, beside, overlay

TOUCHING = np.ones((3, 3), bool)  # pixels of a region touch at sides or corners
BATCH = 16  # images
LARGEST_BATCH = 1 << 24  # pixels of a batch, unless one image alone has more
MOST_WORKERS = 16


@dataclass(frozen=True)
class Region:
    """A connected part of an image whose map is at or above the pixel threshold.

    Attributes:
        box: Left, top, right and bottom in px of the image; right and bottom are just outside.
        area: Pixels.
        peak: Highest value of the map.
        at: x and y of the peak, in px of the image.
        nearest: Nominal patch that is nearest to the patch at the peak, if it was requested and is
            known.
    """

    box: tuple[int, int, int, int]
    area: int
    peak: float
    at: tuple[int, int]
    nearest: Nearest | None = None

    def values(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        found = {
            "box": list(self.box),
            "area": self.area,
            "peak": self.peak,
            "at": list(self.at),
        }
        return found if self.nearest is None else {**found, "nearest": self.nearest.values()}


@dataclass(frozen=True)
class Inspection:
    """Result of one image.

    Attributes:
        path: As it was given.
        size: Height and width of the image, px.
        score: Raw anomaly score of the image.
        map: (h, w) float32, in the size of the network's input, 0 where the model's region leaves
            pixels out; `Inspector.place` maps it to the pixels of the image.
        p_value: Share of nominal images that score as high, by the model's decision; None without.
        anomalous: Verdict; None where neither the model nor the caller has a threshold.
        regions: Anomalous regions, from the highest peak down; None without a pixel threshold.
        files: Pictures that were written, by kind: `map`, `overlay`.
        counted: (h, w) pixels of the map that the pixel threshold judges; None: all.
    """

    path: Path
    size: tuple[int, int]
    score: float
    map: Map = field(repr=False, compare=False)
    p_value: float | None = None
    anomalous: bool | None = None
    regions: list[Region] | None = None
    files: dict[str, Path] = field(default_factory=dict)
    counted: NDArray[np.bool_] | None = field(default=None, repr=False, compare=False)

    def values(self) -> dict[str, Any]:
        """Plain values for JSON of everything except the map; unknown values are null."""
        verdict = None
        if self.anomalous is not None:
            verdict = "anomalous" if self.anomalous else "nominal"
        regions = self.regions
        return {
            "path": str(self.path),
            "width": self.size[1],
            "height": self.size[0],
            "score": self.score,
            "p_value": self.p_value,
            "verdict": verdict,
            "regions": None if regions is None else [region.values() for region in regions],
            **{kind: str(path) for kind, path in self.files.items()},
        }


@dataclass(frozen=True)
class Thresholds:
    """Lowest scores that count as anomalous, of an image and of a pixel; None: not known."""

    image: float | None = None
    pixel: float | None = None

    @classmethod
    def of(cls, decision: Any) -> "Thresholds":
        """The thresholds of a `patchcore.decision.Decision`; none of None."""
        if decision is None:
            return cls()
        return cls(float(decision.threshold), float(decision.pixel_threshold))

    def over(self, other: "Thresholds") -> "Thresholds":
        """Return these where they are not None, and elsewhere those of `other`."""
        return Thresholds(
            other.image if self.image is None else self.image,
            other.pixel if self.pixel is None else self.pixel,
        )


def find_regions(values: Map, threshold: float) -> list[Region]:
    """Return the regions of a map (H, W) at or above a threshold, from the highest peak down.

    NaN marks pixels outside the view or the model's region; they belong to no region.
    """
    with np.errstate(invalid="ignore"):
        marked = values >= threshold
    labels, _ = scipy.ndimage.label(marked, TOUCHING)
    regions = []
    for number, (rows, columns) in enumerate(scipy.ndimage.find_objects(labels), 1):
        own = labels[rows, columns] == number
        inside = np.where(own, values[rows, columns], -np.inf)
        y, x = np.unravel_index(int(inside.argmax()), inside.shape)
        box = (columns.start, rows.start, columns.stop, rows.stop)
        at = (columns.start + int(x), rows.start + int(y))
        regions.append(Region(box, int(own.sum()), float(inside[y, x]), at))
    return sorted(regions, key=lambda region: (-region.peak, region.box))


def predict(
    inspector: Any,
    paths: Iterable[str | Path | Pause],
    *,
    thresholds: Thresholds | None = None,
    pictures: Pictures | None = None,
    explain: bool = False,
    batch: int = BATCH,
    workers: int | None = None,
    stop: bool = False,
) -> Iterator[Inspection | Broken]:
    """Inspect images, one result a path, in their order, as they come.

    Args:
        inspector: An `Inspector`, or an exported model with the same methods.
        paths: Image files, which may come one by one without end. At a `Pause` among them, the
            results of all before it are yielded, even if they fill no batch.
        thresholds: Replace those of the model's decision, unless they are None.
        pictures: Pictures to write of every image.
        explain: Whether each region gets the nominal patch that is nearest to its peak.
        batch: Images that are scored together; those of a batch have one size.
        workers: Threads that decode and write; by default one for each processor, at most 16.
        stop: Whether an image that cannot be inspected is an error; else it is yielded as `Broken`,
            which has a path and a reason, but no score.

    Raises:
        InputError: The first image that cannot be inspected, if `stop`; a number that is too small;
            the model does not know its memory's images, which `explain` needs.
        OSError: A picture cannot be written.
    """
    if batch < 1:
        raise InputError(f"batch must be at least 1 image, got {batch}")
    if workers is None:
        workers = min(MOST_WORKERS, os.cpu_count() or 1)
    if workers < 1:
        raise InputError(f"workers must be at least 1 thread, got {workers}")
    if explain:
        check_explains(inspector)
    paths = stream_of(inspector, paths)
    used = (thresholds or Thresholds()).over(Thresholds.of(inspector.decision))
    return _predict(inspector, paths, _Wanted(used, pictures, explain), batch, workers, stop)


def inspect_image(
    inspector: Any,
    path: Path,
    thresholds: Thresholds,
    explain: bool = False,
    limit: float | None = None,
) -> Inspection | Broken:
    """Inspect one image with these thresholds alone; the result is the same as in `predict`.

    Args:
        limit: Most megapixels that are decoded; by default those of the model's images.
    """
    item = _decode(inspector, path, limit)
    if isinstance(item, Broken):
        return item
    (scored,) = _batch(inspector, [item])
    return _conclude(inspector, _Wanted(thresholds, None, explain), scored)


def _predict(
    inspector: Any,
    paths: Iterable[Path | Pause],
    wanted: "_Wanted",
    batch: int,
    workers: int,
    stop: bool,
) -> Iterator[Inspection | Broken]:
    """A generator of its own, so that `predict` refuses bad arguments when it is called."""
    pool = ThreadPoolExecutor(workers, "inspection")
    try:
        decoded = ahead(pool, partial(_decode, inspector), paths, batch + workers)
        scored = _scored(inspector, decoded, batch)
        conclude = partial(_conclude, inspector, wanted)
        for result in ahead(pool, conclude, scored, 2 * workers):
            if stop and isinstance(result, Broken):
                raise InputError(result.reason)
            if not isinstance(result, Pause):
                yield result
    finally:
        pool.shutdown(cancel_futures=True)


class _Wanted(NamedTuple):
    thresholds: Thresholds
    pictures: Pictures | None
    explain: bool


class _Decoded(NamedTuple):
    path: Path
    size: tuple[int, int]
    inputs: tuple[Pixels, ...]  # (h, w, 3), one for all members of an ensemble or one for each


class _Scored(NamedTuple):
    path: Path
    size: tuple[int, int]
    score: Tensor  # ()
    map: Map  # (h, w)
    patch_score: Tensor | None  # (rows, columns); None of an exported model
    nearest: Tensor | None  # (rows, columns)


def _decode(inspector: Any, path: Path, limit: float | None = None) -> _Decoded | Broken:
    try:
        pixels = read_pixels(inspector, path, limit)
        prepared = inspector.prepare(pixels)
    except InputError as error:
        return _broken(path, error)
    except MemoryError:
        return _broken(path, _too_large(pixels.shape))
    inputs = prepared if isinstance(prepared, tuple) else (prepared,)
    return _Decoded(path, pixels.shape[:2], inputs)


def read_pixels(inspector: Any, path: Path, limit: float | None = None) -> Pixels:
    """Decode an image as the training images were, (H, W, 3). Raises InputError."""
    image = inspector.image
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would never end
        kind = "a folder: name its images" if os.path.isdir(path) else "no image file"
        raise InputError(f"{path}: is {kind}")
    return read_image(path, image.bits, image.limit if limit is None else limit)


def _broken(path: Path, error: InputError) -> Broken:
    name, reason = printable(str(path)), str(error)
    return Broken(path, reason if reason.startswith(name) else f"{name}: {reason}")


def _too_large(shape: Sequence[int]) -> InputError:
    """Error of an image (height, width, …) that needs more memory than there is."""
    return InputError(
        f"there is too little memory to inspect {shape[1]}×{shape[0]} pixels, as the network gets "
        "it: end other programs, or cut the image into parts"
    )


def _scored(
    inspector: Any, items: Iterable[_Decoded | Broken | Pause], batch: int
) -> Iterator[_Scored | Broken | Pause]:
    """Score images in batches of one size; those that are broken keep their place."""
    waiting: list[_Decoded | Broken] = []
    shapes: list[tuple[int, ...]] = []  # of the inputs of those that wait
    full = batch
    for item in items:
        if isinstance(item, Pause):
            yield from _scores(inspector, waiting)
            yield item
            waiting, shapes = [], []
            continue
        if isinstance(item, _Decoded):
            own = [pixels.shape for pixels in item.inputs]
            if shapes and (own != shapes or _count(waiting) >= full):
                yield from _scores(inspector, waiting)
                waiting = []
            shapes = own
            largest = max(height * width for height, width, _ in own)
            full = max(1, min(batch, LARGEST_BATCH // largest))
        waiting.append(item)
        if _count(waiting) >= full or len(waiting) >= 4 * batch:  # broken ones do not pile up
            yield from _scores(inspector, waiting)
            waiting, shapes = [], []
    yield from _scores(inspector, waiting)


def _count(items: list[_Decoded | Broken]) -> int:
    return sum(isinstance(item, _Decoded) for item in items)


def _scores(inspector: Any, items: list[_Decoded | Broken]) -> Iterator[_Scored | Broken]:
    whole = [item for item in items if isinstance(item, _Decoded)]
    results = iter(_batch(inspector, whole))
    for item in items:
        yield item if isinstance(item, Broken) else next(results)


def _batch(inspector: Any, items: list[_Decoded]) -> list[_Scored | Broken]:
    """Score images of one size; if that fails, one by one, to find those that cannot be scored."""
    if not items:
        return []
    each = zip(*(item.inputs for item in items), strict=True)
    try:
        # One image alone, which may be large, is not copied.
        batches = [torch.from_numpy(np.stack(x) if len(x) > 1 else x[0][None]) for x in each]
        found = inspector.score(batches[0] if len(batches) == 1 else batches)
    except Exception as error:
        if lacks_memory(error):
            error = _too_large(items[0].inputs[0].shape)
        if not isinstance(error, InputError):
            raise
        if len(items) == 1:
            return [_broken(items[0].path, error)]
        return [result for item in items for result in _batch(inspector, [item])]
    scores, maps = found.score.float().cpu(), found.map.float().cpu().numpy()
    grids, rows = (getattr(found, name, [None] * len(items)) for name in ("patch_score", "nearest"))
    results: list[_Scored | Broken] = []
    for item, score, values, grid, row in zip(items, scores, maps, grids, rows, strict=True):
        if bool(score.isfinite()) and np.isfinite(values).all():
            own = values.copy() if len(items) > 1 else values
            results.append(_Scored(item.path, item.size, score, own, grid, row))
        else:
            name = printable(str(item.path))
            results.append(Broken(item.path, f"{name}: its score or map is NaN or infinite"))
    return results


def _conclude(inspector: Any, wanted: _Wanted, item: _Scored | Broken) -> Inspection | Broken:
    """Verdict, regions and pictures of a scored image."""
    if isinstance(item, Broken):
        return item
    thresholds, pictures, explain = wanted
    score, decision = float(item.score), inspector.decision
    result = Inspection(
        item.path,
        item.size,
        score,
        item.map,
        None if decision is None else float(decision.p_value(item.score)),
        None if thresholds.image is None else score >= thresholds.image,
    )
    above = False
    if thresholds.pixel is not None:
        counted = judged_pixels(item.map, item.patch_score, thresholds.pixel)
        result = replace(result, regions=[], counted=counted)
        # Placing is linear interpolation, which goes beyond no value of the map.
        values = item.map if counted is None else item.map[counted]
        above = values.max(initial=-np.inf) >= thresholds.pixel
    if not above and pictures is None:
        return result
    placed: NDArray[np.float32] = inspector.place(item.map, item.size)
    if above:
        assert thresholds.pixel is not None
        regions = find_regions(judged(inspector, result, placed), thresholds.pixel)
        if explain:
            regions = [_explained(inspector, item, region) for region in regions]
        result = replace(result, regions=regions)
    if pictures is None:
        return result
    try:
        files = _draw(inspector, wanted, result, placed)
    except InputError as error:
        return _broken(item.path, error)
    return replace(result, files=files)


def judged(inspector: Any, result: Inspection, placed: Map) -> Map:
    """Return a map (H, W) that was placed, with NaN where the pixel threshold judges no pixel."""
    if result.counted is None:
        return placed
    return np.where(inspector.place(result.counted, result.size) >= 0.5, placed, np.nan)


def _explained(inspector: Any, item: _Scored, region: Region) -> Region:
    """The region with the nominal patch nearest to that at its peak."""
    assert item.patch_score is not None and item.nearest is not None
    rows, columns = item.nearest.shape
    cell = cell_at(region.at, item.size, inspector.image, (rows, columns))
    found = nearest_nominal(inspector, cell, item.patch_score, item.nearest)
    return replace(region, nearest=found)


def _draw(
    inspector: Any, wanted: _Wanted, result: Inspection, placed: NDArray[np.float32]
) -> dict[str, Path]:
    """Write the pictures of an image; return their paths by kind."""
    pictures, files = wanted.pictures, {}
    assert pictures is not None
    if (path := pictures.write_map(result.path, placed)) is not None:
        files["map"] = path
    if pictures.overlays:
        pixels = read_pixels(inspector, result.path)  # again: to keep it would take much memory
        own = judged(inspector, result, placed)
        picture = overlay(pixels, own, wanted.thresholds.pixel)
        if wanted.explain and result.regions:
            picture = beside(picture, compared(inspector, pixels, result.regions))
        files["overlay"] = pictures.write_overlay(result.path, picture)
    return files


def compared(
    inspector: Any, pixels: Pixels, regions: Sequence[Region], most: int = 4
) -> list[tuple[Pixels, Pixels | None, str]]:
    """Rows for `overlays.beside`: an image's first regions beside their nearest nominal patches."""
    rows = []
    for region in regions[:most]:
        own = own_crop(pixels, region.at, inspector.image)
        near = region.nearest
        text = f"peak {region.peak:.4g} at {region.at[0]}, {region.at[1]}"
        if near is not None:
            name = printable(Path(near.image).name)[-24:]
            text = f"{text:36}{name}: {near.cell[0]}, {near.cell[1]}"
        rows.append((own, None if near is None else near.crop, text))
    return rows
