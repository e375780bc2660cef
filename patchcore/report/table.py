"""Any set of run folders as one table: what varied, the points of a sweep, their repeats.

A run is one folder. Runs whose settings differ in nothing but category and seed are one point: its
value is the mean over categories (the class average of the papers) of each seed, then the mean over
seeds. What cannot be averaged honestly is undefined, with the reason.
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from omegaconf import DictConfig, OmegaConf
from scipy.special import stdtrit
from tqdm import tqdm

from patchcore.errors import InputError
from patchcore.paper import AVERAGE, CATEGORIES
from patchcore.runfolder import TRANSIENT

Settings = dict[str, Any]
"""{dotted key: value}; a list is a value."""

CATEGORY = "data.category"
FALLING = (
    "seconds",
    "memory_patches",
    "memory_bytes",
    "milliseconds",
    "image_false",
    "errors",
)
"""What metrics begin with of which less is better."""
WITHOUT_EFFECT = ("cache", "figures", "hydra", "logger", "objectives", "resume")
"""Groups of settings that change no result."""
NEUTRAL = ("train_images", "test_images", "image_threshold")
TITLES = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1": "image F1",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "aupro": "AUPRO",
    "image_false_positives": "false alarms",
    "image_false_negatives": "missed",
    "errors_at_full_recall": "errors at full recall",
    "seconds": "seconds",
    "milliseconds_per_image": "ms per image",
    "memory_patches": "memory patches",
    "memory_bytes": "memory MB",
    "memory_used": "share of the memory used",
}
"""The metrics in the order of the tables, with the names for people."""


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

    @property
    def finished(self) -> bool:
        return not self.problem

    @property
    def category(self) -> str:
        """Empty for a data set without categories."""
        return str(self.settings.get(CATEGORY) or "")


@dataclass(frozen=True)
class Summary:
    """A mean with the spread of its repeats; NaN, with a reason, where it is undefined."""

    mean: float
    count: int = 0  # repeats
    deviation: float = math.nan  # sample standard deviation; NaN for one repeat
    half: float = math.nan  # half the width of the 95 % interval; NaN for one repeat
    reason: str = ""  # why the mean is NaN

    @property
    def defined(self) -> bool:
        return not math.isnan(self.mean)


def undefined(reason: str) -> Summary:
    """A summary that says why it is none."""
    return Summary(math.nan, reason=reason)


def summarise(values: Sequence[float]) -> Summary:
    """Mean, sample standard deviation and 95 % interval of repeats.

    The interval is Student's: mean ± t(0.975, n - 1) · s / √n.
    """
    if len(values) < 2:
        return Summary(values[0], 1) if values else undefined("no finished run")
    deviation = stdev(values)
    quantile = float(stdtrit(len(values) - 1, 0.975))
    return Summary(
        fmean(values), len(values), deviation, quantile * deviation / math.sqrt(len(values))
    )


@dataclass(frozen=True)
class Factor:
    """A setting that tells points apart."""

    key: str
    values: list[Any]  # distinct; numbers rising, then text, None last
    follows: list[str]  # further keys that this one determines

    @property
    def numbers(self) -> list[float]:
        """The numeric values, rising; empty unless all values are numbers or None."""
        given = [value for value in self.values if value is not None]
        return given if len(given) > 1 and all(map(is_number, given)) else []


@dataclass(eq=False)
class Point:
    """Runs that differ in category and seed alone."""

    settings: Settings  # of the factors
    categories: list[str]  # that the average is taken over; [""] for a set without categories
    seeds: dict[str, dict[str, RunFolder]] = field(default_factory=dict)  # {seed: {category: run}}

    @property
    def label(self) -> str:
        """As the overrides that would start it."""
        return ", ".join(f"{key}={show(value)}" for key, value in self.settings.items()) or "all"

    @property
    def runs(self) -> list[RunFolder]:
        return [run for by_category in self.seeds.values() for run in by_category.values()]

    @property
    def finished(self) -> list[RunFolder]:
        return [run for run in self.runs if run.finished]

    def cell(self, category: str, metric: str) -> Summary:
        """`metric` of one category over the seeds for which it has a finished run."""
        values = []
        for seed, by_category in self.seeds.items():
            run = by_category.get(category)
            if run is not None and run.finished:
                if metric not in run.metrics:
                    return undefined(self._why(run, metric, seed))
                values.append(run.metrics[metric])
        return summarise(values)

    def value(self, metric: str) -> Summary:
        """Class average of each seed, then over seeds.

        Undefined if a category of any seed is without a finished run or has `metric` undefined. A
        seed without any finished run is a missing repeat and lowers the count alone.
        """
        averages = []
        for seed, by_category in self.seeds.items():
            finished = {name: run for name, run in by_category.items() if run.finished}
            missing = [name for name in self.categories if name not in finished]
            if not finished:
                continue
            if missing:
                at = f" at {seed}" if seed else ""
                return undefined(f"no finished run of {', '.join(missing)}{at}")
            values = []
            for category in self.categories:
                run = finished[category]
                if metric not in run.metrics:
                    return undefined(self._why(run, metric, seed))
                values.append(run.metrics[metric])
            averages.append(fmean(values))
        return summarise(averages)

    def curve(self, metric: str) -> list[tuple[float, float]]:
        """(memory share, mean of `metric` over the runs), rising, where runs scored many ratios.

        Empty unless the point's own value is defined and every run has the same ratios.
        """
        curves = [
            {entry["ratio"]: entry[metric] for entry in run.ratio_curve if metric in entry}
            for run in self.finished
        ]
        if not self.value(metric).defined or len({tuple(sorted(curve)) for curve in curves}) > 1:
            return []
        return [(share, fmean(curve[share] for curve in curves)) for share in sorted(curves[0])]

    def paper(self, metric: str, category: str | None = None) -> float:
        """The paper's value, of one category or on average.

        NaN where it gives neither one for each category nor the average of as many.
        """
        averages = {r.paper.get(AVERAGE + metric, math.nan) for r in self.runs}
        data = {CATEGORIES.get(str(r.choices.get("data"))) for r in self.runs}
        if category is None and len(averages) == 1 and data == {len(self.categories)}:
            return averages.pop()
        values = []
        for name in self.categories if category is None else [category]:
            given = [r.paper[metric] for r in self.runs if r.category == name and metric in r.paper]
            values.append(fmean(given) if given else math.nan)
        return fmean(values)

    def _why(self, run: RunFolder, metric: str, seed: str) -> str:
        """Why `run` has no `metric`."""
        category = run.category if len(self.categories) > 1 else ""
        place = ", ".join(filter(None, [category, seed]))
        reason = run.undefined.get(metric, "not in metrics.json")
        return f"{place}: {reason}" if place else reason


@dataclass(eq=False)
class Table:
    """All runs, and what can be said of them together."""

    runs: list[RunFolder]
    metric: str = "image_auroc"  # ranked by
    root: Path = Path()  # what the runs' folders have in common

    def name(self, run: RunFolder) -> str:
        """The run's folder, below what all have in common."""
        return os.path.relpath(run.folder, self.root) if run.folder != self.root else "."

    def status(self, run: RunFolder) -> str:
        """finished, or what keeps `run` out of the tables."""
        kept = self._counted.get(self._identity(run)) if run.settings else run
        if kept is run or kept is None:
            return run.problem or "finished"
        return f"{run.problem or 'repeated'}; counted instead: {self.name(kept)}"

    @cached_property
    def known(self) -> list[RunFolder]:
        """The runs whose settings could be read."""
        return [run for run in self.runs if run.settings]

    @cached_property
    def keys(self) -> list[str]:
        """Every setting of any run, in the order of the configuration."""
        return list(dict.fromkeys(key for run in self.known for key in run.settings))

    @cached_property
    def varied(self) -> dict[str, list[Any]]:
        """{key: its distinct values} of the settings that differ between runs."""
        values = {key: distinct(run.settings.get(key) for run in self.known) for key in self.keys}
        return {key: found for key, found in values.items() if len(found) > 1}

    @cached_property
    def constant(self) -> Settings:
        """The settings in which all runs agree."""
        return {k: self.known[0].settings.get(k) for k in self.keys if k not in self.varied}

    @cached_property
    def seed_keys(self) -> dict[str, list[str]]:
        """What makes repeats rather than points: {varied seed: others that go with it}."""
        seeds = [key for key in self.varied if key.endswith("seed")]  # and data.shots_seed
        return self._grouped(
            {key: self._column(key) for key in sorted(seeds, key=lambda key: key.count("."))}
        )

    @cached_property
    def choices(self) -> dict[str, list[str]]:
        """Groups of which different files were chosen: {group: the choice of each run}."""
        found = {}
        for group in self.known[0].choices:
            chosen = [_token(run.choices.get(group)) for run in self.known]
            contents = [
                _token({k: v for k, v in run.settings.items() if k.startswith(f"{group}.")})
                for run in self.known
            ]
            # Two names for the same settings are no difference.
            if len(set(chosen)) > 1 and _determines(contents, chosen):
                found[group] = chosen
        return found

    @cached_property
    def factors(self) -> list[Factor]:
        """The fewest varied keys that tell the points apart.

        Settings that always change together are one factor, called by a group's choice
        (`coreset=random`), or by the group's number where that says the same (`patch.size=3`).
        """
        repeats = {CATEGORY, *self.seed_keys, *chain(*self.seed_keys.values())}
        settings = {key: self._column(key) for key in self.varied if key not in repeats}
        choices = {
            group: chosen
            for group, chosen in self.choices.items()
            if not any(
                key.startswith(f"{group}.")
                and Factor(key, self.varied[key], []).numbers
                and _equivalent(chosen, column)
                for key, column in settings.items()
            )
        }
        paths = {k for k in settings if any(os.sep in str(value) for value in self.varied[k])}
        plain = {key: column for key, column in settings.items() if key not in paths}
        grouped = self._grouped({**choices, **plain, **settings})
        order = [*choices, *self.keys]
        return [
            Factor(key, distinct(self.setting(run, key) for run in self.known), grouped[key])
            for key in sorted(grouped, key=order.index)
        ]

    @cached_property
    def points(self) -> list[Point]:
        """Best first by `metric`, undefined ones last."""
        points: dict[str, Point] = {}
        for (token, seed, category), run in self._counted.items():
            if token not in points:
                settings = {f.key: self.setting(run, f.key) for f in self.factors}
                points[token] = Point(settings, self._expected(run))
            points[token].seeds.setdefault(seed, {})[category] = run
        return sorted(
            points.values(),
            key=lambda point: (
                self.cost(point, self.metric),
                [rank(value) for value in point.settings.values()],
            ),
        )

    @cached_property
    def metrics(self) -> list[str]:
        """Those that some run has a value of, the field's own first."""
        found = dict.fromkeys(key for run in self.runs for key in run.metrics)
        ordered = [key for key in TITLES if key in found]
        return ordered + [
            key
            for key in found
            if key not in ordered and key not in NEUTRAL and not key.startswith("seconds.")
        ]

    @cached_property
    def never_defined(self) -> dict[str, str]:
        """{metric: why} of the metrics that no run has a value of."""
        reasons = {key: why for run in self.runs for key, why in run.undefined.items()}
        return {key: why for key, why in reasons.items() if key not in self.metrics}

    @cached_property
    def main_metrics(self) -> list[str]:
        """What the pictures show: the ranking metric, then the usual ones."""
        usual = dict.fromkeys([self.metric, "image_auroc", "pixel_auroc", "aupro"])
        return [key for key in usual if key in self.metrics]

    @cached_property
    def paper_metrics(self) -> list[str]:
        """Those of which some run states the paper's value."""
        keys = [key.removeprefix(AVERAGE) for run in self.runs for key in run.paper]
        return list(dict.fromkeys(keys))

    @property
    def unfinished(self) -> list[RunFolder]:
        return [run for run in self.runs if not run.finished]

    @cached_property
    def repeated(self) -> bool:
        """Whether a point has more than one seed."""
        return any(len(point.seeds) > 1 for point in self.points)

    @cached_property
    def category_sets(self) -> list[list[str]]:
        """The categories of each data set that has several."""
        found = {tuple(point.categories) for point in self.points if len(point.categories) > 1}
        return [list(names) for names in sorted(found)]

    def setting(self, run: RunFolder, key: str) -> Any:
        """The value of a setting or of a group's choice."""
        return run.choices.get(key) if key in self.choices else run.settings.get(key)

    def seed(self, run: RunFolder) -> str:
        """What tells this repeat from others."""
        return ", ".join(f"{key}={show(run.settings.get(key))}" for key in self.seed_keys)

    def cost(self, point: Point, metric: str) -> float:
        """The less, the better; infinite where undefined."""
        value = point.value(metric)
        if not value.defined:
            return math.inf
        return value.mean if falls(metric) else -value.mean

    def front(self, metric: str) -> list[Point]:
        """The points that none beats in both the ranking metric and `metric`, cheapest first."""
        defined = [p for p in self.points if p.value(self.metric).defined]
        points = [point for point in defined if point.value(metric).defined]
        costs = [(self.cost(p, metric), self.cost(p, self.metric)) for p in points]
        return [points[i] for i in sorted(pareto(costs), key=costs.__getitem__)]

    @cached_property
    def _counted(self) -> dict[tuple[str, str, str], RunFolder]:
        """Of equal runs the newest finished one: {(point, seed, category): run}, sorted."""
        newest = sorted(self.known, key=lambda run: (run.finished, run.written))
        found = {self._identity(run): run for run in newest}
        return {key: found[key] for key in sorted(found, key=lambda key: [*map(natural, key)])}

    def _identity(self, run: RunFolder) -> tuple[str, str, str]:
        settings = [self.setting(run, factor.key) for factor in self.factors]
        return _token([_token(value) for value in settings]), self.seed(run), run.category

    def _expected(self, run: RunFolder) -> list[str]:
        """The categories met anywhere in the data set of `run`, failed ones included."""

        def place(run: RunFolder) -> tuple[str, str]:
            return str(run.choices.get("data")), str(run.settings.get("data.root"))

        names = {other.category for other in self.known if place(other) == place(run)}
        return sorted(names, key=natural)

    def _column(self, key: str) -> list[str]:
        return [_token(run.settings.get(key)) for run in self.known]

    @staticmethod
    def _grouped(columns: dict[str, list[str]]) -> dict[str, list[str]]:
        """{first of the columns that change together: the others}."""
        found: dict[str, list[str]] = {}
        for key, column in columns.items():
            for leader, followers in found.items():
                settles = key.startswith(f"{leader}.")  # a choice, the values of its group
                if (settles and _determines(columns[leader], column)) or _equivalent(
                    columns[leader], column
                ):
                    followers.append(key)
                    break
            else:
                found[key] = []
        return found


