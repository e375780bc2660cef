"""Folder of a run: for one run at a time, with results that replace earlier results all at once.

Results are replaced in this order, so that a process killed at any moment loses no finished result:

1. New results are written to `.unfinished`. The old results stay as they are.
2. `.unfinished` is flushed to disk and renamed to `.finished`. From now on the new results count.
3. The old results are deleted, metrics.json first.
4. `.finished` is renamed to `.moving`.
5. The files in `.moving` are moved up, metrics.json last, and `.moving` is removed.

The next run in the folder continues at step 3 or 5, and deletes `.unfinished`. Until then the
folder may have no metrics.json, and counts as unfinished.
"""

import contextlib
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from patchcore.checksums import CHECKSUMS, COVERED, write_checksums
from patchcore.errors import InputError
from patchcore.outputs import ARTIFACT, check_own, may_change
from patchcore.report.folders import PICTURES, Images, listed_pictures, own_file
from patchcore.sealed import read_description
from patchcore.writing import make_writable, remove_leftovers

UNFINISHED, FINISHED, MOVING = ".unfinished", ".finished", ".moving"
TRANSIENT = (UNFINISHED, FINISHED, MOVING)
"""Folders in a run's folder with results that are not in place yet; readers skip them."""
BESIDE = "wandb"
"""Folder in a run's folder that W&B writes to directly: its records hold the paths of its files."""
CONTENTS = ".contents"
"""File that lists the files of a run's results, see `listed`; no other files are deleted."""
METRICS = "metrics.json"
FOLDER = "artifact"
"""Name of the artifact in a run's folder."""
DESCRIPTION = ARTIFACT
"""File that describes the artifact."""
LOCK, _OWNER = ".lock", ".running"
_MARK = "fingerprint.txt"
"""File of every run, from its start."""
ALWAYS = ("config.yaml", _MARK, METRICS, "provenance.json", "scores.csv", CHECKSUMS)
"""Files that every run writes."""
_EARLIER = (  # results of earlier versions, which left no list, and of copies without it
    *ALWAYS,
    "resumed_from.txt",
    *(
        f"figures/{name}.png"
        for name in ("curves", "scores", "gallery", "misclassified", "ratio_curve")
    ),
)


class InUseError(InputError):
    """Error: another process runs in the folder."""


class RunFolder:
    """Folder of a run, as a context that locks it; the lock ends with the process at the latest.

    Args:
        path: Folder; created if it does not exist.

    Attributes:
        new: Folder for the new results. `commit` puts them in place; without `commit`, they are
            deleted at the end of the context.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.new = self.path / UNFINISHED
        self._lock = FileLock(self.path / LOCK)
        self._earlier: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> "RunFolder":
        """Lock the folder, and put finished results of a killed process in place.

        Raises:
            InUseError: Another process, which the message names, runs in the folder.
            InputError: The folder holds files with names of results, which no run wrote.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._acquire()
        try:
            settle(self.path)
            remove_leftovers(self.path)
            self.check(ALWAYS if _results(self.path) else _EARLIER)
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
        """Delete the new results made so far."""
        shutil.rmtree(self.new, ignore_errors=True)
        self.new.mkdir()

    def check(self, names: Iterable[str], known: Iterable[str] = ()) -> None:
        """Refuse new results with names that files have which no run wrote.

        Args:
            names: Names of the new results, relative to the folder.
            known: Names of files that a run wrote and that its results do not list.

        Raises:
            InputError: Such a file would be replaced, or is in the way of a folder.
        """
        own = {*known, *(str(path.relative_to(self.path)) for path in _results(self.path))}
        for name in names:
            above = [str(part) for part in Path(name).parents][:-1]
            files = [part for part in above if not os.path.isdir(self.path / part)]
            for each in (*files, name):
                if each not in own and os.path.lexists(self.path / each):
                    raise InputError(
                        f"{self.path / each}: would be replaced, but is not of a run: give another "
                        f"folder (hydra.run.dir or hydra.sweep.dir), or {self._way()}"
                    )

    def _way(self) -> str:
        """Return what to do about a file that is not among the results of a run."""
        finished = _is_run(self.path) and (self.path / METRICS).is_file()
        if finished and not (self.path / CONTENTS).exists():
            return f"copy the run again with its hidden files (cp -a), as {CONTENTS} is missing"
        return "move the file"

    def check_folders(self, names: Iterable[str]) -> None:
        """Refuse new results that could not be written, or not replace the earlier ones.

        Folders of this user that hold earlier results are made writable later; others are not.

        Args:
            names: Names of the new results, relative to the folder.

        Raises:
            InputError: A folder of earlier results is another user's, or a write-protected folder
                without such results would get new ones.
        """
        earlier = _parents(self.path, _results(self.path))
        direct = {each for each in earlier if _is_direct(self.path, each)}
        for each in sorted(direct):
            with contextlib.suppress(PermissionError):  # until one above it is made writable
                check_own(each)
        above = ([self.path / each for each in Path(name).parents] for name in names)
        new = {next(each for each in places if os.path.isdir(each)) for places in above}
        for each in sorted({*earlier, *new} - {self.path, *direct}):
            if not may_change(each):
                raise InputError(
                    f"{each}: is write-protected: make it writable, or give another folder "
                    "(hydra.run.dir or hydra.sweep.dir)"
                )

    def holds(self, name: str) -> bool:
        """Whether a file, by its name relative to the folder, is of the earlier results."""
        return self.path / name in _results(self.path)

    def commit(self) -> None:
        """Replace the results in the folder by the new results.

        Raises:
            InputError: See `check` and `check_folders`. Nothing has changed then.
        """
        write_checksums(self.new)
        names = sorted(str(path.relative_to(self.new)) for path in _files(self.new))
        # Files that trackers wrote during this run stay, even under names that existed before: W&B
        # names runs by the second of their start. Files of earlier runs go with their results.
        beside = self._beside()
        self.check(names, {*beside, *self._earlier})
        self.check_folders(names)
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

    def _beside(self) -> dict[str, tuple[int, int]]:
        """Files that trackers wrote directly to the folder, with inode and time of writing."""
        found = {}
        for path in _files(self.path / BESIDE):
            with contextlib.suppress(FileNotFoundError):  # a tracker has just removed it
                state = path.lstat()
                found[str(path.relative_to(self.path))] = (state.st_ino, state.st_mtime_ns)
        return found

    def _acquire(self) -> None:
        try:
            # Loader processes of a killed run keep its lock for some more seconds.
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
        """Whether the owner may be alive, which is unknown for processes on other machines."""
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
    """Put finished results in place; without any, nothing happens."""
    finished, moving = folder / FINISHED, folder / MOVING
    if finished.is_dir():
        for each in _parents(folder, _results(folder)):
            if _is_direct(folder, each):
                make_writable(each)
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
    """Whether a run in the folder has not ended, or has not put its results in place."""
    return any((folder / name).exists() for name in TRANSIENT)


