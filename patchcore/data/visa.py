"""Visual Anomaly, VisA (Zou et al., 2022): circuit boards, foods and candles.

12 categories, 9,621 nominal and 1,200 anomalous images.

Source: https://github.com/amazon-science/spot-diff, or `patchcore fetch visa`.
Licence: CC BY 4.0.
Citation: Y. Zou, J. Jeong, L. Pemula, D. Zhang, O. Dabeer. SPot-the-Difference Self-Supervised
Pre-training for Anomaly Detection and Segmentation. ECCV 2022.
Layout: `LAYOUT`. The table has the columns object, split (train or test), label (normal or
anomaly), image and mask, both relative to root; the pixels of a mask number the kind of defect, and
0 is nominal. Without that table, root is taken for what the owners' preparation script writes: the
layout of MVTec AD, with anomalous images in `test/bad`.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

from patchcore.data import mvtec
from patchcore.data.images import list_images
from patchcore.data.layout import find_category, find_root, no_category, read_category
from patchcore.data.sample import DataConfig, Masks, Sample, Split
from patchcore.errors import InputError
from patchcore.settings import setting

TABLE = "split_csv/1cls.csv"
COLUMNS = ["object", "split", "label", "image", "mask"]
LAYOUT = f"{TABLE}, {{category}}/Data/{{Images,Masks}}/{{Normal,Anomaly}}"
SOURCE = "The data are at https://github.com/amazon-science/spot-diff"


@dataclass(kw_only=True)
class VisAConfig(DataConfig):
    """One category of VisA, divided as its owners do for training on nominal images alone."""

    root: str = setting("data/visa", effect=False)  # folder that holds the categories and split_csv
    category: str = "candle"  # folder below root

    def _read(self) -> Split:
        """Training and test images as the table lists them, sorted by path.

        Raises:
            InputError: root, category, or an image or mask that the table lists is missing, the
                table is no such table, or a mask is not in it.
        """
        root = find_root(self.root, LAYOUT, SOURCE)
        table = root / TABLE
        if not table.is_file():
            layout = f"{LAYOUT}; or {mvtec.LAYOUT}"
            return read_category(find_category(root, self.category, layout), layout)
        rows = _rows(table)
        if all(row["object"] != self.category for row in rows):
            raise no_category(root, self.category, sorted({row["object"] for row in rows}), LAYOUT)
        sides: dict[str, list[Sample]] = {"train": [], "test": []}
        for row in rows:
            if row["object"] == self.category:
                sides[row["split"]].append(_sample(root, row))
        if any(sample.label for sample in sides["train"]):
            raise InputError(f"{table}: lists anomalous images to train on; restore the file")
        masks = root / self.category / "Data" / "Masks"
        used = {path for side in sides["test"] for path in _paths(side)}
        if lost := set(list_images(masks, recursive=True)) - used:
            raise InputError(
                f"{min(lost)}: this mask is of no image that {table} lists; remove the mask or "
                "restore the table"
            )
        train, test = (sorted(side, key=lambda s: s.path.as_posix()) for side in sides.values())
        return Split(train, test)


def _rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if reader.fieldnames != COLUMNS:
        raise InputError(f"{table}: the columns should be {', '.join(COLUMNS)}; restore the file")
    for line, row in enumerate(rows, start=2):
        if row["split"] not in ("train", "test") or row["label"] not in ("normal", "anomaly"):
            raise InputError(
                f"{table}: line {line} should say train or test, and normal or anomaly; "
                "restore the file"
            )
    return rows


def _sample(root: Path, row: dict[str, str]) -> Sample:
    files = [root / row[key] for key in ("image", "mask") if row[key]]
    for path in files:
        if not path.is_file():
            raise InputError(f"{path}: no such file, though {root / TABLE} lists it; restore it")
    if row["label"] == "normal":
        return Sample(files[0], 0)
    mask = Masks((files[1],), labels=True) if row["mask"] else None
    return Sample(files[0], 1, "anomaly", mask)


def _paths(sample: Sample) -> tuple[Path, ...]:
    return sample.mask.paths if isinstance(sample.mask, Masks) else ()
