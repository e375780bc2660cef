"""Nearest neighbours in the memory bank: torch (exact, default) or faiss.

All return squared Euclidean distances, as faiss does; `scoring` turns them into scores. `INDEXES`
names the back ends. A new one is a dataclass of settings with its `build`, and one line in
`INDEXES`. All of them approach `nearest` in tests/reference.py; the exact ones equal it.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from patchcore.errors import counted
from patchcore.index.exact import (
    Index,
    IndexConfig,
    TorchIndex,
    TorchIndexConfig,
    build_index,
    search_traced,
)
from patchcore.index.faiss import FaissFactoryConfig, FaissFlatConfig, FaissIVFPQConfig
from patchcore.index.local import LocalIndex
from patchcore.index.nearest import nearest_rows

__all__ = [
    "INDEXES",
    "FaissFactoryConfig",
    "FaissFlatConfig",
    "FaissIVFPQConfig",
    "Index",
    "IndexConfig",
    "LocalIndex",
    "PrefixIndex",
    "TorchIndex",
    "TorchIndexConfig",
    "build_index",
    "nearest_rows",
    "search_traced",
]

INDEXES: dict[str, type[IndexConfig]] = {
    "faiss_factory": FaissFactoryConfig,
    "faiss_flat": FaissFlatConfig,
    "faiss_ivfpq": FaissIVFPQConfig,
    "torch": TorchIndexConfig,
}
"""Settings class of every search back end, by the name that `index=…` takes."""


class PrefixIndex:
    """Search in the first n entries of a memory for several n at once.

    A coreset of any size begins with the smaller ones, so this is a search in each of them.

    Attributes:
        memory: Patch features searched, (memory, channels).
        indexes: Search back end of each size, in the order of `sizes`.
    """

    def __init__(
        self, memory: Float[Tensor, "memory channels"], sizes: Sequence[int], config: IndexConfig
    ) -> None:
        if list(sizes) != sorted(set(sizes)) or not sizes or sizes[0] < 1:
            raise ValueError(f"sizes must ascend from 1 or more, got {list(sizes)}")
        if sizes[-1] > len(memory):
            raise ValueError(
                f"the memory holds {counted(len(memory), 'patch')}, sizes has {sizes[-1]}"
            )
        self.memory = memory
        self.sizes = list(sizes)
        self.indexes = [build_index(memory[:n], config) for n in sizes]

    def search(
        self, queries: Float[Tensor, "queries channels"], neighbours: int
    ) -> list[tuple[Tensor, Tensor]]:
        """`Index.search` for each size; with exact torch search, this costs little more than the
        largest alone.
        """
        largest = self.indexes[-1]
        if isinstance(largest, TorchIndex):
            return largest.search_prefixes(queries, neighbours, self.sizes)
        return [index.search(queries, neighbours) for index in self.indexes]
