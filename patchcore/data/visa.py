"""Visual Anomaly, VisA (Zou et al., 2022): circuit boards, foods and candles.

12 categories, 9,621 nominal and 1,200 anomalous images.

Citation: Y. Zou, J. Jeong, L. Pemula, D. Zhang, O. Dabeer. SPot-the-Difference Self-Supervised
Pre-training for Anomaly Detection and Segmentation. ECCV 2022.
Layout: `LAYOUT`. The table has the columns object, split (train or test), label (normal or
anomaly), image and mask; the last two are paths relative to root. The pixels of a mask hold the
number of the kind of defect, 0 for nominal. Without this table, root is read in the layout of
MVTec AD, which the owners' preparation script writes, with anomalous images in `test/bad`.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from patchcore.data import mvtec
from patchcore.data.files import Files
from patchcore.data.layout import (
    find_category,
    find_root,
    listed,
    marks,
    no_category,
    read_category,
)
from patchcore.data.sample import Category, DataConfig, Masks, Sample, Split
from patchcore.data.source import Archive, Source
from patchcore.errors import InputError, printable, unreadable
from patchcore.settings import setting

TABLE = "split_csv/1cls.csv"
COLUMNS = ["object", "split", "label", "image", "mask"]
LAYOUT = f"{TABLE}, {{category}}/Data/{{Images,Masks}}/{{Normal,Anomaly}}"


@dataclass(kw_only=True)
class VisAConfig(DataConfig):
    """One category of VisA, with its owners' one-class split: training on nominal images only."""

    CATEGORIES: ClassVar = (
        "candle",
        "capsules",
        "cashew",
        "chewinggum",
        "fryum",
        "macaroni1",
        "macaroni2",
        "pcb1",
        "pcb2",
        "pcb3",
        "pcb4",
        "pipe_fryum",
    )
    SOURCE: ClassVar = Source(
        page="https://github.com/amazon-science/spot-diff",
        licence="CC BY 4.0",
        archive=Archive(
            "https://amazon-visual-anomaly.s3.us-west-2.amazonaws.com/VisA_20220922.tar",
            ("split_csv", "candle", "pcb1"),
            "2eb8690c803ab37de0324772964100169ec8ba1fa3f7e94291c9ca673f40f362",
        ),
    )

    root: str = setting(
        "data/visa", "folder that contains the categories and split_csv", effect=False
    )
    category: Category = setting("candle", "folder of the category, below root")

    def _read(self, files: Files) -> Split:
        """Return training and test images as the table lists them, sorted by path.

        Raises:
            InputError: root, category, or an image or mask in the table is missing; the table is
                malformed or lists anomalous training images; or a mask is not in the table, or
                marks part of a nominal image.
        """
        root = find_root(self.root, LAYOUT, self.SOURCE.page)
        table = root / TABLE
        if not table.is_file():
            layout = f"{LAYOUT}; or {mvtec.LAYOUT}"
            return read_category(files, find_category(root, self.category, layout), layout)
        rows = _rows(table)
        if all(row["object"] != self.category for row in rows):
            raise no_category(root, self.category, sorted({row["object"] for row in rows}), LAYOUT)
        sides: dict[str, list[Sample]] = {"train": [], "test": []}
        listed: set[Path] = set()
        for row in rows:
            if row["object"] == self.category:
                sides[row["split"]].append(_sample(root, row))
                listed |= {root / row["image"], root / row["mask"]}
        if any(sample.label for sample in sides["train"]):
            raise InputError(f"{table}: lists anomalous images to train on; restore the file")
        images, masks = (
            set(files.images(place, recursive=True)) if place.is_dir() else set()
            for place in (root / self.category / "Data" / kind for kind in ("Images", "Masks"))
        )
        if more := images - listed:
            files.note(f"{len(more)} not listed in {table} (such as {min(more)})")
        if lost := masks - listed:
            raise InputError(
                f"{min(lost)}: {table} lists no image for this mask; remove the mask or restore "
                "the table"
            )
        train, test = (sorted(side, key=lambda s: s.path.as_posix()) for side in sides.values())
        return Split(train, test)


def _rows(table: Path) -> list[dict[str, str]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            names, rows = reader.fieldnames, [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: cannot be read ({error}); restore the file") from None
    if names != COLUMNS:
        words = f"the columns should be {', '.join(COLUMNS)}, with commas; restore the file"
        raise unreadable(table, f"{table}: {words}")
    lines: dict[tuple[str, Path], int] = {}
    for line, row in rows:
        sides, labels = ("train", "test"), ("normal", "anomaly")
        if row["split"] not in sides or row["label"] not in labels or not row["image"]:
            raise InputError(
                f"{table}: line {line} should say train or test, and normal or anomaly, and name "
                "an image; restore the file"
            )
        if (first := lines.setdefault((row["object"], Path(row["image"])), line)) != line:
            raise InputError(
                f"{table}: line {line} lists {printable(row['image'])}, as line {first} does; "
                "remove one of the two"
            )
    return [row for _, row in rows]


def _sample(root: Path, row: dict[str, str]) -> Sample:
    folder = root / row["object"]
    files = [listed(root / TABLE, root, row[key], folder) for key in ("image", "mask") if row[key]]
    mask = Masks((files[1],), labels=True) if row["mask"] else None
    if row["label"] == "anomaly":
        return Sample(files[0], 1, "anomaly", mask)
    if mask is not None and marks(mask):
        raise InputError(f"{mask}: marks part of {files[0]}, which {root / TABLE} calls normal")
    return Sample(files[0], 0)
