"""The rounds of the greedy coreset on CUDA, as Triton kernels (see `order.py` for the scheme).

Only the device knows how many picks a round makes. So the host queues round after round without
waiting. Rounds that are queued after the end make no picks and cost almost nothing.

The pool need not be exactly the K farthest points: any set works if the floor is the largest
distance outside it. So a histogram of the distances chooses it, and a second histogram divides the
level that the pool cannot hold whole, in four short kernels. A sort of all points would take longer
than the rest of the round. Only where thousands of points differ by rounding alone does the plain
round take over.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _PICKS, _DEPTH = 128, 64, 32  # tile of the update: points, picks, dimensions
_BLOCK = 1024  # points that one program of the selection looks at
_LEVELS = 4096  # bins of a histogram
_SHIFT, _FINE = 14, 2  # bits of a float32 that the first and the second ignore: 0.2 %, 5e-7
_TOTAL, _MADE, _FLOOR, _LEVEL, _SIZE = map(tl.constexpr, range(5))  # entries of the state
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}  # set, for defaults change with Triton


class Space(Protocol):
    """Part of `order.Space` that the kernels need."""

    centre: Tensor
    shifted: bool

    def norms(self, dtype: torch.dtype) -> Tensor: ...

    def rows(self, which: Tensor, dtype: torch.dtype) -> Tensor: ...

    def stored(self) -> Iterator[tuple[slice, Tensor]]: ...


def rounds(
    space: Space,
    best: Tensor,
    pool: int,
    blur: float,
    end: float,
    count: int,
    report: Callable[[int], None],
) -> tuple[Tensor, np.ndarray]:
    """Rounds until `count` more picks are made or the next is not farther than `end` (squared).

    Returns the picks (m,), m >= 0, and the squared distances (m,) they were picked at. Lowers
    `best` (N,) float32. Ends early at a pool that is all equally far: ties are the caller's.
    """
    n = len(best)
    picks = torch.empty(count + pool, dtype=torch.int64, device=best.device)
    fall = best.new_empty(count + pool)
    places = torch.empty(pool, dtype=torch.int32, device=best.device)
    state = torch.zeros(5, dtype=torch.int32, device=best.device)
    state[_SIZE.value] = pool
    centre, own = space.centre.float(), space.norms(torch.float32)
    lanes = triton.next_power_of_2(pool)
    candidates = torch.arange(pool, device=best.device)  # (K,)
    counts = torch.empty(2 * _LEVELS, dtype=torch.int32, device=best.device)
    inside = torch.empty(triton.cdiv(n, _BLOCK), dtype=torch.int32, device=best.device)
    made, seen = 0, None
    while True:
        if pool < n:
            _select(best, counts, inside, candidates, state, blur, pool)
        x = space.rows(candidates, torch.float32)  # (K, d)
        norms = own.index_select(0, candidates)  # (K,)
        between = torch.addmm(norms, x, x.T, alpha=-2)  # (K, K), less the row's own norm
        _pick[(1,)](
            between, candidates, norms, best, places, picks, fall, state,
            pool, count, blur, end, lanes, **_OPTIONS,
        )  # fmt: skip
        _lower_all(space, best, own, centre, x, norms, places, state)
        last, seen = seen, _read(state)
        if last is not None:  # one round late, so that the device never waits for the host
            now = last()
            report(now - made)
            if now == made or now >= count:
                return picks[:now], fall[:now].cpu().numpy()
            made = now


class SharedSpace(Space, Protocol):
    """Part of `shards.SharedSpace` that the kernels need."""

    def __len__(self) -> int: ...

    def mark(self, best: Tensor, picks: Tensor) -> None: ...

    def pooled(
        self,
        places: Tensor,
        best: Tensor,
        floor: Tensor,
        pool: int,
        keys: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...

    def take(self, values: Tensor, which: Tensor) -> Tensor: ...


def shared_rounds(
    space: SharedSpace,
    best: Tensor,
    pool: int,
    blur: float,
    end: float,
    count: int,
    report: Callable[[int], None],
) -> tuple[Tensor, np.ndarray]:
    """Return `rounds` of points that lie in several processes, which call this together.

    Rounds have the pools of one process that has all points, so picks are the same, and are those
    of the first process, should the hardware of another round otherwise.
    """
    n, size = len(best), count + 2 * pool
    picks = torch.zeros(size, dtype=torch.int64, device=best.device)
    chosen, fall = torch.empty_like(picks), best.new_empty(size)
    told = torch.zeros(8 + pool, dtype=torch.int32, device=best.device)
    state, places = told[:5], told[8:]  # one message; the kernels like aligned addresses
    state[_SIZE.value] = pool
    floor = state[_FLOOR.value : _FLOOR.value + 1].view(torch.float32)
    centre, own = space.centre.float(), space.norms(torch.float32)
    lane = torch.arange(pool, device=best.device)
    candidates, reach = lane, best
    counts = torch.empty(2 * _LEVELS, dtype=torch.int32, device=best.device)
    inside = torch.empty(triton.cdiv(n, _BLOCK), dtype=torch.int32, device=best.device)
    mine = torch.empty_like(lane)  # places of own points in the pool
    keys = partial(_keys, blur=blur)
    made, seen = 0, None
    while True:
        if pool < len(space):
            mine.fill_(-1)
            _select(best, counts, inside, mine, state, blur, pool)
            candidates, reach, held, outside = space.pooled(mine, best, floor, pool, keys)
            floor.copy_(outside)
            state[_SIZE.value : _SIZE.value + 1] = held
        else:
            reach = space.take(best, candidates)
        x = space.rows(candidates, torch.float32)  # (K, d)
        norms = space.take(own, candidates)  # (K,)
        between = torch.addmm(norms, x, x.T, alpha=-2)  # (K, K), less the row's own norm
        before = state[_TOTAL.value : _TOTAL.value + 1].clone()
        _pick[(1,)](
            between, lane, norms, reach, places, chosen, fall, state,
            pool, count, blur, end, triton.next_power_of_2(pool), **_OPTIONS,
        )  # fmt: skip
        dist.broadcast(told, 0)
        batch = candidates[places.long()]
        picks.scatter_(0, before + lane, batch)  # the next round overwrites what is no pick
        space.mark(best, torch.where(lane < state[_MADE.value], batch, -1))
        _lower_all(space, best, own, centre, x, norms, places, state)
        last, seen = seen, _read(state)
        if last is not None:  # one round late, as in `rounds`
            now = last()
            report(now - made)
            if now == made or now >= count:
                dist.broadcast(fall, 0)
                return picks[:now], fall[:now].cpu().numpy()
            made = now


def _select(
    best: Tensor,
    counts: Tensor,
    inside: Tensor,
    candidates: Tensor,
    state: Tensor,
    blur: float,
    pool: int,
) -> None:
    """Write the farthest points, at most `pool`, into `candidates`, ascending; floor and size.

    All points of one key are in it or none is, unless it is of one key alone, and not full.

    Args:
        best: (N,) squared distances, float32.
        counts: (2 levels,) int32 for the histograms.
        inside: (blocks,) int32 for the points of the pool in each block.
    """
    n, blocks = len(best), len(inside)
    grid, scale = (blocks,), (_BLOCK, _LEVELS, _SHIFT)
    counts.zero_()
    _histogram[grid](best, counts, n, blur, *scale)
    _histogram_within[grid](best, counts, n, blur, pool, *scale, _FINE)
    _threshold[grid](best, counts, inside, state, n, blur, pool, *scale, _FINE)
    all_blocks = triton.next_power_of_2(blocks)
    _gather[grid](best, inside, candidates, state, n, blur, pool, blocks, all_blocks, *scale, _FINE)


def _keys(best: Tensor, blur: float) -> Tensor:
    """Fine levels of squared distances, as the kernels see them; -1 where not above `blur`."""
    lowest = int(np.float32(blur).view(np.int32))
    keys = (best.view(torch.int32) - lowest).clamp(max=(_LEVELS << _SHIFT) - 1) >> _FINE
    return torch.where(best > blur, keys, -1)


def lower(space: Space, best: Tensor, y: Tensor) -> None:
    """Lower squared distances `best` to those from the centred rows `y`, as rounds do."""
    state = torch.zeros(5, dtype=torch.int32, device=best.device)
    state[_MADE.value] = len(y)
    places = torch.arange(len(y), dtype=torch.int32, device=best.device)
    centre, own = space.centre.float(), space.norms(torch.float32)
    _lower_all(space, best, own, centre, y.contiguous(), y.square().sum(1), places, state)


def _lower_all(
    space: Space,
    best: Tensor,
    own: Tensor,
    centre: Tensor,
    x: Tensor,
    norms: Tensor,
    places: Tensor,
    state: Tensor,
) -> None:
    """Lower the distances `best` of all points of this process by a round's picks."""
    for rows, points in space.stored():
        grid = (triton.cdiv(len(points), _ROWS),)
        _lower[grid](
            best[rows], own[rows], points, centre, x, norms, places,
            state, len(points), x.shape[1], space.shifted,
            _ROWS, _PICKS, _DEPTH, **_OPTIONS,
        )  # fmt: skip


