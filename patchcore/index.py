"""Nearest neighbours in the memory bank: torch (exact, default) or faiss.

All give squared Euclidean distances, as faiss does; `scoring` decides what becomes of them.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from patchcore.errors import InputError


@dataclass
class IndexConfig:
    """Base of the search back ends."""


@dataclass
class TorchIndexConfig(IndexConfig):
    """Exact search by matrix products, on the memory's device."""

    chunk_mib: int = 256  # working memory in MiB: queries are searched in chunks that fit

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
    gpu: bool = False  # needs the extra faiss-gpu

    def __post_init__(self) -> None:
        for key in ("lists", "probes", "sub_quantizers", "bits"):
            if getattr(self, key) < 1:
                raise InputError(f"index.{key} must be at least 1, got {getattr(self, key)}")
        if self.probes > self.lists:
            raise InputError(f"index.probes must be at most index.lists, got {self.probes}")


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


class TorchIndex:
    """Exact search: ‖q‖² − 2q·m + ‖m‖² finds the neighbours, differences give their distances.

    The expanded form is one matrix product, but loses small distances to rounding; so only the
    choice of neighbours rests on it, and the distances returned are computed anew.
    """

    def __init__(self, memory: Tensor, config: TorchIndexConfig | None = None) -> None:
        self.memory = memory
        self._norms = memory.float().square().sum(1)  # (M,)
        self._chunk = (config or TorchIndexConfig()).chunk_mib * 2**20 // 4

    def search(self, queries: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
        """See `Index.search`."""
        _check_neighbours(neighbours, len(self.memory))
        queries = queries.to(self.memory.dtype)
        width = max(len(self.memory), neighbours * queries.shape[1])
        parts = [self._search(q, neighbours) for q in queries.split(max(1, self._chunk // width))]
        distances, indices = zip(*parts, strict=True)
        return torch.cat(distances), torch.cat(indices)

    def _search(self, queries: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
        partial = (queries @ self.memory.T).float().mul_(-2).add_(self._norms)  # (Q, M), less ‖q‖²
        if neighbours == 1:
            indices = partial.argmin(1, keepdim=True)  # (Q, 1), several times faster than topk
        else:
            indices = partial.topk(neighbours, largest=False).indices  # (Q, k)
        nearest = self.memory[indices].float()  # (Q, k, D)
        distances = (queries[:, None].float() - nearest).square().sum(-1)  # (Q, k)
        distances, order = distances.sort(stable=True)
        return distances, indices.gather(1, order)


class FaissIndex:
    """Search by faiss, on CPU or GPU. Distances of an IVFPQ index are those of its codes."""

    def __init__(self, memory: Tensor, config: FaissFlatConfig | FaissIVFPQConfig) -> None:
        faiss = _import_faiss(config.gpu)
        self.memory = memory
        vectors = memory.float().cpu().contiguous().numpy()
        dimension = vectors.shape[1]
        self.index: Any
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
        if config.gpu:
            self.index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, self.index)
        self.index.train(vectors)
        self.index.add(vectors)

    def search(self, queries: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
        """See `Index.search`. Where the probed lists hold too few, the nearest one is repeated."""
        _check_neighbours(neighbours, len(self.memory))
        vectors = queries.float().cpu().contiguous().numpy()
        distances, indices = map(torch.from_numpy, self.index.search(vectors, neighbours))
        missing = indices < 0
        distances = torch.where(missing, distances[:, :1], distances)
        indices = torch.where(missing, indices[:, :1], indices)
        return distances.clamp_(min=0).to(queries.device), indices.to(queries.device)


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
    needed = max(config.lists, 2**config.bits)
    if size < needed:
        raise InputError(
            f"index=faiss_ivfpq needs at least {needed} patches to train "
            f"{config.lists} lists and {2**config.bits} codes, the memory holds {size}: lower "
            "index.lists and index.bits, keep more (coreset.ratio), or use index=torch"
        )


def _import_faiss(gpu: bool) -> Any:
    try:
        import faiss
    except ImportError as error:
        extra = "faiss-gpu" if gpu else "faiss"
        raise InputError(
            f"this index needs faiss: pip install 'patchcore[{extra}]', or use index=torch"
        ) from error
    if gpu and not hasattr(faiss, "StandardGpuResources"):
        raise InputError(
            "index.gpu=true needs faiss built for GPUs: pip uninstall faiss-cpu and "
            "pip install 'patchcore[faiss-gpu]', or set index.gpu=false"
        )
    return faiss
