"""Run folders of any origin: damage is told, nothing leaks, nothing takes long."""

import csv
import errno
import io
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from PIL import Image

from patchcore.errors import InputError
from patchcore.report import page
from patchcore.report.cells import harmless, markdown_code, markdown_text, printable, restored
from patchcore.report.folders import find_runs
from patchcore.report.reading import read_run, read_scores
from patchcore.report.sentences import sentence, undefined_reasons
from patchcore.report.table import Table, read_runs
from patchcore.report.text import markdown, points_csv, runs_csv
from patchcore.report.words import show
from tests.run_folders import write_overrides, write_run, write_scores
from tests.runs import patchcore

GOOD: dict[str, Any] = {
    "image_auroc": 0.9,
    "aupro": None,
    "image_false_positives": 2,
    "test_images": 3,
    "seconds": {"extract": 1.0, "score": 0.3},
    "undefined": {"aupro": "no masks"},
    "ratio_curve": [{"ratio": 0.5, "image_auroc": 0.8, "aupro": None}],
}
WRONG: dict[str, Any] = {
    "word": {"image_auroc": "0.9"},
    "NaN as a word": {"image_auroc": "NaN"},
    "truth": {"image_auroc": True},
    "list": {"image_auroc": [0.9]},
    "mapping": {"pixel_auroc": {"a": 1}},
    "above 1": {"image_auroc": 1.01},
    "below 0": {"pixel_ap": -0.1},
    "negative count": {"image_false_positives": -1},
    "half a count": {"memory_patches": 2.5},
    "negative count of images left out": {"images_without_mask": -1},
    "negative seconds": {"seconds": {"extract": -1.0}},
    "seconds of a word": {"seconds": {"extract": "1"}},
    "seconds as a number": {"seconds": 3.0},
    "seconds as a list": {"seconds": [3.0]},
    "reasons as numbers": {"undefined": {"aupro": 1}},
    "reasons as a list": {"undefined": [1]},
    "curve as a number": {"ratio_curve": 5},
    "curve of numbers": {"ratio_curve": [5]},
    "curve without ratio": {"ratio_curve": [{"image_auroc": 0.5}]},
    "curve above 1": {"ratio_curve": [{"ratio": 0.5, "image_auroc": 5}]},
    "curve of ratio 0": {"ratio_curve": [{"ratio": 0, "image_auroc": 0.5}]},
    "members as a mapping": {"members": {"a": 1}},
    "member's metrics": {"members": [{"metrics": {"image_auroc": 7}}]},
    "types as a list": {"defect_types": [1]},
    "types of numbers": {"defect_types": {"hole": 0.5}},
    "warm as a word": {"warm": "extract"},
    "400 digits": {"x": 10**400},
    "seconds whose sum overflows": {"seconds": {"extract": 1e308, "score": 1e308}},
    "milliseconds that overflow": {"seconds": {"score": 1e100}, "test_images": 1},
    "markup as a name": {"<script>": 1.0},
}
TEXTS = {
    "empty": "",
    "nothing": "{}",
    "null": "null",
    "list": "[1, 2]",
    "number": "0.9",
    "other keys": '{"hello": 1}',
    "cut off": '{"image_auroc": 0.',
    "NaN": '{"image_auroc": NaN}',
    "infinity": '{"image_auroc": 0.9, "image_threshold": -Infinity}',
    "too large for a float": '{"image_auroc": 0.9, "image_threshold": 1e999}',
    "5000 digits": '{"image_auroc": 0.9, "x": 1' + 5000 * "0" + "}",
    "a key twice": '{"image_auroc": 0.9, "image_auroc": 1.0}',
    "nested deep": "[" * 100_000 + "]" * 100_000,
}


def damaged(folder: Path) -> str:
    """Reason why a run's folder is damaged; asserts that none of its numbers is told."""
    run = read_run(folder)
    assert run.problem.startswith("damaged: ") and "\n" not in run.problem
    assert (run.metrics, run.undefined, run.ratio_curve) == ({}, {}, [])
    return run.problem


