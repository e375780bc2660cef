"""Overview of a multirun: one summary run in its trackers, beside the runs of its points."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from patchcore.digests import digest
from patchcore.keeping import numerically
from patchcore.metrics import METRICS
from patchcore.report.checks import is_number
from patchcore.report.multirun import read_stated
from patchcore.report.points import Point
from patchcore.report.reading import CATEGORY, RunFolder, read_yaml
from patchcore.report.sentences import not_counted
from patchcore.report.table import Table as Points
from patchcore.report.table import read_runs
from patchcore.report.words import distinct, flatten, show
from patchcore.tracking.about import About
from patchcore.tracking.tables import Table

JOB_TYPE = "sweep"
"""Job type of a summary run; points have `train`."""
PAGE = "report/report.html"
"""Report of a multirun in its folder."""
SECOND, FIRST = "patch.size", "coreset.ratio"
"""Preferred factors for the series and the x axis of curves, if they varied: see `pair_of`."""


@dataclass(frozen=True)
class Axis:
    """Setting that varied in a multirun.

    Attributes:
        key: Name in reports: coreset.ratio, or coreset for the choice of a group.
        config: Name in trackers: coreset.ratio, or choices.coreset.
        values: Distinct values; numbers in ascending order, then text.
    """

    key: str
    config: str
    values: list[Any]

    @property
    def column(self) -> str:
        """Name of the column in tables for charts, in which dots would mean nested fields."""
        return self.key.replace(".", "_")

    @property
    def numeric(self) -> bool:
        """Whether all values are numbers."""
        return all(map(is_number, self.values))

    @property
    def logarithmic(self) -> bool:
        """Whether the axis is logarithmic: values are positive and span a factor of 8 or more."""
        return self.numeric and min(self.values) > 0 and max(self.values) >= 8 * min(self.values)


@dataclass(frozen=True)
class Overview:
    """Overview of a multirun.

    Attributes:
        folder: Folder of the multirun.
        metric: Metric that ranks the points.
        axes: Settings that varied among the points.
        repeats: Settings that varied among the repeats of a point: category and seeds.
        metrics: Metrics that are shown, the ranking one first.
        costs: Metrics that are costs, such as seconds and memory.
        ranked: All metrics that could rank the points, which charts can show.
        tables: Tables for the trackers, {name: table}.
        numbers: Numbers for the trackers: counts of runs, and the metrics of the best point. With
            several data sets, each has its own best point: `best.data 1.image_auroc`.
        best: Overrides of the best point, or of each data set's; empty if the metric is undefined
            for all points.
        logger: Settings of the points' trackers.
        not_counted: Runs that are not counted, each with the reason, one line each.
    """

    folder: Path
    metric: str
    axes: list[Axis]
    repeats: list[Axis]
    metrics: list[str]
    costs: list[str]
    ranked: list[str]
    tables: dict[str, Table]
    numbers: dict[str, float]
    best: str
    logger: Mapping[str, Any]
    not_counted: list[str]

    @property
    def page(self) -> Path | None:
        """The multirun's report, if there is one."""
        page = self.folder / PAGE
        return page if page.is_file() else None


def pair_of(axes: Sequence[Axis]) -> tuple[Axis, Axis | None] | None:
    """Return the factor for the x axis of curves, and the one for their series, if any.

    The first factor is numeric; None if no factor is numeric.
    """
    numeric = [axis for axis in axes if axis.numeric and len(axis.values) > 1]
    if not numeric:
        return None
    first = next((axis for axis in numeric if axis.key == FIRST), numeric[0])
    others = [axis for axis in axes if axis is not first]
    second = next((axis for axis in others if axis.key == SECOND), None)
    return first, second or next(iter(others), None)


def overview(folder: Path, metric: str = "") -> Overview:
    """Return the overview of the multirun in a folder.

    Args:
        folder: Folder of the multirun.
        metric: Metric to rank by; by default the first objective of the points: see
            `read_stated`.

    Raises:
        InputError: The folder holds no finished run, or none with `metric`.
    """
    found = read_runs([folder], metric) if metric else read_stated([folder])
    metric = found.metric
    known = {key for run in found.known for key in flatten(_settings(run))}
    axes = []
    for key in dict.fromkeys(factor.key for part in found.parts for factor in part.shown):
        config = f"choices.{key}" if key in found.choices else key
        if config in known or config != key:
            axes.append(Axis(key, config, _finished_values(found, key)))
    axes = [axis for axis in axes if len(axis.values) > 1]
    repeats = [
        Axis(key, key, _finished_values(found, key))
        for key in (CATEGORY, *found.seed_keys)
        if key in found.varied
    ]
    costs = [key for key, measure in METRICS.items() if measure.cost and key in found.metrics]
    metrics = list(dict.fromkeys([*found.main_metrics, *costs]))
    newest = sorted(found.known, key=lambda run: (run.finished, numerically(run.folder)))
    named = (_settings(run).get("logger") for run in reversed(newest))
    logger = next((each for each in named if each), None)  # a run may lack its config.yaml
    finished = sum(run.finished for run in found.runs)
    numbers: dict[str, float] = {"runs": len(found.runs), "finished": finished}
    numbers["failed"] = len(found.runs) - finished
    bests = {}
    for part in found.parts:
        best, place = part.points[0], f".data {part.number}" if part.number else ""
        if best.value(metric).defined:
            bests[part.data] = best.label
            told = {key: best.value(key) for key in metrics}
            numbers |= {f"best{place}.{k}": x.mean for k, x in told.items() if x.defined}
    result = Overview(
        folder=folder,
        metric=metric,
        axes=axes,
        repeats=repeats,
        metrics=metrics,
        costs=costs,
        ranked=_ranked(found),
        tables={},
        numbers=numbers,
        best="; ".join(f"{data}: {label}" if data else label for data, label in bests.items()),
        logger=logger if isinstance(logger, Mapping) else {},
        not_counted=not_counted(found),
    )
    result.tables.update(_tables(found, result))
    return result


