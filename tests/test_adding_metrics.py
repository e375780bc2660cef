"""Steps of CONTRIBUTING.md, performed in a copy of the package: another metric, another tracker."""

import shutil
from pathlib import Path

from tests.processes import execute

PROJECT = Path(__file__).parents[1]

METRIC = [
    (
        "metrics/sweep.py",
        "def errors_at_full_recall(",
        """def balanced_accuracy(counts: Sweep) -> Float64[Tensor, "*resamples"]:
    \"\"\"Mean of the true-positive and true-negative rate at `f1_threshold`.\"\"\"
    best = best_f1(counts)[1]
    found, alarms = at(counts.tp, best), at(counts.fp, best)
    return (found / counts.anomalous + 1 - alarms / counts.nominal) / 2


""",
    ),
    ("metrics/measures.py", "    average_precision,\n", "    balanced_accuracy,\n"),
    (
        "metrics/measures.py",
        '    "image_false_positives": count(',
        """    "image_balanced": rate(
        "balanced accuracy", "images", lambda counts, _: balanced_accuracy(counts)
    ),
""",
    ),
]
TRACKER = [
    ("tracking/__init__.py", "from patchcore.tracking.tensor", "from patchcore.tracking.notes"),
    ("tracking/__init__.py", '"tensorboard": TensorBoard()', '"notes": Notes(), '),
]
NOTES = '''"""Metrics in a text file."""

from pathlib import Path

from pytorch_lightning.loggers import CSVLogger

from patchcore.tracking.tracker import FOLDER, Tracker


class NotesLogger(CSVLogger):
    """Lightning's CSVLogger by another name."""


class Notes(Tracker):
    """A file notes.txt in the run's folder."""

    target = "patchcore.tracking.notes.NotesLogger"
    preset = {"save_dir": FOLDER, "name": None, "version": "notes"}

    def log_results(self, logger, run):
        """Write what is above a half."""
        high = [key for key, value in run.metrics.items() if value > 0.5]
        (Path(logger.save_dir) / "notes.txt").write_text(" ".join(high))
'''
CHECK = """
import json, pathlib, sys, warnings
warnings.filterwarnings("error", category=UserWarning, module="patchcore")
import numpy as np
import torch
import patchcore
here = pathlib.Path.cwd()
assert pathlib.Path(patchcore.__file__).is_relative_to(here), patchcore.__file__
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from patchcore.commands.targets import build, check_targets
from patchcore.commands.groups import register
from patchcore.commands.composed import to_config
from patchcore.data.sample import Sample
from patchcore.metrics import IMAGE_KEYS, ImageMetrics, intervals
from patchcore.report.page import page
from patchcore.report.run import Run, write_run
from patchcore.report.table import read_runs
from patchcore.report.text import markdown, points_csv
from patchcore.tracking import tracking

register()
with initialize_config_module("patchcore.conf", version_base="1.3"):
    cfg = compose("config", ["objectives=[image_balanced]", "logger=notes"])
assert [each.value for each in cfg.objectives] == ["image_balanced"]
metric = ImageMetrics()
metric.update(torch.tensor([0.1, 0.6, 0.5, 0.9]), torch.tensor([0, 0, 1, 1]))
values = metric.compute()
assert values["image_balanced"] == 0.75 and "image_balanced" in IMAGE_KEYS
low, high = intervals(np.array([0.1, 0.6]), np.array([0.5, 0.9]))["image_balanced"]
assert 0.5 <= low < high == 1
nominal = ImageMetrics()
nominal.update(torch.tensor([0.1]), torch.tensor([1]))
assert nominal.undefined()["image_balanced"] == "no nominal images in the test set"
samples = [Sample(here / f"{i}.png", int(i > 1)) for i in range(4)]
scores = [0.1, 0.6, 0.5, 0.9]
run = Run(
    *({"seed": 0}, values, metric.undefined(), {"score": 1.0}),
    *(samples, scores, metric.curves()),
)
folder = here / "runs" / "0"
folder.mkdir(parents=True)
(folder / "config.yaml").write_text("seed: 0")
write_run(run, folder, pictures=False)
table = read_runs([here / "runs"], "image_balanced")
for text in (page(table), markdown(table)):
    assert "balanced accuracy" in text and "0.7500" in text
assert "image_balanced" in points_csv(table)
preset = OmegaConf.to_container(cfg.logger, resolve=False)["notes"]
chosen = {"notes": {**preset, "save_dir": str(folder)}}
check_targets("logger", chosen)
with tracking(chosen, folder, build) as trackers:
    trackers.start({"seed": 0})
    trackers.track(folder, tested=False)
assert "image_balanced" in (folder / "notes.txt").read_text().split()
record = json.loads((folder / "metrics.json").read_text())
(folder / "metrics.json").write_text(json.dumps({**record, "image_balanced": 1.5}))
try:
    read_runs([here / "runs"])
except patchcore.InputError as error:
    assert "image_balanced must lie in [0, 1]" in str(error)
else:
    raise AssertionError("a rate above 1 is damage")
"""


def insert(file: Path, before: str, text: str) -> None:
    """Put `text` before the only place of the file that reads `before`."""
    content = file.read_text()
    assert content.count(before) == 1, (file, before)
    file.write_text(content.replace(before, text + before))


def test_another_metric_and_tracker_are_a_few_lines_each(tmp_path: Path) -> None:
    package = tmp_path / "patchcore"
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROJECT / "patchcore", package, ignore=leave)
    for file, before, text in METRIC:
        insert(package / file, before, text)
    (package / "tracking/notes.py").write_text(NOTES)
    insert(package / TRACKER[0][0], TRACKER[0][1], f"{TRACKER[0][2]} import Notes\n")
    insert(package / TRACKER[1][0], TRACKER[1][1], TRACKER[1][2])
    assert len(METRIC) <= 4 and len(TRACKER) + 1 <= 4
    execute(CHECK, folder=tmp_path)
