"""`patchcore train`: fit a model on a category, test it, and leave a run folder."""

import gc
import json
import logging
import math
import os
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger

from patchcore.baselines import build_detector
from patchcore.cache import MapCache
from patchcore.commands import plain_errors
from patchcore.commands.progress import ProgressBar
from patchcore.commands.sweep import ERROR_FILE, conclude, record_failure
from patchcore.commands.tracking import finish, start, track
from patchcore.config import Config, Objective, register, to_config
from patchcore.data.datamodule import AnomalyDataModule
from patchcore.data.sample import Split
from patchcore.ensemble import ScaleConfig
from patchcore.errors import InputError
from patchcore.identity import identify
from patchcore.model import Detector, PatchCore
from patchcore.module import (
    DetectorModule,
    EnsembleModule,
    Member,
    PatchCoreModule,
    network_digest,
)
from patchcore.report.run import Run, pick_gallery, pick_misclassified, write_run
from patchcore.resume import Finished, copy_run, read_provenance, write_provenance

register()


def main() -> None:
    """Entry point: one run, or with --multirun one for every point of a sweep."""
    hydra.main(version_base="1.3", config_path="pkg://patchcore.conf", config_name="config")(task)()
    conclude()


def task(cfg: DictConfig) -> float | tuple[float, ...] | None:
    """Hydra's task function: what a sweeper looks for, or None for a point that failed.

    A module's function, so that launchers can name it to other processes.
    """
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    (folder / ERROR_FILE).unlink(missing_ok=True)
    try:
        return run_point(cfg, folder)
    except Exception as error:
        (folder / "metrics.json").unlink(missing_ok=True)  # of an earlier run in this folder
        if job.mode is RunMode.MULTIRUN:  # the other points go on; `conclude` tells in the end
            record_failure(folder, error)
            return None
        with plain_errors():
            raise


def run_point(cfg: DictConfig, folder: Path) -> float | tuple[float, ...]:
    """Take over the point from the folder where it has finished, or compute it."""
    config, settings = to_config(cfg), resolved(cfg)
    split = config.data.read().recorded()
    identity = identify(config, split)
    hydra_config = HydraConfig.get()
    provenance = {
        **identity.provenance,
        "choices": dict(hydra_config.runtime.choices),
        "overrides": list(hydra_config.overrides.task),
    }
    finished = Finished(config.cache.folder() / "runs")
    source = finished.find(identity.fingerprint, config.figures) if config.resume else None
    if source is None:
        for file in ("metrics.json", "resumed_from.txt"):
            (folder / file).unlink(missing_ok=True)
        finished.started(identity.fingerprint, folder)
        train(config, folder, settings, split, provenance)
    else:
        if source != folder.resolve():
            OmegaConf.save(OmegaConf.create(settings), folder / "config.yaml")
            warm = read_provenance(source)["warm"]
            write_provenance(folder, {**provenance, "warm": warm})
            copy_run(source, folder, split.test)
        print(f"finished before, in {source}")
    return objectives(folder, config.objectives)


