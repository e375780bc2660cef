"""`patchcore train`: fit a model on a category, test it, and leave a run folder."""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from patchcore.commands import plain_errors
from patchcore.commands.ending import Stopped, job, raise_if_stopped
from patchcore.commands.generations import entry
from patchcore.commands.groups import register
from patchcore.commands.overrides import check_overrides
from patchcore.commands.settings_help import settings_help
from patchcore.commands.sweep import ERROR_FILE, concluded, record_failure
from patchcore.commands.targets import build, guard
from patchcore.commands.typed import as_typed
from patchcore.config import Objective, to_config
from patchcore.runfolder import METRICS
from patchcore.runner import run as run_one

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
    with concluded():
        command()


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
            done = run_one(config, folder, settings=resolved(cfg), make=build, origin=origin(run))
        except Exception as error:
            raise_if_stopped()
            if multirun:  # the other points go on; `concluded` tells in the end
                record_failure(folder, error)
                return None
            with plain_errors():
                raise
        except Stopped as stop:
            if multirun:
                record_failure(folder, stop)
            else:
                stop.kept = _kept(folder)
            raise
    print(done.text)
    return objectives(done.record, list(cfg.objectives), done.warm)


def origin(run: HydraConf) -> dict[str, Any]:
    """Return how Hydra was asked for a run: `choices` of its groups and `overrides`."""
    return {"choices": dict(run.runtime.choices), "overrides": list(run.overrides.task)}


def objectives(
    record: Mapping[str, Any], wanted: list[Objective], warm: Sequence[str] = ()
) -> float | tuple[float, ...] | None:
    """Return the objectives of a finished run; None where any of them is undefined.

    A sweeper takes NaN for a mistake of the program, and ends. Seconds spent reading the cache are
    undefined too, for they are not the cost of computing.

    Args:
        record: Contents of metrics.json.
        wanted: Objectives in the sweeper's order.
        warm: Names of the stages that read the cache.
    """
    costs = {key: value for key, value in record["seconds"].items() if value is not None}
    found = {
        **record,
        "seconds": None if warm else sum(costs.values()),
        "score_seconds": None if "score" in warm else costs.get("score"),
    }
    values = [found.get(objective.value) for objective in wanted]
    numbers = [math.nan if value is None else float(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        return None
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


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
