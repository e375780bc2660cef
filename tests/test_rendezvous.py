"""Meeting of processes that torchrun or SLURM has started: waiting, telling, and ending."""

import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from patchcore import rendezvous
from patchcore.commands import Stopped, stoppable
from patchcore.errors import InputError
from patchcore.rendezvous import meet

LONG = timedelta(minutes=5)


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(number))
    return number


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_all_processes_meet_in_any_order(order: tuple[int, ...], port: int) -> None:
    with ThreadPoolExecutor(3) as threads:
        stores = [each.result() for each in [threads.submit(meet, i, 3, LONG) for i in order]]
    stores[0].set("word", "heard")
    assert all(store.get("word") == b"heard" for store in stores)


@pytest.mark.parametrize(
    ("rank", "what"),
    [
        (0, r"1 of 2 processes, such as that of RANK 1,"),
        (1, r"the first process, which does not listen"),
    ],
)
def test_a_wait_for_others_is_told_and_ends_with_a_signal(
    rank: int, what: str, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []

    def pause(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(rendezvous, "QUIET", 0.0)
    monkeypatch.setattr(rendezvous.time, "sleep", pause)
    told = f"waiting for {what} at MASTER_ADDR=127.0.0.1, MASTER_PORT={port}; Ctrl-C"
    with pytest.warns(UserWarning, match=told) as warned, pytest.raises(Stopped), stoppable():
        meet(rank, 2, LONG)
    assert len(warned) == 1 and len(looks) == 3


def test_a_port_of_another_program_is_told(port: int) -> None:
    told = f"^MASTER_PORT: this process cannot listen at 127.0.0.1:{port}, where another"
    with socket.create_server(("127.0.0.1", port)), pytest.raises(InputError, match=told):
        meet(0, 2, LONG)
