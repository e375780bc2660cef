"""Points that lie in several processes, each of which sees its own rows alone.

The scheme of `order.py` needs little from the other processes: in each round the K farthest points
of every process, as distances and numbers, and the rows of the K farthest points of all. Processes
send each other only these, sums of statistics and, at the end, the memory. Every method here that
communicates has to be called by all processes.

Rows are sent as a sum, to which each process adds its own rows, and zeros for the others. So they
arrive bit for bit.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int32, Int64, Shaped
from torch import Tensor

from patchcore.coreset.space import Space, summed


class Shard:
    """Rows of this process among those of all.

    Args:
        rows: Numbers of its rows among all, ascending, on the CPU.
        total: Number of rows of all processes.
    """

    def __init__(self, rows: Int64[Tensor, " rows"], total: int) -> None:
        self.total = total
        self._rows = {torch.device("cpu"): rows}

    @classmethod
    def of(cls, places: Sequence[int], counts: Sequence[int]) -> "Shard":
        """Return the shard of a process that has these images.

        Args:
            places: Of its images among those of all processes, ascending, each in one of them.
            counts: Rows that each of its images has.
        """
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, list(zip(places, counts, strict=True)))
        ordered = sorted(pair for own in everyone for pair in own)
        ends = np.cumsum([count for _, count in ordered])
        starts = {place: end - count for (place, count), end in zip(ordered, ends, strict=True)}
        if len(starts) < len(ordered):
            raise ValueError("two processes have the same image")
        rows = [torch.arange(count) + starts[x] for x, count in zip(places, counts, strict=True)]
        return cls(torch.cat(rows), int(ends[-1]))

    def rows(self, device: torch.device) -> Int64[Tensor, " rows"]:
        """Numbers of the rows of this process among all."""
        if device not in self._rows:
            self._rows[device] = self._rows[torch.device("cpu")].to(device)
        return self._rows[device]

    def find(
        self, wanted: Int64[Tensor, " wanted"]
    ) -> tuple[Bool[Tensor, " wanted"], Int64[Tensor, " wanted"]]:
        """Flags of the rows that are in this process, and their places; any place for others."""
        rows = self.rows(wanted.device)
        place = torch.searchsorted(rows, wanted).clamp_(max=len(rows) - 1)
        return rows[place] == wanted, place

    def fetch(
        self,
        values: Shaped[Tensor, "rows ..."],
        wanted: Int64[Tensor, " wanted"],
        device: torch.device | None = None,
    ) -> Shaped[Tensor, "wanted ..."]:
        """Return rows by their numbers among all, on `device`, by default where `values` are.

        Args:
            values: Of the rows of this process.
            wanted: The same in every process.
            device: Where to.
        """
        mine, place = self.find(wanted.to(values.device))
        shape = (-1, *[1] * (values.ndim - 1))
        found = values[place].masked_fill_(~mine.view(shape), 0).to(device or values.device)
        dist.all_reduce(found)
        return found

    def combine(
        self,
        describe: Callable[[Int64[Tensor, " own"]], Tensor],
        wanted: Int64[Tensor, " wanted"],
    ) -> Tensor:
        """Return what is to be said of rows, integers (wanted, …), by the processes that have them.

        Args:
            describe: Makes it, (n, …), of places (n,) of rows of this process, on the CPU.
            wanted: Numbers of rows among all, the same in every process.
        """
        mine, place = self.find(wanted.cpu())
        own = describe(place[mine])
        found = own.new_zeros(len(wanted), *own.shape[1:])
        found[mine] = own
        return self.sum(found)

    def sum(self, value: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Sum over the processes."""
        value = value.clone()
        dist.all_reduce(value)
        return value

    def mean(self, values: Float[Tensor, "rows channels"]) -> Float[Tensor, " channels"]:
        """Mean of the rows of all processes."""
        return (self.sum(summed(values)) / self.total).to(values.dtype)


