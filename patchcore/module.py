"""The LightningModule: collects in training, builds the memory at its end, scores in testing."""

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor, nn

from patchcore import identity
from patchcore.cache import MapCache
from patchcore.coreset import ApproximateConfig, GreedyConfig, Order, SizedConfig
from patchcore.mask_counts import MaskCounts
from patchcore.methods.ensemble import (
    Scale,
    ScaleConfig,
    combined_maps,
    combined_scores,
    nominal_scale,
)
from patchcore.methods.patchcore import Detector, PatchCore, Prediction
from patchcore.metrics import ImageMetrics, PixelMetrics
from patchcore.scoring import anomaly_maps

Batch = dict[str, Any]
"""See `patchcore.data.dataset.collate`."""
Pair = tuple[ImageMetrics, PixelMetrics]


class DetectorModule(pl.LightningModule):
    """A method in a Trainer.

    Args:
        model: To be fitted and tested.
        cache: Where layer maps are kept, if anywhere.

    Attributes:
        model: The model; fitted once training has ended.
        image_metrics, pixel_metrics, mask_counts: Of the last test.
        scores: {index of the test image: anomaly score} of the last test.
        grids: {index of the test image: patch scores (h, w), on the CPU} of the last test.
        seconds: Wall time of `extract`, `build` and `score`.
        warm: Those of them that read the cache, so that their time is not that of computing.
        train_images: Images collected, counted once for every epoch.
    """

    def __init__(self, model: Detector, cache: MapCache | None = None) -> None:
        super().__init__()
        self.model = model
        self.cache = cache
        self.automatic_optimization = False  # nothing is optimised
        self.image_metrics = ImageMetrics()
        self.pixel_metrics = PixelMetrics()
        self.mask_counts = MaskCounts()
        self.scores: dict[int, float] = {}
        self.grids: dict[int, Tensor] = {}
        self.seconds: dict[str, float] = {}
        self.warm: set[str] = set()
        self.train_images = 0

    def configure_optimizers(self) -> None:
        """None: the backbone is frozen."""

    def on_train_start(self) -> None:
        images = len(self.trainer.train_dataloader.dataset)  # type: ignore[union-attr]
        self._buffer = self.model.buffer(images * (self.trainer.max_epochs or 1))
        self.train_images = 0
        self.warm.clear()
        self._started = time.perf_counter()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self._note_cached("extract", batch)
        self._buffer.append(self._features(batch))
        self.train_images += len(batch["index"])

    def on_train_end(self) -> None:
        self.seconds["extract"] = time.perf_counter() - self._started
        self._build(self.trainer.progress_bar_callback is not None)

    def on_test_start(self) -> None:
        self.image_metrics.reset()
        self.pixel_metrics.reset()
        self.mask_counts.reset()
        self.scores, self.grids = {}, {}
        self.warm.discard("score")
        self._started = time.perf_counter()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._note_cached("score", batch)
        height, width = batch["mask"].shape[-2:]
        predictions = self._predictions(self._features(batch), (height, width))
        for (image, pixel), prediction in predictions:
            image.update(prediction.score, batch["label"])
            pixel.update(prediction.map, batch["mask"], batch["has_mask"])
        self.mask_counts.update(batch["label"], batch["regions"])
        index = batch["index"].tolist()
        self.scores.update(zip(index, prediction.score.tolist(), strict=True))
        self.grids.update(zip(index, prediction.patch_score.cpu(), strict=True))

    def on_test_epoch_end(self) -> None:
        self.seconds["score"] = time.perf_counter() - self._started
        _tell(self.mask_counts)
        seconds = {f"seconds.{key}": value for key, value in self.seconds.items()}
        self.log_dict({**self.metrics(), **seconds})

    def anomaly_map(self, index: int, size: tuple[int, int]) -> Tensor:
        """Anomaly map (H, W) of a test image of `size` (H, W), on the CPU."""
        return anomaly_maps(self.grids[index][None], size, self.model.scoring.sigma)[0]

    def metrics(self) -> dict[str, float]:
        """Image and pixel metrics of the last test, NaN where `undefined()` says why; sizes."""
        return {
            **self.image_metrics.compute(),
            **self.pixel_metrics.compute(),
            **self.mask_counts.compute(),
            **self._memory(),
            "train_images": self.train_images,
            "test_images": len(self.scores),
        }

    def undefined(self) -> dict[str, str]:
        """Why metrics are NaN: {key: reason}."""
        return {**self.image_metrics.undefined(), **self.pixel_metrics.undefined()}

    def ratio_curve(self) -> list[dict[str, float]]:
        """`metrics` at several sizes of the memory, where that is asked for."""
        return []

    def _note_cached(self, stage: str, batch: Batch) -> None:
        if batch.get("cached", False):
            self.warm.add(stage)

    def _features(self, batch: Batch) -> Any:
        """The model's features of a batch, from its layer maps if it brings them."""
        if "maps" in batch:
            maps = [x.permute(0, 3, 1, 2) for x in batch["maps"]]  # (B, h, w, C) → (B, C, h, w)
        else:
            maps = self.model.backbone(batch["image"])
            if self.cache is not None and "key" in batch:
                maps = self.cache.put(batch["key"], maps)
        return self.model.features(maps)

    def _build(self, progress: bool) -> None:
        """Make the memory from what was collected."""
        start = time.perf_counter()
        self.model.build_from(self._buffer, progress)
        self.seconds["build"] = time.perf_counter() - start

    def _memory(self) -> dict[str, float]:
        """Metrics of the memory."""
        return {
            "memory_patches": self.model.memory_patches,
            "memory_bytes": self.model.memory_bytes,
        }

    def _predictions(self, features: Any, size: tuple[int, int]) -> list[tuple[Pair, Prediction]]:
        """Of a batch, each with the metrics that it counts in; the whole model's last."""
        return [((self.image_metrics, self.pixel_metrics), self.model.score(features, size))]


