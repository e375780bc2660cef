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
    Shard,
    SizedConfig,
    subsample,
)
from patchcore.errors import InputError
from patchcore.index import (
    Index,
    IndexConfig,
    PrefixIndex,
    TorchIndexConfig,
    build_index,
    search_traced,
)
from patchcore.methods.common import FeatureBuffer, one_grid
from patchcore.methods.counted import (
    Counted,
    Described,
    cells,
    counted_rows,
    described,
    objects,
    parts,
    predict,
)
from patchcore.methods.detector import Detector, Fitting, Parts, Prediction
from patchcore.methods.gathered import Gathered, pruned, sampled, told_cost
from patchcore.methods.growing import extend_memory, forget_images, images_had
from patchcore.methods.nearby import Nearby, found_nearby, image_means, nearby_part
from patchcore.methods.origin import UNKNOWN, patch_origins
from patchcore.methods.scale import nominal_scale
from patchcore.methods.switches import Followed, PatchCoreConfig, untraceable
from patchcore.methods.thinning import Thinning
from patchcore.methods.tiled import ONE, predicted
from patchcore.patches import Mapping, PatchConfig, PatchFeatures
from patchcore.scoring import ScoringConfig, comparable
from patchcore.tiles import Streamed, TiledMaps
from patchcore.whitening import fit_whitening, whiten

OTHERS = ("centre", "whitener", "pooled")
"""Further tensors of the nominal images, which some switches keep beside the memory bank."""


