"""Greedy k-centre order (Algorithm 1), found in batches of picks at the speed of matrix products.

Greedy k-centre adds, again and again, the patch that is farthest from those already chosen, so that
the covering radius (the largest distance from a patch to its nearest chosen one) falls as it goes.
Taken literally, each pick costs a pass over all N patches: little arithmetic, much memory traffic.
The same picks can be made in batches, because of one fact:

    a patch's distance to the chosen set can only fall when something is added to the set.

One round, with K about a thousand:

1. Pool (`_farthest`). Take the K patches farthest from the chosen set, and call T the smallest
   distance among them. Every patch outside the pool is at T or nearer, and will stay so.
2. Inner greedy (`_pick`). Measure the K x K distances within the pool. Pick its farthest patch,
   lower the pool's distances accordingly, and repeat for as long as the farthest is beyond T. The
   plain greedy would make each of these picks: within the pool all distances are up to date, and
   nothing outside can be beyond T. (A round's first pick is safe even at T: it is the farthest of
   all.)
3. Update (`Space.lower`). Measure all N patches against the round's m picks, by one N x m matrix
   product since |x - y|^2 = |x|^2 + |y|^2 - 2 x.y. Now every distance is up to date, and the next
   round begins.

So the picks are the same; the N x M distances that the plain greedy computes pick by pick are
computed in a few large products instead. Time grows as N * M * d. The plain greedy is
`greedy_coreset` in tests/reference.py; `kernel.py` holds the same rounds for CUDA.

The result is an order: its first M entries are the coreset of size M, whatever M, and the distance
at which a patch is picked is the covering radius just before. Equal distances go to the lowest
index. Only rounding can exchange two picks: `greedy_order` says when.

First come the helpers that other samplers use too, then `Space`, the points as an order sees them.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, Shaped
from torch import Tensor
from tqdm import tqdm

from patchcore.errors import InputError

NOT_FINITE = "features hold NaN or infinite values: check images and backbone"
# Squared distances below these shares of the largest squared norm are not told apart: under the
# first, float32 gives way to float64; under the second, two patches count as equal.
_BLUR = {torch.float32: 2.0**-5, torch.float64: 2.0**-42}
_INFINITE = np.full(1, np.inf, np.float32)


def draw(n: int, count: int, seed: int) -> Int64[Tensor, " drawn"]:
    """`count` different indices below n (all if it is less): a prefix of one seeded sequence."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count]


def take(
    features: Shaped[Tensor, "rows channels"], indices: Int64[Tensor, " taken"]
) -> Shaped[Tensor, "taken channels"]:
    """Rows of the features, wherever the indices lie."""
    return features[indices.to(features.device)]


def slices(n: int, chunk: int) -> Iterator[slice]:
    """Slices of at most `chunk` that cover `n` rows in order."""
    return (slice(i, min(i + chunk, n)) for i in range(0, n, chunk))


def squared_distances(
    x: Float[Tensor, "n dimensions"], y: Float[Tensor, "m dimensions"]
) -> Float[Tensor, "n m"]:
    """Squared Euclidean distances between rows of `x` and of `y`, by one product."""
    squared = torch.addmm(y.square().sum(1), x, y.T, alpha=-2)
    return squared.add_(x.square().sum(1)[:, None]).clamp_(min=0)


def chunk_size(device: torch.device, width: int) -> int:
    """Rows of `width` numbers at once: a fixed power of two unless memory is short."""
    most = 8192 if device.type == "cpu" else 2**18
    fits = free_memory(device) // 8 // (8 * width)
    return min(most, 2 ** max(fits.bit_length() - 1, 6))


