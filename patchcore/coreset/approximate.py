"""Sampler of the reference implementation: a greedy order of projected features, from anchors."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from patchcore.coreset.greedy import GreedyConfig, Projection
from patchcore.coreset.order import Order, Start
from patchcore.coreset.sampler import Coreset, SizedConfig
from patchcore.coreset.shards import Shard
from patchcore.settings import setting


@dataclass
class ApproximateConfig(SizedConfig):
    """The reference's sampler: a projection, and a greedy order that starts from anchors."""

    nested: ClassVar[bool] = True
    ordered: ClassVar[bool] = True
    shared: ClassVar[bool] = True

    dimension: int = setting(128, "dimensions that features are projected to", low=1)
    anchors: int = setting(
        10, "random patches whose mean distance starts the order", unit="patches", low=1
    )

    def sample(
        self,
        features: Float[Tensor, "patches channels"],
        device: torch.device,
        order: Order | None = None,
        progress: bool = False,
    ) -> Coreset:
        return self._greedy().sample(features, device, order, progress)

    def sample_shared(
        self,
        features: Float[Tensor, "patches channels"],
        shard: Shard,
        device: torch.device,
        progress: bool = False,
    ) -> Coreset:
        return self._greedy().sample_shared(features, shard, device, progress)

    def extend(
        self,
        features: Float[Tensor, "patches channels"],
        covered: Float[Tensor, " patches"],
        count: int,
        device: torch.device,
    ) -> Int64[Tensor, " kept"]:
        return self._greedy().extend(features, covered, count, device)

    def _greedy(self) -> GreedyConfig:
        return GreedyConfig(
            ratio=self.ratio,
            count=self.count,
            seed=self.seed,
            projection=Projection.gaussian,
            dimension=self.dimension,
            start=Start.anchors,
            anchors=self.anchors,
        )
