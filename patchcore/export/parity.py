"""Differences between an exported graph and the Python model, on the same images."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchcore.errors import counted

SCORE_LIMIT = 1e-4  # relative
MAP_LIMIT = 1e-3  # relative to the largest value of the map

Scores = NDArray[np.float32]
Pair = tuple[Scores, Scores]
"""Scores (B,) and anomaly maps (B, h, w) of a batch."""


@dataclass
class Parity:
    """Largest differences over some images.

    Attributes:
        images: How many were compared.
        score: Largest relative difference of scores.
        map: Largest absolute difference of anomaly maps.
        map_share: The same relative to the largest absolute value of the image's map.
        threshold: Score at or above which an image is anomalous; None if there is none.
        anomalous: Images that the Python model calls anomalous.
        flipped: Images with another verdict.
    """

    images: int = 0
    score: float = 0.0
    map: float = 0.0
    map_share: float = 0.0
    threshold: float | None = None
    anomalous: int = 0
    flipped: int = 0

    @property
    def failures(self) -> list[str]:
        """Differences beyond the limits, in words; empty for an export that may be used."""
        found = []
        if not self.score <= SCORE_LIMIT:
            found.append(f"scores differ by {self.score:.1e}, more than {SCORE_LIMIT:g}")
        if not self.map_share <= MAP_LIMIT:
            found.append(f"maps differ by {self.map_share:.1e}, more than {MAP_LIMIT:g}")
        if self.flipped:
            found.append(f"{self.flipped} of {counted(self.images, 'verdict')} changed")
        return found

    def __str__(self) -> str:
        """The table that is printed."""
        rows = [
            ("images", f"{self.images:,}"),
            ("scores", f"{self.score:.1e} relative"),
            ("maps", f"{self.map:.1e} absolute, {self.map_share:.1e} relative"),
            ("flipped verdicts", self._verdicts()),
        ]
        return "\n".join(f"{name:17} {text}" for name, text in rows)

    def _verdicts(self) -> str:
        if self.threshold is None:
            return "not compared: the model has no threshold"
        return f"{self.flipped} ({self.anomalous} anomalous, at {self.threshold:g})"


def compared(
    batches: Iterable[tuple[Pair, Pair]], threshold: float | None = None, unit: float = 0.0
) -> Parity:
    """Return the differences between what the Python model and an export say.

    Args:
        batches: Of each batch, what the Python model says, then what the export does.
        threshold: Score at or above which an image is anomalous.
        unit: Scores below it are compared by their absolute difference over it: 1 for an
            ensemble, whose scores are standard deviations on both sides of zero.
    """
    found = Parity(threshold=threshold)
    least = max(unit, float(np.finfo(np.float32).tiny))
    for (score, maps), (other_score, other_maps) in batches:
        found.images += len(score)
        found.score = _larger(found.score, _difference(score, other_score) / _size(score, least))
        apart = _difference(maps, other_maps).max(axis=(1, 2))  # (B,)
        found.map = _larger(found.map, apart)
        largest = _size(maps, least).max(axis=(1, 2))  # (B,)
        found.map_share = _larger(found.map_share, apart / largest)
        if threshold is not None:
            alarm, other = score >= np.float32(threshold), other_score >= np.float32(threshold)
            found.anomalous += int(alarm.sum())
            found.flipped += int((alarm != other).sum())
    return found


def _difference(x: Scores, y: Scores) -> NDArray[np.float64]:
    """Absolute difference; infinite where either is not a number."""
    apart = np.abs(x.astype(np.float64) - y)
    return np.where(np.isnan(apart), np.inf, apart)


def _size(x: Scores, least: float) -> NDArray[np.float64]:
    return np.maximum(np.abs(x.astype(np.float64)), least)


def _larger(most: float, values: NDArray[np.float64]) -> float:
    return max(most, float(values.max(initial=0.0)))
