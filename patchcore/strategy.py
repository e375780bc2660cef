"""Lightning's strategy: each process has its own batches, and nothing is averaged.

Lightning's data-parallel strategies give every process equally many images, some of them twice, and
average gradients. Here every image is in one batch of one process, in the batches that one process
alone would make, so that layer maps are the same bit for bit.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice, repeat
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import ClusterEnvironment
from pytorch_lightning.strategies import DDPStrategy, Strategy
from pytorch_lightning.trainer.states import TrainerFn
from torch import nn
from torch.utils.data import DataLoader

from patchcore.data.dataset import Loader
from patchcore.data.sample import Split
from patchcore.distributed import Process
from patchcore.errors import InputError


def check_batches(size: int, split: Split, batch: int) -> None:
    """Refuse more processes than there are batches.

    Raises:
        InputError: There are fewer, of training or of test images.
    """
    for kind, samples in (("training", split.train), ("test", split.test)):
        batches, images = math.ceil(len(samples) / batch), len(samples)
        if batches < size:
            smaller = f", or data.batch_size to {images // size}" if images >= size else ""
            raise InputError(
                f"trainer.devices={size} is more than the {batches} batches of the {images} {kind} "
                f"images: set it to {batches}{smaller}"
            )


class OwnBatches:
    """Every n-th batch, beginning with the `rank`-th of n = `size` processes.

    Args:
        batches: Of one process alone: lists of numbers.
        rank: Of this process.
        size: Number of processes.
        filled: Whether an empty batch follows where others have one more: in training Lightning
            lets the processes talk before each batch, so all need equally many.
    """

    def __init__(self, batches: Any, rank: int, size: int, filled: bool) -> None:
        self.batches, self.rank, self.size, self.filled = batches, rank, size, filled
        self.sampler = batches.sampler  # Lightning tells it the epoch
        self.batch_size = batches.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        own = islice(iter(self.batches), self.rank, None, self.size)
        missing = len(self) - len(range(self.rank, len(self.batches), self.size))
        return chain(own, repeat([], missing))

    def __len__(self) -> int:
        first = 0 if self.filled else self.rank
        return len(range(first, len(self.batches), self.size))


class Connected(ClusterEnvironment):
    """A group as Lightning sees it: its processes run already, and are connected."""

    creates_processes_externally = True
    main_address, main_port = "127.0.0.1", 0

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process

    @staticmethod
    def detect() -> bool:
        """Return False: it is never chosen by itself."""
        return False

    def world_size(self) -> int:
        """Return the number of processes."""
        return self.process.size

    def set_world_size(self, size: int) -> None:
        """Do nothing: it is known."""

    def global_rank(self) -> int:
        """Return the number of this process."""
        return self.process.rank

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: it is known."""

    def local_rank(self) -> int:
        """Return the number of this process on its machine."""
        return self.process.local

    def node_rank(self) -> int:
        """Return the number of this machine, if all have as many processes."""
        return (self.process.rank - self.process.local) // max(self._on_each(), 1)

    def _on_each(self) -> int:
        return torch.cuda.device_count() or self.process.size


class Sharded(DDPStrategy):
    """Distributes batches, and leaves the model as it is: what it learns is shared by itself.

    Args:
        process: This one.
    """

    strategy_name = "sharded"

    def __init__(self, process: Process) -> None:
        super().__init__(cluster_environment=Connected(process))
        self.process = process

    def setup(self, trainer: pl.Trainer) -> None:
        """Prepare the model; every process begins to fit with the first one's weights."""
        Strategy.setup(self, trainer)
        if trainer.state.fn == TrainerFn.FITTING:
            assert self.model is not None
            for tensor in chain(self.model.parameters(), self.model.buffers()):
                if tensor.numel():
                    torch.distributed.broadcast(tensor.data, 0)

    def _setup_model(self, model: nn.Module) -> nn.Module:  # type: ignore[override]
        return model  # nothing is trained, so there are no gradients to average

    def process_dataloader(self, dataloader: object) -> object:
        """Return a loader of this process's batches."""
        assert isinstance(dataloader, DataLoader)
        assert self.lightning_module is not None
        fits = self.lightning_module.trainer.state.fn == TrainerFn.FITTING
        batches = OwnBatches(dataloader.batch_sampler, self.process.rank, self.process.size, fits)
        return Loader(
            dataloader.dataset,
            batch_sampler=batches,
            num_workers=dataloader.num_workers,
            collate_fn=partial(_collated, dataloader.collate_fn),
            pin_memory=dataloader.pin_memory,
            ahead=getattr(dataloader, "ahead", False),  # a user's own loader has none
        )


def _collated(collate: Callable[[list[Any]], Any], items: list[Any]) -> Any:
    """A batch; None, which Lightning passes over, of no items."""
    return collate(items) if items else None
