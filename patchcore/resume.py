"""Finished runs, found again by the fingerprint of what they computed."""

import contextlib
import csv
import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from patchcore.checksums import altered
from patchcore.data.sample import Sample
from patchcore.digests import digest
from patchcore.machine import warn_not_kept
from patchcore.report.cells import harmless, restored
from patchcore.report.checks import STRUCTURES
from patchcore.report.distrusted import DISTRUSTED, read_distrusted
from patchcore.report.folders import Images, own_file
from patchcore.report.reading import SCORES, check_scores
from patchcore.writing import content_of, remove, replace_with

FINGERPRINT_FILE = "fingerprint.txt"
PROVENANCE_FILE = "provenance.json"
SOURCE_FILE = "resumed_from.txt"
"""File in a folder whose results were copied: it names the folder where they were computed."""


class Finished:
    """Record of the folders where runs were started, to find the finished ones.

    Each run has one small file that points to its folder, written before the run begins, so that
    a killed process leaves it too. The run's folder holds the fingerprint as well. The run has
    finished when the folder also holds `metrics.json`.

    Args:
        root: Folder shared by all runs of a user.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def started(self, name: str, folder: Path) -> None:
        """Record that the run with fingerprint `name` is in `folder`; only warn if that fails."""
        pointer = self.root / name / digest(folder.resolve())
        try:
            if pointer.is_file():  # written by an earlier run in this folder
                return
            pointer.parent.mkdir(parents=True, exist_ok=True)
            replace_with(pointer, bytes(folder.resolve()))
        except OSError as error:
            told = f"runs are not recorded in the cache {self.root}, and may be computed again"
            warn_not_kept(told, error, self.root)

    def find(
        self,
        name: str,
        files: Sequence[str] = (),
        folder: Path | None = None,
        model: Callable[[Path], Sequence[str]] = lambda place: (),
        flaw: Callable[[Path], str | None] = lambda place: None,
    ) -> Path | None:
        """Return the folder of a finished run with this fingerprint, or None.

        A damaged run, or one with a flaw, is skipped with a warning.

        Args:
            name: Fingerprint.
            files: Files that the folder must hold besides, as paths relative to it.
            folder: Folder to look in first, whether or not it is recorded.
            model: Function that names the files of the model that a run must hold, if any.
            flaw: Function that says what is wrong with the model of a run that holds the model's
                files, or None.
        """
        own = None if folder is None else folder.resolve()
        sound, problems = None, []
        for place in self._places(name, own):
            if _read_fingerprint(place) != name:
                continue
            if not (place / "metrics.json").is_file():
                continue
            if problem := damage(place):
                problems.append(problem)
                continue
            needed = model(place)
            if not all((place / file).is_file() for file in (*files, *needed)):
                continue
            if needed and (problem := flaw(place)):
                problems.append(problem)
            else:
                sound = place
                break
        instead = "the run is made again" if sound is None else f"{sound} has the same results"
        for problem in problems:
            warnings.warn(f"{problem}; {instead}", stacklevel=2)
        return sound

    def _places(self, name: str, own: Path | None) -> Iterator[Path]:
        """Yield folders where a run with this fingerprint may have finished, `own` first.

        The records may be gone, or may name the place where a folder was before it was moved.
        """
        if own is not None:
            yield own
        try:
            pointers = sorted(p for p in (self.root / name).iterdir() if p.name[0] != ".")
        except OSError:  # there is none
            return
        for pointer in pointers:
            place = _pointed(pointer)
            if place is not None and place != own:
                yield place


def finished_fingerprint(folder: Path) -> str | None:
    """Return the fingerprint of the run in `folder`; None if it is unfinished or damaged."""
    finished = (folder / "metrics.json").is_file() and damage(folder) is None
    return _read_fingerprint(folder) if finished else None


_DAMAGE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError),
    *(OverflowError, RecursionError, csv.Error),
)
"""Errors that reading a damaged file may raise."""


def damage(folder: Path) -> str | None:
    """Return what is wrong with the results of a finished run, file and reason; None if sound."""
    for file, check in (
        ("metrics.json", _check_metrics),
        ("scores.csv", _check_scores),
        (DISTRUSTED, _check_distrusted),
        (PROVENANCE_FILE, _check_provenance),
    ):
        try:
            if (folder / file).exists() and not (folder / file).is_file():
                raise ValueError("it is not a file")  # a pipe would never end
            check(folder)
        except _DAMAGE as error:
            if altered(folder, besides=["config.yaml", file]):
                break  # that file does not fit, not this one
            if isinstance(error, FileNotFoundError):
                return f"{folder / file} is missing"
            if isinstance(error, OSError):
                return f"{folder / file} cannot be read ({error.strerror})"
            words = " ".join(str(error).split()).removeprefix(f"{file}: ")
            return f"{folder / file} is damaged ({words})"
    if found := altered(folder, besides=["config.yaml"]):  # which a resumed run writes anew
        return f"{folder / found[0]} is damaged (it {found[1]})"
    return None


def write_provenance(folder: Path, provenance: Mapping[str, Any]) -> None:
    """Write `provenance.json`: all that the results in `folder` depend on.

    It holds the fields of `patchcore.identity.Identity.provenance` and Hydra's `choices` and
    `overrides`. A point of a multirun with `artifact=best` adds `patchcore.keeping.POINT_OF`. A
    finished run adds `warm`, names of the stages that read the cache, and `costs`,
    seconds that stages take when nothing is read from the cache (`patchcore.costs`).
    """
    text = json.dumps(provenance, indent=2, default=str)
    replace_with(folder / PROVENANCE_FILE, f"{text}\n".encode())


def read_provenance(folder: Path) -> dict[str, Any]:
    """Read `provenance.json` of a run's folder; empty if it is missing or cannot be read."""
    try:
        found = json.loads(_text(folder / PROVENANCE_FILE))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def read_source(folder: Path) -> str:
    """Read in which folder the run was computed; empty if it was computed in `folder` itself."""
    try:
        return _text(folder / SOURCE_FILE).strip()
    except OSError:
        return ""


