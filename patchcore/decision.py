"""A threshold with a guarantee, from nominal images alone: conformal prediction.

Scores of n nominal images that the model has not seen (`patchcore.methods.folds`) represent those
of future nominal images. If all are exchangeable, a new image has every rank among them with the
same probability. Then its p-value

    p(s) = (1 + number of the n scores that are ≥ s) / (n + 1)

is at most α in a share of at most α of the cases (Vovk et al., Algorithmic Learning in a Random
World, 2005). An image is called anomalous where p ≤ α. That is a threshold: just above the k-th
largest of the n scores, k = ⌊α (n + 1)⌋. The guaranteed rate is k / (n + 1), as a mean over all
draws of the n images. With those at hand the realised rate follows the law Beta(k, n + 1 − k)
(Vovk, ACML 2012), whose central 95 % are the interval told here. Below α = 1 / (n + 1) nothing can
be promised: then k is 1, the threshold is the least above all scores, and 1 / (n + 1) is told.

For pixels, the loss of a nominal image is the share of its pixels at or above the threshold, and
the promise is on the expected loss: the lowest threshold with (sum of the n losses + 1) / (n + 1)
≤ α (conformal risk control: Angelopoulos et al., ICLR 2024). It says nothing on the law of the
realised share, so there is no interval.

A score at or above a threshold is called anomalous, here as everywhere. Cross-fitted scores are
exchangeable with new ones but nearly; experiments/false_alarms/ measures how nearly.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from patchcore.errors import InputError, counted
from patchcore.settings import Settings, setting, shown


@dataclass
class DecisionConfig(Settings):
    """Settings of the threshold that nominal training images give."""

    GROUP: ClassVar[str] = "decision"

    false_alarms: float | None = setting(
        None,
        "share of nominal images, and of their pixels, that may be called anomalous; null: no "
        "threshold is computed",
        above=0,
        below=1,
        effect=lambda decision: decision["false_alarms"] is not None,
    )
    folds: int = setting(
        10,
        "number of folds, at most one for each image; the method is fitted without each fold in "
        "turn and then scores it",
        unit="folds",
        low=2,
        effect=lambda decision: decision["false_alarms"] is not None,
        idle="without decision.false_alarms",
    )
    seed: int = setting(
        0,
        "seed for dividing the images into folds",
        effect=lambda decision: decision["false_alarms"] is not None,
        idle="without decision.false_alarms",
    )


def alarms(images: int, rate: float) -> int:
    """k: how many of the images' scores may lie at or above a threshold of that rate; at least 1.

    One of them would be that of the image to come.
    """
    return max(1, math.floor(rate * (images + 1) + 1e-9))  # 0.29 · 100 is 28.999…


def rate_interval(images: int, k: int, share: float = 0.95) -> tuple[float, float]:
    """Central interval that holds so much of the law Beta(k, n + 1 − k) of the rate realised.

    The law is exact for independent scores without ties; with ties the rate is lower.
    """
    tail = (1 - share) / 2
    from scipy.stats import beta  # here: half a second that settings need not wait for

    low, high = beta.ppf([tail, 1 - tail], k, images + 1 - k)
    return float(low), float(high)


def image_threshold(scores: Tensor, rate: float) -> float:
    """Threshold of a wanted false-alarm rate, from the scores (n,) of nominal images."""
    rising = checked(scores).sort().values
    return _above(float(rising[-alarms(len(rising), rate)]))


def pixel_threshold(maps: Iterable[Tensor], images: int, rate: float) -> tuple[float, float]:
    """Threshold of a wanted share of nominal pixels, and the share that is guaranteed.

    Only pixels that may still lie above it are kept, about `rate` of all.

    Args:
        maps: Anomaly maps (B, H, W) of nominal images, or their pixels (B, P) that count, in
            batches; sizes may differ.
        images: How many these are.
        rate: Wanted share.
    """
    allowed = max(0.0, rate * (images + 1) - 1)  # sum of the images' shares
    values, shares = torch.empty(0), torch.empty(0, dtype=torch.float64)
    lowest = -math.inf
    for batch in maps:
        pixels = checked(batch).flatten()
        near = pixels[pixels >= lowest].cpu()
        each = torch.full(near.shape, 1 / batch[0].numel(), dtype=torch.float64)
        values, order = torch.cat((values, near)).sort(descending=True)
        shares = torch.cat((shares, each))[order]
        last = int(torch.searchsorted(shares.cumsum(0), allowed + 1e-9, right=True))
        if last < len(values):  # the pixel that would be too many, and its equals
            lowest = float(values[last])
            kept = values >= lowest
            values, shares = values[kept], shares[kept]
    if not len(values):
        raise InputError("decision: there are no nominal images from which to compute a threshold")
    threshold = _above(lowest if math.isfinite(lowest) else float(values[-1]))
    return threshold, (float(shares[values >= threshold].sum()) + 1) / (images + 1)


def p_values(scores: Tensor, nominal: Tensor) -> Tensor:
    """Conformal p-values (…), float64 in (0, 1], of scores (…) among nominal ones (n,), ascending.

    The lower, the more anomalous; all that exceed every nominal score share 1 / (n + 1), and the
    scores themselves order them.
    """
    nominal = nominal.to(scores.device, torch.float64)
    below = torch.searchsorted(nominal, checked(scores).double().contiguous())
    return (1 + len(nominal) - below).double() / (len(nominal) + 1)


@dataclass(frozen=True)
class Decision:
    """Verdicts with a promise, and all that they follow from.

    Attributes:
        false_alarms: Rate that was wanted.
        scores: (n,) float64, of nominal images that the model has not seen; ascending.
        pixel_threshold: A pixel of an anomaly map is anomalous at or above it.
        pixel_rate: Share of a nominal image's pixels that is guaranteed, as expected value.
        folds: How many folds the scores were cross-fitted in.
    """

    false_alarms: float
    scores: Tensor
    pixel_threshold: float
    pixel_rate: float
    folds: int

    def __post_init__(self) -> None:
        for key in ("false_alarms", "pixel_threshold", "pixel_rate"):
            value = getattr(self, key)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value):
                raise InputError(f"decision.{key} must be a finite number, got {shown(value)}")
        DecisionConfig(self.false_alarms, self.folds)  # checks their ranges
        if not len(self.scores):
            raise InputError("decision: there are no nominal scores")
        if bool((checked(self.scores).diff() < 0).any()):
            raise InputError("decision: the nominal scores are not in ascending order")

    @property
    def images(self) -> int:
        """n, the nominal images."""
        return len(self.scores)

    @property
    def threshold(self) -> float:
        """An image is anomalous at or above it."""
        return image_threshold(self.scores, self.false_alarms)

    @property
    def rate(self) -> float:
        """False-alarm rate of images that is guaranteed: `false_alarms`, or what n images allow."""
        return alarms(self.images, self.false_alarms) / (self.images + 1)

    @property
    def interval(self) -> tuple[float, float]:
        """Interval of the rate realised, at 95 %."""
        return rate_interval(self.images, alarms(self.images, self.false_alarms))

    def notices(self) -> list[str]:
        """Sentences that a user should read: too few images for the rate that was asked for."""
        if self.false_alarms * (self.images + 1) >= 1:
            return []
        needed = math.ceil(1 / self.false_alarms) - 1
        return [
            f"decision.false_alarms={self.false_alarms:g} needs "
            f"{counted(needed, 'nominal image')}: "
            f"{self.images} guarantee {self.rate:.2g}"
        ]

    def verdict(self, score: Tensor) -> Tensor:
        """Verdicts on images by their scores (…): bool (…), True for anomalous."""
        return checked(score) >= self.threshold

    def p_value(self, score: Tensor) -> Tensor:
        """See `p_values`."""
        return p_values(score, self.scores)

    def values(self) -> dict[str, Any]:
        """All but `scores` as plain values, for people too: some follow from the scores."""
        low, high = self.interval
        return {
            "false_alarms": self.false_alarms,
            "folds": self.folds,
            "images": self.images,
            "threshold": self.threshold,
            "rate": self.rate,
            "rate_low": low,
            "rate_high": high,
            "pixel_threshold": self.pixel_threshold,
            "pixel_rate": self.pixel_rate,
        }

    @classmethod
    def of_values(cls, values: Mapping[str, Any], scores: Tensor) -> "Decision":
        """Decision from saved `values` and scores.

        Raises:
            InputError: They do not belong together.
        """
        if not isinstance(values, Mapping):
            raise InputError(f"decision must be a mapping {{name: value}}, got {shown(values)}")
        try:
            own = ("false_alarms", "pixel_threshold", "pixel_rate", "folds")
            decision = cls(scores=scores, **{key: values[key] for key in own})
            if others := [key for key in values if key not in decision.values()]:
                raise InputError(
                    f"decision: holds {others[0]}, which this version does not know: it may be of "
                    "a newer version: install a newer patchcore"
                )
            alike = _alike(decision.values(), dict(values))
        except (KeyError, TypeError) as error:
            raise InputError(f"decision: {error} is missing or not a number") from error
        if not alike:
            raise InputError("decision: its threshold or rate is not that of its nominal scores")
        return decision


def _alike(own: dict[str, Any], saved: dict[str, Any]) -> bool:
    """Whether values are equal; the interval's ends, up to the rounding of a version of SciPy."""
    ends = ("rate_low", "rate_high")
    near = all(math.isclose(own.pop(key), saved.pop(key), rel_tol=1e-9) for key in ends)
    return near and own == saved


