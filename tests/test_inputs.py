"""The input follows the network and the data set: size, view, mean and standard deviation."""

import pickle
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import timm
from hydra import compose, initialize_config_module
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf
from safetensors.torch import save_file

import tests.runs
from patchcore import BackboneConfig, InputError, LayersConfig, PatchCore, run
from patchcore.commands.composed import to_config
from patchcore.commands.generations import VERSION_BASE
from patchcore.commands.mistakes import explain
from patchcore.config import Config
from patchcore.data.folder import FolderConfig
from patchcore.data.mstc import MSTCConfig
from patchcore.data.mtd import MTDConfig
from patchcore.data.mvtec import MVTecConfig
from patchcore.data.transforms import ImageConfig
from patchcore.data.view import View
from patchcore.member_settings import EnsembleConfig, MemberConfig
from patchcore.settings import plain
from tests.images import write_image, write_mvtec
from tests.runs import patchcore

pytestmark = pytest.mark.filterwarnings("ignore:backbone .* has random weights")
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF = ([0.5] * 3, [0.5] * 3)
LITE = ["backbone=timm", "backbone.name=tf_efficientnet_lite2"]


def composed(*overrides: str) -> Config:
    with initialize_config_module(config_module="patchcore.conf", **VERSION_BASE):
        cfg = compose("config", ["logger=none", *overrides])
    return to_config(cfg)


def normalisation(image: ImageConfig) -> tuple[Any, Any]:
    return image.mean, image.std


@pytest.mark.parametrize(
    ("overrides", "weights", "expected"),
    [
        ([], "shipped", IMAGENET),
        (["backbone.weights=none"], "none", IMAGENET),
        (["backbone=wide_resnet50_2"], "tv_in1k", IMAGENET),
        (LITE, "in1k", HALF),
        ([*LITE, "backbone.weights=none"], "none", HALF),
        (["backbone=timm", "backbone.name=vit_base_patch16_224.mae"], None, None),
        (["backbone=timm", "backbone.name=vit_tiny_patch16_224"], "augreg_in21k_ft_in1k", HALF),
        (  # another tag of one network, another record
            ["backbone=timm", "backbone.name=vit_base_patch16_224", "backbone.weights=mae"],
            "mae",
            IMAGENET,
        ),
        ([*LITE, "image.mean=[0.1,0.2,0.3]"], "in1k", ([0.1, 0.2, 0.3], HALF[1])),
        ([*LITE, "image.std=[1,1,1]", "image.size=320"], "in1k", (HALF[0], [1.0] * 3)),
        (["backbone=dinov2_small"], "lvd142m", IMAGENET),
    ],
)
def test_settings_show_the_values_of_the_weights(
    overrides: list[str], weights: str | None, expected: tuple[Any, Any] | None
) -> None:
    if expected is None:
        with pytest.raises(InputError, match=r"backbone.name=vit_base_patch16_224 backbone.weigh"):
            composed(*overrides)
        return
    config = composed(*overrides)
    assert config.backbone.weights == weights
    assert normalisation(config.image) == expected


@pytest.mark.parametrize(
    ("overrides", "size", "view", "exact"),
    [
        (["data=mvtec"], 224, "crop", (256, False, 224)),
        (["data=generated"], 224, "crop", (256, False, 224)),
        (["data=folder"], 224, "square", (224, True, None)),
        (["data=mstc"], 256, "square", (256, True, None)),
        (["data=mtd", "image.size=320"], 320, "square", (320, True, None)),
        (["data=mtd", "image=px224"], 224, "crop", (256, False, 224)),
        (["data=mvtec", "image=px224_square"], 224, "square", (224, True, None)),
        (["data=mvtec", "image=px224", "image.size=280"], 280, "crop", (320, False, 280)),
        (["data=visa", "image.view=whole"], 224, "whole", (224, False, None)),
        (["data=mvtec", "image.resize=32", "image.crop=32"], None, None, (32, False, 32)),
        (["data=mtd", "image.resize=32"], 32, "square", (32, True, None)),
        (["data=mtd", "image.resize=32", "image.crop=32"], None, None, (32, True, 32)),
        (["data=mvtec", "image.resize=null", "image.crop=null"], None, None, (None, False, None)),
        (["data=mvtec", "image.crop=200"], None, None, (256, False, 200)),
        (["data=mvtec", "image.size=360", "image.stretch=true"], None, None, (411, True, 360)),
    ],
)
def test_size_and_view_are_the_data_sets_unless_given(
    overrides: list[str], size: int | None, view: str | None, exact: tuple[Any, ...]
) -> None:
    image = composed(*overrides).image
    assert (image.resize, image.stretch, image.crop) == exact
    assert (image.size, image.view and image.view.name) == (size, view)


