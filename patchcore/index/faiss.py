"""Search by faiss: exact, by codes in inverted lists as in the paper, or any index it describes."""

import logging
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from patchcore.errors import InputError, counted
from patchcore.index.exact import NOT_FINITE, Index, IndexConfig, TorchIndex, check_neighbours
from patchcore.settings import setting


@dataclass
class FaissFlatConfig(IndexConfig):
    """Exact search by faiss."""

    gpu: bool = setting(False, "search on a GPU (needs the extra faiss-gpu)")

    def build(self, memory: Float[Tensor, "memory channels"]) -> "Index":
        return FaissIndex(memory, self)


@dataclass
class FaissIVFPQConfig(IndexConfig):
    """Approximate search by faiss: inverted lists and product quantisation (paper, Table 5).

    Distances are those of the codes, as in the paper.
    """

    exact: ClassVar[bool] = False

    lists: int = setting(512, "inverted lists", low=1)
    probes: int = setting(1, "lists searched per query", low=1)
    sub_quantizers: int = setting(
        64, "number of codes per patch; has to divide the size of a patch feature", low=1
    )
    bits: int = setting(8, "number of bits per code", unit="bits", low=1)
    train_patches: int | None = setting(
        None,
        "number of patches from which lists and codes are learned; null: the memory bank",
        unit="patches",
    )
    gpu: bool = setting(False, "search on a GPU (needs the extra faiss-gpu)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.probes > self.lists:
            raise InputError(f"index.probes must be at most index.lists, got {self.probes}")
        needed = self.needed()
        if self.train_patches is not None and self.train_patches < needed:
            raise InputError(
                f"index.train_patches must be at least {needed}, to train "
                f"{counted(self.lists, 'list')} and "
                f"{2**self.bits} codes, got {self.train_patches}"
            )

    def needed(self) -> int:
        """Number of patches that training needs: one for every list, and one for every code."""
        return max(self.lists, 2**self.bits)

    def build(self, memory: Float[Tensor, "memory channels"]) -> "Index":
        return FaissIndex(memory, self)


@dataclass
class FaissFactoryConfig(IndexConfig):
    """Search by any index that `faiss.index_factory` can describe, on the CPU.

    The index decides which patches are found ("Flat": the nearest; "HNSW32", "IVF256,PQ32": most of
    the nearest). Their distances are measured again in float32. So distances are exact for the
    patches that were found, whatever codes or transforms the index uses.
    """

    exact: ClassVar[bool] = False

    factory: str = setting("HNSW32", "faiss's factory string of the index, such as IVF256,PQ32")
    parameters: str = setting("", "faiss's search parameters, such as nprobe=8")

    def build(self, memory: Float[Tensor, "memory channels"]) -> "Index":
        return FaissFactoryIndex(memory, self)


class FaissIndex:
    """Search by faiss, on CPU or GPU. Distances of an IVFPQ index are those of its codes.

    On a GPU the vectors stay there, and queries that are there too never leave it.
    """

    def __init__(
        self,
        memory: Float[Tensor, "memory channels"],
        config: FaissFlatConfig | FaissIVFPQConfig,
    ) -> None:
        faiss = _import_faiss(config.gpu)
        if not bool(memory.isfinite().all()):
            raise InputError(NOT_FINITE)
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
            raise InputError(f"index: faiss refuses: {_reason(error)}") from error

    def search(
        self, queries: Float[Tensor, "queries channels"], neighbours: int
    ) -> tuple[Float32[Tensor, "queries neighbours"], Int64[Tensor, "queries neighbours"]]:
        """See `Index.search`. Where the probed lists hold too few, all are searched."""
        check_neighbours(neighbours, len(self.memory))
        vectors = self._vectors(queries)
        distances, indices = self.index.search(vectors, neighbours)
        lacking = (indices < 0).any(1).nonzero()[:, 0]  # faiss fills up with −1
        if len(lacking):
            lists = hasattr(self.index, "nprobe")  # flat search leaves nothing out but overflow
            if not lists or not bool(vectors[lacking].isfinite().all()):
                raise InputError(NOT_FINITE)
            probes, self.index.nprobe = self.index.nprobe, self.index.nlist
            distances[lacking], indices[lacking] = self.index.search(vectors[lacking], neighbours)
            self.index.nprobe = probes
        if bool((indices < 0).any()) or not bool(distances.isfinite().all()):
            raise InputError(NOT_FINITE)
        return distances.clamp_(min=0).to(queries.device), indices.to(queries.device)

    def _vectors(self, x: Float[Tensor, "rows channels"]) -> Float32[Tensor, "rows channels"]:
        """Vectors as faiss takes them: copied only if they are elsewhere or not float32."""
        return x.to(self._device, torch.float32).contiguous()


class FaissFactoryIndex:
    """Candidates from any faiss index, measured by differences as in exact search."""

    def __init__(
        self, memory: Float[Tensor, "memory channels"], config: FaissFactoryConfig
    ) -> None:
        faiss = _import_faiss(gpu=False)
        self.memory = memory
        self._exact = TorchIndex(memory)
        vectors = memory.to("cpu", torch.float32).contiguous()
        try:
            self.index = faiss.index_factory(vectors.shape[1], config.factory)
            inverted = faiss.try_extract_index_ivf(self.index)
            for part in (self.index, inverted and faiss.downcast_index(inverted)):
                # Long training for a search by Hamming distances below ht, which is off without it.
                if hasattr(part, "do_polysemous_training") and "ht=" not in config.parameters:
                    part.do_polysemous_training = False
            self.index.train(vectors)
            self.index.add(vectors)
            if config.parameters:
                faiss.ParameterSpace().set_index_parameters(self.index, config.parameters)
        except RuntimeError as error:
            setting = f"index.factory={config.factory}"
            if config.parameters:
                setting += f" with index.parameters={config.parameters}"
            raise InputError(f"{setting}: faiss refuses: {_reason(error)}") from error

    def search(
        self, queries: Float[Tensor, "queries channels"], neighbours: int
    ) -> tuple[Float32[Tensor, "queries neighbours"], Int64[Tensor, "queries neighbours"]]:
        """See `Index.search`. Queries for which too few are found are searched exactly."""
        check_neighbours(neighbours, len(self.memory))
        vectors = queries.to("cpu", torch.float32).contiguous()
        if not bool(vectors.isfinite().all()):
            raise InputError(NOT_FINITE)
        rows = self.index.search(vectors, neighbours)[1].to(queries.device).sort(1).values
        lacking = (rows < 0).any(1).nonzero()[:, 0]  # faiss fills up with −1
        if len(lacking):
            rows[lacking] = self._exact.search(queries[lacking], neighbours)[1].sort(1).values
        query = torch.arange(len(queries), device=rows.device).repeat_interleave(neighbours)
        queries = queries.to(self.memory.dtype)
        return self._exact._decide(queries, query, rows.flatten(), neighbours, None)


def _check_ivfpq(config: FaissIVFPQConfig, size: int, dimension: int) -> None:
    if dimension % config.sub_quantizers:
        raise InputError(
            f"index.sub_quantizers={config.sub_quantizers} does not divide the patch feature's "
            f"size {dimension} (patch.channels)"
        )
    if size < config.needed():
        raise InputError(
            f"index=faiss_ivfpq needs at least {config.needed()} patches to train "
            f"{counted(config.lists, 'list')} and {2**config.bits} codes, the memory holds {size}: "
            "lower index.lists and index.bits, keep more patches (coreset.ratio or "
            "coreset.count), or use index=torch"
        )


def _reason(error: RuntimeError) -> str:
    """Reason that an error of faiss gives, without the place in faiss's source."""
    reason = str(error).partition("Error: ")[2] or str(error)
    words = " ".join(reason.split())
    return re.sub(r"^Error in .*? at \S+:\d+: ", "", words)


def _import_faiss(gpu: bool) -> Any:
    # It tells of each kind of processor that it was not built for, with an error of Python's.
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
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
