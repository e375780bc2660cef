"""Lists of images, and archives."""

import hashlib
import io
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from patchcore.data.fetch import unpack
from patchcore.data.images import read_image
from patchcore.data.named import named_images
from tests.corpus.case import REFUSED, RIGHT, case
from tests.images import write_image


def names(folder: Path, content: bytes) -> list[str]:
    """Names in a list of this content."""
    (folder / "list.txt").write_bytes(content)
    return [str(path) for path in named_images([f"@{folder / 'list.txt'}"])]


LISTS: list[tuple[str, bytes, list[str]]] = [
    ("lines that end as on Windows", b"a.png\r\nb.png\r\n", ["a.png", "b.png"]),
    ("no end of the last line", b"a.png\nb.png", ["a.png", "b.png"]),
    ("empty lines", b"\n\na.png\n  \n", ["a.png"]),
    ("a mark of UTF-8 at its beginning", b"\xef\xbb\xbfa.png\nb.png\n", ["a.png", "b.png"]),
    ("nothing in it", b"", []),
    ("spaces that belong to names", b" a .png\n", [" a .png"]),
]


def listed(title: str, content: bytes, expected: list[str]) -> None:
    @case("lists", title)
    def act(folder: Path) -> Any:
        return names(folder, content) == expected


for title, content, expected in LISTS:
    listed(title, content, expected)


@case("lists", "names not in UTF-8")
def _(folder: Path) -> Any:
    (found,) = names(folder, b"caf\xe9.png\n")
    return found == "caf\udce9.png"


@case("lists", "in UTF-16", REFUSED, "list.txt is in UTF-16: save it in UTF-8")
def _(folder: Path) -> Any:
    return names(folder, "a.png\nb.png\n".encode("utf-16"))


@case("lists", "a table of results", REFUSED, "list.txt is a table: give the paths alone")
def _(folder: Path) -> Any:
    return names(folder, b"\xef\xbb\xbfpath,score\na.png,1.5\n")


@case("lists", "missing", REFUSED, "the list")
def _(folder: Path) -> Any:
    return list(named_images([f"@{folder / 'list.txt'}"]))


@case("lists", "a folder in place of a list", REFUSED, "cannot be read (Is a directory)")
def _(folder: Path) -> Any:
    return list(named_images([f"@{folder}"]))


@case("lists", "an image in place of a list", REFUSED, "list.txt holds a NUL byte; it should have")
def _(folder: Path) -> Any:
    return names(folder, write_image(folder / "a.png").read_bytes())


@case(
    "lists", "a name that is too long", REFUSED, "cannot be read as an image (File name too long)"
)
def _(folder: Path) -> Any:
    (found,) = names(folder, b"x" * 5000 + b".png\n")
    return read_image(Path(found))


@case("lists", "a name that is nearly right", REFUSED, "did you mean")
def _(folder: Path) -> Any:
    write_image(folder / "part_1.png")
    return list(named_images([str(folder / "part_l.png")]))


@case("lists", "a pattern that nothing matches", REFUSED, "no file matches")
def _(folder: Path) -> Any:
    return list(named_images([str(folder / "*.png")]))


@case("lists", "a folder without images", REFUSED, "holds no images to inspect")
def _(folder: Path) -> Any:
    return list(named_images([str(folder)]))


# --- archives ---------------------------------------------------------------------------------

SOUND = {"train/1.png": b"1", "test/1.png": b"2"}
NOISE = hashlib.shake_256(b"").digest(200_000)


