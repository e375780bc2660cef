"""`patchcore dashboard`: a saved W&B workspace and a W&B report of a sweep."""

import argparse
import json
import sys
from pathlib import Path

from patchcore.commands.options import Parser, new_place
from patchcore.errors import InputError, printable
from patchcore.outputs import check_file
from patchcore.writing import complete


def main() -> None:
    """Entry point: `patchcore dashboard GROUP`."""
    parser = Parser(
        description="Make a workspace and a report in W&B for a sweep that was tracked with W&B. "
        "If its runs are still offline, send them with --sync."
    )
    parser.add_argument(
        "group", metavar="GROUP", help="folder of a multirun, or the name of its group in W&B"
    )
    parser.add_argument(
        "--metric",
        default="",
        metavar="KEY",
        help="metric to rank by (default: that of the summary run, the first of objectives)",
    )
    parser.add_argument("--entity", default="", help="W&B user or team (default: the runs' own)")
    parser.add_argument("--project", default="", help="W&B project (default: the runs' own)")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the specification as JSON; needs no internet"
    )
    parser.add_argument(
        "--output",
        type=new_place,
        metavar="FILE",
        help="with --dry-run: write the specification to a file instead",
    )
    parser.add_argument(
        "--sync",
        action="store_true",
        help="first send the offline runs in the folder, which may have been moved",
    )
    options = parser.parse_args()
    if options.output and not options.dry_run:
        parser.error("--output needs --dry-run")
    try:
        run(options)
    except (InputError, OSError) as error:
        from patchcore.commands.mistakes import explain  # here: it imports Hydra

        sys.exit(printable(f"error: {explain(error) or error}"))


def run(options: argparse.Namespace) -> None:
    """Build the dashboard that the options ask for.

    Raises:
        InputError: The sweep or W&B cannot be read, or an extra is missing.
    """
    from patchcore import dashboard  # here: --help need not wait for it

    if options.output:
        check_file(options.output, "--output")
    folder, where = Path(options.group), (options.entity, options.project)
    if options.sync:
        if not folder.is_dir():
            raise InputError(f"{options.group}: --sync needs the folder of a multirun or run")
        for sent in dashboard.sync(folder):
            print(printable(f"sent: {sent}"))
    if folder.is_dir():
        sweep = dashboard.from_folder(folder, options.metric, *where)
    else:
        sweep = dashboard.from_wandb(options.group, options.metric, *where)
    if not options.dry_run:
        for kind, address in zip(("workspace", "report"), dashboard.save(sweep), strict=True):
            print(f"{kind}: {address}")
        return
    text = json.dumps(dashboard.specification(sweep), indent=2) + "\n"
    if options.output:
        with complete(options.output, "w", encoding="utf-8") as file:
            file.write(text)
        print(printable(f"specification: {options.output}"))
    else:
        print(text, end="")
