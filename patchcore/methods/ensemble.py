"""Several PatchCores as one: their scores and maps on one scale, then averaged.

Distances of different networks have nothing in common but zero: features of one may be ten times as
long as another's. What every member knows is where nominal images lie on its own scale. Each is
shown nominal training images that its memory must do without, patch by patch as in a test, and
mean and standard deviation of what it says become its units. Test images have no part in it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchcore.errors import InputError
from patchcore.index import TorchIndex
from patchcore.methods.patchcore import FeatureBuffer, PatchCore, Prediction, Stateful
from patchcore.scoring import ScoringConfig, comparable, score_images


@dataclass
class ScaleConfig:
    """How the scale of an ensemble's member is measured."""

    images: int = 50  # nominal training images that are scored for it, at most
    seed: int = 0  # of the draw, where there are more

    def __post_init__(self) -> None:
        if self.images < 1:
            raise InputError(f"ensemble.scale.images must be at least 1, got {self.images}")


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
) -> Scale:
    """The scale of a memory, from the nominal images that it was made of: leave-one-image-out.

    Each image is scored, by exact search, in the memory without the rows that came from it. A
    single image is taken as two, its upper and its lower half. An image without which the memory
    would be too small is passed over. A standard deviation that float32 cannot tell from 0 counts
    as 1.

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
            f"ensemble: a memory of {len(memory)} patches is too small to leave an image out and "
            f"find {needed} neighbours: keep more (coreset.ratio), lower scoring.neighbours or "
            "scoring.reweight"
        )
    draw = torch.randperm(len(able), generator=torch.Generator().manual_seed(config.seed))
    ends = count.cumsum(0)
    scores, patch_scores = [], []
    with torch.autocast(memory.device.type, enabled=False):
        for i in able[draw[: config.images]].sort().values.tolist():
            others = memory[(origin != source[i]).to(memory.device)]  # (M', D)
            index = TorchIndex(others)
            patches = features[ends[i] - count[i] : ends[i]].to(memory.device)  # (P, D)
            patches = comparable(patches, scoring)
            squared, rows = index.search(patches, scoring.neighbours)
            score, each = score_images(patches[None], squared, rows, others, index.search, scoring)
            scores.append(score.double())
            patch_scores.append(each[0].double())
    return Scale(*_moments(torch.cat(scores)), *_moments(torch.cat(patch_scores)))


def combined_scores(scores: Sequence[Tensor], scales: Sequence[Scale]) -> Tensor:
    """Mean of the members' image scores, each (…), once they are on one scale."""
    return torch.stack([s.scores(x) for x, s in zip(scores, scales, strict=True)]).mean(0)


def combined_maps(maps: Sequence[Tensor], scales: Sequence[Scale]) -> Tensor:
    """Mean of the members' anomaly maps of one size, each (…, H, W), once on one scale."""
    return torch.stack([s.maps(x) for x, s in zip(maps, scales, strict=True)]).mean(0)


class Ensemble(Stateful):
    """Several PatchCores that score as one.

    Attributes:
        members: Each with a memory of its own.
        scales: Of the members; empty before `fit`.

    Args:
        members: They may differ in everything: network, layers, coreset, scoring.
        config: How the scales are measured.
    """

    def __init__(self, members: Sequence[PatchCore], config: ScaleConfig | None = None) -> None:
        super().__init__()
        if not members:
            raise InputError("an ensemble needs at least one member")
        self.members: Sequence[PatchCore] = nn.ModuleList(members)  # type: ignore[assignment]
        self.config = config or ScaleConfig()
        self.scales: list[Scale] = []

    def remembered(self) -> dict[str, Any]:
        """See `Stateful.remembered`."""
        return {"scales": [astuple(scale) for scale in self.scales]}

    def remember(self, values: dict[str, Any]) -> None:
        """See `Stateful.remember`."""
        self.scales = [Scale(*scale) for scale in values["scales"]]

    def fit(
        self, images: Tensor | Sequence[Tensor | Iterable[Tensor]], progress: bool = False
    ) -> "Ensemble":
        """Let every member remember nominal images, and measure its scale.

        Args:
            images: One batch (B, 3, H, W) for all members; or for each member the same images at
                its own size, as one batch or an iterable of batches.
        """
        scales = []
        for member, own in zip(self.members, self._each(images), strict=True):
            buffer = FeatureBuffer()
            for batch in [own] if isinstance(own, Tensor) else own:
                buffer.append(member.embed(batch.to(member.memory.device)))
            counts, features = buffer.counts, buffer.take()
            coreset = member.build(features, progress=progress)
            scales.append(
                nominal_scale(
                    features,
                    counts,
                    range(len(counts)),
                    member.memory,
                    coreset.indices,
                    member.scoring,
                    self.config,
                )
            )
        self.scales = scales
        return self

    @torch.inference_mode()
    def forward(self, images: Tensor | Sequence[Tensor]) -> Prediction:
        """Score images: (B, 3, H, W) for all members, or for each the images at its own size.

        Map and patch scores have the size and grid of the first member's, in standard deviations
        from the nominal mean. `nearest` are rows of the first member's memory.
        """
        if not self.scales:
            raise InputError("the ensemble has no scale: call fit with nominal images first")
        batches = [batch for batch in self._each(images) if isinstance(batch, Tensor)]
        height, width = batches[0].shape[-2:]
        predictions = [
            member.score(member.embed(batch), (height, width))
            for member, batch in zip(self.members, batches, strict=True)
        ]
        grid = predictions[0].patch_score.shape[1:]
        patch_scores = [
            F.interpolate(p.patch_score[:, None], grid, mode="bilinear")[:, 0] for p in predictions
        ]
        return Prediction(
            combined_scores([p.score for p in predictions], self.scales),
            combined_maps([p.map for p in predictions], self.scales),
            combined_maps(patch_scores, self.scales),
            predictions[0].nearest,
        )

    def _each(
        self, images: Tensor | Sequence[Tensor | Iterable[Tensor]]
    ) -> Sequence[Tensor | Iterable[Tensor]]:
        """Images for each member."""
        if isinstance(images, Tensor):
            return [images] * len(self.members)
        if len(images) != len(self.members):
            raise InputError(
                f"the ensemble has {len(self.members)} members, but images for {len(images)} were "
                "given: give one batch for all, or one for each"
            )
        return images


def _moments(x: Tensor) -> tuple[float, float]:
    """Mean and standard deviation; 1 for one that is but rounding."""
    mean, std = float(x.mean()), float(x.std(correction=0))
    return mean, std if std > 1e-6 * float(x.abs().max()) else 1.0
