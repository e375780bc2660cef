"""Parts that methods share: buffers of features, images of one size, layers on one grid."""

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from patchcore.errors import InputError
from patchcore.machine import available_memory
from patchcore.methods.counted import Counted, Described, parts, token_of
from patchcore.methods.thinning import Thinning
from patchcore.tiles import Streamed


class FeatureBuffer:
    """Patch features (N, D) gathered batch by batch in one allocation.

    Args:
        images: Expected number of images; the buffer grows if there are more, or larger ones.
        device: Where to keep the features; by default the device of the first batch, if it has
            room.
        thinning: Selection of the patches that are gathered of each image; None: all.

    Attributes:
        grids: h and w of the grid of each image that was gathered since the last `take`.
        places: (n,) grid positions of the gathered patches, for each of these images.
        tokens: (C,) class token of each of these images, if they have one.
        free: Bytes that were free on the device when memory was allocated for the features; 0
            before.
    """

    def __init__(
        self,
        images: int = 0,
        device: torch.device | None = None,
        thinning: Thinning | None = None,
    ) -> None:
        self._images = images
        self._thinning = thinning
        self._device = device
        self._features: Tensor | None = None
        self._filled = 0
        self.grids: list[tuple[int, int]] = []
        self.places: list[Tensor] = []
        self.tokens: list[Tensor] = []
        self._band: int | None = None  # rows so far of an image that comes in bands
        self.free = 0

    def check_foreground(self, threshold: float | None) -> None:
        """Warn if a foreground was asked for, and every patch of every image counts."""
        sizes = [height * width for height, width in self.grids]
        if threshold is not None and [len(each) for each in self.places] == sizes and sizes:
            warnings.warn(
                f"method.foreground={threshold:g}: every patch of every training image counts, as "
                "without it: choose another threshold",
                stacklevel=3,
            )

    def append(self, features: Tensor | Counted | Described | Streamed) -> None:
        """Add the patch features (B, h, w, D) of a batch, those that count."""
        if isinstance(features, Streamed):
            for image in features.each():
                for band, share in image.shares():
                    self.append_band(band, share)
            return
        x, counts = parts(features)
        if not len(x):
            return
        if counts is None:
            rows = x.flatten(0, 2)  # (B·h·w, D)
            places = [torch.arange(len(rows) // len(x))] * len(x)
        else:
            rows = x[counts]  # (N, D)
            places = [each.flatten().nonzero()[:, 0].cpu() for each in counts]
        if (thinning := self._thinning) is not None:
            each = rows.split([len(place) for place in places])
            kept = [thinning.chosen(own, thinning.patches) for own in each]
            places = [place[chosen] for place, chosen in zip(places, kept, strict=True)]
            rows = torch.cat([own[chosen] for own, chosen in zip(each, kept, strict=True)])
        expected = max(self._images, len(x)) * -(-len(rows) // len(x))
        if self._features is None and counts is None and len(x) > 1:  # all are of this size
            self._check_room(expected * rows.shape[1] * rows.element_size(), rows.device)
        self._add(rows, expected)
        self.grids += [(x.shape[1], x.shape[2])] * len(x)
        self.places += places
        token = token_of(features)
        self.tokens += [] if token is None else list(token)

    def append_band(self, features: Tensor, share: float) -> None:
        """Add further rows (1, h, w, D) of an image that comes from top to bottom.

        Args:
            features: Of all its patches there.
            share: Part of the image down to their end; 1 ends it.
        """
        _, height, width, _ = features.shape
        done = 0 if self._band is None else self._band
        rows = features.flatten(0, 2)
        place = torch.arange(len(rows)) + done * width
        if (thinning := self._thinning) is not None:
            before = 0 if self._band is None else len(self.places[-1])
            chosen = thinning.chosen(rows, thinning.before(share) - before)
            place, rows = place[chosen], rows[chosen]
        if self._band is None:
            self.grids.append((height, width))
            self.places.append(place)
        else:
            self.grids[-1] = (done + height, width)
            self.places[-1] = torch.cat((self.places[-1], place))
        whole = round((done + height) * width / share)
        whole = whole if thinning is None else min(whole, thinning.patches)
        self._add(rows, max(self._images, 1) * whole)
        self._band = None if share == 1 else done + height

    def _add(self, rows: Tensor, expected: int) -> None:
        """Add rows (N, D); the first ones say how many are `expected` in all."""
        if self._features is None:
            self._features = self._allocate(expected, rows)
        if self._filled + len(rows) > len(self._features):
            kept = self._features[: self._filled]
            self._features = self._allocate(2 * (self._filled + len(rows)), rows)
            self._features[: self._filled] = kept
        self._features[self._filled : self._filled + len(rows)] = rows
        self._filled += len(rows)

    @property
    def nbytes(self) -> int:
        """Bytes that the features take, those still to come included."""
        return 0 if self._features is None else self._features.nbytes

    @property
    def counts(self) -> list[int]:
        """Number of patches of each image that was gathered since the last `take`."""
        return [len(places) for places in self.places]

    def gathered(self) -> Tensor:
        """Return the features (N, D), which the buffer keeps. Raises InputError if none came."""
        if self._features is None:
            raise InputError("there are no nominal images to fit")
        return self._features[: self._filled]

    def take(self) -> Tensor:
        """The features (N, D); the buffer forgets them, so that they can be freed."""
        features = self.gathered()
        self._features, self._filled = None, 0
        self.grids, self.places, self.tokens = [], [], []
        return features

    def _allocate(self, rows: int, like: Tensor) -> Tensor:
        device = self._device or like.device
        if device.type == "cuda":
            needed = rows * like.shape[1] * like.element_size()
            self.free, _ = torch.cuda.mem_get_info(device)
            # The coreset needs a projection and some work space beside the features.
            device = device if 2 * needed < self.free else torch.device("cpu")
        if device.type == "cpu":
            self.free = available_memory() or 0
        with torch.inference_mode(False):  # an ordinary tensor, whoever calls
            return torch.empty(rows, like.shape[1], dtype=like.dtype, device=device)

    def _check_room(self, needed: int, device: torch.device) -> None:
        """Refuse features that do not fit into memory, since the system would kill the process."""
        free = available_memory()
        if device.type == "cuda":  # they stay there, or else come to the host
            free = free and max(free, torch.cuda.mem_get_info(device)[0] // 2)
        if free is not None and needed > free:
            most = max(1, self._images * free // needed)
            raise InputError(
                f"data.shots: the patch features of {self._images:,} images take "
                f"{needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: use at most {most:,} of "
                "them (each pose and epoch counts as one), or a lower image.size"
            )


class ImageBuffer:
    """Features (N, h, w, D) of images of one size, gathered in one allocation.

    Args:
        images: As in `FeatureBuffer`.
    """

    def __init__(self, images: int = 0) -> None:
        self._rows = FeatureBuffer(images)
        self._grid: tuple[int, int] | None = None
        self._counts: list[Tensor] = []

    def append(self, features: Tensor | Counted) -> None:
        """Add the features (B, h, w, D) of a batch. Raises InputError if its grid is another."""
        x, counts = parts(features)
        if counts is not None:
            self._counts.append(counts)
        height, width = x.shape[1:3]
        self._grid = self._grid or (height, width)
        check_grid((height, width), self._grid)
        self._rows.append(x)

    def take_counts(self) -> Tensor | None:
        """Positions (N, h, w) that count, None if all do; the buffer forgets them."""
        counts, self._counts = self._counts, []
        return torch.cat(counts) if counts else None

    def take(self) -> Tensor:
        """The features (N, h, w, D), which the buffer forgets. Raises InputError if none came."""
        rows, grid = self._rows.take(), self._grid
        assert grid is not None
        self._grid = None
        return rows.view(-1, *grid, rows.shape[1])  # (N·h·w, D) → (N, h, w, D)


def check_grid(grid: tuple[int, int], fitted: tuple[int, int]) -> None:
    """Raise InputError if images have another grid of patches than those before."""
    if grid != fitted:
        raise InputError(
            f"all images must have one size with this model: {grid[0]} × {grid[1]} patches came "
            f"after {fitted[0]} × {fitted[1]}; set image.crop, or image=px224_square"
        )


def interpolated(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """A layer's map (B, h', w', C) on a finer grid (h, w): (B, h, w, C), bilinear."""
    if x.shape[1:3] == grid:
        return x
    # Channels last, which on CPU is a hundred times faster than channels first.
    x = x.contiguous().permute(0, 3, 1, 2)  # (B, C, h', w')
    x = F.interpolate(x, size=grid, mode="bilinear", align_corners=False)
    return x.permute(0, 2, 3, 1)


def is_order(entry: dict[str, Tensor], patches: int) -> bool:
    """Whether a cache entry holds an order of some of so many patches."""
    names = ("indices", "radii", "remaining", "seconds")
    indices, radii, remaining, seconds = (entry[key] for key in names)
    return (
        len(entry) == len(names)
        and indices.dtype == torch.int64
        and indices.ndim == 1
        and 0 < len(indices) <= patches
        and 0 <= int(indices.min()) <= int(indices.max()) < patches
        and (radii.shape, remaining.shape) == (indices.shape, (patches,))
        and seconds.shape == indices.shape
        and radii.is_floating_point()
        and remaining.is_floating_point()
    )


def one_grid(grids: Sequence[tuple[int, int]], needed: bool) -> tuple[int, int]:
    """Return the one grid of images; (0, 0) if they have none or several.

    Raises InputError for several if one is needed.
    """
    one = grids[0] if grids else (0, 0)
    for grid in grids if needed else ():
        check_grid(grid, one)
    return one if set(grids) == {one} else (0, 0)
