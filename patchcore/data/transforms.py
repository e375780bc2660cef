"""From a decoded image and its mask to network input, both moved in step."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from patchcore._record import InputRecord
from patchcore.errors import InputError
from patchcore.settings import setting

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Channels = NDArray[np.float32]
Transform = Callable[[Pixels, Mask, int], tuple[torch.Tensor, torch.Tensor]]
Preparation = Callable[[Pixels, Mask, int], tuple[Pixels, Mask]]
Normalisation = Callable[[Pixels], torch.Tensor]


@dataclass
class ImageConfig:
    """Size and normalisation of the network's input; the defaults are the paper's."""

    resize: int | None = 256  # shorter side, pixels; null keeps the size on disk
    stretch: bool = False  # both sides become `resize`, whatever the aspect ratio was
    crop: int | None = 224  # side of the centre square, pixels; null keeps everything
    # RGB, of 0–1. Null in the settings of a run: those of the backbone's weights. Here, where no
    # network is known, ImageNet's; others are `BackboneConfig(…).input().mean` and `.std`.
    mean: list[float] | None = None
    std: list[float] | None = None

    def __post_init__(self) -> None:
        self.mean = list(InputRecord.mean) if self.mean is None else self.mean
        self.std = list(InputRecord.std) if self.std is None else self.std
        for key, side in (("resize", self.resize), ("crop", self.crop)):
            if side is not None and side < 1:
                raise InputError(f"image.{key} must be at least 1 pixel or null, got {side}")
        if self.resize is not None and self.crop is not None and self.crop > self.resize:
            raise InputError(
                f"image.crop must be at most image.resize ({self.resize}), got {self.crop}"
            )
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3:
                raise InputError(f"image.{key} must hold 3 values (R, G, B), got {len(values)}")
            if not all(abs(value) <= 1e6 for value in values):  # nor NaN
                raise InputError(f"image.{key} must be finite shares of 0–1, got {list(values)}")
        if self.stretch and self.resize is None:
            raise InputError("image.stretch needs image.resize: the side to stretch to")
        if min(self.std) < 1e-6:
            raise InputError(f"image.std must be at least 1e-6, got {list(self.std)}")

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
    masks take the nearest pixel.

    Returns:
        A function of image (H, W, 3) uint8, mask (H, W) bool and a seed for the augmentation. It
        returns image (H', W', 3) uint8 and mask (H', W') bool, and raises ValueError if the image
        is smaller than the crop. Threads may share it if nothing is augmented.
    """
    steps = _augmentations(augment) if augment is not None and augment.changes() else []
    return partial(_prepare, image, _albumentations().Compose(steps) if steps else None)


def build_normalisation(image: ImageConfig) -> Normalisation:
    """From pixels (H, W, 3) uint8 to the network's input (3, H, W) float32."""
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
    if config.resize is not None:
        image = _resize(image, config.resize, config.stretch, Image.Resampling.BILINEAR)
        mask = _resize(mask, config.resize, config.stretch, Image.Resampling.NEAREST)
    if augment is not None:
        augment.set_random_seed(seed)
        changed = augment(image=np.ascontiguousarray(image), mask=mask.astype(np.uint8))
        image, mask = changed["image"], changed["mask"].astype(bool)
    if config.crop is not None:
        image, mask = _centre(image, config.crop), _centre(mask, config.crop)
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


def _resize(
    pixels: NDArray[Any], side: int, stretch: bool, resample: Image.Resampling
) -> NDArray[Any]:
    """Pixels (H, W, 3) or a mask (H, W), with `side` as the shorter side or as both."""
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    size = (width * side // shorter, height * side // shorter)
    if stretch:
        size = (side, side)
    if size == (width, height):
        return pixels
    if pixels.strides[-1] == 0:  # grey: one plane seen as three
        return np.array(Image.fromarray(pixels[..., 0]).resize(size, resample).convert("RGB"))
    return np.array(Image.fromarray(pixels).resize(size, resample))


def _centre(pixels: NDArray[Any], side: int) -> NDArray[Any]:
    """The square of `side` in the middle."""
    height, width = pixels.shape[:2]
    if side > min(height, width):
        raise ValueError(f"a crop of {side} does not fit into {width}×{height} pixels")
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


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
