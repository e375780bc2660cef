"""Overlap of each anomalous image's map with its mask: AUPIMO.

AUPIMO follows Bertoldo et al., "AUPIMO: Redefining Visual Anomaly Detection Benchmarks with High
Speed and Low Tolerance", BMVC 2024, and anomalib's implementation of it. The per-image overlap
(PIMO) curve of an anomalous image is the share of its anomalous pixels at or above a threshold,
over the false-positive rate of that threshold: the mean, over the nominal images, of the share of
their pixels at or above it. The area under the curve is taken over the logarithm of the
false-positive rate from 1e-5 to 1e-4 and divided by that range. The curve here has a point at every
distinct score and is cut at exactly these bounds, where anomalib takes equally spaced thresholds
and the nearest one to each bound; both join points by straight lines. tests/reference.py has the
naive version.
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


class UndefinedError(ValueError):
    """A metric has no value; the message is the reason."""


@dataclass(frozen=True)
class MapScores:
    """Pixel scores of all maps, split by label, image by image in one order.

    An image whose pixels are left out has none of either kind.
    """

    nominal: Float[Tensor, " nominal"]  # of all images, those with a defect too
    anomalous: Float[Tensor, " anomalous"]
    free: Int64[Tensor, " images"]  # number of nominal pixels of each image, on the CPU
    marked: Int64[Tensor, " images"]  # number of anomalous ones, on the CPU


def aupimo(maps: MapScores) -> float:
    """Mean of `pimo_areas` over the anomalous images. Raises UndefinedError as it does."""
    return float(pimo_areas(maps).mean())


def pimo_areas(
    maps: MapScores, low: float = LOW, high: float = HIGH
) -> Float64[Tensor, " anomalous_images"]:
    """Area under the PIMO curve of each anomalous image, in [0, 1], in their order.

    Args:
        maps: Scores; an image is anomalous if any of its pixels is.
        low: Lower bound of the false-positive rate, above 0.
        high: Its upper bound, at most 1.

    Raises:
        UndefinedError: There is no anomalous or no nominal image, or the nominal ones have too few
            pixels, or too many of one score, for a false-positive rate of `low`.
    """
    anomalous = maps.marked[maps.marked > 0].numpy()
    if not len(anomalous):
        raise UndefinedError("no anomalous pixels in the test set")
    levels, rates = _rates(maps, high)
    if rates[0] > low * (1 + 1e-9):
        raise UndefinedError(
            f"AUPIMO begins at a false-positive rate of {low:g}, but a single nominal pixel is "
            f"already a rate of {rates[0]:.1e}: it needs more nominal images"
        )
    # From rate to rate the curve is a straight line over their logarithms. An anomalous pixel adds
    # the whole width to the area where its score exceeds that of the step, and rises with the line
    # where it is equal to it.
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

    They go on until the rate exceeds `high`, or to the lowest score.
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
    most = min(len(scores), int(high * len(sizes) * sizes.max()) + 1)  # no more can be within
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
