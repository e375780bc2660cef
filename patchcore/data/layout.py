"""Reading of the folder layout that most data sets share, and distinction of masks from images.

The names of the folders of nominal and anomalous images vary between data sets.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from patchcore.data.files import Files, composed, find_folder
from patchcore.data.images import bits_in_use, read_image, read_truth
from patchcore.data.sample import Masks, Sample, Split
from patchcore.errors import InputError, printable

ENDINGS = ("_mask", "-mask", "_masks", "_gt", "-gt", "_groundtruth", "_ground_truth")
FOLDERS = frozenset({"gt", "groundtruth", "ground_truth", "mask", "masks"})
NOMINAL = frozenset({"good", "ok", "normal", "nominal", "non_defective"})
"""Names that data sets give to folders of nominal images, in lower case."""
PROBED = 3  # most files that are opened to see whether a folder holds masks


def bare(stem: str) -> str:
    """Return the name of a mask's image: `stem` without an ending such as `_mask`."""
    lower = stem.lower()
    for ending in ENDINGS:
        if lower.endswith(ending) and len(stem) > len(ending):
            return stem[: -len(ending)]
    return stem


def masks_beside(images: Iterable[Path]) -> dict[Path, list[Path]]:
    """Return files named like masks of others in their folder, {7_mask.png: [7.png, …]}."""
    by_name: dict[Path, list[Path]] = {}
    paths = list(images)
    for path in paths:
        by_name.setdefault(composed(path.with_suffix("")), []).append(path)
    found = {}
    for path in paths:
        name = bare(path.stem)
        if name != path.stem and (owners := by_name.get(composed(path.parent / name))):
            found[path] = owners
    return found


def masks_by_name(images: Sequence[Path]) -> list[Path]:
    """Return the images that are masks of others by their names, sorted; no file is opened.

    They lie beside their image, as in `masks_beside`, or in a folder such as `ground_truth`. Where
    all images lie in such folders, these names say nothing.
    """
    inside = [path for path in images if not FOLDERS.isdisjoint(map(str.lower, path.parent.parts))]
    return sorted({*masks_beside(images), *(inside if len(inside) < len(images) else ())})


def reject_masks(images: Sequence[Path], folder: Path, advice: str) -> None:
    """Refuse masks among the images that were found in or below `folder`.

    A file counts as a mask if

    - it is named like one, such as `7_mask.png` beside `7.png`, or
    - it is black and white, and beside an image of the same name in another format, or
    - it is in a subfolder such as `masks`, whose files all have images of their names beside that
      subfolder, or the first of whose files are black and white.

    Args:
        images: Image files.
        folder: Folder that was searched for them.
        advice: Remedy, for the message.

    Raises:
        InputError: there is a mask, which the message names; or an image that had to be opened is
            damaged.
    """
    reason = "is a mask by its name"
    found = min(masks_beside(images), default=None)
    if found is None:
        reason = "looks like a mask"
        found = _mask_among_twins(images) or _mask_in_subfolder(images, folder)
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


def marks(mask: Path | Masks) -> bool:
    """Whether a mask marks anything; decoded once per process unless its files change.

    Masks of any size are read: the limit is a setting of a run, which is not known here.

    Raises:
        InputError: the mask cannot be read.
    """
    paths = mask.paths if isinstance(mask, Masks) else (mask,)
    try:
        status = [path.stat() for path in paths]
    except OSError:
        return bool(read_truth(mask, math.inf).any())  # its error says what is wrong
    return _marks(mask, *((s.st_size, s.st_mtime_ns, s.st_ino) for s in status))


@lru_cache(maxsize=2**13)
def _marks(mask: Path | Masks, *signature: tuple[int, int, int]) -> bool:
    return bool(read_truth(mask, math.inf).any())


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
    inside: dict[tuple[str, ...], list[tuple[Path, Path]]] = {}  # files, and their image if masks
    for path in images:
        if path.parent == folder:
            continue
        *parents, _ = path.relative_to(folder).parts
        depth = next((i for i, name in enumerate(parents, 1) if name.lower() in FOLDERS), None)
        if depth is not None:
            rest = [name for name in parents if name.lower() not in FOLDERS]
            owner = composed(Path(*rest, bare(path.stem)))
            inside.setdefault(tuple(parents[:depth]), []).append((path, owner))
    names = {composed(path.relative_to(folder).with_suffix("")) for path in images if inside}
    for found in inside.values():
        if all(owner in names for _, owner in found):
            return found[0][0]
        if all(_black_and_white(path) for path, _ in found[:PROBED]):
            return found[0][0]
    return None


def _black_and_white(path: Path) -> bool:
    """Whether nearly all pixels are black or white; compression may blur the edges.

    The image's depth and the limit of its size are settings of a run, which are not known here.
    """
    pixels = read_image(path, bits_in_use(path, math.inf), math.inf)
    near = (pixels < 16) | (pixels > 239)
    return bool(near.all(axis=-1).mean() > 0.95) and bool(np.ptp(pixels, axis=-1).max() < 64)


