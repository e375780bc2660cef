"""Folders and files that a command makes before it is refused, which are taken back.

Hydra makes the folder of a run or a multirun, and writes `.hydra` and a log into it, before any
setting is checked. What was there before, and whatever another process may have written, stays.
"""

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from patchcore.runfolder import LOCK

_made: dict[Path, list[Path]] = {}  # folders that were missing as this process's command began

_kept: dict[Path, dict[str, bytes | None]] = {}  # contents before the command, None: no file

Files = dict[str, tuple[int, int]]
"""Files by their names relative to a folder, with inode and time of change in nanoseconds."""


def begin(folder: str) -> None:
    """Note which folders the command will make; called before Hydra makes any."""
    path = Path(os.path.abspath(folder))
    missing = [each for each in (path, *path.parents) if not os.path.lexists(each)]
    _made.clear()
    _kept.clear()
    _made[path] = missing


def keep(folder: Path, hydra: Any) -> None:
    """Remember the files in a folder that Hydra, with these settings, will overwrite.

    Nothing is remembered of a folder that does not exist.
    """
    if not os.path.isdir(folder):
        return
    names = [f"{hydra.job.name}.log"]
    if hydra.output_subdir is not None:
        files = ("config.yaml", "hydra.yaml", "overrides.yaml")
        names += [os.path.normpath(f"{hydra.output_subdir}/{name}") for name in files]
    found = {name: _content(folder / name) for name in names}
    if found[names[0]] is not None:
        del found[names[0]]  # lines are added to a log that is there
    _kept[Path(os.path.abspath(folder))] = found


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None


def is_new(folder: Path) -> bool:
    """Return whether a folder was missing as the command of this process began."""
    path = Path(os.path.abspath(folder))
    return path in _made.get(path, ())


def files_in(folder: Path) -> Files:
    """Return the files in a folder that this command has made; else those `keep` remembers."""
    if is_new(folder):
        return _files(folder)
    found = {name: _state(folder / name) for name in _kept.get(Path(os.path.abspath(folder)), ())}
    return {name: state for name, state in found.items() if state is not None}


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
        if _apart_from_logs(found) != _apart_from_logs(files):
            return
        for name in (*found, LOCK):
            (path / name).unlink(missing_ok=True)
        for inner in sorted({(path / name).parent for name in found} - {path}, reverse=True):
            inner.rmdir()
        for each in _made[path]:  # the deepest first
            each.rmdir()


def _apart_from_logs(files: Files) -> Files:
    """Files but for the lock; of logs, to which lines may have been added, only the inode."""
    return {
        name: (inode, 0 if name.endswith(".log") else time)
        for name, (inode, time) in files.items()
        if name != LOCK
    }


def put_back(folder: Path, files: Files) -> None:
    """Put back what `keep` remembers of a folder.

    Args:
        folder: Folder of the run.
        files: Its files as this process wrote them. One that has changed since is left.
    """
    path = Path(os.path.abspath(folder))
    for name, content in _kept.get(path, {}).items():
        if name not in files or files[name] != _state(path / name):
            continue
        with suppress(OSError):
            if content is not None:
                (path / name).write_bytes(content)  # which keeps links and permissions
                continue
            (path / name).unlink()
            if (inner := (path / name).parent) != path:
                inner.rmdir()


def _state(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _files(folder: Path) -> Files:
    found: Files = {}
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                state = (Path(place) / name).lstat()
                key = str((Path(place) / name).relative_to(folder))
                found[key] = (state.st_ino, state.st_mtime_ns)
    return found
