"""Greedy k-centre coreset (Algorithm 1): the order in `order.py`, of projected features."""

import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from patchcore._precision import full_precision
from patchcore.coreset.order import Order, Start, greedy_order
from patchcore.coreset.sampler import Coreset, SizedConfig
from patchcore.coreset.shards import Shard
from patchcore.coreset.space import chunk_size, free_memory, slices, summed, take
from patchcore.errors import InputError
from patchcore.settings import Choice, setting

_PROJECTED = 2**15  # rows in one product of the projection on CUDA, padded by zeros if need be


class Projection(Choice):
    """Seeded random map to fewer dimensions that nearly preserves distances."""

    auto = (
        "auto"  # gaussian where it shrinks features more than fourfold, else none: little to gain
    )
    none = "none"
    gaussian = "gaussian"
    sparse = "sparse"  # one entry in sqrt(D) is not zero (Li, Hastie, Church 2006)


@dataclass
class GreedyConfig(SizedConfig):
    """Keep the greedy k-centre coreset."""

    nested: ClassVar[bool] = True
    ordered: ClassVar[bool] = True
    shared: ClassVar[bool] = True

    seed: int = setting(
        0,
        "seed for the projection and the start",
        effect=lambda greedy: _projects(greedy) or greedy["start"] is not Start.mean,
        idle="with coreset.projection=none and coreset.start=mean",
    )
    radius: float | None = setting(
        None,
        "keep as many patches as needed to have every patch within this distance of a kept one; "
        "overrides ratio unless null, and count limits their number",
        unit="distance between projected features",
        above=0,
    )
    projection: Projection = setting(
        Projection.auto, "auto, none, gaussian or sparse; auto projects only wide features"
    )
    dimension: int | None = setting(
        128,
        "dimensions that features are projected to; null: as many as distortion needs",
        low=1,
        effect=lambda greedy: _projects(greedy),
        idle="with coreset.projection=none",
    )
    distortion: float = setting(
        0.9,
        "largest relative error that the projection may cause in squared distances",
        above=0,
        below=1,
        effect=lambda greedy: _projects(greedy) and greedy["dimension"] is None,
        idle="unless a projection has coreset.dimension=null",
    )
    start: Start = setting(
        Start.random,
        "first pick: random, mean (the patch farthest from the mean) or anchors (see "
        "coreset.anchors)",
    )
    anchors: int = setting(
        10,
        "with start=anchors: number of random patches; the order starts from the mean distance to "
        "them",
        unit="patches",
        low=1,
        effect=lambda greedy: greedy["start"] is Start.anchors,
        idle="without coreset.start=anchors",
    )
    pool: int | None = setting(
        None,
        "number of candidates per round; null: from the number of patches",
        unit="patches",
        low=1,
        effect=False,
    )
    chunk: int | None = setting(
        None,
        "number of patches in one matrix product; null: from the free memory",
        unit="patches",
        low=1,
        effect=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.radius is not None and self.start is Start.anchors:
            raise InputError(
                "coreset.radius needs coreset.start=random or mean (anchors cover no patches), "
                f"got {self.radius}"
            )

    def sample(
        self,
        features: Float[Tensor, "patches channels"],
        device: torch.device,
        order: Order | None = None,
        progress: bool = False,
    ) -> Coreset:
        return self._sample(features, device, order, progress)

    def sample_shared(
        self,
        features: Float[Tensor, "patches channels"],
        shard: Shard,
        device: torch.device,
        progress: bool = False,
    ) -> Coreset:
        return self._sample(features, device, None, progress, shard)

    def _sample(
        self,
        features: Float[Tensor, "patches channels"],
        device: torch.device,
        order: Order | None,
        progress: bool,
        shard: Shard | None = None,
    ) -> Coreset:
        n = len(features) if shard is None else shard.total
        size = self.size(n) if self.radius is None or self.count else n
        start = time.perf_counter()
        if order is None or not order.reaches(size, self.radius):
            order = greedy_order(
                project(features, self, device=device, shard=shard),
                size,
                radius=self.radius,
                start=self.start,
                anchors=self.anchors,
                seed=self.seed,
                pool=self.pool,
                chunk=self.chunk,
                device=device,
                order=order,
                progress=progress,
                shard=shard,
                since=start,
            )
        spent = time.perf_counter() - start
        if self.radius is not None:
            covering = order.size(self.radius)
            if self.count is not None and (covering is None or covering > size):
                warnings.warn(
                    f"coreset.count={self.count} ends the coreset before it covers all patches "
                    f"within coreset.radius={self.radius}, so the radius has no effect: leave one "
                    "out, or raise coreset.count",
                    stacklevel=4,
                )
            size = min(size, covering or size)
        indices = order.indices[:size]
        memory = (
            take(features, indices) if shard is None else shard.fetch(features, indices, device)
        )
        whole = None if order.seconds is None else float(order.seconds[size - 1])
        return Coreset(memory, indices, order, spent=spent, whole=whole)

    def extend(
        self,
        features: Float[Tensor, "patches channels"],
        covered: Float[Tensor, " patches"],
        count: int,
        device: torch.device,
    ) -> Int64[Tensor, " kept"]:
        # Not projected: the memory is at hand as it is searched, and picks are few beside it.
        order = greedy_order(
            features, count, covered=covered, pool=self.pool, chunk=self.chunk, device=device
        )
        return order.indices[:count]


def project(
    features: Float[Tensor, "patches channels"],
    config: GreedyConfig,
    *,
    device: torch.device | str | None = None,
    shard: Shard | None = None,
) -> Float[Tensor, "patches dimensions"]:
    """Random projection of features to fewer dimensions, float32, centred; or the features
    unchanged.

    The map is drawn on the CPU from `config.seed`, so it is the same everywhere. With
    `dimension=None`, d = 4 ln N / (e^2/2 - e^3/3) keeps all squared distances within a share e =
    `distortion` with fair probability (Dasgupta, Gupta 2003). With a `shard`, N and the centre are
    those of the features of all processes, which call this together.
    """
    n, full = features.shape
    total = n if shard is None else shard.total
    if config.dimension is not None:
        small = config.dimension
    else:
        e = config.distortion
        small = math.ceil(4 * math.log(max(total, 2)) / (e**2 / 2 - e**3 / 3))
    too_narrow = small >= full or (config.projection is Projection.auto and full <= 4 * small)
    if config.projection is Projection.none or too_narrow:
        return features
    generator = torch.Generator().manual_seed(config.seed)
    device = torch.device(device) if device is not None else features.device
    shape, real = (full, small), torch.float32  # whatever the default is
    matrix = torch.randn(shape, generator=generator, dtype=real).to(device)  # (D, d)
    if config.projection is Projection.sparse:
        share = full**-0.5
        kept = torch.rand(shape, generator=generator, dtype=real).to(device) < share
        matrix = matrix.sign() * kept / share**0.5
    matrix /= small**0.5
    with full_precision(device):
        fits = 4 * n * small <= free_memory(device) // 2
        points = torch.empty(n, small, device=device if fits else "cpu", dtype=real)
        chunk = config.chunk or chunk_size(device, full)
        if device.type == "cuda":
            chunk = min(chunk, _PROJECTED)
        for rows in slices(n, chunk):
            x = features[rows].to(device, torch.float32)
            # On CUDA products of one shape round alike, however many processes share them.
            x = F.pad(x, (0, 0, 0, chunk - len(x))) if x.is_cuda else x
            points[rows] = (x @ matrix)[: len(points[rows])]
        mean = (summed(points) / n).float() if shard is None else shard.mean(points)
        return points.sub_(mean)


def _projects(settings: Mapping[str, Any]) -> bool:
    """Whether the settings may ask for a projection."""
    return settings["projection"] is not Projection.none
