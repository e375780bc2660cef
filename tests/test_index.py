import builtins
import sys
from typing import Any

import numpy as np
import pytest
import torch

from patchcore.errors import InputError
from patchcore.index import (
    FaissFlatConfig,
    FaissIVFPQConfig,
    IndexConfig,
    PrefixIndex,
    TorchIndex,
    TorchIndexConfig,
    build_index,
)
from tests import reference

EXACT = [TorchIndexConfig(), TorchIndexConfig(chunk_mib=1), FaissFlatConfig()]


def index(memory: torch.Tensor, config: IndexConfig) -> Any:
    if not isinstance(config, TorchIndexConfig):
        pytest.importorskip("faiss", reason="needs the extra faiss")
    return build_index(memory, config)


@pytest.mark.parametrize("config", EXACT, ids=str)
@pytest.mark.parametrize("k", [1, 4])
def test_exact_search_equals_the_naive_one(config: IndexConfig, k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    memory = torch.randn(3000, 32, generator=generator)
    queries = torch.randn(500, 32, generator=generator)
    distances, rows = index(memory, config).search(queries, k)
    expected, expected_rows = reference.nearest(queries.numpy(), memory.numpy(), k)
    assert distances.dtype == torch.float32 and rows.dtype == torch.int64
    assert np.array_equal(rows.numpy(), expected_rows)
    assert np.allclose(distances.numpy(), expected, rtol=1e-5)


def test_small_distances_far_from_the_origin_survive_float32() -> None:
    memory = 1000 + torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    queries = memory[:20] + 1e-3
    distances, rows = build_index(memory, TorchIndexConfig()).search(queries, 1)
    expected, _ = reference.nearest(queries.numpy(), memory.numpy(), 1)
    assert torch.equal(rows[:, 0], torch.arange(20))
    assert np.allclose(distances.numpy(), expected, rtol=1e-5)
    exact, _ = build_index(memory, TorchIndexConfig()).search(memory[:20], 1)
    assert torch.equal(exact, torch.zeros(20, 1))


@pytest.mark.parametrize("config", [TorchIndexConfig(1), FaissFlatConfig()], ids=str)
@pytest.mark.parametrize("k", [1, 3])
def test_prefixes_are_searched_as_separate_memories(config: IndexConfig, k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    memory = torch.randn(2000, 24, generator=generator).relu()
    queries = torch.randn(700, 24, generator=generator).relu()
    queries[:50] = memory[1500:1550]
    sizes = [3, 5, 400, 401, 2000]
    index(memory, config)  # skips without faiss
    prefixes = PrefixIndex(memory, sizes, config)
    for size, (distances, rows) in zip(sizes, prefixes.search(queries, k), strict=True):
        expected, expected_rows = build_index(memory[:size], config).search(queries, k)
        assert torch.equal(rows, expected_rows) and torch.equal(distances, expected)
    assert [len(part.memory) for part in prefixes.indexes] == sizes


def test_prefixes_must_ascend_within_the_memory() -> None:
    memory = torch.randn(10, 4)
    for sizes in ([], [0, 3], [4, 2], [3, 3]):
        with pytest.raises(ValueError, match="sizes must ascend"):
            PrefixIndex(memory, sizes, TorchIndexConfig())
    with pytest.raises(ValueError, match="the memory holds 10 patches, sizes has 11"):
        PrefixIndex(memory, [3, 11], TorchIndexConfig())
    with pytest.raises(InputError, match="2 neighbours were asked for, but the memory holds 1"):
        PrefixIndex(memory, [1, 9], TorchIndexConfig()).search(memory, 2)


@pytest.mark.parametrize("screen", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_coarse_products_change_no_neighbour(
    screen: torch.dtype, offset: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("patchcore.index.coarse_dtype", lambda memory: screen)
    generator = torch.Generator().manual_seed(0)
    memory = (offset + torch.randn(1500, 48, generator=generator)).relu()
    queries = memory[torch.randperm(1500, generator=generator)[:400]]
    queries = queries + 0.3 * torch.randn(400, 48, generator=generator)
    for k in (1, 5):
        distances, rows = TorchIndex(memory).search(queries, k)
        expected, expected_rows = reference.nearest(queries.numpy(), memory.numpy(), k)
        assert np.array_equal(rows.numpy(), expected_rows)
        assert np.allclose(distances.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 4])
def test_many_equal_memory_entries(k: int) -> None:
    background = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    others = torch.randn(200, 32, generator=torch.Generator().manual_seed(1))
    memory = torch.cat((background.expand(1000, -1), others))
    queries = torch.cat((background.expand(50, -1) + 0.01, others[:50] + 0.01))
    distances, rows = TorchIndex(memory).search(queries, k)
    expected, _ = reference.nearest(queries.numpy(), memory.numpy(), k)
    assert np.allclose(distances.numpy(), expected, rtol=1e-4)
    assert (rows[:50] < 1000).all() and torch.equal(rows[50:, 0], torch.arange(1000, 1050))


def test_half_precision_memory_gives_float32_distances() -> None:
    memory = torch.randn(50, 16, generator=torch.Generator().manual_seed(0)).half()
    distances, rows = build_index(memory, TorchIndexConfig()).search(memory[:5].float(), 2)
    assert torch.equal(rows[:, 0], torch.arange(5)) and distances.dtype == torch.float32


def test_ivfpq_finds_most_of_the_neighbours() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(60, 32, generator=generator) * 4
    memory = centres.repeat_interleave(50, 0) + torch.randn(3000, 32, generator=generator)
    config = FaissIVFPQConfig(lists=16, probes=4, sub_quantizers=16, bits=6)
    distances, rows = index(memory, config).search(memory[::7], 10)
    _, expected = reference.nearest(memory[::7].numpy(), memory.numpy(), 10)
    found = [
        len(set(a) & set(b)) / 10 for a, b in zip(rows.tolist(), expected.tolist(), strict=True)
    ]
    assert np.mean(found) > 0.5
    assert (distances.diff(dim=1) >= 0).all()


def test_ivfpq_explains_what_it_needs() -> None:
    memory = torch.randn(100, 30)
    with pytest.raises(InputError, match=r"at least 512 patches .* the memory holds 100"):
        index(memory, FaissIVFPQConfig(sub_quantizers=15))
    with pytest.raises(InputError, match=r"index.sub_quantizers=64 does not divide .* 30"):
        index(memory, FaissIVFPQConfig())


@pytest.mark.parametrize("config", EXACT[:1] + EXACT[2:], ids=str)
def test_more_neighbours_than_memory(config: IndexConfig) -> None:
    with pytest.raises(InputError, match="5 neighbours were asked for, but the memory holds 3"):
        index(torch.randn(3, 4), config).search(torch.randn(1, 4), 5)


def test_without_faiss_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "faiss":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "faiss", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'patchcore\[faiss\]'"):
        build_index(torch.randn(3, 4), FaissFlatConfig())


@pytest.mark.parametrize(
    ("key", "make"),
    [
        ("index.chunk_mib", lambda: TorchIndexConfig(0)),
        ("index.lists", lambda: FaissIVFPQConfig(lists=0)),
        ("index.probes", lambda: FaissIVFPQConfig(lists=4, probes=5)),
    ],
)
def test_bad_settings_are_named(key: str, make: Any) -> None:
    with pytest.raises(InputError, match=key):
        make()
