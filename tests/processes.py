"""Processes for tests: forks of one that has imported the slow libraries, once for all tests."""

import os
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager
from functools import cache
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running, set_forkserver_preload
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Lock
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[1]


def forkserver() -> ForkServerContext:
    """Return the context of these processes."""
    context = get_context("forkserver")
    with _STARTING:
        _start_first()
    return context


_STARTING = Lock()


@cache
def _start_first() -> None:
    """Start the process that is forked, where it finds `tests.libraries`."""
    set_forkserver_preload(["tests.libraries"])
    with chdir(ROOT):
        ensure_running()


@contextmanager
def forked_jobs() -> Iterator[None]:
    """Let submitit's local jobs be such processes: they read what new ones of Python would."""

    def start(folder: Path, tasks_per_node: int = 1, **_: Any) -> Job:
        given = {**os.environ, "SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_NODEID": "0"}
        given |= {"SUBMITIT_LOCAL_NTASKS": str(tasks_per_node), "SUBMITIT_LOCAL_JOB_NUM_NODES": "1"}
        given |= {"SUBMITIT_LOCAL_LOCALID": "0", "SUBMITIT_LOCAL_GLOBALID": "0"}
        assert tasks_per_node == 1
        process = forkserver().Process(target=_in_environment, args=(given, _submitted, folder))
        process.start()
        return Job(process)

    with mock.patch("submitit.local.local.start_controller", start):
        yield


class Job:
    """A process of `forked_jobs` as submitit looks at it: like one of subprocess's."""

    def __init__(self, process: BaseProcess) -> None:
        self.process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        if self.pid is not None and self.process.is_alive():
            os.kill(self.pid, number)


def _submitted(folder: Path) -> None:
    from submitit.core.submission import process_job

    os.environ["SUBMITIT_LOCAL_JOB_ID"] = str(os.getpid())
    process_job(folder)


def _in_environment(given: Mapping[str, str], target: Callable[..., None], *arguments: Any) -> None:
    """Call a function under the environment variables of the process that started this one."""
    os.environ.clear()
    os.environ.update(given)
    target(*arguments)


def execute(program: str, *arguments: str, folder: Path, patience: float = 300) -> str:
    """Run a program in `folder`, as `python -c` does; return its output.

    It imports the package anew, so that `folder` may hold a copy of it, and has so many seconds.

    Raises:
        AssertionError: It failed; with all that it printed.
    """
    log = folder / "program.log"
    process = forkserver().Process(target=_execute, args=(program, arguments, folder, log))
    process.start()
    process.join(patience)
    if process.exitcode is None:
        process.kill()
        process.join()
    assert process.exitcode == 0, log.read_text()
    return log.read_text()


_INTERPRETED = """
import os, sys
os.environ["TRITON_INTERPRET"] = "1"
for name in [*sys.modules]:
    if name.partition(".")[0] == "triton" and not name.startswith("triton._C"):
        del sys.modules[name]
sys.path.insert(0, {root!r})
"""


def execute_interpreted(program: str, folder: Path) -> str:
    """Run a program whose Triton kernels are interpreted on the CPU; see `execute`.

    Triton decides so when it is imported, so it is imported anew.
    """
    return execute(_INTERPRETED.format(root=str(ROOT)) + program, folder=folder)


def _execute(program: str, arguments: tuple[str, ...], folder: Path, log: Path) -> None:
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    for name in [*sys.modules]:
        if name.partition(".")[0] == "patchcore":
            del sys.modules[name]
    sys.dont_write_bytecode = True
    sys.argv = ["-c", *arguments]
    sys.path.insert(0, str(folder))
    exec(compile(program, "program", "exec"), {"__name__": "__main__"})


@contextmanager
def limited(size: int) -> Iterator[None]:
    """Let this process write no file of more than `size` bytes, as `ulimit -f` does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
