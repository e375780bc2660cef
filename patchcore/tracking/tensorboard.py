"""Numbers and pictures for TensorBoard, which needs the extra `tensorboard`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from patchcore.report.run import GalleryItem
from patchcore.tracking.tracker import FOLDER, Tracker, pictures


class TensorBoard(Tracker):
    """Lightning's TensorBoardLogger; look with: tensorboard --logdir outputs."""

    target = "pytorch_lightning.loggers.TensorBoardLogger"
    preset = {"save_dir": FOLDER, "name": None, "version": "tensorboard"}  # noqa: RUF012

    def log_results(
        self,
        logger: Any,
        record: Mapping[str, Any],
        folder: Path,
        gallery: Sequence[GalleryItem],
    ) -> None:
        """Log the run's pictures."""
        import numpy as np
        from PIL import Image

        for path in pictures(folder):
            pixels = np.asarray(Image.open(path, formats=["PNG"]).convert("RGB"))
            logger.experiment.add_image(path.stem, pixels, dataformats="HWC")
