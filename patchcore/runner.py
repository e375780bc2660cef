"""One point from its settings to its folder: take over what has finished, or fit, test and write.

Lightning's objects are made by a function that the caller gives, so that this file needs no Hydra.
"""

import csv
import gc
import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from yaml import YAMLError  # type: ignore[import-untyped]

from patchcore.baselines import build_detector
from patchcore.cache import MapCache
from patchcore.commands.progress import ProgressBar
from patchcore.commands.tracking import finish, start, track, track_again
from patchcore.config import Config
from patchcore.data.datamodule import AnomalyDataModule
from patchcore.data.dataset import ImageDataset
from patchcore.data.sample import Sample, Split
from patchcore.ensemble import ScaleConfig
from patchcore.errors import InputError
from patchcore.model import Detector, PatchCore
from patchcore.module import (
    DetectorModule,
    EnsembleModule,
    Member,
    PatchCoreModule,
    network_digest,
)
from patchcore.report.run import Run, pick_gallery, pick_misclassified, picture_names, write_run
from patchcore.resume import FINGERPRINT_FILE, Finished, fingerprint
from patchcore.runfolder import METRICS, RunFolder
from patchcore.switches import asked_precision

SOURCE_FILE = "resumed_from.txt"
"""In the folder of a point that was taken over: the folder where it was computed."""

Make = Callable[..., Any]
"""Makes an object of Lightning's from its key, its settings and more keyword arguments."""


@dataclass
class Point:
    """A point that has finished."""

    record: dict[str, Any]  # what its metrics.json holds
    text: str  # for the screen


def run_point(config: Config, settings: dict[str, Any], folder: Path, make: Make) -> Point:
    """Take over the point from a folder where it has finished, or compute it, into `folder`.

    Results that are there already are replaced when the new ones are complete, and kept if
    anything fails.

    Args:
        config: The checked settings.
        settings: The same as plain values, for config.yaml.
        folder: Of the run; made if it is not there.
        make: Makes Lightning's objects.

    Raises:
        InputError: Bad settings or data, or another process runs in `folder`.
    """
    with RunFolder(folder) as place:
        split = config.data.read()
        name = fingerprint(settings, split)
        finished = Finished(config.cache.folder() / "runs")
        wanted = [f"figures/{picture}" for picture in _pictures(config)]
        source = finished.find(name, [*wanted, "scores.csv"]) if config.resume else None
        if source == folder.resolve() and _settings_in(folder) == settings:
            return Point(_record(folder), f"finished before, in {source}")
        OmegaConf.save(OmegaConf.create(settings), place.new / "config.yaml")
        (place.new / FINGERPRINT_FILE).write_text(f"{name}\n")
        if source is None:
            if not (folder / METRICS).exists():  # else it names what lies there
                (folder / FINGERPRINT_FILE).write_text(f"{name}\n")
            finished.started(name, folder)
            run = train(config, split, settings, folder, place.new, make)
            text = f"{run.summary()}\n\nfigures and tables: {folder}"
        else:
            take_over(config, split.test, settings, source, folder, place.new, make)
            finished.started(name, folder)
            text = f"finished before, in {source}"
        place.commit()
    return Point(_record(folder), text)


def train(
    config: Config,
    split: Split,
    settings: dict[str, Any],
    folder: Path,
    new: Path,
    make: Make,
) -> Run:
    """Fit and test one model or ensemble, and write its results to `new`.

    `new` stands for `folder`, where they will be put.
    """
    _quiet()
    pl.seed_everything(config.seed, workers=True, verbose=False)
    loggers = build_loggers(settings["logger"], folder, new, make)
    success = False
    try:
        trainer = build_trainer(config, new, loggers, make)  # first: it may refuse its settings
        models = [
            build_detector(
                own.model, own.backbone, own.layers, own.patch, own.coreset, own.index, own.scoring
            )
            for own in config.members()
        ]
        for logger in loggers:
            start(logger, settings)
        module: DetectorModule | EnsembleModule
        members: list[Member] = []
        if config.ensemble.members:
            members = fit_members(config, models, new, make)
            module = EnsembleModule(members, config.scoring.sigma)
            data = AnomalyDataModule(config.data, config.members()[0].image, config.augment)
        else:
            module, data = prepare(config, models.pop(), trainer)
            fit(trainer, module, data)
        test(trainer, module, data)
        run = Run(
            settings=settings,
            metrics=module.metrics(),
            undefined=module.undefined(),
            seconds=module.seconds,
            samples=split.test,
            scores=[module.scores[i] for i in range(len(split.test))],
            curves=module.image_metrics.curves(),
            ratio_curve=module.ratio_curve(),
            members=[described(member) for member in members],
        )
        if config.figures:
            dataset = ImageDataset(split.test, data.image, cache=data.cache)
            run.gallery = pick_gallery(run, dataset, module.anomaly_map)
            run.misclassified = pick_misclassified(run, dataset, module.anomaly_map)
        write_run(run, new, config.figures)
        for logger in loggers:
            track(logger, run, new)
        success = True
    finally:
        for logger in loggers:
            finish(logger, success)
    return run


