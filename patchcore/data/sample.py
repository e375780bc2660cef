"""Parts that all data sets have: samples, their split and the settings of the loader."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from patchcore.data.files import Files, Identity, expanded, find_folder, identity
from patchcore.data.source import Source
from patchcore.data.view import SIZE, View
from patchcore.digests import Snapshot, digest, file_digest
from patchcore.errors import InputError, printable
from patchcore.settings import Settings, setting

Category = Any
"""Name of a category, or a list of names: several in one memory, each of them tested."""


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
    region: Path | None = None  # what its file marks counts; None: all does
    category: str = ""  # empty unless several share the run

    @property
    def name(self) -> str:
        """The image's path as tables, figures and trackers show it: see `printable`."""
        return printable(str(self.path))

    def files(self) -> list[Path]:
        """Files that hold the image, its ground truth and its region."""
        region = [] if self.region is None else [self.region]
        return [self.path, *self._truth(), *region]

    def contents(self, of: Callable[[Path], str] = file_digest) -> tuple[str | None, ...]:
        """Digests of the image's file, of its ground truth and, if it has one, of its region.

        `of` gives the digest of a file. Raises InputError if one is unreadable.
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
    """Training images and test images, in the order in which they are loaded.

    Training images are nominal but for those that `data.contamination` has moved there, or a data
    set's own contaminated division: they have label 1, which nothing trains on.
    """

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

    @property
    def contents_of(self) -> Callable[[Path], str]:
        """Function that gives the digest of a file's contents: as recorded, or now."""
        return file_digest if self.snapshot is None else self.snapshot.digest

    def check(self) -> None:
        """Raise ChangedError if a recorded file has changed since."""
        if self.snapshot is not None:
            self.snapshot.check()

    def __str__(self) -> str:
        """Number of images of each kind."""
        anomalous = [sample for sample in self.test if sample.label]
        kinds = ", ".join(sorted({sample.defect_type for sample in anomalous}))
        known = sum(sample.label for sample in self.train)
        masks = sum(sample.mask is not None for sample in anomalous)
        return (
            f"{len(self.train)} training"
            + (f" ({known} of them anomalous)" if known else "")
            + f", {len(self.test) - len(anomalous)} nominal test and "
            f"{len(anomalous)} anomalous images"
            + (f" ({kinds}), {masks} of them with masks" if anomalous else "")
        )


