"""Any set of run folders as one table: what varied, the points of a sweep, their repeats.

A run is one folder. Runs whose settings differ only in category and seed form one point. Its value
is the mean over seeds of the mean over categories (the class average of the papers). A mean that
would mislead, for example because a category is missing, is undefined and has a reason. Points on
different data are never ranked together: each data set is a part of the table, and so is each set
of categories in one memory.
"""

import math
import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import MISSING
from tqdm import tqdm

from patchcore.errors import InputError, printable
from patchcore.metrics import METRICS, told
from patchcore.paper import AVERAGE
from patchcore.report.columns import determines, equivalent, grouped, grouped_seeds
from patchcore.report.folders import failure, find_runs
from patchcore.report.points import Factor, Point
from patchcore.report.reading import CATEGORY, RunFolder, Settings, read_run
from patchcore.report.unlike import by_data, is_of_data, linked
from patchcore.report.unresolved import fill_completed, fill_exact
from patchcore.report.words import (
    distinct,
    falls,
    is_left_out,
    natural,
    rank,
    show,
    steady,
    token,
)


@dataclass(eq=False)
class Table:
    """Runs, and all that follows from comparing them."""

    runs: list[RunFolder]
    metric: str = "image_auroc"  # to rank by
    root: Path = Path()  # common parent of the runs' folders
    data: str = ""  # settings that distinguish the data of this part from those of other parts
    number: int = 0  # of the part, from 1; 0 if there is only one
    against: tuple[str, str] | None = None  # key and value that effects are measured against
    first: int = 0  # number of points in the parts before
    fixed: tuple[str, ...] = ()  # settings with one value in this part and others in other parts
    reason: str = ""  # words that say why this metric ranks; empty if it was asked for, or is usual

    def name(self, run: RunFolder) -> str:
        """Return the path of the run's folder below `root`."""
        if run.folder == self.root:
            return "."
        return printable(os.path.relpath(run.folder, self.root))

    @cached_property
    def parts(self) -> list["Table"]:
        """A table for each set of runs on the same data; those without any value are last."""
        if len(self._by_data) < 2:
            return [self]
        parts = [
            Table(runs, self.metric, self.root, data, fixed=self._fixed(runs))
            for data, runs in self._by_data
        ]
        parts.sort(key=lambda part: not part.points[0].value(self.metric).defined)
        first = 0
        for number, part in enumerate(parts, 1):
            part.number, part.first = number, first
            first += len(part.points)
        return parts

    @cached_property
    def families(self) -> list[tuple[list["Table"], "Table"]]:
        """Parts between which runs can be paired, each with the table of all their runs."""
        found = []
        for numbers in linked([part.runs for part in self.parts]):
            parts = [self.parts[number] for number in numbers]
            runs = {run for part in parts for run in part.runs}
            kept = [run for run in self.known if run in runs]
            family = Table(kept, self.metric, self.root) if parts[1:] else parts[0]
            found.append((parts, family))
        return found

    @property
    def place(self) -> int:
        """Index among the parts."""
        return max(self.number - 1, 0)

    @cached_property
    def ids(self) -> dict[Point, int]:
        """Index of each point among the points of all parts."""
        return {point: self.first + i for i, point in enumerate(self.points)}

    @cached_property
    def _by_data(self) -> list[tuple[str, list[RunFolder]]]:
        return by_data(self.known)

    @cached_property
    def _part_of(self) -> dict[RunFolder, int]:
        return {run: i for i, (_, runs) in enumerate(self._by_data) for run in runs}

    def status(self, run: RunFolder) -> str:
        """Return `finished`, or the reason why `run` is not counted."""
        kept = self._counted.get(self._identity(run)) if run.settings else run
        warm = f"finished; warm: {', '.join(run.warm)}" if run.warm else "finished"
        warm += "; config.yaml was changed or removed afterwards" if run.edited else ""
        warm += f"; a later start failed: {why}" if (why := failure(run.folder)) else ""
        if kept is run or kept is None:
            return printable(run.problem or warm)
        return printable(f"{run.problem or 'repeated'}; counted instead: {self.name(kept)}")

    @cached_property
    def known(self) -> list[RunFolder]:
        """Runs whose settings could be read."""
        return [run for run in self.runs if run.settings]

    @cached_property
    def keys(self) -> list[str]:
        """Every setting of any run, in the order of the configuration."""
        return list(dict.fromkeys(key for run in self.known for key in run.settings))

    @cached_property
    def varied(self) -> dict[str, list[Any]]:
        """Settings that differ between runs: {key: distinct values}."""
        values = {key: distinct(run.settings.get(key) for run in self.known) for key in self.keys}
        return {key: found for key, found in values.items() if len(found) > 1}

    @cached_property
    def constant(self) -> Settings:
        """Settings that are the same in all runs: {key: value}."""
        return {k: self.known[0].settings.get(k) for k in self.keys if k not in self.varied}

    @cached_property
    def seed_keys(self) -> dict[str, list[str]]:
        """Seeds that varied, which make repeats, not points: {seed: keys that change with it}.

        See `grouped_seeds`.
        """
        seeds = {key: [run.settings.get(key) for run in self.known] for key in self._seeds}
        return grouped_seeds([self._point(run) for run in self.known], seeds)

    @property
    def _seeds(self) -> list[str]:
        return [key for key in self.varied if key.endswith("seed")]  # and data.shots_seed

    @cached_property
    def repeats(self) -> set[str]:
        """Settings in which the runs of one point differ: the category and the seeds."""
        return {CATEGORY, *self._seeds}

    @cached_property
    def choices(self) -> dict[str, list[str]]:
        """Groups with different choices: {group: [token of the choice of each known run]}."""
        found = {}
        for group in self.known[0].choices:
            chosen = [token(run.choices.get(group)) for run in self.known]
            contents = [
                token({k: v for k, v in run.settings.items() if k.startswith(f"{group}.")})
                for run in self.known
            ]
            # Two names for the same settings are no difference.
            if len(set(chosen)) > 1 and determines(contents, chosen):
                found[group] = chosen
        return found

    @cached_property
    def factors(self) -> list[Factor]:
        """Varied keys that distinguish the points, as few as possible.

        Settings that always change together are one factor. Its key is a group (`coreset=random`),
        or a numeric setting of the group that varies in the same way (`patch.size=3`).
        """
        return self._factors([*self.choices, *self.varied])

    @cached_property
    def shown(self) -> list[Factor]:
        """Factors and `fixed` settings: those by which points differ, also from other parts."""
        order = [*self.known[0].choices, *self.keys, *self.fixed]
        fixed = [Factor(key, [self.setting(self.known[0], key)], []) for key in self.fixed]
        return sorted([*fixed, *self.factors], key=lambda factor: order.index(factor.key))

    @cached_property
    def _beside_data(self) -> list[str]:
        """Keys of the factors if those of the data are left out."""
        keys = [key for key in [*self.choices, *self.varied] if not is_of_data(key)]
        return [factor.key for factor in self._factors(keys)]

    def _fixed(self, runs: Sequence[RunFolder]) -> tuple[str, ...]:
        """Settings, apart from the data, with one value in some runs and others elsewhere."""
        values = {key: {token(self.setting(run, key)) for run in runs} for key in self._beside_data}
        return tuple(key for key, found in values.items() if len(found) == 1)

    def _factors(self, keys: Collection[str]) -> list[Factor]:
        """See `factors`; of some keys alone."""
        settings = {
            key: self._column(key) for key in self.varied if key in keys and key not in self.repeats
        }
        choices = {
            group: chosen
            for group, chosen in self.choices.items()
            if group in keys and not self._is_of_a_number(group, chosen, settings)
        }
        paths = {k for k in settings if any(os.sep in str(value) for value in self.varied[k])}
        plain = {key: column for key, column in settings.items() if key not in paths}
        groups = grouped({**choices, **plain, **settings})
        order = [*choices, *self.keys]
        return [
            Factor(key, distinct(self.setting(run, key) for run in self.known), groups[key])
            for key in sorted(groups, key=order.index)
        ]

    def _is_of_a_number(
        self, group: str, chosen: list[str], settings: dict[str, list[str]]
    ) -> bool:
        """Whether the choices of a group differ in one number alone, such as `patch.size`."""
        key, *others = [key for key in settings if key.startswith(f"{group}.")] or [""]
        if others or not key or not Factor(key, self.varied[key], []).numbers:
            return False
        return equivalent(chosen, settings[key])

    @cached_property
    def points(self) -> list[Point]:
        """Points sorted by `metric`, the best first and undefined ones last."""
        points: dict[str, Point] = {}
        for (name, seed, category), run in self._counted.items():
            if name not in points:
                settings = {f.key: self.setting(run, f.key) for f in self.shown}
                points[name] = Point(settings, self._expected(run))
            points[name].seeds.setdefault(seed, {})[category] = run
        return sorted(
            points.values(),
            key=lambda point: (
                self.cost(point, self.metric),
                [rank(value) for value in point.settings.values()],
            ),
        )

    @cached_property
    def metrics(self) -> list[str]:
        """Metrics that can be ranked and that some run has; those of METRICS first, in order."""
        found = dict.fromkeys(
            key
            for run in self.runs
            for key, value in run.metrics.items()
            if value or not is_left_out(key)  # a column of zeros is not useful
        )
        shown = {key: told(key).better for key in found if not key.startswith("seconds.")}
        return [key for key in (METRICS | shown) if shown.get(key)]

    @cached_property
    def without_column(self) -> dict[str, Counter[str]]:
        """Undefined metrics without a column: {metric: {reason: number of finished runs}}."""
        finished = [run for run in self.runs if run.finished]
        keys = dict.fromkeys(key for run in finished for key in run.undefined)
        return {
            key: Counter(run.why(key) for run in finished if key not in run.metrics)
            for key in keys
            if key not in self.metrics and not key.startswith("seconds.")
        }

    @cached_property
    def main_metrics(self) -> list[str]:
        """Metrics that charts show: the ranking metric, then the main ones of METRICS."""
        usual = dict.fromkeys([self.metric, *(k for k, measure in METRICS.items() if measure.main)])
        return [key for key in usual if key in self.metrics]

    @cached_property
    def paper_metrics(self) -> list[str]:
        """Metrics for which some run has the paper's value."""
        keys = [key.removeprefix(AVERAGE) for run in self.runs for key in run.paper]
        return list(dict.fromkeys(keys))

    @property
    def unfinished(self) -> list[RunFolder]:
        return [run for run in self.runs if not run.finished]

    @cached_property
    def repeated(self) -> bool:
        """True if a point has more than one seed."""
        return any(len(point.seeds) > 1 for point in self.points)

    @cached_property
    def category_sets(self) -> list[list[str]]:
        """Distinct lists of categories of the points that have several."""
        found = {tuple(point.categories) for point in self.points if len(point.categories) > 1}
        return [list(names) for names in sorted(found)]

    def setting(self, run: RunFolder, key: str) -> Any:
        """Return the value of a setting, or the choice of a group that is among `choices`."""
        chosen = key in self.choices or (key in self.fixed and key not in self.keys)
        return run.choices.get(key) if chosen else run.settings.get(key)

    def seed(self, run: RunFolder) -> str:
        """Return the seeds that distinguish the run from other repeats, as text."""
        seeds = {key: run.settings.get(key) for key in self.seed_keys}
        return ", ".join(f"{key}={show(seed)}" for key, seed in seeds.items() if seed is not None)

    def cost(self, point: Point, metric: str) -> float:
        """Return the value of a metric with the sign by which less is better; inf if undefined."""
        value = point.value(metric)
        if not value.defined:
            return math.inf
        mean = steady(value.mean)  # equal means rank by their settings
        return mean if falls(metric) else -mean

    def front(self, metric: str) -> list[Point]:
        """Return the Pareto front of the ranking metric and `metric`, sorted by `metric`."""
        defined = [p for p in self.points if p.value(self.metric).defined]
        points = [point for point in defined if point.value(metric).defined]
        costs = [(self.cost(p, metric), self.cost(p, self.metric)) for p in points]
        return [points[i] for i in sorted(pareto(costs), key=costs.__getitem__)]

    @cached_property
    def _counted(self) -> dict[tuple[str, str, str], RunFolder]:
        """Newest of equal runs, finished if possible: {(point, seed, category): run}, sorted."""
        newest = sorted(self.known, key=lambda run: (run.finished, run.written))
        found = {self._identity(run): run for run in newest}
        return {key: found[key] for key in sorted(found, key=lambda key: [*map(natural, key)])}

    def _identity(self, run: RunFolder) -> tuple[str, str, str]:
        return self._point(run), self.seed(run), run.category

    def _point(self, run: RunFolder) -> str:
        settings = [self.setting(run, factor.key) for factor in self.factors]
        return token([self._part_of[run], *(token(value) for value in settings)])

    def _expected(self, run: RunFolder) -> list[str]:
        """Categories of all runs on the same data as `run`, also of failed ones."""
        part = self._part_of[run]
        names = {other.category for other in self.known if self._part_of[other] == part}
        return sorted(names, key=natural)

    def _column(self, key: str) -> list[str]:
        return [token(run.settings.get(key)) for run in self.known]


