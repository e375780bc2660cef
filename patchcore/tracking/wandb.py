"""Numbers, curves, tables, pictures and artifacts with their lineage for Weights & Biases."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from patchcore.digests import digest
from patchcore.errors import InputError
from patchcore.report.words import flatten
from patchcore.runfolder import BESIDE, METRICS, listed
from patchcore.tracking.about import FINISHED, About
from patchcore.tracking.tracker import FOLDER, RESULTS, Tracker, curve_values

if TYPE_CHECKING:
    from patchcore.report.run import Run
    from patchcore.tracking.tables import Details, Picture, Table

LEVELS = 5  # steps of an anomaly map, the lowest of which stays clear
MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")
"""Values of WANDB_MODE that W&B knows."""
MARKED, FIRST_LEVEL = 1, 2  # classes of the overlays


class Wandb(Tracker):
    """Lightning's WandbLogger.

    It works offline unless a key is configured (wandb login) or logger.wandb.offline=false is set.
    Send offline runs later with: wandb sync RUN_FOLDER/wandb/offline-run-*
    """

    target = "pytorch_lightning.loggers.WandbLogger"
    preset = {  # noqa: RUF012
        "project": "patchcore",
        "save_dir": FOLDER,
        "offline": "${wandb_offline:}",
        "group": "${run_group:}",
        "name": "${run_name:}",
        "id": "${run_id:}",
        "job_type": "train",
    }
    beside = True

    def more_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the mode of the settings; only WANDB_MODE=disabled or shared overrides it.

        Raises:
            InputError: WANDB_MODE is none of W&B's modes.
        """
        asked = os.environ.get("WANDB_MODE", "")
        if asked and asked not in MODES:
            raise InputError(
                f"the environment variable WANDB_MODE must be {', '.join(MODES[:-1])} or "
                f"{MODES[-1]}, got {asked!r}"
            )
        if "mode" in settings:
            return {}
        online = "offline" if settings.get("offline") else "online"
        return {"mode": asked if asked in ("disabled", "shared") else online}

    def advice(self, name: str) -> str:
        """Return advice for a run without network access."""
        return f"set logger.{name}.offline=true and send the run later"

    def begin(self, logger: Any, about: About) -> None:
        """Log configuration, tags and notes; delete unfinished attempts in the same folder."""
        drop_attempts(about.folder)
        passed = getattr(logger, "_wandb_init", {})
        if passed.get("anonymous", "") is None:  # Lightning's default, of which W&B 0.31 warns
            del passed["anonymous"]
        super().begin(logger, about)
        experiment = logger.experiment
        experiment.tags = tuple(dict.fromkeys([*(experiment.tags or ()), *about.tags()]))
        experiment.notes = experiment.notes or about.notes()
        for name in ("ratio_curve", "progress"):
            step = {"ratio_curve": "ratio", "progress": "seconds"}[name]
            experiment.define_metric(f"{name}/*", step_metric=f"{name}/{step}")

    def log_progress(self, logger: Any, values: Mapping[str, float]) -> None:
        """Log the progress: images so far and seconds."""
        logger.experiment.log({f"progress/{key}": value for key, value in values.items()})

    def log_curve(self, logger: Any, rows: Sequence[Mapping[str, float]]) -> None:
        """Log metrics against the memory ratio, because W&B's own steps may not decrease."""
        for row in rows:
            logger.experiment.log(curve_values(row))

    def log_results(self, logger: Any, run: Run) -> None:
        """Log the summary, the curves of the image scores, the gallery and the pictures."""
        import wandb

        experiment = logger.experiment
        # In full precision, which replaces the float32 values that Lightning has logged.
        told = {k: v for k, v in run.record().items() if k != "ratio_curve"}
        experiment.summary.update({**flatten(told), "status": FINISHED, "reason": ""})
        for name, x, y in (("roc", "fpr", "tpr"), ("precision_recall", "recall", "precision")):
            if points := run.thinned(run.curves[x], run.curves[y]):
                table = wandb.Table(columns=[x, y], data=points)
                experiment.log({name: wandb.plot.line(table, x, y, title=name.replace("_", " "))})
        if run.gallery:
            columns = ["group", "path", "defect type", "score", "verdict", "image and map"]
            rows = [
                [
                    i.group,
                    i.sample.name,
                    i.sample.defect_type,
                    i.score,
                    i.verdict,
                    wandb.Image(i.overlay()),
                ]
                for i in run.gallery
            ]
            experiment.log({"gallery": wandb.Table(columns=columns, data=rows)})
        figures = {path.stem: wandb.Image(str(path)) for path in run.pictures}
        experiment.log({f"figures/{name}": image for name, image in figures.items()})

    def log_costs(self, logger: Any, costs: Mapping[str, float]) -> None:
        """Log the costs to the summary."""
        logger.experiment.summary.update({f"cost.{key}": value for key, value in costs.items()})

    def log_tables(self, logger: Any, run: Run, details: Details) -> None:
        """Log the tables; rows of test images have a picture with mask and map as overlays."""
        import wandb

        from patchcore.tracking.tables import tables

        for name, table in tables(run, details).items():
            if name == "test_images":
                table = with_pictures(table, run, details)
            logger.experiment.log({name: wandb.Table(columns=table.columns, data=table.rows)})

    def log_overview(
        self,
        logger: Any,
        numbers: Mapping[str, float],
        shown: Mapping[str, Table],
        page: Path | None,
    ) -> None:
        """Log the overview of a multirun: see `patchcore.tracking.multirun`."""
        import wandb

        experiment = logger.experiment
        experiment.summary.update({**numbers, "status": FINISHED, "reason": ""})
        for name, table in shown.items():
            experiment.log({name: wandb.Table(columns=table.columns, data=table.rows)})
        if page is not None:
            experiment.log({"page": wandb.Html(page.read_text("utf-8"), inject=False)})
            own, multirun = Path(experiment.dir).parents[1], page.parents[1]
            if own == multirun / BESIDE:
                link_runs(own)

    def log_end(self, logger: Any, status: str, reason: str) -> None:
        """Mark a run that did not finish, with the reason."""
        logger.experiment.summary.update({"status": status, "reason": reason})
        logger.experiment.tags = (*(logger.experiment.tags or ()), status)

    def log_files(self, logger: Any, folder: Path, about: About) -> None:
        """Log the run's data set, settings and scores, and its model if it is kept."""
        import wandb

        experiment = logger.experiment
        if data := about.provenance.get("data"):
            used = wandb.Artifact(f"data-{digest(data)[:16]}", type="dataset")
            used.metadata = {k: v for k, v in about.config().items() if k.startswith("data.")}
            with TemporaryDirectory() as place:  # W&B's own wait for the garbage collector
                told = Path(place) / "data.json"  # digests, which do not depend on the folder
                told.write_text(json.dumps(data, indent=2, sort_keys=True))
                used.add_file(str(told))
            if experiment.offline:  # the public method asks a server
                experiment._log_artifact(used, is_user_created=True, use_after_commit=True)
            else:
                experiment.use_artifact(used)
        results = wandb.Artifact(f"results-{experiment.id}", type="results")
        for name in RESULTS:
            if (folder / name).is_file():
                results.add_file(str(folder / name))  # copied, because the folder moves
        experiment.log_artifact(results)
        super().log_files(logger, folder, about)

    def log_artifact(self, logger: Any, folder: Path) -> None:
        """Log the model as the W&B artifact `model-RUN_ID`, an output of the run."""
        import wandb

        kept = wandb.Artifact(f"model-{logger.experiment.id}", type="model")
        kept.add_dir(str(folder))  # copied, because the folder moves when the run has finished
        logger.experiment.log_artifact(kept)

    def close(self, logger: Any, success: bool) -> None:
        """Close the logger and W&B's run."""
        super().close(logger, success)
        import wandb

        if wandb.run is not None:  # else it never started
            wandb.finish(exit_code=0 if success else 1)


