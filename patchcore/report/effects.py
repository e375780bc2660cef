"""Effects of one setting: each of its values against a reference, in pairs of runs.

The two runs of a pair differ only in this setting (and in settings that always change with it), so
they share category, seed and images. The differences of one category and seed are averaged over the
settings of the other factors. Their mean over categories and seeds has Student's 95 % interval, in
which each category and seed is one observation.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import yaml  # type: ignore[import-untyped]

from patchcore.errors import InputError
from patchcore.report.points import Factor, Point, Summary, Unit, summarise
from patchcore.report.reading import CATEGORY, RunFolder
from patchcore.report.table import Table
from patchcore.report.words import rank, show, token, typed


@dataclass
class Effect:
    """Difference that one value of a setting makes.

    Attributes:
        value: Value of the setting.
        others: Settings of the other factors in words; empty for the main effect, over all of them.
        metric: Metric of the difference.
        difference: Metric at the value minus metric at the reference, over categories and seeds.
        pairs: Number of pairs of runs.
        missing: Number of runs that lack the metric, or whose partner is missing or lacks it; also
            of runs at the reference if the value has a point for them, but no run.
        partial: Whether pairs are missing that other effects, categories or seeds have.
    """

    value: str
    others: str
    metric: str
    difference: Summary
    pairs: int
    missing: int
    partial: bool


@dataclass
class _Differences:
    """Differences of pairs, by category and seed, then by the settings of other factors."""

    found: dict[Unit, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    missing: int = 0

    def over(self, chosen: str | None = None) -> tuple[dict[Unit, float], int]:
        """Return the mean difference of each unit, and the number of pairs.

        Args:
            chosen: Setting of the other factors to restrict the pairs to; None: all.
        """
        each = {
            unit: [value for others, value in by.items() if chosen in (None, others)]
            for unit, by in self.found.items()
        }
        means = {unit: fmean(values) for unit, values in each.items() if values}
        return means, sum(map(len, each.values()))


def parse_against(text: str) -> tuple[str, str]:
    """Return key and value of `KEY=VALUE`.

    Raises:
        InputError: The text has another form.
    """
    key, sign, value = (part.strip() for part in text.partition("="))
    if not (key and sign and value):
        raise InputError(f"--against: {text!r} is not KEY=VALUE, such as coreset.ratio=0.01")
    return key, value


def check_against(table: Table, key: str, value: str) -> None:
    """Refuse a reference that no runs have.

    Raises:
        InputError: `key` did not vary in any family of the table, or no run has the value.
    """
    families = [family for _, family in table.families]
    factors = [found for family in families if (found := _factor(family, key))]
    if not factors:
        known = ", ".join(dict.fromkeys(f.key for each in families for f in each.factors))
        for leader in (f for each in families for f in each.factors if key in f.follows):
            raise InputError(
                f"--against: {key} always changes with {leader.key}: give {leader.key} in its "
                f"place, with one of {_values([leader])}"
            )
        why = f"{key} tells no points apart"
        nothing = "nothing varied but categories and seeds"
        if key == CATEGORY:
            why = "runs of different categories are never paired"
        elif key in table.repeats:
            why = f"runs that differ only in {key} are one point"
        elif len(families) > 1:
            nothing = "compare runs on the same data"
            why = (
                f"no runs on the same data differ in {key}; there are {len(families)} sets of "
                "data, each compared alone"
            )
        advice = f"choose one of {known}" if known else nothing
        raise InputError(f"--against: {why}: {advice}")
    if not any(_reference(factor, value) is not None for factor in factors):
        raise InputError(f"--against: no run has {key}={value}: choose one of {_values(factors)}")


def _values(factors: list[Factor]) -> str:
    return ", ".join(dict.fromkeys(typed(value) for each in factors for value in each.values))


def effects(table: Table, key: str, value: str, metrics: list[str]) -> list[Effect]:
    """Return the main effect of every other value, then those at each setting of other factors.

    Empty where the table has no such setting or value.
    """
    factor = _factor(table, key)
    reference = _reference(factor, value) if factor else None
    if factor is None or reference is None:
        return []
    others = [other for other in table.factors if other is not factor]
    ordered = sorted(table.points, key=lambda p: [rank(p.settings[o.key]) for o in others])
    points = {(token(p.settings[factor.key]), _at(p, others)): p for p in ordered}
    names = {_at(p, others): _words(p, others) for p in ordered}
    found = {
        (token(one), metric): _of_value(points, token(one), reference, metric)
        for one in factor.values
        if token(one) != reference
        for metric in metrics
    }
    words = {token(one): typed(one) for one in factor.values}
    main: list[Effect] = []
    single: list[Effect] = []
    for (one, metric), told in found.items():
        units = {unit for (_, of), each in found.items() if of == metric for unit in each.found}
        means, pairs = told.over()
        partial = bool(told.missing) or pairs < len(units) * len(names)
        main.append(Effect(words[one], "", metric, _summary(means), pairs, told.missing, partial))
        for at in dict.fromkeys(at for by in told.found.values() for at in by):
            means, pairs = told.over(at)
            each = _summary(means)
            single.append(Effect(words[one], names[at], metric, each, pairs, 0, pairs < len(units)))
    return main + (single if len(names) > 1 else [])


def _of_value(
    points: dict[tuple[str, str], Point], one: str, reference: str, metric: str
) -> _Differences:
    """Differences of the points of a value from those of the reference, by their other settings."""
    told = _Differences()
    for (mine, at), point in points.items():
        if mine != one:
            continue
        for unit, difference in _pairs(point, points.get((reference, at)), metric):
            if difference is None:
                told.missing += 1
            else:
                told.found[unit][at] = difference
    return told


def _summary(means: dict[Unit, float]) -> Summary:
    found = summarise(means)
    return found if means else Summary(found.mean, reason="no pair of finished runs")


def _factor(table: Table, key: str) -> Factor | None:
    return next((factor for factor in table.factors if factor.key == key), None)


def _reference(factor: Factor, value: str) -> str | None:
    """Return the token of the factor's value that is shown as `value` or equals it as a number.

    It may also be written as in an override: in quotes, as a list with blanks, as True. An unset
    value may be given as null or none in any case.
    """
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError:
        read = value
    written = [value, show(read)] if isinstance(read, bool | list | str) else [value]

    def same(known: Any, text: str) -> bool:
        if known is None and text.lower() in ("null", "none"):
            return True
        try:
            return show(known) == text or float(known) == float(text)
        except (TypeError, ValueError):
            return False

    return next((token(x) for text in written for x in factor.values if same(x, text)), None)


def _at(point: Point, others: list[Factor]) -> str:
    return token([token(point.settings[other.key]) for other in others])


def _words(point: Point, others: list[Factor]) -> str:
    return ", ".join(f"{other.key}={typed(point.settings[other.key])}" for other in others)


def _pairs(
    point: Point, reference: Point | None, metric: str
) -> Iterator[tuple[Unit, float | None]]:
    """Yield the difference for every category and seed of a pair of points; None if it is unknown.

    A run without seeds is paired with each run of the other point.
    """
    seeds = {} if reference is None else reference.seeds
    unmet = {(seed, category) for seed, by_category in seeds.items() for category in by_category}
    for seed, by_category in point.seeds.items():
        for partner in _partners(seed, list(seeds)):
            for category, run in by_category.items():
                twin = seeds.get(partner, {}).get(category)
                unmet.discard((partner, category))
                yield (category, seed or partner), _difference(run, twin, metric)
    for seed, category in unmet:
        yield (category, seed), None


def _partners(seed: str, others: list[str]) -> list[str]:
    """Seeds of the other point's runs that are paired with a run of this seed; "" is none."""
    if seed in others:
        return [seed]
    if "" in others:
        return [""]
    return [seed] if seed else others or [""]


def _difference(run: RunFolder, twin: RunFolder | None, metric: str) -> float | None:
    if twin is None or not (run.finished and twin.finished):
        return None
    if metric not in run.metrics or metric not in twin.metrics:
        return None
    return run.metrics[metric] - twin.metrics[metric]
