"""Points of a sweep: groups of runs that differ only in category and seed, and their averages."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any

from scipy.special import stdtrit

from patchcore.metrics import told
from patchcore.paper import AVERAGE, CATEGORIES
from patchcore.report.checks import is_number
from patchcore.report.reading import RunFolder, Settings
from patchcore.report.words import typed

Unit = tuple[str, str]
"""Category and seeds of a repeat, the seeds as text; see `Table.seed`."""


@dataclass(frozen=True)
class Summary:
    """A mean with the spread of its repeats; NaN, with a reason, where it is undefined."""

    mean: float
    count: int = 0  # repeats
    deviation: float = math.nan  # sample standard deviation; NaN for one repeat
    half: float = math.nan  # half the width of the 95 % interval; NaN for one repeat
    reason: str = ""  # why the mean is NaN
    partial: bool = False  # whether a repeat without a finished run is left out

    @property
    def defined(self) -> bool:
        return not math.isnan(self.mean)

    def ends(self, metric: str) -> tuple[float, float]:
        """Return the ends of the 95 % interval, cut at the bounds of a metric that has both."""
        low, high = self.mean - self.half, self.mean + self.half
        measure = told(metric)
        if math.isfinite(measure.low) and math.isfinite(measure.high):
            return max(low, measure.low), min(high, measure.high)
        return low, high


def undefined(reason: str) -> Summary:
    """Return an undefined summary with its reason."""
    return Summary(math.nan, reason=reason)


def summarise(values: Mapping[Unit, float]) -> Summary:
    """Return the summary of repeats, as `student` gives it where they are independent.

    Repeats that share one of several seeds are not independent, as in a sweep over `data.seed=0,1`
    and `seed=0,1`. The values of each such seed are then averaged and counted as one repeat. Of the
    spreads that the seeds give in this way, the one with the widest interval is returned.
    """
    found = [student([*values.values()])]
    for key in sorted({name for _, seeds in values for name in _by_name(seeds)}):
        shared: dict[Unit, list[float]] = {}
        for (category, seeds), value in values.items():
            shared.setdefault((category, _by_name(seeds).get(key, "")), []).append(value)
        if 1 < len(shared) < len(values):
            found.append(student([fmean(each) for each in shared.values()]))
    return replace(max(found, key=lambda summary: summary.half), mean=found[0].mean)


def _by_name(seeds: str) -> dict[str, str]:
    """The seeds that `Table.seed` tells, by their names."""
    pairs = [seed.partition("=") for seed in seeds.split(", ")]
    return {name: value for name, _, value in pairs}


def student(values: Sequence[float]) -> Summary:
    """Return mean, sample standard deviation s and 95 % interval of n independent repeats.

    The interval is Student's: mean ± t(0.975, n - 1) · s / √n.
    """
    if len(values) < 2:
        return Summary(values[0], 1) if values else undefined("no finished run")
    deviation = stdev(values)
    quantile = float(stdtrit(len(values) - 1, 0.975))
    return Summary(
        fmean(values), len(values), deviation, quantile * deviation / math.sqrt(len(values))
    )


@dataclass(frozen=True)
class Factor:
    """A setting whose values distinguish the points."""

    key: str
    values: list[Any]  # distinct; numbers in ascending order, then text, None last
    follows: list[str]  # further keys that always change with this one

    @property
    def numbers(self) -> list[float]:
        """Numeric values, ascending; empty unless there are two or more, and no text."""
        given = [value for value in self.values if value is not None]
        return given if len(given) > 1 and all(map(is_number, given)) else []


@dataclass(eq=False)
class Point:
    """A group of runs that differ only in category and seed."""

    settings: Settings  # of the factors
    categories: list[str]  # that the average is taken over; [""] for a set without categories
    seeds: dict[str, dict[str, RunFolder]] = field(default_factory=dict)  # {seed: {category: run}}

    @property
    def label(self) -> str:
        """Overrides that select the point, such as `coreset.ratio=0.1, patch.size=3`."""
        return ", ".join(f"{key}={typed(value)}" for key, value in self.settings.items()) or "all"

    @property
    def runs(self) -> list[RunFolder]:
        return [run for by_category in self.seeds.values() for run in by_category.values()]

    @property
    def finished(self) -> list[RunFolder]:
        return [run for run in self.runs if run.finished]

    def cell(self, category: str, metric: str) -> Summary:
        """Return the summary of `metric` for one category, over the seeds with a finished run."""
        values = {}
        partial = False
        for seed, by_category in self.seeds.items():
            run = by_category.get(category)
            if run is not None and run.finished:
                if metric not in run.metrics:
                    return undefined(self._why(run, metric, seed))
                values["", seed] = run.metrics[metric]
            else:
                partial = True
        return replace(summarise(values), partial=partial)

    def value(self, metric: str) -> Summary:
        """Return the summary over seeds of each seed's mean over the categories.

        It is undefined if, for any seed, a category has no finished run or no value of `metric`. A
        seed without any finished run is left out, which lowers the count and makes it partial.
        """
        averages = {}
        partial = False
        for seed, by_category in self.seeds.items():
            finished = {name: run for name, run in by_category.items() if run.finished}
            missing = [name for name in self.categories if name not in finished]
            if not finished:
                partial = True
                continue
            if missing:
                at = f" at {seed}" if seed else ""
                return undefined(f"no finished run of {', '.join(missing)}{at}")
            values = []
            for category in self.categories:
                run = finished[category]
                if metric not in run.metrics:
                    return undefined(self._why(run, metric, seed))
                values.append(run.metrics[metric])
            averages["", seed] = fmean(values)
        return replace(summarise(averages), partial=partial)

    def curve(self, metric: str) -> list[tuple[float, float]]:
        """Return [(memory share, mean of `metric` over the runs), …], ascending.

        Empty unless the runs were tested at several ratios, the same in every run, and the point's
        own value is defined.
        """
        curves = [
            {entry["ratio"]: entry[metric] for entry in run.ratio_curve if metric in entry}
            for run in self.finished
        ]
        if not self.value(metric).defined or len({tuple(sorted(curve)) for curve in curves}) > 1:
            return []
        return [(share, fmean(curve[share] for curve in curves)) for share in sorted(curves[0])]

    def paper(self, metric: str, category: str | None = None) -> float:
        """Return the paper's value for one category, or the average over the point's categories.

        The average is the one that the paper prints for all categories of the data set, or else the
        mean of its values for single categories. NaN if the paper has neither.
        """
        averages = {r.paper.get(AVERAGE + metric) for r in self.runs}
        data = {CATEGORIES.get(str(r.choices.get("data"))) for r in self.runs}
        complete = category is None and data == {len(self.categories)}
        if complete and len(averages) == 1 and (average := averages.pop()) is not None:
            return average
        values = []
        for name in self.categories if category is None else [category]:
            given = [r.paper[metric] for r in self.runs if r.category == name and metric in r.paper]
            values.append(fmean(given) if given else math.nan)
        return fmean(values)

    def _why(self, run: RunFolder, metric: str, seed: str) -> str:
        """Return why `run` has no `metric`."""
        category = run.category if len(self.categories) > 1 else ""
        place = ", ".join(filter(None, [category, seed]))
        reason = run.why(metric)
        return f"{place}: {reason}" if place else reason
