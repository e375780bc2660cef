"""Nearest neighbours in the memory bank: torch (exact, default) or faiss.

All give squared Euclidean distances, as faiss does; `scoring` decides what becomes of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from patchcore._coarse import coarse_dtype, product_error, sum_error
from patchcore.errors import InputError
from patchcore.settings import setting

_CPU_CHUNK = 2**22  # distances at a time that stay in the processor's cache
_CANDIDATES = 64  # measured at most for one query
_TRACED_SPARE = 3  # measured beyond those asked for, where rounding cannot be bounded
_NOT_FINITE = (
    "patch features are NaN or infinite, or too large for float32: check the images, "
    "backbone.weights and trainer.precision"
)


@dataclass
class IndexConfig:
    """Base of the search back ends."""


@dataclass
class TorchIndexConfig(IndexConfig):
    """Exact search by matrix products, on the memory's device."""

    # working memory in MiB: queries are searched in chunks that fit
    chunk_mib: int = setting(256, effect=False)

    def __post_init__(self) -> None:
        if self.chunk_mib < 1:
            raise InputError(f"index.chunk_mib must be at least 1, got {self.chunk_mib}")


@dataclass
class FaissFlatConfig(IndexConfig):
    """Exact search by faiss."""

    gpu: bool = False  # needs the extra faiss-gpu


@dataclass
class FaissIVFPQConfig(IndexConfig):
    """Approximate search by faiss: inverted lists and product quantisation (paper, Table 5)."""

    lists: int = 512  # inverted lists
    probes: int = 1  # lists searched per query
    sub_quantizers: int = 64  # the feature's size must be a multiple of it
    bits: int = 8  # per sub-quantiser
    train_patches: int | None = None  # that lists and codes are learned from; null: the memory
    gpu: bool = False  # needs the extra faiss-gpu

    def __post_init__(self) -> None:
        for key in ("lists", "probes", "sub_quantizers", "bits"):
            if getattr(self, key) < 1:
                raise InputError(f"index.{key} must be at least 1, got {getattr(self, key)}")
        if self.probes > self.lists:
            raise InputError(f"index.probes must be at most index.lists, got {self.probes}")
        needed = self.needed()
        if self.train_patches is not None and self.train_patches < needed:
            raise InputError(
                f"index.train_patches must be at least {needed}, to train {self.lists} lists and "
                f"{2**self.bits} codes, got {self.train_patches}"
            )

    def needed(self) -> int:
        """Patches that training needs: one for every list, and for every code."""
        return max(self.lists, 2**self.bits)


