"""Base class of the trackers: it supports a Lightning logger that only logs numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from patchcore.runfolder import FOLDER as ARTIFACT
from patchcore.tracking.about import About

if TYPE_CHECKING:  # these take seconds to import, and settings only need the names of loggers
    from pytorch_lightning.loggers import Logger

    from patchcore.report.run import Run
    from patchcore.tracking.tables import Details, Table

FOLDER = "${hydra:runtime.output_dir}"
"""Folder of the run, as presets refer to it."""
RESULTS = ("config.yaml", "provenance.json", "metrics.json", "scores.csv")
"""Files of a run's folder that trackers keep beside the numbers."""


class Tracker:
    """Kind of tracker: how its logger is made, filled and closed.

    Subclasses override the methods for which their logger can do more.

    Attributes:
        target: Class of the logger, as `_target_` names it.
        preset: Further settings of the logger in the group `logger`.
        beside: Whether the tracker also keeps failed runs. It then writes into the run's folder (or
            the multirun's) from the start, and not into the folder of results in the making.
    """

    target: ClassVar[str] = ""
    preset: ClassVar[Mapping[str, Any]] = {}
    beside: ClassVar[bool] = False

    def settings(self) -> dict[str, Any]:
        """Return the preset of the group `logger`."""
        return {"_target_": self.target, **self.preset}

    def is_named(self, target: Any) -> bool:
        """Return whether `_target_` names this tracker's class, whichever module it is in."""
        return str(target).endswith(f".{self.target.rpartition('.')[2]}")

    def logger_class(self) -> type[Logger]:
        """Return the class of the logger."""
        module, _, name = self.target.rpartition(".")
        return getattr(import_module(module), name)

    def more_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return further arguments of the logger that depend on its settings."""
        return {}

    def advice(self, name: str) -> str:
        """Return advice for the user if the logger with key `name` cannot start."""
        return "leave it out of logger=[…]"

    def begin(self, logger: Any, about: About) -> None:
        """Open the logger and log the configuration."""
        logger.log_hyperparams(about.config())

    def log_progress(self, logger: Any, values: Mapping[str, float]) -> None:
        """Log the progress of a stage; see `patchcore.tracking.progress`."""

    def log_numbers(self, logger: Any, numbers: Mapping[str, float]) -> None:
        """Log the metrics of a finished run that Lightning has not tested with this logger."""
        logger.log_metrics(numbers)

    def log_curve(self, logger: Any, rows: Sequence[Mapping[str, float]]) -> None:
        """Log metrics at several memory ratios; the step is the number of patches."""
        for row in rows:
            logger.log_metrics(curve_values(row), step=int(row["memory_patches"]))

    def log_results(self, logger: Any, run: Run) -> None:
        """Log the results of a finished run beyond its metrics; the gallery may be empty."""

    def log_costs(self, logger: Any, costs: Mapping[str, float]) -> None:
        """Log the known costs of a run, such as `cost.seconds`."""

    def log_tables(self, logger: Any, run: Run, details: Details) -> None:
        """Log the tables of a finished run, with pictures of its test images if there are any."""

    def log_files(self, logger: Any, folder: Path, about: About) -> None:
        """Log files of a finished run's folder; by default only the model, if it is kept."""
        if (folder / ARTIFACT).is_dir():
            self.log_artifact(logger, folder / ARTIFACT)

    def log_artifact(self, logger: Any, folder: Path) -> None:
        """Log the artifact that a run has left in a folder."""

    def log_overview(
        self,
        logger: Any,
        numbers: Mapping[str, float],
        shown: Mapping[str, Table],
        page: Path | None,
    ) -> None:
        """Log the overview of a multirun: numbers, tables by name, and the page of its report."""

    def log_end(self, logger: Any, status: str, reason: str) -> None:
        """Mark a run that did not finish; see `patchcore.tracking.about.ended`."""

    def close(self, logger: Any, success: bool) -> None:
        """Close the logger, so that the next job of a multirun gets a run of its own."""
        logger.finalize("success" if success else "failed")


def curve_values(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defined values in a row of the ratio curve, {name in trackers: value}."""
    return {f"ratio_curve/{key}": value for key, value in row.items() if value is not None}
