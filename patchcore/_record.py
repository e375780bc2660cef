"""Input that a network's weights were trained for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class InputRecord:
    """Mean and standard deviation of the images, and their size; by default ImageNet's."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # RGB, of 0–1
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)  # RGB, of 0–1
    side: int = 224  # px of the square images that the network surely takes
