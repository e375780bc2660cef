"""Warnings about settings on the command line that have no effect on the run they are given for."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.types import RunMode
from omegaconf import OmegaConf

from patchcore.commands.groups import all_categories
from patchcore.commands.hydra_values import recorded
from patchcore.commands.names import fixed_keys
from patchcore.config import Config
from patchcore.errors import Told
from patchcore.idle import advice, idle_settings

_SWEEPS = ("hydra.sweep.", "hydra.sweeper.", "hydra.launcher.", "hydra/sweeper", "hydra/launcher")
"""Beginnings of keys that only a multirun reads."""

_STUDIES = ("experiment", "preset", "hparams_search")
"""Groups whose files may hold values to try, or a search."""

_told = Told()


def warn_of_idle(config: Config, hydra: Any) -> None:
    """Warn of each setting that was given and has no effect; once in a multirun.

    Args:
        config: The run's settings.
        hydra: Settings of Hydra itself, with the overrides as they were typed.
    """
    for message in told(config, hydra):
        if _told.first(message):
            warnings.warn(message, stacklevel=2)


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
    if not several:
        yield from untried(config, hydra, keys)


def untried(config: Config, hydra: Any, keys: Sequence[str]) -> Iterator[str]:
    """Yield a message if files hold values to try, or a search, that a single run leaves out.

    What the command line itself gives of them is told by its keys.
    """
    choices = OmegaConf.select(hydra, "runtime.choices") or {}
    chosen = [group for group in _STUDIES if choices.get(group)]
    if chosen == ["hparams_search"] and "hparams_search" in keys:
        return
    study = f"{chosen[0]}={choices[chosen[0]]}" if chosen else "hydra.sweeper"
    typed = [*map(_key, recorded(hydra.overrides.hydra))]
    params = dict(OmegaConf.select(hydra, "sweeper.params") or {})
    if params.get("data.category") == all_categories(config.data):  # as the data set itself has it
        del params["data.category"]
    tried = [key for key in params if key not in keys]
    sweeper = choices.get("hydra/sweeper") or "basic"
    if tried and not any(key.startswith("hydra.sweeper.params") for key in typed):
        yield (
            f"{study}: the values it tries ({', '.join(tried)}) need --multirun: one run without "
            "them follows"
        )
    elif sweeper != "basic" and not {"hydra/sweeper", "hparams_search"} & {*typed, *keys}:
        yield (
            f"{study}: its search (hydra/sweeper={sweeper}) needs --multirun: one run without it "
            "follows"
        )


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].partition("@")[0]
