"""Data of the report page, as values for JSON: its script draws, filters and shows them.

Each number comes with its text, so that the page shows it as the tables do. Scores are raw
little-endian floats in base64: float32 if that is exact, else float64.
"""

import base64
import os
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from patchcore.errors import printable
from patchcore.metrics import told
from patchcore.report.galleries import anchor
from patchcore.report.pictured import Pictured
from patchcore.report.plots import costs
from patchcore.report.points import Point, Summary
from patchcore.report.reading import CATEGORY, RunFolder, Score, category_of, read_scores
from patchcore.report.table import Table
from patchcore.report.words import falls, number, show, title

SCORES_BYTES = 3_000_000  # of all scores and names of test images, as encoded in the page
THRESHOLDS = ("decision_threshold", "image_threshold")
"""Metrics that are thresholds of image scores, the model's own first."""


def page_data(table: Table, folder: Path | None = None, pictured: Pictured | None = None) -> Any:
    """Return the content of the page's data.

    Args:
        table: Runs.
        folder: Folder of the page, for relative links to the runs' folders; None: no links.
        pictured: Pictures of single images in the page.
    """
    parts = table.parts
    points = [(part, point) for part in parts for point in part.points]
    point_of = {run: i for i, (_, point) in enumerate(points) for run in point.runs}
    part_of = {run: part for part, point in points for run in point.runs}
    ordered = sorted(table.runs, key=lambda run: point_of.get(run, len(points)))
    scores = Scores(ordered)
    metrics = dict.fromkeys(key for part in parts for key in part.metrics)
    return {
        "metric": table.metric,
        "measures": {key: {"title": title(key), "falls": falls(key)} for key in metrics},
        "thresholds": {key: title(key) for key in THRESHOLDS},
        "constant": {key: show(value) for key, value in table.constant.items()},
        "parts": [_part(part) for part in parts],
        "points": [_point(part, point, table) for part, point in points],
        "runs": [
            {
                **_run(table, run, part_of.get(run), folder),
                "point": point_of.get(run),
                "scores": scores.of(run),
                "pictures": pictured.of(run) if pictured else {},
            }
            for run in table.runs
        ],
        "sets": scores.sets,
        "pictures": pictured.uris if pictured else [],
    }


class Scores:
    """Scores of the runs' test images, for as many runs as fit into the budget, the first first.

    Args:
        runs: Runs in order of priority.
        budget: Size of all scores and names, in bytes.

    Attributes:
        sets: Distinct sets of test images, which runs share: {paths, labels, kinds}, where kinds
            are types of defect.
    """

    def __init__(self, runs: list[RunFolder], budget: int = SCORES_BYTES) -> None:
        self.sets: list[dict[str, Any]] = []
        self._places: dict[tuple[tuple[str, int, str], ...], int] = {}
        self._found: dict[RunFolder, dict[str, Any]] = {}
        for run in runs:
            try:
                rows = read_scores(run.folder) if run.finished else []
            except (OSError, ValueError):
                continue  # there is no such file, or it has changed since it was checked
            if rows:
                budget = self._add(run, rows, budget)

    def of(self, run: RunFolder) -> dict[str, Any] | None:
        """Return the scores of a run, or None if the page does not have them.

        They are {set: index in `sets`, data: scores in base64, bytes: size of one score}.
        """
        return self._found.get(run)

    def _add(self, run: RunFolder, rows: list[Score], budget: int) -> int:
        """Add the scores of a run, if they fit; return the rest of the budget."""
        scores = np.array([row.score for row in rows], "<f8")
        with np.errstate(over="ignore"):
            narrow = scores.astype("<f4")
        kept = narrow if (narrow == scores).all() else scores
        text = base64.b64encode(kept.tobytes()).decode()
        images = tuple((printable(row.path), row.label, _kind(run, row)) for row in rows)
        new = images not in self._places
        cost = len(text) + (sum(len(name) + len(kind) + 8 for name, _, kind in images) * new)
        if cost > budget:
            return budget
        if new:
            self._places[images] = len(self.sets)
            paths, labels, kinds = (list(column) for column in zip(*images, strict=True))
            self.sets.append({"paths": paths, "labels": labels, "kinds": kinds})
        place = self._places[images]
        self._found[run] = {"set": place, "data": text, "bytes": kept.itemsize}
        return budget - cost