def test_a_good_record_is_no_damage(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "0", {}, GOOD))
    assert run.problem == "" and run.metrics["seconds"] == 1.3
    assert run.ratio_curve == [{"ratio": 0.5, "image_auroc": 0.8}]


@pytest.mark.parametrize("kind", WRONG)
def test_values_that_no_run_writes_are_damage(kind: str, tmp_path: Path) -> None:
    assert "metrics.json: " in damaged(write_run(tmp_path / "0", {}, {**GOOD, **WRONG[kind]}))


@pytest.mark.parametrize("kind", TEXTS)
def test_files_that_no_run_writes_are_damage(kind: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "0", {}, GOOD)
    (folder / "metrics.json").write_text(TEXTS[kind])
    damaged(folder)


HEAD = "path,label,defect_type,score\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nothing",
        HEAD,
        f"{HEAD}a,0,good,0.1\nb,1,cut,0.2\n",
        f"{HEAD}a,0,good,0.1\nb,1,cut,0.2\nc,1,cut,nan\n",
        f"{HEAD}a,0,good,0.1\nb,1,cut,0.2\nc,1,cut,1e999\n",
        f"{HEAD}a,0,good,0.1\nb,1,cut,0.2\nc,2,cut,0.3\n",
        f"{HEAD}a,0,good,0.1\nb,1,cut,0.2\nc,1,cut\n",
        f"{HEAD}a,0,good,0.1\nb,1,cut,0.2\nc,1,cut,0.3,4\n",
        f'{HEAD}a,0,good,0.1\nb,1,cut,0.2\n"c,1,cut,0.3\n',
    ],
)
def test_damaged_scores_are_damage(text: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "0", {}, GOOD)
    (folder / "scores.csv").write_text(text)
    assert "scores.csv: " in damaged(folder)


def test_a_damaged_newest_run_never_wins(tmp_path: Path) -> None:
    write_run(tmp_path / "old", {}, {"image_auroc": 0.8})
    os.utime(tmp_path / "old/metrics.json", (1000, 1000))
    write_run(tmp_path / "new", {}, {"image_auroc": 8.0})
    table = read_runs([tmp_path])
    assert table.points[0].value("image_auroc").mean == 0.8
    assert [table.name(run) for run in table.unfinished] == ["new"]
    assert table.status(table.unfinished[0]).endswith("; counted instead: old")
    assert "8.0" not in points_csv(table) + runs_csv(table) + markdown(table) + page.page(table)


def test_only_damaged_runs_are_one_line_with_the_reason(tmp_path: Path) -> None:
    write_run(tmp_path / "0", {}, {"image_auroc": 8.0})
    with pytest.raises(InputError, match=r"its only run is not finished; .*0: damaged: .*\[0, 1\]"):
        read_runs([tmp_path])


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "a: &a [*a]\n",
        "a: !!python/object/apply:os.system [true]\n",
        "a: !x 1\n",
        "- 1\n",
        "a: [\n",
        "a: ${\n",
        "[" * 20_000,
        "a: " + "x" * (1 << 20),
    ],
)
def test_yaml_of_others_is_refused_quickly_and_told_without_its_content(
    text: str, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "0", {}, {"image_auroc": 0.9})
    (folder / "config.yaml").write_text(text)
    start = time.process_time()
    problem = read_run(folder).problem
    assert time.process_time() - start < 5
    assert problem.startswith("unreadable settings: config.yaml") and len(problem) < 300


