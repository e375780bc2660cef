"""The end of a multirun: failed points and their errors, and the report. For any launcher."""

import json
import multiprocessing
import os
import secrets
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from patchcore.commands import COMMAND, Stopped
from patchcore.commands.hydra_values import check_below
from patchcore.commands.mistakes import explain
from patchcore.commands.refused import begin, files_in, forget, keep, remove, take_back
from patchcore.commands.searches import is_search, told_again
from patchcore.commands.shortages import of_log
from patchcore.commands.targets import build
from patchcore.commands.workers import fork_workers
from patchcore.errors import InputError, counted
from patchcore.keeping import Contest, Keep, holders, numerically, stays
from patchcore.metrics import Objective
from patchcore.report.folders import ERROR_FILE, SETTINGS
from patchcore.runfolder import FOLDER, METRICS, InUseError, unfinished
from patchcore.tracking import track_multirun
from patchcore.yaml_text import settings_in

MOST = 10
"""Most points that failed for the same reason and are listed."""
_NAME = "PATCHCORE_MULTIRUN"  # environment variable that names the multirun to its jobs
_MARK = f"{SETTINGS}/multirun"
"""File in a point's folder with the names of the multiruns that have started it."""
_FILE = "multirun.yaml"  # that Hydra writes before it looks at the points
_FRUITLESS = (
    "objectives: no trial finished with a value for every objective, so there is no best one"
)
_LAUNCHERS = {"joblib", "submitit", "ray", "concurrent"}  # their errors mean that a job died


@dataclass
class Multirun:
    """A multirun that this process has started."""

    folder: Path
    start: float  # seconds since the epoch
    name: str
    search: bool  # whether a sweeper looks for the best point
    again: tuple[str, str]  # sentences on another start, after an interruption and failed points
    before: dict[Path, int]  # files of earlier points there, and when they changed, in nanoseconds

    def points(self) -> list[Path]:
        """Return the folders of the points that the multirun has started, in order."""
        return _points(self.folder, self.start, self.before, self.name)

    def failures(self) -> list[tuple[Path, str]]:
        """Return the folders of the points that did not finish, each with the reason."""
        return failures(self.folder, self.start, self.name, self.before)


_multiruns: list[Multirun] = []
_asked: dict[Path, str] = {}  # overrides of points in whose folders other multiruns ran


