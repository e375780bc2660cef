"""Leftovers of killed processes go when the next one writes there; parts of living ones stay."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from patchcore import writing
from patchcore.errors import InputError
from patchcore.outputs import check_removable
from patchcore.runfolder import RunFolder
from patchcore.sealed import read_sealed, write_sealed
from patchcore.writing import complete, remove_folder, remove_leftovers, replace_with
from tests.users import plain_user, protect

WRITER = """
import sys
from pathlib import Path
from patchcore.sealed import write_sealed
from patchcore.writing import complete
place = Path(sys.argv[1])
def wait(folder=None):
    print("writing", flush=True)
    sys.stdin.readline()
    return {"format": 1}
if sys.argv[2] == "folder":
    write_sealed(place, "about.yaml", wait)
else:
    with complete(place, "w") as file:
        file.write("its own")
        file.flush()
        wait()
"""


@pytest.fixture(autouse=True)
def _as_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_tidied", set())


def write(place: Path, kind: str) -> None:
    writing._tidied.clear()  # as in a new process
    if kind == "folder":
        write_sealed(place, "about.yaml", lambda folder: {"format": 1})
    else:
        with complete(place, "w") as file:
            file.write("ours")


def writing_process(place: Path, kind: str) -> "subprocess.Popen[bytes]":
    """Process that has begun to write, and goes on after a line on its stdin."""
    line, pipe = [sys.executable, "-c", WRITER, str(place), kind], subprocess.PIPE
    process = subprocess.Popen(line, stdin=pipe, stdout=pipe)
    assert process.stdout is not None and process.stdout.readline() == b"writing\n"
    return process


def parts(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".part")]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_was_writing_is_removed_by_the_next(
    kind: str, tmp_path: Path
) -> None:
    place = tmp_path / "results"
    with writing_process(place, kind) as writer:
        try:
            (living,) = parts(tmp_path)
            write(place, kind)
            assert parts(tmp_path) == [living]
        finally:
            writer.kill()
    assert parts(tmp_path) == [living]
    write(place, kind)
    assert os.listdir(tmp_path) == ["results"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_living_process_writes_becomes_complete(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "results"
    with writing_process(place, kind) as writer:
        remove_leftovers(tmp_path)
        writer.communicate(b"go on\n")
    assert writer.returncode == 0 and os.listdir(tmp_path) == ["results"]
    if kind == "folder":
        read_sealed(place, "about.yaml", 1)
    else:
        assert place.read_text() == "its own"


def test_only_leftovers_go(tmp_path: Path) -> None:
    left = f".a.csv-{'0' * 32}.part"
    for name in (left, "a.zip.part", ".a-1.part", "a.csv", f"a.csv-{'0' * 32}.part"):
        (tmp_path / name).write_text("x")
    (tmp_path / f".link-{'1' * 32}.part").symlink_to(tmp_path / "a.csv")
    names = {*os.listdir(tmp_path)}
    remove_leftovers(tmp_path)
    assert {*os.listdir(tmp_path)} == names - {left}
    remove_leftovers(tmp_path / "nowhere")


def test_write_protected_leftovers_go() -> None:
    with plain_user() as place:
        left = place / f".it-{'0' * 32}.part"
        (left / "more").mkdir(parents=True)
        (left / "more/content").touch()
        protect(left)
        remove_leftovers(place)
        assert not os.listdir(place)


@pytest.mark.parametrize("mode", [0o555, 0o311, 0o111, 0o000])
def test_what_may_be_removed_is_removed(mode: int) -> None:
    with plain_user() as place:
        for inner in ("it", "it/inner"):
            (place / "it/inner").mkdir(parents=True)
            (place / "it/inner/file").touch()
            (place / inner).chmod(mode)
            check_removable(place / "it")
            remove_folder(place / "it")
            assert not os.listdir(place)


def test_links_lead_to_nothing_that_is_removed_or_made_writable() -> None:
    with plain_user() as place:
        (place / "theirs/inner").mkdir(parents=True)
        protect(place / "theirs")
        (place / "it").mkdir()
        for name in ("link", "it/link"):
            (place / name).symlink_to(place / "theirs")
            remove_folder(place / name)
        remove_folder(place / "it")
        assert {*os.listdir(place)} == {"link", "theirs"}
        for each in (place / "theirs", place / "theirs/inner"):
            assert each.stat().st_mode & 0o777 == 0o555


def test_a_folder_of_another_user_that_cannot_be_listed_is_refused() -> None:
    with plain_user() as place:
        (place / "it/inner").mkdir(parents=True)
        (place / "it/inner").chmod(0o000)
        told = pytest.raises(InputError, match="/it/inner: belongs to another user")
        with mock.patch("os.geteuid", return_value=-1), told:
            check_removable(place / "it")


def test_where_there_are_no_locks_everything_stays(tmp_path: Path) -> None:
    left = tmp_path / f".a.csv-{'0' * 32}.part"
    left.write_text("x")
    with mock.patch.object(fcntl, "flock", side_effect=OSError(errno.ENOLCK, "No locks")):
        for place in (tmp_path / "a.csv", tmp_path / "model"):
            write(place, "folder" if place.name == "model" else "file")
        replace_with(tmp_path / "b", b"x")
    assert {*os.listdir(tmp_path)} == {left.name, "a.csv", "b", "model"}


def test_a_part_that_another_takes_for_a_leftover_is_made_again(tmp_path: Path) -> None:
    """The moment between making a file and locking it belongs to nobody."""
    made: list[Path] = []

    def make(path: Path) -> None:
        path.touch()
        made.append(path)
        if len(made) == 1:
            remove_leftovers(tmp_path)

    part, handle = writing.new_part(tmp_path / "a.csv", make)
    os.close(handle)
    assert len(made) == 2 and part == made[1] and os.listdir(tmp_path) == [part.name]


def test_what_a_killed_run_was_writing_is_removed_when_its_folder_is_used_again(
    tmp_path: Path,
) -> None:
    left = tmp_path / f".fingerprint.txt-{'0' * 32}.part"
    left.touch()
    with writing_process(tmp_path / "other", "file") as writer:
        try:
            with RunFolder(tmp_path):
                (living,) = parts(tmp_path)
                assert living.startswith(".other-")
        finally:
            writer.kill()
