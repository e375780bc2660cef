"""Facts about a sweep for its dashboards, read from its folder or from W&B."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchcore.errors import InputError
from patchcore.tracking import tracker_named
from patchcore.tracking.multirun import JOB_TYPE, Axis, overview, pair_of
from patchcore.tracking.wandb import Wandb

PROJECT = "patchcore"


@dataclass(frozen=True)
class Sweep:
    """Sweep whose points are W&B's runs.

    Attributes:
        entity, project, group: Place of its runs in W&B.
        metric: Metric to rank by.
        axes: Settings that varied among the points.
        repeats: Settings that varied among the repeats of a point: category and seeds.
        costs: Metrics with which accuracy is compared.
        drawn: Metrics that the summary run's table for curves holds.
    """

    entity: str
    project: str
    group: str
    metric: str
    axes: Sequence[Axis]
    repeats: Sequence[Axis]
    costs: Sequence[str]
    drawn: Sequence[str]

    def pair(self) -> tuple[Axis, Axis | None] | None:
        """Return the factors of the curves and the heat table; see `pair_of`."""
        return pair_of(self.axes)


def from_folder(folder: Path, metric: str = "", entity: str = "", project: str = "") -> Sweep:
    """Return the sweep of a multirun's folder.

    Without `metric`, the sweep has that of the summary run, whose tables the charts read. A warning
    names each run that is not finished, or is damaged.

    Raises:
        InputError: It holds no finished run, none that W&B tracks in a group, or no point with a
            value of `metric`.
    """
    view = overview(folder, metric)
    _check_metric(metric, view.ranked)
    for line in view.not_counted:
        warnings.warn(f"{folder}: {line}", stacklevel=2)
    wandb = [
        own
        for own in view.logger.values()
        if isinstance(own, Mapping) and isinstance(tracker_named(own.get("_target_")), Wandb)
    ]
    group = wandb[0].get("group") if wandb else None
    if not group:
        raise InputError(
            f"{folder}: its runs are not in a W&B group: a dashboard needs a multirun with "
            "logger=wandb"
        )
    return Sweep(
        entity=entity or str(wandb[0].get("entity") or ""),
        project=project or str(wandb[0].get("project") or PROJECT),
        group=str(group),
        metric=view.metric,
        axes=view.axes,
        repeats=view.repeats,
        costs=view.costs,
        drawn=view.ranked,
    )


def from_wandb(group: str, metric: str, entity: str, project: str) -> Sweep:
    """Return the sweep that the summary run of a group describes; asks W&B's server.

    An empty `metric` stands for that of the summary run.

    Raises:
        InputError: W&B cannot be reached or has no such run, or no point has a value of `metric`.
    """
    import wandb

    project = project or PROJECT
    try:
        api = wandb.Api()
        entity = entity or str(api.default_entity)
        runs = api.runs(f"{entity}/{project}", {"group": group, "jobType": JOB_TYPE})
        told = [dict(run.config) for run in runs]
    except Exception as error:  # the client has no common base of its errors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{group}: is no folder, and W&B cannot be asked: {reason}") from error
    if not told:
        raise InputError(
            f"{group}: is no folder, and {entity}/{project} has no summary run of such a group: "
            "give the multirun's folder, or send its runs first (wandb sync)"
        )
    axes, repeats = (
        [Axis(*each) for each in told[0].get(f"sweep.{key}", [])] for key in ("axes", "repeats")
    )
    own = told[0].get("sweep.metric", "image_auroc")
    drawn = told[0].get("sweep.metrics")
    if drawn is None:  # of an earlier version, whose table holds one metric alone
        drawn = [own]
    else:
        _check_metric(metric, drawn)
    costs = told[0].get("sweep.costs", [])
    return Sweep(entity, project, group, metric or own, axes, repeats, costs, drawn)


def _check_metric(metric: str, known: Sequence[str]) -> None:
    """Refuse a metric of which no point has a value; an empty one stands for the sweep's own."""
    if metric and metric not in known:
        raise InputError(
            f"--metric: no point has a value of {metric!r}; choose one of {', '.join(known)}"
        )


def to_dict(sweep: Sweep) -> dict[str, Any]:
    """Return where the sweep's runs are, as a specification says it."""
    return {"entity": sweep.entity, "project": sweep.project, "group": sweep.group}
