"""The plan of a run in one line, from its first batches and before most of its work."""

import math
from dataclasses import dataclass


@dataclass
class Plan:
    """Work that a run has before it, and the pace at which its first batches went.

    Attributes:
        training: Images to extract patch features from, each pose and epoch counted.
        test: Test images.
        decoded: Images decoded in a second, by all threads or processes that decode; NaN where
            they come from the cache.
        extracted: Images that the network takes in a second.
        readers: Threads or processes that decode.
        beside: Whether images are decoded while the network works on others.
        features: Bytes of the patch features that are gathered; 0 if that is not known.
        free: Bytes of memory that were free when they were given theirs, on their device; 0 if
            that is not known.
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
        """Seconds that the extraction will take."""
        decode = 0.0 if math.isnan(self.decoded) else self.training / self.decoded
        extract = self.training / self.extracted
        return max(decode, extract) if self.beside else decode + extract

    def __str__(self) -> str:
        kept = math.isnan(self.decoded)
        decoding = "images from the cache" if kept else f"{self.decoded:.3g} images/s decoded"
        memory = f", {_size(self.features)} of patch features" if self.features else ""
        free = f" ({_size(self.free)} free)" if memory and self.free else ""
        return (
            f"plan: {self.training:,} training and {self.test:,} test images, {decoding} "
            f"({self.readers}), {self.extracted:.3g} through the network: extraction about "
            f"{max(1, round(self.seconds)):,} s{memory}{free}"
        )


def _size(count: int) -> str:
    """Return bytes as `1.2 GB` or `31 MB`, of 10^9 and 10^6."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6))} MB"
