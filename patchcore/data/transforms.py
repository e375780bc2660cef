"""Transforms from a decoded image and its mask to the network's input, the same for both."""

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import MISSING
from PIL import Image

from patchcore._record import InputRecord
from patchcore.data.augment import AugmentConfig, build_augmentation
from patchcore.data.images import LIMIT, rgb_pixels
from patchcore.data.poses import UPRIGHT, Pose
from patchcore.data.regions import Mask, Regions, follow_regions, resize_regions
from patchcore.data.view import SIZE, View
from patchcore.errors import InputError
from patchcore.settings import Settings, setting

LARGEST = 1 << 26  # most pixels of a network's input: 8192×8192
Pixels = NDArray[np.uint8]
Channels = NDArray[np.float32]
Transform = Callable[[Pixels, Mask, int], tuple[torch.Tensor, torch.Tensor]]
Preparation = Callable[[Pixels | Image.Image, Mask, int], tuple[Pixels, Mask]]
Normalisation = Callable[[Pixels], torch.Tensor]
_EXACT = ("resize", "stretch", "crop")
FILLED = ("size", "view", *_EXACT, "mean", "std")
"""Settings of an image that are filled in where they are null or left out."""


@dataclass
class ImageConfig(Settings):
    """Size and normalisation of the network's input.

    `resize`, `stretch` and `crop` follow from `size` and `view` unless they are given. After
    construction, all five agree: `size` and `view` are None if they cannot express the other three.
    `given` has the settings without what was filled in. For `dataclasses.replace`, all are given.
    """

    GROUP: ClassVar[str] = "image"

    size: int | None = setting(
        None,
        "size of the network's input; null: the data set's own, which is 224 for most data sets",
        unit="px",
        low=1,
        kw_only=True,
    )
    view: View | None = setting(
        None,
        "part of the image that the network sees: crop (the centre, as in the paper), whole, or "
        "square (the whole image, stretched); null: the data set's own",
        kw_only=True,
    )
    tiles: int | None = setting(
        None,
        "side of the tiles that pass through the network one by one; their maps are stitched. "
        "Images keep their own size unless size or view is given. null: no tiles",
        unit="px",
        low=1,
        kw_only=True,
    )
    overlap: int | None = setting(
        None,
        "number of pixels that neighbouring tiles share; null: enough that no seams appear, or a "
        "quarter of a tile if the network sees all of a tile at once",
        unit="px",
        low=0,
        effect=lambda image: image["tiles"] is not None,
        idle="without image.tiles",
        kw_only=True,
    )
    resize: int | None = setting(
        MISSING, "length of the shorter side; null: the size on disk", unit="px", low=1
    )
    stretch: bool = setting(
        MISSING,
        "stretch both sides to the length that resize says",
        effect=lambda image: image["resize"] is not None,
        idle="without image.resize",
    )
    crop: int | None = setting(
        MISSING, "side of the centre square that is kept; null: the whole image", unit="px", low=1
    )
    bits: int | None = setting(
        None,
        "bit depth of images with more than 8 bits, such as 12; null: as the file says, or else 16",
        unit="bits",
        low=1,
        high=32,
    )
    limit: float = setting(
        LIMIT,
        "image size above which a file is refused without decoding it",
        unit="megapixels",
        above=0,
        effect=False,
    )
    # Null means the values of the backbone's weights in a run, and ImageNet's in this class, which
    # knows no network. `BackboneConfig(…).input()` has `mean` and `std` of other weights.
    mean: list[float] | None = setting(
        None,
        "mean of R, G and B, from 0 to 1; null: the mean of the backbone's weights",
    )
    std: list[float] | None = setting(
        None,
        "standard deviation of R, G and B, from 0 to 1; null: that of the backbone's weights",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        asked = {key: getattr(self, key) for key in FILLED}
        size = SIZE if self.size is None else self.size
        usual = geometry(size, self.view or View.crop)
        if self.tiles is not None and self.size is None and self.view is None:
            usual = {"resize": None, "stretch": False, "crop": None}
        for key, value in usual.items():
            if getattr(self, key) == MISSING:
                setattr(self, key, value)
        self.mean = list(InputRecord.mean) if self.mean is None else self.mean
        self.std = list(InputRecord.std) if self.std is None else self.std
        if self.resize is not None and self.crop is not None and self.crop > self.resize:
            raise InputError(
                f"image.crop must be at most image.resize ({self.resize}), got {self.crop}"
            )
        if self.overlap is not None and self.tiles is None:
            raise InputError(
                f"image.overlap={self.overlap} has no effect without image.tiles: set both, or "
                "leave it out"
            )
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3:
                raise InputError(f"image.{key} must hold 3 values (R, G, B), got {len(values)}")
            if not all(0 <= value <= 1 for value in values):  # nor NaN
                raise InputError(
                    f"image.{key} must be from 0 to 1, got {list(values)}: divide values of 0–255 "
                    "by 255"
                )
        if min(self.std) < 1e-6:
            raise InputError(f"image.std must be at least 1e-6, got {list(self.std)}")
        self.size, self.view = self._named()
        left = {key: MISSING if key in _EXACT else None for key in FILLED}
        self._filled = {
            key: (none, copy(getattr(self, key)))
            for key, none in left.items()
            if asked[key] == none
        }

    def given(self) -> dict[str, Any]:
        """Return the settings as they were given: null or left out where they were filled in."""
        values = {option.name: getattr(self, option.name) for option in fields(self)}
        for key, (none, used) in self._filled.items():
            if values[key] == used:  # else it was set later
                values[key] = none
        return {key: value for key, value in values.items() if value != MISSING}

    def _named(self) -> tuple[int, View] | tuple[None, None]:
        """Size and view that express `resize`, `stretch` and `crop`; None if none do."""
        exact = {"resize": self.resize, "stretch": self.stretch, "crop": self.crop}
        for view in View:
            size = self.crop if view is View.crop else self.resize
            if size is not None and geometry(size, view) == exact:
                return size, view
        return None, None

    def check_size(self, shape: tuple[int, ...], path: Path, augmented: bool) -> None:
        """Raise InputError if an image is too small for the crop, or too large for the network.

        Args:
            shape: Size (H, W) of the image on disk, px.
            path: File of the image, for the message.
            augmented: Whether it is augmented, for which the whole image must be resized.
        """
        height, width = shape
        crop = self.crop
        if self.resize is None and crop is not None and min(height, width) < crop:
            raise InputError(
                f"image.crop: {crop} is more than the {width}×{height} pixels of {path}; lower it "
                "or set image.resize"
            )
        rows, columns = self.resized(height, width)
        seen = rows * columns if crop is None else crop * crop
        if self.tiles is not None and (rows, columns) == (height, width):
            return
        if seen > LARGEST or (augmented and rows * columns > LARGEST):
            raise InputError(
                f"image.resize: {self.resize} makes {columns}×{rows} pixels of the "
                f"{width}×{height} of {path}, more than the {LARGEST:,} that a network is given; "
                "set image.view=square"
            )

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width after resizing, px."""
        if self.resize is None:
            return height, width
        if self.stretch:
            return self.resize, self.resize
        shorter = min(height, width)
        return height * self.resize // shorter, width * self.resize // shorter

    def kept(self, height: int, width: int) -> tuple[slice, slice]:
        """Return rows and columns that the crop keeps of a resized image of this size, px.

        Raises:
            ValueError: the crop is larger than the image.
        """
        if self.crop is None:
            return slice(0, height), slice(0, width)
        if self.crop > min(height, width):
            raise ValueError(f"a crop of {self.crop} does not fit into {width}×{height} pixels")
        top, left = (height - self.crop) // 2, (width - self.crop) // 2
        return slice(top, top + self.crop), slice(left, left + self.crop)

    def seen(self, region: Mask) -> Mask:
        """Return a region (H, W) at the size and view of the network's input, by nearest pixels."""
        resized = self.resized(*region.shape)
        kept = self.kept(*resized)
        rows, columns = (
            (2 * np.arange(part.start, part.stop) + 1) * length // (2 * whole)  # pixels' centres
            for part, length, whole in zip(kept, region.shape, resized, strict=True)
        )
        return region[np.ix_(rows, columns)]

    def follow(self, mask: Mask) -> Regions:
        """Count what becomes of the regions of a mask (H, W), without augmentation."""
        height, width = self.resized(*mask.shape)
        rows, columns = self.kept(height, width)
        if height * width <= LARGEST:
            return follow_regions(mask, (height, width), (rows, columns))
        y, x = mask.shape[0] / height, mask.shape[1] / width  # file pixels per resized pixel
        rows = slice(int(rows.start * y), math.ceil(rows.stop * y))
        columns = slice(int(columns.start * x), math.ceil(columns.stop * x))
        return follow_regions(mask, mask.shape, (rows, columns))

    def same_view(self, other: "ImageConfig") -> bool:
        """Whether both show the same part of every image, up to 1 % of its side."""
        whole = [x.crop is None or (x.stretch and x.crop == x.resize) for x in (self, other)]
        if any(whole):
            return all(whole)
        if self.resize is None or other.resize is None:
            return self.resize is other.resize and self.crop == other.crop
        shares = [(x.crop or 0) / (x.resize or 1) for x in (self, other)]
        return self.stretch == other.stretch and abs(shares[0] - shares[1]) <= 0.01


def geometry(size: int, view: View) -> dict[str, Any]:
    """Return `resize`, `stretch` and `crop` of a view at a size in pixels.

    >>> geometry(224, View.crop)
    {'resize': 256, 'stretch': False, 'crop': 224}
    """
    if view is View.crop:
        return {"resize": round(size * 8 / 7), "stretch": False, "crop": size}
    return {"resize": size, "stretch": view is View.square, "crop": None}


def build_preparation(
    image: ImageConfig, augment: AugmentConfig | None = None, pose: Pose = UPRIGHT
) -> Preparation:
    """Return the function from decoded pixels to the network's size: resize, augment, pose, crop.

    Images are resized with antialiasing (Pillow's bilinear filter, as in the paper's
    implementation), masks by `resize_regions`, which keeps small regions. If the resized image
    would have more than `LARGEST` pixels, only the part that the crop keeps is resized.

    Returns:
        A function of image (H, W, 3) uint8, mask (H, W) bool and a seed for the augmentation. It
        returns image (H', W', 3) uint8 and mask (H', W') bool, and raises ValueError if the image
        is smaller than the crop or would have more than `LARGEST` pixels. The image may also be
        Pillow's, of mode RGB or L, which saves the conversion of all its pixels. Threads may share
        the function if nothing is augmented.
    """
    return partial(_prepare, image, None if augment is None else build_augmentation(augment), pose)


def build_normalisation(image: ImageConfig) -> Normalisation:
    """Return the map from pixels (H, W, 3) uint8 to the network's input (3, H, W) float32."""
    return partial(_normalise, *offset_and_scale(image))


def offset_and_scale(image: ImageConfig) -> tuple[Channels, Channels]:
    """Return offset and scale, (3,) float32 each: the input is (pixels − offset) · scale."""
    offset = np.float32(255) * np.array(image.mean, np.float32)
    return offset, np.reciprocal(np.float32(255) * np.array(image.std, np.float32))


def build_transform(image: ImageConfig, augment: AugmentConfig | None = None) -> Transform:
    """Return the composition of `build_preparation` and `build_normalisation`.

    Returns:
        A function of image (H, W, 3) uint8, mask (H, W) bool and a seed for the augmentation. It
        returns image (3, H', W') float32 and mask (H', W') bool, and raises ValueError if the image
        is smaller than the crop or too large.
    """
    prepare, normalise = build_preparation(image, augment), build_normalisation(image)

    def transform(
        pixels: NDArray[np.uint8], mask: NDArray[np.bool_], seed: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        pixels, mask = prepare(pixels, mask, seed)
        return normalise(pixels), torch.from_numpy(mask)

    return transform


def _prepare(
    config: ImageConfig,
    augment: Any,
    pose: Pose,
    given: Pixels | Image.Image,
    mask: Mask,
    seed: int,
) -> tuple[Pixels, Mask]:
    size = config.resized(*mask.shape)
    as_it_is = config.tiles is not None and size == mask.shape
    if size[0] * size[1] > LARGEST and not as_it_is:
        changed = augment is not None or pose != UPRIGHT
        return _prepare_part(config, changed, given, mask, size)
    if size != mask.shape:
        image = _resized(given, (size[1], size[0]))
        mask = resize_regions(mask, size)[0] > 0
    else:
        image = rgb_pixels(given) if isinstance(given, Image.Image) else given
    if augment is not None:
        augment.set_random_seed(seed)
        found = augment(image=np.ascontiguousarray(image), mask=mask.astype(np.uint8))
        image, mask = found["image"], found["mask"].astype(bool)
    if pose != UPRIGHT:
        image, mask = pose.apply(image, mask)
    kept = config.kept(*image.shape[:2])
    image, mask = image[kept], mask[kept]
    return np.ascontiguousarray(image), np.ascontiguousarray(mask)  # (H', W', 3), (H', W')


def _normalise(offset: Channels, scale: Channels, pixels: Pixels) -> torch.Tensor:
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, width * 3)  # NumPy is slow along an axis of 3
    values = rows - np.tile(offset, width)
    values *= np.tile(scale, width)
    return torch.from_numpy(values.reshape(height, width, 3)).permute(2, 0, 1)  # (3, H, W)


def _prepare_part(
    config: ImageConfig,
    changed: bool,
    image: Pixels | Image.Image,
    mask: Mask,
    size: tuple[int, int],
) -> tuple[Pixels, Mask]:
    """Resize only the crop of an image that would have more than `LARGEST` pixels as a whole."""
    rows, columns = config.kept(*size)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    if height * width > LARGEST or changed:
        raise ValueError(f"{size[1]}×{size[0]} pixels are too many for a network")
    y, x = mask.shape[0] / size[0], mask.shape[1] / size[1]  # file pixels per resized pixel
    box = (columns.start * x, rows.start * y, columns.stop * x, rows.stop * y)
    marked = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST, box)
    return _resized(image, (width, height), box), np.array(marked.convert("L")) > 0


def _resized(
    image: Pixels | Image.Image,
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
) -> Pixels:
    """Resize an image, or a box of it, to `size` (W', H'); return pixels (H', W', 3).

    Pillow's images are resized as they are. Threads could not run at the same time while all pixels
    of a large image are converted.
    """
    if not isinstance(image, Image.Image):
        grey = image.strides[-1] == 0  # three views of one plane
        image = Image.fromarray(image[..., 0] if grey else image)
    resized = image.resize(size, Image.Resampling.BILINEAR, box)
    return np.array(resized if resized.mode == "RGB" else resized.convert("RGB"))
