"""Metal Parts Defect Detection (Jezek et al., 2021): painted and machined parts in any position.

6 categories, 888 nominal training and 458 test images of 1024×1024 pixels, 282 of them anomalous.

Citation: S. Jezek, M. Jonak, R. Burget, P. Dvorak, M. Skotak. Deep Learning-Based Defect Detection
of Metal Parts: Evaluating Current Methods in Complex Conditions. ICUMT 2021.
Layout: `LAYOUT`, that of MVTec AD; the mask of `test/scratches/7.png` is
`ground_truth/scratches/7_mask.png`.
"""

from dataclasses import dataclass
from typing import ClassVar

from patchcore.data.files import Files
from patchcore.data.layout import find_category, find_root, read_category
from patchcore.data.mvtec import LAYOUT
from patchcore.data.sample import Category, DataConfig, Split
from patchcore.data.source import NON_COMMERCIAL, Archive, Source
from patchcore.settings import setting


@dataclass(kw_only=True)
class MPDDConfig(DataConfig):
    """One category of Metal Parts Defect Detection."""

    CATEGORIES: ClassVar = (
        "bracket_black",
        "bracket_brown",
        "bracket_white",
        "connector",
        "metal_plate",
        "tubes",
    )
    SOURCE: ClassVar = Source(
        page="https://github.com/stepanje/MPDD",
        licence=NON_COMMERCIAL,
        archive=Archive(None, CATEGORIES),
    )

    root: str = setting("data/mpdd", "folder that contains the categories", effect=False)
    category: Category = setting("bracket_black", "folder of the category, below root")

    def _read(self, files: Files) -> Split:
        """Return the split: `train/good` to train on, everything below `test` to test on.

        Raises:
            InputError: root or category is missing, a folder holds no images, or a mask has no
                image.
        """
        root = find_root(self.root, LAYOUT, self.SOURCE.page)
        return read_category(files, find_category(root, self.category, LAYOUT), LAYOUT)