@pytest.mark.parametrize(
    "text",
    [
        "${oc.env:SECRET}",
        "${oc.env:NOTHING,${oc.env:SECRET}}",
        "${oc.decode:${oc.env:SECRET}}",
        "a ${oc.env:SECRET} b",
        "${inner}",
    ],
)
def test_nothing_is_resolved(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    for i in range(2):
        folder = write_run(tmp_path / str(i), {"seed": i}, {"image_auroc": 0.9})
        more = f"inner: {json.dumps('${oc.env:SECRET}')}\nleak: {json.dumps(text)}\n"
        path = folder / "config.yaml"
        path.write_text(path.read_text() + more)
    table = read_runs([tmp_path])
    told = page.page(table) + markdown(table) + runs_csv(table)
    assert "hunter2" not in told
    assert table.constant["leak"] == (text if text != "${inner}" else "${oc.env:SECRET}")


def test_links_lead_nowhere(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    Image.new("RGB", (60, 70), "red").save(secret / "gallery.png")
    (secret / "text").write_text("hunter2: [\n")
    write_run(secret / "run", {"patch.size": 7}, {"image_auroc": 0.7})
    runs = tmp_path / "runs"
    for i in range(4):
        write_run(runs / str(i), {"patch.size": i}, {"image_auroc": 0.9})
    (runs / "0/figures").symlink_to(secret)
    (runs / "1/figures").mkdir()
    (runs / "1/figures/gallery.png").symlink_to(secret / "gallery.png")
    (runs / "1/inside").symlink_to(secret / "run")
    for i, name in ((2, "config.yaml"), (3, "metrics.json")):
        (runs / str(i) / name).unlink()
        (runs / str(i) / name).symlink_to(secret / "text")
    table = read_runs([runs])
    text = page.page(table)
    assert "data:image/jpeg" not in text and "hunter2" not in text
    assert len(table.runs) == 4
    assert [table.name(run) for run in table.unfinished] == ["2", "3"]
    os.mkfifo(runs / "0/scores.csv")  # is not waited for
    assert read_run(runs / "0").problem.startswith("damaged: scores.csv")


def test_an_edited_copy_of_a_run_never_counts(tmp_path: Path) -> None:
    run = write_run(tmp_path / "0", {}, {"image_auroc": 0.0})
    write_scores(run, [0.1, 0.5, 0.5, 0.25], [0, 1, 0, 0])
    assert read_run(run).metrics["image_auroc"] == pytest.approx(2.5 / 3)
    shutil.copytree(run, tmp_path / "copy")
    record = json.loads((run / "metrics.json").read_text())
    (tmp_path / "copy/metrics.json").write_text(json.dumps({**record, "image_auroc": 0.99}))
    table = read_runs([tmp_path])
    assert [table.name(run) for run in table.unfinished] == ["copy"]
    assert "scores.csv: its image AUROC is 0.8333" in table.unfinished[0].problem
    assert table.points[0].value("image_auroc").mean == pytest.approx(2.5 / 3)


def test_folders_that_cannot_be_read_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("0", "1"):
        write_run(tmp_path / name, {"seed": int(name)}, {"image_auroc": 0.9})
    plain = os.scandir

    def scandir(path: Any = ".") -> Any:
        if Path(path).name == "1":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return plain(path)

    monkeypatch.setattr(os, "scandir", scandir)
    table = read_runs([tmp_path])
    assert [table.name(run) for run in table.unfinished] == ["1"]
    assert "cannot be read (Permission denied)" in table.status(table.unfinished[0])
    assert "cannot be read (Permission denied)" in page.page(table)


@pytest.mark.parametrize("name", ["metrics.json", "config.yaml", "provenance.json"])
def test_a_file_that_cannot_be_read_is_named_and_not_called_damaged(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "0", {"seed": 0}, {"image_auroc": 0.9})
    (tmp_path / "0/provenance.json").write_text('{"settings": {"seed": 0}}')
    plain = Path.open

    def opened(path: Path, *arguments: Any, **keywords: Any) -> Any:
        if path.name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return plain(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", opened)
    assert read_run(tmp_path / "0").problem == f"{name} cannot be read (Permission denied)"


def test_where_a_report_cannot_be_written_is_told(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/0", {}, {"image_auroc": 0.9})
    (tmp_path / "mine").write_text("mine")
    told = patchcore("report", str(tmp_path / "runs"), "--out", str(tmp_path / "mine"))
    assert told.err == f"error: --out: {tmp_path}/mine is a file: name a folder\n"


def test_a_report_overwrites_nothing_through_links(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/0", {}, {"image_auroc": 0.9})
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/report.html").symlink_to(tmp_path / "mine")
    page.write_report(read_runs([tmp_path / "runs"]), tmp_path / "out")
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "out/report.html").is_symlink()
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-x", "@x", "\tx", "\rx", "\n=x", " =x", "'=x", "''=x"]
)
def test_formulas_are_harmless_and_come_back(text: str) -> None:
    written = harmless(text)
    assert written == f"'{text}" and restored(written) == text


@pytest.mark.parametrize("text", ["", "x", "'x", "a=b", "1", "it's", "'"])
def test_other_text_stays(text: str) -> None:
    assert harmless(text) == restored(text) == text


def test_tables_hold_no_formulas_and_numbers_stay_numbers(tmp_path: Path) -> None:
    for i, name in enumerate(("=HYPERLINK(1)", "+x", "@y")):
        settings = {"backbone.name": name, "patch.=size": i, "coreset.ratio": -0.5 - i}
        write_run(tmp_path / f"-{i}", settings, {"image_auroc": 0.9})
    table = read_runs([tmp_path])
    for text in (points_csv(table), runs_csv(table)):
        for row in csv.reader(io.StringIO(text)):
            assert not [c for c in row if re.match(r"[=+@\t\r]|-(?!\d)", c)]
    assert "-0.5" in runs_csv(table)


def test_scores_come_back_as_they_were(tmp_path: Path) -> None:
    rows = f"{HEAD}'=a.png,0,good,0.5\n\"b\nc,d\",1,'@cut,1.5\n"
    (tmp_path / "scores.csv").write_text(rows)
    found = read_scores(tmp_path)
    assert [(s.path, s.label, s.defect_type, s.score) for s in found] == [
        ("=a.png", 0, "good", 0.5),
        ("b\nc,d", 1, "@cut", 1.5),
    ]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a|b", "a\\|b"),
        ("[x](http://y)", "\\[x\\](http:/\\/y)"),
        ("`code`", "\\`code\\`"),
        ("<img src=x>&amp;", "&lt;img src=x&gt;&amp;amp;"),
        ("a\n# b", "a # b"),
        ("www.x.org", "www\\.x.org"),
        ("\x1b[31m\udce4", "\\\\x1b\\[31m\\\\xe4"),
        ("__bold__ _it_ a._b", "\\_\\_bold\\_\\_ \\_it\\_ a.\\_b"),
        ("coreset.ratio_x a__b", "coreset.ratio_x a__b"),
    ],
)
def test_markdown_is_text(text: str, written: str) -> None:
    assert markdown_text(text) == written


def test_code_in_markdown_holds_backticks_and_bars() -> None:
    assert markdown_code("a`b|c") == "``a`b\\|c``"
    assert markdown_code("`") == "`` ` ``"
    assert printable("a\tb") == "a\\tb"


def test_folders_of_any_name_are_reported(tmp_path: Path) -> None:
    for i, name in enumerate((b"a\nb", b"\xe4", b"`|<b>")):
        folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        write_run(folder, {"patch.size": i}, {"image_auroc": 0.9 + i / 100})
    path = page.write_report(read_runs([tmp_path]), tmp_path / "out")
    text = path.read_text(encoding="utf-8")
    assert "a\\nb" in text and "\\xe4" in text and "<b>" not in text
    assert "``\\`|" not in (tmp_path / "out/report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", f"1{'0' * 400}", "1.0e+300"])
