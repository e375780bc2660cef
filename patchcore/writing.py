"""Files that appear when they are complete: a failure leaves what was there before.

Also files that can be made again: whatever is in their place is read or removed.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

_PART = re.compile(r"\..+-[0-9a-f]{32}\.part")
_NO_LOCKS = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_tidied: set[Path] = set()  # folders whose leftovers this process has removed
LONGEST = 255
"""Bytes of a file's name that file systems allow."""


def fitting(name: str, ending: str) -> str:
    """Return `name + ending`, where the name is shortened if file systems would find it too long.

    A shortened name has a digest of the whole one, so that no two become the same.

    >>> fitting("0001.png", ".overlay.png")
    '0001.png.overlay.png'
    """
    room = LONGEST - len(os.fsencode(ending))
    whole = os.fsencode(name)
    if len(whole) > room:
        mark = f"~{hashlib.sha256(whole).hexdigest()[:16]}"
        name = beginning(name, room - len(mark)) + mark
    return name + ending


def beginning(name: str, size: int) -> str:
    """Return the first characters of a name, of `size` bytes at most."""
    return os.fsencode(name)[:size].decode("utf-8", "ignore")


@contextlib.contextmanager
def complete(path: Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Open a file for writing that replaces `path` when the context ends without an error.

    A pipe or a device, such as /dev/stdout, is written to directly.

    Args:
        path: File to write.
        mode: "wb" or "w".
        options: Further arguments of `open`.

    Raises:
        OSError: As `open` does, or the disk is full; it names `path`.
    """
    if (number := descriptor(path)) is not None:
        sys.stdout.flush()
        with named(path), os.fdopen(os.dup(number), mode, **options) as file:
            yield file
        return
    if path.exists() and not path.is_file():
        with named(path), path.open(mode, **options) as file:
            yield file
        return
    with contextlib.suppress(FileNotFoundError):
        path.stat()  # an OSError for a link that leads to itself, unlike that of resolve()
    path = path.resolve()  # a link stays, and its target is replaced
    if path.parent not in _tidied:  # once: a folder of pictures may hold very many files
        _tidied.add(path.parent)
        remove_leftovers(path.parent)
    with _renamed(path):
        part, handle = new_part(path, _make_file)
    try:
        with named(path), part.open(mode, **options) as file:
            yield file
        os.replace(part, path)
    except BaseException:  # Ctrl-C too
        part.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


def new_part(path: Path, make: Callable[[Path], object]) -> tuple[Path, int]:
    """Make a file or folder beside `path` that is to replace it once it is complete.

    Args:
        path: File or folder to write.
        make: Function that makes a new empty file or folder at a given path.

    Returns:
        Its path, and an open file that keeps it locked: close it after the replacement. The lock
        ends with the process, and tells others that the process lives; see `remove_leftovers`.

    Raises:
        OSError: As `make` does.
    """
    while True:
        part = path.with_name(f".{beginning(path.name, 200)}-{uuid.uuid4().hex}.part")
        make(part)
        try:
            handle = os.open(part, os.O_RDONLY)
        except FileNotFoundError:  # taken for a leftover before it was locked
            continue
        if locked_now(handle) is not False and part.exists():
            return part, handle
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes were writing in a folder; what living ones write stays.

    Where the file system has no locks, everything stays.
    """
    try:
        names = [name for name in os.listdir(folder) if _PART.fullmatch(name)]
    except OSError:  # writing there will tell it
        return
    for part in (folder / name for name in names):
        with contextlib.suppress(OSError):
            handle = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if locked_now(handle):
                    remove_folder(part) if part.is_dir() else part.unlink()
            finally:
                os.close(handle)


def make_writable(folder: Path) -> None:
    """Let this user list a folder and write to it, if it is this user's and not a link."""
    with contextlib.suppress(OSError):  # another user's
        mode = os.lstat(folder).st_mode
        if stat.S_ISDIR(mode) and mode & stat.S_IRWXU != stat.S_IRWXU:
            os.chmod(folder, stat.S_IMODE(mode) | stat.S_IRWXU)


def remove_folder(folder: Path) -> None:
    """Remove a folder, even a write-protected one of this user; what cannot be removed stays.

    A link stays, too, and so does what it leads to.
    """
    if os.path.islink(folder):
        return
    make_writable(folder)
    for place, folders, _ in os.walk(folder):
        for name in folders:  # which are listed later
            make_writable(Path(place, name))
    shutil.rmtree(folder, ignore_errors=True)


def locked_now(handle: int) -> bool | None:
    """Lock an open file or folder unless another process has; None where there are no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _make_file(path: Path) -> None:
    """Make an empty file with the permissions that `open` would give it."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))


@contextlib.contextmanager
def named(path: Path | str) -> Iterator[None]:
    """Name the file that is written in an error that names none, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


@contextlib.contextmanager
def _renamed(path: Path) -> Iterator[None]:
    """Name the file that was asked for in an error with the one that is written in its place."""
    try:
        yield
    except OSError as error:
        error.filename = os.fspath(path)
        raise


def descriptor(path: Path) -> int | None:
    """Return the number of the open file that a name such as /dev/stdout stands for.

    None for other names. What such a file holds already has to stay.
    """
    name = os.fspath(path)
    found = re.fullmatch(r"/(?:dev|proc/self)/fd/(\d+)", name)
    return int(found[1]) if found else {"/dev/stdout": 1, "/dev/stderr": 2}.get(name)


def replace_with(path: Path, data: bytes, durable: bool = True) -> None:
    """Write a file so that other processes see either the old file or all of the new one.

    If `durable`, this also holds after a power failure.
    """
    with _renamed(path):
        name, handle = new_part(path, _make_file)
    try:
        with name.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        name.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)
    if durable:
        _flush_folder(path.parent)


def content_of(path: Path) -> bytes | None:
    """Return what a file holds that can be made again; None if there is none.

    What is no file, such as a link that leads nowhere, an empty folder or a pipe, which would never
    end, holds nothing.

    Raises:
        OSError: The file cannot be read, or is a folder with files.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode) or (stat.S_ISDIR(mode) and any(path.iterdir())):
            return path.read_bytes()
    except OSError as error:
        if not path.is_symlink():
            if isinstance(error, FileNotFoundError):
                return None
            raise
    return b""


def remove(path: Path) -> None:
    """Remove a file that can be made again, or what is in its place, if there is anything.

    Raises:
        OSError: It cannot be removed, such as a folder with files.
    """
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()


def _flush_folder(folder: Path) -> None:
    """Flush the list of names in a folder to disk, if the system supports that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
