"""SPADE: the nearest nominal images, then the nearest of their pixels (Cohen & Hoshen, 2020).

The deepest map of an image, averaged over positions, describes the whole image. The image's score
is the mean distance of this vector to the vectors of the K nearest nominal images. Only these K
images are searched for its pixels. For this, all layers are interpolated to the finest layer's grid
and joined to a pyramid. A pixel's score is its mean distance to the κ nearest of the K·h·w pixels.
Distances are Euclidean.

The memory holds each layer's maps at their own size, which is several times smaller than the
pyramids. Pyramids are made for only a few neighbours at a time.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from patchcore._traced import traced
from patchcore.backbones import BackboneConfig, LayersConfig
from patchcore.errors import InputError
from patchcore.index import TorchIndex, TorchIndexConfig, search_traced
from patchcore.methods.common import ImageBuffer, check_grid, interpolated
from patchcore.methods.counted import Counted, cells, parts
from patchcore.methods.detector import Detector, Fitting, MethodConfig, Parts, Prediction
from patchcore.methods.origin import position_origins
from patchcore.scoring import ScoringConfig, anomaly_maps
from patchcore.settings import Choice, setting

_CPU_IMAGES = 8  # neighbours at a time, where the processor's cache is the bound


class Storage(Choice):
    """Number format in which the nominal images' maps are kept."""

    float32 = "float32"
    float16 = "float16"  # half the memory; maps are rounded to 11 bits, test images' too


@dataclass
class SpadeConfig(MethodConfig):
    """SPADE's own settings."""

    name: ClassVar[str] = "spade"
    levels: ClassVar = ("1", "2", "3")
    reads: ClassVar[dict[str, Any]] = {"index": TorchIndexConfig, "scoring": ("sigma",)}
    untraceable: ClassVar[str] = (
        "it searches the nominal images for each image, one after another, so a graph would work "
        "only for one batch size"
    )
    narrow: ClassVar[bool] = True  # an image is compared with the nearest ones alone

    neighbours: int = setting(
        50, "K, the number of nearest nominal images; all, if there are fewer", unit="images", low=1
    )
    pixel_neighbours: int = setting(
        1, "κ, the number of nearest pixels in these images", unit="pixels", low=1
    )
    pyramid: int | None = setting(
        3, "number of layers in the pyramid, from the finest on; null: all", unit="layers", low=1
    )
    storage: Storage = setting(
        Storage.float32,
        "data type in which the maps of nominal images are stored; float16 takes half the memory",
    )

    def build(self, parts: Parts) -> "Spade":
        """See `MethodConfig.build`."""
        assert isinstance(parts.index, TorchIndexConfig)
        return Spade(self, parts.backbone, parts.layers, parts.index, parts.scoring)


