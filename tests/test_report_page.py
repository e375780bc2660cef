import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
import scipy.stats
import torch
from omegaconf import OmegaConf

from patchcore.commands import report as command
from patchcore.commands.train import origin
from patchcore.metrics import ImageMetrics
from patchcore.report import page
from patchcore.report.blocks import Grid
from patchcore.report.galleries import GALLERY_BYTES, SMALLEST_GALLERY
from patchcore.report.pagedata import SCORES_BYTES, Scores
from patchcore.report.pagedata import command as command_of
from patchcore.report.pictured import PICTURES_BYTES
from patchcore.report.reading import RunFolder, read_run, read_scores
from patchcore.report.sections import sections
from patchcore.report.table import Table, read_runs
from patchcore.tracking.about import About
from tests.images import write_mvtec
from tests.run_folders import area, write_overrides, write_run, write_scores, write_sweep
from tests.runs import TINY, patchcore

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--window-size=1280,900",
)
PROBE = Path(__file__).with_name("report_probe.js")
LABELS = [0] * 30 + [1] * 20
THRESHOLDS = {"decision_threshold": 0.5, "image_threshold": 0.75}
PROBED = re.compile(r'"probed: (.*)", source: ')  # a line of the console, by report_probe.js
FRAME = '<!doctype html><iframe src="probed.html" style="width:390px;height:800px"></iframe>'


def browse(path: Path, profile: Path) -> tuple[dict[str, Any], list[str]]:
    """Results of the probe of a page, and the lines of the console before it."""
    if CHROMIUM is None:
        pytest.skip("needs the program chromium (Debian: apt-get install chromium)")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", path.as_uri()]
    console = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as browser:
        bound = threading.Timer(120, browser.kill)
        bound.start()
        assert browser.stderr is not None
        try:
            for line in browser.stderr:
                if found := PROBED.search(line):
                    return json.loads(found[1]), console
                console += [line] if "CONSOLE" in line else []
        finally:
            bound.cancel()
            browser.kill()
    raise AssertionError(f"the probe of {path.name} never ended: {console}")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a sweep of 24 points and an unfinished one."""
    folder = tmp_path_factory.mktemp("runs")
    write_sweep(folder / "sweep")
    write_run(folder / "sweep" / "24", {"patch.size": 9})
    chance = np.random.default_rng(0)
    drawn = [np.round(chance.normal(LABELS, 0.8), 2).tolist() for _ in range(24)]
    drawn.sort(key=lambda scores: area(scores, LABELS))  # so that runs keep their order
    asked = [json.loads((folder / f"sweep/{i}/metrics.json").read_text()) for i in range(24)]
    order = sorted(range(24), key=lambda i: asked[i]["image_auroc"])
    for i, scores in zip(order, drawn, strict=True):
        run = write_scores(folder / "sweep" / str(i), scores, LABELS, **THRESHOLDS)
        write_overrides(run, ["data=mtd", f"coreset.ratio={i}", "layers.names=[2,3]"])
    return page.write_report(read_runs([folder / "sweep"]), folder / "report")


@pytest.fixture(scope="module")
def seen(report: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The page in Chromium, after its leaderboard was sorted and a gallery opened."""
    folder = tmp_path_factory.mktemp("browser")
    probed = folder / "probed.html"
    start, _, end = report.read_text().rpartition("</body>")
    probed.write_text(f"{start}<script>{PROBE.read_text()}</script></body>{end}")
    result, console = browse(probed, folder / "profile")
    assert console == []
    (folder / "phone.html").write_text(FRAME)
    result["phone"], console = browse(folder / "phone.html", folder / "profile")
    assert console == []
    return result


def test_console_errors_would_be_seen(tmp_path: Path) -> None:
    path = tmp_path / "broken.html"
    path.write_text("<script>nowhere()</script><script>console.log('probed: {}')</script>")
    _, console = browse(path, tmp_path / "profile")
    assert "nowhere is not defined" in "".join(console)


