"""Properties of the machine: available memory, the home folder, environment variables."""

import errno
import os
import sys
import tempfile
import warnings
from pathlib import Path

from patchcore.errors import InputError, Told, lost_link

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")
CACHE = "PATCHCORE_CACHE"
"""Environment variable that names the folder of the cache."""
_OF_TRAINER = "PL_TRAINER_"
_told = Told()
_UNLIMITED = 1 << 60  # without a limit, version 1 reports about 2^63


def available_memory() -> int | None:
    """Return the bytes of memory and swap that are free or hold only cached files.

    The limit of a container (cgroup, version 2 or 1) is respected. Without /proc/meminfo, all of
    the machine's memory counts as free. None if nothing is known.
    """
    found = [each for each in (_of_the_machine(), _of_the_container()) if each is not None]
    return min(found, default=None)


def lacks_memory(error: Exception) -> bool:
    """Return whether an error means that there was not enough memory, of the CPU or a GPU."""
    torch = sys.modules.get("torch")  # not imported: the error is not PyTorch's
    return (
        isinstance(error, MemoryError)
        or (torch is not None and isinstance(error, torch.OutOfMemoryError))
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def _of_the_machine() -> int | None:
    try:
        lines = [line.split() for line in MEMINFO.read_text().splitlines()]
        kilobytes = {line[0]: int(line[1]) for line in lines if len(line) > 1}
        return 1024 * (kilobytes["MemAvailable:"] + kilobytes.get("SwapFree:", 0))
    except (OSError, KeyError, ValueError):
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError):
            return None


def _of_the_container() -> int | None:
    for folder, limit, used, prefix in (
        (CGROUP, "memory.max", "memory.current", ""),
        (
            CGROUP / "memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_",
        ),
    ):
        try:
            most = int((folder / limit).read_text())  # "max" if there is no limit
            taken = int((folder / used).read_text())
            rows = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            files = sum(int(rows.get(f"{prefix}{age}_file", 0)) for age in ("active", "inactive"))
            if most < _UNLIMITED:
                return max(0, most - taken + files)
        except (OSError, ValueError):
            continue
    return None


def named_by(path: Path) -> str:
    """Return a clause that names the environment variable that a path comes from; else nothing."""
    for name, below in ((CACHE, ""), ("XDG_CACHE_HOME", "patchcore")):
        value = os.environ.get(name)
        if value and path.is_relative_to(home_expanded(value) / below):
            return f"; the environment variable {name} names this folder"
    return ""


def check_trainer_variables() -> None:
    """Refuse environment variables from which Lightning takes arguments of its Trainer.

    Raises:
        InputError: One is set; it could change what is measured, and no settings would tell.
    """
    for name in sorted(os.environ):
        if name.startswith(_OF_TRAINER):
            raise InputError(
                f"the environment variable {name} would set an argument of Lightning's Trainer "
                "unseen: unset it; runs have the settings trainer.… instead"
            )


def warn_not_kept(told: str, error: OSError, folder: Path) -> None:
    """Warn that something is not kept in a folder of the cache; once in a process.

    Args:
        told: What is not kept, with the folder.
        error: Reason, which may name another file each time.
        folder: Folder that was to be written to.
    """
    if _told.first(told):
        file = next((place for place in (folder, *folder.parents) if os.path.isfile(place)), None)
        reason = lost_link(folder) or (f"{file} is a file: name a folder" if file else error)
        warnings.warn(f"{told}: {reason}{named_by(folder)}", stacklevel=3)


def home_expanded(path: str) -> Path:
    """Return a path with ~ replaced by the home folder; by a temporary one if there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        own = Path(tempfile.gettempdir()) / f"patchcore-{os.getuid()}"
        return own / Path(path).relative_to("~") if path.startswith("~/") else own
