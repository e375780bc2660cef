"""Files that a report or Hydra has written, told by their beginnings from those of users.

So reports of any version can be replaced, and other files of the same names stay.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from patchcore.errors import InputError
from patchcore.report.folders import SETTINGS

REPORT = {
    "report.html": r"(?s).*<title>PatchCore report\b",
    "report.md": r"# PatchCore report\n",
    "report.csv": r"(data,)?rank,(.*,)?finished,unfinished\b",
    "runs.csv": r"folder,status\b",
}
"""Files of a report: {name: pattern of the beginning}."""
MULTIRUN = {
    "multirun.yaml": r"(?s)(.*\n)?hydra:\n",
    "optimization_results.yaml": r"(?s)(.*\n)?name: optuna\n",
}
"""Files that Hydra and its sweepers write to the folder of a multirun: as in `REPORT`."""
SETTINGS_OF_RUN = {
    f"{SETTINGS}/hydra.yaml": r"(?s)(?!.*\n  verbose: \S+\n?$)|.*\bpatchcore\b",
}
"""File that Hydra writes to the folder of a run: as in `REPORT`.

It names classes of ours, unless it was cut off before its last line, as by a kill.
"""
_BEGINNING = 1 << 14  # characters that are read, more than any report has before its title


def check_own(folder: Path, files: Mapping[str, str], what: str, advice: str) -> None:
    """Refuse to replace files that have names of these `files`, but other contents.

    A link passes, as it is replaced itself, and what it leads to stays.

    Args:
        folder: Folder to write to; it may be missing.
        files: Names and patterns, such as `REPORT`.
        what: What writes these files, for the message, such as "a report".
        advice: How to name another folder.

    Raises:
        InputError: There is such a file, or a pipe in its place.
        OSError: A file cannot be read.
    """
    for name, pattern in files.items():
        path = folder / name
        if path.is_fifo():
            raise InputError(f"{path}: is a pipe, which may never end: remove it")
        if path.is_file() and not path.is_symlink() and not re.match(pattern, _beginning(path)):
            raise InputError(
                f"{path}: would be replaced, but is not of {what}: {advice}, or move the file"
            )


def _beginning(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(_BEGINNING)