def test_the_downloaded_table_names_columns_by_keys_and_tells_data_sets_apart(
    tmp_path: Path,
) -> None:
    measured = {"image_auroc": 0.9, "memory_bytes": 2_500_000, "memory_patches": 7}
    for i, root in enumerate(("a", "a", "b")):
        write_run(tmp_path / str(i), {"data.root": root, "patch.size": 1 + 2 * i}, measured)
    probed = page.write_report(read_runs([tmp_path]), tmp_path / "report")
    asked = """addEventListener("load", async () => { await drawing;
        download = (name, text) => console.log(`probed: ${JSON.stringify({ text })}`);
        downloadTable(); });"""
    start, _, end = probed.read_text().rpartition("</body>")
    probed.write_text(f"{start}<script>{asked}</script></body>{end}")
    found, console = browse(probed, tmp_path / "profile")
    assert console == []
    rows = list(csv.DictReader(io.StringIO(found["text"])))
    assert [row["memory_bytes"] for row in rows] == ["2500000.0"] * 3
    assert [row["data"].split(":")[0] for row in rows] == ["data 1", "data 1", "data 2"]
    assert [row["patch.size"] for row in rows] == ["1", "3", "5"]
    assert not any("MB" in head for head in rows[0])


def test_leaderboard_starts_with_the_best(seen: dict[str, Any]) -> None:
    assert seen["rank"] == [*map(str, range(1, 25)), "–"]
    assert seen["sorted"] == [["image AUROC", "descending"]]


def test_leaderboard_sorts_on_a_click(seen: dict[str, Any]) -> None:
    sizes = ["1"] * 8 + ["3"] * 8 + ["5"] * 8 + ["9"]
    assert seen["patch"] == [["ascending", sizes], ["descending", sizes[::-1]]]
    names = ["resnet18"] * 13 + ["wide_resnet50_2"] * 12
    assert seen["backbone"] == [["ascending", names], ["descending", names[::-1]]]
    assert seen["sortedColumns"] == 1


def test_numbers_sort_as_numbers(seen: dict[str, Any]) -> None:
    (order, up), (_, down) = seen["seconds"]
    numbers = [float(text.replace(",", "")) for text in up[:-1]]
    assert order == "ascending"  # fewer is better
    assert numbers == sorted(numbers)
    assert numbers != sorted(numbers, key=str)
    assert down[:-1] == up[-2::-1]


def test_undefined_sorts_last_both_ways(seen: dict[str, Any]) -> None:
    for order, cells in seen["pixel"]:
        assert cells[-2:] == ["undefined"] * 2
        defined = [float(text) for text in cells[:-2]]
        assert defined == sorted(defined, reverse=order == "descending")
    assert seen["seconds"][1][1][-1] == "undefined"


def test_every_chart_is_drawn(seen: dict[str, Any]) -> None:
    assert len(seen["charts"]) == 5  # curves, parallel coordinates, shares, two factors, fronts
    for chart in (*seen["charts"], *seen["filteredCharts"], *seen["phone"]["charts"]):
        assert min(chart) > 0, chart
    assert len(seen["images"]) == 24 + 1  # the thumbnails, and the one shown large
    assert all(width == 420 for width in seen["images"])
    assert all(rows > 1 for rows in seen["tables"])


def test_filters_leave_the_points_that_they_name_and_stand_in_the_address(
    seen: dict[str, Any],
) -> None:
    sizes, names, address, status = seen["filtered"]
    assert sorted(sizes) == ["3"] * 4 + ["5"] * 4
    assert set(names) == {"wide_resnet50_2"}
    assert "f.patch.size=3&f.patch.size=5&f.patch.size=9&f.backbone.name=wide_resnet50_2" in address
    assert status == "8 of 25 points"
    assert seen["filteredCharts"] != seen["charts"]
    assert seen["reset"] == [25, "#view=all"]


def test_another_metric_sorts_and_is_drawn(seen: dict[str, Any]) -> None:
    heads, address, labels = seen["metric"]
    assert heads == ["AUPRO"]
    assert "metric=aupro" in address
    assert all("AUPRO" in label for label in labels)


def test_columns_can_be_hidden(seen: dict[str, Any]) -> None:
    display, address = seen["hidden"]
    assert display == "none"
    assert "hide=image_false_negatives" in address


