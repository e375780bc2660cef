"""Folders that are written at once, and read only unchanged."""

import errno
import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from patchcore.errors import InputError
from patchcore.sealed import (
    aside,
    check_files,
    check_target,
    locked,
    read_description,
    read_sealed,
    steadily,
    write_sealed,
)
from tests.users import plain_user, protect

NAME = "about.yaml"


def seal(folder: Path, content: bytes = b"\x00\xff", **more: Any) -> None:
    def write(new: Path) -> dict[str, Any]:
        (new / "content").write_bytes(content)
        return {"format": 1, **more}

    write_sealed(folder, NAME, write)


def test_a_folder_is_read_as_it_was_written(tmp_path: Path) -> None:
    seal(tmp_path / "a/b", words=["ä", None, 0.1])
    found = read_sealed(tmp_path / "a/b", NAME, newest=1)
    assert found["words"] == ["ä", None, 0.1] and found["files"]["content"]["bytes"] == 2
    seal(tmp_path / "a/b", b"other")
    assert (tmp_path / "a/b/content").read_bytes() == b"other"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_its_files_may_be_read_by_whom_the_umask_says(tmp_path: Path, mask: int) -> None:
    def write(new: Path) -> dict[str, Any]:
        save_file({"a": torch.zeros(1)}, new / "a.safetensors")
        return {"format": 1}

    before = os.umask(mask)
    try:
        write_sealed(tmp_path / "it", "it.yaml", write)
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "it").iterdir()}
    assert modes == {0o666 & ~mask}


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    link, target = tmp_path / "latest", tmp_path / "runs/1"
    target.parent.mkdir()
    link.symlink_to(target, target_is_directory=True)
    for content in (b"first", b"second", b"third"):  # the link points nowhere at first
        seal(link, content)
        assert link.is_symlink() and not target.is_symlink()
        assert (target / "content").read_bytes() == content
        assert [path.name for path in tmp_path.rglob("*")].count("content") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"latest", "runs"}
    assert [path.name for path in target.parent.iterdir()] == ["1"]
    target.rename(aside(link))  # as a killed process leaves it
    seal(link, b"fourth")
    assert (target / "content").read_bytes() == b"fourth"
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(InputError, match=r"circle: this link leads to .*circle, which cannot be"):
        seal(tmp_path / "circle")


@pytest.mark.parametrize("name", [NAME, "content"])
def test_any_changed_byte_is_noticed(tmp_path: Path, name: str) -> None:
    seal(tmp_path / "a")
    path = tmp_path / "a" / name
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(InputError, match=f"{name}: is damaged.*: copy the folder again"):
            read_sealed(tmp_path / "a", NAME, newest=1)
        path.write_bytes(whole[:place])
        with pytest.raises(InputError, match=f"{name}: is damaged.*: copy the folder again"):
            read_sealed(tmp_path / "a", NAME, newest=1)
    path.unlink()
    with pytest.raises(InputError, match=f"{name}: (is missing: copy the|there is no such file)"):
        read_sealed(tmp_path / "a", NAME, newest=1)


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    seal(tmp_path / "a", format=2)
    with pytest.raises(InputError, match=r"about.yaml: is of format 2, and .* up to 1: install"):
        read_sealed(tmp_path / "a", NAME, newest=1)
    for wrong in ("text", -1, 0, True, 1.0, None):
        seal(tmp_path / "a", format=wrong)
        with pytest.raises(InputError, match=rf"about.yaml: is of format '?{wrong}'?, which never"):
            read_sealed(tmp_path / "a", NAME, newest=1)
    with pytest.raises(InputError, match=r"^.*a: details must be plain values"):
        seal(tmp_path / "a", path=Path("x"))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    seal(tmp_path / "a")

    def stop(new: Path) -> dict[str, Any]:
        (new / "content").write_bytes(b"half")
        raise KeyboardInterrupt

    for folder in ("a", "b"):
        with pytest.raises(KeyboardInterrupt):
            write_sealed(tmp_path / folder, NAME, stop)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert read_sealed(tmp_path / "a", NAME, newest=1)["format"] == 1