class Conclusion(Callback):
    """Hydra callback that records where a multirun keeps its points, for `concluded`.

    It also frees the settings of points that have ended, which Hydra would keep until the end of
    the multirun: half a megabyte for each.
    """

    _ended: Any = None

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Free the settings of the point before; other callbacks may still read this point's."""
        if self._ended is not None:
            self._ended.cfg = self._ended.hydra_cfg = None
        self._ended = job_return

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note that the run's folder is new, if it is; called by Hydra."""
        with suppress(OmegaConfBaseException):  # Hydra itself tells it
            begin(str(config.hydra.run.dir))
            keep(Path(str(config.hydra.run.dir)), config.hydra)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Record the multirun; called by Hydra."""
        try:
            folder = Path(str(config.hydra.sweep.dir))
        except OmegaConfBaseException:  # Hydra itself tells it
            return
        begin(str(folder))
        os.environ[_NAME], os.environ[COMMAND] = secrets.token_hex(4), str(os.getpid())
        again = (told_again(config), told_again(config, failed=True))
        start = time.time() - 2  # file systems may round times
        # Clocks may jump, and those of file servers differ, so new or changed files count, too.
        before = {path: path.stat().st_mtime_ns for path in _started(folder)}
        name, search = os.environ[_NAME], is_search(config)
        _multiruns.append(Multirun(folder, start, name, search, again, before))
        if "joblib" in str(config.hydra.launcher.get("_target_")):
            fork_workers()


def start_point(folder: Path, multirun: Path) -> None:
    """Note which multirun has started the point in `folder`, so that no other one counts it.

    Args:
        folder: Folder of the point.
        multirun: Folder of the multirun.

    Raises:
        InputError: The folder is outside that of the multirun, which would not find the point.
    """
    check_below(folder, multirun)
    if name := os.environ.get(_NAME):
        with suppress(OSError), (folder / _MARK).open("a") as file:  # it then counts for all
            file.write(f"{name}\n")


def record_failure(folder: Path, error: BaseException, overrides: Sequence[str] = ()) -> None:
    """Write the reason why the point in `folder` failed; if that is impossible, print it.

    Args:
        folder: Folder of the point.
        error: Reason.
        overrides: Overrides of the point; the folder may hold those of another one's start.
    """
    text = explain(error) if isinstance(error, Exception) else str(error)
    if text is None:
        text = f"{type(error).__name__}: {error}\n\n" + "".join(traceback.format_exception(error))
    name = ERROR_FILE
    if isinstance(error, InUseError):  # another run uses the folder: its files must not change
        own = os.environ.get(_NAME, "")
        name, mark = _refusal(own), folder / _MARK
        with suppress(OSError):
            names = mark.read_text().split()
            mark.write_text("".join(f"{each}\n" for each in names if each != own))
        text = f"{text}\n{' '.join(overrides)}"
    try:
        (folder / name).write_text(text.rstrip() + "\n", "utf-8", "backslashreplace")
    except OSError:
        print(f"{folder}: {text}", file=sys.stderr)


def failures(
    folder: Path,
    since: float = 0.0,
    name: str = "",
    before: Mapping[Path, int] | None = None,
) -> list[tuple[Path, str]]:
    """Return the points of a multirun that did not finish: their folders and the reasons.

    Their folders may still hold earlier results.

    Args:
        folder: Folder of the multirun.
        since: Start of the multirun, in seconds since the epoch: see `Multirun.start`.
        name: Name of the multirun.
        before: Files of earlier points: see `Multirun.before`.
    """
    found = []
    for point in _points(folder, since, before, name):
        told = [point / _refusal(name), point / ERROR_FILE]
        if told[0].is_file() and (rest := told[0].read_text("utf-8", "replace").splitlines()[1:]):
            _asked[point] = rest[0]
        lines = [line for file in told if file.is_file() for line in _lines(file)]
        told[0].unlink(missing_ok=True)
        if lines or unfinished(point) or not (point / METRICS).is_file():
            found.append(
                (point, lines[0] if lines else ("it ended without a message: was it killed?"))
            )
    return found


@contextmanager
def concluded() -> Iterator[None]:
    """Print the failed points of this process's multirun when it ends, for whatever reason.

    Raises:
        SystemExit: Points failed; the exit code is 1.
        Stopped: A signal came; the message says which points are kept.
        InputError: The multirun itself failed, and no point did.
    """
    _multiruns.clear()
    _asked.clear()
    forget()
    try:
        yield
    except Stopped as stop:
        if _multiruns:
            stop.kept = _kept(_multiruns[-1])
            stop.apart = True
        raise
    except Exception as error:
        told = _conclude()
        if (message := _explained(error)) is None:
            raise
        if not _multiruns:  # a run's own errors are told, and its files taken back, by its task
            take_back()
        elif not told:  # it ended before any point began
            files = files_in(folder := _multiruns[-1].folder)
            remove(folder, {name: files[name] for name in files if name == _FILE}, needed=[_FILE])
        if not told:
            raise InputError(message) from error
        print(f"error: the multirun ended early: {message}", file=sys.stderr)
        sys.exit(1)
    else:
        if _conclude():
            sys.exit(1)
        if any(multirun.search and not _usable(multirun) for multirun in _multiruns):
            raise InputError(_FRUITLESS)


def _conclude() -> bool:
    """Print the outcome of this process's multiruns; return whether any point failed."""
    missing = []
    for multirun in _multiruns:
        failed = multirun.failures()
        if multirun.search:
            _tell_undefined(multirun)
        _tell_best(multirun)
        _summarise(multirun, {point for point, _ in failed})
        missing += failed
    if missing:
        print(f"\nerror: {len(missing)} of the points failed:", file=sys.stderr)
        alike = defaultdict(list)
        for point, reason in missing:
            alike[reason].append(f"  {point}: {_overrides(point)}")
        for reason, points in alike.items():
            more = [f"  … and {len(points) - MOST} more"] if len(points) > MOST else []
            print(*points[:MOST], *more, f"    {reason}", sep="\n", file=sys.stderr)
        for multirun in _multiruns:
            print(f"{multirun.again[1][0].upper()}{multirun.again[1][1:]}.", file=sys.stderr)
    return bool(missing)


