"""Score of a run's settings from nominal images alone: how well synthetic defects are told apart.

Some training images are held out, as the folds of `patchcore.methods.folds` are. Each is scored by
the method fitted to the others, once as it is and several times with a synthetic defect drawn on it
(`patchcore.data.defects`). The label-free score is the AUROC of those with a defect against those
without. No test image takes part, nor any label, so that whoever has good parts alone can look for
the best of several settings; experiments/label_free/ measures how near to the best that leads.

Settings are compared on the same images with the same defects. The score says nothing on how well
real defects are found: it ranks settings.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from patchcore.errors import InputError, counted
from patchcore.map_cache import KeptOrders
from patchcore.methods.detector import Detector, Fitting
from patchcore.methods.folds import FeatureBatches, fitted_without, folds_of, predictions
from patchcore.metrics import image_metrics, sweep
from patchcore.settings import Settings, setting

STAGE = "label_free"
"""Name of the metric, and of the stage among seconds and costs."""


@dataclass
class LabelFreeConfig(Settings):
    """Settings of the score that needs no anomalous image."""

    GROUP: ClassVar[str] = "label_free"

    enabled: bool = setting(
        False, "measure label_free also if it is not among the objectives", effect=False
    )
    images: int = setting(
        60,
        "least number of training images to hold out; folds are held out one by one until there "
        "are so many",
        unit="images",
        low=1,
    )
    folds: int = setting(5, "number of folds of training images", unit="folds", low=2)
    defects: int = setting(
        2,
        "number of images with synthetic defects that are made from each held-out image",
        unit="images",
        low=1,
    )
    seed: int = setting(0, "seed for the division into folds and for the defects")


def held_out(images: Collection[int], config: LabelFreeConfig) -> list[list[int]]:
    """Return the numbers of the images that are held out together, fold by fold.

    Args:
        images: Numbers of the training images.
        config: How many folds, and how many images at least; all of them if there are fewer.

    >>> [len(fold) for fold in held_out(range(100), LabelFreeConfig(images=30, folds=5))]
    [20, 20]
    """
    folds = min(config.folds, len(images))
    fold = folds_of(images, folds, config.seed)
    found: list[list[int]] = []
    for number in range(folds):
        if sum(map(len, found)) >= config.images:
            break
        found.append([image for image in sorted(fold) if fold[image] == number])
    return found


class LabelFree:
    """Gathers features of synthetic defects, then judges a method by them.

    Args:
        config: How it is measured.
        images: Number of training images.
        copies: See `patchcore.methods.detector.Fitting.copies`: with an image, its copies are left
            out of the fit.

    Attributes:
        folds: See `held_out`.
        sources: Numbers of the images whose defects were gathered, in their order.
        score: The label-free score, once it is measured.
        seconds: Wall time of all that, once it is measured.

    Raises:
        InputError: There are fewer than two training images that differ.
    """

    def __init__(
        self, config: LabelFreeConfig, images: int, copies: Mapping[int, int] | None = None
    ) -> None:
        self.copies = copies or {}
        firsts = [number for number in range(images) if number not in self.copies]
        if len(firsts) < 2:
            raise InputError(
                "label_free needs at least two training images that differ, because one is held "
                "out: give more, or choose another objective"
            )
        self.config = config
        self.images = images
        self.folds = held_out(firsts, config)
        self.sources: list[int] = []
        self.score = float("nan")
        self.seconds = 0.0
        self._defective = FeatureBatches(len(self.numbers) * config.defects)

    @property
    def numbers(self) -> list[int]:
        """Numbers of the images that are held out, fold by fold."""
        return [number for fold in self.folds for number in fold]

    @property
    def drawing(self) -> tuple[int, int]:
        """Number of defects in each image, and the seed of their drawings."""
        return self.config.defects, self.config.seed

    def plan(self) -> str:
        """Return a sentence on what it will cost."""
        count, fits = len(self.numbers), len(self.folds)
        return (
            f"label_free: {count} of {counted(self.images, 'training image')} "
            f"{'is' if count == 1 else 'are'} held out, with "
            f"{counted(count * self.config.defects, 'synthetic defect')} to extract and "
            f"{fits} further {'memory' if fits == 1 else 'memories'} to build"
        )

    def append(self, features: Any, images: Sequence[int]) -> None:
        """Add features of a batch of images with a defect, by the images' numbers."""
        self._defective.append(features)
        self.sources += images

    @torch.inference_mode()
    def measure(
        self,
        model: Detector,
        batches: Sequence[Any],
        images: Sequence[int],
        orders: KeptOrders | None = None,
    ) -> tuple[float, bool]:
        """Measure the score; what was gathered of defects is forgotten.

        Args:
            model: The method; copies of it are fitted.
            batches: Features of all training images, batch by batch.
            images: Their numbers, in this order; copies of one share its number, and the first is
                scored.
            orders: Where coreset orders of these images are looked for and kept.

        Returns:
            Seconds that the fits and scores cost if no order is read, and whether any was.
        """
        start, defective = time.perf_counter(), list(self._defective.empty())
        first = {number: place for place, number in reversed(list(enumerate(images)))}
        nominal: list[float] = []
        anomalous: list[float] = []
        more, warm = 0.0, False
        for fold in map(set, self.folds):
            left = {number for number in images if self.copies.get(number, number) in fold}
            others = [number for number in images if number not in left]
            fitting = Fitting(images=others, copies=self.copies)
            if orders is not None:
                maps = zip(images, orders.maps, strict=True)
                kept = [key for number, key in maps if number not in left]
                fitting.kept = KeptOrders(orders.store, kept)
            fitted = fitted_without(model, batches, images, left, fitting)
            own = [number in fold and first[number] == place for place, number in enumerate(images)]
            nominal += _scores(fitted, batches, own)
            anomalous += _scores(fitted, defective, [number in fold for number in self.sources])
            fresh = {stage: fitting.costs.get(stage, x) for stage, x in fitting.seconds.items()}
            more += sum(fresh.values()) - sum(fitting.seconds.values())
            warm = warm or bool(fitting.warm)
        self.score = separation(nominal, anomalous)
        spent = time.perf_counter() - start
        self.seconds += spent
        return spent + more, warm


def separation(nominal: Sequence[float], anomalous: Sequence[float]) -> float:
    """Return the AUROC of scores of images with a defect against scores of images without.

    >>> separation([0.1, 0.2], [0.15, 0.3])
    0.75
    """
    both = (torch.tensor(scores, dtype=torch.float64) for scores in (nominal, anomalous))
    return float(image_metrics(sweep(*both))["image_auroc"])


def _scores(fitted: Detector, batches: Sequence[Any], wanted: Sequence[bool]) -> list[float]:
    """Anomaly scores of the images that are wanted, in their order."""
    found = predictions(fitted, batches, wanted)
    return [score for _, prediction in found for score in prediction.score.tolist()]
