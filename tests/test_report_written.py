"""Files of users in the place of a report: they stay, and reports of any version are replaced."""

import os
from pathlib import Path

import pytest
from hydra.core import utils
from omegaconf import OmegaConf

from patchcore.commands import generations
from patchcore.errors import InputError
from patchcore.report import page
from patchcore.report.table import read_runs
from patchcore.report.written import MULTIRUN, REPORT, check_own
from tests.run_folders import write_run
from tests.runs import patchcore


@pytest.mark.parametrize("name", REPORT)
def test_a_report_replaces_no_file_of_others(tmp_path: Path, name: str) -> None:
    write_run(tmp_path / "runs/0", {}, {"image_auroc": 0.9})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    ended = patchcore("report", str(tmp_path / "runs"), "--out", str(tmp_path / "out"))
    assert ended.err == (
        f"error: {tmp_path / 'out' / name}: would be replaced, but is not of a report: name "
        "another folder with --out DIR, or move the file\n"
    )
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["mine"]
    with pytest.raises(InputError, match="is not of a report"):
        page.write_report(read_runs([tmp_path / "runs"]), tmp_path / "out")


def test_a_pipe_in_place_of_a_file_to_write_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generations, "_no_log", [])
    os.mkfifo(tmp_path / "multirun.yaml")
    with pytest.raises(InputError, match=r"multirun\.yaml: is a pipe, .*: remove it$"):
        check_own(tmp_path, MULTIRUN, "a multirun", "name another")
    os.mkfifo(tmp_path / "train.log")
    log = {"version": 1, "handlers": {"file": {"filename": str(tmp_path / "train.log")}}}
    utils.configure_log(OmegaConf.create(log))
    with pytest.raises(
        InputError, match=r"^hydra\.run\.dir: .*train\.log: is a pipe, .* remove it"
    ):
        generations.check_log("hydra.run.dir")


def test_reports_and_multiruns_replace_their_own(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/0", {"coreset.ratio": 0.1}, {"image_auroc": 0.9})
    write_run(tmp_path / "runs/1", {"coreset.ratio": 0.2}, {"image_auroc": 0.9})
    write_run(tmp_path / "runs/2", {"data.root": "other"}, {"image_auroc": 0.9})
    for _ in range(2):  # one set of data, then several
        page.write_report(read_runs([tmp_path / "runs"]), tmp_path / "out")
        page.write_report(read_runs([tmp_path / "runs/0"]), tmp_path / "out")
    (tmp_path / "multirun.yaml").write_text("hydra:\n  run:\n    dir: x\n")
    (tmp_path / "optimization_results.yaml").write_text("best_value: 1\nname: optuna\n")
    check_own(tmp_path, MULTIRUN, "a multirun", "name another")