def _explained(error: Exception) -> str | None:
    """Return the error that ended a multirun in one line; None if it is a bug."""
    if _multiruns and type(error).__module__.partition(".")[0] in _LAUNCHERS:
        return (
            f"hydra/launcher: a job was killed or ended without a result ({type(error).__name__}), "
            "most often for lack of memory: run fewer jobs at the same time "
            "(hydra.launcher.n_jobs)"
        )
    if _multiruns and isinstance(error, ValueError) and str(error).startswith("No trials are comp"):
        return _FRUITLESS
    if isinstance(error, ValueError) and str(error).startswith("Cannot overwrite study direction"):
        return (
            "hydra.sweeper.study_name: the study of this name looks in other directions: choose "
            "another name, or give its directions by hydra.sweeper.direction"
        )
    if isinstance(error, FileNotFoundError) and str(error.filename).endswith("_results.yaml"):
        return "hydra.sweeper.n_trials: no trial was run: set it to 1 or more"
    words = " ".join(str(error).split())
    if isinstance(error, RuntimeError) and words.startswith("Invalid plugin"):
        return f"hydra: {words}: choose hydra/launcher=NAME or hydra/sweeper=NAME instead"
    if _multiruns and isinstance(error, multiprocessing.TimeoutError):
        return (
            "hydra.launcher.timeout: no job finished in so many seconds: raise it, or leave it out"
        )
    if _multiruns and isinstance(error, ValueError) and _of_joblib(error):
        return f"hydra.launcher: {words}: correct its settings"
    message = explain(error)
    if message is None and isinstance(error, ValueError) and words.startswith("Unable to configur"):
        return (
            f"hydra.job_logging or hydra.hydra_logging: {words} ({error.__cause__}): correct its "
            "settings"
        )
    # Points record their own errors, so this is one with the folder of the multirun or run.
    if isinstance(of_log(error), OSError) and not isinstance(error, HydraException) and message:
        return f"hydra.{'sweep' if _multiruns else 'run'}.dir: {message}"
    return message


def _of_joblib(error: Exception) -> bool:
    """Whether joblib itself has refused its settings; points record errors of their own."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1].f_globals.get("__name__", "").partition(".")[0] == "joblib"


def _usable(multirun: Multirun) -> bool:
    """Whether a search has a point with a value of every objective, or has none at all."""
    points = multirun.points()
    undefined = {name for names in _undefined(multirun).values() for name in names}
    return not points or any(point.name not in undefined for point in points)


def _tell_undefined(multirun: Multirun) -> None:
    """Print the finished points that the search could not use, grouped by reason."""
    for reason, names in _undefined(multirun).items():
        print(f"failed trials, {reason}: points {', '.join(names)}", file=sys.stderr)


def _undefined(multirun: Multirun) -> dict[str, list[str]]:
    """Finished points without a value of an objective: {objective and reason: names}."""
    points = defaultdict(list)
    for point in multirun.points():
        try:
            record = dict(json.loads((point / METRICS).read_text()))
            reasons = dict(record.get("undefined", {}))
        except (OSError, ValueError, TypeError):
            continue
        for key in _setting(point, "objectives") or []:
            if key in record and record[key] is None:
                points[f"{key}: {reasons.get(key, 'undefined')}"].append(point.name)
    return points


def _tell_best(multirun: Multirun) -> None:
    """Print the path of the best point's artifact, if `artifact.keep` is `best`, and of others."""
    held = holders(multirun.folder) if os.path.isdir(multirun.folder) else []
    points = held or _finished(multirun.folder)[:1]  # reading the settings of all takes long
    contested = [each for each in points if _setting(each, "artifact", "keep") == Keep.best.value]
    if not contested:
        return
    objective = _setting(contested[0], "objectives")[0]
    if not held:
        print(f"artifact=best: no model is kept, because no point has a value of {objective}")
        return
    ranked = Contest(multirun.folder, Objective(objective)).ranked()
    print(f"artifact of the best point: {ranked[0] / FOLDER}")
    for point in ranked[1:]:
        if why := stays(point):
            print(f"kept besides: {point / FOLDER}: {why}")


