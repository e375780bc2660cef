"""Panels, workspace and report of a sweep, made with wandb-workspaces.

A panel reads the runs' settings by their dotted keys. wandb-workspaces interprets a dot as nesting,
which the configuration of the runs does not have. `flat` corrects the names.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from pydantic import BaseModel
from wandb_workspaces import expr

from patchcore.dashboard.sweep import Sweep
from patchcore.metrics import told
from patchcore.report.words import title
from patchcore.tracking.multirun import JOB_TYPE

POINTS = "train"
"""Job type of the points."""
WIDTH, HALF, HEIGHT = 24, 12, 9  # of panels in a report's grid
LINES, HEAT = "wandb/line/v0", "wandb/confusion_matrix/v1"
"""W&B's own charts of tables: curves, and a table coloured by its values."""


def flat(model: Any) -> Any:
    """Return W&B's model of a workspace or report with the names of settings as dotted keys.

    `config:coreset.value.ratio`, which is {coreset: {ratio: …}}, becomes
    `config:coreset.ratio.value`, which is {coreset.ratio: …}.
    """
    if isinstance(model, str):
        return re.sub(r"^(config[:.])([^.]+)\.value\.(.+)$", r"\1\2.\3.value", model)
    if isinstance(model, dict):
        return {key: flat(value) for key, value in model.items()}
    if isinstance(model, list):
        return [flat(each) for each in model]
    if isinstance(model, BaseModel):
        for name in type(model).model_fields:
            value = getattr(model, name)
            if (changed := flat(value)) is not value and changed != value:
                setattr(model, name, changed)
    return model


class Workspace(ws.Workspace):
    """Workspace whose settings have dotted keys."""

    def _to_model(self) -> Any:
        return flat(super()._to_model())


class Report(wr.Report):
    """Report whose settings have dotted keys."""

    def _to_model(self) -> Any:
        return flat(super()._to_model())


def sections(sweep: Sweep) -> Iterator[tuple[str, str, list[Any]]]:
    """Yield name, explanation and panels of each part of the dashboard.

    Every panel reads the points' runs, or the tables that the summary run holds.
    """
    metric = title(sweep.metric)
    yield (
        "What varied",
        f"Each line is a run. {metric} is the last axis; drag along an axis to keep some runs.",
        [_coordinates(sweep), wr.ParameterImportancePlot(with_respect_to=sweep.metric)],
    )
    if (pair := sweep.pair()) is not None:
        first, second = pair
        series = f" by {title(second.key)}" if second else ""
        curves: list[Any] = [
            wr.ScatterPlot(
                title=f"{metric} against {first.key}",
                x=wr.Config(first.config),
                y=wr.SummaryMetric(sweep.metric),
                z=wr.Config(second.config) if second and second.numeric else None,
                log_x=first.logarithmic or None,
            ),
            wr.LinePlot(
                title="runs that scored several ratios (curve=[…])",
                x="ratio_curve/ratio",
                y=[f"ratio_curve/{sweep.metric}"],
                log_x=True,
            ),
        ]
        if sweep.metric in sweep.drawn:  # else of a summary run of an earlier version
            means = wr.CustomChart(
                query=_table("factors"),
                chart_name=LINES,
                chart_fields={
                    "x": first.column,
                    "y": sweep.metric,
                    "stroke": second.column if second else "series",
                },
                chart_strings={"title": f"{metric} against {first.key}{series}"},
            )
            curves.insert(1, means)
        text = f"Means over repeats{series}; the points themselves beside them."
        yield f"{metric} against {first.key}", text, curves
        if second is not None and sweep.metric in sweep.drawn:
            heat = wr.CustomChart(
                query=_table("factors"),
                chart_name=HEAT,
                chart_fields={
                    "Actual": second.column,
                    "Predicted": first.column,
                    "nPredictions": sweep.metric,
                },
                chart_strings={"title": f"{metric}: {second.key} (rows), {first.key} (columns)"},
            )
            yield "Two factors", "Means of the cells.", [heat]
    yield (
        "Accuracy against cost",
        "Runs on the upper left edge are not beaten by any run in both; the table lists them.",
        [*(_pareto(sweep, cost) for cost in sweep.costs), _shown("front")],
    )
    yield "Runs side by side", "Settings and metrics that differ.", [wr.RunComparer(diff_only=True)]
    yield (
        "Test images",
        "Join on path to compare runs image by image; mask and map can be switched on and off in "
        "the picture.",
        [_shown("test_images"), _shown("defect_types"), _shown("confusion")],
    )
    yield "Leaderboard", "From the summary run.", [_shown("leaderboard")]


