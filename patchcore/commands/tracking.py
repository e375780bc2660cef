"""What a run leaves in the trackers: settings, metrics, pictures, the worst errors.

Everything but the gallery's single pictures is read from the run's folder, so that a run that was
finished before is tracked like any other.
"""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from patchcore.commands.targets import build
from patchcore.errors import InputError
from patchcore.metrics import ImageMetrics
from patchcore.report.folders import own_file
from patchcore.report.reading import read_record, read_scores
from patchcore.report.run import GalleryItem, Run
from patchcore.report.words import flatten


@dataclass
class Tracking:
    """The trackers of one run."""

    loggers: dict[str, Logger]  # by their names in the settings
    started: list[Logger] = field(default_factory=list)

    def start(self, settings: dict[str, Any]) -> None:
        """Open every tracker and give it the settings.

        Raises:
            InputError: One cannot start, such as W&B where it is online and does not let us in.
        """
        for name, logger in self.loggers.items():
            self.started.append(logger)
            try:
                logger.log_hyperparams(settings)
            except Exception as error:  # trackers have no common base of their errors
                advice = "leave it out of logger=[…]"
                if isinstance(logger, WandbLogger):
                    advice = f"set logger.{name}.offline=true and send the run later"
                told = " ".join(str(error).split()) or type(error).__name__
                raise InputError(f"logger.{name}: cannot start: {told}; or {advice}") from error

    def track(self, folder: Path, gallery: Sequence[GalleryItem] = (), tested: bool = True) -> None:
        """Log what the finished run in `folder` holds.

        Args:
            folder: Of the run, with metrics.json, scores.csv and figures.
            gallery: Images with their maps, for the trackers that show tables of them.
            tested: Whether Lightning has tested the run with these trackers, and so logged the
                metrics; they are logged here otherwise.
        """
        record = read_record(folder)
        for logger in self.started:
            if not tested:
                numbers = flatten({k: v for k, v in record.items() if k not in ("undefined",)})
                logger.log_metrics({k: v for k, v in numbers.items() if _is_logged(v)})
            _track_ratio_curve(logger, record.get("ratio_curve") or [])
            if isinstance(logger, WandbLogger):
                _track_wandb(logger, record, folder, gallery)
            elif isinstance(logger, TensorBoardLogger):
                _track_tensorboard(logger, folder)
            logger.save()


@contextmanager
def tracking(chosen: Mapping[str, Any], folder: Path) -> Iterator[Tracking]:
    """Trackers for a run in `folder`; closed in the end, as failed if an exception ends the run.

    Args:
        chosen: {name: settings of a Lightning logger}.

    Raises:
        InputError: A tracker cannot be made from its settings.
    """
    with ExitStack() as stack:
        stack.enter_context(environment(folder))
        found = Tracking({name: build_logger(name, own) for name, own in chosen.items()})
        try:
            yield found
        except BaseException:
            for logger in found.started:
                try:
                    finish(logger, False)
                except Exception as error:  # what ended the run matters more
                    warnings.warn(f"a tracker could not be closed: {error}", stacklevel=2)
            raise
        for logger in found.started:
            finish(logger, True)


def build_logger(name: str, settings: Any) -> Logger:
    """A logger; W&B in the mode that the settings record, whatever the environment says."""
    more = {}
    target = settings.get("_target_") if isinstance(settings, Mapping) else None
    if str(target).endswith(".WandbLogger") and "mode" not in settings:
        asked = os.environ.get("WANDB_MODE", "")
        online = "offline" if settings.get("offline") else "online"
        more["mode"] = asked if asked in ("disabled", "shared") else online
    logger = build(f"logger.{name}", settings, **more)
    if not isinstance(logger, Logger):
        raise InputError(f"logger.{name} is no logger of Lightning: give it a _target_ that is one")
    return logger


@contextmanager
def environment(folder: Path) -> Iterator[None]:
    """Keep what W&B writes inside the run's folder, and what loggers change of W&B's variables."""
    before = {key: value for key, value in os.environ.items() if key.startswith("WANDB_")}
    for key, name in (("WANDB_DATA_DIR", "data"), ("WANDB_CACHE_DIR", "cache")):
        os.environ.setdefault(key, str(folder / "wandb" / name))
    try:
        yield
    finally:
        for key in [key for key in os.environ if key.startswith("WANDB_") and key not in before]:
            if key != "WANDB_SILENT":
                del os.environ[key]
        os.environ.update(before)


def finish(logger: Logger, success: bool) -> None:
    """Close the logger, so that the next job of a multirun gets a run of its own."""
    logger.finalize("success" if success else "failed")
    if isinstance(logger, WandbLogger):
        import wandb

        if wandb.run is not None:  # else it never started
            wandb.finish(exit_code=0 if success else 1)


def _is_logged(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _track_ratio_curve(logger: Logger, rows: Sequence[Mapping[str, Any]]) -> None:
    """Metrics against the memory's share; the step is its number of patches."""
    if isinstance(logger, WandbLogger) and rows:
        logger.experiment.define_metric("ratio_curve/*", step_metric="ratio_curve/ratio")
    for row in rows:
        values = {f"ratio_curve/{key}": value for key, value in row.items() if value is not None}
        if isinstance(logger, WandbLogger):
            logger.experiment.log(values)  # its own steps may not go back
        else:
            logger.log_metrics(values, step=int(row["memory_patches"]))


def _track_wandb(
    logger: WandbLogger, record: dict[str, Any], folder: Path, gallery: Sequence[GalleryItem]
) -> None:
    import wandb

    experiment = logger.experiment
    # Seconds and the curve are in the history, from which W&B takes its summary too.
    once = {k: v for k, v in record.items() if k not in ("seconds", "ratio_curve")}
    experiment.summary.update(once)
    scores = read_scores(folder)
    metrics = ImageMetrics()
    labels = torch.tensor([row.label for row in scores])
    metrics.update(torch.tensor([row.score for row in scores]), labels)
    curves = metrics.curves()
    for name, x, y in (("roc", "fpr", "tpr"), ("precision_recall", "recall", "precision")):
        if points := Run.thinned(curves[x], curves[y]):
            table = wandb.Table(columns=[x, y], data=points)
            experiment.log({name: wandb.plot.line(table, x, y, title=name.replace("_", " "))})
    if gallery:
        columns = ["group", "path", "defect type", "score", "verdict", "image and map"]
        rows = [
            [
                i.group,
                i.sample.name,
                i.sample.defect_type,
                i.score,
                i.verdict,
                wandb.Image(i.overlay()),
            ]
            for i in gallery
        ]
        experiment.log({"gallery": wandb.Table(columns=columns, data=rows)})
    figures = {path.stem: wandb.Image(str(path)) for path in _figures(folder)}
    experiment.log({f"figures/{name}": image for name, image in figures.items()})


def _track_tensorboard(logger: TensorBoardLogger, folder: Path) -> None:
    import numpy as np
    from PIL import Image

    for path in _figures(folder):
        pixels = np.asarray(Image.open(path, formats=["PNG"]).convert("RGB"))
        logger.experiment.add_image(path.stem, pixels, dataformats="HWC")


def _figures(folder: Path) -> list[Path]:
    """The run's own pictures, and none that a link brings in."""
    names = sorted(path.name for path in folder.glob("figures/*.png"))
    return [path for name in names if (path := own_file(folder, f"figures/{name}"))]
