"""Numbers, settings and pictures for TensorBoard, which needs the extra `tensorboard`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from patchcore.tracking.about import About
from patchcore.tracking.tracker import FOLDER, Tracker

if TYPE_CHECKING:
    from patchcore.report.run import Run


class TensorBoard(Tracker):
    """Lightning's TensorBoardLogger; view with: tensorboard --logdir outputs."""

    target = "pytorch_lightning.loggers.TensorBoardLogger"
    preset = {  # noqa: RUF012
        "save_dir": FOLDER,
        "name": None,
        "version": "tensorboard",
        "default_hp_metric": False,
    }

    def begin(self, logger: Any, about: About) -> None:
        """Open the logger and log the notes.

        The settings are logged at the end, because HPARAMS needs one record with the metrics.
        """
        logger.hparams.update(about.config())
        logger.experiment.add_text("run", about.notes())

    def log_progress(self, logger: Any, values: Mapping[str, float]) -> None:
        """Log the progress: images so far."""
        for key, value in values.items():
            if key != "seconds":
                logger.experiment.add_scalar(f"progress/{key}", value, int(value))

    def log_results(self, logger: Any, run: Run) -> None:
        """Log settings with metrics, histograms of the image scores, and the run's pictures."""
        import numpy as np
        from PIL import Image

        metrics = {k: v for k, v in run.metrics.items() if v == v}
        logger.log_hyperparams(dict(logger.hparams), metrics)
        for label, name in enumerate(("nominal", "anomalous")):
            scores = np.asarray(run.scores)[run.labels == label]
            if len(scores):
                logger.experiment.add_histogram(f"scores/{name}", scores)
        for path in run.pictures:
            pixels = np.asarray(Image.open(path, formats=["PNG"]).convert("RGB"))
            logger.experiment.add_image(path.stem, pixels, dataformats="HWC")

    def log_end(self, logger: Any, status: str, reason: str) -> None:
        """Log why the run did not finish."""
        logger.experiment.add_text(status, reason)