class PatchCoreModule(DetectorModule):
    """PatchCore in a Trainer, with what only a coreset allows: kept orders, a curve over ratios.

    Args:
        model: To be fitted and tested.
        cache: Where layer maps and coreset orders are kept, if anywhere.
        curve: Shares of the patches at which to test too, at most the coreset's own ratio: its
            memory begins with theirs, so one pass over the test images serves all.
        scale: How to measure the model's scale, if it is to score with others.

    Attributes:
        scale: The model's, once training has ended, if it was asked for.
        seconds: Wall time of `extract`, `coreset`, `scale` where that is measured, and `score`.
    """

    model: PatchCore

    def __init__(
        self,
        model: PatchCore,
        cache: MapCache | None = None,
        curve: Sequence[float] = (),
        scale: ScaleConfig | None = None,
    ) -> None:
        super().__init__(model, cache)
        coreset = model.coreset_config
        self.curve: list[float] = []
        if curve and isinstance(coreset, SizedConfig):
            self.curve = sorted({*curve, coreset.ratio})
        self.scale_config = scale
        self.scale: Scale | None = None
        self.smaller = nn.ModuleDict()  # {memory size: metrics} of the curve's other points
        self._train_patches = 0
        self._sizes: list[int] = []  # of the memory, ascending
        self._used: list[Tensor] = []  # (M,) for each size: ever the nearest of a test patch
        self._keys: list[str] = []  # of the training images' maps
        self._sources: list[int] = []  # their numbers

    def on_train_start(self) -> None:
        self._keys, self._sources = [], []
        super().on_train_start()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        super().training_step(batch, batch_idx)
        self._sources += batch["index"].tolist()
        if self.cache is not None and "key" in batch:
            self._keys += [self.cache.key(image, len(batch["key"])) for image in batch["key"]]

    def on_test_start(self) -> None:
        self._sizes = sorted({self._size(ratio) for ratio in self.curve} | {len(self.model.memory)})
        pairs = {str(n): _metrics() for n in self._sizes[:-1]}
        self.smaller = nn.ModuleDict(pairs).to(self.device)
        self._used = [torch.zeros(n, dtype=torch.bool, device=self.device) for n in self._sizes]
        super().on_test_start()

    def ratio_curve(self) -> list[dict[str, float]]:
        """`metrics` with the memory of every ratio asked for, and with the whole; ascending.

        `ratio` is the share of the training patches kept. Empty if no curve was asked for.
        """
        sizes = {ratio: self._size(ratio) for ratio in self.curve}
        with ThreadPoolExecutor() as pool:  # each sorts all pixels, side by side in NumPy
            distinct = {size: self._metrics_of(size) for size in sizes.values()}
            computed = pool.map(
                lambda pair: pair[0].compute() | pair[1].compute(), distinct.values()
            )
            values = dict(zip(distinct, computed, strict=True))
        rows = []
        for ratio, size in sizes.items():
            row = {
                "ratio": ratio,
                "memory_patches": size,
                "memory_bytes": self.model.memory[:size].nbytes,
                "memory_used": self._share_used(self._sizes.index(size)),
            }
            rows.append({**row, **values[size]})
        return rows

    def _build(self, progress: bool) -> None:
        start = time.perf_counter()
        counts, features = self._buffer.counts, self._buffer.take()
        self._train_patches = len(features)
        key, order = self._order_key(), None
        if self.cache is not None and key is not None:
            kept = self.cache.store.get(key, lambda entry: _is_order(entry, len(features)))
            if kept is not None:
                order = Order(**kept)
                self.warm.add("coreset")
        coreset = self.model.build(features, progress, order)
        if self.cache is not None and key is not None and coreset.order is not order:
            self.cache.store.put(key, vars(coreset.order))
        self.seconds["coreset"] = time.perf_counter() - start
        if self.scale_config is not None:
            start = time.perf_counter()
            self.scale = nominal_scale(
                features,
                counts,
                self._sources,
                self.model.memory,
                coreset.indices,
                self.model.scoring,
                self.scale_config,
            )
            self.seconds["scale"] = time.perf_counter() - start

    def _memory(self) -> dict[str, float]:
        return {**super()._memory(), "memory_used": self._share_used(-1)}

    def _predictions(
        self, features: Tensor, size: tuple[int, int]
    ) -> list[tuple[Pair, Prediction]]:
        if self.smaller:
            predictions = self.model.score_prefixes(features, size, self._sizes)
        else:
            predictions = [self.model.score(features, size)]
        for used, prediction in zip(self._used, predictions, strict=True):
            used[prediction.nearest.flatten()] = True
        return list(zip(map(self._metrics_of, self._sizes), predictions, strict=True))

    def _share_used(self, i: int) -> float:
        """Of the rows of the i-th memory, those that were ever the nearest of a test patch."""
        return float(self._used[i].float().mean())

    def _order_key(self) -> str | None:
        """Of the coreset order of these training patches; None if they or it are not kept."""
        config = self.model.coreset_config
        kept = self.cache is not None and len(self._keys) == self.train_images
        if not kept or not isinstance(config, GreedyConfig | ApproximateConfig):
            return None
        return identity.order_key(self._keys, self.model.patch_config, config)

    def _size(self, ratio: float) -> int:
        """Memory size at a ratio of the curve."""
        config = self.model.coreset_config
        assert isinstance(config, SizedConfig)
        return replace(config, ratio=ratio).size(self._train_patches)

    def _metrics_of(self, size: int) -> Pair:
        if size == self._sizes[-1]:
            return self.image_metrics, self.pixel_metrics
        pair: Any = self.smaller[str(size)]
        return pair[0], pair[1]


