"""Progress bars that name what is being done."""

import math
import sys
import time
from typing import Any

import torch
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm

from patchcore.data.datamodule import AnomalyDataModule
from patchcore.data.dataset import Loader
from patchcore.errors import counted
from patchcore.plan import Plan


class ProgressBar(TQDMProgressBar):
    """Lightning's bar in PatchCore's words: training extracts features, testing scores.

    Bars are written to stderr, so that stdout holds only results.

    Args:
        whose: Suffix of the descriptions, such as " (member 1 of 3)".
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

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print the plan after the second batch, which shows the pace; the first one warms up."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        first = trainer.current_epoch == 0 and batch_idx == 1 < trainer.num_training_batches - 1
        if first and self.is_enabled and (plan := self._plan(trainer, pl_module, batch)):
            self.train_progress_bar.write(str(plan) + self.whose, file=sys.stderr)

    def _plan(self, trainer: Any, module: Any, batch: Any) -> Plan | None:
        """Return the plan from the pace of a batch; None if a user's own loaders bring the data."""
        data, loader = trainer.datamodule, trainer.train_dataloader
        if not isinstance(data, AnomalyDataModule) or not isinstance(loader, Loader):
            return None
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        images, taken = len(batch["label"]), time.perf_counter() - self._since
        alike = images * trainer.world_size  # other processes work at the same pace
        decoding = math.nan if batch.get("cached") else batch["seconds"][0]
        workers, threads = loader.num_workers, torch.get_num_threads()
        busy = min(threads, images * max(1, loader.ahead))
        gathering = getattr(module, "gathering", None)
        return Plan(
            len(data.split.train) * len(data.augment.poses()) * (trainer.max_epochs or 1),
            len(data.split.test),
            alike * max(1, workers) / max(decoding, 1e-9),
            alike / max(taken, 1e-9),
            counted(workers, "process") if workers else counted(busy, "thread"),
            bool(workers or loader.ahead),
            getattr(gathering, "nbytes", 0),
            getattr(gathering, "free", 0),
        )

    def on_exception(self, *args: Any) -> None:
        """End the bar's line, so that the error message starts on a new one."""
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
