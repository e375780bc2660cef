"""Augmentation of training images: fixed poses, or random changes made by Albumentations."""

import os
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from patchcore.data.poses import Mirror, Pose, poses
from patchcore.errors import InputError
from patchcore.settings import Settings, setting

FIXED = ("rotations", "mirrored")
"""Settings of the fixed poses; all others belong to the random changes."""


@dataclass
class AugmentConfig(Settings):
    """Augmentation of training images; all off by default.

    Use only changes that nominal parts show in production, too: everything that a change can
    produce counts as nominal afterwards. Fixed poses all enter the memory bank in one epoch, and
    are the same in every run. Random changes are drawn anew in each epoch. The two kinds exclude
    each other.

    Raises:
        InputError: fixed poses and random changes are both on.
    """

    GROUP: ClassVar[str] = "augment"

    rotations: int = setting(
        1,
        "number of rotations, evenly around the circle; the memory bank gets every training image "
        "in each of them; 1: only the image as it is",
        low=1,
        high=360,
    )
    mirrored: Mirror = setting(
        Mirror.none,
        "mirror images that the memory bank gets as well: none, horizontal (left and right "
        "exchanged), vertical (top and bottom exchanged) or both",
    )
    horizontal_flip: bool = setting(False, "mirror half of the images left to right")
    vertical_flip: bool = setting(False, "mirror half of the images top to bottom")
    rotate: float = setting(
        0.0,
        "largest rotation, in either direction; borders are mirrored",
        unit="degrees",
        low=0,
        high=180,
    )
    translate: float = setting(
        0.0, "largest shift, as a share of the side; borders are mirrored", low=0, below=1
    )
    scale: float = setting(
        0.0, "largest change of size, up or down, as a share of the size", low=0, below=1
    )
    brightness: float = setting(
        0.0, "largest change of brightness, as a share of the full range", low=0, below=1
    )
    contrast: float = setting(
        0.0, "largest change of contrast, up or down, as a share of the contrast", low=0, below=1
    )
    saturation: float = setting(
        0.0,
        "largest change of saturation, up or down, as a share of the saturation",
        low=0,
        below=1,
    )
    noise: float = setting(
        0.0, "largest standard deviation of the noise, as a share of the full range", low=0, below=1
    )
    # Every draw follows from the seed, the epoch and the number of the image.
    seed: int = setting(
        0,
        "seed for all random changes",
        low=0,
        effect=lambda augment: any(augment[key] for key in augment if key not in (*FIXED, "seed")),
        idle="without random changes, such as augment=flip",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.poses()) > 1 and self.changes():
            raise InputError(
                "augment.rotations and augment.mirrored give fixed poses, and the other changes "
                "are random: leave out one of the two kinds"
            )

    def poses(self) -> list[Pose]:
        """Return the poses in which every training image is remembered, the original first."""
        return poses(self.rotations, self.mirrored)

    def changes(self) -> bool:
        """Whether any random change is on."""
        names = [each.name for each in fields(self) if each.name not in (*FIXED, "seed")]
        return any(getattr(self, name) for name in names)

    def moves(self) -> bool:
        """Whether any change that moves pixels is on."""
        flips = self.horizontal_flip or self.vertical_flip
        turns = self.rotate or len(self.poses()) > 1
        return bool(flips or turns or self.translate or self.scale)


def build_augmentation(config: AugmentConfig) -> Any:
    """Return an `albumentations.Compose` of the random changes; None if no such change is on."""
    return _albumentations().Compose(_augmentations(config)) if config.changes() else None


def _albumentations() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no request for updates at import
    import albumentations  # here, as the import takes half a second

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
