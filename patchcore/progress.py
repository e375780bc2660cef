"""Progress bars that name what is being done."""

import sys
from typing import Any

from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm


class ProgressBar(TQDMProgressBar):
    """Lightning's bar in PatchCore's words: training extracts features, testing scores.

    It goes to stderr, as the coreset's does, so that stdout holds the results alone.

    Args:
        whose: What follows the words, where several models take turns.
    """

    def __init__(self, whose: str = "") -> None:
        super().__init__()
        self.whose = whose

    def init_train_tqdm(self) -> Tqdm:
        return self._bar("Extracting patch features")

    def init_test_tqdm(self) -> Tqdm:
        return self._bar("Scoring test images")

    def init_predict_tqdm(self) -> Tqdm:
        return self._bar("Extracting synthetic defects")

    def on_train_epoch_start(self, trainer: Any, *args: Any) -> None:
        bar, epochs = self.train_progress_bar, trainer.max_epochs
        bar.reset(trainer.num_training_batches)
        if epochs > 1:
            bar.set_description(
                f"{bar.desc.split(',')[0]}, epoch {trainer.current_epoch + 1} of {epochs}"
            )

    def on_test_batch_start(self, trainer: Any, *args: Any) -> None:
        bar = self.test_progress_bar
        if bar.total is None:
            bar.reset(sum(trainer.num_test_batches))

    def on_exception(self, *args: Any) -> None:
        """Leave the bar's line, so that the message gets one of its own."""
        bars = (self._train_progress_bar, self._test_progress_bar, self._predict_progress_bar)
        for bar in bars:
            if bar is not None:
                bar.close()

    def get_metrics(self, *args: Any) -> dict[str, Any]:
        return {}  # no loss, no version number

    def _bar(self, description: str) -> Tqdm:
        return Tqdm(
            desc=description + self.whose,
            disable=self.is_disabled,
            dynamic_ncols=True,
            file=sys.stderr,
            bar_format=self.BAR_FORMAT,
        )
