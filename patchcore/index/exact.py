"""Base of the search back ends, and exact search in torch.

Some processors compute products in bfloat16 several times faster. Such products only preselect
candidates: the final distances are always measured in float32.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from patchcore._precision import full_precision
from patchcore.errors import InputError, counted
from patchcore.settings import Settings, setting

if TYPE_CHECKING:
    from patchcore.index.fused import Screen

NOT_FINITE = (
    "patch features are NaN or infinite, or too large for float32: check the images, "
    "backbone.weights and trainer.precision"
)
_ROUNDOFF = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-9}
_TF32 = 2.0**-10  # of float32 on CUDA where NVIDIA_TF32_OVERRIDE cuts factors off to 10 bits
_CPU_CHUNK = 2**22  # distances at a time that stay in the processor's cache
_CANDIDATES = 64  # measured at most for one query
_TRACED_SPARE = 3  # measured beyond those asked for, where rounding cannot be bounded
_TRACED_ROWS = 2**13  # of the memory at a time: the distances of all would not fit anywhere


@dataclass
class IndexConfig(Settings):
    """Base of the search back ends' settings."""

    GROUP: ClassVar[str] = "index"

    exact: ClassVar[bool] = True
    """True if the nearest patches and their distances are found, up to rounding."""

    def build(self, memory: Float[Tensor, "memory channels"]) -> "Index":
        """Return the back end over a memory."""
        raise TypeError(f"no search back end for {type(self).__name__}")


@runtime_checkable
class Index(Protocol):
    """Search in a fixed memory bank.

    Attributes:
        memory: Patch features searched, (memory, channels).
    """

    memory: Tensor

    def search(
        self, queries: Float[Tensor, "queries channels"], neighbours: int
    ) -> tuple[Float32[Tensor, "queries neighbours"], Int64[Tensor, "queries neighbours"]]:
        """Return the nearest memory entries of each query.

        Args:
            queries: Patch features.
            neighbours: How many are wanted, at most the size of the memory.

        Returns:
            distances: Squared Euclidean distances, nearest first.
            indices: Rows of the memory.

        Raises:
            InputError: The memory holds fewer patches than neighbours are wanted.
        """
        ...


def build_index(memory: Float[Tensor, "memory channels"], config: IndexConfig) -> Index:
    """Return the search back end that `config` describes, over a memory."""
    return config.build(memory)


def check_neighbours(neighbours: int, size: int) -> None:
    if neighbours > size:
        raise InputError(
            f"{neighbours} neighbours were asked for, but the memory holds "
            f"{counted(size, 'patch')}: lower "
            "scoring.neighbours or scoring.reweight, or keep more patches "
            "(coreset.ratio or coreset.count)"
        )


def coarse_dtype(like: Tensor) -> torch.dtype:
    """bfloat16 for float32 on a processor with instructions for its products, else `like`'s.

    On CUDA at least float32: products of half precision may be summed in half precision there.
    """
    if like.is_cuda:
        return torch.promote_types(like.dtype, torch.float32)
    if like.device.type != "cpu" or like.dtype != torch.float32:
        return like.dtype
    supported = [f"_is_{name}_supported" for name in ("avx512_bf16", "amx_tile")]
    fast = any(getattr(torch.cpu, name, bool)() for name in supported)
    return torch.bfloat16 if fast else torch.float32


def product_error(points: Tensor) -> float:
    """Largest error of a product x·y of vectors (n, D) like `points`, as a share of |x| |y|.

    Both factors and the result are rounded; sums over the dimension are float32.
    """
    roundoff = _ROUNDOFF[points.dtype]
    if points.is_cuda and os.environ.get("NVIDIA_TF32_OVERRIDE", "0") != "0":
        roundoff = max(roundoff, _TF32)
    return 3 * roundoff + sum_error(points.shape[1])


def sum_error(dimension: int) -> float:
    """Largest error of a float32 sum of so many terms, as a share of the sum of their sizes."""
    return dimension * 2.0**-24


@dataclass
class TorchIndexConfig(IndexConfig):
    """Exact search by matrix products, on the memory's device."""

    chunk_mib: int = setting(
        256,
        "working memory; queries are searched in chunks that fit into it",
        unit="MiB",
        low=1,
        effect=False,
    )

    def build(self, memory: Float[Tensor, "memory channels"]) -> "Index":
        return TorchIndex(memory, self)


