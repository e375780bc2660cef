"""Images named on the command line: files, folders, globs, and lists in files or on stdin."""

import codecs
import glob
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from patchcore.data.files import Files, expanded, like
from patchcore.data.formats import FORMATS
from patchcore.errors import InputError, local, printable

STDIN = "-"
KEY = "IMAGES"
TABLE = re.compile(rb'path,|\s*\{"path"')
"""Beginning of the tables that runs and `patchcore predict` write, in CSV and JSON Lines."""
PATH_MAX = 4096  # bytes of a path


def named_images(arguments: Sequence[str], files: Files | None = None) -> Iterator[Path]:
    """Yield the images that arguments name, in the order of the arguments.

    An argument is a folder (with all its subfolders, sorted by path), a file of any extension, a
    glob (`**` for any depth), `@FILE` for the paths in a file, or `-` for the paths on stdin. Files
    and folders that exist stand for themselves before their names count as globs. Lists have one
    path per line, relative to the current directory; `~` has no meaning there. Paths in lists are
    yielded even if there is no such file: the error comes when they are opened.

    Args:
        arguments: Arguments of the command.
        files: Finder that collects which files in folders were passed over; by default a new one
            that lists unreadable images, too.

    Raises:
        InputError: there is no such file, folder, list or match, a folder holds no images, or a
            folder or list cannot be read.
    """
    files = files or Files(unreadable=True)
    for argument in arguments:
        if argument == STDIN:
            yield from _piped()
        elif argument.startswith("@") and not os.path.lexists(argument):
            yield from listed(argument[1:])
        else:
            yield from _found(argument, files)


def listed(file: str) -> Iterator[Path]:
    """Yield the paths in a list file, one per line.

    Raises:
        InputError: the file cannot be read, is in UTF-16, or is no text.
    """
    path = expanded(file, KEY)
    try:
        with path.open("rb") as lines:
            yield from paths_of_lines(lines, str(path))
    except OSError as error:
        raise InputError(f"{KEY}: the list {path} cannot be read ({error.strerror})") from None


def _piped() -> Iterator[Path]:
    reason = "it is closed"
    if sys.stdin is not None:
        try:
            yield from paths_of_lines(sys.stdin.buffer, STDIN)
            return
        except OSError as error:
            reason = str(error.strerror)
    raise InputError(f"{KEY}: stdin cannot be read ({reason}); pipe a list of paths to it")


def endless(arguments: Sequence[str]) -> bool:
    """Whether the number of images is unknown until the last one, because stdin lists them."""
    return STDIN in arguments


def paths_of_lines(file: BinaryIO | Iterable[bytes], path: str) -> Iterator[Path]:
    """Yield the paths that the lines of a list name, without checking that they exist.

    Args:
        file: Lines, as bytes.
        path: Name of the list for messages, or `STDIN`.

    Raises:
        InputError: The list is in UTF-16, is a table of results, has paths that begin in its own
            folder, or holds a NUL byte, a URL or the name of another list.
    """
    what = "stdin" if path == STDIN else f"the list {path}"
    for number, line in enumerate(file):
        if number == 0:  # the byte order mark of Windows
            if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise InputError(f"{KEY}: the list {path} is in UTF-16: save it in UTF-8")
            line = line.removeprefix(codecs.BOM_UTF8)
            if TABLE.match(line) and not os.path.lexists(line.rstrip(b"\r\n")):
                raise InputError(
                    f"{KEY}: {what} is a table: give the paths alone, one per line, without a "
                    "heading"
                )
        if b"\0" in line:
            raise InputError(f"{KEY}: {what} holds a NUL byte; it should have one path per line")
        name = line.rstrip(b"\r\n")
        if name.startswith(b"@") and not os.path.lexists(name) and os.path.isfile(name[1:]):
            raise InputError(
                f"{KEY}: {what} names another list, {os.fsdecode(name)}: give that as an argument"
            )
        if number == 0 and path != STDIN and not os.path.lexists(name):
            folder = os.path.dirname(path)
            if name and os.path.lexists(os.path.join(os.fsencode(folder), name)):
                raise InputError(
                    f"{KEY}: {what} has paths that begin in its own folder, such as "
                    f"{os.fsdecode(name)}: run the command in {folder}, as they begin in the "
                    "current one"
                )
        if name.strip():
            yield Path(local(os.fsdecode(name), f"{KEY}: {what}"))


def _found(argument: str, files: Files) -> Iterator[Path]:
    path = expanded(argument, KEY)
    if path.is_dir():
        found = files.images(path, recursive=True)
        if not found:
            others = f"; {text}" if (text := files.passed_over()) else ""
            raise InputError(f"{printable(str(path))}: holds no images to inspect{others}")
        yield from found
    elif os.path.lexists(path):
        if path.suffix.lower() not in FORMATS and _lists(path):
            raise InputError(f"{KEY}: {argument} is a list of paths: give @{argument}")
        yield path
    elif glob.has_magic(argument):
        images = _matches(_literally(path)) or _matches(str(path))
        if not images:
            raise InputError(f"{KEY}: no file matches {argument}")
        yield from map(Path, images)
    else:
        raise InputError(f"{KEY}: there is no file or folder {path}{like(path)}")


def _lists(path: Path) -> bool:
    """Whether a file is a list of paths, by its first line, which names a file."""
    try:
        with open(path if path.is_file() else os.devnull, "rb") as file:
            line = file.readline(PATH_MAX).removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n")
    except OSError:
        return False
    return b"\0" not in line and os.path.isfile(line)


def _matches(pattern: str) -> list[str]:
    """Files that match a glob, sorted."""
    found = sorted(glob.glob(pattern, recursive=True))
    return [each for each in found if not os.path.isdir(each)]


def _literally(path: Path) -> str:
    """Return a glob in which the folders at its beginning that exist stand for themselves."""
    folder = next((each for each in path.parents if os.path.isdir(each)), Path())
    return str(Path(glob.escape(str(folder)), path.relative_to(folder)))
