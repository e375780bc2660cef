"""SPADE and PaDiM against naive versions on random maps, and as `patchcore train` runs them."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

import patchcore.methods.padim
import patchcore.methods.spade
from patchcore import (
    AllConfig,
    BackboneConfig,
    FaissFlatConfig,
    InputError,
    LayersConfig,
    Padim,
    PadimConfig,
    PatchConfig,
    ScoringConfig,
    Spade,
    SpadeConfig,
    TorchIndexConfig,
)
from patchcore.backbones import Backbone
from patchcore.cache import FOLDER
from patchcore.data.dataset import ImageDataset, collate
from patchcore.data.mvtec import MVTecConfig
from patchcore.data.transforms import ImageConfig
from patchcore.methods import Parts, PatchCore, PatchCoreConfig, build_detector
from patchcore.methods.detector import Detector, Prediction
from patchcore.methods.padim import EPSILON
from patchcore.methods.spade import Storage
from tests import reference
from tests.images import write_mvtec
from tests.runs import Outcome
from tests.runs import patchcore as command

pytestmark = pytest.mark.filterwarnings("ignore:backbone resnet.* has random weights")


@pytest.fixture(scope="module", autouse=True)
def shared_backbones() -> Iterator[None]:
    """Networks are frozen, and most of what a small model takes to build."""
    built: dict[str, Backbone] = {}

    def share(config: BackboneConfig, layers: LayersConfig) -> Backbone:
        name = f"{config.name} {layers.names}"
        return built[name] if name in built else built.setdefault(name, Backbone(config, layers))

    with mock.patch("patchcore.methods.detector.make_backbone", share):
        yield


GRIDS = [(7, 6), (4, 3), (2, 2)]  # of layers 1, 2, 3 of an image of 28 × 24


def spade(name: str = "resnet18", scoring: ScoringConfig | None = None, **settings: Any) -> Spade:
    return Spade(SpadeConfig(**settings), BackboneConfig(name, "none"), scoring=scoring)


def padim(name: str = "resnet18", scoring: ScoringConfig | None = None, **settings: Any) -> Padim:
    return Padim(PadimConfig(**settings), BackboneConfig(name, "none"), scoring=scoring)


def images(count: int, size: tuple[int, int] = (32, 32), seed: int = 0) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def layer_maps(model: Detector, count: int, seed: int) -> list[Tensor]:
    """Random maps on GRIDS, correlated along their channels as real ones are."""
    generator = torch.Generator().manual_seed(seed)
    maps = []
    for channels, grid in zip(model.backbone.channels, GRIDS, strict=False):
        noise = torch.randn(count, channels, *grid, generator=generator)
        maps.append(noise + noise.cumsum(1) / channels**0.5)
    return maps


def predicted(model: Detector, nominal: list[Tensor], test: list[Tensor]) -> Prediction:
    """Predictions from layer maps; the nominal ones come in batches of two."""
    buffer = model.buffer(2)
    for batch in zip(*(x.split(2) for x in nominal), strict=True):
        buffer.append(model.features(batch))
    model.build_from(buffer)
    return model.score(model.features(test), (28, 24))


def as_numpy(maps: list[Tensor]) -> list[np.ndarray]:
    return [x.numpy() for x in maps]


# --- against naive versions ------------------------------------------------------------------


@pytest.mark.parametrize("neighbours, pixel_neighbours", [(1, 1), (3, 1), (3, 4), (50, 2)])
def test_spade_equals_the_naive_version(
    neighbours: int, pixel_neighbours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patchcore.methods.spade, "_CPU_IMAGES", 2)  # several chunks
    model = spade(neighbours=neighbours, pixel_neighbours=pixel_neighbours)
    nominal, test = layer_maps(model, 5, 0), layer_maps(model, 3, 1)
    prediction = predicted(model, nominal, test)
    for i in range(3):
        score, pixels, nearest = reference.spade(
            as_numpy(nominal),
            [x[i : i + 1].numpy() for x in test],
            neighbours,
            pixel_neighbours,
        )
        assert float(prediction.score[i]) == pytest.approx(score, rel=1e-4)
        assert np.allclose(prediction.patch_score[i].flatten(), pixels, rtol=1e-4)
        assert np.array_equal(prediction.nearest[i].flatten(), nearest)
    assert prediction.patch_score.shape == prediction.nearest.shape == (3, 7, 6)


@pytest.mark.parametrize("nominal_images, channels", [(1, 5), (3, 5), (12, 5), (3, None)])
def test_padim_equals_the_naive_version(
    nominal_images: int, channels: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patchcore.methods.padim, "_CHUNK", 2**20)  # several chunks
    layers = LayersConfig(["1", "2"])  # 192 channels
    config = PadimConfig(channels, seed=3)
    model = Padim(config, BackboneConfig("resnet18", "none"), layers)
    nominal, test = layer_maps(model, nominal_images, 0), layer_maps(model, 3, 1)
    prediction = predicted(model, nominal, test)
    drawn = model.channels.numpy()
    assert len(drawn) == len(set(drawn)) == (channels or 192)
    x, y = (
        reference.pyramid(as_numpy(maps))[..., drawn].reshape(len(maps[0]), 42, -1)
        for maps in (nominal, test)
    )
    expected = reference.padim(x, y, EPSILON)
    assert np.allclose(prediction.patch_score.flatten(1), expected, rtol=1e-3)
    assert np.allclose(prediction.score, expected.max(1), rtol=1e-3)
    assert prediction.nearest[2].flatten().tolist() == list(range(42))


@pytest.mark.parametrize("build", [spade, padim])
def test_wide_networks(build: Any) -> None:
    settings = {} if build is spade else {"channels": 300}
    model = build("resnet50", **settings)  # 256 + 512 + 1024 channels
    nominal, test = layer_maps(model, 2, 0), layer_maps(model, 1, 1)
    prediction = predicted(model, nominal, test)
    if build is spade:
        _, expected, _ = reference.spade(as_numpy(nominal), as_numpy(test), 50, 1)
    else:
        drawn = model.channels.numpy()
        x, y = (reference.pyramid(as_numpy(m))[..., drawn] for m in (nominal, test))
        expected = reference.padim(x.reshape(2, 42, -1), y.reshape(1, 42, -1), EPSILON)[0]
        assert model.factor.shape == (42, 300, 300)
    assert np.allclose(prediction.patch_score.flatten(), expected, rtol=1e-3)


@pytest.mark.parametrize("build", [spade, padim])
def test_maps_are_the_grid_upsampled_and_smoothed(build: Any) -> None:
    model = build(scoring=ScoringConfig(sigma=2.0))
    prediction = predicted(model, layer_maps(model, 4, 0), layer_maps(model, 2, 1))
    grid = prediction.patch_score.numpy()[..., None]
    upsampled = reference.interpolate(grid, (28, 24))[..., 0]
    for i in range(2):
        assert np.allclose(prediction.map[i], gaussian_filter(upsampled[i], 2.0), rtol=1e-4)


# --- as they are used ------------------------------------------------------------------------


@pytest.mark.parametrize("build", [spade, padim])
def test_fit_from_images_and_score_batches(build: Any) -> None:
    model = build().fit(iter(images(5).split(2)))
    test = images(3, seed=1)
    together = model(test)
    assert together.map.shape == (3, 32, 32) and together.patch_score.shape == (3, 8, 8)
    for i in range(3):
        alone = model(test[i : i + 1])
        assert torch.allclose(alone.score, together.score[i : i + 1], rtol=1e-3)
        assert torch.allclose(alone.map, together.map[i : i + 1], rtol=1e-3)
    again = model.fit(test)  # replaces
    assert (again(test).score < together.score).all()
    assert again.memory_patches == (3 * 64 if build is spade else 64)


def test_spade_finds_its_own_images() -> None:
    model = spade(neighbours=1).fit(images(4))
    prediction = model(images(4))
    assert prediction.score.max() < 1e-4 and prediction.patch_score.max() < 1e-3
    assert prediction.nearest.flatten().tolist() == list(range(4 * 64))


@pytest.mark.parametrize("build", [spade, padim])
def test_one_nominal_image_is_enough(build: Any) -> None:
    model = build().fit(images(1))
    prediction = model(torch.cat([images(1), images(1, seed=1)]))
    assert prediction.score[0] < 0.01 < prediction.score[1]
    if build is padim:  # its covariances are ε I
        difference = model.embed(images(1, seed=1)) - model.embed(images(1))
        expected = difference.norm(dim=-1) / EPSILON**0.5
        assert torch.allclose(prediction.patch_score[1], expected[0], rtol=1e-3)


def test_spades_deepest_layer_may_be_kept_out_of_the_pyramid() -> None:
    whole, three = (
        spade(),
        Spade(
            SpadeConfig(pyramid=2),
            BackboneConfig("resnet18", "none"),
            LayersConfig(["1", "2", "3"]),
        ),
    )
    nominal, test = layer_maps(whole, 3, 0), layer_maps(whole, 1, 1)
    prediction = predicted(three, nominal, test)
    score, _, _ = reference.spade(as_numpy(nominal), as_numpy(test), 50, 1)
    _, pixels, _ = reference.spade(as_numpy(nominal[:2]), as_numpy(test[:2]), 50, 1)
    assert float(prediction.score[0]) == pytest.approx(score, rel=1e-4)
    assert np.allclose(prediction.patch_score.flatten(), pixels, rtol=1e-4)
    assert [x.shape[-1] for x in three.layers] == [64, 128] and three.pooled.shape == (3, 256)


def test_spade_in_half_the_memory() -> None:
    full = spade().fit(images(4))
    half = spade(storage=Storage.float16).fit(images(4))
    values = 4 * (64 * 64 + 128 * 16 + 256 * 4)
    assert full.memory_bytes == values * 4 + 4 * 256 * 4
    assert half.memory_bytes == values * 2 + 4 * 256 * 4
    exact, rounded = full(images(2, seed=1)), half(images(2, seed=1))
    assert torch.allclose(exact.patch_score, rounded.patch_score, rtol=1e-2)
    assert not torch.equal(exact.patch_score, rounded.patch_score)
    assert torch.equal(exact.score, rounded.score)
    with pytest.raises(InputError, match=r"method\.storage=float32"):
        predicted(half, [x * 1e6 for x in layer_maps(half, 2, 0)], layer_maps(half, 1, 1))


def test_padim_draws_by_its_seed_and_counts_its_gaussians() -> None:
    one, same, other = padim(seed=1), padim(seed=1), padim(seed=2)
    assert torch.equal(one.channels, same.channels)
    assert not torch.equal(one.channels, other.channels)
    assert one.channels.diff().min() > 0
    one.fit(images(2))
    assert one.memory_patches == 64 and one.memory_bytes == 64 * 100 * 101 * 4


@pytest.mark.parametrize("build", [spade, padim])
def test_autocast_stops_at_the_maps(build: Any) -> None:
    model = build().fit(images(3))
    with torch.autocast("cpu", torch.bfloat16):
        features = model.embed(images(1, seed=1))
        inside = model.score(features, (32, 32))
    assert torch.equal(inside.map, model.score(features, (32, 32)).map)


@pytest.mark.parametrize("build", [spade, padim])
def test_misuse_is_told_in_one_sentence(build: Any) -> None:
    with pytest.raises(InputError, match="call fit with nominal images first"):
        build()(images(1))
    with pytest.raises(InputError, match="no nominal images"):
        build().fit([])
    with pytest.raises(InputError, match=r"one size .* 8 × 8 patches came after 12 × 8"):
        build().fit([images(1, (48, 32)), images(1)])
    with pytest.raises(InputError, match=r"one size .* 8 × 12 patches came after 12 × 8"):
        build().fit(images(1, (48, 32)))(images(1, (32, 48)))
    with pytest.raises(InputError, match=r"^scoring\.neighbours has no effect on method="):
        build(scoring=ScoringConfig(neighbours=2))
    model = build()
    with pytest.raises(InputError, match="infinite"):
        predicted(model, [x * torch.nan for x in layer_maps(model, 2, 0)], layer_maps(model, 1, 1))


def test_more_than_there_is() -> None:
    with pytest.raises(InputError, match=r"^method\.channels must be at most 448, the channels of"):
        padim(channels=449)
    with pytest.raises(InputError, match=r"^method\.pixel_neighbours must be at most 64"):
        spade(pixel_neighbours=65).fit(images(2))(images(1))


def test_one_door_leads_to_all_methods() -> None:
    groups: Any = {
        "backbone": BackboneConfig("resnet18", "none"),
        "layers": LayersConfig(),
        "patch": PatchConfig(),
        "coreset": AllConfig(),
        "index": TorchIndexConfig(),
        "scoring": ScoringConfig(sigma=1.0),
    }
    built = [build_detector(Parts(x, **groups)) for x in (SpadeConfig(), PadimConfig())]
    assert [type(x) for x in built] == [Spade, Padim]
    assert all(x.scoring.sigma == 1.0 for x in built)
    assert isinstance(build_detector(Parts(PatchCoreConfig(), **groups)), PatchCore)
    with pytest.raises(InputError, match=r"^index=faiss_flat has no effect on method=spade"):
        build_detector(Parts(SpadeConfig(), **{**groups, "index": FaissFlatConfig()}))


# --- as the command runs them ----------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mvtec")
    write_mvtec(root, (40, 36))
    return root


def train(root: Path, folder: Path, *overrides: str) -> Outcome:
    done = command(
        *("train", "data=mvtec", f"data.root={root}", "data.category=nut", "data.batch_size=2"),
        *("backbone=resnet18", "backbone.weights=none", "image.resize=32", "image.crop=32"),
        *("trainer=cpu", "logger=none", f"hydra.run.dir={folder}", *overrides),
    )
    assert done.code == 0, done.err
    return done


@pytest.fixture(scope="module")
def runs(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of each model, whose layer maps are kept in one cache."""
    folder = tmp_path_factory.mktemp("runs")
    for model in ("patchcore", "spade", "padim"):
        train(root, folder / model, f"method={model}", *cached(folder))
    return folder