def drop_attempts(folder: Path) -> None:
    """Delete the folders of W&B runs that unfinished attempts have left in a run's folder."""
    try:
        names = listed(folder)
    except OSError:
        names = []
        if (folder / METRICS).is_file():  # of an earlier version, which did not list its files
            return
    kept = {Path(name).parts[:2] for name in names}
    for run in (folder / BESIDE).glob("*run-*"):
        if (BESIDE, run.name) not in kept and run.is_dir() and not run.is_symlink():
            shutil.rmtree(run, ignore_errors=True)


def link_runs(folder: Path) -> None:
    """Link the W&B runs of a multirun's points in `folder`, so that W&B finds all in one place.

    Points in subfolders are found, too. Links are relative, because the multirun may be moved.
    Links to runs that no longer exist are removed.

    Args:
        folder: The multirun's own folder of W&B runs.
    """
    for link in folder.glob("*run-*"):
        if link.is_symlink() and not link.exists():
            link.unlink()
    for run in sorted(folder.parent.rglob(f"{BESIDE}/*run-*")):
        link = folder / run.name
        if run.is_dir() and not os.path.lexists(link):
            with suppress(OSError):  # some file systems have no links, which are a convenience
                link.symlink_to(os.path.relpath(run, folder), target_is_directory=True)


def with_pictures(table: Table, run: Run, details: Details) -> Table:
    """Return the table of test images with a column of pictures; mask and map can be toggled.

    All maps have the same levels: multiples of the pixel threshold, if there is one, or else equal
    steps from the typical value of the maps to their maximum.
    """
    from patchcore.tracking.tables import pictures, span

    if not (shown := pictures(run, details)):
        return table
    low, high = span(shown.values())
    edges = np.linspace(low, high, LEVELS + 1)[1:]
    names = [f"map ≥ {edge:.3g}" for edge in edges[:-1]]
    if (threshold := details.pixel_threshold) is not None:
        shares = (0.6, 0.8, 1.0, 1.25)
        edges = np.array([*(share * threshold for share in shares), np.inf])
        names = [f"map ≥ {share:g} × threshold" for share in shares]
    classes = {MARKED: "marked", **dict(enumerate(names, FIRST_LEVEL))}
    rows = [
        [*row, _overlaid(shown[i], edges[:-1], classes) if i in shown else None]
        for i, row in enumerate(table.rows)
    ]
    return replace(table, columns=[*table.columns, "image"], rows=rows)


def _overlaid(picture: Picture, edges: Any, classes: Mapping[int, str]) -> Any:
    """W&B image with the mask and the levels of the map as two overlays."""
    import wandb

    level = np.digitize(np.nan_to_num(picture.map, nan=-np.inf), edges)  # 0 below the first
    found = np.where(level > 0, level + FIRST_LEVEL - 1, 0).astype(np.uint8)
    masks = {"map": {"mask_data": found, "class_labels": dict(classes)}}
    if picture.mask.any():
        marked = (picture.mask * MARKED).astype(np.uint8)
        masks["marked"] = {"mask_data": marked, "class_labels": dict(classes)}
    known = [{"id": key, "name": name} for key, name in classes.items()]
    return wandb.Image(picture.image, masks=masks, classes=known)
