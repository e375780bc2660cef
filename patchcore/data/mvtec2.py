"""MVTec AD 2 (Heckler-Kram et al., 2025): transparent, shiny and bulk goods in changing light.

8 categories, more than 8,000 images of 2.3 to 5 megapixels. Only the public one of the three test
sets is used here. The masks of the other two, `test_private` and `test_private_mixed`, are not
published; the owners' server evaluates results on them, at https://benchmark.mvtec.com. The paper
computes AUPRO up to a false-positive rate of 0.05, which is the metric `aupro_005`.

Citation: L. Heckler-Kram, J.-H. Neudeck, U. Scheler, R. König, C. Steger. The MVTec AD 2 Dataset:
Advanced Scenarios for Unsupervised Anomaly Detection. arXiv:2503.21622, 2025.
Layout: `LAYOUT`; the mask of `test_public/bad/7_regular.png` is
`test_public/ground_truth/bad/7_regular_mask.png`. The end of a name says how the part was lit.
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
    "{category}/train/good, {category}/validation/good, {category}/test_public/{good,bad}, "
    "{category}/test_public/ground_truth/bad"
)


@dataclass(kw_only=True)
class MVTec2Config(DataConfig):
    """One category of MVTec AD 2, with its public test images."""

    CATEGORIES: ClassVar = (
        "can",
        "fabric",
        "fruit_jelly",
        "rice",
        "sheet_metal",
        "vial",
        "wallplugs",
        "walnuts",
    )
    SOURCE: ClassVar = Source(
        page="https://www.mvtec.com/company/research/datasets/mvtec-ad-2",
        licence=NON_COMMERCIAL,
        archive=Archive(
            "https://www.mydrive.ch/shares/150997/701c90d3aea6588f404936e32a674602/download/"
            "466712769-1743429042/mvtec_ad_2.tar.gz",
            CATEGORIES,
            "c0ded99ef32bfc8e352d52beb44515e5b292b8598cb963aadfa91ca0763505e4",
        ),
    )

    root: str = setting("data/mvtec2", "folder that contains the categories", effect=False)
    category: Category = setting("can", "folder of the category, below root")
    validation: bool = setting(False, "train on the nominal validation images, too")

    def _read(self, files: Files) -> Split:
        """Return the split: train on `train/good` (and `validation/good`), test on `test_public`.

        Raises:
            InputError: root or category is missing, a folder holds no images, or a mask has no
                image.
        """
        root = find_root(self.root, LAYOUT, self.SOURCE.page)
        folder = find_category(root, self.category, LAYOUT)
        public = "test_public"
        note_missing(files, folder / public, ("good", "bad"))
        split = read_category(files, folder, LAYOUT, test=public, truth=f"{public}/ground_truth")
        return with_validation(files, folder, split, LAYOUT) if self.validation else split
