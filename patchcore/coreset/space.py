"""Points as the greedy order sees them: centred rows, norms, and distances to what is picked."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from patchcore.coreset.tensors import (
    NOT_FINITE,
    chunk_size,
    free_memory,
    slices,
    squared_distances,
)
from patchcore.errors import InputError


class Space:
    """Points (N, d) seen as centred rows on the working device, moved there in chunks if need be.

    Centring moves no distance but makes norms small, and with them the rounding of
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
        n, dimension = points.shape
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
        self.mean = total / n
        variance = squared.double().mean() - self.mean.square().sum()
        spread = float((variance / dimension).clamp(min=0).sqrt())
        if not math.isfinite(spread):
            raise InputError(NOT_FINITE)
        grid = 2.0 ** math.floor(math.log2(spread)) if spread else 0.0
        self.centre = (self.mean / grid).round() * grid if grid else self.mean
        self.shifted = bool(self.centre.any())
        self._norms = {} if self.shifted else {torch.float32: squared}
        self.scale = float(self.norms(torch.float32).max())  # largest squared norm

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
        return best.argmax()[None]

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
        best[picks] = -1
        return best

    def lower(self, best: Float[Tensor, " points"], y: Float[Tensor, "rows dimensions"]) -> None:
        """Lower squared distances `best` to those from the rows `y`, in place."""
        norms = self.norms(best.dtype)
        constants = y.square().sum(1)  # (m,)
        buffer = y.new_empty(min(self.chunk, len(best)), len(y))
        for rows, x in self.blocks(best.dtype):
            inner = torch.addmm(constants, x, y.T, alpha=-2, out=buffer[: len(x)])  # (chunk, m)
            lower = inner.amin(1).add_(norms[rows]).clamp_(min=0)  # (chunk,)
            torch.minimum(best[rows], lower, out=best[rows])
