"""Comparison of a split's files with one another: files with two roles, and equal pictures."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from patchcore.data.files import Identity, identity
from patchcore.digests import file_digests
from patchcore.errors import InputError, counted, printable

if TYPE_CHECKING:
    from patchcore.data.sample import Sample, Split

Group = list[tuple[str, Path]]
"""Roles and paths of files, compared with one another."""
Held = Sequence[tuple[Path, str | None]]
"""Images that a model holds: the path of each, and the digest of its file if it was recorded."""


def check_overlaps(train: "Sequence[Sample]", test: "Sequence[Sample]") -> None:
    """Refuse a file with two roles; warn about different files with the same contents.

    Only files of equal size are compared.

    Raises:
        InputError: a file, by any path or link, is both a training and a test image, both nominal
            and anomalous, or both an image and a region; a mask has the contents of its image; or a
            file is unreadable.
    """
    roles = _roles(train, test)
    first: dict[Identity, tuple[str, Path]] = {}
    for role, path in roles:
        other, there = first.setdefault(identity(path), (role, path))
        if other != role:
            same = "" if there == path else f", as {there}"
            raise InputError(
                f"{path}: is both one of the {role} images and one of the {other} images{same}; "
                "leave it in one of the two"
            )
    for region in dict.fromkeys(sample.region for sample in (*train, *test)):
        if region is not None and (found := first.get(identity(region))):
            raise InputError(
                f"{region}: marks the pixels that count (data.region or data.regions), and is one "
                f"of the {found[0]} images, too; move it to another folder"
            )
    for sample in test:
        if isinstance(sample.mask, Path) and equal_files([("", sample.path), ("", sample.mask)]):
            raise no_mask(sample.mask, sample.path)
    for text in complaints(equal_files(roles), len(test)):
        warnings.warn(printable(f"data: {text}"), stacklevel=3)


def no_mask(mask: Path, image: Path) -> InputError:
    """Return the error of a file of masks that is the masked image itself."""
    return InputError(f"{mask}: this mask is the picture {image} itself; restore the mask")


def check_pictures(split: "Split", held_out: bool = False) -> None:
    """Warn about different files with the same pixels, at the end of a run that has read them.

    Nothing is decoded for it. Pictures are compared as the network gets them, and only those that
    this process has read. Files with the same contents are left to `check_overlaps`.

    Args:
        split: Images of the run.
        held_out: Whether training images were scored by models without them, which may have been
            fitted to the same picture in another file.
    """
    if split.snapshot is None:
        return
    roles = {path: role for role, path in _roles(split.train, split.test)}
    groups = [[(roles[path], path) for path in group] for group in split.snapshot.alike()]
    for text in complaints(groups, len(split.test)):
        warnings.warn(printable(f"data: by their pixels, {text}"), stacklevel=3)
    twice = [group for group in groups if [role for role, _ in group].count("training") > 1]
    if held_out and twice:
        more = f" and {len(twice) - 1} more" if len(twice) > 1 else ""
        warnings.warn(
            printable(
                f"data: {twice[0][1][1]}{more}: a training image saved anew counts as another "
                "part, so the threshold of decision.false_alarms and the label-free score promise "
                "too much: keep one file of each"
            ),
            stacklevel=2,
        )


def check_known(held: Held, split: "Split") -> None:
    """Warn about test images to which a model was fitted, and about copies of these.

    Images are compared by the contents of their files: see `held_copies`. Test images that are
    training images of the split, too, are left out, as `check_overlaps` tells of them.

    Args:
        held: Images to which the model was fitted, as far as they are known.
        split: Images of the test.

    Raises:
        InputError: a file is unreadable.
    """
    known = held_copies(held, [sample.path for sample in split.test])
    trained: Group = [("training", sample.path) for sample in split.train] if known else []
    groups = equal_files([*trained, *(("test", path) for path, _ in known)])
    told = {path for group in groups if group[0][0] == "training" for _, path in group}
    known = [(path, other) for path, other in known if path not in told]
    tell_unknown(held)
    if known:
        warnings.warn(
            printable(
                f"data: test images that the model was fitted to: {len(known)} of "
                f"{len(split.test)} ({_example(known)}); their scores say nothing of unknown "
                "parts: leave them out"
            ),
            stacklevel=2,
        )


def held_copies(held: Held, paths: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Return each of the files that a model holds, or a copy of which, with the path in the model.

    Images of the model are compared by their recorded digests, wherever their files are now. Those
    without one are compared as far as their files are still there.

    Args:
        held: Images that the model holds.
        paths: Files to compare with these.

    Raises:
        InputError: a file is unreadable.
    """
    recorded = {digest: path for path, digest in sorted(held, reverse=True, key=_path) if digest}
    digests = file_digests(paths) if recorded else {}
    first = {path: recorded[each] for path, each in digests.items() if each in recorded}
    there = sorted({path for path, digest in held if digest is None and path.is_file()})
    groups = equal_files([*(("held", path) for path in there), *(("", path) for path in paths)])
    for (role, path), *others in groups:
        if role == "held":
            first |= {other: path for own, other in others if own != "held" and other not in first}
    return [(path, first[path]) for path in paths if path in first]


def _path(image: tuple[Path, str | None]) -> Path:
    return image[0]


def tell_unknown(held: Held) -> None:
    """Warn about images of a model whose copies `held_copies` cannot find."""
    gone = [path for path, digest in held if digest is None and not path.is_file()]
    if gone:
        is_or_are = "file is" if len(gone) == 1 else "files are"
        warnings.warn(
            printable(
                f"model: copies of {len(gone)} of its {counted(len(held), 'image')} are not "
                f"noticed, as their contents were not recorded and their {is_or_are} gone (such as "
                f"{min(gone)}): restore the files, or fit again"
            ),
            stacklevel=3,
        )


def _roles(train: "Sequence[Sample]", test: "Sequence[Sample]") -> Group:
    roles: Group = [("anomalous training" if s.label else "training", s.path) for s in train]
    return roles + [("anomalous test" if s.label else "nominal test", s.path) for s in test]


def equal_files(roles: Group) -> list[Group]:
    """Return the groups of two or more entries whose files have the same contents.

    Raises:
        InputError: a file is unreadable.
    """
    sizes: dict[int, Group] = {}
    for role, path in roles:
        sizes.setdefault(_size(path), []).append((role, path))
    alike = [(size, group) for size, group in sizes.items() if len(group) > 1]
    digests = file_digests(path for _, group in alike for _, path in group)
    contents: dict[tuple[int, str], Group] = {}
    for size, group in alike:
        for role, path in group:
            contents.setdefault((size, digests[path]), []).append((role, path))
    return [group for group in contents.values() if len(group) > 1]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def complaints(groups: Iterable[Group], tested: int) -> list[str]:
    """Return a line for each kind of overlap, with the number of images and an example."""
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
    return f"such as {path}" if path == other else f"such as {path} = {other}"
