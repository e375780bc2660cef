"""Trainers that a machine cannot have: one line that begins with the key."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from pytorch_lightning import Callback

from patchcore import run
from patchcore.data.generated import GeneratedConfig
from patchcore.errors import InputError
from patchcore.measuring import measure
from patchcore.training import build_trainer, construct
from tests.images import write_mvtec
from tests.runs import QUIET, config


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


@pytest.mark.parametrize("tested", [False, True])
def test_variables_that_lightning_reads_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tested: bool
) -> None:
    monkeypatch.setenv("PL_TRAINER_LIMIT_TEST_BATCHES", "1")
    told = r"^the environment variable PL_TRAINER_LIMIT_TEST_BATCHES would set .*: unset it; "
    with pytest.raises(InputError, match=told):
        if tested:
            measure(Mock(alike=True), GeneratedConfig())
        else:
            build_trainer(config(tmp_path, trainer=QUIET), tmp_path, [], construct)


class Failing(Callback):
    """Callback of a user's own, with a bug."""

    def on_train_end(self, trainer: Any, module: Any) -> None:
        raise KeyError("mine")


def run_with(tmp_path: Path, name: str, **settings: Any) -> None:
    write_mvtec(tmp_path)
    callbacks = [{"_target_": name, **settings}]
    run(config(tmp_path, trainer={**QUIET, "callbacks": callbacks}), tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("EarlyStopping", {"monitor": "x"}, r"(.*metric `x`.*)"),
        ("BackboneFinetuning", {}, r"(.*'backbone')"),
        ("LearningRateFinder", {}, r"(When using the .*)"),
    ],
)
def test_callbacks_that_need_more_than_a_run_has_are_named(
    name: str, settings: dict[str, str], words: str, tmp_path: Path
) -> None:
    told = rf"^trainer\.callbacks: {name} does not fit this run \({words}\): leave it out$"
    with pytest.raises(InputError, match=told):
        run_with(tmp_path, f"pytorch_lightning.callbacks.{name}", **settings)


def test_bugs_of_other_callbacks_keep_their_traceback(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="mine"):
        run_with(tmp_path, f"{__name__}.Failing")
