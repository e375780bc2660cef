"""Scores of nominal training images by models that have not seen them: cross-fitting.

The images are divided into K folds. The images of each fold are scored by the method, fitted to all
other folds. This is correct for every method that makes its memory from features alone. Each fit
uses (K − 1) / K of the images, so the scores are a little too high; with more folds, the error is
smaller. A coreset keeps as many patches as the coreset of all images, because distances depend more
on the size of the coreset than on the number of images.

Leaving out an image's own rows from one memory bank would be faster, but the scores would be far
too high. A greedy coreset keeps no second patch near a row. Removing the row therefore leaves a
hole, which another patch would have filled if the image had never been there.
experiments/false_alarms/ measures both.
"""

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from tqdm import tqdm

from patchcore.coreset import SizedConfig
from patchcore.errors import InputError
from patchcore.methods.counted import counted_cells, pixels_in
from patchcore.methods.detector import Detector, Fitting, Prediction
from patchcore.methods.patchcore import PatchCore
from patchcore.scoring import Pool, anomaly_maps
from patchcore.tiles import whole


@dataclass
class LeftOut:
    """Scores of nominal images by models that have not seen them.

    Attributes:
        scores: {number of the image: anomaly score}.
        grids: {number of the image: patch scores (h, w), on the CPU}.
        sizes: {number of the image: its size (H, W)}, for maps; empty if the sizes are not known.
        counted: {number of the image: cells (h, w) bool that count by its region}; empty: all.
    """

    scores: dict[int, float] = field(default_factory=dict)
    grids: dict[int, Tensor] = field(default_factory=dict)
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    counted: dict[int, Tensor] = field(default_factory=dict)

    def count(self, model: Detector, inside: Mapping[int, Tensor]) -> None:
        """Set `counted` from the pixels (H, W) bool of each image's input that count."""
        self.counted = {
            number: counted_cells(model, self.grids[number][None], own[None])[0]
            for number, own in inside.items()
        }

    def pixels(self, sigma: float) -> Iterator[Tensor]:
        """Yield the pixels (1, P) of each image's anomaly map that count; `sigma` is in px."""
        for number, grid in self.grids.items():
            counted = [self.counted[number]] if self.counted else []
            yield pixels_in(anomaly_maps(grid[None], self.sizes[number], sigma)[0], counted)


class FeatureBatches:
    """Features of nominal images as they come, batch by batch, to fit to again and again.

    Args:
        images: Expected number of images. On an accelerator, the features stay there only if there
            is room for all of them, for the features of a fit and for its work space.
    """

    def __init__(self, images: int) -> None:
        self.batches: list[Any] = []
        self._images = images
        self._host = False

    def append(self, features: Any) -> None:
        """Add what a method's `features` gave for a batch."""
        features = whole(features)
        tensors = tree_leaves(features)
        device = tensors[0].device
        if not self.batches and device.type == "cuda":
            size = sum(x.nbytes for x in tensors) // len(tensors[0]) * self._images
            self._host = 4 * size > torch.cuda.mem_get_info(device)[0]
        self.batches.append(tree_map(lambda x: x.cpu(), features) if self._host else features)

    def empty(self) -> Iterator[Any]:
        """Yield the batches in their order, and forget them."""
        self.batches.reverse()
        while self.batches:
            yield self.batches.pop()


def folds_of(images: Iterable[int], folds: int, seed: int) -> dict[int, int]:
    """Fold of each image by its number, at random; folds are equally large up to one image."""
    numbers = sorted(set(images))
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed)).tolist()
    return {numbers[place]: rank % folds for rank, place in enumerate(order)}


