"""Checksums of a finished run's files, by which readers notice that one was edited or damaged.

A run's folder gets the file `CHECKSUMS` together with its results. It covers the files that
reports, dashboards and resumed runs take values from, but neither pictures, nor the artifact, which
has checksums of its own, nor files of Hydra and trackers. A folder may be moved, and runs of
earlier versions have no such file. It protects against accidents, not against attacks.
"""

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path

from patchcore.report.distrusted import DISTRUSTED
from patchcore.report.folders import Images, own_file
from patchcore.writing import replace_with

CHECKSUMS = ".checksums"
"""File of a finished run: {name of a file: its SHA-256}, as JSON."""
COVERED = (
    *("config.yaml", "fingerprint.txt", "metrics.json", "provenance.json", "scores.csv"),
    *("resumed_from.txt", DISTRUSTED),
    *(f"figures/{images.list_name}" for images in Images if images is not Images.none),
)
"""Files that have a checksum if the run wrote them, as paths relative to its folder."""
LARGEST = 1 << 16  # bytes of CHECKSUMS; a larger file was not written by this module


def write_checksums(folder: Path) -> None:
    """Write `CHECKSUMS` for those of the files `COVERED` that the folder holds."""
    _write(folder, {name: found for name in COVERED if (found := _measured(folder, name))})


@contextlib.contextmanager
def amended(folder: Path, name: str) -> Iterator[None]:
    """Let the file `name` of a finished run be replaced in the context, with a new checksum.

    If the process is killed meanwhile, the file has no checksum. A run without any stays so.
    """
    if not (folder / CHECKSUMS).exists():
        yield
        return
    told = _read(folder)
    _write(folder, {key: value for key, value in told.items() if key != name})
    yield
    _write(folder, {**told, name: _measured(folder, name)})


def altered(folder: Path, besides: Collection[str] = ()) -> tuple[str, str] | None:
    """Return the name of a file that is not as the run wrote it, and what is wrong; else None.

    Args:
        folder: Folder of a finished run. Without `CHECKSUMS`, nothing is known to be wrong.
        besides: Names of files that may have changed.
    """
    try:
        if not (folder / CHECKSUMS).exists():
            return None
        told = _read(folder)
    except (OSError, ValueError, RecursionError):
        return CHECKSUMS, "is damaged; without this file, the run is read without this check"
    for name in COVERED:
        if name in told and name not in besides:
            try:
                found = _measured(folder, name)
            except OSError as error:
                return name, f"cannot be read ({error.strerror})"
            if found != told[name]:
                return name, "was changed after the run had finished" if found else "is missing"
    return None


def _measured(folder: Path, name: str) -> str:
    """SHA-256 of a file in a run's folder; empty if there is none."""
    path = own_file(folder, name)
    if path is None:
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(folder: Path) -> dict[str, str]:
    path = own_file(folder, CHECKSUMS)
    if path is None or path.stat().st_size > LARGEST:
        raise ValueError(CHECKSUMS)
    told = json.loads(path.read_bytes())
    if not isinstance(told, dict):
        raise ValueError(CHECKSUMS)
    return told


def _write(folder: Path, told: dict[str, str]) -> None:
    replace_with(folder / CHECKSUMS, f"{json.dumps(told, indent=2)}\n".encode())
