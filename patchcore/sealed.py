"""Folders of files that are written in one step, and read only if no byte has changed.

A YAML file describes the folder. Its first line holds the SHA-256 of all that follows. Under
`files`, it lists size and SHA-256 of every other file. The digests protect against accidents, not
against attacks: anyone who can write to the folder can change the digests, too.

One process at a time replaces a folder. Its lock is that of the folder itself, so that it moves
with the folder when that is put aside, and ends with the process.
"""

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import yaml  # type: ignore[import-untyped]

from patchcore.data.files import is_junk
from patchcore.errors import InputError, counted, unreadable, unwritable
from patchcore.outputs import check_folder, check_removable, model_around
from patchcore.settings import shown
from patchcore.writing import locked_now, new_part, remove_folder, remove_leftovers

LARGEST = 1 << 26  # most bytes of a description; a larger file was not written by this module
REMEDY = "copy the folder again, or make it anew"
_MARK = b"# patchcore: SHA-256 of what follows this line: "
_TRIES, _PAUSE = 10, 0.05  # of a reader while the folder is replaced; pauses in seconds
_held: ContextVar[tuple[Path, ...]] = ContextVar("held", default=())

T = TypeVar("T")


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Let nobody else replace a folder; of a missing folder, nothing is locked.

    A folder that a killed `write_sealed` moved aside is put back. In the same thread, a folder may
    be locked again.

    Raises:
        InputError: Another process is replacing it.
        OSError: The folder cannot be opened or put back.
    """
    folder = _target(folder)
    handle = None if folder in _held.get() else _locked(folder)
    before = _held.set((*_held.get(), folder) if handle is not None else _held.get())
    try:
        yield
    finally:
        _held.reset(before)
        if handle is not None:
            os.close(handle)


def steadily(folder: Path, read: Callable[[], T]) -> T:
    """Return what `read` makes of a folder, read again where it was replaced in the meantime.

    Raises:
        InputError: `read` raised it, and the folder was the same before and afterwards.
    """
    for _ in range(_TRIES):
        before = _state(folder)
        try:
            found = read()
        except InputError:
            gone = before is None and aside(folder).is_dir()  # for a moment, or of a killed process
            if _state(folder) == before and not gone:
                raise
        else:
            if _state(folder) == before:
                return found
        time.sleep(_PAUSE)
    return read()


def write_sealed(
    folder: str | Path,
    description: str,
    write: Callable[[Path], dict[str, Any]],
    *,
    replace: bool = True,
) -> None:
    """Write a folder; an existing one is replaced once the new one is complete.

    Args:
        folder: Folder to write, or a link to it; created with its parents. It must hold no other
            files.
        description: Name of the YAML file.
        write: Function that writes the other files into a given folder, and returns the contents of
            the description as plain values, with its `format` and without `files`.
        replace: Whether a folder that holds anything is replaced, and not refused.

    Raises:
        InputError: The folder holds other files, lies inside a model or cannot be written, another
            process replaces it, or the contents are no plain values. Nothing has changed then.
    """
    folder = _target(folder)
    try:
        with locked(folder):
            _check_replaceable(folder, description, replace)
            replace = replace and folder.exists()
            folder.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder.parent)
            new, handle = new_part(folder, Path.mkdir)
            try:
                found = write(new)
                files = sorted(new.iterdir())
                found["files"] = {path.name: _measured(path) for path in files}
                (new / description).write_bytes(_signed(found, folder))
                for path in files:  # safetensors lets nobody but the owner read its files
                    path.chmod((new / description).stat().st_mode)
                for path in (*files, new / description, new):
                    _flush(path)
                _put(new, folder, replace)
            except BaseException:  # Ctrl-C too
                remove_folder(new)
                raise
            finally:
                os.close(handle)
    except OSError as error:
        raise unwritable(Path(folder), error) from error


def check_target(folder: str | Path, description: str, *, replace: bool = True) -> None:
    """Refuse a folder that `write_sealed` could not write, before the work for its contents.

    Args:
        folder, description, replace: As for `write_sealed`.

    Raises:
        InputError: The folder holds other files or lies inside a model, another process replaces
            it, or there is no permission. Nothing has changed.
    """
    target = _target(folder)
    try:
        with locked(target):
            _check_replaceable(target, description, replace)
    except OSError as error:
        raise unwritable(Path(folder), error) from error
    check_folder(target.parent)


def read_sealed(folder: str | Path, description: str, newest: int) -> dict[str, Any]:
    """Check all files of a folder, and return the contents of its description.

    Args:
        folder: Folder that `write_sealed` has written.
        description: Name of the YAML file.
        newest: Newest `format` that can be read.

    Raises:
        InputError: A file, which the message names first, is missing, damaged, unreadable, of a
            newer format, or was not written by `write_sealed`.
    """
    found = read_description(Path(folder) / description, newest)
    check_files(Path(folder), found)
    return found


def rewrite_description(folder: Path, description: str, found: dict[str, Any]) -> None:
    """Replace the contents of a description, `files` among them, with a new digest.

    Raises:
        InputError: The contents are no plain values.
        OSError: The file cannot be written.
    """
    (folder / description).write_bytes(_signed(found, folder))


def check_files(folder: Path, found: dict[str, Any]) -> None:
    """Raise InputError unless all files in a description exist and are unchanged."""
    for name, expected in found["files"].items():
        path = folder / str(name)
        try:
            size = path.stat().st_size
            if size != expected["bytes"]:
                had = f"it has {counted(size, 'byte')} of {expected['bytes']}"
                raise unreadable(path, f"{path}: is damaged: {had}: {REMEDY}")
            same = _measured(path) == expected
        except FileNotFoundError:
            raise InputError(f"{path}: is missing: {REMEDY}") from None
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        if not same:
            raise unreadable(path, f"{path}: is damaged: its SHA-256 is another: {REMEDY}")


def read_description(path: Path, newest: int) -> dict[str, Any]:
    """Return the contents of a description, without checking the other files.

    Raises:
        InputError: as in `read_sealed`, for this file.
    """
    if path.exists() and not path.is_file():  # reading a pipe would not end
        raise InputError(f"{path}: is no file: {REMEDY}")
    try:
        data = path.read_bytes() if path.stat().st_size <= LARGEST else b""
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: there is no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    first, _, body = data.partition(b"\n")
    if not first.startswith(_MARK):
        was = "is damaged or was not written by patchcore: its first line differs"
        raise unreadable(path, f"{path}: {was}: {REMEDY}")
    if data != _with_digest(body):
        raise InputError(f"{path}: is damaged or was edited: its digest differs: {REMEDY}")
    try:
        found = dict(yaml.safe_load(body))
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not understood ({type(error).__name__}): {REMEDY}") from error
    need_keys(path, found, ("format",))
    number = found["format"]
    if type(number) is not int or number < 1:
        raise InputError(f"{path}: is of format {number!r}, which never was: {REMEDY}")
    if number > newest:
        raise InputError(
            f"{path}: is of format {number}, and this version reads up to {newest}: install a "
            "newer patchcore"
        )
    files: Any = found.get("files")
    if not _lists_files(files):
        raise InputError(f"{path}: is not understood (its list of files): {REMEDY}")
    for name, told in files.items():
        check_keys(path, told, ("bytes", "sha256"), f"files.{name}.")
    return found


def check_keys(path: Path, found: Any, known: Collection[str], where: str = "") -> None:
    """Refuse a mapping from a description that has unknown keys; other values pass.

    Args:
        path: File of the description, for the message.
        found: Value from the description.
        known: Keys that this version writes.
        where: Dotted name of the mapping, with a dot at its end.

    Raises:
        InputError: There is an unknown key, which the message names.
    """
    others = [key for key in found if key not in known] if isinstance(found, dict) else []
    if others:
        raise InputError(
            f"{path}: holds {', '.join(f'{where}{key}' for key in others)}, which this version "
            "does not know: it may be of a newer version: install a newer patchcore"
        )


def need_keys(path: Path, found: Any, needed: Collection[str], where: str = "") -> None:
    """Refuse a value from a description that is no mapping, or lacks one of these keys.

    Args:
        path: File of the description, for the message.
        found: Value from the description.
        needed: Keys that every version writes.
        where: Dotted name of the mapping, with a dot at its end.

    Raises:
        InputError: The message names the mapping, or the first key that it lacks.
    """
    if not isinstance(found, dict):
        raise InputError(
            f"{path}: {where.rstrip('.')} must be a mapping {{name: value}}, got {shown(found)}: "
            f"{REMEDY}"
        )
    for key in needed:
        if key not in found:
            raise InputError(f"{path}: {where}{key} is missing: {REMEDY}")


def exact_keys(path: Path, found: Any, keys: Collection[str], where: str = "") -> None:
    """Refuse a value from a description unless it is a mapping with these keys and no others.

    Args and errors are those of `check_keys` and `need_keys`.
    """
    check_keys(path, found, keys, where)
    need_keys(path, found, keys, where)


def _lists_files(files: Any) -> bool:
    """Whether a value is a list of files as `write_sealed` makes it, all in one folder."""
    return isinstance(files, dict) and all(
        isinstance(name, str)
        and Path(name).name == name
        and isinstance(told, dict)
        and {"bytes", "sha256"} <= set(told)
        for name, told in files.items()
    )


def _signed(found: dict[str, Any], folder: Path) -> bytes:
    try:
        text = yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=100)
        return _with_digest(text.encode())
    except (yaml.YAMLError, UnicodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{folder}: details must be plain values ({reason})") from error


def _with_digest(body: bytes) -> bytes:
    return _MARK + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def _measured(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": found}


def _locked(folder: Path) -> int | None:
    """Open and lock a folder; None if there is none, or its file system has no such locks."""
    while True:
        handle = _opened(folder)
        moved = handle is None
        handle = _opened(aside(folder)) if handle is None else handle
        if handle is None:
            if not folder.is_dir():
                return None
            continue  # it was put in place a moment ago
        try:
            locks = _flocked(handle, folder)
            if moved and _is(handle, aside(folder)) and not os.path.lexists(folder):
                aside(folder).rename(folder)
            if locks and _is(handle, folder):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        if not locks:
            return None


def _flocked(handle: int, folder: Path) -> bool:
    """Lock an open folder; returns whether its file system has such locks."""
    locks = locked_now(handle)
    if locks is False:
        raise InputError(
            f"{folder}: another process is changing it: wait until that ends, and try again"
        )
    return bool(locks)


def _opened(folder: Path) -> int | None:
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is(handle: int, folder: Path) -> bool:
    """Whether an open folder is the one at a path."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(folder))
    except FileNotFoundError:
        return False