class Index(Protocol):
    """Search in a fixed memory bank.

    Attributes:
        memory: (M, D) the patch features searched.
    """

    memory: Tensor

    def search(self, queries: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
        """The nearest memory entries of each query.

        Args:
            queries: (Q, D) patch features.
            neighbours: k, at most M.

        Returns:
            distances: (Q, k) squared Euclidean distances, float32, nearest first.
            indices: (Q, k) int64 rows of the memory.
        """
        ...


def build_index(memory: Tensor, config: IndexConfig) -> Index:
    """The search back end that `config` names, over `memory` (M, D)."""
    if isinstance(config, TorchIndexConfig):
        return TorchIndex(memory, config)
    if isinstance(config, FaissFlatConfig):
        return FaissIndex(memory, config)
    if isinstance(config, FaissIVFPQConfig):
        return FaissIndex(memory, config)
    raise TypeError(f"no search back end for {type(config).__name__}")


def search_traced(
    memory: Tensor, queries: Tensor, neighbours: int, config: IndexConfig | None = None
) -> tuple[Tensor, Tensor]:
    """Exact search that `torch.compile`, `torch.export` and `torch.jit.trace` can follow.

    It looks at no value and keeps nothing between calls; distances equal those of `TorchIndex` up
    to rounding. Arguments and results are those of `Index.search`.

    Raises:
        InputError: The back end is approximate, so that its distances could not be had.
    """
    if isinstance(config, FaissIVFPQConfig):
        raise InputError(
            "index=faiss_ivfpq: an approximate search cannot be traced; compile or export the "
            "model with index=torch"
        )
    _check_neighbours(neighbours, len(memory))
    queries = queries.to(memory.dtype)
    centre = memory.mean(0)  # takes length, and with it rounding, from the vectors
    points, centred = memory - centre, queries - centre
    partial = torch.add(points.square().sum(1), centred @ points.T, alpha=-2)  # (Q, M), less ‖q‖²
    few = min(neighbours + _TRACED_SPARE, len(memory))
    rows = partial.topk(few, largest=False).indices.sort(1).values  # (Q, C), lowest row first
    distances = (queries[:, None] - memory[rows]).square().sum(2)  # (Q, C)
    distances, order = distances.sort(dim=1, stable=True)
    return distances[:, :neighbours], rows.gather(1, order[:, :neighbours])


class TorchIndex:
    """Exact search: a matrix product names the candidates, differences decide among them.

    ‖q‖² − 2q·m + ‖m‖² is one matrix product, but rounding blurs it. The blur is bounded, so every
    memory entry that could be nearest within it is measured anew by differences: few, even where
    the processor multiplies bfloat16 several times faster than float32 and is given that.
    """

    def __init__(self, memory: Tensor, config: TorchIndexConfig | None = None) -> None:
        self.memory = memory
        self._chunk = (config or TorchIndexConfig()).chunk_mib * 2**20 // 4
        if memory.device.type == "cpu":
            self._chunk = min(self._chunk, _CPU_CHUNK)
        screen = coarse_dtype(memory)
        self._centre: Tensor | None = None
        points = memory
        if screen != memory.dtype:  # a centre takes length, and with it blur, from the vectors
            self._centre = memory.mean(0)
            points = memory - self._centre
        self._norms = points.float().square().sum(1)  # (M,)
        self._points = points.to(screen)
        dimension = memory.shape[1]
        longest = float(self._norms.max().sqrt()) if len(memory) else 0.0
        if not math.isfinite(longest):
            raise InputError(_NOT_FINITE)
        self._blur = 2 * product_error(screen, dimension) * longest  # of 2q·m, per ‖q‖
        self._blur_norm = sum_error(dimension) * longest**2  # of ‖m‖²

    def search(self, queries: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
        """See `Index.search`. Of equal distances the lowest row comes first."""
        return self.search_prefixes(queries, neighbours, [len(self.memory)])[0]

    def search_prefixes(
        self, queries: Tensor, neighbours: int, sizes: Sequence[int]
    ) -> list[tuple[Tensor, Tensor]]:
        """As `search` in the first n rows of the memory, for each n of ascending `sizes`.

        One matrix product serves all: each size adds only its own rows to what the last one found.
        """
        _check_neighbours(neighbours, sizes[0])
        queries = queries.to(self.memory.dtype)
        width = max(sizes[-1], neighbours * queries.shape[1])
        chunks = queries.split(max(1, self._chunk // width))
        parts = [self._search(chunk, neighbours, sizes) for chunk in chunks]
        return [
            (torch.cat([part[i][0] for part in parts]), torch.cat([part[i][1] for part in parts]))
            for i in range(len(sizes))
        ]

    def _search(
        self, queries: Tensor, neighbours: int, sizes: Sequence[int]
    ) -> list[tuple[Tensor, Tensor]]:
        centred = queries if self._centre is None else queries - self._centre
        lengths = torch.linalg.vector_norm(centred, dim=1, dtype=torch.float32)  # (Q,)
        # A query that is not a number has no candidates, and would be given another's.
        if not bool(lengths.square().isfinite().all()):
            raise InputError(_NOT_FINITE)
        blur = 2 * (self._blur * lengths + self._blur_norm)  # of a difference of two products
        centred = centred.to(self._points.dtype)
        bound = queries.new_full((len(queries),), torch.inf, dtype=torch.float32)  # (Q,)
        found: tuple[Tensor, Tensor] | None = None
        results = []
        for start, stop in zip([0, *sizes[:-1]], sizes, strict=True):
            products = centred @ self._points[start:stop].T  # (Q, m)
            partial = torch.add(self._norms[start:stop], products, alpha=-2)  # (Q, m), less ‖q‖²
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

    def _thin(
        self, query: Tensor, row: Tensor, queries: Tensor, memory: Tensor, most: int
    ) -> tuple[Tensor, Tensor]:
        """Candidates (C,), but where a query has more than `most`, those that float32 puts first.

        Such as among many equal memory entries, whose order no rounding can be asked for.
        """
        count = query.bincount(minlength=len(queries))  # (Q,)
        many = (count > most).nonzero()[:, 0]  # (R,)
        if not len(many):
            return query, row
        few = count[query] <= most
        rows = [row[few]]
        for q in queries[many].split(max(1, self._chunk // len(memory))):
            partial = torch.add(memory.float().square().sum(1), q @ memory.T, alpha=-2)  # (R, m)
            first = partial.topk(most, largest=False).indices  # (R, most)
            rows.append(first.sort(1).values.flatten())
        return torch.cat((query[few], many.repeat_interleave(most))), torch.cat(rows)

    def _decide(
        self,
        queries: Tensor,
        query: Tensor,
        row: Tensor,
        neighbours: int,
        found: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """The k nearest (Q, k) among candidates (C,) and those `found` (Q, k) before."""
        at_once = max(1, self._chunk // queries.shape[1])
        distance = torch.cat(
            [
                (queries[q].float() - self.memory[r].float()).square().sum(1)
                for q, r in zip(query.split(at_once), row.split(at_once), strict=True)
            ]
        )  # (C,)
        if found is not None:
            distance = torch.cat((found[0].flatten(), distance))
            row = torch.cat((found[1].flatten(), row))
            before = torch.arange(len(queries), device=query.device).repeat_interleave(neighbours)
            query = torch.cat((before, query))
        order = distance.argsort(stable=True)
        order = order[query[order].argsort(stable=True)]  # by query, then distance, then row
        count = query.bincount(minlength=len(queries))  # (Q,)
        start = count.cumsum(0) - count  # (Q,)
        best = order[start[:, None] + torch.arange(neighbours, device=start.device)]  # (Q, k)
        return distance[best], row[best]


class FaissIndex:
    """Search by faiss, on CPU or GPU. Distances of an IVFPQ index are those of its codes.

    On a GPU the vectors stay there, and queries that are there too never leave it.
    """

    def __init__(self, memory: Tensor, config: FaissFlatConfig | FaissIVFPQConfig) -> None:
        faiss = _import_faiss(config.gpu)
        if not bool(memory.isfinite().all()):
            raise InputError(_NOT_FINITE)
        self.memory = memory
        self._device = torch.device("cpu")
        if config.gpu:
            on_gpu = memory.device.type == "cuda"
            self._device = memory.device if on_gpu else torch.device("cuda", 0)
        vectors = self._vectors(memory)
        dimension = vectors.shape[1]
        self.index: Any
        training = vectors
        if isinstance(config, FaissFlatConfig):
            self.index = faiss.IndexFlatL2(dimension)
        else:
            _check_ivfpq(config, *vectors.shape)
            self.index = faiss.IndexIVFPQ(
                faiss.IndexFlatL2(dimension),
                dimension,
                config.lists,
                config.sub_quantizers,
                config.bits,
            )
            self.index.nprobe = config.probes
            for clustering in (self.index.cp, self.index.pq.cp):
                clustering.min_points_per_centroid = 1  # no warnings: `_check_ivfpq` has judged
            if config.train_patches is not None and config.train_patches < len(vectors):
                # A greedy coreset begins with the outermost patches: take some from everywhere.
                step = len(vectors) / config.train_patches
                training = vectors[(torch.arange(config.train_patches) * step).long()]
        try:
            if config.gpu:
                options = faiss.GpuClonerOptions()
                # 64 tables of 256 floats exceed what a block may share; flat search stays exact.
                options.useFloat16 = isinstance(config, FaissIVFPQConfig)
                resources, place = faiss.StandardGpuResources(), self._device.index or 0
                self.index = faiss.index_cpu_to_gpu(resources, place, self.index, options)
            self.index.train(training)
            self.index.add(vectors)
        except RuntimeError as error:  # such as a number of bits that faiss lacks on GPUs
            reason = str(error).partition("Error: ")[2] or str(error)
            raise InputError(f"index: faiss refuses: {' '.join(reason.split())}") from error

    def search(self, queries: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
        """See `Index.search`. Where the probed lists hold too few, all are searched."""
        _check_neighbours(neighbours, len(self.memory))
        vectors = self._vectors(queries)
        distances, indices = self.index.search(vectors, neighbours)
        lacking = (indices < 0).any(1).nonzero()[:, 0]  # faiss fills up with −1
        if len(lacking):
            lists = hasattr(self.index, "nprobe")  # flat search leaves nothing out but overflow
            if not lists or not bool(vectors[lacking].isfinite().all()):
                raise InputError(_NOT_FINITE)
            probes, self.index.nprobe = self.index.nprobe, self.index.nlist
            distances[lacking], indices[lacking] = self.index.search(vectors[lacking], neighbours)
            self.index.nprobe = probes
        if bool((indices < 0).any()) or not bool(distances.isfinite().all()):
            raise InputError(_NOT_FINITE)
        return distances.clamp_(min=0).to(queries.device), indices.to(queries.device)

    def _vectors(self, x: Tensor) -> Tensor:
        """As faiss takes them: copied only if they are elsewhere or not float32."""
        return x.to(self._device, torch.float32).contiguous()


class PrefixIndex:
    """Search in the first n entries of a memory for several n at once.

    A coreset of any size begins with the smaller ones, so this is a search in each of them.

    Attributes:
        memory: (M, D) the patch features searched.
        indexes: The search back end of each size, in the order of `sizes`.
    """

    def __init__(self, memory: Tensor, sizes: Sequence[int], config: IndexConfig) -> None:
        if list(sizes) != sorted(set(sizes)) or not sizes or sizes[0] < 1:
            raise ValueError(f"sizes must ascend from 1 or more, got {list(sizes)}")
        if sizes[-1] > len(memory):
            raise ValueError(f"the memory holds {len(memory)} patches, sizes has {sizes[-1]}")
        self.memory = memory
        self.sizes = list(sizes)
        self.indexes = [build_index(memory[:n], config) for n in sizes]

    def search(self, queries: Tensor, neighbours: int) -> list[tuple[Tensor, Tensor]]:
        """`Index.search` of each size; exact torch search costs hardly more than in the largest."""
        largest = self.indexes[-1]
        if isinstance(largest, TorchIndex):
            return largest.search_prefixes(queries, neighbours, self.sizes)
        return [index.search(queries, neighbours) for index in self.indexes]


def _check_neighbours(neighbours: int, size: int) -> None:
    if neighbours > size:
        raise InputError(
            f"{neighbours} neighbours were asked for, but the memory holds {size} patches: lower "
            "scoring.neighbours or scoring.reweight, or keep more (coreset.ratio)"
        )


def _check_ivfpq(config: FaissIVFPQConfig, size: int, dimension: int) -> None:
    if dimension % config.sub_quantizers:
        raise InputError(
            f"index.sub_quantizers={config.sub_quantizers} does not divide the patch feature's "
            f"size {dimension} (patch.channels)"
        )
    if size < config.needed():
        raise InputError(
            f"index=faiss_ivfpq needs at least {config.needed()} patches to train "
            f"{config.lists} lists and {2**config.bits} codes, the memory holds {size}: lower "
            "index.lists and index.bits, keep more (coreset.ratio), or use index=torch"
        )


def _import_faiss(gpu: bool) -> Any:
    try:
        import faiss
        import faiss.contrib.torch_utils  # faiss then takes tensors, on GPUs too
    except ImportError as error:
        extra = "faiss-gpu" if gpu else "faiss"
        raise InputError(
            f"this index needs faiss: pip install 'patchcore[{extra}]', or use index=torch"
        ) from error
    except RuntimeError as error:  # the wheel is there, libraries that it loads are not
        raise InputError(f"faiss cannot be loaded: {error}; or use index=torch") from error
    if gpu and not hasattr(faiss, "StandardGpuResources"):
        raise InputError(
            "index.gpu=true needs faiss built for GPUs: pip uninstall faiss-cpu and "
            "pip install 'patchcore[faiss-gpu]', or set index.gpu=false"
        )
    return faiss
