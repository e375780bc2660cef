"""Layer maps and coreset orders in the cache, by the images that they were computed from."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchcore import identity
from patchcore.cache import Precision, Store
from patchcore.identity import maps_key, order_key

SECONDS = "seconds"  # name of the tensor with the time that computing the content took, in seconds


def network_digest(model: Any, precision: str, device: torch.device) -> str:
    """Return a digest of all that a detector's layer maps depend on besides the images."""
    backbone = model.backbone
    return identity.network_digest(backbone.network, backbone.layers, precision, device)


@dataclass
class _Times:
    """Least seconds that a process has taken for the maps of one image of a network."""

    computing: float = math.inf
    keeping: float | None = None  # reading and half of writing, as few runs may read the maps

    def worth(self, computing: float) -> bool:
        """Whether to keep maps that took so long to compute; yes if any time is unknown."""
        if math.isnan(computing):
            return True
        self.computing = min(self.computing, computing)
        return self.keeping is None or self.computing > self.keeping


_TIMES: dict[tuple[Path, str], _Times] = {}
"""Times of this process, by the folder of the store and the digest of the network."""


class MapCache:
    """Cache of the layer maps of one network, with an entry for each image.

    Args:
        store: Store of the entries.
        network: Digest of all that maps depend on besides the images; see `network_digest`.
        precision: Number format in the store. `put` returns rounded maps, so that the run that
            computes the maps gets the same values as later runs.
        channels: Number of channels of each layer, if known; entries with others are deleted.
        selective: Whether maps are left out that are not worth their space: computing them takes
            less time than reading them and half of writing them. The least times count that a
            process has seen, so the first maps of a network are stored, and timed.
    """

    def __init__(
        self,
        store: Store,
        network: str,
        precision: Precision = Precision.float32,
        channels: Sequence[int] = (),
        selective: bool = False,
    ) -> None:
        self.store = store
        self._times = _TIMES.setdefault((store.root, network), _Times()) if selective else None
        self.network = network
        self.precision = precision
        self.channels = list(channels)

    def key(self, image: str, batch: int) -> str:
        """Return the key of an image's maps, from its digest and the size of its batch."""
        return maps_key(self.network, self.precision, image, batch)

    def get(self, images: Sequence[str]) -> list[list[Tensor]] | None:
        """Return the maps [(h, w, C), …] of each image of a batch, or None if any is missing.

        Args:
            images: Digests of the network's inputs, in the order of the batch.
        """
        found = self.get_timed(images)
        return None if found is None else [maps for maps, _ in found]

    def get_timed(self, images: Sequence[str]) -> list[tuple[list[Tensor], float]] | None:
        """Return the same as `get`, with the seconds that computing each image's maps took.

        Seconds are NaN where they are unknown.
        """
        found: list[tuple[list[Tensor], float]] = []
        for image in images:
            entry = self.store.get(
                self.key(image, len(images)),
                lambda entry: self._fit(entry, found[0][0] if found else None),
            )
            if entry is None:
                return None
            seconds = took(entry)
            maps = [self._restored(entry[name]) for name in sorted(entry, key=int)]
            found.append((maps, seconds))
        return found

    def _fit(self, entry: dict[str, Tensor], first: list[Tensor] | None) -> bool:
        """Whether an entry holds maps of these layers, in the same sizes as the first image's."""
        maps = [entry[str(layer)] for layer in range(len(entry) - (SECONDS in entry))]
        shapes = [tuple(x.shape) for x in maps]
        return (
            all(x.ndim == 3 and x.is_floating_point() and x.numel() > 0 for x in maps)
            and (not self.channels or [shape[-1] for shape in shapes] == self.channels)
            and (first is None or shapes == [tuple(x.shape) for x in first])
        )

    def put(
        self, images: Sequence[str], maps: Sequence[Tensor], seconds: float = math.nan
    ) -> list[Tensor]:
        """Store the layer maps [(B, C, h, w), …] of a batch; return them as later runs get them.

        With `selective`, maps that are not worth their space are not stored.

        Args:
            images: Digests of the network's inputs.
            maps: Layer maps of the batch.
            seconds: Time that computing all these maps took; NaN: unknown.
        """
        maps = [self._rounded(x) for x in maps]
        each = seconds / len(images)
        if self._times is None or self._times.worth(each):
            self._store(images, maps, each)
        return [self._restored(x) for x in maps]

    def _store(self, images: Sequence[str], maps: Sequence[Tensor], seconds: float) -> None:
        channels_last = [x.permute(0, 2, 3, 1).contiguous().cpu() for x in maps]  # (B, h, w, C)
        for i, image in enumerate(images):
            entry = {str(layer): x[i] for layer, x in enumerate(channels_last)}
            key, start = self.key(image, len(images)), time.perf_counter()
            self.store.put(key, entry | timed(seconds))
            if self._times is not None and i == 0:
                written = time.perf_counter()
                self.store.get(key)
                taken = time.perf_counter() - written + (written - start) / 2
                self._times.keeping = min(taken, self._times.keeping or math.inf)

    def _rounded(self, x: Tensor) -> Tensor:
        return x.to(torch.bfloat16) if self.precision is Precision.bfloat16 else x

    def _restored(self, x: Tensor) -> Tensor:
        return x.float() if self.precision is Precision.bfloat16 else x


def timed(seconds: float) -> dict[str, Tensor]:
    """Return the part of an entry that records how long computing the content took."""
    return {SECONDS: torch.tensor(seconds, dtype=torch.float64)}


def took(entry: dict[str, Tensor]) -> float:
    """Remove the seconds of `timed` from an entry, and return them; NaN if there are none."""
    seconds = entry.pop(SECONDS, None)
    return math.nan if seconds is None or seconds.numel() != 1 else float(seconds)


@dataclass
class KeptOrders:
    """Cache of the coreset orders of given training images; see `patchcore.methods.detector.Kept`.

    Attributes:
        store: Store of the orders.
        maps: Keys of the images' layer maps, in their order.
    """

    store: Store
    maps: list[str]

    def get(
        self, patch: Any, sampler: Any, valid: Callable[[dict[str, Tensor]], bool]
    ) -> dict[str, Tensor] | None:
        """See `Kept.get`."""
        return self.store.get(order_key(self.maps, patch, sampler), valid)

    def put(self, patch: Any, sampler: Any, entry: dict[str, Tensor]) -> None:
        """See `Kept.put`."""
        self.store.put(order_key(self.maps, patch, sampler), entry)