def read_runs(folders: Sequence[Path], metric: str = "image_auroc") -> Table:
    """Every run in or below `folders`, unfinished ones included, each once.

    Raises:
        InputError: A folder is missing or holds no run, or no run is finished or has `metric`.
    """
    found: dict[Path, RunFolder] = {}
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: there is no such folder")
        below = [read_run(path) for path in tqdm(find_runs(folder), "Reading runs", disable=None)]
        if not below:
            raise InputError(
                f"{folder}: holds no run; a run's folder has a config.yaml and, once finished, "
                "a metrics.json"
            )
        found.update({run.folder: run for run in below})
    runs = sorted(found.values(), key=lambda run: natural(str(run.folder)))
    if not all(run.choices for run in runs if run.settings):
        for run in runs:
            run.choices = {}  # what only some tell cannot be compared
    finished = [run for run in runs if run.finished]
    if not finished:
        raise InputError(f"{folders[0]}: none of its {len(runs)} runs is finished")
    if not any(metric in run.metrics or metric in run.undefined for run in finished):
        known = ", ".join(dict.fromkeys(key for run in finished for key in run.metrics))
        raise InputError(f"metric: no run has {metric!r}; choose one of {known}")
    root = Path(os.path.commonpath([run.folder for run in runs]))
    return Table(runs, metric, root)


