"""Switches of PatchCore, each against its naive version, and what they refuse."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

import patchcore.index.exact
from patchcore import (
    AllConfig,
    BackboneConfig,
    FaissFlatConfig,
    GreedyConfig,
    InputError,
    LayersConfig,
    LearnedConfig,
    PatchConfig,
    ScaleConfig,
    ScoringConfig,
    load,
)
from patchcore.backbones import Backbone, Join
from patchcore.index import LocalIndex
from patchcore.methods import METHODS, Parts, PatchCoreConfig, build_detector
from patchcore.methods.detector import Detector, Fitting, Prediction
from patchcore.methods.nearby import image_means
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
    "radius": {"radius": 1},
    "retrieval": {"retrieval": 2},
    "scaled radius and retrieval": {"join": Join.scaled, "radius": 1, "retrieval": 2},
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
    if name != "radius":  # on which the memory does not depend
        with pytest.raises(InputError, match="build it with the same settings"):
            detector().load_state_dict(model.state_dict())


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


# --- a part of the memory for each patch -----------------------------------------------------


def origins_and_means(model: Any, nominal: list[Tensor]) -> tuple[np.ndarray, dict[int, Any]]:
    """Origins (M, 3) of a memory's rows, and means of the nominal images' patches by number."""
    rows = model.origins(torch.arange(model.memory_patches)).numpy()
    features = model.features(nominal)
    return rows, {i: x.flatten(0, 1).mean(0).numpy() for i, x in enumerate(features)}


@pytest.mark.parametrize("radius", [None, 0, 1, 3])
@pytest.mark.parametrize("retrieval", [None, 1, 3])
@pytest.mark.parametrize("coreset", [AllConfig(), GreedyConfig(0.05)], ids=["all", "few"])
def test_a_part_of_the_memory_equals_the_naive_version(
    radius: int | None, retrieval: int | None, coreset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patchcore.index.exact, "_CPU_CHUNK", 700)  # several chunks a block
    nominal, test = layer_maps(5, 0), layer_maps(2, 1)
    scoring = ScoringConfig(neighbours=2)
    model = fit(
        detector(coreset=coreset, radius=radius, retrieval=retrieval, scoring=scoring), nominal
    )
    found, memory = predict(model, test), model.memory.numpy()
    origin, means = origins_and_means(model, nominal)
    places = np.argwhere(np.ones(GRIDS[0]))
    for i, x in enumerate(model.features(test).numpy()):
        squared, rows = reference.nearest_nearby(
            x.reshape(42, -1), places, memory, origin, 2, radius, retrieval, means
        )
        assert np.allclose(found.patch_score[i].flatten(), np.sqrt(squared).mean(1), rtol=1e-4)
        assert np.array_equal(found.nearest[i].flatten(), rows[:, 0])
    together = model.score_prefixes(model.features(test), SIZE, [5, len(memory)])
    for x, y in zip(together[-1], found, strict=True):
        assert torch.equal(x, y)
    rows = together[0].nearest.numpy()
    if retrieval is None:  # with images fewer patches may be others
        x = model.features(test)[0].numpy().reshape(42, -1)
        part = reference.nearest_nearby(x, places, memory[:5], origin[:5], 2, radius)
        assert np.array_equal(rows[0].flatten(), part[1][:, 0])


@pytest.mark.parametrize("count", [40, 400])  # of which each query has few or very many
def test_equal_patches_are_taken_from_near_places(count: int) -> None:
    places = torch.stack((torch.arange(count) % 4, torch.zeros(count, dtype=torch.int64)), 1)
    index = LocalIndex(torch.ones(count, 3), places, (4, 1), 1)
    at = torch.tensor([[0, 0], [2, 0], [3, 0]])
    distances, rows = index.search_local(torch.ones(3, 3), at, 2)
    assert distances.tolist() == [[0, 0]] * 3
    assert ((places[rows] - at[:, None]).abs() <= 1).all()
    if count == 40:
        assert rows.tolist() == [[0, 1], [1, 2], [2, 3]]


def test_a_radius_over_the_whole_grid_is_the_paper() -> None:
    nominal, test = layer_maps(3, 0), layer_maps(2, 1)
    whole = predict(fit(detector(coreset=GreedyConfig(0.2)), nominal), test)
    for switch in ({"radius": 6}, {"retrieval": 3}, {"radius": 6, "retrieval": 3}):
        part = predict(fit(detector(coreset=GreedyConfig(0.2), **switch), nominal), test)
        for x, y in zip(part, whole, strict=True):
            assert torch.allclose(x, y, rtol=1e-5)


@pytest.mark.parametrize("switch", [{"radius": 1}, {"retrieval": 2}])
def test_positions_that_count_keep_their_places(switch: dict[str, int]) -> None:
    nominal, test = layer_maps(3, 0), layer_maps(2, 1)
    inside = torch.zeros(2, *SIZE, dtype=torch.bool)
    inside[:, 16:40, 8:40] = True
    model = fit(detector(**switch), nominal)
    part = model.score(model.counted(test, inside), SIZE)
    counts = ~part.patch_score.isnan()
    assert counts.flatten(1).sum(1).tolist() == [12, 12]
    if "radius" in switch:
        whole = predict(model, test)
        assert torch.equal(part.patch_score[counts], whole.patch_score[counts])
    origin, means = origins_and_means(model, nominal)
    for i, x in enumerate(model.features(test)):
        squared, _ = reference.nearest_nearby(
            x[counts[i]].numpy(),
            counts[i].nonzero().numpy(),
            model.memory.numpy(),
            origin,
            1,
            **switch,
            means=means,
        )
        assert np.allclose(part.patch_score[i][counts[i]], np.sqrt(squared[:, 0]), rtol=1e-4)


def test_the_scale_is_measured_as_patches_are_compared() -> None:
    nominal = layer_maps(4, 0)
    model = fit(detector(radius=1, retrieval=2), nominal, scale=ScaleConfig())
    buffer, fitting = model.buffer(), Fitting(scale=ScaleConfig())
    features = model.features(nominal)
    buffer.append(features)
    model.build_from(buffer, fitting)
    origin, means = origins_and_means(model, nominal)
    places, scores = np.argwhere(np.ones(GRIDS[0])), []
    for i, x in enumerate(features.numpy()):
        others = origin[:, 0] != i
        squared, _ = reference.nearest_nearby(
            x.reshape(42, -1),
            places,
            model.memory.numpy()[others],
            origin[others],
            1,
            radius=1,
            retrieval=2,
            means=means,
        )
        scores.append(np.sqrt(squared[:, 0]))
    assert fitting.measured is not None
    assert fitting.measured.patch_mean == pytest.approx(np.mean(scores), rel=1e-4)
    assert fitting.measured.score_mean == pytest.approx(np.max(scores, 1).mean(), rel=1e-4)


def test_a_memory_in_parts_grows_and_shrinks_with_its_images() -> None:
    nominal, more, test = layer_maps(4, 0), layer_maps(2, 2), layer_maps(2, 1)
    settings = {"radius": 1, "retrieval": 2}
    model = fit(detector(**settings), nominal)
    before = predict(model, test)
    (told,) = model.extend([model.features(more)], [SIZE], [4, 5])
    for x, y in zip(told, predict(fit(detector(**settings), nominal), more), strict=True):
        assert torch.equal(x, y)
    both = fit(detector(**settings), [torch.cat(x) for x in zip(nominal, more, strict=True)])
    for x, y in zip(predict(both, test), predict(model, test), strict=True):
        assert torch.equal(x, y)
    model.forget([4, 5])
    for x, y in zip(before, predict(model, test), strict=True):
        assert torch.equal(x, y)


def test_copies_of_an_image_share_its_mean() -> None:
    numbers, means = image_means(torch.tensor([[1.0], [3], [9], [4]]), [2, 1, 1], [7, 2, 7])
    assert numbers.tolist() == [[2], [7]] and means.tolist() == [[9], [3]]


def test_what_a_part_of_the_memory_cannot_be_had_with_is_refused() -> None:
    for switch in ("radius", "retrieval"):
        with pytest.raises(InputError, match=rf"^method.{switch} needs patches of images"):
            detector(coreset=LearnedConfig(count=3), **{switch: 1})
        with pytest.raises(InputError, match=rf"^method.{switch} searches by itself"):
            build_detector(Parts(PatchCoreConfig(**{switch: 1}), index=FaissFlatConfig()))
        with pytest.raises(InputError, match=rf"^method.{switch} must be at least"):
            PatchCoreConfig(**{switch: -1})
    model = detector(radius=1)
    with pytest.raises(InputError, match="the memory is empty: call fit"):
        predict(model, layer_maps(1, 0))
    model.build(model.features(layer_maps(2, 0)).flatten(0, 2))
    model.grid = GRIDS[0]
    with pytest.raises(InputError, match="does not know where its patches come from"):
        predict(model, layer_maps(1, 0))
    fit(model, layer_maps(2, 0))
    other = [x[..., :3] for x in layer_maps(1, 0)]
    with pytest.raises(InputError, match="all images must have one size"):
        predict(model, other)
