"""Several processes that fit and test one model: the numbers of one process, and one message."""

import csv
import json
import os
import signal
import socket
from dataclasses import replace
from datetime import timedelta
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

import patchcore
from patchcore import InputError
from patchcore.backbones import Join, LayersConfig
from patchcore.coreset import (
    AllConfig,
    ApproximateConfig,
    Coreset,
    GreedyConfig,
    LearnedConfig,
    Projection,
    RandomConfig,
    Shard,
    Start,
    subsample,
)
from patchcore.data.mvtec import MVTecConfig
from patchcore.data.transforms import ImageConfig
from patchcore.decision import DecisionConfig
from patchcore.distributed import Process, follow, outside
from patchcore.methods import SpadeConfig
from patchcore.patches import PatchConfig
from patchcore.strategy import Connected
from patchcore.switches import check_switches, processes
from tests.images import write_image, write_mvtec
from tests.processes import forkserver
from tests.runs import QUIET, config
from tests.runs import patchcore as command


class Forked:
    """A process as `patchcore.distributed.start` starts it, of a fork with the libraries."""

    started: list[BaseProcess] = []  # noqa: RUF012

    def __init__(self, process: Process, port: int, words: Path) -> None:
        self.process = forkserver().Process(target=follow, args=(process, port, words))
        self.process.start()
        self.lock = Lock()
        self.started.append(self.process)

    def poll(self) -> int | None:
        with self.lock:  # its exit code can be asked for by one thread at a time
            return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float | None = None) -> int:
        connection.wait([self.process.sentinel], timeout)
        return int(self.poll() or 0)

    def close(self) -> None:
        """Nothing of it stays open."""


class Witness(pl.Callback):
    """Writes the memory that each process ends with, or ends one of them."""

    def __init__(self, folder: str, fate: str = "", rank: int = 0) -> None:
        self.folder, self.fate, self.rank = Path(folder), fate, rank

    def on_test_start(self, trainer: pl.Trainer, module: Any) -> None:
        name = f"{trainer.world_size}-{trainer.global_rank}.pt"
        torch.save((module.model.memory, module.model.origin), self.folder / name)
        if self.fate and self.rank == trainer.global_rank:
            if self.fate == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("no such luck")


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> list[BaseProcess]:
    monkeypatch.setattr("patchcore.distributed.start", Forked)
    Forked.started.clear()
    return Forked.started


def dataset(root: Path, images: int) -> MVTecConfig:
    """So many training images of several sizes, in batches of one, and five test images."""
    folder = write_mvtec(root, (40, 36))
    for i in range(4, images):
        write_image(folder / f"train/good/{i:03d}.png", (40, 36), 100 + i)
    return MVTecConfig(root=str(root), category="nut", batch_size=1)


def trainer(folder: Path, devices: int, **fate: Any) -> dict[str, Any]:
    witness = {"_target_": f"{__name__}.Witness", "folder": str(folder), **fate}
    return {**QUIET, "devices": devices, "callbacks": [witness]}


def numbers(folder: Path) -> tuple[dict[str, Any], list[list[str]]]:
    """Metrics without the times, and the rows of scores.csv."""
    metrics = json.loads((folder / "metrics.json").read_text())
    with (folder / "scores.csv").open() as file:
        rows = list(csv.reader(file))
    return {k: v for k, v in metrics.items() if k != "seconds"}, rows


