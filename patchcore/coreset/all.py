"""Sampler that keeps every patch."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from patchcore.coreset.order import Order
from patchcore.coreset.sampler import Coreset, CoresetConfig
from patchcore.coreset.shards import Shard
from patchcore.errors import InputError, counted


@dataclass
class AllConfig(CoresetConfig):
    """Keep every patch."""

    shared: ClassVar[bool] = True

    def sample(
        self,
        features: Float[Tensor, "patches channels"],
        device: torch.device,
        order: Order | None = None,
        progress: bool = False,
    ) -> Coreset:
        return Coreset(features, torch.arange(len(features)))

    def sample_shared(
        self,
        features: Float[Tensor, "patches channels"],
        shard: Shard,
        device: torch.device,
        progress: bool = False,
    ) -> Coreset:
        indices = torch.arange(shard.total)
        return Coreset(shard.fetch(features, indices, device), indices)

    def extend(
        self,
        features: Float[Tensor, "patches channels"],
        covered: Float[Tensor, " patches"],
        count: int,
        device: torch.device,
    ) -> Int64[Tensor, " kept"]:
        if count != len(features):
            raise InputError(
                f"count: coreset=all keeps all {counted(len(features), 'patch')}, got {count}: "
                "leave it out"
            )
        return torch.arange(len(features))
