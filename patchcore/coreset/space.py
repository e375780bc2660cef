"""Points in the form that a greedy order uses, and helpers that other samplers use, too."""

import math
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor

from patchcore.errors import NOT_FINITE, InputError
from patchcore.machine import available_memory


def draw(n: int, count: int, seed: int) -> Int64[Tensor, " drawn"]:
    """`count` different indices below n (all if it is less): a prefix of one seeded sequence."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count]


def take(
    features: Shaped[Tensor, "rows channels"], indices: Int64[Tensor, " taken"]
) -> Shaped[Tensor, "taken channels"]:
    """Rows of the features, wherever the indices lie."""
    return features[indices.to(features.device)]


def slices(n: int, chunk: int) -> Iterator[slice]:
    """Slices of at most `chunk` that cover `n` rows in order."""
    return (slice(i, min(i + chunk, n)) for i in range(0, n, chunk))


def summed(points: Float[Tensor, "points channels"]) -> Float64[Tensor, " channels"]:
    """Sum of points in float64, so that the mean is the same however they are shared out."""
    total = torch.zeros(points.shape[1], dtype=torch.float64, device=points.device)
    for rows in slices(len(points), 2**15):
        total += points[rows].double().sum(0)
    return total


def squared_distances(
    x: Float[Tensor, "n dimensions"], y: Float[Tensor, "m dimensions"]
) -> Float[Tensor, "n m"]:
    """Squared Euclidean distances between rows of `x` and of `y`, by one product."""
    squared = torch.addmm(y.square().sum(1), x, y.T, alpha=-2)
    return squared.add_(x.square().sum(1)[:, None]).clamp_(min=0)


def chunk_size(device: torch.device, width: int) -> int:
    """Rows of `width` numbers at once: a fixed power of two unless memory is short."""
    most = 8192 if device.type == "cpu" else 2**18
    fits = free_memory(device) // 8 // (8 * width)
    return min(most, 2 ** max(fits.bit_length() - 1, 6))


def free_memory(device: torch.device) -> int:
    """Free memory in bytes, of a CUDA device or of this machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known = available_memory()
    return 4 * 2**30 if known is None else known


def kernels(best: Float[Tensor, " points"]) -> ModuleType | None:
    """Kernels for float32 on CUDA, or None where Triton is not installed."""
    if not best.is_cuda or best.dtype != torch.float32:
        return None
    try:
        from patchcore.coreset import kernel
    except ImportError:
        return None
    return kernel