def find_runs(folder: Path) -> list[Path]:
    """Folders, in or below `folder`, of finished runs and of begun ones, as absolute paths.

    A begun run holds settings but no metrics, and lies neither in nor around another run. Hidden
    folders and those of W&B, which keeps a config.yaml of its own, are left out.
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
        folders[:] = [below for below in folders if below not in TRANSIENT]
        if "metrics.json" in files:
            finished.append(path)
        elif "config.yaml" in files or (path / ".hydra" / "config.yaml").is_file():
            begun.append(path)
        folders[:] = [name for name in folders if not name.startswith(".") and name != "wandb"]
    around = {parent for path in finished for parent in path.parents}
    runs = {*finished, *begun}
    return [*finished, *(p for p in begun if p not in around and runs.isdisjoint(p.parents))]


def read_run(folder: Path) -> RunFolder:
    """One run; what cannot be read is told in `problem`."""
    run = RunFolder(folder, {})
    record, config = folder / "metrics.json", folder / "config.yaml"
    try:
        if not config.is_file():  # died before its own was written
            config = folder / ".hydra" / "config.yaml"
        settings = _yaml(config, without=WITHOUT_EFFECT)
        paper = settings.pop("paper", None) or {}
        run.paper = {str(k): float(v) for k, v in paper.items() if is_number(v)}
        run.settings = flatten(settings)
        hydra = _yaml(folder / ".hydra" / "hydra.yaml", resolve=False).get("hydra", {})
        choices = hydra.get("runtime", {}).get("choices", {})
        run.choices = {k: v for k, v in choices.items() if "/" not in k and k not in WITHOUT_EFFECT}
    except Exception as error:  # the errors of YAML, OmegaConf and Python have no common base
        run.problem = f"unreadable settings: {error}".splitlines()[0]
    if not record.is_file():
        run.problem = run.problem or "unfinished: no metrics.json"
        return run
    run.written = record.stat().st_mtime
    try:
        content = json.loads(record.read_text())
        if not isinstance(content, dict):
            raise ValueError("not a mapping")
    except ValueError as error:
        run.problem = f"unreadable metrics.json: {error}"
        return run
    if not run.settings:
        run.problem = run.problem or "config.yaml is missing"
    numbers = {**content, **flatten({"seconds": content.get("seconds") or {}})}
    run.metrics = {k: v for k, v in numbers.items() if is_number(v) and math.isfinite(v)}
    run.undefined = dict(content.get("undefined") or {})
    run.ratio_curve = [dict(entry) for entry in content.get("ratio_curve") or []]
    seconds = [value for key, value in run.metrics.items() if key.startswith("seconds.")]
    if seconds:
        run.metrics["seconds"] = math.fsum(seconds)
    if run.metrics.get("test_images") and "seconds.score" in run.metrics:
        each = run.metrics["seconds.score"] / run.metrics["test_images"]
        run.metrics["milliseconds_per_image"] = 1000 * each
    return run


def flatten(settings: dict[str, Any], prefix: str = "") -> Settings:
    """Nested mappings as dotted keys."""
    flat: Settings = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def pareto(costs: Sequence[tuple[float, float]]) -> list[int]:
    """Which pairs no other pair beats: nowhere dearer and somewhere cheaper."""

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a != b and a[0] <= b[0] and a[1] <= b[1]

    return [i for i, mine in enumerate(costs) if not any(beats(other, mine) for other in costs)]


def falls(metric: str) -> bool:
    """Whether less of `metric` is better."""
    return metric.startswith(FALLING)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def show(value: Any) -> str:
    """A setting as one would write it in an override; – where a run does not have it."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, list | dict | bool):
        return json.dumps(value).replace('"', "").replace(", ", ",")
    return str(value)


