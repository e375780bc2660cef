"""The greedy order against the plain one in float64, and the other samplers."""

import importlib.util
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from patchcore.coreset import (
    SAMPLERS,
    AllConfig,
    ApproximateConfig,
    Coreset,
    CoresetConfig,
    GreedyConfig,
    LearnedConfig,
    Order,
    Projection,
    RandomConfig,
    Shard,
    SizedConfig,
    Start,
    greedy_order,
    project,
    reconstruction_loss,
    subsample,
)
from patchcore.coreset import order as order_module
from patchcore.coreset.space import Space, chunk_size, farthest, free_memory
from patchcore.errors import InputError
from patchcore.report.radius import plot_radius
from patchcore.settings import effective
from tests import reference
from tests.processes import execute_interpreted

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clusters(n: int, dimension: int, count: int, spread: float) -> Tensor:
    return normal(count, dimension).repeat(-(-n // count), 1)[:n] + spread * normal(n, dimension)


def check(points: Tensor, order: Order, count: int, distances: np.ndarray | None = None) -> None:
    """Each pick is a farthest one, radii are right, and clear picks are those of the reference."""
    exact = points.double().cpu().numpy()
    picks = order.indices.numpy()
    first = int(picks[0]) if distances is None else None
    expected, _, margins = reference.greedy_coreset(exact, count, first, distances)
    scale = ((exact - exact.mean(0)) ** 2).sum(1).max()
    blur = 2e-6 * scale
    blurred = np.flatnonzero(margins < blur)
    clear = blurred[0] if len(blurred) else count
    np.testing.assert_array_equal(picks[:clear], expected[:clear])
    assert len(set(picks.tolist())) == len(picks) >= count

    nearest = np.full(len(exact), np.inf) if distances is None else distances**2
    radii = []
    for i, pick in enumerate(picks):
        assert nearest[pick] >= nearest.max() - blur or (i == 0 and distances is None)
        nearest = np.minimum(nearest, ((exact - exact[pick]) ** 2).sum(1))
        nearest[pick] = 0
        radii.append(np.sqrt(nearest.max()))
    np.testing.assert_allclose(order.radii.numpy(), radii, rtol=1e-5, atol=1e-6 * scale**0.5)
    np.testing.assert_allclose(order.remaining.numpy(), nearest, rtol=0, atol=blur)
    assert bool((order.radii.diff() <= 0).all())


POINTS = {
    "random": normal(700, 24),
    "offset": normal(700, 24) + 1000,
    "clustered": clusters(700, 16, 20, 0.01),
    "tight": clusters(700, 16, 20, 1e-4),
    "duplicated": normal(40, 8).repeat(20, 1),
    "collinear": normal(600, 1) * normal(1, 12, seed=1),
    "evenly collinear": torch.arange(600.0)[:, None].repeat(1, 3),
    "constant": torch.full((300, 5), 0.1),
    "zero": torch.zeros(300, 5),
    "tiny": normal(5, 3),
    "one": normal(1, 3),
}


@pytest.mark.parametrize("name", POINTS)
@pytest.mark.parametrize("pool", [1, 16, 128, 4096])
def test_picks_are_those_of_the_plain_greedy(name: str, pool: int) -> None:
    points = POINTS[name]
    count = max(1, len(points) // 4)
    check(points, greedy_order(points, count, pool=pool), count)


@pytest.mark.parametrize("name", ["random", "clustered", "duplicated", "constant", "tiny"])
def test_all_points_can_be_ordered(name: str) -> None:
    points = POINTS[name]
    order = greedy_order(points, len(points), pool=64)
    check(points, order, len(points))
    assert order.radii[-1] == 0


def test_duplicates_come_last_by_index_at_radius_zero() -> None:
    order = greedy_order(POINTS["duplicated"], 60, pool=16)
    assert sorted((order.indices[:40] % 40).tolist()) == list(range(40))
    assert order.indices[40:].tolist() == sorted(order.indices[40:].tolist())
    assert order.radii[38] > 0
    assert bool((order.radii[39:] == 0).all())


sizes = {
    "n": st.integers(1, 150),
    "dimension": st.integers(1, 6),
    "seed": st.integers(0, 2**31),
    "ratio": st.floats(0.01, 1),
    "pool": st.integers(1, 200),
    "chunk": st.integers(1, 200),
    "start": st.sampled_from([Start.random, Start.mean]),
}


@settings(deadline=None, max_examples=60)
@given(**sizes, levels=st.integers(1, 60))
def test_exact_arithmetic_gives_exactly_the_plain_order(
    n: int,
    dimension: int,
    seed: int,
    ratio: float,
    pool: int,
    chunk: int,
    start: Start,
    levels: int,
) -> None:
    """Small integers round nowhere, so that ties too must go to the lowest index."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randint(levels, (n, dimension), generator=generator).float()
    count = max(1, int(n * ratio))
    order = greedy_order(points, count, pool=pool, chunk=chunk, start=start, seed=seed)
    picks, radii, _ = reference.greedy_coreset(points.numpy(), len(order), int(order.indices[0]))
    assert order.indices.tolist() == picks.tolist()
    np.testing.assert_allclose(order.radii.numpy(), radii, rtol=1e-6)


@settings(deadline=None, max_examples=30)
@given(**sizes, spread=st.sampled_from([1.0, 1e-2, 1e-3]))
def test_real_numbers_give_the_plain_order_up_to_rounding(
    n: int,
    dimension: int,
    seed: int,
    ratio: float,
    pool: int,
    chunk: int,
    start: Start,
    spread: float,
) -> None:
    groups = normal(3, dimension, seed=seed).repeat(-(-n // 3), 1)[:n]
    points = groups + spread * normal(n, dimension, seed=seed + 1)
    count = max(1, int(n * ratio))
    order = greedy_order(points, count, pool=pool, chunk=chunk, start=start, seed=seed)
    check(points, order, count)


@settings(deadline=None, max_examples=60)
@given(
    **{**sizes, "start": st.sampled_from(Start)},
    more=st.floats(0, 1),
    spread=st.sampled_from([1.0, 1e-2, 0.0]),
)
def test_a_continued_order_is_that_of_a_fresh_run(
    n: int,
    dimension: int,
    seed: int,
    ratio: float,
    pool: int,
    chunk: int,
    start: Start,
    more: float,
    spread: float,
) -> None:
    points = normal(3, dimension, seed=seed).repeat(-(-n // 3), 1)[:n]
    points = points + spread * normal(n, dimension, seed=seed + 1)
    few = max(1, int(n * ratio))
    many = few + int((n - few) * more)

    def run(count: int, order: Order | None = None) -> Order:
        return greedy_order(
            points, count, pool=pool, chunk=chunk, start=start, seed=seed, order=order
        )

    fresh, continued = run(many), run(many, run(few))
    assert continued.indices.equal(fresh.indices)
    assert continued.radii.equal(fresh.radii)
    assert continued.remaining.equal(fresh.remaining)


def test_every_ratio_is_a_prefix() -> None:
    features = normal(2000, 32)
    one = subsample(features, GreedyConfig(ratio=0.01, dimension=8))
    ten = subsample(features, GreedyConfig(ratio=0.1, dimension=8))
    assert one.indices is not None and ten.indices is not None and ten.order is not None
    assert (len(one.indices), len(ten.indices)) == (20, 200)
    assert ten.indices[:20].equal(one.indices)
    again = subsample(features, GreedyConfig(ratio=0.01, dimension=8), order=ten.order)
    assert again.order is ten.order
    assert again.memory.equal(features[one.indices])


def test_chunks_and_mapped_files_change_no_pick(tmp_path: Path) -> None:
    features = normal(1000, 48).half()
    features.numpy().tofile(tmp_path / "features")
    mapped = torch.from_file(
        str(tmp_path / "features"), size=features.numel(), dtype=torch.float16
    ).view(1000, 48)
    for projection in Projection:
        config = GreedyConfig(projection=projection, dimension=16, count=150)
        whole = subsample(features, config)
        config.chunk = 64
        streamed = subsample(mapped, config)
        assert streamed.memory.dtype == torch.float16
        assert streamed.indices is not None and whole.indices is not None
        assert streamed.indices.equal(whole.indices)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_exact_order_of_the_points_as_stored(dtype: torch.dtype) -> None:
    points = normal(600, 16) + 3
    stored = points.to(dtype)
    order = greedy_order(stored, 100, pool=64)
    check(stored.float(), order, 100)
    assert order.indices.equal(greedy_order(stored.float(), 100, pool=64).indices)
    # And it covers the points before rounding within the radius plus twice what rounding moved.
    moved = float((points - stored.float()).norm(dim=1).max())
    nearest = torch.cdist(points.double(), points[order.indices].double()).amin(1)
    assert nearest.max() <= order.radii[-1] + 2 * moved


def test_settings_for_training_do_not_reach_the_picks() -> None:
    points = normal(800, 32)
    expected = greedy_order(points, 100, pool=64)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
            order = greedy_order(points, 100, pool=64)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert order.indices.equal(expected.indices)
    assert order.radii.equal(expected.radii)


def line(gap: float) -> Tensor:
    """Points at -1 and 1, and one at `gap` from either."""
    return torch.tensor([[-1.0], [gap - 1], [1 - gap], [1.0]])


@pytest.mark.parametrize(("gap", "dtype"), [(0.18, torch.float32), (0.17, torch.float64)])
def test_below_a_sixth_of_the_largest_norm_distances_are_float64(
    gap: float, dtype: torch.dtype
) -> None:
    assert greedy_order(line(gap), 2, start=Start.mean).remaining.dtype == dtype


@pytest.mark.parametrize(("gap", "told_apart"), [(2.0**-20, True), (2.0**-22, False)])
def test_points_nearer_than_rounding_are_equal(gap: float, told_apart: bool) -> None:
    order = greedy_order(line(gap), 4, start=Start.mean)
    assert order.indices.tolist()[:2] == [0, 3]
    assert (float(order.radii[1]) == pytest.approx(gap)) == told_apart
    assert (float(order.radii[1]) == 0) != told_apart


def test_starts() -> None:
    points = normal(300, 4) ** 3
    farthest = int((points - points.mean(0)).norm(dim=1).argmax())
    assert int(greedy_order(points, 1, start=Start.mean).indices[0]) == farthest
    first = {int(greedy_order(points, 1, seed=seed).indices[0]) for seed in range(20)}
    assert len(first) > 10
    a, b = greedy_order(points, 50, seed=3), greedy_order(points, 50, seed=3)
    assert a.indices.equal(b.indices)


def test_anchors_as_in_the_reference() -> None:
    points = normal(500, 12)
    order = greedy_order(points, 60, start=Start.anchors, anchors=10, pool=32, seed=5)
    anchors = torch.randperm(500, generator=torch.Generator().manual_seed(5))[:10]
    check(points, order, 60, torch.cdist(points.double(), points[anchors].double()).mean(1).numpy())
    default = greedy_order(points, 60, start=Start.anchors, pool=32, seed=5)
    assert default.indices.equal(order.indices)
    features = normal(500, 40)
    parity = subsample(features, ApproximateConfig(count=60, dimension=12, seed=5))
    settings = {"count": 60, "dimension": 12, "seed": 5, "start": Start.anchors}
    greedy = GreedyConfig(**settings, projection=Projection.gaussian)
    assert parity.memory.equal(subsample(features, greedy).memory)


def test_radius_stops_at_the_first_sufficient_pick() -> None:
    features = normal(600, 8)
    curve = greedy_order(features, 600).radii
    radius = float(curve[99:101].mean())
    none = Projection.none
    found = subsample(features, GreedyConfig(radius=radius, projection=none))
    assert found.indices is not None and found.order is not None
    assert len(found.indices) == 101
    assert len(found.order) < 600
    with pytest.warns(UserWarning, match=r"^coreset.count=50 ends the coreset before it covers"):
        capped = subsample(features, GreedyConfig(radius=radius, count=50, projection=none))
    assert len(
        subsample(features, GreedyConfig(radius=radius, count=150, projection=none)).indices
    ) == len(found.indices)
    assert len(capped.memory) == 50
    more = subsample(features, GreedyConfig(radius=1e-9, projection=none), order=found.order)
    assert len(more.memory) == 600
    assert more.order is not None
    assert more.order.radii.equal(curve)


def test_pools_grow_with_the_points_within_limits() -> None:
    sizes = [order_module._pool_size(n) for n in (1, 4000, 2**13, 2**14, 2**15, 10**7)]
    assert sizes == [128, 128, 256, 512, 1024, 1024]


@pytest.mark.parametrize(
    ("free", "width", "rows"),
    [
        (2**40, 100, 8192),  # never more on a CPU
        (2**20, 64, 256),  # an eighth of what is free, at 8 bytes a number
        (2**20 - 1, 64, 128),
        (2**10, 64, 64),  # never fewer
    ],
)
def test_chunks_are_an_eighth_of_the_free_memory(
    free: int, width: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("patchcore.coreset.space.free_memory", lambda device: free)
    assert chunk_size(torch.device("cpu"), width) == rows


def test_narrow_features_are_not_projected_unless_asked() -> None:
    narrow, wide = normal(20, 48), normal(20, 49)
    assert project(narrow, GreedyConfig(dimension=12)) is narrow
    assert project(narrow, GreedyConfig(dimension=13)) is narrow
    assert project(wide, GreedyConfig(dimension=12)).shape == (20, 12)
    asked = GreedyConfig(dimension=12, projection=Projection.gaussian)
    assert project(narrow, asked).shape == (20, 12)
    for dimension in (48, 60):  # no projection has more dimensions than the features
        asked = GreedyConfig(dimension=dimension, projection=Projection.gaussian)
        assert project(narrow, asked) is narrow


@pytest.mark.parametrize("projection", [Projection.gaussian, Projection.sparse])
def test_projection_keeps_distances(projection: Projection) -> None:
    features = normal(400, 1000) + 5
    config = GreedyConfig(projection=projection, dimension=None, distortion=0.5)
    points = project(features, config)
    assert points.shape == (400, 288)  # 4 ln 400 / (0.5^2/2 - 0.5^3/3), rounded up
    distortion = torch.pdist(points) ** 2 / torch.pdist(features) ** 2 - 1
    assert distortion.abs().max() < 0.5
    assert distortion.mean().abs() < 0.05
    share = 0.0 if projection is Projection.gaussian else 1 - 1000**-0.5
    matrix = project(torch.eye(1000), config)
    assert float((matrix == matrix.mode(0).values).float().mean()) == pytest.approx(share, abs=0.02)
    config.dimension = 1000
    assert project(features, config) is features


def test_other_samplers() -> None:
    features = normal(100, 4).bfloat16()
    every = subsample(features, AllConfig())
    assert every.memory is features
    random = subsample(features, RandomConfig(ratio=0.25, seed=1))
    assert random.indices is not None and len(random.indices.unique()) == 25
    assert random.memory.equal(features[random.indices])
    fewer = subsample(features, RandomConfig(count=7, seed=1))
    assert fewer.indices is not None and fewer.indices.equal(random.indices[:7])


@pytest.mark.parametrize("sampler", [GreedyConfig, RandomConfig])
def test_a_count_or_a_radius_leaves_the_ratio_without_effect(sampler: type[SizedConfig]) -> None:
    assert effective(sampler())["ratio"] == 0.1
    assert "ratio" not in effective(sampler(count=3))
    if sampler is GreedyConfig:
        assert "ratio" not in effective(GreedyConfig(radius=1.0))


def test_an_order_tells_the_time_that_each_length_of_it_takes() -> None:
    points = normal(500, 8)
    short = greedy_order(points, 20, pool=16)
    order = greedy_order(points, 100, pool=16, order=short)
    assert short.seconds is not None and order.seconds is not None
    assert len(order.seconds) == len(order) and order.seconds[0] == 0
    assert bool((order.seconds.diff() >= 0).all())
    assert order.seconds[: len(short)].equal(short.seconds)
    long = GreedyConfig(count=100).sample(points, torch.device("cpu"))
    few = GreedyConfig(count=50).sample(points, torch.device("cpu"), long.order)
    assert few.whole is not None and long.whole is not None
    assert 0 < few.whole < long.whole <= long.spent + 1e-3


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_is_what_it_says(name: str) -> None:
    config = SAMPLERS[name]
    features = normal(200, 6)
    if not issubclass(config, SizedConfig):
        assert subsample(features, config()).memory.equal(features)
        return
    options: dict[str, Any] = {"steps": 20} if name == "learned" else {}
    large = subsample(features, config(ratio=0.2, **options))
    small = subsample(features, config(ratio=0.1, **options))
    counted = subsample(features, config(count=20, ratio=0.9, **options))
    assert (len(small.memory), len(large.memory)) == (20, 40)
    assert counted.memory.equal(small.memory)
    assert large.memory[:20].equal(small.memory) == config.nested
    assert (large.order is not None) == config.ordered
    if large.indices is not None:
        assert large.memory.equal(features[large.indices])
    if large.order is not None:
        again = subsample(features, config(ratio=0.1), order=large.order)
        assert again.order is large.order and again.memory.equal(small.memory)
    with pytest.raises(
        InputError, match=r"coreset\.count must be at most the 200 patches, got 201"
    ):
        subsample(features, config(count=201))


def test_defaults() -> None:
    greedy, approximate, learned = GreedyConfig(), ApproximateConfig(), LearnedConfig()
    assert (greedy.ratio, greedy.count, greedy.seed, greedy.radius) == (0.1, None, 0, None)
    assert (greedy.projection, greedy.dimension, greedy.distortion) == (Projection.auto, 128, 0.9)
    assert (greedy.start, greedy.anchors) == (Start.random, 10)
    assert (approximate.dimension, approximate.anchors) == (128, 10)
    assert (learned.steps, learned.batch) == (1000, 1024)
    assert (learned.learning_rate, learned.temperature) == (0.01, 0.02)


def test_a_new_sampler_is_its_settings_and_what_they_do() -> None:
    class FirstConfig(SizedConfig):
        def sample(
            self,
            features: Tensor,
            device: torch.device,
            order: Order | None = None,
            progress: bool = False,
        ) -> Coreset:
            return Coreset(features[: self.size(len(features))], None)

    assert subsample(normal(50, 3), FirstConfig()).memory.equal(normal(50, 3)[:5])
    with pytest.raises(TypeError, match="no sampler for CoresetConfig"):
        subsample(normal(50, 3), CoresetConfig())


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_gives_the_same_memory_in_inference_mode(name: str) -> None:
    """Thresholds from nominal images, and label-free scores, fit models in that mode."""
    config = SAMPLERS[name](**({} if name == "all" else {"ratio": 0.2}))
    expected = subsample(normal(60, 4), config).memory
    with torch.inference_mode():
        assert torch.equal(subsample(normal(60, 4).clone(), config).memory, expected)


def test_learned_proxies_that_run_away_are_refused() -> None:
    with pytest.raises(InputError, match=r"^coreset\.learning_rate is too high"):
        subsample(normal(50, 3), LearnedConfig(steps=3, learning_rate=1e30))


def test_learned_proxies_reconstruct_better() -> None:
    features = clusters(500, 12, 6, 0.3) * 4
    config = LearnedConfig(count=20, steps=200, learning_rate=0.05, temperature=None)
    learned = subsample(features, config)
    assert learned.losses is not None and learned.losses.shape == (200,)
    assert learned.memory.shape == (20, 12) and learned.memory.dtype == features.dtype
    chosen = subsample(features, RandomConfig(count=20))
    better = reconstruction_loss(features, learned.memory).mean()
    assert better < 0.7 * reconstruction_loss(features, chosen.memory).mean()
    memory = learned.memory.double()
    for temperature in (1.0, 0.3):
        expected = reference.reconstruction_loss(features[:9].numpy(), memory.numpy(), temperature)
        loss = reconstruction_loss(features[:9].double(), memory, temperature)
        np.testing.assert_allclose(loss.numpy(), expected)


def test_learned_proxies_cover_patches_of_any_scale() -> None:
    features = normal(2000, 16)

    def miss(memory: torch.Tensor) -> float:
        return float(torch.cdist(features, memory).amin(1).mean())

    at_random = miss(subsample(features, RandomConfig(count=20)).memory)
    options: dict[str, Any] = {"count": 20, "steps": 300}
    learned = subsample(features, LearnedConfig(**options)).memory
    assert miss(learned) < 0.95 * at_random
    for scale in (0.01, 100):
        scaled = subsample(scale * features, LearnedConfig(**options)).memory / scale
        assert miss(scaled) == pytest.approx(miss(learned), rel=0.01)
    # As printed, in features of small distances, they leave the patches instead.
    flat = subsample(0.1 * features, LearnedConfig(**options, temperature=None)).memory
    assert miss(10 * flat) > 1.1 * at_random


@pytest.mark.parametrize(
    ("config", "values", "key"),
    [
        (RandomConfig, {"ratio": 1.5}, "coreset.ratio"),
        (RandomConfig, {"ratio": 0.0}, "coreset.ratio"),
        (GreedyConfig, {"count": 0}, "coreset.count"),
        (GreedyConfig, {"dimension": 0}, "coreset.dimension"),
        (GreedyConfig, {"distortion": 1.0}, "coreset.distortion"),
        (GreedyConfig, {"radius": -1.0}, "coreset.radius"),
        (GreedyConfig, {"radius": 1.0, "start": Start.anchors}, "coreset.radius"),
        (GreedyConfig, {"pool": 0}, "coreset.pool"),
        (ApproximateConfig, {"anchors": 0}, "coreset.anchors"),
        (LearnedConfig, {"steps": 0}, "coreset.steps"),
        (LearnedConfig, {"learning_rate": 0.0}, "coreset.learning_rate"),
        (LearnedConfig, {"temperature": 0.0}, "coreset.temperature"),
    ],
)
def test_wrong_settings_name_their_key(config: type, values: dict[str, object], key: str) -> None:
    with pytest.raises(InputError, match=f"^{key} .* got "):
        config(**values)


def test_wrong_features_are_named() -> None:
    with pytest.raises(InputError, match=r"coreset\.count must be at most the 5 patches, got 6"):
        subsample(normal(5, 2), GreedyConfig(count=6))
    with pytest.raises(InputError, match="features must be"):
        subsample(torch.empty(0, 2), GreedyConfig())
    broken = normal(50, 2)
    broken[7, 1] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        subsample(broken, GreedyConfig())
    with pytest.raises(ValueError, match="order is of 5 points, got 50"):
        greedy_order(normal(50, 2), 9, order=greedy_order(normal(5, 2), 2))


def test_free_memory_is_the_devices_or_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3, 7))  # free, in all
    assert free_memory(torch.device("cuda")) == 3
    for known, told in ((5, 5), (None, 4 * 2**30)):
        monkeypatch.setattr("patchcore.coreset.space.available_memory", lambda known=known: known)
        assert free_memory(torch.device("cpu")) == told


def test_subtracting_the_centre_from_short_numbers_is_exact() -> None:
    points = (normal(200, 3) * 0.3 + torch.tensor([10.2, 5.3, -3.4])).half()
    space = Space(points, torch.device("cpu"), None, 8)
    centred = points.double() - space.centre
    assert bool(space.shifted)
    assert torch.equal(centred, centred.float().double())
    assert torch.equal(space.rows(slice(0, 200), torch.float32).double(), centred)


@pytest.mark.parametrize("progress", [False, True])
def test_learned_proxies_tell_their_steps_if_asked(
    progress: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    subsample(normal(40, 4), LearnedConfig(ratio=0.1, steps=3), progress=progress)
    assert ("proxies: 100%" in capsys.readouterr().err) is progress


def test_a_single_step_is_training_and_tells_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    found = LearnedConfig(ratio=0.1, steps=1).sample(normal(40, 4), torch.device("cpu"))
    assert found.memory.shape == (4, 4)
    assert capsys.readouterr().err == ""


def test_a_pool_holds_the_farthest_points_and_tells_what_bounds_the_others() -> None:
    best = torch.tensor([3.0, 0.0, 9.0, 4.0, 9.0])
    for pool, places, bound in ((1, [2], 9.0), (3, [2, 3, 4], 4.0), (5, [0, 1, 2, 3, 4], 0.5)):
        found, limit = farthest(best, pool, 0.5)
        assert found.tolist() == places and limit == bound


def test_progress_counts_picks(capsys: pytest.CaptureFixture[str]) -> None:
    greedy_order(normal(300, 4), 50, progress=True)
    assert "50/50" in capsys.readouterr().err


def test_radius_curve_is_drawn(tmp_path: Path) -> None:
    plot_radius(greedy_order(normal(300, 4), 50), tmp_path / "radius.png")
    assert (tmp_path / "radius.png").stat().st_size > 1000


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_kernels_in_the_interpreter(tmp_path: Path) -> None:
    execute_interpreted("from tests import test_coreset as t; t.interpret_kernels()", tmp_path)


def interpret_kernels() -> None:
    """The CUDA rounds, interpreted on the CPU, make the plain rounds' picks."""
    from patchcore.coreset import kernel

    def interpreted(best: Tensor) -> Any:
        return kernel if best.dtype == torch.float32 else None

    @contextmanager
    def kernels() -> Iterator[None]:
        with (
            mock.patch("patchcore.coreset.order.kernels", interpreted),
            mock.patch("patchcore.coreset.space.kernels", interpreted),
        ):
            yield

    def compare(
        points: Tensor, pool: int, start: Start = Start.random, shard: Shard | None = None
    ) -> None:
        expected = greedy_order(points, 20, pool=pool, chunk=64, start=start)
        with kernels():
            order = greedy_order(points, 20, pool=pool, chunk=64, start=start, shard=shard)
        assert order.indices[:20].equal(expected.indices[:20])
        torch.testing.assert_close(order.radii[:20], expected.radii[:20])
        if start is Start.random:
            check(points.float(), order, 20)

    for start in (Start.random, Start.anchors):
        compare((normal(150, 40) + 3), 16, start)
        compare(normal(150, 6), 1024, start)
    for dtype in (torch.float16, torch.bfloat16):
        compare((normal(150, 40) + 3).to(dtype), 16)
    compare(normal(2500, 8), 128)  # several blocks of the selection
    ties = [
        torch.randint(levels, (150, 3), generator=torch.Generator().manual_seed(1)).float()
        for levels in (2, 4, 30)
    ]
    for points in ties:
        compare(points, 8)
    # Distances that differ by less than a level of the first histogram need no plain round.
    alike = torch.eye(150) + 1e-4 * normal(150, 150)
    with mock.patch("patchcore.coreset.order._round", side_effect=AssertionError), kernels():
        order = greedy_order(alike, 20, pool=16, chunk=64)
    expected = greedy_order(alike, 20, pool=16, chunk=64)
    assert order.indices[:20].equal(expected.indices[:20])
    # Points of several processes, of which there is one.
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    for points in (normal(150, 40) + 3, *ties):
        compare(points, 16, shard=Shard(torch.arange(150), 150))
    dist.destroy_process_group()
    # Two processes: the very pools, picks and radii of one.
    many = [normal(1300, 8), *ties, torch.randint(9, (1300, 2)).float(), alike]
    with kernels():
        alone = [greedy_order(x, 20, pool=32, chunk=64, start=Start.mean) for x in many]
        child = os.fork()
        rank = 0 if child else 1
        dist.init_process_group(
            "gloo", f"file://{os.path.abspath('store')}", rank=rank, world_size=2
        )
        try:
            for points, expected in zip(many, alone, strict=True):
                rows = torch.arange(len(points))
                own = rows[(rows // 7 % 3 == 0) == (rank == 0)]
                shard = Shard(own, len(points))
                order = greedy_order(
                    points[own], 20, pool=32, chunk=64, start=Start.mean, shard=shard
                )
                assert order.indices.equal(expected.indices)
                torch.testing.assert_close(order.radii, expected.radii)
                if (
                    points is not many[0] and points is not alike
                ):  # products of whole numbers are exact here, too
                    assert order.radii.equal(expected.radii)
                    assert order.remaining.equal(expected.remaining[own])
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        dist.destroy_process_group()
    if not child:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@cuda
@pytest.mark.parametrize("name", POINTS)
def test_cuda_makes_the_plain_picks(name: str) -> None:
    points = POINTS[name]
    count = max(1, len(points) // 4)
    for pool in (16, 128, 1024):
        order = greedy_order(points, count, pool=pool, device="cuda")
        check(points, order, count)
        again = greedy_order(points.cuda(), count, pool=pool)
        assert again.indices.equal(order.indices)
        assert again.radii.equal(order.radii)


@cuda
def test_cuda_streams_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    points = normal(20000, 64).half()
    resident = greedy_order(points, 2000, device="cuda")
    few = greedy_order(points, 500, device="cuda")
    assert greedy_order(points, 2000, device="cuda", order=few).radii.equal(resident.radii)
    monkeypatch.setattr("patchcore.coreset.space.free_memory", lambda device: 2**20)
    streamed = greedy_order(points, 2000, device="cuda")
    assert streamed.indices.equal(resident.indices)
    torch.testing.assert_close(streamed.radii, resident.radii, rtol=1e-6, atol=0)
