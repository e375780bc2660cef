"""Exact search among the memory patches that lie near a query's own place in the patch grid.

The grid is cut into blocks. Queries of a block meet only the memory patches that are near one of
them, in one product each, so that the work falls with the share of the grid that a radius covers.
Query by query this is `nearest_nearby` in tests/reference.py.
"""

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from patchcore.index.exact import _CANDIDATES, TorchIndex, TorchIndexConfig, check_neighbours

_BLOCK = 4  # cells of a block's side, at least: more are fewer products, of more pairs that are far
_FEW = {"cpu": 2**20, "cuda": 2**25}  # pairs of query and row that take less time than blocks


class LocalIndex(TorchIndex):
    """Exact search in a memory of patches with places.

    Attributes:
        places: (M, 2) grid row and grid column of the memory's patches.

    Args:
        memory: (M, D) patch features searched.
        places: See above.
        grid: Rows and columns of the grid.
        radius: Most rows and most columns that a patch found may be away from the query's place.
            Where fewer lie so near than are wanted, the radius of that place is the least with as
            many. None: anywhere.
        config: Settings of the search.
    """

    def __init__(
        self,
        memory: Float[Tensor, "memory channels"],
        places: Int64[Tensor, "memory 2"],
        grid: tuple[int, int],
        radius: int | None,
        config: TorchIndexConfig | None = None,
    ) -> None:
        super().__init__(memory, config)
        self.places = places.to(memory.device, torch.int64)
        self._grid, self._radius = grid, radius
        self._reaches: dict[int, Tensor] = {}  # of the whole memory, by the number of neighbours

    def search_local(
        self,
        queries: Float[Tensor, "queries channels"],
        places: Int64[Tensor, "queries 2"],
        neighbours: int,
        among: Int64[Tensor, " rows"] | None = None,
    ) -> tuple[Float32[Tensor, "queries neighbours"], Int64[Tensor, "queries neighbours"]]:
        """Return the nearest memory patches of each query that are near its place.

        Args:
            queries: Patch features.
            places: Grid row and grid column of each.
            neighbours: How many are wanted.
            among: Memory rows that may be found, ascending; None: all.

        Returns:
            Squared distances and memory rows, as `Index.search`.

        Raises:
            InputError: Fewer than `neighbours` may be found.
        """
        every = torch.arange(len(self.memory), device=self.memory.device)
        rows = every if among is None else among
        check_neighbours(neighbours, len(rows))
        queries, places = queries.to(self.memory.dtype), places.to(self.memory.device)
        distances = torch.empty(len(queries), neighbours, device=queries.device)
        found = torch.empty(len(queries), neighbours, device=queries.device, dtype=torch.int64)
        if self._radius is None:
            part = _Part(self, rows)
            for some in torch.arange(len(queries), device=queries.device).split(part.at_once):
                distances[some], found[some] = part.search(queries[some], neighbours)
            return distances, found
        reach = self._reach(neighbours, among)[places[:, 0], places[:, 1]]  # (Q,)
        held = self.places[rows]  # (m, 2)
        for block in self._blocks(places, len(rows)):
            low = (places[block] - reach[block, None]).amin(0)
            high = (places[block] + reach[block, None]).amax(0)
            near = ((held >= low) & (held <= high)).all(1).nonzero()[:, 0]
            part, around = _Part(self, rows[near]), held[near]  # (m', 2)
            for some in block.split(part.at_once):
                away = (places[some][:, None] - around).abs().amax(2)  # (q, m')
                allowed = away <= reach[some][:, None]
                distances[some], found[some] = part.search(queries[some], neighbours, allowed)
        return distances, found

    def _blocks(self, places: Int64[Tensor, "queries 2"], rows: int) -> list[Tensor]:
        """Numbers of the queries that lie in each block of the grid; of few pairs, all in one."""
        assert self._radius is not None
        if 0 < len(places) * rows <= _FEW.get(places.device.type, _FEW["cpu"]):
            return [torch.arange(len(places), device=places.device)]
        side = max(_BLOCK, 2 * self._radius + 1)
        row, column = (places // side).unbind(1)
        block = row * (self._grid[1] // side + 1) + column  # (Q,)
        _, sizes = block.unique(return_counts=True)
        return list(block.argsort(stable=True).split(sizes.tolist()))

    def _reach(self, neighbours: int, among: Tensor | None) -> Int64[Tensor, "h w"]:
        """Radius at each place of the grid: the least from `radius` on with enough patches."""
        if among is None and neighbours in self._reaches:
            return self._reaches[neighbours]
        assert self._radius is not None
        height, width = self._grid
        places = (self.places if among is None else self.places[among]).cpu()
        held = (places[:, 0] * width + places[:, 1]).bincount(minlength=height * width)
        total = torch.zeros(
            height + 1, width + 1, dtype=torch.int64
        )  # of all places above and left
        total[1:, 1:] = held.view(height, width).cumsum(0).cumsum(1)
        reach = torch.full((height, width), self._radius)
        row, column = torch.arange(height), torch.arange(width)
        for radius in range(self._radius, max(height, width)):
            top, bottom = (row - radius).clamp(min=0), (row + radius + 1).clamp(max=height)
            left, right = (column - radius).clamp(min=0), (column + radius + 1).clamp(max=width)
            count = total[bottom] - total[top]  # (h, w + 1)
            short = count[:, right] - count[:, left] < neighbours
            if not bool(short.any()):
                break
            reach[short] = radius + 1
        reach = reach.to(self.memory.device)
        if among is None:
            self._reaches[neighbours] = reach
        return reach


class _Part:
    """Some rows of a memory, ascending, as queries are multiplied by them.

    Attributes:
        at_once: Queries that may meet them at a time.
    """

    def __init__(self, index: LocalIndex, rows: Int64[Tensor, " rows"]) -> None:
        self._index, self._rows = index, rows
        self._memory = index.memory[rows]
        self._points, self._norms = index._products.points[rows], index._products.norms[rows]
        self.at_once = max(1, index._chunk // max(1, len(rows)))

    def search(
        self,
        queries: Float[Tensor, "queries channels"],
        neighbours: int,
        allowed: Bool[Tensor, "queries rows"] | None = None,
    ) -> tuple[Float32[Tensor, "queries neighbours"], Int64[Tensor, "queries neighbours"]]:
        """Nearest of the rows to each query, among those that are `allowed`."""
        centred, blur = self._index._products.centred(queries)
        partial = torch.add(self._norms, centred @ self._points.T, alpha=-2)  # (Q, m), less ‖q‖²
        if allowed is not None:
            partial = partial.masked_fill(~allowed, torch.inf)
        bound = partial.topk(neighbours, largest=False).values[:, -1]  # (Q,)
        query, place = (partial <= (bound + blur)[:, None]).nonzero(as_tuple=True)  # (C,)
        most = max(_CANDIDATES, 2 * neighbours)
        query, place = self._index._thin(query, place, queries, self._memory, most, allowed)
        return self._index._decide(queries, query, self._rows[place], neighbours, None)