def _read(state: Tensor) -> Callable[[], int]:
    """Start to copy the number of picks to the host; the result waits for it."""
    host = state.to("cpu", non_blocking=True, copy=True)
    if not state.is_cuda:
        return lambda: int(host[0])
    event = torch.cuda.Event()
    event.record()

    def wait() -> int:
        event.synchronize()
        return int(host[0])

    return wait


@triton.jit
def _key(value, blur, levels: tl.constexpr, shift: tl.constexpr):  # type: ignore[no-untyped-def]
    """Place of squared distances above `blur` on a scale of two levels, as one integer.

    A float's bits rise as it does, in even steps of its logarithm, and from blur to the largest
    distance that there can be they span seven octaves.
    """
    lowest = (value * 0 + blur).to(tl.int32, bitcast=True)
    return tl.minimum(value.to(tl.int32, bitcast=True) - lowest, (levels << shift) - 1)


@triton.jit
def _overflow(counts, pool, levels: tl.constexpr):  # type: ignore[no-untyped-def]
    """Highest level from which upwards a pool does not hold all points, or -1; points above it."""
    bins = tl.arange(0, levels)
    count = tl.load(counts + bins)
    level = tl.sum((tl.cumsum(count, 0, reverse=True) > pool).to(tl.int32), 0) - 1
    return level, tl.sum(tl.where(bins > level, count, 0), 0)


