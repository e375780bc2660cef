"""One run from its settings to its folder: take over what has finished, or fit, test and write.

`run` is for Python users too; the command gives it a function that makes Lightning's objects under
Hydra's rules, so that this file needs no Hydra.
"""

import gc
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from yaml import YAMLError  # type: ignore[import-untyped]

from patchcore.cache import MapCache, network_digest
from patchcore.config import Config
from patchcore.data.datamodule import AnomalyDataModule
from patchcore.data.sample import Sample, Split
from patchcore.digests import ChangedError
from patchcore.errors import InputError
from patchcore.identity import identify, weights_files
from patchcore.keeping import Keep, Keeper
from patchcore.methods import Detector, Parts, build_detector
from patchcore.methods.scale import ScaleConfig
from patchcore.module import (
    DetectorModule,
    EnsembleModule,
    Member,
    Record,
    ScoringModule,
)
from patchcore.progress import ProgressBar
from patchcore.report.folders import PICTURES, Images
from patchcore.report.images import write_images
from patchcore.report.run import (
    SOMETIMES,
    Run,
    pick_gallery,
    pick_misclassified,
    picture_names,
    write_run,
)
from patchcore.resume import (
    FINGERPRINT_FILE,
    SOURCE_FILE,
    Finished,
    copy_scores,
    finished_fingerprint,
    read_provenance,
    read_source,
    write_provenance,
)
from patchcore.run_artifact import copy_artifact, is_whole, write_artifact
from patchcore.runfolder import METRICS, RunFolder
from patchcore.settings import plain
from patchcore.switches import asked_precision
from patchcore.tracking import moved_loggers, tracking

Make = Callable[..., Any]
"""Makes an object of Lightning's from its key, its settings and more keyword arguments."""


@dataclass
class Finish:
    """A run that has finished.

    Attributes:
        folder: Its folder.
        record: Contents of its metrics.json.
        warm: Names of the stages that read the cache, whose seconds are no costs.
        text: Summary for the screen.
    """

    folder: Path
    record: dict[str, Any]
    warm: list[str]
    text: str


def run(
    config: Config,
    folder: str | Path,
    *,
    settings: dict[str, Any] | None = None,
    make: Make | None = None,
    origin: Mapping[str, Any] | None = None,
    multirun: Path | None = None,
) -> Finish:
    """Take over the run from a folder where it has finished, or compute it, into `folder`.

    Results that are there already are replaced when the new ones are complete, and kept if
    anything fails. Where a file of the data changes meanwhile, the run is computed again: once.

    Args:
        config: The checked settings. `config.trainer` are arguments of Lightning's Trainer; a
            callback among them and a logger are mappings, {"_target_": dotted name, argument: …}.
        folder: Folder of the run; made if it is not there.
        settings: The same as plain values, for config.yaml; made from `config` by default.
        make: Makes Lightning's objects; by default any `_target_` is imported and called.
        origin: More to keep in provenance.json, such as the overrides.
        multirun: Folder of the multirun that the run is a point of, for `artifact.keep`=best.

    Raises:
        InputError: Bad settings or data, or another process runs in `folder`.

    >>> config = Config(data=MVTecConfig(root="mvtec", category="screw"), …)
    >>> run(config, "runs/screw").record["image_auroc"]
    """
    _quiet()
    folder, make = Path(folder), make or construct
    settings = plain(config) if settings is None else settings
    keeper = Keeper(config.artifact, config.objectives[0], folder, multirun)
    with RunFolder(folder) as place:
        try:
            text = _run_in(place, config, settings, make, origin or {}, keeper)
        except ChangedError as error:
            told = str(error).partition(",")[0]
            warnings.warn(f"{told}; started again with the files as they are now", stacklevel=2)
            place.clear()
            text = _run_in(place, config, settings, make, origin or {}, keeper)
        keeper.settle()
    return Finish(folder, _record(folder), list(read_provenance(folder).get("warm", [])), text)