def search_traced(
    memory: Float[Tensor, "memory channels"],
    queries: Float[Tensor, "queries channels"],
    neighbours: int,
    config: IndexConfig | None = None,
) -> tuple[Float[Tensor, "queries neighbours"], Int64[Tensor, "queries neighbours"]]:
    """Exact search that `torch.compile`, `torch.export` and `torch.jit.trace` can follow.

    It does not depend on any tensor's values and keeps nothing between calls. Its distances equal
    those of `TorchIndex` up to rounding. Arguments and results are those of `Index.search`.

    Raises:
        InputError: The back end is approximate, so its distances cannot be reproduced.
    """
    if config is not None and not config.exact:
        raise InputError(
            "index: an approximate search cannot be traced; compile or export the model with "
            "index=torch"
        )
    check_neighbours(neighbours, len(memory))
    queries = queries.to(memory.dtype)
    centre = memory.mean(0)  # takes length, and with it rounding, from the vectors
    points, centred = memory - centre, queries - centre
    few = neighbours + _TRACED_SPARE
    partial, candidates = [], []
    for start in range(0, len(memory), _TRACED_ROWS):
        block = points[start : start + _TRACED_ROWS]  # (m, D)
        squared = torch.addmm(block.square().sum(1), centred, block.T, alpha=-2)  # less ‖q‖²
        nearest = squared.topk(min(few, len(block)), largest=False)  # of (Q, m)
        partial.append(nearest.values)
        candidates.append(nearest.indices + start)
    rows = torch.cat(candidates, 1)  # (Q, few of each block)
    if len(candidates) > 1:
        best = torch.cat(partial, 1).topk(min(few, rows.shape[1]), largest=False).indices
        rows = rows.gather(1, best)
    rows = rows.sort(1).values  # (Q, C), lowest row first
    distances = (queries[:, None] - memory[rows]).square().sum(2)  # (Q, C)
    distances, order = distances.sort(dim=1, stable=True)
    return distances[:, :neighbours], rows.gather(1, order[:, :neighbours])


