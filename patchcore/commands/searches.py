"""Checks of a multirun's folder, sweeper and launcher, before any of its points."""

import copy
import shutil
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from patchcore.commands.hydra_values import check_below, recorded
from patchcore.data.files import find_folder
from patchcore.errors import InputError
from patchcore.metrics.measures import METRICS
from patchcore.report.folders import SETTINGS
from patchcore.report.written import MULTIRUN, REPORT, SETTINGS_OF_RUN, check_own

_SWEEPING = ("experiment", "hparams_search")  # groups whose choices set the sweeper
_DIRECTIONS = ("minimize", "maximize")
_OLD_OPTUNA = (
    "this version of Optuna keeps studies with SQLAlchemy below 2: pip install 'sqlalchemy<2' "
    "'alembic<1.14', or leave hydra.sweeper.storage out"
)


def check_multirun(config: DictConfig) -> None:
    """Refuse a multirun that would replace other files, or that cannot end well.

    Args:
        config: Composed settings, with those of Hydra.

    Raises:
        InputError: One line with the key or the file.
    """
    _check_files(Path(str(config.hydra.sweep.dir)))
    if (inner := config.hydra.output_subdir) != SETTINGS:
        raise InputError(
            f"hydra.output_subdir: must be {SETTINGS} in a multirun, whose points are found by "
            f"this folder, got {'null' if inner is None else inner}: leave it out"
        )
    _check_subdir(config)
    launcher, sweeper = config.hydra.launcher, config.hydra.sweeper
    _check_root(config)
    if str(launcher.get("_target_")).endswith(".SlurmLauncher") and not shutil.which("srun"):
        name = config.hydra.runtime.choices.get("hydra/launcher")
        raise InputError(
            f"hydra/launcher={name} needs SLURM, and this machine has no command srun: start it "
            "on a machine of the cluster, or choose hydra/launcher=processes"
        )
    if _is_optuna(sweeper):
        _check_directions(sweeper.get("direction"), _names(config.objectives))
        _check_space(sweeper, recorded(config.hydra.overrides.task))
        _check_storage(sweeper.get("storage"))


def check_studies(config: DictConfig, loader: ConfigLoader) -> None:
    """Refuse several studies or searches of which one sets the sweeper: Hydra reads it only once.

    Args:
        config: Composed settings, with those of Hydra.
        loader: Hydra's loader of settings.

    Raises:
        InputError: One line with the group and the choice.
    """
    given = config.hydra.overrides
    typed = [*recorded(given.hydra), *recorded(given.task)]
    parsed = OverridesParser.create(loader).parse_overrides(typed)
    single = [str(each.input_line) for each in parsed if not each.is_sweep_override()]
    name_of_all, sweeper = config.hydra.job.config_name, _plain(config)
    for override in parsed:
        group = override.key_or_group
        if group not in _SWEEPING or not override.is_sweep_override():
            continue
        for name in override.sweep_string_iterator():
            chosen = [*single, f"{group}={name}"]
            if _plain(loader.load_configuration(name_of_all, chosen, RunMode.MULTIRUN)) != sweeper:
                raise InputError(
                    f"{group}={name}: has points of its own to try, which are lost where several "
                    "are given: start a multirun of each"
                )


def _plain(config: DictConfig) -> Any:
    return OmegaConf.to_container(config.hydra.sweeper, resolve=False)


def keep_last(config: DictConfig) -> None:
    """Keep the last of several values of a setting, as any sweeper but Optuna's does.

    Args:
        config: Composed settings, with those of Hydra; `hydra.overrides.task` changes in place.
    """
    if not _is_optuna(config.hydra.sweeper):
        return
    overrides = recorded(config.hydra.overrides.task)
    keys = (each.get_key_element() for each in OverridesParser.create().parse_overrides(overrides))
    with read_write(config.hydra.overrides):
        config.hydra.overrides.task = list(dict(zip(keys, overrides, strict=True)).values())


def fill_directions(config: DictConfig) -> None:
    """Let Optuna look for the best of each objective, unless the user has given directions.

    Its default is to minimise, which would name the setting with the lowest accuracy the best.

    Args:
        config: Composed settings, with those of Hydra; `hydra.sweeper.direction` changes in place.
    """
    sweeper = config.hydra.sweeper
    # Text is from the user; only the default is a member of the enumeration.
    if not _is_optuna(sweeper) or not isinstance(sweeper.get("direction"), Enum):
        return
    with read_write(sweeper):
        sweeper.direction = [
            "minimize" if METRICS[name].better == "low" else "maximize"
            for name in _names(config.objectives)
        ]


def complete_sweeper(found: Any) -> Any:
    """Return settings from a source, where those of a sweeper have defaults that Hydra lacks.

    Its `params` are an empty mapping, to which OmegaConf can add, unlike to null. A sampler of
    Optuna has the seed 0, so that the same command searches the same points. Typed values and
    settings files override both.

    Args:
        found: Result of Hydra's repository of settings; None if there is none.
    """
    if found is not None and "params" in found.config and found.config.params is None:
        found.config.params = {}
    ours = found is not None and found.provider == "optuna_sweeper"
    if ours and "seed" in found.config and found.config.seed is None:
        found.config.seed = 0
    return found