def test_what_an_operating_system_leaves_is_no_hindrance(tmp_path: Path) -> None:
    seal(tmp_path / "a")
    for name in (".DS_Store", "._a.yaml", "Thumbs.db"):
        (tmp_path / "a" / name).write_text("left")
    seal(tmp_path / "a")
    assert read_sealed(tmp_path / "a", NAME, newest=1)["format"] == 1
    assert not (tmp_path / "a/.DS_Store").exists()


def test_a_write_protected_folder_is_replaced_without_a_trace() -> None:
    with plain_user() as place:
        for content in (b"first", b"second"):
            seal(place / "it", content)
            (place / "it/__MACOSX").mkdir()
            (place / "it/__MACOSX/content").touch()
            protect(place / "it")
        seal(place / "it", b"third")
        assert (place / "it/content").read_bytes() == b"third"
        assert os.listdir(place) == ["it"]
        seal(place / "it", b"fourth")
        protect(place / "it")
        (place / "it").rename(aside(place / "it"))  # as a killed process leaves it
        seal(place / "it", b"fifth")
        assert os.listdir(place) == ["it"]


def test_a_folder_of_which_another_user_lets_nothing_be_removed_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with plain_user() as place:
        seal(place / "it", b"theirs")
        protect(place / "it")
        monkeypatch.setattr(os, "geteuid", lambda: -1)
        for refused in (lambda: seal(place / "it"), lambda: check_target(place / "it", NAME)):
            with pytest.raises(InputError, match=r"/it: belongs to another user, .*: name anothe"):
                refused()
        assert os.listdir(place) == ["it"] and (place / "it/content").read_bytes() == b"theirs"
        os.chmod(place / "it", 0o755)  # of a group to which both belong
        seal(place / "it", b"ours")
        assert os.listdir(place) == ["it"]
        monkeypatch.undo()


def test_other_files_are_not_replaced(tmp_path: Path) -> None:
    seal(tmp_path / "a")
    (tmp_path / "a/mine.txt").write_text("mine")
    with pytest.raises(
        InputError, match=r"a: holds 'mine.txt', which patchcore did not write: give"
    ):
        seal(tmp_path / "a")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"file: is a file: give a folder"):
        seal(tmp_path / "file")
    assert (tmp_path / "a/mine.txt").read_text() == (tmp_path / "file").read_text() == "mine"


