"""Tests that every method must pass: all of `METHODS`, and an ensemble.

`Toy` below is a method with everything that the interface has room for: it trains, some positions
do not count, and it keeps two memories.
"""

import copy
import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from safetensors.torch import load, save
from torch import Tensor, nn

from patchcore import Ensemble, InputError, PatchConfig
from patchcore.backbones import Backbone, BackboneConfig, Join, LayersConfig
from patchcore.commands.groups import SCHEMAS
from patchcore.data.augment import AugmentConfig
from patchcore.data.datamodule import AnomalyDataModule
from patchcore.data.mvtec import MVTecConfig
from patchcore.data.transforms import ImageConfig
from patchcore.methods import (
    METHODS,
    Detector,
    MethodConfig,
    Parts,
    PatchCoreConfig,
    build_detector,
)
from patchcore.methods.common import FeatureBuffer
from patchcore.methods.detector import Fitting, Method, Prediction
from patchcore.module import DetectorModule
from patchcore.scoring import anomaly_maps
from tests.images import write_mvtec
from tests.processes import execute

SIZE = (32, 24)


@dataclass
class ToyConfig(MethodConfig):
    """Distance to the mean of learnt features; dark images' patches do not count."""

    name: ClassVar[str] = "toy"
    reads: ClassVar[dict[str, Any]] = {"scoring": ("sigma",)}
    width: int = 4

    def build(self, parts: Parts) -> "Toy":
        return Toy(parts)