def told_again(config: DictConfig, failed: bool = False) -> str:
    """Return the sentence that says what the same command computes when it is started again.

    Args:
        config: Composed settings, with those of Hydra.
        failed: Whether points failed, so that the sentence is about these.
    """
    sweeper = config.hydra.sweeper
    again = "the same command, started again, "
    # By default it refers to whether this is a multirun, which is not known before the points.
    if not OmegaConf.is_interpolation(config, "resume") and config.resume is False:
        return f"{again}computes every point, because of resume=false"
    if _is_basic(sweeper):
        return f"{again}computes only {'these' if failed else 'the others'}"
    keep = "give it another hydra.sweep.dir to keep these results"
    if not _is_optuna(sweeper):
        return f"{again}may try other points: {keep}"
    if sweeper.get("storage") is not None and sweeper.get("study_name") is not None:
        return f"{again}continues the study with other points: {keep}"
    sampler = sweeper.get("sampler") or {}
    if "seed" in sampler and sampler.get("seed") is None:
        return (
            f"{again}draws other points, because the search has no seed: {keep}, or a "
            "hydra.sweeper.sampler.seed to draw the same points each time"
        )
    if failed and not str(sampler.get("_target_")).endswith((".RandomSampler", ".GridSampler")):
        return f"{again}computes these; their results may let the search draw other points after"
    return f"{again}computes only {'these' if failed else 'the others'}"


def is_search(config: DictConfig) -> bool:
    """Whether the sweeper of a multirun looks for the best point."""
    return not _is_basic(config.hydra.sweeper)


def _is_basic(sweeper: DictConfig) -> bool:
    return str(sweeper.get("_target_")).endswith(".BasicSweeper")


def _is_optuna(sweeper: DictConfig) -> bool:
    return ".hydra_optuna_sweeper." in str(sweeper.get("_target_"))


def _check_files(folder: Path) -> None:
    advice = "name another folder with hydra.sweep.dir"
    check_own(folder, MULTIRUN, "a multirun", advice)
    for file in sorted(folder.glob(f"*/{SETTINGS}/hydra.yaml")):
        check_own(file.parents[1], SETTINGS_OF_RUN, "a run of patchcore", advice)
    if not (folder / "report").is_symlink():  # else no report is written
        check_own(folder / "report", REPORT, "a report", advice)


def _check_subdir(config: DictConfig) -> None:
    first = copy.deepcopy(config)
    with read_write(first.hydra):
        first.hydra.job.num = 0
    multirun = Path(str(config.hydra.sweep.dir))
    with suppress(OmegaConfBaseException):  # it depends on more: the points check their folders
        check_below(multirun / str(first.hydra.sweep.subdir), multirun)


def _check_root(config: DictConfig) -> None:
    """Refuse a missing folder of the data that all points share, which each would tell again."""
    here = (".BasicLauncher", ".JoblibLauncher")  # others may work on machines that have the data
    root = OmegaConf.select(config, "data.root", throw_on_resolution_failure=False)
    if not str(config.hydra.launcher.get("_target_")).endswith(here) or not isinstance(root, str):
        return
    kind: Any = OmegaConf.get_type(config.data)
    if getattr(kind, "WRITES", False):
        return
    parsed = OverridesParser.create().parse_overrides(recorded(config.hydra.overrides.task))
    swept = {each.key_or_group for each in parsed if each.is_sweep_override()}
    swept |= set(config.hydra.sweeper.get("params") or ())
    if root and swept.isdisjoint(("data", "data.root", "preset", "experiment")):
        source = getattr(kind, "SOURCE", None)
        find_folder(root, "data.root", f"; the data are at {source.page}" if source else "")


def _check_directions(given: Any, objectives: Sequence[str]) -> None:
    names = _names(given if OmegaConf.is_list(given) else [given])
    for name in names:
        if name not in _DIRECTIONS:
            raise InputError(
                f"hydra.sweeper.direction must be minimize or maximize for each objective, got "
                f"{name}"
            )
    if len(names) != len(objectives):
        raise InputError(
            f"hydra.sweeper.direction={_listed(names)} does not fit "
            f"objectives={_listed(objectives)}: give one direction for each objective"
        )


def _check_space(sweeper: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse a search in which no setting has several values."""
    own = [sweeper.get(key) for key in ("params", "search_space", "custom_search_space")]
    if any(own):
        return
    parsed = OverridesParser.create().parse_overrides([*overrides])
    if not any(override.is_sweep_override() for override in parsed):
        raise InputError(
            "hydra/sweeper=optuna has nothing to search: give a setting several values, such as "
            "'coreset.ratio=interval(0.001,0.1)' or patch.size=1,3,5"
        )


def _check_storage(storage: Any) -> None:
    """Refuse a database that Optuna cannot open; one that is missing is made, as Optuna does it."""
    if not isinstance(storage, str):
        return
    import optuna  # here: no other multirun needs it

    try:
        optuna.storages.get_storage(storage)
    except Exception as error:  # Optuna, SQLAlchemy and the drivers have no common base
        sqlalchemy = sys.modules.get("sqlalchemy")
        outdated = isinstance(error, AssertionError) and sqlalchemy is not None
        lines = str(error).strip().splitlines() or [type(error).__name__]
        told = f"cannot be opened ({lines[0][:200]}): correct it, or leave it out"
        raise InputError(
            f"hydra.sweeper.storage={storage}: {_OLD_OPTUNA if outdated else told}"
        ) from error


def _names(given: Iterable[Any]) -> list[str]:
    """Names of members of an enumeration, some of which may be text."""
    return [str(getattr(each, "name", each)) for each in given]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"[{','.join(names)}]"