def test_charts_answer_to_keys_and_clicks(seen: dict[str, Any]) -> None:
    assert seen["readout"].startswith("#1 backbone.name=wide_resnet50_2")
    assert seen["readout"].endswith("open run")
    before, closer = seen["zoomed"]
    assert before != closer
    assert seen["unzoomed"] == before
    assert seen["byKeys"][0] and seen["byKeys"][1].startswith("#2 ")
    assert seen["runClosed"] == [False, "#view=all"]
    assert seen["byClick"][0] and seen["byClick"][1]
    assert seen["back"] is False


def test_a_late_word_of_a_closed_run_does_not_close_the_next(seen: dict[str, Any]) -> None:
    assert seen["reopened"] == [True, True]
    assert seen["escaped"] == [False, None]


def test_a_row_leads_to_its_run(seen: dict[str, Any]) -> None:
    run = seen["run"]
    assert run["name"].startswith("#3 backbone.name=wide_resnet50_2")
    assert "run=" in run["hash"]
    job = int(run["hash"].split("run=")[1])
    assert run["code"] == f"patchcore train data=mtd coreset.ratio={job} 'layers.names=[2,3]'"
    assert len(run["charts"]) == 3  # ROC, precision–recall, histogram
    assert all(min(chart) > 0 for chart in run["charts"])
    assert run["images"] == 1
    numbers = dict(run["tables"]["Numbers of the run"])
    assert float(numbers["image AUROC"]) > 0.9
    assert numbers["memory patches"] == "11,940"
    settings = dict(run["tables"]["Settings that differ"])
    assert settings["backbone.weights"] == "weights/wide_resnet50_2.safetensors"
    recall = run["tables"]["Recall by type of defect"]
    assert [row[:2] for row in recall] == [["type", "images"], ["hole", "10"], ["scratch", "10"]]
    _, nominal, anomalous = run["tables"]["Verdicts"]
    assert [sum(map(int, row[1:])) for row in (nominal, anomalous)] == [30, 20]
    wrong = run["tables"]["Images called wrong"][1:]
    assert len(wrong) == int(nominal[2]) + int(anomalous[1])
    assert f"{len(wrong)} images called wrong" in run["headings"]
    assert seen["next"].startswith("#4 ")


def test_two_runs_are_compared_image_by_image(seen: dict[str, Any]) -> None:
    pair = seen["pair"]
    assert "a=" in pair["hash"] and "b=" in pair["hash"] and not pair["open"]
    assert len(pair["rows"]) == 40  # of 50
    unlike = [row[7] != row[8] for row in pair["rows"]]
    assert unlike == sorted(unlike, reverse=True)
    assert f"Images: {sum(unlike)} of 50 with different verdicts" in pair["heading"]
    apart = [
        float(row[6].split()[0])
        for row, differ in zip(pair["rows"], unlike, strict=True)
        if not differ
    ]
    assert apart == sorted(apart, reverse=True)
    assert all(min(chart) > 0 for chart in pair["charts"]) and pair["charts"]


def test_the_scripts_statistics_are_those_of_the_metrics(
    seen: dict[str, Any], report: Path
) -> None:
    found = seen["statistics"]
    rows = [read_scores(report.parents[1] / "sweep" / name) for name in ("0", "1")]
    images = found["images"]
    assert [(i["path"], i["label"], i["kind"], i["score"]) for i in images] == [
        (row.path, row.label, row.defect_type, row.score) for row in rows[0]
    ]
    scores, labels = (np.array([getattr(r, key) for r in rows[0]]) for key in ("score", "label"))
    metric = ImageMetrics()
    metric.update(torch.tensor(scores), torch.tensor(labels))
    curves = {key: value.numpy() for key, value in metric.curves().items()}
    roc = np.array([[row["fpr"], row["tpr"]] for row in found["curves"]["roc"]])
    drawn = np.interp(np.linspace(0, 1, 301), roc[:, 0] + 1e-9 * roc[:, 1], roc[:, 1])
    theirs = curves["fpr"] + 1e-9 * curves["tpr"]
    expected = np.interp(np.linspace(0, 1, 301), theirs, curves["tpr"])
    assert drawn == pytest.approx(expected, abs=1e-5)
    recall = found["curves"]["pr"]
    area = sum((b["recall"] - a["recall"]) * b["precision"] for a, b in pairwise(recall))
    assert area == pytest.approx(metric.compute()["image_ap"])
    alarms = scores >= 0.5
    assert [found["counts"][key] for key in ("tp", "fn", "fp", "tn")] == [
        int((alarms == called)[labels == label].sum())
        for label, called in ((1, True), (1, False), (0, True), (0, False))
    ]
    ranks = [
        (scipy.stats.rankdata([row.score for row in one]) - 1) / (len(one) - 1) for one in rows
    ]
    assert [image["rank"] for image in images] == pytest.approx(ranks[0])
    others = np.array([row.score for row in rows[1]])
    for path, unlike, apart in found["rows"]:
        i = int(Path(path).stem)
        assert apart == pytest.approx(abs(ranks[0][i] - ranks[1][i]))
        assert unlike == ((scores[i] >= 0.5) != (others[i] >= 0.5))


