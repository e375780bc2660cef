"""Names of contents, and files as they were when a run began: none can change under its hands."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from patchcore.errors import InputError

Signature = tuple[int, ...]


def digest(*parts: Any) -> str:
    """32 hexadecimal digits that name `parts`: what JSON can hold, bytes, enums and paths.

    >>> digest("a", 1) == digest("a", 1) != digest("a", 2)
    True
    """
    text = json.dumps(parts, sort_keys=True, default=_plain, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def signature(path: Path) -> Signature:
    """Size, times of change and number of a file: as long as they stay, so do its contents.

    The time at which its entry changed is among them; copying tools cannot put that back.
    Raises OSError if there is no such file.
    """
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def file_digest(path: Path) -> str:
    """32 hexadecimal digits that name a file's contents.

    A file is read once a process, and again when its signature changes.
    Raises InputError if it is unreadable.
    """
    try:
        return _file_digest(path, signature(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


@lru_cache(maxsize=2**17)
def _file_digest(path: Path, signature: Signature) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def tensors_digest(tensors: Iterable[tuple[str, Tensor]], name: str = "") -> str:
    """32 hexadecimal digits that name tensors: their names, dtypes, shapes and values, and `name`.

    Tensors may come in any order.
    """
    state = hashlib.blake2b(name.encode(), digest_size=16)
    for key, x in sorted(tensors):
        state.update(f"{key} {x.dtype} {tuple(x.shape)}\n".encode())
        flat = x.detach().cpu().contiguous().reshape(-1)
        state.update(flat.view(torch.uint8).numpy().data)
    return state.hexdigest()


def _plain(value: Any) -> Any:
    """A value that JSON lacks as one that it has."""
    match value:
        case bytes():
            return {"bytes": value.hex()}
        case Enum():
            return value.name
        case Path():
            return {"path": os.fsencode(value).hex()}
        case Iterator():
            return list(value)
    raise TypeError(f"a digest cannot hold {type(value).__name__}")


T = TypeVar("T")


class ChangedError(InputError):
    """A file is not what it was when the run began; with the files as they are now it may work."""


@dataclass(frozen=True)
class Snapshot:
    """Contents of files at one moment.

    Attributes:
        digests: {path: digest of its contents}.
        signatures: {path: signature that goes with them}.
    """

    digests: dict[Path, str]
    signatures: dict[Path, Signature]

    @classmethod
    def of(cls, paths: Iterable[Path]) -> Self:
        """Take the snapshot of files. Raises InputError if one cannot be read."""
        digests, signatures = {}, {}
        for path in dict.fromkeys(paths):
            signatures[path] = _signature(path)  # first: a change while it is read must show
            digests[path] = file_digest(path)
        return cls(digests, signatures)

    def digest(self, path: Path) -> str:
        """Return the digest of a file's contents at that moment, or now if it is not among them."""
        return self.digests.get(path) or file_digest(path)

    def read(self, paths: Iterable[Path], reader: Callable[[], T]) -> T:
        """Return what `reader` makes of files, none of which differs from the snapshot.

        Files that were only touched, or put back, are read: their contents are compared.

        Raises:
            ChangedError: One differs, or changes while it is read.
            InputError: One is gone.
        """
        watched = [path for path in paths if path in self.digests]
        for _ in range(3):
            before = [_signature(path) for path in watched]
            for path, found in zip(watched, before, strict=True):
                self._compare(path, found)
            try:
                value = reader()
            except InputError:  # what a file has changed to may be unreadable
                for path in watched:
                    self._compare(path, _signature(path))
                raise
            after = [_signature(path) for path in watched]
            if before == after:
                return value
        settled = [x == y for x, y in zip(before, after, strict=True)]
        raise _changed(watched[settled.index(False)])

    def check(self) -> None:
        """Raise ChangedError if a file that is still there differs from the snapshot."""
        for path in self.digests:
            try:
                found = signature(path)
            except OSError:  # it has gone: what was made of it was made of the right contents
                continue
            self._compare(path, found)

    def _compare(self, path: Path, found: Signature) -> None:
        if found != self.signatures[path] and file_digest(path) != self.digests[path]:
            raise _changed(path)


def _signature(path: Path) -> Signature:
    try:
        return signature(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _changed(path: Path) -> ChangedError:
    return ChangedError(
        f"{path}: the file changed while the run was under way, so none of its numbers is kept; "
        "run it again"
    )
