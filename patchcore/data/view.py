"""Part of an image that the network sees, and at what size."""

import re
from enum import Enum
from typing import Any

SIZE = 224  # px, of the network's input: the paper's


class View(Enum):
    """Part of an image that the network sees, at a size of S pixels."""

    crop = "crop"  # the paper's: shorter side at S · 8/7, of which the central square S × S is kept
    whole = "whole"  # everything at its own aspect ratio, shorter side at S
    square = "square"  # everything, stretched to S × S


def geometry(size: int, view: View) -> dict[str, Any]:
    """Return `resize`, `stretch` and `crop` of a view at a size in pixels.

    >>> geometry(224, View.crop)
    {'resize': 256, 'stretch': False, 'crop': 224}
    """
    if view is View.crop:
        return {"resize": round(size * 8 / 7), "stretch": False, "crop": size}
    return {"resize": size, "stretch": view is View.square, "crop": None}


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
