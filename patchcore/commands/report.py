"""`patchcore report`: compare any set of run folders in a page, Markdown and CSV."""

import sys

from patchcore.commands.options import Parser, new_place, place
from patchcore.errors import InputError, printable
from patchcore.report.conclusion import default_folder
from patchcore.report.effects import check_against, parse_against
from patchcore.report.multirun import read_stated
from patchcore.report.page import check_report, write_report
from patchcore.report.sentences import best, data_sets, later_failures, not_counted, sentence
from patchcore.report.table import read_runs


def main() -> None:
    """Entry point: `patchcore report DIR…`."""
    parser = Parser(
        description="Compare runs: write a self-contained HTML page, a Markdown table and two CSV "
        "tables."
    )
    parser.add_argument(
        "folders",
        type=place,
        nargs="+",
        metavar="DIR",
        help="a run, a multirun, or any folder with runs below it",
    )
    parser.add_argument(
        "--out",
        type=new_place,
        metavar="DIR",
        help="folder to write to (default: report in the first DIR)",
    )
    parser.add_argument(
        "--metric",
        metavar="KEY",
        help="metric to rank by (default: the first of the runs' objectives if all runs state the "
        "same, else image_auroc)",
    )
    parser.add_argument(
        "--against",
        action="append",
        metavar="KEY=VALUE",
        help="show how much the other values of a setting change the results, in pairs of runs; "
        "for example coreset.ratio=0.01",
    )
    options = parser.parse_args()
    try:
        if options.against and options.against[1:]:
            raise InputError("--against: was given twice: give one KEY=VALUE")
        for folder in options.folders:
            if folder.is_file():
                raise InputError(f"{folder}: is a file: name the folder of its run")
        out = options.out or default_folder(options.folders[0])
        if options.out or options.folders[0].is_dir():
            check_report(out, "--out")
        if options.metric is None:
            table = read_stated(options.folders)
        else:
            table = read_runs(options.folders, options.metric)
        if options.against:
            from patchcore.commands.overrides import as_typed  # here: it imports Hydra

            table.against = parse_against(*as_typed(options.against))
            check_against(table, *table.against)
        path = write_report(table, out)
    except (InputError, OSError) as error:
        from patchcore.commands.mistakes import explain  # here: it imports Hydra

        sys.exit(printable(f"error: {explain(error) or error}"))
    told = [sentence(table), *data_sets(table), *best(table)]
    for line in (*told, *not_counted(table), *later_failures(table)):
        print(printable(line))
    print(printable(f"report: {path}"))
