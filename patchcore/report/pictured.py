"""Pictures of single test images, shrunk until those of all runs fit into the page."""

import math
from collections.abc import Sequence

from patchcore.report.folders import Images, listed_pictures, own_file
from patchcore.report.galleries import shrunk
from patchcore.report.reading import RunFolder, read_scores

PICTURES_BYTES = 1_200_000  # of all pictures together, in base64 as in the page
WIDEST = 640  # pixels
LARGEST = 60_000  # bytes of one picture


class Pictured:
    """Pictures of the runs' test images; images that the threshold gets wrong have priority.

    Args:
        runs: Runs, which share the budget.
        budget: Size of all pictures, in bytes of the page.

    Attributes:
        uris: Pictures as JPEG data URIs.
    """

    def __init__(self, runs: Sequence[RunFolder], budget: int = PICTURES_BYTES) -> None:
        self.uris: list[str] = []
        self._places: dict[RunFolder, dict[int, int]] = {}
        listed = [(run, found) for run in runs if (found := pictures_of(run))]
        for i, (run, found) in enumerate(listed):
            budget -= self._add(run, found, budget // (len(listed) - i))

    def of(self, run: RunFolder) -> dict[int, int]:
        """Return {index of a test image in scores.csv: index of its picture in `uris`}."""
        return self._places.get(run, {})

    def _add(self, run: RunFolder, found: dict[str, str], budget: int) -> int:
        """Add pictures of a run, at most `budget` bytes; return their size in bytes."""
        threshold = run.metrics.get("decision_threshold", run.metrics.get("image_threshold"))
        if threshold is None:
            threshold = math.nan
        try:
            rows = list(enumerate(read_scores(run.folder)))
        except (OSError, ValueError):
            return 0
        # Images with wrong verdicts first; within both groups, those nearest to the threshold.
        rows.sort(key=lambda row: abs(row[1].score - threshold))
        rows.sort(key=lambda row: (row[1].score >= threshold) == bool(row[1].label))
        spent, places = 0, {}
        for i, row in rows:
            path = own_file(run.folder, found[row.path]) if row.path in found else None
            if path is None:
                continue
            uri = shrunk(path, min(LARGEST, budget - spent), WIDEST)
            if not uri:
                break
            places[i] = len(self.uris)
            self.uris.append(uri)
            spent += len(uri)
        self._places[run] = places
        return spent


def pictures_of(run: RunFolder) -> dict[str, str]:
    """Return {path of a test image in scores.csv: path of its picture in the run's folder}."""
    for which in (Images.all, Images.wrong):
        if run.finished and (found := listed_pictures(run.folder, which)) is not None:
            return dict(found)
    return {}
