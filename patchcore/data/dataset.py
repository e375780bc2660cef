"""Samples as a torch data set, and batches of them."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache as remembered
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from patchcore.cache import MapCache, timed, took
from patchcore.data.augment import AugmentConfig
from patchcore.data.images import read_pair, read_truth
from patchcore.data.poses import UPRIGHT, Pose
from patchcore.data.sample import Sample
from patchcore.data.transforms import (
    ImageConfig,
    Mask,
    Pixels,
    Regions,
    build_normalisation,
    build_preparation,
)
from patchcore.digests import Snapshot
from patchcore.errors import InputError
from patchcore.identity import image_key, image_recipe, input_digest

Decoded = tuple[Pixels, Mask, Mask | None]
"""Pixels (H, W, 3), mask (H, W) and region that counts (H, W) of an image's files."""


def pixels_alone(image: ImageConfig) -> ImageConfig:
    """The same size and view with a normalisation that leaves pixels 0 to 255 as they are."""
    return replace(image, mean=[0.0] * 3, std=[1 / 255] * 3)


class ImageDataset(Dataset[dict[str, Any]]):
    """Reads, transforms and describes images.

    Item i is a dict: `image` (3, H, W) float32, normalised, or uint8 if it passes the network in
    tiles, which are normalised one by one; `label` 0 or 1; `mask` (H, W) bool,
    True where anomalous; `has_mask`, False where that is not known (an anomalous image without a
    mask, or whose mask marks nothing, or nothing inside the crop); `regions` (6,) int64, what
    became of the mask's regions (`patchcore.data.transforms.Regions`); `index` into `samples`;
    `seconds`, two numbers: what decoding took and what it took from there to what the item holds,
    when these were made; NaN where that is not known.
    Where the samples have a region that counts, also `inside` (H, W) bool, True where pixels do.

    There are len(samples) items, and a negative number counts from their end. In batches, each
    stands for its image in all fixed poses, one after the other, from one decoded file; and item
    i + n · len(samples) is the same sample, augmented as in epoch n; without augmentation it is the
    same item.

    Args:
        cache: Where decoded images and layer maps are kept, but for randomly changed ones. Items of
            a batch then have a `key`, the image's digest, and `maps` [(h, w, C), …] in place of
            `image` once the maps of all of them are there; `cached` says whether anything was.
        snapshot: The files as they were when the run began: none may have changed when it is read.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        image: ImageConfig,
        augment: AugmentConfig | None = None,
        cache: MapCache | None = None,
        snapshot: Snapshot | None = None,
    ) -> None:
        self.samples = list(samples)
        self.image = image
        self.seed = 0 if augment is None else augment.seed
        self.augmented = augment is not None and augment.changes()
        self.poses = [UPRIGHT] if augment is None else augment.poses()
        random = augment if self.augmented else None
        self.prepare = {pose: build_preparation(image, random, pose) for pose in self.poses}
        self.normalise = build_normalisation(image)
        if augment is not None and augment.moves() and any(x.region is not None for x in samples):
            raise InputError(
                "augment: with data.region or data.regions, nothing may move pixels: leave flips, "
                "rotate, translate, scale, rotations and mirrored out"
            )
        self.cache = None if self.augmented else cache
        self.snapshot = snapshot or Snapshot({}, {})
        self._files = [sample.files() for sample in self.samples]
        self._recipes = {} if cache is None else {x: image_recipe(image, x) for x in self.poses}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: int) -> dict[str, Any]:
        """The item of that number, as the image is.

        Raises:
            IndexError: there is none; loops over the data set end by it.
            InputError: a file is unreadable, or mask, crop or resizing do not fit its image.
        """
        if not -len(self) <= item < len(self):
            raise IndexError(f"item {item} of {len(self)}")
        return self._posed(item % len(self), [UPRIGHT], normalise=True)[0]

    def __getitems__(self, items: list[int]) -> list[dict[str, Any]]:
        """The items of one batch, made side by side; PyTorch's loader asks for them together."""
        if self.cache is None or self.image.tiles is not None:  # whose maps are never whole
            return self._items(items, normalise=True)
        samples = [self.samples[item % len(self)] for item in items]
        keys = [self._input_digest(sample, pose) for sample in samples for pose in self.poses]
        maps = self.cache.get_timed(keys)
        batch = self._items(items, normalise=maps is None)
        for i, described in enumerate(batch):
            described["key"] = keys[i]
            if maps is not None:
                described["maps"], described["seconds"][1] = maps[i]
                described["cached"] = True
        return batch

    def _items(self, items: list[int], normalise: bool) -> list[dict[str, Any]]:
        """Load items on PyTorch's number of threads; on one with augmentation, for its state."""
        threads = 1 if self.augmented else torch.get_num_threads()
        beside = min(threads, len(items))  # so many share the time that each takes
        with ThreadPoolExecutor(threads) as pool:
            each = pool.map(lambda item: self._posed(item, self.poses, normalise, beside), items)
            return list(chain.from_iterable(each))

    def _posed(
        self, item: int, poses: Sequence[Pose], normalise: bool, beside: int = 1
    ) -> list[dict[str, Any]]:
        """One image in several poses; its file is decoded once at most."""
        epoch, index = divmod(item, len(self.samples))
        read = remembered(lambda: self._read(self.samples[index], index))
        return [self._item(epoch, index, pose, read, normalise, beside) for pose in poses]

    def _item(
        self,
        epoch: int,
        index: int,
        pose: Pose,
        read: Callable[[], Decoded],
        normalise: bool,
        beside: int,
    ) -> dict[str, Any]:
        sample = self.samples[index]
        pixels, mask, inside, regions, (decode, cached) = self._prepared(
            sample, epoch, index, pose, read, beside
        )
        described: dict[str, Any] = {
            "label": sample.label,
            "mask": torch.from_numpy(mask),  # (H', W')
            "has_mask": sample.label == 0 or (regions.marked > 0 and not regions.unseen),
            "regions": torch.from_numpy(regions.counts()),
            "index": index,
            "seconds": [decode, 0.0],
        }
        if inside is not None:
            described["inside"] = torch.from_numpy(inside)  # (H', W')
        if self.cache is not None:
            described["cached"] = cached
        if not normalise:
            return described
        if self.image.tiles is not None:
            return {"image": torch.from_numpy(pixels).permute(2, 0, 1), **described}
        start = time.perf_counter()
        image = self.normalise(pixels)
        described["seconds"][1] = (time.perf_counter() - start) / beside
        return {"image": image, **described}

    def _prepared(
        self,
        sample: Sample,
        epoch: int,
        index: int,
        pose: Pose,
        read: Callable[[], Decoded],
        beside: int,
    ) -> tuple[Pixels, Mask, Mask | None, Regions, tuple[float, bool]]:
        """Pixels (H', W', 3), mask (H', W') and the pixels that count at the network's size.

        Further the mask's regions, the seconds that all this took when so many were made `beside`
        each other, and whether it came from the cache.
        """
        key, start = None, time.perf_counter()
        if self.cache is not None:
            key = image_key(self._recipes[pose], sample.contents(self.snapshot.digest))
            if found := self.cache.store.get(key, _is_prepared):
                regions = Regions(*found["regions"].tolist())
                kept = found.get("inside")
                inside = None if kept is None else kept.numpy()
                pixels, mask = found["pixels"].numpy(), found["mask"].numpy()
                return pixels, mask, inside, regions, (took(found), True)
        pixels, mask, region = read()
        regions = self.image.follow(mask)
        inside = None if region is None else self._inside(sample, region, mask.shape)
        seed = int(np.random.SeedSequence((self.seed, epoch, index)).generate_state(1)[0])
        pixels, mask = self.prepare[pose](pixels, mask, seed)
        seconds = (time.perf_counter() - start) / beside
        if self.cache is not None and key is not None:
            tensors = {
                "pixels": torch.from_numpy(pixels),
                "mask": torch.from_numpy(mask),
                "regions": torch.from_numpy(regions.counts()),
                **timed(seconds),
            }
            if inside is not None:
                tensors["inside"] = torch.from_numpy(inside)
            self.cache.store.put(key, tensors)
        return pixels, mask, inside, regions, (seconds, False)

    def _read(self, sample: Sample, index: int) -> Decoded:
        """Pixels (H, W, 3), mask and region (H, W) of an image's files, once they are checked."""
        image = self.image
        pixels, mask, region = self.snapshot.read(
            self._files[index],
            lambda: (
                *read_pair(sample.path, sample.mask, image.bits, image.limit),
                None if sample.region is None else read_truth(sample.region, image.limit),
            ),
        )
        if sample.label == 0 and mask.any():
            raise InputError(
                f"{sample.mask}: marks a defect, but its image {sample.path} counts as nominal; "
                "move the image to the anomalous images, or remove the mask"
            )
        image.check_size(mask.shape, sample.path, self.augmented or len(self.poses) > 1)
        return pixels, mask, region

    def _inside(self, sample: Sample, region: Mask, size: tuple[int, ...]) -> Mask:
        """Pixels that count, as the network sees them, by the region of an image of `size`."""
        if region.shape != size:
            raise InputError(
                f"{sample.region}: the region is {region.shape[1]}×{region.shape[0]} pixels, the "
                f"image {sample.path} is {size[1]}×{size[0]}; they must be of one size"
            )
        inside = self.image.seen(region)
        if not inside.any():
            raise InputError(
                f"{sample.region}: marks nothing in the visible part of {sample.path}; mark the "
                "part that counts in white, or set another image.view"
            )
        return inside

    def _input_digest(self, sample: Sample, pose: Pose) -> str:
        return input_digest(self._recipes[pose], self.image, self.snapshot.digest(sample.path))


