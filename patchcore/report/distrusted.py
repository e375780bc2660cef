"""File of the training images that a run distrusts, and the line about them on the screen."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from patchcore.data.sample import Sample
from patchcore.errors import counted
from patchcore.report.cells import harmless

DISTRUSTED = "distrusted.csv"
"""File of a run with `method.pruning`: path, label, distrust and number of each such image."""


def write_distrusted(
    folder: Path, samples: Sequence[Sample], distrusted: Mapping[int, float]
) -> str:
    """Write `DISTRUSTED` to a folder, and return the line for the screen.

    Args:
        folder: Folder of the run.
        samples: Training images.
        distrusted: Distrust of the dropped images, {number: deviations}, the worst first. The file
            also holds the label of each image in the data set, which pruning does not use.
    """
    with (folder / DISTRUSTED).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "distrust", "number"])
        for number, value in distrusted.items():
            sample = samples[number]
            writer.writerow([harmless(sample.name), sample.label, value, number])
    are, were = ("is", "was") if len(distrusted) == 1 else ("are", "were")
    images = counted(len(samples), "training image")
    told = f"{len(distrusted)} of {images} {are} distrusted and {were} dropped"
    if not distrusted:
        return told
    first = samples[next(iter(distrusted))].name
    return f"{told}: see {DISTRUSTED}, which begins with {first}"


def copy_distrusted(source: Path, samples: Sequence[Sample], folder: Path) -> None:
    """Copy `DISTRUSTED`, if there is one, under the paths of the current training images.

    Args:
        source: Folder of the finished run.
        samples: Training images of the current run, in the order of the finished one.
        folder: Folder of the current run.
    """
    if (source / DISTRUSTED).is_file():
        write_distrusted(folder, samples, read_distrusted(source))


def read_distrusted(folder: Path) -> dict[int, float]:
    """Read the distrust of the images that a run has dropped, {number: deviations}.

    Raises:
        OSError, ValueError, KeyError, TypeError or csv.Error: The file is missing or damaged.
    """
    with (folder / DISTRUSTED).open(newline="", encoding="utf-8") as file:
        return {int(row["number"]): float(row["distrust"]) for row in csv.DictReader(file)}