def _summarise(multirun: Multirun, failed: Collection[Path]) -> None:
    """Write the multirun's report, print its best points, and add a summary to its trackers.

    Print a warning if a tracker cannot be reached.
    """
    if not multirun.points():
        return
    from patchcore.report.conclusion import conclude  # here: it would slow down the start

    print("", *conclude(multirun.folder), *_earlier(multirun, failed), sep="\n")
    try:
        track_multirun(multirun.folder.absolute(), build)
    except Exception as trouble:  # trackers have no common base of their errors
        print(f"warning: the summary of the multirun is not tracked: {trouble}", file=sys.stderr)


def _earlier(multirun: Multirun, failed: Collection[Path]) -> list[str]:
    """Return a line that names the finished points in the folder that this start has not made.

    The report counts them. They may be in the folders of points that failed this time.
    """
    made = {*multirun.points()} - {*failed}
    others = [point for point in _finished(multirun.folder) if point not in made]
    if not others:
        return []
    more = f" and {len(others) - MOST} more" if len(others) > MOST else ""
    told = ", ".join(str(point) for point in others[:MOST])
    return [f"also counted, from other starts in this folder: {told}{more}"]


def _kept(multirun: Multirun) -> str:
    done = len(_finished(multirun.folder))  # those of earlier starts, too
    return (
        f"{counted(done, 'finished point')} {'is' if done == 1 else 'are'} kept in "
        f"{multirun.folder}; {multirun.again[0]}"
    )


def _finished(folder: Path) -> list[Path]:
    """Folders of the finished points of a multirun, those of earlier starts included, in order."""
    points = _points(folder, 0.0)
    return [point for point in points if (point / METRICS).is_file() and not unfinished(point)]


def _points(
    folder: Path, since: float, before: Mapping[Path, int] | None = None, name: str = ""
) -> list[Path]:
    """Folders of the points that were started after `since` or changed after `before`, in order.

    With the name of a multirun, points that only others have started meanwhile are left out.
    """
    found = []
    for path in _started(folder):
        status = path.stat()
        changed = before is not None and before.get(path) != status.st_mtime_ns
        ours = not name or not _of_another(path.parents[1] / _MARK, status.st_mtime_ns, name)
        if ours and (changed or status.st_mtime >= since):
            found.append(path.parents[1])
    return found


def _of_another(mark: Path, started: int, name: str) -> bool:
    """Whether another multirun has started a point last, at a time in nanoseconds."""
    try:
        names = mark.read_text().split() if mark.stat().st_mtime_ns >= started else []
    except OSError:  # there is none: the job was killed, or could not write
        return False
    refused = mark.parents[1] / _refusal(name)
    return bool(names) and names[-1] != name and not refused.exists()


def _started(folder: Path) -> list[Path]:
    """Files that Hydra writes as it starts the points of a multirun, in their order."""
    if not os.path.isdir(folder):  # Path.is_dir raises an error for a name that is too long
        return []
    return sorted(folder.rglob(f"{SETTINGS}/overrides.yaml"), key=numerically)


def _setting(point: Path, *keys: str) -> Any:
    """Setting of a point, or None if its config.yaml is damaged or lacks the setting."""
    found = settings_in(point)
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _refusal(name: str) -> str:
    return f".refused-{name}"


def _lines(file: Path) -> list[str]:
    return file.read_text("utf-8", "replace").splitlines()[:1] or ["it failed without a message"]


def _overrides(point: Path) -> str:
    if point in _asked:
        return _asked[point]
    lines = (point / SETTINGS / "overrides.yaml").read_text().splitlines()
    return " ".join(line.removeprefix("- ") for line in lines)
