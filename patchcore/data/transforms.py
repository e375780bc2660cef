"""Transforms of a decoded image and its mask to network input, both moved in step."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import MISSING
from PIL import Image

from patchcore._record import InputRecord
from patchcore.data.images import LIMIT
from patchcore.data.regions import Regions, follow_regions, resize_regions
from patchcore.data.view import SIZE, View, geometry
from patchcore.errors import InputError
from patchcore.settings import setting

LARGEST = 1 << 26  # pixels of a network's input: 8192×8192
Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Channels = NDArray[np.float32]
Transform = Callable[[Pixels, Mask, int], tuple[torch.Tensor, torch.Tensor]]
Preparation = Callable[[Pixels, Mask, int], tuple[Pixels, Mask]]
Normalisation = Callable[[Pixels], torch.Tensor]


@dataclass
class ImageConfig:
    """Size and normalisation of the network's input.

    `size` and `view` say what `resize`, `stretch` and `crop` are where these are not given; where
    they are, they win. Once made, all five agree: size and view are null where no pair of them
    stands for the other three.
    """

    # px; null: the data set's, which is 224 for most of them
    size: int | None = field(default=None, kw_only=True)
    # part of an image that is seen: crop, whole or square; null: the data set's
    view: View | None = field(default=None, kw_only=True)
    resize: int | None = MISSING  # shorter side, pixels; null keeps the size on disk
    # both sides become `resize`, whatever the aspect ratio was
    stretch: bool = setting(MISSING, effect=lambda image: image["resize"] is not None)
    crop: int | None = MISSING  # side of the centre square, pixels; null keeps everything
    bits: int | None = None  # depth of pixels above 8 bits, as 12; null goes by the file, else 16
    # megapixels; larger files are refused, not decoded
    limit: float = setting(LIMIT, effect=False)
    # RGB, of 0–1. Null in the settings of a run: those of the backbone's weights. Here, where no
    # network is known, ImageNet's; others are `BackboneConfig(…).input().mean` and `.std`.
    mean: list[float] | None = None
    std: list[float] | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise InputError(f"image.size must be at least 1 pixel or null, got {self.size}")
        size = SIZE if self.size is None else self.size
        for key, value in geometry(size, self.view or View.crop).items():
            if getattr(self, key) == MISSING:
                setattr(self, key, value)
        self.mean = list(InputRecord.mean) if self.mean is None else self.mean
        self.std = list(InputRecord.std) if self.std is None else self.std
        for key, side in (("resize", self.resize), ("crop", self.crop)):
            if side is not None and side < 1:
                raise InputError(f"image.{key} must be at least 1 pixel or null, got {side}")
        if self.resize is not None and self.crop is not None and self.crop > self.resize:
            raise InputError(
                f"image.crop must be at most image.resize ({self.resize}), got {self.crop}"
            )
        if self.bits is not None and not 1 <= self.bits <= 32:
            raise InputError(f"image.bits must be in [1, 32] or null, got {self.bits}")
        if not self.limit > 0:
            raise InputError(f"image.limit must be more than 0 megapixels, got {self.limit}")
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3:
                raise InputError(f"image.{key} must hold 3 values (R, G, B), got {len(values)}")
            if not all(abs(value) <= 1e6 for value in values):  # nor NaN
                raise InputError(f"image.{key} must be finite shares of 0–1, got {list(values)}")
        if min(self.std) < 1e-6:
            raise InputError(f"image.std must be at least 1e-6, got {list(self.std)}")
        self.size, self.view = self._named()

    def _named(self) -> tuple[int, View] | tuple[None, None]:
        """Size and view that stand for `resize`, `stretch` and `crop`."""
        exact = {"resize": self.resize, "stretch": self.stretch, "crop": self.crop}
        for view in View:
            size = self.crop if view is View.crop else self.resize
            if size is not None and geometry(size, view) == exact:
                return size, view
        return None, None

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing, pixels."""
        if self.resize is None:
            return height, width
        if self.stretch:
            return self.resize, self.resize
        shorter = min(height, width)
        return height * self.resize // shorter, width * self.resize // shorter

    def kept(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns that the crop keeps of a resized image.

        Raises:
            ValueError: the crop is larger than that.
        """
        if self.crop is None:
            return slice(0, height), slice(0, width)
        if self.crop > min(height, width):
            raise ValueError(f"a crop of {self.crop} does not fit into {width}×{height} pixels")
        top, left = (height - self.crop) // 2, (width - self.crop) // 2
        return slice(top, top + self.crop), slice(left, left + self.crop)

    def follow(self, mask: Mask) -> Regions:
        """Follow the regions of a mask (H, W), without augmentation."""
        height, width = self.resized(*mask.shape)
        rows, columns = self.kept(height, width)
        if height * width <= LARGEST:
            return follow_regions(mask, (height, width), (rows, columns))
        y, x = mask.shape[0] / height, mask.shape[1] / width  # pixels of the file for one
        rows = slice(int(rows.start * y), math.ceil(rows.stop * y))
        columns = slice(int(columns.start * x), math.ceil(columns.stop * x))
        return follow_regions(mask, mask.shape, (rows, columns))

    def same_view(self, other: "ImageConfig") -> bool:
        """Whether both leave the same part of every image, up to 1 % of its side."""
        whole = [x.crop is None or (x.stretch and x.crop == x.resize) for x in (self, other)]
        if any(whole):
            return all(whole)
        if self.resize is None or other.resize is None:
            return self.resize is other.resize and self.crop == other.crop
        shares = [(x.crop or 0) / (x.resize or 1) for x in (self, other)]
        return self.stretch == other.stretch and abs(shares[0] - shares[1]) <= 0.01


@dataclass
class AugmentConfig:
    """Random changes of training images; all off by default.

    Only what also happens to nominal parts in production belongs here: what a change can produce is
    nominal from then on.
    """

    horizontal_flip: bool = False  # for half of the images
    vertical_flip: bool = False  # for half of the images
    rotate: float = 0.0  # at most, degrees either way; borders are mirrored
    translate: float = 0.0  # at most, share of the side; borders are mirrored
    scale: float = 0.0  # at most, share of the size either way
    brightness: float = 0.0  # at most, share of the full range either way
    contrast: float = 0.0  # at most, share of the contrast either way
    saturation: float = 0.0  # at most, share of the saturation either way
    noise: float = 0.0  # standard deviation at most, share of the full range
    # with epoch and image number, fixes every draw
    seed: int = setting(
        0, effect=lambda augment: any(augment[key] for key in augment if key != "seed")
    )

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InputError(f"augment.seed must be 0 or more, got {self.seed}")
        if not 0 <= self.rotate <= 180:
            raise InputError(f"augment.rotate must be in [0, 180] degrees, got {self.rotate}")
        for key in ("translate", "scale", "brightness", "contrast", "saturation", "noise"):
            if not 0 <= (value := getattr(self, key)) < 1:
                raise InputError(f"augment.{key} must be in [0, 1), got {value}")

    def changes(self) -> bool:
        """Whether anything is on."""
        return replace(self, seed=0) != AugmentConfig()


def build_preparation(image: ImageConfig, augment: AugmentConfig | None = None) -> Preparation:
    """The way from disk to the network's size: resize, augment, crop the centre.

    Shrinking antialiases (Pillow's bilinear filter, which the paper's implementation uses too);
    masks take the nearest pixel, and none of their regions is lost: see `resize_regions`. Of an
    image that would be larger than `LARGEST`, only what the crop keeps is resized.

    Returns:
        A function of image (H, W, 3) uint8, mask (H, W) bool and a seed for the augmentation. It
        returns image (H', W', 3) uint8 and mask (H', W') bool, and raises ValueError if the image
        is smaller than the crop or would have more than `LARGEST` pixels. Threads may share it if
        nothing is augmented.
    """
    steps = _augmentations(augment) if augment is not None and augment.changes() else []
    return partial(_prepare, image, _albumentations().Compose(steps) if steps else None)


def build_normalisation(image: ImageConfig) -> Normalisation:
    """Return the map from pixels (H, W, 3) uint8 to the network's input (3, H, W) float32."""
    mean = np.float32(255) * np.array(image.mean, np.float32)
    scale = np.reciprocal(np.float32(255) * np.array(image.std, np.float32))
    return partial(_normalise, mean, scale)


def build_transform(image: ImageConfig, augment: AugmentConfig | None = None) -> Transform:
    """The way from disk to network: `build_preparation`, then `build_normalisation`.

    Returns:
        A function of image (H, W, 3) uint8, mask (H, W) bool and a seed for the augmentation. It
        returns image (3, H', W') float32 and mask (H', W') bool, and raises ValueError if the image
        is smaller than the crop.
    """
    prepare, normalise = build_preparation(image, augment), build_normalisation(image)

    def transform(
        pixels: NDArray[np.uint8], mask: NDArray[np.bool_], seed: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        pixels, mask = prepare(pixels, mask, seed)
        return normalise(pixels), torch.from_numpy(mask)

    return transform


def _prepare(
    config: ImageConfig, augment: Any, image: Pixels, mask: Mask, seed: int
) -> tuple[Pixels, Mask]:
    size = config.resized(*image.shape[:2])
    if size[0] * size[1] > LARGEST:
        return _prepare_part(config, augment, image, mask, size)
    if size != image.shape[:2]:
        image = _resize(image, size)
        mask = resize_regions(mask, size)[0] > 0
    if augment is not None:
        augment.set_random_seed(seed)
        changed = augment(image=np.ascontiguousarray(image), mask=mask.astype(np.uint8))
        image, mask = changed["image"], changed["mask"].astype(bool)
    kept = config.kept(*image.shape[:2])
    image, mask = image[kept], mask[kept]
    return np.ascontiguousarray(image), np.ascontiguousarray(mask)  # (H', W', 3), (H', W')


def _normalise(mean: Channels, scale: Channels, pixels: Pixels) -> torch.Tensor:
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, width * 3)  # NumPy is slow along an axis of 3
    values = rows - np.tile(mean, width)
    values *= np.tile(scale, width)
    return torch.from_numpy(values.reshape(height, width, 3)).permute(2, 0, 1)  # (3, H, W)


def _albumentations() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it asks a server at import
    import albumentations  # here: half a second that only augmentation need wait

    return albumentations


def _prepare_part(
    config: ImageConfig, augment: Any, image: Pixels, mask: Mask, size: tuple[int, int]
) -> tuple[Pixels, Mask]:
    """The crop alone of an image that is too large, once resized, to be made as a whole."""
    rows, columns = config.kept(*size)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    if height * width > LARGEST or augment is not None:
        raise ValueError(f"{size[1]}×{size[0]} pixels are too many for a network")
    y, x = image.shape[0] / size[0], image.shape[1] / size[1]  # pixels of the file for one
    box = (columns.start * x, rows.start * y, columns.stop * x, rows.stop * y)
    seen = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, box)
    marked = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST, box)
    return np.array(seen), np.array(marked.convert("L")) > 0