def _is_prepared(entry: dict[str, torch.Tensor]) -> bool:
    """Whether a cache entry holds pixels (H', W', 3), their mask (H', W') and its regions."""
    pixels, mask = entry["pixels"], entry["mask"]
    return (
        (pixels.dtype, mask.dtype) == (torch.uint8, torch.bool)
        and pixels.ndim == 3
        and tuple(pixels.shape) == (*mask.shape, 3)
        and ("inside" not in entry or entry["inside"].shape == mask.shape)
        and entry["regions"].shape == (6,)
    )


class EpochSampler(Sampler[int]):
    """Indices in order, numbered on from epoch to epoch, so that augmentation differs."""

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


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack items to a batch.

    Returns:
        `image` (B, 3, H, W) float32, channels last in memory, `label` (B,) int64, `mask` (B, H, W)
        bool, `has_mask` (B,) bool, `regions` (B, 6) int64, `index` (B,) int64, `seconds`, two
        sums. With regions that
        count also `inside` (B, H, W) bool. With a cache also
        `key`, a list of B digests, `cached`, whether any image or map came from it, and once they
        are there `maps` [(B, h, w, C), …] float32 or bfloat16 in place of `image`.

    Raises:
        InputError: the images differ in size.
    """
    sizes = sorted({tuple(item["mask"].shape) for item in items})
    if len(sizes) > 1:
        (height, width), (other_height, other_width) = sizes[:2]
        raise InputError(
            f"data.batch_size: images of {width}×{height} and {other_width}×{other_height} pixels "
            "cannot share a batch; set data.batch_size=1, or image.view=square"
        )
    batch: dict[str, Any] = {
        "label": torch.tensor([item["label"] for item in items]),
        "mask": _stacked([item["mask"] for item in items]),
        "has_mask": torch.tensor([item["has_mask"] for item in items]),
        "regions": torch.stack([item["regions"] for item in items]),
        "index": torch.tensor([item["index"] for item in items]),
        "seconds": [sum(each) for each in zip(*(item["seconds"] for item in items), strict=True)],
    }
    if "inside" in items[0]:
        batch["inside"] = torch.stack([item["inside"] for item in items])
    if "cached" in items[0]:
        batch["cached"] = any(item["cached"] for item in items)
    if "key" in items[0]:
        batch["key"] = [item["key"] for item in items]
    if "maps" in items[0]:
        layers = zip(*(item["maps"] for item in items), strict=True)
        return {"maps": [torch.stack(layer) for layer in layers], **batch}
    # Channels last in memory, as pixels come and networks run fastest: nothing is reordered.
    images = _stacked([item["image"].permute(1, 2, 0) for item in items])  # (B, H, W, 3)
    return {"image": images.permute(0, 3, 1, 2), **batch}


def _stacked(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Tensors as one; a single one is not copied, for it may be large."""
    return torch.stack(tensors) if len(tensors) > 1 else tensors[0][None]


class Loader(DataLoader[dict[str, Any]]):
    """Batches of a data set; a worker's InputError is handed on as its one line alone.

    Args:
        ahead: Whether a thread makes the next batch while the last one is worked on. It is the
            only one that asks for batches, and in order, so that they are the same as without it.
    """

    def __init__(self, *args: Any, ahead: bool = False, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.ahead = ahead

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        try:
            batches = super().__iter__()
            yield from one_ahead(batches) if self.ahead else batches
        except InputError as error:
            last_line = str(error).strip().splitlines()[-1]
            kind = type(error)
            raise kind(last_line.split(f"{kind.__name__}: ", 1)[-1]) from None


_END: Any = object()


def one_ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """Yield the same batches, each made while the one before it is worked on."""
    with ThreadPoolExecutor(1, "loader") as reader:
        coming = reader.submit(next, batches, _END)
        while (batch := coming.result()) is not _END:
            coming = reader.submit(next, batches, _END)
            yield batch
