"""Base of the samplers: the settings that they share, and the memory that each returns."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from patchcore.coreset.order import Order
from patchcore.errors import InputError
from patchcore.settings import check_ranges, setting


@dataclass
class Coreset:
    """The memory's patches and where they came from."""

    memory: Float[Tensor, "kept channels"]  # dtype and device of the features
    indices: Int64[Tensor, " kept"] | None  # rows of the features, on the CPU; None: made, not kept
    order: Order | None = None  # if the sampler is `ordered`; may be longer than the memory
    losses: Float32[Tensor, " steps"] | None = None  # of a sampler that trains


@dataclass
class CoresetConfig:
    """Settings of a sampler; each has its own file, and its line in `coreset.SAMPLERS`."""

    nested: ClassVar[bool] = False
    """True if the memory of every ratio begins with those of the smaller ratios."""
    ordered: ClassVar[bool] = False
    """True if a `Coreset.order` is made, which is worth storing and can be continued."""

    def __post_init__(self) -> None:
        check_ranges(self, "coreset")

    def sample(
        self,
        features: Float[Tensor, "patches channels"],
        device: torch.device,
        order: Order | None = None,
        progress: bool = False,
    ) -> Coreset:
        """Return the memory of these features; `coreset.subsample` describes the arguments."""
        raise TypeError(f"no sampler for {type(self).__name__}")


@dataclass
class SizedConfig(CoresetConfig):
    """Base of the samplers that keep a share of the patches."""

    ratio: float = setting(
        0.1,
        "share of the patches kept",
        above=0,
        high=1,
        effect=lambda sampler: sampler["count"] is None and sampler.get("radius") is None,
    )
    count: int | None = setting(
        None, "patches kept; overrides ratio unless null", unit="patches", low=1
    )
    seed: int = setting(0, "seed of everything random")

    def size(self, patches: int) -> int:
        """Number of patches kept out of `patches`. Raises InputError if `count` is more."""
        if self.count is None:
            return max(1, int(patches * self.ratio))
        if self.count > patches:
            raise InputError(
                f"coreset.count must be at most the {patches} patches, got {self.count}"
            )
        return self.count
