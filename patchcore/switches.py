"""Checks of Lightning's Trainer settings: only settings that keep results complete are allowed.

Every result has to come from all images, each used as often as the settings ask for, on one device
or several. Settings that would change this are refused before any work, in one line.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from patchcore.backbones import Join
from patchcore.errors import InputError

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
_SPELLINGS = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}  # Lightning takes them too

_EVERY_IMAGE = "would leave images out of the numbers: leave it out; "
_UNVALIDATED = "has no effect, because nothing is validated: leave it out"
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "limit_train_batches": ((None, 1.0), _EVERY_IMAGE + "data.shots takes fewer training images"),
    "limit_test_batches": ((None, 1.0), _EVERY_IMAGE + "try things out on a smaller data set"),
    "limit_val_batches": ((None, 1.0), _UNVALIDATED),
    "check_val_every_n_epoch": ((1,), _UNVALIDATED),
    "val_check_interval": ((None, 1.0), _UNVALIDATED),
    "limit_predict_batches": (
        (None, 1.0),
        "has no effect, because nothing is predicted: leave it out",
    ),
    "overfit_batches": ((None, 0, 0.0), _EVERY_IMAGE + "data.shots takes fewer training images"),
    "fast_dev_run": ((None, False, 0), _EVERY_IMAGE + "try things out with data=generated"),
    "max_steps": ((None, -1), _EVERY_IMAGE + "max_epochs says how often each image is used"),
    "min_steps": ((None,), "only repeats images: leave it out, or set max_epochs"),
    "min_epochs": ((None, 0, 1), "has no effect: leave it out, or set trainer.max_epochs"),
    "max_time": ((None,), _EVERY_IMAGE + "end a run with Ctrl-C or SIGTERM"),
    "accumulate_grad_batches": ((None, 1), "has no effect, for nothing is optimised: leave it out"),
    "gradient_clip_val": ((None, 0, 0.0), "has no effect, for nothing is optimised: leave it out"),
    "gradient_clip_algorithm": ((None,), "has no effect, for nothing is optimised: leave it out"),
    "sync_batchnorm": (
        (False, None),
        "has no effect, for the network's statistics are frozen: leave it out",
    ),
    "use_distributed_sampler": (
        (True, None),
        "has no effect, because devices always share the batches: leave it out",
    ),
    "reload_dataloaders_every_n_epochs": (
        (0,),
        "has no effect, for images are the same in each epoch: leave it out",
    ),
    "model_registry": ((None,), "has no effect: leave it out; artifact.keep keeps the model"),
    "default_root_dir": ((None,), "has no effect: leave it out; hydra.run.dir is a run's folder"),
    "barebones": ((None, False), "logs no metrics: leave it out"),
    "plugins": ((None,), "could change precision or devices: set trainer.precision instead"),
}
"""Trainer settings that are refused: {name: (harmless values that are allowed, message)}.

