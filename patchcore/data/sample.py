"""What every data set has in common: its samples, its split and the settings of its loader."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from patchcore.cache import digest, file_digest
from patchcore.data.files import Files
from patchcore.data.overlaps import check_overlaps
from patchcore.errors import InputError, printable


@dataclass(frozen=True)
class Masks:
    """Ground truth that is not one picture of black and white; what any file marks is anomalous."""

    paths: tuple[Path, ...]
    labels: bool = False  # pixels hold numbers of defects: anomalous is all but 0
    frame: int | None = None  # which one, if the file is an array (frames, H, W) saved by NumPy

    def __str__(self) -> str:
        return ", ".join(map(str, self.paths))


@dataclass(frozen=True)
class Sample:
    """One image on disk and what is known about it."""

    path: Path
    label: int  # 0 nominal, 1 anomalous
    defect_type: str = "good"  # "good" for nominal images
    mask: Path | Masks | None = None  # None for nominal images, and where there is no mask

    @property
    def name(self) -> str:
        """The image's path as tables, figures and trackers show it: see `printable`."""
        return printable(str(self.path))

    def contents(self) -> tuple[str, str | None]:
        """Digests of the image's file and of its ground truth. Raises InputError if unreadable."""
        match self.mask:
            case None:
                return file_digest(self.path), None
            case Path():
                return file_digest(self.path), file_digest(self.mask)
        files = [file_digest(path) for path in self.mask.paths]
        return file_digest(self.path), digest(files, self.mask.labels, self.mask.frame)


@dataclass(frozen=True)
class Split:
    """Training images, all nominal, and test images, in the order in which they are loaded."""

    train: list[Sample]
    test: list[Sample]

    def __str__(self) -> str:
        """How many images there are of each kind."""
        anomalous = [sample for sample in self.test if sample.label]
        kinds = ", ".join(sorted({sample.defect_type for sample in anomalous}))
        masks = sum(sample.mask is not None for sample in anomalous)
        return (
            f"{len(self.train)} training, {len(self.test) - len(anomalous)} nominal test and "
            f"{len(anomalous)} anomalous images"
            + (f" ({kinds}), {masks} of them with masks" if anomalous else "")
        )


@dataclass(kw_only=True)
class DataConfig:
    """Settings that all data sets share; a subclass adds where its images are and lists them."""

    batch_size: int = 16  # images
    workers: int = 0  # loader processes; 0 loads in the main process
    shots: int | None = None  # nominal training images to keep, drawn at random; null keeps all
    shots_seed: int = 0  # of the draw

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"data.batch_size must be at least 1, got {self.batch_size}")
        if self.workers < 0:
            raise InputError(f"data.workers must be 0 or more, got {self.workers}")
        if self.shots is not None and self.shots < 1:
            raise InputError(f"data.shots must be at least 1, got {self.shots}")
        if self.shots is not None and self.shots_seed < 0:
            raise InputError(f"data.shots_seed must be 0 or more, got {self.shots_seed}")

    def read(self) -> Split:
        """List the images on disk, check that they belong together, and draw the shots.

        Raises:
            InputError: a folder, an image or a mask is missing or superfluous; it is named. Or
                there are fewer training images than shots.
        """
        files = Files()
        split = self._read(files)
        if self.shots is not None:
            train = draw_shots(split.train, self.shots, self.shots_seed)
            split = replace(split, train=train)
        check_overlaps(split.train, split.test)
        files.tell(str(split))
        return split

    def _read(self, files: Files) -> Split:
        """All images of the data set, found with `files`; its own errors are InputErrors."""
        raise NotImplementedError


def draw_shots(train: Sequence[Sample], shots: int, seed: int) -> list[Sample]:
    """`shots` of the samples at random, in their order.

    Of one seed, a larger draw contains every smaller one. Raises InputError if there are too few.
    """
    if shots > len(train):
        raise InputError(
            f"data.shots: {shots} is more than the {len(train)} nominal training images; lower it, "
            "or set it to null to train on all"
        )
    order = np.random.default_rng(seed).permutation(len(train))
    return [train[i] for i in sorted(order[:shots])]
