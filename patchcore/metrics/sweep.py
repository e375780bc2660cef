"""Arithmetic of the metrics: pure functions of raw anomaly scores.

Every metric here comes from one `Sweep` of the threshold over the scores. Between two anomalous
scores only the number of nominal scores changes, so the distinct anomalous scores are enough
thresholds for exact curves. One sort of the nominal scores and one of the anomalous scores give all
curves, without bins. Equal scores are one threshold. Larger scores are more anomalous; scores are
used as they are, without a sigmoid or scaling.

AUPRO follows Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, and its evaluation
code: the per-region overlap is the mean covered share over all 8-connected regions (pixels that
touch at a corner are connected) of all masks of the test set. The false-positive rate is taken over
all nominal pixels, including those of anomalous images. tests/reference.py has a naive version of
each metric, threshold by threshold.
"""

import contextlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor


@dataclass(frozen=True)
class Sweep:
    """Counts at each threshold; a score at or above the threshold is called anomalous.

    Counts are float64 (exact up to 2^53). Without anomalous scores there are no thresholds. Sweeps
    of bootstrap resamples may be stacked along a leading dimension: image metrics work along the
    last dimension alone, and so have a value for each resample.
    """

    thresholds: Float[Tensor, "*resamples thresholds"]  # distinct anomalous scores, falling
    tp: Float64[Tensor, "*resamples thresholds"]  # anomalous scores >= threshold
    fp: Float64[Tensor, "*resamples thresholds"]  # nominal scores >= threshold
    fp_above: Float64[Tensor, "*resamples thresholds"]  # nominal scores > threshold
    # share of the total weight whose anomalous scores are >= threshold
    overlap: Float64[Tensor, "*resamples thresholds"]
    nominal: int  # number of nominal scores
    anomalous: int  # number of anomalous scores


def sweep(
    nominal: Float[Tensor, " nominal"],
    anomalous: Float[Tensor, " anomalous"],
    weights: Float[Tensor, " anomalous"] | None = None,
) -> Sweep:
    """Sweep the threshold over scores that are already split by label.

    Args:
        nominal: Finite scores in any order.
        anomalous: Finite scores in any order.
        weights: Weight of each anomalous score in `overlap`; equal by default.

    Returns:
        A `Sweep` with thresholds in the scores' dtype (at least float32), on the scores' device if
        that is CUDA and has enough memory for sorting, else on the CPU.
    """
    dtype = torch.promote_types(torch.promote_types(nominal.dtype, anomalous.dtype), torch.float32)
    if nominal.is_cuda and anomalous.is_cuda:
        with contextlib.suppress(torch.OutOfMemoryError):
            return sweep_sorted(nominal.to(dtype), anomalous.to(dtype), weights)
    # NumPy sorts values many times faster than torch, which always returns indices too.
    rising = np.sort(nominal.to(dtype).numpy(force=True))
    scores = anomalous.to(dtype).numpy(force=True)
    order = np.argsort(-scores)
    falling = scores[order]
    weight = np.ones(len(order)) if weights is None else weights.numpy(force=True)[order]
    mass = weight.cumsum(dtype=np.float64)
    last = np.ones(len(falling), dtype=bool)  # whether it is the last of equal scores
    last[:-1] = falling[1:] != falling[:-1]
    thresholds = falling[last]
    return Sweep(
        thresholds=torch.from_numpy(thresholds),
        tp=torch.from_numpy(np.flatnonzero(last) + 1.0),
        fp=torch.from_numpy(len(rising) - np.searchsorted(rising, thresholds) * 1.0),
        fp_above=torch.from_numpy(len(rising) - np.searchsorted(rising, thresholds, "right") * 1.0),
        overlap=torch.from_numpy(mass[last] / mass[-1:]),
        nominal=len(rising),
        anomalous=len(falling),
    )


def sweep_sorted(
    nominal: Float[Tensor, " nominal"],
    anomalous: Float[Tensor, " anomalous"],
    weights: Float[Tensor, " anomalous"] | None = None,
) -> Sweep:
    """Return `sweep`, sorted by PyTorch on the scores' device; `overlap` differs by rounding."""
    rising = nominal.sort().values
    falling, order = anomalous.sort(descending=True)
    weight = torch.ones_like(anomalous) if weights is None else weights.to(anomalous.device)
    # Summed on the CPU: parallel sums of floats differ from run to run.
    mass = torch.from_numpy(weight[order].numpy(force=True).cumsum(dtype=np.float64)).to(
        rising.device
    )
    last = torch.ones_like(falling, dtype=torch.bool)
    last[:-1] = falling[1:] != falling[:-1]
    thresholds = falling[last]
    below, not_above = (torch.searchsorted(rising, thresholds, right=x) for x in (False, True))
    return Sweep(
        thresholds=thresholds,
        tp=(last.nonzero()[:, 0] + 1).double(),
        fp=(len(rising) - below).double(),
        fp_above=(len(rising) - not_above).double(),
        overlap=mass[last] / mass[-1:],
        nominal=len(rising),
        anomalous=len(falling),
    )


def roc_curve(
    counts: Sweep,
) -> tuple[Float64[Tensor, "*resamples corners"], Float64[Tensor, "*resamples corners"]]:
    """Return the corners of the ROC curve, which straight lines connect.

    Returns:
        False- and true-positive rates, with two corners for each threshold, from (0, 0) to (1, 1);
        empty without nominal or without anomalous scores.
    """
    return _curve(counts, counts.tp / counts.anomalous if counts.anomalous else counts.tp)


def pro_curve(
    counts: Sweep,
) -> tuple[Float64[Tensor, " corners"], Float64[Tensor, " corners"]]:
    """Return the corners of the per-region overlap (PRO) curve.

    Args:
        counts: Sweep over pixels in which the weight of a pixel is 1 / area of its region.

    Returns:
        False-positive rates and mean covered shares of the regions, in the form of `roc_curve`.
    """
    return _curve(counts, counts.overlap)


