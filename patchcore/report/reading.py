"""Run folders of any origin, read without trust.

Nothing in a folder is resolved, called or followed: interpolations stay text, YAML has neither tags
nor aliases, links that lead out of the folder are no files of the run. What is not as
`patchcore train` writes it makes the run a damaged one, which is listed and never shown as numbers.
"""

import csv
import io
import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from patchcore.costs import fresh
from patchcore.errors import InputError, printable
from patchcore.report.cells import restored
from patchcore.report.checks import STRUCTURES, is_finite, is_metric, problems
from patchcore.report.folders import own_file
from patchcore.report.words import flatten
from patchcore.yaml_text import read_settings

Settings = dict[str, Any]
"""{dotted key: value}; a list is a value."""

CATEGORY = "data.category"
LARGEST_YAML = 1 << 20  # bytes
LARGEST_JSON = 1 << 26
LARGEST_SCORES = 1 << 28
SCORES = ("path", "label", "defect_type", "score")
"""Columns of scores.csv."""
WITHOUT_EFFECT = (
    "cache",
    "figures",
    "hydra",
    "logger",
    "objectives",
    "paper",
    "pictures",
    "resume",
)
"""Groups of settings that change no result, in folders that do not tell it themselves."""
SETTINGS_WITHOUT_EFFECT = {
    "data.workers",
    "trainer.default_root_dir",
    "trainer.enable_model_summary",
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
    "trainer.logger",
}
"""Further settings that change no result, in folders that do not tell it themselves."""


@dataclass(eq=False)
class RunFolder:
    """One run as its folder tells it."""

    folder: Path
    settings: Settings
    metrics: dict[str, float] = field(default_factory=dict)  # those that are defined
    undefined: dict[str, str] = field(default_factory=dict)  # {metric: why}
    ratio_curve: list[dict[str, float]] = field(default_factory=list)  # one entry a ratio
    paper: dict[str, float] = field(default_factory=dict)  # {metric: the paper's value}
    choices: dict[str, Any] = field(default_factory=dict)  # {group: the file chosen from it}
    problem: str = ""  # why there are no metrics
    written: float = 0.0  # when, seconds since the epoch
    warm: list[str] = field(default_factory=list)  # stages that took results from a cache
    costs: Any = None  # what stages cost when nothing is read from it: see `patchcore.costs`
    spent: float = 0.0  # seconds, those of warm stages too
    digest: str = ""  # of the images; empty where the folder does not tell it
    idle: Settings = field(default_factory=dict)  # settings that had no effect on this run
    circumstances: Settings = field(default_factory=dict)  # code, versions, device, …
    traced: bool = False  # whether the folder tells which settings had an effect
    overrides: list[str] = field(default_factory=list)  # empty where the folder does not tell them

    @property
    def finished(self) -> bool:
        return not self.problem

    @property
    def category(self) -> str:
        """Empty for a data set without categories."""
        value = self.settings.get(CATEGORY)
        names = value if isinstance(value, list) else [value]
        return " + ".join(str(name) for name in names if name is not None)

    def why(self, metric: str) -> str:
        """Return why the run has no `metric`."""
        return self.problem or self.undefined.get(metric, "not in metrics.json")


def read_run(folder: Path) -> RunFolder:
    """One run; what cannot be read is told in `problem`."""
    run = RunFolder(folder, {})
    try:
        _read_settings(run)
    except (OSError, ValueError) as error:
        run.problem = f"unreadable settings: {_line(error)}"
    if not os.path.lexists(folder / "metrics.json"):
        run.problem = run.problem or "unfinished: no metrics.json"
        return run
    try:
        record = read_record(folder)
        run.written = (folder / "metrics.json").stat().st_mtime
        check_scores(folder, record.get("test_images"))
    except (OSError, ValueError) as error:
        run.problem = f"damaged: {_line(error)}"
        return run
    if not run.settings:
        run.problem = run.problem or "config.yaml is missing"
    _fill(run, record)
    # Hydra's own file is that of the last start, which may have failed and left these results.
    run.overrides = run.overrides or read_overrides(folder)
    return run


