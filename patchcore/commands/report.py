"""`patchcore report`: any set of run folders as a page, Markdown and CSV."""

import argparse
import sys
from pathlib import Path

from patchcore.errors import InputError, printable
from patchcore.report.page import write_report
from patchcore.report.sentences import sentence
from patchcore.report.table import read_runs


def main() -> None:
    """Parse, read, write."""
    parser = argparse.ArgumentParser(
        description="Compare runs: one self-contained HTML page, a Markdown and two CSV tables."
    )
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="a run, a multirun, or any folder with runs below it",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write (default: report in the first DIR)"
    )
    parser.add_argument(
        "--metric", default="image_auroc", metavar="KEY", help="ranked by (default: %(default)s)"
    )
    options = parser.parse_args()
    try:
        table = read_runs(options.folders, options.metric)
        path = write_report(table, options.out or _default(options.folders[0]))
    except (InputError, OSError) as error:
        sys.exit(printable(f"error: {error}"))
    print(printable(sentence(table)))
    for part in table.parts[1:] and table.parts:
        print(printable(f"data {part.number}: {part.data}"))
    for run in table.unfinished:
        print(f"not counted: {table.name(run)}: {table.status(run)}")
    print(printable(f"report: {path}"))


def _default(folder: Path) -> Path:
    """Folder that a report goes to unless told otherwise.

    Raises:
        InputError: A link there leads elsewhere.
    """
    path = folder / "report"
    if path.is_symlink():
        raise InputError(f"{path}: is a link; name the folder to write to with --out DIR")
    return path
