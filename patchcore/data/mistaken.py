"""Files that are taken for nominal images by mistake: masks among images, and images of defects."""

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from patchcore.data.files import composed
from patchcore.data.images import bits_in_use, read_image
from patchcore.data.marks import LEVELS
from patchcore.errors import InputError

_MASK = "masks?|ground[_-]?truth"
_OTHERS = "gt|labels?|seg|segmentations?|annotations?"  # which products may be called, too
_SURE = re.compile(rf"(?is)(.+)[._-](?:{_MASK}|gt)|(?:{_MASK})[._-](.+)")
_LIKELY = re.compile(rf"(?is)(.+)[._-](?:{_OTHERS})|(?:{_OTHERS})[._-](.+)")
"""Names of masks; the group is the name of the image."""
FOLDERS = frozenset(
    {
        *("annotation", "annotations", "gt", "ground-truth", "ground_truth", "groundtruth"),
        *("labels", "mask", "masks", "segmentation", "segmentations"),
    }
)
NOMINAL = frozenset({"good", "ok", "normal", "nominal", "non_defective"})
"""Names that data sets give to folders of nominal images, in lower case."""
PROBED = 3  # most files that are opened to see whether a folder holds masks


def bare(stem: str) -> str:
    """Return the name of a mask's image: `stem` without an ending such as `_mask`, or `mask_`.

    >>> bare("7_label"), bare("mask_7"), bare("label_7_mask")
    ('7', '7', 'label_7')
    """
    found = _SURE.fullmatch(stem) or _LIKELY.fullmatch(stem)
    return found[1] or found[2] if found else stem


def masks_beside(images: Iterable[Path]) -> dict[Path, list[Path]]:
    """Return files named like masks of others in their folder, {7_mask.png: [7.png, …]}."""
    by_name: dict[Path, list[Path]] = {}
    paths = list(images)
    named = [(path, name) for path in paths if (name := bare(path.stem)) != path.stem]
    for path in paths if named else ():
        by_name.setdefault(composed(path.parent / path.stem), []).append(path)
    return {
        path: owners
        for path, name in named
        if (owners := by_name.get(composed(path.parent / name)))
    }


def masks_by_name(images: Sequence[Path]) -> list[Path]:
    """Return the images that are masks by their names, sorted.

    They are named like `7_mask.png`, or like `7_label.png` beside `7.png`, or lie in a folder such
    as `ground_truth`. Where all images lie in such folders, the names of the folders say nothing
    unless the first of the images are black and white; no other file is opened.
    """
    named = [path for path in images if _SURE.fullmatch(path.stem)]
    inside = [path for path in images if _in_mask_folder(path)]
    beside = masks_beside(images)
    if len(inside) == len(images) and not all(map(_looks_like_mask, images[:PROBED])):
        inside = []
    return sorted({*named, *beside, *inside})


def reject_masks(images: Sequence[Path], folder: Path, advice: str) -> None:
    """Refuse masks among the images that were found in or below `folder`.

    A file counts as a mask if

    - it is named like one, such as `7_mask.png` beside `7.png`, or
    - it is named like `7_label.png` beside `7.png`, as images may be, too; and the first of such
      files have few colours, or
    - it is black and white, and beside an image of the same name in another format, or
    - it is in a subfolder such as `masks`, whose files all have images of their names beside that
      subfolder, or the first of whose files are black and white, or
    - it is named like a mask, or in a folder such as `masks`, without any image beside it; and the
      first of such files are black and white.

    Args:
        images: Image files.
        folder: Folder that was searched for them.
        advice: Remedy, for the message.

    Raises:
        InputError: there is a mask, which the message names; or an image that had to be opened is
            damaged.
    """
    reason = "is a mask by its name"
    beside = sorted(masks_beside(images))
    found = next((path for path in beside if _SURE.fullmatch(path.stem)), None)
    if found is None:
        reason = "looks like a mask"
        if beside and all(_few_colours(path) for path in beside[:PROBED]):
            found = beside[0]
        found = found or _mask_among_twins(images) or _mask_in_subfolder(images, folder)
    if found is None and (found := _mask_alone(images)) is not None:
        raise InputError(f"{found}: looks like a mask by its name and its pixels; {advice}")
    if found is not None:
        raise InputError(f"{found}: {reason}, and lies among images; {advice}")


