"""Random changes of training images, made by Albumentations."""

import os
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from patchcore.settings import Settings, setting


@dataclass
class AugmentConfig(Settings):
    """Random changes of training images; all off by default.

    Only what also happens to nominal parts in production belongs here: what a change can produce is
    nominal from then on.
    """

    GROUP: ClassVar[str] = "augment"

    horizontal_flip: bool = setting(False, "mirror half of the images left to right")
    vertical_flip: bool = setting(False, "mirror half of the images top to bottom")
    rotate: float = setting(
        0.0, "rotation at most, either way; borders are mirrored", unit="degrees", low=0, high=180
    )
    translate: float = setting(
        0.0, "shift at most, as a share of the side; borders are mirrored", low=0, below=1
    )
    scale: float = setting(
        0.0, "change of size at most, as a share of it, either way", low=0, below=1
    )
    brightness: float = setting(
        0.0, "change of brightness at most, as a share of the full range", low=0, below=1
    )
    contrast: float = setting(
        0.0, "change of contrast at most, as a share of it, either way", low=0, below=1
    )
    saturation: float = setting(
        0.0, "change of saturation at most, as a share of it, either way", low=0, below=1
    )
    noise: float = setting(
        0.0, "standard deviation of noise at most, as a share of the full range", low=0, below=1
    )
    # With epoch and image number, it fixes every draw.
    seed: int = setting(
        0,
        "seed of all random changes",
        low=0,
        effect=lambda augment: any(augment[key] for key in augment if key != "seed"),
    )

    def changes(self) -> bool:
        """Whether anything is on."""
        return any(getattr(self, each.name) for each in fields(self) if each.name != "seed")

    def moves(self) -> bool:
        """Whether anything is on that moves pixels."""
        flips = self.horizontal_flip or self.vertical_flip
        return bool(flips or self.rotate or self.translate or self.scale)


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
