"""Costs of a run: the time of each stage when its result is computed, now or earlier.

If the result of a stage is read from the cache, the cost of the stage is the time that computing
the result took, which is stored with the result. So a run of a multirun reports the same costs
whether it is the first or the last.

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
"""Stage of testing that is not needed in production, where the labels of images are unknown."""


class Costs:
    """Seconds of the stages of a run, summed over batches.

    Attributes:
        cached: Stages with results that were read from the cache, at least in part.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._running: list[tuple[str, str, torch.cuda.Event, torch.cuda.Event]] = []
        self._open: list[str] = []  # stages being measured, the innermost last
        self.cached: set[str] = set()

    def add(self, stage: str, seconds: float, cached: bool = False) -> None:
        """Add seconds to a stage; NaN if they are not known.

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
        """Measure the time of the context as that of a stage.

        On a GPU, its own clock is used, so that the CPU does not wait. Time of a stage inside
        another one is not counted for the outer stage.
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
        """Return the seconds of a stage so far; waits for pending GPU work."""
        self._settle()
        return self._seconds.get(stage, 0.0)

    def clear(self, stage: str = "", but: str | None = None) -> None:
        """Remove a stage and its parts, or all stages by default; `but` and its parts stay."""
        self._settle()

        def goes(key: str) -> bool:
            return is_part(key, stage) and (but is None or not is_part(key, but))

        self._seconds = {key: each for key, each in self._seconds.items() if not goes(key)}
        self.cached = {key for key in self.cached if not goes(key)}

    def include(self, others: "Costs") -> None:
        """Add the seconds of all stages of other costs."""
        others._settle()
        for stage, seconds in others._seconds.items():
            self.add(stage, seconds, stage in others.cached)

    def table(self) -> dict[str, dict[str, Any]]:
        """Return {stage: {"seconds": seconds or None, "cached": bool}}, as in provenance.json."""
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
    """Return whether a key is a stage or part of it; every key is part of the stage ""."""
    return not stage or key == stage or key.startswith(f"{stage}.")


def fresh(costs: Any, stage: str = "", metrics: bool = True) -> float | None:
    """Return the seconds that a stage of a run costs when nothing is read from the cache.

    Args:
        costs: Costs as returned by `Costs.table` or read from provenance.json.
        stage: Stage, counted with its parts; all stages by default.
        metrics: Whether the time of computing metrics counts.

    Returns:
        Seconds; None if the costs have no such stage, or a part of it is not known.

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
