"""Search for folders of runs, and access to the files in them."""

import csv
import io
import os
from pathlib import Path

from patchcore.report.cells import restored
from patchcore.settings import Choice

PICTURES = "figures/images"
"""Folder in a run's folder with pictures of single test images."""

ERROR_FILE = "error.txt"
"""File in the folder of a failed point: the reason and, unless it is bad input, the traceback."""
SETTINGS = ".hydra"
"""Folder in which Hydra keeps the settings that it started a run with."""

LARGEST_LIST = 1 << 24
"""Bytes of the file that lists a run's pictures; a larger one is not read."""


class Images(Choice):
    """Test images for which a run saves a picture each."""

    none = "none"
    all = "all"
    wrong = "wrong"  # those that the threshold gets wrong

    @property
    def list_name(self) -> str:
        """Name, in figures/, of the file that lists the pictures: columns path and picture."""
        return f"images_{self.value}.csv"


def find_runs(folder: Path) -> list[Path]:
    """Return the absolute paths of finished and unfinished runs in or below `folder`.

    The folder of an unfinished run holds settings but no metrics, and neither contains another run
    nor is inside one. Hidden folders are left out, and so are those of W&B, which hold their own
    config.yaml. A link is followed if it leads to a run or to a folder of runs, and does not lie
    inside a run: what others lead to may be large. A folder that cannot be read counts as an
    unfinished run, because it may hold one.
    """
    finished: list[Path] = []
    begun: list[Path] = []
    seen: set[Path] = set()

    def unreadable(error: OSError) -> None:
        begun.append(Path(error.filename).resolve())

    for name, folders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        path = Path(name).resolve()
        if path in seen:
            folders.clear()  # reached by a link before
            continue
        seen.add(path)
        settings = "config.yaml" in files or os.path.lexists(path / SETTINGS / "config.yaml")
        if "metrics.json" in files:
            finished.append(path)
        elif settings:
            begun.append(path)
        folders[:] = [name for name in folders if not name.startswith(".") and name != "wandb"]
        links = {name for name in folders if (path / name).is_symlink()}
        kept = {name for name in links if not settings and _holds_runs(path / name)}
        folders[:] = [name for name in folders if name not in links or name in kept]
    around = {parent for path in finished for parent in path.parents}
    runs = {*finished, *begun}
    return [*finished, *(p for p in begun if p not in around and runs.isdisjoint(p.parents))]


def _holds_runs(folder: Path) -> bool:
    """Whether a folder is a run, or holds one at once."""
    try:
        with os.scandir(folder) as entries:
            return _is_run(folder) or any(each.is_dir() and _is_run(each.path) for each in entries)
    except OSError:
        return False


def _is_run(folder: Path | str) -> bool:
    names = ("metrics.json", "config.yaml", f"{SETTINGS}/config.yaml")
    return any(os.path.lexists(os.path.join(folder, name)) for name in names)


def own_file(folder: Path, name: str) -> Path | None:
    """Return the path of a regular file in a run's folder.

    None if there is no such file, or if a link leads out of the folder.
    """
    path = folder / name
    try:
        inside = path.resolve(strict=True).is_relative_to(folder.resolve())
        return path if inside and path.is_file() else None
    except (OSError, RuntimeError, ValueError):  # the last one for a name with a NUL
        return None


def listed_pictures(folder: Path, images: Images) -> list[tuple[str, str]] | None:
    """Return (path of a test image in scores.csv, path of its picture in a run's folder) of each.

    None if the folder has no such list of pictures, or a damaged one.

    Raises:
        OSError: The list cannot be read.
    """
    path = own_file(folder, f"figures/{images.list_name}")
    if path is None or path.stat().st_size > LARGEST_LIST:
        return None
    text = path.read_text("utf-8", "surrogateescape")
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except csv.Error:
        return None
    found = [(row.get("path"), row.get("picture")) for row in rows]
    return [(restored(name), restored(picture)) for name, picture in found if name and picture]


def failure(folder: Path) -> str:
    """Return the first line of the error file in a failed point's folder; empty if there is none.

    It has at most 300 characters.
    """
    path = own_file(folder, ERROR_FILE)
    if path is None:
        return ""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return " ".join(file.readline(1 << 12).split())[:300]
    except OSError:
        return ""
