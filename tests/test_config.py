import os
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import pytorch_lightning as pl
import torch
import yaml
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from patchcore.commands.composed import to_config
from patchcore.commands.generations import VERSION_BASE
from patchcore.commands.groups import SCHEMAS
from patchcore.commands.mistakes import explain
from patchcore.commands.names import wandb_offline
from patchcore.commands.targets import build
from patchcore.config import Config
from patchcore.coreset import AllConfig, GreedyConfig, Projection
from patchcore.data.btad import BTADConfig
from patchcore.data.generated import GeneratedConfig
from patchcore.data.mstc import MSTCConfig
from patchcore.errors import InputError
from patchcore.methods import PadimConfig
from patchcore.scoring import Distance
from patchcore.tracking import build_logger, environment, presets
from tests.runs import REPOSITORY

CONF = REPOSITORY / "conf"
CHOICES = sorted(
    [
        f"{path.parent.relative_to(CONF)}={path.stem}"
        for path in CONF.glob("*/**/*.yaml")
        if "experiment" not in path.parts  # studies have tests of their own
    ]
    + [f"{group}={name}" for group, names in SCHEMAS.items() for name in names]
    + [f"logger={name}" for name in presets()]
)
DEFAULTS: dict[str, str | None] = {
    group: choice
    for entry in yaml.safe_load((CONF / "config.yaml").read_text())["defaults"]
    if isinstance(entry, dict)
    for group, choice in entry.items()
}
REQUIRED = {"backbone=timm": ["backbone.name=resnet18", "backbone.weights=tv_in1k"]}


@pytest.fixture(autouse=True)
def hydra_config() -> Iterator[None]:
    yield
    HydraConfig.instance().cfg = None


def composed(*overrides: str, folder: Path = Path("run")) -> Config:
    """Settings as the command gets them."""
    with initialize_config_module("patchcore.conf", **VERSION_BASE):
        cfg = compose("config", list(overrides), return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = str(folder)
        cfg.hydra.mode = RunMode.RUN
        HydraConfig.instance().set_config(cfg)
        del cfg["hydra"]
    return to_config(cfg)


TOGETHER = [
    *("augment", "backbone", "coreset", "data", "image", "index", "logger", "patch", "scoring"),
    "trainer",
]
"""Groups of which one choice each goes into the same settings, which spares composing them."""


def of_group(group: str) -> list[str]:
    return [choice for choice in CHOICES if choice.startswith(f"{group}=")]


@cache
def row(number: int) -> Config:
    """Settings of the choice of this number of every group in `TOGETHER` that has as many."""
    chosen = [choices[number] for choices in map(of_group, TOGETHER) if number < len(choices)]
    return composed(*chosen, *(more for choice in chosen for more in REQUIRED.get(choice, [])))


@cache
def shipped(choice: str) -> Config:
    group = choice.partition("=")[0]
    if group in TOGETHER:
        return row(of_group(group).index(choice))
    added = "" if group in DEFAULTS or group.startswith("hydra/") else "+"
    try:
        return composed(added + choice)
    except MissingConfigException as error:  # what it starts from is not ours
        pytest.skip(f"needs a plugin that is not installed: {error.missing_cfg_file}")


def complaint(*overrides: str) -> str:
    """Message that the user gets."""
    with pytest.raises((InputError, HydraException, OmegaConfBaseException)) as caught:
        composed(*overrides)
    message = explain(caught.value)
    assert message is not None and "\n" not in message
    return message


@pytest.mark.parametrize("choice", CHOICES)
def test_every_shipped_choice_becomes_real_settings(choice: str) -> None:
    config = shipped(choice)
    group, _, name = choice.partition("=")
    if group in SCHEMAS:
        assert type(getattr(config, group)) is SCHEMAS[group][name]
        return
    if not hasattr(config, group):  # it sets other groups, or Hydra
        return
    # Settings hold what the file says.
    path = CONF / group / f"{name}.yaml"
    written = presets()[name] if group == "logger" else yaml.safe_load(path.read_text()) or {}
    settings: Any = getattr(config, group)
    for key, value in written.items():
        if key in ("defaults", "hydra") or not value or "$" in str(value):
            continue
        got = settings[key] if isinstance(settings, dict) else getattr(settings, key)
        if key == "members":  # `test_the_papers_ensemble`
            continue
        if isinstance(value, dict):  # a logger
            assert got["_target_"] == value["_target_"]
        else:
            assert getattr(got, "name", got) == value


def test_every_group_has_a_default() -> None:
    settings = {entry.name for entry in fields(Config)}
    assert settings & {choice.partition("=")[0] for choice in CHOICES} <= set(DEFAULTS)
    for group, choice in DEFAULTS.items():
        assert choice is None or f"{group}={choice}" in CHOICES


@pytest.mark.parametrize("choice", of_group("backbone"))
def test_every_shipped_backbone_is_known(choice: str) -> None:
    import timm

    backbone = shipped(choice).backbone
    if backbone.name != "embedded":
        assert f"{backbone.name}.{backbone.weights}" in timm.list_pretrained(f"{backbone.name}.*")


@pytest.mark.parametrize("choice", of_group("trainer"))
def test_every_shipped_trainer_can_be_built(choice: str) -> None:
    settings = shipped(choice).trainer
    if settings["accelerator"] == "gpu" and not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"^trainer: No supported gpu backend found"):
            build("trainer", settings)
    else:
        trainer = build("trainer", settings, logger=False)
        assert trainer.max_epochs == 1 and trainer.num_devices == 1


