"""Images that a model is to be extended by, compared with those that it holds."""

import math
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from patchcore.data.images import image_size
from patchcore.data.overlaps import Group, Held, complaints, held_copies, tell_unknown
from patchcore.digests import pixels_digest
from patchcore.errors import InputError, few, printable

T = TypeVar("T")


def reject_copies(
    added: Sequence[Path], held: Held, read: Callable[[Path], NDArray[np.uint8]]
) -> set[Path]:
    """Refuse copies of images that a model holds; warn about copies among those to add.

    The model would find its own patches in such a copy, so its score would say nothing of parts to
    come. First the contents of the files are compared: see `held_copies`. Then the pixels, which a
    file of another format or compression may hold as well, as far as the files of the model's
    images are still there.

    Args:
        added: Images to add.
        held: Images that the model holds.
        read: Reader of an image's pixels (H, W, 3).

    Returns:
        Images to add that have the pixels of an earlier one of them.

    Raises:
        InputError: an image is a copy of one that the model holds, or is unreadable.
    """
    _reject_held(held_copies(held, added), "has the contents of")
    known = [("held", path) for path, _ in held if path.is_file()]
    groups = _equal_pictures(known, [("training", path) for path in added], read)
    pairs = [
        (path, group[0][1])
        for group in groups
        if group[0][0] == "held"
        for role, path in group
        if role != "held"
    ]
    _reject_held(pairs, "has the same pixels as")
    tell_unknown(held)
    for text in complaints(groups, 0):
        warnings.warn(printable(f"images: {text}"), stacklevel=3)
    return {path for (_, *others) in groups for _, path in others}


def _reject_held(known: Sequence[tuple[Path, Path]], same: str) -> None:
    """Refuse copies, each given with the image that a model holds."""
    if known:
        (path, other), *rest = sorted(known)
        told = ": leave it out"
        if rest:
            is_or_are = "is a copy" if len(rest) == 1 else "are copies"
            names = few([printable(str(each)) for each, _ in rest], 2)
            told = f", and {names} {is_or_are}, too: leave them out"
        raise InputError(f"{path}: {same} {other}, which is in the model already{told}")


def _equal_pictures(
    held: Group, new: Group, read: Callable[[Path], NDArray[np.uint8]]
) -> list[Group]:
    """Groups of two or more pictures with the same pixels, of which one at least is new.

    Only pictures of equal size are decoded, several at a time.
    """
    sizes = {path: _any_size(path) for _, path in new}
    wanted = set(sizes.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the model's own pictures were told of when it was fitted
        alike = [(role, path) for role, path in held if _if_sound(_any_size, path) in wanted]
        digests = _pixel_digests(alike, lambda path: _if_sound(read, path))
    if alike or len(wanted) < len(sizes):
        digests |= _pixel_digests(new, read)
    groups: dict[str, Group] = {}
    for role, path in (*alike, *new):
        if found := digests.get(path):
            groups.setdefault(found, []).append((role, path))
    return [group for group in groups.values() if len(group) > 1 and group[-1][0] != "held"]


def _any_size(path: Path) -> tuple[int, int]:
    return image_size(path, math.inf)


def _if_sound(read: Callable[[Path], T], path: Path) -> T | None:
    """Return what `read` makes of a picture; None if it cannot be read."""
    try:
        return read(path)
    except InputError:
        return None


def _pixel_digests(
    group: Group, read: Callable[[Path], NDArray[np.uint8] | None]
) -> dict[Path, str]:
    """Digests of pictures, without those that `read` gives no pixels of."""

    def digest(path: Path) -> str:
        pixels = read(path)
        return "" if pixels is None else pixels_digest(pixels)

    with ThreadPoolExecutor() as pool:
        paths = [path for _, path in group]
        found = dict(zip(paths, pool.map(digest, paths), strict=True))
    return {path: each for path, each in found.items() if each}
