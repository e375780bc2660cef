"""Processes that fit and test one model together: `trainer.devices` above 1.

The first process decides, writes and prints. The others only compute: the first one sends them
their tasks, and they compute their own share of the batches. The first process starts the others
itself, unless torchrun or SLURM has started all of them.

If a process fails, the whole run ends. The first process notices it, ends the others, and reports
the reason once, like a failure of its own. The other processes end when the first one has ended.
"""

import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from patchcore.errors import InputError, counted
from patchcore.rendezvous import meet
from patchcore.switches import check_numbered, check_srun, processes

PATIENCE = timedelta(days=1)
"""Longest wait for a process that is alive: a slow disk may delay it for hours."""
_CLOSED = re.compile(
    r"gloo|nccl|tcpstore|connection (closed|reset|refused)|broken pipe|a process has ended",
    re.IGNORECASE,
)
Work = Callable[[Any, "Process"], None]
"""Function that computes a task from the first process; it is given the task and this process."""


@dataclass(frozen=True)
class Process:
    """One of the processes that share a run.

    Attributes:
        rank: Number among all processes; 0 is the first.
        local: Number among the processes of its machine.
        size: Number of all processes.
        node: Number of its machine; 0 is the first.
    """

    rank: int
    local: int
    size: int
    node: int = 0


class Worker(Protocol):
    """A process that the first process has started."""

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""

    def kill(self) -> None:
        """End the process at once."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the process ends, at most `timeout` seconds, and return its exit code.

        Raises:
            subprocess.TimeoutExpired: The process still runs.
        """

    def close(self) -> None:
        """Release what the first process holds of a process that has ended."""


class Started(subprocess.Popen[bytes]):
    """A process on this machine that ends when its standard input is closed."""

    def close(self) -> None:
        """See `Worker.close`."""
        assert self.stdin is not None
        self.stdin.close()


def outside() -> Process | None:
    """Return this process as torchrun or SLURM started it among others; None if neither did.

    Raises:
        InputError: A variable of theirs is missing or no number that can be meant, or SLURM is
            to run several processes and this is none of them.
    """
    from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    environment: Any = None
    if TorchElasticEnvironment.detect():
        check_numbered(("RANK", "LOCAL_RANK", "WORLD_SIZE"), ("GROUP_RANK", "MASTER_PORT"))
        environment = TorchElasticEnvironment()
    elif SLURMEnvironment.detect() and check_numbered(("SLURM_NTASKS",))["SLURM_NTASKS"] > 1:
        own = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")
        check_numbered(own, ("SLURM_JOB_ID", "MASTER_PORT"))
        check_srun()
        environment = SLURMEnvironment()
        os.environ.setdefault("MASTER_ADDR", environment.main_address)
        os.environ.setdefault("MASTER_PORT", str(environment.main_port))
    if environment is None or environment.world_size() < 2:
        return None
    return Process(
        environment.global_rank(),
        environment.local_rank(),
        environment.world_size(),
        environment.node_rank(),
    )


def check_size(trainer: Mapping[str, Any]) -> None:
    """Refuse a number of processes that cannot be started, or differs from those started.

    Raises:
        InputError: torchrun or SLURM has started another number than the settings ask for; or
            several machines are asked for without either of them.
    """
    asked, process = processes(trainer), outside()
    if process is not None and process.size != asked:
        raise InputError(
            f"trainer.devices × trainer.num_nodes is {asked}, and "
            f"{counted(process.size, 'process')} started: set them to what torchrun or SLURM starts"
        )
    if process is None and int(trainer.get("num_nodes") or 1) > 1:
        raise InputError(
            "trainer.num_nodes: start the command with torchrun or SLURM on every machine, or set "
            "it to 1"
        )


