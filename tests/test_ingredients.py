"""Switches of PatchCore, each against its naive version, and what they refuse."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from patchcore import (
    AllConfig,
    BackboneConfig,
    GreedyConfig,
    InputError,
    LayersConfig,
    PatchConfig,
    ScoringConfig,
    load,
)
from patchcore.backbones import Backbone, Join
from patchcore.methods import METHODS, Parts, PatchCoreConfig, build_detector
from patchcore.methods.detector import Detector, Fitting, Prediction
from patchcore.scoring import Distance
from tests import reference

SIZE = (56, 48)
GRIDS = [(7, 6), (4, 3)]  # of layer2 and layer3 of such an image
LAYERS = ["layer2", "layer3"]


@pytest.fixture(scope="module", autouse=True)
def shared_networks() -> Any:
    """One network for all: it is frozen, and most of what a small model takes to build."""
    built = Backbone(BackboneConfig(), LayersConfig(LAYERS))
    with mock.patch("patchcore.methods.detector.Backbone", lambda *_: built):
        yield


def detector(join: Join = Join.concat, coreset: Any = None, **settings: Any) -> Any:
    scoring = settings.pop("scoring", ScoringConfig())
    patch, coreset = PatchConfig(channels=24), coreset or AllConfig()
    method = PatchCoreConfig(**settings)
    parts = Parts(method, layers=LayersConfig(LAYERS, join), patch=patch, coreset=coreset)
    parts.scoring = scoring
    return build_detector(parts)


def layer_maps(count: int, seed: int) -> list[Tensor]:
    """Random maps of the embedded network's channels on GRIDS, correlated along the channels."""
    generator = torch.Generator().manual_seed(seed)
    maps = []
    for channels, grid in zip((128, 256), GRIDS, strict=True):
        noise = torch.randn(count, channels, *grid, generator=generator)
        maps.append(noise + noise.cumsum(1) / channels**0.5)
    return maps


def fit(model: Detector, nominal: list[Tensor], **fitting: Any) -> Any:
    """Fit to layer maps, which come in batches of two."""
    buffer = model.buffer(2)
    for batch in zip(*(x.split(2) for x in nominal), strict=True):
        buffer.append(model.features(batch))
    model.build_from(buffer, Fitting(**fitting))
    return model


def predict(model: Detector, maps: list[Tensor]) -> Prediction:
    return model.score(model.features(maps), SIZE)


VARIANTS: dict[str, dict[str, Any]] = {
    "separate": {"join": Join.separate},
    "scaled": {"join": Join.scaled},
}
"""Settings of `detector` with each switch on."""


@pytest.mark.parametrize("name", VARIANTS)
def test_a_model_is_kept_with_its_switches(name: str, tmp_path: Path) -> None:
    test = layer_maps(2, 1)
    model = fit(detector(**VARIANTS[name]), layer_maps(3, 0))
    model.save(tmp_path / "model")
    read = load(tmp_path / "model").model
    assert read.parts == replace(model.parts, backbone=read.parts.backbone)
    for x, y in zip(predict(model, test), predict(read, test), strict=True):
        assert torch.equal(x, y)
    plain = detector()
    with pytest.raises(InputError, match="build it with the same settings"):
        plain.load_state_dict(model.state_dict())


# --- one memory a layer ----------------------------------------------------------------------


@pytest.mark.parametrize("join", [Join.separate, Join.scaled])
@pytest.mark.parametrize(
    "scoring", [ScoringConfig(), ScoringConfig(3, 0, Distance.cosine, 0.2)], ids=["one", "mean"]
)
def test_separate_layers_equal_the_naive_version(join: Join, scoring: ScoringConfig) -> None:
    nominal, test = layer_maps(4, 0), layer_maps(3, 1)
    model = fit(detector(join, scoring=scoring), nominal)
    found = predict(model, test)
    features = [x.numpy() for x in model.features(nominal)]  # [(N, h, w, D), …]
    memories = [x.reshape(-1, x.shape[-1]) for x in features]
    kind = {"k": scoring.neighbours, "distance": scoring.distance.name}
    scales = None
    if join is Join.scaled:
        scales = []
        for x in features:
            images = [each.reshape(-1, x.shape[-1]) for each in x]
            rows = [(i, j) for i in range(4) for j in range(len(images[0]))]
            scales.append(reference.nominal_scale(images, [0, 1, 2, 3], rows, **kind)[2:])
    for i in range(3):
        patches = [x[i].numpy() for x in model.features(test)]
        expected = reference.separate_layers(patches, memories, scales, **kind)
        assert np.allclose(found.patch_score[i], expected, rtol=1e-4, atol=1e-4)
        top = np.sort(expected.flatten())[::-1][: max(1, round(scoring.top_share * 42))]
        assert float(found.score[i]) == pytest.approx(top.mean(), rel=1e-4)
        expected = reference.anomaly_map(expected, SIZE, scoring.sigma)
        assert np.allclose(found.map[i], expected, rtol=1e-3, atol=1e-3)


