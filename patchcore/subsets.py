"""Metrics of parts of a test: by defect type and by category, with bootstrap intervals."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from patchcore.data.sample import Sample
from patchcore.metrics import (
    CONFIDENCE,
    METRICS,
    RESAMPLES,
    SEED,
    image_metrics,
    image_undefined,
    intervals,
    sweep,
)

PixelMetricsOf = Callable[[Sequence[int]], tuple[dict[str, float], dict[str, str]]]
"""Function from numbers of test images to their pixel metrics and the reasons of NaN."""
SUBSETS = ("intervals", "defect_types", "categories")
"""Keys of the result of `by_subset`, which are keys of metrics.json, too."""


def by_subset(
    samples: Sequence[Sample], scores: Mapping[int, float], pixels: PixelMetricsOf
) -> dict[str, Any]:
    """Return the entries of metrics.json on parts of a test, and on intervals of image metrics.

    Args:
        samples: Test images.
        scores: {number of the image in `samples`: score}, in the order in which they were tested.
        pixels: Function that returns pixel metrics of some images, given by their places in the
            order in which they were tested.

    Returns:
        `intervals`: `resamples`, `confidence` and `seed` of the bootstrap, and `metrics`, {key:
        interval [low, high]} of the image metrics of the whole test. There are no intervals with a
        single nominal or anomalous image.
        `defect_types`: {type: {`images`, `metrics`, `intervals`}}, the number of images of a defect
        type, and image metrics of these against the nominal images. If samples have categories, the
        nominal images are those of the same category, and the type is `category/type`.
        `categories`: {category: the same for its images, with pixel metrics}, if samples have them.
        Undefined image metrics are left out, undefined pixel metrics are None; `undefined` has
        the reasons. Empty entries are left out.
    """
    values = np.array([scores[number] for number in range(len(samples))], dtype=np.float64)
    tested = {number: place for place, number in enumerate(scores)}
    places: dict[str, dict[str, list[int]]] = {}  # by category and type; "" is nominal
    for number, sample in enumerate(samples):
        kind = sample.defect_type if sample.label else ""
        places.setdefault(sample.category, {}).setdefault(kind, []).append(number)
    found: dict[str, Any] = {}
    kinds_of = {
        "/".join(filter(None, [category, kind])): (numbers, kinds.get("", []))
        for category, kinds in sorted(places.items())
        for kind, numbers in sorted(kinds.items())
        if kind
    }
    nominal = values[[number for kinds in places.values() for number in kinds.get("", [])]]
    anomalous = values[[number for numbers, _ in kinds_of.values() for number in numbers]]
    if whole := intervals(nominal, anomalous):
        made = {"resamples": RESAMPLES, "confidence": CONFIDENCE, "seed": SEED}
        found["intervals"] = {**made, "metrics": _lists(whole)}
    if kinds_of:
        found["defect_types"] = {
            kind: _images(values[own], values[numbers], len(numbers))
            for kind, (numbers, own) in kinds_of.items()
        }
    if categories := [name for name in sorted(places) if name]:
        found["categories"] = {
            name: _category(
                places[name], values, lambda some: pixels([tested[number] for number in some])
            )
            for name in categories
        }
    return found


def _images(
    nominal: NDArray[np.float64], anomalous: NDArray[np.float64], images: int
) -> dict[str, Any]:
    """Image metrics that are defined and by which reports rank, with their intervals."""
    counts = sweep(torch.from_numpy(nominal), torch.from_numpy(anomalous))
    undefined = image_undefined(counts)
    found: dict[str, Any] = {
        "images": images,
        "metrics": {
            key: int(value) if METRICS[key].whole else value
            for key, value in image_metrics(counts).items()
            if key not in undefined and METRICS[key].better
        },
        "intervals": _lists(intervals(nominal, anomalous)),
    }
    why = {key: reason for key, reason in undefined.items() if METRICS[key].better}
    return {**found, "undefined": why} if why else found


def _category(
    kinds: Mapping[str, list[int]], values: NDArray[np.float64], pixels: PixelMetricsOf
) -> dict[str, Any]:
    """Metrics of the images of one category, given by defect type; "" is nominal."""
    images = sorted(number for numbers in kinds.values() for number in numbers)
    anomalous = [number for kind, numbers in kinds.items() if kind for number in numbers]
    found = _images(values[kinds.get("", [])], values[anomalous], len(images))
    of_pixels, undefined = pixels(images)
    found["metrics"] |= {k: None if k in undefined else value for k, value in of_pixels.items()}
    undefined = {**found.get("undefined", {}), **undefined}
    return {**found, "undefined": undefined} if undefined else found


def _lists(bounds: Mapping[str, tuple[float, float]]) -> dict[str, list[float]]:
    return {key: list(ends) for key, ends in bounds.items()}