class TorchIndex:
    """Exact search: a matrix product names the candidates, differences decide among them.

    ‖q‖² − 2q·m + ‖m‖² needs only one matrix product, but has a rounding error. This error is
    bounded. Every memory entry that could be nearest within the bound is a candidate and is
    measured again by differences. There are few candidates, even if the product is computed in
    bfloat16. On CUDA, `fused` finds the candidates.
    """

    def __init__(
        self, memory: Float[Tensor, "memory channels"], config: TorchIndexConfig | None = None
    ) -> None:
        self.memory = memory
        self._chunk = (config or TorchIndexConfig()).chunk_mib * 2**20 // 4
        if memory.device.type == "cpu":
            self._chunk = min(self._chunk, _CPU_CHUNK)
        self._screen = _fused_screen(memory)
        if self._screen is None:
            self._products  # noqa: B018 (made now, so that what is not finite is told now)
        elif not self._screen.finite:
            raise InputError(NOT_FINITE)

    @cached_property
    def _products(self) -> "_Products":
        return _Products(self.memory)

    def search(
        self, queries: Float[Tensor, "queries channels"], neighbours: int
    ) -> tuple[Float32[Tensor, "queries neighbours"], Int64[Tensor, "queries neighbours"]]:
        """See `Index.search`. Of equal distances the lowest row comes first."""
        (found,) = self.search_prefixes(queries, neighbours, [len(self.memory)])
        return found

    def search_prefixes(
        self,
        queries: Float[Tensor, "queries channels"],
        neighbours: int,
        sizes: Sequence[int],
    ) -> list[tuple[Tensor, Tensor]]:
        """Return the results of `search` in the first n rows of the memory, for n in rising
        `sizes`.

        One matrix product serves all: each size adds only its own rows to what the last one found.
        """
        check_neighbours(neighbours, sizes[0])
        queries = queries.to(self.memory.dtype)
        if self._screen is not None and neighbours <= self._screen.tiles(sizes[0]):
            width = self._screen.width(sizes[-1])
            chunks = queries.contiguous().split(max(1, self._chunk // width))
            parts = [self._search_fused(self._screen, x, neighbours, sizes) for x in chunks]
        else:
            parts = self._search_plain(queries, neighbours, sizes)
        return [
            (torch.cat([part[i][0] for part in parts]), torch.cat([part[i][1] for part in parts]))
            for i in range(len(sizes))
        ]

    def _search_plain(
        self, queries: Float[Tensor, "queries channels"], neighbours: int, sizes: Sequence[int]
    ) -> list[list[tuple[Tensor, Tensor]]]:
        """Results of `search_prefixes`, in parts for some queries each."""
        width = max(sizes[-1], neighbours * queries.shape[1])
        chunks = queries.split(max(1, self._chunk // width))
        return [self._search(chunk, neighbours, sizes) for chunk in chunks]

    def _search(
        self,
        queries: Float[Tensor, "queries channels"],
        neighbours: int,
        sizes: Sequence[int],
    ) -> list[tuple[Tensor, Tensor]]:
        centred, blur = self._products.centred(queries)
        bound = queries.new_full((len(queries),), torch.inf, dtype=torch.float32)  # (Q,)
        found: tuple[Tensor, Tensor] | None = None
        results = []
        for start, stop in zip([0, *sizes[:-1]], sizes, strict=True):
            with full_precision(queries.device):
                products = centred @ self._products.points[start:stop].T  # (Q, m)
            norms = self._products.norms[start:stop]
            partial = torch.add(norms, products, alpha=-2)  # (Q, m), less ‖q‖²
            if neighbours == 1 and stop > start:
                bound = torch.minimum(bound, partial.amin(1))  # several times faster than topk
            elif neighbours <= stop - start:
                nearest = partial.topk(neighbours, largest=False).values  # (Q, k)
                bound = torch.minimum(bound, nearest[:, -1])
            query, row = (partial <= (bound + blur)[:, None]).nonzero(as_tuple=True)  # (C,)
            most = max(_CANDIDATES, 2 * neighbours)
            query, row = self._thin(query, row, queries, self.memory[start:stop], most)
            found = self._decide(queries, query, row + start, neighbours, found)
            results.append(found)
        return results

    def _search_fused(
        self,
        screen: "Screen",
        queries: Float[Tensor, "queries channels"],
        neighbours: int,
        sizes: Sequence[int],
    ) -> list[tuple[Tensor, Tensor]]:
        """Search like `_search`, which handles only the queries that the screening leaves open."""
        rounded = screen.round(queries)
        most = max(_CANDIDATES, 2 * neighbours)
        found: tuple[Tensor, Tensor] | None = None
        results, unsettled = [], []
        for start, stop in zip([0, *sizes[:-1]], sizes, strict=True):
            reach = None if found is None else found[0][:, -1]
            query, row, rest = screen.candidates(
                queries, rounded, start, stop, neighbours, most, reach
            )
            found = self._decide(queries, query, row, neighbours, found)
            results.append(found)
            unsettled.append(rest)
        if any(map(len, unsettled)):
            again = torch.cat(unsettled).unique()
            parts = self._search_plain(queries[again], neighbours, sizes)
            for i, (distances, rows) in enumerate(results):
                distances[again] = torch.cat([part[i][0] for part in parts])
                rows[again] = torch.cat([part[i][1] for part in parts])
        return results

    def _thin(
        self,
        query: Int64[Tensor, " candidates"],
        row: Int64[Tensor, " candidates"],
        queries: Float[Tensor, "queries channels"],
        memory: Float[Tensor, "memory channels"],
        most: int,
        allowed: Bool[Tensor, "queries memory"] | None = None,
    ) -> tuple[Int64[Tensor, " kept"], Int64[Tensor, " kept"]]:
        """Drop the farthest candidates of a query that has more than `most`.

        A query has so many candidates only among memory entries that are equal, or nearly so, for
        float32; here they are compared in float64. Entries that are not `allowed` are never
        candidates.
        """
        count = query.bincount(minlength=len(queries))  # (Q,)
        many = (count > most).nonzero()[:, 0]  # (R,)
        if not len(many):
            return query, row
        few = count[query] <= most
        rows = [row[few]]
        points = memory.double()
        norms = points.square().sum(1)
        for some in many.split(max(1, self._chunk // len(memory))):
            partial = torch.add(norms, queries[some].double() @ points.T, alpha=-2)  # (R, m)
            if allowed is not None:
                partial = partial.masked_fill(~allowed[some], torch.inf)
            first = partial.topk(most, largest=False).indices  # (R, most)
            rows.append(first.sort(1).values.flatten())
        return torch.cat((query[few], many.repeat_interleave(most))), torch.cat(rows)

    def _decide(
        self,
        queries: Float[Tensor, "queries channels"],
        query: Int64[Tensor, " candidates"],
        row: Int64[Tensor, " candidates"],
        neighbours: int,
        found: tuple[Tensor, Tensor] | None,
    ) -> tuple[Float32[Tensor, "queries neighbours"], Int64[Tensor, "queries neighbours"]]:
        """Nearest among the candidates and those `found` before, by distance, then by row.

        Candidates of one query must come in the order of their rows.
        """
        distance = self._measure(queries, query, row)  # (C,)
        if found is not None:
            distance = torch.cat((found[0].flatten(), distance))
            row = torch.cat((found[1].flatten(), row))
            before = torch.arange(len(queries), device=query.device).repeat_interleave(neighbours)
            query = torch.cat((before, query))
        if neighbours == 1 and distance.is_cuda:
            return nearest_of_each(len(queries), query, row, distance)
        order = distance.argsort(stable=True)
        order = order[query[order].argsort(stable=True)]  # by query, then distance, then row
        count = query.bincount(minlength=len(queries))  # (Q,)
        start = count.cumsum(0) - count  # (Q,)
        best = order[start[:, None] + torch.arange(neighbours, device=start.device)]  # (Q, k)
        return distance[best], row[best]

    def _measure(
        self,
        queries: Float[Tensor, "queries channels"],
        query: Int64[Tensor, " pairs"],
        row: Int64[Tensor, " pairs"],
    ) -> Float32[Tensor, " pairs"]:
        """Squared distances by differences, in float32, of pairs of a query and a memory row."""
        if self._screen is not None:
            return self._screen.measure(queries, query, row)
        at_once = max(1, self._chunk // queries.shape[1])
        return torch.cat(
            [
                (queries[q].float() - self.memory[r].float()).square().sum(1)
                for q, r in zip(query.split(at_once), row.split(at_once), strict=True)
            ]
        )


class _Products:
    """A memory in the form in which it is multiplied, and the error of such a product.

    Attributes:
        points: (M, D) the memory, in the dtype of the product.
        norms: (M,) squared lengths of the points.
    """

    def __init__(self, memory: Float[Tensor, "memory channels"]) -> None:
        screen = coarse_dtype(memory)
        self._centre: Tensor | None = None
        points = memory
        if screen != memory.dtype or memory.is_cuda:  # a centre takes length, so blur, from all
            self._centre = memory.mean(0)
            points = memory - self._centre
        self.norms = points.float().square().sum(1)  # (M,)
        self.points = points.to(screen)
        longest = float(self.norms.max().sqrt()) if len(memory) else 0.0
        if not math.isfinite(longest):
            raise InputError(NOT_FINITE)
        self._blur = 2 * product_error(self.points) * longest  # of 2q·m, per ‖q‖
        self._blur_norm = sum_error(memory.shape[1]) * longest**2  # of ‖m‖²

    def centred(
        self, queries: Float[Tensor, "queries channels"]
    ) -> tuple[Float[Tensor, "queries channels"], Float32[Tensor, " queries"]]:
        """Queries in the form in which they are multiplied, and the largest error of a difference
        of two products.
        """
        centred = queries if self._centre is None else queries - self._centre
        lengths = torch.linalg.vector_norm(centred, dim=1, dtype=torch.float32)  # (Q,)
        # A query that is not a number has no candidates, and would be given another's.
        if not bool(lengths.square().isfinite().all()):
            raise InputError(NOT_FINITE)
        blur = 2 * (self._blur * lengths + self._blur_norm)
        return centred.to(self.points.dtype), blur


def nearest_of_each(
    count: int,
    query: Int64[Tensor, " pairs"],
    row: Int64[Tensor, " pairs"],
    distance: Float32[Tensor, " pairs"],
) -> tuple[Float32[Tensor, "queries 1"], Int64[Tensor, "queries 1"]]:
    """Least distance of each of `count` queries and its row, of equal ones the lowest.

    On CUDA several times faster than to sort the pairs; every query must be in one.
    """
    least = distance.new_full((count,), torch.inf).scatter_reduce_(0, query, distance, "amin")
    last = torch.iinfo(torch.int64).max
    rows = row.where(distance == least[query], last)
    lowest = torch.full_like(least, last, dtype=torch.int64).scatter_reduce_(0, query, rows, "amin")
    return least[:, None], lowest[:, None]


def _fused_screen(memory: Float[Tensor, "memory channels"]) -> "Screen | None":
    """Half-precision screening of the memory; None if it is not available."""
    if not memory.is_cuda or not len(memory):
        return None
    try:
        from patchcore.index import fused  # needs Triton, which not every build of PyTorch has
    except ImportError:
        return None
    return fused.Screen(memory) if fused.usable(memory) else None