def free_memory(device: torch.device) -> int:
    """Free memory in bytes, of a CUDA device or of this machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 4 * 2**30


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Float32 products in float32, whatever the caller's settings for training are."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class Space:
    """Points (N, d) seen as centred rows on the working device, moved there in chunks if need be.

    Centring moves no distance but makes norms small, and with them the rounding of
    |x|^2 + |y|^2 - 2 x.y. The centre is the mean on a coarse binary grid, so that subtracting it
    from short numbers (float16, integers) is exact, and does nothing to points already centred.
    """

    def __init__(
        self,
        points: Float[Tensor, "points dimensions"],
        device: torch.device,
        chunk: int | None,
        pool: int,
    ) -> None:
        if points.device != device and points.nbytes <= free_memory(device) // 2:
            points = points.to(device)
        n, dimension = points.shape
        self.points, self.device = points, device
        self.chunk = chunk or chunk_size(device, dimension + pool)
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
            raise InputError(NOT_FINITE)
        grid = 2.0 ** math.floor(math.log2(spread)) if spread else 0.0
        self.centre = (self.mean / grid).round() * grid if grid else self.mean
        self.shifted = bool(self.centre.any())
        self._norms = {} if self.shifted else {torch.float32: squared}
        self.scale = float(self.norms(torch.float32).max())  # largest squared norm

    def rows(
        self, which: Int64[Tensor, " rows"] | slice, dtype: torch.dtype
    ) -> Float[Tensor, "rows dimensions"]:
        """Centred rows in `dtype` on the working device."""
        if isinstance(which, Tensor):
            which = which.to(self.points.device)
            x = self.points.index_select(0, which)
        else:
            x = self.points[which]
        x = x.to(self.device, dtype)
        return x - self.centre.to(dtype) if self.shifted else x

    def blocks(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """All centred rows in `dtype`, a chunk at a time, with their place."""
        for rows in slices(len(self.points), self.chunk):
            yield rows, self.rows(rows, dtype)

    def stored(self) -> Iterator[tuple[slice, Tensor]]:
        """Points as they are, on the working device: at once if they fit there."""
        n = len(self.points)
        for rows in slices(n, n if self.points.device == self.device else self.chunk):
            yield rows, self.points[rows].to(self.device)

    def norms(self, dtype: torch.dtype) -> Float[Tensor, " points"]:
        """Squared norms of the centred points."""
        if dtype not in self._norms:
            self._norms[dtype] = torch.cat([x.square().sum(1) for _, x in self.blocks(dtype)])
        return self._norms[dtype]

    def outermost(self) -> Int64[Tensor, "1"]:
        """Index of the point farthest from the mean."""
        best = torch.full_like(self.norms(torch.float32), math.inf)
        self.lower(best, (self.mean - self.centre).to(best.dtype)[None])
        return best.argmax()[None]

    def distances(
        self,
        picks: Int64[Tensor, " picks"],
        dtype: torch.dtype,
        anchors: Int64[Tensor, " anchors"] | None = None,
    ) -> Float[Tensor, " points"]:
        """Squared distance to the nearest pick, or the squared mean distance to the anchors.

        The lower of the two where there are both; -1 at the picks.
        """
        best = torch.full_like(self.norms(dtype), math.inf)
        if anchors is not None:
            y = self.rows(anchors, dtype)
            for rows, x in self.blocks(dtype):
                best[rows] = squared_distances(x, y).sqrt_().mean(1).square_()
        for some in picks.split(1024) if len(picks) else ():
            self.lower(best, self.rows(some, dtype))
        best[picks] = -1
        return best

    def lower(self, best: Float[Tensor, " points"], y: Float[Tensor, "rows dimensions"]) -> None:
        """Lower squared distances `best` to those from the rows `y`, in place."""
        norms = self.norms(best.dtype)
        constants = y.square().sum(1)  # (m,)
        buffer = y.new_empty(min(self.chunk, len(best)), len(y))
        for rows, x in self.blocks(best.dtype):
            inner = torch.addmm(constants, x, y.T, alpha=-2, out=buffer[: len(x)])  # (chunk, m)
            lower = inner.amin(1).add_(norms[rows]).clamp_(min=0)  # (chunk,)
            torch.minimum(best[rows], lower, out=best[rows])


class Start(Enum):
    """Start of the greedy order."""

    random = "random"  # a seeded random patch
    mean = "mean"  # the patch farthest from the mean
    anchors = "anchors"  # mean distance to random patches that are not kept, as in the reference


@dataclass
class Order:
    """A greedy order of M out of N patches, on the CPU; every prefix is the coreset of its size.

    It ends with a whole round, so M may exceed what was asked for, and it can be continued.
    """

    indices: Int64[Tensor, " picks"]  # rows of the points, in the order of picking
    radii: Float32[Tensor, " picks"]  # covering radius after each pick, never rising
    remaining: Float[Tensor, " points"]  # squared distance to the nearest pick; float64 once needed

    def __len__(self) -> int:
        return len(self.indices)

    def size(self, radius: float) -> int | None:
        """Least number of picks that covers within `radius`, or None if the order ends first.

        >>> Order(torch.arange(3), torch.tensor([2.0, 1.0, 0.5]), torch.zeros(3)).size(1.0)
        2
        """
        small = self.radii <= radius
        return int(small.int().argmax()) + 1 if bool(small.any()) else None

    def reaches(self, count: int, radius: float | None) -> bool:
        """Whether it is `count` long or covers within `radius`."""
        return len(self) >= count or (radius is not None and self.size(radius) is not None)


def greedy_order(
    points: Float[Tensor, "points dimensions"],
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
    covered: Float[Tensor, " points"] | None = None,
    progress: bool = False,
) -> Order:
    """Exact greedy k-centre order of points, at least `count` long or covering within `radius`.

    The module's docstring explains the scheme. `pool` and `chunk` change speed and memory, not the
    picks. A given `order` of the same points and settings is continued: on the same device the
    result is, bit for bit, that of a fresh run, for rounds depend on nothing but points and picks.
    With `covered`, squared distances of the points to a set that was chosen before, the order adds
    to that set; `start` has no effect then.

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
    if order is not None and order.reaches(count, radius):
        return order
    pool = min(n, pool or _pool_size(n))
    end = -1.0 if radius is None else radius
    device = torch.empty(0, device=device or points.device).device  # "cuda" becomes "cuda:0"
    with (
        full_precision(device),
        tqdm(total=count, unit="pick", desc="coreset", disable=not progress) as bar,
    ):

        def report(picked: int) -> None:
            bar.update(min(picked, count - bar.n))

        space = Space(points, device, chunk, pool)
        anchored = draw(n, anchors, seed) if start is Start.anchors and covered is None else None
        if order is not None:
            picks = order.indices.to(device)
            heights = [_INFINITE, order.radii.numpy()[:-1]]
            best = order.remaining.to(device, copy=True)
            best[picks] = -1
        elif anchored is not None or covered is not None:
            picks, heights = torch.empty(0, dtype=torch.int64, device=device), []
            best = _distances(space, picks, torch.float32, anchored, covered)
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
                best = _distances(space, picks, torch.float64, anchored, covered)
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


