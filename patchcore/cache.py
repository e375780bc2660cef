"""A content-addressed store on disk for what sweeps would otherwise compute again and again.

Three kinds of entries: `images` (decoded, resized and cropped pixels with their mask), `maps` (a
backbone's raw layer maps of one image) and `orders` (greedy coreset orders). A key names everything
that an entry follows from, so that nothing is ever out of date; what is not used any more is
dropped when room is needed. Any number of processes may share a store: entries are written to the
side and renamed, and whoever finds one missing computes it.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from patchcore.errors import InputError

FORMAT = 1  # of keys and entries; raise it when either changes its meaning
STALE = 3600  # seconds after which an unfinished file belongs to a process that has died


class Precision(Enum):
    """How layer maps are kept."""

    float32 = "float32"  # as they are: results are those of a run without the cache, bit for bit
    bfloat16 = "bfloat16"  # rounded, at half the size


@dataclass
class CacheConfig:
    """Whether and where intermediate results are kept; `patchcore cache` shows and clears them."""

    enabled: bool = False
    root: str | None = None  # folder; null: $PATCHCORE_CACHE, or patchcore/features in ~/.cache
    limit_gib: float = 20.0  # size in GiB; what was used longest ago goes first
    precision: Precision = Precision.float32  # of layer maps

    def __post_init__(self) -> None:
        if not self.limit_gib > 0:
            raise InputError(f"cache.limit_gib must be above 0, got {self.limit_gib}")

    def folder(self) -> Path:
        """Where entries are, or will be."""
        if root := self.root or os.environ.get("PATCHCORE_CACHE"):
            return Path(root).expanduser()
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        return cache / "patchcore" / "features"

    def open(self) -> "Store | None":
        """The store, or None if it is not enabled."""
        return Store(self.folder(), int(self.limit_gib * 2**30)) if self.enabled else None


@dataclass(frozen=True)
class Entry:
    """One file of a store."""

    key: str
    path: Path
    size: int  # bytes
    used: float  # when it was last read or written, seconds since the epoch


class Store:
    """Tensors by key in a folder, of bounded size.

    A key is `kind/digest`; the entry is the safetensors file of that name, with a checksum among
    its tensors. A store that cannot be written, such as on a full disk, warns once and remembers
    nothing more; it never stops a run.

    Args:
        root: Folder, made on the first write.
        limit: Bytes. Several processes that write at once may exceed it by 1/64 each.
    """

    def __init__(self, root: Path, limit: int = 20 * 2**30) -> None:
        self.root = Path(root)
        self.limit = limit
        self._size: int | None = None  # bytes when last counted, plus what was written since
        self._uncounted = 0  # bytes written since
        self._broken = False

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors stored under `key`, or None. A damaged entry is dropped, with a warning."""
        path = self._path(key)
        try:
            data = path.read_bytes()
            os.utime(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._give_up(error)
            return None
        try:
            tensors = load(data)
            intact = tensors.pop("checksum").tolist() == list(_checksum(tensors))
        except (SafetensorError, KeyError, ValueError):
            intact = False
        if intact:
            return tensors
        path.unlink(missing_ok=True)
        warnings.warn(
            f"the cache entry {path} is damaged; it is dropped and will be rebuilt", stacklevel=2
        )
        return None

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Keep tensors under `key`: all at once, or not at all."""
        tensors = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
        checksum = torch.tensor(list(_checksum(tensors)), dtype=torch.uint8)
        data = save({**tensors, "checksum": checksum})
        if self._broken or len(data) > self.limit:
            return
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._make_room(len(data))
            replace_with(path, data)
        except OSError as error:
            self._give_up(error)

    def entries(self) -> list[Entry]:
        """All entries, the one used longest ago first."""
        found = []
        for path in self.root.glob("*/*.safetensors"):
            with contextlib.suppress(FileNotFoundError):  # another process has just dropped it
                status = path.stat()
                key = f"{path.parent.name}/{path.stem}"
                found.append(Entry(key, path, status.st_size, status.st_mtime))
        return sorted(found, key=lambda entry: (entry.used, entry.key))

    def size(self) -> int:
        """Bytes of all entries."""
        return sum(entry.size for entry in self.entries())

    def clear(self) -> int:
        """Drop all entries; returns how many bytes they had."""
        freed = 0
        for entry in self.entries():
            entry.path.unlink(missing_ok=True)
            freed += entry.size
        self._drop_unfinished(age=STALE)
        self._size = None
        return freed

    def _path(self, key: str) -> Path:
        return self.root / f"{key}.safetensors"

    def _make_room(self, needed: int) -> None:
        """Drop what was used longest ago, to a little below the limit.

        Two processes may do so at once: both drop the same entries.
        """
        self._uncounted += needed
        if self._size is None or self._uncounted > self.limit // 64:
            self._size = self.size()  # others write too
            self._uncounted = needed
        self._size += needed
        if self._size <= self.limit:
            return
        entries = self.entries()
        self._size = sum(entry.size for entry in entries) + needed
        self._drop_unfinished(age=STALE)
        for entry in entries:
            if self._size <= self.limit - self.limit // 16:
                break
            entry.path.unlink(missing_ok=True)
            self._size -= entry.size

    def _drop_unfinished(self, age: float) -> None:
        for path in self.root.glob("*/.*.part"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > age:
                    path.unlink()

    def _give_up(self, error: OSError) -> None:
        if not self._broken:
            warnings.warn(f"the cache {self.root} is not used: {error}", stacklevel=3)
        self._broken = True


class MapCache:
    """Layer maps of one network, image by image.

    Args:
        store: Where they are kept.
        network: Digest of all that maps follow from besides the image: weights, layers, precision.
        precision: How they are kept. Rounding happens in `put` too, so that the run that computes
            the maps sees what later runs will see.
    """

    def __init__(
        self, store: Store, network: str, precision: Precision = Precision.float32
    ) -> None:
        self.store = store
        self.network = network
        self.precision = precision

    def key(self, image: str, batch: int) -> str:
        """Of the maps of the image with this digest, computed in a batch of that many images.

        Convolutions may sum in another order for another batch size; in one of the same size an
        image's maps do not depend on its neighbours.
        """
        return f"maps/{digest(FORMAT, self.network, self.precision, image, batch)}"

    def get(self, images: Sequence[str]) -> list[list[Tensor]] | None:
        """For each image of a batch its maps [(h, w, C), …]; None unless all are there."""
        found = []
        for image in images:
            entry = self.store.get(self.key(image, len(images)))
            if entry is None:
                return None
            found.append([self._restored(entry[name]) for name in sorted(entry, key=int)])
        return found

    def put(self, images: Sequence[str], maps: Sequence[Tensor]) -> list[Tensor]:
        """Keep the layer maps [(B, C, h, w), …] of a batch; returns them as later runs see them."""
        maps = [self._rounded(x) for x in maps]
        channels_last = [x.permute(0, 2, 3, 1) for x in maps]  # (B, C, h, w) → (B, h, w, C)
        for i, image in enumerate(images):
            entry = {str(layer): x[i] for layer, x in enumerate(channels_last)}
            self.store.put(self.key(image, len(images)), entry)
        return [self._restored(x) for x in maps]

    def _rounded(self, x: Tensor) -> Tensor:
        return x.to(torch.bfloat16) if self.precision is Precision.bfloat16 else x

    def _restored(self, x: Tensor) -> Tensor:
        return x.float() if self.precision is Precision.bfloat16 else x


def digest(*parts: Any) -> str:
    """32 hexadecimal digits that name `parts`: what JSON can hold, bytes, enums and paths.

    >>> digest("a", 1) == digest("a", 1) != digest("a", 2)
    True
    """
    text = json.dumps(parts, sort_keys=True, default=_plain, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """32 hexadecimal digits that name a file's contents.

    A file is read once a process, and again when its size or time changes.
    Raises InputError if it is unreadable.
    """
    try:
        status = path.stat()
        return _file_digest(path, status.st_size, status.st_mtime_ns, status.st_ino)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


@lru_cache(maxsize=2**17)
def _file_digest(path: Path, *signature: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def tensors_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """32 hexadecimal digits that name tensors: names, dtypes, shapes and values."""
    return _checksum(dict(tensors)).hex()


def replace_with(path: Path, data: bytes) -> None:
    """Write a file so that others see the old one, or all of the new one."""
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _checksum(tensors: dict[str, Tensor]) -> bytes:
    state = hashlib.blake2b(digest_size=16)
    for name, x in sorted(tensors.items()):
        state.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        flat = x.detach().cpu().contiguous().reshape(-1)
        state.update(flat.view(torch.uint8).numpy().data)
    return state.digest()


def _plain(value: Any) -> Any:
    """What JSON lacks, as something that it has."""
    match value:
        case bytes():
            return {"bytes": value.hex()}
        case Enum():
            return value.name
        case Path():
            return value.as_posix()
        case Iterator():
            return list(value)
    raise TypeError(f"a digest cannot hold {type(value).__name__}")