@pytest.mark.parametrize("images", [11, 12])
def test_two_processes_give_the_numbers_of_one(
    images: int, tmp_path: Path, forked: list[BaseProcess]
) -> None:
    data = dataset(tmp_path, images)
    for devices in (1, 2):
        settings = config(tmp_path, data=data, curve=[0.1], trainer=trainer(tmp_path, devices))
        patchcore.run(settings, tmp_path / str(devices))
    one, two = (numbers(tmp_path / name) for name in "12")
    assert one == two and one[0]["train_images"] == images and len(one[1]) == 6
    assert len(one[0]["ratio_curve"]) == 2 and one[0]["memory_patches"] == images * 8
    alone, first, second = (torch.load(tmp_path / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    for expected, *found in zip(alone, first, second, strict=True):  # memory, origin
        assert len(expected) == images * 8 and all(x.equal(expected) for x in found)
    (other,) = forked
    assert other.exitcode == 0 and not torch.distributed.is_initialized()


def test_an_error_in_one_process_is_told_as_that_of_one_alone(
    tmp_path: Path, forked: list[BaseProcess]
) -> None:
    data = dataset(tmp_path, 4)
    broken = tmp_path / "nut/train/good/001.png"  # of the second process
    broken.write_bytes(broken.read_bytes()[:50])
    told = []
    for devices in (1, 2):
        settings = config(tmp_path, data=data, trainer={**QUIET, "devices": devices})
        with pytest.raises(InputError, match=r"001\.png") as caught:
            patchcore.run(settings, tmp_path / "run")
        told.append(str(caught.value))
    assert told[0] == told[1] and "\n" not in told[0]
    assert not (tmp_path / "run/metrics.json").exists()
    assert [process.is_alive() for process in forked] == [False]


@pytest.mark.parametrize(
    ("fate", "error", "message"),
    [
        ({"fate": "killed", "rank": 1}, InputError, "process 1 of 2 was killed or ended without"),
        ({"fate": "raises", "rank": 0}, ValueError, "no such luck"),
    ],
)
def test_a_process_that_ends_takes_the_run_with_it(
    fate: dict[str, Any],
    error: type[Exception],
    message: str,
    tmp_path: Path,
    forked: list[BaseProcess],
) -> None:
    data = dataset(tmp_path, 4)
    settings = config(tmp_path, data=data, trainer=trainer(tmp_path, 2, **fate))
    with pytest.raises(error, match=message):
        patchcore.run(settings, tmp_path / "run")
    assert not (tmp_path / "run/metrics.json").exists()
    assert [process.is_alive() for process in forked] == [False]
    assert not torch.distributed.is_initialized()


IMAGES = [40] * 9 + [1, 7]  # patches of each
SAMPLERS = [
    AllConfig(),
    RandomConfig(ratio=0.2),
    ApproximateConfig(ratio=0.1, dimension=4),
    *(GreedyConfig(count=60, start=start, pool=pool) for start in Start for pool in (8, None)),
    GreedyConfig(ratio=0.3, projection=Projection.gaussian, dimension=4),
    GreedyConfig(radius=4.0, start=Start.mean),
]
FEATURES = [
    torch.randn(sum(IMAGES), 12, generator=torch.Generator().manual_seed(0)) + 3,
    torch.randint(3, (sum(IMAGES), 3), generator=torch.Generator().manual_seed(1)).float(),  # ties
]


def _memories(rank: int, port: int) -> list[Coreset]:
    """Memories of all samplers, made by two processes that have every other image."""
    store = torch.distributed.TCPStore("127.0.0.1", port, 2, False)
    patience = timedelta(minutes=5)  # should the other process have died
    torch.distributed.init_process_group("gloo", None, patience, 2, rank, store)
    images = list(range(rank, len(IMAGES), 2))
    shard = Shard.of(images, [IMAGES[i] for i in images])
    found = []
    for features in FEATURES:
        split = features.split(IMAGES)
        own = torch.cat([split[i] for i in images])
        found += [subsample(own, sampler, shard=shard) for sampler in SAMPLERS]
    torch.distributed.destroy_process_group()
    return found


def test_two_processes_choose_what_one_does() -> None:
    store = torch.distributed.TCPStore("127.0.0.1", 0, 2, True, wait_for_workers=False)
    other = forkserver().Process(target=_memories, args=(1, store.port))
    other.start()
    shared = _memories(0, store.port)
    other.join()
    assert other.exitcode == 0
    alone = [subsample(features, sampler) for features in FEATURES for sampler in SAMPLERS]
    for found, expected in zip(shared, alone, strict=True):
        assert found.memory.equal(expected.memory)
        assert found.indices is not None and found.indices.equal(expected.indices)


def _beside(settings: Any, folder: Path, variables: dict[str, str]) -> None:
    os.environ |= variables
    assert patchcore.run(settings, folder).record == {}


def test_processes_that_torchrun_has_started_share_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    shared |= {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    settings = config(tmp_path, data=dataset(tmp_path, 4), trainer={**QUIET, "devices": 2})
    own = {**shared, "RANK": "1", "LOCAL_RANK": "1"}
    other = forkserver().Process(target=_beside, args=(settings, tmp_path / "run", own))
    other.start()
    for name, value in {**shared, "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    try:
        done = patchcore.run(settings, tmp_path / "run")
    finally:
        torch.distributed.destroy_process_group()
    other.join()
    assert other.exitcode == 0
    with pytest.raises(InputError, match="num_nodes is 1, and 2 processes started"):
        patchcore.run(config(tmp_path), tmp_path / "refused")
    monkeypatch.undo()
    alone = patchcore.run(config(tmp_path, data=settings.data), tmp_path / "alone")
    assert numbers(done.folder) == numbers(alone.folder)


def test_the_command_starts_its_own_processes(tmp_path: Path) -> None:
    dataset(tmp_path, 4)
    done = command(
        *("train", "data=mvtec", f"data.root={tmp_path}", "data.category=nut", "data.batch_size=2"),
        *("image.resize=32", "image.crop=32", "layers.names=[2,3]", "patch=average"),
        *("coreset.ratio=0.5", "trainer=cpu", "trainer.devices=2", "logger=csv", "figures=false"),
        *(f"cache.root={tmp_path / 'cache'}", f"hydra.run.dir={tmp_path / 'run'}"),
    )
    assert done.code == 0, done.err
    assert done.out.count("image_auroc  ") == 1
    assert json.loads((tmp_path / "run/metrics.json").read_text())["train_images"] == 4


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"method": SpadeConfig()}, "method=spade is for one device alone"),
        ({"layers": LayersConfig(["2", "3"], Join.scaled)}, "layers.join=scaled is for one device"),
        ({"coreset": LearnedConfig()}, "coreset=learned is for one device alone"),
        ({"decision": DecisionConfig(false_alarms=0.1)}, "decision.false_alarms is for one device"),
    ],
)
def test_what_several_devices_cannot_do_is_refused(
    groups: dict[str, Any], message: str, tmp_path: Path
) -> None:
    if "method" in groups:
        groups |= {"coreset": AllConfig(), "patch": PatchConfig()}
    settings = config(tmp_path, trainer={**QUIET, "devices": 2}, **groups)
    with pytest.raises(InputError, match=f"^trainer.devices=2: {message}"):
        patchcore.run(settings, tmp_path / "run")


