"""Part of an image that the network sees, and at what size."""

from enum import Enum

SIZE = 224  # px, of the network's input: the paper's


class View(Enum):
    """Part of an image that the network sees, at a size of S pixels."""

    crop = "crop"  # the paper's: shorter side at S · 8/7, of which the central square S × S is kept
    whole = "whole"  # everything at its own aspect ratio, shorter side at S
    square = "square"  # everything, stretched to S × S