def test_settings_that_no_number_can_hold_are_text(value: str, tmp_path: Path) -> None:
    for i in range(3):
        folder = write_run(tmp_path / "runs" / str(i), {}, {"image_auroc": 0.9})
        with (folder / "config.yaml").open("a") as file:
            file.write(f"foreign: {value if i else 3}\nlisted: [{value}]\n")
    table = read_runs([tmp_path / "runs"])
    page.write_report(table, tmp_path / "report")
    assert [run.problem for run in table.runs] == [""] * 3
    shown = {show(run.settings["foreign"]) for run in table.runs}
    assert shown == {"3", show(yaml.safe_load(value))}


def test_hexadecimal_digits_without_end_are_damage(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "0", {}, {"image_auroc": 0.9})
    (folder / "config.yaml").write_text(f"foreign: 0x{'f' * 10_000}\n")
    assert read_run(folder).problem.startswith("unreadable settings: ")
    write_run(tmp_path / "1", {}, {"image_auroc": 0.9})
    page.write_report(read_runs([tmp_path]), tmp_path / "report")


def test_costs_that_overflow_are_damage(tmp_path: Path) -> None:
    traced(tmp_path / "0", {"patch.size": 1}, "d", {"image_auroc": 0.9})
    path = tmp_path / "0" / "provenance.json"
    costs = {name: {"seconds": 10**400, "cached": False} for name in ("extract", "score")}
    path.write_text(json.dumps({**json.loads(path.read_text()), "costs": costs}))
    assert damaged(tmp_path / "0") == "damaged: provenance.json: the costs are too large"


