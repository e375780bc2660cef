"""Image and pixel metrics on raw anomaly scores: pure functions, then thin torchmetrics classes.

Every number here comes from one `Sweep` of the threshold over the scores. Between two anomalous
scores only the nominal count changes, so the distinct anomalous scores are thresholds enough for
exact curves: one sort of the nominal scores and one of the (few) anomalous ones give all of them,
without bins. Equal scores are one threshold. Larger scores are more anomalous; none is ever passed
through a sigmoid or scaled.

AUPRO follows Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, and its evaluation
code: the per-region overlap is the mean covered share over all connected regions of the masks of
the whole test set, regions being 8-connected (pixels that touch at a corner belong together), and
the false-positive rate is taken over all nominal pixels, those of anomalous images included.
Each metric has its naive version, threshold by threshold, in tests/reference.py.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import scipy.ndimage
import torch
from jaxtyping import Bool, Float, Float32, Float64
from torch import Tensor
from torchmetrics import Metric

from patchcore.errors import InputError

IMAGE_KEYS = (
    "image_auroc",
    "image_ap",
    "image_f1",
    "image_threshold",
    "image_false_positives",
    "image_false_negatives",
    "errors_at_full_recall",
)
PIXEL_KEYS = ("pixel_auroc", "pixel_ap", "aupro")


@dataclass(frozen=True)
class Sweep:
    """Counts at each threshold; a score at or above the threshold is called anomalous.

    Counts are float64 (exact up to 2^53). There is no threshold if there is no anomalous score.
    """

    thresholds: Float[Tensor, " thresholds"]  # distinct anomalous scores, falling
    tp: Float64[Tensor, " thresholds"]  # anomalous scores >= threshold
    fp: Float64[Tensor, " thresholds"]  # nominal scores >= threshold
    fp_above: Float64[Tensor, " thresholds"]  # nominal scores > threshold
    overlap: Float64[Tensor, " thresholds"]  # share of the anomalous weight that is >= threshold
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
        A `Sweep` on the CPU, with thresholds in the scores' dtype (at least float32).
    """
    dtype = torch.promote_types(torch.promote_types(nominal.dtype, anomalous.dtype), torch.float32)
    # NumPy sorts values many times faster than torch, which always returns indices too.
    rising = np.sort(nominal.to(dtype).numpy(force=True))
    scores = anomalous.to(dtype).numpy(force=True)
    order = np.argsort(-scores)
    falling = scores[order]
    weight = np.ones(len(order)) if weights is None else weights.numpy(force=True)[order]
    mass = weight.cumsum(dtype=np.float64)
    last = np.ones(len(falling), dtype=bool)  # the last of each run of equal scores
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


def roc_curve(
    counts: Sweep,
) -> tuple[Float64[Tensor, " corners"], Float64[Tensor, " corners"]]:
    """Corners of the ROC curve, straight lines between them.

    Returns:
        False- and true-positive rate at two corners a threshold, from (0, 0) to (1, 1); empty
        where there are no nominal or no anomalous scores.
    """
    return _curve(counts, counts.tp / counts.anomalous if counts.anomalous else counts.tp)


def pro_curve(
    counts: Sweep,
) -> tuple[Float64[Tensor, " corners"], Float64[Tensor, " corners"]]:
    """Corners of the per-region overlap curve, if the weights were 1 / area of each region.

    Returns:
        False-positive rate and mean covered share of a region, as `roc_curve` does.
    """
    return _curve(counts, counts.overlap)


def _curve(
    counts: Sweep, share: Float64[Tensor, " thresholds"]
) -> tuple[Float64[Tensor, " corners"], Float64[Tensor, " corners"]]:
    """Corners of the curve of a share over the false-positive rate; empty where it is undefined."""
    if not counts.nominal or not counts.anomalous:
        return torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.float64)
    ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    above = torch.cat([ends[0], share[:-1]])
    # Just above each threshold, then at it: ties rise along one straight line.
    x = torch.stack([counts.fp_above, counts.fp], 1).flatten() / counts.nominal  # (T, 2) → (2T,)
    y = torch.stack([above, share], 1).flatten()  # (T, 2) → (2T,)
    return torch.cat([ends[0], x, ends[1]]), torch.cat([ends[0], y, ends[1]])


