import builtins
import logging
import sys
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from patchcore.errors import InputError
from patchcore.index import (
    INDEXES,
    FaissFactoryConfig,
    FaissFlatConfig,
    FaissIVFPQConfig,
    Index,
    IndexConfig,
    PrefixIndex,
    TorchIndex,
    TorchIndexConfig,
    build_index,
)
from patchcore.index.exact import coarse_dtype, nearest_of_each, search_traced
from patchcore.index.faiss import _import_faiss
from tests import reference

IVFPQ = FaissIVFPQConfig(lists=16, probes=8, sub_quantizers=16, bits=6)
EXACT = [
    TorchIndexConfig(),
    TorchIndexConfig(chunk_mib=1),
    FaissFlatConfig(),
    FaissFlatConfig(gpu=True),
    FaissFactoryConfig("Flat"),
    FaissFactoryConfig("IVF4,Flat", "nprobe=4"),
]
BACK_ENDS = [
    *EXACT,
    IVFPQ,
    replace(IVFPQ, probes=1, train_patches=100),
    FaissIVFPQConfig(lists=16, probes=8, sub_quantizers=16, gpu=True),
    FaissFactoryConfig("HNSW8"),
    FaissFactoryConfig("IVF4,PQ16x6", "nprobe=2"),
    FaissFactoryConfig("PCA24,Flat"),
]
ON_GPU = [
    config for config in BACK_ENDS if config == TorchIndexConfig() or getattr(config, "gpu", False)
]


def index(memory: torch.Tensor, config: IndexConfig) -> Index:
    """The back end over `memory`, or a skip where it cannot be."""
    if not isinstance(config, TorchIndexConfig):
        faiss = pytest.importorskip("faiss", reason="needs the extra faiss")
        if getattr(config, "gpu", False):
            if not torch.cuda.is_available():
                pytest.skip("needs a GPU")
            if not hasattr(faiss, "StandardGpuResources"):
                pytest.skip("needs the extra faiss-gpu")
    return build_index(memory, config)


