"""Unpacking of archives: all of one, checked, or nothing.

An archive is unpacked only if all of its members are plain files and folders inside the target
folder. The target folder gets its name when it is complete.
"""

import errno
import lzma
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterable
from gzip import BadGzipFile
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TypeVar, cast

from tqdm import tqdm

from patchcore.data.files import is_junk
from patchcore.errors import InputError, unreadable

Member = TypeVar("Member", tarfile.TarInfo, zipfile.ZipInfo)


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

    `folder` becomes what holds `holds`: the archive's top, or a folder in it; of several, the one
    with its name. Folders that hold one other folder alone do not count; files beside it, and what
    operating systems leave behind, change nothing. A folder with the name of `folder` that lacks
    `holds` is only searched for another one with this name. Owners and special permissions of the
    archived files are not restored.

    Args:
        archive: Archive file; the caller removes it afterwards.
        folder: Folder to create.
        holds: Names that must be there, all in one place.
        root: Folder on the same disk, for temporary files.
        others: Names of other categories, whose folders are refused.

    Raises:
        InputError: the file is no archive, is damaged, does not contain `holds` or holds another
            category, has two files of one name, or has a member that is encrypted, is no plain
            file or folder, or would be written outside; the archive is then removed. Or there is
            too little room; the archive is then kept.
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
                _check_names(archive, [info.name for info in members if info.isreg()])
                check_room(root, sum(info.size for info in members), "unpacking")
                tar.extractall(folder, _told(members, "unpacking"), filter="data")
        elif zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                _with_slashes(file.infolist())
                for entry in file.infolist():
                    kind = stat.S_IFMT(entry.external_attr >> 16)
                    _check_member(archive, entry.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
                    if entry.flag_bits & 1:
                        raise _ArchiveError(
                            f"{archive.name}: is encrypted, which is not supported, and was "
                            "removed; give --url of a copy without a password"
                        )
                names = [entry.filename for entry in file.infolist() if not entry.is_dir()]
                _check_names(archive, names)
                check_room(root, sum(entry.file_size for entry in file.infolist()), "unpacking")
                file.extractall(folder, _told(file.infolist(), "unpacking"))
        elif str(told := unreadable(archive, "")):
            raise told
        elif _begins_as_zip(archive):
            raise _not_unpacked(archive, "it is truncated")
        elif name := _other_kind(archive):
            raise _ArchiveError(
                f"{archive.name}: is a {name} archive, which is not supported, and was removed; "
                "give --url of a zip or tar archive"
            )
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
_OTHERS = {b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!\x1a\x07": "RAR"}
"""Kinds of archives that are not unpacked, by their first bytes."""
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


def _check_names(archive: Path, names: Iterable[str]) -> None:
    """Refuse two files of one name, of which the libraries would keep the last."""
    counts = Counter(str(PurePosixPath(name)) for name in names)  # a//b and a/./b are a/b
    (name, count), *_ = counts.most_common(1) or [("", 0)]
    if count > 1:
        raise _ArchiveError(
            f"{archive.name}: holds {count} files named {name!r}, so it is not clear which is "
            "meant; nothing was unpacked, and the archive was removed; give --url of another copy"
        )


def _find_top(archive: Path, folder: Path, holds: tuple[str, ...], name: str) -> Path:
    """Return the folder that holds the names, the one with the given name if there are several."""
    places = [folder]
    while _lacking(places[-1], holds):
        below = _folders(places[-1], name)
        places += below
        if len(below) != 1 or below[0].name in holds:
            break
    best = min(places, key=lambda place: len(_lacking(place, holds)))
    if not (lacking := _lacking(best, holds)):
        return best
    if lacking == [*holds]:
        names = sorted(path.name for path in folder.iterdir())[:3]
        found = f"it holds {', '.join(map(repr, names))}" if names else "it is empty"
        told = f"no folder in it holds {', '.join(holds)}, as {found}"
    else:
        place = "" if best == folder else f" in {best.relative_to(folder)}"
        told = f"lacks {', '.join(lacking)}{place}"
    raise _ArchiveError(f"{archive.name}: {told}, and was removed; give --url of a complete one")


def _folders(folder: Path, name: str) -> list[Path]:
    """Folders to search in a folder: the one with the given name, or else all."""
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    if own := [path for path in inside if path.name == name]:
        return own
    return [] if folder.name == name else [path for path in inside if not is_junk(path.name)]


def _lacking(folder: Path, holds: Iterable[str]) -> list[str]:
    return [part for part in holds if not (folder / part).exists()]


def _with_slashes(entries: Iterable[zipfile.ZipInfo]) -> None:
    """Replace the backslashes with which some programs for Windows separate folders in a zip."""
    if not any("/" in entry.filename for entry in entries):
        for entry in entries:
            entry.filename = entry.filename.replace("\\", "/")


def _other_kind(archive: Path) -> str | None:
    """Name of the kind of an archive that is not unpacked, by its first bytes; None for others."""
    with archive.open("rb") as file:
        first = file.read(max(map(len, _OTHERS)))
    return next((name for begins, name in _OTHERS.items() if first.startswith(begins)), None)


def _begins_as_zip(archive: Path) -> bool:
    with open(archive, "rb") as file:
        return file.read(4) == b"PK\3\4"


def check_room(folder: Path, needed: int, what: str) -> None:
    """Refuse work for which a disk has too little room.

    Args:
        folder: Folder on the disk.
        needed: Bytes.
        what: Work, for the message.

    Raises:
        InputError: There is too little room.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{folder}: {what} needs {needed:,} bytes, and {free:,} are free; make room or give "
            "another --root"
        )


def _told(members: Iterable[Member], what: str) -> Iterable[Member]:
    """Return the members of an archive, with a progress bar on terminals only."""
    return cast(Iterable[Member], tqdm(members, desc=what, unit=" files", disable=None))
