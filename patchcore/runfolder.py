"""A run's folder: one run at a time in it, and results that replace earlier ones all together.

The order, so that a kill at any moment loses nothing that was finished:

1. New results are made in `.unfinished`, beside the old ones, which nothing touches.
2. Flushed to disk, it is renamed to `.finished`. From here on the new results count.
3. The old results go, metrics.json first.
4. `.finished` is renamed to `.moving`.
5. All that it holds moves up, metrics.json last, and it is removed.

Whoever starts in the folder after a kill goes on at 3 or 5, and drops an `.unfinished`. Meanwhile
the folder has no metrics.json, and so is seen as unfinished.
"""

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from patchcore.errors import InputError

UNFINISHED, FINISHED, MOVING = ".unfinished", ".finished", ".moving"
TRANSIENT = (UNFINISHED, FINISHED, MOVING)
"""Folders in a run's folder that hold results on their way; readers pass them over."""
BESIDE = "wandb"
"""Folder in a run's folder that W&B fills at once: its records name files there by their paths."""
CONTENTS = ".contents"
"""Lists the files of a run's results, a path a line, so that no others are ever deleted."""
METRICS = "metrics.json"
_LOCK, _OWNER = ".lock", ".running"
_EARLIER = (  # results of runs that left no list, metrics.json among them
    *("config.yaml", "fingerprint.txt", METRICS, "resumed_from.txt", "scores.csv"),
    *(
        f"figures/{name}.png"
        for name in ("curves", "scores", "gallery", "misclassified", "ratio_curve")
    ),
)


class InUseError(InputError):
    """Another process runs in the folder."""


class RunFolder:
    """The folder of a run, locked while the context is open; the lock ends with the process.

    Args:
        path: Folder; made if it is not there.

    Attributes:
        new: Where the run's results are made; `commit` puts them in their place, without it they
            are dropped when the context ends.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.new = self.path / UNFINISHED
        self._lock = FileLock(self.path / _LOCK)
        self._earlier: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> "RunFolder":
        """Lock the folder and finish what a killed process has left.

        Raises:
            InUseError: Another process runs there; it is named.
            InputError: The folder holds files of the same names that are not of a run.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._acquire()
        try:
            settle(self.path)
            self._reject_others()
            self.clear()
            self._earlier = self._beside()
            when = time.strftime("%Y-%m-%d %H:%M:%S")
            (self.path / _OWNER).write_text(f"{os.getpid()} {socket.gethostname()} {when}\n")
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, *args: object) -> None:
        self._release()

    def clear(self) -> None:
        """Begin anew: drop what has been made of the new results."""
        shutil.rmtree(self.new, ignore_errors=True)
        self.new.mkdir()

    def commit(self) -> None:
        """Replace the results in the folder by the new ones."""
        names = sorted(str(path.relative_to(self.new)) for path in _files(self.new))
        # What trackers have written anew stays, under whatever name: W&B tells runs apart by the
        # second in which they began. What they wrote earlier goes with the earlier results.
        beside = self._beside()
        tracked = {name for name in beside if beside[name] != self._earlier.get(name)}
        earlier = {str(path.relative_to(self.path)) for path in _results(self.path)}
        _list(self.path, sorted((earlier | set(self._earlier)) - tracked))
        _list(self.new, [*names, *sorted(tracked)])
        for path in _files(self.new):
            _flush(path)
        _flush(self.new)
        self.new.rename(self.path / FINISHED)
        _flush(self.path)
        settle(self.path)

    def _reject_others(self) -> None:
        """Refuse a folder with files that no run wrote and a run would replace."""
        if (self.path / CONTENTS).exists() or _results(self.path):
            return
        if others := [name for name in _EARLIER if os.path.lexists(self.path / name)]:
            raise InputError(
                f"{self.path / others[0]}: would be replaced, but is not of a run: give another "
                "folder (hydra.run.dir or hydra.sweep.dir), or move the file"
            )

    def _beside(self) -> dict[str, tuple[int, int]]:
        """Files that trackers have put into the folder itself, with inode and time of writing."""
        found = {}
        for path in _files(self.path / BESIDE):
            with contextlib.suppress(FileNotFoundError):  # one that a tracker is done with
                state = path.lstat()
                found[str(path.relative_to(self.path))] = (state.st_ino, state.st_mtime_ns)
        return found

    def _acquire(self) -> None:
        try:
            # The loader processes of a run that was killed hold its lock for some seconds more.
            self._lock.acquire(timeout=0 if self._owner_lives() else 15)
        except Timeout:
            raise InUseError(
                f"{self.path}: {self._owner()} runs there: wait until it ends, or give another "
                "folder (hydra.run.dir or hydra.sweep.dir)"
            ) from None

    def _release(self) -> None:
        shutil.rmtree(self.new, ignore_errors=True)
        with contextlib.suppress(OSError):
            (self.path / _OWNER).unlink(missing_ok=True)
        self._lock.release()

    def _owner(self) -> str:
        try:
            process, host, when = (self.path / _OWNER).read_text().split(maxsplit=2)
        except (OSError, ValueError):
            return "another process"
        return f"process {process} on {host}, since {when.strip()},"

    def _owner_lives(self) -> bool:
        """Whether it may live: another machine's processes cannot be seen."""
        try:
            process, host, _ = (self.path / _OWNER).read_text().split(maxsplit=2)
            if host == socket.gethostname():
                os.kill(int(process), 0)
        except ProcessLookupError:
            return False
        except (OSError, ValueError):
            pass
        return True


