"""The programs under experiments/ that read runs or draw, on little data."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from patchcore.data.images import read_image
from tests.run_folders import write_run
from tests.runs import REPOSITORY


def program(path: str) -> ModuleType:
    """A program as a module."""
    name = f"experiment_{Path(path).stem}"
    specification = importlib.util.spec_from_file_location(name, REPOSITORY / "experiments" / path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses look there
    specification.loader.exec_module(module)
    return module


def run(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
    module.main()


def test_figure_3_shows_that_greedy_covers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = program("figure_3/figure_3.py")
    run(figure, monkeypatch, "--out", tmp_path / "3.png")
    radii = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    multimodal_greedy, multimodal_random, uniform_greedy, uniform_random = radii
    assert multimodal_greedy < multimodal_random / 2 and uniform_greedy < uniform_random / 2
    assert read_image(tmp_path / "3.png").std() > 5


def test_figure_s3_draws_every_method_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = {
        "image_auroc": 0.75,
        "test_images": 4,
        "image_false_positives": 1,
        "image_false_negatives": 0,
        "errors_at_full_recall": 1,
    }
    for name, category, size in (("a", "bottle", 1), ("b", "cable", 1), ("c", "bottle", 3)):
        folder = write_run(
            tmp_path / name, {"data.category": category, "patch.size": size}, metrics
        )
        lines = ["path,label,defect_type,score", "0,0,good,1", "1,0,good,3", "2,1,hole,2"]
        (folder / "scores.csv").write_text("\n".join([*lines, "3,1,hole,4"]))
    write_run(tmp_path / "begun", {"data.category": "cable", "patch.size": 3})
    figure = program("figure_s3/figure_s3.py")
    points = figure.read_runs([tmp_path], "image_auroc").points
    texts = {point.label: figure.errors(point) for point in points}
    assert texts["patch.size=1"].startswith("errors: 25.0% at the F1-optimal threshold")
    run(figure, monkeypatch, tmp_path, "--out", tmp_path / "s3.png")
    assert capsys.readouterr().out.startswith("2 methods")
    assert read_image(tmp_path / "s3.png").std() > 5


def test_ablation_tables_pair_seeds_and_unfold_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1, 2):
        for coreset, high in (("greedy", 0.9), ("random", 0.8)):
            settings = {
                "seed": seed,
                "coreset.ratio": 0.25,
                "backbone.name": "resnet18",
                "data.category": None,
            }
            curve = [
                {"ratio": 0.01, "image_auroc": high - 0.1 + seed / 100},
                {"ratio": 0.25, "image_auroc": high + seed / 100},
            ]
            choices = {"experiment": "mtd/memory", "coreset": coreset, "index": "torch"}
            found = {"image_auroc": high + seed / 100, "ratio_curve": curve}
            write_run(tmp_path / f"{coreset}{seed}", settings, found, choices)
    write_run(tmp_path / "begun", {"seed": 9})
    run(program("mtd_ablations/tables.py"), monkeypatch, tmp_path)
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("| resnet18")]
    half = 0.0248  # 4.303 · 0.01 / √3
    assert lines == [
        f"| resnet18 | greedy | 0.01 | 3 | 0.8100 ± {half} | -10.00 ± 0.00 |",
        f"| resnet18 | greedy | 0.25 | 3 | 0.9100 ± {half} |  |",
        f"| resnet18 | random | 0.01 | 3 | 0.7100 ± {half} | -20.00 ± 0.00 |",
        f"| resnet18 | random | 0.25 | 3 | 0.8100 ± {half} | -10.00 ± 0.00 |",
    ]
    assert "### Memory" in out and "### Stride" not in out
    assert "begun: unfinished" in out


def test_the_ablations_readme_has_the_tables_that_the_program_prints() -> None:
    tables = program("mtd_ablations/tables.py")
    text = (REPOSITORY / "experiments/mtd_ablations/README.md").read_text()
    for study in tables.STUDIES:
        keys = study.keys if "network" in study.keys else ("network", *study.keys)
        lines = text.partition(f"### {study.name}\n\n")[2].partition("\n\n")[0].splitlines()
        head, _, *rows = (tuple(line[2:].split(" | ")[: len(keys)]) for line in lines)
        assert head == keys
        assert rows == sorted(rows, key=tables._order)
        assert study.reference in {row[-len(study.reference) :] for row in rows}


def test_every_study_is_listed() -> None:
    folders = REPOSITORY / "experiments"
    text = (folders / "README.md").read_text()
    found = sorted(path.parent.name for path in folders.glob("*/[!_]*.*"))
    assert re.findall(r"^\| \[(\w+)\]\(\1\) \|", text, re.MULTILINE) == sorted(set(found))


@pytest.mark.filterwarnings("ignore:backbone resnet18 has random weights")
@pytest.mark.parametrize("folds", [0, 3])
def test_false_alarms_are_counted_in_every_split(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folds: int,
) -> None:
    study = program("false_alarms/false_alarms.py")
    given = ["texture", "--root", tmp_path, "--weights", "none", "--fitted", 6, "--held", 3]
    out = tmp_path / "rows.jsonl"
    more = ["--splits", 2, "--pixels", 1, "--folds", folds, "--out", out]
    run(study, monkeypatch, *given, *more)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["rate"] for row in rows] == [0.005, 0.01, 0.02, 0.05]
    assert all(len(row["counts"]) == 2 and max(row["counts"]) <= 3 for row in rows)
    assert all(0 <= row["pixel_shares"][0] <= 1 for row in rows)
    method = "3 folds" if folds else "rows left out"
    assert capsys.readouterr().out.count(f"| texture | {method} |") == 4


def test_the_table_of_false_alarms_counts_splits_in_the_bands() -> None:
    study = program("false_alarms/false_alarms.py")
    row = {"data": "x", "method": "y", "rate": 0.05, "fitted": 852, "held": 100}
    row |= {"counts": [0, 1, 5, 10, 11], "pixel_shares": [0.01, 0.03]}
    cells = [cell.strip() for cell in study.line(row).strip("|").split("|")]
    # The binomial band is 1 to 10; of the beta-binomial law it holds 97.7 %.
    assert cells[:7] == ["x", "y", "5 %", "4.92 %", "5.40 %", "1 to 10", "60.0 %"]
    assert (cells[7], cells[10]) == ("97.7 %", "2.00 %")


def test_oracles_tell_right_and_wrong_drops_apart() -> None:
    """Images 4 and 5 of six are anomalous: an outlier, and one that lies among the nominal images.

    Image 3 is a nominal outlier, and one nominal test image resembles it alone.
    """
    contamination = program("contamination/contamination.py")
    places = [0.0, 0.1, 0.2, 5.0, 9.0, 0.15, 0.12, 5.1, 9.2, 0.4]
    features = torch.tensor(places)[:, None, None].repeat(1, 2, 1)  # (N, P, D)
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 0, 0, 1, 1])
    away = contamination.distances(features)
    images, moved, test = np.arange(6), np.array([4, 5]), np.arange(6, 10)
    scores = contamination.Scores(features, away, labels, test, None)
    assert scores.auroc(images, 0) == 1.0 and scores.auroc(np.arange(4), 0) == 1.0
    found = contamination.oracles(scores, away, images, moved, 0)
    assert len(found) == 1 + 2 * len(contamination.OTHERS)
    assert found["any half of the anomalous images"] == 1.0
    # Images 3 and 4 are named; without image 3, the nominal image at 5.1 has the largest score.
    assert found["k = 1: the anomalous of the named images"] == 1.0
    assert found["k = 1: the nominal of the named images"] == 0.5
