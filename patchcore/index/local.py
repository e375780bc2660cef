"""Exact search among the memory patches that lie near a query's own place in the patch grid.

The grid is divided into blocks. One product per block compares its queries with the memory patches
that are near any of them. So the work is proportional to the share of the grid that a radius
covers. `nearest_nearby` in tests/reference.py is the same search, query by query.
"""

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from patchcore._precision import full_precision
from patchcore.index.exact import _CANDIDATES, TorchIndex, TorchIndexConfig, check_neighbours

_BLOCK = 4  # cells of a block's side, at least: more are fewer products, of more pairs that are far
_FEW = {"cpu": 2**20, "cuda": 2**30}  # pairs of query and row that take less time than blocks


class LocalIndex(TorchIndex):
    """Exact search in a memory of patches with places.

    Attributes:
        places: (M, 2) grid row and grid column of the memory's patches.

    Args:
        memory: (M, D) patch features searched.
        places: See above.
        grid: Rows and columns of the grid.
        radius: Largest distance, in rows and in columns, of a found patch from the query's place.
            If too few patches are that near, the smallest radius with enough patches is used at
            that place. None: anywhere.
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
        images: Int64[Tensor, " queries"] | None = None,
        among: Bool[Tensor, "images memory"] | None = None,
    ) -> tuple[Float32[Tensor, "queries neighbours"], Int64[Tensor, "queries neighbours"]]:
        """Return the nearest memory patches of each query that are near its place.

        Args:
            queries: Patch features.
            places: Grid row and grid column of each.
            neighbours: How many are wanted.
            images: Image of each query, from 0; None: all are of one.
            among: Flags of the memory rows that the queries of each image may find; None: all rows.

        Returns:
            Squared distances and memory rows, as `Index.search`.

        Raises:
            InputError: Fewer than `neighbours` may be found.
        """
        device = self.memory.device
        queries, places = queries.to(self.memory.dtype), places.to(device)
        image = torch.zeros_like(places[:, 0]) if images is None else images.to(device)
        most = len(self.memory) if among is None else int(among.sum(1).min())
        check_neighbours(neighbours, most)
        reach = None
        if self._radius is not None:
            radii = self._reach(neighbours, among)  # (B, h, w)
            reach = radii[0 if among is None else image, places[:, 0], places[:, 1]]  # (Q,)
        distances = torch.empty(len(queries), neighbours, device=queries.device)
        found = torch.empty(len(queries), neighbours, device=queries.device, dtype=torch.int64)
        for block in self._blocks(places, image, among):
            asked = image[block].unique()  # (b,)
            mask = None if among is None else among[asked]  # (b, M)
            near = self._near(places[block], None if reach is None else reach[block], mask)
            part, around = _Part(self, near), self.places[near]
            # The rows near one image are all among its own.
            own = None if among is None or len(asked) == 1 else among[:, near]  # (B, m)
            for some in block.split(part.at_once):
                allowed = None if reach is None else _within(places[some], around, reach[some])
                if own is not None:
                    allowed = own[image[some]] if allowed is None else allowed & own[image[some]]
                distances[some], found[some] = part.search(queries[some], neighbours, allowed)
        return distances, found

    def _blocks(
        self,
        places: Int64[Tensor, "queries 2"],
        image: Int64[Tensor, " queries"],
        among: Bool[Tensor, "images memory"] | None,
    ) -> list[Tensor]:
        """Numbers of the queries of each block of the grid and image; of few pairs, all."""
        few = _FEW.get(places.device.type, _FEW["cpu"])
        if 0 < len(places) * len(self.memory) <= few:
            return [torch.arange(len(places), device=places.device)]
        key = torch.zeros_like(image) if among is None else image
        if self._radius is not None:
            rows = key.new_tensor([len(self.memory)]) if among is None else among.sum(1)  # (B,)
            pairs = key.bincount(minlength=len(rows)) * rows
            side = max(_BLOCK, 2 * self._radius + 1)
            down, across = (length // side + 1 for length in self._grid)
            row, column = (places // side).unbind(1)
            block = torch.where(pairs[key] <= few, 0, row * across + column)  # (Q,)
            key = key * down * across + block
        _, sizes = key.unique(return_counts=True)
        return list(key.argsort(stable=True).split(sizes.tolist()))

    def _near(
        self, places: Tensor, reach: Tensor | None, among: Bool[Tensor, "images memory"] | None
    ) -> Int64[Tensor, " rows"]:
        """Memory rows, ascending, that any query of a block may find."""
        near = torch.ones_like(self.places[:, 0], dtype=torch.bool)
        if among is not None:
            near = among.any(0)
        if reach is not None:
            low, high = (places - reach[:, None]).amin(0), (places + reach[:, None]).amax(0)
            near = near & ((self.places >= low) & (self.places <= high)).all(1)
        return near.nonzero()[:, 0]

    def _reach(
        self, neighbours: int, among: Bool[Tensor, "images memory"] | None
    ) -> Int64[Tensor, "images h w"]:
        """Radius at each place of the grid: the least from `radius` on with enough patches.

        If all rows of the memory may be found, it is the same for every image and returned once.
        """
        if among is None and neighbours in self._reaches:
            return self._reaches[neighbours]
        assert self._radius is not None
        height, width = self._grid
        flags = torch.ones_like(self.places[None, :, 0]) if among is None else among.long()
        cell = self.places[:, 0] * width + self.places[:, 1]  # (M,)
        held = flags.new_zeros(len(flags), height * width).index_add_(1, cell, flags).cpu()
        # Sums over all places above and left.
        total = torch.zeros(len(flags), height + 1, width + 1, dtype=torch.int64)
        total[:, 1:, 1:] = held.view(-1, height, width).cumsum(1).cumsum(2)
        reach = torch.full((len(flags), height, width), self._radius)
        row, column = torch.arange(height), torch.arange(width)
        for radius in range(self._radius, max(height, width)):
            top, bottom = (row - radius).clamp(min=0), (row + radius + 1).clamp(max=height)
            left, right = (column - radius).clamp(min=0), (column + radius + 1).clamp(max=width)
            count = total[:, bottom] - total[:, top]  # (B, h, w + 1)
            short = count[..., right] - count[..., left] < neighbours
            if not bool(short.any()):
                break
            reach[short] = radius + 1
        reach = reach.to(self.memory.device)
        if among is None:
            self._reaches[neighbours] = reach
        return reach


def _within(
    places: Int64[Tensor, "queries 2"],
    around: Int64[Tensor, "rows 2"],
    reach: Int64[Tensor, " queries"],
) -> Bool[Tensor, "queries rows"]:
    """Mask, True where rows and columns are both at most `reach` away."""
    near = (places[:, :1] - around[:, 0]).abs() <= reach[:, None]
    return near & ((places[:, 1:] - around[:, 1]).abs() <= reach[:, None])


class _Part:
    """Some rows of a memory, ascending, in the form in which queries are multiplied by them.

    Attributes:
        at_once: Largest number of queries in one product with them.
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
        with full_precision(queries.device):
            products = centred @ self._points.T  # (Q, m)
        partial = torch.add(self._norms, products, alpha=-2)  # (Q, m), less ‖q‖²
        if allowed is not None:
            partial = partial.masked_fill(~allowed, torch.inf)
        bound = partial.topk(neighbours, largest=False).values[:, -1]  # (Q,)
        query, place = (partial <= (bound + blur)[:, None]).nonzero(as_tuple=True)  # (C,)
        most = max(_CANDIDATES, 2 * neighbours)
        query, place = self._index._thin(query, place, queries, self._memory, most, allowed)
        return self._index._decide(queries, query, self._rows[place], neighbours, None)
