"""Metrics of a test, each declared once in `METRICS`; see `patchcore.metrics.measures`.

`patchcore.metrics.sweep`, `patchcore.metrics.regions` and `patchcore.metrics.overlap` compute the
metrics, `patchcore.metrics.bootstrap` their intervals; `patchcore.metrics.states` collects scores.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from patchcore.metrics.bootstrap import CONFIDENCE, RESAMPLES, SEED, intervals
from patchcore.metrics.measures import (
    IMAGE_KEYS,
    MAP_KEYS,
    MASK_KEYS,
    METRICS,
    PIXEL_KEYS,
    Measure,
    Objective,
    image_metrics,
    image_undefined,
    map_metrics,
    pixel_metrics,
    pixel_undefined,
    told,
)
from patchcore.metrics.overlap import MapScores, UndefinedError, aupimo, pimo_areas
from patchcore.metrics.regions import all_ignored, region_areas
from patchcore.metrics.sweep import (
    Sweep,
    area_under,
    average_precision,
    curves,
    precision_recall_curve,
    pro_curve,
    roc_curve,
    sweep,
)

if TYPE_CHECKING:
    from patchcore.metrics.states import ImageMetrics, MaskCounts, PixelMetrics

__all__ = [
    "CONFIDENCE",
    "IMAGE_KEYS",
    "MAP_KEYS",
    "MASK_KEYS",
    "METRICS",
    "PIXEL_KEYS",
    "RESAMPLES",
    "SEED",
    "ImageMetrics",
    "MapScores",
    "MaskCounts",
    "Measure",
    "Objective",
    "PixelMetrics",
    "Sweep",
    "UndefinedError",
    "all_ignored",
    "area_under",
    "aupimo",
    "average_precision",
    "curves",
    "image_metrics",
    "image_undefined",
    "intervals",
    "map_metrics",
    "pimo_areas",
    "pixel_metrics",
    "pixel_undefined",
    "precision_recall_curve",
    "pro_curve",
    "region_areas",
    "roc_curve",
    "sweep",
    "told",
]


def __getattr__(name: str) -> object:
    """Import the classes that collect scores on first use: importing torchmetrics takes seconds."""
    if name not in ("ImageMetrics", "MaskCounts", "PixelMetrics"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module("patchcore.metrics.states"), name)
    return value
