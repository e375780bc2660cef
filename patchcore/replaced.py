"""Words for results that another run in the same folder replaces."""

import re
from collections.abc import Iterator
from typing import Any

from patchcore.errors import few

_FILE = re.compile(r"(.+)@([0-9a-f]{32})")
"""Matches a weights file, by name and digest, in the settings of provenance.json."""


def what_differs(before: Any, settings: Any) -> str:
    """Return which results are replaced, and why.

    Args:
        before: Settings that made the results that are there, as in provenance.json.
        settings: Settings of the present run, which differ from them.
    """
    if _undigested(before) != _undigested(settings):
        return "the results of another point are replaced"
    old = {*_files(before)}
    changed = sorted({name for name, digest in _files(settings) if (name, digest) not in old})
    return f"its results are replaced, as {few(changed)} (backbone.weights) has changed since"


def _undigested(settings: Any) -> Any:
    """Settings with weights files by their names alone."""
    if isinstance(settings, dict):
        return {
            key: _named(value)[0] if key == "weights" else _undigested(value)
            for key, value in settings.items()
        }
    return [*map(_undigested, settings)] if isinstance(settings, list) else settings


def _files(settings: Any) -> Iterator[tuple[str, str]]:
    """Name and digest of every weights file in settings."""
    if isinstance(settings, dict) and (found := _named(settings.get("weights")))[1]:
        yield found
    for value in settings.values() if isinstance(settings, dict) else settings:
        if isinstance(value, dict | list):
            yield from _files(value)


def _named(value: Any) -> tuple[Any, str]:
    """Name and digest of a weights file; other weights as they are, without a digest."""
    found = _FILE.fullmatch(value) if isinstance(value, str) else None
    return (found[1], found[2]) if found else (value, "")
