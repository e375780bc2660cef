import re

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from patchcore import (
    AllConfig,
    BackboneConfig,
    GreedyConfig,
    InputError,
    LayersConfig,
    Padim,
    PatchConfig,
    PatchCore,
    RandomConfig,
    ScoringConfig,
)
from patchcore.methods.common import FeatureBuffer
from patchcore.scoring import Distance
from tests import reference

pytestmark = pytest.mark.filterwarnings("ignore:backbone resnet18 has random weights")


def build(**settings: object) -> PatchCore:
    return PatchCore(
        BackboneConfig("resnet18", "none"),
        LayersConfig(["2", "3"]),
        PatchConfig(layer_channels=24, channels=16),
        **settings,  # type: ignore[arg-type]
    )


def images(count: int, size: tuple[int, int] = (32, 32), seed: int = 0) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def fitted() -> PatchCore:
    return build(coreset=AllConfig()).fit(images(5, (48, 48)))


def test_features_equal_the_naive_road_from_layer_maps(fitted: PatchCore) -> None:
    batch = images(2, (48, 64))
    maps = [x.numpy() for x in fitted.backbone(batch)]
    assert [x.shape[1:] for x in maps] == [(128, 6, 8), (256, 3, 4)]
    expected = reference.patch_features(maps, 3, 1, 24, 16)  # (B, h, w, D)
    features = fitted.embed(batch)
    assert features.shape == (2, 6, 8, 16)
    assert np.allclose(features.numpy(), expected, atol=1e-5)


def test_memory_of_all_patches_is_the_features_in_order(fitted: PatchCore) -> None:
    features = fitted.embed(images(5, (48, 48)))
    assert torch.equal(fitted.memory, features.flatten(0, 2))


@pytest.mark.parametrize(
    "neighbours, reweight, distance, top_share",
    [
        (1, 0, "euclidean", 0.0),
        (1, 4, "euclidean", 0.0),
        (3, 0, "squared", 0.1),
        (3, 4, "cosine", 0.0),
        (2, 5, "cosine", 0.2),
    ],
)
def test_prediction_equals_naive_search_score_and_map(
    neighbours: int, reweight: int, distance: str, top_share: float
) -> None:
    scoring = ScoringConfig(neighbours, reweight, Distance[distance], top_share, sigma=2.0)
    model = build(coreset=AllConfig(), scoring=scoring)
    memory = model.embed(images(5, (48, 48))).flatten(0, 2).numpy()
    model.fit(images(5, (48, 48)))
    batch = images(3, (48, 64), seed=1)
    prediction = model(batch)
    for i, features in enumerate(model.embed(batch).numpy()):
        patches = features.reshape(-1, 16)  # (h·w, D)
        scores, rows = reference.patch_scores(patches, memory, neighbours, distance)
        scores = scores.reshape(6, 8)
        assert np.allclose(prediction.patch_score[i], scores, rtol=1e-4)
        assert np.array_equal(prediction.nearest[i].reshape(-1), rows)
        expected = reference.image_score(patches, memory, reweight, neighbours, distance, top_share)
        assert float(prediction.score[i]) == pytest.approx(expected, rel=1e-4)
        column = scores[None, :, :, None]
        upsampled = reference.interpolate(column, (48, 64))[0, :, :, 0]
        assert np.allclose(prediction.map[i], gaussian_filter(upsampled, 2.0), rtol=1e-4)


def test_the_coreset_does_not_depend_on_the_distance() -> None:
    by_length = build(coreset=GreedyConfig(ratio=0.2)).fit(images(3))
    cosine = ScoringConfig(distance=Distance.cosine)
    by_angle = build(coreset=GreedyConfig(ratio=0.2), scoring=cosine).fit(images(3))
    assert by_angle.coreset is not None and by_length.coreset is not None
    assert torch.equal(by_angle.coreset.indices, by_length.coreset.indices)  # type: ignore[arg-type]
    assert torch.equal(by_angle.memory, torch.nn.functional.normalize(by_length.memory))


def test_nominal_training_images_score_zero(fitted: PatchCore) -> None:
    prediction = fitted(images(5, (48, 48)))
    assert prediction.score.abs().max() < 1e-4
    assert prediction.nearest.flatten().tolist() == list(range(5 * 6 * 6))


def test_iterable_of_batches_equals_one_batch() -> None:
    batches = images(7)
    whole = build(coreset=GreedyConfig(ratio=0.3)).fit(batches)
    parts = build(coreset=GreedyConfig(ratio=0.3)).fit(iter(batches.split(3)))
    assert torch.allclose(whole.memory, parts.memory, atol=1e-5)
    assert len(whole.memory) == int(0.3 * 7 * 16)


