"""Download of data sets from their owners' servers: complete and checked, or not at all.

A download goes to a file with the suffix `.part`; a later call continues it if the server allows.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from patchcore.data.addresses import check_address, shown, without_secrets
from patchcore.data.archives import check_room, unpack
from patchcore.data.sets import DATA_SETS
from patchcore.data.source import Archive, Source
from patchcore.digests import digest
from patchcore.errors import InputError, lost_link, unreadable
from patchcore.writing import replace_with

CHUNK = 2**20  # bytes
TIMEOUT = 30  # seconds without any data
CONTINUES = " and continues from there"


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
                "another --root"
                + (", or fetch these with --category" * (not category and bool(source.categories)))
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
        told = lost_link(root) or f"cannot write to {root} ({error}); give another"
        raise InputError(f"--root: {told}") from error
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
            f"give --sha256 {found} if you trust it"
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
        next_time = _next_time(response, verifiable)
        if total is not None:
            check_room(part.parent, total - start, "the download")
        if start == 0:
            part.unlink(missing_ok=True)  # first: the notes must never describe another file
            notes = {"url_digest": digest(url), "validator": _validator(response)}
            replace_with(_notes(part), json.dumps(notes).encode())
        with part.open("ab" if start else "wb") as file, _bar("downloading", total, start) as bar:
            for chunk in _chunks(url, response, next_time):
                file.write(chunk)
                bar.update(len(chunk))
            size = file.tell()
    if total is not None and size != total:
        told = f"the connection ended after {size:,} of {total:,} bytes"
        raise _stopped(url, told, next_time)


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
        next_time = CONTINUES if "Range" in headers else ""
        raise _stopped(url, f"cannot be reached ({reason})", next_time) from error


def _chunks(url: str, response: HTTPResponse, next_time: str) -> Iterator[bytes]:
    try:
        while chunk := response.read(CHUNK):
            yield chunk
    except (OSError, HTTPException) as error:
        raise _stopped(url, f"the connection broke ({error})", next_time) from error


def _stopped(url: str, what: str, next_time: str) -> InputError:
    return InputError(f"{shown(url)}: {what}; the same command tries again{next_time}")


def _next_time(response: HTTPResponse, verifiable: bool) -> str:
    """Return in words where the next call begins, after "tries again", if this one is stopped."""
    ranges = response.headers.get("Accept-Ranges")
    if ranges == "none" or not (verifiable or _validator(response)):
        return " from the start"
    sure = response.status == 206 or ranges == "bytes"
    return CONTINUES if sure else f"{CONTINUES} if the server can"


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
