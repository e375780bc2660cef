"""Sampler that keeps every patch."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from patchcore.coreset.order import Order
from patchcore.coreset.sampler import Coreset, CoresetConfig
from patchcore.errors import InputError


@dataclass
class AllConfig(CoresetConfig):
    """Keep every patch."""

    def sample(
        self,
        features: Float[Tensor, "patches channels"],
        device: torch.device,
        order: Order | None = None,
        progress: bool = False,
    ) -> Coreset:
        return Coreset(features, torch.arange(len(features)))

    def extend(
        self,
        features: Float[Tensor, "patches channels"],
        covered: Float[Tensor, " patches"],
        count: int,
        device: torch.device,
    ) -> Int64[Tensor, " kept"]:
        if count != len(features):
            raise InputError(
                f"count: coreset=all keeps all of the {len(features)} patches, got {count}: leave "
                "it out"
            )
        return torch.arange(len(features))
