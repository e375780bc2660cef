"""The data set as Lightning sees it."""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from patchcore.cache import MapCache
from patchcore.data.augment import AugmentConfig
from patchcore.data.dataset import EpochSampler, ImageDataset, Loader, collate
from patchcore.data.defective import DefectiveImages
from patchcore.data.sample import DataConfig, Split
from patchcore.data.transforms import ImageConfig


class AnomalyDataModule(pl.LightningDataModule):
    """Nominal training images and labelled test images of one category, always in one order.

    Training images are augmented anew in each epoch, or come in fixed poses, test images never.
    Batches are those of `patchcore.data.dataset.collate`, all poses of an image in one; `index`
    counts in `split.train` or `split.test`.

    Args:
        split: What `data.read()` has given; otherwise the disk is read on first use, once. With its
            snapshot, every file is compared when it is read.
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
        """The samples, the same for as long as this object lives."""
        if self._split is None:
            self._split = self.data.read()
        return self._split

    def prepare_data(self) -> None:
        """Write what is generated and find what is missing, in one process only."""
        assert self.split

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Nominal images in the order of `split.train`, every one in every epoch."""
        dataset = ImageDataset(
            self.split.train, self.image, self.augment, self.cache, self.split.snapshot
        )
        return self._loader(dataset, train=True)

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Labelled images in the order of `split.test`."""
        return self._loader(self.test_dataset(), train=False)

    def test_dataset(self) -> ImageDataset:
        """Items of `split.test`."""
        return ImageDataset(
            self.split.test, self.image, cache=self.cache, snapshot=self.split.snapshot
        )

    def defective_dataloader(
        self, numbers: Sequence[int], defects: int, seed: int
    ) -> DataLoader[dict[str, Any]]:
        """Images of `split.train`, by their numbers, with synthetic defects: `DefectiveImages`."""
        of = (self.split.train, self.image, self.cache, self.split.snapshot)
        return self._loader(DefectiveImages(numbers, defects, seed, *of), train=False)

    def _loader(self, dataset: Dataset[dict[str, Any]], train: bool) -> DataLoader[dict[str, Any]]:
        sized: Any = dataset
        poses = len(getattr(dataset, "poses", ())) or 1
        return Loader(
            dataset,
            # Tiles are a batch; of images in their own sizes hardly two make one.
            batch_size=max(1, self.data.batch_size // poses) if self.image.tiles is None else 1,
            sampler=EpochSampler(len(sized)) if train else SequentialSampler(sized),
            num_workers=self.data.workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            ahead=self.data.workers == 0 and self._on_gpu(),
        )

    def _on_gpu(self) -> bool:
        """Whether the network leaves the cores to decoding: on a CPU it uses them all itself."""
        return self.trainer is not None and self.trainer.strategy.root_device.type != "cpu"