def copy_scores(
    source: Path, samples: Sequence[Sample], folder: Path, categories: Sequence[str] = ()
) -> dict[str, str]:
    """Copy the scores of the finished run in `source`, under the paths of the current test images.

    Args:
        source: Folder of the finished run.
        samples: Test images of the current run, in the order of the finished one.
        folder: Folder of the current run.
        categories: Their categories, as scores.csv has them; by default each sample's own.

    Returns:
        {path of an image in `source`: its path in `samples`}.
    """
    names = [harmless(sample.name) for sample in samples]
    own = categories or [harmless(sample.category) for sample in samples]
    with (source / "scores.csv").open(newline="", encoding="utf-8") as file:
        _, *rows = csv.reader(file)
    with (folder / "scores.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(SCORES)
        for name, row, category in zip(names, rows, own, strict=True):
            writer.writerow([name, *row[1:4], category])
    return dict(zip((row[0] for row in rows), names, strict=True))


def copy_pictures(
    source: Path,
    images: Images,
    names: Mapping[str, str],
    places: Mapping[str, str],
    folder: Path,
) -> None:
    """Copy pictures of single test images from a finished run, and the list of them.

    Each gets the place that the image's path in the current run gives; the path that is drawn in it
    stays that of the finished run.

    Args:
        source: Folder of the finished run.
        images: Choice of the images that have pictures.
        names: {path of an image in `source`: its path in the current run}.
        places: {path of an image in the current run: place of its picture in a run's folder}.
        folder: Folder of the current run.
    """
    told = f"figures/{images.list_name}"
    with (source / told).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        head, *rows = csv.reader(file)
    with (folder / told).open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for path, picture in rows:
            name = names.get(path, path)
            before = own_file(source, restored(picture))
            if before is not None and name in places:
                picture = harmless(places[name])
                (folder / places[name]).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(before, folder / places[name])
            writer.writerow([name, picture])


def _pointed(pointer: Path) -> Path | None:
    """Return the folder that a pointer names; drop a damaged pointer with a warning."""
    try:
        if (held := content_of(pointer)) is None:
            return None
        folder = Path(held.decode(errors="surrogateescape"))
        if folder.is_absolute() and "\0" not in str(folder):
            return folder
    except OSError:
        return None
    warnings.warn(f"{pointer} is damaged; it is dropped", stacklevel=3)
    with contextlib.suppress(OSError):
        remove(pointer)
    return None


def _read_fingerprint(folder: Path) -> str | None:
    try:
        return _text(folder / FINGERPRINT_FILE).strip()
    except (OSError, ValueError):
        return None


def _text(path: Path) -> str:
    if not path.is_file():  # a pipe would never end
        raise FileNotFoundError(f"{path} is not a file")
    return path.read_text()


def _check_metrics(folder: Path) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    for key, value in metrics.items():
        if key not in STRUCTURES:
            _check_number(key, value)
    for key, value in metrics["seconds"].items():
        _check_number(f"seconds.{key}", value)
        if value is None or value < 0:
            raise ValueError(f"seconds.{key} is {value}")
    if not isinstance(metrics["test_images"], int):
        raise ValueError("test_images is not a whole number")


def _check_number(key: str, value: Any) -> None:
    if value is None:  # undefined
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} is {value!r}")


def _check_scores(folder: Path) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    if not (folder / "scores.csv").exists():
        raise ValueError("it is missing")
    check_scores(folder, metrics["test_images"], metrics.get("image_auroc"))


def _check_distrusted(folder: Path) -> None:
    if not (folder / DISTRUSTED).exists():  # most runs have none
        return
    count = json.loads((folder / "metrics.json").read_text())["train_images"]
    if any(not 0 <= number < count for number in read_distrusted(folder)):
        raise ValueError(f"a number is not one of the {count} training images")


def _check_provenance(folder: Path) -> None:
    provenance = json.loads((folder / PROVENANCE_FILE).read_text())
    if provenance["fingerprint"] != _read_fingerprint(folder):
        raise ValueError("it belongs to another run")
    if not isinstance(provenance["settings"], dict) or not isinstance(provenance["warm"], list):
        raise ValueError("settings or warm are missing")