class Spade(Detector):
    """Memory of all nominal images; a test image is compared with the nearest ones, pixel by pixel.

    The deepest layer decides which images are near. With the paper's layers 1 to 4, it is used for
    nothing else. By default, layers 1 to 3 are used, and layer 3 is also part of the pyramid. All
    images must have one size. An image takes Σ C·h·w values of the pyramid's layers: 1.4 MB with a
    ResNet-18 at 224 px, 6.2 MB with a DenseNet-201, half that in float16.

    Attributes:
        images: Number of each nominal image.
        counts: (N·h·w, 1) pixels of the finest layer that count; empty if all do.
        pooled: (N, C) the deepest layer's maps, averaged over positions; empty before `fit`.
    """

    pooled: Tensor
    counts: Tensor
    made_again = ("_index",)
    one_size = True

    def __init__(
        self,
        config: SpadeConfig | None = None,
        backbone: BackboneConfig | None = None,
        layers: LayersConfig | None = None,
        index: TorchIndexConfig | None = None,
        scoring: ScoringConfig | None = None,
    ) -> None:
        self.config = config or SpadeConfig()
        self.index_config = index or TorchIndexConfig()
        super().__init__(
            Parts(
                self.config,
                backbone or BackboneConfig(),
                layers or LayersConfig(["1", "2", "3"]),
                index=self.index_config,
                scoring=scoring or ScoringConfig(),
            )
        )
        channels = self.backbone.channels
        self._layers = len(channels[: self.config.pyramid])
        for i in range(self._layers):
            self.register_buffer(f"layer_{i}", torch.empty(0, 0, 0, channels[i]))
        self.register_buffer("counts", torch.empty(0, 1, dtype=torch.bool))
        self.register_buffer("pooled", torch.empty(0, channels[-1]))
        self.images: list[int] = []
        self._index: TorchIndex | None = None

    def settings(self) -> dict[str, Any]:
        """See `Stateful.settings`."""
        kept = {"method.pyramid": self._layers, "method.storage": self.config.storage.value}
        return {**super().settings(), **kept}

    def remembered(self) -> dict[str, Any]:
        """See `Stateful.remembered`."""
        return {"images": self.images}

    def remember(self, values: dict[str, Any]) -> None:
        """See `Stateful.remember`."""
        self.images = list(values["images"])

    @property
    def layers(self) -> list[Tensor]:
        """Maps (N, h, w, C) of the pyramid's layers, finest first."""
        return [getattr(self, f"layer_{i}") for i in range(self._layers)]

    @torch.inference_mode()
    def features(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the pyramid of layer maps [(B, C, h, w), …], then the deepest one averaged.

        [(B, h, w, C), …] in the dtype of the storage, and (B, 1, 1, C) in float32.
        """
        dtype = getattr(torch, self.config.storage.value)
        pyramid = [x.permute(0, 2, 3, 1).to(dtype) for x in maps[: self._layers]]
        return [*pyramid, maps[-1].float().mean((2, 3))[:, None, None]]

    @torch.inference_mode()
    def counted(self, maps: Sequence[Tensor], inside: Tensor) -> Counted:
        """See `Detector.counted`; the deepest map is averaged over its positions that count."""
        *pyramid, _ = self.features(maps)
        fine, deep = (cells(inside, (x.shape[2], x.shape[3])) for x in (maps[0], maps[-1]))
        weights = deep[:, None].float()  # (B, 1, h, w)
        pooled = (maps[-1].float() * weights).sum((2, 3)) / weights.sum((2, 3))  # (B, C)
        return Counted([*pyramid, pooled[:, None, None]], fine)

    def buffer(self, images: int = 0) -> "PyramidBuffer":
        """See `Detector.buffer`."""
        return PyramidBuffer(images, self._layers + 1)

    def build_from(self, buffer: "PyramidBuffer", fitting: Fitting | None = None) -> None:
        """See `Detector.build_from`; it only has to move them."""
        counts, (*pyramid, pooled) = buffer.take_counts(), buffer.take()
        self._keep(pyramid, pooled, counts)
        images = fitting.images if fitting is not None else None
        self.images = list(range(len(pooled)) if images is None else images)

    @torch.inference_mode()
    def extend(
        self,
        batches: Sequence[list[Tensor] | Counted],
        sizes: Sequence[tuple[int, int]],
        images: Sequence[int],
        count: int | None = None,
    ) -> list[Prediction]:
        """See `Detector.extend`; the images are added whole."""
        if count is not None:
            raise InputError("count: method=spade keeps images whole: leave it out")
        predictions = [self.score(*pair) for pair in zip(batches, sizes, strict=True)]
        old = [*self.layers, self.pooled[:, None, None]]
        split = [parts(batch) for batch in batches]
        counts = None
        if len(self.counts) or any(own is not None for _, own in split):
            each = [(x[0].shape[:3], own) for x, own in split]
            known = (self.layers[0].shape[:3], self.counts if len(self.counts) else None)
            counts = torch.cat([_all_counted(*one, self.device) for one in (known, *each)])
        with torch.inference_mode(False):
            *pyramid, pooled = [
                torch.cat((kept, *(x.to(kept) for x in more)))
                for kept, *more in zip(old, *(x for x, _ in split), strict=True)
            ]
            self._keep(pyramid, pooled, counts)
        self.images = [*self.images, *images]
        return predictions

    def forget(self, images: Collection[int]) -> None:
        """See `Detector.forget`."""
        rows = [row for row, number in enumerate(self.images) if number not in images]
        if not rows:
            raise InputError("without these images none would be left: keep some, or fit again")
        counts = self.counts.view(len(self.pooled), -1)[rows] if len(self.counts) else None
        self._keep([x[rows] for x in self.layers], self.pooled[rows, None, None], counts)
        self.images = [self.images[row] for row in rows]

    @property
    def partial(self) -> bool:
        """See `Detector.partial`."""
        return len(self.counts) > 0

    @property
    def images_had(self) -> int:
        """See `Detector.images_had`."""
        return max(self.images, default=-1) + 1

    def origins(self, rows: Tensor) -> Tensor:
        """See `Detector.origins`."""
        height, width = self.layers[0].shape[1:3]
        return position_origins(rows, torch.tensor(self.images), (height, width))

    def _keep(self, pyramid: Sequence[Tensor], pooled: Tensor, counts: Tensor | None) -> None:
        """Make maps [(N, h, w, C), …] and pooled ones (N, 1, 1, C) the memory."""
        for x in (*pyramid, pooled):
            if not bool(torch.stack(x.aminmax()).isfinite().all()):
                raise InputError(
                    "the backbone's maps are infinite or NaN; if its weights are right, set "
                    "method.storage=float32"
                )
        for i, x in enumerate(pyramid):
            setattr(self, f"layer_{i}", x.to(self.device))
        self.pooled = pooled.flatten(1).to(self.device)
        every = self.counts.new_empty(0, 1) if counts is None else counts.reshape(-1, 1)
        self.counts = every.to(self.device)

    @torch.inference_mode()
    def score(self, features: list[Tensor] | Counted, size: tuple[int, int]) -> Prediction:
        """Score the `features` of images of `size` (H, W).

        `Prediction.nearest` counts the pixels of all nominal images: image · h·w + position.
        """
        (*pyramid, pooled), counts = parts(features)
        if not len(self.pooled):
            raise InputError("the memory is empty: call fit with nominal images first")
        for x, layer in zip(pyramid, self.layers, strict=True):
            check_grid((x.shape[1], x.shape[2]), (layer.shape[1], layer.shape[2]))
        height, width = pyramid[0].shape[1:3]
        if self.config.pixel_neighbours > height * width:
            raise InputError(
                f"method.pixel_neighbours must be at most {height * width}, the pixels of an image "
                f"of {height} × {width}, got {self.config.pixel_neighbours}"
            )
        with torch.autocast(pooled.device.type, enabled=False):
            squared, images = self._search_images(pooled.flatten(1))  # (B, K)
            found = [
                self._search_pixels(_joined([x[i : i + 1] for x in pyramid]), images[i])
                for i in range(len(pooled))
            ]
            grid = torch.stack([distances.sqrt().mean(1) for distances, _ in found])  # (B, h·w)
            grid = grid.view(-1, height, width)
            if counts is not None:
                grid = torch.where(counts, grid, torch.nan)
            nearest = torch.stack([pixels[:, 0] for _, pixels in found]).view_as(grid)
            maps = anomaly_maps(grid, size, self.scoring.sigma)
            return Prediction(squared.sqrt().mean(1), maps, grid, nearest)

    def _search_images(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances and numbers of the K nearest images, both (B, K), of (B, C)."""
        neighbours = min(self.config.neighbours, len(self.pooled))
        if traced():
            return search_traced(self.pooled, pooled, neighbours)
        if self._index is None or self._index.memory is not self.pooled:  # fitted or moved since
            self._index = TorchIndex(self.pooled, self.index_config)
        return self._index.search(pooled, neighbours)

    def _search_pixels(self, queries: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances and numbers of the κ nearest pixels of `images` (K,), both (h·w, κ).

        Args:
            queries: (h·w, D) an image's pyramid.
        """
        positions, dimension = queries.shape
        at_once = max(1, self.index_config.chunk_mib * 2**18 // (positions * dimension))
        if queries.device.type == "cpu":
            at_once = min(at_once, _CPU_IMAGES)
        parts = []
        for some in images.split(at_once):
            memory = _joined([layer[some] for layer in self.layers])  # (some·h·w, D)
            if traced():
                distances, rows = search_traced(memory, queries, self.config.pixel_neighbours)
            else:
                counted = self._counted(some)
                index = TorchIndex(
                    memory if counted is None else memory[counted], self.index_config
                )
                wanted = min(self.config.pixel_neighbours, len(index.memory))
                distances, rows = index.search(queries, wanted)
                rows = rows if counted is None else counted[rows]
            parts.append((distances, some[rows // positions] * positions + rows % positions))
        distances = torch.cat([part[0] for part in parts], 1)  # (h·w, parts·κ)
        if distances.shape[1] < self.config.pixel_neighbours:
            raise InputError(
                f"method.pixel_neighbours must be at most {distances.shape[1]}, the pixels that "
                f"count, got {self.config.pixel_neighbours}"
            )
        nearest = distances.topk(self.config.pixel_neighbours, largest=False)
        return nearest.values, torch.cat([part[1] for part in parts], 1).gather(1, nearest.indices)

    def _counted(self, images: Tensor) -> Tensor | None:
        """Pixels (P,) of `images` (K,) that count, numbered on from image to image; None: all."""
        if not len(self.counts):
            return None
        height, width = self.layers[0].shape[1:3]
        return self.counts.view(-1, height * width)[images].flatten().nonzero()[:, 0]

    @property
    def memory_patches(self) -> int:
        """N·h·w, the pixels of all nominal images."""
        return len(self.pooled) * self.layers[0].shape[1] * self.layers[0].shape[2]

    @property
    def memories(self) -> dict[str, Tensor]:
        """See `Method.memories`."""
        return {"pooled": self.pooled, **{f"layer_{i}": x for i, x in enumerate(self.layers)}}


class PyramidBuffer:
    """Results of `Spade.features`, gathered part by part.

    Args:
        images: As in `FeatureBuffer`.
        tensors: How many tensors the features of a batch are.
    """

    def __init__(self, images: int, tensors: int) -> None:
        self._parts = [ImageBuffer(images) for _ in range(tensors)]
        self._counts: list[Tensor] = []

    def append(self, features: Sequence[Tensor] | Counted) -> None:
        """Add the features [(B, h, w, C), …] of a batch."""
        features, counts = parts(features)
        if counts is not None:
            self._counts.append(counts)
        for buffer, x in zip(self._parts, features, strict=True):
            buffer.append(x)

    def take_counts(self) -> Tensor | None:
        """Pixels (N, h, w) that count, None if all do; the buffer forgets them."""
        counts, self._counts = self._counts, []
        return torch.cat(counts) if counts else None

    def take(self) -> list[Tensor]:
        """The features [(N, h, w, C), …], which the buffer forgets."""
        return [buffer.take() for buffer in self._parts]


def _all_counted(shape: Sequence[int], counts: Tensor | None, device: torch.device) -> Tensor:
    """Pixels (N·h·w,) that count of maps of shape (N, h, w): all, if `counts` does not say."""
    if counts is None:
        return torch.ones(tuple(shape), dtype=torch.bool, device=device).flatten()
    return counts.to(device).flatten()


def _joined(layers: Sequence[Tensor]) -> Tensor:
    """Pyramids (B·h·w, D), float32, of layer maps [(B, h, w, C), …], at the first one's grid."""
    grid = (layers[0].shape[1], layers[0].shape[2])
    return torch.cat([interpolated(x.float(), grid) for x in layers], dim=-1).flatten(0, 2)
