"""Base of the samplers: their common settings, the memory that each returns, and the call."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from patchcore.coreset.order import Order
from patchcore.coreset.shards import Shard
from patchcore.errors import InputError, counted
from patchcore.settings import Settings, effective, setting


@dataclass
class Coreset:
    """The memory's patches and where they came from."""

    memory: Float[Tensor, "kept channels"]  # dtype and device of the features
    indices: Int64[Tensor, " kept"] | None  # rows of the features, on the CPU; None: made, not kept
    order: Order | None = None  # if the sampler is `ordered`; may be longer than the memory
    losses: Float32[Tensor, " steps"] | None = None  # of a sampler that trains
    spent: float = 0.0  # wall time in seconds that went into `order` now
    whole: float | None = 0.0  # that an order of this length takes if none is given; None: unknown


@dataclass
class CoresetConfig(Settings):
    """Settings of a sampler; each has its own file, and its line in `coreset.SAMPLERS`."""

    GROUP: ClassVar[str] = "coreset"

    nested: ClassVar[bool] = False
    """True if the memory of every ratio begins with those of the smaller ratios."""
    ordered: ClassVar[bool] = False
    """True if a `Coreset.order` is made, which is worth storing and can be continued."""
    shared: ClassVar[bool] = False
    """True if several processes can make one memory, each from its own features."""

    def unsized(self) -> dict[str, Any]:
        """Return the sampler and its settings with an effect, except those of the memory's size.

        With equal ones, a smaller selection from the same patches begins a larger one where the
        sampler is `nested`.
        """
        size = dict.fromkeys(("ratio", "count", "radius"))
        return {"sampler": type(self).__name__, **effective(self), **size}

    def sample(
        self,
        features: Float[Tensor, "patches channels"],
        device: torch.device,
        order: Order | None = None,
        progress: bool = False,
    ) -> Coreset:
        """Return the memory of these features; `coreset.subsample` describes the arguments."""
        raise TypeError(f"no sampler for {type(self).__name__}")

    def sample_shared(
        self,
        features: Float[Tensor, "patches channels"],
        shard: Shard,
        device: torch.device,
        progress: bool = False,
    ) -> Coreset:
        """Return the memory of the features of all processes, the same in each, on `device`.

        All call this together, each with the `features` that its `shard` names. It is the memory
        that `sample` makes of all features, up to rounding.
        """
        raise TypeError(f"{type(self).__name__} is not shared")

    def extend(
        self,
        features: Float[Tensor, "patches channels"],
        covered: Float[Tensor, " patches"],
        count: int,
        device: torch.device,
    ) -> Int64[Tensor, " kept"]:
        """Return the numbers of `count` new features that are added to a memory, on the CPU.

        Args:
            features: Of further nominal images, as the memory is searched.
            covered: Their squared distances to the memory.
            count: Number of features to add.
            device: Where the work is done.

        Raises:
            InputError: The sampler makes its memory as a whole.
        """
        raise InputError(
            "coreset: this sampler makes the memory bank as a whole, so it cannot be extended: "
            "fit again with all images"
        )


@dataclass
class SizedConfig(CoresetConfig):
    """Base of the samplers that keep a share of the patches."""

    ratio: float = setting(
        0.1,
        "share of the patches that are kept",
        above=0,
        high=1,
        effect=lambda sampler: sampler["count"] is None and sampler.get("radius") is None,
        idle="with coreset.count or coreset.radius, which override it",
    )
    count: int | None = setting(
        None, "number of patches that are kept; overrides ratio unless null", unit="patches", low=1
    )
    seed: int = setting(0, "seed for everything random")

    def size(self, patches: int) -> int:
        """Number of patches kept out of `patches`. Raises InputError if `count` is more."""
        if self.count is None:
            return max(1, int(patches * self.ratio))
        if self.count > patches:
            raise InputError(
                f"coreset.count must be at most the {counted(patches, 'patch')}, got {self.count}"
            )
        return self.count


def subsample(
    features: Float[Tensor, "patches channels"],
    config: CoresetConfig,
    *,
    device: torch.device | str | None = None,
    order: Order | None = None,
    progress: bool = False,
    shard: Shard | None = None,
) -> Coreset:
    """Reduce patch features to the memory that `config` asks for.

    Args:
        features: float32, float16 or bfloat16, on any device or memory-mapped.
        config: Settings of one of the `SAMPLERS`.
        device: Where the work is done, in chunks if they do not fit there; by default where the
            features are.
        order: Stored order of the same features and settings, used as it is or continued.
        progress: Whether to show a progress bar.
        shard: Position of these features among those of several processes; None: these are all.

    Raises:
        InputError: Features are empty or not finite, or settings do not fit them.
    """
    if features.ndim != 2 or len(features) == 0:
        raise InputError(f"features must be (N, D) with N > 0, got {tuple(features.shape)}")
    device = torch.device(device) if device is not None else features.device
    if shard is not None:
        return config.sample_shared(features, shard, device, progress)
    return config.sample(features, device, order, progress)
