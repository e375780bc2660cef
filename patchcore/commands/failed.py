"""Failed points of a multirun in its trackers."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from patchcore.commands.mistakes import explain
from patchcore.commands.targets import build
from patchcore.errors import InputError
from patchcore.runfolder import InUseError
from patchcore.tracking import track_failure


def track_failed(
    cfg: DictConfig, origin: Mapping[str, Any], folder: Path, error: Exception
) -> None:
    """Record a failed point in its trackers, with the settings that can be resolved."""
    if isinstance(error, InUseError):  # the trackers of the other run must not change
        return
    settings = {str(key): value for key in cfg if (value := _plain(cfg, str(key))) is not None}
    told = InputError(text) if (text := explain(error)) is not None else error
    told.tracked = getattr(error, "tracked", False)  # type: ignore[attr-defined]
    try:
        track_failure(settings.get("logger") or {}, settings, origin, folder, told, build)
    except Exception as trouble:  # trackers have no common base of their errors
        print(f"warning: {folder}: the failure is not tracked: {trouble}", file=sys.stderr)


def _plain(cfg: DictConfig, key: str) -> Any:
    """A group of settings as plain values; None if it cannot be resolved."""
    try:
        value = cfg[key]
        if OmegaConf.is_config(value):
            return OmegaConf.to_container(value, resolve=True, enum_to_str=True)
        return value
    except Exception:
        return None
