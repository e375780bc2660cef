"""Hydra's own settings: overrides as recorded, and values that Hydra itself would not explain."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from patchcore.cache import CacheConfig
from patchcore.errors import InputError, printable, to_write
from patchcore.report.folders import PICTURES, SETTINGS
from patchcore.runfolder import ALWAYS, BESIDE, CONTENTS, FOLDER, LOCK, TRANSIENT

MOST_JOBS = 1024
"""Most processes of a launcher, all of which start even if there are fewer points."""

CONCLUSION = "patchcore.commands.sweep.Conclusion"
"""Callback of Hydra that notes where a multirun keeps its points."""
_FOLDERS = {
    "run.dir": "name a folder; . is the current one",
    "sweep.dir": "name a folder; . is the current one",
    "sweep.subdir": "name a folder for each point, such as ${hydra.job.num}",
    "output_subdir": f"name a folder, such as {SETTINGS}",
}
_OF_RUNS = {*TRANSIENT, *ALWAYS, BESIDE, CONTENTS, FOLDER, LOCK, Path(PICTURES).parts[0]}
"""Names in a run's folder that the run itself writes."""
_DATA = ("data.root", "data.region", "data.regions")
"""Settings that name files or folders of the data, beside those that are inside data.root."""


def recorded(overrides: Any) -> list[str]:
    """Return overrides as Hydra has recorded them, without resolving their interpolations.

    Some have values only later, such as `hydra.sweep.subdir=p${hydra.job.num}`.

    Args:
        overrides: List of Hydra's settings, `hydra.overrides.task` or `hydra.overrides.hydra`.
    """
    found: Any = OmegaConf.to_container(overrides, resolve=False)
    return [str(each) for each in found]


def check_below(point: Path, multirun: Path) -> None:
    """Refuse a folder of a point outside that of its multirun, which would not find it there.

    Raises:
        InputError: It is outside.
    """
    if not Path(os.path.abspath(point)).is_relative_to(os.path.abspath(multirun)):
        raise InputError(
            f"hydra.sweep.subdir: {point} is not in the multirun's folder {multirun}: give a path "
            "below it"
        )


def check_hydra(settings: DictConfig) -> None:
    """Refuse values under `hydra` that have no meaning.

    Args:
        settings: Composed settings of the group.

    Raises:
        InputError: The first such value, by its key.
    """

    def value(key: str) -> Any:
        return OmegaConf.select(settings, key, throw_on_resolution_failure=False)

    for key, advice in _FOLDERS.items():
        if isinstance(text := value(key), str):
            if not text.strip():
                raise InputError(f"hydra.{key} is empty: {advice}")
            to_write(text, f"hydra.{key}")
            if re.match(r"~/|\$", text):
                raise InputError(
                    f"hydra.{key}: {text}: {text[0]} has no meaning in a settings file or beside "
                    "references: write the path in full"
                )
    if isinstance(inner := value("output_subdir"), str):
        _check_inner(inner)
    if isinstance(name := value("job.name"), str) and (os.path.basename(name) != name or not name):
        raise InputError(
            f"hydra.job.name: must be a name, not a path, as the log is called NAME.log, got {name}"
        )
    if value("callbacks.conclusion._target_") != CONCLUSION:
        raise InputError(
            "hydra.callbacks.conclusion: cannot be removed or replaced, because it tells points "
            "that fail: leave it as it is"
        )
    for key in ("launcher", "sweeper"):
        if not isinstance(settings.get(key), DictConfig):
            raise InputError(
                f"hydra.{key}: choose it by hydra/{key}=NAME, not {_shown(settings.get(key))}"
            )
    jobs = value("launcher.n_jobs")
    if isinstance(jobs, int) and jobs > MOST_JOBS:
        raise InputError(f"hydra.launcher.n_jobs must be at most {MOST_JOBS:,}, got {jobs:,}")
    if jobs == 0:
        raise InputError(
            "hydra.launcher.n_jobs may not be 0: give the number of jobs that run at a time, or -1 "
            "for one a processor"
        )
    size = value("sweeper.max_batch_size")
    if isinstance(size, int) and size < 1:
        raise InputError(
            f"hydra.sweeper.max_batch_size must be at least 1, or null for all points, got {size}"
        )
    loggers = value("verbose")
    if not isinstance(loggers, bool | str) and not OmegaConf.is_list(loggers):
        raise InputError(
            f"hydra.verbose must be true, false, or names of loggers ([a,b]), got {loggers}"
        )


def _check_inner(inner: str) -> None:
    """Refuse a place of Hydra's own files that is not inside a run's folder, or is the run's own.

    Args:
        inner: Path relative to the run's folder.

    Raises:
        InputError: It is such a place.
    """
    first = Path(os.path.normpath(inner)).parts[:1]
    if not first or first[0] == ".." or os.path.isabs(inner):
        raise InputError(
            f"hydra.output_subdir: must be a folder inside that of the run, got {inner}: name one, "
            f"such as {SETTINGS}"
        )
    if first[0] in _OF_RUNS:
        raise InputError(
            f"hydra.output_subdir: {inner}: {first[0]} is a name of results, which a run replaces: "
            f"name another folder, such as {SETTINGS}"
        )


def check_cache(cache: CacheConfig, chdir: bool | None) -> None:
    """Refuse a relative folder of the cache if it would be another folder for each run.

    Args:
        cache: Settings of the cache.
        chdir: Whether Hydra makes the folder of each run the current one.

    Raises:
        InputError: It does, and the cache has a relative path.
    """
    if chdir and not cache.folder().is_absolute():
        raise InputError(
            f"cache.root: {cache.folder()}: with hydra.job.chdir=true, each run would have a cache "
            "of its own: give a path that begins with /"
        )


def check_moved(config: DictConfig, start: str, chdir: bool | None) -> None:
    """Refuse relative paths of data and weights that are there where the command was started alone.

    Args:
        config: Settings of a run, as they were typed.
        start: Folder in which the command was started.
        chdir: Whether Hydra has made the folder of the run the current one.

    Raises:
        InputError: It has, and the first such path is not in that folder.
    """
    if not chdir:
        return
    found = OmegaConf.to_container(config, resolve=False, throw_on_missing=False)
    for key, value in _paths(found):
        path = os.path.expanduser(value)
        if value and os.path.exists(os.path.join(start, path)) and not os.path.exists(path):
            raise InputError(
                f"{key}: {value}: with hydra.job.chdir=true, relative paths begin in the folder of "
                f"the run, {printable(os.getcwd())}, where there is none: give a path that begins "
                f"with /, such as {os.path.normpath(os.path.join(start, path))}"
            )


def _paths(settings: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and values of the settings that may be paths of files to read."""
    items = settings.items() if isinstance(settings, dict) else enumerate(settings)
    for name, value in items:
        inner = f"{key}.{name}" if key else str(name)
        if isinstance(value, dict | list):
            yield from _paths(value, inner)
        elif isinstance(value, str) and (inner in _DATA or name == "weights"):
            yield inner, value


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