def results_of(folder: Path) -> Path:
    """Return where metrics.json of the finished results is, which may not be in place yet."""
    places = [folder / name / METRICS for name in (FINISHED, MOVING)]
    return next((place for place in places if os.path.exists(place)), folder / METRICS)


def _results(folder: Path) -> list[Path]:
    """Files of the results in the folder, metrics.json first."""
    try:
        names = listed(folder)
    except OSError:
        names = []
    if METRICS not in names and _is_run(folder):  # of an earlier version, or the list is damaged
        names += [*_EARLIER, *COVERED, *_pictures(folder), *_model(folder)]
    paths = [folder / name for name in names if ".." not in Path(name).parts]  # if it is damaged
    return sorted((p for p in paths if p.is_relative_to(folder)), key=lambda p: p.name != METRICS)


def _model(folder: Path) -> list[str]:
    """Files of the artifact in a run's folder, if that run made it."""
    try:
        found = read_description(folder / FOLDER / DESCRIPTION, sys.maxsize)
    except InputError:
        return []
    if of_another_run(found, folder):
        return []
    return [f"{FOLDER}/{name}" for name in (DESCRIPTION, *found["files"])]


def _pictures(folder: Path) -> list[str]:
    """Pictures of test images in a run's folder, by its lists of them."""
    found = []
    for images in Images:
        with contextlib.suppress(OSError):
            found += [picture for _, picture in listed_pictures(folder, images) or ()]
    return [n for n in found if Path(n).is_relative_to(PICTURES) and own_file(folder, n)]


def _parents(folder: Path, files: list[Path]) -> list[Path]:
    """Folders in a run's folder in which some of these files are, outermost first."""
    parents = {parent for path in files if _may_exist(path) for parent in path.parents}
    return sorted(parent for parent in parents if folder in parent.parents)


def _may_exist(path: Path) -> bool:
    """Whether there is such a file or link, or a folder above it hides whether there is."""
    try:
        path.lstat()
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def _is_direct(folder: Path, place: Path) -> bool:
    """Whether no link leads from a run's folder to a folder in it."""
    return os.path.realpath(place) == str(folder.resolve() / place.relative_to(folder))


def _is_run(folder: Path) -> bool:
    """Whether a run has begun in the folder, by the contents of its fingerprint.txt."""
    try:
        mark = folder / _MARK  # a pipe would never end
        return mark.is_file() and re.fullmatch(r"[0-9a-f]{32}\n?", mark.read_text()) is not None
    except (OSError, ValueError):
        return False


def listed(folder: Path) -> list[str]:
    """Return the list of the result files in the folder, as paths relative to it.

    A NUL ends each path, since names of files may hold line breaks. Lists of earlier versions hold
    one path per line.

    Raises:
        OSError: There is no list.
    """
    path = folder / CONTENTS
    if not path.is_file():  # a pipe would never end
        raise FileNotFoundError(f"{path} is not a file")
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    return [name for name in text.split("\0" if "\0" in text else "\n") if name]


def of_another_run(found: Mapping[str, Any], folder: Path) -> bool:
    """Return whether the model in a run's folder was not made by the run that is there.

    Args:
        found: Contents of the model's artifact.yaml.
        folder: Folder of the run. Without a fingerprint there, nothing is known to be wrong.
    """
    try:
        own = (folder / _MARK).read_text().strip()
    except (OSError, ValueError):
        return False
    try:
        return bool(found["lineage"][0]["fingerprint"] != own)
    except (LookupError, TypeError):
        return True


def is_result(file: Path) -> bool:
    """Return whether a file is of the results, or the log, of the run in its folder."""
    try:
        results = {*listed(file.parent), CONTENTS, CHECKSUMS}
        return file.name in results or file.suffix == ".log"
    except OSError:
        return False


def _list(folder: Path, names: list[str]) -> None:
    """Write the list of the result files in the folder."""
    text = "".join(f"{name}\0" for name in names)
    (folder / CONTENTS).write_bytes(text.encode("utf-8", "surrogateescape"))


def _remove_empty(folder: Path, files: list[Path]) -> None:
    """Remove the folders that held the files if they are empty, deepest first."""
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
    """Flush a file, or the list of names in a folder, to disk."""
    if path.is_symlink():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
