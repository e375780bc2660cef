"""Progress of a run in its trackers: images of either stage, and seconds since the start."""

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from patchcore.tracking import tracker_of

EVERY = 5.0  # seconds between two rows


class Progress(Callback):
    """Callback that logs the progress now and then, and when a stage has ended.

    The time that a coreset takes is that between the last row of training and the first of testing.

    Args:
        every: Seconds between two rows.
    """

    def __init__(self, every: float = EVERY) -> None:
        self.every = every
        self.started = time.monotonic()
        self._last = self.started
        self._images = {"train_images": 0, "test_images": 0}

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Begin to count."""
        self.started = self._last = time.monotonic()
        self._images = dict.fromkeys(self._images, 0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, number: int
    ) -> None:
        """Count a training batch."""
        self._count(trainer, "train_images", batch)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Log all training images."""
        self._log(trainer)

    def on_test_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Log that the memory is built."""
        self._log(trainer)

    def on_test_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, number: int, *_: Any
    ) -> None:
        """Count a test batch."""
        self._count(trainer, "test_images", batch)

    def on_test_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Log all test images."""
        self._log(trainer)

    def _count(self, trainer: pl.Trainer, kind: str, batch: Any) -> None:
        self._images[kind] += len(batch["index"])
        if time.monotonic() - self._last >= self.every:
            self._log(trainer)

    def _log(self, trainer: pl.Trainer) -> None:
        self._last = time.monotonic()
        values = {**self._images, "seconds": self._last - self.started}
        for logger in trainer.loggers:
            tracker_of(logger).log_progress(logger, values)