The first of the values stands for a setting that is left out.
"""

_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "_target_": (None, "pytorch_lightning.Trainer"),
    "benchmark": (None,),
    "callbacks": (None, []),
    "deterministic": (None,),
    "inference_mode": (True,),
    "max_epochs": (1,),
    "strategy": ("auto", None),
    **{key: values for key, (values, _) in _REFUSED.items()},
}
"""Values of Trainer settings that mean the same as leaving them out."""

WITHOUT_EFFECT = {
    "accelerator",  # identities hold the class of the device instead
    "barebones",
    "detect_anomaly",
    "devices",  # several give the numbers of one
    "enable_autolog_hparams",
    "enable_checkpointing",
    "enable_model_summary",
    "enable_progress_bar",
    "log_every_n_steps",
    "logger",
    "num_nodes",
    "num_sanity_val_steps",
    "precision",  # identities hold it in a single spelling
    "profiler",
}
"""Settings of the Trainer that change no result, or that identities hold in another form."""


def check_switches(trainer: Mapping[str, Any], augmented: bool) -> None:
    """Refuse Trainer settings that would change results in a way that was not asked for.

    Args:
        trainer: Keyword arguments of `pytorch_lightning.Trainer`.
        augmented: Whether training images are changed at random, so that epochs differ.

    Raises:
        InputError: The key, and what to do.
    """
    for key, (harmless, advice) in _REFUSED.items():
        value = trainer.get(key, harmless[0])
        if not _is_one(value, harmless):
            raise InputError(f"trainer.{key}={value} {advice}")
    _check_epochs(trainer.get("max_epochs", 1), augmented)
    precision = trainer.get("precision")
    name = _SPELLINGS.get(str(precision), precision)
    if precision is not None and name not in PRECISIONS:
        raise InputError(f"trainer.precision must be {_listed(PRECISIONS)}, got {precision}")
    for key in ("devices", "num_nodes"):
        if _number(trainer.get(key, 1)) < 1:
            raise InputError(
                f"trainer.{key} must be a number from 1 on"
                f"{', or a list of devices' if key == 'devices' else ''}, got {trainer[key]}"
            )
    if trainer.get("strategy", "auto") not in ("auto", None):
        raise InputError(
            f"trainer.strategy must be auto, got {trainer['strategy']}: only this strategy gives "
            "the same numbers on any number of devices (trainer.devices)"
        )


def without_effect(trainer: Mapping[str, Any]) -> set[str]:
    """Return the names of Trainer settings that change no result, or have their default values.

    >>> sorted(without_effect({"strategy": "auto", "max_epochs": 2, "limit_train_batches": 1.0}))
    ['limit_train_batches', 'strategy']
    """
    usual = {key for key in trainer if _is_one(trainer[key], _DEFAULTS.get(key, ()))}
    return usual | (WITHOUT_EFFECT & trainer.keys())


def _is_one(value: Any, values: tuple[Any, ...]) -> bool:
    """Whether a value is one of several; 1, 1.0 and True are three."""
    return any(value is x or (value == x and type(value) is type(x)) for x in values)


def processes(trainer: Mapping[str, Any]) -> int:
    """Return the number of processes that the settings ask for, one for each device.

    >>> processes({"devices": 2}), processes({"devices": [0, 3]}), processes({})
    (2, 2, 1)
    """
    return _number(trainer.get("devices", 1)) * _number(trainer.get("num_nodes", 1))


def check_shared(config: Any) -> None:
    """Refuse settings that do not work on several devices.

    Args:
        config: Settings of a run.

    Raises:
        InputError: The key, and what to do.
    """
    devices = processes(config.trainer)
    if devices == 1:
        return
    sampler = type(config.coreset).__name__.removesuffix("Config").lower()
    refused = {
        f"method={config.method.name}": not config.method.shared,
        f"layers.join={config.layers.join.name}": config.layers.join is not Join.concat,
        **{f"method.{key}={value}": True for key, value in switched_on(config.method).items()},
        "an ensemble": bool(config.ensemble.members),
        "augment.rotations or mirrored": len(config.augment.poses()) > 1,
        "decision.false_alarms": config.decision.false_alarms is not None,
        "label_free": config.judged,
        f"coreset={sampler}": not config.coreset.shared,
    }
    asked = {key: config.trainer.get(key, 1) for key in ("devices", "num_nodes")}
    several = {key: value for key, value in asked.items() if _number(value) > 1}
    for what, cannot in refused.items():
        if cannot:
            raise InputError(
                f"{_settings(several)}: {what} is for one device alone: set "
                f"{_settings(dict.fromkeys(several, 1))}"
            )


def switched_on(settings: Any) -> dict[str, Any]:
    """Return the fields of a dataclass whose values are not their defaults."""
    values = {
        field.name: (getattr(settings, field.name), field.default) for field in fields(settings)
    }
    return {name: value for name, (value, default) in values.items() if value != default}


def asked_precision(trainer: Mapping[str, Any]) -> str:
    """Return the precision that the settings ask for, in Lightning's own spelling."""
    precision = str(trainer.get("precision") or PRECISIONS[0])
    return _SPELLINGS.get(precision, precision)


def _check_epochs(epochs: Any, augmented: bool) -> None:
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise InputError(f"trainer.max_epochs must be a whole number from 1 on, got {epochs}")
    if epochs > 1 and not augmented:
        raise InputError(
            f"trainer.max_epochs={epochs} would put the same patches into the memory bank {epochs} "
            "times: set it to 1, or turn on augmentation, such as augment=flip"
        )


def _settings(trainer: Mapping[str, Any]) -> str:
    return " ".join(f"trainer.{key}={value}" for key, value in trainer.items())


def _number(devices: Any) -> int:
    """Return the number of devices in any notation of Lightning; 0 if the notation is unknown."""
    match devices:
        case "auto" | None:
            return 1  # `training.build_trainer` checks that it is one on this machine
        case bool():
            return 0
        case int():
            return max(devices, 0)
        case list():
            return len(devices)
        case str() if devices.isdigit():
            return int(devices)
        case str() if all(part.isdigit() for part in devices.rstrip(",").split(",")):
            return len(devices.rstrip(",").split(","))
    return 0


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def check_numbered(needed: Sequence[str], others: Sequence[str] = ()) -> dict[str, int]:
    """Return environment variables that torchrun or SLURM set, all of them numbers from 0 on.

    Args:
        needed: Names of variables that have to be set.
        others: Names of variables that may be missing.

    Raises:
        InputError: One is missing, or not such a number; or a port is too large.
    """
    found = {}
    for name in (*needed, *others):
        value = os.environ.get(name)
        if value is None and name in others:
            continue
        most = 65535 if name == "MASTER_PORT" else 2**31
        if value is None or not re.fullmatch(r"[0-9]{1,10}", value) or int(value) > most:
            raise InputError(
                f"the environment variable {name} must be a whole number from 0 to {most}, "
                f"{'and is not set' if value is None else f'got {value!r}'}: start the command "
                "with torchrun or srun, or unset its variables (TORCHELASTIC_RUN_ID, SLURM_NTASKS)"
            )
        found[name] = int(value)
    return found


def check_srun() -> None:
    """Refuse one of several processes in SLURM unless srun has started it as Lightning expects.

    Raises:
        InputError: The variable of a step that srun starts is missing, or that of
            `--ntasks-per-node`, which Lightning needs.
    """
    if "SLURM_STEP_ID" not in os.environ:  # the other processes would never come
        raise InputError(
            "the environment variable SLURM_NTASKS announces several processes, but srun has not "
            "started this one: start the command with srun, or unset SLURM_NTASKS"
        )
    if "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise InputError(
            "the environment variable SLURM_NTASKS_PER_NODE is not set: give SLURM "
            "--ntasks-per-node in place of --ntasks"
        )
