"""Warnings about settings on the command line that have no effect on the run they are given for."""

import warnings
from collections.abc import Iterator
from typing import Any

from hydra.types import RunMode

from patchcore.commands.hydra_values import recorded
from patchcore.commands.names import fixed_keys
from patchcore.config import Config
from patchcore.idle import advice, idle_settings

_SWEEPS = ("hydra.sweep.", "hydra.sweeper.", "hydra.launcher.", "hydra/sweeper", "hydra/launcher")
"""Beginnings of keys that only a multirun reads."""

_told: set[str] = set()  # by this process, which may run many points of a multirun


def warn_of_idle(config: Config, hydra: Any) -> None:
    """Warn of each setting that was given and has no effect; once in a multirun.

    Args:
        config: The run's settings.
        hydra: Settings of Hydra itself, with the overrides as they were typed.
    """
    for message in told(config, hydra):
        if message not in _told:
            warnings.warn(message, stacklevel=2)
            _told.add(message)


def told(config: Config, hydra: Any) -> Iterator[str]:
    """Yield a message for each setting that was given and has no effect."""
    several = hydra.mode is RunMode.MULTIRUN
    keys = [*map(_key, recorded(hydra.overrides.task))]
    fixed = fixed_keys(hydra) if several else set(keys)
    for key, words in idle_settings(config, keys):
        equal = "" if key in fixed else "; points that differ only in it are equal"
        yield f"{key} has no effect {words}: {advice(words)}{equal}"
    for key in map(_key, recorded(hydra.overrides.hydra)):
        if several and key == "hydra.run.dir":
            yield f"{key} has no effect with --multirun: set hydra.sweep.dir, or leave it out"
        if not several and key == "hydra.sweep.dir":
            yield f"{key} has no effect without --multirun: set hydra.run.dir, or leave it out"
        elif not several and key.startswith(_SWEEPS):
            yield f"{key} has no effect without --multirun: give both, or leave it out"
    if not several and "hparams_search" in keys:
        yield "hparams_search searches nothing without --multirun: give both, or leave it out"


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].partition("@")[0]
