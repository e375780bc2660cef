"""The end of a multirun: which points failed, and why. Works with any launcher."""

import sys
import time
import traceback
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from patchcore.config import explain

ERROR_FILE = "error.txt"
"""In the folder of a point that failed: why, and for anything but bad input the traceback."""

_multiruns: list[tuple[Path, float]] = []  # folder and start of those of this process


class Conclusion(Callback):
    """Remembers where a multirun of this process keeps its points; `conclude` reads them."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra."""
        _multiruns.append((Path(str(config.hydra.sweep.dir)), time.time()))


def record_failure(folder: Path, error: Exception) -> None:
    """Leave word of why the point in `folder` failed."""
    text = explain(error)
    if text is None:
        text = f"{type(error).__name__}: {error}\n\n" + "".join(traceback.format_exception(error))
    (folder / ERROR_FILE).write_text(text.rstrip() + "\n")


def failures(folder: Path, since: float = 0.0) -> list[tuple[Path, str]]:
    """Points below a multirun's folder that were started after `since` and did not finish."""
    found = []
    for overrides in sorted(folder.rglob(".hydra/overrides.yaml"), key=_numerically):
        point = overrides.parents[1]
        if overrides.stat().st_mtime < since or (point / "metrics.json").is_file():
            continue
        error = point / ERROR_FILE
        lines = error.read_text().splitlines() if error.is_file() else []
        found.append((point, lines[0] if lines else "it ended without a word: killed?"))
    return found


def conclude() -> None:
    """List the points of this process's multirun that failed, and exit with code 1 if any did."""
    missing = []
    while _multiruns:
        folder, start = _multiruns.pop()
        missing += failures(folder, since=start - 2)  # file systems may round times
    if missing:
        print(f"\nerror: {len(missing)} of the points failed:", file=sys.stderr)
        for point, reason in missing:
            print(f"  {point}: {_overrides(point)}\n    {reason}", file=sys.stderr)
        print("Started again, the same command computes only these.", file=sys.stderr)
        sys.exit(1)


def _overrides(point: Path) -> str:
    lines = (point / ".hydra" / "overrides.yaml").read_text().splitlines()
    return " ".join(line.removeprefix("- ") for line in lines)


def _numerically(path: Path) -> list[tuple[int, str]]:
    """Sorts 2 before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.parts]
