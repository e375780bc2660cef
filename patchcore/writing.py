"""Files that appear when they are complete: a failure leaves what was there before."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def complete(path: Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Open a file for writing that replaces `path` when the context ends without an error.

    A pipe or a device, such as /dev/stdout, is written to directly.

    Args:
        path: File to write.
        mode: "wb" or "w".
        options: Further arguments of `open`.

    Raises:
        OSError: As `open` does.
    """
    if path.exists() and not path.is_file():
        with path.open(mode, **options) as file:
            yield file
        return
    path = path.resolve()  # a link stays, and its target is replaced
    part = path.with_name(f".{path.name[:200]}-{uuid.uuid4().hex}.part")
    try:
        with part.open(mode.replace("w", "x"), **options) as file:
            yield file
        os.replace(part, path)
    except BaseException:  # Ctrl-C too
        part.unlink(missing_ok=True)
        raise
