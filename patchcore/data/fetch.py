"""Download of data sets from their owners' servers: complete and checked, or not at all.

A download goes to a file with the suffix `.part`; a later call continues it if the server allows.
An archive is unpacked only if all of its members are plain files and folders inside the target
folder. The target folder gets its name when it is complete.
"""

import errno
import hashlib
import json
import lzma
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from gzip import BadGzipFile
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TypeVar, cast
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from patchcore.data.addresses import check_address, shown, without_secrets
from patchcore.data.sets import DATA_SETS
from patchcore.data.source import Archive, Source
from patchcore.digests import digest
from patchcore.errors import InputError, unreadable
from patchcore.writing import replace_with

CHUNK = 2**20  # bytes
TIMEOUT = 30  # seconds without any data
Member = TypeVar("Member", tarfile.TarInfo, zipfile.ZipInfo)


@dataclass(frozen=True)
class Fetched:
    """Outcome of `fetch`."""

    folder: Path
    sha256: str | None  # of the archive; None if the folder existed before
    verified: bool  # whether the SHA-256 was compared with a known one, and is the same


SOURCES = {name: kind.SOURCE for name, kind in DATA_SETS.items() if kind.SOURCE is not None}
"""Sources of the data sets that can be downloaded, by name."""


def find_source(name: str) -> Source:
    """Return the source of a data set.

    Raises:
        InputError: there is no such data set; the message lists the names.
    """
    if name not in SOURCES:
        raise InputError(f"{name}: no data set of this name; there are {', '.join(SOURCES)}")
    return SOURCES[name]


def fetch(
    name: str,
    root: Path,
    category: str | None = None,
    url: str | None = None,
    sha256: str | None = None,
) -> Fetched:
    """Download a data set to `root/name`, or one category to `root/name/category`.

    An existing folder is not changed. If there is too little room to unpack the archive, the
    archive is kept.

    Args:
        name: Name of the data set, a key of `SOURCES`.
        root: Folder for all data sets.
        category: Category to download alone; None: all of the data set.
        url: Address of a copy of the archive; None: the owners' address. The copy must have the
            checksum of the original, unless `sha256` is given.
        sha256: Expected SHA-256 of the archive, 64 hexadecimal digits; None: the known one, if any.

    Raises:
        InputError: there is no such data set, category or direct link; the server cannot be reached
            or stops; the archive has another checksum, is damaged, or would write outside its
            folder; there is too little room; `root` cannot be written; or the folder exists and is
            incomplete.
    """
    source = find_source(name)
    archive = _find_archive(name, source, category)
    folder = root / name / category if category else root / name
    if folder.exists():
        if lacking := [part for part in archive.holds if not (folder / part).exists()]:
            raise InputError(
                f"{folder}: exists already, but without {', '.join(lacking)}; remove it or give "
                "another --root" + (", or fetch these with --category" if not category else "")
            )
        return Fetched(folder, None, verified=False)
    if (url := url or archive.url) is None:
        raise InputError(
            f"{name}: has no direct link; get it from {source.page}, or give --url of a copy"
        )
    expected = sha256 or archive.sha256
    path = root / f"{name}-{category}.archive" if category else root / f"{name}.archive"
    try:
        found = download(url, path, expected)
        others = source.categories.keys() - {category} if category else ()
        unpack(path, folder, archive.holds, root, others)
        path.unlink()
    except OSError as error:
        raise InputError(f"--root: cannot write to {root} ({error}); give another") from error
    return Fetched(folder, found, verified=expected is not None)


def _find_archive(name: str, source: Source, category: str | None) -> Archive:
    if category is None:
        return source.archive
    if category not in source.categories:
        names = ", ".join(source.categories)
        raise InputError(
            f"--category: {name} has no archive of {category!r}; "
            + (f"it has {names}" if names else "it comes as a whole")
        )
    return source.categories[category]


# --- from the server to a file ---------------------------------------------------------------