def _run_in(
    place: RunFolder,
    config: Config,
    settings: dict[str, Any],
    make: Make,
    origin: Mapping[str, Any],
    keeper: Keeper,
) -> str:
    """`run` in a folder that is locked; returns the summary for the screen."""
    folder = place.path
    split = config.data.read().recorded(weights_files(config))
    identity = identify(config, split)
    name, provenance = identity.fingerprint, {**identity.provenance, **origin}
    finished = Finished(config.cache.folder() / "runs")
    wanted = [f"figures/{picture}" for picture in _pictures(config)]
    source = finished.find(name, wanted, folder) if config.resume else None
    if source is not None and keeper.wants(_record(source), read_provenance(source)["warm"]):
        wanted += config.artifact.files(len(config.members()))
        source = finished.find(name, wanted, folder)
        source = source if source is not None and is_whole(source) else None
    if source == folder.resolve() and _settings_in(folder) == settings:
        return f"finished before, in {source}"
    OmegaConf.save(OmegaConf.create(settings), place.new / "config.yaml")
    (place.new / FINGERPRINT_FILE).write_text(f"{name}\n")
    if source is None:
        if not (folder / METRICS).exists():  # else it names what lies there
            (folder / FINGERPRINT_FILE).write_text(f"{name}\n")
        finished.started(name, folder)
        done = train(config, split, settings, provenance, folder, place.new, make, keeper)
        what = "figures and tables" if config.figures else "tables"
        text = f"{done.summary()}\n\n{what}: {folder}"
    else:
        warm = read_provenance(source)["warm"]
        write_provenance(place.new, {**provenance, "warm": warm})
        take_over(config, split.test, settings, source, folder, place.new, make, keeper)
        finished.started(name, folder)
        text = f"finished before, in {source}"
    if finished_fingerprint(folder) == name:  # the model of this very run is not lost
        copy_artifact(folder, place.new)
    place.commit()
    return text


def train(
    config: Config,
    split: Split,
    settings: dict[str, Any],
    provenance: Mapping[str, Any],
    folder: Path,
    new: Path,
    make: Make,
    keeper: Keeper,
) -> Run:
    """Fit and test one model or ensemble, and write its results to `new`.

    `new` stands for `folder`, where they will be put. `split` is what `config.data` has given, and
    `provenance` what results follow from.

    Raises:
        ChangedError: A file of the data has changed meanwhile.
    """
    pl.seed_everything(config.seed, workers=True, verbose=False)
    with tracking(moved_loggers(settings["logger"], folder, new), folder, make) as trackers:
        loggers = list(trackers.loggers.values())
        trainer = build_trainer(config, new, loggers, make)  # first: it may refuse its settings
        models = [build_detector(parts(own)) for own in config.members()]
        trackers.start(settings)
        module: ScoringModule
        members: list[Member] = []
        if config.ensemble.members:
            members = fit_members(config, models, new, make, split)
            fitted = [member.model for member in members if member.model is not None]
            module = EnsembleModule(members, config.scoring.sigma, config.decision)
            image = config.members()[0].image
            data = AnomalyDataModule(config.data, image, config.augment, split=split)
        else:
            module, data = prepare(config, models.pop(), trainer, split)
            fit(trainer, module, data)
            fitted = [module.model]
        record = test(trainer, module, data)
        done = Run(
            settings=settings,
            metrics=record.metrics,
            undefined=record.undefined,
            seconds=record.seconds,
            samples=split.test,
            scores=[record.scores[i] for i in range(len(split.test))],
            curves=record.curves,
            ratio_curve=record.ratio_curve,
            members=[described(member) for member in members],
        )
        if config.figures:
            dataset = data.test_dataset()
            done.gallery = pick_gallery(done, dataset, module.anomaly_map)
            done.misclassified = pick_misclassified(done, dataset, module.anomaly_map)
        if config.pictures is not Images.none:
            write_images(done, data.test_dataset(), module.anomaly_map, new, config.pictures)
        split.check()
        write_provenance(new, {**provenance, "warm": sorted(record.warm)})
        write_run(done, new, config.figures)
        told = done.record()
        if keeper.wants(told, sorted(record.warm)):
            scales = [member.scale for member in members]
            more = (told, trainer.precision, module.decision)
            write_artifact(new, fitted, scales, config, split, provenance, *more)
        trackers.track(new, done.gallery)
    return done


