"""What a run leaves in the trackers besides its metrics: settings, pictures, the worst errors."""

from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from patchcore.errors import InputError
from patchcore.report.run import Run


def start(logger: Logger, settings: dict[str, Any]) -> None:
    """Open the logger and give it the settings.

    Raises:
        InputError: W&B is online and does not let us in.
    """
    if not isinstance(logger, WandbLogger):
        logger.log_hyperparams(settings)
        return
    import wandb

    try:
        logger.log_hyperparams(settings)
    except wandb.Error as error:
        raise InputError(
            f"logger.wandb: {error}; or set logger.wandb.offline=true and send the run later"
        ) from error


def track(logger: Logger, run: Run, folder: Path) -> None:
    """Log the ratio curve, and what a metrics table cannot show; for CSV that ends with it."""
    _track_ratio_curve(logger, run)
    if isinstance(logger, WandbLogger):
        _track_wandb(logger, run, folder)
    elif isinstance(logger, TensorBoardLogger):
        _track_tensorboard(logger, folder)
    logger.save()


def track_again(logger: Logger, record: dict[str, Any], folder: Path) -> None:
    """Log what a finished run's folder holds, for a point that is taken over.

    Args:
        logger: Opened by `start`.
        record: What metrics.json holds.
        folder: With its pictures, if it has any.
    """
    seconds = {f"seconds.{key}": value for key, value in record["seconds"].items()}
    numbers = {key: value for key, value in record.items() if isinstance(value, int | float)}
    logger.log_metrics({**numbers, **seconds}, step=0)
    if isinstance(logger, WandbLogger):
        import wandb

        logger.experiment.summary.update(record)
        for path in sorted(folder.glob("figures/*.png")):
            logger.experiment.log({f"figures/{path.stem}": wandb.Image(str(path))})
    elif isinstance(logger, TensorBoardLogger):
        _track_tensorboard(logger, folder)
    logger.save()


def finish(logger: Logger, success: bool) -> None:
    """Close the logger, so that the next job of a multirun gets a run of its own."""
    logger.finalize("success" if success else "failed")
    if isinstance(logger, WandbLogger):
        import wandb

        if wandb.run is not None:  # else it never started
            wandb.finish(exit_code=0 if success else 1)


def _track_ratio_curve(logger: Logger, run: Run) -> None:
    """Metrics against the memory's share; the step is its number of patches."""
    if isinstance(logger, WandbLogger) and run.ratio_curve:
        logger.experiment.define_metric("ratio_curve/*", step_metric="ratio_curve/ratio")
    for row in run.ratio_curve:
        values = {f"ratio_curve/{key}": value for key, value in row.items()}
        if isinstance(logger, WandbLogger):
            logger.experiment.log(values)  # its own steps may not go back
        else:
            logger.log_metrics(values, step=int(row["memory_patches"]))


def _track_wandb(logger: WandbLogger, run: Run, folder: Path) -> None:
    import wandb

    experiment = logger.experiment
    experiment.summary.update(run.record())
    curves = run.curves
    for name, x, y in (("roc", "fpr", "tpr"), ("precision_recall", "recall", "precision")):
        if points := run.thinned(curves[x], curves[y]):
            table = wandb.Table(columns=[x, y], data=points)
            experiment.log({name: wandb.plot.line(table, x, y, title=name.replace("_", " "))})
    columns = ["group", "path", "defect type", "score", "verdict", "image and map"]
    rows = [
        [
            i.group,
            str(i.sample.path),
            i.sample.defect_type,
            i.score,
            i.verdict,
            wandb.Image(i.overlay()),
        ]
        for i in run.gallery
    ]
    experiment.log({"gallery": wandb.Table(columns=columns, data=rows)})
    figures = {path.stem: wandb.Image(str(path)) for path in sorted(folder.glob("figures/*.png"))}
    experiment.log({f"figures/{name}": image for name, image in figures.items()})


def _track_tensorboard(logger: TensorBoardLogger, folder: Path) -> None:
    import numpy as np
    from PIL import Image

    for path in sorted(folder.glob("figures/*.png")):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        logger.experiment.add_image(path.stem, pixels, dataformats="HWC")
