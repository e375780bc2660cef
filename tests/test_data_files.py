"""Listing of files: links, formats, junk, names, and what cannot be read."""

import errno
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from patchcore.data.files import Files, find_folder
from patchcore.data.folder import FolderConfig
from patchcore.data.formats import CAMERA, FORMATS
from patchcore.data.generated import GeneratedConfig
from patchcore.data.mvtec import MVTecConfig
from patchcore.data.named import named_images
from patchcore.errors import InputError, printable
from patchcore.overlays import picture_path
from tests.images import write_image, write_mvtec


def names(folder: Path, **more: bool) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in Files().images(folder, **more)]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


# --- what is an image --------------------------------------------------------------------------


def test_a_folder_that_a_run_has_made_is_not_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts/.hydra").mkdir(parents=True)
    (tmp_path / "parts/train.log").touch()
    (tmp_path / "outputs/2026/1/.hydra").mkdir(parents=True)
    (tmp_path / "outputs/2026/1/.hydra/config.yaml").touch()
    for name in ("prts", "outptus"):
        with pytest.raises(InputError, match=rf"there is no folder {name} in .*; check the path$"):
            find_folder(Path(name), "data.root")
    (tmp_path / "part").mkdir()
    with pytest.raises(InputError, match=r"there is no folder prts; did you mean part\?"):
        find_folder(Path("prts"), "data.root")
    (tmp_path / "outputs/a.png").touch()
    with pytest.raises(InputError, match=r"there is no folder outptus; did you mean outputs\?"):
        find_folder(Path("outptus"), "data.root")


def test_list_is_sorted_and_knows_extensions(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("b.PNG", "a.jpeg", "c/d.JfIf", "c.pgm", "B.Tif")))
    assert names(tmp_path, recursive=True) == ["B.Tif", "a.jpeg", "b.PNG", "c.pgm", "c/d.JfIf"]


def test_every_format_is_one_that_pillow_reads() -> None:
    Image.init()
    assert set(FORMATS.values()) <= set(Image.OPEN)
    assert not {"EPS", "PDF", "WMF"} & set(FORMATS.values())  # these start other programs


def test_order_does_not_depend_on_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(*(tmp_path / name for name in ("ä.png", "b/1.png", "b-1.png", "B.png", "a.png")))
    first = names(tmp_path, recursive=True)
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: listdir(folder)[::-1])
    assert names(tmp_path, recursive=True) == first
    assert first == ["B.png", "a.png", "b-1.png", "b/1.png", "ä.png"]


@pytest.mark.parametrize(
    "junk",
    [
        ".thumbnails/1.png",
        ".ipynb_checkpoints/1-checkpoint.png",
        "__MACOSX/1.png",
        "@eaDir/1.png/SYNOPHOTO_THUMB_M.png",
        "Thumbs.db",
        "._1.png",
        "lost+found/1.png",
        "$RECYCLE.BIN/1.png",
    ],
)
def test_junk_is_passed_over_without_a_word(tmp_path: Path, junk: str) -> None:
    folder = write_mvtec(tmp_path)
    write_image(tmp_path / "junk.png")
    for place in ("train/good", "test/scratch", "test", "ground_truth", "."):
        touch(folder / place / junk)
    split = MVTecConfig(root=str(tmp_path), category="nut").read()  # a warning would be an error
    assert (len(split.train), len(split.test)) == (4, 5)
    touch(tmp_path / "own/deep" / junk)
    write_image(tmp_path / "own/deep/1.png")
    assert names(tmp_path / "own", recursive=True) == ["deep/1.png"]


def test_paths_that_are_one_text_in_tables_are_told(tmp_path: Path) -> None:
    names = ["a\nb.png", "a\\nb.png", "a\\d.png", "c.png", "\udce9.png"]
    for name in names:
        write_image(tmp_path / "nominal" / name)
    config = FolderConfig(root=str(tmp_path), test_share=0.2)
    told = re.escape(f"data: 1 path in tables will stand for several files (such as {tmp_path}/n")
    with pytest.warns(
        UserWarning, match=rf"^{told}ominal/a\\nb\.png\), .*; rename one of each; read:"
    ):
        config.read()
    (tmp_path / "nominal" / names[0]).unlink()
    config.read()  # a backslash alone is told apart


