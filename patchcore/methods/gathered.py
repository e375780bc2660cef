"""Patches gathered from nominal images: their coreset, and those that `method.pruning` trusts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from patchcore.coreset import Coreset, CoresetConfig, GreedyConfig, Order, subsample
from patchcore.methods.common import FeatureBuffer, is_order
from patchcore.methods.detector import Fitting
from patchcore.pruning import judged_patches, prune

if TYPE_CHECKING:
    from patchcore.methods.patchcore import PatchCore


@dataclass
class Gathered:
    """Patches of nominal images, one image after another.

    Attributes:
        features: (N, D).
        places: Positions of each image's patches in its grid, [(n,), …].
        widths: Width of each image's grid, in patches.
        tokens: (C,) class token of each image; or none at all.
        images: Number of each image; copies of one share it.
    """

    features: Tensor
    places: list[Tensor]
    widths: list[int]
    tokens: list[Tensor]
    images: Sequence[int]

    @classmethod
    def of(cls, buffer: FeatureBuffer, images: Sequence[int] | None) -> "Gathered":
        """Return the content of a buffer and empty it; without numbers, all images differ."""
        places, tokens = buffer.places, buffer.tokens
        widths = [width for _, width in buffer.grids]
        numbers = range(len(places)) if images is None else images
        return cls(buffer.take(), places, widths, tokens, numbers)

    @property
    def counts(self) -> list[int]:
        """Numbers of the images' patches."""
        return [len(each) for each in self.places]

    def kept(self, patches: Tensor) -> "Gathered":
        """Return it with only some of the patches, (N,) bool; images without any are left out."""
        each = patches.split(self.counts)
        left = [number for number, own in enumerate(each) if bool(own.any())]
        return Gathered(
            self.features[patches.to(self.features.device)],
            [self.places[number][each[number]] for number in left],
            [self.widths[number] for number in left],
            [self.tokens[number] for number in left] if self.tokens else [],
            [self.images[number] for number in left],
        )


def sampled(
    features: Tensor,
    make: Callable[[Tensor, Order | None], Coreset],
    settings: tuple[Any, CoresetConfig],
    fitting: Fitting,
    stage: str,
) -> Coreset:
    """Return the coreset of features (N, D), whose order is read and kept where that is possible.

    Args:
        features: Of all images.
        make: Makes it, from a stored order if there is one.
        settings: Those that features follow from, and the sampler's.
        fitting: Its `kept` is used; it is told if the stage read from there.
        stage: Name of the stage.
    """
    kept = fitting.kept if settings[1].ordered and fitting.places is None else None
    order = None
    if kept is not None:
        entry = kept.get(*settings, lambda entry: is_order(entry, len(features)))
        if entry is not None:
            order = Order(**entry)
            fitting.warm.add(stage)
    coreset = make(features, order)
    if kept is not None and coreset.order is not order:
        kept.put(*settings, vars(coreset.order))
    return coreset


def told_cost(fitting: Fitting, stage: str, coreset: Coreset) -> None:
    """Note what a stage with this coreset costs when nothing is read from `fitting.kept`."""
    whole = math.nan if coreset.whole is None else coreset.whole
    fitting.costs[stage] = fitting.seconds[stage] - coreset.spent + whole


def pruned(model: "PatchCore", gathered: Gathered, fitting: Fitting) -> Gathered:
    """Return the patches that `method.pruning` trusts; model and fitting are told of the others."""
    others = model.method.pruning
    if others is None:
        return gathered
    features, device = gathered.features, model.device
    images = [fitting.copies.get(number, number) for number in gathered.images]
    count = judged_patches(len(features), len(set(images)))
    sampler = GreedyConfig(count=count, seed=getattr(model.coreset_config, "seed", 0))
    raw = replace(model.followed(), whitening=None, shrinkage=None, pruning=None)
    with fitting.stage("pruning"):
        first = sampled(
            features,
            lambda x, order: subsample(
                x, sampler, device=device, order=order, progress=fitting.progress
            ),
            (raw, sampler),
            fitting,
            "pruning",
        )
        assert first.indices is not None
        of = (gathered.counts, images, first.indices)
        judged = prune(features, *of, others, device)
    told_cost(fitting, "pruning", first)
    originals = dict(zip(gathered.images, images, strict=True))
    fitting.distrusted = {
        number: distrust
        for original, distrust in judged.images.items()
        for number, same in originals.items()
        if same == original
    }
    model.left_out = tuple(fitting.distrusted)
    return gathered.kept(judged.patches)