def _curve(
    counts: Sweep, share: Float64[Tensor, "*resamples thresholds"]
) -> tuple[Float64[Tensor, "*resamples corners"], Float64[Tensor, "*resamples corners"]]:
    """Corners of the curve of a share over the false-positive rate; empty where it is undefined."""
    if not counts.nominal or not counts.anomalous:
        return torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.float64)
    first = torch.zeros_like(share[..., :1])
    last = torch.ones_like(first)
    above = torch.cat([first, share[..., :-1]], -1)
    # Two corners: just above each threshold, and at it. Ties are one straight line between them.
    x = torch.stack([counts.fp_above, counts.fp], -1).flatten(-2) / counts.nominal  # (…, T, 2) → 2T
    y = torch.stack([above, share], -1).flatten(-2)  # (…, T, 2) → (…, 2T)
    return torch.cat([first, x, last], -1), torch.cat([first, y, last], -1)


def precision_recall_curve(
    counts: Sweep,
) -> tuple[Float64[Tensor, "*resamples thresholds"], Float64[Tensor, "*resamples thresholds"]]:
    """Return precision and recall at each threshold, with rising recall.

    The average precision is the area under the curve drawn in steps, each at the precision of its
    right end.

    Returns:
        Precision and recall; empty without anomalous scores.
    """
    recall = counts.tp / counts.anomalous if counts.anomalous else counts.tp
    return counts.tp / (counts.tp + counts.fp), recall


def curves(counts: Sweep) -> dict[str, Tensor]:
    """Return `fpr` and `tpr` of the ROC curve, and `precision` and `recall`, by these names."""
    fpr, tpr = roc_curve(counts)
    precision, recall = precision_recall_curve(counts)
    return {"fpr": fpr, "tpr": tpr, "precision": precision, "recall": recall}


def area_under(
    x: Float[Tensor, " corners"], y: Float[Tensor, " corners"], limit: float = 1.0
) -> float:
    """Return the trapezoidal area under a curve for x from 0 to `limit`.

    The last interval is cut at `limit` by linear interpolation.

    Args:
        x: Positions from 0 to 1, never falling.
        y: Heights at x.
        limit: Right end, in (0, 1].

    Returns:
        The area, not divided by `limit`; NaN for an empty curve.
    """
    if len(x) == 0:
        return math.nan
    inside = int((x <= limit).sum())
    area = torch.trapezoid(y[:inside], x[:inside])
    if inside < len(x):
        width = limit - x[inside - 1]
        slope = (y[inside] - y[inside - 1]) / (x[inside] - x[inside - 1])
        area = area + width * (y[inside - 1] + slope * width / 2)
    return float(area)


def average_precision(counts: Sweep) -> Float64[Tensor, "*resamples"]:
    """Return the sum of precision × gain in recall over all thresholds.

    It is NaN without anomalous scores.
    """
    if not counts.anomalous:
        return torch.tensor(math.nan, dtype=torch.float64)
    precision, recall = precision_recall_curve(counts)
    gain = recall.diff(dim=-1, prepend=torch.zeros_like(recall[..., :1]))
    return (precision * gain).sum(-1)


def auroc(counts: Sweep) -> Float64[Tensor, "*resamples"]:
    """Return the area under the ROC curve; NaN without nominal or without anomalous scores."""
    fpr, tpr = roc_curve(counts)
    return torch.trapezoid(tpr, fpr) if len(fpr) else torch.tensor(math.nan, dtype=torch.float64)


def aupro(counts: Sweep, fpr_limit: float = 0.3) -> float:
    """Return the area under `pro_curve` up to the false-positive rate `fpr_limit`, divided by it.

    The limit is in (0, 1]. The value is NaN without nominal or without anomalous scores.
    """
    return area_under(*pro_curve(counts), limit=fpr_limit) / fpr_limit


def at(values: Tensor, place: Int64[Tensor, "*resamples"]) -> Tensor:
    """Return the entries of values (…, T) at the places (…) in their last dimension, (…)."""
    return values.gather(-1, place[..., None])[..., 0]


def best_f1(counts: Sweep) -> tuple[Float64[Tensor, "*resamples"], Int64[Tensor, "*resamples"]]:
    """Return the best F1 score, and the place of its threshold, the highest one in a tie.

    Like the functions below, it needs an anomalous score.
    """
    f1 = 2 * counts.tp / (counts.tp + counts.fp + counts.anomalous)
    best = f1.argmax(-1)
    return at(f1, best), best


def f1_score(counts: Sweep) -> Float64[Tensor, "*resamples"]:
    """Return the F1 score at its best threshold."""
    return best_f1(counts)[0]


def f1_threshold(counts: Sweep) -> Float[Tensor, "*resamples"]:
    """Return the threshold of the best F1 score; scores at or above it are called anomalous."""
    return at(counts.thresholds, best_f1(counts)[1])


def false_positives(counts: Sweep) -> Float64[Tensor, "*resamples"]:
    """Return the number of nominal scores at or above `f1_threshold`.

    Misclassifications in the paper are the sum of `false_positives` and `false_negatives`.
    """
    return at(counts.fp, best_f1(counts)[1])


def false_negatives(counts: Sweep) -> Float64[Tensor, "*resamples"]:
    """Return the number of anomalous scores below `f1_threshold`."""
    return counts.anomalous - at(counts.tp, best_f1(counts)[1])


def errors_at_full_recall(counts: Sweep) -> Float64[Tensor, "*resamples"]:
    """Return the number of nominal scores at or above the lowest anomalous score."""
    return counts.fp[..., -1]
