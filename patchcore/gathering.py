"""A test in several processes: the first one collects all records and metrics.

Every process has every n-th batch, and sends its batches in their order. The first process puts
them into the order that a single process would have had, so metrics are the same to the last
bit.
"""

from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric


def total(count: int) -> int:
    """Return the sum of a number over the processes."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, count)
    return sum(everyone)


def gather_metrics(metrics: Iterable[Metric]) -> None:
    """Bring the states of metrics together in the first process, where they can be computed then.

    Args:
        metrics: The same in every process. Their states are sums, or lists with a tensor (n,) a
            batch.
    """
    for metric in metrics:
        metric.distributed_available_fn = _alone  # what is computed in one process is all there is
        for name, state in metric.metric_state.items():
            if isinstance(state, Tensor):
                summed = state.clone()
                dist.all_reduce(summed)
                setattr(metric, name, summed)
            else:
                setattr(metric, name, gather_batches(state))


def gather_batches(own: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors (n,) of all batches in the first process, and the own ones in the others.

    They are of one dtype and device; every process has one at least.
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
    """Return {number of an image: …} of all processes in the first, and the own in the others."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.gather_object(own, everyone if dist.get_rank() == 0 else None)
    if dist.get_rank():
        return own
    return dict(sorted(chain.from_iterable(each.items() for each in everyone)))


def gather_flags(own: Tensor) -> None:
    """Set flags that are set in any process, in all of them, in place."""
    counts = own.to(torch.uint8)
    dist.all_reduce(counts, dist.ReduceOp.MAX)
    own.copy_(counts.bool())


def _alone() -> bool:
    return False
