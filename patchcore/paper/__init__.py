"""The numbers that the paper prints, one file a table, in its own units.

Each row is a metric of a method; each column an average or one category, data set, number of shots
or share of the memory. What the paper leaves out is "-"; repeats are "mean ± deviation". Cells that
cannot be right are named in `DOUBTFUL`. The figures' values are not printed; two of the text are in
text.csv.
"""

import csv
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from patchcore.metrics import METRICS

CATEGORIES = {"mvtec": 15, "mstc": 12}
"""Number of categories that the paper averages over, by choice of the group data."""
NAMES = {"seconds_per_image": "milliseconds_per_image"}
"""Our names of metrics, where they differ from the files'."""
AVERAGE = "average_"
"""Begins the name of a value that is a mean over all categories of the data set."""
DOUBTFUL = {
    ("table_4", "aupro error", "ensemble_320", "average"): "100 - 94.9 is 5.1, not 5.6",
    ("table_s1", "image_auroc", "DifferNet", "average"): "its categories average 94.7",
    ("table_s6", "image_auroc", "patchcore_10", "wide_resnet50_2"): "Table 1 has 99.0",
}
"""{(table, metric, method, column): why}."""

Table = Mapping[tuple[str, str], Mapping[str, str]]
"""{(metric, method): {column: cell}}, as printed."""


@cache
def table(name: str) -> Table:
    """One of the paper's tables: `table_1` to `table_6`, `table_s1` to `table_s6`, `text`."""
    with (Path(__file__).parent / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return {(row.pop("metric"), row.pop("method")): row for row in csv.DictReader(file)}


def number(cell: str | None) -> float | None:
    """The value, or mean of repeats, in a cell; None where the paper has none."""
    return float(cell.partition("±")[0]) if cell and cell != "-" else None


def stated(
    tables: str, method: str, column: str = "", data: str = "mvtec", category: str = ""
) -> dict[str, float]:
    """Return the paper's values for one run: {metric: value}, in our units; empty where none.

    A mean over the categories is no value of one of them: its name begins with `AVERAGE`.

    Args:
        tables: Names of tables, separated by blanks.
        method: As in the tables' files.
        column: Shots or network, where the tables have such columns.
        data: Choice of the group data.
        category: Of the data set.
    """
    found = {}
    average = column or ("average" if data == "mvtec" else data)
    for name in tables.split():
        for (metric, row), cells in table(name).items():
            key = NAMES.get(metric, metric)
            if key not in METRICS or row != method or (column and data != "mvtec"):
                continue
            # The tables print rates in percent and times in seconds.
            scale = 0.01 if METRICS[key].high == 1 else 1000.0
            own = data == "mvtec" and not column
            value = number(cells.get(category)) if own else None
            if value is None:
                value = number(cells.get(average))
                key = AVERAGE + key if data in CATEGORIES else key
            if value is not None:
                found[key] = round(value * scale, 6)
    return found
