"""Names that are no path to read or write: URLs, links to nothing, control characters."""

import io
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from patchcore import InputError, load
from patchcore.cache import CacheConfig
from patchcore.commands.hydra_values import check_hydra
from patchcore.data.files import expanded, find_folder
from patchcore.data.generated import GeneratedConfig
from patchcore.data.images import open_array, read_image
from patchcore.data.named import named_images
from patchcore.errors import counted, printable, to_write
from tests.runs import patchcore

WORDS = "is a URL, and URLs are neither read nor written: name a path of this machine"
CONTROL = "holds a control character, as where a file has Windows line ends: remove it"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["predict", "s3://b/model", "a.png"], "MODEL"),
        (["predict", "model", "a.png", "--output=s3://b/model"], "--output"),
        (["predict", "model", "a.png", "--overlays", "--folder=s3://b/model"], "--folder"),
        (["export", "model", "--output", "s3://b/model"], "--output"),
        (["report", "s3://b/model"], "DIR"),
        (["fetch", "mvtec", "--root=s3://b/model"], "--root"),
        (["cache", "--root=s3://b/model"], "--root"),
    ],
)
def test_a_url_in_place_of_a_path_is_told_as_typed(
    arguments: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = patchcore(*arguments)
    assert (done.code, done.err) == (1, f"error: argument {name}: s3://b/model: {WORDS}\n")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "override",
    [
        *("data.root=s3://b/c", "data.region=s3://b/c", "backbone.weights=s3://b/c"),
        *("backbone.weights=s3://b/c.pth", "cache.root=s3://b/c"),
    ],
)
def test_a_setting_that_is_a_url_is_told_with_its_key(
    override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    usual = ["backbone=embedded", "trainer=cpu", "logger=none", f"hydra.run.dir={tmp_path / 'run'}"]
    done = patchcore("train", *usual, override)
    key, _, value = override.partition("=")
    assert (done.code, done.err) == (1, f"error: {key}: {value} {WORDS}\n")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        *(["predict", "model", "a.png", option] for option in ("--output", "--folder")),
        *([command, "model", "--output"] for command in ("export", "extend", "test", "dashboard")),
        *(["fetch", "mvtec", "--root"], ["cache", "--root"], ["report", "runs", "--out"]),
    ],
)
def test_options_that_would_make_a_control_character_in_a_name_are_refused(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = patchcore(*arguments[:-1], f"{arguments[-1]}=new\r")
    assert (done.code, done.err) == (1, f"error: argument {arguments[-1]}: new\\r {CONTROL}\n")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("end", ["\r", "\n", "\t", "\0", "\x1b", "\x7f", "\x85"])
def test_a_setting_or_variable_that_would_make_one_is_told_with_its_key(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(key: str, called: Callable[[], object]) -> None:
        with pytest.raises(InputError) as caught:
            called()
        assert str(caught.value) == f"{key}: {printable(f'new{end}')} {CONTROL}"

    refused("cache.root", CacheConfig(root=f"new{end}").folder)
    refused("data.root", GeneratedConfig(root=f"new{end}").folder)
    for key in ("run.dir", "sweep.dir", "sweep.subdir", "output_subdir"):
        values: dict[str, Any] = {}
        OmegaConf.update(settings := OmegaConf.create(values), key, f"new{end}")
        refused(f"hydra.{key}", partial(check_hydra, settings))
    for name, config in (
        ("XDG_CACHE_HOME", CacheConfig()),
        ("XDG_CACHE_HOME", GeneratedConfig()),
        ("PATCHCORE_CACHE", CacheConfig()),
    ):
        monkeypatch.delenv("PATCHCORE_CACHE", raising=False)
        monkeypatch.setattr(os, "environ", {**os.environ, name: f"new{end}"})  # which has no NUL
        refused(name, config.folder)
    for name in ("caf\xe9", "日本", "caf\udce9", "a b\u200d"):
        assert to_write(name) == name


def test_images_of_the_network_are_told_as_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "https://host/a.png"
    (tmp_path / "list").write_text(f"{url}\n")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(url.encode())))
    for argument, name in (
        (url, "IMAGES"),
        ("https://host/*.png", "IMAGES"),
        (f"@{url}", "IMAGES"),
        (f"@{tmp_path / 'list'}", f"IMAGES: the list {tmp_path / 'list'}"),
        ("-", "IMAGES: stdin"),
    ):
        told = argument if "*" in argument else url
        with pytest.raises(InputError, match=f"^{re.escape(f'{name}: {told} {WORDS}')}$"):
            list(named_images([argument]))


def test_python_and_the_environment_take_no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"^folder: s3://b/model is a URL"):
        load("s3://b/model")
    monkeypatch.setenv("PATCHCORE_CACHE", "s3://b/c")
    with pytest.raises(InputError, match=r"^PATCHCORE_CACHE: s3://b/c is a URL"):
        CacheConfig().folder()


def test_what_only_resembles_a_url_is_a_path(tmp_path: Path) -> None:
    for name in ("a:b", "s3:/b", "1://b", "/a://b", "~/a", "caf\xe9://b"):
        assert expanded(name, "key") == Path(name).expanduser()


def test_a_link_to_nothing_is_told_with_its_target(tmp_path: Path) -> None:
    link, gone = tmp_path / "link.png", tmp_path / "gone"
    link.symlink_to(gone)
    words = f"{link}: this link leads to {gone}, which cannot be read (No such file or directory)"
    for read in (read_image, lambda path: open_array(path, 2)):
        with pytest.raises(InputError, match=f"^{re.escape(words)}; mend the link or remove it"):
            read(link)
    with pytest.raises(InputError, match=f"^data.root: {re.escape(words)}"):
        find_folder(link, "data.root")
    done = patchcore("predict", str(link), str(tmp_path))
    assert done.err == (
        f"error: {link}: is not an artifact: it is a link that leads to {gone}: mend the link\n"
    )
    done = patchcore("extend", str(tmp_path), str(link))
    assert done.err.startswith(f"error: {words}")


def test_links_in_a_circle_are_told_with_their_target(tmp_path: Path) -> None:
    link = tmp_path / "link.png"
    link.symlink_to("link.png")
    with pytest.raises(InputError, match=r"this link leads to link\.png, which cannot be read"):
        read_image(link)


def test_one_thing_is_in_the_singular() -> None:
    found = [counted(number, noun) for number in (0, 1, 2, 1200) for noun in ("image", "patch")]
    assert found == [
        *("0 images", "0 patches", "1 image", "1 patch"),
        *("2 images", "2 patches", "1,200 images", "1,200 patches"),
    ]
