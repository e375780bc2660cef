"""Base of the search back ends: their common settings, and what a search returns."""

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Float, Float32, Int64
from torch import Tensor

from patchcore.errors import InputError
from patchcore.settings import check_ranges

NOT_FINITE = (
    "patch features are NaN or infinite, or too large for float32: check the images, "
    "backbone.weights and trainer.precision"
)


@dataclass
class IndexConfig:
    """Base of the search back ends' settings."""

    exact: ClassVar[bool] = True
    """True if the nearest patches and their distances are found, up to rounding."""

    def __post_init__(self) -> None:
        check_ranges(self, "index")

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


def check_neighbours(neighbours: int, size: int) -> None:
    if neighbours > size:
        raise InputError(
            f"{neighbours} neighbours were asked for, but the memory holds {size} patches: lower "
            "scoring.neighbours or scoring.reweight, or keep more (coreset.ratio)"
        )
