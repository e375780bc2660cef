"""AUPIMO against its naive version and anomalib's, and metrics of some of the images."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from patchcore.metrics import (
    MAP_KEYS,
    MapScores,
    PixelMetrics,
    UndefinedError,
    map_metrics,
    pimo_areas,
)
from tests import reference

quick = settings(deadline=None, max_examples=40, database=None)
Maps = list[tuple[Tensor, Tensor]]


def scores_of(pairs: Maps) -> MapScores:
    return MapScores(
        torch.cat([scores[~mask] for scores, mask in pairs]),
        torch.cat([scores[mask] for scores, mask in pairs]),
        torch.tensor([int((~mask).sum()) for _, mask in pairs]),
        torch.tensor([int(mask.sum()) for _, mask in pairs]),
    )


@st.composite
def map_sets(draw: st.DrawFn) -> Maps:
    """Maps (H, W) and masks of several sizes in any order, nominal images and others among them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels, pairs = draw(st.sampled_from([3, 20, 1000])), []
    for anomalous in rng.permutation([False, False, True, True, *(rng.random(3) < 0.5)]):
        mask = rng.random(rng.integers(3, 9, 2)) < 0.4 * anomalous
        scores = 30 + rng.integers(0, levels, mask.shape) / 8 + mask * rng.integers(0, levels) / 8
        pairs.append((torch.from_numpy(scores).float(), torch.from_numpy(mask)))
    return pairs


@quick
@given(map_sets(), st.sampled_from([(0.05, 0.5), (0.1, 0.11), (0.2, 1.0), (0.01, 0.9)]))
def test_areas_equal_naive(pairs: Maps, bounds: tuple[float, float]) -> None:
    maps = [scores.double().numpy() for scores, _ in pairs]
    masks = [mask.numpy() for _, mask in pairs]
    nominal = [scores for scores, mask in zip(maps, masks, strict=True) if not mask.any()]
    if not any(mask.any() for mask in masks):
        with pytest.raises(UndefinedError, match="no anomalous pixels"):
            pimo_areas(scores_of(pairs), *bounds)
        return
    highest = max(scores.max() for scores in nominal)
    first = np.mean([(scores >= highest).mean() for scores in nominal])
    if first > bounds[0] * (1 + 1e-9):
        with pytest.raises(UndefinedError, match="needs more nominal images"):
            pimo_areas(scores_of(pairs), *bounds)
        return
    expected = reference.aupimo(maps, masks, *bounds)
    assert pimo_areas(scores_of(pairs), *bounds).tolist() == pytest.approx(expected, abs=1e-12)


def test_area_of_a_worked_example() -> None:
    nominal = torch.arange(100.0).view(10, 10)  # each score is a false-positive rate of its own
    mask = torch.zeros(2, 2, dtype=torch.bool)
    mask[0] = True
    # One anomalous pixel above all nominal ones, one equal to that at a rate of 0.05.
    pairs = [
        (nominal, torch.zeros(10, 10, dtype=torch.bool)),
        (torch.tensor([[200.0, 95.0], [0.0, 0.0]]), mask),
    ]
    from_4_to_5, rest = math.log(5 / 4) / 2, math.log(10 / 5)
    expected = 0.5 + 0.5 * (from_4_to_5 + rest) / math.log(10)
    assert pimo_areas(scores_of(pairs), 0.01, 0.1).tolist() == pytest.approx([expected])


def many(seed: int) -> tuple[Tensor, Tensor]:
    """Maps (6, 250, 400) and masks: four nominal images, whose highest scores all differ."""
    rng = np.random.default_rng(seed)
    maps = np.zeros((6, 100_000))
    nominal = np.zeros(400_000)
    nominal[rng.permutation(400_000)[:1000]] = np.arange(1, 1001)
    maps[:4] = nominal.reshape(4, -1)
    maps[4:] = rng.integers(0, 1100, (2, 100_000))
    masks = np.zeros((6, 250, 400), dtype=bool)
    masks[4, 20:60, 30:80], masks[5, 5:9, 7:9] = True, True
    return torch.from_numpy(maps).float().view(6, 250, 400), torch.from_numpy(masks)


def test_aupimo_of_a_test_set_in_batches_and_by_image() -> None:
    maps, masks = many(0)
    metric = PixelMetrics()
    known = torch.tensor([True, False, True])
    for some in (slice(0, 3), slice(3, 6)):
        metric.update(maps[some], masks[some])
    metric.update(maps[3:], masks[3:], known)
    found = metric.compute()
    pairs = list(zip(maps, masks, strict=True))
    values, undefined = map_metrics(scores_of([*pairs, pairs[3], pairs[5]]))
    assert {key: found[key] for key in MAP_KEYS} == values and not undefined
    assert 0 < values["aupimo"] < 1
    alone = PixelMetrics()
    alone.update(maps[[0, 2, 3, 5]], masks[[0, 2, 3, 5]])
    some, reasons = metric.of([8, 0, 7, 2, 3])  # the seventh is left out
    assert some == pytest.approx(alone.compute(), rel=1e-12)
    assert reasons == {} == metric.undefined()
    assert metric.compute() == found


def test_large_numbers_of_pixels_are_kept_exactly() -> None:
    from patchcore.metrics.states import _read, _written

    numbers = torch.tensor([[0, 2**36 - 1], [2**24 + 1, 4095], [4096, 5]])
    assert _written(numbers).dtype == torch.float32
    assert torch.equal(_read(_written(numbers)), numbers)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_aupimo_on_the_gpu_is_that_of_the_cpu() -> None:
    maps, masks = many(0)
    on_gpu, on_cpu = PixelMetrics().cuda(), PixelMetrics()
    on_gpu.update(maps.cuda(), masks.cuda())
    on_cpu.update(maps, masks)
    expected = on_cpu.compute()
    assert on_gpu.compute() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    images = [5, 0, 1, 2, 3]
    assert on_gpu.of(images)[0] == pytest.approx(on_cpu.of(images)[0], rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_aupimo_equals_that_of_anomalib(seed: int) -> None:
    functional = pytest.importorskip(
        "anomalib.metrics.pimo.functional", reason="needs the benchmarks extra"
    )
    maps, masks = many(seed)
    # A threshold at every score; rates of 1e-5 and 1e-4 are there exactly.
    *_, classes, areas, _ = functional.aupimo_scores(maps, masks, num_thresholds=1001)
    found = pimo_areas(scores_of(list(zip(maps, masks, strict=True))))
    torch.testing.assert_close(found, areas[classes == 1], rtol=0, atol=1e-6)
