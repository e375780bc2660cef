"""MVTec AD (Bergmann et al., 2019), whose folder layout several other data sets follow as well.

15 categories, 3,629 nominal training and 1,725 test images.

Source: https://www.mvtec.com/company/research/datasets/mvtec-ad, or `patchcore fetch mvtec`.
Licence: CC BY-NC-SA 4.0 (not for commercial use).
Citation: P. Bergmann, M. Fauser, D. Sattlegger, C. Steger. MVTec AD – A Comprehensive Real-World
Dataset for Unsupervised Anomaly Detection. CVPR 2019.
Layout: `LAYOUT`; the mask of `test/scratch/7.png` is `ground_truth/scratch/7_mask.png` or `7.png`.
"""

from dataclasses import dataclass

from patchcore.data.layout import find_category, find_root, read_category
from patchcore.data.sample import DataConfig, Split
from patchcore.settings import setting

LAYOUT = "{category}/train/good, {category}/test/{defect}, {category}/ground_truth/{defect}"
SOURCE = "MVTec AD itself is at https://www.mvtec.com/company/research/datasets/mvtec-ad"


@dataclass(kw_only=True)
class MVTecConfig(DataConfig):
    """One category of a data set in the layout of MVTec AD (Bergmann et al., 2019)."""

    root: str = setting("data/mvtec", effect=False)  # folder that holds the categories
    category: str = "bottle"  # folder below root

    def _read(self) -> Split:
        """Nominal `train/good` to train on, everything below `test` to test on.

        An anomalous image may lack its mask; a mask may not lack its image.

        Raises:
            InputError: root or category is missing, a folder holds no images, or a mask has no
                image.
        """
        root = find_root(self.root, LAYOUT, SOURCE)
        return read_category(find_category(root, self.category, LAYOUT), LAYOUT)
