"""Images named on the command line, with a mark wherever stdin has no further path yet."""

import select
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from patchcore.ahead import Pause
from patchcore.data.files import Files
from patchcore.data.named import KEY, STDIN, named_images, paths_of_lines
from patchcore.errors import InputError


def arriving_images(arguments: Sequence[str], files: Files | None = None) -> Iterator[Path | Pause]:
    """Yield the images of `named_images`, and a `Pause` wherever stdin has no further path yet.

    Args:
        arguments: As for `named_images`.
        files: As for `named_images`.

    Raises:
        InputError: As in `named_images`.
    """
    files = files or Files(unreadable=True)
    for argument in arguments:
        if argument == STDIN:
            yield from _piped()
        else:
            yield from named_images([argument], files)


def _piped() -> Iterator[Path | Pause]:
    """Images on stdin; without a `Pause` where the system cannot say whether a path waits."""
    try:
        file = sys.stdin.buffer
        select.select([file.fileno()], [], [], 0)
    except (AttributeError, OSError, ValueError):
        yield from named_images([STDIN])
        return
    first: list[bytes] = []
    try:
        for lines in _together(file):
            yield from paths_of_lines(chain(first, lines), STDIN)
            first = [b"\n"]  # a byte order mark is on the first line of all only
            yield Pause.here
    except OSError as error:
        raise InputError(
            f"{KEY}: stdin cannot be read ({error.strerror}); pipe a list of paths to it"
        ) from None


def _together(file: BinaryIO) -> Iterator[Iterator[bytes]]:
    """Lines of a file, in groups that end wherever the next line would have to be waited for.

    Each group has to be used up before the next one is taken.
    """
    rest, ended = b"", False

    def group() -> Iterator[bytes]:
        nonlocal rest, ended
        told = False
        while not told or select.select([file.fileno()], [], [], 0)[0]:
            more = file.read1(1 << 16)  # type: ignore[attr-defined]
            *whole, rest = (rest + more).split(b"\n")
            yield from (line + b"\n" for line in whole)
            told = told or bool(whole)
            if not more:
                ended = True
                yield from [rest] if rest else []
                return

    while not ended:
        yield group()
