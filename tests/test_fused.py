"""Half-precision search on CUDA, against all distances in float64."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from patchcore.errors import InputError
from patchcore.index import PrefixIndex, TorchIndex, TorchIndexConfig
from patchcore.index.exact import nearest_of_each
from tests import reference
from tests.processes import execute_interpreted

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def normal(count: int, dimension: int, seed: int = 0) -> Tensor:
    return torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed))


def near(memory: Tensor, count: int, distance: float, seed: int = 1) -> Tensor:
    """Queries (count, D) around rows of the memory."""
    which = torch.randint(len(memory), (count,), generator=torch.Generator().manual_seed(seed))
    return memory[which] + distance * normal(count, memory.shape[1], seed)


def cases() -> dict[str, tuple[Tensor, Tensor]]:
    """Memories and queries by what is hard about them."""
    spread = normal(800, 40)
    return {
        "spread": (spread, near(spread, 140, 0.3)),
        "far from the origin": (spread + 100, near(spread, 40, 1.0) + 100),
        "half": (spread.half(), near(spread, 40, 0.3)),
        "one tile": (spread[:30], near(spread, 20, 1.0)),
        "equal rows": (spread[:3].repeat_interleave(200, 0), near(spread[:3], 20, 0.01)),
        "nearer than float16 tells": (1e-4 * spread + 1, near(1e-4 * spread, 30, 1e-5) + 1),
        "queries beyond float16": (spread, torch.cat((spread[:5], 1e5 * spread[:5]))),
        "tiny": (1e-15 * spread, 1e-15 * near(spread, 30, 1.0)),
        "no spread at all": (torch.ones(300, 8), torch.ones(4, 8)),
    }


def compare(name: str, k: int, device: str) -> None:
    memory, queries = cases()[name]
    memory, queries = memory.to(device), queries.to(device, memory.dtype)
    distances, rows = (x.cpu() for x in TorchIndex(memory).search(queries, k))
    memory, queries = memory.cpu().double(), queries.cpu().double()
    expected, _ = reference.nearest(queries.numpy(), memory.numpy(), k)
    found = (queries[:, None] - memory[rows]).square().sum(2)  # of the rows named
    least = 1e-13 * float(queries.square().sum(1).max())  # float32's own rounding of differences
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=least)
    np.testing.assert_allclose(distances.numpy(), expected, rtol=1e-4, atol=least)
    assert all(len(set(row)) == k for row in rows.tolist())


def compare_prefixes(device: str) -> None:
    """Prefixes that end within a tile, one of them with fewer new tiles than neighbours."""
    memory = normal(1500, 24).relu()
    memory[350:400] = memory[300:350] + 0.01
    queries = torch.cat((near(memory, 40, 0.2), near(memory[300:400], 20, 0.001))).to(device)
    memory = memory.to(device)
    for k in (1, 2):
        sizes = [300, 400, 1000, 1500]
        found = PrefixIndex(memory, sizes, TorchIndexConfig()).search(queries, k)
        for size, (distances, rows) in zip(sizes, found, strict=True):
            expected, expected_rows = TorchIndex(memory[:size]).search(queries, k)
            assert torch.equal(rows, expected_rows) and torch.equal(distances, expected)


def compare_screen(device: str) -> None:
    """The candidates: all that are as near as the nearest, and few of them where rows are apart."""
    from patchcore.index import fused

    memory = normal(1000, 100).to(device)
    queries = near(memory.cpu(), 70, 0.5).to(device)
    screen = fused.Screen(memory)
    rounded = screen.round(queries)
    query, row, unsettled = screen.candidates(queries, rounded, 0, 1000, 1, 64)
    assert not len(unsettled) and 70 <= len(query) < 100
    expected = screen.measure(queries, torch.arange(70, device=device), row[query.argsort()][:70])
    differences = queries.double()[:, None] - memory.double()  # (Q, M, D)
    distances = differences.square().sum(2)
    found = set(zip(query.tolist(), row.tolist(), strict=True))
    assert set(enumerate(distances.argmin(1).tolist())) <= found
    first = distances[torch.arange(70), row[query.argsort()][:70]]
    torch.testing.assert_close(expected.double(), first, rtol=1e-6, atol=0)
    # A candidate more would be no error, but a limit of none leaves nothing settled.
    assert len(screen.candidates(queries, rounded, 0, 1000, 1, 0)[2]) == 70
    near_zero = torch.zeros(70, device=device)
    assert not len(screen.candidates(queries, rounded, 0, 1000, 1, 64, near_zero)[0])


def compare_rounding(device: str) -> None:
    """Errors of rounding: never less than they are, and hardly more."""
    from patchcore.index import fused

    memory = (10 * normal(300, 70) + 3).to(device)
    screen = fused.Screen(memory)
    rounded = screen.round(memory)
    centred = memory.double() - memory.mean(0).double()
    kept = rounded.halves[:300, :70].double() / screen._scale
    lost = torch.linalg.vector_norm(centred - kept, dim=1) * screen._scale
    errors = rounded.errors[:300].double()
    assert (lost <= errors).all() and (errors <= 1.01 * lost).all()
    assert not rounded.halves[300:].any() and not rounded.halves[:, 70:].any()
    torch.testing.assert_close(
        rounded.norms[:300].double(), kept.square().sum(1) * screen._scale**2, rtol=1e-6, atol=0
    )


def refuse_what_is_not_finite(device: str) -> None:
    memory = normal(300, 8).to(device)
    for bad in (float("nan"), float("inf"), 1e30):
        broken = memory.clone()
        broken[7, 3] = bad
        with pytest.raises(InputError, match="NaN or infinite"):
            TorchIndex(broken)
        with pytest.raises(InputError, match="NaN or infinite"):
            TorchIndex(memory).search(broken, 1)


def check_all(device: str) -> None:
    compare_rounding(device)
    compare_screen(device)
    compare_prefixes(device)
    refuse_what_is_not_finite(device)
    for name in cases():
        compare(name, 1, device)
        compare(name, 3, device)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_kernels_in_the_interpreter(tmp_path: Path) -> None:
    execute_interpreted("from tests import test_fused as t; t.interpret()", tmp_path)


def interpret() -> None:
    """All comparisons with the kernels interpreted on the CPU."""
    from patchcore.index import exact, fused

    exact._fused_screen = fused.Screen
    fused._ROUNDED, fused._MEASURED = 512, 512  # a program takes milliseconds here
    check_all("cpu")


def test_the_nearest_of_equal_distances_is_the_lowest_row() -> None:
    query = torch.tensor([1, 0, 0, 1, 0])
    row = torch.tensor([9, 5, 3, 8, 1])
    distance = torch.tensor([2.0, 1.0, 1.0, 0.5, 7.0])
    least, rows = nearest_of_each(2, query, row, distance)
    assert least.tolist() == [[1.0], [0.5]] and rows.tolist() == [[3], [8]]


@cuda
def test_kernels_on_the_gpu() -> None:
    check_all("cuda")


@cuda
@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_products_of_tf32_change_no_neighbour(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = (3 + normal(5000, 256)).relu().cuda()
    queries = near(memory.cpu(), 3000, 0.3).cuda()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        fused = TorchIndex(memory).search(queries, 2)
        monkeypatch.setattr("patchcore.index.exact._fused_screen", lambda memory: None)
        plain = TorchIndex(memory).search(queries, 2)
    finally:
        torch.set_float32_matmul_precision(before)
    difference = queries.double()[:, None] - memory.double()[fused[1]]
    torch.testing.assert_close(fused[0].double(), difference.square().sum(2), rtol=1e-5, atol=0)
    assert torch.equal(fused[1], plain[1])
    torch.testing.assert_close(fused[0], plain[0], rtol=1e-5, atol=0)
