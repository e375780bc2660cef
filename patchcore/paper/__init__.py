"""The numbers that the PatchCore paper prints (Roth et al.), one file per table, in its own units.

Each row is a metric of a method; each column is an average, a category, a data set, a number of
shots or a share of the memory. A cell that the paper leaves out is "-"; repeats are "mean ±
deviation". Cells that cannot be right are listed in `DOUBTFUL`. Figures print no values; text.csv
has two that only the running text states.
"""

import csv
import math
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from patchcore.errors import InputError
from patchcore.metrics import METRICS, told

CATEGORIES = {"mvtec": 15, "mstc": 12}
"""Number of categories that the paper averages over: {choice of the group data: number}."""
NAMES = {"seconds_per_image": "milliseconds_per_image"}
"""Names of metrics in `patchcore.metrics` that differ from the files: {name in a file: ours}."""
AVERAGE = "average_"
"""Prefix of the name of a value that is a mean over all categories of the data set."""
DOUBTFUL = {
    ("table_4", "aupro error", "ensemble_320", "average"): "100 - 94.9 is 5.1, not 5.6",
    ("table_s1", "image_auroc", "DifferNet", "average"): "its categories average 94.7",
    ("table_s6", "image_auroc", "patchcore_10", "wide_resnet50_2"): "Table 1 has 99.0",
}
"""Reasons to doubt a cell: {(table, metric, method, column): reason}."""

Table = Mapping[tuple[str, str], Mapping[str, str]]
"""{(metric, method): {column: cell}}, as printed."""


@cache
def table(name: str) -> Table:
    """Return one of the paper's tables: `table_1` to `table_6`, `table_s1` to `table_s6`, `text`.

    Raises:
        FileNotFoundError: There is no such table.
    """
    with (Path(__file__).parent / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return {(row.pop("metric"), row.pop("method")): row for row in csv.DictReader(file)}


def number(cell: str | None) -> float | None:
    """Return the value in a cell, or the mean of repeats; None where the paper has none."""
    return float(cell.partition("±")[0]) if cell and cell != "-" else None


def check_values(values: Mapping[str, float]) -> None:
    """Refuse values beside which no run's can be shown.

    Args:
        values: {metric: value}, as `stated` returns them.

    Raises:
        InputError: There is no such metric, or it cannot have such a value.
    """
    for key, value in values.items():
        name = key.removeprefix(AVERAGE)
        if name.partition(".")[0] not in METRICS:
            close = get_close_matches(name, METRICS, 1)
            rest = f"did you mean paper.{close[0]}?" if close else "name one as metrics.json does"
            raise InputError(f"paper.{key}: there is no such metric; {rest}")
        low, high = told(name).low, told(name).high
        if not low <= value <= high:
            bounds = f"in [{low:g}, {high:g}]" if high < math.inf else f"at least {low:g}"
            advice = ": divide a percentage by 100" if high == 1 < value <= 100 else ""
            raise InputError(f"paper.{key} must be {bounds}, got {value:g}{advice}")


def stated(
    tables: str, method: str, column: str = "", data: str = "mvtec", category: str = ""
) -> dict[str, float]:
    """Return the paper's values for one run: {metric: value}; empty if it states none.

    Rates are in [0, 1], times in milliseconds. Names of means over all categories begin with
    `AVERAGE`.

    Args:
        tables: Names of tables, separated by blanks.
        method: Name of the method in the tables' files.
        column: Number of shots or network, where the tables have such columns.
        data: Choice of the group data.
        category: Category of the data set.
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
