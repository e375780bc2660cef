"""Points of a multirun that run at the same time, each on a GPU of its own."""

import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from hydra.types import RunMode
from omegaconf import OmegaConf

from patchcore import InputError
from patchcore.commands import gpus
from patchcore.commands.gpus import take_gpu

JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
VISIBLE = "CUDA_VISIBLE_DEVICES"


@pytest.fixture(autouse=True)
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with four GPUs, of which this process may use those that the variable names."""

    def count() -> int:
        given = os.environ.get(VISIBLE)
        return 4 if given is None else len(given.split(","))

    monkeypatch.setattr(gpus, "_given", [])
    monkeypatch.setattr(torch.cuda, "device_count", count)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    with mock.patch.dict(os.environ):  # restores what points set, too
        os.environ.pop(VISIBLE, None)
        yield


def taken(
    number: int, launcher: str = JOBLIB, mode: RunMode = RunMode.MULTIRUN, **trainer: Any
) -> str | None:
    """The GPUs that a point sees, in an environment of its own."""
    cfg = OmegaConf.create({"trainer": {"accelerator": "auto", "devices": 1, **trainer}})
    run: Any = OmegaConf.create({"launcher": {"_target_": launcher}, "job": {"num": number}})
    run.mode = mode
    take_gpu(cfg, run)
    return os.environ.get(VISIBLE)


def first(number: int, **given: Any) -> str | None:
    """The same for the first point of a process."""
    with mock.patch.dict(os.environ), mock.patch.object(gpus, "_given", []):
        return taken(number, **given)


def test_points_are_spread_over_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [first(number) for number in range(6)] == ["0", "1", "2", "3", "0", "1"]
    monkeypatch.setenv(VISIBLE, "2, GPU-5f")
    assert [first(number) for number in range(3)] == ["2", "GPU-5f", "2"]


def test_a_process_keeps_its_gpu() -> None:
    assert [taken(number) for number in (3, 6, 8)] == ["3", "3", "3"]


@pytest.mark.parametrize("before", [None, "1,2"])
def test_a_later_point_with_several_devices_sees_all(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before is not None:
        monkeypatch.setenv(VISIBLE, before)
    assert taken(1) == ("1" if before is None else "2")
    assert taken(2, devices=2) == before
    assert taken(4) == ("0" if before is None else "1")


def test_a_process_that_works_on_one_gpu_cannot_take_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken(1)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert taken(2) == "1"
    with pytest.raises(InputError, match=r"^trainer\.devices=2: this process works on one GPU"):
        taken(3, devices=2)


@pytest.mark.parametrize(
    "given",
    [
        {"launcher": BASIC},
        {"mode": RunMode.RUN},
        {"accelerator": "cpu"},
        {"devices": 2},
        {"devices": "auto"},
        {"devices": [1]},
    ],
)
def test_a_point_that_runs_alone_or_names_its_devices_sees_all(given: dict[str, Any]) -> None:
    assert first(1, **given) is None


def test_a_process_that_uses_a_gpu_already_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert taken(1) is None
