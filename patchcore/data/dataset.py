"""Samples as a torch data set, and batches of them."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from patchcore.data.images import read_image, read_mask
from patchcore.data.sample import Sample
from patchcore.data.transforms import AugmentConfig, ImageConfig, build_transform
from patchcore.errors import InputError


class ImageDataset(Dataset[dict[str, Any]]):
    """Reads, transforms and describes images.

    Item i is a dict: `image` (3, H, W) float32, normalised; `label` 0 or 1; `mask` (H, W) bool,
    True where anomalous; `has_mask`, False where that is not known (an anomalous image without a
    mask, or whose mask marks nothing); `index` into `samples`. Item i + n · len(samples) is the
    same sample, augmented as in epoch n; without augmentation it is the same item.
    """

    def __init__(
        self, samples: Sequence[Sample], image: ImageConfig, augment: AugmentConfig | None = None
    ) -> None:
        self.samples = list(samples)
        self.image = image
        self.seed = 0 if augment is None else augment.seed
        self.transform = build_transform(image, augment)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: int) -> dict[str, Any]:
        """Raises InputError if a file is unreadable, or mask or crop do not fit its image."""
        epoch, index = divmod(item, len(self.samples))
        sample = self.samples[index]
        pixels = read_image(sample.path)  # (H, W, 3)
        height, width = pixels.shape[:2]
        if sample.mask is None:
            mask = np.zeros((height, width), dtype=bool)
        else:
            mask = read_mask(sample.mask)  # (H, W)
        if mask.shape != (height, width):
            raise InputError(
                f"{sample.mask}: the mask is {mask.shape[1]}×{mask.shape[0]} pixels, its image "
                f"{sample.path} is {width}×{height}; they must be of one size"
            )
        has_mask = sample.label == 0 or bool(mask.any())
        crop = self.image.crop
        if self.image.resize is None and crop is not None and min(height, width) < crop:
            raise InputError(
                f"image.crop: {crop} is more than the {width}×{height} pixels of {sample.path}; "
                "lower it or set image.resize"
            )
        seed = int(np.random.SeedSequence((self.seed, epoch, index)).generate_state(1)[0])
        image, region = self.transform(pixels, mask, seed)
        return {
            "image": image,  # (3, H', W')
            "label": sample.label,
            "mask": region,  # (H', W')
            "has_mask": has_mask,
            "index": index,
        }


class EpochSampler(Sampler[int]):
    """In order, and numbered on from epoch to epoch, so that augmentation differs."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * self.length
        return iter(range(start, start + self.length))

    def __len__(self) -> int:
        return self.length


def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack items to a batch.

    Returns:
        `image` (B, 3, H, W) float32, `label` (B,) int64, `mask` (B, H, W) bool, `has_mask` (B,)
        bool, `index` (B,) int64.

    Raises:
        InputError: the images differ in size.
    """
    sizes = sorted({tuple(item["mask"].shape) for item in items})
    if len(sizes) > 1:
        (height, width), (other_height, other_width) = sizes[:2]
        raise InputError(
            f"data.batch_size: images of {width}×{height} and {other_width}×{other_height} pixels "
            "cannot share a batch; set data.batch_size=1, or image.crop to one size"
        )
    return {
        "image": torch.stack([item["image"] for item in items]),
        "label": torch.tensor([item["label"] for item in items]),
        "mask": torch.stack([item["mask"] for item in items]),
        "has_mask": torch.tensor([item["has_mask"] for item in items]),
        "index": torch.tensor([item["index"] for item in items]),
    }
