"""Tables of runs that are ranked by what the runs themselves state as their `objectives`."""

from collections.abc import Sequence
from pathlib import Path

from patchcore.errors import InputError
from patchcore.report.table import Table, check_metric, read_table
from patchcore.report.words import title

USUAL = "image_auroc"
"""Metric that ranks the points where their objective cannot."""


def read_stated(folders: Sequence[Path]) -> Table:
    """Return the table of all runs below folders, ranked by the objective that they state.

    That is the first of their objectives if all finished runs state the same ones. Image AUROC
    takes its place if the runs differ, if no run has a value of it, or if reports do not know it.

    Raises:
        InputError: A folder is missing or holds no run, no run is finished, or no run has image
            AUROC where it takes this place.
    """
    table = read_table(folders)
    stated = {tuple(run.objectives) or (USUAL,) for run in table.known if run.finished}
    if len(stated) == 1:
        return _ranked(table, next(iter(stated)))
    check_metric(table, USUAL)
    table.reason = (
        f"ranked by {title(USUAL)}, because the runs state different objectives (patchcore report "
        "--metric chooses another metric)"
    )
    return table


def _ranked(table: Table, objectives: Sequence[str]) -> Table:
    """The table, ranked by the first of these objectives, or by `USUAL`."""
    objective = objectives[0] if objectives else USUAL
    if objective != USUAL:
        which = "first objective" if len(objectives) > 1 else "objective"
        told = f"ranked by {title(objective)}, the {which} of these runs"
        wanted = Table(table.runs, objective, table.root, reason=told)
        if _ranks(wanted):
            return wanted
    check_metric(table, USUAL)
    if objective != USUAL:
        known = any(objective in run.undefined for run in table.runs if run.finished)
        why = "no point has a value of it" if known else "reports do not have it"
        usual = title(USUAL)
        table.reason = f"ranked by {usual}, not by the objective {title(objective)}: {why}"
    return table


def _ranks(table: Table) -> bool:
    """Whether some point has a value of the table's metric, and reports rank by it."""
    try:
        check_metric(table, table.metric)
    except InputError:
        return False
    return any(point.value(table.metric).defined for part in table.parts for point in part.points)
