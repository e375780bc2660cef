"""Choice of the patches that the memory keeps: all, a random share, a greedy coreset, or proxies.

`SAMPLERS` names the samplers and `subsample` runs any of them. A new sampler is one file here, with
a dataclass of settings and its `sample`, and one line in `SAMPLERS`. The default is the greedy
coreset of the paper; `order.py` explains how it is found at the speed of matrix products.
"""

from patchcore.coreset.all import AllConfig
from patchcore.coreset.approximate import ApproximateConfig
from patchcore.coreset.greedy import GreedyConfig, Projection, project
from patchcore.coreset.learned import LearnedConfig, reconstruction_loss
from patchcore.coreset.order import Order, Start, greedy_order
from patchcore.coreset.random import RandomConfig
from patchcore.coreset.sampler import Coreset, CoresetConfig, SizedConfig, subsample
from patchcore.coreset.shards import Shard

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
    "Shard",
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
"""Settings class of every sampler, by the name that `coreset=…` takes."""