def test_a_folder_that_may_not_be_entered_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "nominal/1.png")
    whole = Path.stat

    def stat(path: Path, **more: Any) -> os.stat_result:
        if path.suffix:
            raise PermissionError(errno.EACCES, "Permission denied")
        return whole(path, **more)

    monkeypatch.setattr(Path, "stat", stat)  # root may enter any folder
    monkeypatch.setattr(os, "access", lambda _, mode: mode != os.X_OK)
    told = rf"^{tmp_path}/nominal: this folder cannot be read \(Permission denied\); change its"
    with pytest.raises(InputError, match=told):
        Files(unreadable=True).images(tmp_path / "nominal")


def test_other_files_are_counted_and_told_once(tmp_path: Path) -> None:
    for i in range(5):
        write_image(tmp_path / f"nominal/{i}.png")
    touch(tmp_path / "nominal/7.heic", tmp_path / "nominal/8.HEIC", tmp_path / "nominal/a/readme")
    os.mkfifo(tmp_path / "nominal/9.png")  # whoever opens it waits for ever
    config = FolderConfig(root=str(tmp_path))
    with pytest.warns(UserWarning) as told:
        split = config.read()
    assert len(split.train + split.test) == 5
    (warning,) = told
    assert str(warning.message) == (
        "data: 4 files passed over: 2 .heic, 1 pipe or device, 1 without extension (such as "
        f"{tmp_path}/nominal/7.heic); .heic cannot be read: convert such files to PNG; read: "
        "4 training, 1 nominal test and 0 anomalous images"
    )


def test_a_folder_of_nothing_but_other_formats_tells_which(tmp_path: Path) -> None:
    touch(*(tmp_path / "nominal" / name for name in ("6.CR2", "7.heic", "8.txt")))
    told = (
        rf"3 files passed over: 1 \.cr2, 1 \.heic, 1 \.txt \(such as {tmp_path}/nominal/6\.CR2\); "
        r"\.cr2 and \.heic cannot be read: convert such files to PNG$"
    )
    with pytest.raises(InputError, match=rf"nominal holds no images .*; {told}"):
        FolderConfig(root=str(tmp_path)).read()
    with pytest.raises(InputError, match=rf"nominal: holds no images to inspect; {told}"):
        list(named_images([str(tmp_path / "nominal")]))
    folder = write_mvtec(tmp_path)
    for path in (folder / "train/good").iterdir():
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(InputError, match=r"good: holds no images; .*; \.heic cannot be read: conv"):
        MVTecConfig(root=str(tmp_path), category="nut").read()


def test_only_formats_of_cameras_that_are_not_read_are_to_be_converted() -> None:
    assert not CAMERA & FORMATS.keys()


@pytest.mark.parametrize("name", ["lot[3]", "lot*", "lot?", "[a]"])
def test_a_folder_whose_name_is_a_glob_stands_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("lot3", "a", name):
        write_image(Path(folder) / "in/0.png")
    for argument in (name, f"{name}/in/*.png", f"{name}/**/*.png", f"{tmp_path}/{name}/in/?.png"):
        assert [path.resolve() for path in named_images([argument])] == [
            tmp_path / name / "in/0.png"
        ]
    shutil.rmtree(name)
    (found,) = named_images([f"{name}/in/*.png"])
    assert found == Path("a" if name == "[a]" else "lot3") / "in/0.png"