class ProcessGroup:
    """All processes of a run, as the first process controls them.

    Use it as a context around the run, and `working` around the common work. It has no effect on a
    run of one process.

    Args:
        trainer: Arguments of Lightning's Trainer.
        launch: Function that starts a worker, given its `Process`, the port to connect to, and the
            file to which the worker writes the error that ends it; `start` by default.
    """

    def __init__(
        self,
        trainer: Mapping[str, Any],
        launch: Callable[[Process, int, Path], Worker] | None = None,
    ) -> None:
        check_size(trainer)
        self.process = outside() or Process(0, 0, processes(trainer))
        self._backend = backend({} if outside() else trainer)
        self._launch = launch or start
        self._workers: list[Worker] = []
        self._folder: Path | None = None
        self._lost = threading.Event()
        self._threads = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")

    def __enter__(self) -> "ProcessGroup":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.process.size == 1 or self.process.rank:
            return
        if outside() is not None:
            if kind is None:
                connect_outside()
                _send(("done", None))
        elif dist.is_initialized():
            with suppress(RuntimeError):
                _send(("done", None))
            self._dismiss()
        self._restore_threads()

    @contextmanager
    def working(self, task: Any) -> Iterator[None]:
        """Let the other processes compute `task` while this process does the same in the context.

        Raises:
            InputError: Another process ended without a message, or `task` cannot be pickled.
            BaseException: The error that ended another process, or the context itself.
        """
        if self.process.size == 1:
            yield
            return
        try:
            self._gather()
            _send(("work", pickled(task)))
            yield
            if self._lost.is_set():  # the results may lack the share of the lost process
                raise ConnectionError("a process has ended")
        except BaseException as error:
            cause = self._cause(error)
            self._dismiss(at_once=True)
            if cause is error:
                raise
            raise cause from None

    def _gather(self) -> None:
        """Connect all processes; first start the others, unless torchrun or SLURM did."""
        if dist.is_initialized():
            return
        if outside() is not None:
            connect_outside()
            return
        self._folder = Path(tempfile.mkdtemp(prefix="patchcore-group-"))
        self._lost = threading.Event()
        store = dist.TCPStore("127.0.0.1", 0, self.process.size, True, wait_for_workers=False)
        for rank in range(1, self.process.size):
            process = Process(rank, rank, self.process.size)
            self._workers.append(self._launch(process, store.port, self._folder / str(rank)))
        waiting = [f"here{rank}" for rank in range(1, self.process.size)]
        while not store.check(waiting):
            if any(each.poll() is not None for each in self._workers):
                raise ConnectionError("a process has ended")
            time.sleep(0.02)
        for each in self._workers:
            threading.Thread(
                target=_watch, args=(each, self._lost, "nccl" in self._backend), daemon=True
            ).start()
        _connect(self.process, self._backend, store)

    def _cause(self, error: BaseException) -> BaseException:
        """Return the error that ended the work: of this process, or of a worker."""
        if isinstance(error, InputError) or not isinstance(error, Exception):
            return error
        if not (isinstance(error, ConnectionError) or _CLOSED.search(str(error))):
            return error
        if not self._workers:
            return InputError("another process of the run has ended: see its message")
        end = time.monotonic() + 10
        while time.monotonic() < end:
            ended = [each.poll() for each in self._workers]
            if any(code is not None for code in ended):
                break
            time.sleep(0.02)
        words = [self._last_words(i) for i in range(len(ended))]
        for said in words:
            if said is not None and not _CLOSED.search(str(said)):
                return said
        for rank, (code, said) in enumerate(zip(ended, words, strict=True), 1):
            if code is not None and code != 0 and said is None:
                return InputError(
                    f"trainer.devices: process {rank} of {self.process.size} was killed or ended "
                    f"without a message (exit code {code}), most often for lack of memory: use "
                    "fewer devices, or a smaller data.batch_size"
                )
        return error

    def _last_words(self, i: int) -> BaseException | None:
        """Error that ended the i-th worker; None if it has left none."""
        assert self._folder is not None
        try:
            said: BaseException = pickle.loads((self._folder / str(i + 1)).read_bytes())
        except (OSError, EOFError, pickle.PickleError, ImportError, AttributeError, TypeError):
            return None
        return said

    def _dismiss(self, at_once: bool = False) -> None:
        """End the workers and the connection."""
        for each in self._workers:
            with suppress(subprocess.TimeoutExpired):
                if not at_once:
                    each.wait(30)
            if each.poll() is None:
                each.kill()
                each.wait()
            each.close()
        self._workers = []
        if dist.is_initialized():
            with suppress(RuntimeError):
                dist.destroy_process_group()
        if self._folder is not None:
            for file in self._folder.iterdir():
                file.unlink()
            self._folder.rmdir()
            self._folder = None

    def _restore_threads(self) -> None:
        """Undo the limits on threads that Lightning sets for processes that share a machine."""
        threads, variable = self._threads
        torch.set_num_threads(threads)
        if variable is None:
            os.environ.pop("OMP_NUM_THREADS", None)


def _watch(worker: Worker, lost: threading.Event, abort: bool) -> None:
    """Wait until a worker ends; if it failed, abort the operations that wait for it."""
    if worker.wait() != 0:
        lost.set()
        if abort and dist.is_initialized():  # gloo sees the closed connection by itself
            with suppress(Exception):
                dist.distributed_c10d._abort_process_group()