def test_members_have_the_runs_view_at_their_own_size() -> None:
    members = "ensemble.members=[{},{image:{size:320}},{image:{view:crop}}]"
    with pytest.raises(InputError, match="member 3 would see a different part of an image"):
        composed("data=mtd", "image.size=280", members)
    config = composed("data=mtd", "image.size=280", members.replace("crop", "whole"))
    images = [member.image for member in config.members()]
    assert images[0] == config.image and config.image.size == 280
    assert (images[1].size, images[1].view, images[1].stretch) == (320, View.square, True)
    assert (images[2].size, images[2].view, images[2].crop) == (280, View.whole, None)


@pytest.mark.parametrize(
    ("preset", "told"),
    [
        ("px280", "set image.size=280 image.view=crop"),
        ("px256_square", "set image.size=256 image.view=square"),
        ("px256_whole", "set image.size=256 image.view=whole"),
        ("big", "there are px224, px224_square"),
    ],
)
def test_presets_that_are_gone_are_told_their_successor(preset: str, told: str) -> None:
    with pytest.raises(MissingConfigException) as caught:
        composed(f"image={preset}")
    assert explain(caught.value) == f"image={preset}: there is no such choice; {told}"


def test_record_of_every_tag_is_timms() -> None:
    for full in timm.list_pretrained("*efficientnet_b0.*"):
        name, _, tag = full.partition(".")
        record, cfg = BackboneConfig(name, tag).input(), timm.get_pretrained_cfg(full)
        assert (record.mean, record.std) == (cfg.mean, cfg.std)
        assert record.side == cfg.input_size[-1]


def test_a_file_has_the_record_of_its_network(tmp_path: Path) -> None:
    save_file(timm.create_model("test_convnext").state_dict(), tmp_path / "own.safetensors")
    record = BackboneConfig("test_convnext", str(tmp_path / "own.safetensors")).input()
    assert (list(record.mean), list(record.std)) == HALF
    model = PatchCore(BackboneConfig("test_convnext", str(tmp_path / "own.safetensors")))
    assert model.backbone.input == record
    with pytest.raises(InputError, match=r"no such file: gone\.pth"):
        PatchCore(BackboneConfig("test_convnext", "gone.pth"))


def test_members_of_an_ensemble_have_their_own() -> None:
    members = (
        "ensemble.members=[{backbone:{name:tf_efficientnet_lite2,weights:in1k}},"
        "{backbone:{name:resnet18,weights:tv_in1k},image:{resize:256,crop:224}},"
        "{layers:{names:['2']}}]"
    )
    first, second, third = composed(members).members()
    assert normalisation(first.image) == HALF
    assert normalisation(second.image) == normalisation(third.image) == IMAGENET
    assert first.image.crop == third.image.crop == 224
    first, second, _ = composed(members, "image.mean=[0,0,0]").members()
    assert normalisation(first.image) == ([0.0] * 3, HALF[1])  # set for the run
    assert normalisation(second.image) == IMAGENET  # has an image of its own


def test_without_a_network_imagenet_is_meant() -> None:
    assert normalisation(ImageConfig()) == IMAGENET
    assert normalisation(ImageConfig(std=[1.0, 1.0, 1.0])) == (IMAGENET[0], [1.0] * 3)


@pytest.mark.parametrize("key", ["mean", "std"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e39])
def test_values_that_no_image_survives_are_refused(key: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"^image\.{key} must be"):
        ImageConfig(**{key: [1.0, 1.0, value]})
    with pytest.raises(InputError, match=r"^image\.std must be at least"):
        ImageConfig(std=[1.0, 1e-42, 1.0])


def both(*overrides: str, **groups: Any) -> list[Any]:
    """Settings of images and backbones that the command composes, and those from Python."""
    groups = {"data": MTDConfig(), **groups}
    ours = tests.runs.config(Path("no"), **groups).completed()
    return [
        [(plain(each.image), plain(each.backbone)) for each in (config, *config.members())]
        for config in (composed(*overrides), ours)
    ]


