"""Helpers that several samplers share: draws, distances, chunks, and exact products."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

NOT_FINITE = "features hold NaN or infinite values: check images and backbone"


def draw(n: int, count: int, seed: int) -> Int64[Tensor, " drawn"]:
    """`count` different indices below n (all if it is less): a prefix of one seeded sequence."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count]


def take(
    features: Shaped[Tensor, "rows channels"], indices: Int64[Tensor, " taken"]
) -> Shaped[Tensor, "taken channels"]:
    """Rows of the features, wherever the indices lie."""
    return features[indices.to(features.device)]


def slices(n: int, chunk: int) -> Iterator[slice]:
    """Slices of at most `chunk` that cover `n` rows in order."""
    return (slice(i, min(i + chunk, n)) for i in range(0, n, chunk))


def squared_distances(
    x: Float[Tensor, "n dimensions"], y: Float[Tensor, "m dimensions"]
) -> Float[Tensor, "n m"]:
    """Squared Euclidean distances between rows of `x` and of `y`, by one product."""
    squared = torch.addmm(y.square().sum(1), x, y.T, alpha=-2)
    return squared.add_(x.square().sum(1)[:, None]).clamp_(min=0)


def chunk_size(device: torch.device, width: int) -> int:
    """Rows of `width` numbers at once: a fixed power of two unless memory is short."""
    most = 8192 if device.type == "cpu" else 2**18
    fits = free_memory(device) // 8 // (8 * width)
    return min(most, 2 ** max(fits.bit_length() - 1, 6))


def free_memory(device: torch.device) -> int:
    """Free memory in bytes, of a CUDA device or of this machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 4 * 2**30


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Float32 products in float32, whatever the caller's settings for training are."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
