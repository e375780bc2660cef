"""Calls that differ between Hydra 1.3 and 1.4, and between OmegaConf 2.3 and 2.4.

Each version is called in the way that it recommends, without deprecated arguments.
"""

import copy
import inspect
import os
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import hydra
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from hydra.core import utils
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import FloatRange, Override, OverrideType
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from patchcore.commands.flags import CONFIG_NAME
from patchcore.commands.hydra_values import check_hydra
from patchcore.commands.own import check_shadowed
from patchcore.commands.searches import (
    check_multirun,
    check_studies,
    complete_sweeper,
    fill_directions,
    keep_last,
)
from patchcore.commands.shortages import explain_shortage, of_log
from patchcore.errors import InputError
from patchcore.keeping import Keep
from patchcore.report.written import SETTINGS_OF_RUN, check_own

NEXT = "execution_whitelist" in inspect.signature(hydra.main).parameters
"""True with Hydra 1.4 or later."""

VERSION_BASE: dict[str, Any] = {} if NEXT else {"version_base": "1.3"}
"""Arguments of `hydra.main` and `hydra.initialize…`; Hydra 1.4 deprecates `version_base`."""

CONFIG_PATH = "pkg://patchcore.conf"
"""Place of the settings files of `patchcore train`."""


class Points:
    """Loader of a multirun's settings that composes files once per combination of choices.

    Hydra composes every point from its files, once to check it and again to run it. Here, points
    that differ only in values share one composition. Each gets a copy, which Hydra may change, with
    its values applied as Hydra does it.
    """

    MOST = 200  # compositions kept, of about half a megabyte each

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._composed: dict[tuple[str, ...], Any] = {}
        self._folders: dict[str, list[str]] = {}  # {folder: overrides of its point}
        self._ranks_by: Any = None  # first objective of the points that contend for the best

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __getstate__(self) -> Any:
        return self._loader  # other processes compose anew

    def __setstate__(self, loader: Any) -> None:
        self.__init__(loader)  # type: ignore[misc]

    def load_sweep_config(self, master_config: Any, sweep_overrides: list[str]) -> Any:
        """Return the settings of a point; called by Hydra."""
        parsed = OverridesParser.create().parse_overrides(sweep_overrides)
        values = [override for override in parsed if self._is_value(override)]
        chosen = tuple(str(each.input_line) for each in parsed if each not in values)
        if chosen not in self._composed:
            made = self._loader.load_sweep_config(master_config, list(chosen))
            if len(self._composed) >= self.MOST:
                self._composed.clear()
            self._composed[chosen] = made
        # A pickle would be copied twice as fast, but not all that plugins put here can be pickled.
        point = copy.deepcopy(self._composed[chosen])
        ConfigLoaderImpl._apply_overrides_to_config(values, point)
        own = [override for override in parsed if not override.is_hydra_override()]
        point.hydra.overrides.task = [override.input_line for override in own]
        if not NEXT:  # which makes it from the overrides when it is asked for
            names = point.hydra.job.config.override_dirname
            point.hydra.job.override_dirname = config_loader_impl.get_overrides_dirname(
                own, names.exclude_keys, names.item_sep, names.kv_sep
            )
        OmegaConf.copy_cache(from_config=master_config, to_config=point)
        self._check_folder(point, sweep_overrides, str(master_config.hydra.sweep.dir))
        self._check_contest(point)
        return point

    def _check_folder(self, point: Any, overrides: list[str], multirun: str) -> None:
        """Refuse a point outside the multirun's folder, or whose results would replace another's.

        Args:
            point: Settings of the point.
            overrides: Its overrides.
            multirun: Folder of the multirun.
        """
        if (its := str(point.hydra.sweep.dir)) != multirun:
            raise InputError(
                f"hydra.sweep.dir: must be the same for all points, got {multirun} and {its}: let "
                "hydra.sweep.subdir hold what differs"
            )
        try:
            folder = str(point.hydra.sweep.subdir)
        except OmegaConfBaseException:  # it holds the point's number, which comes later
            return
        if self._folders.setdefault(folder, overrides) != overrides:
            raise InputError(
                f"hydra.sweep.subdir={folder}: several points would have this folder, and each "
                "would replace the results of the one before: leave it out"
            )

    def _check_contest(self, point: Any) -> None:
        """Refuse a point that would rank models by another objective than the points before."""
        objectives = OmegaConf.select(point, "objectives")
        if OmegaConf.select(point, "artifact.keep") != Keep.best or not objectives:
            return
        first = objectives[0]
        self._ranks_by = self._ranks_by or first
        if first != self._ranks_by:
            raise InputError(
                "artifact=best keeps the model that is best by the first objective, which must be "
                f"the same for all points, got {self._ranks_by} and {first}: run a multirun for "
                "each, or set artifact=true"
            )

    def _is_value(self, override: Override) -> bool:
        """Whether an override only changes a value that any composition has."""
        plain = override.type is OverrideType.CHANGE and override.package is None
        if not plain or override.is_sweep_override() or override.is_hydra_override():
            return False
        return not self._loader.repository.group_exists(override.key_or_group)


_multirun = Hydra.multirun


def _multirun_once(self: Hydra, *arguments: Any, **more: Any) -> Any:
    loader = self.config_loader
    self.config_loader = Points(loader)  # type: ignore[assignment]
    try:
        returned = _multirun(self, *arguments, **more)
    finally:
        self.config_loader = loader
    if isinstance(returned, list) and not any(returned):  # as Hydra's own sweeper returns points
        raise InputError("the multirun has no points: a setting has no values, such as glob(x*)")
    return returned


Hydra.multirun = _multirun_once  # type: ignore[method-assign]