@triton.jit
def _histogram(  # type: ignore[no-untyped-def]
    best, counts, n, blur, block: tl.constexpr, levels: tl.constexpr, shift: tl.constexpr
):
    """Count the points of each level."""
    row = tl.program_id(0) * block + tl.arange(0, block)
    value = tl.load(best + row, row < n, -1.0)
    far = value > blur
    level = _key(value, blur, levels, shift) >> shift
    tl.atomic_add(counts + tl.where(far, level, 0), 1, far)


@triton.jit
def _histogram_within(  # type: ignore[no-untyped-def]
    best, counts, n, blur, pool,
    block: tl.constexpr, levels: tl.constexpr, shift: tl.constexpr, fine: tl.constexpr,
):  # fmt: skip
    """Count the points of each fine level within the level that a pool does not hold."""
    overflow, _ = _overflow(counts, pool, levels)
    row = tl.program_id(0) * block + tl.arange(0, block)
    value = tl.load(best + row, row < n, -1.0)
    key = _key(value, blur, levels, shift)
    there = (value > blur) & ((key >> shift) == overflow)
    tl.atomic_add(counts + levels + tl.where(there, (key >> fine) & (levels - 1), 0), 1, there)


@triton.jit
def _threshold(  # type: ignore[no-untyped-def]
    best, counts, inside, state, n, blur, pool,
    block: tl.constexpr, levels: tl.constexpr, shift: tl.constexpr, fine: tl.constexpr,
):  # fmt: skip
    """Lowest fine level from which upwards a pool holds all points; how many each block has."""
    overflow, above = _overflow(counts, pool, levels)
    within, _ = _overflow(counts + levels, pool - above, levels)
    lowest = (overflow << (shift - fine)) + within + 1
    if above == 0:  # the farthest at least
        bins = tl.arange(0, levels)
        top = tl.max(tl.where(tl.load(counts + levels + bins) > 0, bins, 0), 0)
        lowest = tl.minimum(lowest, (overflow << (shift - fine)) + top)
    lowest = tl.where(overflow < 0, 0, lowest)  # all points fit
    row = tl.program_id(0) * block + tl.arange(0, block)
    value = tl.load(best + row, row < n, -1.0)
    chosen = (value > blur) & ((_key(value, blur, levels, shift) >> fine) >= lowest)
    tl.store(inside + tl.program_id(0), tl.sum(chosen.to(tl.int32), 0))
    if tl.program_id(0) == 0:
        tl.store(state + _LEVEL, lowest)
        tl.store(state + _FLOOR, 0)