def clustered(count: int, seed: int = 0, dimension: int = 32) -> torch.Tensor:
    """Vectors (count, dimension) around twenty centres that are always the same."""
    centres = 4 * torch.randn(20, dimension, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(20, (count,), generator=generator)
    return centres[which] + torch.randn(count, dimension, generator=generator)


# --- what every back end does -----------------------------------------------------------------


@pytest.mark.parametrize("config", BACK_ENDS, ids=str)
@pytest.mark.parametrize("k", [1, 4])
def test_the_nearest_come_first_and_each_once(config: IndexConfig, k: int) -> None:
    memory, queries = clustered(1000), clustered(200, seed=1)
    searched = index(memory, config)
    assert searched.memory is memory
    distances, rows = searched.search(queries, k)
    assert distances.shape == rows.shape == (200, k)
    assert distances.dtype == torch.float32 and rows.dtype == torch.int64
    assert (distances >= 0).all() and (distances.diff(dim=1) >= 0).all()
    assert (rows >= 0).all() and (rows < 1000).all()
    assert all(len(set(row)) == k for row in rows.tolist())
    expected, expected_rows = reference.nearest(queries.numpy(), memory.numpy(), k)
    exact = config in EXACT
    recall = np.mean((rows.numpy()[:, :, None] == expected_rows[:, None]).any(2))
    assert recall == 1 if exact else recall > 0.3
    # faiss measures by products on a GPU, which rounds more than differences do.
    rounding = 1e-4 if getattr(config, "gpu", False) else 1e-5
    assert np.allclose(distances, expected, rtol=rounding if exact else 1)


@pytest.mark.parametrize("config", BACK_ENDS, ids=str)
def test_what_is_asked_together_does_not_matter(config: IndexConfig) -> None:
    memory, queries = clustered(600), clustered(41, seed=1)
    searched = index(memory, config)
    distances, rows = searched.search(queries, 3)
    parts = [searched.search(some, 3) for some in (queries[:0], queries[:1], queries[1:])]
    assert torch.equal(torch.cat([part[1] for part in parts]), rows)
    assert torch.allclose(torch.cat([part[0] for part in parts]), distances, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", BACK_ENDS, ids=str)
def test_any_layout_and_precision_is_taken(config: IndexConfig) -> None:
    memory, queries = clustered(600), clustered(50, seed=1).half()
    expected = index(memory.half().float(), config).search(queries.float(), 2)
    found = index(memory.half(), config).search(queries, 2)
    strided = index(memory.half().float().T.contiguous().T, config).search(
        queries.float().repeat_interleave(2, 0)[::2], 2
    )
    for distances, rows in (found, strided):
        assert torch.equal(rows, expected[1]) and distances.dtype == torch.float32
        assert torch.allclose(distances, expected[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("config", BACK_ENDS, ids=str)
def test_all_of_the_memory_can_be_asked_for(config: IndexConfig) -> None:
    memory = clustered(300)
    _, rows = index(memory, config).search(memory[:5], 300)
    assert torch.equal(rows.sort(1).values, torch.arange(300).expand(5, -1))
    with pytest.raises(InputError, match="301 neighbours were asked for, but the memory holds 300"):
        index(memory, config).search(memory[:5], 301)


@pytest.mark.parametrize("config", BACK_ENDS, ids=str)
def test_equal_memory_entries_are_at_no_distance(config: IndexConfig) -> None:
    memory = clustered(1).expand(300, -1)
    distances, rows = index(memory, config).search(memory[:3], 2)
    assert torch.equal(distances, torch.zeros(3, 2)) and (rows[:, 0] != rows[:, 1]).all()


@pytest.mark.parametrize("config", ON_GPU, ids=str)
def test_a_memory_on_the_gpu_is_searched_there(config: IndexConfig) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    memory, queries = clustered(1000), clustered(100, seed=1)
    on_gpu, there = index(memory.cuda(), config).search(queries.cuda(), 3)
    assert on_gpu.is_cuda and there.is_cuda
    expected, rows = index(memory, config).search(queries, 3)
    assert torch.allclose(on_gpu.cpu(), expected, rtol=1e-3, atol=1e-3)
    assert (there.cpu() == rows).float().mean() > 0.99


# --- exact search -----------------------------------------------------------------------------


@pytest.mark.parametrize("config", EXACT, ids=str)
@pytest.mark.parametrize("k", [1, 4])
def test_exact_search_equals_the_naive_one(config: IndexConfig, k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    memory = torch.randn(1000, 32, generator=generator)
    queries = torch.randn(300, 32, generator=generator)  # two chunks of a MiB
    distances, rows = index(memory, config).search(queries, k)
    expected, expected_rows = reference.nearest(queries.numpy(), memory.numpy(), k)
    assert np.array_equal(rows.numpy(), expected_rows)
    assert np.allclose(distances.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 4])
def test_a_search_that_compilers_can_follow_equals_the_naive_one(k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    memory = torch.randint(3, (200, 4), generator=generator).float()  # many equal distances
    queries = torch.randint(3, (50, 4), generator=generator).float()
    distances, rows = search_traced(memory, queries, k, TorchIndexConfig())
    expected, _ = reference.nearest(queries.numpy(), memory.numpy(), k)
    assert np.array_equal(distances.numpy(), expected)
    assert ((queries[:, None] - memory[rows]).square().sum(2) == distances).all()


@pytest.mark.parametrize("block", [3, 7, 64])
@pytest.mark.parametrize("neighbours", [1, 4])
def test_a_traced_search_goes_over_the_memory_in_blocks(
    block: int, neighbours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("patchcore.index.exact._TRACED_ROWS", block)
    generator = torch.Generator().manual_seed(0)
    memory = torch.randn(22, 5, generator=generator).round(decimals=1)
    memory[20] = memory[3]  # of equal entries the lower row comes first
    queries = torch.cat((torch.randn(9, 5, generator=generator), memory[3:4]))
    distances, rows = search_traced(memory, queries, neighbours)
    expected, nearest = TorchIndex(memory).search(queries, neighbours)
    assert torch.equal(rows, nearest)
    assert torch.allclose(distances, expected)


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
    monkeypatch.setattr("patchcore.index.exact.coarse_dtype", lambda memory: screen)
    generator = torch.Generator().manual_seed(0)
    memory = (offset + torch.randn(700, 48, generator=generator)).relu()
    queries = memory[torch.randperm(700, generator=generator)[:200]]
    queries = queries + 0.3 * torch.randn(200, 48, generator=generator)
    for k in (1, 5):
        distances, rows = TorchIndex(memory).search(queries, k)
        expected, expected_rows = reference.nearest(queries.numpy(), memory.numpy(), k)
        assert np.array_equal(rows.numpy(), expected_rows)
        assert np.allclose(distances.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("screen", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("k", [1, 3])
def test_few_pairs_are_measured_again(
    k: int, screen: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bound that is too wide changes no result, and takes the speed."""
    monkeypatch.setattr("patchcore.index.exact.coarse_dtype", lambda memory: screen)
    generator = torch.Generator().manual_seed(0)
    memory = torch.randn(2000, 64, generator=generator)
    queries = torch.randn(300, 64, generator=generator)
    found = TorchIndex(memory)
    with mock.patch.object(found, "_measure", wraps=found._measure) as measured:
        found.search(queries, k)
    pairs = sum(len(call.args[1]) for call in measured.call_args_list)
    assert 300 * k <= pairs <= 300 * (k + (0.1 if screen is torch.float32 else 20))


def test_products_are_coarse_only_where_they_are_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for supported, expected in ((True, torch.bfloat16), (False, torch.float32)):
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.setattr(torch.cpu, name, lambda found=supported: found, raising=False)
        assert coarse_dtype(torch.ones(1)) is expected
        for dtype in (torch.float64, torch.float16, torch.bfloat16):
            assert coarse_dtype(torch.ones(1, dtype=dtype)) is dtype


def test_the_nearest_of_each_query_is_the_lowest_of_equal_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.cat([torch.arange(40), torch.randint(40, (300,), generator=generator)])
    row = torch.randint(1000, (340,), generator=generator)
    distance = torch.randint(4, (340,), generator=generator).float()
    least, rows = nearest_of_each(40, query, row, distance)
    for number in range(40):
        pairs = [(float(distance[i]), int(row[i])) for i in range(340) if query[i] == number]
        assert (float(least[number, 0]), int(rows[number, 0])) == min(pairs)


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


# --- approximate search -----------------------------------------------------------------------


def recall(config: IndexConfig, memory: torch.Tensor, queries: torch.Tensor) -> float:
    """Share of the queries whose nearest memory entry is found."""
    _, rows = index(memory, config).search(queries, 1)
    _, expected = reference.nearest(queries.numpy(), memory.numpy(), 1)
    return float((rows.numpy() == expected).mean())


def test_more_probes_and_codes_find_more() -> None:
    memory, queries = clustered(1000), clustered(200, seed=1)
    coarse = FaissIVFPQConfig(lists=64, probes=1, sub_quantizers=8, bits=6)
    found = [
        recall(config, memory, queries)
        for config in (coarse, replace(coarse, probes=16), replace(IVFPQ, probes=16, bits=8))
    ]
    assert found == sorted(found) and found[0] < found[2] > 0.5


def test_where_the_probed_lists_hold_too_few_all_are_searched() -> None:
    # Half of the lists learn from what the memory does not hold, so they stay empty.
    memory = torch.cat((clustered(64, seed=1), clustered(64, seed=2) + 100))
    config = FaissIVFPQConfig(lists=64, probes=1, sub_quantizers=16, bits=5, train_patches=64)
    searched = index(memory, config)
    for k in (1, 100):
        distances, rows = searched.search(clustered(50, seed=3), k)
        assert (rows >= 0).all() and torch.isfinite(distances).all()
        assert distances.max() < 1e6 and (distances.diff(dim=1) >= 0).all()
    few = searched.search(memory[:5], 1)
    assert torch.equal(few[1], searched.search(memory[:5], 100)[1][:, :1])  # as probed at first


def test_training_on_some_patches_takes_them_from_everywhere() -> None:
    memory = torch.cat((clustered(500), clustered(500, seed=1) + 50))
    small = FaissIVFPQConfig(lists=32, probes=4, sub_quantizers=16, bits=6, train_patches=200)
    assert recall(small, memory, memory[::10]) > 0.5
    whole = index(memory, replace(small, train_patches=None)).search(memory[::10], 3)
    more = index(memory, replace(small, train_patches=5000)).search(memory[::10], 3)
    assert torch.equal(whole[1], more[1]) and torch.equal(whole[0], more[0])


def test_ivfpq_explains_what_it_needs() -> None:
    memory = torch.randn(100, 30)
    needed = r"at least 512 patches to train 512 lists and 256 codes, the memory holds 100: "
    with pytest.raises(InputError, match=needed):
        index(memory, FaissIVFPQConfig(sub_quantizers=15))
    with pytest.raises(InputError, match=r"index.sub_quantizers=64 does not divide .* 30"):
        index(memory, FaissIVFPQConfig())


def test_faiss_says_nothing_about_small_trainings(capfd: pytest.CaptureFixture[str]) -> None:
    index(clustered(300), IVFPQ)
    assert capfd.readouterr() == ("", "")
    assert not logging.getLogger("faiss.loader").isEnabledFor(logging.INFO)  # of other processors


def test_a_factorys_distances_are_those_of_the_patches_found() -> None:
    memory, queries = clustered(300), clustered(40, seed=1)
    for factory in ("PQ4x4", "LSH", "PCAW8,Flat"):  # codes, bits, and another metric
        distances, rows = index(memory, FaissFactoryConfig(factory)).search(queries, 3)
        expected = (queries[:, None] - memory[rows]).square().sum(2)
        assert torch.allclose(distances, expected, rtol=1e-6)


def test_a_factorys_parameters_reach_the_search() -> None:
    memory, queries = clustered(600), clustered(100, seed=1)
    found = [
        recall(FaissFactoryConfig("IVF16,Flat", parameters), memory, queries)
        for parameters in ("", "nprobe=3", "nprobe=16")
    ]
    assert found == sorted(found) and found[0] < found[2] == 1


@pytest.mark.parametrize(
    ("factory", "parameters", "reason"),
    [
        ("nonsense", "", "index.factory=nonsense: faiss refuses: could not parse"),
        ("IVF512,Flat", "", "index.factory=IVF512,Flat: faiss refuses: .* points"),
        ("PQ5", "", "index.factory=PQ5: faiss refuses: .* multiple"),
        ("IDMap,Flat", "", "index.factory=IDMap,Flat: faiss refuses: .* IndexIDMap"),
        ("Flat", "nprobe=2", "index.factory=Flat with index.parameters=nprobe=2: faiss refuses"),
        ("IVF4,Flat", "nprobe", "with index.parameters=nprobe: faiss refuses"),
    ],
)
def test_a_factory_that_faiss_refuses_is_named(factory: str, parameters: str, reason: str) -> None:
    with pytest.raises(InputError, match=f"^{reason}|{reason}") as error:
        index(clustered(300), FaissFactoryConfig(factory, parameters))
    assert "\n" not in str(error.value)


# --- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ImportError("faiss"), r"pip install 'patchcore\[faiss\]'"),
        (RuntimeError("libcublas is missing"), "cannot be loaded: libcublas is missing"),
    ],
    ids=str,
)
def test_without_faiss_one_is_told_what_lacks(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "faiss":
            raise error
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "faiss", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=message):
        build_index(torch.randn(3, 4), FaissFlatConfig())


def test_a_faiss_without_gpus_is_told_from_one_with(monkeypatch: pytest.MonkeyPatch) -> None:
    faiss = pytest.importorskip("faiss", reason="needs the extra faiss")
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    assert _import_faiss(True) is _import_faiss(False) is faiss
    monkeypatch.delattr(faiss, "StandardGpuResources")
    assert _import_faiss(False) is faiss
    with pytest.raises(InputError, match=r"^index\.gpu=true needs faiss built for GPUs"):
        _import_faiss(True)


@pytest.mark.parametrize(
    ("key", "make"),
    [
        ("index.chunk_mib", lambda: TorchIndexConfig(0)),
        ("index.lists", lambda: FaissIVFPQConfig(lists=0)),
        ("index.probes", lambda: FaissIVFPQConfig(lists=4, probes=5)),
        (
            "index.train_patches must be at least 512, to train 512 lists and 256 codes, got 511",
            lambda: FaissIVFPQConfig(train_patches=511),
        ),
    ],
)
def test_bad_settings_are_named(key: str, make: Any) -> None:
    with pytest.raises(InputError, match=key):
        make()


def test_defaults_are_those_of_the_papers_table() -> None:
    paper = FaissIVFPQConfig()
    assert (paper.lists, paper.probes, paper.sub_quantizers, paper.bits) == (512, 1, 64, 8)
    assert paper.train_patches is None and not paper.gpu and not FaissFlatConfig().gpu
    assert TorchIndexConfig().chunk_mib == 256


def test_training_needs_a_patch_for_every_list_and_every_code() -> None:
    assert FaissIVFPQConfig(lists=512, bits=8).needed() == 512
    assert FaissIVFPQConfig(lists=4, bits=8).needed() == 256


def test_every_back_end_is_built_from_its_settings() -> None:
    memory = clustered(600)
    for config in INDEXES.values():
        settings = (
            config(lists=4, bits=4, sub_quantizers=4) if "lists" in vars(config()) else config()
        )
        assert index(memory, settings).memory is memory
    with pytest.raises(TypeError, match="no search back end for IndexConfig"):
        build_index(memory, IndexConfig())


def test_many_nearly_equal_patches_are_told_apart() -> None:
    """More rows than the screening keeps differ by less than it can tell."""
    generator = torch.Generator().manual_seed(0)
    noise = 0.01 * torch.randn(1040, 64, generator=generator)
    memory = torch.cat([10 + noise[:500], -10 + noise[500:1000]])
    queries = 10 + noise[1000:]
    squared, rows = TorchIndex(memory).search(queries, 1)
    exact = torch.stack([(memory.double() - x.double()).square().sum(1) for x in queries])
    assert torch.equal(rows[:, 0], exact.argmin(1))
    assert torch.allclose(squared[:, 0].double(), exact.amin(1), rtol=1e-5)
