"""Images of one's own: a folder of nominal images, and optionally test images and masks."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from patchcore.data.files import Files, Identity, composed, expanded, find_folder, identity
from patchcore.data.formats import FORMATS
from patchcore.data.layout import marks
from patchcore.data.mistaken import NOMINAL, bare, masks_beside, reject_defects, reject_masks
from patchcore.data.overlaps import no_mask
from patchcore.data.sample import DataConfig, Sample, Split
from patchcore.errors import InputError, counted, printable
from patchcore.settings import setting

FOLDERS = ("nominal", "nominal_test", "anomalous", "masks")
"""Settings that name folders, relative to `root`."""


@dataclass(kw_only=True)
class FolderConfig(DataConfig):
    """Folders of images, searched with all their subfolders; paths are relative to root.

    The first subfolder below `anomalous` names the defect type; images directly in `anomalous` have
    the type "anomalous". In `masks`, the mask of the anomalous image `scratch/7.jpg` is
    `scratch/7.png` or `scratch/7_mask.png`; if no other image is named 7, `7.png` or `7_mask.png`
    at the top of `masks` is found, too. `masks` may be `anomalous` itself (with `7_mask.png` beside
    `7.jpg`) or a folder in it. Masks of nominal images are allowed if they mark nothing.
    """

    # Results depend on the images, not on the place of their folders.
    root: str = setting(
        ".", "folder to which nominal, nominal_test, anomalous and masks are relative", effect=False
    )
    nominal: str = setting("nominal", "folder of nominal images to train on", effect=False)
    nominal_test: str | None = setting(
        None,
        "folder of nominal images to test on; null: some training images are held out",
        effect=False,
    )
    anomalous: str | None = setting(
        None, "folder of anomalous images to test on; null: none", effect=False
    )
    masks: str | None = setting(
        None, "folder of masks of anomalous images; null: none", effect=False
    )
    test_share: float = setting(
        0.2,
        "share of nominal images that are held out for the test if nominal_test is null",
        low=0,
        below=1,
        effect=lambda data: data["nominal_test"] is None,
        idle="with data.nominal_test",
    )
    seed: int = setting(
        0,
        "seed for choosing the held-out images",
        low=0,
        effect=lambda data: data["nominal_test"] is None and data["test_share"] > 0,
        idle="if no image is held out (data.nominal_test, data.test_share)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.masks is not None and self.anomalous is None:
            raise InputError("data.masks needs data.anomalous, the folder of the masked images")

    def placed(self) -> "FolderConfig":
        """Return these settings with absolute folders, below which the current one is the root."""
        root = expanded(self.root, "data.root").absolute()
        given = {key: getattr(self, key) for key in FOLDERS}
        places: dict[str, Any] = {
            key: str(root / expanded(value, f"data.{key}"))
            for key, value in given.items()
            if value is not None
        }
        return replace(self, root=".", **places)

    def _read(self, files: Files) -> Split:
        """Return the split: nominal images to train on, and nominal and anomalous images to test.

        Nominal test images are those of `nominal_test`, or held-out images of `nominal`.

        Raises:
            InputError: a folder is missing or holds no images; a file is in two sets, whether by
                the same path or by a link; a mask lies among images, or has no image or more than
                one; a folder lies beside `good` among nominal images; or no image would be left to
                train or to test on.
        """
        root = find_folder(self.root, "data.root")
        folders = {
            key: find_folder(root / expanded(value, f"data.{key}"), f"data.{key}")
            for key in FOLDERS
            if (value := getattr(self, key)) is not None
        }
        sets = {
            key: _images(files, folder, key) for key, folder in folders.items() if key != "masks"
        }
        masks = _images(files, folders["masks"], "masks", once=False) if self.masks else []
        _reject_shared({**sets, "masks": masks})
        paired: dict[Path, Path] = {}
        pictures = sets.get("anomalous", [])
        if masks:
            sets["anomalous"], masks, paired = _sort_out(pictures, masks, folders)
        for key, images in sets.items():
            advice = "move the masks to a folder of their own" + (
                ", or set data.masks to their folder" if key == "anomalous" else ""
            )
            reject_masks(images, folders[key], advice)
            if key != "anomalous":
                advice = f"set data.{key} to a folder without it, or rename one of the two"
                reject_defects(images, folders[key], advice)
        nominal = sets["nominal"]
        train, test = nominal, sets.get("nominal_test", [])
        if self.nominal_test is None:
            train, test = self._hold_out(nominal)
        samples = [Sample(path, 0) for path in test]
        if self.anomalous is not None:
            match = _Match(folders, sets, pictures)
            match.add(masks, paired)
            samples += _anomalous_samples(sets["anomalous"], folders["anomalous"], match.masks)
        if not samples:
            raise InputError(
                "data.test_share: no image is left to test on; raise it, "
                "or set data.nominal_test or data.anomalous"
            )
        return Split([Sample(path, 0) for path in train], samples)

    def _hold_out(self, images: list[Path]) -> tuple[list[Path], list[Path]]:
        if not self.test_share:
            return images, []
        count = max(1, round(self.test_share * len(images)))
        if count >= len(images):
            remedy = "lower it" if len(images) > 1 else "set it to 0 and set data.anomalous"
            raise InputError(
                f"data.test_share: {self.test_share} of {counted(len(images), 'nominal image')} "
                f"leaves none for training; {remedy}, or set data.nominal_test"
            )
        order = np.random.default_rng(self.seed).permutation(len(images))
        held_out = {images[i] for i in order[:count]}
        return [path for path in images if path not in held_out], sorted(held_out)


def _images(files: Files, folder: Path, key: str, once: bool = True) -> list[Path]:
    images = files.images(folder, recursive=True, once=once)
    if not images:
        others = f"; {passed}" if (passed := files.passed_over()) else ""
        raise InputError(f"data.{key}: {folder} holds no images ({', '.join(FORMATS)}){others}")
    return images


def _reject_shared(sets: dict[str, list[Path]]) -> None:
    """Refuse a file in two folders, by any path or link; masks may lie beside their images."""
    owners: dict[Identity, tuple[str, Path]] = {}
    for key in ("nominal", "nominal_test", "anomalous", "masks"):
        for path in sets.get(key, []):
            me = identity(path)
            other, there = owners.get(me, (key, path))
            if other != key and (key, other) != ("masks", "anomalous"):
                same = "" if there == path else f", as {there}"
                raise InputError(
                    f"data.{key}: {path} is in the folder data.{other} too{same}; "
                    "use folders that do not contain each other"
                )
            owners.setdefault(me, (key, path))


def _sort_out(
    images: list[Path], masks: list[Path], folders: dict[str, Path]
) -> tuple[list[Path], list[Path], dict[Path, Path]]:
    """Separate masks from anomalous images where both are in one folder.

    Returns:
        Images without masks among them; masks still to be matched by name; masks beside their
        image, {image: mask}.
    """
    masked = {identity(path) for path in masks}
    shared = [path for path in images if identity(path) in masked]
    if not shared:
        return images, masks, {}
    paired: dict[Path, Path] = {}
    beside = {mask: owners for mask, owners in masks_beside(images).items() if mask in set(shared)}
    for mask, owners in beside.items():
        if len(owners) > 1:
            raise InputError(
                f"{mask}: this mask has {len(owners)} images of its name beside it; rename one"
            )
        _pair(paired, owners[0], mask)
    gone = set(beside) or set(shared)
    kept = [path for path in images if path not in gone]
    if not kept:
        raise InputError(
            f"data.masks: {folders['masks']} holds the images of data.anomalous and nothing that "
            "is named like their masks (7_mask.png beside 7.png); give masks a folder of their own"
        )
    done = {identity(path) for path in (images if beside else ())}
    return kept, [path for path in masks if identity(path) not in done], paired


def _pair(masks: dict[Path, Path], image: Path, mask: Path) -> None:
    if image in masks:
        raise InputError(f"{mask}: {image} has the mask {masks[image]} already; remove one")
    masks[image] = mask


class _Match:
    """Matching of masks to images by name and subfolder.

    Args:
        folders: {setting: folder}.
        sets: {setting: images in it, without masks}.
        pictures: All image files in the folder of anomalous images.
    """

    def __init__(
        self, folders: dict[str, Path], sets: dict[str, list[Path]], pictures: list[Path]
    ) -> None:
        self.masks: dict[Path, Path] = {}
        self._folders = folders
        self._files = {identity(path): path for path in pictures if bare(path.stem) == path.stem}
        self._by_place: dict[Path, list[Path]] = {}
        self._by_name: dict[Path, list[Path]] = {}
        for image in sets["anomalous"]:
            place = composed(image.relative_to(folders["anomalous"]).with_suffix(""))
            self._by_place.setdefault(place, []).append(image)
            self._by_name.setdefault(Path(place.name), []).append(image)
        self._nominal = {
            place
            for key in ("nominal", "nominal_test")
            for image in sets.get(key, [])
            for name in [composed(image.relative_to(folders[key]).with_suffix(""))]
            for place in (name, *(folder / name for folder in _names(folders[key])))
        }

    def add(self, masks: list[Path], paired: dict[Path, Path]) -> None:
        """Add masks, some of which are `paired` with their image, {image: mask}.

        Raises InputError if a mask has no image or several, or an image has several masks.
        """
        self.masks.update(paired)
        for mask in masks:
            place = composed(mask.relative_to(self._folders["masks"]).with_suffix(""))
            places = (place, place.with_name(bare(place.name)))
            found = next(
                (
                    images_of[name]
                    for images_of in (self._by_place, self._by_name)
                    for name in places
                    if name in images_of
                ),
                [],
            )
            if not found and (image := self._files.get(identity(mask))):
                raise no_mask(mask, image)
            if len(found) == 1:
                _pair(self.masks, found[0], mask)
            elif not found and self._nominal.intersection(places):
                if marks(mask):
                    raise InputError(
                        f"{mask}: this mask marks part of an image that is nominal; remove the "
                        "mask, or give the image as one of data.anomalous"
                    )
            else:
                raise self._unmatched(mask, place, found)

    def _unmatched(self, mask: Path, place: Path, found: list[Path]) -> InputError:
        """Return the error of a mask that has no image of its name, or several."""
        images, masks = self._folders["anomalous"], self._folders["masks"]
        names = (Path(place.name), Path(bare(place.name)))
        for image in [each for name in names for each in self._by_name.get(name, ())]:
            expected = masks / image.parent.relative_to(images)
            has_one = expected.is_dir() and image.stem in {bare(x.stem) for x in expected.iterdir()}
            if found or has_one:
                continue
            return InputError(
                f"{mask}: this mask has no image of its name in {images / place.parent}; masks of "
                f"{image} are expected in {expected}: move the mask or the image"
            )
        advice = "name their subfolder too" if found else "restore its image or remove it"
        if found and len({image.parent for image in found}) == 1:  # only their endings differ
            advice = f"rename one of {found[0].name} and {found[1].name}, and its mask"
        return InputError(
            f"{mask}: this mask has {len(found) or 'no'} images of its name in {images}; {advice}"
        )


def _names(folder: Path) -> list[Path]:
    """Names of subfolders of `masks` that may hold masks of a folder's nominal images."""
    return [Path(name) for name in sorted({folder.name, *NOMINAL})]


def _anomalous_samples(images: list[Path], folder: Path, masks: dict[Path, Path]) -> list[Sample]:
    samples = []
    for path in images:
        parts = path.relative_to(folder).parts
        kind = parts[0] if len(parts) > 1 else "anomalous"
        if kind.casefold() in NOMINAL:
            raise InputError(
                f"data.anomalous: {folder / kind} is named like a folder of nominal images; "
                "give those as data.nominal_test, or rename it"
            )
        samples.append(Sample(path, 1, printable(kind), masks.get(path)))
    return samples
