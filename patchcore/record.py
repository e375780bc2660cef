"""Results of a test, as they are collected."""

from dataclasses import dataclass, field

from torch import Tensor

from patchcore.costs import Costs


@dataclass
class Record:
    """All results of a test.

    Attributes:
        scores: {index of the test image: anomaly score}.
        grids: {index of the test image: patch scores (h, w), on the CPU}.
        counted: {index of the test image: cells (h, w) bool that count by its region}; empty: all.
        metrics: Image and pixel metrics, NaN where `undefined` says why; counts and sizes.
        undefined: Reasons for metrics that are NaN: {key: reason}.
        curves: Points of the image metrics' curves: see `ImageMetrics.curves`.
        ratio_curve: Metrics of the test at every ratio asked for and with the whole memory,
            ascending. `ratio` is the share of the training patches that the memory keeps.
        seconds: Wall time of each stage of fit and test, in seconds.
        warm: Stages that read the cache, so that `seconds` does not measure their computation.
        costs: Seconds that stages take when nothing is read from the cache: see `patchcore.costs`.
    """

    scores: dict[int, float] = field(default_factory=dict)
    grids: dict[int, Tensor] = field(default_factory=dict)
    counted: dict[int, Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)
    curves: dict[str, Tensor] = field(default_factory=dict)
    ratio_curve: list[dict[str, float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    warm: set[str] = field(default_factory=set)
    costs: Costs = field(default_factory=Costs)