@torch.inference_mode()
def cross_fitted(
    model: Detector,
    batches: Sequence[Any],
    images: Sequence[int],
    folds: int,
    seed: int = 0,
    progress: bool = False,
    copies: Mapping[int, int] | None = None,
) -> LeftOut:
    """Score nominal images, each by the method fitted without the images of its fold.

    Args:
        model: The method. It stays as it is: copies are fitted, which share its network.
        batches: Results of its `features`, batch by batch; the first axis of every tensor is the
            batch.
        images: Numbers of the images in these batches, in their order. Copies of an image share its
            number and its fold; only the first copy is scored.
        folds: How many folds; at most one an image.
        seed: Of the division.
        progress: Whether to show a progress bar.
        copies: See `Fitting.copies`; they are in the fold of the first one, which alone is scored.

    Raises:
        InputError: There are fewer than two images that differ, or a fit without a fold is not
            possible.
    """
    copies = copies or {}
    firsts = {copies.get(number, number) for number in images}
    if len(firsts) < 2:
        raise InputError(
            "decision.false_alarms needs at least two training images that differ, because each is "
            "scored by a model without it: give more, or set it to null"
        )
    fold = folds_of(firsts, min(folds, len(firsts)), seed)
    fold |= {number: fold[original] for number, original in copies.items()}
    first = {number: place for place, number in reversed(list(enumerate(images)))}
    found = LeftOut()
    for out in tqdm(sorted(set(fold.values())), "Folds", disable=not progress):
        others = [number for number in images if fold[number] != out]
        fitting = Fitting(images=others, copies=copies)
        left = {number for number in fold if fold[number] == out}
        fitted = fitted_without(model, batches, images, left, fitting)
        own = left & firsts
        scored = [n in own and first[n] == place for place, n in enumerate(images)]
        for places, prediction in predictions(fitted, batches, scored):
            numbers = [images[place] for place in places]
            found.scores.update(zip(numbers, prediction.score.tolist(), strict=True))
            found.grids.update(zip(numbers, prediction.patch_score.cpu(), strict=True))
    return found


def fitted_without(
    model: Detector,
    batches: Sequence[Any],
    images: Sequence[int],
    out: Collection[int],
    fitting: Fitting | None = None,
) -> Detector:
    """Return a copy of the method, with the same network, fitted to all images but some.

    Args:
        model: See `cross_fitted`.
        batches: See `cross_fitted`.
        images: See `cross_fitted`.
        out: Numbers of the images that are left out.
        fitting: Circumstances of the fit, and its report; by default, it is told which images share
            a number.
    """
    kept = [number not in out for number in images]
    fitted = unfitted(model, sum(kept) / len(kept))
    buffer = fitted.buffer(sum(kept))
    for _, part in _parts(batches, kept):
        buffer.append(part)
    numbers = [number for number in images if number not in out]
    fitted.build_from(buffer, fitting or Fitting(images=numbers))
    return fitted


def predictions(
    fitted: Detector, batches: Sequence[Any], wanted: Sequence[bool]
) -> Iterator[tuple[list[int], Prediction]]:
    """Yield places and scores, batch by batch, of the images that are wanted; maps are of 1 px.

    Raises:
        InputError: Scores are of the maps' pixels.
    """
    if fitted.scoring.pool is Pool.pixels:
        raise InputError("scores without maps need scoring.pool=patches")
    for places, part in _parts(batches, wanted):
        part = tree_map(lambda x: x.to(fitted.device), part)
        yield places, fitted.score(part, (1, 1))


def unfitted(model: Detector, share: float) -> Detector:
    """Return a copy for a share of the images, with the same network.

    A coreset's ratio is raised so that it keeps as many patches as the model keeps of all images,
    or all that there are.
    """
    copied: Detector = copy.deepcopy(model, {id(model.backbone): model.backbone})
    for each in copied.modules():  # itself, or its banks
        if isinstance(each, PatchCore) and isinstance(each.coreset_config, SizedConfig):
            ratio = min(1.0, each.coreset_config.ratio / share * (1 + 1e-9))  # no patch fewer
            each.coreset_config = replace(each.coreset_config, ratio=ratio)
            each.of_fewer = share < 1
    return copied


def _parts(batches: Sequence[Any], wanted: Sequence[bool]) -> Iterator[tuple[list[int], Any]]:
    """Images that are wanted, batch by batch: their places among all, and their features."""
    start = 0
    for batch in batches:
        length = len(tree_leaves(batch)[0])
        chosen = [i for i in range(length) if wanted[start + i]]
        if chosen:
            rows = torch.tensor(chosen)
            yield [start + i for i in chosen], tree_map(lambda x, r=rows: x[r.to(x.device)], batch)
        start += length
