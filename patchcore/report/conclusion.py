"""The end of a multirun: its report is written, and its best points are told."""

from pathlib import Path

from patchcore.errors import InputError, printable
from patchcore.report.page import write_report
from patchcore.report.sentences import best, sentence
from patchcore.report.table import read_runs


def default_folder(folder: Path) -> Path:
    """Return the folder that the report on the runs below `folder` goes to unless told otherwise.

    Raises:
        InputError: A link there leads elsewhere.
    """
    path = folder / "report"
    if path.is_symlink():
        raise InputError(f"{path}: is a link; name the folder to write to with --out DIR")
    return path


def conclude(folder: Path, metric: str = "image_auroc") -> list[str]:
    """Write the report on the runs below `folder`; return lines that tell the best points.

    Nothing is raised for want of results or of room: a line tells that there is no report.

    Args:
        metric: Ranked by; where no run has it, by image AUROC.
    """
    try:
        try:
            table = read_runs([folder], metric)
        except InputError:
            table = read_runs([folder])
        lines = [sentence(table), *best(table)]
        path = write_report(table, default_folder(folder))
    except (InputError, OSError) as error:
        return [printable(f"no report: {error}")]
    return [*map(printable, lines), printable(f"report: {path}")]
