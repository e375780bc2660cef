"""MVTec LOCO AD (Bergmann et al., 2022): logical anomalies, such as a missing part, and structural.

5 categories; about 1,780 nominal training, 300 nominal validation and 1,570 test images.

Citation: P. Bergmann, K. Batzner, M. Fauser, D. Sattlegger, C. Steger. Beyond Dents and Scratches:
Logical Constraints in Unsupervised Anomaly Detection and Localization. IJCV 130, 2022.
Layout: `LAYOUT`; an image has one mask for each of its anomalies. The grey value of a mask (234 to
255) is the number of the kind of defect. The masks of an image are united here. The data set's own
metric sPRO (saturated per-region overlap) is not computed.
"""

from dataclasses import dataclass
from typing import ClassVar

from patchcore.data.files import Files
from patchcore.data.layout import (
    find_category,
    find_root,
    note_missing,
    read_category,
    with_validation,
)
from patchcore.data.sample import Category, DataConfig, Split
from patchcore.data.source import NON_COMMERCIAL, Archive, Source
from patchcore.settings import setting

LAYOUT = (
    "{category}/train/good, {category}/validation/good, "
    "{category}/test/{good,logical_anomalies,structural_anomalies}, "
    "{category}/ground_truth/{logical_anomalies,structural_anomalies}/{image}/{mask}.png"
)


@dataclass(kw_only=True)
class LOCOConfig(DataConfig):
    """One category of MVTec LOCO AD; the defect type tells logical and structural anomalies."""

    CATEGORIES: ClassVar = (
        "breakfast_box",
        "juice_bottle",
        "pushpins",
        "screw_bag",
        "splicing_connectors",
    )
    SOURCE: ClassVar = Source(
        page="https://www.mvtec.com/company/research/datasets/mvtec-loco",
        licence=NON_COMMERCIAL,
        archive=Archive(
            "https://www.mydrive.ch/shares/48237/1b9106ccdfbb09a0c414bd49fe44a14a/download/"
            "430647091-1646842701/mvtec_loco_anomaly_detection.tar.xz",
            CATEGORIES,
            "9e7c84dba550fd2e59d8e9e231c929c45ba737b6b6a6d3814100f54d63aae687",
        ),
    )

    root: str = setting("data/loco", "folder that contains the categories", effect=False)
    category: Category = setting("breakfast_box", "folder of the category, below root")
    validation: bool = setting(False, "train on the nominal validation images, too")

    def _read(self, files: Files) -> Split:
        """Return the split: train on `train/good` (and `validation/good`), test on `test`.

        Raises:
            InputError: root or category is missing, a folder holds no images, or a mask has no
                image.
        """
        root = find_root(self.root, LAYOUT, self.SOURCE.page)
        folder = find_category(root, self.category, LAYOUT)
        kinds = ("good", "logical_anomalies", "structural_anomalies")
        note_missing(files, folder / "test", kinds)
        note_missing(files, folder, ("validation",))
        split = read_category(files, folder, LAYOUT, mask_folders=True)
        return with_validation(files, folder, split, LAYOUT) if self.validation else split
