"""Readers of run folders from any origin, which are not trusted.

Nothing in a folder is resolved, called or followed: interpolations stay text, YAML with tags or
aliases is refused, and links that lead out of the folder count as missing files. A run whose files
are not as `patchcore train` writes them is damaged: reports list it, but without numbers.
"""

import csv
import io
import json
import math
import os
import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from patchcore.checksums import altered
from patchcore.costs import fresh
from patchcore.errors import InputError, counted, printable
from patchcore.report.cells import restored
from patchcore.report.checks import STRUCTURES, is_finite, is_metric, is_number, problems
from patchcore.report.folders import SETTINGS, failure, own_file
from patchcore.report.words import flatten, show
from patchcore.yaml_text import read_settings

Settings = dict[str, Any]
"""{dotted key: value}; a list is a value."""

CATEGORY = "data.category"
LARGEST_YAML = 1 << 20  # bytes
LARGEST_JSON = 1 << 26
LARGEST_SCORES = 1 << 28
SCORES = ("path", "label", "defect_type", "score", "category")
"""Columns of scores.csv; earlier versions have not written the last."""
WITHOUT_EFFECT = (
    *("cache", "figures", "hydra", "logger"),
    *("objectives", "paper", "pictures", "resume"),
)
"""Groups of settings that change no result, for folders without provenance.json."""
SETTINGS_WITHOUT_EFFECT = {
    "data.workers",
    "trainer.default_root_dir",
    "trainer.enable_model_summary",
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
    "trainer.logger",
}
"""Further settings that change no result, for folders without provenance.json."""


@dataclass(eq=False)
class RunFolder:
    """One run, as read from its folder."""

    folder: Path
    settings: Settings
    metrics: dict[str, float] = field(default_factory=dict)  # only defined ones
    undefined: dict[str, str] = field(default_factory=dict)  # {metric: reason}
    ratio_curve: list[dict[str, float]] = field(default_factory=list)  # one entry per ratio
    paper: dict[str, float] = field(default_factory=dict)  # {metric: the paper's value}
    choices: dict[str, Any] = field(default_factory=dict)  # {group: the file chosen from it}
    problem: str = ""  # why there are no metrics
    edited: bool = False  # whether config.yaml is no longer as the run wrote it
    written: float = 0.0  # time of metrics.json, seconds since the epoch
    warm: list[str] = field(default_factory=list)  # stages that took results from a cache
    costs: Any = None  # seconds of stages when no cache is read: see `patchcore.costs`
    spent: float = 0.0  # seconds of all stages, warm ones included
    digest: str = ""  # of the images; empty if unknown
    idle: Settings = field(default_factory=dict)  # settings that had no effect on this run
    circumstances: Settings = field(default_factory=dict)  # code, versions, device, …
    traced: bool = False  # whether the folder records which settings had an effect
    overrides: list[str] = field(default_factory=list)  # empty if unknown
    options: list[str] = field(default_factory=list)  # that say where settings files are
    objectives: list[str] = field(default_factory=list)  # empty if unknown

    @property
    def finished(self) -> bool:
        return not self.problem

    @property
    def category(self) -> str:
        """Category, or several joined by ` + `; empty for a data set without categories."""
        value = self.settings.get(CATEGORY)
        names = value if isinstance(value, list) else [value]
        return " + ".join(str(name) for name in names if name is not None)

    def why(self, metric: str) -> str:
        """Return why the run has no `metric`."""
        return self.problem or self.undefined.get(metric, "not in metrics.json")


def read_run(folder: Path) -> RunFolder:
    """Return the run in a folder; `problem` says what cannot be read."""
    run = RunFolder(folder, {})
    try:
        os.scandir(folder).close()
    except OSError as error:
        run.problem = f"the folder cannot be read ({error.strerror})"
        return run
    try:
        _read_settings(run)
    except (OSError, ValueError, RecursionError) as error:
        run.problem = _problem("unreadable settings", error)
    if not os.path.lexists(folder / "metrics.json"):
        run.problem = run.problem or f"unfinished: {failure(folder) or 'no metrics.json'}"
        return run
    try:
        record = read_record(folder)
        run.written = (folder / "metrics.json").stat().st_mtime
        check_scores(folder, record.get("test_images"), record.get("image_auroc"))
        check_unaltered(folder, "config.yaml")
        run.edited = altered(folder) is not None
        _fill(run, record)
    except (OSError, ValueError) as error:
        run.metrics, run.undefined, run.ratio_curve, run.spent = {}, {}, [], 0.0
        run.problem = _problem("damaged", error)
        return run
    if not run.settings:
        run.problem = run.problem or "config.yaml is missing"
    # Hydra's own file belongs to the last start, which may have failed and left earlier results.
    run.overrides = run.overrides or read_overrides(folder)
    return run


