"""Folders that a refused command has made are removed, and all that was there before stays."""

import errno
import logging
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import timm
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from patchcore.commands import refused
from patchcore.report.written import SETTINGS_OF_RUN, check_own
from patchcore.runfolder import RunFolder
from tests.images import write_mvtec
from tests.runs import TINY, patchcore

BAD = ["logger=none", "coreset.ratio=2"]


def run(folder: Path, *overrides: str) -> None:
    assert patchcore("train", *(overrides or BAD), f"hydra.run.dir={folder}").code == 1


def test_a_refused_run_leaves_no_folder(tmp_path: Path) -> None:
    run(tmp_path / "a/b/c")
    run(tmp_path / "a", "logger=none", "data=mvtec", f"data.root={tmp_path}/none")  # when locked
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("weights", ["missing", "of another", "nan", "cut", "text"])
def test_a_run_whose_weights_are_refused_leaves_no_folder(tmp_path: Path, weights: str) -> None:
    state = timm.create_model("test_resnet").state_dict()
    file = tmp_path / "some.safetensors"
    if weights == "nan":
        state["conv1.0.weight"][0] = float("nan")
    if weights == "of another":
        state = {"weight": torch.ones(2)}
    if weights == "text":
        file.write_text("no weights")
    elif weights != "missing":
        save_file(state, file)
    if weights == "cut":
        file.write_bytes(file.read_bytes()[:-99])
    write_mvtec(tmp_path / "mvtec", (40, 36))
    before = {*tmp_path.iterdir()}
    given = ["data=mvtec", f"data.root={tmp_path}/mvtec", "data.category=nut", "logger=csv"]
    given += [*TINY, f"cache.root={tmp_path}/cache", "backbone.name=test_resnet"]
    run(tmp_path / "new/run", *given, f"backbone.weights={file}")
    assert {*tmp_path.iterdir()} - {tmp_path / "cache"} == before


@pytest.mark.parametrize(
    ("flags", "folder"), [(["hydra.run.dir=run"], "run"), (["-m", "hydra.sweep.dir=m"], "m/0")]
)
def test_a_folder_of_another_program_of_hydra_is_refused(
    flags: list[str], folder: str, tmp_path: Path
) -> None:
    """Hydra would replace the settings there."""
    file = tmp_path / folder / ".hydra/hydra.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("hydra:\n  job:\n    name: their_app\n  verbose: false\n")
    command = [sys.executable, "-c", "from patchcore.commands import main; main()", "train"]
    done = subprocess.run([*command, *flags], cwd=tmp_path, capture_output=True, text=True)
    told = f"error: {folder}/.hydra/hydra.yaml: would be replaced, but is not of a run of patchcor"
    assert done.returncode == 1 and done.stderr.startswith(told)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]


@pytest.mark.parametrize("end", [0, 1, 40, -1, None])
def test_a_folder_whose_settings_were_cut_off_by_a_kill_is_used_again(
    end: int | None, tmp_path: Path
) -> None:
    text = "hydra:\n  callbacks:\n    a: patchcore.commands\n  verbose: false\n"
    file = tmp_path / ".hydra/hydra.yaml"
    file.parent.mkdir()
    file.write_text(text[:end])
    check_own(tmp_path, SETTINGS_OF_RUN, "a run", "")


def test_lines_in_a_log_keep_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(*_: object) -> None:
        logging.getLogger("some.library").warning("fonts are looked for")

    monkeypatch.setattr("patchcore.commands.train.warn_of_idle", told)
    run(tmp_path / "new", "logger=none", "data=folder", f"data.nominal={tmp_path}/nowhere")
    assert [*tmp_path.iterdir()] == []


def test_a_run_without_images_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    run(tmp_path / "new", "data=folder", f"data.nominal={tmp_path}/good", "logger=csv")
    assert [*tmp_path.iterdir()] == [tmp_path / "good"]