def test_every_run_means_every_run(tmp_path: Path) -> None:
    for i in range(8):
        metrics: dict[str, Any] = {"image_auroc": 0.9, "aupro": None}
        metrics["undefined"] = {"aupro": "no masks"}
        if i == 7:
            metrics = {"image_auroc": 0.9}
        write_run(tmp_path / str(i), {"patch.size": i}, metrics)
    lines = undefined_reasons(read_runs([tmp_path]))
    assert lines == [
        "AUPRO in 7 of 8 finished runs: no masks",
        "AUPRO in 1 of 8 finished runs: not in metrics.json",
    ]


def traced(folder: Path, settings: dict[str, Any], data: str, metrics: dict[str, Any]) -> None:
    """A run that tells its effective settings and a digest of its images."""
    write_run(folder, {"trainer.devices": 1, "data.root": str(folder), **settings}, metrics)
    own = {"data": {"category": "bottle"}, "patch": {"size": settings.get("patch.size", 3)}}
    provenance = {"settings": own, "choices": {"data": "mvtec"}, "data": {"test": data}}
    (folder / "provenance.json").write_text(json.dumps(provenance))


def test_the_command_is_of_the_start_that_the_results_are_from(tmp_path: Path) -> None:
    run = tmp_path / "run"
    traced(run, {}, "d", {"image_auroc": 0.9})
    write_overrides(run, ["seed=1"])  # Hydra's, of a later start that failed
    assert read_run(run).overrides == ["seed=1"]  # nothing else tells
    provenance = json.loads((run / "provenance.json").read_text())
    told = json.dumps({**provenance, "overrides": ["seed=0"]})
    (run / "provenance.json").write_text(told)
    assert read_run(run).overrides == ["seed=0"]


def ranked(table: Table) -> list[list[str]]:
    """Points of each data set."""
    return [[point.label for point in part.points] for part in table.parts]


def test_settings_without_effect_make_no_points_and_copies_of_the_data_none(tmp_path: Path) -> None:
    for i in range(2):
        traced(tmp_path / str(i), {"backbone.seed": i}, "d", {"image_auroc": 0.9})
    write_run(tmp_path / "2", {"backbone.seed": 7, "data.root": "x", "trainer.devices": 2})
    table = read_runs([tmp_path])
    assert len(table.parts) == 1 and table.factors == [] and len(table.points) == 1