class SharedSpace(Space):
    """Points of all processes as one `Space`: indices count over all, values belong to its own
    points.

    Args:
        points: (n, d) of this process.
        shard: Which they are.
    """

    def __init__(
        self,
        points: Float[Tensor, "points dimensions"],
        device: torch.device,
        chunk: int | None,
        pool: int,
        shard: Shard,
    ) -> None:
        self.shard = shard
        super().__init__(points, device, chunk, pool)

    def __len__(self) -> int:
        return self.shard.total

    def averages(
        self, total: Float[Tensor, " dimensions"], squared: Float[Tensor, " points"]
    ) -> tuple[Float[Tensor, " dimensions"], Float[Tensor, ""]]:
        """See `Space.averages`."""
        sums = self.shard.sum(torch.cat((total, squared.double().sum()[None])))
        return sums[:-1] / len(self), sums[-1] / len(self)

    def top(self, values: Float[Tensor, " points"]) -> float:
        """See `Space.top`."""
        largest = values.max()
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return float(largest)

    def rows(
        self, which: Int64[Tensor, " rows"] | slice, dtype: torch.dtype
    ) -> Float[Tensor, "rows dimensions"]:
        """See `Space.rows`; a slice counts in the own points."""
        if isinstance(which, slice):
            return super().rows(which, dtype)
        x = self.shard.fetch(self.points, which, self.device).to(dtype)
        return x - self.centre.to(dtype) if self.shifted else x

    def take(
        self, values: Float[Tensor, " points"], which: Int64[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        """See `Space.take`."""
        return self.shard.fetch(values, which)

    def mark(self, best: Float[Tensor, " points"], picks: Int64[Tensor, " picks"]) -> None:
        """See `Space.mark`."""
        mine, place = self.shard.find(picks)
        # No selection, which would make a GPU's host wait; no assignment, for places may repeat.
        lower = torch.where(mine, -1.0, math.inf).to(best.dtype)
        best.scatter_reduce_(0, place, lower, "amin")

    def left(self, best: Float[Tensor, " points"]) -> Int64[Tensor, " left"]:
        """See `Space.left`."""
        own = self.shard.rows(best.device)[best >= 0].cpu()
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, own)
        return torch.cat(everyone).sort().values.to(best.device)

    def first(self, values: Float[Tensor, " points"]) -> Int64[Tensor, ""]:
        """See `Space.first`."""
        place = values.argmax()
        own = torch.stack((values[place].double(), self._numbers(values, place).double()))
        return self._first(*_gathered(own).unbind(1))

    def farthest(
        self, best: Float[Tensor, " points"], pool: int, blur: float
    ) -> tuple[Int64[Tensor, " pool"], Float[Tensor, ""]]:
        """See the function `farthest`: the same pool, of the farthest of each process."""
        if pool >= len(self):
            return torch.arange(len(self), device=best.device), best.new_tensor(blur)
        values, places = best.topk(min(pool, len(best)))
        places = torch.cat((best.argmax()[None], places))
        # Float64 holds both distances and numbers, so that they travel at once.
        own = torch.full((2, pool + 1), -math.inf, dtype=torch.float64, device=best.device)
        own[0, : len(places)], own[1, : len(places)] = best[places], self._numbers(best, places)
        distances, numbers = _gathered(own).unbind(1)  # each (processes, 1 + pool)
        first = self._first(distances[:, 0], numbers[:, 0])
        values, chosen = distances[:, 1:].flatten().topk(pool)
        candidates = numbers[:, 1:].flatten()[chosen].long()
        # The first of more equals than the pool holds must be in it.
        candidates[-1] = torch.where((candidates == first).any(), candidates[-1], first)
        return candidates.sort().values, values[-1].to(best.dtype).clamp(min=blur)

    def pooled(
        self,
        places: Int64[Tensor, " pool"],
        best: Float[Tensor, " points"],
        floor: Float[Tensor, "1"],
        pool: int,
        keys: Callable[[Tensor], Tensor],
    ) -> tuple[
        Int64[Tensor, " pool"], Float[Tensor, " pool"], Int32[Tensor, "1"], Float[Tensor, "1"]
    ]:
        """Return the pool of all processes by what each would put into it.

        It is the pool that one process with all points would have: the farthest of all as long as
        they fit, those of one key together.

        Args:
            places: Own points of a pool, ascending; -1 after the last.
            best: Squared distances of the own points.
            floor: The largest that the own pool leaves out.
            pool: Most that the pool may hold. Of a key that is too much alone the first by number.
            keys: Makes integers of distances that rise with them, -1 of those that count as none.

        Returns:
            Numbers among all, ascending, and squared distances, both 0 after the last; how many
            there are; and the largest squared distance that the pool leaves out.
        """
        there = places >= 0
        place = places.clamp(min=0)
        # Float64 holds both distances and numbers, so that they travel at once.
        numbers = self._numbers(best, place).double()
        heights = best[place].double().masked_fill_(~there, 0)
        all_numbers, all_heights, floors = _gathered(
            torch.stack((numbers, heights, floor.double().expand(len(places))))
        ).unbind(1)
        numbers, heights = all_numbers.flatten(), all_heights.flatten()
        key, own_limits = keys(heights.to(best.dtype)), keys(floors[:, 0].to(best.dtype))
        # The first key that is too much: of those here, or of one that a process left out.
        beyond = key.sort(descending=True).values[pool : pool + 1]
        limit = torch.cat((beyond, own_limits)).max()
        chosen = key > limit
        chosen |= ~chosen.any() & (key == key.max()) & (key >= 0)
        order = numbers.masked_fill(~chosen, math.inf).argsort(stable=True)
        chosen, numbers, heights = chosen[order], numbers[order], heights[order]
        held = chosen.sum().clamp(max=pool).int()[None]
        chosen[pool:] = False
        outside = torch.maximum(floors.max(), heights.masked_fill(chosen, 0).max())
        numbers = numbers.masked_fill(~chosen, 0)[:pool].long()
        heights = heights.masked_fill(~chosen, 0)[:pool]
        return numbers, heights.to(best.dtype), held, outside.to(best.dtype)[None]

    def agreed(
        self, places: Int64[Tensor, " picks"], fall: Float[np.ndarray, " picks"]
    ) -> tuple[Int64[Tensor, " picks"], Float[np.ndarray, " picks"]]:
        """Picks of the first process, as the hardware of another one may round differently."""
        told: list[Any] = [places.cpu(), fall]
        dist.broadcast_object_list(told, 0)
        return told[0].to(places.device), told[1]

    def _numbers(self, like: Tensor, places: Int64[Tensor, "*own"]) -> Int64[Tensor, "*own"]:
        """Numbers among all of own points, by their places."""
        return self.shard.rows(like.device)[places]

    def _first(
        self, largest: Float[Tensor, " processes"], first: Float[Tensor, " processes"]
    ) -> Int64[Tensor, ""]:
        """First of all points that are largest, by those of each process."""
        return torch.where(largest == largest.max(), first, math.inf).min().long()


def _gathered(x: Tensor) -> Tensor:
    """Tensors of one shape (…) of all processes, stacked: (processes, …)."""
    everyone = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, x.contiguous())
    return torch.stack(everyone)
