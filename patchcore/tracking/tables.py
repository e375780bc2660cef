"""Tables of a finished run, in a form that every tracker can show."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchcore.data.dataset import ImageDataset
from patchcore.decision import Decision, p_values
from patchcore.metrics import image_metrics, sweep
from patchcore.report.figures import limits
from patchcore.report.reading import category_of
from patchcore.report.run import Run

BINS = 30  # of the score histograms
POINTS = 200  # of the curve of radii, at most
PICTURES = 200  # test images with a picture, at most: those nearest to an error

TYPES = ["defect type", "images", "image_auroc", "image_ap", "recall", "median score"]
"""Columns of `defect_types`."""
THRESHOLDS = {"decision_threshold": "nominal images", "image_threshold": "best F1 of the test"}
"""Metrics that are thresholds of image scores, the preferred one first: {metric: origin}."""


@dataclass(frozen=True)
class Table:
    """Columns and rows of plain values; None where a value is undefined."""

    columns: list[str]
    rows: list[list[Any]]


@dataclass(frozen=True)
class Picture:
    """Test image as the network saw it, with the overlays that a tracker shows.

    Attributes:
        image: Pixels (H, W, 3), RGB in 0…255.
        mask: Mask (H, W), True where a defect is marked.
        map: Anomaly map (H, W); NaN where the image's region leaves pixels out.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    map: NDArray[np.float32]


@dataclass(frozen=True)
class Details:
    """Results of a run that has just been computed and that its folder does not hold.

    Attributes:
        nominal: Scores (n,) of nominal images that the model has not seen, ascending.
        radii: Covering radius (n,) after each of the n picks of a greedy coreset.
        pixel_threshold: Pixels of an anomaly map at or above this value are anomalous.
        dataset: Test images, if their pictures are wanted.
        anomaly_map: Function that maps the number of a test image and its size (H, W) to its
            anomaly map (H, W).
    """

    nominal: Tensor | None = None
    radii: Tensor | None = None
    pixel_threshold: float | None = None
    dataset: ImageDataset | None = None
    anomaly_map: Callable[[int, tuple[int, int]], Tensor] | None = None

    @classmethod
    def of(
        cls,
        decision: Decision | None,
        models: Sequence[Any],
        dataset: ImageDataset | None,
        anomaly_map: Callable[[int, tuple[int, int]], Tensor],
    ) -> "Details":
        """Return the details of a run with these models: one model, or members of an ensemble."""
        order = None
        if len(models) == 1:
            order = getattr(getattr(models[0], "coreset", None), "order", None)
        return cls(
            nominal=None if decision is None else decision.scores,
            radii=None if order is None else order.radii,
            pixel_threshold=None if decision is None else decision.pixel_threshold,
            dataset=dataset,
            anomaly_map=anomaly_map,
        )

    def picture(self, index: int) -> Picture | None:
        """Return the picture of a test image; None if pictures are not wanted."""
        if self.dataset is None or self.anomaly_map is None:
            return None
        loaded = self.dataset[index]
        mask = loaded["mask"].numpy()
        mean, std = (torch.tensor(getattr(self.dataset.image, k)) for k in ("mean", "std"))
        pixels = (loaded["image"].permute(1, 2, 0) * std + mean) * 255  # (H, W, 3)
        found = self.anomaly_map(index, mask.shape).numpy()
        return Picture(pixels.round().clamp(0, 255).byte().numpy(), mask, found)


NO_DETAILS = Details()


@dataclass(frozen=True)
class Threshold:
    """Threshold of image scores: the metric that holds it, its value and its origin."""

    metric: str
    value: float
    origin: str

    def verdict(self, score: float) -> str:
        """Return `anomalous` or `nominal`."""
        return "anomalous" if score >= self.value else "nominal"

    def outcome(self, score: float, label: int) -> str:
        """Return `correct`, `false alarm` or `missed`."""
        alarm = score >= self.value
        return "correct" if alarm == bool(label) else "false alarm" if alarm else "missed"