def test_machines_are_told_by_the_setting_that_asks_for_them(tmp_path: Path) -> None:
    given = {"coreset": AllConfig(), "patch": PatchConfig(), "method": SpadeConfig()}
    told = "^trainer.num_nodes=2: method=spade is for one device alone: set trainer.num_nodes=1$"
    with pytest.raises(InputError, match=told):
        patchcore.run(config(tmp_path, trainer={**QUIET, "num_nodes": 2}, **given), tmp_path)


@pytest.mark.parametrize("number", range(4))
def test_lightning_is_told_each_process_machine(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines with two processes each, as torchrun starts them."""
    told = {"RANK": number, "LOCAL_RANK": number % 2, "WORLD_SIZE": 4, "GROUP_RANK": number // 2}
    for key, value in {"TORCHELASTIC_RUN_ID": "run", **told}.items():
        monkeypatch.setenv(key, str(value))
    process = outside()
    assert process == Process(number, number % 2, 4, number // 2)
    environment = Connected(process)
    assert environment.global_rank() == number and environment.world_size() == 4
    assert (environment.node_rank(), environment.local_rank()) == divmod(number, 2)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("SLURM_NTASKS", "x", "SLURM_NTASKS must be a whole number from 0 to [0-9]+, got 'x': "),
        ("SLURM_PROCID", "-1", "SLURM_PROCID must be .*, got '-1'"),
        ("SLURM_LOCALID", None, "SLURM_LOCALID must be .*, and is not set"),
        ("SLURM_JOB_ID", "", "SLURM_JOB_ID must be .*, got ''"),
        ("RANK", "a", "RANK must be .*, got 'a'"),
        ("WORLD_SIZE", None, "WORLD_SIZE must be .*, and is not set"),
        ("MASTER_PORT", "70000", "MASTER_PORT must be a whole number from 0 to 65535, got '70000'"),
    ],
)
def test_odd_variables_of_a_launcher_are_named(
    name: str, value: str | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = dict.fromkeys(("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"), "0")
    torchrun = {"TORCHELASTIC_RUN_ID": "run", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    given = {"SLURM_NTASKS": "2", **slurm} if name.startswith("SLURM") else torchrun
    for key, each in {**given, name: value}.items():
        if each is None:
            monkeypatch.delenv(key, raising=False)
        else:
            monkeypatch.setenv(key, each)
    with pytest.raises(InputError, match=f"^the environment variable {told}"):
        outside()


def test_a_batch_script_without_srun_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    own = dict.fromkeys(("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"), "0")
    for key, value in {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7", **own}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("SLURM_STEP_ID", raising=False)
    with pytest.raises(InputError, match=r"SLURM_NTASKS announces .* start the command with srun"):
        outside()
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    with pytest.raises(InputError, match=r"SLURM_NTASKS_PER_NODE is not set: give SLURM --ntasks-"):
        outside()
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    assert outside() == Process(0, 0, 2, 0)


def test_more_processes_than_batches_are_refused(tmp_path: Path) -> None:
    data = dataset(tmp_path, 4)
    settings = config(tmp_path, data=data, trainer={**QUIET, "devices": 5})
    told = r"^trainer.devices=5 is more than the 4 batches .* training images"
    with pytest.raises(InputError, match=told):
        patchcore.run(settings, tmp_path / "run")
    in_tiles = {"data": replace(data, batch_size=16), "image": ImageConfig(tiles=32)}
    settings = config(tmp_path, **in_tiles, trainer={**QUIET, "devices": 5})
    with pytest.raises(InputError, match=told):  # an image in tiles is a batch of its own
        patchcore.run(settings, tmp_path / "run")
    settings = config(tmp_path, trainer={**QUIET, "num_nodes": 2})
    with pytest.raises(InputError, match=r"^trainer.num_nodes: start the command with torchrun"):
        patchcore.run(settings, tmp_path / "run")


def test_numbers_of_devices() -> None:
    asked = [{}, {"devices": 2}, {"devices": "2"}, {"devices": [0, 1]}, {"devices": "0,1"}]
    assert [processes(each) for each in asked] == [1, 2, 2, 2, 2]
    assert processes({"devices": 4, "num_nodes": 2}) == 8
    for each in asked:
        check_switches(each, augmented=False)
