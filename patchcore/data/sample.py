"""Parts that all data sets have: samples, their split and the settings of the loader."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from patchcore.data.files import Files
from patchcore.data.overlaps import check_overlaps
from patchcore.data.snapshot import Snapshot
from patchcore.data.source import Source
from patchcore.data.view import SIZE, View
from patchcore.digests import digest, file_digest
from patchcore.errors import InputError, printable
from patchcore.settings import setting


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

    def files(self) -> list[Path]:
        """Files that hold the image and its ground truth."""
        match self.mask:
            case None:
                return [self.path]
            case Path():
                return [self.path, self.mask]
        return [self.path, *self.mask.paths]

    def contents(self, of: Callable[[Path], str] = file_digest) -> tuple[str, str | None]:
        """Digests of the image's file and of its ground truth.

        `of` gives the digest of a file. Raises InputError if one is unreadable.
        """
        image, *truth = map(of, self.files())
        if isinstance(self.mask, Masks):
            return image, digest(truth, self.mask.labels, self.mask.frame)
        return image, truth[0] if truth else None


@dataclass(frozen=True)
class Split:
    """Training images, all nominal, and test images, in the order in which they are loaded."""

    train: list[Sample]
    test: list[Sample]
    # of all their files, once `recorded` has taken it
    snapshot: Snapshot | None = field(default=None, compare=False, repr=False)

    def files(self) -> Iterator[Path]:
        """All files of images and masks."""
        return (path for sample in (*self.train, *self.test) for path in sample.files())

    def recorded(self, others: Iterable[Path] = ()) -> "Split":
        """The same with a snapshot of all files, and of `others` that a run depends on.

        Raises InputError if one cannot be read.
        """
        return replace(self, snapshot=Snapshot.of([*self.files(), *others]))

    def contents_of(self, path: Path) -> str:
        """Digest of a file's contents: as recorded, or now."""
        return file_digest(path) if self.snapshot is None else self.snapshot.digest(path)

    def check(self) -> None:
        """Raise ChangedError if a recorded file has changed since."""
        if self.snapshot is not None:
            self.snapshot.check()

    def __str__(self) -> str:
        """Number of images of each kind."""
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
    """Settings that all data sets share; a subclass adds where its images are and lists them.

    Attributes:
        CATEGORIES: Values of `category` that a multirun goes over unless some are named.
        SIZE: `image.size` of a run that does not say it, pixels.
        VIEW: `image.view` of a run that does not say it.
        SOURCE: Where `patchcore fetch` gets it; None for images of one's own.
    """

    CATEGORIES: ClassVar[tuple[str, ...]] = ()
    SIZE: ClassVar[int] = SIZE
    VIEW: ClassVar[View] = View.square  # a crop loses defects at the border of long images
    SOURCE: ClassVar[Source | None] = None

    batch_size: int = 16  # images
    # loader processes; 0 loads in the main process
    workers: int = setting(0, effect=False)
    shots: int | None = None  # nominal training images to keep, drawn at random; null keeps all
    shots_seed: int = setting(0, effect=lambda data: data["shots"] is not None)  # of the draw

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
