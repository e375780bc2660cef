"""Screening on CUDA in half precision: all memory rows that could be nearest.

Memory and queries are centred, scaled and rounded to float16. One Triton kernel computes the
product, the distances and their minima over tiles of the memory, so no matrix of distances is ever
stored. The best row of each query is measured in float32. A second kernel looks into every tile
whose minimum could be nearer than this, and lists the rows that could be. The bound is rigorous:

    δ distance of a query from a row; H distance of their roundings; E, F lengths of what rounding
    took from query and row, both measured; so |δ − H| ≤ E + F by the triangle inequality
    h = H² as the tensor cores sum it, off by at most η (|q|² + |p|²): see `_slack`

A row of h > (U + E + F)² + η (|q|² + |p|²) is farther than U. Its naive version is the comparison
with all distances in tests/test_fused.py.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from patchcore.errors import InputError
from patchcore.index.exact import NOT_FINITE

_QUERIES, _ROWS, _DEPTH, _GROUP = 128, 256, 64, 8  # tile of the product; query blocks in a group
_OPENED = 64  # pairs of a query and a tile that one program opens
_ROUNDED, _MEASURED, _COMPARED = 4, 8, 1024  # vectors, pairs and minima of one program
_TILES = 32  # opened at most for one query
_LARGEST = 65504.0  # finite float16
_MARGIN = tl.constexpr(1 + 2.0**-19)  # covers the rounding of the bounds themselves


def usable(memory: Tensor) -> bool:
    """Whether the kernels can search this memory: their bound holds for NVIDIA's tensor cores."""
    known = memory.dtype in (torch.float32, torch.float16, torch.bfloat16)
    if not memory.is_cuda or torch.version.hip is not None:
        return False
    return known and torch.cuda.get_device_capability(memory.device) >= (8, 0)


@dataclass
class Rounded:
    """Vectors centred, scaled and rounded to float16.

    Attributes:
        halves: (rows, depth) float16; both sides are filled up with zeros to whole tiles.
        norms: (rows,) squared lengths of `halves`.
        errors: (rows,) length of the rounding error.
        squares: (rows,) squared lengths before scaling; not finite where float32 cannot hold them.
    """

    halves: Tensor
    norms: Float32[Tensor, " rows"]
    errors: Float32[Tensor, " rows"]
    squares: Float32[Tensor, " rows"]


