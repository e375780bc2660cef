"""Sampler that keeps a random share of the patches."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from patchcore.coreset.order import Order
from patchcore.coreset.sampler import Coreset, SizedConfig
from patchcore.coreset.shards import Shard
from patchcore.coreset.space import draw, take


@dataclass
class RandomConfig(SizedConfig):
    """Keep a seeded random share."""

    nested: ClassVar[bool] = True
    shared: ClassVar[bool] = True

    def sample(
        self,
        features: Float[Tensor, "patches channels"],
        device: torch.device,
        order: Order | None = None,
        progress: bool = False,
    ) -> Coreset:
        indices = draw(len(features), self.size(len(features)), self.seed)
        return Coreset(take(features, indices), indices)

    def sample_shared(
        self,
        features: Float[Tensor, "patches channels"],
        shard: Shard,
        device: torch.device,
        progress: bool = False,
    ) -> Coreset:
        indices = draw(shard.total, self.size(shard.total), self.seed)
        return Coreset(shard.fetch(features, indices, device), indices)

    def extend(
        self,
        features: Float[Tensor, "patches channels"],
        covered: Float[Tensor, " patches"],
        count: int,
        device: torch.device,
    ) -> Int64[Tensor, " kept"]:
        return draw(len(features), count, self.seed)
