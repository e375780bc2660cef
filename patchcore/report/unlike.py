"""Grouping of runs by their data: only metrics on the same data may be ranked together."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from patchcore.report.reading import CATEGORY, RunFolder
from patchcore.report.words import natural, show, token

OF_TRAINING = {"data.shots"}
"""Settings of the data that do not change the test images, so points are ranked together."""


def is_of_data(key: str) -> bool:
    """Return whether a setting, or the choice of a group, determines the test images."""
    return key == "data" or (key.startswith("data.") and key not in OF_TRAINING)


def _is_seed(key: str) -> bool:
    return key.endswith("seed")


def in_one_memory(run: RunFolder) -> list[str]:
    """Return the categories that share the memory of a run; empty unless there are several."""
    names = run.settings.get(CATEGORY)
    return [*map(str, names)] if isinstance(names, list) and names[1:] else []


def by_data(runs: Sequence[RunFolder]) -> list[tuple[str, list[RunFolder]]]:
    """Return the runs grouped by data: [(text that distinguishes the data, runs), …].

    Runs are in one group if their data set and its settings are equal, their images are equal (as
    far as their folders record a digest), and their points have the same categories; points without
    a finished run may lack some. Several categories in one memory are data of their own, so that no
    mean counts an image twice.
    """
    families_of, states = _families(runs), _versions(runs, _place)
    families: dict[str, list[RunFolder]] = defaultdict(list)
    told: dict[str, dict[str, Any]] = {}
    for run in runs:
        key = families_of[run]
        families[key].append(run)
        idle = {k: v for k, v in run.idle.items() if k.startswith("data.") and not _is_seed(k)}
        told.setdefault(key, {**idle, **_facts(run), "images": _state(states[run])})
    found: list[tuple[dict[str, Any], list[RunFolder]]] = []
    for key, family in families.items():
        sets: dict[tuple[str, ...], list[RunFolder]] = defaultdict(list)
        points: dict[str, list[RunFolder]] = defaultdict(list)
        for run in family:
            points[_point(run)].append(run)
        # Points without a finished run come last: they join those of which they may be a part.
        for point in sorted(points.values(), key=lambda runs: not any(x.finished for x in runs)):
            categories = tuple(sorted({run.category for run in point}, key=natural))
            if not any(run.finished for run in point):
                categories = next((each for each in sets if {*categories} <= {*each}), categories)
            sets[categories].extend(point)
        found += [(dict(told[key]), members) for members in sets.values()]
    short, whole = ([_categories(runs, most) for _, runs in found] for most in (6, None))
    names = short if len({*short}) == len({*whole}) else whole
    for (facts, _), text in zip(found, names, strict=True):
        facts["categories"] = text
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


def linked(groups: Sequence[Sequence[RunFolder]]) -> list[list[int]]:
    """Join the groups of `by_data` in which runs on the same images can be paired: their indices.

    Two groups are joined if their data differ only in the categories of their points, and some
    category is in both; a group that can be paired with no other stays alone.
    """
    families_of = _families([run for runs in groups for run in runs])
    where: dict[str, set[int]] = defaultdict(set)
    for number, runs in enumerate(groups):
        for run in runs:
            where[token([families_of[run], run.category])].add(number)
    found: list[set[int]] = []
    for numbers in where.values():
        met = [each for each in found if each & numbers]
        found = [each for each in found if not each & numbers] + [numbers.union(*met)]
    return sorted(map(sorted, found))


def shared_categories(groups: Sequence[Sequence[RunFolder]]) -> str:
    """Return, as text, the categories of which several groups of `by_data` have the same images.

    The points of one group then also have runs of categories that those of the other lack.
    """
    where: dict[str, set[int]] = defaultdict(set)
    for number, runs in enumerate(groups):
        for run in runs:
            where[token([_cell(run), run.digest])].add(number)
    every = (run for runs in groups for run in runs)
    shared = {run.category for run in every if len(where[token([_cell(run), run.digest])]) > 1}
    return _listed(sorted(shared, key=natural))


def _categories(runs: Sequence[RunFolder], most: int | None) -> str:
    """Return, as text, the categories of a group: those of its runs, or of their one memory."""
    if names := in_one_memory(runs[0]):
        return f"{_listed(names, most)} in one memory"
    return _listed(sorted({run.category for run in runs}, key=natural), most)


def _listed(names: Sequence[str], most: int | None = 6) -> str:
    left = len(names[most:]) if most else 0
    return ", ".join(names[:most]) + (f" and {left} more" if left else "")


def _facts(run: RunFolder) -> dict[str, Any]:
    """Data set and settings that determine the test images, except category and seeds."""
    settings = {
        key: value
        for key, value in run.settings.items()
        if is_of_data(key) and key != CATEGORY and not _is_seed(key)
    }
    return {**settings, "data": run.choices.get("data")}


def _families(runs: Sequence[RunFolder]) -> dict[RunFolder, str]:
    """Return, for each run, a text that is equal for runs with equal data but for categories.

    Runs with several categories in one memory agree in these, too.
    """
    versions = _versions(runs, _cell)
    return {run: token([_facts(run), versions[run], in_one_memory(run)]) for run in runs}


def _point(run: RunFolder) -> str:
    """Return a text that is equal for runs that differ only in category and seeds."""
    kept = {k: v for k, v in run.settings.items() if k != CATEGORY and not _is_seed(k)}
    return token(kept)


def _versions(
    runs: Sequence[RunFolder], cell_of: Callable[[RunFolder], str]
) -> dict[RunFolder, int]:
    """Return, for each run, how many newer images other runs of its cell had.

    0 for the newest images, and if a folder does not record which images the run saw.
    """
    seen: dict[str, dict[str, float]] = defaultdict(dict)  # {cell: {digest: last written}}
    for run in runs:
        if run.digest:
            cell = seen[cell_of(run)]
            cell[run.digest] = max(cell.get(run.digest, 0.0), run.written)
    found = {}
    for run in runs:
        cell = seen.get(cell_of(run), {})
        newest = sorted(cell, key=lambda digest: (-cell[digest], digest))
        found[run] = newest.index(run.digest) if run.digest else 0
    return found


def _cell(run: RunFolder) -> str:
    """Return a text that is equal for runs whose settings name the same images of one category."""
    return token(
        [
            {k: v for k, v in run.settings.items() if k.startswith("data.")},
            run.choices.get("data"),
        ]
    )


def _place(run: RunFolder) -> str:
    """Return a text that is equal for runs of one cell whose images were in one place."""
    return token([_cell(run), {k: v for k, v in run.idle.items() if k.startswith("data.")}])


def _state(version: int) -> str:
    """State of the images in words."""
    return f"older state {version}" if version else "newest state"
