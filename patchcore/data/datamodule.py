"""Data set for Lightning: a data module of one run's images."""

from collections.abc import Sequence
from multiprocessing.queues import Queue
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from patchcore.data.augment import AugmentConfig
from patchcore.data.dataset import EpochSampler, ImageDataset, Loader, collate
from patchcore.data.defective import DefectiveImages
from patchcore.data.sample import DataConfig, Split
from patchcore.data.transforms import ImageConfig
from patchcore.map_cache import MapCache

AHEAD = 3
"""Batches made at the same time where a GPU computes: the last image of one delays no other."""


class AnomalyDataModule(pl.LightningDataModule):
    """Training images and labelled test images of a run, always in the same order.

    Training images are augmented anew in each epoch, or come in fixed poses; test images are never
    changed. Batches are those of `patchcore.data.dataset.collate`; all poses of an image are in one
    batch. The batch's `index` points into `split.train` or `split.test`.

    Args:
        data: Data set, batch size and number of workers.
        image: Size and normalisation of the images.
        augment: Augmentation of the training images.
        cache: Cache of decoded images and layer maps; None: no cache.
        split: Result of `data.read()`; None: `data.read()` is called once, on first use. If the
            split has a snapshot, every file is compared with the snapshot when it is read.
    """

    def __init__(
        self,
        data: DataConfig,
        image: ImageConfig,
        augment: AugmentConfig,
        cache: MapCache | None = None,
        split: Split | None = None,
    ) -> None:
        super().__init__()
        self._split = split
        self.data = data
        self.image = image
        self.augment = augment
        self.cache = cache

    @property
    def split(self) -> Split:
        """Samples; read once and then the same for the lifetime of this object."""
        if self._split is None:
            self._split = self.data.read()
        return self._split

    def prepare_data(self) -> None:
        """Read the split, which writes generated images and reports missing files.

        Lightning calls this in one process only.
        """
        assert self.split

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return batches of the images of `split.train` in their order, all in every epoch."""
        dataset = ImageDataset(
            self.split.train, self.image, self.augment, self.cache, self.split.snapshot
        )
        return self._loader(dataset, train=True)

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return batches of the labelled images of `split.test` in their order."""
        return self._loader(self.test_dataset(), train=False)

    def test_dataset(self) -> ImageDataset:
        """Return the data set of `split.test`."""
        return ImageDataset(
            self.split.test, self.image, cache=self.cache, snapshot=self.split.snapshot
        )

    def defective_dataloader(
        self, numbers: Sequence[int], defects: int, seed: int
    ) -> DataLoader[dict[str, Any]]:
        """Return batches of training images with synthetic defects; see `DefectiveImages`.

        Args:
            numbers: Indices of the images in `split.train`.
            defects: Number of defective copies of each image.
            seed: Seed for drawing the defects.
        """
        of = (self.split.train, self.image, self.cache, self.split.snapshot)
        return self._loader(DefectiveImages(numbers, defects, seed, *of), train=False)

    def _loader(self, dataset: Dataset[dict[str, Any]], train: bool) -> DataLoader[dict[str, Any]]:
        sized: Any = dataset
        poses = len(getattr(dataset, "poses", ())) or 1
        # The tiles of one image are a batch already; images of several sizes would not stack.
        size = max(1, self.data.batch_size // poses) if self.image.tiles is None else 1
        ahead = min(self._ahead(sized), -(-len(sized) // size))
        sized.batches = max(1, ahead)
        return Loader(
            dataset,
            batch_size=size,
            sampler=EpochSampler(len(sized)) if train else SequentialSampler(sized),
            num_workers=self.data.workers,
            worker_init_fn=silence_broken_pipes,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            ahead=ahead,
        )

    def _ahead(self, dataset: Any) -> int:
        """Number of batches to make ahead: none for a network on the CPU, which uses all cores.

        Only one if images are tiled, and so may be large, or if random augmentation has a state.
        """
        on_cpu = self.trainer is None or self.trainer.strategy.root_device.type == "cpu"
        if self.data.workers or on_cpu:
            return 0
        single = self.image.tiles is not None or getattr(dataset, "augmented", False)
        return 1 if single else AHEAD


def silence_broken_pipes(number: int) -> None:
    """Let a loader process print no traceback when the process that it works for has ended.

    Its thread that sends batches would print one about the broken pipe.

    Args:
        number: Number of the loader process.
    """
    usual: Any = Queue._on_queue_feeder_error  # type: ignore[attr-defined]

    def told(error: Exception, batch: Any) -> None:
        if not isinstance(error, ConnectionError):  # such as BrokenPipeError
            usual(error, batch)

    Queue._on_queue_feeder_error = staticmethod(told)  # type: ignore[attr-defined]
