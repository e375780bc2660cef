"""Downloads, against a server in this process."""

import hashlib
import io
import shutil
import socket
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from patchcore.data import archives
from patchcore.data import fetch as module
from patchcore.data.addresses import without_secrets
from patchcore.data.fetch import SOURCES, download, fetch, unpack
from patchcore.errors import InputError
from tests.corpus.lists import locked, methodical
from tests.runs import patchcore

KSDD2 = {"train/10301.png": b"image" * 999, "train/10301_GT.png": b"mask", "test/1.png": b"t" * 70}


@dataclass
class Site:
    """One file on a server, how the server behaves, and the headers that it was asked with."""

    content: bytes = b""
    tag: str | None = '"one"'
    ranges: bool = True
    accepts: str | None = None  # Accept-Ranges
    stop_after: int | None = None  # bytes, then the connection breaks
    status: int | None = None
    shift: int = 0  # of the parts it sends, which are wrong then
    url: str = ""
    asked: list[dict[str, str]] = field(default_factory=list)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = dict(handler.headers)
        self.asked.append(asked)
        if self.status is not None:
            handler.send_error(self.status)
            return
        start, whole = 0, len(self.content)
        same = asked.get("If-Range", self.tag) == self.tag
        if self.ranges and same and "Range" in asked:
            start = int(asked["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= whole:
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{whole}")
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                return
            handler.send_response(206)
            first = start + self.shift
            handler.send_header("Content-Range", f"bytes {first}-{whole - 1}/{whole}")
        else:
            handler.send_response(200)
        if self.tag is not None:
            handler.send_header("ETag", self.tag)
        if self.accepts is not None:
            handler.send_header("Accept-Ranges", self.accepts)
        handler.send_header("Content-Length", str(whole - start))
        handler.end_headers()
        end = whole if self.stop_after is None else start + self.stop_after
        handler.wfile.write(self.content[start:end])


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.answer(self)

        def log_message(self, *_: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_port}/file"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(
    files: dict[str, bytes], mode: str = "w:xz", more: tuple[tarfile.TarInfo, ...] = ()
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in more:
            archive.addfile(info)
    return buffer.getvalue()


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# --- download --------------------------------------------------------------------------------


def test_a_silent_server_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.TIMEOUT <= 40
    monkeypatch.setattr(module, "TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, as its queue is not full
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a.zip"
        with pytest.raises(InputError, match=r"a\.zip: cannot be reached \(timed out\); the same"):
            download(url, tmp_path / "file")


def test_an_interrupted_download_continues(site: Site, tmp_path: Path) -> None:
    site.content, site.stop_after = bytes(range(256)) * 400, 30_000
    path = tmp_path / "file"
    with pytest.raises(InputError, match=r"after 30,000 of 102,400 bytes; the same command"):
        download(site.url, path)
    assert not path.exists()
    assert (tmp_path / "file.part").read_bytes() == site.content[:30_000]
    site.stop_after = None
    assert download(site.url, path) == sha256(site.content)
    assert path.read_bytes() == site.content
    assert site.asked[1]["Range"] == "bytes=30000-" and site.asked[1]["If-Range"] == '"one"'
    assert names(tmp_path) == ["file"]
    assert download(site.url, path) == sha256(site.content)  # it is there
    assert len(site.asked) == 2


def interrupted(site: Site, path: Path, content: bytes = b"abcdefgh" * 100) -> None:
    site.content, site.stop_after = content, 300
    with pytest.raises(InputError, match="the connection ended"):
        download(site.url, path)
    site.stop_after = None


def test_a_file_that_has_changed_is_downloaded_from_the_beginning(
    site: Site, tmp_path: Path
) -> None:
    interrupted(site, tmp_path / "file")
    site.content, site.tag = b"another" * 50, '"two"'
    download(site.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == site.content
    assert "Range" in site.asked[1]


def test_a_server_that_knows_no_ranges(site: Site, tmp_path: Path) -> None:
    site.ranges = False
    interrupted(site, tmp_path / "file")
    download(site.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == site.content


@pytest.mark.parametrize("tag", [None, 'W/"weak"'])
@pytest.mark.parametrize("checksum", [True, False])
def test_without_a_way_to_tell_changes_only_a_checksum_lets_it_continue(
    site: Site, tmp_path: Path, tag: str | None, checksum: bool
) -> None:
    site.tag = tag
    interrupted(site, tmp_path / "file")
    download(site.url, tmp_path / "file", sha256(site.content) if checksum else None)
    assert (tmp_path / "file").read_bytes() == site.content
    assert ("Range" in site.asked[1]) == checksum and "If-Range" not in site.asked[1]


@pytest.mark.parametrize(
    ("tag", "accepts", "checksum", "told"),
    [
        (None, "bytes", False, "tries again from the start"),
        ('"one"', "none", True, "tries again from the start"),
        (None, "bytes", True, "tries again and continues from there"),
        ('"one"', None, False, "tries again and continues from there if the server can"),
    ],
)
def test_a_stopped_download_says_where_the_next_begins(
    site: Site, tmp_path: Path, tag: str | None, accepts: str | None, checksum: bool, told: str
) -> None:
    site.content, site.tag, site.accepts, site.stop_after = b"abcdefgh" * 100, tag, accepts, 300
    with pytest.raises(InputError, match=f"; the same command {told}$"):
        download(site.url, tmp_path / "file", sha256(site.content) if checksum else None)
    if "continues" in told:  # the second part is sent, and breaks, too
        with pytest.raises(InputError, match=r"tries again and continues from there$"):
            download(site.url, tmp_path / "file", sha256(site.content) if checksum else None)
        assert site.asked[1]["Range"] == "bytes=300-"


def test_the_part_of_another_address_is_not_continued(site: Site, tmp_path: Path) -> None:
    interrupted(site, tmp_path / "file")
    download(f"{site.url}?copy", tmp_path / "file")
    assert "Range" not in site.asked[1]
    assert (tmp_path / "file").read_bytes() == site.content


def test_a_part_that_was_complete_or_is_too_long(site: Site, tmp_path: Path) -> None:
    part = tmp_path / "file.part"
    interrupted(site, tmp_path / "file")
    part.write_bytes(site.content)
    download(site.url, tmp_path / "file")
    assert len(site.asked) == 2 and (tmp_path / "file").read_bytes() == site.content
    (tmp_path / "file").unlink()
    interrupted(site, tmp_path / "file")
    part.write_bytes(site.content + b"more")
    download(site.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == site.content


def test_a_server_that_sends_another_part(site: Site, tmp_path: Path) -> None:
    site.shift = 1
    interrupted(site, tmp_path / "file")
    download(site.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == site.content
    assert ["Range" in asked for asked in site.asked] == [False, True, False]


def test_a_wrong_checksum_leaves_no_file(site: Site, tmp_path: Path) -> None:
    site.content = b"damaged"
    found = sha256(b"damaged")
    told = rf"is {found}, and should be {'0' * 64}; .* or give --sha256 {found} if you trust it$"
    with pytest.raises(InputError, match=told):
        download(site.url, tmp_path / "file", "0" * 64)
    assert names(tmp_path) == []
    with pytest.raises(InputError, match=r"^--sha256: 123 should be 64 hexadecimal digits"):
        download(site.url, tmp_path / "file", "123")
    assert download(site.url, tmp_path / "file", found.upper()) == found


def test_addresses_that_lead_nowhere(site: Site, tmp_path: Path) -> None:
    for url in (
        "file:///etc/hosts",
        "ftp://example.org/x",
        "example.org/x",
        "http://",
        "http://[::1/x",
        "http://example.org:port/x",
        "http://example.org:0/x",
    ):
        with pytest.raises(InputError, match=r"^--url: .* should begin with http"):
            download(url, tmp_path / "file")
    site.status = 404
    with pytest.raises(InputError, match="the server answers 404 Not Found"):
        download(site.url, tmp_path / "file")
    with pytest.raises(InputError, match=r"cannot be reached .*; the same command tries again"):
        download("http://127.0.0.1:9/x", tmp_path / "file")
    assert names(tmp_path) == []


@pytest.mark.parametrize("end", ["file?key=s3cr3t", "file#s3cr3t", "file?a=b&key=s3cr3t#x@y"])
def test_no_message_and_no_note_holds_the_query(site: Site, tmp_path: Path, end: str) -> None:
    url, path = site.url.replace("file", end), tmp_path / "x.archive"
    told = []
    site.content, site.stop_after = b"abcdefgh" * 100, 400
    for _ in range(2):  # it stops; then the server fails, and the part lies there with its notes
        with pytest.raises(InputError) as error:
            download(url, path)
        told.append(str(error.value))
        assert "s3cr3t" not in (tmp_path / "x.archive.part.json").read_text()
        site.status = 403
    site.status = site.stop_after = None
    with pytest.raises(InputError) as error:
        download(url, path, "0" * 64)
    assert "Range" in site.asked[-1]  # the notes tell the same address nevertheless
    for text in (*told, str(error.value)):
        assert text.startswith(f"{site.url}?…: ") and "s3cr3t" not in text


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://ann:s3cr3t@127.0.0.1:9/x?k=s3cr3t", "--url: http://…@127.0.0.1:9/x?…: a user or"),
        ("https://s3cr3t@127.0.0.1/x", "--url: https://…@127.0.0.1/x: a user or password"),
        ("ftp://ann:s3cr3t@127.0.0.1/x", "--url: ftp://…@127.0.0.1/x should begin"),
        ("ann:s3cr3t@127.0.0.1/x?s3cr3t", "--url: …@127.0.0.1/x?… should begin"),
        ("http://ann:p?s3cr3t@127.0.0.1/x", "--url: the address should begin"),
        ("http://127.0.0.1:9/x?k=s3cr3t y", "--url: http://127.0.0.1:9/x?… holds a character that"),
        ("http://127.0.0.1:9/\xe4", "--url: http://127.0.0.1:9/\xe4 holds a character that"),
    ],
)
def test_addresses_that_are_refused_leave_nothing(tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        fetch("ksdd2", tmp_path / "data", url=url)
    assert str(error.value).startswith(message) and "s3cr3t" not in str(error.value)
    assert names(tmp_path) == []


def test_a_servers_text_is_told_without_secrets() -> None:
    text = "Found - Redirection to url 'ftp://ann:pw@x/y?key=1' is not allowed"
    assert without_secrets(text) == "Found - Redirection to url 'ftp://…@x/y?… is not allowed"


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_no_room_to_download(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(site, tmp_path / "file")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1000, 501, 499))
    with pytest.raises(InputError, match="the download needs 500 bytes, and 499 are free"):
        download(site.url, tmp_path / "file")
    assert (tmp_path / "file.part").stat().st_size == 300
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1000, 500, 500))
    download(site.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == site.content


# --- unpack ----------------------------------------------------------------------------------


def put(content: bytes, root: Path) -> Path:
    archive = root / "x.archive"
    archive.write_bytes(content)
    return archive


@pytest.mark.parametrize("inner", ["", "KolektorSDD2-main/", "./"])
@pytest.mark.parametrize("mode", ["zip", "w:xz", "w:gz", "w:"])
def test_unpack_leaves_out_a_single_folder(tmp_path: Path, inner: str, mode: str) -> None:
    files = {f"{inner}{name}": content for name, content in KSDD2.items()}
    archive = put(zipped(files) if mode == "zip" else tarred(files, mode), tmp_path)
    unpack(archive, tmp_path / "ksdd2", ("train", "test"), tmp_path)
    for name, content in KSDD2.items():
        assert (tmp_path / "ksdd2" / name).read_bytes() == content
    assert {path.name for path in tmp_path.iterdir()} == {"ksdd2", "x.archive"}


def test_empty_folders_are_kept_and_permissions_are_not(tmp_path: Path) -> None:
    info = tarfile.TarInfo("train")
    info.type, info.mode = tarfile.DIRTYPE, 0
    unpack(put(tarred({"a": b"1"}, more=(info,)), tmp_path), tmp_path / "x", ("train",), tmp_path)
    assert (tmp_path / "x/train").is_dir()
    assert stat.S_IMODE((tmp_path / "x/train").stat().st_mode) & 0o700 == 0o700


def refused(root: Path, content: bytes, message: str) -> None:
    archive = put(content, root)
    with pytest.raises(InputError, match=message):
        unpack(archive, root / "data/x", ("train",), root / "data")
    assert names(root) == ["data"]  # nothing inside, nothing beside it, and the archive is gone


OUTSIDE = ["../evil", "train/../../evil", "/tmp/evil", "..\\evil", "C:\\evil", "C:evil", "\\evil"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_that_would_land_outside(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / "data").mkdir()
    pack = zipped if kind == "zip" else tarred
    message = "would land outside the folder; nothing was unpacked"
    refused(tmp_path, pack({"train/1.png": b"1", name: b"evil"}), message)


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (tarfile.SYMTYPE, "/etc"),
        (tarfile.SYMTYPE, "../.."),
        (tarfile.SYMTYPE, "1.png"),
        (tarfile.LNKTYPE, "../../secret"),
        (tarfile.CHRTYPE, ""),
        (tarfile.BLKTYPE, ""),
        (tarfile.FIFOTYPE, ""),
    ],
)
def test_links_and_devices_in_a_tar(tmp_path: Path, kind: bytes, target: str) -> None:
    (tmp_path / "data").mkdir()
    info = tarfile.TarInfo("train/link")
    info.type, info.linkname = kind, target
    content = tarred({"train/1.png": b"1"}, more=(info,))
    refused(tmp_path, content, "'train/link' is a link or a device")


def test_links_in_a_zip(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    buffer = io.BytesIO(zipped({"train/1.png": b"1"}))
    with zipfile.ZipFile(buffer, "a") as archive:
        info = zipfile.ZipInfo("train/link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc")
    refused(tmp_path, buffer.getvalue(), "'train/link' is a link or a device")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("again", ["train/1.png", "./train//1.png"])
def test_two_files_of_one_name_in_an_archive_are_refused(tmp_path: Path, again: str) -> None:
    (tmp_path / "data").mkdir()
    one, other = tarfile.TarInfo("test"), tarfile.TarInfo(again)
    one.type = tarfile.DIRTYPE  # folders may be named again
    told = "holds 2 files named 'train/1.png', .* nothing was unpacked, .* --url of another copy"
    refused(tmp_path, tarred({"train/1.png": b"1"}, more=(one, one, other)), told)
    buffer = io.BytesIO(zipped({"train/1.png": b"1", "test/": b""}))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("test/", b"")
        archive.writestr(again, b"2")
    refused(tmp_path, buffer.getvalue(), told)


def test_archives_that_are_damaged_or_something_else(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    refused(tmp_path, b"<html>gone</html>", "is neither a zip nor a tar archive")
    told = "is a 7z archive, which is not supported, and was removed; give --url of a zip or tar"
    refused(tmp_path, b"7z\xbc\xaf\x27\x1c" + bytes(90), told)
    told = "no folder in it holds train, as it holds 'other', and was removed; give --url of a comp"
    refused(tmp_path, tarred({"other/1.png": b"1"}), told)
    noise = hashlib.shake_256(b"").digest(200_000)
    for mode in ("w:xz", "w:gz", "w:"):
        content = tarred({"train/1.png": noise, "train/2.png": noise}, mode)
        refused(tmp_path, content[:150_000], "cannot be unpacked .* and was removed")
    content = zipped({"train/1.png": noise})
    refused(tmp_path, content.replace(noise[:50], bytes(50)), "cannot be unpacked .*CRC")
    refused(tmp_path, content[:150_000], "cannot be unpacked .it is truncated. and was removed")


def test_what_an_archive_lacks_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for prefix, place in (("", ""), ("all/x/", " in all/x")):
        archive = put(tarred({f"{prefix}train/1.png": b"1", f"{prefix}test/1.png": b"1"}), tmp_path)
        told = rf"^x\.archive: lacks ground_truth, masks{place}, and was removed; give --url of"
        with pytest.raises(InputError, match=told):
            unpack(
                *(archive, tmp_path / "data/x", ("train", "test", "ground_truth", "masks")),
                tmp_path / "data",
            )


def test_the_folder_of_the_category_counts_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    files = {f"m/{name}/{part}/1.png": b"1" for name in "xy" for part in ("train", "test")}
    del files["m/x/test/1.png"]  # y is complete
    archive = put(tarred(files), tmp_path)
    with pytest.raises(InputError, match=r"lacks test in m/x, and was removed"):
        unpack(archive, tmp_path / "data/x", ("train", "test"), tmp_path / "data", ["x", "y"])
    archive = put(tarred({"x/old/train/1.png": b"1"}), tmp_path)
    with pytest.raises(InputError, match=r"no folder in it holds train, as it holds 'x'"):
        unpack(archive, tmp_path / "data/x", ("train",), tmp_path / "data")


@pytest.mark.parametrize("name", ["all/x/train/1.png", "x\\train\\1.png", "all\\x\\train\\1.png"])
def test_folders_may_lie_in_another_and_be_separated_as_on_windows(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "data").mkdir()
    archive = put(zipped({name: b"1", name.replace("train", "test"): b"2"}), tmp_path)
    unpack(archive, tmp_path / "data/x", ("train", "test"), tmp_path / "data")
    assert (tmp_path / "data/x/train/1.png").read_bytes() == b"1"


@pytest.mark.parametrize("outer", ["", "all/", "all/x/", "x/"])
@pytest.mark.parametrize("more", ["__MACOSX/x/._train", ".DS_Store", "readme.txt"])
def test_what_lies_beside_the_only_folder_changes_nothing(
    tmp_path: Path, outer: str, more: str
) -> None:
    (tmp_path / "data").mkdir()
    files = {f"{outer}x/{part}/1.png": b"1" for part in ("train", "test")}
    beside = {f"{place}{more}": b"" for place in ("", outer)}
    archive = put(zipped(files | beside), tmp_path)
    unpack(archive, tmp_path / "data/x", ("train", "test"), tmp_path / "data", ["all"])
    assert sorted(path.name for path in (tmp_path / "data/x").iterdir()) == ["test", "train"]


def test_what_another_download_would_not_mend_is_told_with_what_would(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    message = "x.archive: is encrypted, .* was removed; give --url of a copy without a password"
    refused(tmp_path, locked(), message)
    refused(tmp_path, methodical(77), "was removed; give --url of a copy that is packed in another")


def test_no_room_to_unpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = put(tarred(KSDD2), tmp_path)
    size = sum(map(len, KSDD2.values()))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(9999, 0, size - 1))
    with pytest.raises(InputError, match=rf"unpacking needs {size:,} bytes, and {size - 1:,} are"):
        unpack(archive, tmp_path / "x", ("train",), tmp_path)
    assert names(tmp_path) == ["x.archive"]  # no need to download it again


# --- the whole -------------------------------------------------------------------------------


def test_fetch_and_fetch_again(site: Site, tmp_path: Path) -> None:
    site.content = zipped(KSDD2)
    root = tmp_path / "new/data"
    fetched = fetch("ksdd2", root, url=site.url)
    assert fetched.folder == root / "ksdd2" and not fetched.verified
    assert fetched.sha256 == sha256(site.content)
    assert [path.name for path in root.iterdir()] == ["ksdd2"]
    assert fetch("ksdd2", root, url=site.url).sha256 is None
    assert len(site.asked) == 1
    shutil.rmtree(root / "ksdd2/test")
    with pytest.raises(InputError, match="ksdd2: exists already, but without test; remove it"):
        fetch("ksdd2", root, url=site.url)


def test_fetch_one_category_after_the_other(site: Site, tmp_path: Path) -> None:
    for category in ("bottle", "cable"):
        parts = ("train", "test", "ground_truth")
        site.content = tarred({f"{category}/{part}/good/1.png": b"1" for part in parts})
        fetched = fetch("mvtec", tmp_path, category, site.url, sha256(site.content))
        assert fetched.folder == tmp_path / "mvtec" / category and fetched.verified
    assert sorted(path.name for path in (tmp_path / "mvtec").iterdir()) == ["bottle", "cable"]
    with pytest.raises(InputError, match=r"exists already, but without capsule, .* --category"):
        fetch("mvtec", tmp_path, url=site.url)
    with pytest.raises(
        InputError, match=r"^--category: mvtec has no archive of 'botle'; it has bot"
    ):
        fetch("mvtec", tmp_path, "botle")
    with pytest.raises(
        InputError, match=r"^--category: visa has no archive of .* comes as a whole"
    ):
        fetch("visa", tmp_path, "candle")


PARTS = ("train", "test", "ground_truth")


def test_an_archive_of_another_category_is_refused(site: Site, tmp_path: Path) -> None:
    site.content = tarred({f"cable/{part}/good/1.png": b"1" for part in PARTS})
    with pytest.raises(InputError, match="holds cable in place of bottle, and was removed; give"):
        fetch("mvtec", tmp_path, "bottle", site.url)
    assert names(tmp_path) == []
    assert fetch("mvtec", tmp_path, "cable", site.url).folder == tmp_path / "mvtec/cable"


@pytest.mark.parametrize("category", ["bottle", "cable"])
def test_of_several_categories_the_one_asked_for_is_taken(
    site: Site, tmp_path: Path, category: str
) -> None:
    files = [f"{name}/{part}/1.png" for name in ("bottle", "cable") for part in PARTS]
    site.content = tarred({name: name.encode() for name in files})
    fetched = fetch("mvtec", tmp_path, category, site.url)
    assert (fetched.folder / "train/1.png").read_text() == f"{category}/train/1.png"


def test_a_copy_has_the_checksum_of_the_original(site: Site, tmp_path: Path) -> None:
    site.content = zipped({f"{name}/train/1.png": b"1" for name in ("01", "02", "03")})
    with pytest.raises(InputError, match=f"should be {SOURCES['btad'].archive.sha256}"):
        fetch("btad", tmp_path, url=site.url)
    assert fetch("btad", tmp_path, url=site.url, sha256=sha256(site.content)).verified


def test_a_full_disk_later_needs_no_second_download(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.content = zipped(KSDD2)
    room = archives.check_room

    def full(folder: Path, needed: int, what: str) -> None:
        if what == "unpacking":
            raise InputError("full")

    monkeypatch.setattr(archives, "check_room", full)
    with pytest.raises(InputError, match="full"):
        fetch("ksdd2", tmp_path, url=site.url)
    assert names(tmp_path) == ["ksdd2.archive"]
    monkeypatch.setattr(archives, "check_room", room)
    fetch("ksdd2", tmp_path, url=site.url)
    assert len(site.asked) == 1 and not (tmp_path / "ksdd2.archive").exists()


def test_a_root_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"^--root: cannot write to .*file/data"):
        fetch("visa", tmp_path / "file/data", url="http://127.0.0.1:9/")
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(InputError, match=r"^--root: \S+/link: this link leads to gone, which can"):
        fetch("visa", tmp_path / "link/data", url="http://127.0.0.1:9/")


def test_every_source_says_where_and_under_which_licence() -> None:
    for source in SOURCES.values():
        assert source.page.startswith("http") and source.licence
        for archive in (source.archive, *source.categories.values()):
            assert archive.holds
            assert archive.url is None or archive.url.startswith("https://")
            assert archive.sha256 is None or len(bytes.fromhex(archive.sha256)) == 32
    assert len({a.url for a in SOURCES["mvtec"].categories.values()}) == 15


def test_the_command(site: Site, tmp_path: Path) -> None:
    site.content = zipped(KSDD2)
    arguments = ["fetch", "ksdd2", "--root", str(tmp_path), "--url", site.url]
    done = patchcore(*arguments)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[1] == "licence: CC BY-NC-SA 4.0: not for commercial use"
    assert lines[2] == f"SHA-256 {sha256(site.content)}; none is known to compare it with"
    assert lines[3].endswith(f"ksdd2: use it with data=ksdd2 data.root={tmp_path / 'ksdd2'}")
    assert patchcore(*arguments).out.endswith("ksdd2 is there already\n")
    shutil.rmtree(tmp_path / "ksdd2")
    done = patchcore(*arguments, "--sha256", sha256(site.content))
    assert "as it should be" in done.out
    arguments[3] = str(tmp_path / "caf\udce9")
    for end in (f"data.root={tmp_path}/caf\\xe9/ksdd2\n", "caf\\xe9/ksdd2 is there already\n"):
        assert patchcore(*arguments).out.endswith(end)


def test_the_command_tells_what_is_wrong(tmp_path: Path) -> None:
    done = patchcore("fetch", "imagenet")
    assert done.code == 1
    assert done.err.startswith("error: imagenet: no data set of this name; there are btad, ksdd2, ")
    done = patchcore("fetch", "mstc", "--root", str(tmp_path))
    assert done.err.startswith("error: mstc: has no direct link; get it from https://svip-lab")
    assert "licence: ask its owners" in done.out
    done = patchcore("fetch", "--help")
    assert all(name in done.out for name in SOURCES) and "not for commercial use" in done.out
