"""Switches of PatchCore, each against its naive version, and what they refuse."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor, nn

import patchcore.index.exact
import patchcore.index.local
import patchcore.whitening
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
    run,
)
from patchcore.backbones import CLASS_TOKEN, Backbone, Join
from patchcore.cache import CacheConfig
from patchcore.decision import DecisionConfig
from patchcore.foreground import foreground, orthonormal_by_cholesky, orthonormal_by_qr
from patchcore.index import LocalIndex
from patchcore.member_settings import EnsembleConfig, MemberConfig
from patchcore.methods import METHODS, Parts, PatchCoreConfig, build_detector
from patchcore.methods.counted import objects
from patchcore.methods.detector import Detector, Fitting, Prediction
from patchcore.methods.ensemble import Ensemble
from patchcore.methods.folds import cross_fitted
from patchcore.methods.nearby import image_means
from patchcore.methods.tiled import predicted
from patchcore.metrics import Objective
from patchcore.scoring import Distance, Pool
from patchcore.whitening import fit_whitening, whiten
from tests import reference
from tests.images import write_mvtec
from tests.runs import config

SIZE = (56, 48)
GRIDS = [(7, 6), (4, 3)]  # of layer2 and layer3 of such an image
LAYERS = ["layer2", "layer3"]


@pytest.fixture(scope="module", autouse=True)
def shared_networks() -> Any:
    """One network for all: it is frozen, and most of what a small model takes to build."""
    built = Backbone(BackboneConfig(), LayersConfig(LAYERS))
    with mock.patch("patchcore.methods.detector.make_backbone", lambda *_: built):
        yield


def detector(join: Join = Join.concat, coreset: Any = None, **settings: Any) -> Any:
    scoring = settings.pop("scoring", ScoringConfig())
    patch, coreset = PatchConfig(channels=24), coreset or AllConfig()
    method = PatchCoreConfig(**settings)
    parts = Parts(method, layers=LayersConfig(LAYERS, join), patch=patch, coreset=coreset)
    parts.scoring = scoring
    return build_detector(parts)


def layer_maps(count: int, seed: int, scale: int = 1) -> list[Tensor]:
    """Random maps of the embedded network's channels, correlated along the channels.

    They are on GRIDS, or on grids so many times as fine.
    """
    generator = torch.Generator().manual_seed(seed)
    maps = []
    for channels, grid in zip((128, 256), GRIDS, strict=True):
        height, width = (scale * side for side in grid)
        noise = torch.randn(count, channels, height, width, generator=generator)
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


def assert_same(ours: Prediction, theirs: Prediction) -> None:
    for x, y in zip(ours, theirs, strict=True):
        assert torch.allclose(x, y, rtol=0, atol=0, equal_nan=True)


VARIANTS: dict[str, dict[str, Any]] = {
    "separate": {"join": Join.separate},
    "scaled": {"join": Join.scaled},
    "radius": {"radius": 1},
    "retrieval": {"retrieval": 2},
    "whitening": {"whitening": 0.9},
    "foreground": {"foreground": 1.0},
    "pruning": {"pruning": 1},
    "per_image": {"per_image": 9, "coreset": GreedyConfig(0.5)},
    "pixels": {"scoring": ScoringConfig(top_share=0.1, pool=Pool.pixels)},
    "scaled radius and retrieval": {"join": Join.scaled, "radius": 1, "retrieval": 2},
    "all": {"join": Join.scaled, "radius": 1, "retrieval": 2, "whitening": 0.9, "foreground": 1.0},
}
"""Settings of `detector` with each switch on."""


@pytest.mark.parametrize("name", VARIANTS)
def test_a_model_is_kept_with_its_switches(name: str, tmp_path: Path) -> None:
    test = layer_maps(2, 1)
    model = fit(detector(**VARIANTS[name]), layer_maps(3, 0))
    model.save(tmp_path / "model")
    read = load(tmp_path / "model").model
    assert read.parts == replace(model.parts, backbone=read.parts.backbone)
    assert_same(predict(model, test), predict(read, test))
    if name not in ("radius", "pruning", "per_image", "pixels"):  # of search, fit or score alone
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


@pytest.mark.parametrize("join", [Join.concat, Join.separate])
@pytest.mark.parametrize("share", [0.0, 0.03])
def test_scores_of_pixels_equal_the_naive_version(join: Join, share: float) -> None:
    nominal, test = layer_maps(4, 0), layer_maps(2, 1)
    scoring = ScoringConfig(top_share=share, pool=Pool.pixels)
    model = fit(detector(join, scoring=scoring), nominal)
    inside = torch.ones(2, *SIZE, dtype=torch.bool)
    inside[1, :, :24] = False
    for found in (predict(model, test), model.score(model.counted(test, inside), SIZE)):
        for score, anomaly_map, grid in zip(found.score, found.map, found.patch_score, strict=True):
            expected = reference.pixel_score(anomaly_map.numpy(), grid.numpy(), share)
            assert float(score) == pytest.approx(expected, rel=1e-5)

    if join is Join.concat:  # rows of tiles, one after another
        whole = predict(model, test)
        grid, nearest = whole.patch_score, whole.nearest
        halves = (slice(0, 3), slice(3, None))
        bands = [whole._replace(patch_score=grid[:, i], nearest=nearest[:, i]) for i in halves]
        assert_same(predicted(bands, SIZE, scoring), whole)


@pytest.mark.parametrize(
    "groups",
    [
        {"decision": DecisionConfig(0.1)},
        {"objectives": [Objective["label_free"]]},
        {"ensemble": EnsembleConfig([MemberConfig(), MemberConfig()])},
    ],
    ids=lambda groups: next(iter(groups)),
)
def test_what_scores_without_maps_cannot_be_had_with_pixels(
    groups: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r" scores left-out training images by their patches, "):
        config(tmp_path, scoring=ScoringConfig(pool=Pool.pixels), **groups)


def test_scores_of_pixels_need_maps_and_no_factor_of_patches() -> None:
    with pytest.raises(InputError, match=r"^scoring.reweight=3 weights the patches' scores"):
        ScoringConfig(reweight=3, pool=Pool.pixels)
    model = fit(detector(scoring=ScoringConfig(pool=Pool.pixels)), layer_maps(3, 0))
    with pytest.raises(InputError, match=r"^scores without maps need scoring.pool=patches"):
        cross_fitted(model, [model.features(layer_maps(3, 0))], range(3), 2)
    with pytest.raises(InputError, match=r"members need scoring.pool=patches"):
        Ensemble([model])


def test_a_single_layer_has_one_memory_whatever_the_join() -> None:
    settings = {"layers": LayersConfig(["layer2"], Join.separate), "coreset": GreedyConfig(0.5)}
    network = Backbone(BackboneConfig(), LayersConfig(["layer2"]))
    with mock.patch("patchcore.methods.detector.make_backbone", lambda *_: network):
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
    assert_same(one, predict(warm, test))


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
    assert_same(before, predict(model, test))
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


@pytest.fixture(params=[0, 2**30], ids=["blocks", "whole"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut the grid into blocks, or not."""
    monkeypatch.setattr(patchcore.index.local, "_FEW", {"cpu": request.param})


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(
    ("radius", "retrieval"), [(0, None), (1, None), (3, None), (None, 1), (None, 3), (1, 2)]
)
@pytest.mark.parametrize("coreset", [AllConfig(), GreedyConfig(0.05)], ids=["all", "few"])
def test_a_part_of_the_memory_equals_the_naive_version(
    radius: int | None, retrieval: int | None, coreset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patchcore.index.exact, "_CPU_CHUNK", 700)  # several chunks a block
    nominal, test = layer_maps(4, 0), layer_maps(1, 1)
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
    assert_same(together[-1], found)
    rows = together[0].nearest.numpy()
    if retrieval is None:  # with images fewer patches may be others
        x = model.features(test)[0].numpy().reshape(42, -1)
        part = reference.nearest_nearby(x, places, memory[:5], origin[:5], 2, radius)
        assert np.array_equal(rows[0].flatten(), part[1][:, 0])


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("radius", [0, 2, None])
def test_each_image_is_searched_among_its_own_rows_only(radius: int | None) -> None:
    """An image with few rows has a larger radius, and no other has."""
    generator = torch.Generator().manual_seed(0)

    def cells(count: int) -> Tensor:
        return torch.stack([torch.randint(n, (count,), generator=generator) for n in (5, 12)], 1)

    memory, around = torch.randn(90, 4, generator=generator), cells(90)
    queries, places = torch.randn(60, 4, generator=generator), cells(60)
    images = torch.arange(60) % 3
    index = LocalIndex(memory, around, (5, 12), radius)
    shares = torch.tensor([[0.05], [0.4], [1.0]])
    for among in (
        torch.rand(3, 90, generator=generator) < shares,
        None,
        torch.rand(3, 90, generator=generator) < 0.5,
    ):
        distances, rows = index.search_local(queries, places, 3, images, among)
        for i, (query, place) in enumerate(zip(queries, places, strict=True)):
            own = torch.ones(90, dtype=torch.bool) if among is None else among[images[i]]
            apart = (around - place).abs().amax(1)  # rows or columns
            reach = 12 if radius is None else radius
            while int((own & (apart <= reach)).sum()) < 3:
                reach += 1
            squared = (memory - query).square().sum(1).masked_fill(~own | (apart > reach), np.inf)
            expected = squared.sort(stable=True)
            assert rows[i].tolist() == expected.indices[:3].tolist()
            assert torch.allclose(distances[i], expected.values[:3], rtol=1e-5)