@pytest.mark.parametrize(
    ("overrides", "groups"),
    [
        (["data=mtd"], {"image": ImageConfig()}),
        (["data=mvtec"], {"image": ImageConfig(), "data": MVTecConfig()}),
        (["data=mstc"], {"image": ImageConfig(), "data": MSTCConfig()}),
        (["data=mtd", "image.size=320"], {"image": ImageConfig(size=320)}),
        (["data=mtd", "image.view=crop"], {"image": ImageConfig(view=View.crop)}),
        (["data=mtd", "image.resize=32", "image.crop=32"], {"image": ImageConfig(32, crop=32)}),
        (["data=mtd", "image.crop=null"], {"image": ImageConfig(crop=None)}),
        (["data=mtd", "image.tiles=64"], {"image": ImageConfig(tiles=64)}),
        (
            ["data=mtd", "image.tiles=64", "image.size=300"],
            {"image": ImageConfig(tiles=64, size=300)},
        ),
        (
            ["data=mtd", *LITE],
            {"image": ImageConfig(), "backbone": BackboneConfig("tf_efficientnet_lite2")},
        ),
        (
            ["data=mtd", *LITE, "image.mean=[0.485,0.456,0.406]"],  # as if filled in, but given
            {
                "image": ImageConfig(mean=IMAGENET[0]),
                "backbone": BackboneConfig("tf_efficientnet_lite2"),
            },
        ),
        (
            [
                *("data=mtd", "image.size=280", "image.mean=[0,0,0]"),
                "ensemble.members=[{backbone:{name:tf_efficientnet_lite2,weights:in1k}},"
                "{image:{size:320}},{layers:{names:['2']}}]",
            ],
            {
                "image": ImageConfig(size=280, mean=[0.0] * 3),
                "ensemble": EnsembleConfig(
                    [
                        MemberConfig(BackboneConfig("tf_efficientnet_lite2", "in1k")),
                        MemberConfig(image=ImageConfig(size=320)),
                        MemberConfig(layers=LayersConfig(["2"])),
                    ]
                ),
            },
        ),
    ],
)
def test_settings_from_python_are_completed_as_the_commands(
    overrides: list[str], groups: dict[str, Any]
) -> None:
    theirs, ours = both(*overrides, **groups)
    assert ours == theirs


def test_what_was_given_is_known_of_copies_and_after_changes() -> None:
    image = ImageConfig(size=64, bits=12)
    for each in (image, deepcopy(image), pickle.loads(pickle.dumps(image))):
        given = {key: value for key, value in each.given().items() if value is not None}
        assert given == {"size": 64, "bits": 12, "limit": image.limit}
    image.mean = [0.1, 0.2, 0.3]
    assert image.given()["mean"] == [0.1, 0.2, 0.3] and image.given()["std"] is None
    assert image == ImageConfig(size=64, bits=12, mean=[0.1, 0.2, 0.3])
    complete = tests.runs.config(Path("no"), image=image).completed()
    assert complete.completed() == complete


def test_a_run_uses_them_and_writes_them_down(tmp_path: Path) -> None:
    write_mvtec(tmp_path / "data", (40, 36))
    scores = []
    for i, more in enumerate(([], ["image.mean=[0.485,0.456,0.406]", "image.std=[1,1,1]"])):
        done = patchcore(
            *("train", "data=mvtec", f"data.root={tmp_path}/data", "data.category=nut"),
            *("backbone=timm", "backbone.name=test_convnext", "backbone.weights=none"),
            *(
                "image.size=64",
                "image.view=square",
                "layers.names=[2]",
                "trainer=cpu",
                "logger=none",
            ),
            *("figures=false", "trainer.enable_progress_bar=false", *more),
            f"hydra.run.dir={tmp_path}/{i}",
        )
        assert done.code == 0, done.err
        scores.append((tmp_path / f"{i}/scores.csv").read_text())
    written: Any = OmegaConf.load(tmp_path / "0/config.yaml")
    assert written.image.mean == written.image.std == [0.5, 0.5, 0.5]
    assert (written.image.size, written.image.view) == (64, "square")
    assert (written.image.resize, written.image.crop, written.image.stretch) == (64, None, True)
    assert written.backbone.weights == "none"
    assert scores[0] != scores[1]  # so they are used


def test_a_run_from_python_uses_and_writes_down_the_same(tmp_path: Path) -> None:
    """The view is not that of `ImageConfig` alone, nor are mean and standard deviation."""
    for folder, count in (("nominal", 4), ("bent", 1)):
        for i in range(count):
            write_image(tmp_path / f"data/{folder}/{i}.png", (48, 36), i + 10 * count)
    typed = patchcore(
        *("train", "data=folder", f"data.root={tmp_path}/data", "data.anomalous=bent"),
        *("backbone=timm", "backbone.name=test_convnext", "backbone.weights=none"),
        *("image.size=64", "layers.names=[2]", "patch=average", "coreset.ratio=0.5"),
        *("trainer=cpu", "logger=none", "figures=false", f"hydra.run.dir={tmp_path}/typed"),
    )
    assert typed.code == 0, typed.err
    settings = tests.runs.config(
        tmp_path,
        data=FolderConfig(root=f"{tmp_path}/data", anomalous="bent"),
        image=ImageConfig(size=64),
        backbone=BackboneConfig("test_convnext", "none"),
        layers=LayersConfig(["2"]),
    )
    run(settings, tmp_path / "python")
    theirs, ours = (
        (OmegaConf.load(tmp_path / name / "config.yaml"), (tmp_path / name / "scores.csv"))
        for name in ("typed", "python")
    )
    assert ours[0].image == theirs[0].image and ours[0].image.mean == [0.5] * 3
    assert ours[0].image.view == "square" and ours[1].read_text() == theirs[1].read_text()