def objectives(folder: Path, wanted: list[Objective]) -> float | tuple[float, ...]:
    """What a sweeper looks for, of the finished run in `folder`; NaN where it is undefined.

    Seconds spent reading the cache are undefined too: they are not what computing costs.
    """
    record = json.loads((folder / "metrics.json").read_text())
    warm = read_provenance(folder).get("warm", [])
    record["score_seconds"] = None if "score" in warm else record["seconds"]["score"]
    record["seconds"] = None if warm else sum(record["seconds"].values())
    values = [record[objective.value] for objective in wanted]
    values = [math.nan if value is None else float(value) for value in values]
    return values[0] if len(values) == 1 else tuple(values)


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain values, with nothing left to interpolate."""
    values = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def train(
    config: Config,
    folder: Path,
    settings: dict[str, Any],
    split: Split,
    provenance: dict[str, Any],
) -> Run:
    """Fit and test one model or ensemble; `folder` then holds the run, `metrics.json` last.

    `split` and `provenance` are what `config.data` has given and what results follow from.
    """
    _quiet()
    OmegaConf.save(OmegaConf.create(settings), folder / "config.yaml")
    pl.seed_everything(config.seed, workers=True, verbose=False)
    samples = split.test
    models = [
        build_detector(
            own.model, own.backbone, own.layers, own.patch, own.coreset, own.index, own.scoring
        )
        for own in config.members()
    ]
    loggers = [build(f"logger.{name}", logger) for name, logger in config.logger.items()]
    success = False
    try:
        trainer = build_trainer(config, folder, loggers)
        for logger in loggers:
            start(logger, settings)
        module: DetectorModule | EnsembleModule
        members: list[Member] = []
        if config.ensemble.members:
            members = fit_members(config, models, folder, split)
            module = EnsembleModule(members, config.scoring.sigma)
            image = config.members()[0].image
            data = AnomalyDataModule(config.data, image, config.augment, split=split)
        else:
            module, data = prepare(config, models.pop(), trainer, split)
            trainer.fit(module, data)
        trainer.test(module, data, verbose=False)
        run = Run(
            settings=settings,
            metrics=module.metrics(),
            undefined=module.undefined(),
            seconds=module.seconds,
            samples=samples,
            scores=[module.scores[i] for i in range(len(samples))],
            curves=module.image_metrics.curves(),
            ratio_curve=module.ratio_curve(),
            members=[described(member) for member in members],
        )
        if config.figures:
            dataset = data.test_dataset()
            run.gallery = pick_gallery(run, dataset, module.anomaly_map)
            run.misclassified = pick_misclassified(run, dataset, module.anomaly_map)
        split.check()
        write_provenance(folder, {**provenance, "warm": sorted(module.warm)})
        write_run(run, folder, config.figures)
        for logger in loggers:
            track(logger, run, folder)
        success = True
    finally:
        for logger in loggers:
            finish(logger, success)
    print(run.summary(), f"\n\nfigures and tables: {folder}", sep="")
    return run


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
    if isinstance(model, PatchCore):
        return PatchCoreModule(model, cache, config.curve, scale), data
    return DetectorModule(model, cache), data


def fit_members(config: Config, models: list[Detector], folder: Path, split: Split) -> list[Member]:
    """Fit and test the members of an ensemble one by one; `models` is used up."""
    members = []
    for number, own in enumerate(config.members(), 1):
        whose = f" (member {number} of {len(config.ensemble.members)})"
        trainer = build_trainer(own, folder, [], whose)
        module, data = prepare(own, models.pop(0), trainer, split, config.ensemble.scale)
        trainer.fit(module, data)
        trainer.test(module, data, verbose=False)
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
                module.warm,
            )
        )
        del trainer, module, data
        gc.collect()  # they refer to each other; one memory at a time
    return members


def described(member: Member) -> dict[str, Any]:
    """What a run's folder tells of a member, beside the ensemble's own numbers."""
    kept = ("backbone", "metrics", "undefined", "seconds")
    return {**{key: getattr(member, key) for key in kept}, "scale": asdict(member.scale)}


def build_trainer(
    config: Config, folder: Path, loggers: list[Logger], whose: str = ""
) -> pl.Trainer:
    """The Trainer that the settings ask for; its bars end with `whose`."""
    bar = config.trainer.get("enable_progress_bar", True)
    trainer: pl.Trainer = build(
        "trainer",
        config.trainer,
        logger=loggers or False,
        default_root_dir=str(folder),
        callbacks=[ProgressBar(whose)] if bar else [],
    )
    return trainer


def build(key: str, settings: dict[str, Any], **more: Any) -> Any:
    """An object of Lightning's from its `_target_` and arguments.

    Raises:
        InputError: It does not take them, or what it needs is not there.
    """
    try:
        return instantiate(settings, **more)
    except InstantiationException as error:
        raise InputError(f"{key}: {' '.join(str(error.__cause__ or error).split())}") from error


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
