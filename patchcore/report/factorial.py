"""Main effects and interactions of settings that varied together, as a forest plot.

An effect is the difference between a value of a setting and the setting's reference, in pairs of
runs that are equal in everything else. An interaction is the change of this difference by a value
of another setting: a difference of differences, of four runs that are equal in everything else.
Both are averaged over the settings of the other factors within a category and seed. The mean over
categories and seeds has Student's 95 % interval, in which each category and seed is one
observation.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

from patchcore.report.blocks import (
    MARKDOWN,
    PARTIAL,
    Block,
    Forest,
    Grid,
    Head,
    Note,
    text_cell,
    value_cell,
)
from patchcore.report.points import Factor, Summary, Unit, summarise
from patchcore.report.table import Table
from patchcore.report.words import falls, number, title, token, typed

MOST = 40
"""Largest number of terms that are shown; smaller ones are left out."""
Values = dict[tuple[tuple[str, str], ...], float | None]
"""Values of a metric: {((key of a factor, token of its value), …): value, None if unknown}."""


@dataclass
class Term:
    """Effect of one value, or interaction of two.

    Attributes:
        values: Settings of the term, {key: value in words}: one for an effect, two for an
            interaction.
        difference: Difference of the metric, over categories and seeds.
        runs: Number of pairs of runs for an effect, of groups of four runs for an interaction.
        partial: Whether runs are missing, so that some settings of the other factors do not count
            for some category or seed.
    """

    values: dict[str, str]
    difference: Summary
    runs: int
    partial: bool

    @property
    def name(self) -> str:
        """Name of the term: its settings in words."""
        return " × ".join(f"{key}={value}" for key, value in self.values.items())


def terms(table: Table, metric: str) -> list[Term]:
    """Return the effects of all values, then the interactions of all pairs, if runs show them."""
    factors = [factor for factor in table.factors if len(factor.values) > 1]
    known = _values(table, factors, metric)
    found = [
        term
        for factor in factors
        for value in _others(factor)
        if (term := _effect(known, [(factor, value)]))
    ]
    found += [
        term
        for one, two in combinations(factors, 2)
        for value in _others(one)
        for other in _others(two)
        if (term := _effect(known, [(one, value), (two, other)]))
    ]
    return found


def factorial_blocks(table: Table) -> list[Block]:
    """Return effects and interactions for the ranking metric; empty unless factors are crossed."""
    found = terms(table, table.metric)
    if not any(len(term.values) > 1 for term in found):
        return []
    crossed = [factor for factor in table.factors if len(factor.values) > 1]
    against = ", ".join(f"{factor.key}={typed(reference(factor))}" for factor in crossed)
    text = (
        f"Change of {title(table.metric)} by each setting, against {against}, in pairs of runs "
        "that are equal in everything else, averaged over the other settings. An interaction (×) "
        "is how much one setting changes the effect of the other. "
    )
    if any(term.difference.count > 1 for term in found):
        text += "Lines are Student’s 95 % intervals over categories and seeds."
    else:
        text += "There is only one category and seed, so there are no intervals."
    found.sort(key=lambda term: (len(term.values), -abs(term.difference.mean)))
    shown = found if len(found) <= MOST else _largest(found)
    blocks: list[Block] = [Note(text)]
    if len(shown) < len(found):
        blocks.append(Note(f"The {len(shown)} largest of {len(found)} are shown."))
    if any(term.partial for term in shown):
        blocks.append(Note(PARTIAL))
    rows = [_row(term, table.metric) for term in shown]
    name = f"Effects and interactions: {title(table.metric)}"
    return [*blocks, Forest(name, rows), _grid(shown, table.metric)]


def reference(factor: Factor) -> Any:
    """Return the reference of a factor, which its other values are compared with.

    It is the value that switches the setting off (null, or else false, or else 0), or the first.
    """
    for off in (None, False, 0):
        for value in factor.values:
            if value is off or (off == 0 and type(value) in (int, float) and value == 0):
                return value
    return factor.values[0]


def _others(factor: Factor) -> list[Any]:
    return [value for value in factor.values if token(value) != token(reference(factor))]


def _values(table: Table, factors: list[Factor], metric: str) -> dict[Unit, Values]:
    """Values of the metric, {(category, seed): {settings of the factors: value}}."""
    found: dict[Unit, Values] = {}
    for point in table.points:
        at = tuple((factor.key, token(point.settings[factor.key])) for factor in factors)
        for seed, by_category in point.seeds.items():
            for category, run in by_category.items():
                value = run.metrics.get(metric) if run.finished else None
                found.setdefault((category, seed), {})[at] = value
    return found


def _effect(known: dict[Unit, Values], chosen: list[tuple[Factor, Any]]) -> Term | None:
    """Effect of a value, or interaction of two values; None if the runs for it are missing."""
    means, runs = {}, 0
    tokens = [(factor.key, token(reference(factor)), token(value)) for factor, value in chosen]
    for unit, values in known.items():
        found = list(_differences(values, tokens))
        runs += len(found)
        if found:
            means[unit] = fmean(found)
    if not means:
        return None
    keys = {factor.key for factor, _ in chosen}
    settings = {at for values in known.values() for at in values}
    others = {tuple(pair for pair in at if pair[0] not in keys) for at in settings}
    words = {factor.key: typed(value) for factor, value in chosen}
    return Term(words, summarise(means), runs, runs < len(known) * len(others))


def _differences(values: Values, chosen: list[tuple[str, str, str]]) -> Iterator[float]:
    """Yield the differences, or differences of differences, at each setting of the other factors.

    Args:
        values: Values of the metric for one category and seed.
        chosen: (key, token of the reference, token of the value) of one or two factors.
    """
    for at in values:
        setting = dict(at)
        if all(setting[key] == value for key, _, value in chosen):
            difference = _difference(values, setting, chosen)
            if difference is not None:
                yield difference


def _difference(
    values: Values, setting: dict[str, str], chosen: list[tuple[str, str, str]]
) -> float | None:
    """Return one of `_differences`; None if a run is missing."""
    if not chosen:
        return values.get(tuple(setting.items()))
    (key, off, value), *others = chosen
    one, other = (_difference(values, {**setting, key: each}, others) for each in (value, off))
    return None if one is None or other is None else one - other


def _largest(found: list[Term]) -> list[Term]:
    """The largest terms, in the order of `found`."""
    by_size = sorted(found, key=lambda term: -abs(term.difference.mean))
    kept = {id(term) for term in by_size[:MOST]}
    return [term for term in found if id(term) in kept]


def _row(term: Term, metric: str) -> Forest.Row:
    value = term.difference
    half = value.half if value.count > 1 else 0.0
    sure = value.count > 1 and abs(value.mean) > value.half
    good = (value.mean < 0) == falls(metric)
    kind = ("good" if good else "bad") if sure else ""
    return Forest.Row(term.name, value.mean, half, _signed(metric, term), kind)


def _signed(metric: str, term: Term) -> str:
    value = term.difference
    half = f" ± {number(metric, value.half)}" if value.count > 1 else ""
    return f"{'+' * (value.mean > 0)}{number(metric, value.mean)}{half}{'*' * term.partial}"


def _grid(found: list[Term], metric: str) -> Grid:
    """Table of the terms for Markdown, which has no plot."""
    heads = [Head("setting", kind="text"), Head("difference"), Head("observations"), Head("runs")]
    rows = []
    for term in found:
        value = term.difference
        row = [text_cell(term.name), value_cell(value.mean, _signed(metric, term))]
        row += [value_cell(n, str(n)) for n in (value.count, term.runs * 2 ** len(term.values))]
        rows.append(row)
    return Grid(heads, rows, "", "Effects and interactions", forms=(MARKDOWN,))