def workspace(sweep: Sweep) -> Workspace:
    """Return the saved view of the sweep's runs."""
    settings = [axis.config for axis in (*sweep.axes, *sweep.repeats)]
    found = Workspace(
        entity=sweep.entity,
        project=sweep.project,
        name=f"Sweep {sweep.group}",
        sections=[
            ws.Section(name=name, panels=panels, is_open=number < 3)
            for number, (name, _, panels) in enumerate(sections(sweep))
        ],
        runset_settings=ws.RunsetSettings(
            filters=expr.And(expr.Metric("Group") == sweep.group),
            order=[_best_first(sweep)],
            pinned_columns=[
                "run:displayName",
                f"summary:{sweep.metric}",
                *(f"config:{key}.value" for key in settings),
                *(f"summary:cost.{cost}" for cost in sweep.costs),
            ],
        ),
        settings=ws.WorkspaceSettings(max_runs=100),
    )
    _number(found.sections)
    return found


def report(sweep: Sweep, offline: bool = False) -> Report:
    """Return the report of the sweep; `offline` leaves out the project's number, which W&B knows.

    The grids show the runs of the points, or where they read its tables, the summary run.
    """
    entity, project = ("", "") if offline else (sweep.entity, sweep.project)
    blocks: list[Any] = [
        wr.TableOfContents(),
        wr.P(
            f"Runs of the group {sweep.group}. What varied: "
            + (", ".join(axis.key for axis in (*sweep.axes, *sweep.repeats)) or "nothing")
            + "."
        ),
    ]
    for name, text, panels in sections(sweep):
        runsets = [
            wr.Runset(
                entity=entity,
                project=project,
                name=kind,
                filters=expr.And(
                    expr.Metric("Group") == sweep.group,
                    expr.Metric("JobType") == job,
                ),
            )
            for kind, job in (("points", POINTS), ("summary", JOB_TYPE))
        ]
        wide = len(panels) == 1
        for number, panel in enumerate(panels):
            column, row = (0, number) if wide else (number % 2 * HALF, number // 2)
            panel.layout = wr.Layout(column, row * HEIGHT, WIDTH if wide else HALF, HEIGHT)
        grid = wr.PanelGrid(runsets=runsets, panels=panels)
        blocks += [wr.H2(name), wr.P(text), grid]
    found = Report(
        entity=sweep.entity,
        project=sweep.project,
        title=f"Sweep {sweep.group}"[:128],
        description=f"{title(sweep.metric)} over the points of a multirun",
        blocks=blocks,
        width="fluid",
    )
    _number([block for block in blocks if isinstance(block, wr.PanelGrid)])
    return found


def _coordinates(sweep: Sweep) -> Any:
    """Parallel coordinates over all that varied."""
    columns = [
        wr.ParallelCoordinatesPlotColumn(
            wr.Config(axis.config), display_name=axis.key, log=axis.logarithmic or None
        )
        for axis in (*sweep.axes, *sweep.repeats)
    ]
    last = wr.ParallelCoordinatesPlotColumn(
        wr.SummaryMetric(sweep.metric),
        display_name=title(sweep.metric),
        inverted=told(sweep.metric).better == "low" or None,
    )
    return wr.ParallelCoordinatesPlot(title="What varied", columns=[*columns, last])


def _pareto(sweep: Sweep, cost: str) -> Any:
    return wr.ScatterPlot(
        title=f"{title(sweep.metric)} against {title(cost)}",
        x=wr.SummaryMetric(f"cost.{cost}"),
        y=wr.SummaryMetric(sweep.metric),
        log_x=True,
        running_ymax=told(sweep.metric).better != "low" or None,
        running_ymin=told(sweep.metric).better == "low" or None,
    )


def _best_first(sweep: Sweep) -> Any:
    return expr.Ordering(expr.Summary(sweep.metric), ascending=told(sweep.metric).better == "low")


def _table(name: str) -> dict[str, Any]:
    return {"summaryTable": {"tableKey": name}}


def _shown(name: str) -> Any:
    return wr.WeavePanelSummaryTable(table_name=name)


def _number(holders: Sequence[Any]) -> None:
    """Give panels and sets of runs names that are the same each time."""
    for place, holder in enumerate(holders):
        for number, panel in enumerate(holder.panels):
            panel._id = f"panel-{place}-{number}"
        for number, runset in enumerate(getattr(holder, "runsets", [])):
            runset._id = f"runs-{place}-{number}"