def title(metric: str) -> str:
    """A metric's name, with its unit, for people."""
    return TITLES.get(metric, metric.replace("_", " "))


def number(metric: str, value: float) -> str:
    """A metric's value in the unit of its title."""
    if math.isnan(value):
        return "undefined"
    if metric == "memory_bytes":
        value /= 1e6
    elif metric.endswith(("auroc", "_ap", "_f1", "aupro")):
        return f"{value:.4f}"
    if value == 0 or (value == round(value) and metric != "memory_bytes"):
        return f"{value:,.0f}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def natural(text: str) -> list[tuple[bool, int, str]]:
    """A key that sorts 10 after 9."""
    parts: list[str] = [""]
    for sign in text:
        if sign.isdigit() != parts[-1][-1:].isdigit():
            parts.append("")
        parts[-1] += sign
    return [(not p.isdecimal(), int(p) if p.isdecimal() else 0, p) for p in parts if p]


def rank(value: Any) -> tuple[int, float, list[tuple[bool, int, str]]]:
    """A key that sorts numbers, then text, None last."""
    if is_number(value):
        return 0, value, []
    return (2, 0.0, []) if value is None else (1, 0.0, natural(show(value)))


def distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once, sorted by `rank`."""
    return sorted({_token(value): value for value in values}.values(), key=rank)


def _token(value: Any) -> str:
    """Equal for equal values; hashable."""
    if is_number(value):
        return repr(float(value))
    return json.dumps(value, sort_keys=True, default=str)


def _equivalent(one: Sequence[str], other: Sequence[str]) -> bool:
    return _determines(one, other) and _determines(other, one)


def _determines(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether the second column is a function of the first."""
    return len(set(one)) == len(set(zip(one, other, strict=True)))


def _yaml(path: Path, resolve: bool = True, without: Sequence[str] = ()) -> dict[str, Any]:
    """A YAML mapping without some of its keys; empty where there is no such file."""
    if not path.is_file():
        return {}
    loaded = OmegaConf.load(path)
    if not isinstance(loaded, DictConfig):
        raise ValueError(f"{path.name} is not a mapping")
    kept = OmegaConf.masked_copy(loaded, [str(key) for key in loaded if key not in without])
    content = OmegaConf.to_container(kept, resolve=resolve)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}