def thresholds(run: Run) -> list[Threshold]:
    """Return the thresholds that the run has, the preferred one first."""
    found = [(k, run.metrics.get(k, math.nan), origin) for k, origin in THRESHOLDS.items()]
    return [Threshold(*each) for each in found if not math.isnan(each[1])]


def tables(run: Run, details: Details = NO_DETAILS) -> dict[str, Table]:
    """Return all tables of a finished run, {name: table}; tables without rows are left out."""
    found = {
        "test_images": test_images(run, details),
        "defect_types": defect_types(run),
        "confusion": confusion(run),
        "score_histogram": score_histogram(run),
        "ratio_curve": ratio_curve(run),
        "radius_curve": radius_curve(details),
    }
    return {name: table for name, table in found.items() if table.rows}


def test_images(run: Run, details: Details = NO_DETAILS) -> Table:
    """Return a row for each test image, in the order of scores.csv.

    The column `path` joins the tables of several runs. The conformal p-value is (1 + k) / (n + 1)
    if k of the n left-out training images score at least as high; it is None unless
    `decision.false_alarms` was set. Rank 1 is the highest score. Verdict and outcome use the
    preferred threshold, if there is one.
    """
    scores = np.asarray(run.scores, np.float64)
    p: list[float | None] = [None] * len(scores)
    if details.nominal is not None:
        p = p_values(torch.from_numpy(scores), details.nominal.cpu()).tolist()
    threshold = next(iter(thresholds(run)), None)
    rows = []
    for sample, score, place, p_value in zip(
        run.samples, scores.tolist(), ranks(run), p, strict=True
    ):
        said = ["", "", ""]
        if threshold is not None:
            said = [
                threshold.verdict(score),
                threshold.outcome(score, sample.label),
                threshold.origin,
            ]
        truth = "anomalous" if sample.label else "nominal"
        rows.append([sample.name, truth, sample.defect_type, score, place, p_value, *said])
    columns = ["path", "truth", "defect type", "score", "rank", "p-value"]
    return Table([*columns, "verdict", "outcome", "threshold from"], rows)


def defect_types(run: Run) -> Table:
    """Return the image metrics of each type of defect against all nominal images.

    With several categories, types are named `category/type`, as in metrics.json, and compared with
    the nominal images of their category. Recall is that of the preferred threshold; None without a
    threshold.
    """
    labels, scores = torch.tensor(run.labels), torch.tensor(run.scores, dtype=torch.float64)
    several = (run.settings.get("data") or {}).get("category")
    places = np.array([category_of(sample.name, several) for sample in run.samples])
    kinds = np.array(
        [
            "/".join(filter(None, [place, sample.defect_type]))
            for place, sample in zip(places.tolist(), run.samples, strict=True)
        ]
    )
    threshold = next(iter(thresholds(run)), None)
    told = run.subsets.get("defect_types", {})
    counts = Counter(kinds[run.labels == 1].tolist())
    if told and isinstance(several, list) and {k: v["images"] for k, v in told.items()} != counts:
        return _recorded(told)
    rows = []
    for kind in counts:
        own = torch.from_numpy(kinds == kind) & (labels == 1)
        beside = torch.from_numpy(places == places[own.numpy()][0]) & (labels == 0)
        values = image_metrics(sweep(scores[beside], scores[own]))
        recall = (
            None if threshold is None else float((scores[own] >= threshold.value).double().mean())
        )
        measured = [_defined(values[key]) for key in ("image_auroc", "image_ap")]
        rows.append([kind, int(own.sum()), *measured, recall, float(scores[own].median())])
    return Table(TYPES, rows)


def _recorded(told: Mapping[str, Any]) -> Table:
    """Rows of metrics.json, for images whose paths do not tell their category: no median scores."""
    rows = []
    for kind, found in told.items():
        values = [
            _defined(found.get("metrics", {}).get(key)) for key in ("image_auroc", "image_ap")
        ]
        rows.append([kind, found["images"], *values, found.get("recall"), None])
    return Table(TYPES, rows)


