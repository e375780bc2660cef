"""PatchCore as one `nn.Module`: nominal images in, then scores and anomaly maps out.

`Detector` is what it shares with the methods that it is compared with, in `baselines`.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import _register_namedtuple

from patchcore._traced import traced
from patchcore.backbones import Backbone, BackboneConfig, LayersConfig
from patchcore.coreset import Coreset, CoresetConfig, GreedyConfig, Order, subsample
from patchcore.errors import InputError
from patchcore.index import (
    Index,
    IndexConfig,
    PrefixIndex,
    TorchIndexConfig,
    build_index,
    search_traced,
)
from patchcore.patches import Mapping, PatchConfig, PatchFeatures
from patchcore.scoring import (
    ScoringConfig,
    Search,
    anomaly_maps,
    comparable,
    score_images,
)


class Prediction(NamedTuple):
    """Scores of a batch of images; higher is more anomalous.

    A tuple, which PyTorch's compilers take apart and put together as they do tensors.
    """

    score: Tensor  # (B,) anomaly score of each image
    map: Tensor  # (B, H, W) anomaly map at the input's size
    patch_score: Tensor  # (B, h, w) anomaly score of each patch
    nearest: Tensor  # (B, h, w) int64 memory row nearest to each patch; others: see their `score`


# So that `torch.export.save` can write what an exported model gives.
_register_namedtuple(Prediction, serialized_type_name="patchcore.methods.patchcore.Prediction")


@dataclass
class ModelConfig:
    """Base of the methods' settings: which method, and what it alone has to choose."""


@dataclass
class PatchCoreModelConfig(ModelConfig):
    """PatchCore; its settings are groups of their own: patch, coreset, index, scoring."""