class Space:
    """Points (N, d) seen as centred rows on the working device, moved there in chunks if need be.

    Centring changes no distance, but makes norms small, and therefore also the rounding error of
    |x|^2 + |y|^2 - 2 x.y. The centre is the mean on a coarse binary grid, so that subtracting it
    from short numbers (float16, integers) is exact, and does nothing to points already centred.
    """

    def __init__(
        self,
        points: Float[Tensor, "points dimensions"],
        device: torch.device,
        chunk: int | None,
        pool: int,
    ) -> None:
        if points.device != device and points.nbytes <= free_memory(device) // 2:
            points = points.to(device)
        dimension = points.shape[1]
        self.points, self.device = points, device
        self.chunk = chunk or chunk_size(device, dimension + pool)
        self.centre = torch.zeros(dimension, dtype=torch.float64, device=device)
        self.shifted = False
        total = torch.zeros_like(self.centre)
        norms = []
        for _, x in self.blocks(torch.float32):
            total += x.new_ones(len(x)) @ x
            norms.append(x.square().sum(1))
        squared = torch.cat(norms)
        self.mean, energy = self.averages(total, squared)
        variance = energy - self.mean.square().sum()
        spread = float((variance / dimension).clamp(min=0).sqrt())
        if not math.isfinite(spread):
            raise InputError(NOT_FINITE)
        grid = 2.0 ** math.floor(math.log2(spread)) if spread else 0.0
        self.centre = (self.mean / grid).round() * grid if grid else self.mean
        self.shifted = bool(self.centre.any())
        self._norms = {} if self.shifted else {torch.float32: squared}
        self.scale = self.top(self.norms(torch.float32))  # largest squared norm

    def __len__(self) -> int:
        """N; that of all processes together where points are shared: see `shards.SharedSpace`."""
        return len(self.points)

    def averages(
        self, total: Float[Tensor, " dimensions"], squared: Float[Tensor, " points"]
    ) -> tuple[Float[Tensor, " dimensions"], Float[Tensor, ""]]:
        """Mean point and mean squared norm, float64, by the sum of all points and their norms."""
        return total / len(squared), squared.double().mean()

    def top(self, values: Float[Tensor, " points"]) -> float:
        """Largest of the points' values."""
        return float(values.max())

    def take(
        self, values: Float[Tensor, " points"], which: Int64[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        """Values of some points."""
        return values[which]

    def mark(self, best: Float[Tensor, " points"], picks: Int64[Tensor, " picks"]) -> None:
        """Set the distances of picks to -1, which no other point has."""
        best[picks] = -1

    def left(self, best: Float[Tensor, " points"]) -> Int64[Tensor, " left"]:
        """Points that are not picked yet, in their order."""
        return (best >= 0).nonzero()[:, 0]

    def farthest(
        self, best: Float[Tensor, " points"], pool: int, blur: float
    ) -> tuple[Int64[Tensor, " pool"], Float[Tensor, ""]]:
        """See the function `farthest`."""
        return farthest(best, pool, blur)

    def agreed(
        self, places: Int64[Tensor, " picks"], fall: Float[np.ndarray, " picks"]
    ) -> tuple[Int64[Tensor, " picks"], Float[np.ndarray, " picks"]]:
        """Picks of a round as all processes take them."""
        return places, fall

    def rows(
        self, which: Int64[Tensor, " rows"] | slice, dtype: torch.dtype
    ) -> Float[Tensor, "rows dimensions"]:
        """Centred rows in `dtype` on the working device."""
        if isinstance(which, Tensor):
            which = which.to(self.points.device)
            x = self.points.index_select(0, which)
        else:
            x = self.points[which]
        x = x.to(self.device, dtype)
        return x - self.centre.to(dtype) if self.shifted else x

    def blocks(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """All centred rows in `dtype`, a chunk at a time, with their place."""
        for rows in slices(len(self.points), self.chunk):
            yield rows, self.rows(rows, dtype)

    def stored(self) -> Iterator[tuple[slice, Tensor]]:
        """Points as they are, on the working device: at once if they fit there."""
        n = len(self.points)
        for rows in slices(n, n if self.points.device == self.device else self.chunk):
            yield rows, self.points[rows].to(self.device)

    def norms(self, dtype: torch.dtype) -> Float[Tensor, " points"]:
        """Squared norms of the centred points."""
        if dtype not in self._norms:
            self._norms[dtype] = torch.cat([x.square().sum(1) for _, x in self.blocks(dtype)])
        return self._norms[dtype]

    def outermost(self) -> Int64[Tensor, "1"]:
        """Index of the point farthest from the mean."""
        best = torch.full_like(self.norms(torch.float32), math.inf)
        self.lower(best, (self.mean - self.centre).to(best.dtype)[None])
        return self.first(best)[None]

    def first(self, values: Float[Tensor, " points"]) -> Int64[Tensor, ""]:
        """Index of the largest of the points' values, the lowest of equals."""
        return values.argmax()

    def distances(
        self,
        picks: Int64[Tensor, " picks"],
        dtype: torch.dtype,
        anchors: Int64[Tensor, " anchors"] | None = None,
    ) -> Float[Tensor, " points"]:
        """Squared distance to the nearest pick, or the squared mean distance to the anchors.

        The lower of the two where there are both; -1 at the picks.
        """
        best = torch.full_like(self.norms(dtype), math.inf)
        if anchors is not None:
            y = self.rows(anchors, dtype)
            for rows, x in self.blocks(dtype):
                best[rows] = squared_distances(x, y).sqrt_().mean(1).square_()
        for some in picks.split(1024) if len(picks) else ():
            self.lower(best, self.rows(some, dtype))
        self.mark(best, picks)
        return best

    def lower(self, best: Float[Tensor, " points"], y: Float[Tensor, "rows dimensions"]) -> None:
        """Lower squared distances `best` to those from the rows `y`, in place."""
        kernel = kernels(best)
        if kernel is not None:
            kernel.lower(self, best, y)
            return
        norms = self.norms(best.dtype)
        constants = y.square().sum(1)  # (m,)
        buffer = y.new_empty(min(self.chunk, len(best)), len(y))
        for rows, x in self.blocks(best.dtype):
            inner = torch.addmm(constants, x, y.T, alpha=-2, out=buffer[: len(x)])  # (chunk, m)
            lower = inner.amin(1).add_(norms[rows]).clamp_(min=0)  # (chunk,)
            torch.minimum(best[rows], lower, out=best[rows])


def farthest(
    best: Float[Tensor, " points"], pool: int, blur: float
) -> tuple[Int64[Tensor, " pool"], Float[Tensor, ""]]:
    """`pool` farthest points, by index, and the squared distance that none of the others exceeds.

    Distances up to `blur` count as none.
    """
    if pool >= len(best):
        return torch.arange(len(best), device=best.device), best.new_tensor(blur)
    values, candidates = best.topk(pool)
    # The first of more equals than the pool holds must be in it.
    first = best.argmax()
    candidates[-1] = torch.where((candidates == first).any(), candidates[-1], first)
    return candidates.sort().values, values[-1].clamp(min=blur)
