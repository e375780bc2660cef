"""Words and numbers of a report: titles, units, and how values are sorted and shown."""

import json
import math
from collections.abc import Iterable
from typing import Any

from patchcore.errors import printable
from patchcore.metrics import told
from patchcore.report.checks import is_number


def falls(metric: str) -> bool:
    """Return whether less of `metric` is better."""
    return told(metric).better == "low"


def is_left_out(metric: str) -> bool:
    """Return whether `metric` counts what other metrics do not cover."""
    return told(metric).of == "masks"


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def show(value: Any) -> str:
    """A setting as one would write it in an override; – where a run does not have it."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, list | dict | bool):
        return printable(json.dumps(value, default=str).replace('"', "").replace(", ", ","))
    return printable(str(value))


def title(metric: str) -> str:
    """A metric's name, with its unit, for people; of a stage, its key."""
    return metric.replace("_", " ") if "." in metric else told(metric).title


def number(metric: str, value: float) -> str:
    """A metric's value in the unit of its title."""
    if math.isnan(value):
        return "undefined"
    measure = told(metric)
    if measure.decimals is not None:
        return f"{value:.{measure.decimals}f}"
    value *= measure.scale
    if value == 0 or (value == round(value) and measure.scale == 1):
        return f"{value:,.0f}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def natural(text: str) -> list[tuple[bool, int, str]]:
    """A key that sorts 10 after 9."""
    parts: list[str] = [""]
    for sign in text:
        if sign.isdigit() != parts[-1][-1:].isdigit():
            parts.append("")
        parts[-1] += sign
    return [(not p.isdecimal(), int(p) if p.isdecimal() else 0, p) for p in parts if p]


def rank(value: Any) -> tuple[int, float, list[tuple[bool, int, str]]]:
    """A key that sorts numbers, then text, None last."""
    if is_number(value):
        return 0, value, []
    return (2, 0.0, []) if value is None else (1, 0.0, natural(show(value)))


def distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once, sorted by `rank`."""
    return sorted({token(value): value for value in values}.values(), key=rank)


def token(value: Any) -> str:
    """A text that is equal for equal values."""
    if is_number(value):
        return repr(float(value))
    return json.dumps(value, sort_keys=True, default=str)