_instantiate_sweeper = Plugins.instantiate_sweeper


def _checked_sweeper(self: Plugins, **arguments: Any) -> Any:
    config = arguments["config"]
    keep_last(config)
    fill_directions(config)
    # Hydra ignores errors of callbacks, so the checks are made here.
    check_studies(config, arguments["hydra_context"].config_loader)
    check_multirun(config)
    return _instantiate_sweeper(self, **arguments)


Plugins.instantiate_sweeper = _checked_sweeper  # type: ignore[method-assign]


_get_sanitized_cfg = Hydra.get_sanitized_cfg


def _sanitized(self: Hydra, cfg: Any, cfg_type: str) -> Any:
    """Return the settings to show; trackers' refer to the run's folder, which Hydra leaves out."""
    shown: Any = HydraConfig.instance().cfg
    if shown is not None and OmegaConf.is_missing(shown.hydra.runtime, "output_dir"):
        with read_write(shown.hydra), open_dict(shown.hydra):
            shown.hydra.runtime.output_dir = os.path.abspath(str(shown.hydra.run.dir))
    return _get_sanitized_cfg(self, cfg, cfg_type)


Hydra.get_sanitized_cfg = _sanitized  # type: ignore[method-assign]


_load_config = ConfigRepository.load_config


def _unshadowed(self: ConfigRepository, config_path: str) -> Any:
    check_shadowed(config_path, self.get_sources())
    return complete_sweeper(_load_config(self, config_path))


ConfigRepository.load_config = _unshadowed  # type: ignore[method-assign]


_configure_log = utils.configure_log
_no_log: list[str] = []  # why the log of this process's run could not be opened


def _configured(*arguments: Any, **more: Any) -> None:
    """Set up the log of a run; called by Hydra, which would end a multirun for an error here."""
    _no_log.clear()
    kept: Any = arguments[0] if arguments else None
    file = OmegaConf.select(kept, "handlers.file.filename") if OmegaConf.is_dict(kept) else None
    if file is not None and Path(str(file)).is_fifo():
        _no_log.append(f"{file}: is a pipe, which may never end: remove it")
        return
    try:
        _configure_log(*arguments, **more)
    except ValueError as error:
        told = None if of_log(error) is error else explain_shortage(error)
        if told is None:
            raise
        _no_log.append(told)


utils.configure_log = _configured


def check_log(key: str) -> None:
    """Refuse a run whose log could not be opened.

    Args:
        key: Setting of the folder that holds the run, for the message.

    Raises:
        InputError: One line with the key and the file.
    """
    if _no_log:
        raise InputError(f"{key}: {_no_log[0]}")


def _as_written(self: FloatRange) -> None:
    """Count in the decimal numbers that were typed: range(0.1,0.4,0.1) gives 0.1, 0.2 and 0.3.

    Hydra would count in their binary approximations, which give 0.30000000000000004 and 0.4.
    """
    self.start, self.stop, self.step = (
        Decimal(str(number)) for number in (self.start, self.stop, self.step)
    )


FloatRange.__post_init__ = _as_written  # type: ignore[method-assign]


def _mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
    """Return `hydra.mode` of the composed settings, after checking those of Hydra.

    Hydra's own function hides errors, so that a mistake shows only when it composes again.
    """
    composed = self.compose_config(
        config_name=config_name,
        overrides=overrides,
        run_mode=RunMode.MULTIRUN,
        with_log_configuration=False,
        validate_sweep_overrides=False,
    )
    check_hydra(composed.hydra)
    if composed.hydra.mode is not RunMode.MULTIRUN and (folder := composed.hydra.run.dir):
        check_own(Path(folder), SETTINGS_OF_RUN, "a run of patchcore", "set another hydra.run.dir")
    return composed.hydra.mode


Hydra.get_mode = _mode  # type: ignore[method-assign]


def entry(task: Callable[..., Any]) -> Callable[[], Any]:
    """Return the command that composes the configuration and calls `task` with it.

    Hydra 1.4 restricts which classes it may call. `targets.guard` does this for all versions of
    Hydra, so Hydra's own check is switched off.
    """
    unchecked = {"execution_whitelist": _unchecked()} if NEXT else {}
    main: Any = hydra.main
    made = main(config_path=CONFIG_PATH, config_name=CONFIG_NAME, **VERSION_BASE, **unchecked)
    command: Callable[[], Any] = made(task)
    return command


def call(settings: Any, **more: Any) -> Any:
    """Return the object that `settings` describe; `targets.check_targets` has allowed its class."""
    if NEXT:
        more["_execution_whitelist_"] = _unchecked()
    return instantiate(settings, **more)


def resolver(name: str, function: Callable[..., Any], use_cache: bool = False) -> None:
    """Make `function` known to OmegaConf as `${name:…}`."""
    register: Any = OmegaConf.register_new_resolver
    more: dict[str, Any] = {}
    # OmegaConf 2.3 has an older function of this name, without these options.
    if "replace" in inspect.signature(OmegaConf.register_resolver).parameters:
        register = OmegaConf.register_resolver
        more["annotation_validation"] = "off"
    register(name, function, replace=True, use_cache=use_cache, **more)


def store(name: str, node: Any, group: str | None = None, package: str | None = None) -> None:
    """Make a node known to Hydra; it replaces an earlier one of the same name."""
    keep: Any = ConfigStore.instance().store
    replace = {"replace": True} if "replace" in inspect.signature(keep).parameters else {}
    keep(name=name, node=node, group=group, package=package, **replace)


def _unchecked() -> Any:
    return hydra.utils.UNSAFE_DISABLE_EXECUTION_CHECKS  # type: ignore[attr-defined]
