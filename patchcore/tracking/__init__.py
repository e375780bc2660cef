"""Experiment trackers: the registry, and the steps that log a run or a multirun to them.

Everything except `Details` and the gallery's single pictures is read from the run's folder, so that
a run that finished earlier is tracked like any other. To add a tracker, write a subclass of
`Tracker` in a file of its own and add an entry to `TRACKERS`. This also adds its preset to the
group `logger`, and allows settings files to name its class.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchcore.errors import InputError
from patchcore.metrics import METRICS
from patchcore.report.words import flatten
from patchcore.tracking.about import FINISHED, About, ended
from patchcore.tracking.csv import Csv
from patchcore.tracking.mlflow import MLflow
from patchcore.tracking.tensorboard import TensorBoard
from patchcore.tracking.tracker import Tracker
from patchcore.tracking.wandb import Wandb

if TYPE_CHECKING:  # all of these take seconds to import, and settings need none of them
    from pytorch_lightning.loggers import Logger

    from patchcore.report.run import GalleryItem
    from patchcore.tracking.tables import Details

TRACKERS: dict[str, Tracker] = {
    "csv": Csv(),
    "mlflow": MLflow(),
    "tensorboard": TensorBoard(),
    "wandb": Wandb(),
}
"""Trackers by their choice in the group `logger`."""

_VARIABLES = ("WANDB_", "MLFLOW_")  # prefixes of the environment variables that loggers set
_BELOW = ("name", "version", "sub_dir")
"""Arguments of loggers that name folders below `save_dir`, each below the one before."""

Make = Callable[..., Any]
"""Function that makes an object of Lightning from its key, its settings and keyword arguments."""


def presets() -> dict[str, dict[str, Any]]:
    """Return the choices of the group `logger`: {choice: {name: settings of a logger}}."""
    found = {name: {name: tracker.settings()} for name, tracker in TRACKERS.items()}
    return {"none": {}, **found}


def tracker_named(target: Any) -> Tracker:
    """Return the tracker of a logger's `_target_`; the base `Tracker` if the class is unknown."""
    return next((each for each in TRACKERS.values() if each.is_named(target)), Tracker())


def tracker_of(logger: "Logger") -> Tracker:
    """Return the tracker of a logger by its class or the nearest base class; else a `Tracker`."""
    by_class = {tracker.logger_class(): tracker for tracker in TRACKERS.values()}
    return next((by_class[each] for each in type(logger).__mro__ if each in by_class), Tracker())


@dataclass
class Tracking:
    """The trackers of one run."""

    loggers: "dict[str, Logger]"  # by their names in the settings
    folder: Path  # of the run
    started: "list[Logger]" = field(default_factory=list)
    begun: "list[Logger]" = field(default_factory=list)  # started without an error
    about: About | None = None  # set when the trackers are started

    def start(
        self,
        settings: dict[str, Any],
        provenance: Mapping[str, Any] | None = None,
        source: str = "",
    ) -> None:
        """Open every tracker and log a description of the run; see `About`.

        Raises:
            InputError: A tracker cannot start, for example because W&B refuses the login.
        """
        self.begin(About(settings, self.folder, provenance or {}, source))

    def begin(self, about: About) -> None:
        """Open every tracker for the run that `about` describes; raises as `start` does."""
        self.about = about
        for name, logger in self.loggers.items():
            self.started.append(logger)
            try:
                tracker_of(logger).begin(logger, about)
                self.begun.append(logger)
            except Exception as error:  # trackers have no common base of their errors
                advice = tracker_of(logger).advice(name)
                told = " ".join(str(error).split()) or type(error).__name__
                raise InputError(f"logger.{name}: cannot start: {told}; or {advice}") from error

    def track(
        self,
        folder: Path,
        gallery: "Sequence[GalleryItem]" = (),
        tested: bool = True,
        details: "Details | None" = None,
    ) -> None:
        """Log the results of the finished run in `folder`.

        Args:
            folder: Folder of the run, with metrics.json, scores.csv, figures, perhaps an artifact.
            gallery: Images with their maps, for the trackers that show tables of them.
            tested: Whether Lightning has tested the run with these trackers and has logged the
                metrics already; otherwise they are logged here.
            details: Results that the folder does not hold; None for a run that was taken over.
        """
        if not self.started:
            return
        from patchcore.report.run import read_results
        from patchcore.tracking.tables import NO_DETAILS

        assert self.about is not None
        run = read_results(folder)
        run.gallery = list(gallery)
        record, costs = run.record(), _costs(folder)
        for logger in self.started:
            tracker = tracker_of(logger)
            if not tested:
                numbers = flatten({k: v for k, v in record.items() if k not in ("undefined",)})
                tracker.log_numbers(logger, {k: v for k, v in numbers.items() if _is_logged(v)})
            tracker.log_curve(logger, record.get("ratio_curve") or [])
            tracker.log_results(logger, run)
            tracker.log_costs(logger, costs)
            tracker.log_tables(logger, run, details or NO_DETAILS)
            tracker.log_files(logger, folder, self.about)
            logger.save()

    def close(self, error: BaseException | None = None) -> None:
        """Close every tracker; after an error, mark the run as failed and log the reason."""
        status, reason = ended(error)
        for logger in self.started:
            try:
                if status != FINISHED and logger in self.begun:
                    tracker_of(logger).log_end(logger, status, reason)
                finish(logger, status == FINISHED)
            except Exception as trouble:
                if error is None:
                    raise
                # the error that ended the run matters more
                warnings.warn(f"a tracker could not be closed: {trouble}", stacklevel=2)


