"""Costs of a run: the time of each stage when its result is computed, now or earlier.

If the result of a stage is read from the cache, its cost is the time that computing it took; this
time is stored beside the result. So a point of a multirun reports the same costs whether it ran
first or last.

Stages are `extract` (training images) and `score` (test images), each with its parts `decode`
(files to pixels), `network` (pixels to layer maps) and `patches` (layer maps to features),
`score.search` (features to scores and anomaly maps), `score.metrics`, `label_free` (synthetic
defects, if they are asked for) with `decode`, `network`, `patches` and `fit`, and what the method
names, such as `coreset`.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

METRICS = "score.metrics"
"""Part of testing that is no inspection: it needs to be known which images are anomalous."""


class Costs:
    """Seconds of the stages of a run, summed over batches.

    Attributes:
        cached: Stages of which some or all was read from the cache.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._running: list[tuple[str, str, torch.cuda.Event, torch.cuda.Event]] = []
        self._open: list[str] = []  # stages that are measured now, the innermost last
        self.cached: set[str] = set()

    def add(self, stage: str, seconds: float, cached: bool = False) -> None:
        """Add seconds to a stage; NaN where they are not known.

        >>> costs = Costs()
        >>> costs.add("coreset", 1.5)
        >>> costs.add("coreset", 0.5, cached=True)
        >>> costs.table()
        {'coreset': {'seconds': 2.0, 'cached': True}}
        """
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds
        if cached:
            self.cached.add(stage)

    @contextmanager
    def measure(self, stage: str, device: torch.device) -> Iterator[None]:
        """Measure what is done; on a GPU by its own clock, so that nothing waits for it.

        What is measured inside another stage does not count for that one.
        """
        self._seconds.setdefault(stage, 0.0)
        around = self._open[-1] if self._open else ""
        self._open.append(stage)
        try:
            yield from self._measured(stage, around, device)
        finally:
            self._open.pop()

    def _measured(self, stage: str, around: str, device: torch.device) -> Iterator[None]:
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._running.append((stage, around, begin, end))
        else:
            start = time.perf_counter()
            yield
            self._spent(stage, around, time.perf_counter() - start)

    def seconds(self, stage: str) -> float:
        """Seconds of a stage so far; waits for a GPU that is at it."""
        self._settle()
        return self._seconds.get(stage, 0.0)

    def clear(self, stage: str = "", but: str | None = None) -> None:
        """Forget a stage with its parts, all of them by default; `but` and its parts stay."""
        self._settle()

        def goes(key: str) -> bool:
            return is_part(key, stage) and (but is None or not is_part(key, but))

        self._seconds = {key: each for key, each in self._seconds.items() if not goes(key)}
        self.cached = {key for key in self.cached if not goes(key)}

    def include(self, others: "Costs") -> None:
        """Add those of another run."""
        others._settle()
        for stage, seconds in others._seconds.items():
            self.add(stage, seconds, stage in others.cached)

    def table(self) -> dict[str, dict[str, Any]]:
        """Return {stage: {seconds, None if not known; cached}} as provenance.json holds it."""
        self._settle()
        return {
            stage: {
                "seconds": None if math.isnan(seconds) else seconds,
                "cached": stage in self.cached,
            }
            for stage, seconds in sorted(self._seconds.items())
        }

    def _settle(self) -> None:
        for stage, around, begin, end in self._running:
            end.synchronize()
            self._spent(stage, around, begin.elapsed_time(end) / 1000)
        self._running.clear()

    def _spent(self, stage: str, around: str, seconds: float) -> None:
        self.add(stage, seconds)
        if around:
            self.add(around, -seconds)


def is_part(key: str, stage: str) -> bool:
    """Return whether a key is a stage or a part of it; any is one of the empty name."""
    return not stage or key == stage or key.startswith(f"{stage}.")


def fresh(costs: Any, stage: str = "", metrics: bool = True) -> float | None:
    """Return the seconds that a stage of a run costs when nothing is read from the cache.

    Args:
        costs: As `Costs.table` gives them, and provenance.json holds them.
        stage: With its parts; all stages by default.
        metrics: Whether the time of computing metrics counts.

    Returns:
        None where the costs do not tell, or a part is not known.

    >>> costs = {"coreset": {"seconds": 1.5, "cached": True}}
    >>> fresh(costs), fresh(costs, "coreset"), fresh({}), fresh(costs, "score")
    (1.5, 1.5, None, None)
    """
    if not isinstance(costs, Mapping):
        return None
    asked = [key for key in costs if is_part(str(key), stage) and (metrics or key != METRICS)]
    values = [costs[key].get("seconds") for key in asked if isinstance(costs[key], Mapping)]
    known = [value for value in values if isinstance(value, int | float) and 0 <= value < math.inf]
    return math.fsum(known) if known and len(known) == len(asked) else None