@pytest.mark.parametrize("choice", of_group("logger"))
def test_every_shipped_logger_can_be_built(choice: str, tmp_path: Path) -> None:
    for name, settings in composed(choice, folder=tmp_path).logger.items():
        with environment(tmp_path):
            logger = build_logger(name, settings, build)
        assert isinstance(logger, pl.loggers.Logger)
        assert str(logger.save_dir).startswith(str(tmp_path))


def test_two_loggers_at_once() -> None:
    assert set(composed("logger=[csv,tensorboard]").logger) == {"csv", "tensorboard"}
    assert composed("logger=none").logger == {}


def test_one_seed_reaches_everything_random() -> None:
    config = composed("seed=7", "coreset=greedy", "data=generated", "augment=flip")
    assert isinstance(config.data, GeneratedConfig) and isinstance(config.coreset, GreedyConfig)
    assert config.seed == config.data.seed == config.coreset.seed == config.augment.seed == 7
    assert config.ensemble.scale.seed == config.data.shots_seed == 7
    assert config.backbone.seed == 0  # random weights stay the same network
    assert composed("seed=7", "coreset.seed=3").coreset.seed == 3


@pytest.mark.parametrize("choice", of_group("data"))
def test_the_seed_draws_the_shots_of_every_data_set(choice: str) -> None:
    data = composed("seed=7", choice, "data.shots=5").data
    assert (data.shots, data.shots_seed) == (5, 7)


def test_the_shots_may_have_a_seed_of_their_own() -> None:
    assert composed("seed=7", "data=folder", "data.shots_seed=3").data.shots_seed == 3


@pytest.mark.parametrize("scene", ["01", "12"])
def test_scenes_and_products_named_by_numbers_stay_text(scene: str) -> None:
    for choice in ("btad", "mstc"):
        data = composed(f"data={choice}", f"data.category={scene}").data
        assert isinstance(data, BTADConfig | MSTCConfig) and data.category == scene


def test_the_papers_methods_set_what_they_are_named_after() -> None:
    for percent in (1, 10, 25):
        config = composed(f"preset=patchcore_{percent}", "experiment=paper/table_1")
        assert isinstance(config.coreset, GreedyConfig)
        assert config.coreset.ratio == pytest.approx(percent / 100)
        assert config.backbone.name == "wide_resnet50_2" and config.image.crop == 224
    # The command line comes last.
    typed = composed("preset=patchcore_1", "experiment=paper/table_1", "backbone=resnet50")
    assert typed.backbone.name == "resnet50"


def test_the_papers_ensemble() -> None:
    config = composed("ensemble=paper_320", "layers.names=[1,2]", "seed=3")
    members = config.members()
    names = ["densenet201", "resnext101_32x8d", "wide_resnet101_2"]
    assert [own.backbone.name for own in members] == names
    assert {(own.image.crop, *own.layers.names) for own in members} == {(320, "1", "2")}
    assert config.ensemble.scale.seed == 3
    assert all(own.members() == [own] for own in members)
    assert composed("ensemble=none").ensemble.members == []


def test_a_member_takes_what_it_lacks_from_the_run() -> None:
    typed = "ensemble.members=[{},{backbone:{name:resnet18,weights:a/b.pth}},{layers:{names:[x]}}]"
    config = composed("backbone=resnet50", "image.size=280", typed)
    names = [own.backbone.name for own in config.members()]
    assert names == ["resnet50", "resnet18", "resnet50"]
    assert config.members()[1].backbone.weights == "a/b.pth"
    assert [own.layers.names for own in config.members()] == [["2", "3"], ["2", "3"], ["x"]]
    assert all(own.image == config.image for own in config.members())