def decide(scores: Tensor, maps: Iterable[Tensor], false_alarms: float, folds: int) -> Decision:
    """Return the decision that scores (n,) and anomaly maps (B, H, W) of nominal images give.

    Args:
        scores: Of images that the model has not seen, in any order.
        maps: Of the same images, in batches: see `pixel_threshold`.
        false_alarms: Wanted rate.
        folds: How many folds these were cross-fitted in.
    """
    rising = checked(scores).double().cpu().sort().values
    return Decision(false_alarms, rising, *pixel_threshold(maps, len(rising), false_alarms), folds)


class DecisionCounts:
    """Recall and false alarms of a decision on test images, counted batch by batch.

    Args:
        decision: It is made before any test image is seen.
    """

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        self._images = [0, 0]  # nominal, anomalous
        self._called = [0, 0]  # of these, called anomalous
        self._shares = 0.0  # sum over nominal images
        self._marked, self._found = 0, 0  # pixels

    def update(
        self,
        scores: Tensor,
        maps: Tensor,
        labels: Tensor,
        masks: Tensor,
        known: Tensor,
        counts: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            scores: (B,) anomaly scores.
            maps: (B, H, W) anomaly maps.
            labels: (B,) true for anomalous.
            masks: (B, H, W) bool, true where anomalous.
            known: (B,) bool, false for an anomalous image without a mask in view.
            counts: (B, H, W) bool, pixels that count; None: all.
        """
        called, labels = self.decision.verdict(scores).cpu(), labels.bool().cpu()
        for label in (0, 1):
            self._images[label] += int((labels == label).sum())
            self._called[label] += int(called[labels == label].sum())
        above = checked(maps) >= self.decision.pixel_threshold  # (B, H, W)
        counts = torch.ones_like(above) if counts is None else counts.to(above.device)
        shares = (above & counts).sum((1, 2)).double() / counts.sum((1, 2))
        self._shares += float(shares.cpu()[~labels].sum())
        marked = masks & known[:, None, None] & counts.to(masks.device)
        self._marked += int(marked.sum())
        self._found += int((above & marked.to(above.device)).sum())

    def compute(self) -> dict[str, float]:
        """Metrics; NaN where `undefined` tells why."""
        decision, (nominal, anomalous) = self.decision, self._images
        low, high = decision.interval
        return {
            "decision_threshold": decision.threshold,
            "decision_rate": decision.rate,
            "decision_rate_low": low,
            "decision_rate_high": high,
            "decision_recall": _ratio(self._called[1], anomalous),
            "decision_false_alarms": _ratio(self._called[0], nominal),
            "decision_pixel_threshold": decision.pixel_threshold,
            "decision_pixel_rate": decision.pixel_rate,
            "decision_pixel_recall": _ratio(self._found, self._marked),
            "decision_pixel_false_alarms": _ratio(self._shares, nominal),
            "decision_images": decision.images,
        }

    def undefined(self) -> dict[str, str]:
        """Reasons why metrics are NaN, {key: reason}."""
        needs = {
            "decision_recall": (self._images[1], "anomalous images"),
            "decision_false_alarms": (self._images[0], "nominal images"),
            "decision_pixel_recall": (self._marked, "anomalous pixels"),
            "decision_pixel_false_alarms": (self._images[0], "nominal images"),
        }
        return {
            key: f"no {things} in the test set"
            for key, (count, things) in needs.items()
            if not count
        }


def _ratio(part: float, whole: int) -> float:
    return part / whole if whole else math.nan


def checked(scores: Tensor) -> Tensor:
    """Scores, once they are known to be numbers. Raises InputError for NaN and infinity."""
    if not bool(scores.isfinite().all()):
        raise InputError("decision: a score is NaN or infinite, so there is no verdict")
    return scores


def _above(score: float) -> float:
    """The least float32 above a score in float32 and in float64."""
    nearest = torch.tensor(score, dtype=torch.float32)
    return float(torch.nextafter(nearest, torch.tensor(math.inf)))
