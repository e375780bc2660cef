"""PatchCore with a memory and a coreset for each layer, whose distances are combined.

The patches of each layer stay on that layer's own grid: they are neither interpolated nor joined
with those of other layers. The scores of each layer are interpolated to the grid of the finest
layer, and the score of a position is their mean. With `layers.join=scaled`, each score is first
expressed in standard deviations from the nominal mean of its layer, because the features of one
layer may be ten times as long as those of another. The highest score of all positions is the
image's score. `separate_layers` in tests/reference.py is the same computation, term by term.
"""

from collections.abc import Collection, Sequence
from dataclasses import astuple, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchcore._traced import traced
from patchcore.backbones import Join
from patchcore.errors import InputError
from patchcore.methods.common import FeatureBuffer, interpolated
from patchcore.methods.counted import Counted, Described, cells, described, objects
from patchcore.methods.detector import Detector, Fitting, Parts, Prediction
from patchcore.methods.origin import UNKNOWN
from patchcore.methods.patchcore import PatchCore
from patchcore.methods.scale import Scale, ScaleConfig
from patchcore.methods.switches import PatchCoreConfig
from patchcore.methods.tiled import ONE, predicted
from patchcore.scoring import Pool, anomaly_maps, highest, pixel_scores
from patchcore.tiles import Streamed, TiledMaps


class OneLayer(nn.Module):
    """One layer of a network, as a bank sees it; the network itself belongs to the detector.

    Attributes:
        name: See `Backbone`.
        layers, channels: Lists with the layer's name and channels; with those of the class token,
            if it is used.
    """

    def __init__(self, network: Any, number: int, token: bool) -> None:
        super().__init__()
        self.name = network.name
        self.layers, self.channels = [network.layers[number]], [network.channels[number]]
        if token:
            self.layers.append(network.layers[-1])
            self.channels.append(network.channels[-1])


class Bank(PatchCore):
    """The memory of one layer, `number` among those of `network`."""

    def __init__(self, parts: Parts, network: Any, number: int) -> None:
        assert isinstance(parts.method, PatchCoreConfig)
        layer = OneLayer(network, number, parts.layers.token)
        scoring = replace(parts.scoring, pool=Pool.patches)  # a bank alone has no map
        groups = (parts.patch, parts.coreset, parts.index, scoring)
        layers = replace(parts.layers, names=[layer.layers[0]], join=Join.concat)
        super().__init__(parts.backbone, layers, *groups, method=parts.method, network=layer)

    @property
    def device(self) -> torch.device:
        """Device of the memory."""
        return self.memory.device