class Toy(Detector):
    """A method that trains, with a mask of positions that count and two memories."""

    mean: Tensor
    std: Tensor

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        assert isinstance(parts.method, ToyConfig)
        channels, width = self.backbone.channels[0], parts.method.width
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(channels, width), nn.Linear(width, channels)
        self.register_buffer("mean", torch.empty(0, width))
        self.register_buffer("std", torch.empty(0, width))
        self.losses: list[float] = []

    def features(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        x = maps[0].permute(0, 2, 3, 1)  # (B, C, h, w) → (B, h, w, C)
        counts = x.mean(-1) > 0  # (B, h, w)
        return x, self.encoder(x), counts

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([*self.encoder.parameters(), *self.decoder.parameters()], lr=0.1)

    def loss(self, features: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x, code, counts = features
        loss = (self.decoder(code) - x)[counts].square().mean()
        self.losses.append(float(loss.detach()))
        return loss

    def buffer(self, images: int = 0) -> "ToyBuffer":
        return ToyBuffer()

    def build_from(self, buffer: "ToyBuffer", fitting: Fitting | None = None) -> None:
        codes = buffer.rows.take()
        self.mean, self.std = codes.mean(0)[None], codes.std(0)[None] + 1e-3

    def score(self, features: tuple[Tensor, Tensor, Tensor], size: tuple[int, int]) -> Prediction:
        if not len(self.mean):
            raise InputError("the model is not fitted: call fit with nominal images first")
        _, code, counts = features
        grid = (((code - self.mean) / self.std).norm(dim=-1) * counts).float()  # (B, h, w)
        maps = anomaly_maps(grid, size, self.scoring.sigma)
        return Prediction(grid.amax((1, 2)), maps, grid, torch.zeros_like(grid, dtype=torch.int64))

    @property
    def memories(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "std": self.std}

    @property
    def memory_patches(self) -> int:
        return len(self.mean)


class ToyBuffer:
    """Codes of the positions that count."""

    def __init__(self) -> None:
        self.rows = FeatureBuffer()

    def append(self, features: tuple[Tensor, Tensor, Tensor]) -> None:
        _, code, counts = features
        self.rows.append(code[counts][:, None, None])


BANKS = LayersConfig(["layer2", "layer3"], Join.scaled)
VARIANTS: dict[str, dict[str, Any]] = {
    "scaled layers": {"layers": BANKS, "method": PatchCoreConfig(whitening=0.5)},
    "a part of the memory": {"method": PatchCoreConfig(radius=1, retrieval=2)},
}
"""PatchCore with its switches on: {name: settings that differ}."""


def parts(name: str) -> Parts:
    if name in VARIANTS:
        return replace(parts("patchcore"), **VARIANTS[name])
    method = ToyConfig() if name == "toy" else METHODS[name]()
    patch = PatchConfig(channels=16) if name == "patchcore" else PatchConfig()
    return Parts(method, BackboneConfig(), LayersConfig(["layer2", "layer3"]), patch)


def build(name: str) -> Any:
    """A method by its name, on the shipped network, not fitted."""
    if name != "ensemble":
        return build_detector(parts(name))
    narrow = parts("patchcore")
    narrow.patch = PatchConfig(channels=8)
    return Ensemble([build_detector(parts("patchcore")), build_detector(narrow)])


@pytest.fixture(scope="module", autouse=True)
def shared_networks() -> Iterator[None]:
    """One network for all: it is frozen, and most of what a small model takes to build."""
    built = Backbone(BackboneConfig(), LayersConfig(["layer2", "layer3"]))
    with mock.patch("patchcore.methods.detector.make_backbone", lambda *_: built):
        yield


@pytest.fixture(scope="module")
def fitted() -> Callable[[str], Any]:
    """A fitted method by its name, which nobody may change."""
    known: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in known:
            known[name] = build(name).fit(images(4))
        return known[name]

    return get


def images(count: int, seed: int = 0, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def assert_equal(ours: Prediction, theirs: Prediction) -> None:
    for x, y in zip(ours, theirs, strict=True):
        assert torch.equal(x, y)


def assert_near(ours: Prediction, theirs: Prediction, share: float = 1e-3) -> None:
    for x, y in zip(ours[:3], theirs[:3], strict=True):
        assert (x - y).abs().max() <= share * y.abs().max()


every = pytest.mark.parametrize("name", [*METHODS, *VARIANTS, "ensemble", "toy"])
single = pytest.mark.parametrize("name", [*METHODS, *VARIANTS, "toy"])


def test_names_are_those_of_the_registry_and_of_the_settings() -> None:
    assert {name: kind.name for name, kind in METHODS.items()} == {name: name for name in METHODS}
    assert SCHEMAS["method"] == METHODS


@every
def test_shapes_and_dtypes(fitted: Callable[[str], Any], name: str) -> None:
    model = fitted(name)
    assert isinstance(model, Method)
    score, maps, patches, nearest = model(images(3, seed=1))
    assert (score.shape, maps.shape) == ((3,), (3, *SIZE))
    assert patches.shape == nearest.shape and patches.shape[0] == 3 and patches.ndim == 3
    assert {x.dtype for x in (score, maps, patches)} == {torch.float32}
    assert nearest.dtype == torch.int64 and nearest.min() >= 0
    if name != "ensemble":
        assert nearest.max() < model.memory_patches
    assert all(x.isfinite().all() for x in (score, maps, patches))
    assert model.memory_bytes == sum(x.nbytes for x in model.memories.values()) > 0


@every
def test_an_image_scores_the_same_in_any_batch(fitted: Callable[[str], Any], name: str) -> None:
    model, batch = fitted(name), images(5, seed=1)
    together = model(batch)
    alone = [model(batch[i : i + 1]) for i in range(5)]
    assert_near(Prediction(*map(torch.cat, zip(*alone, strict=True))), together)
    swapped = model(batch.flip(0))
    assert_near(Prediction(*(x.flip(0) for x in swapped)), together)
    twice = model(batch[[0, 0]])
    assert_near(Prediction(*(x[:1] for x in twice)), Prediction(*(x[1:] for x in twice)), 1e-6)


@single
def test_fit_takes_any_batches(name: str) -> None:
    whole, parted = build(name), build(name).fit(iter(images(4).split(1)))
    if whole.optimizer() is None:  # a method that trains makes a step a batch
        assert_near(parted(images(2, seed=1)), whole.fit(images(4))(images(2, seed=1)))
    assert parted(images(2, seed=1)).score.isfinite().all()


@every
def test_one_image_and_equal_images_are_enough(name: str) -> None:
    test = torch.cat([images(1), images(1, seed=1)])
    one = build(name).fit(images(1))(test)
    copies = build(name).fit(images(1).expand(3, -1, -1, -1))(test)
    for prediction in (one, copies):
        assert all(x.isfinite().all() for x in prediction[:3])
        assert name == "toy" or prediction.score[0] < prediction.score[1]


@every
def test_images_without_content_give_numbers(fitted: Callable[[str], Any], name: str) -> None:
    constant = torch.full((2, 3, *SIZE), 0.5)
    flat = build(name).fit(constant)
    for prediction in (flat(constant), flat(images(1)), fitted(name)(constant)):
        assert all(x.isfinite().all() for x in prediction[:3])


@every
def test_an_unfitted_method_says_so(name: str) -> None:
    with pytest.raises(InputError, match="call fit with nominal images first"):
        build(name)(images(1))


@every
def test_no_images_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="there are no nominal images to fit"):
        build(name).fit([[], []] if name == "ensemble" else [])


@every
def test_the_same_again(fitted: Callable[[str], Any], name: str) -> None:
    torch.manual_seed(7)  # the state of the process has no part in it
    assert_equal(build(name).fit(images(4))(images(2, seed=1)), fitted(name)(images(2, seed=1)))


@every
def test_fit_forgets_the_images_before(fitted: Callable[[str], Any], name: str) -> None:
    model = build(name).fit(images(3, seed=5))
    before = model(images(2, seed=1))
    again = model.fit(images(4))(images(2, seed=1))
    assert not torch.equal(before.map, again.map)
    if name != "toy":  # which goes on training
        assert_equal(again, fitted(name)(images(2, seed=1)))


@every
def test_copies_score_the_same(fitted: Callable[[str], Any], name: str) -> None:
    model, batch = fitted(name), images(2, seed=1)
    expected = model(batch)
    assert_equal(copy.deepcopy(model)(batch), expected)
    assert_equal(pickle.loads(pickle.dumps(model))(batch), expected)
    changed = copy.deepcopy(model).fit(images(2, seed=9))
    assert not torch.equal(changed(batch).map, expected.map)
    assert_equal(model(batch), expected)


@every
def test_a_state_of_tensors_and_settings_as_text_is_enough(
    fitted: Callable[[str], Any], name: str
) -> None:
    model, batch = fitted(name), images(2, seed=1)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    if name == "ensemble":
        state = {key: value.clone() for key, value in state.items()}  # members share a network
        fresh = build(name)
    else:
        groups = {option.name: getattr(model.parts, option.name) for option in fields(Parts)}
        text = {key: OmegaConf.to_yaml(OmegaConf.structured(x)) for key, x in groups.items()}
        read = {
            key: OmegaConf.to_object(
                OmegaConf.merge(OmegaConf.structured(type(x)), OmegaConf.create(text[key]))
            )
            for key, x in groups.items()
        }
        assert read == groups
        fresh = build_detector(Parts(**read))
    fresh.load_state_dict(load(save(state)))
    assert_equal(fresh(batch), model(batch))
    assert fresh.memory_bytes == model.memory_bytes


@single
def test_a_memory_stays_in_float32_where_the_network_does_not(
    fitted: Callable[[str], Any], name: str
) -> None:
    if name == "toy":
        pytest.skip("its own layers are cast with the network")
    model, batch = copy.deepcopy(fitted(name)).to(torch.bfloat16), images(2, seed=1)
    for key, memory in fitted(name).memories.items():
        assert torch.equal(model.memories[key], memory)
    prediction = model(batch.bfloat16())
    assert {x.dtype for x in prediction[:3]} == {torch.float32}
    assert_near(prediction, fitted(name)(batch), 0.2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every
def test_on_an_accelerator(fitted: Callable[[str], Any], name: str) -> None:
    model, batch = copy.deepcopy(fitted(name)).cuda(), images(2, seed=1)
    prediction = model(batch.cuda())
    assert all(x.device.type == "cuda" for x in prediction)
    assert_near(Prediction(*(x.cpu() for x in prediction)), fitted(name)(batch), 1e-2)


@single
def test_other_sizes(fitted: Callable[[str], Any], name: str) -> None:
    model, larger = fitted(name), images(1, size=(40, 32))
    if model.one_size:
        with pytest.raises(InputError, match="all images must have one size"):
            model(larger)
    else:
        assert model(larger).map.shape == (1, 40, 32)


@every
def test_nothing_is_printed_unless_progress_is_asked_for(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    build(name).fit(images(2))(images(1))
    assert capsys.readouterr() == ("", "")


@single
def test_prefixes_are_models_of_their_own(fitted: Callable[[str], Any], name: str) -> None:
    own = parts(name)
    if not own.method.nested or own.layers.join is not Join.concat:
        assert fitted(name).prefixes([0.5]) == {}
        return
    whole = build(name)
    sizes = whole.fit(images(4)).prefixes([0.1, 0.05])
    assert list(sizes) == sorted(sizes) or not sizes
    features = whole.embed(images(2, seed=1))
    found = whole.score_prefixes(features, SIZE, [3, whole.memory_patches])
    assert_near(found[-1], whole.score(features, SIZE))
    assert (found[0].patch_score >= found[-1].patch_score - 1e-4).all()


@single
def test_a_trainer_drives_it(name: str, tmp_path: Path) -> None:
    write_mvtec(tmp_path, (40, 36))
    source = MVTecConfig(root=str(tmp_path), category="nut", batch_size=3)
    data = AnomalyDataModule(source, ImageConfig(resize=32, crop=32), AugmentConfig())
    module = DetectorModule(build(name))
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    record = module.record
    assert sorted(record.scores) == sorted(record.grids) == list(range(5))
    assert record.metrics["memory_bytes"] == module.model.memory_bytes
    assert ("memory_used" in record.metrics) == module.model.counts_used
    assert set(record.seconds) >= {"extract", "score"}
    assert len(record.seconds) == 3 + ("scale" in record.seconds)
    batches = [batch["image"] for batch in data.train_dataloader()]
    alone = build(name).fit(batches)
    for key, memory in alone.memories.items():
        assert torch.allclose(module.model.memories[key], memory, rtol=1e-4, atol=1e-5)
    if name == "toy":
        assert len(module.model.losses) == len(batches) == 2
        assert module.model.losses == pytest.approx(alone.losses, rel=1e-4)


# --- one more method -------------------------------------------------------------------------

MEAN = """
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from patchcore.methods.common import FeatureBuffer
from patchcore.methods.detector import Detector, MethodConfig, Parts, Prediction
from patchcore.scoring import anomaly_maps


@dataclass
class MeanConfig(MethodConfig):
    name: ClassVar[str] = "mean"
    reads: ClassVar[dict[str, Any]] = {"scoring": ("sigma",)}
    power: float = 2.0

    def build(self, parts: Parts) -> Detector:
        return Mean(parts)


class Mean(Detector):
    def __init__(self, parts):
        super().__init__(parts)
        self.register_buffer("mean", torch.empty(0, self.backbone.channels[0]))

    def features(self, maps):
        return maps[0].permute(0, 2, 3, 1).float()

    def buffer(self, images=0):
        return FeatureBuffer(images)

    def build_from(self, buffer, fitting=None):
        self.mean = buffer.take().mean(0)[None]

    def score(self, features, size):
        grid = (features - self.mean).norm(p=self.parts.method.power, dim=-1)
        maps = anomaly_maps(grid, size, self.scoring.sigma)
        return Prediction(grid.amax((1, 2)), maps, grid, torch.zeros_like(grid).long())

    @property
    def memories(self):
        return {"mean": self.mean}

    @property
    def memory_patches(self):
        return len(self.mean)
"""
ENTRIES = [
    ("from patchcore.methods.padim", "from patchcore.methods.mean import MeanConfig\n"),
    ('    "padim": ', '    "mean": MeanConfig,\n'),
]
PROGRAM = """
import json, sys
from tests.runs import config
import patchcore
from patchcore.coreset import AllConfig
from patchcore.commands.groups import SCHEMAS
from patchcore.patches import PatchConfig
from pathlib import Path

assert patchcore.__file__ == str(Path.cwd() / "patchcore/__init__.py"), patchcore.__file__
method = SCHEMAS["method"]["mean"](power=1.0)
groups = {"method": method, "coreset": AllConfig(), "patch": PatchConfig()}
done = patchcore.run(config(Path("images"), **groups), "run")
assert done.record["memory_patches"] == 1 and done.record["test_images"] == 5
try:
    config(Path("images"), **{**groups, "patch": PatchConfig(size=5)})
except patchcore.InputError as error:
    assert str(error) == "patch.size has no effect on method=mean: leave it out", error
else:
    raise AssertionError("patch.size was taken")
"""


def test_one_more_method_is_one_file_and_one_entry(tmp_path: Path) -> None:
    """The steps that CONTRIBUTING.md tells, taken in a copy of the package."""
    here = Path(__file__).parents[1]
    shutil.copytree(here / "patchcore", tmp_path / "patchcore")
    methods = tmp_path / "patchcore/methods"
    (methods / "mean.py").write_text(MEAN)
    text = (methods / "__init__.py").read_text()
    for before, line in ENTRIES:
        assert text.count(before) == 1
        text = text.replace(before, line + before)
    (methods / "__init__.py").write_text(text)
    write_mvtec(tmp_path / "images", (40, 36))
    execute(PROGRAM, folder=tmp_path)


def test_a_method_that_trains_learns() -> None:
    model = build("toy").fit(images(6).split(1))
    assert model.losses[-1] < model.losses[0]
