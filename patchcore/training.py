"""Fitting and testing with Lightning: the Trainer, the data, one model, and ensemble members.

`runner.py` combines these functions into a run. All processes of a run call them in the same way.
"""

import gc
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from traceback import walk_tb
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from patchcore.config import Config
from patchcore.data.datamodule import AnomalyDataModule
from patchcore.data.sample import Split
from patchcore.data.transforms import offset_and_scale
from patchcore.distributed import Process
from patchcore.errors import InputError, counted, warning_line
from patchcore.keeping import Keep
from patchcore.label_free import LabelFree
from patchcore.machine import check_trainer_variables
from patchcore.map_cache import MapCache, network_digest
from patchcore.members import Member
from patchcore.methods import Detector, Parts, build_detector
from patchcore.methods.scale import ScaleConfig
from patchcore.methods.tiled import tile
from patchcore.module import DetectorModule, ScoringModule
from patchcore.progress import ProgressBar
from patchcore.record import Record
from patchcore.settings import shown
from patchcore.strategy import Sharded
from patchcore.switches import asked_precision
from patchcore.tracking.progress import Progress

Make = Callable[..., Any]
"""Function that creates an object for Lightning from a key, its settings and keyword arguments."""
LIGHTNING = "pytorch_lightning.callbacks."
"""Beginning of the modules of Lightning's own callbacks."""


@dataclass
class Task:
    """Work that all processes of a run share: fitting and testing one model.

    Attributes:
        config: Settings of the run.
        split: Training and test images.
        new: Folder for the new results.
        make: Function that creates Lightning's objects.
    """

    config: Config
    split: Split
    new: Path
    make: Make


def take_part(task: Task, process: Process) -> None:
    """Do the share of a process other than the first one, which writes nothing."""
    quiet()
    config = replace(task.config, trainer={**task.config.trainer, "enable_progress_bar": False})
    pl.seed_everything(config.seed, workers=True, verbose=False)
    trainer = build_trainer(config, task.new, [], task.make, process=process)
    module, data = prepare(config, build_detector(parts(config)), trainer, task.split)
    fit(trainer, module, data)
    trainer.test(module, data, verbose=False)


def prepare(
    config: Config,
    model: Detector,
    trainer: pl.Trainer,
    split: Split,
    scale: ScaleConfig | None = None,
) -> tuple[DetectorModule, AnomalyDataModule]:
    """Return the modules of a model and its data for the trainer, with a cache if it is enabled.

    Args:
        config: Settings of the run, or of a member's run.
        model: Detector to fit.
        trainer: Trainer that will fit and test the model.
        split: Training and test images.
        scale: Settings for measuring the scale of a member's scores; None: it is not measured.
    """
    cache = None
    if (store := config.cache.open()) is not None:
        device = trainer.strategy.root_device
        network = network_digest(model, trainer.precision, device)
        fast = device.type == "cuda"  # a GPU computes most maps faster than a disk delivers them
        cache = MapCache(store, network, config.cache.precision, model.backbone.channels, fast)
    data = AnomalyDataModule(config.data, config.image, config.augment, cache, split)
    copies = split.copies()
    judge = LabelFree(config.label_free, len(split.train), copies) if config.judged else None
    image = config.image
    tile(model, image.tiles, image.overlap, offset_and_scale(image))
    own = (config.curve, scale, config.decision, judge, copies)
    return DetectorModule(model, cache, *own), data


def parts(config: Config) -> Parts:
    """Return the settings of the detector of a run without an ensemble, or of a member's run."""
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
    """Fit and test the members of an ensemble one by one; the list `models` is emptied."""
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
        gc.collect()  # of reference cycles, so that only one memory bank exists at a time
    return members


def fit(trainer: pl.Trainer, module: DetectorModule, data: AnomalyDataModule) -> None:
    """Collect features of all training images in all epochs and fixed poses, and build the memory.

    The module stays on the Trainer's device, for the test. If the label-free score is requested,
    images with synthetic defects pass through the network first.

    Raises:
        InputError: Lightning refuses the Trainer's settings, or a callback ended the fit early.
    """
    judge, module.stays = module.label_free, True
    try:
        _fit(trainer, module, data, judge)
    except BaseException:
        module.stays = False
        module.cpu()  # a later run in this process needs the memory
        raise
    asked = len(data.split.train) * (trainer.max_epochs or 1) * len(data.augment.poses())
    _check_count("training", module.train_images, asked)


def _fit(
    trainer: pl.Trainer, module: DetectorModule, data: AnomalyDataModule, judge: LabelFree | None
) -> None:
    """Do the work of `fit`, which says what follows an error."""
    try:
        if judge is not None:
            print(judge.plan(), file=sys.stderr)
            defective = data.defective_dataloader(judge.numbers, *judge.drawing)
            start = time.perf_counter()
            with torch.random.fork_rng([]):  # a loader draws a seed, which must not affect training
                trainer.predict(module, defective, return_predictions=False)
            judge.seconds = time.perf_counter() - start
            _check_count("synthetic", len(judge.sources), len(judge.numbers) * judge.config.defects)
        with _callbacks_named():
            trainer.fit(module, data)
    except MisconfigurationException as error:
        raise InputError(f"trainer: {' '.join(str(error).split())}") from error