def summary_loggers(view: Overview, kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of trackers for the summary run, from the settings `kept` of the points.

    The summary run belongs to the points' group and replaces an earlier summary run.
    """
    found = {}
    for name, own in kept.items():
        found[name] = {**own, **{k: v for k, v in _summary(view, own).items() if k in own}}
    return found


def described(view: Overview) -> About:
    """Return the description of a multirun's summary run, with the axes that varied."""
    settings = {
        "sweep": {
            "folder": str(view.folder),
            "metric": view.metric,
            "axes": [[axis.key, axis.config, axis.values] for axis in view.axes],
            "repeats": [[axis.key, axis.config, axis.values] for axis in view.repeats],
            "costs": view.costs,
            "metrics": view.ranked,
            "best": view.best,
        }
    }
    return About(settings, view.folder)


def _summary(view: Overview, own: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which the tracker of a summary run differs from the tracker of a point."""
    save, name = str(own.get("save_dir", "")), f"{'/'.join(view.folder.parts[-2:])} summary"
    inside = Path(save).is_relative_to(view.folder) and Path(save).name != "mlruns"
    return {
        "name": name,
        "run_name": name,
        "save_dir": str(view.folder) if inside else save,
        "id": digest(str(view.folder))[:16],
        "job_type": JOB_TYPE,
    }


def _tables(found: Points, view: Overview) -> dict[str, Table]:
    """Tables of the summary run: leaderboard, Pareto fronts, and the data of the charts."""
    keys = [axis.key for axis in view.axes]
    columns = ["rank", "data", *keys, "repeats", view.metric, "half interval"]
    columns += [key for key in view.metrics if key != view.metric] + ["folder"]
    rows, fronts = [], []
    for part in found.parts:
        for rank, point in enumerate(part.points, 1):
            value = point.value(view.metric)
            row = [
                rank if value.defined else None,
                part.data,
                *(_plain(point.settings.get(key)) for key in keys),
            ]
            row += [value.count, _defined(value.mean), _defined(value.half)]
            row += [_defined(point.value(k).mean) for k in view.metrics if k != view.metric]
            rows.append([*row, found.name(point.runs[0])])
        for cost in view.costs:
            for point in part.front(cost):
                values = [_defined(point.value(key).mean) for key in (cost, view.metric)]
                fronts.append([part.data, cost, *values, point.label])
    tables = {
        "leaderboard": Table(columns, rows),
        "front": Table(["data", "cost", "value", view.metric, "point"], fronts),
    }
    if (pair := pair_of(view.axes)) is not None:
        first, second = pair
        rows = [row for part in found.parts for row in _cells(part, first, second, view.ranked)]
        series = second.column if second else "series"
        tables["factors"] = Table([first.column, series, *view.ranked, "data"], rows)
    return {name: table for name, table in tables.items() if table.rows}


def _ranked(found: Points) -> list[str]:
    """Metrics that some point has a value of, the ranking one first."""
    points = [point for part in found.parts for point in part.points]
    keys = dict.fromkeys([found.metric, *found.metrics])
    return [key for key in keys if any(point.value(key).defined for point in points)]


def _cells(
    part: Points, first: Axis, second: Axis | None, metrics: Sequence[str]
) -> list[list[Any]]:
    """Mean of each metric for each pair of values of two factors, on one data set.

    The series of several data sets have their names, so that no chart mixes them.
    """
    cells: dict[tuple[Any, str], list[Point]] = {}
    for point in part.points:
        x = point.settings.get(first.key)
        y = show(point.settings.get(second.key)) if second else "all"
        if part.data:
            y = f"{y}, {part.data}" if second else part.data
        if is_number(x):
            cells.setdefault((x, y), []).append(point)
    rows = []
    for (x, y), points in sorted(cells.items(), key=_order):
        known = [[v.mean for p in points if (v := p.value(key)).defined] for key in metrics]
        if any(known):
            rows.append([x, y, *(fmean(each) if each else None for each in known), part.data])
    return rows


def _order(cell: tuple[tuple[Any, str], Any]) -> tuple[str, float]:
    return cell[0][1], cell[0][0]


def _finished_values(found: Points, key: str) -> list[Any]:
    """Distinct values of a setting among finished runs.

    Runs that failed early lack settings that are filled in from others.
    """
    return distinct(found.setting(run, key) for run in found.known if run.finished)


def _settings(run: RunFolder) -> dict[str, Any]:
    try:
        return read_yaml(run.folder, "config.yaml")
    except ValueError:
        return {}


def _plain(value: Any) -> Any:
    return value if value is None or is_number(value) else show(value)


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None