def test_a_single_layer_has_one_memory_whatever_the_join() -> None:
    settings = {"layers": LayersConfig(["layer2"], Join.separate), "coreset": GreedyConfig(0.5)}
    network = Backbone(BackboneConfig(), LayersConfig(["layer2"]))
    with mock.patch("patchcore.methods.detector.Backbone", lambda *_: network):
        separate = build_detector(Parts(PatchCoreConfig(), **settings))  # type: ignore[arg-type]
        settings["layers"] = LayersConfig(["layer2"])
        concat = build_detector(Parts(PatchCoreConfig(), **settings))  # type: ignore[arg-type]
    nominal, test = layer_maps(3, 0)[:1], layer_maps(2, 1)[:1]
    for x, y in zip(*(predict(fit(m, nominal), test) for m in (separate, concat)), strict=True):
        assert torch.allclose(x, y, rtol=1e-5)


def test_positions_that_count_are_those_of_the_finest_layer() -> None:
    nominal, test = layer_maps(3, 0), layer_maps(2, 1)
    inside = torch.zeros(2, *SIZE, dtype=torch.bool)
    inside[:, 8:32, 8:40] = True  # three by four cells of the finest grid
    model = fit(detector(Join.separate), nominal)
    whole, part = predict(model, test), model.score(model.counted(test, inside), SIZE)
    counts = ~part.patch_score.isnan()
    assert counts.flatten(1).sum(1).tolist() == [12, 12]
    assert counts[:, 1:4, 1:5].all()
    middle = (slice(None), slice(2, 3), slice(2, 4))  # deeper patches around it count, too
    assert torch.allclose(part.patch_score[middle], whole.patch_score[middle], rtol=1e-4)
    assert torch.allclose(part.score, part.patch_score.nan_to_num(-1).flatten(1).amax(1))


def test_coreset_orders_of_layers_are_kept_apart() -> None:
    kept: dict[str, Any] = {}

    class Kept:
        def get(self, patch: Any, sampler: Any, valid: Any) -> Any:
            return kept.get(str(patch))

        def put(self, patch: Any, sampler: Any, entry: Any) -> None:
            kept[str(patch)] = dict(entry)

    nominal, test = layer_maps(3, 0), layer_maps(2, 1)
    cold, warm = (detector(Join.separate, GreedyConfig(0.3)) for _ in range(2))
    one = predict(fit(cold, nominal, kept=Kept()), test)
    assert len(kept) == 2
    fitting = Fitting(kept=Kept())
    buffer = warm.buffer()
    buffer.append(warm.features(nominal))
    warm.build_from(buffer, fitting)
    assert fitting.warm == set(fitting.seconds) == {"coreset"}
    for x, y in zip(one, predict(warm, test), strict=True):
        assert torch.equal(x, y)


def test_separate_layers_grow_and_shrink_with_their_images() -> None:
    nominal, more, test = layer_maps(4, 0), layer_maps(2, 2), layer_maps(2, 1)
    model = fit(detector(Join.scaled), nominal)
    before = predict(model, test)
    (told,) = model.extend([model.features(more)], [SIZE], [4, 5])
    assert told.map.shape == (2, *SIZE) and model.images_had == 6
    assert model.memory_patches == 6 * (42 + 12)
    assert (predict(model, more).score < told.score).all()
    assert model.origins(torch.tensor([0, 6 * 42 - 1, 6 * 42])).tolist() == [
        [0, 0, 0],
        [5, 6, 5],
        [-1, -1, -1],
    ]
    model.forget([4, 5])
    for x, y in zip(before, predict(model, test), strict=True):
        assert torch.equal(x, y)
    with pytest.raises(InputError, match=r"^count: "):
        model.extend([model.features(more)], [SIZE], [4, 5], count=3)


def test_a_join_without_effect_or_with_what_needs_one_memory_is_refused() -> None:
    layers = LayersConfig(LAYERS, Join.separate)
    for name in {*METHODS} - {"patchcore"}:
        with pytest.raises(InputError, match=r"^layers.join has no effect on method="):
            build_detector(Parts(METHODS[name](), layers=layers))
    with pytest.raises(InputError, match=r"^scoring.reweight=2 "):
        detector(Join.separate, scoring=ScoringConfig(reweight=2))
