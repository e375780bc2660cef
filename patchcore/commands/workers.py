"""Processes in which joblib runs points: copies of one that has imported the slow libraries.

joblib would start Python anew for each, and each would import these libraries for several seconds.
"""

import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from multiprocessing import (
    get_all_start_methods,
    get_start_method,
    resource_tracker,
    set_start_method,
)
from multiprocessing.forkserver import ensure_running, set_forkserver_preload
from typing import Any

from patchcore.commands import end_with_parent

IMPORTED = "patchcore.commands.imported"
"""Module that imports them."""


def fork_workers() -> None:
    """Let joblib start its processes as copies from now on, where the system has forks.

    Ctrl-C is blocked in them, because the command handles it. They end with the command, even if no
    point has reached them.
    """
    if "forkserver" not in get_all_start_methods():
        return
    from multiprocessing.popen_forkserver import Popen

    def start(process: Any) -> Any:
        environment = {**os.environ, **process.env}
        # Libraries that are imported before a fork start threads in macOS, where this is unsafe.
        _start_first(environment, [IMPORTED] if sys.platform == "linux" else [])
        process._args = (environment, get_start_method(), process._target, *process._args)
        process._target = _begin
        try:
            return Popen(process)
        except (EOFError, OSError):  # the one that is copied has been killed
            return import_module("joblib.externals.loky.backend.popen_loky_posix").Popen(process)

    with suppress(ImportError, AttributeError):  # another joblib, without this convenience
        module: Any = import_module("joblib.externals.loky.backend.process")
        module.LokyProcess._Popen = staticmethod(start)


def _start_first(environment: Mapping[str, str], modules: list[str]) -> None:
    """Start the process that is copied, unless it runs.

    Libraries read the number of threads from its environment when they are imported.
    """
    before = dict(os.environ)
    resource_tracker.ensure_running()  # else the server starts it, which would unblock Ctrl-C
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        os.environ.update(environment)
        set_forkserver_preload(modules)
        ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _begin(
    environment: Mapping[str, str], method: str, work: Callable[..., None], *arguments: Any
) -> None:
    """Work in a new process, under the environment variables and start method of the command.

    joblib's own start method starts no data loaders, and leaves semaphores with names behind if the
    process is killed, which Python then tells on stderr.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    set_start_method(method, force=True)
    os.environ.clear()
    os.environ.update(environment)
    end_with_parent()
    executor: Any = import_module("joblib.externals.loky.process_executor")
    executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize  # it would end one that keeps networks for later
    work(*arguments)