class PatchCore(Detector):
    """A memory of nominal patch features, and distances to it (Roth et al.).

    Images are float tensors (B, 3, H, W), normalised as the backbone expects.

    Attributes:
        memory: (M, D) patch features that `fit` kept, as they are searched (for the cosine
            distance at unit length); empty before.
        origin: (M, 3) int32 image number, grid row and grid column of each; -1 where unknown.
        coreset: Result of the sampler; None for a memory bank that was loaded.
        grid: Rows and columns of the nominal images' patch grids; (0, 0) where they differ.
        centre, whitener: (1, D) and (d, D), see `fit_whitening`; only with `method.whitening`, and
            then the memory has d channels.
        pooled: (I, D) means of the nominal images' patch features, and `pooled_of` (I, 1) the
            images' numbers; only with `method.retrieval`.
    """

    memory: Tensor
    origin: Tensor
    centre: Tensor
    whitener: Tensor
    pooled: Tensor
    pooled_of: Tensor
    made_again = ("_index", "_nearby", "_prefixes")
    counts_used = True
    of_fewer = False  # whether fewer images than `coreset.count` is meant for are remembered

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
        self.method = method or PatchCoreConfig()
        parts = Parts(
            self.method,
            backbone or BackboneConfig(),
            layers or LayersConfig(),
            patch or PatchConfig(),
            coreset or GreedyConfig(),
            index or TorchIndexConfig(),
            scoring or ScoringConfig(),
        )
        if parts.layers.join is not Join.concat:
            raise InputError(
                f"layers.join={parts.layers.join.name} needs several memory banks: build the "
                "method with patchcore.methods.build_detector"
            )
        self.patch_config = parts.patch
        self.coreset_config = parts.coreset
        self.index_config = parts.index
        super().__init__(parts, network)
        own = self.parts.layers
        if own.token and self.method.retrieval is None:
            raise InputError("layers.token has no effect without method.retrieval: leave it out")
        channels = self.backbone.channels[: len(own.names)]
        self.patches = PatchFeatures(channels, self.patch_config)
        self.coreset: Coreset | None = None
        self.register_buffer("memory", torch.empty(0, self.patches.dimension))
        self.register_buffer("origin", torch.empty(0, 3, dtype=torch.int32))
        self.method.check(self.coreset_config, self.index_config)
        if self.method.whitening is not None:
            self.register_buffer("centre", torch.empty(0, self.patches.dimension))
            self.register_buffer("whitener", torch.empty(0, self.patches.dimension))
        if self.method.retrieval is not None:
            width = self.backbone.channels[-1] if own.token else self.patches.dimension
            self.register_buffer("pooled", torch.empty(0, width))
            self.register_buffer("pooled_of", torch.empty(0, 1, dtype=torch.int64))
        self.one_size = self.method.radius is not None
        self.grid, self._gathered = (0, 0), 0
        self._nearby: dict[int, Nearby] | None = None  # by the number of rows searched
        self._index: Index | None = None
        self._prefixes: PrefixIndex | None = None

    def settings(self) -> dict[str, Any]:
        """See `Stateful.settings`."""
        patch = self.patch_config
        channels = self.backbone.channels[: len(self.parts.layers.names)]
        mapped = patch.maps(channels)
        return {
            **super().settings(),
            "patch.size": patch.size,
            "patch.stride": patch.stride,
            "patch.mapping": (Mapping.reference if mapped else Mapping.average).value,
            "patch.layer_channels": patch.layer_channels if mapped else None,
            "scoring.distance": self.scoring.distance.value,
            "method.retrieval": True if self.method.retrieval is not None else None,
            "method.whitening": self.method.whitening,
            "method.shrinkage": self.method.shrinkage,
            "method.foreground": self.method.foreground,
        }

    def remembered(self) -> dict[str, Any]:
        """See `Stateful.remembered`."""
        return {"gathered": self._gathered, "grid": self.grid, "left_out": self.left_out}

    def remember(self, values: dict[str, Any]) -> None:
        """See `Stateful.remember`."""
        self.coreset, self._gathered = None, values["gathered"]
        self.left_out = tuple(values.get("left_out", ()))
        height, width = values.get("grid", (0, 0))
        self.grid = (height, width)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        matrix = state_dict.get(f"{prefix}whitener")
        if self.method.whitening is not None and matrix is not None:
            self.memory = self.memory.new_empty(0, len(matrix))  # as wide as it makes it
            if self.method.retrieval is not None and not self.parts.layers.token:
                self.pooled = self.memory
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @torch.inference_mode()
    def plain(self, maps: Sequence[Tensor]) -> Tensor:
        """Patch features (B, h, w, D), float32, of the backbone's layer maps [(B, C, h, w), …]."""
        if isinstance(maps, TiledMaps):
            return maps.streamed(self.plain).whole()
        return self.patches(maps[: len(self.parts.layers.names)]).float()

    @torch.inference_mode()
    def features(self, maps: Sequence[Tensor]) -> Any:
        """Patch features of layer maps: see `plain`; with a foreground, also the positions that
        count.
        """
        if isinstance(maps, TiledMaps) and self.method.local and not self.scoring.reweight:
            return maps.streamed(self.plain)
        features, threshold = self.plain(maps), self.method.foreground
        if threshold is None:
            return described(features, maps, self.parts.layers.token)
        return described(
            Counted(features, objects(features, threshold)), maps, self.parts.layers.token
        )

    @torch.inference_mode()
    def counted(self, maps: Sequence[Tensor], inside: Tensor) -> Any:
        """See `Detector.counted`."""
        features, threshold = self.plain(maps), self.method.foreground
        counts = cells(inside, (features.shape[1], features.shape[2]))
        if threshold is not None:
            counts = objects(features, threshold, counts)
        return described(Counted(features, counts), maps, self.parts.layers.token)

    def token_searched(self, features: Any) -> Tensor | None:
        """Class token (B, C) as it is compared; None where features come without."""
        if not isinstance(features, Described):
            return None
        return comparable(features.token.to(self.memory.device), self.scoring)

    def _whitened(self, features: Tensor) -> Tensor:
        """Features (…, d) of patch features (…, D); the same unless they are whitened."""
        if self.method.whitening is None or not len(self.centre):
            return features
        return whiten(features, self.centre, self.whitener)

    def _searched(self, features: Tensor) -> Tensor:
        """Vectors for the search, computed from patch features (…, D)."""
        return comparable(self._whitened(features), self.scoring)

    def buffer(self, images: int = 0) -> FeatureBuffer:
        """See `Detector.buffer`."""
        return FeatureBuffer(images, thinning=self.thinning)

    @property
    def thinning(self) -> Thinning | None:
        """Selection of the patches that each nominal image contributes; None: all."""
        per_image, device = self.method.per_image, self.memory.device
        return None if per_image is None else Thinning(per_image, self.coreset_config, device)

    def build_from(self, buffer: FeatureBuffer, fitting: Fitting | None = None) -> None:
        """See `Detector.build_from`; a coreset order is kept, and the scale measured, if asked."""
        fitting = fitting or Fitting()
        buffer.check_foreground(self.method.foreground)
        self.grid = one_grid(buffer.grids, self.method.radius is not None)
        gathered = pruned(self, Gathered.of(buffer, fitting.images), fitting)
        places, widths, images = gathered.places, gathered.widths, gathered.images
        tokens = [comparable(token, self.scoring) for token in gathered.tokens]
        with fitting.stage("coreset"):
            counts, features = gathered.counts, gathered.features
            del gathered  # its features may be freed before the end
            shard = None if fitting.places is None else Shard.of(fitting.places, counts)
            coreset = sampled(
                features,
                lambda x, order: self.build(x, fitting.progress, order, shard),
                (self.followed(), self.coreset_config),
                fitting,
                "coreset",
            )
            if coreset.indices is not None:
                of = partial(patch_origins, places=places, widths=widths, images=images)
                chosen = coreset.indices
                origin = of(chosen) if shard is None else shard.combine(of, chosen)
                self.origin = origin.to(self.memory.device)
            if self.method.retrieval is not None or fitting.scale is not None:
                features = self._whitened(features)
            if self.method.retrieval is not None:
                means = image_means(comparable(features, self.scoring), counts, images, tokens)
                self.pooled_of, self.pooled = (x.to(self.memory.device) for x in means)
        told_cost(fitting, "coreset", coreset)
        if fitting.scale is not None:
            nearby = partial(nearby_part, self, places, widths, tokens)
            with fitting.stage("scale"):
                fitting.measured = nominal_scale(
                    features,
                    counts,
                    [fitting.copies.get(number, number) for number in images],
                    self.memory,
                    coreset.indices,
                    self.scoring,
                    fitting.scale,
                    nearby if self.method.narrow else None,
                )

    def followed(self) -> Followed:
        """Return the settings that the patch features follow from."""
        method = self.method
        own = (method.whitening, method.shrinkage, method.foreground, method.per_image)
        thinned = None if method.per_image is None else self.coreset_config.unsized()
        layers = list(self.backbone.layers)
        return Followed(self.patch_config, layers, *own, method.pruning, thinned)

    def build(
        self,
        features: Tensor,
        progress: bool = False,
        order: Order | None = None,
        shard: Shard | None = None,
    ) -> Coreset:
        """Reduce patch features (N, D) of nominal images to the memory bank.

        They may lie in host memory while the model is on an accelerator. A stored `order` of the
        same features and settings is used or continued. With a `shard` they are a part of those of
        all processes, which call this together and end with the same memory.

        Raises:
            InputError: They are NaN or infinite, or do not suit the settings.
        """
        device = self.memory.device
        config = self.coreset_config
        if self.of_fewer and isinstance(config, SizedConfig) and config.count is not None:
            config = replace(config, count=min(config.count, max(1, len(features))))
        if (share := self.method.whitening) is not None and len(features):
            with torch.inference_mode(False):
                found = fit_whitening(features, share, self.method.shrinkage, device)
            self.centre, self.whitener = found
            features = self._whitened(features)
        coreset = subsample(
            features, config, device=device, order=order, progress=progress, shard=shard
        )
        memory = comparable(coreset.memory.to(device), self.scoring)
        if not bool(memory.isfinite().all()):
            raise InputError(
                "the nominal images' patch features are NaN or infinite: check the images, "
                "backbone.weights and trainer.precision"
            )
        self.coreset, self.memory = coreset, memory
        self._gathered = len(features) if shard is None else shard.total
        self.origin = torch.full((len(memory), 3), UNKNOWN, dtype=torch.int32, device=device)
        return coreset

    def extend(
        self,
        batches: Sequence[Tensor | Counted | Described],
        sizes: Sequence[tuple[int, int]],
        images: Sequence[int],
        count: int | None = None,
    ) -> list[Prediction]:
        """See `Detector.extend`; the sampler goes on from the memory, as it is searched."""
        return extend_memory(self, batches, sizes, images, count)

    def forget(self, images: Collection[int]) -> None:
        """See `Detector.forget`; the share of all patches that the memory keeps stays."""
        forget_images(self, images)

    @property
    def images_had(self) -> int:
        """See `Detector.images_had`."""
        return images_had(self)

    def origins(self, rows: Tensor) -> Tensor:
        """See `Detector.origins`."""
        return torch.where(rows[..., None] < 0, UNKNOWN, self.origin[rows])

    @torch.inference_mode()
    def score(self, features: Tensor | Counted | Described, size: tuple[int, int]) -> Prediction:
        """Score patch features (B, h, w, D) of images of `size` (H, W).

        Where patches do not count, `Prediction.nearest` is -1.
        """
        if isinstance(features, Streamed):
            return predicted([self.score(x, ONE) for x in features], size, self.scoring)
        # Under bfloat16 autocast the search would confuse neighbours, and maps have 8 bits.
        x, counts = parts(features)
        with torch.autocast(x.device.type, enabled=False):
            x = self._searched(x)
            found = self._found(x, counts, self.token_searched(features))  # (B·h·w, k)
            return predict(x, counts, size, found, self.memory, self.search, self.scoring)

    @torch.inference_mode()
    def score_prefixes(
        self, features: Tensor | Counted | Described, size: tuple[int, int], patches: Sequence[int]
    ) -> list[Prediction]:
        """Return `score` with the first n patches of the memory alone, for each n of `patches`.

        They ascend. The memory of a larger coreset begins with that of a smaller, so these are the
        predictions of as many models, for little more than the search in the largest.
        """
        sizes = list(patches)
        if isinstance(features, Streamed):
            each = zip(*(self.score_prefixes(x, ONE, sizes) for x in features), strict=True)
            return [predicted(bands, size, self.scoring) for bands in each]
        prefixes = self._prefixes
        if prefixes is None or prefixes.memory is not self.memory or prefixes.sizes != sizes:
            prefixes = self._prefixes = PrefixIndex(self.memory, sizes, self.index_config)
        x, counts = parts(features)
        with torch.autocast(x.device.type, enabled=False):
            x = self._searched(x)
            if self.method.narrow:
                token = self.token_searched(features)
                found = [self._found(x, counts, token, n) for n in sizes]
            else:
                found = prefixes.search(counted_rows(x, counts), self.scoring.neighbours)
            return [
                predict(x, counts, size, nearest, index.memory, index.search, self.scoring)
                for nearest, index in zip(found, prefixes.indexes, strict=True)
            ]

    @property
    def untraceable(self) -> str:
        """See `Detector.untraceable`."""
        return untraceable(self.method)

    def _found(
        self,
        features: Tensor,
        counts: Tensor | None,
        token: Tensor | None,
        size: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return squared distances and rows (Q, k) of the nearest to patches that count.

        Features (B, h, w, D) and `token` (B, C) are as they are searched; the first `size` rows of
        the memory are, None: all.
        """
        if self.method.narrow and len(self.memory):
            return found_nearby(self, features, counts, token, size)
        return self.search(counted_rows(features, counts), self.scoring.neighbours)

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
        others = {name: x for name, x in self._buffers.items() if name in OTHERS and x is not None}
        return {"memory": self.memory, **others}

    def bytes_of(self, rows: int) -> int:
        """See `Method.bytes_of`."""
        per_row = self.memory.nbytes // max(1, len(self.memory))
        return self.memory_bytes - self.memory.nbytes + per_row * rows

    @property
    def memory_patches(self) -> int:
        """M, the patch features in the memory."""
        return len(self.memory)
