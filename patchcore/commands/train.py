"""`patchcore train`: fit a model on a category, test it, and leave a run folder."""

import os
import sys
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from patchcore.commands import Stopped, job, plain_errors, raise_if_stopped
from patchcore.commands.composed import to_config
from patchcore.commands.generations import entry
from patchcore.commands.groups import register
from patchcore.commands.overrides import as_typed, check_overrides
from patchcore.commands.settings_help import settings_help
from patchcore.commands.sweep import ERROR_FILE, concluded, record_failure, track_failed
from patchcore.commands.targets import build, guard
from patchcore.keeping import objectives
from patchcore.runfolder import METRICS

_OUTSIDE = {"TORCHELASTIC_RUN_ID", "SLURM_NTASKS"}
"""Variables of a process that torchrun or SLURM may have started with others."""

register()


def main() -> None:
    """Entry point: one run, or with --multirun one for every point of a sweep."""
    if not {"-h", "--help"}.isdisjoint(sys.argv[1:]):
        print(settings_help())
        return
    command = entry(task)
    sys.argv[1:] = as_typed(sys.argv[1:])
    check_overrides(sys.argv[1:])
    guard()
    if _OUTSIDE.isdisjoint(os.environ):
        with concluded():
            command()
        return
    from patchcore.distributed import accompany, outside, part
    from patchcore.training import take_part

    if (process := outside()) is not None and process.rank:
        accompany(take_part, always=True)  # the first process alone has a run
        return
    with concluded():
        command()
    part()


def task(cfg: DictConfig) -> float | tuple[float, ...] | None:
    """Hydra's task function: what a sweeper looks for, or None for a point that failed.

    A sweeper also gets None where an objective is undefined, which it counts as a failed trial.
    A module's function, so that launchers can name it to other processes.
    """
    run = HydraConfig.get()
    folder = Path(run.runtime.output_dir)
    multirun = run.mode is RunMode.MULTIRUN
    with job():
        try:
            (folder / ERROR_FILE).unlink(missing_ok=True)
            config = to_config(cfg)  # fills in cfg what follows from the weights
            from patchcore.runner import run as run_one  # Lightning takes seconds, a mistake none

            done = run_one(
                config,
                folder,
                settings=resolved(cfg),
                make=build,
                origin=origin(run),
                multirun=Path(run.sweep.dir) if multirun else None,
            )
        except Exception as error:
            raise_if_stopped()
            if multirun:  # the other points go on; `concluded` tells in the end
                record_failure(folder, error)
                track_failed(cfg, origin(run), folder, error)
                return None
            with plain_errors():
                raise
        except Stopped as stop:
            if multirun:
                record_failure(folder, stop)
            else:
                stop.kept = _kept(folder)
            raise
    if not done.record:  # the first process of the run tells
        return None
    print(done.text)
    return objectives(done.record, list(cfg.objectives), done.warm, done.costs)


def origin(run: HydraConf) -> dict[str, Any]:
    """Return how Hydra was asked for a run: `choices` of its groups and `overrides`."""
    return {"choices": dict(run.runtime.choices), "overrides": list(run.overrides.task)}


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain values, with nothing left to interpolate."""
    values = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _kept(folder: Path) -> str:
    """Sentence on what is left after an interruption of a run, and how to go on."""
    left = (
        f"the earlier results in {folder} are as they were" if (folder / METRICS).is_file() else ""
    )
    return f"{left or 'no results of this run are kept'}; start the same command again"
