"""Greedy k-centre order (Algorithm 1), found in batches of picks at the speed of matrix products.

Greedy k-centre adds, again and again, the patch that is farthest from those already chosen, so that
the covering radius (the largest distance from a patch to its nearest chosen one) falls as it goes.
Done literally, each pick needs a pass over all N patches: little arithmetic, much memory traffic.
The same picks can be made in batches, because of one fact:

    a patch's distance to the chosen set can only fall when something is added to the set.

One round, with K about a thousand:

1. Pool (`farthest`). Take the K patches farthest from the chosen set, and call T the smallest
   distance among them. Every patch outside the pool is at distance T or nearer, and will stay so.
2. Inner greedy (`_pick`). Measure the K x K distances within the pool. Pick its farthest patch,
   lower the pool's distances accordingly, and repeat for as long as the farthest is beyond T. The
   plain greedy would make each of these picks: within the pool all distances are up to date, and
   nothing outside can be beyond T. (A round's first pick is safe even at T: it is the farthest of
   all.)
3. Update (`Space.lower`). Measure all N patches against the round's m picks, by one N x m matrix
   product since |x - y|^2 = |x|^2 + |y|^2 - 2 x.y. Now every distance is up to date, and the next
   round begins.

So the picks are the same. The N x M distances, which the plain greedy computes pick by pick, are
computed in a few large products. Time grows as N * M * d. The plain greedy is `greedy_coreset` in
tests/reference.py; `kernel.py` holds the same rounds for CUDA.

The result is an order: its first M entries are the coreset of size M, whatever M, and the distance
at which a patch is picked is the covering radius just before. Equal distances go to the lowest
index. Only rounding can exchange two picks: `greedy_order` says when.

`space.py` holds the points as an order sees them, `shards.py` those that lie in several processes.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from tqdm import tqdm

from patchcore._precision import full_precision
from patchcore.coreset.shards import Shard, SharedSpace
from patchcore.coreset.space import Space, draw, kernels, squared_distances
from patchcore.errors import counted
from patchcore.settings import Choice

# Squared distances below these shares of the largest squared norm are not told apart: under the
# first, float32 gives way to float64; under the second, two patches count as equal.
_BLUR = {torch.float32: 2.0**-5, torch.float64: 2.0**-42}
_INFINITE = np.full(1, np.inf, np.float32)


class Start(Choice):
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
    seconds: Float32[Tensor, " picks"] | None = None  # wall time that an order of each length takes

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
    shard: Shard | None = None,
    since: float | None = None,
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

    With a `shard`, points are the rows of this process, and all processes call this together:
    `indices` count in the points of all, `remaining` is of the own. `Order.seconds` begin at
    `since` (of `time.perf_counter`), by default with this call.

    Raises InputError if a point is not finite.
    """
    since = time.perf_counter() if since is None else since
    n = len(points) if shard is None else shard.total
    if order is not None and len(order.remaining) != n:
        raise ValueError(f"order is of {counted(len(order.remaining), 'point')}, got {n}")
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

        if shard is None:
            space = Space(points, device, chunk, pool)
        else:
            space = SharedSpace(points, device, chunk, pool, shard)
        anchored = draw(n, anchors, seed) if start is Start.anchors and covered is None else None
        if order is not None:
            picks = order.indices.to(device)
            heights = [_INFINITE, order.radii.numpy()[:-1]]
            best = order.remaining.to(device, copy=True)
            space.mark(best, picks)
        elif anchored is not None or covered is not None:
            picks, heights = torch.empty(0, dtype=torch.int64, device=device), []
            best = _distances(space, picks, torch.float32, anchored, covered)
        else:
            generator = torch.Generator().manual_seed(seed)
            any_point = torch.randint(n, (1,), generator=generator)
            picks = space.outermost() if start is Start.mean else any_point.to(device)
            heights = [_INFINITE]
            best = space.distances(picks, torch.float32)
        if order is not None and order.seconds is not None:
            spent, since = order.seconds.tolist(), time.perf_counter() - float(order.seconds[-1])
        else:
            spent = [0.0] * len(picks)
        while True:
            report(len(picks) - bar.n)
            top = max(space.top(best), 0.0)  # squared covering radius of the picks so far
            covering = np.array([top**0.5], np.float32)
            blur = _BLUR[best.dtype] * space.scale
            if top <= blur and best.dtype == torch.float32 and len(picks) < n:
                best = _distances(space, picks, torch.float64, anchored, covered)
                continue
            if len(picks) >= count or covering[0] <= end:
                break
            if top <= blur:  # what is left coincides with what was picked
                batch = space.left(best)
                fall = np.zeros(len(batch))
                best.zero_()
            else:
                batch, fall = _rounds(space, best, pool, blur, end**2, count - len(picks), report)
            picks = torch.cat((picks, batch))
            spent += np.linspace(
                spent[-1] if spent else 0, time.perf_counter() - since, len(batch) + 1
            )[1:].tolist()
            heights.append(np.sqrt(fall).astype(np.float32))
    radii = np.concatenate([*heights, covering])[1:]  # (M,)
    seconds = torch.tensor(spent, dtype=torch.float32)  # (M,); evenly within a round
    return Order(picks.cpu(), torch.from_numpy(radii), best.clamp_(min=0).cpu(), seconds)


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
    kernel = kernels(best)
    if kernel is not None:
        rounds = kernel.shared_rounds if isinstance(space, SharedSpace) else kernel.rounds
        batch, fall = rounds(space, best, pool, blur, max(blur, end), count, report)
        if len(batch):
            return batch, fall
    return _round(space, best, pool, blur)


def _round(
    space: Space, best: Float[Tensor, " points"], pool: int, blur: float
) -> tuple[Int64[Tensor, " picks"], Float[np.ndarray, " picks"]]:
    """One round: picks and the squared distances that they were picked at. Lowers `best`."""
    candidates, floor = space.farthest(best, pool, blur)
    x = space.rows(candidates, best.dtype)  # (K, d)
    found = _pick(squared_distances(x, x), space.take(best, candidates), floor)
    places, fall = space.agreed(*found)
    space.lower(best, x[places])
    batch = candidates[places]
    space.mark(best, batch)
    return batch, fall


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


def _pool_size(n: int) -> int:
    """Candidates a round: their K^2 distances should stay cheap beside a round's update of N."""
    return min(max(2 ** round(math.log2(max(n, 2) / 32)), 128), 1024)
