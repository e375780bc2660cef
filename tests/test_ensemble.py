"""The scale of an ensemble's members, and what they say together."""

from dataclasses import astuple

import numpy as np
import pytest
import torch
from torch import Tensor

from patchcore import (
    AllConfig,
    BackboneConfig,
    Ensemble,
    GreedyConfig,
    InputError,
    LayersConfig,
    LearnedConfig,
    PatchConfig,
    PatchCore,
    RandomConfig,
    Scale,
    ScaleConfig,
    ScoringConfig,
)
from patchcore.methods.ensemble import combined_maps, combined_scores
from patchcore.methods.scale import nominal_scale
from patchcore.scoring import Distance, anomaly_maps, comparable
from tests import reference

pytestmark = pytest.mark.filterwarnings("ignore:backbone resnet18 has random weights")


def nominal(counts: list[int], seed: int = 0) -> Tensor:
    """Patch features (N, 5) of images that have so many patches."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([i + torch.randn(n, 5, generator=generator) for i, n in enumerate(counts)])


def measured(
    features: Tensor,
    counts: list[int],
    rows: Tensor | None = None,
    sources: list[int] | None = None,
    scoring: ScoringConfig | None = None,
    config: ScaleConfig | None = None,
) -> Scale:
    """The scale of the memory that holds these rows of the features; all by default."""
    scoring = scoring or ScoringConfig()
    rows = torch.arange(len(features)) if rows is None else rows
    memory = comparable(features[rows], scoring)
    sources = sources or list(range(len(counts)))
    return nominal_scale(features, counts, sources, memory, rows, scoring, config or ScaleConfig())


# --- one member's scale -----------------------------------------------------------------------


@pytest.mark.parametrize("sources", [[0, 1, 2, 3, 4, 5], [3, 1, 8, 3, 1, 8]], ids=str)
@pytest.mark.parametrize(
    "scoring",
    [
        ScoringConfig(),
        ScoringConfig(neighbours=3, distance=Distance.squared),
        ScoringConfig(reweight=4, top_share=0.3),
        ScoringConfig(2, 3, Distance.cosine, 0.5),
    ],
    ids=str,
)
def test_scale_equals_the_naive_one(scoring: ScoringConfig, sources: list[int]) -> None:
    counts = [8, 4, 6, 8, 4, 6]
    features = nominal(counts)
    rows = torch.randperm(36, generator=torch.Generator().manual_seed(1))[:20]
    scale = measured(features, counts, rows, sources, scoring)
    images = [x.numpy() for x in features.split(counts)]
    places = [(i, j) for i, n in enumerate(counts) for j in range(n)]
    expected = reference.nominal_scale(
        images,
        sources,
        [places[row] for row in rows],
        scoring.reweight,
        scoring.neighbours,
        scoring.distance.name,
        scoring.top_share,
    )
    assert astuple(scale) == pytest.approx(expected, rel=1e-5)


def test_no_more_images_are_scored_than_asked_for_and_the_seed_says_which() -> None:
    features, counts = nominal([6] * 8), [6] * 8
    few = [measured(features, counts, config=ScaleConfig(3, seed)) for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2]
    images = [x.numpy() for x in features.split(counts)]
    drawn = torch.randperm(8, generator=torch.Generator().manual_seed(0))[:3].tolist()
    every = [
        reference.patch_scores(
            images[i], np.concatenate(images[:i] + images[i + 1 :]), 1, "squared"
        )
        for i in range(8)
    ]
    assert few[0].patch_mean == pytest.approx(
        np.mean([np.sqrt(every[i][0]) for i in drawn]), rel=1e-5
    )
    assert measured(features, counts, config=ScaleConfig(8)) == measured(features, counts)


def test_a_single_image_is_taken_as_two_halves() -> None:
    features = nominal([9])
    halves = [features[:4].numpy(), features[4:].numpy()]
    rows = [(0, j) for j in range(4)] + [(1, j) for j in range(5)]
    expected = reference.nominal_scale(halves, [0, 1], rows)
    assert astuple(measured(features, [9])) == pytest.approx(expected, rel=1e-5)
    twice = features.repeat(2, 1)  # two epochs
    assert astuple(measured(twice, [9, 9], sources=[0, 0])) == pytest.approx(expected, rel=1e-5)


def test_learned_proxies_are_of_no_image() -> None:
    features, proxies = nominal([4, 4]), nominal([7], seed=5)
    scoring = ScoringConfig()
    scale = nominal_scale(features, [4, 4], [0, 1], proxies, None, scoring, ScaleConfig())
    distances, _ = reference.patch_scores(features.numpy(), proxies.numpy(), 1, "euclidean")
    maxima = distances.reshape(2, 4).max(1)
    expected = (maxima.mean(), maxima.std(), distances.mean(), distances.std())
    assert astuple(scale) == pytest.approx(expected, rel=1e-5)


def test_deviations_of_nothing_count_as_one() -> None:
    equal = torch.full((12, 5), 0.1)
    assert measured(equal, [4, 4, 4]) == Scale(0.0, 1.0, 0.0, 1.0)
    apart = 0.1 * torch.eye(3).repeat_interleave(4, 0)  # each as far from the others
    scale = measured(apart, [4, 4, 4])
    assert (scale.score_std, scale.patch_std) == (1.0, 1.0)
    assert scale.score_mean == scale.patch_mean == pytest.approx(0.1 * 2**0.5)


def test_an_image_that_made_the_whole_memory_is_passed_over() -> None:
    features, row = nominal([4, 4]), torch.tensor([2])
    scale = measured(features, [4, 4], row)
    distances, _ = reference.patch_scores(
        features[4:].numpy(), features[row].numpy(), 1, "euclidean"
    )
    assert (scale.score_mean, scale.score_std) == (pytest.approx(distances.max()), 1.0)
    with pytest.raises(InputError, match=r"a memory of 1 patch is too small to leave an image"):
        measured(features, [4, 4], row, scoring=ScoringConfig(reweight=2))
    with pytest.raises(InputError, match="too small"):
        measured(nominal([1]), [1])


def test_an_image_of_one_patch_counts() -> None:
    features = nominal([1, 4])
    images = [x.numpy() for x in features.split([1, 4])]
    rows = [(0, 0), *((1, j) for j in range(4))]
    expected = reference.nominal_scale(images, [0, 1], rows)
    assert astuple(measured(features, [1, 4])) == pytest.approx(expected, rel=1e-5)


def test_bad_settings_are_named() -> None:
    assert ScaleConfig() == ScaleConfig(images=50, seed=0)
    with pytest.raises(InputError, match=r"ensemble\.scale\.images"):
        ScaleConfig(images=0)


# --- several together -------------------------------------------------------------------------


def test_scores_and_maps_are_averaged_on_one_scale() -> None:
    scales = [Scale(1.0, 2.0, 3.0, 4.0), Scale(10.0, 0.5, 20.0, 1.0)]
    scores = combined_scores([torch.tensor([1.0, 5.0]), torch.tensor([10.0, 11.0])], scales)
    assert scores.tolist() == [0.0, 2.0]
    maps = combined_maps([torch.full((1, 2, 2), 7.0), torch.full((1, 2, 2), 22.0)], scales)
    assert maps.tolist() == [[[1.5, 1.5], [1.5, 1.5]]]


def test_scaling_before_upsampling_and_after_are_one() -> None:
    scale = Scale(0.0, 1.0, 3.0, 0.25)
    grid = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(0))
    before = anomaly_maps(scale.maps(grid), (40, 33), 4.0)
    assert torch.allclose(before, scale.maps(anomaly_maps(grid, (40, 33), 4.0)), atol=1e-5)


def images(count: int, side: int, seed: int = 0) -> Tensor:
    """The same pictures whatever the side."""
    pictures = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(pictures, (side, side), mode="bilinear")


def member(level: str, seed: int, **settings: object) -> PatchCore:
    backbone = BackboneConfig("resnet18", "none", seed)
    settings = {"coreset": GreedyConfig(ratio=0.5), **settings}
    return PatchCore(backbone, LayersConfig([level]), PatchConfig(), **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fitted() -> Ensemble:
    ensemble = Ensemble([member("2", 0), member("1", 1)])
    return ensemble.fit([images(4, 48), iter(images(4, 64).split(3))])


def test_prediction_is_the_mean_of_what_the_members_say(fitted: Ensemble) -> None:
    small, large = images(3, 48, seed=1), images(3, 64, seed=1)
    prediction = fitted([small, large])
    first, second = (m(x) for m, x in zip(fitted.members, (small, large), strict=True))
    a, b = fitted.scales
    expected = ((first.score - a.score_mean) / a.score_std).add(
        (second.score - b.score_mean) / b.score_std
    )
    assert torch.allclose(prediction.score, expected / 2, rtol=1e-4)
    assert prediction.map.shape == (3, 48, 48)
    assert second.patch_score.shape == (3, 16, 16)
    maps = anomaly_maps(second.patch_score, (48, 48), 4.0)
    expected = (first.map - a.patch_mean) / a.patch_std + (maps - b.patch_mean) / b.patch_std
    assert torch.allclose(prediction.map, expected / 2, rtol=1e-3, atol=1e-4)
    assert prediction.patch_score.shape == prediction.nearest.shape == (3, 6, 6)
    grid = torch.nn.functional.interpolate(second.patch_score[:, None], (6, 6), mode="bilinear")
    expected = (first.patch_score - a.patch_mean) / a.patch_std
    expected = expected + (grid[:, 0] - b.patch_mean) / b.patch_std
    assert torch.allclose(prediction.patch_score, expected / 2, rtol=1e-3, atol=1e-4)
    assert torch.equal(prediction.nearest, first.nearest)


@pytest.mark.parametrize("columns, rows", [(24, 64), (40, 36)])
def test_a_pixel_counts_if_it_counts_with_all_members(
    fitted: Ensemble, columns: int, rows: int
) -> None:
    """The first member does not see the left of the second image, the second one its top."""
    batches = images(3, 48, seed=1), images(3, 64, seed=1)
    inside = torch.ones(3, 48, 48, dtype=torch.bool), torch.ones(3, 64, 64, dtype=torch.bool)
    inside[0][1, :, :columns] = False
    inside[1][1, :rows] = rows == 64  # 64: all of it
    prediction = fitted(list(batches), list(inside))
    singles = [
        model.score(model.embed(batch, own), (48, 48))
        for model, batch, own in zip(fitted.members, batches, inside, strict=True)
    ]
    scales = fitted.scales
    scores = torch.stack([s.scores(x.score) for s, x in zip(scales, singles, strict=True)])
    assert torch.allclose(prediction.score, scores.mean(0), rtol=1e-4)
    maps = torch.stack([s.maps(x.map) for s, x in zip(scales, singles, strict=True)]).mean(0)
    grids = [~x.patch_score.isnan() for x in singles]
    assert [tuple(grid.shape[1:]) for grid in grids] == [(6, 6), (16, 16)]
    for y in range(0, 48, 5):
        for x in range(0, 48, 5):
            seen = torch.stack(
                [grid[:, y * len(grid[0]) // 48, x * len(grid[0]) // 48] for grid in grids]
            )
            expected = torch.where(seen.all(0), maps[:, y, x], 0)
            assert torch.allclose(prediction.map[:, y, x], expected, rtol=1e-3, atol=1e-4)
    for y in range(6):
        for x in range(6):
            seen = torch.stack(
                [grid[:, y * len(grid[0]) // 6, x * len(grid[0]) // 6] for grid in grids]
            )
            assert torch.equal(~prediction.patch_score[:, y, x].isnan(), seen.all(0))
    alone = anomaly_maps(singles[1].patch_score, (6, 6), 0)  # without smoothing
    both = scales[0].maps(singles[0].patch_score) + scales[1].maps(alone)
    counted = ~prediction.patch_score.isnan()
    assert counted[[0, 2]].all() and not counted[1].all()
    assert torch.allclose(prediction.patch_score[counted], both[counted] / 2, rtol=1e-3, atol=1e-4)


def test_memories_are_those_of_all_members(fitted: Ensemble) -> None:
    first, second = fitted.members
    assert sorted(fitted.memories) == ["0.memory", "1.memory"]
    for number, model in enumerate(fitted.members):
        (own,) = model.memories.values()
        assert torch.equal(fitted.memories[f"{number}.memory"], own)
    assert fitted.memory_patches == first.memory_patches + second.memory_patches


def test_every_member_has_a_scale() -> None:
    scales = [Scale(1.0, 2.0, 3.0, 4.0), Scale(10.0, 0.5, 20.0, 1.0)]
    with pytest.raises(ValueError, match=r"zip\(\)"):
        combined_scores([torch.ones(1)], scales)
    with pytest.raises(ValueError, match=r"zip\(\)"):
        combined_maps([torch.ones(1, 2, 2)], scales)


def test_scales_are_those_of_the_members_own_memories(fitted: Ensemble) -> None:
    for model, side, scale in zip(fitted.members, (48, 64), fitted.scales, strict=True):
        features = model.embed(images(4, side)).flatten(1, 2)  # (4, P, D)
        places = [(i, j) for i in range(4) for j in range(features.shape[1])]
        assert model.coreset is not None and model.coreset.indices is not None
        rows = [places[row] for row in model.coreset.indices]
        expected = reference.nominal_scale(list(features.numpy()), [0, 1, 2, 3], rows)
        assert astuple(scale) == pytest.approx(expected, rel=1e-4)


def test_features_of_another_length_change_nothing() -> None:
    """A member that measures everything a thousand times larger has no more say."""
    pair = [member("2", 0), member("2", 1)]
    plain = Ensemble(pair).fit(images(4, 32))(images(2, 32, seed=1))
    third = pair[1].patches.forward

    def longer(maps: list[Tensor]) -> Tensor:
        return 1000 * third(maps)

    pair[1].patches.forward = longer  # type: ignore[method-assign]
    scaled = Ensemble(pair).fit(images(4, 32))(images(2, 32, seed=1))
    assert torch.allclose(plain.score, scaled.score, rtol=1e-3)
    assert torch.allclose(plain.map, scaled.map, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "coreset", [AllConfig(), RandomConfig(ratio=0.3), LearnedConfig(ratio=0.3, steps=3)], ids=str
)
def test_one_image_is_enough_for_any_coreset(coreset: object) -> None:
    ensemble = Ensemble([member("2", 0, coreset=coreset), member("2", 1, coreset=coreset)])
    prediction = ensemble.fit(images(1, 48))(images(2, 48, seed=1))
    assert torch.isfinite(prediction.score).all() and torch.isfinite(prediction.map).all()
    assert (prediction.score > -5).all()


def test_mistakes_are_told(fitted: Ensemble) -> None:
    with pytest.raises(InputError, match="at least one member"):
        Ensemble([])
    with pytest.raises(InputError, match="call fit with nominal images first"):
        Ensemble(list(fitted.members))(images(1, 48))
    with pytest.raises(InputError, match="has 2 members, but images for 3 were given"):
        fitted([images(1, 48)] * 3)