@triton.jit
def _gather(  # type: ignore[no-untyped-def]
    best, inside, candidates, state, n, blur, pool, blocks, all_blocks: tl.constexpr,
    block: tl.constexpr, levels: tl.constexpr, shift: tl.constexpr, fine: tl.constexpr,
):  # fmt: skip
    """Write the pool in the points' own order, and the largest distance that it leaves out."""
    number = tl.arange(0, all_blocks)
    count = tl.load(inside + number, number < blocks, 0)
    first = tl.sum(tl.where(number < tl.program_id(0), count, 0), 0)
    row = tl.program_id(0) * block + tl.arange(0, block)
    value = tl.load(best + row, row < n, -1.0)
    lowest = tl.load(state + _LEVEL)
    chosen = (value > blur) & ((_key(value, blur, levels, shift) >> fine) >= lowest)
    place = first + tl.cumsum(chosen.to(tl.int32), 0) - 1
    chosen = chosen & (place < pool)  # the farthest level alone may be too much
    tl.store(candidates + place, row.to(tl.int64), chosen)
    outside = tl.max(tl.where(chosen, 0.0, value), 0)
    tl.atomic_max(state + _FLOOR, tl.maximum(outside, 0.0).to(tl.int32, bitcast=True))
    if tl.program_id(0) == 0:
        tl.store(state + _SIZE, tl.minimum(tl.sum(count, 0), pool))


@triton.jit(do_not_specialize=["target"])
def _pick(  # type: ignore[no-untyped-def]
    between, candidates, norms, best, places, picks, fall, state,
    pool, target, blur, end, lanes: tl.constexpr,
):  # fmt: skip
    """Plain greedy in a pool, one program."""
    lane = tl.arange(0, lanes)
    inside = lane < tl.load(state + _SIZE)
    candidate = tl.load(candidates + lane, inside, 0)
    reach = tl.load(best + candidate, inside, -1.0)
    floor = tl.maximum(tl.load(state + _FLOOR).to(tl.float32, bitcast=True), blur)
    total = tl.load(state + _TOTAL)
    count = 0
    height, place = tl.max(reach, 0, return_indices=True)
    more = (total < target) & (height > tl.maximum(floor, end))
    while more:
        tl.store(places + count, place)
        tl.store(fall + total + count, height)
        count += 1
        row = tl.load(between + place.to(tl.int64) * pool + lane, inside, 0.0)
        row += tl.load(norms + place)
        reach = tl.where(lane == place, -1.0, tl.minimum(reach, row))
        height, place = tl.max(reach, 0, return_indices=True)
        more = height > floor
    tl.debug_barrier()
    made = tl.load(places + lane, lane < count, 0)
    pick = tl.load(candidates + made, lane < count, 0)
    tl.store(picks + total + lane, pick, lane < count)
    tl.store(best + pick, -1.0, lane < count)
    tl.store(state + _TOTAL, total + count)
    tl.store(state + _MADE, count)


@triton.jit
def _lower(  # type: ignore[no-untyped-def]
    best, own, points, centre, x, norms, places, state, n,
    d: tl.constexpr, shifted: tl.constexpr,
    tile_rows: tl.constexpr, tile_picks: tl.constexpr, tile_depth: tl.constexpr,
):  # fmt: skip
    """Lower `best` (n,) to the squared distances from this round's picks, storing no (n, m)."""
    row = tl.program_id(0) * tile_rows + tl.arange(0, tile_rows)
    here = row < n
    start = points + row.to(tl.int64)[:, None] * d
    m = tl.load(state + _MADE)
    lowest = tl.full((tile_rows,), float("inf"), tl.float32)
    first = 0
    while first < m:
        pick = first + tl.arange(0, tile_picks)
        place = tl.load(places + pick, pick < m, 0)
        inner = tl.zeros((tile_rows, tile_picks), tl.float32)
        for depth in range(0, d, tile_depth):
            axis = depth + tl.arange(0, tile_depth)
            there = (axis < d) | (d % tile_depth == 0)
            p = tl.load(start + axis[None, :], here[:, None] & there[None, :], 0.0).to(tl.float32)
            if shifted:
                p -= tl.load(centre + axis, there, 0.0)[None, :]
            y = tl.load(x + place[:, None] * d + axis[None, :], there[None, :], 0.0)
            # Three TF32 products make one of float32: as exact as the plain one, and faster.
            inner = tl.dot(p, tl.trans(y), inner, input_precision="tf32x3")
        constant = tl.load(norms + place, pick < m, float("inf"))
        lowest = tl.minimum(lowest, tl.min(constant[None, :] - 2 * inner, 1))
        first += tile_picks
    lowest = tl.maximum(lowest + tl.load(own + row, here, 0.0), 0.0)
    tl.store(best + row, tl.minimum(lowest, tl.load(best + row, here, 0.0)), here)
