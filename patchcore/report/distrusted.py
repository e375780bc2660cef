"""Training images that a run distrusts: the file that names them, and the line that tells."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from patchcore.data.sample import Sample
from patchcore.report.cells import harmless

DISTRUSTED = "distrusted.csv"
"""File of a run with `method.pruning`: path, label and distrust of each such image."""


def write_distrusted(
    folder: Path, samples: Sequence[Sample], distrusted: Mapping[int, float]
) -> str:
    """Write `DISTRUSTED` to a folder, and return the line for the screen.

    Args:
        folder: Of the run.
        samples: Training images.
        distrusted: Distrust of some of them, {number: deviations}, the worst first. It is written
            beside the label that the data set has for the image, which pruning does not look at.
    """
    with (folder / DISTRUSTED).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "distrust"])
        for number, value in distrusted.items():
            sample = samples[number]
            writer.writerow([harmless(sample.name), sample.label, value])
    told = f"{len(distrusted)} of {len(samples)} training images are distrusted and were dropped"
    if not distrusted:
        return told
    first = samples[next(iter(distrusted))].name
    return f"{told}: see {DISTRUSTED}, which begins with {first}"
