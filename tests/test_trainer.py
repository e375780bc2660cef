"""Trainers that a machine cannot have: one line that begins with the key."""

from pathlib import Path
from typing import Any

import pytest

from patchcore.errors import InputError
from patchcore.training import build_trainer, construct
from tests.runs import config


@pytest.mark.parametrize("kind", [InputError, ValueError])
def test_a_missing_gpu_is_told(tmp_path: Path, kind: type[Exception]) -> None:
    def make(key: str, settings: Any, **more: Any) -> Any:
        if kind is ValueError:
            raise kind("another mistake")
        raise kind(f"{key}: No supported gpu backend found!")

    settings = config(tmp_path, trainer={"accelerator": "gpu", "devices": 1})
    with pytest.raises(kind) as caught:
        build_trainer(settings, tmp_path, [], make)
    told = "trainer.accelerator=gpu: there is no GPU here that PyTorch can use: set trainer.accel"
    assert str(caught.value).startswith(told if kind is InputError else "another mistake")


def test_a_precision_that_is_replaced_is_refused_without_a_warning(tmp_path: Path) -> None:
    trainer = {"accelerator": "cpu", "devices": 1, "precision": "16-mixed"}
    told = r"^trainer.precision=16-mixed is not available on this device \(cpu\): set bf16-mixed or"
    with pytest.raises(InputError, match=told):
        build_trainer(config(tmp_path, trainer=trainer), tmp_path, [], construct)
