"""Folders of runs, and the files that are theirs."""

import os
from enum import Enum
from pathlib import Path

PICTURES = "figures/images"
"""Folder in a run's folder with pictures of single test images."""


class Images(Enum):
    """Test images of which a run leaves a picture each."""

    none = "none"
    all = "all"
    wrong = "wrong"  # those that the threshold gets wrong

    @property
    def list_name(self) -> str:
        """Name, in figures/, of the file that lists the pictures: columns path and picture."""
        return f"images_{self.value}.csv"


def find_runs(folder: Path) -> list[Path]:
    """Folders, in or below `folder`, of finished runs and of begun ones, as absolute paths.

    A begun run holds settings but no metrics, and lies neither in nor around another run. Hidden
    folders and those of W&B, which keeps a config.yaml of its own, are left out. Links are followed
    but for those inside runs.
    """
    finished: list[Path] = []
    begun: list[Path] = []
    seen: set[Path] = set()
    for name, folders, files in os.walk(folder, followlinks=True):
        path = Path(name).resolve()
        if path in seen:
            folders.clear()  # a link back, or a second one
            continue
        seen.add(path)
        settings = "config.yaml" in files or os.path.lexists(path / ".hydra" / "config.yaml")
        if "metrics.json" in files:
            finished.append(path)
        elif settings:
            begun.append(path)
        folders[:] = [name for name in folders if not name.startswith(".") and name != "wandb"]
        if settings:
            folders[:] = [name for name in folders if not (path / name).is_symlink()]
    around = {parent for path in finished for parent in path.parents}
    runs = {*finished, *begun}
    return [*finished, *(p for p in begun if p not in around and runs.isdisjoint(p.parents))]


def own_file(folder: Path, name: str) -> Path | None:
    """A regular file of a run's folder; None if there is none or a link leads elsewhere."""
    path = folder / name
    try:
        inside = path.resolve(strict=True).is_relative_to(folder.resolve())
        return path if inside and path.is_file() else None
    except (OSError, RuntimeError):
        return None
