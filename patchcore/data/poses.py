"""Fixed poses of training images: mirror images and rotations that are the same in every run.

AnomalyDINO (Damm et al., WACV 2025) remembers its few nominal images in eight rotations, for parts
that lie at any angle in production.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patchcore.settings import Choice

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


class Mirror(Choice):
    """Mirror images that are remembered in addition to an image."""

    none = "none"
    horizontal = "horizontal"  # left and right exchanged
    vertical = "vertical"  # top and bottom exchanged
    both = "both"  # each of these, and both at once


@dataclass(frozen=True)
class Pose:
    """Pose of an image: mirrored or not, then rotated.

    Attributes:
        mirrored: Whether left and right are exchanged.
        degrees: Counterclockwise rotation, in [0, 360).
    """

    mirrored: bool = False
    degrees: float = 0.0

    def apply(self, image: Pixels, mask: Mask) -> tuple[Pixels, Mask]:
        """Return an image (H, W, 3) and its mask (H, W) in this pose.

        Rotations by multiples of 90° only move pixels; by 90° and 270°, height and width are
        exchanged. Other rotations keep height and width, and interpolate: bilinearly for the image,
        by the nearest pixel for the mask. Pixels beyond the border are mirrored at the border.
        """
        if self.mirrored:
            image, mask = image[:, ::-1], mask[:, ::-1]
        quarters, rest = divmod(self.degrees, 90)
        if not rest:
            return np.rot90(image, int(quarters)), np.rot90(mask, int(quarters))
        marked = _turn(mask.astype(np.uint8), self.degrees, Image.Resampling.NEAREST)
        return _turn(image, self.degrees, Image.Resampling.BILINEAR), marked > 0


UPRIGHT = Pose()
"""Pose of the original image."""


def poses(rotations: int, mirrored: Mirror) -> list[Pose]:
    """Return the poses, each once: equally spaced rotations of the image and its mirror images.

    The original image comes first.

    >>> [(pose.mirrored, pose.degrees) for pose in poses(2, Mirror.horizontal)]
    [(False, 0.0), (False, 180.0), (True, 0.0), (True, 180.0)]
    """
    starts = {  # exchanging top and bottom is the same as mirroring, then rotating by 180°
        Mirror.none: [(False, 0)],
        Mirror.horizontal: [(False, 0), (True, 0)],
        Mirror.vertical: [(False, 0), (True, 180)],
        Mirror.both: [(False, 0), (True, 0), (True, 180), (False, 180)],
    }[mirrored]
    found = [
        Pose(mirror, (start * rotations + 360 * turn) % (360 * rotations) / rotations)
        for mirror, start in starts
        for turn in range(rotations)
    ]
    return list(dict.fromkeys(found))


def _turn(x: NDArray[np.uint8], degrees: float, resampling: Image.Resampling) -> NDArray[np.uint8]:
    """Rotate (H, W) or (H, W, 3) counterclockwise about its centre; the size stays the same."""
    height, width = x.shape[:2]
    reach = math.ceil((math.hypot(height, width) - min(height, width)) / 2) + 1
    around = [(reach, reach), (reach, reach), (0, 0)][: x.ndim]
    turned = Image.fromarray(np.pad(x, around, "reflect")).rotate(degrees, resampling)
    return np.asarray(turned)[reach : reach + height, reach : reach + width]