@dataclass(kw_only=True)
class DataConfig(Settings):
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

    GROUP: ClassVar[str] = "data"

    batch_size: int = setting(
        16, "images that are loaded and scored together in one batch", unit="images", low=1
    )
    workers: int = setting(
        0,
        "number of loader processes; 0: threads of the main process load the images, one batch "
        "ahead if a GPU computes",
        unit="processes",
        low=0,
        effect=False,
    )
    shots: int | None = setting(
        None,
        "number of nominal training images to keep of each category, drawn at random; null: all",
        unit="images",
        low=1,
    )
    shots_seed: int = setting(
        0, "seed for drawing the shots", low=0, effect=lambda data: data["shots"] is not None
    )
    contamination: float = setting(
        0.0,
        "move anomalous test images, drawn at random, into training; their number is this share "
        "of the number of nominal training images of each category",
        low=0,
        below=1,
    )
    contamination_seed: int = setting(
        0, "seed for drawing these images", low=0, effect=lambda data: data["contamination"] > 0
    )
    # results follow from what these files mark, not from where they are
    region: str | None = setting(
        None,
        "file of one mask for all images: only the pixels that it marks (white) count",
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
            vars(self)["category"] = str(names)  # as a setting that is text would take it
        self._several()

    def _several(self) -> list[str]:
        """Names of the categories if there is a list of them; none for one category, or without."""
        names = getattr(self, "category", "")
        if isinstance(names, str | Enum):
            return []
        if not isinstance(names, Sequence):
            raise InputError(f"data.category must be a name or a list of names, got {names!r}")
        if not names:
            raise InputError("data.category is an empty list: name at least one category")
        texts = [*map(str, names)]
        for number, name in enumerate(texts):
            if name in texts[:number]:
                raise InputError(f"data.category names {name} twice: leave it out once")
        return texts

    def read(self) -> Split:
        """List the images on disk, check that they belong together, draw shots and contamination.

        Of several categories the images of one follow those of another, in the order of the names;
        each sample has its category.

        Raises:
            InputError: a folder, an image or a mask is missing or superfluous; it is named. Or
                there are fewer training images than shots, or too few anomalous ones to train on.
        """
        files = Files()
        if names := self._several():
            split = joined({x: replace(self, category=x)._drawn(files) for x in names})  # type: ignore[call-arg]
        else:
            split = self._drawn(files)
        if self.region is not None:
            split = with_region(split, self.region)
        if self.regions is not None:
            split = with_regions(split, self.regions, files)
        check_overlaps(split.train, split.test)
        files.tell(str(split))
        return split

    def _drawn(self, files: Files) -> Split:
        """The images of one category, after shots and contamination are drawn."""
        split = self._read(files)
        if self.shots is not None:
            train = draw_shots(split.train, self.shots, self.shots_seed)
            split = replace(split, train=train)
        if self.contamination:
            groups = self._inseparable(split.test)
            split = contaminated(split, groups, self.contamination, self.contamination_seed)
        return split

    def _read(self, files: Files) -> Split:
        """All images of the data set, found with `files`; its own errors are InputErrors."""
        raise NotImplementedError

    def _inseparable(self, test: Sequence[Sample]) -> list[list[Sample]]:
        """Test images by the thing that they show, where it is known to be shown more than once.

        Contamination moves the images of one thing together.
        """
        return [[sample] for sample in test]


def joined(splits: Mapping[str, Split]) -> Split:
    """One split of several categories, each sample with the name of its own."""
    train, test = (
        [replace(x, category=name) for name, split in splits.items() for x in getattr(split, side)]
        for side in ("train", "test")
    )
    return Split(train, test)


def contaminated(
    split: Split, groups: Sequence[Sequence[Sample]], share: float, seed: int
) -> Split:
    """The split with anomalous test images among those to train on, at the end of these.

    Args:
        split: Its training images are nominal.
        groups: The test images; those of a group move together, nominal ones too.
        share: Their number as a share of the nominal training images, rounded; a group that goes
            beyond it moves whole.
        seed: Of the draw; of one seed, a larger share contains every smaller one.

    Raises:
        InputError: No anomalous image would be left to test on, or none would be moved.
    """
    count = round(share * sum(not sample.label for sample in split.train))
    found = [group for group in groups if any(sample.label for sample in group)]
    total = sum(sample.label for group in found for sample in group)
    moved: set[Sample] = set()
    for i in np.random.default_rng(seed).permutation(len(found)):
        if sum(sample.label for sample in moved) >= count:
            break
        moved.update(found[i])
    told = f"data.contamination: {share:g} of {len(split.train)} training images"
    if not total:
        raise InputError("data.contamination: there are no anomalous images to move: set it to 0")
    if not moved:
        raise InputError(f"{told} is not one image; raise it, or set it to 0")
    if sum(sample.label for sample in moved) >= total:
        raise InputError(
            f"{told} is {count}, which leaves none of the {total} anomalous images to test on; "
            "lower it"
        )
    train = split.train + [sample for sample in split.test if sample in moved]
    return replace(split, train=train, test=[x for x in split.test if x not in moved])


def with_region(split: Split, value: str) -> Split:
    """The samples with the region that they share. Raises InputError if there is no such file."""
    path = expanded(value, "data.region")
    if not path.is_file():
        raise InputError(f"data.region: there is no file {value}; for a folder set data.regions")
    train, test = ([replace(x, region=path) for x in some] for some in (split.train, split.test))
    return replace(split, train=train, test=test)


def with_regions(split: Split, value: str, files: Files) -> Split:
    """The samples each with its own region, found in a folder by its image's name.

    The file `a/7.png` below the folder belongs to the image whose path ends in `a/7` but for its
    extension. Of two files that suit an image the one with more of its path counts.

    Raises:
        InputError: An image has no region or two, or a file is that of several images.
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

    return replace(split, train=[*map(own, split.train)], test=[*map(own, split.test)])


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


Group = list[tuple[str, Path]]
"""Roles and paths of files that are compared with each other."""


def check_overlaps(train: Sequence[Sample], test: Sequence[Sample]) -> None:
    """Refuse a file that has two roles; warn of pictures whose contents have.

    Contents are compared among files of one size only.

    Raises:
        InputError: a file, by whatever path or link, is both a training and a test image, or both a
            nominal and an anomalous one; an image is its own mask; or a file is unreadable.
    """
    roles: Group = [("anomalous training" if s.label else "training", s.path) for s in train]
    roles += [("anomalous test" if s.label else "nominal test", s.path) for s in test]
    first: dict[Identity, tuple[str, Path]] = {}
    for role, path in roles:
        other, there = first.setdefault(identity(path), (role, path))
        if other != role:
            same = "" if there == path else f", as {there}"
            raise InputError(
                f"{path}: is both one of the {role} images and one of the {other} images{same}; "
                "leave it in one of the two"
            )
    for sample in test:
        if isinstance(sample.mask, Path) and _equal([("", sample.path), ("", sample.mask)]):
            raise InputError(
                f"{sample.mask}: this mask is the picture {sample.path} itself; restore the mask"
            )
    for text in _complaints(_equal(roles), len(test)):
        warnings.warn(printable(f"data: {text}"), stacklevel=3)


def _equal(roles: Group) -> list[Group]:
    """Groups of equal files, by their first path."""
    sizes: dict[int, Group] = {}
    for role, path in roles:
        sizes.setdefault(_size(path), []).append((role, path))
    contents: dict[tuple[int, str], Group] = {}
    for size, group in sizes.items():
        if len(group) > 1:
            for role, path in group:
                contents.setdefault((size, file_digest(path)), []).append((role, path))
    return [group for group in contents.values() if len(group) > 1]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _complaints(groups: Iterable[Group], tested: int) -> list[str]:
    """A line for each kind of overlap, with the number of pictures and one of them."""
    known, both, again = [], [], []
    for group in groups:
        by_role: dict[str, list[Path]] = {}
        for role, path in group:
            by_role.setdefault(role, []).append(path)
        test = by_role.get("nominal test", []) + by_role.get("anomalous test", [])
        nominal = by_role.get("training", []) + by_role.get("nominal test", [])
        anomalous = by_role.get("anomalous training", []) + by_role.get("anomalous test", [])
        trained = by_role.get("training", []) + by_role.get("anomalous training", [])
        if trained:
            known += [(path, trained[0]) for path in test]
        both += [(path, nominal[0]) for path in anomalous if nominal]
        for paths in by_role.values():
            again += [(path, paths[0]) for path in paths[1:]]
    complaints = []
    if known:
        complaints.append(
            f"test images that are training images too: {len(known)} of {tested} "
            f"({_example(known)}); their scores say nothing of unknown parts: remove them "
            "from one side"
        )
    if both:
        complaints.append(
            f"anomalous images that are nominal images too: {len(both)} ({_example(both)}); "
            "one of the labels is wrong: remove the wrong ones"
        )
    if again:
        complaints.append(
            f"copies of other images in the same set: {len(again)} ({_example(again)}); each counts"
        )
    return complaints


def _example(pairs: list[tuple[Path, Path]]) -> str:
    path, other = min(pairs)
    return f"such as {path} = {other}"
