"""Folders that are written at once, and read only unchanged."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from patchcore.errors import InputError
from patchcore.sealed import aside, read_sealed, write_sealed

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
    with pytest.raises(InputError, match="circle: cannot be written"):
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