@pytest.mark.usefixtures("blocks")
def test_no_patches_find_none() -> None:
    memory, places = torch.rand(6, 3), torch.tensor([[0, 0], [1, 1]] * 3)
    index = patchcore.index.local.LocalIndex(memory, places, (2, 2), 1)
    squared, rows = index.search_local(memory[:0], places[:0], 2)
    assert (squared.shape, rows.shape) == ((0, 2), (0, 2))


@pytest.mark.usefixtures("blocks")
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
    assert_same(told, predict(fit(detector(**settings), nominal), more))
    both = fit(detector(**settings), [torch.cat(x) for x in zip(nominal, more, strict=True)])
    assert_same(predict(both, test), predict(model, test))
    model.forget([4, 5])
    assert_same(before, predict(model, test))


class Tokens(nn.Module):
    """A network of two layers and a class token, as methods know it."""

    name, layers, channels = "tokens", [*LAYERS, CLASS_TOKEN], [128, 256, 9]

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


@pytest.mark.parametrize("join", [Join.concat, Join.separate])
@pytest.mark.parametrize("inside", [False, True])
def test_similar_images_are_those_of_similar_class_tokens(join: Join, inside: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    nominal, more, test = (layer_maps(n, seed) for n, seed in ((4, 0), (2, 2), (2, 1)))
    tokens = [torch.randn(len(x[0]), 9, 1, 1, generator=generator) for x in (nominal, more, test)]
    for maps, token in zip((nominal, more, test), tokens, strict=True):
        maps.append(token)
    layers = LayersConfig(LAYERS, join, token=True)
    parts = Parts(PatchCoreConfig(retrieval=1), layers=layers, patch=PatchConfig(channels=24))
    with mock.patch("patchcore.methods.detector.make_backbone", lambda *_: Tokens()):
        model: Any = build_detector(parts)
        model = fit(model, nominal, scale=None if join is not Join.concat else ScaleConfig())
    model.extend([model.features(more)], [SIZE], [4, 5])
    seen = torch.ones(2, *SIZE, dtype=torch.bool)
    seen[:, :, 24:] = not inside
    found = model.score(model.counted(test, seen), SIZE)
    bank = model if join is Join.concat else model.banks[0]
    known = torch.cat(tokens[:2]).flatten(1).numpy()
    features = model.features(test) if join is Join.concat else model.features(test)[0]
    origin = bank.origin.numpy()
    for i in range(2):
        counts = ~found.patch_score[i].isnan()
        squared, rows = reference.nearest_nearby(
            features.features[i][counts].numpy(),
            counts.nonzero().numpy(),
            bank.memory.numpy(),
            origin,
            1,
            retrieval=1,
            means=dict(enumerate(known)),
            whole=tokens[2][i].flatten().numpy(),
        )
        assert np.array_equal(found.nearest[i][counts], rows[:, 0])
        if join is Join.concat:
            assert np.allclose(found.patch_score[i][counts], np.sqrt(squared[:, 0]), rtol=1e-4)


def test_a_class_token_without_retrieval_is_refused() -> None:
    layers = LayersConfig(LAYERS, token=True)
    with pytest.raises(InputError, match=r"^layers.token has no effect without method.retrieval"):
        build_detector(Parts(PatchCoreConfig(), layers=layers))
    for name in {*METHODS} - {"patchcore"}:
        with pytest.raises(InputError, match=r"^layers.token has no effect on method="):
            build_detector(Parts(METHODS[name](), layers=layers))


def test_copies_of_an_image_share_its_mean() -> None:
    numbers, means = image_means(torch.tensor([[1.0], [3], [9], [4]]), [2, 1, 1], [7, 2, 7])
    assert numbers.tolist() == [[2], [7]] and means.tolist() == [[9], [3]]


def test_what_a_part_of_the_memory_cannot_be_had_with_is_refused() -> None:
    for switch in ("radius", "retrieval"):
        with pytest.raises(InputError, match=rf"^method.{switch} needs patches of images"):
            detector(coreset=LearnedConfig(count=3), **{switch: 1})
        with pytest.raises(InputError, match=rf"^method.{switch} has its own exact search"):
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


# --- whitening -------------------------------------------------------------------------------


@pytest.mark.parametrize("shrinkage", [None, 0.0, 0.07, 1.0])
@pytest.mark.parametrize("share", [0.5, 0.99, 1.0])
def test_whitening_equals_the_naive_version(
    share: float, shrinkage: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patchcore.whitening, "_CHUNK", 100)  # several chunks
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(60, 8, generator=generator) @ torch.randn(8, 8, generator=generator) + 5
    mean, matrix = fit_whitening(features, share, shrinkage, torch.device("cpu"))
    expected = reference.whitening(features.numpy(), share, shrinkage)
    assert mean.shape == (1, 8) and np.allclose(mean[0], expected[0], rtol=1e-6)
    found = whiten(features.view(6, 10, 8), mean, matrix).view(60, -1)
    theirs = (features.numpy() - expected[0]) @ expected[1].T
    assert found.shape == theirs.shape
    # Signs of eigenvectors are free, distances are not.
    assert np.allclose(cdist(found, found), cdist(theirs, theirs), atol=1e-4)


def test_whitened_features_have_one_deviation_in_every_direction() -> None:
    features = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
    features *= torch.tensor([100, 10, 1, 0.1, 0.01, 0.001])
    mean, matrix = fit_whitening(features, 1.0, 0.0, torch.device("cpu"))
    covariance = whiten(features, mean, matrix).T.cov()
    assert torch.allclose(covariance, torch.eye(6), atol=1e-2)


def test_equal_features_stay_as_they_are_and_those_of_few_patches_are_finite() -> None:
    mean, matrix = fit_whitening(torch.full((4, 3), 0.1), 0.9, None, torch.device("cpu"))
    assert torch.equal(matrix, torch.eye(3)) and torch.allclose(mean, torch.tensor(0.1))
    few = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    for shrinkage in (None, 0.0):
        mean, matrix = fit_whitening(few, 1.0, shrinkage, torch.device("cpu"))
        assert matrix.shape == (2, 9) and matrix.isfinite().all()
    with pytest.raises(InputError, match="NaN or infinite"):
        fit_whitening(torch.full((4, 3), torch.nan), 0.9, None, torch.device("cpu"))


def test_a_whitened_memory_equals_the_naive_version() -> None:
    nominal, test = layer_maps(5, 0), layer_maps(2, 1)
    model = fit(detector(whitening=0.9, shrinkage=0.1), nominal)
    found = predict(model, test)
    x = model.features(nominal).flatten(0, 2).numpy()
    mean, matrix = reference.whitening(x, 0.9, 0.1)
    assert model.memory.shape == (5 * 42, len(matrix)) and len(matrix) < 24
    for i, queries in enumerate(model.features(test).flatten(1, 2).numpy()):
        scores, rows = reference.patch_scores(
            (queries - mean) @ matrix.T, (x - mean) @ matrix.T, 1, "euclidean"
        )
        assert np.allclose(found.patch_score[i].flatten(), scores, rtol=1e-3)
        assert np.array_equal(found.nearest[i].flatten(), rows)
    assert model.memory_bytes == 4 * (5 * 42 * len(matrix) + 24 + 24 * len(matrix))
    assert model.bytes_of(10) == 4 * (10 * len(matrix) + 24 + 24 * len(matrix))


# --- foreground ------------------------------------------------------------------------------


def objects_on_ground(count: int, seed: int) -> Tensor:
    """Patch features (B, 10, 12, 6) of a square object on another ground."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 10, 12, 6, generator=generator)
    features[:, 3:7, 4:9] += 8
    return features


@pytest.mark.parametrize("threshold", [0.0, 5.0])
def test_the_foreground_equals_the_naive_version(threshold: float) -> None:
    features = objects_on_ground(4, 0)
    features[1] *= -1  # the object on the component's other side
    features[2] = torch.randn(10, 12, 6, generator=torch.Generator().manual_seed(9))  # no object
    found = foreground(features, threshold)
    for i, x in enumerate(features.numpy()):
        assert np.array_equal(found[i], reference.foreground(x, threshold))
    if threshold:
        expected = torch.zeros(10, 12, dtype=torch.bool)
        expected[2:8, 3:10] = True  # the object and a rim around it
        assert torch.equal(found[0], expected) and torch.equal(found[1], expected)
        assert found[2].all()


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_foreground_of_what_is_no_number_is_refused(broken: float) -> None:
    features = torch.rand(2, 4, 4, 8)
    features[1, 2, 3, 4] = broken
    with pytest.raises(InputError, match="features hold NaN or infinite values"):
        foreground(features, 1.0)


def test_an_image_without_content_is_its_own_foreground() -> None:
    assert foreground(torch.ones(1, 5, 4, 3), 0.0).all()


def test_both_ways_to_right_angles_span_the_same() -> None:
    columns = torch.randn(3, 40, 8, generator=torch.Generator().manual_seed(0))
    columns = columns * 10.0 ** torch.arange(0, -4, -0.5)  # of very unlike lengths
    plain, fast = orthonormal_by_qr(columns), orthonormal_by_cholesky(columns)
    assert torch.allclose(fast.mT @ fast, torch.eye(8).expand(3, 8, 8), atol=1e-5)
    assert torch.allclose(fast @ fast.mT, plain @ plain.mT, atol=1e-4)
    # Columns that depend on each other, or that are 0, make no number that is none.
    assert orthonormal_by_cholesky(torch.ones(2, 5, 3)).isfinite().all()
    assert not orthonormal_by_cholesky(torch.zeros(2, 5, 3)).any()


@pytest.mark.parametrize("threshold", [0.0, 5.0])
def test_the_foreground_is_the_same_by_either(
    threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = objects_on_ground(3, 5)
    plain = foreground(features, threshold)
    monkeypatch.setattr("patchcore.foreground.orthonormal_by_qr", orthonormal_by_cholesky)
    assert torch.equal(foreground(features, threshold), plain)
    assert 0 < plain.float().mean() < 1


@pytest.mark.parametrize("join", [Join.concat, Join.separate])
def test_background_neither_enters_the_memory_nor_scores(join: Join) -> None:
    nominal, test = layer_maps(3, 0, 2), layer_maps(2, 1, 2)
    for fine, deep in (nominal, test):
        fine[:, :, 4:10, 4:9] += 3
        deep[:, :, 2:5, 2:5] += 3
    threshold = 2.0
    model, plain = fit(detector(join, foreground=threshold), nominal), detector(join)
    features = plain.features(nominal)
    joined = features if join is Join.concat else plain._joined(features)
    masks = np.stack([reference.foreground(x, threshold) for x in joined.numpy()])
    assert 0 < masks.mean() < 1
    memory = model.memories["memory" if join is Join.concat else "0.memory"]
    assert len(memory) == masks.sum()
    found, whole = predict(model, test), predict(fit(plain, nominal), test)
    counts = ~found.patch_score.isnan()
    assert 0 < float(counts.float().mean()) < 1
    assert (found.map[:, 0, 0] == 0).all() and found.map.isfinite().all()
    if join is Join.concat:  # a smaller memory leaves no patch nearer
        assert (found.patch_score[counts] >= whole.patch_score[counts] - 1e-5).all()
        assert torch.allclose(found.score, found.patch_score.nan_to_num(0).flatten(1).amax(1))


@pytest.mark.parametrize("join", [Join.concat, Join.separate])
def test_a_foreground_without_effect_is_told(join: Join) -> None:
    with pytest.warns(UserWarning, match="method.foreground=1e.09: every patch of every"):
        fit(detector(join, foreground=1e9), layer_maps(3, 0))


def test_a_region_and_a_foreground_go_together() -> None:
    features = objects_on_ground(1, 0)
    left, corner = torch.zeros(2, 1, 10, 12, dtype=torch.bool)
    left[:, :, :6], corner[:, 0, 0] = True, True
    assert torch.equal(objects(features, 5.0, left), foreground(features, 5.0) & left)
    assert torch.equal(objects(features, 5.0, corner), corner)  # where no object lies


def test_switches_without_effect_are_refused() -> None:
    with pytest.raises(InputError, match=r"^method.shrinkage=0.1 has no effect without"):
        PatchCoreConfig(shrinkage=0.1)
    for wrong in ({"whitening": 0.0}, {"whitening": 1.1}, {"foreground": -1.0}):
        with pytest.raises(InputError, match=rf"^method.{next(iter(wrong))} must be"):
            PatchCoreConfig(**wrong)


def test_an_export_says_why_not() -> None:
    for switch in ({"radius": 1}, {"foreground": 1.0}, {"retrieval": 1, "join": Join.scaled}):
        assert "method." in detector(**switch).untraceable
    for switch in ({}, {"whitening": 0.9}, {"join": Join.scaled}):
        assert detector(**switch).untraceable == ""


def test_a_coreset_order_is_that_of_its_switches(tmp_path: Path) -> None:
    write_mvtec(tmp_path, (40, 36))
    layers = LayersConfig(LAYERS, Join.separate)
    found = []
    for number, switches in enumerate(({}, {"whitening": 0.9}) * 2):
        settings = config(
            tmp_path,
            method=PatchCoreConfig(**switches),
            layers=layers,
            cache=CacheConfig(enabled=True, root=str(tmp_path / "cache")),
        )
        found.append(run(settings, tmp_path / str(number)))
    for cold, warm in zip(found[:2], found[2:], strict=True):
        assert "coreset" not in cold.warm and "coreset" in warm.warm
        metrics = {key: value for key, value in cold.record.items() if "seconds" not in key}
        assert metrics.items() <= warm.record.items()
    assert found[0].record["memory_bytes"] != found[1].record["memory_bytes"]
    switches = (
        {"whitening": 0.9},
        {"whitening": 0.9, "shrinkage": 0.1},
        {"foreground": 1.0},
        {"pruning": 1},
        {},
    )
    followed = [str(detector(**each).followed()) for each in switches]
    assert len({*followed}) == 5