def test_gallery_opens_steps_and_closes(seen: dict[str, Any]) -> None:
    assert seen["viewer"][0]
    assert seen["viewer"][1].startswith("#")
    assert seen["closed"]


def test_page_fits_a_phone(seen: dict[str, Any]) -> None:
    assert seen["phone"]["width"] == 390
    assert seen["phone"]["overflow"] <= 0
    assert seen["overflow"] <= 0
    assert seen["phone"]["charts"] != seen["charts"]


def test_page_needs_nothing_else(report: Path) -> None:
    text = report.read_text()
    for name in page.SCRIPTS:
        assert page.vendored(name) in text
        text = text.replace(page.vendored(name), "")
    assert re.search(r"https?://", text) is None
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "default-src 'none'" in text
    assert re.search(r"url\(|@import", text) is None


def test_tables_are_told_to_screen_readers(report: Path) -> None:
    text = report.read_text()
    for name in page.SCRIPTS:
        text = text.replace(page.vendored(name), "")
    heads = re.findall(r"<th [^>]*>", text)
    assert heads
    assert all('scope="col"' in head or 'scope="row"' in head for head in heads)
    assert "<img" in text
    assert all(" alt=" in image for image in re.findall(r"<img[^>]*>", text))
    anchors = re.findall(r'href="#([^"]+)"', text)
    assert all(f'id="{anchor}"' in text for anchor in anchors)


def test_page_of_24_points_is_small(tmp_path: Path) -> None:
    write_sweep(tmp_path / "sweep", gallery=(640, 740))  # noise: nothing is harder to shrink
    path = page.write_report(read_runs([tmp_path / "sweep"]), tmp_path)
    text = path.read_text()
    assert path.stat().st_size < 8_000_000
    assert text.count("data:image/jpeg") == 24


def test_page_of_500_points_stays_small() -> None:
    runs = []
    for i in range(500):
        settings = {"patch.size": i % 5, "coreset.ratio": i // 5 % 10 / 10, "scoring.k": i // 50}
        metrics = dict.fromkeys(("image_auroc", "aupro", "seconds", "memory_bytes"), 1 - i / 1000)
        runs.append(RunFolder(Path(f"/nowhere/{i}"), settings, metrics))
    text = page.page(Table(runs, root=Path("/nowhere")))
    assert len(content(text)["points"]) == 500
    budgets = GALLERY_BYTES + PICTURES_BYTES + SCORES_BYTES
    assert len(text.encode()) + budgets < 12_000_000


def test_scores_that_do_not_fit_are_left_out_the_worst_points_first(tmp_path: Path) -> None:
    runs = []
    for i in range(3):
        folder = write_run(tmp_path / str(i), {"patch.size": i}, {"image_auroc": 0.9 - i / 10})
        write_scores(folder, [0.1 + i, 0.5, 0.25], [0, 1, 0])
        runs.append(read_run(folder))
    whole = Scores(runs)
    assert [whole.of(run)["bytes"] for run in runs] == [8, 8, 8]  # 0.1 is no float of 32 bits
    assert len(whole.sets) == 1
    exact = write_run(tmp_path / "exact", {}, {"image_auroc": 0.9})
    narrow = read_run(write_scores(exact, [0.5, 0.25], [0, 1]))
    assert Scores([narrow]).of(narrow)["bytes"] == 4
    some = Scores(runs, 150)
    assert some.of(runs[0]) and some.of(runs[1]) and not some.of(runs[2])
    text = page.page(read_runs([tmp_path]))
    assert sum(run["scores"] is not None for run in content(text)["runs"]) == 4


def test_galleries_that_do_not_fit_are_told(tmp_path: Path) -> None:
    for i in range(4):
        metrics = {"image_auroc": 0.9 - i / 100}
        write_run(tmp_path / str(i), {"patch.size": i}, metrics, gallery=(60, 70))
    table = read_runs([tmp_path])
    text = page.page(table, 2 * SMALLEST_GALLERY)
    assert text.count("data:image/jpeg") == 2
    assert "2 more would make the page too large" in text
    assert "more would make" not in page.page(table)
    assert '<section id="galleries"' not in page.page(table, 0)


def test_broken_gallery_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "0", {}, {"image_auroc": 0.9}, gallery=(60, 70))
    (folder / "figures" / "gallery.png").write_bytes(b"no picture")
    assert "data:image/jpeg" not in page.page(read_runs([tmp_path]))


