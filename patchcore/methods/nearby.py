"""Search in the part of a memory that suits an image: near a patch's own place, of similar images.

With `method.radius`, a patch is compared only with memory patches near its own place in the grid.
With `method.retrieval`, it is compared only with patches of the most similar nominal images: those
whose mean patch feature is nearest to the mean patch feature of its own image. `nearest_nearby` in
tests/reference.py is the same computation, patch by patch.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from patchcore._traced import traced
from patchcore.errors import InputError
from patchcore.index import LocalIndex, TorchIndexConfig
from patchcore.index.exact import check_neighbours
from patchcore.methods.common import check_grid
from patchcore.methods.origin import patch_origins
from patchcore.methods.switches import NARROW
from patchcore.scoring import Search

if TYPE_CHECKING:
    from patchcore.methods.patchcore import PatchCore


class Nearby:
    """Search in a memory whose patches have images and places.

    Attributes:
        memory: (M, D) patch features searched.
        whole: Memory of which they are rows.

    Args:
        memory: See above.
        origin: (M, 3) image number, grid row and grid column of each.
        means: (I, 1) numbers of images, and (I, D) means of their features, for `retrieval`; images
            without a patch in the memory are skipped.
        grid: Rows and columns of the grid.
        radius: See `LocalIndex`.
        retrieval: Number of images that are searched; more, if these have too few patches. None:
            all.
        index: Settings of the search.

    Raises:
        InputError: A memory patch has no known place.
    """

    def __init__(
        self,
        memory: Tensor,
        origin: Tensor,
        means: tuple[Tensor, Tensor] | None,
        grid: tuple[int, int],
        radius: int | None,
        retrieval: int | None,
        index: TorchIndexConfig,
    ) -> None:
        if bool((origin < 0).any()):
            raise InputError(
                "method.radius, method.retrieval: the memory does not know where its patches come "
                "from: fit it to images"
            )
        self.memory = self.whole = memory
        self._index = LocalIndex(memory, origin[:, 1:].long(), grid, radius, index)
        self._retrieval = retrieval
        if means is not None:
            image = origin[:, 0].long()
            known = torch.isin(means[0][:, 0], image)
            numbers, order = means[0][known, 0].sort()
            self._means = means[1][known][order]
            # Every image of the memory has a mean.
            self._of_row = torch.searchsorted(numbers, image)  # (M,) which of the means
            self._counts = self._of_row.bincount(minlength=len(self._means))

    def search(
        self,
        queries: Tensor,
        images: Tensor,
        places: Tensor,
        neighbours: int,
        tokens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return squared distances and rows (Q, k) of the nearest memory patches.

        Args:
            queries: (Q, D) patch features of images, one image after another.
            images: (Q,) image of each, by any number.
            places: (Q, 2) grid row and grid column of each.
            neighbours: How many are wanted.
            tokens: (B, C) of the images, in their order, which are compared in place of their
                means; then `means` were tokens, too.

        Raises:
            InputError: The memory has fewer.
        """
        check_neighbours(neighbours, len(self.memory))
        if self._retrieval is None:
            return self._index.search_local(queries, places, neighbours)
        if not len(queries):
            return self._index.search_local(queries, places, neighbours)
        numbers, image, counts = images.unique_consecutive(return_inverse=True, return_counts=True)
        parts = queries.split(counts.tolist())
        whole = [x.mean(0) for x in parts] if tokens is None else list(tokens[numbers])
        among = self._alike(whole, neighbours)
        return self._index.search_local(queries, places, neighbours, image, among)

    def _alike(self, means: Sequence[Tensor], neighbours: int) -> Tensor:
        """Flags (B, M) of the memory rows of the images most like those with these means (D,)."""
        assert self._retrieval is not None
        away = torch.stack([(self._means - mean).square().sum(1) for mean in means])  # (B, I)
        order = away.argsort(dim=1, stable=True)
        patches = self._counts[order].cumsum(1)  # (B, I)
        enough = (patches < neighbours).sum(1, keepdim=True) + 1  # (B, 1)
        rank = torch.arange(order.shape[1], device=order.device)
        chosen = torch.zeros_like(order, dtype=torch.bool)
        chosen.scatter_(1, order, rank < enough.clamp(min=self._retrieval))
        return chosen[:, self._of_row]


def image_means(
    features: Tensor, counts: Sequence[int], images: Sequence[int], tokens: Sequence[Tensor] = ()
) -> tuple[Tensor, Tensor]:
    """Numbers (I, 1) of images, ascending, and means (I, D) of their patch features, or tokens.

    Args:
        features: (N, D) of the images, one after another.
        counts: Number of each image's patches.
        images: Their numbers; copies of one share its number, and their means are averaged.
        tokens: (D',) of each, in place of its mean; or none at all.
    """
    each = tokens or [x.float().mean(0) for x in features.split(list(counts))]
    means = torch.stack(list(each))
    source = torch.tensor(list(images), device=means.device)
    numbers = source.unique()
    joined = torch.stack([means[source == number].mean(0) for number in numbers])
    return numbers[:, None], joined


def found_nearby(
    model: "PatchCore",
    features: Tensor,
    counts: Tensor | None,
    token: Tensor | None,
    size: int | None,
) -> tuple[Tensor, Tensor]:
    """Return the same as `PatchCore._found`, for a model that searches a part of the memory."""
    if traced():
        raise InputError(f"method=patchcore cannot be traced: {NARROW}")
    if model.method.radius is not None:
        check_grid((features.shape[1], features.shape[2]), model.grid)
    size = len(model.memory) if size is None else size
    known = model._nearby or {}
    if not known or next(iter(known.values())).whole is not model.memory:  # fitted or moved since
        known = model._nearby = {}
    if size not in known:
        known[size] = _nearby_of(model, slice(size))
    some = torch.ones(features.shape[:3]) if counts is None else counts
    image, row, column = some.to(features.device).nonzero(as_tuple=True)
    place, neighbours = torch.stack((row, column), 1), model.scoring.neighbours
    return known[size].search(features[image, row, column], image, place, neighbours, token)


def nearby_part(
    model: "PatchCore",
    places: Sequence[Tensor],
    widths: Sequence[int],
    tokens: Sequence[Tensor],
    kept: Tensor,
    start: int,
    stop: int,
) -> Search:
    """Return the search for nominal patches in the rows of the memory that are kept.

    Args:
        model: Has the memory.
        places, widths: Of all nominal images, as in `patch_origins`.
        tokens: Of all nominal images, as they are compared; or none at all.
        kept: (M,) bool, rows of the memory.
        start, stop: The patches that are to be searched for, among all of the nominal images.
    """
    every = torch.arange(start, stop)
    origin = patch_origins(every, places, widths, range(len(widths)))
    place = origin[:, 1:].to(model.memory.device)
    token = tokens[int(origin[0, 0])][None].to(model.memory.device) if tokens else None
    nearby = _nearby_of(model, kept.nonzero()[:, 0].to(model.memory.device))
    return lambda x, k: nearby.search(x, torch.zeros_like(place[:, 0]), place.long(), k, token)


def _nearby_of(model: "PatchCore", rows: Tensor | slice) -> Nearby:
    """Search in some rows of a model's memory."""
    assert isinstance(model.index_config, TorchIndexConfig)
    method = model.method
    means = None if method.retrieval is None else (model.pooled_of, model.pooled)
    origin = model.origin[rows]
    found = Nearby(
        model.memory[rows],
        origin,
        means,
        model.grid,
        method.radius,
        method.retrieval,
        model.index_config,
    )
    found.whole = model.memory
    return found
