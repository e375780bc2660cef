"""Samples, their split into training and test, and the settings that all data sets share."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from patchcore.data.files import Files, expanded, find_folder
from patchcore.data.overlaps import check_overlaps
from patchcore.data.source import Source
from patchcore.data.view import SIZE, View
from patchcore.digests import Snapshot, digest, file_digest
from patchcore.errors import InputError, counted, printable
from patchcore.settings import Settings, setting

Category = Any
"""Name of a category, or list of names: several categories in one memory, all of them tested."""


@dataclass(frozen=True)
class Masks:
    """Ground truth other than one black-and-white mask; pixels marked in any file are anomalous."""

    paths: tuple[Path, ...]
    labels: bool = False  # whether pixels hold numbers of defects; all but 0 are anomalous
    frame: int | None = None  # index of the frame, if the file is a NumPy array (frames, H, W)

    def __str__(self) -> str:
        return ", ".join(map(str, self.paths))


@dataclass(frozen=True)
class Sample:
    """One image on disk, with its label and ground truth."""

    path: Path
    label: int  # 0 nominal, 1 anomalous
    defect_type: str = "good"  # "good" for nominal images
    mask: Path | Masks | None = None  # None for nominal images, and for a missing mask
    region: Path | None = None  # file that marks the pixels that count; None: all pixels count
    category: str = ""  # empty unless `data.category` is a list of names

    @property
    def name(self) -> str:
        """Path of the image for tables, figures and trackers; see `printable`."""
        return printable(str(self.path))

    def files(self) -> list[Path]:
        """Return the files that hold the image, its ground truth and its region."""
        region = [] if self.region is None else [self.region]
        return [self.path, *self._truth(), *region]

    def contents(self, of: Callable[[Path], str] = file_digest) -> tuple[str | None, ...]:
        """Return digests of the image's file, of its ground truth and, if there is one, its region.

        `of` returns the digest of a file. Raises InputError if a file is unreadable.
        """
        truth = list(map(of, self._truth()))
        mask = truth[0] if truth else None
        if isinstance(self.mask, Masks):
            mask = digest(truth, self.mask.labels, self.mask.frame)
        region = [] if self.region is None else [of(self.region)]
        return (of(self.path), mask, *region)

    def _truth(self) -> list[Path]:
        match self.mask:
            case None:
                return []
            case Path():
                return [self.mask]
        return list(self.mask.paths)


@dataclass(frozen=True)
class Split:
    """Training and test images, in the order in which they are loaded.

    Training images are nominal, except those that `data.contamination` or a data set's contaminated
    division put there. Those have label 1, but training does not use labels.
    """

    train: list[Sample]
    test: list[Sample]
    # of all files; set by `recorded`
    snapshot: Snapshot | None = field(default=None, compare=False, repr=False)

    def files(self) -> Iterator[Path]:
        """Yield the files of all images, masks and regions."""
        return (path for sample in (*self.train, *self.test) for path in sample.files())

    def recorded(self, others: Iterable[Path] = ()) -> "Split":
        """Return the split with a snapshot of all its files, and of `others` that a run depends on.

        Raises InputError if a file cannot be read.
        """
        return replace(self, snapshot=Snapshot.of([*self.files(), *others]))

    @property
    def contents_of(self) -> Callable[[Path], str]:
        """Function from a file to the digest of its contents: as recorded, or else as they are."""
        return file_digest if self.snapshot is None else self.snapshot.digest

    def copies(self) -> dict[int, int]:
        """Return {number of a training image: number of the first one with the same contents}.

        Only copies are listed. Files that were saved anew have other contents.
        """
        first: dict[str, int] = {}
        found = [first.setdefault(self.contents_of(s.path), i) for i, s in enumerate(self.train)]
        return {number: original for number, original in enumerate(found) if number != original}

    def check(self) -> None:
        """Raise ChangedError if a recorded file has changed since `recorded`."""
        if self.snapshot is not None:
            self.snapshot.check()

    def __str__(self) -> str:
        """Return the number of images of each kind, as a text."""
        anomalous = [sample for sample in self.test if sample.label]
        kinds = ", ".join(sorted({sample.defect_type for sample in anomalous}))
        known = sum(sample.label for sample in self.train)
        masks = sum(sample.mask is not None for sample in anomalous)
        return (
            f"{len(self.train)} training"
            + (f" ({known} of them anomalous)" if known else "")
            + f", {len(self.test) - len(anomalous)} nominal test and "
            f"{counted(len(anomalous), 'anomalous image')}"
            + (f" ({kinds}), {masks} of them with masks" if anomalous else "")
        )


def _check_category(name: str) -> None:
    """Refuse a path or a second spelling: reports would take it for a category of its own."""
    if not name.strip():  # told elsewhere
        return
    plain = os.path.normpath(name)
    if os.path.isabs(name) or plain.split("/")[0] in (".", ".."):
        raise InputError(
            f"data.category: {name} is a path: give the name of a folder in data.root, and that of "
            "the folder above as data.root"
        )
    if plain != name:
        raise InputError(f"data.category: {name}: write {plain}")


@dataclass(kw_only=True)
class DataConfig(Settings):
    """Settings that all data sets share; a subclass adds the folders and lists the images.

    Attributes:
        CATEGORIES: Values of `category` for a multirun, unless the user names some.
        SIZE: Default of `image.size`, px.
        VIEW: Default of `image.view`.
        SOURCE: Source for `patchcore fetch`; None for images of one's own.
        WRITES: Whether it writes its images to `root`, which need not exist.
    """

    CATEGORIES: ClassVar[tuple[str, ...]] = ()
    SIZE: ClassVar[int] = SIZE
    VIEW: ClassVar[View] = View.square  # a crop loses defects at the border of long images
    SOURCE: ClassVar[Source | None] = None
    WRITES: ClassVar[bool] = False

    GROUP: ClassVar[str] = "data"

    batch_size: int = setting(
        16, "images that are loaded and scored together in one batch", unit="images", low=1
    )
    workers: int = setting(
        0,
        "number of loader processes; 0: threads of the main process load the images, some batches "
        "ahead if a GPU computes",
        unit="processes",
        low=0,
        effect=False,
    )
    shots: int | None = setting(
        None,
        "number of nominal training images to keep of each category, drawn at random; anomalous "
        "ones are left out; null: all",
        unit="images",
        low=1,
    )
    shots_seed: int = setting(
        0,
        "seed for drawing the shots",
        low=0,
        effect=lambda data: data["shots"] is not None,
        idle="without data.shots",
    )
    contamination: float = setting(
        0.0,
        "move anomalous test images, drawn at random, into training; their number is this share "
        "of the number of nominal training images of each category",
        low=0,
        below=1,
    )
    contamination_seed: int = setting(
        0,
        "seed for drawing these images",
        low=0,
        effect=lambda data: data["contamination"] > 0,
        idle="without data.contamination",
    )
    # results depend on the pixels that these files mark, not on the files' places
    region: str | None = setting(
        None,
        "file of one mask for all images: only what it marks (white) counts, in whole patches of "
        "which it covers at least half",
        effect=False,
    )
    regions: str | None = setting(
        None,
        "folder with such a mask for each image; a mask has the name of its image (7.png for "
        "7.jpg), or the end of its path",
        effect=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.region is not None and self.regions is not None:
            raise InputError("data.region and data.regions exclude each other: leave one out")
        if isinstance(names := getattr(self, "category", ""), int | float):
            vars(self)["category"] = str(names)  # as OmegaConf does for text settings
        self._several()

    def _several(self) -> list[str]:
        """Names of the categories if `category` is a list; empty otherwise."""
        names = getattr(self, "category", "")
        if isinstance(names, str) and not names.strip() and hasattr(self, "category"):
            raise InputError("data.category is empty: name a category")
        if isinstance(names, str):
            _check_category(names)
        if isinstance(names, str | Enum):
            return []
        if not isinstance(names, Sequence):
            raise InputError(f"data.category must be a name or a list of names, got {names!r}")
        if not names:
            raise InputError("data.category is an empty list: name at least one category")
        for name in names:
            if not isinstance(name, str | int | float | Enum):
                raise InputError(f"data.category must hold names of categories, got {name!r}")
        texts = [*map(str, names)]
        for number, name in enumerate(texts):
            _check_category(name)
            if name in texts[:number]:
                raise InputError(f"data.category names {name} twice: leave it out once")
        return texts

    def read(self) -> Split:
        """List the images on disk, check that they belong together, draw shots and contamination.

        Several categories follow one another in the order of their names in `category`; each sample
        then holds its category.

        Raises:
            InputError: a folder, an image or a mask (which the message names) is missing or
                superfluous, or there are too few images for `shots` or `contamination`.
        """
        files = Files()
        if names := self._several():
            split = joined({x: replace(self, category=x)._drawn(files) for x in names})  # type: ignore[call-arg]
        else:
            split = self._drawn(files)
        if self.region is not None:
            split = with_region(split, self.region)
        if self.regions is not None:
            split = with_regions(split, self.regions, files, told=self.shots is None)
        check_overlaps(split.train, split.test)
        files.note_alike(sample.path for sample in split.train + split.test)
        files.tell(str(split))
        return split

    def _drawn(self, files: Files) -> Split:
        """Return the split of one category, with shots and contamination drawn."""
        split = self._read(files)
        if self.shots is not None:
            nominal = [sample for sample in split.train if not sample.label]
            train = draw_shots(nominal, self.shots, self.shots_seed)
            split = replace(split, train=train)
        if self.contamination:
            groups = self._inseparable(split.test)
            split = contaminated(split, groups, self.contamination, self.contamination_seed)
        return split

    def _read(self, files: Files) -> Split:
        """Return all images of the data set, found with `files`; its own errors are InputErrors."""
        raise NotImplementedError

    def _inseparable(self, test: Sequence[Sample]) -> list[list[Sample]]:
        """Return the test images in groups, one for each object that several images may show.

        Contamination moves all images of a group together.
        """
        return [[sample] for sample in test]


def joined(splits: Mapping[str, Split]) -> Split:
    """Join the splits of several categories; each sample gets the name of its category."""
    train, test = (
        [replace(x, category=name) for name, split in splits.items() for x in getattr(split, side)]
        for side in ("train", "test")
    )
    return Split(train, test)


def contaminated(
    split: Split, groups: Sequence[Sequence[Sample]], share: float, seed: int
) -> Split:
    """Move anomalous test images to the end of the training images.

    Args:
        split: Training and test images.
        groups: Test images in groups that move together, including their nominal images.
        share: Number of anomalous images to move, as a share of the number of nominal training
            images, rounded. The last group moves as a whole, even if that exceeds the number.
        seed: Seed of the draw. With the same seed, a larger share contains every smaller one.

    Raises:
        InputError: no anomalous image would be left to test on, or none would be moved.
    """
    nominal = sum(not sample.label for sample in split.train)
    count = round(share * nominal)
    found = [group for group in groups if any(sample.label for sample in group)]
    total = sum(sample.label for group in found for sample in group)
    moved: set[Sample] = set()
    for i in np.random.default_rng(seed).permutation(len(found)):
        if sum(sample.label for sample in moved) >= count:
            break
        moved.update(found[i])
    told = f"data.contamination: {share:g} of {counted(nominal, 'nominal training image')}"
    if not total:
        raise InputError("data.contamination: there are no anomalous images to move: set it to 0")
    if not moved:
        raise InputError(f"{told} rounds to 0 images; raise it, or set it to 0")
    if sum(sample.label for sample in moved) >= total:
        raise InputError(
            f"{told} is {count}, which leaves none of the {counted(total, 'anomalous image')} to "
            "test on; lower it"
        )
    train = split.train + [sample for sample in split.test if sample in moved]
    return replace(split, train=train, test=[x for x in split.test if x not in moved])


def with_region(split: Split, value: str) -> Split:
    """Return the split with the file `value` as region of all samples; InputError without it."""
    path = expanded(value, "data.region")
    if not path.is_file():
        raise InputError(f"data.region: there is no file {value}; for a folder set data.regions")
    train, test = ([replace(x, region=path) for x in some] for some in (split.train, split.test))
    return replace(split, train=train, test=test)


def with_regions(split: Split, value: str, files: Files, told: bool = False) -> Split:
    """Return the split with a region for each sample, found in a folder by the image's name.

    The file `a/7.png` in the folder `value` belongs to the image whose path ends in `a/7`, without
    the extension. If several files match, the longest common end of the paths decides.

    Args:
        split: Samples.
        value: Setting `data.regions`.
        files: Finder of image files.
        told: Whether to note masks without an image, in folders whose other masks have one; those
            of other folders may be of other categories.

    Raises:
        InputError: an image has no region or two equally long matches, or a file matches several
            images.
    """
    folder = find_folder(value, "data.regions")
    found: dict[tuple[str, ...], list[Path]] = {}
    for path in files.images(folder, recursive=True):
        found.setdefault(path.relative_to(folder).with_suffix("").parts, []).append(path)
    owners: dict[Path, Path] = {}

    def own(sample: Sample) -> Sample:
        parts = sample.path.absolute().with_suffix("").parts
        suiting = next((found[end] for i in range(len(parts)) if (end := parts[i:]) in found), None)
        if suiting is None:
            raise InputError(f"data.regions: {folder} has no mask for {sample.path}")
        if len(suiting) > 1:
            raise InputError(f"data.regions: {suiting[0]} and {suiting[1]} are of one image")
        if (other := owners.setdefault(suiting[0], sample.path)) != sample.path:
            raise InputError(
                f"data.regions: {suiting[0]} suits {other} and {sample.path}: put the masks into "
                "folders named like those of the images, or set data.region"
            )
        return replace(sample, region=suiting[0])

    split = replace(split, train=[*map(own, split.train)], test=[*map(own, split.test)])
    used = {path.parent for path in owners}
    masks = (path for paths in found.values() for path in paths)
    left = [path for path in masks if path not in owners and path.parent in used]
    if told and left:
        files.note(f"masks in data.regions without an image: {len(left)} (such as {min(left)})")
    return split


def draw_shots(train: Sequence[Sample], shots: int, seed: int) -> list[Sample]:
    """Draw `shots` of the samples at random, without replacement; their order stays the same.

    With the same seed, a larger draw contains every smaller one. Raises InputError if there are
    fewer samples than `shots`.
    """
    if shots > len(train):
        raise InputError(
            f"data.shots: {shots} is more than the "
            f"{counted(len(train), 'nominal training image')}; lower it, or set it to null to "
            "train on all"
        )
    order = np.random.default_rng(seed).permutation(len(train))
    return [train[i] for i in sorted(order[:shots])]