def confusion(run: Run) -> Table:
    """Return the confusion matrix of each threshold, one row per cell."""
    rows = []
    for threshold in thresholds(run):
        called = [threshold.verdict(score) for score in run.scores]
        for label, truth in enumerate(("nominal", "anomalous")):
            for verdict in ("nominal", "anomalous"):
                count = sum(
                    each == verdict and own == label
                    for each, own in zip(called, run.labels.tolist(), strict=True)
                )
                rows.append([threshold.origin, threshold.value, truth, verdict, count])
    return Table(["threshold from", "threshold", "truth", "verdict", "images"], rows)


def score_histogram(run: Run, bins: int = BINS) -> Table:
    """Return counts of nominal and anomalous images in `bins` equal intervals of the scores."""
    if not len(run.scores):
        return Table(["from", "to", "nominal", "anomalous"], [])
    scores = np.asarray(run.scores, np.float64)
    edges = np.histogram_bin_edges(scores, bins)
    counts = [np.histogram(scores[run.labels == label], edges)[0].tolist() for label in (0, 1)]
    rows = [list(row) for row in zip(edges[:-1].tolist(), edges[1:].tolist(), *counts, strict=True)]
    return Table(["from", "to", "nominal", "anomalous"], rows)


def ratio_curve(run: Run) -> Table:
    """Return the metrics at each memory ratio, if the run scored several; else no rows."""
    columns = list(dict.fromkeys(key for row in run.ratio_curve for key in row))
    return Table(columns, [[_defined(row.get(key)) for key in columns] for row in run.ratio_curve])


def radius_curve(details: Details, most: int = POINTS) -> Table:
    """Return the covering radius of a greedy coreset at up to `most` sizes, spaced evenly in log.

    The radius is a distance between the projected features that the sampler compares.
    """
    columns = ["patches", "radius"]
    if details.radii is None or not len(details.radii):
        return Table(columns, [])
    count = len(details.radii)
    sizes = np.unique(np.geomspace(1, count, min(most, count)).round().astype(int))
    radii = details.radii.double().cpu().numpy()[sizes - 1]
    rows = [[size, radius] for size, radius in zip(sizes.tolist(), radii.tolist(), strict=True)]
    return Table(columns, [[size, _defined(radius)] for size, radius in rows])


def ranks(run: Run) -> list[int]:
    """Return the rank of each test image, 1 for the highest score; ties keep the images' order."""
    order = np.argsort(-np.asarray(run.scores, np.float64), kind="stable")
    rank = np.empty(len(order), int)
    rank[order] = np.arange(1, len(order) + 1)
    return rank.tolist()


def pictures(run: Run, details: Details, most: int = PICTURES) -> dict[int, Picture]:
    """Return pictures of up to `most` test images by their numbers: see `hardest`."""
    found = ((i, details.picture(i)) for i in hardest(run, most))
    return {i: picture for i, picture in found if picture is not None}


def span(shown: Iterable[Picture]) -> tuple[float, float]:
    """Return the limits of the colours of pictures: see `patchcore.report.figures.limits`."""
    return limits([picture.map for picture in shown])


def hardest(run: Run, most: int) -> list[int]:
    """Return the numbers of up to `most` test images, ascending: the most difficult of both labels.

    These are the nominal images with the highest scores and the anomalous ones with the lowest,
    half of each if there are enough.
    """
    rising = np.argsort(np.asarray(run.scores), kind="stable")
    nominal = rising[run.labels[rising] == 0][::-1].tolist()
    anomalous = rising[run.labels[rising] == 1].tolist()
    if len(rising) <= most:
        return list(range(len(rising)))
    half = min(len(nominal), max(most // 2, most - len(anomalous)))
    return sorted([*nominal[:half], *anomalous[: most - half]])


def _defined(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
