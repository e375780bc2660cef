"""Checks of the content of metrics.json."""

import math
import re
from collections.abc import Iterator
from typing import Any

from patchcore.metrics import METRICS, Measure, told
from patchcore.subsets import SUBSETS

LARGEST = 1e100
"""Largest number that can be meant; sums and squares of larger ones would overflow."""
ROUNDING = 1e-6
"""Tolerance for rates outside of their range that were summed in floating point."""
STRUCTURES = {"seconds", "undefined", "ratio_curve", "members", "warm", *SUBSETS}
"""Keys of metrics.json that hold more than one number."""


def problems(record: dict[str, Any]) -> Iterator[str]:
    """Yield the problems of the content of metrics.json, one line each."""
    if not any(key in METRICS for key in record):
        yield "it holds no metric"
    numbers = {key: value for key, value in record.items() if key not in STRUCTURES}
    measures = [told(key) for key in numbers]
    for (key, value), measure in zip(numbers.items(), measures, strict=True):
        if not is_title(key):
            yield "a key is no name of a metric"
        elif problem := _wrong(key, value, measure):
            yield f"{key} {problem}"
    seconds = record.get("seconds", {})
    if not isinstance(seconds, dict):
        yield "seconds must be a mapping"
    else:
        for key, value in seconds.items():
            if not is_title(key):
                yield "a key of seconds is no name of a stage"
            elif not is_finite(value) or value < 0:
                yield f"seconds.{key} must be a number in [0, {LARGEST:g}]"
    undefined = record.get("undefined", {})
    if not isinstance(undefined, dict) or not all(isinstance(x, str) for x in undefined.values()):
        yield "undefined must be a mapping of reasons"
    warm = record.get("warm", [])
    if not isinstance(warm, list) or not all(isinstance(x, str) for x in warm):
        yield "warm must be a list of stages"
    for name in ("defect_types", "categories"):
        parts = record.get(name, {})
        if not isinstance(parts, dict) or not all(isinstance(x, dict) for x in parts.values()):
            yield f"{name} must be a mapping of mappings"
    if not isinstance(record.get("intervals", {}), dict):
        yield "intervals must be a mapping"
    for name in ("ratio_curve", "members"):
        rows = record.get(name, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            yield f"{name} must be a list of mappings"
    for number, row in enumerate(_rows(record.get("ratio_curve")), 1):
        if not is_finite(row.get("ratio")) or not 0 < row["ratio"] <= 1:
            yield f"ratio_curve: entry {number} has no ratio in (0, 1]"
        for key, value in row.items():
            if not is_title(key):
                yield f"ratio_curve: a key of entry {number} is no name of a metric"
            elif problem := _wrong(key, value, told(key)):
                yield f"ratio_curve: {key} of entry {number} {problem}"
    for number, row in enumerate(_rows(record.get("members")), 1):
        metrics = row.get("metrics", {})
        if not isinstance(metrics, dict):
            yield f"members: metrics of member {number} must be a mapping"
            continue
        for key, value in metrics.items():
            if problem := _wrong(key, value, told(key)):
                yield f"members: a metric of member {number} {problem}"


def _rows(value: Any) -> list[dict[str, Any]]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def is_metric(key: str, value: Any) -> bool:
    """Return whether an entry is a metric; readers skip other entries, as of newer versions."""
    return key in METRICS or value is None or is_number(value)


def _wrong(key: str, value: Any, measure: Measure) -> str:
    """Return why `value` cannot be a value of the metric `key`; empty if it can."""
    if value is None or not is_metric(key, value):
        return ""
    if not is_finite(value):
        return f"must be null or a finite number of at most {LARGEST:g} in size"
    if measure.whole and (value < measure.low or value != round(value)):
        return f"must be a whole number of at least {measure.low:g}"
    if math.isfinite(measure.high):
        if not measure.low - ROUNDING <= value <= measure.high + ROUNDING:
            return f"must lie in [{measure.low:g}, {measure.high:g}]"
    elif value < measure.low:
        return f"must be at least {measure.low:g}"
    return ""


def is_finite(value: Any) -> bool:
    """Return whether `value` is a number that is finite and at most `LARGEST` in size."""
    return is_number(value) and abs(value) <= LARGEST


def is_number(value: Any) -> bool:
    """Return whether `value` is an integer or float, but not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_title(key: str) -> bool:
    """Return whether `key` can be the name of a metric."""
    return re.fullmatch(r"[A-Za-z]\w{0,79}", key, re.ASCII) is not None
