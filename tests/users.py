"""A user whom write-protected folders stop, unlike root, for tests that write to such folders."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def plain_user() -> Iterator[Path]:
    """Make a new folder of this user, or of `NOBODY`, who acts in the context in place of root."""
    folder = Path(tempfile.mkdtemp())  # nobody else may enter pytest's own
    root = os.geteuid() == 0
    if root:
        os.chown(folder, NOBODY, NOBODY)
        os.seteuid(NOBODY)
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        protect(folder, False)
        shutil.rmtree(folder)


def protect(folder: Path, wanted: bool = True) -> None:
    """Protect a folder and those in it against their owner's writing, or let the owner write."""
    for place, _, _ in os.walk(folder):
        os.chmod(place, 0o555 if wanted else 0o755)
