"""What every data set has in common: its samples, its split and the settings of its loader."""

from dataclasses import dataclass
from pathlib import Path

from patchcore.errors import InputError


@dataclass(frozen=True)
class Sample:
    """One image on disk and what is known about it."""

    path: Path
    label: int  # 0 nominal, 1 anomalous
    defect_type: str = "good"  # "good" for nominal images
    mask: Path | None = None  # None for nominal images, and for anomalous ones without a mask


@dataclass(frozen=True)
class Split:
    """Training images, all nominal, and test images, in the order in which they are loaded."""

    train: list[Sample]
    test: list[Sample]


@dataclass(kw_only=True)
class DataConfig:
    """Settings that all data sets share; a subclass adds where its images are and reads them."""

    batch_size: int = 16  # images
    workers: int = 0  # loader processes; 0 loads in the main process

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"data.batch_size must be at least 1, got {self.batch_size}")
        if self.workers < 0:
            raise InputError(f"data.workers must be 0 or more, got {self.workers}")

    def read(self) -> Split:
        """List the images on disk and check that they belong together.

        Raises:
            InputError: a folder, an image or a mask is missing or superfluous; it is named.
        """
        raise NotImplementedError
