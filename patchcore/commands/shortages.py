"""Shortages of the machine: of room on a disk, folders that can be written, memory, threads."""

import errno
import os
import traceback
from pathlib import Path
from types import TracebackType

from patchcore.errors import REMEDIES, lost_link
from patchcore.machine import lacks_memory

_DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP),
    errno.EFBIG,
}
"""Errors with files that are not bugs of the program."""


def of_log(error: Exception) -> Exception:
    """Return the system's error with a log's file that could not be opened; others as they are.

    Python's logging hides it behind one that names the handler.
    """
    cause = error.__cause__
    hidden = isinstance(error, ValueError) and str(error).startswith("Unable to configure handler")
    return cause if hidden and isinstance(cause, OSError) else error


def explain_shortage(error: Exception) -> str | None:
    """Return the message, in one line, for an error that a shortage has caused; else None."""
    error, found = of_log(error), error
    if isinstance(error, FileNotFoundError) and error is not found:
        lost = lost_link(Path(os.fsdecode(error.filename)))
        return str(lost or f"{error.filename}: no log can be made there: choose another path")
    if isinstance(error, OSError) and error.errno in _DISK:
        if error.filename and (lost := lost_link(Path(os.fsdecode(error.filename)))):
            return str(lost)
        place = error.filename or "the folder of the results"
        return f"{place}: {error.strerror}: {REMEDIES.get(error.errno, 'choose another path')}"
    if isinstance(error, FileNotFoundError) and _makes_a_folder(error.__traceback__):
        return f"{error.filename}: no folder can be made there: choose another"
    words = " ".join(str(error).split())
    if isinstance(error, RuntimeError) and "DataLoader worker" in words:
        return (
            "data.workers: a loader process was killed, most often for lack of memory: set "
            "data.workers or data.batch_size lower"
        )
    if isinstance(error, ImportError | OSError) and "failed to map segment" in words:
        return (
            f"there was not enough memory to load a library ({words[:150]}): raise the limit of "
            "memory (ulimit -v), or end other programs"
        )
    if isinstance(error, RuntimeError) and "can't start new thread" in words:
        return (
            "no further thread can be started: raise the limit of memory or of processes (ulimit "
            "-v, ulimit -u), or end other programs"
        )
    if lacks_memory(error):
        return (
            "data.batch_size: there was not enough memory "
            f"({words[:150] or type(error).__name__}): lower data.batch_size, image.crop or "
            "coreset.ratio"
        )
    return None


def _makes_a_folder(trace: TracebackType | None) -> bool:
    names = [frame.f_code.co_name for frame, _ in traceback.walk_tb(trace)]
    return names[-1:] in (["mkdir"], ["makedirs"])