@contextmanager
def _callbacks_named() -> Iterator[None]:
    """Name one of Lightning's callbacks that raises an error: it wants more than a run has."""
    try:
        yield
    except (InputError, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        owners = (frame.f_locals.get("self") for frame, _ in walk_tb(error.__traceback__))
        for each in owners:
            kind = type(each)
            if isinstance(each, pl.Callback) and kind.__module__.startswith(LIGHTNING):
                words = " ".join(str(error).split())
                raise InputError(
                    f"trainer.callbacks: {kind.__name__} does not fit this run ({words}): leave it "
                    "out"
                ) from error
        raise


def test(trainer: pl.Trainer, module: ScoringModule, data: AnomalyDataModule) -> Record:
    """Score every test image, and return the record.

    Raises:
        InputError: as in `fit`.
    """
    module.stays = False
    try:
        with _callbacks_named():
            trainer.test(module, data, verbose=False)
    except MisconfigurationException as error:
        raise InputError(f"trainer: {' '.join(str(error).split())}") from error
    _check_count("test", len(module.record.scores), len(data.split.test))
    return module.record


def described(member: Member) -> dict[str, Any]:
    """Return the record of a member for the run's folder, beside the ensemble's own metrics."""
    kept = {key: getattr(member.record, key) for key in ("metrics", "undefined", "seconds")}
    return {"backbone": member.backbone, **kept, "scale": asdict(member.scale)}


def build_trainer(
    config: Config,
    new: Path,
    loggers: list[Logger],
    make: Make,
    whose: str = "",
    process: Process | None = None,
) -> pl.Trainer:
    """Return the Trainer for the settings, with its callbacks.

    Args:
        config: Settings of the run; `config.trainer` holds the Trainer's arguments.
        new: Folder for the new results.
        loggers: Loggers of the trackers.
        make: Function that creates Lightning's objects.
        whose: Text at the end of the progress bars' titles.
        process: Place of this process among the processes of the run; None: the only one.

    Raises:
        InputError: The Trainer refuses the settings, would take some from environment variables,
            or would use another number of devices or another precision.
    """
    check_trainer_variables()
    settings = {"max_epochs": 1, **config.trainer}
    callbacks = [
        make(f"trainer.callbacks[{i}]", each) if isinstance(each, Mapping) else each
        for i, each in enumerate(_list(settings.pop("callbacks", None)))
    ]
    for i, each in enumerate(callbacks):
        if not isinstance(each, pl.Callback):
            raise InputError(
                f"trainer.callbacks[{i}] must be a callback of Lightning, {{_target_: CLASS, …}}, "
                f"got {shown(each)}"
            )
    if settings.get("enable_progress_bar", True):
        callbacks.append(ProgressBar(whose))
    if loggers:
        callbacks.append(Progress())
    size = 1 if process is None else process.size
    if process is not None and size > 1:
        settings |= {"strategy": Sharded(process), "use_distributed_sampler": False}
    more = {"logger": loggers or False, "default_root_dir": str(new), "callbacks": callbacks}
    try:
        with warnings.catch_warnings():
            # Precisions that it replaces are refused below.
            warnings.filterwarnings("ignore", r"You passed .*precision='16-mixed'")
            trainer: pl.Trainer = make("trainer", settings, **more)
    except (InputError, MisconfigurationException) as error:
        if "No supported gpu backend found" not in str(error):
            raise
        raise InputError(
            f"trainer.accelerator={settings.get('accelerator')}: there is no GPU here that PyTorch "
            "can use: set trainer.accelerator=cpu, or leave it out"
        ) from error
    if trainer.world_size != size:
        raise InputError(
            f"trainer.devices={settings.get('devices')} means "
            f"{counted(trainer.world_size, 'device')} here: "
            "set trainer.devices to that number"
        )
    if trainer.precision != asked_precision(settings):
        device = trainer.strategy.root_device.type
        raise InputError(
            f"trainer.precision={settings.get('precision')} is not available on this device "
            f"({device}): set {trainer.precision} or 32-true"
        )
    return trainer


def construct(key: str, settings: Mapping[str, Any], **more: Any) -> Any:
    """Create an object of the class in `_target_` of the settings, by default Lightning's Trainer.

    Args:
        key: Key of the settings, with which error messages begin.
        settings: Arguments of the class, and `_target_`, its dotted name.
        **more: More arguments, which take precedence.

    Raises:
        InputError: There is no such class, or it refuses the arguments.
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
            f"trainer: {counted(used, f'{kind} image')} {'was' if used == 1 else 'were'} used, not "
            f"{asked}: leave out everything that ends the run early, such as callbacks"
        )


def _list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def quiet() -> None:
    """Silence messages of libraries about devices, loaders and tips; show warnings in one line."""
    os.environ.setdefault("WANDB_SILENT", "true")
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.formatwarning = warning_line
    for message in (
        ".*will run with no optimizer.*",  # the backbone is frozen,
        ".*in eval mode at the start of training.*",  # and stays in evaluation mode
        ".*does not have many workers.*",
        ".*sync_dist=True.*",  # values logged by the first process are those of all processes
        r".*isinstance\(treespec, LeafSpec\).*",  # Lightning 2.6 on torch 2.15
    ):
        warnings.filterwarnings("ignore", message)
