"""Tables and descriptions that the trackers share, and what MLflow keeps of them."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from patchcore.commands.targets import build
from patchcore.data.sample import Sample
from patchcore.decision import image_threshold
from patchcore.errors import InputError
from patchcore.metrics import ImageMetrics
from patchcore.report.pagedata import Scores
from patchcore.report.reading import read_run
from patchcore.report.run import Run, read_results
from patchcore.report.run import write_run as write_results
from patchcore.subsets import by_subset
from patchcore.tracking import presets, track_failure, tracking
from patchcore.tracking.about import About, ended
from patchcore.tracking.tables import Details, Picture, hardest, pictures, radius_curve, tables
from patchcore.tracking.wandb import with_pictures
from tests.run_folders import write_run

SCORES = [0.1, 0.4, 0.9, 0.3, 0.8, 0.8]
KINDS = ["good", "good", "good", "cut", "cut", "hole"]
LABELS = [0, 0, 0, 1, 1, 1]
NOMINAL = torch.tensor([0.05, 0.2, 0.3, 0.5])


def made(threshold: float | None = None) -> Run:
    metric = ImageMetrics()
    metric.update(torch.tensor(SCORES, dtype=torch.float64), torch.tensor(LABELS))
    metrics = metric.compute()
    if threshold is not None:
        metrics["decision_threshold"] = threshold
    samples = [
        Sample(Path(f"{i}.png"), label, kind)
        for i, (label, kind) in enumerate(zip(LABELS, KINDS, strict=True))
    ]
    return Run({}, metrics, {}, {}, samples, SCORES, metric.curves())


def rows(table: Any) -> list[dict[str, Any]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


@pytest.mark.parametrize("threshold", [0.5, None])
def test_every_test_image_has_a_row(threshold: float | None) -> None:
    run = made(threshold)
    found = rows(tables(run, Details(nominal=NOMINAL))["test_images"])
    limit = run.metrics["image_threshold"] if threshold is None else threshold
    assert [row["path"] for row in found] == [f"{i}.png" for i in range(6)]
    assert [row["rank"] for row in found] == [6, 4, 1, 5, 2, 3]
    for row, score, label in zip(found, SCORES, LABELS, strict=True):
        as_high = sum(float(each) >= np.float64(score) for each in NOMINAL.double())
        assert row["p-value"] == pytest.approx((1 + as_high) / 5)
        called = score >= limit
        assert row["verdict"] == ("anomalous" if called else "nominal")
        wrong = "false alarm" if called else "missed"
        assert row["outcome"] == ("correct" if called == label else wrong)
        assert row["truth"] == ("anomalous" if label else "nominal")
        assert row["threshold from"] == (
            "best F1 of the test" if threshold is None else "nominal images"
        )
    assert {row["p-value"] for row in rows(tables(run)["test_images"])} == {None}


def test_p_values_and_threshold_agree() -> None:
    rate = 0.2
    threshold = image_threshold(NOMINAL.double(), rate)
    found = rows(tables(made(threshold), Details(nominal=NOMINAL))["test_images"])
    assert all((row["p-value"] <= rate) == (row["verdict"] == "anomalous") for row in found)


def test_types_of_defect_are_measured_against_all_nominal_images() -> None:
    found = {row["defect type"]: row for row in rows(tables(made(0.5))["defect_types"])}
    assert set(found) == {"cut", "hole"}
    nominal = SCORES[:3]
    for kind, row in found.items():
        own = [s for s, k in zip(SCORES, KINDS, strict=True) if k == kind]
        above = [(s > n) + 0.5 * (s == n) for s in own for n in nominal]
        assert row["images"] == len(own)
        assert row["image_auroc"] == pytest.approx(sum(above) / len(above))
        assert row["recall"] == sum(s >= 0.5 for s in own) / len(own)


@pytest.mark.parametrize("told", [True, False], ids=["paths", "metrics.json"])
def test_types_of_several_categories_are_kept_apart(told: bool, tmp_path: Path) -> None:
    images = [("a", 0, "good", 0.1), ("b", 0, "good", 0.7), ("a", 1, "crack", 0.6)]
    images += [("b", 1, "crack", 0.5), ("b", 1, "cut", 0.9)]
    samples = [
        Sample(Path(f"/data/{name if told else i}/test/{kind}/{i}.png"), label, kind, category=name)
        for i, (name, label, kind, _) in enumerate(images)
    ]
    scores = [score for *_, score in images]
    pixels: Any = lambda _: ({}, {})  # noqa: E731
    run = Run(
        {"data": {"category": ["a", "b"]}},
        {"image_auroc": 4 / 6, "decision_threshold": 0.6, "test_images": 5},
        *({}, {}, samples, scores, {}),
        subsets=by_subset(samples, dict(enumerate(scores)), pixels),
    )
    folder = write_run(tmp_path / "0", run.settings)
    OmegaConf.save(OmegaConf.create(run.settings), folder / "config.yaml")
    write_results(run, folder, pictures=False)
    found = {row["defect type"]: row for row in rows(tables(read_results(folder))["defect_types"])}
    record = json.loads((folder / "metrics.json").read_text())["defect_types"]
    assert set(found) == set(record) == {"a/crack", "b/crack", "b/cut"}
    for kind, row in found.items():
        assert row["images"] == record[kind]["images"]
        assert row["recall"] == record[kind]["recall"]
        assert row["image_auroc"] == record[kind]["metrics"]["image_auroc"]
    assert found["b/cut"]["median score"] == (0.9 if told else None)
    (kinds,) = (each["kinds"] for each in Scores([read_run(folder)]).sets)
    assert kinds == (
        ["good", "good", "a/crack", "b/crack", "b/cut"]
        if told
        else [kind for _, _, kind, _ in images]
    )


def test_confusion_and_histogram_count_every_image_once() -> None:
    found = tables(made(0.5))
    confusion = rows(found["confusion"])
    assert {row["threshold from"] for row in confusion} == {
        "nominal images",
        "best F1 of the test",
    }
    counts = {
        (row["truth"], row["verdict"]): row["images"]
        for row in confusion
        if row["threshold"] == 0.5
    }
    assert counts == {
        ("nominal", "nominal"): 2,
        ("nominal", "anomalous"): 1,
        ("anomalous", "nominal"): 1,
        ("anomalous", "anomalous"): 2,
    }
    histogram = rows(found["score_histogram"])
    assert sum(row["nominal"] for row in histogram) == 3
    assert sum(row["anomalous"] for row in histogram) == 3
    assert (histogram[0]["from"], histogram[-1]["to"]) == (0.1, 0.9)


def test_the_curve_of_radii_is_thinned_with_its_ends() -> None:
    radii = torch.linspace(9, 1, 5000)
    found = radius_curve(Details(radii=radii))
    assert len(found.rows) <= 200
    assert found.rows[0] == [1, 9.0] and found.rows[-1] == [5000, 1.0]
    assert all(radius == pytest.approx(float(radii[size - 1])) for size, radius in found.rows)
    assert radius_curve(Details()).rows == []


def test_pictures_are_those_nearest_to_an_error() -> None:
    run = made()
    assert hardest(run, 6) == list(range(6))
    assert hardest(run, 2) == [2, 3]  # the highest nominal score and the lowest anomalous one
    assert hardest(run, 5) == [1, 2, 3, 4, 5]
    assert pictures(run, Details()) == {}


def test_pictures_have_mask_and_map_as_toggles(monkeypatch: pytest.MonkeyPatch) -> None:
    run, shown = made(), {}

    def picture(self: Details, index: int) -> Picture:
        mask = np.zeros((8, 8), bool)
        mask[:2] = LABELS[index] == 1
        found = np.linspace(0, 10 * SCORES[index], 64, dtype=np.float32).reshape(8, 8)
        shown[index] = Picture(np.zeros((8, 8, 3), np.uint8), mask, found)
        return shown[index]

    monkeypatch.setattr(Details, "picture", picture)
    table = with_pictures(tables(run)["test_images"], run, Details(pixel_threshold=4.0))
    assert table.columns[-1] == "image"
    for index, row in enumerate(table.rows):
        masks = row[-1]._masks
        assert set(masks) == ({"map", "marked"} if LABELS[index] else {"map"})
        with Image.open(masks["map"]._path) as drawn:
            levels = np.asarray(drawn)
        # a level for each share of the threshold that a pixel reaches
        shares = [0.6 * 4, 0.8 * 4, 4, 1.25 * 4]
        reached = sum((shown[index].map >= share).astype(int) for share in shares)
        assert np.array_equal(levels, np.where(reached > 0, reached + 1, 0))


def test_a_description_is_flat_and_tells_the_command() -> None:
    settings = {
        "data": {"category": "nut", "root": "/data"},
        "backbone": {"name": "resnet18"},
        "ensemble": {"members": [{"backbone": {"name": "a"}}, {"backbone": None}]},
    }
    provenance = {
        "choices": {"data": "mvtec", "method": "patchcore", "hydra/launcher": "basic"},
        "overrides": ["data.category=nut", "data.root=a b"],
        "fingerprint": "f",
    }
    about = About(settings, Path("/runs/1"), provenance, "/runs/0")
    config = about.config()
    assert config["data.category"] == "nut" and config["choices.data"] == "mvtec"
    assert not any(isinstance(value, dict) for value in config.values())
    assert not any("hydra" in key for key in config)
    assert config["run.resumed_from"] == "/runs/0" and config["run.fingerprint"] == "f"
    assert about.tags() == ["mvtec", "nut", "a", "resnet18", "patchcore"]
    assert about.notes() == "patchcore train data.category=nut 'data.root=a b'\n/runs/1"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (None, ("finished", "")),
        (InputError("seed must\nbe whole"), ("failed", "seed must\\nbe whole")),
        (ZeroDivisionError("by zero"), ("failed", "ZeroDivisionError: by zero")),
        (KeyboardInterrupt(), ("interrupted", "KeyboardInterrupt")),
    ],
)
def test_reasons_are_one_line(error: BaseException | None, told: tuple[str, str]) -> None:
    assert ended(error) == told


def test_mlflow_takes_defect_types_of_any_name(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="needs: pip install 'patchcore[mlflow]'")
    from mlflow.tracking import MlflowClient

    kinds = ["a=b+c", "a=b c", "a=b?c", "crack (1), long", "Riß", "x" * 255, "z//.", "..", "a:b"]
    kinds += ["面" * 80, "面" * 80 + "a", "面" * 80 + "b"]  # names of files that are too long
    numbers = {kind: {"images": i} for i, kind in enumerate(kinds)}
    record = {"image_auroc": 0.5, "test_images": 2, "seconds": {}, "defect_types": numbers}
    folder = write_run(tmp_path / "0", {}, record)
    (folder / "scores.csv").write_text("path,label,defect_type,score\na,0,good,0.1\nb,1,a=b,1\n")
    preset = {**presets()["mlflow"]["mlflow"], "save_dir": str(tmp_path / "mlruns")}
    chosen = {"mlflow": {**preset, "run_name": "n", "tags": {"patchcore.group": None}}}
    with tracking(chosen, folder, build) as trackers:
        trackers.start({"seed": 3}, {"fingerprint": "f"})
        trackers.track(folder, tested=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        client = MlflowClient(f"file:{tmp_path / 'mlruns'}")
        (experiment,) = (e for e in client.search_experiments() if e.name == "patchcore")
        (run,) = client.search_runs([experiment.experiment_id])
    found = {k: v for k, v in run.data.metrics.items() if k.startswith("defect_types.")}
    assert sorted(found.values()) == list(range(len(kinds)))
    assert found["defect_types.crack _1__ long.images"] == 3
    assert found["defect_types.Riß.images"] == 4


def test_mlflow_keeps_the_same_content_in_files(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="needs: pip install 'patchcore[mlflow]'")
    from mlflow.tracking import MlflowClient

    folder = write_run(tmp_path / "0", {}, {"image_auroc": 1 / 3, "test_images": 2, "seconds": {}})
    (folder / "scores.csv").write_text(
        "path,label,defect_type,score\na,0,good,0.1\n'=b,1,cut,0.7\n"
    )
    preset = {**presets()["mlflow"]["mlflow"], "save_dir": str(tmp_path / "mlruns")}
    chosen = {"mlflow": {**preset, "run_name": "n", "tags": {"patchcore.group": None}}}
    provenance = {"choices": {"data": "mvtec"}, "fingerprint": "f", "data": {"test": "d"}}
    for _ in range(2):  # the second takes the first's place
        with tracking(chosen, folder, build) as trackers:
            trackers.start({"seed": 3, "layers": {"names": ["2"]}}, provenance)
            trackers.track(folder, tested=False)
    other = tmp_path / "1"
    error = InputError("data.root: there is none")
    track_failure(chosen, {"seed": 4}, {}, other, error, build)
    error.tracked = True  # type: ignore[attr-defined]
    track_failure(chosen, {"seed": 4}, {}, other, error, build)  # it is there already
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        client = MlflowClient(f"file:{tmp_path / 'mlruns'}")
        (experiment,) = (e for e in client.search_experiments() if e.name == "patchcore")
        runs = {
            run.data.params["seed"]: run for run in client.search_runs([experiment.experiment_id])
        }
    assert set(runs) == {"3", "4"}
    done, failed = runs["3"], runs["4"]
    assert (done.info.status, done.info.run_name) == ("FINISHED", "n")
    assert done.data.metrics["image_auroc"] == 1 / 3  # exact, where Lightning logs float32
    assert done.data.params["layers.names"] == "['2']"
    assert done.data.params["choices.data"] == "mvtec"
    assert done.inputs.dataset_inputs[0].dataset.name == "mvtec"
    files = Path(done.info.artifact_uri.removeprefix("file://"))
    with io.StringIO((files / "tables/test_images.csv").read_text()) as file:
        table = list(csv.DictReader(file))
    assert [row["path"] for row in table] == ["a", "'=b"]  # no formula of a spreadsheet
    shown = json.loads(done.data.tags["mlflow.loggedArtifacts"])
    assert {"path": "test_images.json", "type": "table"} in shown
    assert not list((tmp_path / "mlruns").rglob("metrics.json"))  # else reports take it for a run
    assert failed.info.status == "FAILED"
    assert failed.data.tags["patchcore.reason"] == "data.root: there is none"
    assert math.isclose(done.data.metrics["test_images"], 2)
