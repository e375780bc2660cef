"""The rounds of the greedy coreset on CUDA, as Triton kernels (see `coreset.py` for the scheme).

The device alone knows how many picks a round makes, so the host queues round after round without
waiting for one; rounds queued past the end make no picks and cost next to nothing.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _PICKS, _DEPTH = 128, 64, 32  # tile of the update: points, picks, dimensions
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}  # set, for defaults change with Triton


class Space(Protocol):
    """What is needed of `coreset._Space`."""

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
    state = torch.zeros(2, dtype=torch.int32, device=best.device)  # picks in all, in this round
    centre, own = space.centre.float(), space.norms(torch.float32)
    lanes = triton.next_power_of_2(pool)
    candidates = torch.arange(n, device=best.device)
    made, seen = 0, None
    while True:
        if pool < n:
            candidates = best.topk(pool, sorted=False).indices.sort().values  # (K,)
        x = space.rows(candidates, torch.float32)  # (K, d)
        norms = own.index_select(0, candidates)  # (K,)
        between = torch.addmm(norms, x, x.T, alpha=-2).add_(norms[:, None])  # (K, K)
        _pick[(1,)](
            between, candidates, best, places, picks, fall, state,
            pool, count, blur, end, pool >= n, lanes, **_OPTIONS,
        )  # fmt: skip
        for rows, points in space.stored():
            grid = (triton.cdiv(len(points), _ROWS),)
            _lower[grid](
                best[rows], own[rows], points, centre, x, norms, places,
                state, len(points), x.shape[1], space.shifted,
                _ROWS, _PICKS, _DEPTH, **_OPTIONS,
            )  # fmt: skip
        last, seen = seen, _read(state)
        if last is not None:  # one round late, so that the device never waits for the host
            now = last()
            report(now - made)
            if now == made or now >= count:
                return picks[:now], fall[:now].cpu().numpy()
            made = now


def _read(state: Tensor) -> Callable[[], int]:
    """Starts to copy the number of picks to the host; the result waits for it."""
    host = state.to("cpu", non_blocking=True, copy=True)
    if not state.is_cuda:
        return lambda: int(host[0])
    event = torch.cuda.Event()
    event.record()

    def wait() -> int:
        event.synchronize()
        return int(host[0])

    return wait


@triton.jit(do_not_specialize=["target"])
def _pick(  # type: ignore[no-untyped-def]
    between, candidates, best, places, picks, fall, state,
    size, target, blur, end, whole: tl.constexpr, lanes: tl.constexpr,
):  # fmt: skip
    """Plain greedy in a pool, one program."""
    lane = tl.arange(0, lanes)
    inside = lane < size
    candidate = tl.load(candidates + lane, inside, 0)
    reach = tl.load(best + candidate, inside, -1.0)
    floor = blur
    if not whole:
        floor = tl.maximum(tl.min(tl.where(inside, reach, float("inf")), 0), blur)
    total = tl.load(state)
    count = 0
    height, place = tl.max(reach, 0, return_indices=True)
    more = (total < target) & (height > tl.maximum(floor, end))
    while more:
        tl.store(places + count, place)
        tl.store(fall + total + count, height)
        count += 1
        row = tl.load(between + place.to(tl.int64) * size + lane, inside, 0.0)
        reach = tl.where(lane == place, -1.0, tl.minimum(reach, row))
        height, place = tl.max(reach, 0, return_indices=True)
        more = height > floor
    tl.debug_barrier()
    made = tl.load(places + lane, lane < count, 0)
    pick = tl.load(candidates + made, lane < count, 0)
    tl.store(picks + total + lane, pick, lane < count)
    tl.store(best + pick, -1.0, lane < count)
    tl.store(state, total + count)
    tl.store(state + 1, count)


@triton.jit
def _lower(  # type: ignore[no-untyped-def]
    best, own, points, centre, x, norms, places, state, n,
    d: tl.constexpr, shifted: tl.constexpr,
    tile_rows: tl.constexpr, tile_picks: tl.constexpr, tile_depth: tl.constexpr,
):  # fmt: skip
    """Lowers `best` (n,) to the squared distances from this round's picks, storing no (n, m)."""
    row = tl.program_id(0) * tile_rows + tl.arange(0, tile_rows)
    here = row < n
    start = points + row.to(tl.int64)[:, None] * d
    m = tl.load(state + 1)
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
