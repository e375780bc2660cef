"""Plan of a run in one line, estimated from its first batches."""

import math
from dataclasses import dataclass

from patchcore.errors import counted


@dataclass
class Plan:
    """Amount of work of a run, and the speed of its first batches.

    Attributes:
        training: Number of images to extract patch features from, in all poses and epochs.
        test: Number of test images.
        decoded: Images decoded per second by all threads or processes; NaN if they come from the
            cache.
        extracted: Images per second through the network.
        readers: Description of the threads or processes that decode.
        beside: Whether images are decoded while the network processes others.
        features: Bytes of all patch features; 0 if not known.
        free: Bytes of free memory on the features' device, before their memory was allocated; 0 if
            not known.
    """

    training: int
    test: int
    decoded: float
    extracted: float
    readers: str
    beside: bool
    features: int = 0
    free: int = 0

    @property
    def seconds(self) -> float:
        """Estimated time of the extraction, seconds."""
        decode = 0.0 if math.isnan(self.decoded) else self.training / self.decoded
        extract = self.training / self.extracted
        return max(decode, extract) if self.beside else decode + extract

    def __str__(self) -> str:
        kept = math.isnan(self.decoded)
        decoding = "images from the cache" if kept else f"{self.decoded:.3g} images/s decoded"
        memory = f", {_size(self.features)} of patch features" if self.features else ""
        free = f" ({_size(self.free)} free)" if memory and self.free else ""
        return (
            f"plan: {self.training:,} training and {counted(self.test, 'test image')}, {decoding} "
            f"({self.readers}), {self.extracted:.3g} through the network: extraction about "
            f"{max(1, round(self.seconds)):,} s{memory}{free}"
        )


def _size(count: int) -> str:
    """Return a number of bytes as text, such as `1.2 GB` (10^9 bytes) or `31 MB` (10^6 bytes)."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6))} MB"
