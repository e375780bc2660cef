"""Part of an image that the network sees, and at what size."""

import re
from enum import Enum

SIZE = 224  # px, of the network's input: the paper's


class View(Enum):
    """Part of an image that the network sees, at a size of S pixels."""

    crop = "crop"  # the paper's: shorter side at S · 8/7, of which the central square S × S is kept
    whole = "whole"  # everything at its own aspect ratio, shorter side at S
    square = "square"  # everything, stretched to S × S


def successor(preset: str) -> str:
    """Return the overrides that stand for a preset named by its size; empty for other names.

    >>> successor("px280"), successor("px256_whole"), successor("320")
    ('image.size=280 image.view=crop', 'image.size=256 image.view=whole', 'image.size=320')
    """
    match = re.fullmatch(r"(px)?([1-9]\d*)(?:_(square|whole))?", preset)
    if match is None:
        return ""
    view = match[3] or ("crop" if match[1] else "")
    return f"image.size={match[2]}" + (f" image.view={view}" if view else "")
