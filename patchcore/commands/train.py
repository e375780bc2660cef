"""`patchcore train`: fit PatchCore on a category, test it, and leave a run folder."""

import logging
import os
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from patchcore.commands import plain_errors
from patchcore.commands.progress import ProgressBar
from patchcore.commands.tracking import finish, start, track
from patchcore.config import Config, register, to_config
from patchcore.data.datamodule import AnomalyDataModule
from patchcore.data.dataset import ImageDataset
from patchcore.errors import InputError
from patchcore.model import PatchCore
from patchcore.module import PatchCoreModule
from patchcore.report.run import Run, pick_gallery, write_run

register()


@hydra.main(version_base="1.3", config_path="pkg://patchcore.conf", config_name="config")
def main(cfg: DictConfig) -> float:
    """Hydra's task function: the image AUROC, for a sweeper to maximise."""
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    # In a multirun Hydra itself names the job that failed, after the others have ended.
    with nullcontext() if job.mode is RunMode.MULTIRUN else plain_errors():
        (folder / "metrics.json").unlink(missing_ok=True)  # of an earlier run in this folder
        run = train(to_config(cfg), folder, resolved(cfg))
    return run.metrics["image_auroc"]


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain values, with nothing left to interpolate."""
    values = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def train(config: Config, folder: Path, settings: dict[str, Any]) -> Run:
    """Fit and test one model; `folder` then holds the run, `metrics.json` written last."""
    _quiet()
    OmegaConf.save(OmegaConf.create(settings), folder / "config.yaml")
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data = AnomalyDataModule(config.data, config.image, config.augment)
    samples = data.split.test  # read first: what is missing shows before anything is computed
    model = PatchCore(
        config.backbone, config.layers, config.patch, config.coreset, config.index, config.scoring
    )
    module = PatchCoreModule(model)
    loggers = [build(f"logger.{name}", logger) for name, logger in config.logger.items()]
    success = False
    try:
        trainer = build(
            "trainer",
            config.trainer,
            logger=loggers or False,
            default_root_dir=str(folder),
            callbacks=[ProgressBar()] if config.trainer.get("enable_progress_bar", True) else [],
        )
        for logger in loggers:
            start(logger, settings)
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
        )
        run.gallery = pick_gallery(run, ImageDataset(samples, config.image), model)
        write_run(run, folder)
        for logger in loggers:
            track(logger, run, folder)
        success = True
    finally:
        for logger in loggers:
            finish(logger, success)
    print(run.summary(), f"\n\nfigures and tables: {folder}", sep="")
    return run


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
