"""Finished runs, found again by what they computed and not by where they lie."""

import contextlib
import csv
import json
import math
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from patchcore.cache import replace_with
from patchcore.data.sample import Sample
from patchcore.digests import digest
from patchcore.metrics.sweep import auroc, sweep
from patchcore.report.cells import harmless
from patchcore.report.checks import STRUCTURES
from patchcore.report.folders import PICTURES, Images

FINGERPRINT_FILE = "fingerprint.txt"
PROVENANCE_FILE = "provenance.json"
SOURCE_FILE = "resumed_from.txt"
"""File in the folder of a run that was taken over: it names the folder where it was computed."""


class Finished:
    """Memory of where runs were started, to find those that have finished.

    One small file a run, written before it begins: a process that is killed can forget nothing.
    The run's folder has its fingerprint too, and has finished when it also holds `metrics.json`.

    Args:
        root: Folder shared by all runs of a user.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def started(self, name: str, folder: Path) -> None:
        """Remember that the run of fingerprint `name` is in `folder`."""
        pointer = self.root / name / digest(folder.resolve())
        try:
            pointer.parent.mkdir(parents=True, exist_ok=True)
            replace_with(pointer, bytes(folder.resolve()))
        except OSError as error:
            warnings.warn(f"this run will not be found again: {error}", stacklevel=2)

    def find(self, name: str, files: Sequence[str] = (), folder: Path | None = None) -> Path | None:
        """Folder of a finished run of this fingerprint that holds `files` too, or None.

        It is `folder` if that is one of several. What is damaged is passed over with a warning, for
        the run to be made again.
        """
        own = digest(folder.resolve()) if folder is not None else ""
        try:
            found = (p for p in (self.root / name).iterdir() if p.name[0] != ".")
            pointers = sorted(found, key=lambda p: (p.name != own, p.name))
        except OSError:  # there is none
            return None
        for pointer in pointers:
            folder = _pointed(pointer)
            if folder is None or _read_fingerprint(folder) != name:
                continue
            if not (folder / "metrics.json").is_file():
                continue
            if problem := damage(folder):
                warnings.warn(f"{problem}; the run is made again", stacklevel=2)
            elif all((folder / file).is_file() for file in files):
                return folder
        return None


def finished_fingerprint(folder: Path) -> str | None:
    """Fingerprint of the run in `folder`; None if it has not finished, or is damaged."""
    finished = (folder / "metrics.json").is_file() and damage(folder) is None
    return _read_fingerprint(folder) if finished else None


_DAMAGE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError),
    *(OverflowError, RecursionError, csv.Error),
)
"""Errors that reading a damaged file may end with."""


def damage(folder: Path) -> str | None:
    """Reason not to rely on the results of a finished run: a file and its fault; or None."""
    for file, check in (
        ("metrics.json", _check_metrics),
        ("scores.csv", _check_scores),
        (PROVENANCE_FILE, _check_provenance),
    ):
        try:
            if (folder / file).exists() and not (folder / file).is_file():
                raise ValueError("it is no file")  # a pipe would never end
            check(folder)
        except _DAMAGE as error:
            reason = error.strerror if isinstance(error, OSError) else error
            return f"{folder / file} is damaged ({' '.join(str(reason).split())})"
    return None


def write_provenance(folder: Path, provenance: Mapping[str, Any]) -> None:
    """Write what the results in `folder` follow from; see `patchcore.identity.Identity`.

    Besides those fields it holds `choices` and `overrides`, as Hydra has them, and once the run has
    finished `warm`, names of the stages whose seconds were spent reading the cache, and `costs`,
    what stages cost when nothing is read from it (`patchcore.costs`).
    """
    text = json.dumps(provenance, indent=2, default=str)
    replace_with(folder / PROVENANCE_FILE, f"{text}\n".encode())


def read_provenance(folder: Path) -> dict[str, Any]:
    """Read what the results in `folder` follow from; empty if that is not there or not legible."""
    try:
        found = json.loads(_text(folder / PROVENANCE_FILE))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def read_source(folder: Path) -> str:
    """Read where the run in `folder` was computed; empty if that was there."""
    try:
        return _text(folder / SOURCE_FILE).strip()
    except OSError:
        return ""


def copy_scores(source: Path, samples: Sequence[Sample], folder: Path) -> dict[str, str]:
    """Write the scores of the finished run in `source` beside the paths of these samples.

    They are the test images in its order, as another run finds them. Returns their paths there by
    those in `source`.
    """
    names = [harmless(sample.name) for sample in samples]
    with (source / "scores.csv").open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    with (folder / "scores.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for name, row in zip(names, rows, strict=True):
            writer.writerow([name, *row[1:]])
    return dict(zip((row[0] for row in rows), names, strict=True))


def copy_pictures(source: Path, images: Images, names: Mapping[str, str], folder: Path) -> None:
    """Copy pictures of single test images from a finished run, and the list of them.

    Args:
        source: Folder of the run.
        images: Of which images they are.
        names: Paths of the images by those in `source`.
        folder: Where to.
    """
    if (source / PICTURES).is_dir():  # there are none where the threshold gets nothing wrong
        shutil.copytree(source / PICTURES, folder / PICTURES)
    told = f"figures/{images.list_name}"
    with (source / told).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        head, *rows = csv.reader(file)
    with (folder / told).open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows([names.get(path, path), picture] for path, picture in rows)


def _pointed(pointer: Path) -> Path | None:
    """The folder that a pointer names; one that names none is dropped, with a warning."""
    try:
        folder = Path(pointer.read_bytes().decode(errors="surrogateescape"))
        if folder.is_absolute() and "\0" not in str(folder):
            return folder
    except OSError:
        return None
    warnings.warn(f"{pointer} is damaged; it is dropped", stacklevel=3)
    with contextlib.suppress(OSError):
        pointer.unlink()
    return None


def _read_fingerprint(folder: Path) -> str | None:
    try:
        return _text(folder / FINGERPRINT_FILE).strip()
    except (OSError, ValueError):
        return None


def _text(path: Path) -> str:
    if not path.is_file():  # a pipe would never end
        raise FileNotFoundError(f"{path} is no file")
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
        raise ValueError("test_images is no count")


def _check_number(key: str, value: Any) -> None:
    if value is None:  # undefined
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} is {value!r}")


def _check_scores(folder: Path) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    with (folder / "scores.csv").open(newline="") as file:
        rows = [(int(row["label"]), float(row["score"])) for row in csv.DictReader(file)]
    if len(rows) != metrics["test_images"]:
        raise ValueError(f"{len(rows)} rows for {metrics['test_images']} images")
    if not all(math.isfinite(score) for _, score in rows):
        raise ValueError("a score is not finite")
    split = [torch.tensor([x for each, x in rows if each == label]).double() for label in (0, 1)]
    told, found = metrics.get("image_auroc"), float(auroc(sweep(*split)))
    if told is not None and not math.isclose(told, found, abs_tol=1e-6):
        raise ValueError(f"its image AUROC is {found:.6f}, that of metrics.json {told:.6f}")


def _check_provenance(folder: Path) -> None:
    provenance = json.loads((folder / PROVENANCE_FILE).read_text())
    if provenance["fingerprint"] != _read_fingerprint(folder):
        raise ValueError("it is of another run")
    if not isinstance(provenance["settings"], dict) or not isinstance(provenance["warm"], list):
        raise ValueError("settings or warm are missing")