@contextmanager
def tracking(chosen: Mapping[str, Any], folder: Path, make: Make) -> Iterator[Tracking]:
    """Yield trackers for a run; close them in the end, as failed if an exception ends the run.

    Args:
        chosen: {name: settings of a Lightning logger}.
        folder: Folder of the run.
        make: Function that makes a logger from its key and settings.

    Raises:
        InputError: A tracker cannot be made from its settings.
    """
    with ExitStack() as stack:
        stack.enter_context(environment(folder))
        loggers = {name: build_logger(name, own, make) for name, own in chosen.items()}
        found = Tracking(loggers, folder)
        try:
            yield found
        except BaseException as error:
            found.close(error)
            if found.started:  # `track_failure` has nothing to add
                error.tracked = True  # type: ignore[attr-defined]
            raise
        found.close()


def track_failure(
    chosen: Mapping[str, Any],
    settings: dict[str, Any],
    origin: Mapping[str, Any],
    folder: Path,
    error: BaseException,
    make: Make,
) -> None:
    """Record a failed run in the trackers that keep failed runs, unless it did so itself.

    So the trackers show every point of a multirun, even one whose settings were refused.

    Args:
        chosen: {name: settings of a Lightning logger}.
        settings: Settings of the run, as far as they are known.
        origin: How the run was started: `choices` and `overrides`.
        folder: Folder of the run.
        error: Error that ended the run.
        make: Function that makes a logger from its key and settings.
    """
    kept = {k: own for k, own in chosen.items() if tracker_named(own.get("_target_")).beside}
    if getattr(error, "tracked", False) or not kept:
        return
    with environment(folder):
        found = Tracking(
            {name: build_logger(name, own, make) for name, own in kept.items()}, folder
        )
        found.start(settings, origin)
        found.close(error)


def track_multirun(folder: Path, make: Make) -> None:
    """Add one summary run for the multirun in `folder` to the trackers of its points.

    Nothing happens if no point has finished, or if no tracker of the points keeps summary runs.
    """
    from patchcore.tracking.multirun import described, overview, summary_loggers

    try:
        view = overview(folder)
    except InputError:  # no point has the metric
        return
    kept = {k: own for k, own in view.logger.items() if tracker_named(own.get("_target_")).beside}
    if not kept:
        return
    with environment(folder):
        chosen = summary_loggers(view, kept)
        loggers = {name: build_logger(name, own, make) for name, own in chosen.items()}
        found = Tracking(loggers, folder)
        try:
            found.begin(described(view))
            for logger in found.started:
                tracker_of(logger).log_overview(logger, view.numbers, view.tables, view.page)
        except BaseException as error:
            found.close(error)
            raise
        found.close()


def moved_loggers(loggers: Mapping[str, Any], folder: Path, new: Path) -> dict[str, Any]:
    """Return settings of loggers with paths in `folder` changed to `new`.

    Loggers that write into the run's folder directly (`Tracker.beside`) keep their paths.

    Raises:
        InputError: A logger in `folder` has a name that leads out of it.
    """
    _check_inside(loggers, folder)
    return {
        name: own if tracker_named(own.get("_target_")).beside else _moved(own, folder, new)
        for name, own in loggers.items()
    }


def _check_inside(loggers: Mapping[str, Any], folder: Path) -> None:
    for name, own in loggers.items():
        if tracker_named(own.get("_target_")).beside:
            continue
        if not Path(str(own.get("save_dir", ""))).is_relative_to(folder):
            continue
        for key in _BELOW:
            path = Path(str(own.get(key, "")))
            if path.is_absolute() or ".." in path.parts:
                raise InputError(
                    f"logger.{name}.{key}: {path} leads out of the run's folder: give a name "
                    "without .. and without / in front"
                )


def _moved(value: Any, folder: Path, new: Path) -> Any:
    """Settings with paths in `folder` changed to `new`."""
    match value:
        case dict():
            return {key: _moved(each, folder, new) for key, each in value.items()}
        case list():
            return [_moved(each, folder, new) for each in value]
        case str() if value == str(folder) or value.startswith(f"{folder}{os.sep}"):
            return f"{new}{value[len(str(folder)) :]}"
    return value


def build_logger(name: str, settings: Any, make: Make) -> "Logger":
    """Return the logger that the settings describe.

    Raises:
        InputError: The settings describe something else, or the logger cannot be made from them.
    """
    from pytorch_lightning.loggers import Logger

    more = {}
    if isinstance(settings, Mapping):
        more = tracker_named(settings.get("_target_")).more_settings(settings)
    logger = make(f"logger.{name}", settings, **more)
    if not isinstance(logger, Logger):
        raise InputError(f"logger.{name} is not a Lightning logger: give it the _target_ of one")
    return logger


@contextmanager
def environment(folder: Path) -> Iterator[None]:
    """Let W&B write inside the run's folder; restore the variables of loggers in the end."""
    before = {key: value for key, value in os.environ.items() if key.startswith(_VARIABLES)}
    for key, name in (("WANDB_DATA_DIR", "data"), ("WANDB_CACHE_DIR", "cache")):
        os.environ.setdefault(key, str(folder / "wandb" / name))
    try:
        yield
    finally:
        for key in [key for key in os.environ if key.startswith(_VARIABLES) and key not in before]:
            if key != "WANDB_SILENT":
                del os.environ[key]
        os.environ.update(before)


def finish(logger: "Logger", success: bool) -> None:
    """Close the logger, so that the next job of a multirun gets a run of its own."""
    tracker_of(logger).close(logger, success)


def _costs(folder: Path) -> dict[str, float]:
    """Costs of a finished run as in reports; without times that a cache made meaningless."""
    from patchcore.report.reading import read_run

    found = read_run(folder).metrics
    return {key: found[key] for key, told in METRICS.items() if told.cost and key in found}


def _is_logged(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
