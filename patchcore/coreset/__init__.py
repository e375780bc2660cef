"""Choice of the patches that the memory keeps: all, a random share, a greedy coreset, or proxies.

`SAMPLERS` names the samplers and `subsample` runs any of them. A new sampler is one file here, with
a dataclass of settings and its `sample`, and one line in `SAMPLERS`. The default is the greedy
coreset of the paper; `order.py` explains how it is found at the speed of matrix products.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from patchcore.coreset.all import AllConfig
from patchcore.coreset.approximate import ApproximateConfig
from patchcore.coreset.greedy import GreedyConfig, Projection, project
from patchcore.coreset.learned import LearnedConfig, reconstruction_loss
from patchcore.coreset.order import Order, Start, greedy_order
from patchcore.coreset.random import RandomConfig
from patchcore.coreset.sampler import Coreset, CoresetConfig, SizedConfig
from patchcore.errors import InputError

__all__ = [
    "SAMPLERS",
    "AllConfig",
    "ApproximateConfig",
    "Coreset",
    "CoresetConfig",
    "GreedyConfig",
    "LearnedConfig",
    "Order",
    "Projection",
    "RandomConfig",
    "SizedConfig",
    "Start",
    "greedy_order",
    "project",
    "reconstruction_loss",
    "subsample",
]

SAMPLERS: dict[str, type[CoresetConfig]] = {
    "all": AllConfig,
    "approximate": ApproximateConfig,
    "greedy": GreedyConfig,
    "learned": LearnedConfig,
    "random": RandomConfig,
}
"""Settings of every sampler by its name, which is that of `coreset=…`."""


def subsample(
    features: Float[Tensor, "patches channels"],
    config: CoresetConfig,
    *,
    device: torch.device | str | None = None,
    order: Order | None = None,
    progress: bool = False,
) -> Coreset:
    """Reduce patch features to the memory that `config` asks for.

    Args:
        features: float32, float16 or bfloat16, on any device or memory-mapped.
        config: Settings of one of the `SAMPLERS`.
        device: Where the work is done, in chunks if they do not fit there; by default where the
            features are.
        order: Stored order of the same features and settings, used as it is or continued.
        progress: Whether to show a progress bar.

    Raises:
        InputError: Features are empty or not finite, or settings do not fit them.
    """
    if features.ndim != 2 or len(features) == 0:
        raise InputError(f"features must be (N, D) with N > 0, got {tuple(features.shape)}")
    device = torch.device(device) if device is not None else features.device
    return config.sample(features, device, order, progress)