def _kind(run: RunFolder, row: Score) -> str:
    """Type of defect; with several categories, `category/type`, as in metrics.json."""
    kind = printable(row.defect_type)
    place = category_of(printable(row.path), run.settings.get(CATEGORY)) if row.label else ""
    return "/".join(filter(None, [place, kind]))


def _part(part: Table) -> dict[str, Any]:
    return {
        "name": f"data {part.number}: {part.data}" if part.number else "",
        "metrics": part.metrics,
        "main": part.main_metrics,
        "costs": costs(part),
        "factors": [
            {"key": factor.key, "numeric": bool(factor.numbers), "values": _texts(factor.values)}
            for factor in part.factors
        ],
    }


def _texts(values: list[Any]) -> list[str]:
    return [show(value) for value in values]


def _point(part: Table, point: Point, table: Table) -> dict[str, Any]:
    place = part.ids[point] - part.first + 1
    curves = {key: point.curve(key) for key in part.main_metrics}
    values = {f.key: point.settings[f.key] if f.numbers else None for f in part.factors}
    return {
        "part": part.place,
        "rank": place if point.value(part.metric).defined else None,
        "label": point.label,
        "settings": {k: [value, show(point.settings[k])] for k, value in values.items()},
        "values": {key: _summary(key, point.value(key)) for key in part.metrics},
        "curves": {key: curve for key, curve in curves.items() if curve},
        "runs": [table.runs.index(run) for run in point.runs],
    }


def _summary(metric: str, value: Summary) -> list[Any]:
    """[mean, text, ends of the interval or None]; [None, "undefined", reason]."""
    if not value.defined:
        return [None, "undefined", value.reason]
    if value.count < 2:
        return [_scaled(metric, value.mean), number(metric, value.mean), None]
    text = f"{number(metric, value.mean)} ± {number(metric, value.half)}"
    ends = [_scaled(metric, end) for end in value.ends(metric)]
    return [_scaled(metric, value.mean), text, ends]


def _scaled(metric: str, value: float) -> float:
    """Value in the unit of the metric's title."""
    return value * told(metric).scale


def _run(table: Table, run: RunFolder, part: Table | None, folder: Path | None) -> dict[str, Any]:
    keys = [key for key in run.settings if key not in table.constant]
    seconds = [key for key in run.metrics if key.startswith("seconds.")]
    return {
        "name": table.name(run),
        "link": _link(run.folder, folder) if folder else "",
        "status": table.status(run),
        "finished": run.finished,
        "category": run.category,
        "seed": table.seed(run),
        "command": command(run),
        "settings": {key: show(run.settings[key]) for key in keys},
        "metrics": {
            key: [_scaled(key, run.metrics[key]), number(key, run.metrics[key]), title(key)]
            for key in dict.fromkeys([*table.metrics, *run.metrics])
            if key in run.metrics and key not in seconds
        },
        "seconds": {key.partition(".")[2]: number("seconds", run.metrics[key]) for key in seconds},
        "thresholds": {key: run.metrics[key] for key in THRESHOLDS if key in run.metrics},
        "undefined": {title(key): why for key, why in run.undefined.items()},
        "gallery": anchor(part, run) if part else "",
    }


def command(run: RunFolder) -> str:
    """Return the command that repeats a run; empty if its folder does not record it."""
    if not (given := [*run.options, *run.overrides]):
        return ""
    return printable(shlex.join(["patchcore", "train", *given]))


def _link(folder: Path, start: Path) -> str:
    """Address of a folder relative to another; its name need not be UTF-8."""
    path = Path(os.path.relpath(folder.resolve(), start.resolve())).as_posix()
    return quote(os.fsencode(path))
