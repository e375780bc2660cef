"""LightningModules: gather features in training, build the memory at its end, score in testing.

`DetectorModule` runs any detector; `patchcore.members` tests several detectors together. Both fill
a `Record`.
"""

import math
import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Self

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor, nn

from patchcore import identity
from patchcore.costs import METRICS, Costs
from patchcore.decision import Decision, DecisionConfig, DecisionCounts, decide
from patchcore.errors import InputError, warning_line
from patchcore.gathering import gather_flags, gather_images, gather_metrics, total
from patchcore.label_free import STAGE as LABEL_FREE
from patchcore.label_free import LabelFree
from patchcore.map_cache import KeptOrders, MapCache
from patchcore.methods.counted import counted_cells
from patchcore.methods.detector import Detector, Fitting
from patchcore.methods.folds import FeatureBatches, LeftOut, cross_fitted
from patchcore.methods.scale import Scale, ScaleConfig
from patchcore.metrics import ImageMetrics, MaskCounts, PixelMetrics, all_ignored
from patchcore.record import Record
from patchcore.scoring import anomaly_maps, cell_pixels
from patchcore.tiles import TiledMaps

Batch = dict[str, Any]
"""Batch of images as `patchcore.data.dataset.collate` makes it."""
Pair = tuple[ImageMetrics, PixelMetrics]


