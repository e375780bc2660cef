"""Random changes of training images, made by Albumentations."""

import os
from dataclasses import dataclass, replace
from typing import Any

from patchcore.errors import InputError
from patchcore.settings import setting


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


def build_augmentation(config: AugmentConfig) -> Any:
    """Return Albumentations' composition of the changes that are on; None where none is."""
    return _albumentations().Compose(_augmentations(config)) if config.changes() else None


def _albumentations() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it asks a server at import
    import albumentations  # here: half a second that only augmentation need wait

    return albumentations


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
