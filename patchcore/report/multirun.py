"""Table of a multirun, ranked by the first of its points' `objectives`."""

from pathlib import Path

from patchcore.errors import InputError
from patchcore.report.reading import read_yaml
from patchcore.report.table import Table, check_metric, read_table
from patchcore.report.words import title

USUAL = "image_auroc"
"""Metric that ranks the points where their objective cannot."""


def read_multirun(folder: Path) -> tuple[Table, str]:
    """Return the table of a multirun, and a note if another metric than its objective ranks it.

    The objective is the first of the newest finished point, as for `artifact.keep=best`. Image
    AUROC takes its place if no point has a value of it, or if reports do not know it.

    Raises:
        InputError: No run is finished, or no run has image AUROC where it takes this place.
    """
    table = read_table([folder])
    if (objective := _objective(table)) == USUAL:
        check_metric(table, USUAL)
        return table, ""
    wanted = Table(table.runs, objective, table.root)
    if _ranks(wanted):
        return wanted, ""
    check_metric(table, USUAL)
    told = any(objective in run.undefined for run in table.runs if run.finished)
    why = "no point has a value of it" if told else "reports do not have it"
    usual = title(USUAL)
    return table, f"ranked by {usual}, not by the objective {title(objective)}: {why}"


def _objective(table: Table) -> str:
    """First objective of the newest finished run; `USUAL` if its settings do not say."""
    newest = max((run for run in table.known if run.finished), key=lambda run: run.written)
    try:
        found = read_yaml(newest.folder, "config.yaml").get("objectives")
    except (OSError, ValueError):
        found = None
    first = found[0] if isinstance(found, list) and found else USUAL
    return first if isinstance(first, str) else USUAL


def _ranks(table: Table) -> bool:
    """Whether some point has a value of the table's metric, and reports rank by it."""
    try:
        check_metric(table, table.metric)
    except InputError:
        return False
    return any(point.value(table.metric).defined for part in table.parts for point in part.points)