class Screen:
    """Half-precision screening of one memory.

    Attributes:
        memory: Patch features searched, (memory, channels).
        finite: Whether all of them are finite and can be squared in float32.
    """

    def __init__(self, memory: Float[Tensor, "memory channels"]) -> None:
        self.memory = memory.contiguous()
        self._centre = memory.mean(0, dtype=torch.float32)  # takes length, so rounding, from all
        longest = float((self.memory.float() - self._centre).abs().max())
        # A power of two that leaves queries room for elements 256 times as large as the memory's.
        exponent = min(8 - math.frexp(longest)[1], 100) if math.isfinite(longest) else 0
        self._scale = 2.0**exponent
        self._points = self.round(self.memory)
        self._stages = _stages(memory.device)
        self._bounds: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.finite = bool(self._points.squares.isfinite().all())
        self._slack = _slack(memory.shape[1])

    def tiles(self, rows: int) -> int:
        """Number of tiles that so many rows take."""
        return triton.cdiv(rows, _ROWS)

    def width(self, rows: int) -> int:
        """Working memory for one query against so many rows, in numbers of 4 bytes."""
        return 4 * self.tiles(rows) + self.memory.shape[1]

    def round(self, queries: Float[Tensor, "queries channels"]) -> Rounded:
        """Round queries as the memory is rounded."""
        count, dimension = queries.shape
        rows = triton.cdiv(count, _QUERIES) * _QUERIES
        depth = triton.cdiv(dimension, _DEPTH) * _DEPTH
        halves = torch.empty(rows, depth, dtype=torch.float16, device=queries.device)
        halves[count:] = 0
        norms, errors, squares = torch.zeros(3, rows, device=queries.device)
        if count:
            with torch.cuda.device_of(queries):
                _round[(triton.cdiv(count, _ROUNDED),)](
                    queries, self._centre, halves, norms, errors, squares, self._scale, _LARGEST,
                    count, dimension, depth, _ROUNDED, triton.next_power_of_2(depth), num_warps=8,
                )  # fmt: skip
        return Rounded(halves, norms, errors, squares)

    def candidates(
        self,
        queries: Float[Tensor, "queries channels"],
        rounded: Rounded,
        start: int,
        stop: int,
        neighbours: int,
        most: int,
        reach: Float32[Tensor, " queries"] | None = None,
    ) -> tuple[Int64[Tensor, " found"], Int64[Tensor, " found"], Int64[Tensor, " unsettled"]]:
        """Find all rows from `start` to `stop` that could be among a query's nearest.

        Args:
            queries: Contiguous, in the memory's dtype.
            rounded: The same, rounded.
            start: First row of the memory to search.
            stop: End of the rows to search.
            neighbours: How many are wanted.
            most: Candidates that a query may have; with more it is not settled.
            reach: Squared distances beyond which rows are of no interest; None: unknown, which
                needs as many tiles as neighbours.

        Returns:
            query, row: Candidates, those of a query in the order of their rows. Without `reach` a
                query has at least `neighbours` of them.
            unsettled: Queries with too many candidates: those given are some near ones.

        Raises:
            InputError: Queries are NaN or infinite, or too large for float32.
        """
        tiles = self.tiles(stop - start)
        near = min(neighbours, tiles)
        minima = self._minima(rounded, start, stop, len(queries))  # (T, Q)
        if near == 1:
            key, tile = minima.min(0, keepdim=True)  # (1, Q), several times faster than topk
        else:
            key, tile = minima.topk(near, 0, largest=False)  # (k, Q)
        nearest = (start + tile * _ROWS + (key & (_ROWS - 1))).clamp_(max=stop - 1)  # (k, Q)
        query = torch.arange(len(queries), device=nearest.device).expand_as(nearest)
        measured = self.measure(queries, query.flatten(), nearest.flatten())
        bound = measured.view_as(nearest).amax(0)  # (Q,): k rows, of different tiles, are as near
        if reach is not None:
            bound = torch.minimum(bound, reach) if near == neighbours else reach
        # A row that float32 measures as nearer may be farther, by the rounding of both results.
        rounding = 1 + (queries.shape[1] + 4) * 2.0**-24
        limit = bound.sqrt() * (self._scale * rounding) + rounded.errors[: len(queries)]  # (Q,)
        opening = self._near(minima, rounded, limit, start, stop)  # (T, Q)
        opened = opening.sum(0)  # (Q,)
        opening &= opened <= _TILES
        tile, query = opening.nonzero(as_tuple=True)  # (P,), in the order of the tiles
        inside = self._inside(rounded, tile, query, opening.sum(1), limit, start, stop)
        count = opened.new_zeros(len(queries)).index_add_(0, query, inside.sum(1))
        unsettled = (opened > _TILES) | (count > most)  # (Q,)
        inside &= ~unsettled[query, None]
        pair, column = inside.nonzero(as_tuple=True)
        query, row = query[pair], start + tile[pair] * _ROWS + column
        # Read together, for each reading waits for the device.
        finite, some = torch.stack((rounded.squares.isfinite().all(), unsettled.any())).tolist()
        if not finite:
            raise InputError(NOT_FINITE)
        if not some:
            return query, row, query[:0]
        rest = unsettled.nonzero()[:, 0]
        return (
            torch.cat((query, rest.repeat_interleave(near))),
            torch.cat((row, nearest.T[rest].flatten())),
            rest,
        )

    def measure(
        self,
        queries: Float[Tensor, "queries channels"],
        query: Int64[Tensor, " pairs"],
        row: Int64[Tensor, " pairs"],
    ) -> Float32[Tensor, " pairs"]:
        """Squared distances by differences, in float32, of pairs of a query and a memory row."""
        distances = torch.empty(len(query), device=queries.device)
        if len(query):
            with torch.cuda.device_of(queries):
                _measure[(triton.cdiv(len(query), _MEASURED),)](
                    queries, self.memory, query, row, distances, len(query), queries.shape[1],
                    _MEASURED, 128, num_warps=4,
                )  # fmt: skip
        return distances

    def _minima(self, rounded: Rounded, start: int, stop: int, count: int) -> Tensor:
        """Least h of each tile and query, (T, Q): the bits of a float32, the last ones its row's
        place in the tile."""
        rows, depth = rounded.halves.shape
        tiles, blocks = self.tiles(stop - start), rows // _QUERIES
        minima = torch.empty(tiles, rows, dtype=torch.int32, device=rounded.halves.device)
        with torch.cuda.device_of(minima):
            _minima[(tiles * blocks,)](
                rounded.halves, self._points.halves, rounded.norms, self._points.norms, minima,
                start, stop, rows, blocks, tiles, depth, _QUERIES, _ROWS, _DEPTH, _GROUP,
                num_warps=8, num_stages=self._stages,
            )  # fmt: skip
        return minima[:, :count]

    def _near(
        self, minima: Tensor, rounded: Rounded, limit: Tensor, start: int, stop: int
    ) -> Tensor:
        """Mask (T, Q) of the tiles that may hold candidates of a query."""
        tiles, count = minima.shape
        near = torch.empty(tiles, count, dtype=torch.bool, device=minima.device)
        if (start, stop) not in self._bounds:
            self._bounds[start, stop] = (
                _of_tiles(self._points.errors[start:stop]),
                _of_tiles(self._points.norms[start:stop]),
            )
        errors, norms = self._bounds[start, stop]
        with torch.cuda.device_of(minima):
            _near[(triton.cdiv(count, _COMPARED), tiles)](
                minima, rounded.norms, limit, norms, errors, near.view(torch.int8),
                count, minima.stride(0), self._slack, _COMPARED, _ROWS,
            )  # fmt: skip
        return near

    def _inside(
        self,
        rounded: Rounded,
        tile: Int64[Tensor, " pairs"],
        query: Int64[Tensor, " pairs"],
        count: Int64[Tensor, " tiles"],
        limit: Tensor,
        start: int,
        stop: int,
    ) -> Tensor:
        """Mask (P, rows of a tile) of the rows that are candidates of a pair of tile and query.

        The pairs come in the order of their tiles, of which each has `count`.
        """
        inside = torch.empty(len(tile), _ROWS, dtype=torch.bool, device=tile.device)
        if not len(tile):
            return inside
        last = count.cumsum(0)
        ends = ((count + _OPENED - 1) // _OPENED).cumsum(0)  # (T,) programs up to each tile's last
        program = torch.arange(len(tile) // _OPENED + len(count), device=tile.device)  # enough
        with torch.cuda.device_of(inside):
            _inside[(len(program),)](
                rounded.halves, self._points.halves, rounded.norms, self._points.norms,
                self._points.errors, limit, query, torch.searchsorted(ends, program, right=True),
                ends, count, last, inside.view(torch.int8), start, stop, len(count), self._slack,
                rounded.halves.shape[1], _OPENED, _ROWS, _DEPTH,
                num_warps=8, num_stages=self._stages,
            )  # fmt: skip
        return inside


def _stages(device: torch.device) -> int:
    """Number of steps of the product that are loaded ahead: as many as fit into shared memory."""
    if device.type != "cuda":  # the interpreter
        return 1
    properties = torch.cuda.get_device_properties(device)
    shared: int = getattr(properties, "shared_memory_per_block_optin", 0)  # bytes; from 2.8 on
    return max(1, min(4, shared // (2 * _DEPTH * (_QUERIES + _ROWS))))


def _of_tiles(values: Float32[Tensor, " rows"]) -> Float32[Tensor, " tiles"]:
    """Largest value of each tile of the rows."""
    return torch.stack([part.max() for part in values.split(_ROWS)])


def _slack(dimension: int) -> float:
    """η: error of h as a share of |q|² + |p|².

    Products of float16 are exact in float32. Tensor cores cut sums off where other units round, so
    that each addition errs by less than 2⁻²³ of the sum of sizes, |q| |p| at most; from Ampere on
    they keep at least as much (Fasi et al., Numerical behavior of NVIDIA tensor cores, 2021). The
    norms are rounded once, and h is two additions of them.
    """
    return dimension * 2.0**-23 + 2.0**-21


# Sizes are not specialised for, or each other one might be compiled anew for seconds.
@triton.jit(do_not_specialize=["count"])
def _round(  # type: ignore[no-untyped-def]
    vectors, centre, halves, norms, errors, squares, scale, largest, count, d,
    depth: tl.constexpr, tile_rows: tl.constexpr, tile_depth: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * tile_rows + tl.arange(0, tile_rows)
    axis = tl.arange(0, tile_depth)[None, :]
    here = (row < count)[:, None]
    x = tl.load(vectors + row[:, None] * d + axis, here & (axis < d), 0.0).to(tl.float32)
    x -= tl.load(centre + axis, axis < d, 0.0)
    tl.store(squares + row, tl.sum(x * x, 1), row < count)
    x = x * scale
    fits = tl.max(tl.abs(x), 1) <= largest  # else all is lost: zeros, and an error as long
    half = tl.where(fits[:, None], x, 0.0).to(tl.float16)
    tl.store(halves + row[:, None] * depth + axis, half, here & (axis < depth))
    kept, exact = half.to(tl.float64), x.to(tl.float64)
    lost = tl.sqrt(tl.sum((exact - kept) * (exact - kept), 1))
    lost += tl.sqrt(tl.sum(exact * exact, 1)) * 5.97e-8  # 2⁻²⁴ and more: the centre's subtraction
    tl.store(norms + row, tl.sum(kept * kept, 1).to(tl.float32), row < count)
    tl.store(errors + row, (lost * _MARGIN).to(tl.float32), row < count)


@triton.jit(do_not_specialize=["start", "stop", "stride", "blocks", "tiles"])
def _minima(  # type: ignore[no-untyped-def]
    queries, points, query_norms, point_norms, minima, start, stop, stride, blocks, tiles,
    depth: tl.constexpr, tile_queries: tl.constexpr, tile_rows: tl.constexpr,
    tile_depth: tl.constexpr, group: tl.constexpr,
):  # fmt: skip
    # Programs that run together share tiles, so that both factors stay in the cache.
    program = tl.program_id(0)
    first = program // (group * tiles) * group
    together = tl.minimum(blocks - first, group)
    block = first + program % (group * tiles) % together
    tile = program % (group * tiles) // together
    query = block * tile_queries + tl.arange(0, tile_queries)
    column = tl.arange(0, tile_rows)
    row = start + tile * tile_rows + column
    row = tl.minimum(row, stop - 1)
    axis = tl.arange(0, tile_depth)
    q = queries + query.to(tl.int64)[:, None] * depth + axis[None, :]
    p = points + row.to(tl.int64)[:, None] * depth + axis[None, :]
    inner = tl.zeros((tile_queries, tile_rows), tl.float32)
    for i in range(0, depth, tile_depth):
        inner = tl.dot(tl.load(q + i), tl.trans(tl.load(p + i)), inner)
    norms = tl.load(query_norms + query)[:, None] + tl.load(point_norms + row)[None, :]
    h = tl.maximum(norms - 2 * inner, 0.0)
    # Bits of floats that are not negative rise as they do; the lowest ones make room for the row.
    key = (h.to(tl.int32, bitcast=True) & -tile_rows) | column[None, :]
    tl.store(minima + tile.to(tl.int64) * stride + query, tl.min(key, 1))


@triton.jit(do_not_specialize=["count", "stride"])
def _near(  # type: ignore[no-untyped-def]
    minima, query_norms, limits, tile_norms, tile_errors, near, count, stride, slack,
    tile_queries: tl.constexpr, tile_rows: tl.constexpr,
):  # fmt: skip
    query = tl.program_id(0) * tile_queries + tl.arange(0, tile_queries)
    tile = tl.program_id(1).to(tl.int64)
    here = query < count
    key = tl.load(minima + tile * stride + query, here, 0)
    least = (key & -tile_rows).to(tl.float32, bitcast=True)
    norms = tl.load(query_norms + query, here, 0.0) + tl.load(tile_norms + tile)
    reach = tl.load(limits + query, here, 0.0) + tl.load(tile_errors + tile)
    bound = (reach * reach + slack * norms) * _MARGIN
    tl.store(near + tile * count + query, (least <= bound).to(tl.int8), here)


@triton.jit(do_not_specialize=["start", "stop", "tiles"])
def _inside(  # type: ignore[no-untyped-def]
    queries, points, query_norms, point_norms, point_errors, limits, of, tile_of, ends,
    counts, lasts, inside, start, stop, tiles, slack,
    depth: tl.constexpr, tile_pairs: tl.constexpr, tile_rows: tl.constexpr,
    tile_depth: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    tile = tl.load(tile_of + program)
    if tile >= tiles:  # one program more than are needed
        return
    count, last = tl.load(counts + tile), tl.load(lasts + tile)
    number = program - tl.load(ends + tile) + tl.cdiv(count, tile_pairs)  # of this tile's programs
    pair = last - count + number * tile_pairs + tl.arange(0, tile_pairs)
    here = pair < last
    query = tl.load(of + pair, here, 0)
    column = tl.arange(0, tile_rows)
    row = start + tile * tile_rows + column
    there = row < stop
    row = tl.minimum(row, stop - 1)
    axis = tl.arange(0, tile_depth)
    q = queries + query[:, None] * depth + axis[None, :]
    p = points + row[:, None] * depth + axis[None, :]
    inner = tl.zeros((tile_pairs, tile_rows), tl.float32)
    for i in range(0, depth, tile_depth):
        inner = tl.dot(tl.load(q + i), tl.trans(tl.load(p + i)), inner)
    norms = tl.load(query_norms + query)[:, None] + tl.load(point_norms + row)[None, :]
    reach = tl.load(limits + query)[:, None] + tl.load(point_errors + row)[None, :]
    near = norms - 2 * inner <= (reach * reach + slack * norms) * _MARGIN
    near = near & there[None, :]
    tl.store(inside + pair[:, None] * tile_rows + column[None, :], near.to(tl.int8), here[:, None])


@triton.jit(do_not_specialize=["count"])
def _measure(  # type: ignore[no-untyped-def]
    queries, memory, query, row, distances, count, d,
    tile_pairs: tl.constexpr, tile_depth: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0).to(tl.int64) * tile_pairs + tl.arange(0, tile_pairs)
    here = pair < count
    q = queries + tl.load(query + pair, here, 0)[:, None] * d
    m = memory + tl.load(row + pair, here, 0)[:, None] * d
    total = tl.zeros((tile_pairs, tile_depth), tl.float32)
    for i in range(0, d, tile_depth):
        axis = i + tl.arange(0, tile_depth)[None, :]
        x = tl.load(q + axis, axis < d, 0.0).to(tl.float32)
        x -= tl.load(m + axis, axis < d, 0.0).to(tl.float32)
        total += x * x
    tl.store(distances + pair, tl.sum(total, 1), here)