def download(url: str, path: Path, sha256: str | None = None) -> str:
    """Download a file to `path`, unless that exists, and compare its checksum.

    Messages and notes name the address without what may be secret: see `patchcore.data.addresses`.

    An incomplete file has the suffix `.part`. The next call continues it if the server confirms
    that its file is unchanged, or if `sha256` is given, which detects a change.

    Args:
        url: Address of the file, http or https.
        path: File to write.
        sha256: Expected SHA-256, 64 hexadecimal digits; None: any.

    Returns:
        SHA-256 of the file, 64 hexadecimal digits.

    Raises:
        InputError: the address or `sha256` is malformed or holds a password, the server cannot be
            reached or stops, there is too little room, or the checksum differs, in which case the
            file is removed unless it is a Git LFS pointer.
    """
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise InputError(f"--sha256: {sha256} should be 64 hexadecimal digits")
    part = path.with_name(f"{path.name}.part")
    if not path.exists():
        check_address(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        _receive(url, part, verifiable=sha256 is not None)
        part.rename(path)
        _notes(part).unlink(missing_ok=True)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 is not None and found != sha256.lower():
        told = unreadable(path, "")
        if str(told):
            raise told
        path.unlink()
        raise InputError(
            f"{shown(url)}: the SHA-256 of this file is {found}, and should be "
            f"{sha256.lower()}; the file was removed. It is damaged or another one: try again, or "
            "give --sha256 if you trust it"
        )
    return found


def _receive(url: str, part: Path, verifiable: bool) -> None:
    """Append to the file `part` the bytes of `url` that are missing there."""
    offset, validator = _resumable(url, part, verifiable)
    headers = {"User-Agent": "patchcore", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if validator:
            headers["If-Range"] = validator  # the server sends the whole file if it has changed
    with _open(url, headers) as response:
        start, total = 0, _integer(response.headers.get("Content-Length"))
        if response.status in (206, 416):
            start, total = _content_range(response.headers.get("Content-Range"))
        if response.status == 416 and offset and total == offset:
            return  # it was complete
        if response.status == 416 or (response.status == 206 and start != offset):
            if not offset:
                told = f"{shown(url)}: the server sends a part that was not asked for"
                raise InputError(told)
            part.unlink()  # its bytes are not the beginning of the server's file
            return _receive(url, part, verifiable)
        if total is not None:
            _check_room(part.parent, total - start, "the download")
        if start == 0:
            part.unlink(missing_ok=True)  # first: the notes must never describe another file
            notes = {"url_digest": digest(url), "validator": _validator(response)}
            replace_with(_notes(part), json.dumps(notes).encode())
        with part.open("ab" if start else "wb") as file, _bar("downloading", total, start) as bar:
            for chunk in _chunks(url, response):
                file.write(chunk)
                bar.update(len(chunk))
            size = file.tell()
    if total is not None and size != total:
        raise _stopped(url, f"the connection ended after {size:,} of {total:,} bytes")


def _resumable(url: str, part: Path, verifiable: bool) -> tuple[int, str | None]:
    """Number of bytes of `part` to keep, and the validator for If-Range, if there is one."""
    try:
        notes = json.loads(_notes(part).read_bytes())
        size = part.stat().st_size
    except (OSError, ValueError):
        return 0, None
    validator = notes.get("validator")
    if notes.get("url_digest") != digest(url) or not (validator or verifiable):
        return 0, None
    return size, validator


def _notes(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _open(url: str, headers: dict[str, str]) -> HTTPResponse:
    try:
        return urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416:
            return error  # type: ignore[return-value]
        error.close()
        answer = f"{error.code} {without_secrets(str(error.reason))}"
        raise InputError(f"{shown(url)}: the server answers {answer}") from None
    except (OSError, HTTPException) as error:
        reason = without_secrets(str(getattr(error, "reason", error)))
        raise _stopped(url, f"cannot be reached ({reason})") from error


def _chunks(url: str, response: HTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := response.read(CHUNK):
            yield chunk
    except (OSError, HTTPException) as error:
        raise _stopped(url, f"the connection broke ({error})") from error


def _stopped(url: str, what: str) -> InputError:
    return InputError(
        f"{shown(url)}: {what}; the same command tries again and continues from there"
    )


def _validator(response: HTTPResponse) -> str | None:
    """Value for If-Range: a strong ETag, else the time of the last change."""
    tag = response.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def _content_range(header: str | None) -> tuple[int, int | None]:
    """First byte and total size; -1 for `bytes */size` or no header, None for an unknown size."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", (header or "").strip())
    if match is None:
        return -1, None
    return int(match[1] or -1), _integer(match[2])


def _integer(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


# --- from the archive to a folder ------------------------------------------------------------


class _ArchiveError(InputError):
    """Error: the archive is not the expected one, and was removed."""


def unpack(
    archive: Path,
    folder: Path,
    holds: tuple[str, ...],
    root: Path,
    others: Collection[str] = (),
) -> None:
    """Unpack a zip or tar archive to `folder`, which appears only when it is complete.

    If `holds` are in a folder at the archive's top, `folder` becomes that folder; of several such
    folders, the one with its name. Owners and special permissions of the archived files are not
    restored.

    Args:
        archive: Archive file; the caller removes it afterwards.
        folder: Folder to create.
        holds: Names that must be there, all in one place.
        root: Folder on the same disk, for temporary files.
        others: Names of other categories, whose folders are refused.

    Raises:
        InputError: the file is no archive, is damaged, does not contain `holds` or holds another
            category, or has a member that is encrypted, is no plain file or folder, or would be
            written outside; the archive is then removed. Or there is too little room; the archive
            is then kept.
        OSError: `root` cannot be written.
    """
    unfinished = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=root))
    try:
        inside = unfinished / "all"
        _extract(archive, inside, root)
        top = _find_top(archive, inside, holds, folder.name)
        if top.name in others:
            raise _ArchiveError(
                f"{archive.name}: holds {top.name} in place of {folder.name}, and was removed; "
                f"give the address of {folder.name}, or --category {top.name}"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        top.rename(folder)
    except _ArchiveError:
        archive.unlink()
        raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _extract(archive: Path, folder: Path, root: Path) -> None:
    folder.mkdir()
    try:
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tar:
                members = list(_told(tar, "checking"))
                for info in members:
                    _check_member(archive, info.name, info.isreg() or info.isdir())
                _check_room(root, sum(info.size for info in members), "unpacking")
                tar.extractall(folder, _told(members, "unpacking"), filter="data")
        elif zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                for entry in file.infolist():
                    kind = stat.S_IFMT(entry.external_attr >> 16)
                    _check_member(archive, entry.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
                    if entry.flag_bits & 1:
                        raise _ArchiveError(
                            f"{archive.name}: is encrypted, which is not supported, and was "
                            "removed; give --url of a copy without a password"
                        )
                _check_room(root, sum(entry.file_size for entry in file.infolist()), "unpacking")
                file.extractall(folder, _told(file.infolist(), "unpacking"))
        elif str(told := unreadable(archive, "")):
            raise told
        else:
            raise _ArchiveError(
                f"{archive.name}: is neither a zip nor a tar archive, and was removed; the address "
                "leads to something else now"
            )
    except InputError:
        raise
    except NotImplementedError as error:  # an unknown compression
        raise _ArchiveError(
            f"{archive.name}: cannot be unpacked ({error}) and was removed; give --url of a copy "
            "that is packed in another way"
        ) from error
    except (*_DAMAGED, RuntimeError) as error:
        raise _not_unpacked(archive, str(error)) from error
    except OSError as error:
        if error.errno not in _NAMES:
            raise
        raise _not_unpacked(archive, str(error.strerror)) from error


def _not_unpacked(archive: Path, reason: str) -> _ArchiveError:
    return _ArchiveError(
        f"{archive.name}: cannot be unpacked ({reason}) and was removed; download it again"
    )


_DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, BadGzipFile, lzma.LZMAError, zlib.error, EOFError),
    *(ValueError, OverflowError, LookupError, struct.error),  # from bad numbers, names in headers
)
_NAMES = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EINVAL)
"""Errors from members whose names are impossible on this disk, or exclude each other."""


def _check_member(archive: Path, name: str, plain: bool) -> None:
    """Refuse links, devices, and names that lead outside the folder on any operating system.

    The libraries would silently skip or rename some of these.
    """
    windows = PureWindowsPath(name)
    if not plain:
        complaint = "is a link or a device"
    elif PurePosixPath(name).is_absolute() or windows.anchor or ".." in windows.parts:
        complaint = "would land outside the folder"
    else:
        return
    raise _ArchiveError(
        f"{archive.name}: the member {name!r} {complaint}; nothing was unpacked, and the archive "
        "was removed"
    )


def _find_top(archive: Path, folder: Path, holds: tuple[str, ...], name: str) -> Path:
    """Return the folder that holds the names, the one with the given name if there are several."""
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    for top in (folder, *sorted(inside, key=lambda path: path.name != name)):
        if all((top / part).exists() for part in holds):
            return top
    raise _ArchiveError(
        f"{archive.name}: does not hold {', '.join(holds)}, and was removed; the address leads to "
        "something else now"
    )


# --- both ------------------------------------------------------------------------------------


def _check_room(folder: Path, needed: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{folder}: {what} needs {needed:,} bytes, and {free:,} are free; make room or give "
            "another --root"
        )


def _bar(what: str, total: int | None, done: int) -> tqdm:
    """Return a progress bar in bytes, shown on terminals only."""
    return tqdm(
        desc=what,
        total=total,
        initial=done,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        disable=None,
    )


def _told(members: Iterable[Member], what: str) -> Iterable[Member]:
    """Return the members of an archive, with a progress bar on terminals only."""
    return cast(Iterable[Member], tqdm(members, desc=what, unit=" files", disable=None))