def precision_recall_curve(
    counts: Sweep,
) -> tuple[Float64[Tensor, " thresholds"], Float64[Tensor, " thresholds"]]:
    """Precision and recall at each threshold, recall rising.

    Drawn as steps, each at the precision of its right end, the area is the average precision.

    Returns:
        Precision and recall; empty where there are no anomalous scores.
    """
    recall = counts.tp / counts.anomalous if counts.anomalous else counts.tp
    return counts.tp / (counts.tp + counts.fp), recall


def area_under(
    x: Float[Tensor, " corners"], y: Float[Tensor, " corners"], limit: float = 1.0
) -> float:
    """Trapezoidal area under a curve for x from 0 to `limit`, cut there by linear interpolation.

    Args:
        x: Never falling, from 0 to 1.
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


def average_precision(counts: Sweep) -> float:
    """Sum of precision × gain in recall over the thresholds; NaN without anomalous scores."""
    if not counts.anomalous:
        return math.nan
    precision, recall = precision_recall_curve(counts)
    return float((precision * recall.diff(prepend=recall.new_zeros(1))).sum())


def image_metrics(counts: Sweep) -> dict[str, float]:
    """Image metrics, all of them, keyed by `IMAGE_KEYS`; NaN where `image_undefined` tells why.

    `image_threshold` is the score with the best F1, the highest of several; an image is called
    anomalous if it scores at least that. The paper's misclassifications are the sum of false
    positives and false negatives there. `errors_at_full_recall` counts the nominal images that
    score at least as high as the lowest anomalous one.
    """
    values = dict.fromkeys(IMAGE_KEYS, math.nan)
    if counts.anomalous:
        f1 = 2 * counts.tp / (counts.tp + counts.fp + counts.anomalous)
        best = int(f1.argmax())
        values |= {
            "image_auroc": area_under(*roc_curve(counts)),
            "image_ap": average_precision(counts),
            "image_f1": float(f1[best]),
            "image_threshold": float(counts.thresholds[best]),
            "image_false_positives": float(counts.fp[best]),
            "image_false_negatives": float(counts.anomalous - counts.tp[best]),
            "errors_at_full_recall": float(counts.fp[-1]),
        }
    return values


def image_undefined(counts: Sweep) -> dict[str, str]:
    """Reasons why image metrics are NaN, {key: reason}; empty if all are defined."""
    return _undefined(counts, "images", IMAGE_KEYS, {"image_auroc"})


def pixel_metrics(counts: Sweep, fpr_limit: float = 0.3) -> dict[str, float]:
    """Pixel metrics, all of them, keyed by `PIXEL_KEYS`; NaN where `pixel_undefined` tells why.

    Args:
        counts: Sweep over pixels, weighted by 1 / `region_areas`.
        fpr_limit: False-positive rate up to which AUPRO is taken, in (0, 1]; the area is divided
            by it.
    """
    return {
        "pixel_auroc": area_under(*roc_curve(counts)),
        "pixel_ap": average_precision(counts),
        "aupro": area_under(*pro_curve(counts), limit=fpr_limit) / fpr_limit,
    }


def pixel_undefined(counts: Sweep) -> dict[str, str]:
    """Reasons why pixel metrics are NaN, {key: reason}; empty if all are defined."""
    return _undefined(counts, "pixels", PIXEL_KEYS, {"pixel_auroc", "aupro"})


def _undefined(
    counts: Sweep, things: str, keys: Iterable[str], need_nominal: Iterable[str]
) -> dict[str, str]:
    if not counts.anomalous:
        return dict.fromkeys(keys, f"no anomalous {things} in the test set")
    if not counts.nominal:
        return dict.fromkeys(need_nominal, f"no nominal {things} in the test set")
    return {}


def region_areas(
    masks: Bool[Tensor, "images height width"],
) -> Float32[Tensor, " anomalous"]:
    """Area of the 8-connected region that each anomalous pixel belongs to.

    Args:
        masks: True where anomalous.

    Returns:
        Areas in pixels, in the order of `scores[masks]`, on the CPU.
    """
    flags = masks.numpy(force=True)
    if not flags.any():
        return torch.empty(0, dtype=torch.float32)
    neighbours = np.zeros((3, 3, 3), dtype=bool)
    neighbours[1] = True  # never from one image to the next
    labels, _ = scipy.ndimage.label(flags, neighbours)
    region = labels[flags]  # (B, H, W) → (A,)
    return torch.from_numpy(np.bincount(region)[region].astype(np.float32))


class ImageMetrics(Metric):
    """`image_metrics` over all images of a test set, in any batches and over all processes."""

    is_differentiable = False
    full_state_update = False

    # Lists of scores between updates, one tensor each while processes are synchronised. All are
    # float32 for float32 models: torchmetrics fills in for a process without data in that dtype.
    nominal: list[Tensor] | Tensor
    anomalous: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nominal", [], dist_reduce_fx="cat")
        self.add_state("anomalous", [], dist_reduce_fx="cat")
        self._counts = sweep(torch.empty(0), torch.empty(0))

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            scores: (B,) raw anomaly scores, any floating dtype.
            labels: (B,) bool or 0/1, true for anomalous.

        Raises:
            InputError: a score is NaN or infinite.
            ValueError: shapes differ or labels are not 0/1.
        """
        if scores.ndim != 1:
            raise ValueError(f"scores must be (B,), got {tuple(scores.shape)}")
        scores = _finite(scores, "image scores")
        labels = _binary(labels, "labels", scores)
        _append(self.nominal, scores[~labels].to(self.device))
        _append(self.anomalous, scores[labels].to(self.device))

    def compute(self) -> dict[str, float]:
        """Metrics of all images so far; NaN where `undefined()` tells why."""
        self._counts = sweep(_join(self.nominal), _join(self.anomalous))
        return image_metrics(self._counts)

    def undefined(self) -> dict[str, str]:
        """Reasons why metrics are NaN, {key: reason}."""
        self.compute()  # cached, and the same on every process
        return image_undefined(self._counts)

    def curves(self) -> dict[str, Tensor]:
        """`fpr` and `tpr` of `roc_curve`, `precision` and `recall` of `precision_recall_curve`."""
        self.compute()
        fpr, tpr = roc_curve(self._counts)
        precision, recall = precision_recall_curve(self._counts)
        return {"fpr": fpr, "tpr": tpr, "precision": precision, "recall": recall}