def take_over(
    config: Config,
    samples: Sequence[Sample],
    settings: dict[str, Any],
    source: Path,
    folder: Path,
    new: Path,
    make: Make,
    keeper: Keeper,
) -> None:
    """Bring the results of a finished run from `source` to `new`, which stands for `folder`.

    Numbers are those of the source; paths, pictures and trackers are what these settings ask for.
    """
    copy_scores(source, samples, new)
    if wanted := _pictures(config):
        (new / "figures").mkdir()
        for picture in [*wanted, SOMETIMES]:
            if (source / "figures" / picture).is_file():
                (new / "figures" / picture).write_bytes((source / "figures" / picture).read_bytes())
        if config.pictures is not Images.none:
            shutil.copytree(source / PICTURES, new / PICTURES)
    if keeper.wants(_record(source), read_provenance(source)["warm"]):
        copy_artifact(source, new)
    origin = source
    if source == folder.resolve():  # only trackers or other settings without effect are new
        origin = Path(text) if (text := read_source(source)) else source
    if origin != folder.resolve():
        (new / SOURCE_FILE).write_text(f"{origin}\n")
    (new / METRICS).write_bytes((source / METRICS).read_bytes())
    with tracking(moved_loggers(settings["logger"], folder, new), folder, make) as trackers:
        trackers.start(settings)
        trackers.track(new, tested=False)


def prepare(
    config: Config,
    model: Detector,
    trainer: pl.Trainer,
    split: Split,
    scale: ScaleConfig | None = None,
) -> tuple[DetectorModule, AnomalyDataModule]:
    """One model and its data, ready for the trainer; with a cache if that is enabled."""
    cache = None
    if (store := config.cache.open()) is not None:
        network = network_digest(model, trainer.precision, trainer.strategy.root_device)
        cache = MapCache(store, network, config.cache.precision, model.backbone.channels)
    data = AnomalyDataModule(config.data, config.image, config.augment, cache, split)
    return DetectorModule(model, cache, config.curve, scale, config.decision), data


def parts(config: Config) -> Parts:
    """Settings of the detector of a run without an ensemble, or of one member's run."""
    return Parts(
        config.method,
        config.backbone,
        config.layers,
        config.patch,
        config.coreset,
        config.index,
        config.scoring,
    )


def fit_members(
    config: Config, models: list[Detector], new: Path, make: Make, split: Split
) -> list[Member]:
    """Fit and test the members of an ensemble one by one; `models` is used up."""
    members = []
    for number, own in enumerate(config.members(), 1):
        whose = f" (member {number} of {len(config.ensemble.members)})"
        trainer = build_trainer(own, new, [], make, whose)
        module, data = prepare(own, models.pop(0), trainer, split, config.ensemble.scale)
        fit(trainer, module, data)
        record = test(trainer, module, data)
        assert module.scale is not None
        kept = None if config.artifact.keep is Keep.none else module.model
        members.append(Member(own.backbone.name, module.scale, record, kept, module.left_out))
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


def test(trainer: pl.Trainer, module: ScoringModule, data: AnomalyDataModule) -> Record:
    """Score every test image. Raises InputError as `fit` does."""
    try:
        trainer.test(module, data, verbose=False)
    except MisconfigurationException as error:
        raise InputError(f"trainer: {' '.join(str(error).split())}") from error
    _check_count("test", len(module.record.scores), len(data.split.test))
    return module.record


def described(member: Member) -> dict[str, Any]:
    """Record of a member in a run's folder, beside the ensemble's own numbers."""
    kept = {key: getattr(member.record, key) for key in ("metrics", "undefined", "seconds")}
    return {"backbone": member.backbone, **kept, "scale": asdict(member.scale)}


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


def construct(key: str, settings: Mapping[str, Any], **more: Any) -> Any:
    """Return the object that `_target_` in the settings names; Lightning's Trainer without one.

    Raises:
        InputError: There is no such class, or it does not take the arguments; begins with the key.
    """
    arguments = {**settings, **more}
    module, _, name = str(arguments.pop("_target_", "pytorch_lightning.Trainer")).rpartition(".")
    try:
        return getattr(import_module(module), name)(**arguments)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{key}: {' '.join(str(error).split())}") from error


def _check_count(kind: str, used: int, asked: int) -> None:
    if used != asked:
        raise InputError(
            f"trainer: {used} {kind} images were used, not {asked}: leave out what ends it early, "
            "such as callbacks"
        )


def _pictures(config: Config) -> list[str]:
    return picture_names(config.figures, bool(config.curve), config.pictures)


def _settings_in(folder: Path) -> Any:
    """The settings of the run in `folder`, or None if they cannot be read."""
    try:
        return OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    except (OSError, UnicodeError, YAMLError, OmegaConfBaseException):
        return None


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