# --- links ---------------------------------------------------------------------------------------


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    good, store = tmp_path / "good", tmp_path / "store"
    touch(good / "1.png", store / "2.png", store / "deep/3.png", tmp_path / "4.png")
    (good / "a").symlink_to(store)
    (good / "4.png").symlink_to("../4.png")
    (store / "up").symlink_to(good)
    (store / "deep/round").symlink_to(store)
    listed = ["1.png", "4.png", "a/2.png", "a/deep/3.png"]
    assert names(good, recursive=True) == listed
    assert names(good, recursive=True, once=True) == listed


def test_a_file_is_listed_once_by_its_own_place(tmp_path: Path) -> None:
    for i in range(5):
        write_image(tmp_path / f"nominal/real/{i}.png")
    (tmp_path / "nominal/all").symlink_to("real")  # sorts before it
    os.link(tmp_path / "nominal/real/0.png", tmp_path / "nominal/z.png")
    files = Files()
    found = files.images(tmp_path / "nominal", recursive=True, once=True)
    assert [path.name for path in found] == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    assert {path.parent.name for path in found} == {"real"}
    with pytest.warns(UserWarning, match="2 reached by another way too and counted once .*all, wh"):
        split = FolderConfig(root=str(tmp_path)).read()
    assert len(split.train + split.test) == 5
    assert len(Files().images(tmp_path / "nominal", recursive=True)) == 11  # as masks are listed


@pytest.mark.parametrize("target", ["/gone/1.png", "loop.png"])
@pytest.mark.parametrize("name", ["loop.png", "line2"])
def test_a_broken_link_is_named(tmp_path: Path, name: str, target: str) -> None:
    write_image(tmp_path / "nominal/0.png")
    (tmp_path / "nominal" / name).symlink_to(target)
    with pytest.raises(InputError, match=f"nominal/{name}: this link leads to {target}, which can"):
        FolderConfig(root=str(tmp_path)).read()


# --- what cannot be read -------------------------------------------------------------------------


def test_an_unreadable_folder_or_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "nominal/line1/0.png")
    listdir, stat, access = (
        os.listdir,
        os.stat,
        os.access,
    )  # faked, as nothing is unreadable to root

    def refusing(folder: Path) -> list[str]:
        if Path(folder).name == "line1":
            raise PermissionError(13, "Permission denied")
        return listdir(folder)

    def closed(path: Any, **more: Any) -> os.stat_result:  # nor can what is in it be looked up
        if not isinstance(path, int) and Path(path).parent.name == "line1":
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **more)

    config = FolderConfig(root=str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refusing)
        patch.setattr(os, "stat", closed)
        with pytest.raises(InputError, match=r"nominal/line1: this folder cannot be read \(Permis"):
            config.read()
    monkeypatch.setattr(os, "access", lambda path, how: path.name != "0.png" and access(path, how))
    with pytest.raises(InputError, match=r"nominal/line1/0\.png: this file is not readable"):
        config.read()