class PixelMetrics(Metric):
    """`pixel_metrics` over all maps of a test set, in any batches and over all processes.

    Keeps 4 bytes a nominal and 8 bytes an anomalous pixel of float32 maps.
    """

    is_differentiable = False
    full_state_update = False

    nominal: list[Tensor] | Tensor
    anomalous: list[Tensor] | Tensor
    areas: list[Tensor] | Tensor  # float32, exact for regions below 2^24 pixels
    unmasked: Tensor

    def __init__(self, fpr_limit: float = 0.3) -> None:
        super().__init__()
        if not 0 < fpr_limit <= 1:
            raise InputError(f"fpr_limit must be in (0, 1], got {fpr_limit}")
        self.fpr_limit = fpr_limit
        self.add_state("nominal", [], dist_reduce_fx="cat")
        self.add_state("anomalous", [], dist_reduce_fx="cat")
        self.add_state("areas", [], dist_reduce_fx="cat")
        self.add_state("unmasked", torch.tensor(0), dist_reduce_fx="sum")
        self._left_out = 0
        self._undefined: dict[str, str] = {}

    def update(self, maps: Tensor, masks: Tensor, known: Tensor | None = None) -> None:
        """Add a batch; H and W may differ between batches.

        Args:
            maps: (B, H, W) raw anomaly maps, any floating dtype.
            masks: (B, H, W) bool or 0/1, true where anomalous; all false for a nominal image.
            known: (B,) bool, false for an anomalous image whose mask is missing or marks nothing
                in view. It is left out, since its pixels are neither known to be nominal nor known
                to be anomalous, and `left_out()` counts it. All true by default.

        Raises:
            InputError: a score is NaN or infinite.
            ValueError: shapes differ or masks are not 0/1.
        """
        if maps.ndim != 3:
            raise ValueError(f"maps must be (B, H, W), got {tuple(maps.shape)}")
        maps = _finite(maps, "anomaly maps")
        masks = _binary(masks, "masks", maps)
        if known is not None:
            known = _binary(known, "known", maps[:, 0, 0])
            self.unmasked = self.unmasked + int((~known).sum())
            maps, masks = maps[known], masks[known]
        pixels, flags = maps.numpy(), masks.numpy()  # NumPy selects several times faster
        nominal, anomalous = pixels[~flags], pixels[flags]  # (B, H, W) → (N,), (A,)
        _append(self.nominal, torch.from_numpy(nominal).to(self.device))
        _append(self.anomalous, torch.from_numpy(anomalous).to(self.device))
        _append(self.areas, region_areas(masks).to(self.device))

    def compute(self) -> dict[str, float]:
        """Metrics of all maps so far; NaN where `undefined()` tells why."""
        areas = _join(self.areas).to("cpu", torch.float64)
        counts = sweep(_join(self.nominal), _join(self.anomalous), 1 / areas)
        self._undefined = pixel_undefined(counts)
        self._left_out = int(self.unmasked)
        return pixel_metrics(counts, self.fpr_limit)

    def undefined(self) -> dict[str, str]:
        """Reasons why metrics are NaN, {key: reason}."""
        left_out = self.left_out()
        note = f"; {left_out} left out, as no mask marks anything in view" if left_out else ""
        return {key: reason + note for key, reason in self._undefined.items()}

    def left_out(self) -> int:
        """Number of images left out of the pixel metrics: see `known` of `update`."""
        self.compute()  # cached, and the same on every process
        return self._left_out


