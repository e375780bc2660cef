"""Digests of contents, and snapshots of files that detect changes during a run."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from patchcore.errors import InputError

Signature = tuple[int, ...]


def digest(*parts: Any) -> str:
    """Return the digest of values: 32 hexadecimal digits.

    Values are anything that JSON can hold, bytes, enums, paths and iterators of these; other types
    raise TypeError.

    >>> digest("a", 1) == digest("a", 1) != digest("a", 2)
    True
    """
    text = json.dumps(parts, sort_keys=True, default=_plain, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def signature(path: Path) -> Signature:
    """Return size, times and inode number of a file; if they are unchanged, so are its contents.

    The times are those of the last changes of contents and of metadata (mtime and ctime), both in
    nanoseconds. Copying tools can restore the first, but not the second.

    Raises:
        OSError: there is no such file.
    """
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def file_digest(path: Path) -> str:
    """Return the digest of a file's contents, 32 hexadecimal digits.

    A file is read once per process, and again when its signature has changed.

    Raises:
        InputError: the file is unreadable.
    """
    try:
        return _file_digest(path, signature(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def file_digests(paths: Iterable[Path]) -> dict[Path, str]:
    """Return the `file_digest` of each file, {path: digest}; several are read at a time.

    Raises:
        InputError: a file is unreadable.
    """
    distinct = list(dict.fromkeys(paths))
    with ThreadPoolExecutor() as pool:  # hashing does not hold Python's lock
        return dict(zip(distinct, pool.map(file_digest, distinct), strict=True))


@lru_cache(maxsize=2**17)
def _file_digest(path: Path, signature: Signature) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def tensors_digest(tensors: Iterable[tuple[str, Tensor]], name: str = "") -> str:
    """Return the digest of tensors, 32 hexadecimal digits.

    The digest depends on their names, dtypes, shapes and values, and on `name`, but not on their
    order.
    """
    state = hashlib.blake2b(name.encode(), digest_size=16)
    for key, x in sorted(tensors):
        state.update(f"{key} {x.dtype} {tuple(x.shape)}\n".encode())
        flat = x.detach().cpu().contiguous().reshape(-1)
        state.update(flat.view(torch.uint8).numpy().data)
    return state.hexdigest()


def pixels_digest(pixels: NDArray[Any]) -> str:
    """Return the digest of a picture's pixels and their shape: 32 hexadecimal digits.

    It is a fast one, which tells pictures apart but withstands no forger.
    """
    state = xxhash.xxh3_128(str(pixels.shape).encode())
    state.update(np.ascontiguousarray(pixels).data)
    return state.hexdigest()


def tensor_digests(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """Return the `tensors_digest` of each tensor alone, {name: digest}; several at a time."""
    pairs = list(tensors)
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda pair: tensors_digest([pair]), pairs)
        return {name: each for (name, _), each in zip(pairs, found, strict=True)}


def _plain(value: Any) -> Any:
    """Replace a value that JSON cannot hold by one that it can."""
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
    """Error: a file has changed since the run began; a new run may succeed.

    Its only argument is its text, as PyTorch makes an error of a loader process anew from that.
    """

    REASON = (
        ": the file changed while the run was under way, so none of its numbers is kept; run it "
        "again"
    )

    @classmethod
    def of(cls, path: Path) -> "ChangedError":
        """Return the error of a file."""
        return cls(f"{path}{cls.REASON}")

    @property
    def path(self) -> str:
        """Path of the file."""
        return str(self).removesuffix(self.REASON)


@dataclass(frozen=True)
class Snapshot:
    """Digests of files' contents at one moment.

    Attributes:
        digests: {path: digest of the contents}.
        signatures: {path: signature at that moment}.
        pictures: Pictures that this process has read since, {digest of the pixels: paths}.
    """

    digests: dict[Path, str]
    signatures: dict[Path, Signature]
    pictures: dict[str, set[Path]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, paths: Iterable[Path]) -> Self:
        """Take a snapshot of files.

        Raises:
            InputError: a file cannot be read.
        """
        distinct = list(dict.fromkeys(paths))
        signatures = {path: _signature(path) for path in distinct}  # first, to detect changes
        return cls(file_digests(distinct), signatures)

    def digest(self, path: Path) -> str:
        """Return the digest of a file in the snapshot, or of its present contents otherwise."""
        return self.digests.get(path) or file_digest(path)

    def read(self, paths: Iterable[Path], reader: Callable[[], T]) -> T:
        """Return the result of `reader`, which reads files that do not differ from the snapshot.

        Contents decide: files that were only touched, or restored, do not differ.

        Args:
            paths: Files that `reader` reads; only those in the snapshot are compared.
            reader: Function without arguments.

        Raises:
            ChangedError: A file differs from the snapshot, or changes while it is read.
            InputError: A file is missing, or `reader` raised this error.
        """
        watched = [path for path in paths if path in self.digests]
        for _ in range(3):
            before = [_signature(path) for path in watched]
            for path, found in zip(watched, before, strict=True):
                self._compare(path, found)
            try:
                value = reader()
            except InputError:  # a changed file may be unreadable
                for path in watched:
                    self._compare(path, _signature(path))
                raise
            after = [_signature(path) for path in watched]
            if before == after:
                return value
        settled = [x == y for x, y in zip(before, after, strict=True)]
        raise ChangedError.of(watched[settled.index(False)])

    def note(self, path: Path, pixels: NDArray[Any]) -> None:
        """Note the pixels that a picture gives, for `alike`."""
        self.pictures.setdefault(pixels_digest(pixels), set()).add(path)

    def alike(self) -> list[list[Path]]:
        """Return groups of pictures that give the same pixels, although files of theirs differ."""
        groups = map(sorted, self.pictures.values())
        return [group for group in groups if len({self.digest(path) for path in group}) > 1]

    def check(self) -> None:
        """Raise ChangedError if a file that still exists differs from the snapshot."""
        for path in self.digests:
            try:
                found = signature(path)
            except OSError:  # deleted; it was compared whenever it was read
                continue
            self._compare(path, found)

    def _compare(self, path: Path, found: Signature) -> None:
        if found != self.signatures[path] and file_digest(path) != self.digests[path]:
            raise ChangedError.of(path)


def _signature(path: Path) -> Signature:
    try:
        return signature(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
