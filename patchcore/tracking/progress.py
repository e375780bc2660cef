"""Progress of a run in its trackers: training and test images so far, and seconds since start."""

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from patchcore.tracking import tracker_of

EVERY = 5.0  # seconds between two rows


class Progress(Callback):
    """Callback that logs the progress at intervals, and when a stage ends.

    The last row of training and the first row of testing show how long the coreset took.

    Args:
        every: Shortest time between two rows within a stage, in seconds.
    """

    def __init__(self, every: float = EVERY) -> None:
        self.every = every
        self.started = time.monotonic()
        self._last = self.started
        self._images = {"train_images": 0, "test_images": 0}

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Reset the counts and the clock."""
        self.started = self._last = time.monotonic()
        self._images = dict.fromkeys(self._images, 0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, number: int
    ) -> None:
        """Count a training batch."""
        self._count(trainer, "train_images", batch)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Log the count of training images at the end of an epoch."""
        self._log(trainer)

    def on_test_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Log the time at which the memory is built."""
        self._log(trainer)

    def on_test_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, number: int, *_: Any
    ) -> None:
        """Count a test batch."""
        self._count(trainer, "test_images", batch)

    def on_test_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Log the count of test images at the end."""
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
