"""Samples as a torch data set, and batches of them."""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cache as remembered
from itertools import chain
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from patchcore.data.augment import AugmentConfig
from patchcore.data.images import decode_pair, read_truth
from patchcore.data.poses import UPRIGHT, Pose
from patchcore.data.regions import Mask, Regions
from patchcore.data.sample import Sample
from patchcore.data.transforms import (
    ImageConfig,
    Pixels,
    build_normalisation,
    build_preparation,
)
from patchcore.digests import Snapshot
from patchcore.errors import InputError
from patchcore.identity import image_key, image_recipe, input_digest
from patchcore.map_cache import MapCache, timed, took

SWITCH = 5e-4
"""Seconds after which a thread returns Python's lock to others while batches are made ahead."""
_intervals: list[float] = []
"""Seconds that were set before each call of `made_ahead` that has not ended."""

Decoded = tuple[Image.Image, Mask, Mask | None]
"""Decoded files of a sample: its image, mask (H, W), and region that counts (H, W) or None."""


def pixels_alone(image: ImageConfig) -> ImageConfig:
    """Return the same settings with a normalisation that leaves pixel values 0–255 unchanged."""
    return replace(image, mean=[0.0] * 3, std=[1 / 255] * 3)


class ImageDataset(Dataset[dict[str, Any]]):
    """Images of samples, decoded and transformed, as dicts.

    An item holds

    - `image` (3, H, W) float32, normalised; uint8 with `image.tiles`, where each tile is normalised
      on its own,
    - `label`, 0 nominal or 1 anomalous,
    - `mask` (H, W) bool, True where anomalous,
    - `has_mask`, False where the anomalous pixels are unknown: the `mask` of an anomalous image
      marks nothing,
    - `regions` (6,) int64, the counts of `patchcore.data.regions.Regions`,
    - `index` into `samples`,
    - `seconds`, a list of two times: decoding the files, and making the rest of the item; NaN where
      the cache does not tell,
    - `inside` (H, W) bool, True for pixels that count, if the sample has a region,
    - `cached`, with a cache: whether the item was read from it.

    There are len(samples) items; negative numbers count from the end. In batches, an item stands
    for all fixed poses of its image, one after another, from one decoded file. Also in batches,
    item i + n · len(samples) is sample i augmented as in epoch n.

    Args:
        samples: Images with labels and masks.
        image: Size, view and normalisation.
        augment: Augmentation; None: none.
        cache: Cache of decoded images and layer maps; unused with random augmentation. Items of a
            batch without tiles then have a `key`, the digest of the network's input. If the cache
            has the layer maps of the whole batch, items hold `maps` [(h, w, C), …] instead of
            `image`.
        snapshot: Digests of the files when the run began; a file must not have changed since.

    Attributes:
        batches: Number of batches that are made at the same time, and so share the threads.

    Raises:
        InputError: the samples have regions, and the augmentation moves pixels.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        image: ImageConfig,
        augment: AugmentConfig | None = None,
        cache: MapCache | None = None,
        snapshot: Snapshot | None = None,
    ) -> None:
        self.batches = 1
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
        """Return an item in its original pose.

        Raises:
            IndexError: the number is out of range, which also ends loops over the data set.
            InputError: a file is unreadable, or mask, crop or resizing do not fit its image.
        """
        if not -len(self) <= item < len(self):
            raise IndexError(f"item {item} of {len(self)}")
        return self._posed(item % len(self), [UPRIGHT], normalise=True)[0]

    def __getitems__(self, items: list[int]) -> list[dict[str, Any]]:
        """Return the items of one batch, made in parallel; called by PyTorch's loader."""
        if self.cache is None or self.image.tiles is not None:  # layer maps of tiles are not cached
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
        """Load items on PyTorch's number of threads; on one thread with random augmentation.

        Albumentations has a state that threads cannot share.
        """
        threads = 1 if self.augmented else torch.get_num_threads()
        # In parallel, so each item gets a share of the time.
        beside = min(threads, len(items) * self.batches)
        pool = _makers(threads)
        each = pool.map(lambda item: self._posed(item, self.poses, normalise, beside), items)
        return list(chain.from_iterable(each))

    def _posed(
        self, item: int, poses: Sequence[Pose], normalise: bool, beside: int = 1
    ) -> list[dict[str, Any]]:
        """Return one image in several poses; its file is decoded at most once."""
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
        self.snapshot.note(sample.path, pixels)
        marks = bool(mask.any())
        described: dict[str, Any] = {
            "label": sample.label,
            "mask": torch.from_numpy(mask),  # (H', W')
            "has_mask": sample.label == 0 or marks,
            "regions": torch.from_numpy((regions if marks else regions.hidden()).counts()),
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
        """Return pixels (H', W', 3), mask (H', W') and pixels that count, at the network's size.

        The regions of the mask follow, then the seconds (divided by `beside`, the number of items
        made in parallel) and whether all this came from the cache.
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
        decoded, mask, region = read()
        regions = self.image.follow(mask)
        inside = None if region is None else self._inside(sample, region, mask.shape)
        seed = int(np.random.SeedSequence((self.seed, epoch, index)).generate_state(1)[0])
        pixels, mask = self.prepare[pose](decoded, mask, seed)
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
        """Read and check an image's files: the image, mask and region (H, W)."""
        image = self.image
        decoded, mask, region = self.snapshot.read(
            self._files[index],
            lambda: (
                *decode_pair(sample.path, sample.mask, image.bits, image.limit),
                None if sample.region is None else read_truth(sample.region, image.limit),
            ),
        )
        if sample.label == 0 and mask.any():
            raise InputError(
                f"{sample.mask}: marks a defect, but its image {sample.path} counts as nominal; "
                "move the image to the anomalous images, or remove the mask"
            )
        image.check_size(mask.shape, sample.path, self.augmented or len(self.poses) > 1)
        return decoded, mask, region

    def _inside(self, sample: Sample, region: Mask, size: tuple[int, ...]) -> Mask:
        """Return the pixels that count at the network's size, for an image of `size` (H, W)."""
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


_POOLS: dict[tuple[int, int], ThreadPoolExecutor] = {}
"""Threads that make items, by process (a forked one has none of the first) and number."""


def _makers(threads: int) -> ThreadPoolExecutor:
    """Return the threads that all batches and data sets share: idle ones help the next batch."""
    # Callers at the same time all get the first pool; the other pools have started no thread.
    return _POOLS.setdefault((os.getpid(), threads), ThreadPoolExecutor(threads, "items"))


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
    """Indices in order; they continue from epoch to epoch, so that augmentation differs."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each of them."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * self.length
        return iter(range(start, start + self.length))

    def __len__(self) -> int:
        return self.length


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack items of `ImageDataset` into a batch.

    Returns:
        `image` (B, 3, H, W), float32 or, with tiles, uint8, channels last in memory; `label` (B,)
        int64; `mask` (B, H, W) bool; `has_mask` (B,) bool; `regions` (B, 6) int64; `index` (B,)
        int64; `seconds`, the two sums. `inside` (B, H, W) bool, if the items have it. With a cache,
        `cached`: whether any image or map came from it; `key`, a list of B digests; and, where the
        layer maps came from the cache, `maps` [(B, h, w, C), …] in the network's floating dtype
        instead of `image`.

    Raises:
        InputError: the images, or the poses of one, differ in size.
    """
    sizes = sorted({tuple(item["mask"].shape) for item in items})
    if len(sizes) > 1:
        (height, width), (other_height, other_width) = sizes[:2]
        posed = {(item["index"], tuple(item["mask"].shape)) for item in items}
        if len(posed) > len({index for index, _ in posed}):  # an image has several sizes
            raise InputError(
                f"augment.rotations: a quarter turn makes images of {height}×{width} pixels those "
                f"of {width}×{height}, which cannot share a batch; set image.view=square or "
                "image.view=crop, or augment.rotations=2"
            )
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
    # Channels last in memory: decoded pixels have this order, and networks run fastest with it.
    images = _stacked([item["image"].permute(1, 2, 0) for item in items])  # (B, H, W, 3)
    return {"image": images.permute(0, 3, 1, 2), **batch}


def _stacked(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Stack tensors; a single tensor, which may be large, is not copied."""
    return torch.stack(tensors) if len(tensors) > 1 else tensors[0][None]


class Loader(DataLoader[dict[str, Any]]):
    """Loader of a data set's batches; an InputError of a worker arrives without its traceback.

    Args:
        ahead: Number of batches that threads make while earlier ones are used; 0: none. Batches and
            their order are the same in each case.
    """

    def __init__(self, *args: Any, ahead: int = 0, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.ahead = ahead

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        plain = super().__iter__()  # draws a seed, which other random numbers follow
        try:
            if self.ahead:
                batches: Any = self.batch_sampler
                yield from made_ahead(self._batch, batches, self.ahead)
            else:
                yield from plain
        except InputError as error:
            if not self.num_workers:
                raise
            raise _of_worker(error) from None

    def _batch(self, numbers: list[int]) -> dict[str, Any]:
        """Make one batch as PyTorch's loader would without workers."""
        several = getattr(self.dataset, "__getitems__", None)
        items = several(numbers) if several else [self.dataset[number] for number in numbers]
        batch: dict[str, Any] = self.collate_fn(items)
        return pinned(batch) if self.pin_memory and torch.cuda.is_available() else batch


def pinned(value: Any) -> Any:
    """Return a batch, or a part of it, with its tensors in page-locked memory."""
    if isinstance(value, torch.Tensor):
        return value.pin_memory()
    if isinstance(value, dict):
        return {key: pinned(each) for key, each in value.items()}
    return [pinned(each) for each in value] if isinstance(value, list) else value


def _of_worker(error: InputError) -> InputError:
    """Return the error that a worker raised.

    PyTorch makes a new one of its type, whose only argument is the text of the worker's traceback.
    """
    last = str(error.args[0]).strip().splitlines()[-1]  # str(error) would be a single line
    return type(error)(last.split(f"{type(error).__name__}: ", 1)[-1])


def made_ahead(make: Callable[[Any], Any], given: Iterable[Any], number: int) -> Iterator[Any]:
    """Yield the results of `make` in the order of `given`; threads make the next ones meanwhile.

    Until the last one, threads that wait for Python's lock get it sooner than usual. Decoding takes
    and returns the lock often, and would wait for the thread that feeds the GPU each time.

    Args:
        make: Function of one of the given values.
        given: Values; each is taken when its turn to be made has come.
        number: Number of results that are made at the same time, at least 1.
    """
    with ThreadPoolExecutor(number, "loader") as makers:
        coming: deque[Future[Any]] = deque()
        _intervals.append(sys.getswitchinterval())
        try:
            sys.setswitchinterval(min(_intervals[-1], SWITCH))
            for value in given:
                coming.append(makers.submit(make, value))
                if len(coming) > number:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            sys.setswitchinterval(_intervals.pop())  # the last to end restores it
            for each in coming:
                each.cancel()