class ScoringModule(pl.LightningModule):
    """Base of the modules that are tested and collect the results.

    Attributes:
        image_metrics, pixel_metrics, mask_counts: Metrics of the last test.
        decision: Threshold from nominal images, if one was asked for; a test counts its verdicts.
        record: Record of the last test, complete after the test.
        seconds, warm, costs: As in `Record`, of all stages so far.
        stays: Whether it remains on its device between Lightning's loops, as a test follows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False  # the backbone is frozen; few methods train at all
        self.image_metrics = ImageMetrics()
        self.pixel_metrics = PixelMetrics()
        self.mask_counts = MaskCounts()
        self.decision: Decision | None = None
        self._verdicts: DecisionCounts | None = None
        self.record = Record()
        self.seconds: dict[str, float] = {}
        self.warm: set[str] = set()
        self.costs = Costs()
        self.stays = False

    def cpu(self) -> Self:
        """Move to the CPU unless `stays`; Lightning calls this at the end of each of its loops."""
        return self if self.stays else super().cpu()

    @abstractmethod
    def predictions(self, batch: Batch) -> list[tuple[Pair, Tensor, Tensor, Tensor | None]]:
        """Return tuples of metrics, scores (B,), maps (B, H, W) and pixels that count (B, H, W).

        None: all count. One tuple per tested part of the memory; the last is of the whole memory.
        """

    @abstractmethod
    def anomaly_map(self, index: int, size: tuple[int, int]) -> Tensor:
        """Return the anomaly map (H, W) of a test image of `size` (H, W), on the CPU."""

    @abstractmethod
    def sizes(self) -> dict[str, float]:
        """Return the metrics of the memory and of training, such as `memory_patches`."""

    def configure_optimizers(self) -> Any:
        """Return None unless something is trained."""

    def on_test_start(self) -> None:
        self.image_metrics.reset()
        self.pixel_metrics.reset()
        self.mask_counts.reset()
        self._verdicts = DecisionCounts(self.decision) if self.decision else None
        self.record = Record()
        self.costs.clear("score")
        self._started = time.perf_counter()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        found = self.predictions(batch)
        with self.costs.measure(METRICS, self.device):
            for (image, pixel), scores, maps, counts in found:
                image.update(scores, batch["label"])
                pixel.update(maps, batch["mask"], batch["has_mask"], counts)
            if self._verdicts:
                told = (batch["label"], batch["mask"], batch["has_mask"])
                self._verdicts.update(scores, maps, *told, counts)
            ignored = None
            if counts is not None:
                ignored = all_ignored(batch["mask"].to(counts.device), counts)
            self.mask_counts.update(batch["label"], batch["regions"], ignored, batch["index"])
        self.record.scores.update(zip(batch["index"].tolist(), scores.tolist(), strict=True))

    def on_test_epoch_end(self) -> None:
        if self.trainer.world_size > 1:
            self.gather()
            if not self.trainer.is_global_zero:
                return
        spent = time.perf_counter() - self._started
        self.seconds["score"] = self.seconds.get("score", 0.0) + spent
        _tell(self.mask_counts.notices(self._names()))
        record = self.record
        with self.costs.measure(METRICS, self.device):
            record.metrics = {
                **self.image_metrics.compute(),
                **self.pixel_metrics.compute(),
                **(self._verdicts.compute() if self._verdicts else {}),
                **self.mask_counts.compute(),
                **self.sizes(),
                "test_images": len(record.scores),
            }
            undefined = {**self.image_metrics.undefined(), **self.pixel_metrics.undefined()}
            undefined |= self._verdicts.undefined() if self._verdicts else {}
            record.undefined = self.mask_counts.explained(undefined)
            record.curves = self.image_metrics.curves()
            record.ratio_curve = self.ratio_curve()
        record.seconds, record.warm = dict(self.seconds), set(self.warm)
        record.costs = self.costs
        seconds = {f"seconds.{key}": value for key, value in self.seconds.items()}
        self.log_dict({**record.metrics, **seconds})

    def _names(self) -> list[str]:
        """Paths of the test images, if the data set is one of files."""
        dataset = getattr(self.trainer.test_dataloaders, "dataset", None)
        return [str(getattr(x, "path", "")) for x in getattr(dataset, "samples", ())]

    def gather(self) -> None:
        """Collect the results of several processes in the first one."""
        gather_metrics([self.image_metrics, self.pixel_metrics, self.mask_counts])
        self.record.scores = gather_images(self.record.scores)
        self.record.grids = gather_images(self.record.grids)

    def ratio_curve(self) -> list[dict[str, float]]:
        """Return `Record.ratio_curve`."""
        return []

    def decide(
        self, config: DecisionConfig, scores: Sequence[Tensor], maps: Iterable[Tensor]
    ) -> None:
        """Set `decision` from the scores () and counted pixels (1, P) of unseen nominal images."""
        assert config.false_alarms is not None
        used = min(config.folds, len(scores))  # a fold has an image
        self.decision = decide(torch.stack([*scores]), maps, config.false_alarms, used)
        _tell(self.decision.notices())


class DetectorModule(ScoringModule):
    """Fits and tests a detector in a Trainer.

    Args:
        model: Detector to fit and test.
        cache: Cache of layer maps and coreset orders; None: nothing is kept.
        curve: Further memory ratios to test, at most the coreset's own. The memory of a smaller
            ratio is the beginning of a larger one, so one pass over the test images serves all.
        scale: Settings for measuring the scale of the scores, if the model joins an ensemble.
        decision: Settings of the threshold from nominal images, if one is wanted.
        label_free: Judges the settings without any anomalous image, if this is wanted. The
            synthetic defects have to pass through `predict_step` before the training.
        copies: See `patchcore.methods.detector.Fitting`.

    Attributes:
        model: The model; fitted after training.
        left_out: Scores of the training images by models that have not seen them, after training,
            if a decision is wanted.
        scale: Scale of the model's scores, after training, if it was asked for.
        distrusted: See `Fitting`; set after training.
        train_images: Training images, counted once for every epoch and every fixed pose.
    """

    def __init__(
        self,
        model: Detector,
        cache: MapCache | None = None,
        curve: Sequence[float] = (),
        scale: ScaleConfig | None = None,
        decision: DecisionConfig | None = None,
        label_free: LabelFree | None = None,
        copies: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self._copies = copies or {}
        self.label_free = label_free
        self.decision_config = decision or DecisionConfig()
        self.left_out: LeftOut | None = None
        self._sizes: dict[int, tuple[int, int]] = {}  # of the training images
        self._insides: dict[int, Tensor] = {}  # (H, W) of the training images, if they are kept
        self.cache = cache
        self.curve = list(curve)
        self.scale_config = scale
        self.scale: Scale | None = None
        self.distrusted: dict[int, float] | None = None
        self.train_images = 0
        self.smaller = nn.ModuleDict()  # {memory size: metrics} of the curve's other points
        self._points: dict[float, int] = {}  # {ratio: memory size} of the curve
        self._patches: list[int] = []  # sizes of the memory, ascending
        self._used: list[Tensor] = []  # (M,) for each size: rows ever nearest to a test patch
        self._keys: list[str] = []  # cache keys of the training images' maps
        self._sources: list[int] = []  # numbers of the training images
        self._places: list[int] = []  # the same, but counted on from epoch to epoch

    def configure_optimizers(self) -> Any:
        """Return the method's optimiser; None for one that does not train."""
        optimizer = self.model.optimizer()
        self._trains = optimizer is not None
        return optimizer

    def on_train_start(self) -> None:
        loader: Any = self.trainer.train_dataloader
        self._images = images = len(loader.dataset)
        if self.trainer.world_size > 1:
            images = len(loader) * loader.batch_sampler.batch_size  # of this process
        poses = len(getattr(loader.dataset, "poses", ())) or 1  # a user's own has none
        images *= (self.trainer.max_epochs or 1) * poses
        self.gathering = self.model.buffer(images)
        self._kept: FeatureBatches | None = None
        self.decision, self.left_out = None, None
        self._sizes, self._insides = {}, {}
        decides = self.decision_config.false_alarms is not None
        if decides or self.label_free is not None:
            if self._trains:
                raise InputError(
                    f"{'decision.false_alarms' if decides else 'label_free'} needs a method that "
                    "makes its memory bank from features alone, but this one trains: leave it out"
                )
            self._kept = FeatureBatches(images)
        self._keys, self._sources, self._places = [], [], []
        self.train_images = 0
        self.warm.clear()
        self.seconds.clear()
        self.costs.clear(but=LABEL_FREE)  # the synthetic defects went through the network before
        self._step = self._stepping() if self._trains else None
        self._started = time.perf_counter()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        inside = batch.get("inside")
        gathered = self.gathering if self._kept is None else self._kept
        maps = self._maps("extract", batch)
        with self.costs.measure("extract.patches", self.device):
            gathered.append(self.model.learn(maps, self._step, inside))
        if self._kept is not None:
            height, width = batch["mask"].shape[-2:]
            self._sizes |= dict.fromkeys(batch["index"].tolist(), (height, width))
            if inside is not None:  # of copies of an image the first one is scored
                own = zip(batch["index"].tolist(), inside.cpu(), strict=True)
                self._insides = {**dict(own), **self._insides}
        self.train_images += len(batch["index"])
        first = self.current_epoch * self._images
        self._places += [first + i for i in batch["index"].tolist()]
        self._sources += batch["index"].tolist()
        if self.cache is not None and "key" in batch:
            keys = [self.cache.key(image, len(batch["key"])) for image in batch["key"]]
            self._keys += keys if inside is None else map(identity.counted_key, keys, inside)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Gather the features of synthetic defects; return the numbers (B,) of their images."""
        assert self.label_free is not None
        maps = self._maps(LABEL_FREE, batch)
        with self.costs.measure(f"{LABEL_FREE}.patches", self.device):
            features = self.model.of_maps(maps, batch.get("inside"))
        self.label_free.append(features, batch["index"].tolist())
        index: Tensor = batch["index"]
        return index

    def on_train_end(self) -> None:
        self.seconds["extract"] = time.perf_counter() - self._started
        fitting = Fitting(self.trainer.progress_bar_callback is not None, self._sources)
        fitting.scale, fitting.copies = self.scale_config, self._copies
        orders: KeptOrders | None = None
        if self.trainer.world_size > 1:
            fitting.places, self.train_images = self._places, total(self.train_images)
        if self.cache is not None and len(self._keys) == self.train_images:
            fitting.kept = orders = KeptOrders(self.cache.store, self._keys)
        if self._kept is not None:
            if self.label_free is not None:
                given = (self.model, self._kept.batches, self._sources, orders)
                self.costs.add(f"{LABEL_FREE}.fit", *self.label_free.measure(*given))
                self.seconds[LABEL_FREE] = self.label_free.seconds
                self.warm |= {LABEL_FREE} & {stage.split(".")[0] for stage in self.costs.cached}
            if self.decision_config.false_alarms is not None:
                self._cross_fit(self._kept)
            for features in self._kept.empty():
                self.gathering.append(features)
        start = time.perf_counter()
        self.model.build_from(self.gathering, fitting)
        self.seconds |= fitting.seconds or {"build": time.perf_counter() - start}
        self.warm |= fitting.warm
        for stage, seconds in self.seconds.items():
            if stage not in ("extract", LABEL_FREE):
                self.costs.add(stage, fitting.costs.get(stage, seconds), stage in fitting.warm)
        self.scale, self.distrusted = fitting.measured, fitting.distrusted

    def _cross_fit(self, kept: FeatureBatches) -> None:
        """Set the decision from the scores of training images that were left out of a fit."""
        start, config = time.perf_counter(), self.decision_config
        bar = self.trainer.progress_bar_callback is not None
        division = (config.folds, config.seed, bar, self._copies)
        left_out = cross_fitted(self.model, kept.batches, self._sources, *division)
        left_out.sizes = dict(self._sizes)
        left_out.count(self.model, self._insides)
        pixels = left_out.pixels(self.model.scoring.sigma)
        self.decide(config, [torch.tensor(x) for x in left_out.scores.values()], pixels)
        self.left_out = left_out
        self.seconds["cross_fit"] = time.perf_counter() - start

    def on_test_start(self) -> None:
        self.seconds.pop("score", None)
        self.warm.discard("score")
        self._points = self.model.prefixes(self.curve)
        self._patches = sorted({*self._points.values(), self.model.memory_patches})
        pairs = {str(n): [ImageMetrics(), PixelMetrics()] for n in self._patches[:-1]}
        smaller = {size: nn.ModuleList(pair) for size, pair in pairs.items()}
        self.smaller = nn.ModuleDict(smaller).to(self.device)
        counted = self._patches if self.model.counts_used else []
        self._used = [torch.zeros(n, dtype=torch.bool, device=self.device) for n in counted]
        super().on_test_start()

    def gather(self) -> None:
        """See `ScoringModule.gather`."""
        super().gather()
        for pair in self.smaller.values():
            gather_metrics(pair)  # type: ignore[arg-type]
        for used in self._used:
            gather_flags(used)

    def predictions(self, batch: Batch) -> list[tuple[Pair, Tensor, Tensor, Tensor | None]]:
        """See `ScoringModule.predictions`."""
        height, width = batch["mask"].shape[-2:]
        maps = self._maps("score", batch)
        with self.costs.measure("score.patches", self.device):
            features = self.model.of_maps(maps, batch.get("inside"))
        with self.costs.measure("score.search", self.device):
            if self.smaller:
                found = self.model.score_prefixes(features, (height, width), self._patches)
            else:
                found = [self.model.score(features, (height, width))]
        for used, prediction in zip(self._used, found, strict=False):  # none, or one for each
            used[prediction.nearest[~prediction.patch_score.isnan()]] = True
        grids, index = found[-1].patch_score.cpu(), batch["index"].tolist()
        self.record.grids.update(zip(index, grids, strict=True))
        pairs, counts = [*map(self._metrics_of, self._patches)], None
        if "inside" in batch:
            cells = counted_cells(self.model, grids, batch["inside"])  # (B, h, w)
            self.record.counted.update(zip(index, cells, strict=True))
            counts = cell_pixels(cells, (height, width))
        return [(pair, x.score, x.map, counts) for pair, x in zip(pairs, found, strict=True)]

    def anomaly_map(self, index: int, size: tuple[int, int]) -> Tensor:
        """See `ScoringModule.anomaly_map`."""
        grid = self.record.grids[index]
        return anomaly_maps(grid[None], size, self.model.scoring.sigma)[0]

    def sizes(self) -> dict[str, float]:
        """See `ScoringModule.sizes`."""
        memory = {
            "memory_patches": self.model.memory_patches,
            "memory_bytes": self.model.memory_bytes,
        }
        told = {} if self.label_free is None else {LABEL_FREE: self.label_free.score}
        return {**memory, **self._share_used(-1), **told, "train_images": self.train_images}

    def ratio_curve(self) -> list[dict[str, float]]:
        """See `Record.ratio_curve`; empty if no curve was asked for."""
        distinct = {size: self._metrics_of(size) for size in self._points.values()}
        with ThreadPoolExecutor() as pool:  # each sorts all pixels; NumPy sorts in parallel threads
            computed = pool.map(
                lambda pair: pair[0].compute() | pair[1].compute(), distinct.values()
            )
            values = dict(zip(distinct, computed, strict=True))
        return [
            {
                "ratio": ratio,
                "memory_patches": size,
                "memory_bytes": self.model.bytes_of(size),
                **self._share_used(self._patches.index(size)),
                **values[size],
            }
            for ratio, size in self._points.items()
        ]

    def _maps(self, stage: str, batch: Batch) -> Sequence[Tensor]:
        """Layer maps [(B, C, h, w), …] of a batch: cached ones, or else from the backbone."""
        cached, network = batch.get("cached", False), f"{stage}.network"
        decode, before = batch.get("seconds", (math.nan, math.nan))
        if cached:
            self.warm.add(stage)
        self.costs.add(f"{stage}.decode", decode, cached)
        self.costs.add(network, before, "maps" in batch)
        if "maps" in batch:
            return [x.permute(0, 3, 1, 2) for x in batch["maps"]]  # (B, h, w, C) → (B, C, h, w)
        so_far = self.costs.seconds(network) if self.cache is not None else 0.0
        with self.costs.measure(network, self.device):
            maps: Any = self.model.backbone(batch["image"])
        if isinstance(maps, TiledMaps):  # computed later, on access
            maps.watch = partial(self.costs.measure, network, self.device)
        if self.cache is not None and "key" in batch:
            seconds = self.costs.seconds(network) - so_far + before
            maps = self.cache.put(batch["key"], maps, seconds)
        found: Sequence[Tensor] = maps
        return found

    def _stepping(self) -> Callable[[Tensor], None]:
        """Return a function that takes one step of the optimiser with a loss."""
        optimizer: Any = self.optimizers()

        def step(loss: Tensor) -> None:
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

        return step

    def _share_used(self, i: int) -> dict[str, float]:
        """Share of the i-th memory's rows that were ever the nearest neighbour of a test patch."""
        return {"memory_used": float(self._used[i].float().mean())} if self._used else {}

    def _metrics_of(self, size: int) -> Pair:
        if size == self._patches[-1]:
            return self.image_metrics, self.pixel_metrics
        pair: Any = self.smaller[str(size)]
        return pair[0], pair[1]


@rank_zero_only
def _tell(notices: Iterable[str]) -> None:
    for notice in notices:
        print(warning_line(notice), end="", file=sys.stderr)
