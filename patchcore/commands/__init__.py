"""The `patchcore` command: one subcommand a module."""

import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from patchcore.commands.ending import Stopped, end, stoppable

COMMANDS = {
    "train": "fit PatchCore on a category and test it",
    "extend": "add nominal images to a model, or take some out",
    "report": "compare runs: a page and tables",
    "fetch": "download a data set from its owners",
    "cache": "show or clear what sweeps keep",
}


def main() -> None:
    """Entry point: `patchcore COMMAND …`."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print("usage: patchcore COMMAND [OPTIONS]\n")
        for name, purpose in COMMANDS.items():
            print(f"  {name:10} {purpose}")
        print("\npatchcore COMMAND --help tells more.")
        return
    if command not in COMMANDS:
        sys.exit(f"error: no command {command!r}; there is {', '.join(COMMANDS)}")
    sys.argv = [f"patchcore {command}", *sys.argv[2:]]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors on, and they are told below
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        with stoppable(), plain_errors():
            importlib.import_module(f"patchcore.commands.{command}").main()
    except Stopped as stop:
        end(stop)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Tell a user's mistake in one line and exit with code 1; a bug keeps its traceback."""
    try:
        yield
    except Exception as error:
        from patchcore.commands.mistakes import explain  # here: `--help` need not wait for Hydra

        message = explain(error)
        if message is None:
            raise
        sys.exit(f"error: {message}")
