"""PatchCore: a memory of nominal patch features, and distances to it (Roth et al., CVPR 2022)."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from patchcore._traced import traced
from patchcore.backbones import BackboneConfig, Join, LayersConfig
from patchcore.coreset import (
    Coreset,
    CoresetConfig,
    GreedyConfig,
    Order,
    SizedConfig,
    subsample,
)
from patchcore.errors import InputError
from patchcore.index import (
    Index,
    IndexConfig,
    PrefixIndex,
    TorchIndex,
    TorchIndexConfig,
    build_index,
    nearest_rows,
    search_traced,
)
from patchcore.methods.common import FeatureBuffer, check_grid
from patchcore.methods.counted import Counted, cells, parts
from patchcore.methods.detector import Detector, Fitting, Parts, Prediction
from patchcore.methods.nearby import NARROW, Nearby, found_nearby, image_means, nearby_part
from patchcore.methods.origin import UNKNOWN, patch_origins
from patchcore.methods.scale import nominal_scale
from patchcore.methods.switches import Followed, PatchCoreConfig
from patchcore.patches import Mapping, PatchConfig, PatchFeatures
from patchcore.scoring import ScoringConfig, Search, anomaly_maps, comparable, score_images


class PatchCore(Detector):
    """A memory of nominal patch features, and distances to it (Roth et al.).

    Images are float tensors (B, 3, H, W), normalised as the backbone expects.

    Attributes:
        memory: (M, D) patch features that `fit` kept, as they are searched (for the cosine
            distance at unit length); empty before.
        origin: (M, 3) int32 image number, grid row and grid column of each; -1 where unknown.
        coreset: How they were chosen; None for a memory that was loaded.
        grid: Rows and columns of the nominal images' patch grids; (0, 0) where they differ.
        pooled: (I, D) means of the nominal images' patch features, and `pooled_of` (I, 1) the
            images' numbers; only with `method.retrieval`.
    """

    memory: Tensor
    origin: Tensor
    pooled: Tensor
    pooled_of: Tensor
    made_again = ("_index", "_nearby", "_prefixes")
    counts_used = True

    def __init__(
        self,
        backbone: BackboneConfig | None = None,
        layers: LayersConfig | None = None,
        patch: PatchConfig | None = None,
        coreset: CoresetConfig | None = None,
        index: IndexConfig | None = None,
        scoring: ScoringConfig | None = None,
        *,
        method: PatchCoreConfig | None = None,
        network: Any = None,
    ) -> None:
        if layers is not None and layers.join is not Join.concat:
            raise InputError(
                f"layers.join={layers.join.name} is of several memories: build it by "
                "patchcore.methods.build_detector"
            )
        self.patch_config = patch or PatchConfig()
        self.coreset_config = coreset or GreedyConfig()
        self.index_config = index or TorchIndexConfig()
        self.method = method or PatchCoreConfig()
        super().__init__(
            Parts(
                self.method,
                backbone or BackboneConfig(),
                layers or LayersConfig(),
                self.patch_config,
                self.coreset_config,
                self.index_config,
                scoring or ScoringConfig(),
            ),
            network,
        )
        self.patches = PatchFeatures(self.backbone.channels, self.patch_config)
        self.coreset: Coreset | None = None
        self.register_buffer("memory", torch.empty(0, self.patches.dimension))
        self.register_buffer("origin", torch.empty(0, 3, dtype=torch.int32))
        self.method.check(self.coreset_config, self.index_config)
        if self.method.retrieval is not None:
            self.register_buffer("pooled", torch.empty(0, self.patches.dimension))
            self.register_buffer("pooled_of", torch.empty(0, 1, dtype=torch.int64))
        self.grid, self._gathered = (0, 0), 0
        self._nearby: dict[int, Nearby] | None = None  # by the number of rows searched
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
            "method.retrieval": True if self.method.retrieval is not None else None,
        }

    def remembered(self) -> dict[str, Any]:
        """See `Stateful.remembered`."""
        return {"gathered": self._gathered, "grid": self.grid}

    def remember(self, values: dict[str, Any]) -> None:
        """See `Stateful.remember`."""
        self.coreset, self._gathered = None, values["gathered"]
        height, width = values.get("grid", (0, 0))
        self.grid = (height, width)

    @torch.inference_mode()
    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """Patch features (B, h, w, D), float32, of the backbone's layer maps [(B, C, h, w), …]."""
        return self.patches(maps).float()

    def counted(self, maps: Sequence[Tensor], inside: Tensor) -> Counted:
        """See `Detector.counted`."""
        features = self.features(maps)
        return Counted(features, cells(inside, (features.shape[1], features.shape[2])))

    def buffer(self, images: int = 0) -> FeatureBuffer:
        """See `Detector.buffer`."""
        return FeatureBuffer(images)

    def build_from(self, buffer: FeatureBuffer, fitting: Fitting | None = None) -> None:
        """See `Detector.build_from`; a coreset order is kept, and the scale measured, if asked."""
        fitting = fitting or Fitting()
        with fitting.stage("coreset"):
            places, grids = buffer.places, buffer.grids
            self.grid = self._grid_of(grids)
            widths = [width for _, width in grids]
            counts, features = buffer.counts, buffer.take()
            images = range(len(counts)) if fitting.images is None else fitting.images
            settings, order = (self._followed(), self.coreset_config), None
            kept = fitting.kept if self.coreset_config.ordered else None
            if kept is not None:
                entry = kept.get(*settings, lambda entry: _is_order(entry, len(features)))
                if entry is not None:
                    order = Order(**entry)
                    fitting.warm.add("coreset")
            coreset = self.build(features, fitting.progress, order)
            if kept is not None and coreset.order is not order:
                kept.put(*settings, vars(coreset.order))
            if coreset.indices is not None:
                origin = patch_origins(coreset.indices, places, widths, images)
                self.origin = origin.to(self.memory.device)
            if self.method.retrieval is not None:
                means = image_means(comparable(features, self.scoring), counts, images)
                self.pooled_of, self.pooled = (x.to(self.memory.device) for x in means)
        if fitting.scale is not None:
            with fitting.stage("scale"):
                fitting.measured = nominal_scale(
                    features,
                    counts,
                    images,
                    self.memory,
                    coreset.indices,
                    self.scoring,
                    fitting.scale,
                    partial(nearby_part, self, places, widths) if self.method.narrow else None,
                )

    def _grid_of(self, grids: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Return the one grid of images; (0, 0) if they have several."""
        one = grids[0] if grids else (0, 0)
        if self.method.radius is not None:
            for grid in grids:
                check_grid(grid, one)
        return one if set(grids) == {one} else (0, 0)

    def _followed(self) -> Followed:
        """Settings that the patch features follow from."""
        return Followed(self.patch_config, list(self.backbone.layers))

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
        self.coreset, self.memory, self._gathered = coreset, memory, len(features)
        self.origin = torch.full((len(memory), 3), UNKNOWN, dtype=torch.int32, device=device)
        return coreset

    @torch.inference_mode()
    def extend(
        self,
        batches: Sequence[Tensor | Counted],
        sizes: Sequence[tuple[int, int]],
        images: Sequence[int],
        count: int | None = None,
    ) -> list[Prediction]:
        """See `Detector.extend`; the sampler goes on from the memory, as it is searched."""
        predictions, covered, buffer = [], [], FeatureBuffer(len(images), self.device)
        with torch.autocast(self.device.type, enabled=False):
            exact = self.search if self.index_config.exact else TorchIndex(self.memory).search
            for batch, size in zip(batches, sizes, strict=True):
                x, counts = parts(batch)
                x = comparable(x.to(self.device), self.scoring)
                rows, k = _rows(x, counts), self.scoring.neighbours
                quick = k == 1 and x.device.type == "cpu"
                found = nearest_rows(self.memory, rows) if quick else exact(rows, k)  # serves both
                near = self._found(x, counts) if self.method.narrow else found
                predictions.append(self._predict(x, counts, size, near, self.memory, exact))
                covered.append(found[0][:, 0])
                buffer.append(x if counts is None else Counted(x, counts))
            places, widths = buffer.places, [width for _, width in buffer.grids]
            means = None
            if self.method.retrieval is not None:
                means = image_means(buffer.gathered(), buffer.counts, images)
            features, kept = buffer.take(), len(self.memory)
            whole = self._gathered + len(features)
            if count is None:
                count = max(1, round(kept * whole / self._gathered) - kept)
            if count > len(features):
                raise InputError(
                    f"count must be at most the {len(features)} patches of the images, got {count}"
                )
            chosen = self.coreset_config.extend(features, torch.cat(covered), count, self.device)
            origin = patch_origins(chosen, places, widths, images).to(self.device)
            added = features[chosen.to(features.device)].to(self.memory)
        with torch.inference_mode(False):
            self.memory = torch.cat((self.memory, added))
            self.origin = torch.cat((self.origin, origin))
            if means is not None:
                self.pooled_of = torch.cat((self.pooled_of, means[0]))
                self.pooled = torch.cat((self.pooled, means[1]))
        self.coreset, self._gathered = None, whole
        return predictions

    def forget(self, images: Collection[int]) -> None:
        """See `Detector.forget`; the share of all patches that the memory keeps stays."""
        out = torch.isin(self.origin[:, 0].cpu(), torch.tensor(sorted(images), dtype=torch.int32))
        left, needed = int((~out).sum()), max(self.scoring.neighbours, self.scoring.reweight)
        if left < needed:
            raise InputError(
                f"without these images {left} patches would be left, and {needed} neighbours are "
                "looked for: keep some, or fit again"
            )
        rows = (~out).to(self.memory.device)
        self._gathered = round(self._gathered * left / len(self.memory))
        self.coreset, self.memory, self.origin = None, self.memory[rows], self.origin[rows]
        if self.method.retrieval is not None:
            stay = ~torch.isin(self.pooled_of[:, 0].cpu(), torch.tensor(sorted(images)))
            stay = stay.to(self.pooled.device)
            self.pooled_of, self.pooled = self.pooled_of[stay], self.pooled[stay]

    @property
    def images_had(self) -> int:
        """See `Detector.images_had`."""
        return int(self.origin[:, 0].max()) + 1 if len(self.origin) else 0

    def origins(self, rows: Tensor) -> Tensor:
        """See `Detector.origins`."""
        return torch.where(rows[..., None] < 0, UNKNOWN, self.origin[rows])

    @torch.inference_mode()
    def score(self, features: Tensor | Counted, size: tuple[int, int]) -> Prediction:
        """Score patch features (B, h, w, D) of images of `size` (H, W).

        Where patches do not count, `Prediction.nearest` is -1.
        """
        # Under bfloat16 autocast the search would confuse neighbours, and maps have 8 bits.
        x, counts = parts(features)
        with torch.autocast(x.device.type, enabled=False):
            x = comparable(x, self.scoring)
            found = self._found(x, counts)  # (B·h·w, k)
            return self._predict(x, counts, size, found, self.memory, self.search)

    @torch.inference_mode()
    def score_prefixes(
        self, features: Tensor | Counted, size: tuple[int, int], patches: Sequence[int]
    ) -> list[Prediction]:
        """Return `score` with the first n patches of the memory alone, for each n of `patches`.

        They ascend. The memory of a larger coreset begins with that of a smaller, so these are the
        predictions of as many models, for little more than the search in the largest.
        """
        sizes = list(patches)
        prefixes = self._prefixes
        if prefixes is None or prefixes.memory is not self.memory or prefixes.sizes != sizes:
            prefixes = self._prefixes = PrefixIndex(self.memory, sizes, self.index_config)
        x, counts = parts(features)
        with torch.autocast(x.device.type, enabled=False):
            x = comparable(x, self.scoring)
            if self.method.narrow:
                found = [self._found(x, counts, n) for n in sizes]
            else:
                found = prefixes.search(_rows(x, counts), self.scoring.neighbours)
            return [
                self._predict(x, counts, size, nearest, index.memory, index.search)
                for nearest, index in zip(found, prefixes.indexes, strict=True)
            ]

    def _predict(
        self,
        features: Tensor,
        counts: Tensor | None,
        size: tuple[int, int],
        found: tuple[Tensor, Tensor],
        memory: Tensor,
        search: Search,
    ) -> Prediction:
        """Return scores and maps from distances and rows (B·h·w, k) of the nearest in `memory`.

        If some patches do not count, distances and rows are of the others alone.
        """
        squared, rows = found
        if counts is None:
            patches = features.flatten(1, 2)  # (B, h·w, D)
            score, scores = score_images(patches, squared, rows, memory, search, self.scoring)
            grid = scores.view(features.shape[:3])  # (B, h, w)
            nearest = rows[:, 0].view_as(grid)
        else:
            each = counts.flatten(1).sum(1).tolist()
            own = zip(
                features[counts].split(each), squared.split(each), rows.split(each), strict=True
            )
            scored = [
                score_images(x[None], near, row, memory, search, self.scoring)
                for x, near, row in own
            ]
            score = torch.cat([one for one, _ in scored])
            grid = torch.full(counts.shape, torch.nan, device=score.device)
            grid[counts] = torch.cat([patch[0] for _, patch in scored])
            nearest = torch.full(counts.shape, -1, device=score.device)
            nearest[counts] = rows[:, 0]
        maps = anomaly_maps(grid, size, self.scoring.sigma)
        return Prediction(score, maps, grid, nearest)

    @property
    def untraceable(self) -> str:
        """See `Detector.untraceable`."""
        return NARROW if self.method.narrow else ""

    def _found(
        self, features: Tensor, counts: Tensor | None, size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return squared distances and rows (Q, k) of the nearest to patches that count.

        Features (B, h, w, D) are as they are searched; `size` rows of the memory are, None: all.
        """
        if self.method.narrow and len(self.memory):
            return found_nearby(self, features, counts, size)
        return self.search(_rows(features, counts), self.scoring.neighbours)

    def search(self, queries: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
        """Squared distances and rows, both (Q, k), of the memory nearest to queries (Q, D)."""
        if not len(self.memory):
            raise InputError("the memory is empty: call fit with nominal images first")
        if traced():
            return search_traced(self.memory, queries, neighbours, self.index_config)
        if self._index is None or self._index.memory is not self.memory:  # fitted or moved since
            self._index = build_index(self.memory, self.index_config)
        return self._index.search(queries, neighbours)

    def prefixes(self, ratios: Sequence[float]) -> dict[float, int]:
        """See `Detector.prefixes`; they are of the patches of the last `build`."""
        config = self.coreset_config
        if not ratios or not isinstance(config, SizedConfig):
            return {}
        asked = sorted({*ratios, config.ratio})
        return {ratio: replace(config, ratio=ratio).size(self._gathered) for ratio in asked}

    @property
    def memories(self) -> dict[str, Tensor]:
        """See `Method.memories`."""
        return {"memory": self.memory}

    @property
    def memory_patches(self) -> int:
        """M, the patch features in the memory."""
        return len(self.memory)


def _rows(features: Tensor, counts: Tensor | None) -> Tensor:
    """Patch features (N, D), those that count, of (B, h, w, D)."""
    return features.flatten(0, 2) if counts is None else features[counts]


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