def take_over(
    config: Config,
    samples: Sequence[Sample],
    settings: dict[str, Any],
    source: Path,
    folder: Path,
    new: Path,
    make: Make,
) -> None:
    """Bring the results of a finished run from `source` to `new`, which stands for `folder`.

    Numbers are those of the source; paths, pictures and trackers are what these settings ask for.
    """
    _quiet()
    _copy_scores(source, samples, new)
    if wanted := _pictures(config):
        (new / "figures").mkdir()
        for picture in wanted:
            (new / "figures" / picture).write_bytes((source / "figures" / picture).read_bytes())
    origin = source
    if source == folder.resolve():  # only trackers or other settings without effect are new
        origin = Path(text) if (text := _origin(source)) else source
    if origin != folder.resolve():
        (new / SOURCE_FILE).write_text(f"{origin}\n")
    (new / METRICS).write_bytes((source / METRICS).read_bytes())
    record = _record(new)
    loggers = build_loggers(settings["logger"], folder, new, make)
    success = False
    try:
        for logger in loggers:
            start(logger, settings)
            track_again(logger, record, new)
        success = True
    finally:
        for logger in loggers:
            finish(logger, success)


def prepare(
    config: Config, model: Detector, trainer: pl.Trainer, scale: ScaleConfig | None = None
) -> tuple[DetectorModule, AnomalyDataModule]:
    """One model and its data, ready for the trainer; with a cache if that is enabled."""
    cache = None
    if (store := config.cache.open()) is not None:
        network = network_digest(model, trainer.precision, trainer.strategy.root_device)
        cache = MapCache(store, network, config.cache.precision)
    data = AnomalyDataModule(config.data, config.image, config.augment, cache)
    if isinstance(model, PatchCore):
        return PatchCoreModule(model, cache, config.curve, scale), data
    return DetectorModule(model, cache), data


def fit_members(config: Config, models: list[Detector], new: Path, make: Make) -> list[Member]:
    """Fit and test the members of an ensemble one by one; `models` is used up."""
    members = []
    for number, own in enumerate(config.members(), 1):
        whose = f" (member {number} of {len(config.ensemble.members)})"
        trainer = build_trainer(own, new, [], make, whose)
        module, data = prepare(own, models.pop(0), trainer, config.ensemble.scale)
        fit(trainer, module, data)
        test(trainer, module, data)
        assert isinstance(module, PatchCoreModule) and module.scale is not None
        members.append(
            Member(
                own.backbone.name,
                module.scale,
                module.scores,
                module.grids,
                module.metrics(),
                module.undefined(),
                module.seconds,
            )
        )
        del trainer, module, data
        gc.collect()  # they refer to each other; one memory at a time
    return members


def fit(trainer: pl.Trainer, module: DetectorModule, data: AnomalyDataModule) -> None:
    """Collect from every training image, in every epoch, and build the memory.

    Raises:
        InputError: Lightning refuses its settings, or a callback ended it early.
    """
    try:
        trainer.fit(module, data)
    except MisconfigurationException as error:
        raise InputError(f"trainer: {' '.join(str(error).split())}") from error
    asked = len(data.split.train) * (trainer.max_epochs or 1)
    _check_count("training", module.train_images, asked)


def test(
    trainer: pl.Trainer, module: DetectorModule | EnsembleModule, data: AnomalyDataModule
) -> None:
    """Score every test image. Raises InputError as `fit` does."""
    try:
        trainer.test(module, data, verbose=False)
    except MisconfigurationException as error:
        raise InputError(f"trainer: {' '.join(str(error).split())}") from error
    _check_count("test", len(module.scores), len(data.split.test))


