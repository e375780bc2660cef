"""`patchcore train`: fit a model on a category, test it, and leave a run folder."""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from patchcore.commands import plain_errors
from patchcore.commands.ending import Stopped, job, raise_if_stopped
from patchcore.commands.overrides import check_overrides
from patchcore.commands.sweep import ERROR_FILE, concluded, record_failure
from patchcore.config import Objective, register, to_config
from patchcore.errors import InputError
from patchcore.runfolder import METRICS
from patchcore.runner import run_point

register()


def main() -> None:
    """Entry point: one run, or with --multirun one for every point of a sweep."""
    command = hydra.main(
        version_base="1.3", config_path="pkg://patchcore.conf", config_name="config"
    )(task)
    check_overrides(sys.argv[1:])
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
            point = run_point(to_config(cfg), resolved(cfg), folder, build)
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
    print(point.text)
    return objectives(point.record, list(cfg.objectives))


def objectives(
    record: Mapping[str, Any], wanted: list[Objective]
) -> float | tuple[float, ...] | None:
    """What a sweeper looks for in a finished run's record; None where any of it is undefined.

    A sweeper takes NaN for a mistake of the program, and ends.
    """
    costs = {key: value for key, value in record["seconds"].items() if value is not None}
    found = {**record, "seconds": sum(costs.values()), "score_seconds": costs.get("score")}
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


def build(key: str, settings: Mapping[str, Any], **more: Any) -> Any:
    """An object of Lightning's from its `_target_` and arguments.

    Raises:
        InputError: It does not take them, or what it needs is not there.
    """
    try:
        return instantiate(settings, **more)
    except InstantiationException as error:
        raise InputError(f"{key}: {' '.join(str(error.__cause__ or error).split())}") from error


def _kept(folder: Path) -> str:
    """What is left after an interruption of a run, and how to go on."""
    left = (
        f"the earlier results in {folder} are as they were" if (folder / METRICS).is_file() else ""
    )
    return f"{left or 'no results of this run are kept'}; start the same command again"
