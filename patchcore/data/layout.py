"""Reading of the folder layout that most data sets share.

The names of the folders of nominal and anomalous images vary between data sets.
"""

import math
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from patchcore.data.files import Files, composed, find_folder
from patchcore.data.images import read_truth
from patchcore.data.mistaken import NOMINAL, bare, reject_masks
from patchcore.data.sample import Masks, Sample, Split
from patchcore.errors import InputError, printable


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
            in `root` with a subfolder `train`, or names the folder below that holds the category.
    """
    try:
        there = sorted(path.name for path in root.iterdir() if (path / "train").is_dir())
        found = bool(category) and (root / category).is_dir()
        places = [root / category] if found else [] if there else sorted(root.iterdir())
    except OSError as error:
        raise InputError(f"data.root: {root} cannot be read ({error.strerror})") from None
    inner = (place for place in places if os.path.isdir(place / category / "train"))
    whole = not category or os.path.isdir(root / category / "train")
    if not whole and (place := next(inner, None)):
        raise InputError(
            f"data.root: {root} has no category {category!r}, and {place} has one: set "
            f"data.root={place}"
        )
    if not found:
        raise no_category(root, category, there, layout)
    return root / category


def no_category(root: Path, category: str, there: Iterable[str], layout: str) -> InputError:
    """Return the error about a category that is not `there`."""
    there = list(there)
    names = ", ".join(there)
    place = root.resolve() if ".." in root.parts else root.absolute()
    inside = place.name in PARTS  # in the folder of a category
    place = place.parent if inside else place
    if not there and (place / "train").is_dir():
        return InputError(
            f"data.root: {root} is {'in ' * inside}the folder of a category: set "
            f"data.root={place.parent} and data.category={place.name}"
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
    if "\\" in name and not (root / name).exists():
        raise InputError(
            f"{table}: lists {printable(name)} with backslashes: write its paths with slashes"
        )
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
        others = (path for each in images if each != nominal for path in images[each])
        other = next((path for path in others if _key(path)[1] == name), None)
        if other is not None and kind not in images:
            raise InputError(
                f"{mask}: there is no folder {test_folder / kind} with images of such masks; those "
                f"of {other} are expected in {masks_in / other.parent.name}: move the mask or the "
                "image"
            )
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