def test_classes_code_and_devices_never_merge(tmp_path: Path) -> None:
    told = {"classes": {"index": "TorchIndexConfig"}, "device": "cpu", "source": "a" * 32}
    others = ({}, {"classes": {"index": "FaissFlatConfig"}}, {"device": "cuda"}, {"source": "b"})
    for i, other in enumerate(others):
        traced(tmp_path / str(i), {}, "d", {"image_auroc": 0.9})
        path = tmp_path / str(i) / "provenance.json"
        path.write_text(
            json.dumps(json.loads(path.read_text()) | told | other | {"warm": ["score"]})
        )
    table = read_runs([tmp_path])
    assert len(table.points) == 4 and table.runs[0].warm == ["score"]
    assert [factor.key for factor in table.factors] == ["index.class", "device", "source"]


def test_images_in_other_folders_are_no_other_state(tmp_path: Path) -> None:
    for name, digest in (("A", "d"), ("B", "e")):
        # without effect, as the images count alone; seeds tell no data apart
        settings = {"data.root": f"/lab/{name}", "data.shots_seed": ord(name)}
        traced(tmp_path / name, settings, digest, {"image_auroc": 0.9})
    parts = read_runs([tmp_path]).parts
    assert [part.data for part in parts] == ["data.root=/lab/A", "data.root=/lab/B"]


def test_a_point_that_never_finished_is_no_data_of_its_own(tmp_path: Path) -> None:
    for name in ("bottle", "nut"):
        for size in (1, 3):
            settings = {"patch.size": size, "data.category": name}
            write_run(tmp_path / f"{name}{size}", settings, {"image_auroc": 0.9})
    write_run(tmp_path / "0", {"patch.size": 5, "data.category": "nut"})
    table = read_runs([tmp_path])
    assert len(table.parts) == 1 and len(table.points) == 3
    text = page.page(table)
    assert "3 points from 4 finished runs and 1 that is not counted" in text
    shutil.rmtree(tmp_path / "nut1")  # then a finished point has other categories
    found = {part.data for part in read_runs([tmp_path]).parts}
    assert found == {"categories=bottle, nut", "categories=bottle"}


def test_other_images_are_ranked_alone(tmp_path: Path) -> None:
    for i, (size, data) in enumerate(((1, "d"), (3, "d"), (1, "e"), (3, "e"))):
        metrics = {"image_auroc": 0.9 + i / 100}
        traced(tmp_path / str(i), {"patch.size": size, "data.root": "/data"}, data, metrics)
        os.utime(tmp_path / str(i) / "metrics.json", (1000 + i, 1000 + i))
    table = read_runs([tmp_path])
    assert ranked(table) == [["patch.size=3", "patch.size=1"]] * 2
    assert {run.problem for run in table.runs} == {""}
    assert all(table.status(run) == "finished" for run in table.runs)
    assert "older state 1" in {part.data.rpartition("images=")[2] for part in table.parts}
    assert "ranked alone" in page.page(table) and "not ranked together" in page.page(table)
    rows = list(csv.DictReader(io.StringIO(points_csv(table))))
    assert sorted(row["rank"] for row in rows) == ["1", "1", "2", "2"]


@pytest.mark.parametrize(
    ("key", "value"), [("data.root", "other"), ("data.split", "grouped"), ("data.test_share", 0.5)]
)
def test_other_places_and_splits_are_ranked_alone(key: str, value: Any, tmp_path: Path) -> None:
    for size in (1, 3):
        write_run(tmp_path / f"a{size}", {"patch.size": size}, {"image_auroc": 0.9})
        settings = {"patch.size": size, key: value}
        write_run(tmp_path / f"b{size}", settings, {"image_auroc": 0.8})
    table = read_runs([tmp_path])
    assert ranked(table) == [["patch.size=1", "patch.size=3"]] * 2


