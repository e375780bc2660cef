"""Text for a report: titles with units, and values as they are sorted and shown."""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from patchcore.errors import printable
from patchcore.metrics import told
from patchcore.report.checks import is_number


def falls(metric: str) -> bool:
    """Return whether smaller values of `metric` are better."""
    return told(metric).better == "low"


def is_left_out(metric: str) -> bool:
    """Return whether `metric` counts images or regions that other metrics leave out."""
    return told(metric).of == "masks"


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one flat mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def show(value: Any) -> str:
    """Return the value of a setting as text, as in an override; – for None."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, list | dict | bool):
        return printable(json.dumps(value, default=str).replace('"', "").replace(", ", ","))
    return printable(str(value))


def typed(value: Any) -> str:
    """Return the value of a setting as it is typed in an override: null for None."""
    return "null" if value is None else show(value)


def title(metric: str) -> str:
    """Return the readable name of a metric, with its unit; dotted keys only lose underscores."""
    return metric.replace("_", " ") if "." in metric else told(metric).title


def steady(value: float) -> float:
    """Return a value without the rounding errors of sums, in 12 significant digits.

    >>> steady(0.6625000000000001), steady(float("inf"))
    (0.6625, inf)
    """
    return float(f"{value:.12g}")


def number(metric: str, value: float) -> str:
    """Return the value of a metric as text, in the unit of its title."""
    if math.isnan(value):
        return "undefined"
    value = steady(value)
    measure = told(metric)
    if measure.decimals is not None:
        return f"{value:.{measure.decimals}f}"
    value *= measure.scale
    if value == 0 or (value == round(value) and measure.scale == 1):
        return f"{value:,.0f}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def natural(text: str) -> list[tuple[bool, int, str]]:
    """Return a sort key of text by which 10 comes after 9."""
    parts: list[str] = [""]
    for sign in text:
        if sign.isdigit() != parts[-1][-1:].isdigit():
            parts.append("")
        parts[-1] += sign
    return [(not p.isdecimal(), int(p) if p.isdecimal() else 0, p) for p in parts if p]


def rank(value: Any) -> tuple[int, float, list[tuple[bool, int, str]]]:
    """Return a sort key: numbers first, then text, None last."""
    if is_number(value):
        return 0, value, []
    return (2, 0.0, []) if value is None else (1, 0.0, natural(show(value)))


def distinct(values: Iterable[Any]) -> list[Any]:
    """Return the distinct values, sorted by `rank`."""
    return sorted({token(value): value for value in values}.values(), key=rank)


def listing(words: Sequence[str]) -> str:
    """Return words as they are listed in a sentence, the last one after `and`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def token(value: Any) -> str:
    """Return a text that is equal for equal values."""
    if is_number(value):
        return repr(float(value))
    return json.dumps(value, sort_keys=True, default=str)