def _finite(scores: Tensor, name: str) -> Tensor:
    """Scores on the CPU in at least float32, once they are known to be finite."""
    scores = scores.detach().to("cpu", torch.promote_types(scores.dtype, torch.float32))
    bad = int(np.count_nonzero(~np.isfinite(scores.numpy())))
    if bad:
        raise InputError(
            f"{name}: {bad} of {scores.numel()} are NaN or infinite; metrics need finite scores, "
            "so check the images, the weights and the precision"
        )
    return scores


def _binary(flags: Tensor, name: str, like: Tensor) -> Tensor:
    """Flags on the CPU as bool, once they are known to have the shape of `like`."""
    if flags.shape != like.shape:
        raise ValueError(f"{name} must be {tuple(like.shape)}, got {tuple(flags.shape)}")
    if flags.dtype != torch.bool and not ((flags == 0) | (flags == 1)).all():
        raise ValueError(f"{name} must be bool or 0/1")
    return flags.to("cpu", torch.bool)


def _append(state: list[Tensor] | Tensor, values: Float[Tensor, " scores"]) -> None:
    """Add scores to a state. Raises RuntimeError while processes are synchronised."""
    if isinstance(state, Tensor):
        raise RuntimeError("metric is synchronised: call unsync() before update()")
    state.append(values)


def _join(state: list[Tensor] | Tensor) -> Float[Tensor, " scores"]:
    """All scores of a state, synchronised or not."""
    if isinstance(state, Tensor):
        return state
    return torch.cat(state) if state else torch.empty(0)
