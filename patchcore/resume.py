"""Which runs are finished, found again by what they computed and not by where they lie."""

import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from patchcore.cache import digest, file_digest, replace_with
from patchcore.data.sample import Sample, Split

FINGERPRINT_FILE = "fingerprint.txt"
WITHOUT_EFFECT = {
    "cache.enabled",
    "cache.limit_gib",
    "cache.root",
    "data.workers",
    "logger",
    "objectives",
    "paper",
    "resume",
    "trainer.default_root_dir",
    "trainer.enable_model_summary",
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
    "trainer.logger",
}
"""Settings that change no result."""


def fingerprint(settings: Mapping[str, Any], split: Split) -> str:
    """Names what a run computes: its resolved settings, the images' contents, this version.

    Two runs of one fingerprint have the same metrics, up to the seconds they took.
    Raises InputError if an image cannot be read.
    """
    networks = [settings, *settings.get("ensemble", {}).get("members", [])]
    weights = [Path(str((x.get("backbone") or {}).get("weights", ""))) for x in networks]
    return digest(
        _version(),
        _without_effectless(settings),
        [file_digest(file) if file.is_file() else None for file in weights],
        [_contents(sample) for sample in split.train],
        [_contents(sample) for sample in split.test],
    )


class Finished:
    """Remembers where runs were started, to find those that have finished.

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
            replace_with(pointer, str(folder.resolve()).encode())
        except OSError as error:
            warnings.warn(f"this run will not be found again: {error}", stacklevel=2)

    def find(self, name: str, files: Sequence[str] = ()) -> Path | None:
        """The folder of a finished run of this fingerprint that holds `files` too, or None."""
        for pointer in sorted((self.root / name).glob("[!.]*")):
            folder = Path(pointer.read_text())
            if finished_fingerprint(folder) == name and all((folder / x).is_file() for x in files):
                return folder
        return None


def finished_fingerprint(folder: Path) -> str | None:
    """Of the run in `folder`; None if it has not finished."""
    try:
        name = (folder / FINGERPRINT_FILE).read_text().strip()
    except OSError:
        return None
    return name if (folder / "metrics.json").is_file() else None


def _contents(sample: Sample) -> list[Any]:
    return [*sample.contents(), sample.label, sample.defect_type]


def _without_effectless(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    return {
        key: _without_effectless(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if f"{prefix}{key}" not in WITHOUT_EFFECT
    }


def _version() -> str:
    try:
        return version("patchcore")
    except PackageNotFoundError:  # used from a checkout that was never installed
        return ""
