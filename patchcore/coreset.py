"""Which patches the memory keeps: all, a random share, learned proxies, or a greedy coreset.

Greedy k-centre adds, again and again, the patch that is farthest from those already chosen, so that
the covering radius (the largest distance from a patch to its nearest chosen one) falls as it goes.
Taken literally, each pick costs a pass over all N patches: little arithmetic, much memory traffic.
The same picks can be made in batches, because of one fact:

    a patch's distance to the chosen set can only fall when something is added to the set.

One round, with K about a thousand:

1. Pool. Take the K patches farthest from the chosen set, and call T the smallest distance among
   them. Every patch outside the pool is at T or nearer, and will stay so.
2. Inner greedy. Measure the K x K distances within the pool. Pick its farthest patch, lower the
   pool's distances accordingly, and repeat for as long as the farthest is beyond T. The plain
   greedy would make each of these picks: within the pool all distances are up to date, and nothing
   outside can be beyond T. (A round's first pick is safe even at T: it is the farthest of all.)
3. Update. Measure all N patches against the round's m picks, by one N x m matrix product since
   |x - y|^2 = |x|^2 + |y|^2 - 2 x.y. Now every distance is up to date, and the next round begins.

So the picks are the same; the N x M distances that the plain greedy computes pick by pick are
computed in a few large products instead. Time grows as N * M * d.

The result is an order: its first M entries are the coreset of size M, whatever M, and the distance
at which a patch is picked is the covering radius just before. Equal distances go to the lowest
index. Only rounding can exchange two picks: `greedy_order` says when.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from patchcore.errors import InputError
from patchcore.settings import setting

# Squared distances below these shares of the largest squared norm are not told apart: under the
# first, float32 gives way to float64; under the second, two patches count as equal.
_BLUR = {torch.float32: 2.0**-5, torch.float64: 2.0**-42}
_INFINITE = np.full(1, np.inf, np.float32)
_NOT_FINITE = "features hold NaN or infinite values: check images and backbone"


class Projection(Enum):
    """Seeded random map to fewer dimensions that nearly keeps distances."""

    auto = (
        "auto"  # gaussian where it shrinks features more than fourfold, else none: little to gain
    )
    none = "none"
    gaussian = "gaussian"
    sparse = "sparse"  # one entry in sqrt(D) is not zero (Li, Hastie, Church 2006)


class Start(Enum):
    """Where the greedy order begins."""

    random = "random"  # a seeded random patch
    mean = "mean"  # the patch farthest from the mean
    anchors = "anchors"  # mean distance to random patches that are not kept, as in the reference


@dataclass
class CoresetConfig:
    """What all samplers share: nothing but their type."""


@dataclass
class AllConfig(CoresetConfig):
    """Keep every patch."""


@dataclass
class SizedConfig(CoresetConfig):
    """Base of the samplers that keep a share of the patches."""

    # share of the patches kept, in (0, 1]
    ratio: float = setting(
        0.1, effect=lambda sampler: sampler["count"] is None and sampler.get("radius") is None
    )
    count: int | None = None  # patches kept; overrides ratio
    seed: int = setting(0, effect=lambda sampler: _draws(sampler))

    def __post_init__(self) -> None:
        _require(0 < self.ratio <= 1, "ratio", "must be in (0, 1]", self.ratio)
        _require(self.count is None or self.count >= 1, "count", "must be at least 1", self.count)

    def size(self, patches: int) -> int:
        """Number of patches kept out of `patches`. Raises InputError if `count` is more."""
        if self.count is None:
            return max(1, int(patches * self.ratio))
        _require(
            self.count <= patches, "count", f"must be at most the {patches} patches", self.count
        )
        return self.count


@dataclass
class RandomConfig(SizedConfig):
    """Keep a seeded random share."""


@dataclass
class GreedyConfig(SizedConfig):
    """Keep the greedy k-centre coreset."""

    radius: float | None = None  # as many patches as this covering radius needs; overrides ratio
    projection: Projection = Projection.auto
    # of the projection; null: from distortion
    dimension: int | None = setting(128, effect=lambda sampler: _projects(sampler))
    # relative error of squared distances, in (0, 1)
    distortion: float = setting(
        0.9, effect=lambda sampler: _projects(sampler) and sampler["dimension"] is None
    )
    start: Start = Start.random
    # patches behind start=anchors
    anchors: int = setting(10, effect=lambda sampler: sampler["start"] is Start.anchors)
    # candidates a round; null: by the number of patches
    pool: int | None = setting(None, effect=False)
    # patches in one product; null: by the free memory
    chunk: int | None = setting(None, effect=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("dimension", "anchors", "pool", "chunk"):
            value = getattr(self, key)
            _require(value is None or value >= 1, key, "must be at least 1", value)
        _require(0 < self.distortion < 1, "distortion", "must be in (0, 1)", self.distortion)
        _require(self.radius is None or self.radius > 0, "radius", "must be above 0", self.radius)
        _require(
            self.radius is None or self.start is not Start.anchors,
            "radius",
            "needs coreset.start=random or mean (anchors are not patches that cover)",
            self.radius,
        )


@dataclass
class ApproximateConfig(SizedConfig):
    """The reference's sampler: a projection, and a greedy order that starts from anchors."""

    dimension: int = 128
    anchors: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.dimension >= 1, "dimension", "must be at least 1", self.dimension)
        _require(self.anchors >= 1, "anchors", "must be at least 1", self.anchors)


