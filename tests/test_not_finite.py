"""Values that are no numbers are refused in one line; degenerate images give finite scores."""

import pytest
import torch
from torch import Tensor

from patchcore import (
    AllConfig,
    FaissFlatConfig,
    GreedyConfig,
    InputError,
    LearnedConfig,
    Padim,
    PatchCore,
    RandomConfig,
    ScoringConfig,
    Spade,
    TorchIndexConfig,
)
from patchcore.coreset import CoresetConfig, subsample
from patchcore.index import IndexConfig, TorchIndex, build_index, search_traced
from patchcore.scoring import Distance


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", [TorchIndexConfig(), FaissFlatConfig()])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_search_refuses_what_is_no_number(config: IndexConfig, value: float) -> None:
    if isinstance(config, FaissFlatConfig):
        pytest.importorskip("faiss")
    good = torch.rand(20, 8)
    for row in (0, 7, 19):  # the last one, and those before another's candidates
        bad = good.clone()
        bad[row, 3] = value
        with pytest.raises(InputError, match=r"^patch features are NaN or infinite"):
            build_index(good, config).search(bad, 2)
    distances, rows = build_index(good, config).search(good, 1)
    assert rows[:, 0].tolist() == list(range(20)) and distances.isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_a_memory_that_is_no_number_is_refused(value: float) -> None:
    memory = torch.rand(20, 8)
    memory[5, 2] = value
    with pytest.raises(InputError, match=r"^patch features are NaN or infinite"):
        TorchIndex(memory)


@pytest.mark.parametrize("config", [AllConfig(), RandomConfig(ratio=1), GreedyConfig(ratio=0.5)])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_fitting_refuses_images_that_are_no_numbers(config: CoresetConfig, value: float) -> None:
    bad = images(3)
    bad[1] = value
    model = PatchCore(coreset=config)
    with pytest.raises(InputError, match="NaN or infinite"):
        model.fit(bad)
    assert not len(model.memory)  # as before
    assert model.fit(images(3))(images(1)).score.isfinite().all()
    with pytest.raises(InputError, match=r"^patch features are NaN or infinite"):
        model(bad)


@pytest.mark.parametrize("rate", [1e20, 1e38])
def test_learning_that_runs_away_is_told(rate: float) -> None:
    config = LearnedConfig(count=4, steps=5, learning_rate=rate)
    with pytest.raises(InputError, match=r"^coreset\.learning_rate is too high") as error:
        subsample(torch.rand(50, 8), config)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"^features hold NaN"):
        subsample(torch.full((50, 8), torch.nan), LearnedConfig(count=4, steps=5))


@pytest.mark.parametrize(
    "nominal",
    [
        torch.zeros(3, 3, 32, 32),
        torch.ones(1, 3, 32, 32),
        images(1).expand(4, -1, -1, -1),
        images(1)[..., :8, :8],  # one patch
    ],
    ids=["black", "one constant", "duplicates", "one patch"],
)
@pytest.mark.parametrize(
    "model",
    [
        lambda: PatchCore(coreset=GreedyConfig(ratio=0.01)),
        lambda: PatchCore(coreset=AllConfig(), scoring=ScoringConfig(distance=Distance.cosine)),
        lambda: PatchCore(coreset=LearnedConfig(ratio=1, steps=2)),
        lambda: Spade(),
        lambda: Padim(),
    ],
    ids=["greedy", "cosine", "learned", "spade", "padim"],
)
def test_degenerate_images_give_finite_scores(model: type[PatchCore], nominal: Tensor) -> None:
    fitted = model().fit(nominal)
    size = nominal.shape[-1]
    for batch in (nominal, torch.zeros(2, 3, size, size), images(2, 1)[..., :size, :size]):
        for x in fitted(batch)[:3]:
            assert x.isfinite().all() and (x >= 0).all()


def test_traced_search_equals_the_exact_one() -> None:
    generator = torch.Generator().manual_seed(0)
    memory, queries = torch.randn(50, 16, generator=generator), torch.randn(9, 16)
    memory[30] = memory[3]  # of equal ones the first
    queries[0] = memory[3]
    for neighbours in (1, 4, 50):
        distances, rows = search_traced(memory, queries, neighbours)
        exact, expected = TorchIndex(memory).search(queries, neighbours)
        assert torch.equal(rows, expected)
        assert torch.allclose(distances, exact)
    with pytest.raises(InputError, match=r"the memory holds 50 patches"):
        search_traced(memory, queries, 51)