PARTS = ("train", "test", "ground_truth", "validation", "test_private", "test_private_mixed")


def find_root(root: str, layout: str, page: str) -> Path:
    """Return the folder `data.root`.

    Raises:
        InputError: there is no such folder; the message names the layout and the page to get it.
    """
    return find_folder(root, "data.root", f"; it should hold {layout}. The data are at {page}")


def find_category(root: Path, category: str, layout: str) -> Path:
    """Return the folder of a category.

    Raises:
        InputError: there is no such folder; the message lists the categories, which are the folders
            in `root` with a subfolder `train`.
    """
    try:
        there = sorted(path.name for path in root.iterdir() if (path / "train").is_dir())
        found = bool(category) and (root / category).is_dir()
    except OSError as error:
        raise InputError(f"data.root: {root} cannot be read ({error.strerror})") from None
    if not found:
        raise no_category(root, category, there, layout)
    return root / category


def no_category(root: Path, category: str, there: Iterable[str], layout: str) -> InputError:
    """Return the error about a category that is not `there`."""
    there = list(there)
    names = ", ".join(there)
    if not there and (root / "train").is_dir():
        place = root.resolve() if ".." in root.parts else root.absolute()
        return InputError(
            f"data.root: {root} is the folder of a category: set data.root={place.parent} and "
            f"data.category={place.name}"
        )
    message = f"data.category: {root} has no category {category!r}; " + (
        f"it has {names}" if names else f"it has none, expected {layout}"
    )
    # YAML has read a name without quotes as a number or a truth value: 01 has become 1.
    if category in ("True", "False") or any(_same_number(name, category) for name in there):
        message += "; in a file, names that look like a number or a truth value need quotes"
    return InputError(message)


def listed(table: Path, root: Path, name: str, folder: Path) -> Path:
    """Return the file `root / name`, which a table lists among those of a category.

    Args:
        folder: Folder of the category.

    Raises:
        InputError: It is missing, or not below the folder.
    """
    path = root / name
    if ".." in Path(name).parts or not path.is_relative_to(folder):
        raise InputError(
            f"{table}: lists {printable(name)}, which is not below {folder}; restore the file"
        )
    if not path.is_file():
        raise InputError(f"{path}: no such file, though {table} lists it; restore it")
    return path


def _same_number(one: str, other: str) -> bool:
    try:
        return float(one) == float(other)
    except ValueError:
        return False