def _state(folder: Path) -> tuple[int, ...] | None:
    """Device, inode and time of a folder, which differ once it was replaced; None without one."""
    try:
        found = os.stat(folder)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _check_replaceable(folder: Path, description: str, replace: bool) -> None:
    """Refuse a folder with other files, or with any files unless `replace`.

    One inside a model is refused, too, as that model could not be replaced afterwards.
    """
    if around := model_around(folder.parent):
        raise InputError(f"{folder}: lies inside the model {around}: give another folder")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file: give a folder")
    if not replace and os.listdir(folder):
        raise _there(folder)
    try:
        body = (folder / description).read_bytes().partition(b"\n")[2]
        ours = {description, *yaml.safe_load(body)["files"]}
    except (OSError, yaml.YAMLError, UnicodeError, TypeError, KeyError):
        ours = set()
    others = sorted(name for name in os.listdir(folder) if name not in ours and not is_junk(name))
    if others:
        raise InputError(
            f"{folder}: holds {others[0]!r}, which patchcore did not write: give another folder"
        )
    check_removable(folder)


def _there(folder: Path) -> InputError:
    return InputError(f"{folder}: is there already: name another folder")


def _put(new: Path, folder: Path, replace: bool) -> None:
    """Rename `new` to `folder`; an existing folder is moved aside before and removed afterwards.

    Without `replace`, a folder that is there by now is refused unless it is empty.
    """
    old = aside(folder)
    if replace and folder.exists():
        remove_folder(old)
        folder.rename(old)
    try:
        new.rename(folder)
    except BaseException as error:
        if not folder.exists() and old.exists():
            old.rename(folder)
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise _there(folder) from error
        raise
    _flush(folder.parent)
    with contextlib.suppress(FileNotFoundError):
        old.rename(new)  # its name is free at once for the next that replaces the folder
    remove_folder(new)


def aside(folder: Path) -> Path:
    """Return the path of a folder's earlier contents while the folder is being replaced."""
    folder = _target(folder)
    return folder.with_name(f".{folder.name}.previous")


def _target(folder: str | Path) -> Path:
    """Full path of a folder; of a link it is that of its target, so that the link stays.

    `Path.resolve` raises RuntimeError where links go round in a circle.
    """
    return Path(os.path.realpath(folder))


def _flush(path: Path) -> None:
    """Flush a file, or the list of names in a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