class LayerBanks(Detector):
    """Several memory banks of one network, one for each layer.

    Attributes:
        banks: Memories, the finest layer's first. `Prediction.nearest` are rows of that one.
        scales: Of the banks' distances; empty unless `layers.join=scaled`, and before `fit`.

    Raises:
        InputError: The settings need a single memory.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        assert isinstance(parts.method, PatchCoreConfig)
        if parts.scoring.reweight:
            raise InputError(
                f"scoring.reweight={parts.scoring.reweight} needs a single memory bank: set it to "
                "0, or layers.join=concat"
            )
        network = self.backbone
        banks = [Bank(parts, network, number) for number in range(len(parts.layers.names))]
        self.banks: Sequence[Bank] = nn.ModuleList(banks)  # type: ignore[assignment]
        self.scaled = parts.layers.join is Join.scaled
        self.threshold = parts.method.foreground
        self.one_size = parts.method.radius is not None
        self.scales: list[Scale] = []

    def settings(self) -> dict[str, Any]:
        """See `Stateful.settings`."""
        own = {"layers.join": self.parts.layers.join.value, "method.foreground": self.threshold}
        return {**super().settings(), **own}

    def remembered(self) -> dict[str, Any]:
        """See `Stateful.remembered`."""
        return {"scales": [astuple(scale) for scale in self.scales]}

    def remember(self, values: dict[str, Any]) -> None:
        """See `Stateful.remember`."""
        self.scales = [Scale(*scale) for scale in values["scales"]]

    @torch.inference_mode()
    def features(self, maps: Sequence[Tensor]) -> list[Any] | Streamed:
        """Patch features [(B, h, w, D), …] of the layers' maps [(B, C, h, w), …]."""
        if isinstance(maps, TiledMaps) and self.banks[0].method.local:
            return maps.streamed(self._plain)
        features = self._plain(maps)
        if self.threshold is None:
            return self._described(features, maps)
        counted = counted_layers(features, objects(self._joined(features), self.threshold))
        return self._described(counted, maps)

    @torch.inference_mode()
    def counted(self, maps: Sequence[Tensor], inside: Tensor) -> list[Any]:
        """See `Detector.counted`; positions of the finest layer decide."""
        features = self._plain(maps)
        counts = cells(inside, (features[0].shape[1], features[0].shape[2]))
        if self.threshold is not None:
            counts = objects(self._joined(features), self.threshold, counts)
        return self._described(counted_layers(features, counts), maps)

    def _described(self, features: Sequence[Any], maps: Sequence[Tensor]) -> list[Any]:
        """Features of the layers, each with the class token, if it is used."""
        each = zip(self.banks, features, strict=True)
        return [described(x, maps, bank.parts.layers.token) for bank, x in each]

    def _plain(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Patch features [(B, h, w, D), …] of the layers' maps."""
        if isinstance(maps, TiledMaps):
            found: list[Tensor] = maps.streamed(self._plain).whole()
            return found
        return [bank.plain([x]) for bank, x in zip(self.banks, maps, strict=False)]  # token last

    def _joined(self, features: Sequence[Tensor]) -> Tensor:
        """Features (B, h, w, ΣD) of all layers on the finest one's grid."""
        grid = (features[0].shape[1], features[0].shape[2])
        return torch.cat([interpolated(x, grid) for x in features], -1)

    def buffer(self, images: int = 0) -> "BanksBuffer":
        """See `Detector.buffer`."""
        return BanksBuffer([bank.buffer(images) for bank in self.banks])

    def build_from(self, buffer: "BanksBuffer", fitting: Fitting | None = None) -> None:
        """See `Detector.build_from`."""
        fitting, scales = fitting or Fitting(), []
        for bank, own in zip(self.banks, buffer.parts, strict=True):
            scale = ScaleConfig() if self.scaled else None
            part = replace(fitting, scale=scale, measured=None, seconds={}, costs={})
            bank.build_from(own, part)
            for stage, seconds in part.seconds.items():
                fitting.seconds[stage] = fitting.seconds.get(stage, 0.0) + seconds
            for stage, seconds in part.costs.items():
                fitting.costs[stage] = fitting.costs.get(stage, 0.0) + seconds
            if part.measured is not None:
                scales.append(part.measured)
        self.scales = scales

    @torch.inference_mode()
    def score(
        self, features: Sequence[Tensor | Counted | Described] | Streamed, size: tuple[int, int]
    ) -> Prediction:
        """Score the `features` of images of `size` (H, W)."""
        if isinstance(features, Streamed):
            bands = [
                [bank.score(x, ONE) for bank, x in zip(self.banks, each, strict=True)]
                for each in features
            ]
            return self._combined(
                [predicted(own, ONE, self.scoring) for own in zip(*bands, strict=True)], size
            )
        found = [bank.score(x, ONE) for bank, x in zip(self.banks, features, strict=True)]
        return self._combined(found, size)

    def _combined(self, found: Sequence[Prediction], size: tuple[int, int]) -> Prediction:
        """Return scores and maps from those of the banks."""
        grids = [each.patch_score for each in found]
        if self.scales:
            grids = [scale.maps(x) for scale, x in zip(self.scales, grids, strict=True)]
        fine, *deeper = grids
        height, width = fine.shape[1:]
        with torch.autocast(fine.device.type, enabled=False):
            grid = torch.stack([fine, *(anomaly_maps(x, (height, width), 0) for x in deeper)])
            grid = grid.mean(0)  # (B, h, w); NaN where the finest layer's patch does not count
            share = self.scoring.top_share
            if traced() or not bool(grid.isnan().any()):
                score = highest(grid.flatten(1), share)[0].mean(1)
            else:
                each = [x[~x.isnan()][None] for x in grid]
                score = torch.cat([highest(x, share)[0].mean(1) for x in each])
            maps = anomaly_maps(grid, size, self.scoring.sigma)
            if self.scoring.pool is Pool.pixels:
                score = pixel_scores(maps, grid, self.scoring)
        return Prediction(score, maps, grid, found[0].nearest)

    @torch.inference_mode()
    def extend(
        self,
        batches: Sequence[Sequence[Tensor | Counted | Described]],
        sizes: Sequence[tuple[int, int]],
        images: Sequence[int],
        count: int | None = None,
    ) -> list[Prediction]:
        """See `Detector.extend`; scales stay those of the fit."""
        if count is not None:
            raise InputError("count: with layers.join every layer has its own share: leave it out")
        each = [
            bank.extend([batch[i] for batch in batches], [ONE] * len(batches), images)
            for i, bank in enumerate(self.banks)
        ]
        return [
            self._combined(found, size)
            for found, size in zip(zip(*each, strict=True), sizes, strict=True)
        ]

    def forget(self, images: Collection[int]) -> None:
        """See `Detector.forget`."""
        for bank in self.banks:
            bank.forget(images)

    @property
    def untraceable(self) -> str:
        """See `Detector.untraceable`."""
        return self.banks[0].untraceable

    @property
    def images_had(self) -> int:
        """See `Detector.images_had`."""
        return max(bank.images_had for bank in self.banks)

    def origins(self, rows: Tensor) -> Tensor:
        """See `Detector.origins`; known of the finest layer's rows, which predictions name."""
        own = rows < len(self.banks[0].memory)
        return self.banks[0].origins(torch.where(own, rows, UNKNOWN))

    @property
    def memories(self) -> dict[str, Tensor]:
        """See `Method.memories`; their names begin with the banks' numbers."""
        return {
            f"{number}.{name}": memory
            for number, bank in enumerate(self.banks)
            for name, memory in bank.memories.items()
        }

    @property
    def memory_patches(self) -> int:
        """Sum of the banks'."""
        return sum(bank.memory_patches for bank in self.banks)


class BanksBuffer:
    """Features of several layers, each in a buffer of its own.

    Attributes:
        parts: Buffers of the layers.
    """

    def __init__(self, parts: Sequence[FeatureBuffer]) -> None:
        self.parts = parts

    def append(self, features: Sequence[Tensor | Counted | Described] | Streamed) -> None:
        """Add the features of a batch."""
        if isinstance(features, Streamed):
            for image in features.each():
                for band, share in image.shares():
                    for part, x in zip(self.parts, band, strict=True):
                        part.append_band(x, share)
            return
        for part, x in zip(self.parts, features, strict=True):
            part.append(x)


def counted_layers(features: Sequence[Tensor], fine: Tensor) -> list[Counted]:
    """Features of several layers, with the positions that count, by those of the finest layer.

    Args:
        features: [(B, h, w, D), …], the finest first.
        fine: (B, h, w) bool, positions of the finest layer that count.
    """
    found = []
    for x in features:
        counts = fine
        if x.shape[1:3] != fine.shape[1:]:
            most = F.adaptive_max_pool2d(fine[:, None].float(), (x.shape[1], x.shape[2]))
            counts = most[:, 0] > 0
        found.append(Counted(x, counts))
    return found
