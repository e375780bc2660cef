"""Settings that some runs lack, as they failed early or the settings had no effect on them."""

from collections.abc import Sequence

from patchcore.data.transforms import FILLED
from patchcore.report.reading import RunFolder
from patchcore.report.words import token

_COMPLETED = ("backbone.weights", *(f"image.{key}" for key in FILLED))
"""Settings that no finished run of this version leaves null: see `Config.completed`."""


_EXACT = ("cache.precision", "float32")
"""Setting that runs record only if it changes their results, and its value where it does not."""


def fill_exact(runs: Sequence[RunFolder]) -> None:
    """Fill `_EXACT` where only other runs record it."""
    key, value = _EXACT
    if any(key in run.settings for run in runs):
        for run in runs:
            if run.settings:
                run.settings.setdefault(key, value)


def fill_completed(runs: Sequence[RunFolder]) -> None:
    """Fill settings that a failed run has as null, but any finished run as the value in use.

    Else these would count as varied. The value is that of the finished run whose settings have the
    most in common with those of the failed one.
    """
    finished = [run for run in runs if run.finished]
    known = {run: {(key, token(value)) for key, value in run.settings.items()} for run in finished}
    for run in runs:
        if run.finished or not run.settings:
            continue
        own = {(key, token(value)) for key, value in run.settings.items()}
        nearest = max(finished, key=lambda other: len(own & known[other]), default=None)
        if nearest is None:
            return
        for key in nearest.settings.keys() & _COMPLETED:
            if run.settings.get(key) is None:
                run.settings[key] = nearest.settings[key]