def test_enum_values_are_written_in_lower_case() -> None:
    config = composed("coreset=greedy", "coreset.projection=sparse", "scoring.distance=squared")
    assert isinstance(config.coreset, GreedyConfig)
    assert config.coreset.projection is Projection("sparse")
    assert config.scoring.distance is Distance.squared


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            ["coreset.ratoi=0.1"],
            "coreset.ratoi: there is no such option; did you mean coreset.ratio?",
        ),
        (["+coreset.foo=1"], "coreset.foo: there is no such option; there are ratio, count, seed"),
        (["+foo=1"], "foo: there is no such option; there are data, image,"),
        (["corset=random"], "corset: there is no such option; did you mean coreset?"),
        (["coreset=greddy"], "coreset=greddy: there is no such choice; there are all, approx"),
        (["hydra/launcher=nope"], "hydra/launcher=nope: there is no such choice; there are basic"),
        (
            ["coreset=random", "coreset.projection=sparse"],
            "coreset.projection: there is no such option with coreset=random; there are ratio, c",
        ),
        (
            ["index=torch", "index.probes=3"],
            "index.probes: there is no such option with index=torch; there",
        ),
        (
            ["data=mvtec", "data.split=random"],
            "data.split: there is no such option with data=mvtec; there are",
        ),
        (["coreset.ratio=abc"], "coreset.ratio: must be a number, got abc"),
        (["image.crop=2.5"], "image.crop: must be a whole number, got 2.5"),
        (["coreset.ratio="], "coreset.ratio: must be a number, got nothing"),
        (["coreset.ratio={a:1}"], "coreset.ratio: must be a number, got {'a': 1}"),
        (["image.crop='a is not b'"], "image.crop: must be a whole number, got a is not b"),
        (["layers.names=2"], "layers.names: must be a list: 'layers.names=[…]'"),
        (["layers=+"], "layers: must be settings (KEY: VALUE), got +"),
        (["seed=null"], "seed: may not be null: leave it out, or give a value"),
        (
            ["data.category=[object]"],
            "data.category: must be one value, got ['object']: leave the brackets out (data.cate",
        ),
        (
            ["data.category=[texture,object]"],
            "data.category: must be one value, got ['texture', 'object']: for a run of each, type "
            "--multirun data.category=texture,object",
        ),
        (
            ["patch.size=[1,3]"],
            "patch.size: must be a whole number, got [1, 3]: for a run of each, type --multirun "
            "patch.size=1,3",
        ),
        (["ensemble.members=[{seed:1}]"], "ensemble.members: seed: there is no such option; the"),
        (["ensemble.members=[{backbone:x}]"], "ensemble.members: backbone: must be settings"),
        (
            ["ensemble.members=[{},{backbone:{name:x}}]"],
            "ensemble.members[1].backbone.name: timm has no network 'x'",
        ),
        (
            ["ensemble.members=[{},{image:{size:0}}]"],
            "ensemble.members[1].image.size must be at least 1, got 0",
        ),
        (
            ["ensemble.members=[{image:{crop:300}}]"],
            "ensemble.members[0].image.crop must be at most image.resize (256), got 300",
        ),
        (
            ["ensemble.members=[{layers:{names:[]}}]"],
            "ensemble.members[0].layers.names is empty",
        ),
        (
            ["scoring.distance=cosin"],
            "scoring.distance: must be one of euclidean, squared, cosine, got c",
        ),
        (["coreset=greedy", "coreset.ratio=1.5"], "coreset.ratio must be in (0, 1], got 1.5"),
        (["image.crop=300"], "image.crop must be at most image.resize (256), got 300"),
        (["patch.size=2"], "patch.size must be odd and positive, got 2"),
        (["scoring.sigma=-1"], "scoring.sigma must be in [0, 10000], got -1"),
        (["data.batch_size=0"], "data.batch_size must be at least 1, got 0"),
        (["seed=-1", "data=mvtec"], "seed must be in [0, 2^32), got -1"),
        (["coreset.ratio=0.5", "curve=[0.1,0.6]"], "curve must lie in (0, 0.5], the largest bei"),
        (["coreset.ratio=0.5", "curve=[0.1,0.2,0.1]"], "curve names 0.1 twice: leave one out"),
        (["coreset.ratio=0.5", "curve=[0]"], "curve must lie in (0, 0.5]"),
        (["curve=[0.1]", "coreset=learned"], "curve needs coreset=greedy, approximate or random"),
        (["curve=[0.1]", "coreset.count=5"], "curve needs coreset.ratio"),
        (
            ["method=padim", "coreset.ratio=0.1"],
            "coreset.ratio: coreset=all has no settings: leave",
        ),
        (["coreset=all", "coreset.count=3"], "coreset.count: coreset=all has no settings: lea"),
        (["layers="], "layers: must be settings (KEY: VALUE), got nothing"),
        (["logger=[csv,foo]"], "logger=foo: there is no such choice; there are csv, mlflow, none"),
        (["objectives=[]"], "objectives is empty"),
        (["objectives=[image_auroc,image_auroc]"], "objectives names a metric twice"),
        (["objectives=[auroc]"], "objectives"),
        (["cache.limit_gib=0"], "cache.limit_gib must be above 0"),
        (["trainer.max_epoch=2"], "trainer.max_epoch: there is no such option; if the class"),
        (
            ["hydra.sweeper.params={seed:'0,1'}"],
            "hydra.sweeper.params.seed: there is no such option; write --multirun seed=… to try s",
        ),
        (
            ["hydra.sweeper.params=5"],
            "hydra.sweeper.params: must hold settings (KEY: VALUE), such as ++hydra.sweeper.param",
        ),
        (
            ["coreset.count=2", "scoring.reweight=3"],
            "3 neighbours were asked for, but the memory holds 2 patches: lower scoring.neighbours",
        ),
        (["coreset.ratio"], "Error parsing override 'coreset.ratio' missing EQUAL"),
        (["backbone.name=???"], "backbone.name is missing: give backbone.name="),
        (["data.root=${oc.env:NO_SUCH_VARIABLE}"], "data.root: "),
        (
            ["experiment=paper/table_9"],
            "experiment=paper/table_9: there is no such choice; there are example, ingredients, m",
        ),
        (
            ["experiment=mdt"],
            "experiment=mdt: there is no such choice; there are example, ingredients, mapping, mtd",
        ),
    ],
)
def test_mistakes_are_told_in_one_line_that_begins_with_the_key(
    overrides: list[str], message: str
) -> None:
    assert complaint(*overrides).startswith(message)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["coreset.ratio=0.1"], "coreset.ratio: coreset=all has no settings: leave it out"),
        (
            ["coreset=greedy"],
            "coreset=greedy has no effect on method={}: leave it out, or set coreset=all",
        ),
        (["patch.size=5"], "patch.size has no effect on method={}: leave it out"),
        (["patch=average"], "patch.mapping has no effect on method={}: leave it out"),
        (["scoring=reweighted"], "scoring.reweight has no effect on method={}: leave it out"),
        (["scoring.neighbours=3"], "scoring.neighbours has no effect on method={}: leave it out"),
        (
            ["index=faiss_flat"],
            "index=faiss_flat has no effect on method={}: leave it out, or set index=torch",
        ),
        (["scoring.distance=cosine"], "scoring.distance has no effect on method={}: leave it out"),
        (["scoring.top_share=0.1"], "scoring.top_share has no effect on method={}: leave it out"),
        (["ensemble.members=[{},{}]"], "ensemble.members needs method=patchcore: set ensemble=no"),
        (["curve=[0.1]"], "curve needs method=patchcore: no other keeps a coreset"),
        (["method.foo=1"], "method.foo: there is no such option; there are "),
    ],
)
@pytest.mark.parametrize("model", ["spade", "padim"])
def test_settings_without_effect_on_a_baseline_are_named(
    model: str, overrides: list[str], message: str
) -> None:
    assert complaint(f"method={model}", *overrides).startswith(message.format(model))


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["method=padim", "index.chunk_mib=9"], "index.chunk_mib has no effect on method=padim"),
        (["method=padim", "method.channels=0"], "method.channels must be at least 1, got 0"),
        (["method=spade", "method.neighbours=0"], "method.neighbours must be at least 1, got 0"),
        (["method=spade", "method.pyramid=0"], "method.pyramid must be at least 1, got 0"),
        (["method=spade", "method.channels=9"], "method.channels: there is no such option"),
        (["method.neighbours=9"], "method.neighbours: there is no such option"),
        (["method=stfpm"], "method=stfpm: there is no such choice; there are padim, patchcore"),
    ],
)
def test_mistakes_in_a_models_own_settings(overrides: list[str], message: str) -> None:
    assert complaint(*overrides).startswith(message)


