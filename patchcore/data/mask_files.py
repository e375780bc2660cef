"""Telling masks from images, by name, place and look."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from patchcore.data.images import read_image, read_truth
from patchcore.data.sample import Masks
from patchcore.errors import InputError

ENDINGS = ("_mask", "-mask", "_masks", "_gt", "-gt", "_groundtruth", "_ground_truth")
FOLDERS = frozenset({"gt", "groundtruth", "ground_truth", "mask", "masks"})
NOMINAL = frozenset({"good", "ok", "normal", "nominal", "non_defective"})
"""Names of folders of nominal images in one data set or another, in lower case."""
PROBED = 3  # files that are opened to see what a folder holds


def bare(stem: str) -> str:
    """Name of the image whose mask is called `stem`: that without `_mask` or the like."""
    lower = stem.lower()
    for ending in ENDINGS:
        if lower.endswith(ending) and len(stem) > len(ending):
            return stem[: -len(ending)]
    return stem


def masks_beside(images: Iterable[Path]) -> dict[Path, list[Path]]:
    """Files named like masks of others in their folder: {7_mask.png: [7.png, …]}."""
    by_name: dict[Path, list[Path]] = {}
    paths = list(images)
    for path in paths:
        by_name.setdefault(path.with_suffix(""), []).append(path)
    found = {}
    for path in paths:
        name = bare(path.stem)
        if name != path.stem and (owners := by_name.get(path.parent / name)):
            found[path] = owners
    return found


def reject_masks(images: Sequence[Path], folder: Path, advice: str) -> None:
    """Refuse what is a mask among images that were found in or below `folder`.

    A mask is called `7_mask.png` or the like beside `7.png`; or is black and white, beside an image
    of its name in another format or in a subfolder called `masks` or the like; or lies in such a
    subfolder and has the name of an image beside that.

    Args:
        advice: What to do about it, for the message.

    Raises:
        InputError: there is one; it is named. Or an image that must be looked at is damaged.
    """
    reason = "is a mask by its name"
    found = min(masks_beside(images), default=None)
    if found is None:
        reason = "looks like a mask"
        found = _mask_among_twins(images) or _mask_in_subfolder(images, folder)
    if found is not None:
        raise InputError(f"{found}: {reason}, and lies among images; {advice}")


def marks(mask: Path | Masks) -> bool:
    """Whether a mask marks anything; decoded once a process, and again if it changes."""
    paths = mask.paths if isinstance(mask, Masks) else (mask,)
    try:
        status = [path.stat() for path in paths]
    except OSError:
        return bool(read_truth(mask).any())  # which tells what is wrong
    return _marks(mask, *((s.st_size, s.st_mtime_ns, s.st_ino) for s in status))


@lru_cache(maxsize=2**13)
def _marks(mask: Path | Masks, *signature: tuple[int, int, int]) -> bool:
    return bool(read_truth(mask).any())


def _mask_among_twins(images: Sequence[Path]) -> Path | None:
    """One of two files of one name, such as 7.jpg and 7.png, that is black and white."""
    by_name: dict[Path, list[Path]] = {}
    for path in images:
        by_name.setdefault(path.with_suffix(""), []).append(path)
    twins = [paths for paths in by_name.values() if len(paths) > 1]
    for paths in twins[:PROBED]:
        looks = [_black_and_white(path) for path in paths]
        if any(looks) and not all(looks):
            return paths[looks.index(True)]
    return None


def _mask_in_subfolder(images: Sequence[Path], folder: Path) -> Path | None:
    names = {path.relative_to(folder).with_suffix("") for path in images}
    inside: dict[tuple[str, ...], list[tuple[Path, Path]]] = {}  # masks and whose they would be
    for path in images:
        *parents, _ = path.relative_to(folder).parts
        depth = next((i for i, name in enumerate(parents, 1) if name.lower() in FOLDERS), None)
        if depth is not None:
            rest = [name for name in parents if name.lower() not in FOLDERS]
            owner = Path(*rest, bare(path.stem))
            inside.setdefault(tuple(parents[:depth]), []).append((path, owner))
    for found in inside.values():
        if all(owner in names for _, owner in found):
            return found[0][0]
        if all(_black_and_white(path) for path, _ in found[:PROBED]):
            return found[0][0]
    return None


def _black_and_white(path: Path) -> bool:
    """Whether hardly a pixel is neither; coding may blur the edges between them."""
    pixels = read_image(path)
    near = (pixels < 16) | (pixels > 239)
    return bool(near.all(axis=-1).mean() > 0.95) and bool(np.ptp(pixels, axis=-1).max() < 64)