def test_folders_above_stay_if_they_were_there_or_hold_more(tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    run(tmp_path / "outputs/1")
    assert [*(tmp_path / "outputs").iterdir()] == []


def test_a_folder_that_was_there_stays_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    run(folder)
    assert [*folder.iterdir()] == []
    (folder / ".hydra").mkdir()
    for name in ("notes.txt", "config.yaml", "train.log", ".hydra/config.yaml", ".hydra/mine"):
        (folder / name).write_text("mine")
    (folder / ".hydra/config.yaml").chmod(0o600)
    (folder / ".hydra/hydra.yaml").symlink_to(folder / "notes.txt")
    before = contents(folder)
    run(folder)
    run(folder, *TINY, "logger=none")  # refused for its config.yaml, when all else is right
    assert contents(folder) == before and (folder / ".hydra/hydra.yaml").is_symlink()
    assert (folder / ".hydra/config.yaml").stat().st_mode & 0o777 == 0o600


def test_a_lock_that_was_there_stays_the_same_file(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run"):
        before = (tmp_path / "run/.lock").stat().st_ino
        run(tmp_path / "run", *TINY, "logger=none")  # refused, as the folder is in use
        assert (tmp_path / "run/.lock").stat().st_ino == before


@pytest.mark.parametrize("inner", ["a/../settings/", "null"])
def test_settings_may_be_recorded_elsewhere(tmp_path: Path, inner: str) -> None:
    for name in ("settings", "a"):
        (tmp_path / name).mkdir()
    for name in ("config.yaml", "settings/hydra.yaml"):
        (tmp_path / name).write_text("mine")
    before = contents(tmp_path)
    run(tmp_path, *BAD, f"hydra.output_subdir={inner}")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("inner", ["a/b", "./a//b", "empty"])
def test_folders_that_hydra_makes_for_settings_go_and_others_stay(
    tmp_path: Path, inner: str
) -> None:
    (tmp_path / "run/empty").mkdir(parents=True)
    given = [f"hydra.output_subdir={inner}", "logger=none", "data=folder"]
    given += [f"data.nominal={tmp_path}/nowhere"]
    run(tmp_path / "run", *given)
    left = {path for path in tmp_path.rglob("*") if path.name != ".lock"}
    assert left == {tmp_path / "run", tmp_path / "run/empty"}
    run(tmp_path / "new", *given)
    assert not (tmp_path / "new").exists()


def test_a_log_that_is_there_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text("mine")
    refused.begin(str(tmp_path))
    with mock.patch.object(Path, "read_bytes", side_effect=AssertionError):
        refused.keep(tmp_path, OmegaConf.create({"job": {"name": "train"}, "output_subdir": None}))
    refused.put_back(tmp_path, refused.files_in(tmp_path))
    assert (tmp_path / "train.log").read_text() == "mine"


def test_a_log_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    """A folder in its place, a link that leads nowhere, and no permission."""
    (tmp_path / "folder/train.log").mkdir(parents=True)
    (tmp_path / "link").mkdir()
    (tmp_path / "link/train.log").symlink_to(tmp_path / "none/a")
    before = {*tmp_path.rglob("*")}
    for name, told in (
        ("folder", "Is a directory: choose another path"),
        ("link", f"this link leads to {tmp_path}/none/a, which cannot be read (No such file"),
        ("new", "Permission denied: change its permissions or choose another path"),
    ):
        file = tmp_path / name / "train.log"
        error = PermissionError(errno.EACCES, "Permission denied", str(file))
        with mock.patch.object(logging.FileHandler, "_open", side_effect=error) as opened:
            if name != "new":
                opened.side_effect = file.open
            done = patchcore("train", "logger=none", f"hydra.run.dir={tmp_path / name}")
        assert done.code == 1 and done.err.startswith(f"error: hydra.run.dir: {file}: {told}")
        assert len(done.err.splitlines()) == 1 and {*tmp_path.rglob("*")} == before


def test_a_point_whose_log_cannot_be_opened_stops_no_other(tmp_path: Path) -> None:
    (tmp_path / "0/train.log").mkdir(parents=True)
    given = ["logger=none", "coreset.ratio=2,3", f"hydra.sweep.dir={tmp_path}"]
    done = patchcore("train", "--multirun", *given)
    assert done.code == 1 and "error: 2 of the points failed" in done.err
    file = tmp_path / "0/train.log"
    told = [(tmp_path / name / "error.txt").read_text() for name in "01"]
    assert told[0] == f"hydra.sweep.dir: {file}: Is a directory: choose another path\n"
    assert told[1].startswith("coreset.ratio must be ") and file.is_dir()


def test_what_hydra_made_for_a_run_that_it_could_not_start_is_taken_back(tmp_path: Path) -> None:
    (tmp_path / "run/.hydra/hydra.yaml").mkdir(parents=True)
    (tmp_path / "run/.hydra/config.yaml").write_text("mine")
    before = contents(tmp_path)
    run(tmp_path / "run", "logger=none")
    error = OSError(errno.ENOSPC, "No space left on device", "config.yaml")
    with mock.patch("hydra.core.utils._save_config", side_effect=error):
        run(tmp_path / "new/run", "logger=none")
    made = [tmp_path / "bare/run", tmp_path / "bare"]
    with mock.patch.object(refused, "remove"):  # as where a umask allows no lock in a new folder
        refused.begin(str(made[0]))
        made[0].mkdir(parents=True)
        refused.take_back()
    assert contents(tmp_path) == before and [*tmp_path.iterdir()] == [tmp_path / "run"]


@pytest.mark.parametrize("place", ["artifact", "artifact/inner"])
def test_a_run_in_the_folder_of_a_model_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact/artifact.yaml").write_text("a model")
    before = contents(tmp_path)
    folder = tmp_path / place
    done = patchcore("train", "logger=none", f"hydra.run.dir={folder}")
    where = "is a model" if place == "artifact" else f"lies inside the model {folder.parent}"
    assert done.err == f"error: hydra.run.dir: {folder} {where}: name another folder\n"
    assert contents(tmp_path) == before and not (tmp_path / "artifact/inner").exists()
    done = patchcore("train", "--multirun", "logger=none", f"hydra.sweep.dir={folder}", "seed=0,1")
    assert done.code == 1 and "error: 2 of the points failed" in done.err
    assert "lies inside the model" in (folder / "0/error.txt").read_text()


def test_results_of_a_run_whose_output_cannot_be_printed_stay(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    refused.begin(str(folder))
    refused.keep(folder, OmegaConf.create({"job": {"name": "train"}, "output_subdir": None}))
    with RunFolder(folder) as place:
        (place.new / "metrics.json").write_text("new")
        place.commit()
    refused.take_back()  # as after an error of a full disk that stdout leads to
    assert (folder / "metrics.json").read_text() == "new"


@pytest.mark.parametrize("name", [".finished", ".moving"])
def test_results_that_a_killed_run_left_beside_are_earlier_ones(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "metrics.json").write_text("old")
    (tmp_path / name / "fingerprint.txt").write_text("0" * 32)
    refused.begin(str(tmp_path))
    refused.keep(tmp_path, OmegaConf.create({"job": {"name": "train"}, "output_subdir": None}))
    with RunFolder(tmp_path) as place:
        assert (tmp_path / "metrics.json").read_text() == "old"
        assert not refused.has_finished(tmp_path)
        (place.new / "metrics.json").write_text("new")
        place.commit()
    assert refused.has_finished(tmp_path)


def contents(folder: Path) -> dict[Path, bytes]:
    """Contents of the files in a folder, but for the empty one of its lock."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path: path.read_bytes() for path in files}


def test_results_of_an_earlier_run_stay(tmp_path: Path) -> None:
    write_mvtec(tmp_path / "mvtec", (40, 36))
    given = ["data=mvtec", f"data.root={tmp_path}/mvtec", "data.category=nut", "logger=none"]
    given += [*TINY, "figures=false", f"cache.root={tmp_path}/cache"]
    folder = f"hydra.run.dir={tmp_path}/run"
    assert patchcore("train", *given, folder).code == 0
    before = contents(tmp_path / "run")
    assert patchcore("train", *given, "data.shots=999", folder).code == 1
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("other", ["new", "changed", "locked"])
def test_what_another_process_writes_stays(tmp_path: Path, other: str) -> None:
    folder = tmp_path / "run"
    refused.begin(str(folder))
    folder.mkdir()
    (folder / "file").write_text("ours")
    files = refused.files_in(folder)
    if other == "new":
        (folder / "more").write_text("theirs")
    elif other == "changed":
        (folder / "file").unlink()
        (folder / "file").write_text("theirs")
    else:
        held = refused.FileLock(folder / ".lock", is_singleton=False)
        held.acquire()
    kept = [path.name for path in folder.iterdir()]
    refused.remove(folder, files, needed=["file"])
    assert {*kept} <= {path.name for path in folder.iterdir()}


def test_files_that_nothing_tells_apart_stay(tmp_path: Path) -> None:
    refused.begin(str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    refused.remove(tmp_path / "run", {}, needed=[".hydra/overrides.yaml"])
    assert (tmp_path / "run").is_dir()


def test_a_multirun_that_is_refused_before_its_points_leaves_no_folder(tmp_path: Path) -> None:
    place = [f"hydra.sweep.dir={tmp_path}/a/sweep", "logger=none"]
    done = patchcore("train", "--multirun", *place, "coreset.rato=0.1,0.2")
    assert done.code == 1 and "coreset.rato: there is no such option" in done.err
    assert [*tmp_path.iterdir()] == []


def test_points_that_are_refused_keep_their_reasons(tmp_path: Path) -> None:
    place = [f"hydra.sweep.dir={tmp_path}/sweep", "logger=none"]
    assert patchcore("train", "--multirun", *place, "coreset.ratio=2,3").code == 1
    assert "in (0, 1]" in (tmp_path / "sweep/0/error.txt").read_text()