def test_a_baseline_brings_its_layers_and_keeps_what_has_an_effect() -> None:
    config = composed("method=spade", "scoring.sigma=2", "index.chunk_mib=64", "seed=5")
    assert config.layers.names == ["1", "2", "3"] and isinstance(config.coreset, AllConfig)
    assert config.scoring.sigma == 2
    padim = composed("method=padim", "layers.names=[2,3]", "seed=5").method
    assert isinstance(padim, PadimConfig) and padim.seed == 5
    assert composed("method=padim", "layers.names=[2,3]").layers.names == ["2", "3"]
    assert composed("experiment=mtd", "data.root=mtd").layers.names == ["2", "3"]


def test_mistakes_in_a_file_are_told_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    own = tmp_path / "experiment" / "mine.yaml"
    own.write_text("# @package _global_\nscoring:\n  sigmma: 2\n")
    message = complaint(f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine")
    assert message == (
        "scoring.sigmma: there is no such option; did you mean scoring.sigma? "
        "(in experiment/mine.yaml)"
    )
    own.write_text("# @package _global_\nscoring: loud\n")
    message = complaint(f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine")
    assert (
        message
        == "experiment/mine.yaml: a group must be settings (KEY: VALUE), got loud: correct the file"
    )
    own.write_text("# @package _global_\n- 1\n")
    message = complaint(f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine")
    assert message.startswith("experiment/mine.yaml: must hold settings (KEY: VALUE), not a list")
    for argument in ("+backbone@ensemble.members=resnet18", "+patch@curve=average"):
        assert complaint(argument).endswith(
            "not a list, or was put into one by @: correct the file or the place"
        )
    own.write_text("# @package _global_\nscoring:\n  sigma: 2\n")
    config = composed(f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine")
    assert config.scoring.sigma == 2


def test_a_folder_below_a_link_to_nothing_is_told_with_the_links_target(tmp_path: Path) -> None:
    link = tmp_path / "disk"
    link.symlink_to("gone")
    with pytest.raises(FileExistsError) as caught:
        (link / "runs").mkdir(parents=True, exist_ok=True)
    told = explain(caught.value)
    assert told is not None and told.startswith(f"{link}: this link leads to gone, which cannot")


def test_bugs_are_not_explained() -> None:
    assert explain(ValueError("oops")) is None
    assert explain(KeyError("oops")) is None
    try:
        raise HydraException("call failed") from ZeroDivisionError()
    except HydraException as error:
        assert explain(error) is None


def test_options_past_the_schema_are_refused() -> None:
    cfg = OmegaConf.structured(Config)
    OmegaConf.update(cfg, "scoring.weight", 3, force_add=True)
    with pytest.raises(InputError, match=r"^scoring\.weight: there is no such option"):
        to_config(cfg)


@pytest.mark.parametrize(
    "environment, netrc, offline",
    [
        ({}, "", True),
        ({}, "machine api.wandb.ai\n  login user\n  password key\n", False),
        ({}, "machine example.org\n  login user\n  password key\n", True),
        ({}, "machine", True),
        (
            {"WANDB_BASE_URL": "https://w.example.org"},
            "machine w.example.org login u password k",
            False,
        ),
        ({"WANDB_API_KEY": "key"}, "", False),
        ({"WANDB_API_KEY": "key", "WANDB_MODE": "offline"}, "", True),
        ({"WANDB_MODE": "online"}, "", False),
    ],
)
def test_wandb_is_offline_unless_a_key_is_there_or_online_is_asked_for(
    environment: dict[str, str], netrc: str, offline: bool, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text(netrc)
    environment = {"NETRC": str(tmp_path / "netrc"), **environment}
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    with mock.patch.dict(os.environ, {**clean, **environment}, clear=True):
        assert wandb_offline() is offline


def test_wandb_takes_that_from_the_environment_or_from_the_option(tmp_path: Path) -> None:
    with mock.patch.dict(os.environ, {"WANDB_MODE": "offline"}):
        assert composed("logger=wandb").logger["wandb"]["offline"] is True
        asked = composed("logger=wandb", "logger.wandb.offline=false").logger["wandb"]
        assert asked["offline"] is False and asked["name"] and asked["group"] is None
