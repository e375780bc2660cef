"""Fixed poses of training images: mirrored and turned alike in every run, unlike random changes.

AnomalyDINO (Damm et al., WACV 2025) remembers its few nominal images in eight rotations, for parts
that lie at any angle in production.
"""

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


class Mirror(Enum):
    """Mirror images that are remembered beside an image itself."""

    none = "none"
    horizontal = "horizontal"  # left and right exchanged
    vertical = "vertical"  # top and bottom exchanged
    both = "both"  # each of these, and both at once


@dataclass(frozen=True)
class Pose:
    """A mirror image or not, then a turn.

    Attributes:
        mirrored: Whether left and right are exchanged.
        degrees: Turn to the left, in [0, 360).
    """

    mirrored: bool = False
    degrees: float = 0.0

    def apply(self, image: Pixels, mask: Mask) -> tuple[Pixels, Mask]:
        """Return an image (H, W, 3) and its mask (H, W) in this pose.

        Quarter turns move pixels, and exchange the sides of an image that is not square. Others
        keep the frame and interpolate: the image bilinearly, the mask by its nearest pixel. What
        comes from beyond the border is mirrored there.
        """
        if self.mirrored:
            image, mask = image[:, ::-1], mask[:, ::-1]
        quarters, rest = divmod(self.degrees, 90)
        if not rest:
            return np.rot90(image, int(quarters)), np.rot90(mask, int(quarters))
        marked = _turn(mask.astype(np.uint8), self.degrees, Image.Resampling.NEAREST)
        return _turn(image, self.degrees, Image.Resampling.BILINEAR), marked > 0


UPRIGHT = Pose()
"""Pose of an image as it is."""


def poses(rotations: int, mirrored: Mirror) -> list[Pose]:
    """Return each pose once: that many rotations of the image and of its mirror images.

    The image as it is comes first.

    >>> [(pose.mirrored, pose.degrees) for pose in poses(2, Mirror.horizontal)]
    [(False, 0.0), (False, 180.0), (True, 0.0), (True, 180.0)]
    """
    starts = {  # exchanging top and bottom is a mirror image, turned by half
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
    """Turn (H, W) or (H, W, 3) to the left about its centre, within its frame."""
    height, width = x.shape[:2]
    reach = math.ceil((math.hypot(height, width) - min(height, width)) / 2) + 1
    around = [(reach, reach), (reach, reach), (0, 0)][: x.ndim]
    turned = Image.fromarray(np.pad(x, around, "reflect")).rotate(degrees, resampling)
    return np.asarray(turned)[reach : reach + height, reach : reach + width]