def test_fitting_again_replaces_memory_and_index() -> None:
    model = build(coreset=AllConfig()).fit(images(3))
    far = model(images(2, seed=5)).score
    model.fit(images(2, seed=5))
    assert len(model.memory) == 2 * 16
    assert (far > 0.01).all() and model(images(2, seed=5)).score.abs().max() < 1e-4


def test_index_is_kept_until_the_memory_moves(fitted: PatchCore) -> None:
    fitted(images(1))
    index = fitted._index
    fitted(images(1))
    assert fitted._index is index
    fitted.memory = fitted.memory.clone()  # as `to(device)` does
    fitted(images(1))
    assert fitted._index is not index


def test_one_model_scores_images_of_several_sizes(fitted: PatchCore) -> None:
    for size, grid in (((32, 32), (4, 4)), ((40, 72), (5, 9)), ((45, 33), (6, 5))):
        prediction = fitted(images(2, size))
        assert prediction.map.shape == (2, *size)
        assert prediction.patch_score.shape == prediction.nearest.shape == (2, *grid)
        assert prediction.score.shape == (2,)


def test_scores_do_not_depend_on_the_batch(fitted: PatchCore) -> None:
    batch = images(4, seed=3)
    together = fitted(batch)
    for i in range(4):
        alone = fitted(batch[i : i + 1])
        assert torch.allclose(alone.score, together.score[i : i + 1], rtol=1e-4)
        assert torch.allclose(alone.map, together.map[i : i + 1], rtol=1e-4)


def test_autocast_stops_at_the_features(fitted: PatchCore) -> None:
    batch = images(2, seed=4)
    with torch.autocast("cpu", torch.bfloat16):
        prediction, features = fitted(batch), fitted.embed(batch)
    assert not torch.equal(features, fitted.embed(batch))  # autocast did something
    squared, rows = reference.nearest(features.flatten(0, 2).numpy(), fitted.memory.numpy(), 1)
    assert np.array_equal(prediction.nearest.flatten(), rows[:, 0])
    assert np.allclose(prediction.patch_score.flatten(), np.sqrt(squared[:, 0]), rtol=1e-4)
    assert not torch.equal(prediction.map, prediction.map.bfloat16().float())


def test_training_mode_and_gradients_never_reach_the_backbone(fitted: PatchCore) -> None:
    fitted.train()
    assert not any(module.training for module in fitted.backbone.modules())
    assert not any(parameter.requires_grad for parameter in fitted.parameters())
    fitted.eval()


def test_before_fit_one_message_says_what_to_do() -> None:
    with pytest.raises(InputError, match="call fit with nominal images first"):
        build()(images(1))


def test_a_group_that_is_no_settings_is_named_with_an_example() -> None:
    for group, given, example in (
        ("backbone", "resnet18", "BackboneConfig"),
        ("layers", "2+3", "LayersConfig"),
        ("coreset", 0.01, "AllConfig"),
        ("coreset", GreedyConfig, "AllConfig"),
    ):
        told = f"{group}: give settings, such as {example}(…), not {given!r}"
        with pytest.raises(InputError, match=f"^{re.escape(told)}$"):
            PatchCore(**{group: given})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^method: give settings, such as MethodConfig\(…\)"):
        Padim(BackboneConfig())  # type: ignore[arg-type]


@pytest.mark.parametrize("nothing", [[], torch.empty(0, 3, 32, 32)])
def test_fit_needs_images(nothing: list[Tensor] | Tensor) -> None:
    with pytest.raises(InputError, match="no nominal images"):
        build().fit(nothing)


def test_more_neighbours_than_memory_are_refused() -> None:
    model = build(coreset=RandomConfig(count=2), scoring=ScoringConfig(neighbours=3))
    with pytest.raises(InputError, match=r"scoring\.neighbours"):
        model.fit(images(2))(images(1))


@pytest.mark.parametrize("announced", [0, 2, 4, 9])
def test_feature_buffer_grows_beyond_what_was_announced(announced: int) -> None:
    batches = [torch.rand(2, 3, 2, 4), torch.rand(1, 3, 2, 4), torch.rand(3, 5, 5, 4)]
    buffer = FeatureBuffer(announced)
    for batch in batches:
        buffer.append(batch)
    assert torch.equal(buffer.take(), torch.cat([x.flatten(0, 2) for x in batches]))
    with pytest.raises(InputError, match="no nominal images"):
        buffer.take()


def test_feature_buffer_allocates_once_if_the_announcement_holds() -> None:
    buffer = FeatureBuffer(6)
    buffer.append(torch.rand(4, 3, 2, 5))
    storage = buffer._features
    buffer.append(torch.rand(2, 3, 2, 5))
    taken = buffer.take()
    assert storage is not None and taken.data_ptr() == storage.data_ptr()
    assert taken.shape == storage.shape == (6 * 6, 5)
