"""Metrics by the steps that an accelerator takes, against those of the CPU."""

import sys
from dataclasses import fields

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from patchcore.errors import InputError
from patchcore.metrics import PixelMetrics, pixel_metrics, region_areas, sweep
from patchcore.metrics.regions import connected
from patchcore.metrics.sweep import sweep_sorted

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def spiral(side: int) -> Tensor:
    """Mask (side, side) of one line that winds to the middle, one pixel wide."""
    mask = torch.zeros(side, side, dtype=torch.bool)
    row, column, step = 0, 0, (0, 1)
    mask[0, 0] = True
    for length in (side - 1, *(n for m in range(side - 1, 0, -2) for n in (m, m))):
        for _ in range(length):
            row, column = row + step[0], column + step[1]
            mask[row, column] = True
        step = (step[1], -step[0])
    return mask


def masks() -> Tensor:
    """Masks (8, 33, 40): noise of several densities, a spiral, nothing, everything."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(5, 33, 40, generator=generator)
    made = noise < torch.tensor([0.02, 0.2, 0.35, 0.5, 0.9])[:, None, None]
    ends = torch.zeros(3, 33, 40, dtype=torch.bool)
    ends[0, :33, :33], ends[2] = spiral(33), True
    return torch.cat((made, ends))


def scores(count: int, levels: int, seed: int) -> Tensor:
    """Scores with ties, zeros of both signs among them."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(-levels, levels + 1, (count,), generator=generator) / 8
    return torch.where(torch.rand(count, generator=generator) < 0.5, -drawn, drawn)


def compare_regions(device: str) -> None:
    flags = masks()
    labels = connected(flags.to(device)).cpu()
    structure = np.zeros((3, 3, 3), dtype=bool)
    structure[1] = True
    expected, count = scipy.ndimage.label(flags.numpy(), structure)
    assert torch.equal(labels > 0, flags)
    pairs = torch.stack((labels.flatten(), torch.from_numpy(expected).flatten().long()), 1)
    assert len(pairs.unique(dim=0)) == count + 1  # one to one, the background too
    assert not connected(flags[:0].to(device)).numel()


def compare_sweeps(device: str) -> None:
    for count, levels in ((0, 1), (1, 1), (500, 3), (500, 10**6)):
        nominal, anomalous = scores(700, levels, 0), scores(count, levels, 1)
        weights = torch.rand(count, generator=torch.Generator().manual_seed(2)).double()
        for weighted in (None, weights):
            expected = sweep(nominal, anomalous, weighted)
            found = sweep_sorted(nominal.to(device), anomalous.to(device), weighted)
            for field in fields(expected):
                x, y = getattr(found, field.name), getattr(expected, field.name)
                if not isinstance(x, Tensor):
                    assert x == y
                elif field.name == "overlap":  # ties are summed in another order
                    torch.testing.assert_close(x.cpu(), y, rtol=1e-12, atol=1e-12)
                else:
                    assert x.dtype == y.dtype and torch.equal(x.cpu(), y)


def test_regions_by_steps_of_an_accelerator_are_those_of_scipy() -> None:
    compare_regions("cpu")


def test_sweeps_by_sorts_of_an_accelerator_are_those_of_numpy() -> None:
    compare_sweeps("cpu")


@cuda
def test_on_the_gpu() -> None:
    compare_regions("cuda")
    compare_sweeps("cuda")
    flags = masks()
    assert torch.equal(region_areas(flags.cuda()).cpu(), region_areas(flags))
    assert not region_areas(flags[6:7].cuda()).numel()


@cuda
def test_pixel_metrics_on_the_gpu_are_those_of_the_cpu() -> None:
    flags = masks()
    maps = scores(flags.numel(), 1000, 3).view(flags.shape) + 20 * flags
    known = torch.tensor([True] * 7 + [False])
    on_gpu, on_cpu = PixelMetrics().cuda(), PixelMetrics()
    for some in (slice(0, 3), slice(3, 8)):
        on_gpu.update(maps[some].cuda(), flags[some].cuda(), known[some].cuda())
        on_cpu.update(maps[some], flags[some], known[some])
    assert all(x.is_cuda for x in on_gpu.nominal)
    expected = on_cpu.compute()
    assert on_gpu.compute() == pytest.approx(expected, rel=1e-9, abs=1e-9, nan_ok=True)
    assert 0 < expected["aupro"] < 1 and on_gpu.left_out() == 1
    maps[0, 0, 0] = torch.nan
    with pytest.raises(InputError, match="anomaly maps: 1 of 10560 are NaN"):
        on_gpu.update(maps.cuda(), flags.cuda())


@cuda
def test_scores_that_find_no_room_on_the_gpu_are_sorted_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    nominal, anomalous = scores(700, 50, 0).cuda(), scores(90, 50, 1).cuda()
    expected = pixel_metrics(sweep(nominal, anomalous))
    # By its file, for the package names the function as its file.
    monkeypatch.setattr(sys.modules["patchcore.metrics.sweep"], "sweep_sorted", full)
    found = sweep(nominal, anomalous)
    assert not found.tp.is_cuda and pixel_metrics(found) == pytest.approx(expected, rel=1e-12)
