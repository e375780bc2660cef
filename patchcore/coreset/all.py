"""Sampler that keeps every patch."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from patchcore.coreset.order import Order
from patchcore.coreset.sampler import Coreset, CoresetConfig


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