def test_everything_is_escaped(tmp_path: Path) -> None:
    bad = "</script><script>alert(1)</script>\"'&"
    for i, category in enumerate((bad, "nut")):
        for ratio in (0.1, 0.2):
            undefined = {"aupro": bad}
            metrics = {"image_auroc": ratio, "aupro": None, "undefined": {**undefined, bad: bad}}
            settings = {
                "data.category": category,
                "backbone.name": f"{bad}{ratio}",
                "coreset.ratio": ratio,
                "coreset.pool": 1 / ratio,
                "paper": {bad: 1.0},
            }
            write_run(tmp_path / f"<b>{i}{ratio}", settings, metrics, gallery=(60, 70))
    write_run(tmp_path / "<b>begun", {"coreset.pool": 7, "seed": bad})
    text = page.page(read_runs([tmp_path]))
    assert "alert(1)" in text
    assert "<script>alert" not in text
    assert "<b>" not in text
    assert text.count("<script>") == len(page.SCRIPTS) + 1
    assert text.count("</script>") == len(page.SCRIPTS) + 2  # and the data


def test_links_lead_to_folders_of_any_name(tmp_path: Path) -> None:
    names = [b"a b", b"\xe4", b"c:%d?#", "ü".encode()]
    for name in names:
        run = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        write_run(run, {"backbone.name": str(name)}, {"image_auroc": 0.9})
    data = content(page.page(read_runs([tmp_path]), folder=tmp_path / "report"))
    links = [run["link"] for run in data["runs"]]
    assert sorted(map(unquote_to_bytes, links)) == sorted(b"../" + name for name in names)
    assert all(link.isascii() and ":" not in link for link in links)


def test_page_of_one_run(tmp_path: Path) -> None:
    write_run(tmp_path / "0", {}, {"image_auroc": 0.9})
    text = page.page(read_runs([tmp_path]))
    found = re.findall(r'<section id="(\w+)"', text)
    assert found == ["run", "varied", "leaderboard", "runs"]


def test_page_of_categories_and_seeds(tmp_path: Path) -> None:
    for ratio in (0.01, 0.1):
        for name in ("bottle", "cable"):
            for seed in (0, 1, 2):
                metrics = {"image_auroc": 0.9 + seed / 100, "memory_bytes": 1e6}
                settings = {"coreset.ratio": ratio, "data.category": name, "seed": seed}
                failed = ratio == 0.1 and name == "cable" and seed == 2
                folder = tmp_path / f"{ratio}{name}{seed}"
                write_run(folder, settings, None if failed else metrics)
    text = page.page(read_runs([tmp_path]))
    found = re.findall(r'<section id="(\w+)"', text)
    assert found == [
        *("varied", "leaderboard", "categories", "repeats", "curves", "pair", "runs"),
    ]
    assert 'title="no finished run of cable at seed=2"' in text
    assert "0.9100 <small>± 0.0248</small>" in text  # t(0.975, 2) · 0.01 / sqrt(3)
    assert "0.8852 – 0.9348" in text
    best = content(text)["points"][0]["values"]["image_auroc"]
    assert best[:2] == [pytest.approx(0.91), "0.9100 ± 0.0248"]
    assert best[2] == pytest.approx([0.8852, 0.9348], abs=1e-4)