def test_other_sets_of_categories_are_ranked_alone_and_shots_are_not(tmp_path: Path) -> None:
    for size, names in ((1, ("bottle", "cable")), (3, ("bottle",))):
        for name in names:
            settings = {"patch.size": size, "data.category": name}
            write_run(tmp_path / f"{size}{name}", settings, {"image_auroc": 0.9})
    assert [part.data for part in read_runs([tmp_path]).parts] == [
        "categories=bottle, cable",
        "categories=bottle",
    ]
    told = " 2 sets of data, each ranked alone. Several of them have runs of bottle: to rank these"
    assert told in sentence(read_runs([tmp_path]))
    alone = sorted(tmp_path.glob("?bottle"))
    assert ranked(read_runs(alone)) == [["patch.size=1", "patch.size=3"]]
    write_run(alone[0] / "../3other", {"patch.size": 3, "data.root": "other"}, {"image_auroc": 0.9})
    assert sentence(read_runs([alone[0], tmp_path / "3other"])).endswith("each ranked alone.")
    shutil.rmtree(tmp_path / "3other")
    shots = tmp_path / "shots"
    for count in (1, 5):
        write_run(shots / str(count), {"data.shots": count}, {"image_auroc": 0.9})
    assert ranked(read_runs([shots])) == [["data.shots=1", "data.shots=5"]]


def test_warm_seconds_are_no_costs(tmp_path: Path) -> None:
    for size, seconds, warm in ((1, 9.0, []), (3, 0.1, ["extract"]), (5, 0.2, ["score"])):
        metrics = {
            "image_auroc": 0.9 + size / 100,
            "seconds": {"extract": seconds, "score": seconds},
            "test_images": 10,
            "warm": warm,
        }
        write_run(tmp_path / str(size), {"patch.size": size}, metrics)
    table = read_runs([tmp_path], "seconds")
    assert [point.settings["patch.size"] for point in table.points] == [1, 3, 5]
    assert [point.label for point in table.front("image_auroc")] == ["patch.size=1"]
    assert [run.metrics.get("milliseconds_per_image") for run in table.runs] == [900, 10, None]
    assert table.status(table.runs[1]) == "finished; warm: extract"
    assert any("warm: extract took results from a cache" in x for x in undefined_reasons(table))


def test_milliseconds_rank_as_falling(tmp_path: Path) -> None:
    for size, seconds in ((1, 5.0), (3, 2.0)):
        metrics = {"image_auroc": 0.9, "seconds": {"score": seconds}, "test_images": 10}
        write_run(tmp_path / str(size), {"patch.size": size}, metrics)
    points = read_runs([tmp_path], "milliseconds_per_image").points
    assert [point.settings["patch.size"] for point in points] == [3, 1]


def test_images_left_out_of_pixel_metrics_are_told(tmp_path: Path) -> None:
    for size, count in ((1, 4), (3, 0)):
        metrics = {"image_auroc": 0.9, "pixel_auroc": 0.9, "images_without_mask": count}
        write_run(tmp_path / str(size), {"patch.size": size}, metrics)
    table = read_runs([tmp_path])
    assert "images without mask of patch.size=1: 4" in markdown(table)
    assert "images without mask of patch.size=1: 4" in page.page(table)


def test_links_to_other_folders_are_not_searched(tmp_path: Path) -> None:
    write_run(tmp_path / "given/0", {}, {"image_auroc": 0.9})
    write_run(tmp_path / "else/deep/er/1", {"patch.size": 5}, {"image_auroc": 0.9})
    write_run(tmp_path / "sweep/2", {"patch.size": 7}, {"image_auroc": 0.9})
    for name, target in {"a": "else", "b": "sweep", "c": "else/deep/er/1", "d": "given"}.items():
        (tmp_path / "given" / name).symlink_to(tmp_path / target)
    found = {path.name for path in find_runs(tmp_path / "given")}
    assert found == {"0", "1", "2"}
    (tmp_path / "given/c").unlink()
    assert {path.name for path in find_runs(tmp_path / "given")} == {"0", "2"}
    (tmp_path / "whole").symlink_to(tmp_path / "else")
    assert {path.name for path in find_runs(tmp_path / "whole")} == {"1"}  # it was named itself
