"""Options and choices of earlier versions, and their successors."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

GROUPS = {"model": "method", "search": "hparams_search"}
"""Groups, and keys that begin with them."""

PRESETS = (
    *("ensemble_320", "patchcore_1", "patchcore_10", "patchcore_100", "patchcore_100_ivfpq"),
    *("patchcore_25", "wide_resnet101_280", "wide_resnet101_280_123"),
)
CHOICES = {
    **{f"method={name}": f"preset={name}" for name in PRESETS},
    **{f"patch=p{size}": f"patch.size={size}" for size in (1, 3, 5, 7)},
    **{f"layers=only{level}": f"layers={level}" for level in (1, 2, 3)},
    "scoring=cosine": "scoring.distance=cosine",
    "scoring=maximum": "scoring.reweight=0",
    "scoring=squared": "scoring.distance=squared",
    **{f"experiment=paper/table_{n}": "experiment=paper/table_1" for n in (2, 3, "s1", "s2", "s3")},
    "experiment=paper/figure_s3": "experiment=paper/table_1",
    "experiment=paper/figure_s2": "experiment=paper/figure_s1",
    "experiment=paper/figure_6": "experiment=paper/table_s5",
}
"""Choices of groups."""


def successor(key: str, value: str = "") -> str | None:
    """Return the option that took the place of `key` or its choice `value`; None if none did."""
    if value and (now := CHOICES.get(f"{key}={value}")):
        return now
    group, dot, rest = key.partition(".")
    if group in GROUPS:
        return f"{GROUPS[group]}{dot}{rest}{f'={value}' if value else ''}"
    return None


def renamed(key: str, values: str) -> str | None:
    """Return what to say of an override that has a successor; None if it has none.

    Args:
        key: Key or group.
        values: One value, or several with commas between them, as typed.
    """
    for value in values.split(",") if re.fullmatch(r"[\w/+.,-]*", values) else [""]:
        if (now := successor(key, value)) is not None:
            typed = f"{key}={value}" if value else key
            return f"{typed}: is now called {now}"
    return None


def renamed_in_file(content: Mapping[Any, Any], in_root: bool) -> Iterator[str]:
    """Yield what to say of what a settings file holds and earlier versions knew.

    Args:
        content: Of the file.
        in_root: Whether its keys lie at the root of all settings.
    """
    given = []
    for default in content.get("defaults") or []:
        for name, choice in default.items() if isinstance(default, Mapping) else ():
            given.append((str(name).removeprefix("override").strip().lstrip("/"), choice))
    if in_root:
        given += [(str(key), "") for key in content]
        node: Any = content
        for key in ("hydra", "sweeper", "params"):
            node = node.get(key) if isinstance(node, Mapping) else None
        given += node.items() if isinstance(node, Mapping) else ()
    for key, value in given:
        if (told := renamed(str(key), str(value))) is not None:
            yield told