@dataclass
class LearnedConfig(SizedConfig):
    """Learn proxies that reconstruct the patches (Eq. 8), trained by Adam."""

    steps: int = 1000
    batch: int = 1024  # patches a step
    learning_rate: float = 0.01  # in standard deviations of the features
    # Of the weights, in mean distances from a patch to its nearest proxy at the start;
    # null: 1 in the features' own unit, as the paper prints it.
    temperature: float | None = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.steps >= 1, "steps", "must be at least 1", self.steps)
        _require(self.batch >= 1, "batch", "must be at least 1", self.batch)
        _require(self.learning_rate > 0, "learning_rate", "must be above 0", self.learning_rate)
        heat = self.temperature
        _require(heat is None or heat > 0, "temperature", "must be above 0, or null", heat)


@dataclass
class Order:
    """A greedy order of M out of N patches, on the CPU; every prefix is the coreset of its size.

    It ends with a whole round, so M may exceed what was asked for, and it can be continued.
    """

    indices: Tensor  # (M,) int64, in the order of picking
    radii: Tensor  # (M,) float32: covering radius after each pick, never rising
    remaining: Tensor  # (N,) squared distance to the nearest of the M; float64 once that is needed

    def __len__(self) -> int:
        return len(self.indices)

    def size(self, radius: float) -> int | None:
        """The least number of picks that covers within `radius`, or None if the order ends first.

        >>> Order(torch.arange(3), torch.tensor([2.0, 1.0, 0.5]), torch.zeros(3)).size(1.0)
        2
        """
        small = self.radii <= radius
        return int(small.int().argmax()) + 1 if bool(small.any()) else None


@dataclass
class Coreset:
    """The memory's patches and where they came from."""

    memory: Tensor  # (M, D), dtype and device of the features
    indices: Tensor | None  # (M,) int64 on the CPU; None for learned proxies
    order: Order | None = None  # greedy samplers only; may be longer than M
    losses: Tensor | None = None  # (steps,) float32: learned proxies only


def subsample(
    features: Tensor,
    config: CoresetConfig,
    *,
    device: torch.device | str | None = None,
    order: Order | None = None,
    progress: bool = False,
) -> Coreset:
    """Reduce patch features (N, D) to the memory (M, D) that `config` asks for.

    `features` are float32, float16 or bfloat16, on any device or memory-mapped; `device` is where
    the work is done (by default where they are), in chunks if they do not fit there. A stored
    `order` of the same features and settings is used as it is, or continued.
    Raises InputError for empty or non-finite features and for settings that do not fit them.
    """
    if features.ndim != 2 or len(features) == 0:
        raise InputError(f"features must be (N, D) with N > 0, got {tuple(features.shape)}")
    device = torch.device(device) if device is not None else features.device
    match config:
        case AllConfig():
            return Coreset(features, torch.arange(len(features)))
        case RandomConfig():
            indices = _draw(len(features), config.size(len(features)), config.seed)
            return Coreset(_take(features, indices), indices)
        case LearnedConfig():
            return _learn(features, config, device, progress)
        case ApproximateConfig():
            config = GreedyConfig(
                ratio=config.ratio,
                count=config.count,
                seed=config.seed,
                projection=Projection.gaussian,
                dimension=config.dimension,
                start=Start.anchors,
                anchors=config.anchors,
            )
    if not isinstance(config, GreedyConfig):
        raise TypeError(f"no sampler for {type(config).__name__}")

    n = len(features)
    size = config.size(n) if config.radius is None or config.count else n
    if order is None or not _reaches(order, size, config.radius):
        points = project(features, config, device=device)
        order = greedy_order(
            points,
            size,
            radius=config.radius,
            start=config.start,
            anchors=config.anchors,
            seed=config.seed,
            pool=config.pool,
            chunk=config.chunk,
            device=device,
            order=order,
            progress=progress,
        )
    if config.radius is not None:
        size = min(size, order.size(config.radius) or size)
    indices = order.indices[:size]
    return Coreset(_take(features, indices), indices, order)


