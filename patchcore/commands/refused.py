"""Folders that a command makes before it is refused, which are removed again.

Hydra makes the folder of a run or a multirun before any setting is checked. What was there before,
and whatever another process may have written, stays.
"""

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from patchcore.runfolder import LOCK

_made: dict[Path, list[Path]] = {}  # folders that were missing as this process's command began

Files = dict[str, tuple[int, int]]
"""Files by their names relative to a folder, with inode and time of change in nanoseconds."""


def begin(folder: str) -> None:
    """Note which folders the command will make; called before Hydra makes any."""
    path = Path(os.path.abspath(folder))
    missing = [each for each in (path, *path.parents) if not os.path.lexists(each)]
    _made.clear()
    _made[path] = missing


def is_new(folder: Path) -> bool:
    """Return whether a folder was missing as the command of this process began."""
    path = Path(os.path.abspath(folder))
    return path in _made.get(path, ())


def files_in(folder: Path) -> Files:
    """Return the files in a folder that this command has made; none for any other folder."""
    return _files(folder) if is_new(folder) else {}


def remove(folder: Path, files: Files, needed: Collection[str] = ()) -> None:
    """Remove a folder that this command has made, if it holds nothing but these files, unchanged.

    Folders above it go, too, if this command has made them and they are empty.

    Args:
        folder: Folder of the run.
        files: Its files as this process wrote them. One that is not among them is left, and the
            folder with it, except for the empty file of the folder's lock.
        needed: Names of files without which nothing is removed, as nothing tells whose the others
            are.
    """
    if not is_new(folder) or not files.keys() >= {*needed}:
        return
    path, lock = Path(os.path.abspath(folder)), FileLock(folder / LOCK)
    with suppress(OSError, Timeout), lock.acquire(timeout=0):
        found = _files(path)
        found.pop(LOCK, None)
        if found != {name: state for name, state in files.items() if name != LOCK}:
            return
        for name in (*found, LOCK):
            (path / name).unlink(missing_ok=True)
        for inner in sorted({(path / name).parent for name in found} - {path}, reverse=True):
            inner.rmdir()
        for each in _made[path]:  # the deepest first
            each.rmdir()


def _files(folder: Path) -> Files:
    found: Files = {}
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                state = (Path(place) / name).lstat()
                key = str((Path(place) / name).relative_to(folder))
                found[key] = (state.st_ino, state.st_mtime_ns)
    return found
