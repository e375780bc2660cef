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
from patchcore.report.words import flatten
from patchcore.runfolder import BESIDE, CONTENTS, METRICS
from patchcore.tracking.about import FINISHED, About
from patchcore.tracking.tracker import FOLDER, RESULTS, Tracker, curve_values

if TYPE_CHECKING:
    from patchcore.report.run import Run
    from patchcore.tracking.tables import Details, Picture, Table

LEVELS = 5  # of an anomaly map that is laid over an image
MARKED, FIRST_LEVEL = 1, 2  # classes of the overlays


class Wandb(Tracker):
    """Lightning's WandbLogger.

    Offline unless a key is configured (wandb login) or logger.wandb.offline=false asks for it; send
    offline runs later with: wandb sync RUN_FOLDER/wandb/offline-run-*
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
        """Return the mode that the settings record, whatever the environment says."""
        if "mode" in settings:
            return {}
        asked = os.environ.get("WANDB_MODE", "")
        online = "offline" if settings.get("offline") else "online"
        return {"mode": asked if asked in ("disabled", "shared") else online}

    def advice(self, name: str) -> str:
        """Return how to do without the network."""
        return f"set logger.{name}.offline=true and send the run later"

    def begin(self, logger: Any, about: About) -> None:
        """Log configuration, tags and notes; earlier attempts at the same point give way."""
        drop_attempts(about.folder)
        super().begin(logger, about)
        experiment = logger.experiment
        experiment.tags = tuple(dict.fromkeys([*(experiment.tags or ()), *about.tags()]))
        experiment.notes = experiment.notes or about.notes()
        for name in ("ratio_curve", "progress"):
            step = {"ratio_curve": "ratio", "progress": "seconds"}[name]
            experiment.define_metric(f"{name}/*", step_metric=f"{name}/{step}")

    def log_progress(self, logger: Any, values: Mapping[str, float]) -> None:
        """Log how far a stage has come."""
        logger.experiment.log({f"progress/{key}": value for key, value in values.items()})

    def log_curve(self, logger: Any, rows: Sequence[Mapping[str, float]]) -> None:
        """Log metrics against the memory's share; W&B's own steps may not go back."""
        for row in rows:
            logger.experiment.log(curve_values(row))

    def log_results(self, logger: Any, run: Run) -> None:
        """Log the summary, the curves of the image scores, the gallery and the pictures."""
        import wandb

        experiment = logger.experiment
        # Each value once, and exactly: Lightning has logged float32.
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
        """Log the tables; the test images have a picture each with its mask and map over it."""
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
        """Log the data that the run used, its settings and scores, and its model if it is kept."""
        import wandb

        experiment = logger.experiment
        if data := about.provenance.get("data"):
            used = wandb.Artifact(f"data-{digest(data)[:16]}", type="dataset")
            used.metadata = {k: v for k, v in about.config().items() if k.startswith("data.")}
            with TemporaryDirectory() as place:  # W&B's own are left to the garbage collector
                told = Path(place) / "data.json"  # the digests: alike wherever the images lie
                told.write_text(json.dumps(data, indent=2, sort_keys=True))
                used.add_file(str(told))
            if experiment.offline:  # the public method asks a server
                experiment._log_artifact(used, is_user_created=True, use_after_commit=True)
            else:
                experiment.use_artifact(used)
        results = wandb.Artifact(f"results-{experiment.id}", type="results")
        for name in RESULTS:
            if (folder / name).is_file():
                results.add_file(str(folder / name))  # copied, for the folder moves
        experiment.log_artifact(results)
        super().log_files(logger, folder, about)

    def log_artifact(self, logger: Any, folder: Path) -> None:
        """Log the model as W&B's artifact `model-RUN`, which the run is the origin of."""
        import wandb

        kept = wandb.Artifact(f"model-{logger.experiment.id}", type="model")
        kept.add_dir(str(folder))  # copied, for the folder moves when the run has finished
        logger.experiment.log_artifact(kept)

    def close(self, logger: Any, success: bool) -> None:
        """Close the logger and W&B's run."""
        super().close(logger, success)
        import wandb

        if wandb.run is not None:  # else it never started
            wandb.finish(exit_code=0 if success else 1)


def drop_attempts(folder: Path) -> None:
    """Remove what attempts that did not finish have left of W&B's runs in a run's folder."""
    try:
        names = (folder / CONTENTS).read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        names = []
        if (folder / METRICS).is_file():  # results of an earlier version: theirs cannot be told
            return
    kept = {Path(name).parts[:2] for name in names}
    for run in (folder / BESIDE).glob("*run-*"):
        if (BESIDE, run.name) not in kept and run.is_dir() and not run.is_symlink():
            shutil.rmtree(run, ignore_errors=True)


def link_runs(folder: Path) -> None:
    """Link the runs of a multirun's points in its own folder of W&B's, so that one view has all.

    Points in subfolders are found too. Links are relative, for the multirun may be moved; links of
    runs that have been replaced are removed.
    """
    for link in folder.glob("*run-*"):
        if link.is_symlink() and not link.exists():
            link.unlink()
    for run in sorted(folder.parent.rglob(f"{BESIDE}/*run-*")):
        link = folder / run.name
        if run.is_dir() and not os.path.lexists(link):
            with suppress(OSError):  # where links are not allowed: they are a convenience
                link.symlink_to(os.path.relpath(run, folder), target_is_directory=True)


def with_pictures(table: Table, run: Run, details: Details) -> Table:
    """Return the table of test images with a column of pictures, mask and map as toggles.

    The levels of the maps are shared by all: shares of the pixel threshold where there is one, else
    of the way from their usual value to their highest.
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
    """W&B's image, with the mask and the levels of the map as two overlays."""
    import wandb

    level = np.digitize(np.nan_to_num(picture.map, nan=-np.inf), edges)  # 0 below the first
    found = np.where(level > 0, level + FIRST_LEVEL - 1, 0).astype(np.uint8)
    masks = {"map": {"mask_data": found, "class_labels": dict(classes)}}
    if picture.mask.any():
        marked = (picture.mask * MARKED).astype(np.uint8)
        masks["marked"] = {"mask_data": marked, "class_labels": dict(classes)}
    known = [{"id": key, "name": name} for key, name in classes.items()]
    return wandb.Image(picture.image, masks=masks, classes=known)