def test_intervals_end_at_the_bounds_of_their_metric(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        metrics = {"image_auroc": 0.97 + seed / 100, "memory_bytes": 10.0**seed}
        write_run(tmp_path / str(seed), {"seed": seed}, metrics)
    table = read_runs([tmp_path])
    (point,) = table.points
    whole = point.value("image_auroc")
    assert whole.mean + whole.half > 1
    assert whole.ends("image_auroc") == (pytest.approx(0.9552, abs=1e-4), 1)
    assert point.value("memory_bytes").ends("memory_bytes")[0] < 0  # sizes have no upper bound
    text = page.page(table)
    assert "0.9552 – 1.0000" in text and "1.0048" not in text
    values = content(text)["points"][0]["values"]
    assert values["image_auroc"][2] == pytest.approx([0.9552, 1], abs=1e-4)
    assert text.count("bounds of the metric, such as 1 for AUROC") == 2


def test_the_command_of_a_run_names_the_folder_of_its_settings(tmp_path: Path) -> None:
    write_mvtec(tmp_path / "data", (40, 36))
    (tmp_path / "own" / "patch").mkdir(parents=True)
    (tmp_path / "own" / "patch" / "mine.yaml").write_text("defaults: [average]\nsize: 1\n")
    given = [*TINY, "data=mvtec", f"data.root={tmp_path / 'data'}", "data.category=nut"]
    given += [
        "logger=none",
        "figures=false",
        "cache.enabled=false",
        "trainer.enable_progress_bar=false",
    ]
    given = [each for each in given if not each.startswith("patch=")] + ["patch=mine"]
    folder, own = tmp_path / "run", f"--config-dir={tmp_path / 'own'}"
    done = patchcore("train", own, *given, f"hydra.run.dir={folder}")
    assert done.code == 0, done.err
    run = read_run(folder)
    expected = shlex.join(["patchcore", "train", own, *given])
    assert command_of(run) == expected
    provenance = json.loads((folder / "provenance.json").read_text())
    assert About({}, folder, provenance).notes().splitlines()[0] == expected
    hydra = OmegaConf.load(folder / ".hydra" / "hydra.yaml")
    hydra.hydra.job.config_name = "other"
    hydra.hydra.runtime.config_sources[1].update({"schema": "file", "path": "/conf"})
    told = ["--config-path=/conf", own, "--config-name=other"]
    hydra.hydra.overrides.hydra.append(added := "hydra.searchpath=[file:///more]")
    assert sorted(origin(hydra.hydra)["options"]) == sorted([*told, added])


@pytest.mark.parametrize(
    ("metric", "best"), [("image_auroc", "0.9000"), ("errors_at_full_recall", "2")]
)
def test_the_best_value_of_a_category_is_marked(metric: str, best: str, tmp_path: Path) -> None:
    for size, quality, errors in ((1, 0.9, 7), (3, 0.8, 2)):
        for name in ("bottle", "cable"):
            settings = {"patch.size": size, "data.category": name}
            record = {"image_auroc": quality, "errors_at_full_recall": errors}
            write_run(tmp_path / f"{size}{name}", settings, record)
    (found,) = (s for s in sections(read_runs([tmp_path], metric)) if s.key == "categories")
    grid = next(block for block in found.blocks if isinstance(block, Grid))
    marked = [cell.text for row in grid.rows for cell in row if cell.kind == "best"]
    assert marked == [best, best]


def content(text: str) -> dict[str, Any]:
    """The data of a page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert found
    return json.loads(found[1])


def test_command_writes_all_four(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "runs" / "0", {}, {"image_auroc": 0.9})
    write_run(tmp_path / "runs" / "1", {"patch.size": 1})
    monkeypatch.setattr(sys, "argv", ["patchcore report", str(tmp_path / "runs")])
    command.main()
    names = sorted(path.name for path in (tmp_path / "runs" / "report").iterdir())
    assert names == ["report.csv", "report.html", "report.md", "runs.csv"]
    out = capsys.readouterr().out
    assert "not counted: 1: unfinished: no metrics.json" in out
    assert f"report: {tmp_path / 'runs' / 'report' / 'report.html'}" in out
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path / "runs"), "--out", str(elsewhere)])
    command.main()
    assert (elsewhere / "report.html").is_file()


def test_command_without_runs_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["patchcore report", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^error: .*holds no run"):
        command.main()
