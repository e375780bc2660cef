"""beanTech Anomaly Detection (Mishra et al., 2021): three products from a factory.

Category 01 has 400 nominal training and 70 test images, 02 has 399 and 230, 03 has 1,000 and 441.

Source: http://avires.dimi.uniud.it/papers/btad/btad.zip, or `patchcore fetch btad`.
Licence: CC BY-NC-SA 4.0 (not for commercial use).
Citation: P. Mishra, R. Verk, D. Fornasier, C. Piciarelli, G. L. Foresti. VT-ADL: A Vision
Transformer Network for Image Anomaly Detection and Localization. ISIE 2021.
Layout: `LAYOUT`; images and masks are .png or .bmp, and a mask is named like its image, whatever
the format of either.
"""

from dataclasses import dataclass

from patchcore.data.layout import find_category, find_root, read_category
from patchcore.data.sample import DataConfig, Split
from patchcore.settings import setting

LAYOUT = "{category}/train/ok, {category}/test/{ok,ko}, {category}/ground_truth/ko"
SOURCE = "The data are at http://avires.dimi.uniud.it/papers/btad/btad.zip"


@dataclass(kw_only=True)
class BTADConfig(DataConfig):
    """One category of beanTech Anomaly Detection: 01, 02 or 03."""

    root: str = setting("data/btad", effect=False)  # folder that holds the categories
    category: str = "01"  # folder below root

    def _read(self) -> Split:
        """Nominal `train/ok` to train on, `test/ok` and `test/ko` to test on.

        Raises:
            InputError: root or category is missing, a folder holds no images, or a mask has no
                image.
        """
        root = find_root(self.root, LAYOUT, SOURCE)
        return read_category(find_category(root, self.category, LAYOUT), LAYOUT, nominal="ok")
