"""Folders as most data sets lay them out, each with its own names for nominal and anomalous."""

from collections.abc import Iterable
from pathlib import Path

from patchcore.data.images import list_images
from patchcore.data.sample import Masks, Sample, Split
from patchcore.errors import InputError


def find_root(root: str, layout: str, source: str) -> Path:
    """The folder `data.root`; InputError if there is none, with what it should hold and whence."""
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise InputError(
            f"data.root: there is no folder {folder}; it should hold {layout}. {source}"
        )
    return folder


def find_category(root: Path, category: str, layout: str) -> Path:
    """The folder of a category, which has a folder `train`; InputError lists those there are."""
    there = sorted(path.name for path in root.iterdir() if (path / "train").is_dir())
    if not category or not (root / category).is_dir():
        raise no_category(root, category, there, layout)
    return root / category


def no_category(root: Path, category: str, there: Iterable[str], layout: str) -> InputError:
    """What to tell about a category that is not among those that are there."""
    names = ", ".join(there)
    return InputError(
        f"data.category: {root} has no category {category!r}; "
        + (f"it has {names}" if names else f"it has none, expected {layout}")
    )


def images_in(folder: Path, layout: str) -> list[Path]:
    """The images of a folder, sorted; InputError if it is missing or holds none."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected {layout}")
    images = list_images(folder)
    if not images:
        raise InputError(f"{folder}: holds no images; expected {layout}")
    return images


def read_category(
    folder: Path, layout: str, nominal: str = "good", mask_folders: bool = False
) -> Split:
    """`train/NOMINAL` to train on, everything below `test` to test on, masks in `ground_truth`.

    An anomalous image may lack its mask; a mask may not lack its image.

    Args:
        layout: What is expected, for messages.
        nominal: Name of the folders of nominal images.
        mask_folders: The masks of `test/KIND/7.png` are all images in `ground_truth/KIND/7`, rather
            than the one image `ground_truth/KIND/7.png` or `7_mask.png`.

    Raises:
        InputError: a folder holds no images, or a mask has no image, or an image has two masks.
    """
    train = [Sample(path, 0) for path in images_in(folder / "train" / nominal, layout)]
    test_folder = folder / "test"
    if not test_folder.is_dir():
        raise InputError(f"{test_folder}: no such folder; expected {layout}")
    masks = _masks(folder / "ground_truth", mask_folders)
    test: list[Sample] = []
    for kind in sorted(child.name for child in test_folder.iterdir() if child.is_dir()):
        images = images_in(test_folder / kind, layout)
        if kind == nominal:
            test += [Sample(path, 0) for path in images]
        else:
            test += [Sample(path, 1, kind, masks.pop((kind, path.stem), None)) for path in images]
    if not test:
        raise InputError(f"{test_folder}: holds no folder of images; expected {layout}")
    if masks:
        (kind, name), mask = min(masks.items())
        raise InputError(
            f"{mask}: this mask has no image named {name} in {test_folder / kind}; "
            "restore the image or remove the mask"
        )
    return Split(train, test)


def _masks(folder: Path, mask_folders: bool) -> dict[tuple[str, str], Path | Masks]:
    """Masks by kind of defect and name of image."""
    found: dict[tuple[str, str], list[Path]] = {}
    for path in list_images(folder, recursive=True):
        kind = path.relative_to(folder).parts[0]
        name = path.parent.name if mask_folders else path.stem.removesuffix("_mask")
        found.setdefault((kind, name), []).append(path)
    if mask_folders:
        return {key: Masks(tuple(paths)) for key, paths in found.items()}
    for (_, name), paths in found.items():
        if len(paths) > 1:
            raise InputError(f"{paths[1]}: {name} has the mask {paths[0]} already; remove one")
    return {key: paths[0] for key, paths in found.items()}