def _distances(
    space: Space,
    picks: Int64[Tensor, " picks"],
    dtype: torch.dtype,
    anchored: Int64[Tensor, " anchors"] | None,
    covered: Float[Tensor, " points"] | None,
) -> Float[Tensor, " points"]:
    """See `Space.distances`; no more than those that are `covered` already."""
    best = space.distances(picks, dtype, anchored)
    return best if covered is None else torch.minimum(best, covered.to(best))


def _rounds(
    space: Space,
    best: Float[Tensor, " points"],
    pool: int,
    blur: float,
    end: float,
    count: int,
    report: Callable[[int], None],
) -> tuple[Int64[Tensor, " picks"], Float[np.ndarray, " picks"]]:
    """One round, or on CUDA as many as `count` more picks need."""
    kernel = _kernel(best)
    if kernel is not None:
        batch, fall = kernel.rounds(space, best, pool, blur, max(blur, end), count, report)
        if len(batch):
            return batch, fall
    return _round(space, best, pool, blur)


def _round(
    space: Space, best: Float[Tensor, " points"], pool: int, blur: float
) -> tuple[Int64[Tensor, " picks"], Float[np.ndarray, " picks"]]:
    """One round: picks and the squared distances that they were picked at. Lowers `best`."""
    candidates, floor = _farthest(best, pool, blur)
    x = space.rows(candidates, best.dtype)  # (K, d)
    places, fall = _pick(squared_distances(x, x), best[candidates], floor)
    space.lower(best, x[places])
    batch = candidates[places]
    best[batch] = -1
    return batch, fall


def _farthest(
    best: Float[Tensor, " points"], pool: int, blur: float
) -> tuple[Int64[Tensor, " pool"], Float[Tensor, ""]]:
    """`pool` farthest points, by index, and the squared distance that none of the others exceeds.

    Distances up to `blur` count as none.
    """
    if pool >= len(best):
        return torch.arange(len(best), device=best.device), best.new_tensor(blur)
    values, candidates = best.topk(pool)
    # The first of more equals than the pool holds must be in it.
    first = best.argmax()
    candidates[-1] = torch.where((candidates == first).any(), candidates[-1], first)
    return candidates.sort().values, values[-1].clamp(min=blur)


def _pick(
    between: Float[Tensor, "pool pool"], best: Float[Tensor, " pool"], floor: Float[Tensor, ""]
) -> tuple[Int64[Tensor, " picks"], Float[np.ndarray, " picks"]]:
    """Plain greedy in a pool, down to `floor`: places in the order of picking, and distances.

    `between` and `best` are squared distances inside the pool and to the chosen set.
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


def _kernel(best: Float[Tensor, " points"]) -> ModuleType | None:
    """Kernels for float32 on CUDA, or None where Triton is not installed."""
    if not best.is_cuda or best.dtype != torch.float32:
        return None
    try:
        from patchcore.coreset import kernel
    except ImportError:
        return None
    return kernel


def _pool_size(n: int) -> int:
    """Candidates a round: their K^2 distances should stay cheap beside a round's update of N."""
    return min(max(2 ** round(math.log2(max(n, 2) / 32)), 128), 1024)
