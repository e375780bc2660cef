"""Metrics of a test, each declared once in `METRICS`; see `patchcore.metrics.measures`.

`patchcore.metrics.sweep` and `patchcore.metrics.regions` are their arithmetic,
`patchcore.metrics.states` collects scores.
"""

from patchcore.metrics.measures import (
    IMAGE_KEYS,
    MASK_KEYS,
    METRICS,
    PIXEL_KEYS,
    Measure,
    Objective,
    image_metrics,
    image_undefined,
    pixel_metrics,
    pixel_undefined,
    told,
)
from patchcore.metrics.regions import region_areas
from patchcore.metrics.states import ImageMetrics, MaskCounts, PixelMetrics
from patchcore.metrics.sweep import (
    Sweep,
    area_under,
    average_precision,
    precision_recall_curve,
    pro_curve,
    roc_curve,
    sweep,
)

__all__ = [
    "IMAGE_KEYS",
    "MASK_KEYS",
    "METRICS",
    "PIXEL_KEYS",
    "ImageMetrics",
    "MaskCounts",
    "Measure",
    "Objective",
    "PixelMetrics",
    "Sweep",
    "area_under",
    "average_precision",
    "image_metrics",
    "image_undefined",
    "pixel_metrics",
    "pixel_undefined",
    "precision_recall_curve",
    "pro_curve",
    "region_areas",
    "roc_curve",
    "sweep",
    "told",
]
