"""The report at the end of a multirun, and the lines with its best points."""

from pathlib import Path

from patchcore.errors import InputError, printable
from patchcore.report.multirun import read_stated
from patchcore.report.page import write_report
from patchcore.report.sentences import best, data_sets, sentence


def default_folder(folder: Path) -> Path:
    """Return the default folder for the report on the runs below `folder`.

    Raises:
        InputError: The folder is a link.
    """
    path = folder / "report"
    if path.is_symlink():
        raise InputError(f"{path}: is a link; name the folder to write to with --out DIR")
    return path


def conclude(folder: Path) -> list[str]:
    """Write the report on the runs below `folder`; return lines with the best points.

    If there are no results, or the report cannot be written, a line says so and no error is raised.

    Args:
        folder: Folder of the multirun.
    """
    try:
        table = read_stated([folder])
        lines = [sentence(table), *data_sets(table), *best(table)]
        path = write_report(table, default_folder(folder))
    except (InputError, OSError) as error:
        return [printable(f"no report: {error}")]
    return [*map(printable, lines), printable(f"report: {path}")]
