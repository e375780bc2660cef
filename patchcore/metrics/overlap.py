"""Overlap of each anomalous image's map with its mask: AUPIMO.

AUPIMO follows Bertoldo et al., "AUPIMO: Redefining Visual Anomaly Detection Benchmarks with High
Speed and Low Tolerance", BMVC 2024, and its implementation in anomalib. The per-image overlap
(PIMO) curve of an anomalous image plots the share of its anomalous pixels at or above a threshold
against the false-positive rate of that threshold. This rate is the mean, over the nominal images,
of the share of their pixels at or above the threshold. The area under the curve is taken over the
logarithm of the false-positive rate from 1e-5 to 1e-4 and divided by the length of this interval.
The curve here has a point at every distinct score and is cut exactly at these bounds. anomalib
takes equally spaced thresholds, and for each bound the nearest of them. Both connect points by
straight lines. tests/reference.py has the naive version.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

LOW, HIGH = 1e-5, 1e-4
"""Bounds of the false-positive rate between which AUPIMO is taken."""


NO_PIXELS = "no anomalous pixels in the test set"
"""Reason why a metric of pixels is undefined."""


class UndefinedError(ValueError):
    """Error: a metric is undefined; the message is the reason."""


@dataclass(frozen=True)
class MapScores:
    """Pixel scores of all maps, split by label, one image after another in the same order.

    An image that is left out has 0 pixels of both kinds.
    """

    nominal: Float[Tensor, " nominal"]  # of all images, including those with defects
    anomalous: Float[Tensor, " anomalous"]
    free: Int64[Tensor, " images"]  # number of nominal pixels of each image, on the CPU
    marked: Int64[Tensor, " images"]  # number of anomalous pixels of each image, on the CPU


def aupimo(maps: MapScores) -> float:
    """Return the mean of `pimo_areas` over the anomalous images, in [0, 1].

    Raises:
        UndefinedError: as in `pimo_areas`.
    """
    return float(pimo_areas(maps).mean())


def pimo_areas(
    maps: MapScores, low: float = LOW, high: float = HIGH
) -> Float64[Tensor, " anomalous_images"]:
    """Return the area under the PIMO curve of each anomalous image, in [0, 1], in their order.

    Args:
        maps: Scores; an image is anomalous if any of its pixels is.
        low: Lower bound of the false-positive rate, above 0.
        high: Upper bound of the false-positive rate, at most 1.

    Raises:
        UndefinedError: There is no anomalous or no nominal image; or no threshold has a
            false-positive rate of `low` or less, because nominal images have too few pixels, or too
            many share the highest score.
    """
    anomalous = maps.marked[maps.marked > 0].numpy()
    if not len(anomalous):
        raise UndefinedError(NO_PIXELS)
    levels, rates = _rates(maps, high)
    if rates[0] > low * (1 + 1e-9):
        raise UndefinedError(
            f"AUPIMO begins at a false-positive rate of {low:g}, but the highest nominal score "
            f"already has a rate of {rates[0]:.1e}: it needs more nominal images"
        )
    # Between two rates the curve is a straight line over the logarithm of the rate. An anomalous
    # pixel adds the whole width of a step to the area if its score exceeds the step's level, and
    # the area under the line if it equals that level.
    at = np.log(rates)
    above = np.append(min(at[0], math.log(low)), at[:-1])
    left, right = (x.clip(math.log(low), math.log(high)) for x in (above, at))
    width = right - left
    rise = np.divide(right + left - 2 * above, 2 * (at - above), where=at > above, out=0 * at)
    shares = np.append(0.0, width[::-1].cumsum()) / math.log(high / low)  # (levels + 1,)
    ties = (width * rise)[::-1] / math.log(high / low)
    rising = levels[::-1]
    scores = maps.anomalous.numpy(force=True)
    place = np.searchsorted(rising, scores)
    nearest = place.clip(max=len(rising) - 1)
    share = shares[place] + np.where(rising[nearest] == scores, ties[nearest], 0.0)  # (A,)
    image = np.repeat(np.arange(len(anomalous)), anomalous)
    return torch.from_numpy(np.bincount(image, share, len(anomalous)) / anomalous)


def _rates(maps: MapScores, high: float) -> tuple[NDArray[np.floating], NDArray[np.float64]]:
    """Highest distinct scores of nominal images, falling, and the false-positive rate at each.

    The last rate exceeds `high`, unless the lowest score is reached before.
    """
    whole = (maps.marked == 0) & (maps.free > 0)
    sizes = maps.free[whole].numpy()
    if not len(sizes):
        raise UndefinedError("no nominal images in the test set")
    of_whole = whole.repeat_interleave(maps.free).to(maps.nominal.device)
    if maps.nominal.is_cuda:
        scores = maps.nominal[of_whole]
    else:  # several times faster than in torch
        scores = torch.from_numpy(maps.nominal.numpy()[of_whole.numpy()])
    most = min(len(scores), int(high * len(sizes) * sizes.max()) + 1)  # these exceed `high`
    if scores.is_cuda:
        lowest = scores.topk(most).values[-1]
    else:
        lowest = torch.tensor(np.partition(scores.numpy(), -most)[-most])
    chosen = (scores >= lowest).nonzero()[:, 0]
    places, top = chosen.numpy(force=True), scores[chosen].numpy(force=True)
    size = sizes[np.searchsorted(sizes.cumsum(), places, "right")]
    rising, level = np.unique(top, return_inverse=True)
    mass = np.bincount(level, 1 / size, len(rising)) / len(sizes)
    return rising[::-1], mass[::-1].cumsum()
