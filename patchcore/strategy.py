"""Lightning strategy in which each process has its own batches, and nothing is averaged.

Lightning's data-parallel strategies give every process the same number of images, some of them
twice, and average gradients. Here every image belongs to exactly one process, and the batches are
those that a single process would make, so that layer maps are the same bit for bit.
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
from patchcore.errors import InputError, counted


def check_batches(size: int, split: Split, batch: int) -> None:
    """Refuse more processes than there are batches.

    Raises:
        InputError: The training or the test images make fewer batches than `size`.
    """
    for kind, samples in (("training", split.train), ("test", split.test)):
        batches, images = math.ceil(len(samples) / batch), len(samples)
        if batches < size:
            smaller = f", or data.batch_size to {images // size}" if images >= size else ""
            raise InputError(
                f"trainer.devices={size} is more than the {counted(batches, 'batch')} of the "
                f"{counted(images, f'{kind} image')}: set it to {batches}{smaller}"
            )


class OwnBatches:
    """Batches of one process: every `size`-th batch, starting with number `rank`.

    Args:
        batches: Batch sampler of a run with one process; each batch is a list of image numbers.
        rank: Number of this process.
        size: Number of processes.
        filled: Whether to add an empty batch if other processes have one batch more. In training,
            Lightning synchronises the processes before each batch, so all need the same number.
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
    """Cluster environment that tells Lightning that all processes run and are connected already."""

    creates_processes_externally = True
    main_address, main_port = "127.0.0.1", 0

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process

    @staticmethod
    def detect() -> bool:
        """Return False: Lightning never chooses this environment automatically."""
        return False

    def world_size(self) -> int:
        """Return the number of processes."""
        return self.process.size

    def set_world_size(self, size: int) -> None:
        """Do nothing: the number is known."""

    def global_rank(self) -> int:
        """Return the number of this process."""
        return self.process.rank

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: the rank is known."""

    def local_rank(self) -> int:
        """Return the number of this process on its machine."""
        return self.process.local

    def node_rank(self) -> int:
        """Return the number of this machine."""
        return self.process.node


class Sharded(DDPStrategy):
    """Strategy that distributes batches and does not wrap the model.

    The model exchanges what it learns between the processes itself.

    Args:
        process: This process.
    """

    strategy_name = "sharded"

    def __init__(self, process: Process) -> None:
        super().__init__(cluster_environment=Connected(process))
        self.process = process

    def setup(self, trainer: pl.Trainer) -> None:
        """Prepare the model; before a fit, copy the first process's weights to all processes."""
        Strategy.setup(self, trainer)
        if trainer.state.fn == TrainerFn.FITTING:
            assert self.model is not None
            for tensor in chain(self.model.parameters(), self.model.buffers()):
                if tensor.numel():
                    torch.distributed.broadcast(tensor.data, 0)

    def _setup_model(self, model: nn.Module) -> nn.Module:  # type: ignore[override]
        return model  # nothing is trained, so there are no gradients to average

    def process_dataloader(self, dataloader: object) -> object:
        """Return a loader with the batches of this process alone."""
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
            ahead=getattr(dataloader, "ahead", 0),  # a user's own loader has none
        )


def _collated(collate: Callable[[list[Any]], Any], items: list[Any]) -> Any:
    """A collated batch; without items None, which Lightning skips."""
    return collate(items) if items else None