def test_pictures_that_predict_wrote_are_no_images(tmp_path: Path) -> None:
    for name in ("1.png", "overlay.png", "1.map.png", "1.png.overlay.png", "2.JPG.map.png"):
        write_image(tmp_path / name)
    write_image(picture_path(tmp_path, Path("n" * 246 + ".png"), ".map.png"))
    files = Files()
    found = [path.name for path in files.images(tmp_path)]
    assert found == ["1.map.png", "1.png", "overlay.png"]
    assert files.passed_over() == (
        f"3 files passed over: 3 pictures of predict (such as {tmp_path}/1.png.overlay.png)"
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", " is empty: name a folder"),
        ("  ", " is empty: name a folder"),
        ("absent", r": there is no folder absent in /.*; check the path"),
        ("nominl", r": there is no folder nominl; did you mean nominal\?"),
        ("nominal/absent", r": there is no folder nominal/absent in /.*; check the path"),
        ("nominal ", r": there is no folder 'nominal '; without the space around its name there"),
        ("nominal/0.png", ": .*0.png is a file; name the folder"),
        ("nominal/0.png/deep", r": .*deep cannot be read \(Not a directory\)"),
        ("n" * 300, r": n+ cannot be read \(File name too long\)"),
        ("nomi\0nal", r": .* is no path"),
        ("~nobody-of-this-name/x", r": ~nobody.* leads nowhere; write the path in full"),
    ],
)
def test_what_is_no_folder_is_told_with_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    write_image(tmp_path / "nominal/0.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"^data.root{message}"):
        find_folder(value, "data.root")
    with pytest.raises(InputError, match=f"^data.root{message}".replace("; check the path", "")):
        MVTecConfig(root=value).read()
    message = message.replace("'nominal '", "'.*nominal '").replace(": n+", ": .*n+")
    with pytest.raises(InputError, match=f"^data.nominal{message}"):
        FolderConfig(nominal=value).read()


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("", "data.root is empty"),
        ("n" * 300, r"data.root: cannot write to n+/\w+ \(File name too long\)"),
        ("taken", r"data.root: cannot write to taken/\w+ \((Not a directory|File exists)\)"),
        ("nowhere/new", "data.root: nowhere: this link leads to gone, which cannot be read"),
        ("~nobody-of-this-name", "data.root: ~nobody-of-this-name: ~ leads nowhere"),
    ],
)
def test_generated_images_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").touch()
    Path("nowhere").symlink_to("gone")
    with pytest.raises(InputError, match=f"^{message}"):
        GeneratedConfig(root=root).read()


def test_generated_images_have_a_place_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    assert GeneratedConfig().folder().is_absolute()


def test_every_spelling_of_a_folder_reads_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(9):
        write_image(tmp_path / f"own/good parts/{i}.png")
    (tmp_path / "link").symlink_to("own")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    held_out = {
        tuple(sample.path.name for sample in FolderConfig(root=root, nominal=nominal).read().test)
        for root, nominal in (
            ("own", "good parts"),
            ("~/own/", "good parts/"),
            ("link", "./good parts"),
            (str(tmp_path / "own"), "../own/good parts"),
            (".", "~/own/good parts"),
        )
    }
    assert len(held_out) == 1


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("7.png", "7.png"),
        ("größe '1', \"2\" = 日本.png", "größe '1', \"2\" = 日本.png"),
        ("caf\udce9.png", r"caf\xe9.png"),
        ("a\nb\t\x1b[31m.png", r"a\nb\t\x1b[31m.png"),
        ("a\u2028b\x85.png", r"a\u2028b\x85.png"),
        ("wide\u3000space\u200d.png", "wide\u3000space\u200d.png"),
        ("\ud83d.png", r"\ud83d.png"),
    ],
)
def test_names_become_text_of_one_line(name: str, shown: str) -> None:
    assert printable(name) == shown == printable(shown)
    assert len(shown.encode().splitlines()) == 1
    assert str(InputError(f"{name}: gone")) == f"{shown}: gone"


def test_pictures_of_earlier_runs_are_no_data(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    for run in (tmp_path, tmp_path / "outputs/1"):
        write_image(run / "figures/images/0.png")
        for name in ("fingerprint.txt", "provenance.json"):
            (run / name).write_text("{}")
    write_image(tmp_path / "outputs/figures/b.png")  # no run's
    files = Files()
    found = files.images(tmp_path, recursive=True)
    assert found == [tmp_path / "a.png", tmp_path / "outputs/figures/b.png"]
    with pytest.warns(UserWarning, match=r"2 folders of results passed over \(such as .*figures"):
        files.tell("images")
    images = tmp_path / "outputs/1/figures/images"
    assert files.images(images) == [images / "0.png"]  # asked for by name


@pytest.mark.parametrize("name", ["a.zip", "b.tar.gz", "c.7z", "d.TGZ", "e.png"])
def test_a_file_in_place_of_a_folder_is_told_with_what_to_do(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    told = "name the folder" if name == "e.png" else "unpack it and name the folder that it holds"
    with pytest.raises(InputError, match=rf"^data\.root: .*{name} is a file; {told}"):
        find_folder(tmp_path / name, "data.root")
