"""Declarations of the metrics in a run's metrics.json, one entry of `METRICS` each.

Run folders, summaries, reports, objectives, trackers and the paper's tables read them here. A new
metric needs a function and an entry in `METRICS`. Metrics of images and pixels are functions of a
`Sweep`, metrics of maps are functions of `MapScores`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch import Tensor

from patchcore.metrics.overlap import MapScores, UndefinedError, aupimo
from patchcore.metrics.sweep import (
    Sweep,
    aupro,
    auroc,
    average_precision,
    errors_at_full_recall,
    f1_score,
    f1_threshold,
    false_negatives,
    false_positives,
)
from patchcore.settings import Choice

Compute = Callable[[Any, float], Tensor | float]
"""Function of a `Sweep` or `MapScores`, and of AUPRO's limit, that returns a metric's value."""


@dataclass(frozen=True)
class Measure:
    """Declaration of a metric.

    Attributes:
        title: Name for people, with the unit where there is one.
        of: Source of the value: a sweep over `images` or `pixels`, all `maps` one by one, counts of
            `masks`, the threshold of a `decision`, `nominal` images alone, or the `run` itself.
        compute: For images and pixels, a function of the sweep and of AUPRO's limit of the
            false-positive rate; only called if there are both nominal and anomalous scores. For
            maps, a function of `MapScores`, which may raise UndefinedError.
        better: `high` or `low`; empty if neither is better, so that reports do not rank by it.
        whole: Whether the value is a whole number.
        low, high: Bounds of the value, inclusive.
        decimals: Number of decimals shown; None: as many as three significant digits need.
        unit, scale: Unit of the title, and the factor from the recorded value to this unit.
        objective: Whether a sweeper may optimise the metric.
        main: Whether charts and tables of categories show it.
        cost: Whether the metric is a cost, against which accuracy is compared.
    """

    title: str
    of: str = "run"
    compute: Compute | None = None
    better: str = "high"
    whole: bool = False
    low: float = -math.inf
    high: float = math.inf
    decimals: int | None = None
    unit: str = ""
    scale: float = 1.0
    objective: bool = False
    main: bool = False
    cost: bool = False


def rate(
    title: str,
    of: str,
    compute: Compute | None = None,
    objective: bool = True,
    main: bool = False,
    decimals: int | None = 4,
) -> Measure:
    """Declare a metric from 0 to 1; higher is better."""
    return Measure(
        *(title, of, compute),
        low=0,
        high=1,
        decimals=decimals,
        objective=objective,
        main=main,
    )


def count(
    title: str,
    of: str,
    compute: Compute | None = None,
    better: str = "low",
    objective: bool = False,
) -> Measure:
    """Declare a count, such as a number of images."""
    return Measure(title, of, compute, better=better, whole=True, low=0, objective=objective)


def false_rate(title: str) -> Measure:
    """Declare a rate of false alarms at the threshold from nominal images."""
    return Measure(title, "decision", better="low", low=0, high=1, decimals=4)


def promise(title: str, low: float = 0.0, high: float = 1.0) -> Measure:
    """Declare a property of the threshold from nominal images, known before a test; not ranked."""
    return Measure(title, "decision", better="", low=low, high=high, decimals=4)


def duration(title: str, unit: str, objective: bool = False, cost: bool = False) -> Measure:
    """Declare a time that the run took."""
    return Measure(title, better="low", low=0, unit=unit, objective=objective, cost=cost)


METRICS = {
    "image_auroc": rate("image AUROC", "images", lambda counts, _: auroc(counts), main=True),
    "image_ap": rate("image AP", "images", lambda counts, _: average_precision(counts)),
    "image_f1": rate("image F1", "images", lambda counts, _: f1_score(counts), objective=False),
    "image_threshold": Measure(
        "oracle image threshold (best F1 of the test)",
        "images",
        lambda counts, _: f1_threshold(counts),
        better="",
    ),
    "pixel_auroc": rate("pixel AUROC", "pixels", lambda counts, _: auroc(counts), main=True),
    "pixel_ap": rate("pixel AP", "pixels", lambda counts, _: average_precision(counts)),
    "pixel_f1": rate("pixel F1", "pixels", lambda counts, _: f1_score(counts)),
    "aupro": rate("AUPRO", "pixels", aupro, main=True),
    # the limit of MVTec AD 2
    "aupro_005": rate("AUPRO at 0.05", "pixels", lambda counts, _: aupro(counts, 0.05)),
    "aupimo": rate("AUPIMO", "maps", lambda maps, _: aupimo(maps)),
    "image_false_positives": count(
        "false alarms", "images", lambda counts, _: false_positives(counts)
    ),
    "image_false_negatives": count("missed", "images", lambda counts, _: false_negatives(counts)),
    "errors_at_full_recall": count(
        "errors at full recall", "images", lambda counts, _: errors_at_full_recall(counts)
    ),
    # With `decision.false_alarms`: patchcore.decision explains and computes them.
    "decision_threshold": promise("image threshold from nominal images", -math.inf, math.inf),
    "decision_rate": promise("guaranteed false-alarm rate"),
    "decision_rate_low": promise("guaranteed rate, lower end of 95 % interval"),
    "decision_rate_high": promise("guaranteed rate, upper end of 95 % interval"),
    "decision_recall": rate("recall at the nominal threshold", "decision", objective=False),
    "decision_false_alarms": false_rate("false-alarm rate at the nominal threshold"),
    "decision_pixel_threshold": promise("pixel threshold from nominal images", -math.inf, math.inf),
    "decision_pixel_rate": promise("guaranteed share of a nominal image's pixels"),
    "decision_pixel_recall": rate(
        "pixel recall at the nominal threshold", "decision", objective=False
    ),
    "decision_pixel_false_alarms": false_rate("share of nominal pixels at the nominal threshold"),
    "decision_images": count("nominal images behind the threshold", "decision", better=""),
    # With `objectives=[label_free]`: patchcore.label_free computes it.
    "label_free": rate("AUROC of synthetic defects", "nominal"),
    # the sum of all stages; metrics.json holds a mapping from stages to seconds
    "seconds": duration("seconds", "s", objective=True, cost=True),
    "score_seconds": duration("seconds of scoring", "s", objective=True),
    "milliseconds_per_image": duration("ms per image", "ms", cost=True),
    "memory_patches": count("memory patches", "run", objective=True),
    "memory_bytes": Measure(
        *("memory MB", "run"),
        better="low",
        whole=True,
        low=0,
        unit="MB",
        scale=1e-6,
        objective=True,
        cost=True,
    ),
    "memory_used": rate("share of the memory used", "run", objective=False, decimals=None),
    # In the order of MaskCounts, whose docstring explains them.
    "images_without_mask": count("images without mask", "masks"),
    "images_outside_crop": count("images outside crop", "masks"),
    "images_lost_in_resizing": count("images lost in resizing", "masks"),
    "images_outside_region": count("images outside region", "masks"),
    "images_cut_by_crop": count("images cut by crop", "masks"),
    "regions_outside_crop": count("regions outside crop", "masks"),
    "regions_lost_in_resizing": count("regions lost in resizing", "masks"),
    "regions_merged": count("regions merged", "masks"),
    "train_images": count("train images", "run", better=""),
    "test_images": count("test images", "run", better=""),
}
"""Metrics by their keys in metrics.json, in the order in which tables show them."""


def _keys(of: str) -> tuple[str, ...]:
    return tuple(key for key, measure in METRICS.items() if measure.of == of)


IMAGE_KEYS, PIXEL_KEYS, MASK_KEYS = _keys("images"), _keys("pixels"), _keys("masks")
MAP_KEYS = _keys("maps")

Objective = Enum(  # type: ignore[misc]
    "Objective",
    {key: key for key, measure in METRICS.items() if measure.objective},
    module=__name__,
    type=Choice,
)
"""Metrics that a sweeper can optimise."""


def told(key: str) -> Measure:
    """Return the declaration of a metric; an unknown key gets one with its words as title.

    The key of a stage (`seconds.score`) has the declaration of its metric (`seconds`).
    """
    known = METRICS.get(key.partition(".")[0])
    return known or Measure(key.replace("_", " "))


def image_metrics(counts: Sweep) -> dict[str, float]:
    """Return all image metrics by `IMAGE_KEYS`; NaN where `image_undefined` has a reason."""
    return _computed(IMAGE_KEYS, counts, image_undefined(counts))


def image_undefined(counts: Sweep) -> dict[str, str]:
    """Return the reasons why image metrics are NaN, {key: reason}; empty if all are defined."""
    return _undefined(IMAGE_KEYS, counts, "images")


def pixel_metrics(counts: Sweep, fpr_limit: float = 0.3) -> dict[str, float]:
    """Return all pixel metrics by `PIXEL_KEYS`; NaN where `pixel_undefined` has a reason.

    Args:
        counts: Sweep over pixels, weighted by 1 / `region_areas`.
        fpr_limit: False-positive rate up to which the area of AUPRO is taken, and by which it is
            divided, in (0, 1].
    """
    return _computed(PIXEL_KEYS, counts, pixel_undefined(counts), fpr_limit)


def pixel_undefined(counts: Sweep) -> dict[str, str]:
    """Return the reasons why pixel metrics are NaN, {key: reason}; empty if all are defined."""
    return _undefined(PIXEL_KEYS, counts, "pixels")


def map_metrics(maps: MapScores) -> tuple[dict[str, float], dict[str, str]]:
    """Return the metrics of single maps by `MAP_KEYS`, and reasons of NaN, {key: reason}."""
    values, undefined = {}, {}
    for key in MAP_KEYS:
        compute = METRICS[key].compute
        assert compute is not None
        try:
            values[key] = float(compute(maps, math.nan))
        except UndefinedError as error:
            values[key], undefined[key] = math.nan, str(error)
    return values, undefined


def _computed(
    keys: tuple[str, ...], counts: Sweep, undefined: dict[str, str], fpr_limit: float = 0.3
) -> dict[str, float]:
    values = {}
    for key in keys:
        compute = METRICS[key].compute
        assert compute is not None
        values[key] = math.nan if key in undefined else float(compute(counts, fpr_limit))
    return values


def _undefined(keys: tuple[str, ...], counts: Sweep, things: str) -> dict[str, str]:
    if not counts.anomalous:
        return dict.fromkeys(keys, f"no anomalous {things} in the test set")
    if not counts.nominal:  # any threshold that finds all would be without error
        return dict.fromkeys(keys, f"no nominal {things} in the test set")
    return {}