def cached(folder: Path) -> list[str]:
    return ["cache.enabled=true", f"cache.root={folder / 'cache'}"]


def scores(folder: Path) -> list[float]:
    with (folder / "scores.csv").open() as file:
        return [float(row["score"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    "model, patches, size",
    [
        ("spade", 4 * 64, 4 * (64 * 64 + 128 * 16 + 256 * 4 + 256) * 4),
        ("padim", 64, 64 * 100 * 101 * 4),
    ],
)
def test_a_run_leaves_what_patchcore_leaves(
    runs: Path, model: str, patches: int, size: int
) -> None:
    found, own = (
        json.loads((runs / name / "metrics.json").read_text()) for name in (model, "patchcore")
    )
    assert set(found) == set(own) - {"memory_used"}  # of a memory of patches
    assert list(found["seconds"]) == ["extract", "build", "score"]
    assert (found["memory_patches"], found["memory_bytes"]) == (patches, size)
    assert (found["train_images"], found["test_images"]) == (4, 5)
    for file in ("scores.csv", "config.yaml", "figures/gallery.png", "figures/curves.png"):
        assert (runs / model / file).is_file()


def test_scores_are_those_of_the_library_without_a_cache(runs: Path, root: Path) -> None:
    split = MVTecConfig(root=str(root), category="nut").read()
    nominal, test = (
        collate([dataset[i] for i in range(len(dataset))])["image"]
        for dataset in (
            ImageDataset(samples, ImageConfig(resize=32, crop=32))
            for samples in (split.train, split.test)
        )
    )
    for model in (spade(), padim()):
        name = type(model).__name__.lower()
        expected = model.fit(nominal)(test).score.tolist()
        assert scores(runs / name) == pytest.approx(expected, rel=1e-3)


def test_the_report_tells_the_models_apart(runs: Path, tmp_path: Path) -> None:
    done = command("report", str(runs), "--out", str(tmp_path / "report"))
    assert done.code == 0, done.err
    page = next((tmp_path / "report").glob("*.html")).read_text()
    table = next((tmp_path / "report").glob("*.md")).read_text()
    for model in ("patchcore", "spade", "padim"):
        assert model in page and model in table


@pytest.mark.parametrize("model", ["spade", "padim"])
def test_maps_from_the_cache_give_the_same_scores(
    model: str, runs: Path, root: Path, tmp_path: Path
) -> None:
    # Both baselines use the same layers; PatchCore others, and it alone has an order to keep.
    assert len(list((runs / "cache" / FOLDER / "maps").iterdir())) == 2 * (4 + 5)
    assert len(list((runs / "cache" / FOLDER / "orders").iterdir())) == 1
    with mock.patch("patchcore.map_cache.MapCache.put", side_effect=AssertionError("computed")):
        train(root, tmp_path, f"method={model}", "figures=false", *cached(runs))
    assert scores(tmp_path) == scores(runs / model)