def _resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Pixels (H, W, 3) at a size of (H', W')."""
    shape = (size[1], size[0])
    if pixels.strides[-1] == 0:  # grey: one plane seen as three
        plane = Image.fromarray(pixels[..., 0]).resize(shape, Image.Resampling.BILINEAR)
        return np.array(plane.convert("RGB"))
    return np.array(Image.fromarray(pixels).resize(shape, Image.Resampling.BILINEAR))


def _augmentations(config: AugmentConfig) -> list[Any]:
    A = _albumentations()  # noqa: N806
    from cv2 import BORDER_REFLECT_101

    steps: list[Any] = []
    if config.rotate or config.translate or config.scale:
        steps.append(
            A.Affine(
                rotate=(-config.rotate, config.rotate),
                translate_percent=(-config.translate, config.translate),
                scale=(1 - config.scale, 1 + config.scale),
                border_mode=BORDER_REFLECT_101,
                keep_ratio=True,
                p=1,
            )
        )
    if config.horizontal_flip:
        steps.append(A.HorizontalFlip(p=0.5))
    if config.vertical_flip:
        steps.append(A.VerticalFlip(p=0.5))
    if config.brightness or config.contrast:
        steps.append(
            A.RandomBrightnessContrast(
                brightness_limit=(-config.brightness, config.brightness),
                contrast_limit=(-config.contrast, config.contrast),
                p=1,
            )
        )
    if config.saturation:
        span = (1 - config.saturation, 1 + config.saturation)
        steps.append(
            A.ColorJitter(brightness=(1, 1), contrast=(1, 1), saturation=span, hue=(0, 0), p=1)
        )
    if config.noise:
        steps.append(A.GaussNoise(std_range=(0, config.noise), p=1))
    return steps
