"""Folders and files that a command makes before it is refused, which are taken back.

Hydra makes the folder of a run or a multirun, and writes `.hydra` and a log into it, before any
setting is checked. What was there before, and whatever another process may have written, stays.
"""

import os
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from patchcore.runfolder import LOCK, results_of

_made: dict[Path, list[Path]] = {}  # folders that were missing as this process's command began

State = tuple[int, int]
"""Inode of a file, and its time of change in nanoseconds."""

Files = dict[str, State]
"""Files by their names relative to a folder."""


@dataclass
class Before:
    """State of a folder before the command, as `keep` remembers it.

    Attributes:
        results: State of the file of its finished results; None if there were none.
        contents: Contents of the files that Hydra overwrites; None for one that was missing.
        folders: Folders that were missing and that Hydra makes for these files.
    """

    results: State | None
    contents: dict[str, bytes | None] = field(default_factory=dict)
    folders: set[Path] = field(default_factory=set)


_before: dict[Path, Before] = {}


def begin(folder: str) -> None:
    """Note which folders the command will make; called before Hydra makes any."""
    path = Path(os.path.abspath(folder))
    missing = [each for each in (path, *path.parents) if not os.path.lexists(each)]
    forget()
    _made[path] = missing


def forget() -> None:
    """Forget the folders and files of an earlier command of this process."""
    _made.clear()
    _before.clear()


def keep(folder: Path, hydra: Any) -> None:
    """Remember a folder's results, and the files that Hydra, with these settings, overwrites."""
    path = Path(os.path.abspath(folder))
    before = _before[path] = Before(state(results_of(path)))
    if not os.path.isdir(path):
        return
    if not os.path.lexists(path / (log := f"{hydra.job.name}.log")):
        before.contents[log] = None  # lines are added to one that is there
    if hydra.output_subdir is not None:
        for name in ("config.yaml", "hydra.yaml", "overrides.yaml"):
            name = os.path.normpath(f"{hydra.output_subdir}/{name}")
            before.contents[name] = _content(path / name)
            above = (path / name).parents
            before.folders |= {each for each in above if not os.path.lexists(each)}


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
    """Return files in a folder with their states.

    If this command has made the folder, all files in it; otherwise those that `keep` remembers.
    """
    path = Path(os.path.abspath(folder))
    if is_new(path):
        return _files(path)
    names = _before[path].contents if path in _before else ()
    found = {name: state(path / name) for name in names}
    return {name: there for name, there in found.items() if there is not None}


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
        inner = {above for name in found for above in (path / name).parents}
        for each in sorted((each for each in inner if path in each.parents), reverse=True):
            each.rmdir()
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
    """Put back what `keep` remembers of a folder, unless the run has finished in it.

    Args:
        folder: Folder of the run.
        files: Its files as this process wrote them. One that has changed since is left.
    """
    path = Path(os.path.abspath(folder))
    if path not in _before or has_finished(path):
        return
    for name, content in _before[path].contents.items():
        if name not in files or files[name] != state(path / name):
            continue
        with suppress(OSError):
            if content is not None:
                (path / name).write_bytes(content)  # which keeps links and permissions
            else:
                (path / name).unlink()
    for each in sorted(_before[path].folders, reverse=True):
        with suppress(OSError):  # it holds more
            each.rmdir()


def take_back() -> None:
    """Take back what Hydra has made and changed for a run before it failed to start the run.

    Where the run has finished, all stays.
    """
    for folder, made in _made.items():
        if has_finished(folder):
            continue
        put_back(folder, files_in(folder))
        remove(folder, files_in(folder))
        for each in made:  # those in which a umask allows no lock are empty
            with suppress(OSError):  # it holds more
                each.rmdir()


def has_finished(folder: Path) -> bool:
    """Return whether a folder that `keep` has seen holds finished results since then."""
    path = Path(os.path.abspath(folder))
    now = state(results_of(path))
    return path in _before and now is not None and now != _before[path].results


def state(file: Path) -> State | None:
    """Return the state of a file; None if it cannot be found."""
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
                status = (Path(place) / name).lstat()
                key = str((Path(place) / name).relative_to(folder))
                found[key] = (status.st_ino, status.st_mtime_ns)
    return found
