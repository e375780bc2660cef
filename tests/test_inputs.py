"""Mean and standard deviation are those of the weights' own record."""

from pathlib import Path
from typing import Any

import pytest
import timm
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from safetensors.torch import save_file

from patchcore import BackboneConfig, InputError, PatchCore
from patchcore.commands.generations import VERSION_BASE
from patchcore.config import Config, register, to_config
from patchcore.data.transforms import ImageConfig
from tests.images import write_mvtec
from tests.runs import patchcore

pytestmark = pytest.mark.filterwarnings("ignore:backbone .* has random weights")
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF = ([0.5] * 3, [0.5] * 3)
LITE = ["backbone=timm", "backbone.name=tf_efficientnet_lite2"]


def composed(*overrides: str) -> Config:
    register()
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
        ([*LITE, "image.std=[1,1,1]", "image=px320"], "in1k", (HALF[0], [1.0] * 3)),
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


def test_a_run_uses_them_and_writes_them_down(tmp_path: Path) -> None:
    write_mvtec(tmp_path / "data", (40, 36))
    scores = []
    for i, more in enumerate(([], ["image.mean=[0.485,0.456,0.406]", "image.std=[1,1,1]"])):
        done = patchcore(
            *("train", "data=mvtec", f"data.root={tmp_path}/data", "data.category=nut"),
            *("backbone=timm", "backbone.name=test_convnext", "backbone.weights=none"),
            *("image.resize=64", "image.crop=64", "layers.names=[2]", "trainer=cpu", "logger=none"),
            *("figures=false", "trainer.enable_progress_bar=false", *more),
            f"hydra.run.dir={tmp_path}/{i}",
        )
        assert done.code == 0, done.err
        scores.append((tmp_path / f"{i}/scores.csv").read_text())
    written: Any = OmegaConf.load(tmp_path / "0/config.yaml")
    assert written.image.mean == written.image.std == [0.5, 0.5, 0.5]
    assert written.backbone.weights == "none"
    assert scores[0] != scores[1]  # so they are used
