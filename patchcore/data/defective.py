"""Nominal images with synthetic defects, as a torch data set."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from patchcore.data.dataset import ImageDataset, pixels_alone
from patchcore.data.defects import DEFECTS, draw_defect
from patchcore.data.sample import Sample
from patchcore.data.transforms import ImageConfig, build_normalisation
from patchcore.digests import Snapshot
from patchcore.identity import defective_digest, image_recipe, input_digest
from patchcore.map_cache import MapCache


class DefectiveImages(Dataset[dict[str, Any]]):
    """Copies of nominal images, each with one synthetic defect, drawn at the network's size.

    Items are as in `ImageDataset`; `label` is 1, `mask` marks the defect, and `index` points into
    `samples`. If the cache has the layer maps of a whole batch, nothing is drawn, and `mask` is a
    placeholder (1, 1).

    Args:
        numbers: Indices into `samples` of the images to use.
        defects: Number of copies of each image; the kinds of defects alternate from item to item.
        seed: Seed for drawing the defects.
        samples: Nominal images.
        image: Size and normalisation of the images.
        cache: Cache of decoded images and layer maps; None: no cache.
        snapshot: See `ImageDataset`.

    Attributes:
        batches: Number of batches that are made at the same time.
    """

    def __init__(
        self,
        numbers: Sequence[int],
        defects: int,
        seed: int,
        samples: Sequence[Sample],
        image: ImageConfig,
        cache: MapCache | None = None,
        snapshot: Snapshot | None = None,
    ) -> None:
        self.batches = 1
        self.numbers = [number for number in numbers for _ in range(defects)]
        self.seed = seed
        self.samples, self.image, self.cache = list(samples), image, cache
        self.snapshot = snapshot or Snapshot({}, {})
        self.normalise = build_normalisation(image)
        self._nominal = ImageDataset(samples, pixels_alone(image), None, cache, snapshot)
        self._recipe = [] if cache is None else image_recipe(image)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, item: int) -> dict[str, Any]:
        """Return an item; raises the errors of `ImageDataset`."""
        if not -len(self) <= item < len(self):
            raise IndexError(f"item {item} of {len(self)}")
        item %= len(self)
        described = self._nominal[self.numbers[item]]
        start = time.perf_counter()
        inside = described.get("inside")
        pixels = described["image"].round().byte().permute(1, 2, 0).numpy()  # (H, W, 3)
        rng = np.random.default_rng([self.seed, item])
        strength = float(rng.uniform())
        own = None if inside is None else inside.numpy()
        drawn, mask = draw_defect(rng, pixels, self.kind(item), strength, own)
        described |= {"image": self.normalise(drawn), "mask": torch.from_numpy(mask), "label": 1}
        described["has_mask"] = True
        decode, before = described["seconds"]
        spent = (decode, before + time.perf_counter() - start)
        described["seconds"] = [each / self.batches for each in spent]
        if self.cache is not None:
            described["seconds"][0] = 0.0  # training decodes the image anyway, and counts that time
        return described

    def __getitems__(self, items: list[int]) -> list[dict[str, Any]]:
        """Return the items of one batch; called by PyTorch's loader."""
        if self.cache is None:
            return [self[item] for item in items]
        keys = [self._key(item) for item in items]
        found = self.cache.get_timed(keys)
        if found is None:
            return [{**self[item], "key": key} for item, key in zip(items, keys, strict=True)]
        each = zip(items, keys, found, strict=True)
        return [self._kept(item, key, maps, seconds) for item, key, (maps, seconds) in each]

    def kind(self, item: int) -> str:
        """Return the kind of the item's defect, one of `DEFECTS`."""
        return DEFECTS[item % len(DEFECTS)]

    def _kept(
        self, item: int, key: str, maps: list[torch.Tensor], seconds: float
    ) -> dict[str, Any]:
        """Return an item whose layer maps are in the cache."""
        described: dict[str, Any] = {
            "label": 1,
            "mask": torch.zeros(1, 1, dtype=torch.bool),
            "has_mask": True,
            "regions": torch.zeros(6, dtype=torch.int64),
            "index": self.numbers[item],
            "seconds": [0.0, seconds],
            "cached": True,
            "key": key,
            "maps": maps,
        }
        if self.samples[self.numbers[item]].region is not None:
            described["inside"] = self._nominal[self.numbers[item]]["inside"]
        return described

    def _key(self, item: int) -> str:
        """Return the digest of the network's input."""
        image, _, *region = self.samples[self.numbers[item]].contents(self.snapshot.digest)
        own = input_digest(self._recipe, self.image, str(image))
        texts = [str(each) for each in region]
        return defective_digest(own, texts, [self.kind(item), self.seed, item])
