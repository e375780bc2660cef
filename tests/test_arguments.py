"""Wrong types given in Python: one line names the setting or argument and what was given."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import patchcore
from patchcore import (
    BackboneConfig,
    Ensemble,
    GreedyConfig,
    InputError,
    Inspector,
    LayersConfig,
    PatchCore,
    RandomConfig,
)
from patchcore.arguments import batches_of
from patchcore.config import Config
from patchcore.data.folder import FolderConfig
from patchcore.data.transforms import ImageConfig
from patchcore.data.view import View
from patchcore.decision import DecisionConfig
from patchcore.export import export, load_export
from patchcore.extend import extend, remove
from patchcore.index import TorchIndexConfig
from patchcore.methods.switches import PatchCoreConfig
from patchcore.metrics import Objective
from patchcore.runner import run

X: Any = "x"  # of any type, so that mypy lets it pass


def config(**changes: Any) -> Config:
    given: dict[str, Any] = {
        "data": FolderConfig(nominal="a"),
        "image": ImageConfig(),
        "method": PatchCoreConfig(),
        "coreset": GreedyConfig(),
        "index": TorchIndexConfig(),
        "trainer": {},
        "logger": {},
    }
    return Config(**{**given, **changes})


SETTINGS: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (DecisionConfig, {"false_alarms": "0.1"}, "decision.false_alarms must be a number, got '0.1'"),
    (DecisionConfig, {"false_alarms": [0.1]}, "decision.false_alarms must be a number, got [0.1]"),
    (DecisionConfig, {"false_alarms": True}, "decision.false_alarms must be a number, got True"),
    (
        DecisionConfig,
        {"false_alarms": object()},
        "decision.false_alarms must be a number, got a value of type object",
    ),
    (DecisionConfig, {"seed": True}, "decision.seed must be a whole number, got True"),
    (ImageConfig, {"size": 3.0}, "image.size must be a whole number, got 3.0"),
    (
        DecisionConfig,
        {"seed": None},
        "decision.seed may not be None: leave it out, or give a whole number",
    ),
    (LayersConfig, {"names": "2"}, "layers.names must be a list, got '2': write ['2']"),
    (LayersConfig, {"names": [2, 3]}, "layers.names[0] must be text, got 2"),
    (LayersConfig, {"names": {"2"}}, "layers.names must be a list, got {'2'}"),
    (LayersConfig, {"norm": "yes"}, "layers.norm must be True or False, got 'yes'"),
    (BackboneConfig, {"name": 5}, "backbone.name must be text, got 5"),
    (ImageConfig, {"mean": 0.5}, "image.mean must be a list, got 0.5: write [0.5]"),
    (ImageConfig, {"mean": ["a", 1, 2]}, "image.mean[0] must be a number, got 'a'"),
    (ImageConfig, {"view": "cropp"}, "image.view must be crop, whole or square, got 'cropp'"),
    (FolderConfig, {"nominal": 5}, "data.nominal must be text, got 5"),
    (
        patchcore.config.EnsembleConfig,
        {"members": ["a"]},
        "ensemble.members[0]: give settings, such as MemberConfig(…), not 'a'",
    ),
    (config, {"seed": "a"}, "seed must be a whole number, got 'a'"),
    (config, {"trainer": []}, "trainer must be a mapping {name: value}, got []"),
    (config, {"paper": {"image_auroc": "b"}}, "paper.image_auroc must be a number, got 'b'"),
    (config, {"paper": {"seconds": -1}}, "paper.seconds must be at least 0, got -1"),
    (
        config,
        {"paper": {"average_aupro": 93.5}},
        "paper.average_aupro must be in [0, 1], got 93.5: divide a percentage by 100",
    ),
    (
        config,
        {"paper": {"image_aurc": 0.9}},
        "paper.image_aurc: there is no such metric; did you mean paper.image_auroc?",
    ),
    (
        config,
        {"paper": {"x": 1}},
        "paper.x: there is no such metric; name one as metrics.json does",
    ),
    (config, {"objectives": ["x"]}, "objectives[0] must be one of image_auroc, "),
    (config, {"data": "mvtec"}, "data: give settings, such as FolderConfig(…), not 'mvtec'"),
]


@pytest.mark.parametrize(("make", "values", "message"), SETTINGS)
def test_settings_of_a_wrong_type(
    make: Callable[..., Any], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        make(**values)
    assert str(caught.value).startswith(message)
    if not message.endswith(", "):
        assert str(caught.value) == message


def test_settings_that_mean_the_same_are_converted() -> None:
    assert ImageConfig(limit=1).limit == 1
    sizes = [ImageConfig(size=each).size for each in (np.int64(5), torch.tensor(5))]  # type: ignore[arg-type]
    assert sizes == [5, 5] and {type(each) for each in sizes} == {int}
    share = ImageConfig(limit=np.float32(0.5)).limit  # type: ignore[arg-type]
    assert share == 0.5 and type(share) is float
    assert DecisionConfig(np.float64(0.25)).false_alarms == 0.25
    assert ImageConfig(mean=np.array([0.1, 0.2, 0.3])).mean == [0.1, 0.2, 0.3]  # type: ignore[arg-type]
    assert LayersConfig(OmegaConf.create(["2"])).names == ["2"]  # type: ignore[arg-type]
    assert LayersConfig(names=("2", "3")).names == ("2", "3")  # type: ignore[arg-type]
    assert BackboneConfig(weights=Path("a.pth")).weights == "a.pth"  # type: ignore[arg-type]
    assert ImageConfig(view="whole").view is View.whole  # type: ignore[arg-type]
    found = config(objectives=["seconds"], trainer=OmegaConf.create({"max_epochs": 1}))
    assert found.objectives == [Objective["seconds"]]
    assert found.trainer == {"max_epochs": 1}


@pytest.fixture(scope="module")
def fitted() -> PatchCore:
    return PatchCore(coreset=GreedyConfig(count=5)).fit(torch.rand(2, 3, 64, 64))


@pytest.fixture(scope="module")
def inspector(fitted: PatchCore) -> Inspector:
    return Inspector(fitted, ImageConfig(size=64, view=View.crop))


BATCHES = "images must be float tensors (B, 3, H, W), normalised as the backbone expects, got "


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("folder", "'folder': for files use patchcore train or patchcore.run to fit"),
        (Path("folder"), "Path('folder'): for files"),
        (["a.png"], "'a.png': for files"),
        (5, "5: for files"),
        (None, "None: for files"),
        (np.zeros((1, 3, 64, 64), np.float32), "a value of type numpy.ndarray: give torch tensors"),
        ([[torch.zeros(1, 3, 64, 64), 0]], "of batches with labels, give the images alone"),
        (torch.zeros(3, 64, 64), "the shape (3, 64, 64): add a dimension by images[None]"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "uint8: an Inspector takes pixels"),
    ],
)
def test_images_of_a_wrong_type(fitted: PatchCore, images: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        PatchCore().fit(images)
    assert message in str(caught.value) and str(caught.value).startswith(BATCHES)
    with pytest.raises(InputError, match=r"^images must be float tensors"):
        fitted(images)
    with pytest.raises(InputError, match=r"^images must be float tensors|^the ensemble has 1"):
        Ensemble([PatchCore()]).fit(images)


def test_arguments_of_a_wrong_type(fitted: PatchCore, inspector: Inspector, tmp_path: Path) -> None:
    wanted: list[tuple[Callable[[], Any], str]] = [
        (lambda: PatchCore(X), "backbone: give settings, such as BackboneConfig(…), not 'x'"),
        (lambda: Ensemble(5), "members must be a list of detectors, got 5"),  # type: ignore[arg-type]
        (lambda: Ensemble([X]), "members[0] must be a detector, such as PatchCore(), got 'x'"),
        (lambda: Ensemble([fitted], X), "config must be ScaleConfig(…), got 'x'"),
        (lambda: Inspector(X), "model must be a fitted detector or ensemble, got 'x'"),
        (
            lambda: Inspector(fitted, X),
            "images must be ImageConfig(…), or a list of them, got 'x'",
        ),
        (lambda: Inspector(fitted, [X]), "images[0] must be ImageConfig(…), got 'x'"),
        (lambda: Inspector(fitted, details=X), "details must be a mapping, got 'x'"),
        (lambda: inspector.prepare(X), "pixels must be an array uint8 (H, W, 3), got 'x'"),
        (lambda: inspector.score(X), "images must be tensors uint8 (B, h, w, 3), got 'x'"),
        (lambda: inspector.score([X]), "images must be tensors uint8 (B, h, w, 3), got 'x'"),
        (lambda: inspector.save(5), "folder must be a path, got 5"),  # type: ignore[arg-type]
        (lambda: fitted.save(None), "folder must be a path, got None"),  # type: ignore[arg-type]
        (lambda: patchcore.load(None), "folder must be a path, got None"),  # type: ignore[arg-type]
        (
            lambda: patchcore.load(tmp_path, None),  # type: ignore[arg-type]
            "device must be text, such as 'cpu', or a torch.device, got None",
        ),
        (lambda: load_export(5), "folder must be a path, got 5"),  # type: ignore[arg-type]
        (lambda: export(X, tmp_path), "inspector must be an Inspector, got 'x'"),
        (
            lambda: patchcore.predict(X, ["a"]),
            "inspector must be an Inspector, as patchcore.load gives it, or an exported model, "
            "got 'x'",
        ),
        (
            lambda: patchcore.predict(inspector, None),  # type: ignore[arg-type]
            "paths must be a list of image files, got None",
        ),
        (
            lambda: [*patchcore.predict(inspector, [5])],  # type: ignore[list-item]
            "paths[0] must be a path, got 5",
        ),
        (lambda: extend(X, []), "inspector must be an Inspector, got 'x'"),
        (lambda: extend(inspector, X), "images must be a list of image files, got 'x'"),
        (lambda: remove(inspector, X), "images must be a list of image files, got 'x'"),
        (lambda: run(X, tmp_path), "config must be a Config, got 'x'"),
        (lambda: run(config(), None), "folder must be a path, got None"),  # type: ignore[arg-type]
    ]
    for call, message in wanted:
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == message


def test_empty_paths_are_refused(inspector: Inspector, tmp_path: Path) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: patchcore.load(""),
        lambda: load_export(""),
        lambda: inspector.save(""),
        lambda: run(config(), ""),
        lambda: [*patchcore.predict(inspector, [""])],
    ]
    for call in calls:
        with pytest.raises(
            InputError, match=r'^[\w\[\]]+: is empty: give a path; "\." is the curr'
        ):
            call()
    with pytest.raises(InputError, match=r"^backbone\.weights is empty: name weights"):
        BackboneConfig(weights="")


def test_images_to_add_may_be_named_by_text(inspector: Inspector) -> None:
    with pytest.raises(InputError, match=r"absent\.png: cannot be read \(No such file"):
        extend(inspector, ["absent.png"])


def test_seeds_have_the_limits_of_the_command() -> None:
    for seed in (-1, 2**32, 2**70):
        for kind in (RandomConfig, GreedyConfig):
            with pytest.raises(InputError, match=r"^coreset.seed must be in \[0, 2\^32\), got "):
                kind(seed=seed)
    with pytest.raises(InputError, match=r"^data.shots_seed must be in \[0, 2\^32\)"):
        FolderConfig(nominal="good", shots_seed=2**32)
    assert RandomConfig(seed=2**32 - 1).seed == 2**32 - 1


def test_loggers_are_settings() -> None:
    with pytest.raises(InputError, match=r"^logger.csv must be the settings of a logger, .* True$"):
        config(logger={"csv": True})


def test_pixels_in_place_of_normalised_images_are_told() -> None:
    images = torch.rand(2, 3, 64, 64)
    with pytest.warns(UserWarning, match=r"^images: values from .* look like pixels of 0 to 255"):
        assert len([*batches_of([images * 255, images * 255])]) == 2
    for usual in (images, images * 255 - 100, torch.randn(2, 3, 8, 8) * 30, images[:0]):
        assert len([*batches_of(usual)]) == 1
