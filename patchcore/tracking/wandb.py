"""Numbers, curves, pictures and the table of the worst errors for Weights & Biases."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from patchcore.metrics import ImageMetrics
from patchcore.report.reading import read_scores
from patchcore.report.run import GalleryItem, Run
from patchcore.tracking.tracker import FOLDER, Tracker, curve_values, pictures


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

    def log_curve(self, logger: Any, rows: Sequence[Mapping[str, float]]) -> None:
        """Log metrics against the memory's share; W&B's own steps may not go back."""
        if rows:
            logger.experiment.define_metric("ratio_curve/*", step_metric="ratio_curve/ratio")
        for row in rows:
            logger.experiment.log(curve_values(row))

    def log_results(
        self,
        logger: Any,
        record: Mapping[str, Any],
        folder: Path,
        gallery: Sequence[GalleryItem],
    ) -> None:
        """Log the summary, the curves of the image scores, the gallery and the pictures."""
        import wandb

        experiment = logger.experiment
        # Seconds and the curve are in the history, from which W&B takes its summary too.
        once = {k: v for k, v in record.items() if k not in ("seconds", "ratio_curve")}
        experiment.summary.update(once)
        scores = read_scores(folder)
        metrics = ImageMetrics()
        labels = torch.tensor([row.label for row in scores])
        metrics.update(torch.tensor([row.score for row in scores]), labels)
        curves = metrics.curves()
        for name, x, y in (("roc", "fpr", "tpr"), ("precision_recall", "recall", "precision")):
            if points := Run.thinned(curves[x], curves[y]):
                table = wandb.Table(columns=[x, y], data=points)
                experiment.log({name: wandb.plot.line(table, x, y, title=name.replace("_", " "))})
        if gallery:
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
                for i in gallery
            ]
            experiment.log({"gallery": wandb.Table(columns=columns, data=rows)})
        figures = {path.stem: wandb.Image(str(path)) for path in pictures(folder)}
        experiment.log({f"figures/{name}": image for name, image in figures.items()})

    def close(self, logger: Any, success: bool) -> None:
        """Close the logger and W&B's run."""
        super().close(logger, success)
        import wandb

        if wandb.run is not None:  # else it never started
            wandb.finish(exit_code=0 if success else 1)
