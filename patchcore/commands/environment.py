"""Surroundings of a process in which libraries fail while they are imported."""

import os
import re

from patchcore.errors import InputError

RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""Variables that tell Lightning which of several processes this is."""
OWN_RANKS = tuple(name for name in RANKS if name != "WORLD_SIZE")
"""Variables among them that hold the rank of this process."""


def current_folder() -> str:
    """Return the path of the current folder.

    Raises:
        InputError: It was removed, or cannot be used for another reason.
    """
    try:
        return os.getcwd()
    except OSError as error:
        raise InputError(
            f"the current folder cannot be used ({error.strerror}): change to another (cd)"
        ) from None


def check_environment() -> None:
    """Refuse a current folder that is gone, and wrong ranks and numbers of processes.

    Those of torchrun are checked later. Without it and SLURM, the rank of this process can only be
    0; with another, Lightning would leave warnings and trackers to a process that is not there.

    Raises:
        InputError: As in `current_folder`, or a variable holds something else.
    """
    current_folder()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return
    for name in RANKS:
        value = os.environ.get(name, "0")
        if not re.fullmatch(r"[0-9]{1,10}", value):
            raise InputError(
                f"the environment variable {name} must be a whole number from 0 on, got {value!r}: "
                "unset it, or start the command with torchrun or srun"
            )
        if name in OWN_RANKS and int(value) and value != _of_slurm(name):
            raise InputError(
                f"the environment variable {name} is {value}, but neither torchrun nor srun "
                "started this process as one of several: unset it"
            )


def _of_slurm(name: str) -> str | None:
    """Return what a variable of `OWN_RANKS` should be in a process that srun started."""
    if os.environ.get("SLURM_NTASKS", "1") == "1":
        return None
    return os.environ.get("SLURM_LOCALID" if name == "LOCAL_RANK" else "SLURM_PROCID")


def unknown_backend(error: Exception) -> str | None:
    """Return the message for a MPLBACKEND that matplotlib does not know; None for other errors."""
    asked = os.environ.get("MPLBACKEND")
    if not asked or not isinstance(error, ValueError) or not str(error).startswith("Key backend:"):
        return None
    return (
        f"the environment variable MPLBACKEND names no backend of matplotlib ({asked!r}): unset it"
    )
