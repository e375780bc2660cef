"""The only exception for mistakes of users, and names and warnings as text of one line."""

import errno
import os
import re
import sys
import threading
from collections.abc import Hashable, Sequence
from pathlib import Path

NOT_FINITE = "features hold NaN or infinite values: check images and backbone"


class InputError(ValueError):
    """Bad input: the message names the file, key or value and says what to do.

    Commands print it as a single line and exit with code 1; anything else is a bug and keeps its
    traceback.
    """

    def __str__(self) -> str:
        """The message in one line, whatever the names in it hold."""
        return printable(super().__str__())


_POINTER = b"version https://git-lfs.github.com/spec/"


def unreadable(path: Path, message: str) -> InputError:
    """Return the error with this message, or a better one if the file is a Git LFS pointer.

    Every reader of files from elsewhere makes its error by this function once it has failed.
    """
    try:
        with path.open("rb") if os.path.isfile(path) else open(os.devnull, "rb") as file:
            pointer = file.read(len(_POINTER)) == _POINTER
    except OSError:
        pointer = False
    told = "is a Git LFS pointer in place of the file: run 'git lfs pull' in its repository"
    return InputError(f"{path}: {told}" if pointer else message)


_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def local(value: str, key: str = "") -> str:
    """Return the text of a path as it is; a URL is refused.

    `Path` would take it for a folder such as `s3:`, in which results would be looked for in vain.

    Args:
        value: Path, as it was typed.
        key: Key or option that names it, for the message.

    Raises:
        InputError: It is a URL.
    """
    if _URL.match(value):
        named = f"{key}: {value}" if key else f"{value}:"
        raise InputError(
            f"{named} is a URL, and URLs are neither read nor written: name a path of this machine"
        )
    return value


_CONTROL = re.compile(r"[\0-\x1f\x7f-\x9f]")


def to_write(value: str, key: str = "") -> str:
    """Return the text of a path that may be made as it is; URLs and control characters are refused.

    A file of variables with Windows line ends would give a folder whose name ends in one.

    Args:
        value: Path, as it was typed.
        key: Key, option or variable that names it, for the message.

    Raises:
        InputError: It is a URL, or holds a control character.
    """
    if _CONTROL.search(value):
        raise InputError(
            f"{key}{': ' * bool(key)}{value} holds a control character, as where a file has "
            "Windows line ends: remove it"
        )
    return local(value, key)


def missing(path: Path, kind: str) -> InputError:
    """Return the error of a file that is not there, with a likely reason.

    A link is told with what it leads to; quotes and outer blanks, which belong to a name in a list,
    are told as well.

    Args:
        path: File that was to be read.
        kind: What it was to be, for the message.
    """
    if os.path.islink(path):
        return broken_link(path, os.strerror(errno.ENOENT))
    name, advice = str(path), ""
    if len(name) > 1 and name[0] == name[-1] and name[0] in "'\"":
        advice = ": write it without quotes"
    elif name != name.strip():
        advice = ": its name begins or ends with a blank, which may be one too many"
    return InputError(f"{path}: there is no such {kind}{advice}")


def broken_link(path: Path, reason: str | None) -> InputError:
    """Return the error of a link whose target cannot be read, for a reason of the system."""
    return InputError(
        f"{path}: this link leads to {os.readlink(path)}, which cannot be read ({reason}); mend "
        "the link or remove it"
    )


def lost_link(path: Path) -> InputError | None:
    """Return the error of a link at or above a path whose target cannot be read, if there is one.

    The system calls such a link a file that exists already where a folder is to be made.
    """
    for place in (path, *path.parents):
        try:
            if os.path.islink(place):
                place.stat()
        except OSError as error:
            return broken_link(place, error.strerror)
    return None


REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room or choose another folder"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "change its permissions or choose another path"),
    errno.EFBIG: "raise the limit of a file's size (ulimit -f) or choose another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: "check the disk",
}
"""Advice that is right whether the file was to be read or written."""


def unwritable(folder: Path, error: OSError) -> InputError:
    """Return the error of a folder that could not be written, with advice where there is any."""
    advice = REMEDIES.get(error.errno or 0)
    if error.errno in (errno.EBUSY, errno.EXDEV):  # as where a volume is mounted
        advice = "choose a folder inside it, as it cannot be renamed"
    told = f"{folder}: cannot be written ({error.strerror or error})"
    return lost_link(folder) or InputError(f"{told}: {advice}" if advice else told)


def printable(name: str) -> str:
    r"""A file's name as text that any table, page or tracker takes.

    Bytes that are not UTF-8 become `\xe9`, line breaks and other control characters `\n` or
    `\x1b`. Other names stay as they are.
    """
    return name if name.isprintable() else "".join(map(_printable, name))


def few(names: Sequence[str], most: int = 3) -> str:
    """Join names, the first of them if there are many, with the number of the others.

    >>> few(["a", "b"]), few(["a", "b", "c", "d", "e"])
    ('a and b', 'a, b, c and 2 more')
    """
    rest = [f"{len(names) - most} more"] if len(names) > most else []
    *first, last = [*names[:most], *rest]
    return f"{', '.join(first)} and {last}" if first else last


def counted(number: int, noun: str) -> str:
    """Return a number with what it counts, in the plural unless it is one.

    >>> counted(1, "image"), counted(2, "batch"), counted(1200, "test image")
    ('1 image', '2 batches', '1,200 test images')
    """
    plural = "" if number == 1 else "es" if noun.endswith(("s", "ch")) else "s"
    return f"{number:,} {noun}{plural}"


def above(value: float, limit: float, decimals: int = 0) -> str:
    """Return a number that exceeds a limit, with as many decimals as show this, 6 at most.

    >>> above(600.2, 500), above(1.048576, 1), above(0.004096, 0.001)
    ('600', '1.05', '0.004')
    """
    while decimals < 6 and float(f"{value:.{decimals}f}") <= limit:
        decimals += 1
    return f"{value:,.{decimals}f}"


def warning_line(message: Warning | str, *_: object, **__: object) -> str:
    """A warning as Python prints it: in one line, which begins below a progress bar."""
    bars = getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())
    return f"{chr(10) * bool(len(bars))}warning: {message}\n"


class Told:
    """Subjects of which this process, which may run many points of a multirun, has warned.

    >>> told = Told()
    >>> told.first("a"), told.first("b"), told.first("a")
    (True, True, False)
    """

    def __init__(self) -> None:
        self._lock, self._told = threading.Lock(), set[Hashable]()

    def first(self, subject: Hashable) -> bool:
        """Return whether a subject has not been told before, in any thread, and count it as told.

        Args:
            subject: Text of a warning, or what the warning is about.
        """
        with self._lock:
            new = subject not in self._told
            self._told.add(subject)
        return new


def _printable(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    broken = 0xD800 <= code <= 0xDFFF or character in "\u2028\u2029"
    # Invisible joiners and wide spaces belong to names.
    if (code >= 0xA0 and not broken) or character.isprintable():
        return character
    return character.encode("unicode_escape").decode()
