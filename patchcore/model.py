"""PatchCore as one `nn.Module`: nominal images in, then scores and anomaly maps out."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from patchcore.backbones import Backbone, BackboneConfig, LayersConfig
from patchcore.coreset import Coreset, CoresetConfig, GreedyConfig, subsample
from patchcore.errors import InputError
from patchcore.index import Index, IndexConfig, TorchIndexConfig, build_index
from patchcore.patches import PatchConfig, PatchFeatures
from patchcore.scoring import (
    ScoringConfig,
    anomaly_maps,
    image_scores,
    neighbourhood_weight,
    patch_scores,
)


@dataclass
class Prediction:
    """What the model says of a batch of images; higher is more anomalous."""

    score: Tensor  # (B,) anomaly score of each image
    map: Tensor  # (B, H, W) anomaly map at the input's size
    patch_score: Tensor  # (B, h, w) anomaly score of each patch
    nearest: Tensor  # (B, h, w) int64 memory row nearest to each patch


class PatchCore(nn.Module):
    """A memory of nominal patch features, and distances to it (Roth et al.).

    Images are float tensors (B, 3, H, W), normalised as the backbone expects.

    Attributes:
        memory: (M, D) patch features that `fit` kept; empty before.
        coreset: How they were chosen.
    """

    memory: Tensor

    def __init__(
        self,
        backbone: BackboneConfig | None = None,
        layers: LayersConfig | None = None,
        patch: PatchConfig | None = None,
        coreset: CoresetConfig | None = None,
        index: IndexConfig | None = None,
        scoring: ScoringConfig | None = None,
    ) -> None:
        super().__init__()
        self.backbone = Backbone(backbone or BackboneConfig(), layers or LayersConfig())
        self.patches = PatchFeatures(self.backbone.channels, patch or PatchConfig())
        self.coreset_config = coreset or GreedyConfig()
        self.index_config = index or TorchIndexConfig()
        self.scoring = scoring or ScoringConfig()
        self.coreset: Coreset | None = None
        self.register_buffer("memory", torch.empty(0, self.patches.dimension))
        self._index: Index | None = None

    @torch.inference_mode()
    def embed(self, images: Tensor) -> Tensor:
        """Patch features (B, h, w, D), float32, of images (B, 3, H, W)."""
        return self.patches(self.backbone(images)).float()

    def fit(self, images: Tensor | Iterable[Tensor], progress: bool = False) -> "PatchCore":
        """Remember nominal images: one batch (B, 3, H, W), or an iterable of batches."""
        buffer = FeatureBuffer()
        for batch in [images] if isinstance(images, Tensor) else images:
            buffer.append(self.embed(batch.to(self.memory.device)))
        self.build(buffer.take(), progress=progress)
        return self

    def build(self, features: Tensor, progress: bool = False) -> Coreset:
        """Reduce patch features (N, D) of nominal images to the memory bank.

        They may lie in host memory while the model is on an accelerator.
        """
        device = self.memory.device
        self.coreset = subsample(features, self.coreset_config, device=device, progress=progress)
        self.memory = self.coreset.memory.to(device)
        return self.coreset

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Prediction:
        """Score images (B, 3, H, W), normalised like those of `fit`."""
        features = self.embed(images)  # (B, h, w, D)
        # Under bfloat16 autocast the search would confuse neighbours, and maps have 8 bits.
        with torch.autocast(images.device.type, enabled=False):
            return self._score(features, (images.shape[-2], images.shape[-1]))

    def _score(self, features: Tensor, size: tuple[int, int]) -> Prediction:
        """Score patch features (B, h, w, D) of images whose height and width are `size`."""
        patches = features.flatten(1, 2)  # (B, h·w, D)
        squared, rows = self.search(patches.flatten(0, 1), self.scoring.neighbours)  # (B·h·w, k)
        scores = patch_scores(squared, self.scoring).view(patches.shape[:2])  # (B, h·w)
        nearest = rows[:, 0].view_as(scores)  # (B, h·w)
        score, m_test = image_scores(scores)
        if self.scoring.reweight:
            image = torch.arange(len(patches), device=patches.device)
            score = score * neighbourhood_weight(
                patches[image, m_test],
                nearest[image, m_test],
                self.memory,
                self.search,
                self.scoring.reweight,
            )
        grid = scores.view(features.shape[:3])  # (B, h, w)
        maps = anomaly_maps(grid, size, self.scoring.sigma)
        return Prediction(score, maps, grid, nearest.view_as(grid))

    def search(self, queries: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
        """Squared distances and rows, both (Q, k), of the memory nearest to queries (Q, D)."""
        if not len(self.memory):
            raise InputError("the memory is empty: call fit with nominal images first")
        if self._index is None or self._index.memory is not self.memory:  # fitted or moved since
            self._index = build_index(self.memory, self.index_config)
        return self._index.search(queries, neighbours)


class FeatureBuffer:
    """Patch features (N, D) gathered batch by batch in one allocation.

    Args:
        images: How many images will come; the buffer grows if there are more, or larger ones.
        device: Where to keep the features; by default where the first batch is, if it has room.
    """

    def __init__(self, images: int = 0, device: torch.device | None = None) -> None:
        self._images = images
        self._device = device
        self._features: Tensor | None = None
        self._filled = 0

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

    def take(self) -> Tensor:
        """The features (N, D); the buffer forgets them, so that they can be freed."""
        if self._features is None:
            raise InputError("there are no nominal images to fit")
        features = self._features[: self._filled]
        self._features, self._filled = None, 0
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
