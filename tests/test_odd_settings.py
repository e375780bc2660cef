"""Odd settings that are told in terms of settings, not in those of libraries."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module

from patchcore.commands.composed import to_config
from patchcore.commands.generations import VERSION_BASE
from patchcore.commands.mistakes import explain
from patchcore.data.mvtec import MVTecConfig
from patchcore.errors import InputError
from tests.runs import patchcore


def told(override: str) -> str:
    """The message about a setting of the command line."""
    with initialize_config_module(config_module="patchcore.conf", **VERSION_BASE):
        try:
            to_config(compose("config", [override]))
        except Exception as error:
            return explain(error) or f"a traceback: {error}"
    return "no message"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("layers.names=[null]", "layers.names[0]: may not be null: leave it out, or give a value"),
        ("curve=[null]", "curve[0]: may not be null: leave it out, or give a value"),
        ("curve=[a]", "curve[0]: must be a number, got a"),
        ("image.mean=[null,1,2]", "image.mean[0]: may not be null: leave it out, or give a value"),
        ("coreset.start={a:1}", "coreset.start: must be one value, got {'a': 1}"),
        (
            "pictures=[all]",
            "pictures: must be one value, got ['all']: leave the brackets out (pictures=all)",
        ),
        (
            "ensemble.members=[{image:{size:[1,2]}}]",
            "ensemble.members: image.size: must be a whole number, got [1, 2]",
        ),
        (
            "artifact=[all]",
            "artifact: is a list where settings (KEY: VALUE) belong, or settings where a list "
            "belongs",
        ),
        (
            "layers.names={a:1}",
            "layers.names: is a list where settings (KEY: VALUE) belong, or settings where a list "
            "belongs",
        ),
        ("~coreset.ratio", "coreset.ratio: cannot be removed: leave ~coreset.ratio out"),
        (
            "logger=[nope]",
            "logger=nope: there is no such choice; there are csv, mlflow, none, tensorboard, wandb",
        ),
    ],
)
def test_settings_are_told_in_their_own_terms(override: str, message: str) -> None:
    assert told(override) == message


@pytest.mark.parametrize(
    ("category", "message"),
    [
        ("", "data.category is empty: name a category"),
        (["a", ["b"]], "data.category must hold names of categories, got ['b']"),
        (["a", None], "data.category must hold names of categories, got None"),
    ],
)
def test_categories_are_names(category: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        MVTecConfig(category=category)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "+trainer.callbacks=[3]",
            "trainer.callbacks[0] must be a callback of Lightning, {_target_: CLASS, …}, got 3",
        ),
    ],
)
def test_callbacks_are_classes(override: str, message: str, tmp_path: Path) -> None:
    place = f"hydra.run.dir={tmp_path / 'run'}"
    data = [f"data.root={tmp_path / 'data'}", "data.train_images=2", "data.nominal_images=2"]
    done = patchcore("train", "logger=none", place, *data, "data.anomalous_images=3", override)
    assert done.code == 1 and done.err.splitlines()[-1] == f"error: {message}"
