"""beanTech Anomaly Detection (Mishra et al., 2021): three products from a factory.

Category 01 has 400 nominal training and 70 test images, 02 has 399 and 230, 03 has 1,000 and 441.

Citation: P. Mishra, R. Verk, D. Fornasier, C. Piciarelli, G. L. Foresti. VT-ADL: A Vision
Transformer Network for Image Anomaly Detection and Localization. ISIE 2021.
Layout: `LAYOUT`; images and masks are .png or .bmp. A mask has the name of its image; their formats
may differ.
"""

from dataclasses import dataclass
from typing import ClassVar

from patchcore.data.files import Files
from patchcore.data.layout import find_category, find_root, note_missing, read_category
from patchcore.data.sample import Category, DataConfig, Split
from patchcore.data.source import NON_COMMERCIAL, Archive, Source
from patchcore.settings import setting

LAYOUT = "{category}/train/ok, {category}/test/{ok,ko}, {category}/ground_truth/ko"


@dataclass(kw_only=True)
class BTADConfig(DataConfig):
    """One category of beanTech Anomaly Detection: 01, 02 or 03."""

    CATEGORIES: ClassVar = ("01", "02", "03")
    SOURCE: ClassVar = Source(
        page="http://avires.dimi.uniud.it/papers/btad/btad.zip",
        licence=NON_COMMERCIAL,
        archive=Archive(
            "https://avires.dimi.uniud.it/papers/btad/btad.zip",
            CATEGORIES,
            "461c9387e515bfed41ecaae07c50cf6b10def647b36c9e31d239ab2736b10d2a",
        ),
    )

    root: str = setting("data/btad", "folder that contains the categories", effect=False)
    category: Category = setting("01", "folder of the category, below root")

    def _read(self, files: Files) -> Split:
        """Nominal `train/ok` to train on, `test/ok` and `test/ko` to test on.

        Raises:
            InputError: root or category is missing, a folder holds no images, or a mask has no
                image.
        """
        root = find_root(self.root, LAYOUT, self.SOURCE.page)
        folder = find_category(root, self.category, LAYOUT)
        note_missing(files, folder / "test", ("ok", "ko"))
        return read_category(files, folder, LAYOUT, nominal="ok")
