from typing import Any

import numpy as np
import pytest
import torch

from patchcore import scoring
from patchcore.errors import InputError
from patchcore.index import TorchIndex
from patchcore.scoring import (
    Distance,
    ScoringConfig,
    anomaly_maps,
    cell_pixels,
    comparable,
    highest,
    neighbourhood_weight,
    patch_scores,
    score_images,
)
from tests import reference


def test_patch_scores_average_the_chosen_distance() -> None:
    squared = torch.tensor([[[4.0, 16.0], [1.0, 9.0]]])  # (1, 2, k)
    for distance, expected in (("euclidean", [3, 2]), ("squared", [10, 5]), ("cosine", [5, 2.5])):
        scores = patch_scores(squared, ScoringConfig(distance=Distance[distance]))
        assert scores.tolist() == [expected]


@pytest.mark.parametrize("size", [(7, 11), (3, 5), (2, 4), (12, 40)])
def test_a_pixel_counts_with_the_cell_that_it_lies_in(size: tuple[int, int]) -> None:
    counts = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    pixels = cell_pixels(counts, size)
    assert pixels.shape == (2, *size)
    for y in range(size[0]):
        for x in range(size[1]):
            cell = counts[:, y * 3 // size[0], x * 5 // size[1]]
            assert torch.equal(pixels[:, y, x], cell)


@pytest.mark.parametrize("b", [0, 2, 9])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("distance", list(Distance), ids=lambda distance: distance.name)
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("scale", [0.3, 20.0])
def test_scores_equal_the_papers_equations(
    b: int, k: int, distance: Distance, share: float, scale: float
) -> None:
    generator = torch.Generator().manual_seed(b + k)
    config = ScoringConfig(k, b, distance, share)
    memory = comparable(torch.randn(40, 6, generator=generator) * scale, config)
    raw = torch.randn(5, 12, 6, generator=generator) * scale  # (B, h·w, D)
    patches = comparable(raw, config)
    index = TorchIndex(memory)
    squared, rows = index.search(patches.flatten(0, 1), k)  # (B·h·w, k)
    scores, grid = score_images(patches, squared, rows, memory, index.search, config)
    for i, x in enumerate(raw.numpy()):
        expected, nearest = reference.patch_scores(x, memory.numpy(), k, distance.name)
        assert np.allclose(grid[i], expected, rtol=1e-4)
        assert np.array_equal(rows.view(5, 12, k)[i, :, 0], nearest)
        score = reference.image_score(x, memory.numpy(), b, k, distance.name, share)
        assert float(scores[i]) == pytest.approx(score, rel=1e-4)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, [4.0]), (0.2, [4.0]), (0.5, [4.0, 3.0]), (1.0, [4, 3, 2, 1])]
)
def test_the_highest_share_holds_at_least_one_patch(share: float, expected: list[float]) -> None:
    scores = torch.tensor([[1.0, 4.0, 2.0, 3.0]])
    values, patches = highest(scores, share)
    assert values.tolist() == [expected]
    assert torch.equal(scores[0, patches[0]], values[0])


def test_the_cosine_of_nothing_is_one_half_from_everything() -> None:
    config = ScoringConfig(distance=Distance.cosine)
    vectors = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 0.1]])
    memory = comparable(vectors, config)
    assert memory.tolist() == [[0, 0], [1, 0], [0, 1]]
    squared, _ = TorchIndex(memory[1:]).search(memory, 2)
    assert patch_scores(squared, config).tolist() == [0.5, 0.5, 0.5]


def test_reweighting_survives_distances_whose_exponential_overflows() -> None:
    memory = torch.tensor([[0.0], [1.0], [5.0]])
    weight = neighbourhood_weight(
        torch.tensor([[500.0]]), torch.tensor([2]), memory, TorchIndex(memory).search, 2
    )
    assert torch.allclose(weight, torch.tensor([1 - 1 / (1 + np.exp(4.0))], dtype=torch.float32))


@pytest.mark.parametrize("size", [(224, 224), (50, 81)])
@pytest.mark.parametrize("sigma", [0.0, 1.3, 4.0])
@pytest.mark.parametrize("traced", [False, True])
def test_maps_equal_interpolation_and_gaussian(
    size: tuple[int, int], sigma: float, traced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = "_upsample_and_blur" if traced else "_anomaly_maps_traced"
    monkeypatch.setattr(scoring, "traced", lambda: traced)
    monkeypatch.setattr(scoring, other, None)
    scores = torch.rand(3, 28, 20, generator=torch.Generator().manual_seed(0))
    maps = anomaly_maps(scores, size, sigma)
    expected = np.stack([reference.anomaly_map(x, size, sigma) for x in scores.numpy()])
    assert maps.shape == (3, *size)
    assert np.abs(maps.numpy() - expected).max() < 2e-6


def test_defaults_are_the_papers_without_reweighting() -> None:
    config = ScoringConfig()
    assert (config.neighbours, config.reweight, config.distance) == (1, 0, Distance.euclidean)
    assert (config.top_share, config.sigma) == (0, 4)


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("scoring.neighbours", {"neighbours": 0}),
        ("scoring.reweight", {"reweight": 1}),
        ("scoring.reweight", {"reweight": -2}),
        ("scoring.top_share", {"top_share": -0.1}),
        ("scoring.top_share", {"top_share": 1.1}),
        ("scoring.sigma", {"sigma": -1.0}),
    ],
)
def test_bad_settings_are_named(key: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=key):
        ScoringConfig(**settings)


def test_autocast_leaves_the_levels_of_a_map() -> None:
    scores = torch.rand(2, 4, 4)
    scores[1, 0, :2] = torch.nan  # these do not count
    plain = scoring.anomaly_maps(scores, (32, 32), 2.0)
    scoring._upsample_and_blur.cache_clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(scoring.anomaly_maps(scores, (32, 32), 2.0), plain)
