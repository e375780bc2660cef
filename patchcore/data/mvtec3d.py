"""MVTec 3D-AD (Bergmann et al., 2022), only its colour images: ten objects scanned in 3D.

10 categories, 2,656 nominal training, 294 nominal validation and 1,197 test images, 948 of them
anomalous. The 3D positions in `xyz` are not read, so defects that change only the shape are hard to
detect.

Citation: P. Bergmann, X. Jin, D. Sattlegger, C. Steger. The MVTec 3D-AD Dataset for Unsupervised 3D
Anomaly Detection and Localization. VISAPP 2022.
Layout: `LAYOUT`; image, mask and positions of a scan have the same name. Nominal test images have
masks, too, which mark nothing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from patchcore.data.files import Files, composed
from patchcore.data.layout import (
    check_names,
    checked_images,
    find_category,
    find_root,
    marks,
    note_others,
)
from patchcore.data.mistaken import NOMINAL
from patchcore.data.sample import Category, DataConfig, Sample, Split
from patchcore.data.source import NON_COMMERCIAL, Archive, Source
from patchcore.errors import InputError, printable
from patchcore.settings import setting

LAYOUT = (
    "{category}/train/good/rgb, {category}/validation/good/rgb, {category}/test/{good,DEFECT}/rgb "
    "with masks in {category}/test/{good,DEFECT}/gt"
)

MASKS_IN = "folders named gt"


@dataclass(kw_only=True)
class MVTec3DConfig(DataConfig):
    """Colour images of one category of MVTec 3D-AD."""

    CATEGORIES: ClassVar = (
        "bagel",
        "cable_gland",
        "carrot",
        "cookie",
        "dowel",
        "foam",
        "peach",
        "potato",
        "rope",
        "tire",
    )
    SOURCE: ClassVar = Source(
        page="https://www.mvtec.com/company/research/datasets/mvtec-3d-ad",
        licence=NON_COMMERCIAL,
        archive=Archive(
            "https://www.mydrive.ch/shares/150646/25de33f1276dd418cd856f2f48a84cdb/download/"
            "428824485-1643299897/mvtec_3d_anomaly_detection.tar.xz",
            CATEGORIES,
        ),
    )

    root: str = setting("data/mvtec3d", "folder that contains the categories", effect=False)
    category: Category = setting("bagel", "folder of the category, below root")
    validation: bool = setting(False, "train on the nominal validation images, too")

    def _read(self, files: Files) -> Split:
        """Return the split: train on `train/good` (and `validation/good`), test on `test`.

        An anomalous image may lack a mask, but every mask needs its image.

        Raises:
            InputError: root or category is missing; a folder holds no images, or is named like a
                folder of nominal images; or a mask lies among images, has no image or several,
                marks part of a nominal one, or is one of two for an image.
        """
        root = find_root(self.root, LAYOUT, self.SOURCE.page)
        folder = find_category(root, self.category, LAYOUT)
        note_others(files, folder, "good", "calibration")
        nominal = ["train", "validation"] if self.validation else ["train"]
        for part in nominal:
            check_names(folder / part, "good")
        train = [
            Sample(path, 0)
            for part in nominal
            for path in checked_images(files, folder / part / "good" / "rgb", LAYOUT, MASKS_IN)
        ]
        if not (folder / "test").is_dir():
            raise InputError(f"{folder / 'test'}: no such folder; expected {LAYOUT}")
        check_names(folder / "test", "good", also=NOMINAL)
        test = [
            sample for kind in files.folders(folder / "test") for sample in _samples(files, kind)
        ]
        if not test:
            raise InputError(f"{folder / 'test'}: holds no folder of images; expected {LAYOUT}")
        return Split(train, test)


def _samples(files: Files, folder: Path) -> list[Sample]:
    """Samples of one kind of test images."""
    images = checked_images(files, folder / "rgb", LAYOUT, MASKS_IN)
    masks = _masks(files, folder / "gt", [composed(path).stem for path in images])
    samples = []
    for path in images:
        mask = masks.pop(composed(path).stem, None)
        if folder.name != "good":
            samples.append(Sample(path, 1, printable(folder.name), mask))
            continue
        samples.append(Sample(path, 0))
        if mask is not None and marks(mask):
            raise InputError(f"{mask}: marks part of a nominal image, {path}; restore the mask")
    if masks:
        name = min(masks)
        raise InputError(
            f"{masks[name]}: this mask has no image named {name} in {folder / 'rgb'}; restore the "
            "image or remove the mask"
        )
    return samples


def _masks(files: Files, folder: Path, names: list[str]) -> dict[str, Path]:
    """Masks by the composed name of their image, which is among `names` at most once."""
    masks: dict[str, Path] = {}
    for path in files.images(folder) if folder.is_dir() else ():
        name = composed(path).stem
        if names.count(name) > 1:
            raise InputError(
                f"{path}: this mask has several images named {name} in "
                f"{folder.parent / 'rgb'}; rename all but one"
            )
        if (other := masks.setdefault(name, path)) != path:
            raise InputError(f"{path}: {name} has the mask {other} already; remove one")
    return masks