def settle(folder: Path) -> None:
    """Put finished results in their place; nothing happens if there are none on their way."""
    finished, moving = folder / FINISHED, folder / MOVING
    if finished.is_dir():
        for path in _results(folder):
            path.unlink(missing_ok=True)
        _remove_empty(folder, _results(folder))
        (folder / CONTENTS).unlink(missing_ok=True)
        finished.rename(moving)
    if moving.is_dir():
        for path in sorted(_files(moving), key=lambda path: path.name == METRICS):
            target = folder / path.relative_to(moving)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        _flush(folder)
        shutil.rmtree(moving)


def unfinished(folder: Path) -> bool:
    """Whether a run has begun in the folder and not ended, or has not put its results in place."""
    return any((folder / name).exists() for name in TRANSIENT)


def _results(folder: Path) -> list[Path]:
    """The files of the results in the folder, metrics.json first."""
    try:
        names = (folder / CONTENTS).read_text("utf-8", "surrogateescape").split("\n")
    except OSError:  # a run of an earlier version, or somebody's own folder
        marks = (folder / METRICS, folder / "fingerprint.txt")
        names = list(_EARLIER) if any(mark.is_file() for mark in marks) else []
    names = [name for name in names if name and "\0" not in name]  # or it is damaged
    paths = [folder / name for name in names if ".." not in Path(name).parts]
    return sorted((p for p in paths if p.is_relative_to(folder)), key=lambda p: p.name != METRICS)


def _list(folder: Path, names: list[str]) -> None:
    """Write which files of the folder are results."""
    text = "".join(f"{name}\n" for name in names)
    (folder / CONTENTS).write_text(text, "utf-8", "surrogateescape")


def _remove_empty(folder: Path, files: list[Path]) -> None:
    """Remove the folders that held the files, deepest first, where nothing else is left."""
    parents = {parent for path in files for parent in path.relative_to(folder).parents}
    for parent in sorted(parents - {Path(".")}, key=lambda path: -len(path.parts)):
        with contextlib.suppress(OSError):
            (folder / parent).rmdir()


def _files(folder: Path) -> Iterator[Path]:
    """All files and links below a folder; links are not followed."""
    for place, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        yield from (Path(place) / name for name in [*names, *links])


def _flush(path: Path) -> None:
    """Make sure that a file, or a folder's list of names, is on the disk."""
    if path.is_symlink():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
