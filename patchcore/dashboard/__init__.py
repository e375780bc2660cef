"""Dashboards of a sweep in W&B, as code: a saved workspace and a report.

They need the extra `dashboard`. `specification` is all that is sent, without a network.
"""

import warnings
from typing import Any

from patchcore.dashboard.offline import sync
from patchcore.dashboard.sweep import Sweep, from_folder, from_wandb, to_dict
from patchcore.errors import InputError

__all__ = ["Sweep", "from_folder", "from_wandb", "save", "specification", "sync"]


def specification(sweep: Sweep) -> dict[str, Any]:
    """Return the workspace and the report as W&B takes them, of plain values; asks no server."""
    panels = _panels()
    view = panels.workspace(sweep)._to_model()
    told = panels.report(sweep, offline=True)._to_model()
    return {
        **to_dict(sweep),
        "workspace": {"name": view.display_name, "spec": _plain(view.spec)},
        "report": {"title": told.display_name, "spec": _plain(told.spec)},
    }


def save(sweep: Sweep) -> tuple[str, str]:
    """Save the workspace and the report in W&B; return their addresses.

    Raises:
        InputError: W&B cannot be reached, or does not take them.
    """
    panels = _panels()
    try:
        view = panels.workspace(sweep).save()
        told = panels.report(sweep).save()
    except Exception as error:  # the client has no common base of its errors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"W&B: {reason}; --dry-run prints what would be sent") from error
    return view.url, told.url


def _plain(spec: Any) -> Any:
    return spec.model_dump(mode="json", by_alias=True, exclude_none=True)


def _panels() -> Any:
    try:
        with warnings.catch_warnings():  # it has validators that pydantic will drop
            warnings.simplefilter("ignore", DeprecationWarning)
            from patchcore.dashboard import panels
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("wandb_workspaces"):
            raise
        raise InputError("dashboard needs an extra: pip install 'patchcore[dashboard]'") from error
    return panels
