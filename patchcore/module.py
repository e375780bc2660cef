"""The LightningModule: collects in training, builds the memory at its end, scores in testing."""

import time

import pytorch_lightning as pl
from torch import Tensor

from patchcore.metrics import ImageMetrics, PixelMetrics
from patchcore.model import FeatureBuffer, PatchCore

Batch = dict[str, Tensor]
"""See `patchcore.data.dataset.collate`."""


class PatchCoreModule(pl.LightningModule):
    """PatchCore in a Trainer.

    Attributes:
        model: The model; fitted once training has ended.
        image_metrics, pixel_metrics: Of the last test.
        scores: {index of the test image: anomaly score} of the last test.
        seconds: Wall time of `extract`, `coreset` and `score`.
        train_images: Images collected, counted once for every epoch.
    """

    def __init__(self, model: PatchCore) -> None:
        super().__init__()
        self.model = model
        self.automatic_optimization = False  # nothing is optimised
        self.image_metrics = ImageMetrics()
        self.pixel_metrics = PixelMetrics()
        self.scores: dict[int, float] = {}
        self.seconds: dict[str, float] = {}
        self.train_images = 0

    def configure_optimizers(self) -> None:
        """None: the backbone is frozen."""

    def on_train_start(self) -> None:
        images = len(self.trainer.train_dataloader.dataset)  # type: ignore[union-attr]
        self._buffer = FeatureBuffer(images * (self.trainer.max_epochs or 1))
        self.train_images = 0
        self._started = time.perf_counter()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self._buffer.append(self.model.embed(batch["image"]))
        self.train_images += len(batch["image"])

    def on_train_end(self) -> None:
        self.seconds["extract"] = time.perf_counter() - self._started
        start = time.perf_counter()
        progress = self.trainer.progress_bar_callback is not None
        self.model.build(self._buffer.take(), progress)
        self.seconds["coreset"] = time.perf_counter() - start

    def on_test_start(self) -> None:
        self.image_metrics.reset()
        self.pixel_metrics.reset()
        self.scores = {}
        self._started = time.perf_counter()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        prediction = self.model(batch["image"])
        self.image_metrics.update(prediction.score, batch["label"])
        self.pixel_metrics.update(prediction.map, batch["mask"], batch["has_mask"])
        scores = prediction.score.tolist()
        self.scores.update(zip(batch["index"].tolist(), scores, strict=True))

    def on_test_epoch_end(self) -> None:
        self.seconds["score"] = time.perf_counter() - self._started
        seconds = {f"seconds.{key}": value for key, value in self.seconds.items()}
        self.log_dict({**self.metrics(), **seconds})

    def metrics(self) -> dict[str, float]:
        """Image and pixel metrics of the last test, NaN where `undefined()` says why; sizes."""
        return {
            **self.image_metrics.compute(),
            **self.pixel_metrics.compute(),
            "memory_patches": len(self.model.memory),
            "memory_bytes": self.model.memory.nbytes,
            "train_images": self.train_images,
            "test_images": len(self.scores),
        }

    def undefined(self) -> dict[str, str]:
        """Why metrics are NaN: {key: reason}."""
        return {**self.image_metrics.undefined(), **self.pixel_metrics.undefined()}