@dataclass
class Member:
    """What remains of an ensemble's member once it is fitted and tested: no memory, no network."""

    backbone: str  # name of its network
    scale: Scale
    scores: dict[int, float]  # of the test images, by index
    grids: dict[int, Tensor]  # patch scores (h, w) of them, on the CPU
    metrics: dict[str, float]
    undefined: dict[str, str]
    seconds: dict[str, float]
    warm: set[str] = field(default_factory=set)  # as `DetectorModule.warm`


class EnsembleModule(pl.LightningModule):
    """Tests what several members say together, in a Trainer.

    It reads labels and masks from its batches, and the scores that the members have left.

    Args:
        members: Fitted and tested, each on the same test images.
        sigma: Of the anomaly maps' Gaussian, in px.

    Attributes:
        image_metrics, pixel_metrics, mask_counts: Of the last test.
        scores: {index of the test image: anomaly score} of the last test.
        seconds: Wall time of all members by kind; `score` contains that of the last test.
        warm: Those of them in which a member read the cache.
    """

    def __init__(self, members: Sequence[Member], sigma: float) -> None:
        super().__init__()
        self.members = list(members)
        self.scales = [member.scale for member in members]
        self.sigma = sigma
        self.image_metrics = ImageMetrics()
        self.pixel_metrics = PixelMetrics()
        self.mask_counts = MaskCounts()
        self.scores: dict[int, float] = {}
        self.seconds = self._sums()
        self.warm = set().union(*(member.warm for member in self.members))

    def on_test_start(self) -> None:
        self.image_metrics.reset()
        self.pixel_metrics.reset()
        self.mask_counts.reset()
        self.scores = {}
        self._started = time.perf_counter()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        index = batch["index"].tolist()
        height, width = batch["mask"].shape[-2:]
        each = [torch.tensor([member.scores[i] for i in index]) for member in self.members]
        scores = combined_scores(each, self.scales)  # (B,)
        maps = torch.stack([self.anomaly_map(i, (height, width)) for i in index])  # (B, H, W)
        self.image_metrics.update(scores, batch["label"].cpu())
        self.pixel_metrics.update(maps, batch["mask"], batch["has_mask"])
        self.mask_counts.update(batch["label"], batch["regions"])
        self.scores.update(zip(index, scores.tolist(), strict=True))

    def on_test_epoch_end(self) -> None:
        self.seconds = self._sums()
        self.seconds["score"] += time.perf_counter() - self._started
        _tell(self.mask_counts)
        seconds = {f"seconds.{key}": value for key, value in self.seconds.items()}
        self.log_dict({**self.metrics(), **seconds})

    def anomaly_map(self, index: int, size: tuple[int, int]) -> Tensor:
        """Anomaly map (H, W) of a test image of `size` (H, W), on the CPU."""
        grids = [member.grids[index][None] for member in self.members]
        maps = [anomaly_maps(grid, size, self.sigma)[0] for grid in grids]
        return combined_maps(maps, self.scales)

    def metrics(self) -> dict[str, float]:
        """As `PatchCoreModule.metrics`, the memories of all members taken together."""
        each = [member.metrics for member in self.members]
        rows = sum(x["memory_patches"] for x in each)
        return {
            **self.image_metrics.compute(),
            **self.pixel_metrics.compute(),
            **self.mask_counts.compute(),
            "memory_patches": rows,
            "memory_bytes": sum(x["memory_bytes"] for x in each),
            "memory_used": sum(x["memory_used"] * x["memory_patches"] for x in each) / rows,
            "train_images": each[0]["train_images"],
            "test_images": len(self.scores),
        }

    def undefined(self) -> dict[str, str]:
        """Why metrics are NaN: {key: reason}."""
        return {**self.image_metrics.undefined(), **self.pixel_metrics.undefined()}

    def ratio_curve(self) -> list[dict[str, float]]:
        """Empty: a curve is of one memory."""
        return []

    def _sums(self) -> dict[str, float]:
        kinds = self.members[0].seconds
        return {kind: sum(member.seconds[kind] for member in self.members) for kind in kinds}


def network_digest(model: Detector, precision: str, device: torch.device) -> str:
    """Return a digest of all that a batch's layer maps follow from besides the images."""
    backbone = model.backbone
    return identity.network_digest(backbone.network, backbone.layers, precision, device)


def _is_order(entry: dict[str, Tensor], patches: int) -> bool:
    """Whether a cache entry holds an order of some of so many patches."""
    indices, radii, remaining = (entry[key] for key in ("indices", "radii", "remaining"))
    return (
        len(entry) == 3
        and indices.dtype == torch.int64
        and indices.ndim == 1
        and 0 < len(indices) <= patches
        and 0 <= int(indices.min()) <= int(indices.max()) < patches
        and (radii.shape, remaining.shape) == (indices.shape, (patches,))
        and radii.is_floating_point()
        and remaining.is_floating_point()
    )


@rank_zero_only
def _tell(counts: MaskCounts) -> None:
    for notice in counts.notices():
        print(f"warning: {notice}", file=sys.stderr)


def _metrics() -> nn.ModuleList:
    return nn.ModuleList([ImageMetrics(), PixelMetrics()])