def read_overrides(folder: Path) -> list[str]:
    """Return the overrides that a run was started with; empty where its folder tells none."""
    try:
        text = _text(folder, ".hydra/overrides.yaml", LARGEST_YAML)
        content = yaml.load(text or "[]", getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return []
    return _texts(content)


def _texts(content: Any) -> list[str]:
    told = content if isinstance(content, list) else []
    return told if all(isinstance(each, str) for each in told) else []


def _read_settings(run: RunFolder) -> None:
    """Fill what config.yaml, provenance.json and Hydra's files tell."""
    folder = run.folder
    name = "config.yaml"
    if not os.path.lexists(folder / name):  # died before its own was written
        name = ".hydra/config.yaml"
    content = read_yaml(folder, name)
    paper = content.get("paper")
    if isinstance(paper, dict):
        run.paper = {str(k): float(v) for k, v in paper.items() if is_finite(v)}
    kept = {key: value for key, value in content.items() if key not in WITHOUT_EFFECT}
    whole = _referenced(flatten(kept), flatten(content))
    run.settings = {k: v for k, v in whole.items() if k not in SETTINGS_WITHOUT_EFFECT}
    if os.path.lexists(folder / "provenance.json"):
        provenance = read_json(folder, "provenance.json")
        choices, data = provenance.get("choices"), provenance.get("data")
        settings = provenance.get("settings")
        if not isinstance(settings, dict) or not settings:
            raise ValueError("provenance.json: settings must be a mapping")
        own, told = _text(folder, "fingerprint.txt", LARGEST_YAML), provenance.get("fingerprint")
        if own is not None and told is not None and own.strip() != told:
            raise ValueError("provenance.json: belongs to another run than fingerprint.txt")
        run.settings = flatten(settings)
        if CATEGORY in whole:  # names the column where it is part of the data, not of the settings
            run.settings.setdefault(CATEGORY, whole[CATEGORY])
        run.idle = {key: whole[key] for key in whole if key not in run.settings}
        run.circumstances = _circumstances(provenance)
        run.settings |= run.circumstances
        warm = provenance.get("warm")
        run.warm = [str(stage) for stage in warm] if isinstance(warm, list) else []
        run.costs = provenance.get("costs")
        run.overrides = _texts(provenance.get("overrides"))
        run.traced = True
        run.digest = json.dumps(data, sort_keys=True) if data else ""
    else:
        hydra = read_yaml(folder, ".hydra/hydra.yaml").get("hydra")
        runtime = hydra.get("runtime") if isinstance(hydra, dict) else None
        choices = runtime.get("choices") if isinstance(runtime, dict) else None
    if isinstance(choices, dict):
        run.choices = {
            str(k): v for k, v in choices.items() if "/" not in str(k) and k not in WITHOUT_EFFECT
        }


def _circumstances(provenance: dict[str, Any]) -> Settings:
    """Return what a result follows from beside its settings: {dotted name: value}."""
    classes = provenance.get("classes")
    found = {f"{k}.class": v for k, v in classes.items()} if isinstance(classes, dict) else {}
    kept = {k: v for k, v in provenance.items() if k in ("device", "precision", "versions")}
    if provenance.get("source"):
        kept["source"] = str(provenance["source"])[:8]
    return found | flatten(kept)


def read_yaml(folder: Path, name: str) -> dict[str, Any]:
    """A YAML mapping of a run's folder, interpolations as text; empty where there is no such file.

    Raises:
        ValueError: It is no mapping, too large, or has tags, anchors or aliases.
    """
    text = _text(folder, name, LARGEST_YAML)
    if text is None:
        return {}
    try:
        content = read_settings(text)
    except InputError as error:
        raise ValueError(f"{name}: {error}") from None
    except ValueError:
        raise ValueError(f"{name}: not settings") from None
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        at = "" if line is None else f" at line {line + 1}"
        raise ValueError(f"{name}: not YAML{at}") from None
    except Exception as error:  # OmegaConf's own, which have no common base with Python's
        raise ValueError(f"{name}: {type(error).__name__}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{name}: not a mapping")
    return {str(key): value for key, value in content.items()}


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON mapping of a run's folder, of finite numbers and without repeated keys.

    Raises:
        ValueError: It is not.
    """
    text = _text(folder, name, LARGEST_JSON)
    if text is None:
        raise ValueError(f"{name}: no file of this folder")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(items)) < len(items):
            raise ValueError("a key is there twice")
        return dict(items)

    def constant(word: str) -> float:
        raise ValueError(f"{word} is no number")

    try:
        content = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except RecursionError:
        raise ValueError(f"{name}: nested too deep") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{name}: not a mapping")
    return content


def read_record(folder: Path) -> dict[str, Any]:
    """The content of a finished run's metrics.json.

    Raises:
        ValueError: It is not as `patchcore train` writes it.
    """
    record = read_json(folder, "metrics.json")
    for problem in problems(record):
        raise ValueError(f"metrics.json: {problem}")
    return record


def check_scores(folder: Path, images: Any = None) -> None:
    """Check scores.csv of a run's folder, if it is there: one finite score an image.

    Raises:
        ValueError: It is not as `patchcore train` writes it, or not of as many images.
    """
    if not os.path.lexists(folder / "scores.csv"):
        return
    found = len(read_scores(folder))
    if images is not None and found != images:
        raise ValueError(f"scores.csv: {found} images, but metrics.json has {images}")


@dataclass(frozen=True)
class Score:
    """A row of scores.csv."""

    path: str
    label: int  # 0 nominal, 1 anomalous
    defect_type: str
    score: float


def read_scores(folder: Path) -> list[Score]:
    """The scores of a run's test images, names as they were.

    Raises:
        ValueError: scores.csv is not as `patchcore train` writes it.
    """
    text = _text(folder, "scores.csv", LARGEST_SCORES)
    if text is None:
        raise ValueError("scores.csv: no file of this folder")
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise ValueError(f"scores.csv: {error}") from None
    found = []
    for number, row in enumerate(rows, 2):
        path, label, kind, score = (row.get(key) for key in SCORES)
        if None in row or path is None or kind is None or label not in ("0", "1"):
            raise ValueError(f"scores.csv: row {number} is damaged")
        if score is None or not _is_score(score):
            raise ValueError(f"scores.csv: row {number} is damaged")
        found.append(Score(restored(path), int(label), restored(kind), float(score)))
    return found


def _fill(run: RunFolder, record: dict[str, Any]) -> None:
    """Take over what a sound metrics.json tells, and what follows from it."""
    numbers = {k: v for k, v in record.items() if k not in STRUCTURES and is_metric(k, v)}
    numbers |= flatten({"seconds": record.get("seconds") or {}})
    run.metrics = {key: value for key, value in numbers.items() if value is not None}
    reasons = {
        printable(key): printable(" ".join(why.split()))[:300]
        for key, why in (record.get("undefined") or {}).items()
    }
    for key, value in numbers.items():
        if value is None:
            run.undefined[key] = reasons.get(key) or "null in metrics.json, without a reason"
    run.undefined = {**reasons, **run.undefined}
    run.ratio_curve = [
        {key: value for key, value in entry.items() if value is not None}
        for entry in record.get("ratio_curve") or []
    ]
    seconds = {k: v for k, v in run.metrics.items() if k.startswith("seconds.")}
    if seconds:
        run.spent = run.metrics["seconds"] = math.fsum(seconds.values())
    if run.metrics.get("test_images") and "seconds.score" in seconds:
        each = seconds["seconds.score"] / run.metrics["test_images"]
        run.metrics["milliseconds_per_image"] = 1000 * each
    run.warm = list(record.get("warm") or run.warm)
    known = _costs(run)
    run.metrics |= known
    for stage in run.warm:
        spoilt = ["seconds", f"seconds.{stage}"]
        for key in spoilt + (["milliseconds_per_image"] if stage == "score" else []):
            if key not in known and run.metrics.pop(key, None) is not None:
                stages = " and ".join(run.warm)
                run.undefined[key] = f"warm: {stages} took results from a cache, so it is no cost"


def _costs(run: RunFolder) -> dict[str, float]:
    """Seconds as they are when nothing is read from the cache, as far as they are known."""
    told = {f"seconds.{stage}": fresh(run.costs, stage) for stage in run.warm}
    told["seconds"], scoring = fresh(run.costs), fresh(run.costs, "score", metrics=False)
    if scoring is not None and (images := run.metrics.get("test_images")):
        told["milliseconds_per_image"] = 1000 * scoring / images
    return {key: value for key, value in told.items() if value is not None}


def _is_score(text: str) -> bool:
    number = r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?"
    return re.fullmatch(number, text, re.ASCII) is not None and math.isfinite(float(text))


def _text(folder: Path, name: str, most: int) -> str | None:
    """The text of a run's own file; None where it has none, or a link leads elsewhere."""
    path = own_file(folder, name)
    if path is None:
        return None
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{name}: larger than {most} bytes")
    return data.decode("utf-8", "surrogateescape" if name == "scores.csv" else "strict")


def _referenced(kept: Settings, everything: Settings, depth: int = 8) -> Settings:
    """Settings with ${other.key} replaced by that key's value; any other interpolation is text."""

    def value(given: Any) -> Any:
        for _ in range(depth):
            found = re.fullmatch(r"\$\{([\w.]+)\}", given) if isinstance(given, str) else None
            if found is None or found[1] not in everything:
                return given
            given = everything[found[1]]
        return given

    return {key: value(given) for key, given in kept.items()}


def _line(error: Exception) -> str:
    """An error in one line, without the paths and contents that Python adds."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200]
