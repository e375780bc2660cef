"""Runs by the data that they saw: only metrics of the same data may be ranked together."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from patchcore.report.reading import CATEGORY, RunFolder
from patchcore.report.words import natural, show, token

OF_TRAINING = {"data.shots"}
"""Settings that leave the test images alone: points of different values are ranked together."""


def by_data(runs: Sequence[RunFolder]) -> list[tuple[str, list[RunFolder]]]:
    """Runs by what they were tested on, each with a text that tells it from the others.

    Alike are runs of the same data set with the same settings of it, and the same images where
    their folders tell a digest of them; and points that were run on the same categories.
    """
    versions = _versions(runs)
    families: dict[str, list[RunFolder]] = defaultdict(list)
    told: dict[str, dict[str, Any]] = {}
    for run in runs:
        facts = {**_data_settings(run), "data": run.choices.get("data")}
        key = token([facts, versions[run]])
        families[key].append(run)
        idle = {k: v for k, v in run.idle.items() if k.startswith("data.")}
        told.setdefault(key, {**idle, **facts, "images": _state(versions[run])})
    found = []
    for key, family in families.items():
        sets: dict[tuple[str, ...], list[RunFolder]] = defaultdict(list)
        points: dict[str, list[RunFolder]] = defaultdict(list)
        for run in family:
            points[_point(run)].append(run)
        for point in points.values():
            categories = tuple(sorted({run.category for run in point}, key=natural))
            sets[categories].extend(point)
        for names, members in sets.items():
            listed = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if names[6:] else "")
            found.append(({**told[key], "categories": listed}, members))
    differ = [
        key
        for key in dict.fromkeys(key for facts, _ in found for key in facts)
        if len({token(facts.get(key)) for facts, _ in found}) > 1
    ]
    order = {run: i for i, run in enumerate(runs)}
    return [
        (
            "; ".join(f"{key}={show(facts.get(key))}" for key in differ),
            sorted(members, key=order.__getitem__),
        )
        for facts, members in found
    ]


def _data_settings(run: RunFolder) -> dict[str, Any]:
    """The settings that say which images are tested, but for category and seeds."""
    return {
        key: value
        for key, value in run.settings.items()
        if key.startswith("data.") and key != CATEGORY and key not in OF_TRAINING
        if not key.endswith("seed")
    }


def _point(run: RunFolder) -> str:
    """Equal for runs that differ in category and seeds alone."""
    kept = {k: v for k, v in run.settings.items() if k != CATEGORY and not k.endswith("seed")}
    return token(kept)


def _versions(runs: Sequence[RunFolder]) -> dict[RunFolder, int]:
    """Number of changes of the images since each run under the same settings of the data; 0 for
    the newest, and where a folder does not tell which images it saw."""
    seen: dict[str, dict[str, float]] = defaultdict(dict)  # {cell: {digest: last written}}
    for run in runs:
        if run.digest:
            cell = seen[_cell(run)]
            cell[run.digest] = max(cell.get(run.digest, 0.0), run.written)
    found = {}
    for run in runs:
        cell = seen.get(_cell(run), {})
        newest = sorted(cell, key=lambda digest: (-cell[digest], digest))
        found[run] = newest.index(run.digest) if run.digest else 0
    return found


def _cell(run: RunFolder) -> str:
    """Return a text that is equal where the settings name the same images, of one category."""
    return token(
        [
            {k: v for k, v in run.settings.items() if k.startswith("data.")},
            run.choices.get("data"),
        ]
    )


def _state(version: int) -> str:
    """A state of the images in words."""
    return f"older state {version}" if version else "newest state"