def backend(trainer: Mapping[str, Any]) -> str:
    """Return the name of PyTorch's communication backend for the devices of the settings."""
    accelerator = str(trainer.get("accelerator") or "auto")
    cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "cpu:gloo,cuda:nccl" if cuda else "gloo"


def start(process: Process, port: int, words: Path) -> Worker:
    """Start a worker on this machine."""
    program = "from patchcore.commands import load; load('patchcore.distributed').main()"
    arguments = [str(process.rank), str(process.size), str(port), str(words)]
    paths = os.pathsep.join(path for path in sys.path if path)
    return Started(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,  # it ends with this process
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": paths},
    )


def main() -> None:
    """Entry point of a process that `start` has started."""
    rank, size, port, words = sys.argv[1:]
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: the first decides
    follow(Process(int(rank), int(rank), int(size)), int(port), Path(words))


def follow(process: Process, port: int, words: Path) -> None:
    """Compute the tasks that the first process sends until it is done.

    An error that ends this process is pickled to the file `words`.
    """
    from patchcore.training import take_part  # here: it imports this file

    warnings.simplefilter("ignore")  # the first process prints the same warnings
    try:
        store = dist.TCPStore("127.0.0.1", port, process.size, False)
        store.set(f"here{process.rank}", "")
        _connect(process, None, store)
        serve(take_part, process)
    except BaseException as error:
        words.write_bytes(_legible(error))
        os._exit(1)  # at once: closing a broken connection could take long
    dist.destroy_process_group()


def serve(work: Work, process: Process) -> bool:
    """Compute the tasks of one run until it is done; return whether another run may follow."""
    while True:
        kind, content = _receive()
        if kind != "work":
            return bool(kind == "done")
        work(pickle.loads(content), process)


def accompany(work: Work, always: bool = False) -> None:
    """Take part in a run as a process that torchrun or SLURM started, but not as the first one.

    Args:
        work: See `Work`.
        always: Whether to take part in every run until the first process ends, instead of one.
    """
    process = outside()
    assert process is not None
    connect_outside()
    while serve(work, process) and always:
        pass
    if always:
        dist.destroy_process_group()


def part() -> None:
    """Tell the other processes that torchrun or SLURM started to end, too."""
    process = outside()
    if process is not None and process.rank == 0:
        connect_outside()
        _send(("end", None))
        dist.destroy_process_group()


def connect_outside() -> None:
    """Connect the processes that torchrun or SLURM started."""
    process = outside()
    assert process is not None
    if not dist.is_initialized():
        store = meet(process.rank, process.size, PATIENCE)
        dist.init_process_group(
            backend({}), None, PATIENCE, process.size, process.rank, store=store
        )


def pickled(task: Any) -> bytes:
    """Return a task as pickled bytes.

    Raises:
        InputError: A part of it cannot be pickled.
    """
    try:
        return pickle.dumps(task)
    except (pickle.PickleError, AttributeError, TypeError) as error:
        raise InputError(
            "trainer.devices: the parts of the run cannot be sent to the other processes "
            f"({error}): define their classes in a module, or set trainer.devices=1"
        ) from None


def _connect(process: Process, name: str | None, store: Any) -> None:
    """Connect the processes of a store; the first one names the backend, others pass None."""
    if name is None:
        name = store.get("backend").decode()
    else:
        store.set("backend", name)
    dist.init_process_group(
        name, store=store, rank=process.rank, world_size=process.size, timeout=PATIENCE
    )


def _send(message: Any) -> None:
    dist.broadcast_object_list([message], 0, device=torch.device("cpu"))


def _receive() -> Any:
    received: list[Any] = [None]
    dist.broadcast_object_list(received, 0, device=torch.device("cpu"))
    return received[0]


def _legible(error: BaseException) -> bytes:
    """A pickled error: the error itself if it can be unpickled, else one with its traceback."""
    text = "".join(traceback.format_exception(error))
    with suppress(Exception):
        data = pickle.dumps(error)
        if str(pickle.loads(data)) == str(error):
            if not isinstance(error, InputError):
                error.add_note(text)
                data = pickle.dumps(error)
            return data
    return pickle.dumps(RuntimeError(text))


def _end_with_parent() -> None:
    """End this process when the process that started it ends, which closes the pipe to stdin."""
    while os.read(0, 1):
        pass
    os._exit(1)
