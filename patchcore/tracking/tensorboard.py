"""Numbers and pictures for TensorBoard, which needs the extra `tensorboard`."""

from typing import TYPE_CHECKING, Any

from patchcore.tracking.tracker import FOLDER, Tracker

if TYPE_CHECKING:
    from patchcore.report.run import Run


class TensorBoard(Tracker):
    """Lightning's TensorBoardLogger; look with: tensorboard --logdir outputs."""

    target = "pytorch_lightning.loggers.TensorBoardLogger"
    preset = {"save_dir": FOLDER, "name": None, "version": "tensorboard"}  # noqa: RUF012

    def log_results(self, logger: Any, run: "Run") -> None:
        """Log the run's pictures."""
        import numpy as np
        from PIL import Image

        for path in run.pictures:
            pixels = np.asarray(Image.open(path, formats=["PNG"]).convert("RGB"))
            logger.experiment.add_image(path.stem, pixels, dataformats="HWC")