def read_runs(folders: Sequence[Path], metric: str = "image_auroc") -> Table:
    """Return the table of all runs in or below `folders`, each once, unfinished ones included.

    Raises:
        InputError: A folder is missing or holds no run, or no run is finished or has `metric`.
    """
    table = read_table(folders)
    check_metric(table, metric)
    table.metric = metric
    return table


def check_metric(table: Table, metric: str) -> None:
    """Refuse to rank by a metric that no finished run has, or that is no better high or low.

    Raises:
        InputError: No finished run has it, or its values are not ranked.
    """
    finished = [run for run in table.runs if run.finished]
    keys = dict.fromkeys(key for run in finished for key in run.metrics)
    known = ", ".join(key for key in keys if told(key).better)
    if not any(metric in run.metrics or metric in run.undefined for run in finished):
        raise InputError(f"metric: no run has {metric!r}; choose one of {known}")
    if not told(metric).better:
        raise InputError(
            f"metric: no value of {metric!r} is better than another; choose one of {known}"
        )


def read_table(folders: Sequence[Path]) -> Table:
    """Return the table of `read_runs`, whatever metrics the runs have.

    Raises:
        InputError: A folder is missing or holds no run, or no run is finished.
    """
    found: dict[Path, RunFolder] = {}
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: there is no such folder")
        below = [read_run(path) for path in tqdm(find_runs(folder), "Reading runs", disable=None)]
        if not below:
            raise InputError(
                f"{folder}: holds no run; a run's folder has a config.yaml and, once finished, "
                "a metrics.json"
            )
        found.update({run.folder: run for run in below})
    runs = sorted(found.values(), key=lambda run: natural(str(run.folder)))
    _fill_missing(runs)
    _compare_effects(runs)
    fill_completed(runs)
    fill_exact(runs)
    if not all(run.choices for run in runs if run.settings):
        for run in runs:
            run.choices = {}  # choices that only some folders record cannot be compared
    finished = [run for run in runs if run.finished]
    if not finished:
        damaged = [run for run in runs if not run.problem.startswith("unfinished")][:1]
        told = "".join(f"; {run.folder}: {run.problem}" for run in damaged)
        none = f"none of its {len(runs)} runs is" if len(runs) > 1 else "its only run is not"
        raise InputError(f"{folders[0]}: {none} finished{told}")
    root = Path(os.path.commonpath([run.folder for run in runs]))
    return Table(runs, root=root)