def described(member: Member) -> dict[str, Any]:
    """What a run's folder tells of a member, beside the ensemble's own numbers."""
    kept = ("backbone", "metrics", "undefined", "seconds")
    return {**{key: getattr(member, key) for key in kept}, "scale": asdict(member.scale)}


def build_trainer(
    config: Config, new: Path, loggers: list[Logger], make: Make, whose: str = ""
) -> pl.Trainer:
    """The Trainer that the settings ask for, callbacks included; its bars end with `whose`.

    Raises:
        InputError: It does not take them, or would use another device or precision.
    """
    settings = {"max_epochs": 1, **config.trainer}
    callbacks = [
        make(f"trainer.callbacks[{i}]", each) if isinstance(each, Mapping) else each
        for i, each in enumerate(_list(settings.pop("callbacks", None)))
    ]
    if settings.get("enable_progress_bar", True):
        callbacks.append(ProgressBar(whose))
    trainer: pl.Trainer = make(
        "trainer",
        settings,
        logger=loggers or False,
        default_root_dir=str(new),
        callbacks=callbacks,
    )
    if trainer.world_size > 1:
        raise InputError(
            f"trainer.devices={settings.get('devices')} means {trainer.world_size} devices here: "
            "set it to 1, for a run is on one device"
        )
    if trainer.precision != asked_precision(settings):
        device = trainer.strategy.root_device.type
        raise InputError(
            f"trainer.precision={settings.get('precision')} is not to be had on this device "
            f"({device}): set {trainer.precision} or 32-true"
        )
    return trainer


def build_loggers(settings: Mapping[str, Any], folder: Path, new: Path, make: Make) -> list[Logger]:
    """Loggers by name; what they would keep in `folder` they keep in `new`."""
    return [make(f"logger.{name}", _moved(each, folder, new)) for name, each in settings.items()]


def _moved(value: Any, folder: Path, new: Path) -> Any:
    """Settings with paths in `folder` led to `new`."""
    match value:
        case dict():
            return {key: _moved(each, folder, new) for key, each in value.items()}
        case list():
            return [_moved(each, folder, new) for each in value]
        case str() if value == str(folder) or value.startswith(f"{folder}{os.sep}"):
            return f"{new}{value[len(str(folder)) :]}"
    return value


def _check_count(kind: str, used: int, asked: int) -> None:
    if used != asked:
        raise InputError(
            f"trainer: {used} {kind} images were used, not {asked}: leave out what ends it early, "
            "such as callbacks"
        )


def _pictures(config: Config) -> list[str]:
    return picture_names(bool(config.curve)) if config.figures else []


def _copy_scores(source: Path, samples: Sequence[Sample], new: Path) -> None:
    """The scores of a finished run beside the paths of these samples, which are in its order."""
    with (source / "scores.csv").open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    if len(rows) != len(samples):
        raise InputError(
            f"{source / 'scores.csv'}: {len(rows)} rows for {len(samples)} test images: remove "
            f"{source}, or set resume=false"
        )
    with (new / "scores.csv").open(
        "w", newline="", encoding="utf-8", errors="backslashreplace"
    ) as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for row, sample in zip(rows, samples, strict=True):
            writer.writerow([str(sample.path), *row[1:]])


def _settings_in(folder: Path) -> Any:
    """The settings of the run in `folder`, or None if they cannot be read."""
    try:
        return OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    except (OSError, UnicodeError, YAMLError, OmegaConfBaseException):
        return None


def _origin(folder: Path) -> str:
    try:
        return (folder / SOURCE_FILE).read_text().strip()
    except OSError:
        return ""


def _record(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / METRICS).read_text()))


def _list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _quiet() -> None:
    """Keep to our own words: no banners about devices, loaders or tips; warnings in one line."""
    os.environ.setdefault("WANDB_SILENT", "true")
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    for message in (
        ".*will run with no optimizer.*",  # the backbone is frozen,
        ".*in eval mode at the start of training.*",  # and stays in evaluation mode
        ".*does not have many workers.*",
        r".*isinstance\(treespec, LeafSpec\).*",  # Lightning 2.6 on torch 2.15
    ):
        warnings.filterwarnings("ignore", message)