def zipped(files: Mapping[str, bytes] = SOUND) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def tarred(files: Mapping[str, bytes] = SOUND, mode: Any = "w:", **more: Any) -> bytes:
    """A tar archive; `more` are attributes of a last member."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if more:
            info = tarfile.TarInfo("train/more")
            for key, value in more.items():
                setattr(info, key, value)
            archive.addfile(info)
    return file.getvalue()


def replaced(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content
    return content.replace(old, new)


def linked() -> bytes:
    info = zipfile.ZipInfo("train/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    file = io.BytesIO(zipped())
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(info, "/etc")
    return file.getvalue()


def locked() -> bytes:
    """A zip archive whose flags say that its members are encrypted."""
    content = replaced(zipped(), b"PK\x03\x04\x14\x00\x00\x00", b"PK\x03\x04\x14\x00\x01\x00")
    return replaced(content, b"\x14\x03\x14\x00\x00\x00", b"\x14\x03\x14\x00\x01\x00")


def methodical(number: int) -> bytes:
    """A zip archive of an unknown compression."""
    found = struct.pack("<H", number)
    content = replaced(
        zipped(), b"PK\x03\x04\x14\x00\x00\x00\x00\x00", b"PK\x03\x04\x14\0\0\0" + found
    )
    return replaced(content, b"\x14\x03\x14\x00\x00\x00\x00\x00", b"\x14\x03\x14\0\0\0" + found)


def misnamed() -> bytes:
    """A zip archive with a name that is said to be UTF-8 and is not."""
    content = zipped({**SOUND, "train/\xe4\xe4.png": b"3"})
    return replaced(content, "\xe4\xe4".encode(), b"\xff\xff\xff\xff")


def below(place: str) -> dict[str, bytes]:
    return {f"{place}/{name}": content for name, content in SOUND.items()}


DAMAGED, OUTSIDE = "and was removed", "would land outside the folder; nothing was unpacked"
ARCHIVES: list[tuple[str, Callable[[], bytes], str]] = [
    ("text", lambda: b"<html>gone</html>", "is neither a zip nor a tar archive"),
    ("empty", bytes, "is neither a zip nor a tar archive"),
    ("zip cut in half", lambda: zipped({"train/1.png": NOISE})[:99_000], "it is truncated"),
    ("tar cut in half", lambda: tarred({"train/1.png": NOISE})[:99_000], DAMAGED),
    ("tar.gz cut in half", lambda: tarred({"train/1.png": NOISE}, "w:gz")[:99_000], DAMAGED),
    (
        "zip with a changed byte",
        lambda: replaced(zipped({"train/1.png": NOISE}), NOISE[:9], b"123456789"),
        DAMAGED,
    ),
    (
        "tar with a changed header",
        lambda: replaced(tarred(), b"test/1", b"test/2"),
        "lacks test",
    ),
    ("zip with a member outside", lambda: zipped({**SOUND, "../x": b""}), OUTSIDE),
    ("tar with a member outside", lambda: tarred({**SOUND, "train/../../x": b""}), OUTSIDE),
    ("zip with an absolute member", lambda: zipped({**SOUND, "/tmp/x": b""}), OUTSIDE),
    ("zip with a member outside on Windows", lambda: zipped({**SOUND, "C:\\x": b""}), OUTSIDE),
    (
        "tar with a link",
        lambda: tarred(type=tarfile.SYMTYPE, linkname="/etc"),
        "a link or a device",
    ),
    ("tar with a device", lambda: tarred(type=tarfile.CHRTYPE), "a link or a device"),
    ("zip with a link", linked, "a link or a device"),
    ("zip under a password", locked, DAMAGED),
    ("zip of an unknown compression", lambda: methodical(77), DAMAGED),
    ("zip with a name that is no text", misnamed, DAMAGED),
    ("zip with a file that is a folder too", lambda: zipped({**SOUND, "train": b""}), DAMAGED),
    ("tar with a file that is a folder too", lambda: tarred({"train": b"", **SOUND}), DAMAGED),
    ("zip with a name of 300 bytes", lambda: zipped({**SOUND, "train/" + "x" * 300: b""}), DAMAGED),
    ("zip of something else", lambda: zipped({"other/1.png": b"1"}), "no folder in it holds"),
    ("tar without members", lambda: tarred({}), "as it is empty"),
    (
        "tar of a time beyond all calendars",
        lambda: tarred(mtime=2**62, type=tarfile.DIRTYPE),
        RIGHT,
    ),
]


def archived(title: str, content: Callable[[], bytes], words: str) -> None:
    outcome = RIGHT if words == RIGHT else REFUSED

    @case("archives", title, outcome, "" if words == RIGHT else words)
    def act(folder: Path) -> Any:
        archive, root = folder / "x.archive", folder / "data"
        root.mkdir()
        archive.write_bytes(content())
        try:
            unpack(archive, root / "x", ("train", "test"), root)
        finally:
            left = sorted(path.name for path in root.iterdir())
            assert left == (["x"] if words == RIGHT else []), left
            assert [p.name for p in folder.iterdir() if p != archive] == ["data"]
        return (root / "x/train/1.png").read_bytes() == b"1"


for title, make, words in ARCHIVES:
    archived(title, make, words)
archived("zip", zipped, RIGHT)
archived("tar.xz", lambda: tarred(mode="w:xz"), RIGHT)
archived("zip of macOS", lambda: zipped({**below("all/x"), "__MACOSX/all/._x": b""}), RIGHT)
archived(
    "zip with notes beside its folder", lambda: zipped({**below("all/x"), "a.txt": b""}), RIGHT
)
archived("zip of a folder in one of its name", lambda: zipped(below("x/x")), RIGHT)
