"""Bootstrap intervals of image metrics.

Nominal and anomalous images are resampled with replacement, each among themselves, so that their
numbers stay the same. Types of defects are not kept apart: a type of one image would never vary,
and the interval would be too narrow. The interval lies between two quantiles of the metric over the
resamples: the percentile method of Efron and Tibshirani, "An Introduction to the Bootstrap", 1993.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from patchcore.metrics.measures import IMAGE_KEYS, METRICS, image_undefined
from patchcore.metrics.sweep import Sweep

RESAMPLES = 1000
CONFIDENCE = 0.95
SEED = 0
_AT_ONCE = 2**21  # entries of a table of resamples by thresholds


def intervals(
    nominal: NDArray[np.floating],
    anomalous: NDArray[np.floating],
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = SEED,
) -> dict[str, tuple[float, float]]:
    """Return bootstrap intervals of the image metrics that reports rank by.

    Args:
        nominal: Scores (N,) of nominal images.
        anomalous: Scores (A,) of anomalous images.
        resamples: Number of resamples.
        confidence: Share of the resamples whose metric lies in the interval, in (0, 1).
        seed: Seed of the resamples.

    Returns:
        {key: (low, high)}, without metrics that are undefined; empty with fewer than two nominal
        or two anomalous scores, because a single one does not vary.
    """
    if min(len(nominal), len(anomalous)) < 2:
        return {}
    generator = np.random.default_rng(seed)
    width = len(np.unique(anomalous))
    chunk = max(1, _AT_ONCE // width)
    found: dict[str, list[torch.Tensor]] = {}
    for first in range(0, resamples, chunk):
        counts = resampled(nominal, anomalous, min(chunk, resamples - first), generator)
        undefined = image_undefined(counts)
        for key in IMAGE_KEYS:
            compute = METRICS[key].compute
            if key not in undefined and METRICS[key].better and compute is not None:
                values = torch.as_tensor(compute(counts, 1.0), dtype=torch.float64)
                found.setdefault(key, []).append(values)
    ends = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    quantiles = {key: torch.cat(values).quantile(ends) for key, values in found.items()}
    return {key: (float(low), float(high)) for key, (low, high) in quantiles.items()}


def resampled(
    nominal: NDArray[np.floating],
    anomalous: NDArray[np.floating],
    resamples: int,
    generator: np.random.Generator,
) -> Sweep:
    """Return sweeps (resamples, thresholds) over resampled nominal and anomalous scores.

    Numbers of draws of the scores are multinomial, so they are sampled directly. A threshold that
    is missing from a resample repeats the previous one, which changes no metric.
    """
    rising, numbers = np.unique(anomalous, return_counts=True)
    falling = rising[::-1]
    last = len(rising) - 1
    drawn = generator.multinomial(len(anomalous), numbers[::-1] / len(anomalous), resamples)
    # Nominal scores above the first threshold, at it, between it and the second, and so on.
    left, right = (np.searchsorted(rising, nominal, side) for side in ("left", "right"))
    buckets = np.where(left < right, 2 * (last - left) + 1, 2 * (len(rising) - left))
    counts = np.bincount(buckets, minlength=2 * len(rising) + 1)
    if len(nominal):
        again = generator.multinomial(len(nominal), counts / len(nominal), resamples)
    else:
        again = np.zeros((resamples, len(counts)), dtype=np.int64)
    below = again.cumsum(1)[:, :-1].reshape(resamples, -1, 2)  # (R, T, above or at)
    there = np.where(drawn > 0, np.arange(len(rising)), -1)
    place = np.maximum.accumulate(there, 1)
    place = np.where(place < 0, (drawn > 0).argmax(1)[:, None], place)  # (R, T)
    fresh = np.ones_like(place, dtype=bool)  # thresholds that do not repeat the previous one
    fresh[:, 1:] = place[:, 1:] != place[:, :-1]
    fp = np.take_along_axis(below[..., 1], place, 1)
    above = np.where(fresh, np.take_along_axis(below[..., 0], place, 1), fp)
    tp = torch.from_numpy(np.take_along_axis(drawn.cumsum(1), place, 1).astype(np.float64))
    return Sweep(
        thresholds=torch.from_numpy(falling[place].astype(np.float64)),
        tp=tp,
        fp=torch.from_numpy(fp.astype(np.float64)),
        fp_above=torch.from_numpy(above.astype(np.float64)),
        overlap=tp / len(anomalous),
        nominal=len(nominal),
        anomalous=len(anomalous),
    )
