"""Git LFS pointers in place of files: whatever was to be read, the message says what to run."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import patchcore
from patchcore import BackboneConfig, GreedyConfig, InputError, LayersConfig, PatchCore
from patchcore.backbones import Backbone
from patchcore.data.fetch import download, unpack
from patchcore.data.images import bits_in_use, image_size, open_array, read_image, read_mask
from patchcore.data.realiad import _lists
from patchcore.data.visa import _rows
from patchcore.errors import unreadable
from patchcore.overlays import read_map

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
TOLD = "is a Git LFS pointer in place of the file: run 'git lfs pull' in its repository"


def weights(path: Path) -> Any:
    return Backbone(BackboneConfig("resnet18", str(path)), LayersConfig(["1"]))


READERS: list[tuple[str, Callable[[Path], Any]]] = [
    ("a.png", read_image),
    ("a.jpg", image_size),
    ("a.tif", bits_in_use),
    ("a.tga", read_image),
    ("a.png", read_mask),
    ("a.npy", lambda path: open_array(path, 3)),
    ("a.npy", read_map),
    ("a.png", read_map),
    ("a.safetensors", weights),
    ("a.pth", weights),
    ("a.json", _lists),
    ("a.csv", _rows),
]


@pytest.mark.parametrize(("name", "read"), READERS)
def test_a_pointer_is_named_as_such(name: str, read: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(POINTER)
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value) == f"{path}: {TOLD}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "artifact"
    PatchCore(coreset=GreedyConfig(count=5)).fit(torch.rand(2, 3, 64, 64)).save(folder)
    return folder


@pytest.mark.parametrize("name", ["artifact.yaml", "model.safetensors"])
def test_a_pointer_in_a_model_is_named(name: str, model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "copy")
    (folder / name).write_bytes(POINTER)
    with pytest.raises(InputError) as caught:
        patchcore.load(folder)
    assert str(caught.value) == f"{folder / name}: {TOLD}"


def test_a_pointer_in_place_of_an_archive_is_kept(tmp_path: Path) -> None:
    archive = tmp_path / "mvtec.tar.xz"
    archive.write_bytes(POINTER)
    with pytest.raises(InputError) as caught:
        download("http://localhost/a", archive, hashlib.sha256(b"").hexdigest())
    assert str(caught.value) == f"{archive}: {TOLD}"
    with pytest.raises(InputError) as caught:
        unpack(archive, tmp_path / "data", ("train",), tmp_path)
    assert str(caught.value) == f"{archive}: {TOLD}"
    assert archive.read_bytes() == POINTER


def test_other_files_keep_their_own_message(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"version 2")
    assert str(unreadable(tmp_path / "a", "broken")) == "broken"
    assert str(unreadable(tmp_path / "absent", "broken")) == "broken"
    assert str(unreadable(tmp_path, "broken")) == "broken"
