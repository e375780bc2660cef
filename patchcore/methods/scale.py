"""Scale of a memory's scores, measured on the nominal images that it was made of.

Distances of different networks have no common unit: features of one network may be ten times as
long as those of another. So each memory bank scores nominal training images, without the
patches of the image that is scored. The mean and standard deviation of these scores define the
memory bank's units. Test images play no part.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from patchcore.errors import InputError, counted
from patchcore.index import TorchIndex
from patchcore.scoring import ScoringConfig, Search, comparable, score_images
from patchcore.settings import Settings, setting


@dataclass
class ScaleConfig(Settings):
    """Settings of the measurement of a member's scale."""

    GROUP: ClassVar[str] = "ensemble.scale"

    images: int = setting(
        50,
        "largest number of nominal training images that are scored to find the common scale",
        unit="images",
        low=1,
    )
    seed: int = setting(0, "seed for drawing them if there are more")


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of a member's scores of nominal images and of their patches."""

    score_mean: float
    score_std: float
    patch_mean: float
    patch_std: float

    def scores(self, x: Tensor) -> Tensor:
        """Image scores (…), as standard deviations from the nominal mean."""
        return (x - self.score_mean) / self.score_std

    def maps(self, x: Tensor) -> Tensor:
        """Patch scores or anomaly maps (…), as standard deviations from the nominal mean.

        Upsampling and smoothing keep constants, so it may come before or after them.
        """
        return (x - self.patch_mean) / self.patch_std


@torch.inference_mode()
def nominal_scale(
    features: Tensor,
    counts: Sequence[int],
    sources: Sequence[int],
    memory: Tensor,
    indices: Tensor | None,
    scoring: ScoringConfig,
    config: ScaleConfig,
    nearby: Callable[[Tensor, int, int], Search] | None = None,
) -> Scale:
    """The scale of a memory, from the nominal images that it was made of: leave-one-image-out.

    Each image is scored, by exact search, in the memory bank without the image's own rows. A single
    image is treated as two images, its upper and its lower half. An image is skipped if the memory
    bank would be too small without it. A standard deviation that float32 cannot distinguish from 0
    counts as 1.

    Args:
        features: (N, D) patch features of the training images, one image after another.
        counts: How many patches each of them has.
        sources: Which image each of them is: copies of one image, as from several epochs, share a
            number and are left out together.
        memory: (M, D) memory bank, as it is searched; its device does the work.
        indices: (M,) which of the N patches the rows are; None if they are none of them, as learned
            proxies, of which nothing can be left out.
        scoring: How distances become scores.
        config: How many images are scored.
        nearby: Given the memory's rows that are left, (M,) bool, and the first and the end
            of an image's patches, the search for these; None: exact search in all that is left.

    Raises:
        InputError: The memory is too small without any of the images.
    """
    count, source = torch.tensor(counts), torch.tensor(sources)  # (I,), (I,)
    if len(source.unique()) == 1:
        upper = count // 2
        count = torch.stack((upper, count - upper), 1).flatten()  # (2·I,)
        source = torch.tensor([0, 1]).repeat(len(source))  # (2·I,)
    _, source = source.unique(return_inverse=True)
    if indices is None:
        origin = torch.full((len(memory),), len(source))  # (M,): of no image
    else:
        origin = source.repeat_interleave(count)[indices]  # (M,)
    left = len(memory) - origin.bincount(minlength=len(source) + 1)[source]  # (I,)
    needed = max(scoring.neighbours, scoring.reweight)
    able = ((left >= needed) & (count > 0)).nonzero()[:, 0]
    if not len(able):
        raise InputError(
            f"ensemble, layers.join: a memory of {counted(len(memory), 'patch')} is too small to "
            f"leave an image out and find {counted(needed, 'neighbour')}: keep more patches "
            "(coreset.ratio or coreset.count), lower scoring.neighbours or scoring.reweight"
        )
    draw = torch.randperm(len(able), generator=torch.Generator().manual_seed(config.seed))
    ends = count.cumsum(0)
    scores, patch_scores = [], []
    with torch.autocast(memory.device.type, enabled=False):
        for i in able[draw[: config.images]].sort().values.tolist():
            kept = origin != source[i]
            others = memory[kept.to(memory.device)]  # (M', D)
            index = TorchIndex(others)
            start, stop = int(ends[i] - count[i]), int(ends[i])
            patches = comparable(features[start:stop].to(memory.device), scoring)  # (P, D)
            search = index.search if nearby is None else nearby(kept, start, stop)
            squared, rows = search(patches, scoring.neighbours)
            score, each = score_images(patches[None], squared, rows, others, index.search, scoring)
            scores.append(score.double())
            patch_scores.append(each[0].double())
    return Scale(*_moments(torch.cat(scores)), *_moments(torch.cat(patch_scores)))


def _moments(x: Tensor) -> tuple[float, float]:
    """Mean and standard deviation; the latter is 1 if it is only rounding error."""
    mean, std = float(x.mean()), float(x.std(correction=0))
    return mean, std if std > 1e-6 * float(x.abs().max()) else 1.0
