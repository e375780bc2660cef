"""Points of a multirun that run at the same time, each on a GPU of its own."""

import os
from typing import Any
from unittest import mock

import pytest
import torch
from hydra.types import RunMode
from omegaconf import OmegaConf

from patchcore.commands.gpus import take_gpu

JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
VISIBLE = "CUDA_VISIBLE_DEVICES"


@pytest.fixture(autouse=True)
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with four GPUs, of which this process may use those that the variable names."""

    def count() -> int:
        given = os.environ.get(VISIBLE)
        return 4 if given is None else len(given.split(","))

    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", count)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)


def taken(
    number: int, launcher: str = JOBLIB, mode: RunMode = RunMode.MULTIRUN, **trainer: Any
) -> str | None:
    """The GPUs that a point sees, in an environment of its own."""
    cfg = OmegaConf.create({"trainer": {"accelerator": "auto", "devices": 1, **trainer}})
    run: Any = OmegaConf.create({"launcher": {"_target_": launcher}, "job": {"num": number}})
    run.mode = mode
    with mock.patch.dict(os.environ):
        take_gpu(cfg, run)
        return os.environ.get(VISIBLE)


def test_points_are_spread_over_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [taken(number) for number in range(6)] == ["0", "1", "2", "3", "0", "1"]
    monkeypatch.setenv(VISIBLE, "2, GPU-5f")
    assert [taken(number) for number in range(3)] == ["2", "GPU-5f", "2"]


def test_a_process_keeps_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "3")  # as an earlier point left it
    assert taken(6) == "3"


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
    assert taken(1, **given) is None


def test_a_process_that_uses_a_gpu_already_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert taken(1) is None
