"""Settings that were given although they have no effect are told, with what they lack."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import pytest
from hydra import compose, initialize_config_module
from hydra.types import RunMode
from omegaconf import OmegaConf

from patchcore.commands import idle, targets
from patchcore.commands.composed import to_config
from patchcore.commands.generations import VERSION_BASE
from patchcore.commands.groups import SCHEMAS
from patchcore.commands.idle import told, untried
from patchcore.commands.test import asked_data
from patchcore.config import Config
from patchcore.data.mvtec import MVTecConfig
from patchcore.errors import Told
from tests.runs import patchcore


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "_told", Told())


def messages(
    task: str, hydra: str = "", mode: RunMode = RunMode.RUN, values: str = ""
) -> list[str]:
    """Messages about overrides; `values` are what a point has of them, if they are several."""
    with initialize_config_module("patchcore.conf", **VERSION_BASE):
        config = to_config(compose("config", ["logger=none", *(values or task).split()]))
    overrides = {"task": task.split(), "hydra": hydra.split()}
    return [*told(config, OmegaConf.create({"mode": mode, "overrides": overrides}))]


MEMBER = "{backbone:{name:embedded},layers:{names:['2']},image:{size:64}}"


TOGETHER = {
    "decision.folds=5": "without decision.false_alarms: give both, or leave it out",
    "decision.seed=1": "without decision.false_alarms: give both, or leave it out",
    "label_free.folds=3": "without label_free.enabled=true or objectives=[label_free]: give both, "
    "or leave it out",
    "data.shots_seed=1": "without data.shots: give both, or leave it out",
    "data.contamination_seed=1": "without data.contamination: give both, or leave it out",
    "augment.seed=1": "without random changes, such as augment=flip: give both, or leave it out",
    "backbone.seed=1": "without backbone.weights=none: give both, or leave it out",
    "patch.channels=9": "with patch.mapping=average: leave it out",
    "coreset.ratio=0.2": "with coreset.count or coreset.radius, which override it: leave it out",
    "coreset.anchors=9": "without coreset.start=anchors: give both, or leave it out",
    "coreset.distortion=0.5": "unless a projection has coreset.dimension=null: leave it out",
    "coreset.dimension=9": "with coreset.projection=none: leave it out",
    "cache.limit_gib=9": "without cache.enabled=true: give both, or leave it out",
    "cache.precision=bfloat16": "without cache.enabled=true: give both, or leave it out",
    "ensemble.scale.images=9": "without ensemble.members: give both, or leave it out",
    "image.size=64": "with image.resize and image.crop: leave it out",
}
MORE = "patch=average coreset.count=9 coreset.projection=none image.resize=70 image.crop=64"


def test_settings_without_effect_are_told_with_what_they_lack() -> None:
    expected = [f"{key.partition('=')[0]} has no effect {TOGETHER[key]}" for key in TOGETHER]
    assert messages(f"{' '.join(TOGETHER)} {MORE}") == expected


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            "data.batch_size=3 image.tiles=64",
            "with image.tiles, where each image is a batch and no layer map is cached",
        ),
        (
            f"backbone=resnet18 ensemble.members=[{MEMBER},{MEMBER}]",
            "because all of ensemble.members have their own backbone",
        ),
        (
            f"layers.names=['3'] ensemble.members=[{MEMBER},{MEMBER}]",
            "because all of ensemble.members have their own layers",
        ),
        ("seed=1 data=mvtec method=spade", "because nothing random takes part"),
        ("data.test_share=0.3 data=folder data.nominal_test=a", "with data.nominal_test"),
    ],
)
def test_a_setting_without_effect_beside_others(overrides: str, words: str) -> None:
    key = overrides.partition("=")[0]
    assert messages(overrides) == [f"{key} has no effect {words}: leave it out"]


@pytest.mark.parametrize(
    "overrides",
    [
        "decision.folds=5 decision.seed=1 decision.false_alarms=0.1 coreset.ratio=0.2 seed=1 "
        "cache.enabled=true cache.precision=float32 cache.limit_gib=9 image.size=64 image.crop=60 "
        "coreset.chunk=9 image.limit=9 data.workers=1 data.batch_size=3",
        "image.resize=null image.stretch=false image.overlap=null method.shrinkage=null "
        "decision.false_alarms=null label_free.enabled=false cache.enabled=false cache.root=/a",
        "label_free.folds=3 objectives=[label_free]",
        "ensemble.members=[{layers:{names:['2']}},{layers:{names:['3']}}] image.size=64 seed=1",
        "ensemble=paper_320 coreset.ratio=0.2 data=mvtec ensemble.scale.images=9",
    ],
)
def test_settings_with_effect_are_not_told(overrides: str) -> None:
    assert messages(overrides) == []


def test_values_of_a_multirun_that_make_equal_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "_typed", ["--multirun", "decision.folds=3,5", "decision.seed=1"])
    assert messages("decision.folds=3 decision.seed=1", mode=RunMode.MULTIRUN) == [
        "decision.folds has no effect without decision.false_alarms: give both, or leave it out; "
        "points that differ only in it are equal",
        "decision.seed has no effect without decision.false_alarms: give both, or leave it out",
    ]


@pytest.mark.parametrize(
    ("given", "mode", "message"),
    [
        (
            "hydra.sweep.dir=a",
            RunMode.RUN,
            "hydra.sweep.dir has no effect without --multirun: set hydra.run.dir, or leave it out",
        ),
        (
            "hydra/launcher=processes",
            RunMode.RUN,
            "hydra/launcher has no effect without --multirun: give both, or leave it out",
        ),
        (
            "hydra.run.dir=a",
            RunMode.MULTIRUN,
            "hydra.run.dir has no effect with --multirun: set hydra.sweep.dir, or leave it out",
        ),
        ("hydra.run.dir=a hydra.job.name=b", RunMode.RUN, ""),
        ("hydra.sweep.dir=a hydra.launcher.n_jobs=2", RunMode.MULTIRUN, ""),
    ],
)
def test_settings_of_the_other_kind_of_command(given: str, mode: RunMode, message: str) -> None:
    assert messages("seed=0", given, mode) == [message] * bool(message)


def test_a_search_without_multirun() -> None:
    assert messages("hparams_search=accuracy_seconds", values="seed=0") == [
        "hparams_search searches nothing without --multirun: give both, or leave it out"
    ]


@pytest.mark.parametrize(
    ("given", "hydra", "message"),
    [
        (
            "experiment=example",
            "",
            "experiment=example: the values it tries (patch.size, data.category) need --multirun: "
            "one run without them follows",
        ),
        (
            "experiment=example data.category=object",
            "",
            "experiment=example: the values it tries (patch.size) need --multirun: one run without "
            "them follows",
        ),
        ("experiment=example data.category=object patch.size=1", "", ""),
        ("data=mvtec data.category=nut preset=padim", "", ""),
        ("hparams_search=accuracy_memory", "", ""),  # told in other words
        ("preset=padim", "hydra/sweeper=optuna", ""),
        (
            "preset=padim",
            "hydra.sweeper.n_trials=3",
            "preset=padim: its search (hydra/sweeper=optuna) needs --multirun: one run without it "
            "follows",
        ),
        ("experiment=example", "+hydra.sweeper.params.seed=3", ""),
    ],
)
def test_values_to_try_without_multirun(given: str, hydra: str, message: str) -> None:
    task, own = given.split(), hydra.split()
    sweeper = ["hydra/sweeper=optuna"] if "n_trials" in hydra else []
    with initialize_config_module("patchcore.conf", **VERSION_BASE):
        composed = compose("config", [*task, *sweeper, *own], return_hydra_config=True)
    composed.hydra.overrides.task, composed.hydra.overrides.hydra = task, own
    config: Any = SimpleNamespace(data=OmegaConf.get_type(composed.data))
    found = [*untried(config, composed.hydra, [each.partition("=")[0] for each in task])]
    assert found == [message] * bool(message)


def test_the_command_warns_before_it_reads_images(tmp_path: Path) -> None:
    given = ["data=mvtec", f"data.root={tmp_path}/none", "logger=none", "decision.folds=3"]
    words = "decision.folds has no effect without decision.false_alarms"
    with pytest.warns(UserWarning, match=words) as caught:
        done = patchcore("train", *given, f"hydra.run.dir={tmp_path}/run")
    assert (done.code, len(caught)) == (1, 1)


def test_the_command_warns_once_in_a_multirun(tmp_path: Path) -> None:
    given = ["data=mvtec", f"data.root={tmp_path}", "logger=none", "decision.folds=3,5"]
    with pytest.warns(UserWarning, match="points that differ only in it are equal") as caught:
        done = patchcore(
            "train", "--multirun", *given, "data.category=nut", f"hydra.sweep.dir={tmp_path}/runs"
        )
    assert (done.code, len(caught)) == (1, 1)
    assert "2 of the points failed" in done.err


def test_a_test_warns_of_data_settings_without_effect() -> None:
    kept = MVTecConfig(root="x", category="nut")
    with pytest.warns(UserWarning, match=r"data\.shots_seed has no effect without data\.shots"):
        asked_data(kept, ["data.shots_seed=3"])


def declared(kind: Any, path: str) -> Iterator[tuple[str, Any]]:
    """All fields of settings below a class, with their keys."""
    types = get_type_hints(kind)
    for option in fields(kind):
        key = f"{path}.{option.name}".lstrip(".")
        yield key, option
        inner = next((each for each in (types[option.name], *get_args(types[option.name]))
                      if is_dataclass(each)), None)  # fmt: skip
        if inner is not None:
            yield from declared(inner, key)


def test_each_setting_whose_effect_depends_on_others_says_on_which() -> None:
    found = dict(declared(Config, ""))
    for group, kinds in SCHEMAS.items():
        for name, kind in kinds.items():
            found |= {f"{name}:{key}": option for key, option in declared(kind, group)}
    notes = {key: option.metadata for key, option in found.items() if option.metadata}
    mute = {key for key, each in notes.items() if callable(each["effect"]) and not each["idle"]}
    assert mute == {
        "decision.false_alarms",  # a switch itself
        "image",  # the members' images follow it in part
        "seed",  # which idle.py knows
    }
