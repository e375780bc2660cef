"""Part of an image that the network sees, and the size of the network's input."""

from patchcore.settings import Choice

SIZE = 224  # px, of the network's input, as in the paper


class View(Choice):
    """Part of an image that the network sees, at a size of S pixels."""

    crop = "crop"  # as in the paper: shorter side resized to S · 8/7, then the central square S × S
    whole = "whole"  # whole image in its aspect ratio, shorter side resized to S
    square = "square"  # whole image, stretched to S × S