def greedy_order(
    points: Tensor,
    count: int,
    *,
    radius: float | None = None,
    start: Start = Start.random,
    anchors: int = 10,
    seed: int = 0,
    pool: int | None = None,
    chunk: int | None = None,
    device: torch.device | str | None = None,
    order: Order | None = None,
    progress: bool = False,
) -> Order:
    """Exact greedy k-centre order of `points` (N, d), at least `count` long or covering `radius`.

    The module's docstring explains the scheme. `pool` and `chunk` change speed and memory, not the
    picks. A given `order` of the same points and settings is continued: on the same device the
    result is, bit for bit, that of a fresh run, for rounds depend on nothing but points and picks.

    What is exact: distances are those of the points as stored (float16 and bfloat16 are widened,
    never rounded again), centred, summed in float32 whatever the caller's precision settings (on
    CUDA each product is made of three in TF32, which is as exact here). Where two distances differ
    by less than that rounding, about 1e-7 of the largest squared norm, the picks may be exchanged.
    Once the covering radius falls below 1/6 of the largest norm, sums continue in float64; patches
    nearer to each other than 5e-7 of it count as equal and come last, by index, at radius 0.
    With `start=anchors` radii count the anchors' mean distance as if it covered.
    Raises InputError if a point is not finite.
    """
    n = len(points)
    if order is not None and len(order.remaining) != n:
        raise ValueError(f"order is of {len(order.remaining)} points, got {n}")
    if order is not None and _reaches(order, count, radius):
        return order
    pool = min(n, pool or _pool_size(n))
    end = -1.0 if radius is None else radius
    device = torch.empty(0, device=device or points.device).device  # "cuda" becomes "cuda:0"
    with (
        _full_precision(device),
        tqdm(total=count, unit="pick", desc="coreset", disable=not progress) as bar,
    ):

        def report(picked: int) -> None:
            bar.update(min(picked, count - bar.n))

        space = _Space(points, device, chunk, pool)
        anchored = _draw(n, anchors, seed) if start is Start.anchors else None
        if order is not None:
            picks = order.indices.to(device)
            heights = [_INFINITE, order.radii.numpy()[:-1]]
            best = order.remaining.to(device, copy=True)
            best[picks] = -1
        elif anchored is not None:
            picks, heights = torch.empty(0, dtype=torch.int64, device=device), []
            best = space.distances(picks, torch.float32, anchored)
        else:
            generator = torch.Generator().manual_seed(seed)
            any_point = torch.randint(n, (1,), generator=generator)
            picks = space.outermost() if start is Start.mean else any_point.to(device)
            heights = [_INFINITE]
            best = space.distances(picks, torch.float32)
        while True:
            report(len(picks) - bar.n)
            top = max(float(best.max()), 0.0)  # squared covering radius of the picks so far
            covering = np.array([top**0.5], np.float32)
            blur = _BLUR[best.dtype] * space.scale
            if top <= blur and best.dtype == torch.float32 and len(picks) < n:
                best = space.distances(picks, torch.float64, anchored)
                continue
            if len(picks) >= count or covering[0] <= end:
                break
            if top <= blur:  # what is left coincides with what was picked
                batch = (best >= 0).nonzero()[:, 0]
                fall = np.zeros(len(batch))
                best.zero_()
            else:
                batch, fall = _rounds(space, best, pool, blur, end**2, count - len(picks), report)
            picks = torch.cat((picks, batch))
            heights.append(np.sqrt(fall).astype(np.float32))
    radii = np.concatenate([*heights, covering])[1:]  # (M,)
    return Order(picks.cpu(), torch.from_numpy(radii), best.clamp_(min=0).cpu())


