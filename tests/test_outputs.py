"""Places that results cannot be written to, refused before the work and not after it."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from patchcore import InputError
from patchcore.outputs import check_file, check_folder
from patchcore.sealed import check_target, write_sealed
from tests.run_folders import write_run
from tests.runs import patchcore

PERMISSION = mock.patch("tempfile.mkdtemp", side_effect=PermissionError(13, "Permission denied"))
"""Folders without permission, also for root."""


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    for place in ("", "new", "new/er", "link", "link/new"):
        check_folder(tmp_path / place)
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("file", "file is a file: name a folder"),
        ("file/in", "file/in cannot be made, because .*file is a file: name another"),
        ("file/in/deep", "deep cannot be made, because .*file is a file"),
        ("x" * 300, "cannot be written to .File name too long.: name another folder"),
        ("nowhere", "nowhere: this link leads to .*/all, which .*; mend the link or remove it"),
        ("nowhere/new/er", "nowhere: this link leads to .*/all, which cannot be read"),
        ("round", "round: this link leads to .*round, which cannot be read .Too many"),
        ("/proc/new", "/proc/new cannot be written to .*: name another folder"),
    ],
)
def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, place: str, told: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "none/at/all")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    with pytest.raises(InputError, match=f"^--output: .*{told}"):
        check_folder(tmp_path / place, "--output")


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("folder", "folder is a folder: name a file"),
        ("none/file", "there is no folder .*none: make it first"),
        ("nowhere/file", "nowhere: this link leads to .*/gone, which cannot be read"),
        ("x" * 300, "cannot be written .File name too long.: name another file"),
        ("/proc/new", "/proc cannot be written to"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path, place: str, told: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match=f"^--output: .*{told}"):
        check_file(tmp_path / place, "--output")
    with PERMISSION, pytest.raises(InputError, match=r"^--output: .*Permission denied"):
        check_file(tmp_path / "file", "--output")


def test_files_and_devices_that_can_be_written_pass(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "later")
    for place in ("there", "pipe", "link", "new", "/dev/stdout", "/dev/null"):
        check_file(tmp_path / place, "--output")


def test_a_sealed_folder_is_checked_before_its_work(tmp_path: Path) -> None:
    check_target(tmp_path / "new/er", "it.yaml")
    write_sealed(tmp_path / "it", "it.yaml", lambda new: {"format": 1})
    check_target(tmp_path / "it", "it.yaml")  # it would be replaced
    (tmp_path / "it/mine").touch()
    with pytest.raises(InputError, match=r"it: holds 'mine', which patchcore did not write"):
        check_target(tmp_path / "it", "it.yaml")
    with PERMISSION, pytest.raises(InputError, match="Permission denied"):
        check_target(tmp_path / "new", "it.yaml")


WORK: dict[str, tuple[str, Callable[[Path], list[str]]]] = {
    "export": ("patchcore.commands.export.load", lambda out: ["MODEL", f"--output={out}"]),
    "test": ("patchcore.commands.test.load_model", lambda out: ["MODEL", f"--output={out}"]),
    "report": ("patchcore.commands.report.read_stated", lambda out: [".", f"--out={out}"]),
    "predict": (
        "patchcore.commands.predict.load_model",
        lambda out: ["MODEL", "IMAGE", "--overlays", f"--folder={out}"],
    ),
}


@pytest.mark.parametrize("command", WORK)
@pytest.mark.parametrize("place", ["file", "file/in"])
def test_commands_refuse_an_output_before_they_work(
    tmp_path: Path, command: str, place: str
) -> None:
    (tmp_path / "file").write_text("mine")
    work, arguments = WORK[command]
    with mock.patch(work, side_effect=AssertionError("worked first")):
        done = patchcore(command, *arguments(tmp_path / place))
    assert done.code == 1 and f"{tmp_path / 'file'}" in done.err and "is a file" in done.err
    assert done.err.count("\n") == 1 and (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("work", "arguments"),
    [
        ("patchcore.commands.predict.load_model", ["predict", "MODEL", "IMAGE"]),
        ("patchcore.dashboard.from_folder", ["dashboard", ".", "--dry-run"]),
    ],
)
def test_commands_refuse_a_file_before_they_work(
    tmp_path: Path, work: str, arguments: list[str]
) -> None:
    with mock.patch(work, side_effect=AssertionError("worked first")):
        for place, told in ((tmp_path, "is a folder"), (tmp_path / "none/x.csv", "make it first")):
            done = patchcore(*arguments, f"--output={place}")
            assert done.code == 1 and "--output: " in done.err and told in done.err


def test_a_report_has_no_folder_in_the_place_of_its_page(tmp_path: Path) -> None:
    (tmp_path / "out/report.html").mkdir(parents=True)
    done = patchcore("report", str(tmp_path), f"--out={tmp_path / 'out'}")
    assert "report.html is a folder: name another --out" in done.err


def test_a_model_is_not_extended_for_an_output_that_cannot_be(tmp_path: Path) -> None:
    from patchcore.extend import change_artifact

    description: dict[str, Any] = {"members": []}
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine").touch()
    with (
        mock.patch("patchcore.artifact.read_description", return_value=description),
        mock.patch("patchcore.artifact.load", side_effect=AssertionError("worked first")),
        pytest.raises(InputError, match=r"other: is there already: name another folder"),
    ):
        change_artifact(tmp_path / "model", [], ["a.png"], output=tmp_path / "other")


# --- paths that commands take -----------------------------------------------------------------

EMPTY = ": the value is empty: give one"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["report", ""], f"DIR{EMPTY}"),
        (["report", ".", "--out="], f"--out{EMPTY}"),
        (["export", "MODEL", "--output="], f"--output{EMPTY}"),
        (["extend", "MODEL", "IMAGE", "--output="], f"--output{EMPTY}"),
        (["extend", "", "IMAGE"], f"MODEL{EMPTY}"),
        (["extend", "MODEL", ""], f"IMAGES{EMPTY}"),
        (["test", "MODEL", "--output="], f"--output{EMPTY}"),
        (["predict", "MODEL", "IMAGE", "--output="], f"--output{EMPTY}"),
        (["predict", "MODEL", "IMAGE", "--folder=", "--overlays"], f"--folder{EMPTY}"),
        (["dashboard", ""], f"GROUP{EMPTY}"),
        (["dashboard", ".", "--dry-run", "--output="], f"--output{EMPTY}"),
        (["fetch", "mtd", "--root="], f"--root{EMPTY}"),
        (["cache", "--root="], f"--root{EMPTY}"),
        (["report", "file"], "file: is a file: name the folder of its run"),
        (["cache", "--root=file"], "--root: file is a file: name the folder of a cache"),
        (
            ["predict", "MODEL", "IMAGE", "--folder=x"],
            "--folder: nothing is written there: add --maps",
        ),
        (["report", ".", "--out=~no-such-user/x"], "argument --out: ~no-such-user/x: "),
    ],
)
def test_what_cannot_be_meant_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    done = patchcore(*arguments)
    assert done.code == 1 and done.err.startswith(f"error: {told}") and done.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "{}", "--output={}/new"],
        ["test", "{}", "--output={}/new"],
        ["predict", "{}", "IMAGE", "--overlays", "--folder={}/new"],
    ],
)
def test_nothing_is_written_into_a_model(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "artifact.yaml").touch()
    done = patchcore(*(each.format(tmp_path) for each in arguments))
    assert done.code == 1 and f" lies inside the model {tmp_path}: name another" in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "{}", "--output={}"],
        ["test", "{}", "--output={}"],
        ["predict", "{}", "IMAGE", "--overlays", "--folder={}"],
    ],
)
def test_a_model_is_no_place_for_results(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "artifact.yaml").touch()
    done = patchcore(*(each.format(tmp_path) for each in arguments))
    assert done.code == 1
    assert re.search(f": {tmp_path} is (a model|there already): name another folder\n$", done.err)


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", {}, {"image_auroc": 0.9})
    done = patchcore("report", "run", "--out=~/new")
    assert done.code == 0 and (tmp_path / "home/new/report.html").is_file()
    assert not (tmp_path / "~").exists()