def read_overrides(folder: Path) -> list[str]:
    """Return the overrides in Hydra's file of a run's folder; empty if there is none."""
    try:
        text = _text(folder, f"{SETTINGS}/overrides.yaml", LARGEST_YAML)
        content = yaml.load(text or "[]", getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return []
    return _texts(content)


def _texts(content: Any) -> list[str]:
    told = content if isinstance(content, list) else []
    return told if all(isinstance(each, str) for each in told) else []


def _read_settings(run: RunFolder) -> None:
    """Fill `run` with the content of config.yaml, provenance.json and Hydra's files."""
    folder = run.folder
    name = "config.yaml"
    if not os.path.lexists(folder / name):  # the run ended before it wrote its own file
        name = f"{SETTINGS}/config.yaml"
    content = read_yaml(folder, name)
    run.objectives = _texts(content.get("objectives"))
    paper = content.get("paper")
    if isinstance(paper, dict):
        run.paper = {str(k): float(v) for k, v in paper.items() if is_finite(v)}
    kept = {key: value for key, value in content.items() if key not in WITHOUT_EFFECT}
    whole = _sized(_referenced(flatten(kept), flatten(content)))
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
        run.settings = _sized(flatten(settings))
        if CATEGORY in whole:  # provenance.json may hold it among the data, not the settings
            run.settings.setdefault(CATEGORY, whole[CATEGORY])
        run.idle = {key: whole[key] for key in whole if key not in run.settings}
        run.circumstances = _circumstances(provenance)
        run.settings |= run.circumstances
        warm = provenance.get("warm")
        run.warm = [str(stage) for stage in warm] if isinstance(warm, list) else []
        run.costs = provenance.get("costs")
        run.overrides = _texts(provenance.get("overrides"))
        run.options = _texts(provenance.get("options"))
        run.traced = True
        run.digest = json.dumps(data, sort_keys=True) if data else ""
    else:
        hydra = read_yaml(folder, f"{SETTINGS}/hydra.yaml").get("hydra")
        runtime = hydra.get("runtime") if isinstance(hydra, dict) else None
        choices = runtime.get("choices") if isinstance(runtime, dict) else None
    if isinstance(choices, dict):
        run.choices = {
            str(k): _sized(v)
            for k, v in choices.items()
            if "/" not in str(k) and k not in WITHOUT_EFFECT
        }


def _sized(value: Any) -> Any:
    """The value of a setting, in which numbers that nothing can compute with become text."""
    if isinstance(value, dict):
        return {key: _sized(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_sized(each) for each in value]
    return show(value) if is_number(value) and not is_finite(value) else value


def _circumstances(provenance: dict[str, Any]) -> Settings:
    """Return what results depend on besides settings and images: {dotted name: value}."""
    classes = provenance.get("classes")
    found = {f"{k}.class": v for k, v in classes.items()} if isinstance(classes, dict) else {}
    kept = {k: v for k, v in provenance.items() if k in ("device", "precision", "versions")}
    if provenance.get("source"):
        kept["source"] = str(provenance["source"])[:8]
    return _sized(found | flatten(kept))


def read_yaml(folder: Path, name: str) -> dict[str, Any]:
    """Return a YAML mapping of a run's folder, with interpolations as text; empty without a file.

    Raises:
        ValueError: The file is not a YAML mapping, is too large, or has tags, anchors or aliases.
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
    """Return a JSON mapping of a run's folder.

    Raises:
        ValueError: The file is missing, too large, not a JSON mapping, or holds NaN, infinity or a
            repeated key.
    """
    text = _text(folder, name, LARGEST_JSON)
    if text is None:
        raise ValueError(f"{name}: not a file of this folder")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(items)) < len(items):
            raise ValueError("a key occurs twice")
        return dict(items)

    def constant(word: str) -> float:
        raise ValueError(f"{word} is not a number in JSON")

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
    """Return the content of a finished run's metrics.json.

    Raises:
        ValueError: The file is not as `patchcore train` writes it.
    """
    record = read_json(folder, "metrics.json")
    for problem in problems(record):
        raise ValueError(f"metrics.json: {problem}")
    return record


def check_scores(folder: Path, images: Any = None, auroc: float | None = None) -> None:
    """Check scores.csv of a run's folder, if it exists: one finite score per image.

    Args:
        folder: Folder of the run.
        images: Number of test images in metrics.json; None: not checked.
        auroc: Image AUROC in metrics.json; None: not checked.

    Raises:
        ValueError: The file is not as `patchcore train` writes it, or belongs to other metrics; if
            another file was changed since, the message names that one.
    """
    if not os.path.lexists(folder / "scores.csv"):
        return
    scores = read_scores(folder)
    if images is not None and len(scores) != images:
        check_unaltered(folder, "config.yaml", "scores.csv")
        raise ValueError(f"scores.csv: {counted(len(scores), 'image')}, metrics.json: {images}")
    if auroc is None:
        return
    nominal, anomalous = (sorted(s.score for s in scores if s.label == label) for label in (0, 1))
    below = sum(bisect_left(nominal, x) + bisect_right(nominal, x) for x in anomalous) / 2
    found = below / (len(nominal) * len(anomalous)) if nominal and anomalous else math.nan
    if not math.isclose(auroc, found, abs_tol=1e-6):
        check_unaltered(folder, "config.yaml", "scores.csv")
        raise ValueError(
            f"scores.csv: its image AUROC is {found:.4f}, not metrics.json's {auroc:.4f}"
        )


def check_unaltered(folder: Path, *besides: str) -> None:
    """Raise ValueError if a file, `besides` those, is not as the finished run wrote it."""
    if found := altered(folder, besides):
        raise ValueError(f"{found[0]}: {found[1]}")


@dataclass(frozen=True)
class Score:
    """A row of scores.csv."""

    path: str
    label: int  # 0 nominal, 1 anomalous
    defect_type: str
    score: float


def read_scores(folder: Path) -> list[Score]:
    """Return the scores of a run's test images, with the original names of the files.

    Raises:
        ValueError: scores.csv is not as `patchcore train` writes it.
    """
    text = _text(folder, "scores.csv", LARGEST_SCORES)
    if text is None:
        raise ValueError("scores.csv: not a file of this folder")
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise ValueError(f"scores.csv: {error}") from None
    found = []
    for number, row in enumerate(rows, 2):
        path, label, kind, score = (row.get(key) for key in SCORES[:4])
        if None in row or path is None or kind is None or label not in ("0", "1"):
            raise ValueError(f"scores.csv: row {number} is damaged")
        if score is None or not _is_score(score):
            raise ValueError(f"scores.csv: row {number} is damaged")
        found.append(Score(restored(path), int(label), restored(kind), float(score)))
    return found


def _fill(run: RunFolder, record: dict[str, Any]) -> None:
    """Fill `run` with the content of a checked metrics.json and values derived from it."""
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
    try:
        known = _costs(run)
    except OverflowError:
        raise ValueError("provenance.json: the costs are too large") from None
    run.metrics |= known
    for key, value in run.metrics.items():
        if not is_finite(value):
            file = "provenance" if key in known else "metrics"
            raise ValueError(f"{file}.json: {key} is too large")
    for stage in run.warm:
        spoilt = ["seconds", f"seconds.{stage}"]
        for key in spoilt + (["milliseconds_per_image"] if stage == "score" else []):
            if key not in known and run.metrics.pop(key, None) is not None:
                stages = " and ".join(run.warm)
                run.undefined[key] = f"warm: {stages} took results from a cache, so it is no cost"


def _costs(run: RunFolder) -> dict[str, float]:
    """Seconds that the run takes when nothing is read from the cache, as far as they are known."""
    told = {f"seconds.{stage}": fresh(run.costs, stage) for stage in run.warm}
    told["seconds"], scoring = fresh(run.costs), fresh(run.costs, "score", metrics=False)
    if scoring is not None and (images := run.metrics.get("test_images")):
        told["milliseconds_per_image"] = 1000 * scoring / images
    return {key: value for key, value in told.items() if value is not None}


def _is_score(text: str) -> bool:
    number = r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?"
    return re.fullmatch(number, text, re.ASCII) is not None and math.isfinite(float(text))


def _text(folder: Path, name: str, most: int) -> str | None:
    """Text of a file in a run's folder; None if it is missing or a link leads out of the folder."""
    path = own_file(folder, name)
    if path is None:
        return None
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{name}: larger than {most} bytes")
    return data.decode("utf-8", "surrogateescape" if name == "scores.csv" else "strict")


def _referenced(kept: Settings, everything: Settings, depth: int = 8) -> Settings:
    """Settings with ${other.key} replaced by the value of that key; other interpolations stay."""

    def value(given: Any) -> Any:
        for _ in range(depth):
            found = re.fullmatch(r"\$\{([\w.]+)\}", given) if isinstance(given, str) else None
            if found is None or found[1] not in everything:
                return given
            given = everything[found[1]]
        return given

    return {key: value(given) for key, given in kept.items()}


def _problem(kind: str, error: Exception) -> str:
    """Describe what is wrong with a run's files, in one line of limited length."""
    if isinstance(error, OSError):  # the file may be sound
        name = Path(str(error.filename or "a file")).name
        return f"{name} cannot be read ({error.strerror or error})"
    return f"{kind}: {' '.join(str(error).split())[:200]}"


def category_of(path: str, category: Any) -> str:
    """Return the category of a test image of a run with several; empty if its path names none.

    Args:
        path: Path of the image, as in scores.csv.
        category: Setting `data.category`: one name, or a list.

    >>> category_of("/data/tile/test/crack/0.png", ["bottle", "tile"])
    'tile'
    """
    names = {printable(str(name)) for name in category} if isinstance(category, list) else set()
    return next((part for part in reversed(Path(path).parts) if part in names), "")