def pareto(costs: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the Pareto-optimal pairs, of which less is better in both entries."""

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a != b and a[0] <= b[0] and a[1] <= b[1]

    return [i for i, mine in enumerate(costs) if not any(beats(other, mine) for other in costs)]


def _fill_missing(runs: Sequence[RunFolder]) -> None:
    """Fill settings that runs which failed early lack, if all other runs have the same value."""
    for key in {key for run in runs for key, value in run.settings.items() if value == MISSING}:
        found = {token(run.settings.get(key)): run.settings.get(key) for run in runs}
        found.pop(token(MISSING))
        for run in runs:
            if run.settings.get(key) == MISSING:
                run.settings[key] = next(iter(found.values())) if len(found) == 1 else None


def _compare_effects(runs: Sequence[RunFolder]) -> None:
    """Drop settings without effect from runs whose folders do not record which ones these are.

    Folders of earlier versions do not record this, and neither do runs that failed early. Settings
    that have no effect in any of the other runs are dropped; circumstances, such as versions, in
    which all other runs agree are filled in.
    """
    traced = [run for run in runs if run.traced]
    effective = {key for run in traced for key in run.settings}
    idle = {key for run in traced for key in run.idle} - effective
    told = {key: [run.circumstances.get(key) for run in traced] for key in effective}
    shared = {k: v[0] for k, v in told.items() if v[0] is not None and v.count(v[0]) == len(v)}
    for run in runs:
        if not run.traced and run.settings:
            run.idle = {key: value for key, value in run.settings.items() if key in idle}
            run.settings = {k: v for k, v in run.settings.items() if k not in idle}
            run.settings |= shared
