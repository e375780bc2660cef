"""`patchcore train`: fit a model on a category, test it, and leave a run folder."""

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from patchcore.commands import Stopped, job, plain_errors, raise_if_stopped
from patchcore.commands.composed import to_config
from patchcore.commands.failed import track_failed
from patchcore.commands.flags import CONFIG_NAME
from patchcore.commands.generations import CONFIG_PATH, check_log, entry
from patchcore.commands.gpus import take_gpu
from patchcore.commands.groups import register
from patchcore.commands.hydra_values import check_cache, check_moved, recorded
from patchcore.commands.idle import warn_of_idle
from patchcore.commands.mistakes import SHADOWED, explain
from patchcore.commands.overrides import as_typed, check_overrides
from patchcore.commands.refused import files_in, has_finished, put_back, remove, state
from patchcore.commands.settings_help import settings_help
from patchcore.commands.sweep import concluded, record_failure, start_point
from patchcore.commands.targets import build, guard
from patchcore.keeping import objectives
from patchcore.outputs import check_outside
from patchcore.report.folders import ERROR_FILE
from patchcore.runfolder import METRICS, unfinished

_OUTSIDE = {"TORCHELASTIC_RUN_ID", "SLURM_NTASKS"}
"""Environment variables of a process that torchrun or SLURM may have started with others."""

register()


def main() -> None:
    """Entry point: one run, or with --multirun one for every point of a sweep."""
    if not {"-h", "--help"}.isdisjoint(sys.argv[1:]):
        print(settings_help())
        return
    command = entry(task)
    typed = sys.argv[1:]
    sys.argv[1:] = as_typed(typed)
    warnings.filterwarnings("error", SHADOWED)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # of fonts, it tells much
    check_overrides(sys.argv[1:], typed)
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
    """Run one job for Hydra, and return its objectives for a sweeper.

    None for a point that failed, or whose objective is undefined; sweepers count both as failed
    trials. It is a function of a module, so that launchers can pickle it for other processes.
    """
    run = HydraConfig.get()
    folder = Path(run.runtime.output_dir)
    multirun = run.mode is RunMode.MULTIRUN
    written = {} if multirun else files_in(folder)
    earlier = state(folder / METRICS)
    all_points = Path(run.runtime.cwd, run.sweep.dir)  # the job may have changed the folder
    with job():
        if multirun:
            start_point(folder, all_points)
        try:
            key = "hydra.sweep.dir" if multirun else "hydra.run.dir"
            check_outside(folder, key)
            check_log(key)
            (folder / ERROR_FILE).unlink(missing_ok=True)
            check_moved(cfg, run.runtime.cwd, run.job.chdir)
            config = to_config(cfg)  # also fills in values in cfg that depend on the weights
            check_cache(config.cache, run.job.chdir)
            warn_of_idle(config, run)
            take_gpu(cfg, run)
            from patchcore.runner import run as run_one  # Lightning takes seconds, a mistake none

            done = run_one(
                config,
                folder,
                settings=resolved(cfg),
                make=build,
                origin=origin(run),
                multirun=all_points if multirun else None,
            )
        except Exception as error:
            raise_if_stopped()
            if multirun:  # the other points go on; `concluded` lists the failed ones in the end
                record_failure(folder, error, recorded(run.overrides.task))
                track_failed(cfg, origin(run), folder, error)
                return None
            if explain(error) is not None:
                inner = os.path.normpath(f"{run.output_subdir}/overrides.yaml")
                remove(folder, written, needed=[inner])
            put_back(folder, written)
            with plain_errors():
                raise
        except Stopped as stop:
            if multirun:
                if unfinished(folder) or state(folder / METRICS) == earlier:
                    record_failure(folder, stop)
            else:
                put_back(folder, written)
                stop.kept = _kept(folder)
            raise
    if not done.record:  # only the first process of the run prints
        return None
    print(done.text)
    return objectives(done.record, list(cfg.objectives), done.warm, done.costs)


def origin(run: HydraConf) -> dict[str, Any]:
    """Return how the run was started: Hydra's `choices` of groups and its `overrides`.

    What says where settings files are, such as `--config-dir` and hydra.searchpath, is under
    `options`.
    """
    found = {"choices": dict(run.runtime.choices), "overrides": recorded(run.overrides.task)}
    options = []
    for source in run.runtime.config_sources:
        path = source.path if source.schema == "file" else f"{source.schema}://{source.path}"
        if source.provider == "command-line":
            options.append(f"--config-dir={path}")
        elif source.provider == "main" and path != CONFIG_PATH:
            options.append(f"--config-path={path}")
    if run.job.config_name not in (None, CONFIG_NAME):
        options.append(f"--config-name={run.job.config_name}")
    more = recorded(run.overrides.hydra)
    options += [each for each in more if each.lstrip("+").startswith("hydra.searchpath=")]
    return {**found, "options": options} if options else found


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Return the configuration as plain values, with all interpolations resolved."""
    values = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _kept(folder: Path) -> str:
    """Sentence that says what an interrupted run has left, and how to continue."""
    again = "start the same command again"
    if has_finished(folder):
        if unfinished(folder):
            return f"the run had finished; {again} to put its results in place"
        return f"the run had finished; its results are in {folder}"
    if (folder / METRICS).is_file():
        return f"the earlier results in {folder} are as they were; {again}"
    return f"no results of this run are kept; {again}"
