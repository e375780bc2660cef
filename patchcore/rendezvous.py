"""Meeting of the processes of a run that torchrun or SLURM has started.

PyTorch's own meeting waits inside one call, which no signal ends and which says nothing. This one
looks again and again, so that SIGINT and SIGTERM end it, and tells which processes it waits for.
"""

import os
import socket
import time
import warnings
from contextlib import closing
from datetime import timedelta

import torch.distributed as dist

from patchcore.errors import InputError

PAUSE = 0.1  # seconds between two looks
QUIET = 20.0  # seconds of waiting that are not worth a message
ANSWER = timedelta(seconds=30)  # longest wait for the answer of what listens at the address


def meet(rank: int, size: int, patience: timedelta) -> dist.Store:
    """Wait until all processes of a run are there, and return the store that they share.

    The address is in the environment variables `MASTER_ADDR` and `MASTER_PORT`. A warning names
    what is waited for if it takes long.

    Args:
        rank: Number of this process; the first one, 0, provides the store, unless torchrun does.
        size: Number of all processes.
        patience: Longest wait of each later call of the store.

    Raises:
        InputError: The first process cannot listen at the address, or another program does.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    provides = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    waiting = _Waiting(f"at MASTER_ADDR={host}, MASTER_PORT={port}")
    while not provides and not _listens(host, port):
        waiting.go_on("the first process, which does not listen")
    try:
        shared = dist.TCPStore(host, port, None, provides, ANSWER, False, multi_tenant=True)
    except dist.DistError as error:
        what = "this process cannot listen at" if provides else "no process of the run listens at"
        raise InputError(
            f"MASTER_PORT: {what} {host}:{port}, where another program may: set another port for "
            "all processes"
        ) from error
    shared.set_timeout(patience)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun keeps its store
    store = dist.PrefixStore(f"patchcore/{attempt}", shared)
    store.set(str(rank), "here")
    missing = list(range(size))
    while missing := [each for each in missing if not store.check([str(each)])]:
        waiting.go_on(f"{len(missing)} of {size} processes, such as that of RANK {missing[0]},")
    return store


class _Waiting:
    """A wait that is told once if it takes long."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._quiet_until: float | None = time.monotonic() + QUIET

    def go_on(self, what: str) -> None:
        """Wait for a moment longer for `what`."""
        if self._quiet_until is not None and time.monotonic() >= self._quiet_until:
            self._quiet_until = None
            warnings.warn(f"waiting for {what} {self._place}; Ctrl-C ends this", stacklevel=3)
        time.sleep(PAUSE)


def _listens(host: str, port: int) -> bool:
    try:
        with closing(socket.create_connection((host, port), 1)):
            return True
    except OSError:
        return False
