"""Names of contents: of plain values, of files and of tensors."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any

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