def reject_defects(images: Sequence[Path], folder: Path, advice: str) -> None:
    """Refuse nominal images of which some are in `good` and others in a folder beside it.

    Images that are in a folder such as `good` themselves, at any depth, are never refused.

    Args:
        images: Image files.
        folder: Folder that was searched for them.
        advice: Remedy, for the message.

    Raises:
        InputError: there is such a folder, as in the `test` folder of a data set.
    """
    good: dict[Path, Path] = {}
    others: set[Path] = set()
    for path in images:
        places = _folders_between(path, folder)
        nominal = {place.parent: place for place in places if place.name.casefold() in NOMINAL}
        good |= nominal
        others.update(places if not nominal else ())
    for place in sorted(others, key=lambda path: (-len(path.parts), path)):  # the innermost first
        name = place.name.casefold()
        if (beside := good.get(place.parent)) and not name.startswith((*NOMINAL,)):
            raise InputError(
                f"{place}: lies beside {beside.name}, so its images may be anomalous; {advice}"
            )


def _folders_between(path: Path, folder: Path) -> list[Path]:
    """Folders of a file below `folder`, from the inside out."""
    return [place for place in path.parents if folder in place.parents]


def _mask_among_twins(images: Sequence[Path]) -> Path | None:
    """Find a black-and-white file beside one of its name that is not, such as 7.png and 7.jpg."""
    by_name: dict[Path, list[Path]] = {}
    for path in images:
        by_name.setdefault(composed(path.with_suffix("")), []).append(path)
    twins = [paths for paths in by_name.values() if len(paths) > 1]
    for paths in twins[:PROBED]:
        looks = [_black_and_white(path) for path in paths]
        if any(looks) and not all(looks):
            return paths[looks.index(True)]
    return None


def _mask_in_subfolder(images: Sequence[Path], folder: Path) -> Path | None:
    inside: dict[tuple[str, ...], list[tuple[Path, set[Path]]]] = {}  # files, and images if masks
    for path in images:
        if path.parent == folder:
            continue
        *parents, _ = path.relative_to(folder).parts
        depth = next((i for i, name in enumerate(parents, 1) if name.lower() in FOLDERS), None)
        if depth is not None:
            rest = [name for name in parents if name.lower() not in FOLDERS]
            owners = {composed(Path(*rest, name)) for name in (path.stem, bare(path.stem))}
            inside.setdefault(tuple(parents[:depth]), []).append((path, owners))
    names = {composed(path.relative_to(folder).with_suffix("")) for path in images if inside}
    for found in inside.values():
        if all(owners & names for _, owners in found):
            return found[0][0]
        if all(_black_and_white(path) for path, _ in found[:PROBED]):
            return found[0][0]
    return None


def _mask_alone(images: Sequence[Path]) -> Path | None:
    found = [path for path in images if bare(path.stem) != path.stem or _in_mask_folder(path)]
    if found and all(_black_and_white(path) for path in found[:PROBED]):
        return found[0]
    return None


def _in_mask_folder(path: Path) -> bool:
    return not FOLDERS.isdisjoint(map(str.lower, path.parent.parts))


def _few_colours(path: Path) -> bool:
    """Whether pixels are black and white, or have few colours, as numbers of defects have."""
    pixels = _pixels(path)
    colours = pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)  # (H, W)
    return len(np.unique(colours)) <= LEVELS or _black_and_white(path)


def _pixels(path: Path) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) of an image.

    The image's depth and the limit of its size are settings of a run, which are not known here.
    """
    return read_image(path, bits_in_use(path, math.inf), math.inf)


def _looks_like_mask(path: Path) -> bool:
    """Whether a file can be read and is black and white."""
    try:
        return _black_and_white(path)
    except InputError:
        return False


def _black_and_white(path: Path) -> bool:
    """Whether nearly all pixels are black or white; compression may blur the edges."""
    pixels = _pixels(path)
    near = (pixels < 16) | (pixels > 239)
    return bool(near.all(axis=-1).mean() > 0.95) and bool(np.ptp(pixels, axis=-1).max() < 64)
