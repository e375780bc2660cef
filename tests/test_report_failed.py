"""Failed points in reports: what they say of themselves, and what they do not make vary."""

from pathlib import Path

from patchcore.report.sentences import sentence
from patchcore.report.table import read_runs
from patchcore.report.text import markdown
from tests.run_folders import write_run

LEFT = {"image.view": None, "image.mean": None, "backbone.weights": None}


def test_values_that_a_failed_point_has_not_filled_in_do_not_vary(tmp_path: Path) -> None:
    for i, ratio in enumerate((0.1, 0.2)):
        filled = {"image.view": "crop", "image.mean": [0.5], "backbone.weights": "w"}
        write_run(tmp_path / str(i), {**filled, "coreset.ratio": ratio}, {"image_auroc": 0.9})
    write_run(tmp_path / "2", {**LEFT, "coreset.ratio": 7, "coreset.count": 5})
    table = read_runs([tmp_path])
    assert sentence(table) == (
        "3 points from 2 finished runs and 1 that is not counted; coreset.ratio and coreset.count "
        "varied."
    )
    assert table.factors[0].values == [0.1, 0.2, 7]


def test_such_a_value_is_that_of_the_most_similar_run(tmp_path: Path) -> None:
    for i, (root, view) in enumerate((("a", "square"), ("b", "whole"))):
        more = {"image.view": view, "data.root": root}
        write_run(tmp_path / str(i), more, {"image_auroc": 0.9})
    write_run(tmp_path / "2", {**LEFT, "data.root": "b"})
    runs = read_runs([tmp_path]).runs
    assert [run.settings["image.view"] for run in runs] == ["square", "whole", "whole"]


def test_a_failed_point_says_why(tmp_path: Path) -> None:
    write_run(tmp_path / "0", {}, {"image_auroc": 0.9})
    for i, text in enumerate(("patch.size is wrong\n\nTraceback …\n", "x" * 5000), 1):
        write_run(tmp_path / str(i), {"patch.size": i + 10})
        (tmp_path / f"{i}/error.txt").write_text(text)
    write_run(tmp_path / "3", {"patch.size": 20})
    table = read_runs([tmp_path])
    told = [table.status(run) for run in table.unfinished]
    assert told == [
        "unfinished: patch.size is wrong",
        f"unfinished: {'x' * 300}",
        "unfinished: no metrics.json",
    ]
    assert "- `1`: unfinished: patch.size is wrong\n" in markdown(table)


def test_error_files_of_others_are_not_followed(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/0", {}, {"image_auroc": 0.9})
    write_run(tmp_path / "runs/1", {"patch.size": 5})
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "runs/1/error.txt").symlink_to(tmp_path / "secret")
    table = read_runs([tmp_path / "runs"])
    assert table.status(table.unfinished[0]) == "unfinished: no metrics.json"
