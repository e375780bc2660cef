"""Real-IAD (Wang et al., 2024): thirty products, each photographed from five sides.

30 categories, 99,721 nominal and 51,329 anomalous images.

Citation: C. Wang, W. Zhu, B.-B. Gao, Z. Gan, J. Zhang, Z. Gu, S. Qian, M. Chen, L. Ma. Real-IAD: A
Real-World Multi-View Dataset for Benchmarking Versatile Industrial Anomaly Detection. CVPR 2024.
Layout: `LAYOUT`. The table is a JSON file with lists `train` and `test`, whose entries have
`image_path` and `mask_path` (null for nominal images), both below the category's folder, and
`anomaly_class`, which is OK for nominal images. There are tables of other divisions:
`realiad_jsons_sv` has a single view, and `realiad_jsons_fuiad_0.1`, for example, has a share of 0.1
of anomalous training images. Their folders may lie in `realiad_jsons` or beside it. The images come
in several sizes, with a folder for each. The data are given out only on request: this layout is
taken from programs that read it, and was not checked with the data themselves.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from patchcore.data.files import Files
from patchcore.data.layout import by_folder, find_root, listed, marks, no_category
from patchcore.data.sample import Category, DataConfig, Sample, Split
from patchcore.data.source import NON_COMMERCIAL, Archive, Source
from patchcore.errors import InputError, printable, unreadable
from patchcore.settings import setting

LAYOUT = "realiad_jsons/{category}.json and the images that it lists, below realiad_1024/{category}"


@dataclass(kw_only=True)
class RealIADConfig(DataConfig):
    """One category of Real-IAD; all views that the table lists share one memory."""

    CATEGORIES: ClassVar = (
        "audiojack",
        "bottle_cap",
        "button_battery",
        "end_cap",
        "eraser",
        "fire_hood",
        "mint",
        "mounts",
        "pcb",
        "phone_battery",
        "plastic_nut",
        "plastic_plug",
        "porcelain_doll",
        "regulator",
        "rolled_strip_base",
        "sim_card_set",
        "switch",
        "tape",
        "terminalblock",
        "toothbrush",
        "toy",
        "toy_brick",
        "transistor1",
        "u_block",
        "usb",
        "usb_adaptor",
        "vcpill",
        "wooden_beads",
        "woodstick",
        "zipper",
    )
    SOURCE: ClassVar = Source(
        page="https://realiad4ad.github.io/Real-IAD",
        licence=NON_COMMERCIAL,
        archive=Archive(None, ("realiad_jsons", "realiad_1024")),
    )

    root: str = setting("data/realiad", "folder that holds tables and images", effect=False)
    category: Category = setting("audiojack", "name of the category")
    images: str = setting(
        "realiad_1024", "folder of the images, inside root; there is one for each image size"
    )
    table: str = setting(
        "realiad_jsons",
        "folder of the tables, inside root; each divides the images into train and test",
    )

    def _read(self, files: Files) -> Split:
        """Return training and test images in the order of the category's table.

        Only the tables of contaminated divisions (`realiad_jsons_fuiad_…`) may list anomalous
        training images.

        Raises:
            InputError: root, the category's table, an image or a mask is missing, the table is
                malformed or lists no training image, or a mask of a nominal image marks something.
        """
        root = find_root(self.root, LAYOUT, self.SOURCE.page)
        places = [root / "realiad_jsons" / self.table, root / self.table]
        tables = [place / f"{self.category}.json" for place in places]
        table = next((path for path in tables if path.is_file()), None)
        if table is None or not self.category:
            there = {path.stem for place in places for path in place.glob("*.json")}
            raise no_category(root, self.category, sorted(there), LAYOUT)
        folder = root / self.images / self.category
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder, though {table} lists its images")
        train, test = ([_sample(folder, table, entry) for entry in side] for side in _lists(table))
        if not train:
            raise InputError(f"{table}: lists no image to train on; restore the file")
        if any(sample.label for sample in train) and "fuiad" not in self.table:
            raise InputError(f"{table}: lists anomalous images to train on; restore the file")
        counts = Counter(sample.path for sample in (*train, *test))
        if twice := sorted(path for path, count in counts.items() if count > 1):
            raise InputError(f"{table}: lists {twice[0]} more than once; remove all but one entry")
        return Split(train, test)

    def _inseparable(self, test: Sequence[Sample]) -> list[list[Sample]]:
        """See `DataConfig`: groups are the views of one part, which share a folder."""
        return by_folder(test)


def _lists(table: Path) -> list[list[Any]]:
    """Lists `train` and `test` of a table."""
    try:
        found = json.loads(table.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:  # with the place in the file
        why = f"{table}: cannot be read as JSON ({error}); restore the file"
        raise unreadable(table, why) from None
    try:
        sides = [found["train"], found["test"]]
    except (KeyError, TypeError):
        sides = [None]
    if not all(isinstance(side, list) for side in sides):
        raise unreadable(table, f"{table}: has no lists train and test; restore the file")
    return sides


def _sample(folder: Path, table: Path, entry: Any) -> Sample:
    entry = entry if isinstance(entry, dict) else {}
    values = [entry.get(key) for key in ("image_path", "anomaly_class")]
    if not all(isinstance(value, str) and value for value in values):
        raise InputError(
            f"{table}: an entry has no image_path and anomaly_class: {printable(str(entry)[:80])}; "
            "restore the file"
        )
    if (category := entry.get("category", folder.name)) != folder.name:
        raise InputError(
            f"{table}: an entry is of the category {printable(str(category)[:80])}; restore the "
            "file"
        )
    names = [values[0], *filter(None, [entry.get("mask_path")])]
    paths = [listed(table, folder, str(name), folder) for name in names]
    mask = paths[1] if paths[1:] else None
    if values[1] != "OK":
        return Sample(paths[0], 1, printable(values[1]), mask)
    if mask is not None and marks(mask):
        raise InputError(f"{mask}: marks part of {paths[0]}, which {table} calls OK")
    return Sample(paths[0], 0)