def project(
    features: Tensor, config: GreedyConfig, *, device: torch.device | str | None = None
) -> Tensor:
    """Random projection of features (N, D) to (N, d) float32, centred, or the features as they are.

    The map is drawn on the CPU from `config.seed`, so it is the same everywhere. With
    `dimension=None`, d = 4 ln N / (e^2/2 - e^3/3) keeps all squared distances within a share e =
    `distortion` with fair probability (Dasgupta, Gupta 2003).
    """
    n, full = features.shape
    if config.dimension is not None:
        small = config.dimension
    else:
        e = config.distortion
        small = math.ceil(4 * math.log(max(n, 2)) / (e**2 / 2 - e**3 / 3))
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
    with _full_precision(device):
        fits = 4 * n * small <= _free_memory(device) // 2
        points = torch.empty(n, small, device=device if fits else "cpu", dtype=real)
        for rows in _slices(n, config.chunk or _chunk_size(device, full)):
            points[rows] = features[rows].to(device, torch.float32) @ matrix
        return points.sub_(points.mean(0))


class _Space:
    """Points (N, d) seen as centred rows on the working device, moved there in chunks if need be.

    Centring moves no distance but makes norms small, and with them the rounding of
    |x|^2 + |y|^2 - 2 x.y. The centre is the mean on a coarse binary grid, so that subtracting it
    from short numbers (float16, integers) is exact, and does nothing to points already centred.
    """

    def __init__(self, points: Tensor, device: torch.device, chunk: int | None, pool: int) -> None:
        if points.device != device and points.nbytes <= _free_memory(device) // 2:
            points = points.to(device)
        n, dimension = points.shape
        self.points, self.device = points, device
        self.chunk = chunk or _chunk_size(device, dimension + pool)
        self.centre = torch.zeros(dimension, dtype=torch.float64, device=device)
        self.shifted = False
        total = torch.zeros_like(self.centre)
        norms = []
        for _, x in self.blocks(torch.float32):
            total += x.new_ones(len(x)) @ x
            norms.append(x.square().sum(1))
        squared = torch.cat(norms)
        self.mean = total / n
        variance = squared.double().mean() - self.mean.square().sum()
        spread = float((variance / dimension).clamp(min=0).sqrt())
        if not math.isfinite(spread):
            raise InputError(_NOT_FINITE)
        grid = 2.0 ** math.floor(math.log2(spread)) if spread else 0.0
        self.centre = (self.mean / grid).round() * grid if grid else self.mean
        self.shifted = bool(self.centre.any())
        self._norms = {} if self.shifted else {torch.float32: squared}
        self.scale = float(self.norms(torch.float32).max())  # largest squared norm

    def rows(self, which: Tensor | slice, dtype: torch.dtype) -> Tensor:
        """Centred rows (m, d) in `dtype` on the working device."""
        if isinstance(which, Tensor):
            which = which.to(self.points.device)
            x = self.points.index_select(0, which)
        else:
            x = self.points[which]
        x = x.to(self.device, dtype)
        return x - self.centre.to(dtype) if self.shifted else x

    def blocks(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        for rows in _slices(len(self.points), self.chunk):
            yield rows, self.rows(rows, dtype)

    def stored(self) -> Iterator[tuple[slice, Tensor]]:
        """The points as they are, on the working device: at once if they fit there."""
        n = len(self.points)
        for rows in _slices(n, n if self.points.device == self.device else self.chunk):
            yield rows, self.points[rows].to(self.device)

    def norms(self, dtype: torch.dtype) -> Tensor:
        """Squared norms (N,) of the centred points."""
        if dtype not in self._norms:
            self._norms[dtype] = torch.cat([x.square().sum(1) for _, x in self.blocks(dtype)])
        return self._norms[dtype]

    def outermost(self) -> Tensor:
        """Index (1,) of the point farthest from the mean."""
        best = torch.full_like(self.norms(torch.float32), math.inf)
        self.lower(best, (self.mean - self.centre).to(best.dtype)[None])
        return best.argmax()[None]

    def distances(self, picks: Tensor, dtype: torch.dtype, anchors: Tensor | None = None) -> Tensor:
        """Squared distance (N,) to the nearest of `picks` (or mean anchor), -1 at the picks."""
        best = torch.full_like(self.norms(dtype), math.inf)
        if anchors is not None:
            y = self.rows(anchors, dtype)
            for rows, x in self.blocks(dtype):
                best[rows] = _squared(x, y).sqrt_().mean(1).square_()
        for some in picks.split(1024) if len(picks) else ():
            self.lower(best, self.rows(some, dtype))
        best[picks] = -1
        return best

    def lower(self, best: Tensor, y: Tensor) -> None:
        """Lower squared distances `best` (N,) to those from the rows y (m, d), in place."""
        norms = self.norms(best.dtype)
        constants = y.square().sum(1)  # (m,)
        buffer = y.new_empty(min(self.chunk, len(best)), len(y))
        for rows, x in self.blocks(best.dtype):
            inner = torch.addmm(constants, x, y.T, alpha=-2, out=buffer[: len(x)])  # (chunk, m)
            lower = inner.amin(1).add_(norms[rows]).clamp_(min=0)  # (chunk,)
            torch.minimum(best[rows], lower, out=best[rows])


def _rounds(
    space: _Space,
    best: Tensor,
    pool: int,
    blur: float,
    end: float,
    count: int,
    report: Callable[[int], None],
) -> tuple[Tensor, np.ndarray]:
    """One round, or on CUDA as many as `count` more picks need."""
    kernel = _kernel(best)
    if kernel is not None:
        batch, fall = kernel.rounds(space, best, pool, blur, max(blur, end), count, report)
        if len(batch):
            return batch, fall
    return _round(space, best, pool, blur)


def _round(space: _Space, best: Tensor, pool: int, blur: float) -> tuple[Tensor, np.ndarray]:
    """One round: picks (m,) and the squared distances (m,) they were picked at. Lowers `best`."""
    candidates, floor = _farthest(best, pool, blur)
    x = space.rows(candidates, best.dtype)  # (K, d)
    places, fall = _pick(_squared(x, x), best[candidates], floor)
    space.lower(best, x[places])
    batch = candidates[places]
    best[batch] = -1
    return batch, fall


def _farthest(best: Tensor, pool: int, blur: float) -> tuple[Tensor, Tensor]:
    """The `pool` farthest points, by index, and the distance that none of the others exceeds."""
    if pool >= len(best):
        return torch.arange(len(best), device=best.device), best.new_tensor(blur)
    values, candidates = best.topk(pool)
    # Of more equals than the pool holds, the first must be in it.
    first = best.argmax()
    candidates[-1] = torch.where((candidates == first).any(), candidates[-1], first)
    return candidates.sort().values, values[-1].clamp(min=blur)


def _pick(between: Tensor, best: Tensor, floor: Tensor) -> tuple[Tensor, np.ndarray]:
    """Plain greedy in a pool, down to `floor`: places (m,) in the order of picking, distances (m,).

    `between` (K, K) and `best` (K,) are squared distances inside the pool and to the chosen set.
    """
    table, reach, end = between.cpu().numpy(), best.cpu().numpy(), float(floor)
    places, fall = [], []
    place = int(reach.argmax())
    np.fill_diagonal(table, -1)
    while True:
        places.append(place)
        fall.append(reach[place])
        np.minimum(reach, table[place], out=reach)
        place = int(reach.argmax())
        if not reach[place] > end:
            return torch.tensor(places, device=between.device), np.array(fall)


def _squared(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances (n, m) between rows x (n, d) and y (m, d)."""
    squared = torch.addmm(y.square().sum(1), x, y.T, alpha=-2)
    return squared.add_(x.square().sum(1)[:, None]).clamp_(min=0)


def _kernel(best: Tensor) -> ModuleType | None:
    """The kernels for float32 on CUDA, or None where Triton is not installed."""
    if not best.is_cuda or best.dtype != torch.float32:
        return None
    try:
        from patchcore import _greedy_kernel
    except ImportError:
        return None
    return _greedy_kernel


def _learn(
    features: Tensor, config: LearnedConfig, device: torch.device, progress: bool
) -> Coreset:
    """Proxies that start as random patches and minimise `reconstruction_loss` by Adam.

    The weights need a temperature that suits the features' scale. Where proxies differ little in
    distance beside it, each patch is rebuilt as nearly the mean of them all, and the cheapest way
    to a smaller loss is to drive the proxies apart, far outside the patches they stand for.
    """
    n, size = len(features), config.size(len(features))
    generator = torch.Generator().manual_seed(config.seed)
    chosen = torch.randperm(n, generator=generator)[:size]
    start = _take(features, chosen).to(device, torch.float32)  # (M, D)
    if not bool(start.isfinite().all()):
        raise InputError(_NOT_FINITE)
    losses = torch.empty(config.steps, dtype=torch.float32)
    with torch.inference_mode(False), _full_precision(device), torch.enable_grad():
        temperature = 1.0
        if config.temperature is not None:
            probe = _draw(n, config.batch, config.seed + 1)
            nearest = _squared(_take(features, probe).to(start), start).amin(1).sqrt().mean()
            temperature = config.temperature * (float(nearest) or 1.0)
        proxies = start.clone().requires_grad_()
        spread = float(start.std(0, correction=0).mean()) or 1.0
        adam = torch.optim.Adam([proxies], lr=config.learning_rate * spread)
        for step in tqdm(range(config.steps), desc="proxies", disable=not progress):
            batch = torch.randint(n, (min(config.batch, n),), generator=generator)
            m = _take(features, batch).to(device, torch.float32)  # (B, D)
            loss = reconstruction_loss(m, proxies, temperature).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses[step] = loss.detach()
    memory = proxies.detach().to(features)
    if not bool(memory.isfinite().all()):
        raise InputError(
            "coreset.learning_rate is too high, or coreset.temperature too low: the learned "
            "proxies became NaN or infinite"
        )
    return Coreset(memory, None, losses=losses)


def reconstruction_loss(patches: Tensor, proxies: Tensor, temperature: float = 1.0) -> Tensor:
    """Squared error (B,) of patches (B, D) as softmax-weighted means of proxies (M, D), Eq. 8.

    The paper prints the weights as exp(+|m - p|), which would favour the farthest proxies; they are
    taken as exp(-|m - p| / temperature) here.
    """
    weights = torch.softmax(-_squared(patches, proxies).clamp(min=1e-12).sqrt() / temperature, 1)
    return (patches - weights @ proxies).square().sum(1)  # weights (B, M)


def _reaches(order: Order, count: int, radius: float | None) -> bool:
    return len(order) >= count or (radius is not None and order.size(radius) is not None)


def _draw(n: int, count: int, seed: int) -> Tensor:
    """`count` different indices below n (all if it is less): a prefix of one seeded sequence."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count]


def _take(features: Tensor, indices: Tensor) -> Tensor:
    return features[indices.to(features.device)]


def _slices(n: int, chunk: int) -> Iterator[slice]:
    return (slice(i, min(i + chunk, n)) for i in range(0, n, chunk))


def _pool_size(n: int) -> int:
    """Candidates a round: their K^2 distances should stay cheap beside a round's update of N."""
    return min(max(2 ** round(math.log2(max(n, 2) / 32)), 128), 1024)


def _chunk_size(device: torch.device, width: int) -> int:
    """Rows of `width` numbers at once: a fixed power of two unless memory is short."""
    most = 8192 if device.type == "cpu" else 2**18
    fits = _free_memory(device) // 8 // (8 * width)
    return min(most, 2 ** max(fits.bit_length() - 1, 6))


def _free_memory(device: torch.device) -> int:
    """Free memory in bytes, of a CUDA device or of this machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 4 * 2**30


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Float32 products in float32, whatever the caller's settings for training are."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _projects(sampler: Mapping[str, Any]) -> bool:
    """Whether settings of a greedy sampler may ask for a projection."""
    return sampler["projection"] is not Projection.none


def _draws(sampler: Mapping[str, Any]) -> bool:
    """Whether a sampler's settings may ask for anything random."""
    greedy = "projection" in sampler
    return not greedy or _projects(sampler) or sampler["start"] is not Start.mean


def _require(holds: bool, key: str, rule: str, value: object) -> None:
    if not holds:
        raise InputError(f"coreset.{key} {rule}, got {value}")
