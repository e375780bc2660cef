"""MVTec AD (Bergmann et al., 2019), whose folder layout several other data sets share.

15 categories, 3,629 nominal training and 1,725 test images.

Citation: P. Bergmann, M. Fauser, D. Sattlegger, C. Steger. MVTec AD – A Comprehensive Real-World
Dataset for Unsupervised Anomaly Detection. CVPR 2019.
Layout: `LAYOUT`; the mask of `test/scratch/7.png` is `ground_truth/scratch/7_mask.png` or `7.png`.
"""

from dataclasses import dataclass
from typing import ClassVar

from patchcore.data.files import Files
from patchcore.data.layout import find_category, find_root, read_category
from patchcore.data.sample import Category, DataConfig, Split
from patchcore.data.source import NON_COMMERCIAL, Archive, Source
from patchcore.data.view import View
from patchcore.settings import setting

LAYOUT = "{category}/train/good, {category}/test/{defect}, {category}/ground_truth/{defect}"

_SHARE = "https://www.mydrive.ch/shares/38536/3830184030e49fe74747669442f0f282/download"
_PILL = "https://www.mydrive.ch/shares/43421/11a215a5749fcfb75e331ddd5f8e43ee/download"
_DOWNLOADS = {
    "bottle": f"{_SHARE}/420937370-1629951468",
    "cable": f"{_SHARE}/420937413-1629951498",
    "capsule": f"{_SHARE}/420937454-1629951595",
    "carpet": f"{_SHARE}/420937484-1629951672",
    "grid": f"{_SHARE}/420937487-1629951814",
    "hazelnut": f"{_SHARE}/420937545-1629951845",
    "leather": f"{_SHARE}/420937607-1629951964",
    "metal_nut": f"{_SHARE}/420937637-1629952063",
    "pill": f"{_PILL}/420938129-1629953099",
    "screw": f"{_SHARE}/420938130-1629953152",
    "tile": f"{_SHARE}/420938133-1629953189",
    "toothbrush": f"{_SHARE}/420938134-1629953256",
    "transistor": f"{_SHARE}/420938166-1629953277",
    "wood": f"{_SHARE}/420938383-1629953354",
    "zipper": f"{_SHARE}/420938385-1629953449",
}


@dataclass(kw_only=True)
class MVTecConfig(DataConfig):
    """One category of a data set in the layout of MVTec AD (Bergmann et al., 2019)."""

    CATEGORIES: ClassVar = tuple(_DOWNLOADS)
    VIEW: ClassVar = View.crop  # as in the paper
    SOURCE: ClassVar = Source(
        page="https://www.mvtec.com/company/research/datasets/mvtec-ad",
        licence=NON_COMMERCIAL,
        archive=Archive(
            f"{_SHARE}/420938113-1629952094/mvtec_anomaly_detection.tar.xz",
            CATEGORIES,
            "cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
        ),
        categories={
            name: Archive(f"{place}/{name}.tar.xz", ("train", "test", "ground_truth"))
            for name, place in _DOWNLOADS.items()
        },
    )

    root: str = setting("data/mvtec", "folder that contains the categories", effect=False)
    category: Category = setting("bottle", "folder of the category, below root")

    def _read(self, files: Files) -> Split:
        """Return the split: `train/good` to train on, everything below `test` to test on.

        An anomalous image may lack a mask, but every mask needs its image.

        Raises:
            InputError: root or category is missing, a folder holds no images, or a mask has no
                image.
        """
        root = find_root(self.root, LAYOUT, self.SOURCE.page)
        return read_category(files, find_category(root, self.category, LAYOUT), LAYOUT)
