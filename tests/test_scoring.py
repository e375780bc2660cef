from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from patchcore.errors import InputError
from patchcore.index import TorchIndex
from patchcore.scoring import (
    Distance,
    ScoringConfig,
    anomaly_maps,
    image_scores,
    neighbourhood_weight,
    patch_scores,
)
from tests import reference


def test_patch_scores_average_the_chosen_distance() -> None:
    squared = torch.tensor([[[4.0, 16.0], [1.0, 9.0]]])  # (1, 2, k)
    assert patch_scores(squared, ScoringConfig()).tolist() == [[3.0, 2.0]]
    assert patch_scores(squared, ScoringConfig(distance=Distance.squared)).tolist() == [[10.0, 5.0]]


@pytest.mark.parametrize("b", [0, 2, 3, 9])
@pytest.mark.parametrize("scale", [0.3, 20.0])
def test_image_scores_equal_the_papers_equations(b: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(b)
    memory = torch.randn(40, 6, generator=generator) * scale
    patches = torch.randn(5, 12, 6, generator=generator) * scale  # (B, h·w, D)
    index = TorchIndex(memory)
    squared, rows = index.search(patches.flatten(0, 1), 1)  # (B·h·w, 1)
    scores, m_test = image_scores(patch_scores(squared, ScoringConfig()).view(5, 12))
    if b:
        image = torch.arange(5)
        m_star = rows.view(5, 12)[image, m_test]
        scores *= neighbourhood_weight(patches[image, m_test], m_star, memory, index.search, b)
    expected = [reference.image_score(x, memory.numpy(), b) for x in patches.numpy()]
    assert np.allclose(scores.numpy(), expected, rtol=1e-4)


def test_reweighting_survives_distances_whose_exponential_overflows() -> None:
    memory = torch.tensor([[0.0], [1.0], [5.0]])
    weight = neighbourhood_weight(
        torch.tensor([[500.0]]), torch.tensor([2]), memory, TorchIndex(memory).search, 2
    )
    assert torch.allclose(weight, torch.tensor([1 - 1 / (1 + np.exp(4.0))], dtype=torch.float32))


@pytest.mark.parametrize("size", [(224, 224), (50, 81)])
@pytest.mark.parametrize("sigma", [0.0, 4.0])
def test_maps_equal_interpolation_and_scipy_gaussian(size: tuple[int, int], sigma: float) -> None:
    scores = torch.rand(3, 28, 20, generator=torch.Generator().manual_seed(0))
    maps = anomaly_maps(scores, size, sigma)
    upsampled = F.interpolate(scores[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    expected = np.stack([gaussian_filter(x, sigma) for x in upsampled.numpy()])
    assert maps.shape == (3, *size)
    assert np.abs(maps.numpy() - expected).max() < 1e-5


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("scoring.neighbours", {"neighbours": 0}),
        ("scoring.reweight", {"reweight": 1}),
        ("scoring.reweight", {"reweight": -2}),
        ("scoring.sigma", {"sigma": -1.0}),
    ],
)
def test_bad_settings_are_named(key: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=key):
        ScoringConfig(**settings)