def test_what_a_killed_process_moved_aside_is_put_back(tmp_path: Path) -> None:
    seal(tmp_path / "a", words="first")
    (tmp_path / "a").rename(tmp_path / ".a.previous")
    (tmp_path / ".a.previous/mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"mine\.txt"):
        seal(tmp_path / "a")
    assert read_sealed(tmp_path / "a", NAME, newest=1)["words"] == "first"


def test_a_folder_is_replaced_by_one_at_a_time(tmp_path: Path) -> None:
    seal(tmp_path / "a", words="first")

    def other(*arguments: Any) -> str:
        """Return what the same raises in another thread, as in another process."""
        with ThreadPoolExecutor() as pool:
            return str(pool.submit(*arguments).exception())

    def write(new: Path) -> dict[str, Any]:
        words = "another process is changing it: wait until that ends, and try again"
        assert other(seal, tmp_path / "a") == f"{tmp_path / 'a'}: {words}"
        (tmp_path / "a").rename(tmp_path / ".a.previous")  # in the middle of the replacement
        assert words in other(seal, tmp_path / "a")
        (tmp_path / ".a.previous").rename(tmp_path / "a")
        return {"format": 1, "words": "second"}

    with locked(tmp_path / "a"):
        write_sealed(tmp_path / "a", NAME, write)
        assert os.listdir(tmp_path) == ["a"]
    assert read_sealed(tmp_path / "a", NAME, newest=1)["words"] == "second"
    seal(tmp_path / "a")


def test_a_lock_is_of_the_folder_that_is_there_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal(tmp_path / "a", words="first")
    before = []

    def flock(*arguments: Any) -> None:
        if not before:
            before.append((tmp_path / "a").stat())
            seal(tmp_path / "a", words="second")  # between the opening and the locking
        lock(*arguments)

    lock = fcntl.flock
    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", flock)
        with locked(tmp_path / "a"), ThreadPoolExecutor() as pool:
            assert not os.path.samestat(before[0], (tmp_path / "a").stat())
            assert "another process" in str(pool.submit(seal, tmp_path / "a").exception())


def test_where_there_are_no_locks_folders_are_replaced_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    seal(tmp_path / "a", words="first")
    (tmp_path / "a").rename(tmp_path / ".a.previous")
    with locked(tmp_path / "a"):
        assert read_sealed(tmp_path / "a", NAME, newest=1)["words"] == "first"
        seal(tmp_path / "a", words="second")
    assert read_sealed(tmp_path / "a", NAME, newest=1)["words"] == "second"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("replace", [True, False])
def test_of_several_that_make_a_folder_one_wins(tmp_path: Path, replace: bool) -> None:
    def write(new: Path) -> dict[str, Any]:
        seal(tmp_path / "a", words="first")
        return {"format": 1, "words": "second"}

    words = r"a: is there already: name another folder$"
    with pytest.raises(InputError, match=words):
        write_sealed(tmp_path / "a", NAME, write, replace=replace)
    assert read_sealed(tmp_path / "a", NAME, newest=1)["words"] == "first"
    assert os.listdir(tmp_path) == ["a"]
    with pytest.raises(InputError, match=words):
        write_sealed(tmp_path / "a", NAME, write, replace=False)
    (tmp_path / "empty").mkdir()
    write_sealed(tmp_path / "empty", NAME, lambda new: {"format": 1}, replace=False)


def test_a_reader_gets_the_old_or_the_new_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    seal(folder, b"one", words="first")
    moments = iter(range(9))

    def read() -> tuple[Any, bytes]:
        moment = next(moments)
        if moment == 1:
            folder.rename(aside(folder))
        if moment == 2:
            aside(folder).rename(folder)
        description = read_description(folder / NAME, 1)
        if moment == 0:
            seal(folder, b"two", words="second")
        check_files(folder, description)
        content = (folder / "content").read_bytes()
        if moment == 2:
            seal(folder, b"three", words="third")  # which no check has noticed
        return description["words"], content

    assert steadily(folder, read) == ("third", b"three")
    (folder / "content").write_bytes(b"other")
    with pytest.raises(InputError, match="is damaged"):
        steadily(folder, read)


def test_a_folder_that_is_mounted_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "an \\é"
    seal(place)
    before = (place / NAME).read_bytes()
    info = tmp_path / "mountinfo"
    told = os.fsencode(place).replace(b"\\", rb"\134").replace(b" ", rb"\040")
    info.write_bytes(b"22 27 0:21 / /proc rw - proc proc rw\n9 8 0:2 / " + told + b" rw - a b rw\n")
    read = Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda p: read(info if str(p) == "/proc/self/mountinfo" else p)
    )
    words = f"{place}: a disk or volume is mounted there, so it cannot be replaced: choose a folder"
    for refused in (lambda: seal(place), lambda: check_target(place, NAME)):
        with pytest.raises(InputError) as caught:
            refused()
        assert str(caught.value) == f"{words} inside it"
    assert (place / NAME).read_bytes() == before


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV])
def test_a_folder_that_cannot_be_renamed_is_told_so(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal(tmp_path / "it", b"old")

    def rename(path: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(InputError) as caught:
        seal(tmp_path / "it", b"new")
    told = (
        f"{tmp_path / 'it'}: cannot be written ({os.strerror(number)}): choose a folder inside it"
    )
    assert str(caught.value) == f"{told}, as it cannot be renamed"
    assert (tmp_path / "it/content").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["it"]