def images_in(files: Files, folder: Path, layout: str, once: bool = False) -> list[Path]:
    """Return the images of a folder, sorted by path.

    Args:
        files: Finder of image files.
        folder: Folder to search, without subfolders.
        layout: Expected layout, for messages.
        once: Whether to list a file once if several links lead to it.

    Raises:
        InputError: the folder is missing, or holds no images.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected {layout}")
    images = files.images(folder, once=once)
    if not images:
        passed = files.passed_over()
        raise InputError(
            f"{folder}: holds no images; expected {layout}" + (f"; {passed}" if passed else "")
        )
    return images


def read_category(
    files: Files,
    folder: Path,
    layout: str,
    nominal: str = "good",
    mask_folders: bool = False,
    test: str = "test",
    truth: str = "ground_truth",
) -> Split:
    """Return a category's split: `train/NOMINAL` to train on, all below `test` to test on.

    An anomalous image may lack a mask, but every mask needs its image. Masks of nominal images are
    allowed if they mark nothing.

    Args:
        files: Finder of image files.
        folder: Folder of the category.
        layout: Expected layout, for messages.
        nominal: Name of the folders of nominal images.
        mask_folders: Whether the masks of `test/KIND/7.png` are all images in `TRUTH/KIND/7`,
            rather than the one image `TRUTH/KIND/7.png` or `TRUTH/KIND/7_mask.png`.
        test: Name of the folder with one subfolder of test images for each kind.
        truth: Name of the folder with one subfolder of masks for each kind; it may be in `test`.

    Raises:
        InputError: a folder is missing, holds no images, or is named like a folder of nominal
            images; images are in a place that is not read; a mask lies among images, has no image
            or several, or marks part of a nominal image; or an image has two masks.
    """
    note_others(files, folder, nominal, test)
    check_names(folder / "train", nominal)
    masks_in = folder / truth
    train = checked_images(files, folder / "train" / nominal, layout, masks_in, once=True)
    test_folder = folder / test
    if not test_folder.is_dir():
        raise InputError(f"{test_folder}: no such folder; expected {layout}")
    check_names(test_folder, nominal, also=NOMINAL)
    images = {
        kind.name: checked_images(files, kind, layout, masks_in)
        for kind in files.folders(test_folder)
        if kind != masks_in
    }
    if not images:
        raise InputError(f"{test_folder}: holds no folder of images; expected {layout}")
    if any(kind != nominal for kind in images):
        note_missing(files, folder, (truth,))
    masks = _masks(files, masks_in, [x for paths in images.values() for x in paths], mask_folders)
    samples: list[Sample] = []
    for kind, paths in images.items():
        for path in paths:
            mask = masks.pop(_key(path), None)
            if kind != nominal:
                samples.append(Sample(path, 1, printable(kind), mask))
                continue
            samples.append(Sample(path, 0))
            if mask is not None and marks(mask):
                raise InputError(
                    f"{mask}: this mask marks part of a nominal image, {path}; remove the mask or "
                    "move the image to a folder of anomalous ones"
                )
    if masks:
        (kind, name), mask = min(masks.items(), key=lambda item: item[0])
        raise InputError(
            f"{mask}: this mask has no image named {name} in {test_folder / kind}; "
            "restore the image or remove the mask"
        )
    return Split([Sample(path, 0) for path in train], samples)


def checked_images(
    files: Files, folder: Path, layout: str, masks_in: Path | str, once: bool = False
) -> list[Path]:
    """Return the images of a folder as `images_in` does, and refuse masks that belong elsewhere."""
    images = images_in(files, folder, layout, once)
    reject_masks(images, folder, f"masks belong in {masks_in}")
    return images


def check_names(folder: Path, nominal: str, also: Iterable[str] = ()) -> None:
    """Refuse folders such as `Good` or `ok` where `good` is expected.

    Their images would count as anomalous, or would not be read.
    """
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        name = path.name.casefold()
        if path.name != nominal and (name == nominal or name in also) and path.is_dir():
            raise InputError(
                f"{path}: nominal images are expected in a folder named {nominal}; rename it, or "
                "give it the name of a defect"
            )


def note_missing(files: Files, folder: Path, names: Iterable[str]) -> None:
    """Add a note on the subfolders that a data set always has, and which are missing."""
    if lacking := [name for name in names if not (folder / name).is_dir()]:
        files.note(f"{folder} lacks {', '.join(lacking)}")


def note_others(files: Files, folder: Path, nominal: str, other: str) -> None:
    """Add a note on the folders of a category that are not read and are neither PARTS nor `other`.

    In `train`, only the folder `nominal` is read.
    """
    unread = []
    for place, known in ((folder, (*PARTS, other)), (folder / "train", (nominal,))):
        if place.is_dir():
            folders = files.folders(place, images=place == folder)
            unread += [path for path in folders if path.name not in known]
    if unread:
        files.note(f"not read: {', '.join(map(str, unread))}")


def _key(image: Path) -> tuple[str, str]:
    """Kind of defect and name of an image, composed."""
    path = composed(image)
    return path.parent.name, path.stem


def _masks(
    files: Files, folder: Path, images: Iterable[Path], mask_folders: bool
) -> dict[tuple[str, str], Path | Masks]:
    """Masks by kind of defect and name of image, as in `_key`.

    Raises InputError if a mask has several images, an image two masks, or a mask no kind.
    """
    if not folder.is_dir():
        return {}
    owners: dict[tuple[str, str], list[Path]] = {}
    for path in images:
        owners.setdefault(_key(path), []).append(path)
    found: dict[tuple[str, str], list[Path]] = {}
    for path in files.images(folder, recursive=True):
        place = composed(path.relative_to(folder))
        if len(place.parts) == 1:
            raise InputError(
                f"{path}: masks are expected in a folder of {folder} named like the kind of "
                "defect; move it into one or remove it"
            )
        kind, name = place.parts[0], place.parent.name if mask_folders else place.stem
        if (kind, name) not in owners and not mask_folders:
            name = bare(name)
        several = owners.get((kind, name), [])
        if len(several) > 1:
            raise InputError(
                f"{path}: this mask has several images named {name} in "
                f"{several[0].parent}; rename all but one"
            )
        found.setdefault((kind, name), []).append(path)
    if mask_folders:
        return {key: Masks(tuple(paths)) for key, paths in found.items()}
    for (_, name), paths in found.items():
        if len(paths) > 1:
            raise InputError(f"{paths[1]}: {name} has the mask {paths[0]} already; remove one")
    return {key: paths[0] for key, paths in found.items()}


def with_validation(files: Files, folder: Path, split: Split, layout: str) -> Split:
    """Return a category's split with the images in `validation/good` among the training images."""
    place = folder / "validation" / "good"
    more = checked_images(files, place, layout, "folders of ground_truth")
    return Split(split.train + [Sample(path, 0) for path in more], split.test)


def by_folder(samples: Iterable[Sample]) -> list[list[Sample]]:
    """Return samples grouped by folder, such as the views of a part or the frames of a video."""
    groups: dict[Path, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.path.parent, []).append(sample)
    return list(groups.values())
