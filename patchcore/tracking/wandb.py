"""Numbers, curves, pictures and the table of the worst errors for Weights & Biases."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchcore.tracking.tracker import FOLDER, Tracker, curve_values

if TYPE_CHECKING:
    from patchcore.report.run import Run


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

    def log_results(self, logger: Any, run: "Run") -> None:
        """Log the summary, the curves of the image scores, the gallery and the pictures."""
        import wandb

        experiment = logger.experiment
        # Seconds and the curve are in the history, from which W&B takes its summary too.
        told = run.record()
        experiment.summary.update({k: told[k] for k in told if k not in ("seconds", "ratio_curve")})
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
