"""A test in several processes: the first one collects all records and metrics.

Each of n processes tests every n-th batch. The first process puts the results into the order that
a single process would have had, so metrics are the same to the last bit.
"""

from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric


def total(count: int) -> int:
    """Return the sum of a number over all processes."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, count)
    return sum(everyone)


def gather_metrics(metrics: Iterable[Metric]) -> None:
    """Combine the states of metrics in place, so that the first process can compute the metrics.

    Args:
        metrics: The same metrics in every process. Their states are sums, or lists with one tensor
            (n,) per batch.
    """
    for metric in metrics:
        metric.distributed_available_fn = _alone  # `compute` must not wait for other processes
        for name, state in metric.metric_state.items():
            if isinstance(state, Tensor):
                summed = state.clone()
                dist.all_reduce(summed)
                setattr(metric, name, summed)
            else:
                setattr(metric, name, gather_batches(state))


def gather_batches(own: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors (n,) of all batches, in order, in the first process; `own` in the others.

    Args:
        own: Tensors of this process's batches, at least one, all of one dtype and device.
    """
    lengths: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(lengths, [len(x) for x in own])
    longest = max(map(sum, lengths))
    flat = own[0].new_zeros(longest)
    flat[: sum(map(len, own))] = torch.cat(list(own))
    first = dist.get_rank() == 0
    everyone = [torch.empty_like(flat) for _ in lengths] if first else None
    if longest:
        dist.gather(flat, everyone)
    if everyone is None:
        return list(own)
    split = [x[: sum(n)].split(n) for x, n in zip(everyone, lengths, strict=True)]
    return [x for turn in zip_longest(*split) for x in turn if x is not None]


def gather_images(own: dict[int, Any]) -> dict[int, Any]:
    """Return {image number: value} of all processes, sorted, in the first; `own` in the others."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.gather_object(own, everyone if dist.get_rank() == 0 else None)
    if dist.get_rank():
        return own
    return dict(sorted(chain.from_iterable(each.items() for each in everyone)))


def gather_flags(own: Tensor) -> None:
    """Set each flag, in place and in all processes, that is set in any process."""
    counts = own.to(torch.uint8)
    dist.all_reduce(counts, dist.ReduceOp.MAX)
    own.copy_(counts.bool())


def _alone() -> bool:
    return False