class Stateful(nn.Module):
    """A module with a memory, whose state dict, copies and casts keep what it has learnt.

    A state dict loads into a module of the same settings, whatever the size of its memory: it
    holds what `remembered` gives too, and is refused where settings differ that the memory
    depends on. Buffers keep their dtype when the module is cast, so that a network in half
    precision searches a memory in float32.

    Attributes:
        made_again: Names of attributes that are made from the memory where they are None; they are
            neither copied nor pickled.
    """

    made_again: tuple[str, ...] = ()

    def settings(self) -> dict[str, Any]:
        """Settings that the memory depends on, as plain values."""
        return {}

    def remembered(self) -> dict[str, Any]:
        """Further values that the state holds, as plain values: see `remember`."""
        return {}

    def remember(self, values: dict[str, Any]) -> None:
        """Take over the values of `remembered`, once a state has been loaded."""

    def get_extra_state(self) -> Tensor:
        """Settings and further values as JSON in bytes (n,): a tensor, as all of a state dict."""
        values = json.dumps({"settings": self.settings(), "values": self.remembered()})
        return torch.frombuffer(bytearray(values.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Called by `load_state_dict`."""
        self.remember(_unpacked(state)["values"])

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        state = state_dict.get(f"{prefix}_extra_state")
        if state is not None:
            theirs, ours = _unpacked(state)["settings"], self.settings()
            for key in ours | theirs:
                if theirs.get(key) != ours.get(key):
                    raise InputError(
                        f"the state is of a model with {key}={theirs.get(key)}, but this one has "
                        f"{key}={ours.get(key)}: build it with the same settings"
                    )
        for name, buffer in self._buffers.items():
            loaded = state_dict.get(prefix + name)
            if buffer is None or not isinstance(loaded, Tensor) or loaded.ndim != buffer.ndim:
                continue
            if loaded.shape != buffer.shape and loaded.shape[-1] == buffer.shape[-1]:
                self._buffers[name] = buffer.new_empty(loaded.shape)
        for name in self.made_again:
            setattr(self, name, None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after = self._buffers[name]
            if buffer is not None and after is not None and after.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(after.device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """For `copy` and `pickle`."""
        return {**self.__dict__, **dict.fromkeys(self.made_again)}


class Detector(Stateful, ABC):
    """A method behind a frozen backbone: nominal images in, then scores and anomaly maps out.

    Images are float tensors (B, 3, H, W), normalised as the backbone expects. What a method takes
    from their layer maps, its features, passes through `features`, `buffer` and `build_from` when
    fitting, `features` and `score` afterwards; nobody else looks inside.

    Attributes:
        backbone: Gives the layer maps.
        scoring: How distances become scores; all methods smooth their maps by its sigma.
    """

    def __init__(
        self,
        backbone: BackboneConfig | None = None,
        layers: LayersConfig | None = None,
        scoring: ScoringConfig | None = None,
    ) -> None:
        super().__init__()
        self.backbone = Backbone(backbone or BackboneConfig(), layers or LayersConfig())
        self.scoring = scoring or ScoringConfig()

    @abstractmethod
    def features(self, maps: Sequence[Tensor]) -> Any:
        """Features of a batch from the backbone's layer maps [(B, C, h, w), …]."""

    @abstractmethod
    def buffer(self, images: int = 0) -> Any:
        """Where the features of about so many images are gathered, by its method `append`."""

    @abstractmethod
    def build_from(self, buffer: Any, progress: bool = False) -> None:
        """Make the memory from gathered features of nominal images; `buffer` forgets them.

        Raises:
            InputError: There are none, or they do not suit the method.
        """

    @abstractmethod
    def score(self, features: Any, size: tuple[int, int]) -> Prediction:
        """Score the features of images of `size` (H, W). Raises InputError if not fitted."""

    @property
    @abstractmethod
    def memory_patches(self) -> int:
        """How many vectors or distributions a patch may be compared with."""

    @property
    @abstractmethod
    def memory_bytes(self) -> int:
        """Size of all that is kept of the nominal images."""

    def settings(self) -> dict[str, Any]:
        """See `Stateful.settings`."""
        return {"backbone.name": self.backbone.name, "layers.names": self.backbone.layers}

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.backbone.parameters()).device

    @torch.inference_mode()
    def embed(self, images: Tensor) -> Any:
        """Features of images (B, 3, H, W)."""
        return self.features(self.backbone(images))

    def fit(self, images: Tensor | Iterable[Tensor], progress: bool = False) -> Self:
        """Remember nominal images: one batch (B, 3, H, W), or an iterable of batches."""
        buffer = self.buffer()
        for batch in [images] if isinstance(images, Tensor) else images:
            buffer.append(self.embed(batch.to(self.device)))
        self.build_from(buffer, progress)
        return self

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Prediction:
        """Score images (B, 3, H, W), normalised like those of `fit`."""
        height, width = images.shape[-2:]
        return self.score(self.embed(images), (height, width))


class PatchCore(Detector):
    """A memory of nominal patch features, and distances to it (Roth et al.).

    Images are float tensors (B, 3, H, W), normalised as the backbone expects.

    Attributes:
        memory: (M, D) patch features that `fit` kept, as they are searched (for the cosine
            distance at unit length); empty before.
        coreset: How they were chosen; None for a memory that was loaded.
    """

    memory: Tensor
    made_again = ("_index", "_prefixes")

    def __init__(
        self,
        backbone: BackboneConfig | None = None,
        layers: LayersConfig | None = None,
        patch: PatchConfig | None = None,
        coreset: CoresetConfig | None = None,
        index: IndexConfig | None = None,
        scoring: ScoringConfig | None = None,
    ) -> None:
        super().__init__(backbone, layers, scoring)
        self.patch_config = patch or PatchConfig()
        self.patches = PatchFeatures(self.backbone.channels, self.patch_config)
        self.coreset_config = coreset or GreedyConfig()
        self.index_config = index or TorchIndexConfig()
        self.coreset: Coreset | None = None
        self.register_buffer("memory", torch.empty(0, self.patches.dimension))
        self._index: Index | None = None
        self._prefixes: PrefixIndex | None = None

    def settings(self) -> dict[str, Any]:
        """See `Stateful.settings`."""
        patch, channels = self.patch_config, self.backbone.channels
        mapped = patch.maps(channels)
        return {
            **super().settings(),
            "patch.size": patch.size,
            "patch.stride": patch.stride,
            "patch.mapping": (Mapping.reference if mapped else Mapping.average).value,
            "patch.layer_channels": patch.layer_channels if mapped else None,
            "scoring.distance": self.scoring.distance.value,
        }

    def remember(self, values: dict[str, Any]) -> None:
        """See `Stateful.remember`."""
        self.coreset = None

    @torch.inference_mode()
    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """Patch features (B, h, w, D), float32, of the backbone's layer maps [(B, C, h, w), …]."""
        return self.patches(maps).float()

    def buffer(self, images: int = 0) -> "FeatureBuffer":
        """See `Detector.buffer`."""
        return FeatureBuffer(images)

    def build_from(self, buffer: "FeatureBuffer", progress: bool = False) -> None:
        """See `Detector.build_from`."""
        self.build(buffer.take(), progress)

    def build(
        self, features: Tensor, progress: bool = False, order: Order | None = None
    ) -> Coreset:
        """Reduce patch features (N, D) of nominal images to the memory bank.

        They may lie in host memory while the model is on an accelerator. A stored `order` of the
        same features and settings is used or continued.

        Raises:
            InputError: They are NaN or infinite, or do not suit the settings.
        """
        device = self.memory.device
        coreset = subsample(
            features, self.coreset_config, device=device, order=order, progress=progress
        )
        memory = comparable(coreset.memory.to(device), self.scoring)
        if not bool(memory.isfinite().all()):
            raise InputError(
                "the nominal images' patch features are NaN or infinite: check the images, "
                "backbone.weights and trainer.precision"
            )
        self.coreset, self.memory = coreset, memory
        return coreset

    @torch.inference_mode()
    def score(self, features: Tensor, size: tuple[int, int]) -> Prediction:
        """Score patch features (B, h, w, D) of images of `size` (H, W)."""
        # Under bfloat16 autocast the search would confuse neighbours, and maps have 8 bits.
        with torch.autocast(features.device.type, enabled=False):
            features = comparable(features, self.scoring)
            found = self.search(features.flatten(0, 2), self.scoring.neighbours)  # (B·h·w, k)
            return self._predict(features, size, found, self.memory, self.search)

    @torch.inference_mode()
    def score_prefixes(
        self, features: Tensor, size: tuple[int, int], patches: Sequence[int]
    ) -> list[Prediction]:
        """As `score` with the first n patches of the memory alone, for each n of `patches`.

        They ascend. The memory of a larger coreset begins with that of a smaller, so these are the
        predictions of as many models, for little more than the search in the largest.
        """
        sizes = list(patches)
        prefixes = self._prefixes
        if prefixes is None or prefixes.memory is not self.memory or prefixes.sizes != sizes:
            prefixes = self._prefixes = PrefixIndex(self.memory, sizes, self.index_config)
        with torch.autocast(features.device.type, enabled=False):
            features = comparable(features, self.scoring)
            found = prefixes.search(features.flatten(0, 2), self.scoring.neighbours)
            return [
                self._predict(features, size, nearest, index.memory, index.search)
                for nearest, index in zip(found, prefixes.indexes, strict=True)
            ]

    def _predict(
        self,
        features: Tensor,
        size: tuple[int, int],
        found: tuple[Tensor, Tensor],
        memory: Tensor,
        search: Search,
    ) -> Prediction:
        """From distances and rows (B·h·w, k) of the nearest in `memory` to scores and maps."""
        patches = features.flatten(1, 2)  # (B, h·w, D)
        squared, rows = found
        score, scores = score_images(patches, squared, rows, memory, search, self.scoring)
        grid = scores.view(features.shape[:3])  # (B, h, w)
        maps = anomaly_maps(grid, size, self.scoring.sigma)
        return Prediction(score, maps, grid, rows[:, 0].view_as(grid))

    def search(self, queries: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
        """Squared distances and rows, both (Q, k), of the memory nearest to queries (Q, D)."""
        if not len(self.memory):
            raise InputError("the memory is empty: call fit with nominal images first")
        if traced():
            return search_traced(self.memory, queries, neighbours, self.index_config)
        if self._index is None or self._index.memory is not self.memory:  # fitted or moved since
            self._index = build_index(self.memory, self.index_config)
        return self._index.search(queries, neighbours)

    @property
    def memory_patches(self) -> int:
        """M, the patch features in the memory."""
        return len(self.memory)

    @property
    def memory_bytes(self) -> int:
        """Of the memory."""
        return self.memory.nbytes


def _unpacked(state: Tensor) -> dict[str, Any]:
    """Content of `Stateful.get_extra_state`."""
    values: dict[str, Any] = json.loads(bytes(state.tolist()))
    return values


class FeatureBuffer:
    """Patch features (N, D) gathered batch by batch in one allocation.

    Args:
        images: How many images will come; the buffer grows if there are more, or larger ones.
        device: Where to keep the features; by default where the first batch is, if it has room.

    Attributes:
        counts: How many patches each image has that was gathered since `take`.
    """

    def __init__(self, images: int = 0, device: torch.device | None = None) -> None:
        self._images = images
        self._device = device
        self._features: Tensor | None = None
        self._filled = 0
        self.counts: list[int] = []

    def append(self, features: Tensor) -> None:
        """Add the patch features (B, h, w, D) of a batch."""
        if not len(features):
            return
        rows = features.flatten(0, 2)  # (B·h·w, D)
        if self._features is None:
            expected = max(self._images, len(features)) * (len(rows) // len(features))
            self._features = self._allocate(expected, rows)
        if self._filled + len(rows) > len(self._features):
            kept = self._features[: self._filled]
            self._features = self._allocate(2 * (self._filled + len(rows)), rows)
            self._features[: self._filled] = kept
        self._features[self._filled : self._filled + len(rows)] = rows
        self._filled += len(rows)
        self.counts += [len(rows) // len(features)] * len(features)

    def take(self) -> Tensor:
        """The features (N, D); the buffer forgets them, so that they can be freed."""
        if self._features is None:
            raise InputError("there are no nominal images to fit")
        features = self._features[: self._filled]
        self._features, self._filled, self.counts = None, 0, []
        return features

    def _allocate(self, rows: int, like: Tensor) -> Tensor:
        device = self._device or like.device
        if device.type == "cuda":
            needed = rows * like.shape[1] * like.element_size()
            free, _ = torch.cuda.mem_get_info(device)
            # The coreset needs a projection and some work space beside the features.
            device = device if 2 * needed < free else torch.device("cpu")
        with torch.inference_mode(False):  # an ordinary tensor, whoever calls
            return torch.empty(rows, like.shape[1], dtype=like.dtype, device=device)
