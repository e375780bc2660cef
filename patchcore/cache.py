"""Content-addressed store on disk for intermediate results that several runs need.

There are three kinds of entries: `images` (decoded, resized and cropped pixels with their mask),
`maps` (a backbone's raw layer maps of one image) and `orders` (coreset orders). A key is made from
everything that its entry depends on (see `patchcore.identity`), so no entry is ever out of date.
When space is needed, the least recently used entries are deleted. Any number of processes may share
a store: an entry is written to a temporary file and then renamed, and a process that finds an entry
missing computes it.

Entries are in a folder of their own, `FOLDER`, inside the configured folder, and have their own
suffix. No other files are ever read, counted or deleted.
"""

import contextlib
import math
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from patchcore.errors import InputError, Told, to_write
from patchcore.machine import CACHE, home_expanded, warn_not_kept
from patchcore.settings import Choice, Settings, setting
from patchcore.writing import content_of, remove, replace_with

FOLDER = "patchcore-cache-v2"
KINDS = ("images", "maps", "orders")
SUFFIX = ".tensors"
RECORDS = "runs"  # folder of the records of finished runs, beside it
TAG = "CACHEDIR.TAG"  # tells backup programs to leave out the folder
TAG_TEXT = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# Intermediate results of patchcore, made again when they are missing.\n"
)
_CHECKSUM, _EARLIER = "xxh3", "checksum"
"""Names of the checksum among an entry's tensors, now and in earlier versions."""
NAMED = 3  # damaged entries that a store names
STALE = 3600  # seconds; after them an unfinished file is that of a dead process
_told = Told()


class Precision(Choice):
    """Number format in which layer maps are kept."""

    float32 = "float32"  # unchanged: results equal those of a run without the cache, bit for bit
    bfloat16 = "bfloat16"  # rounded, at half the size of float32


@dataclass
class CacheConfig(Settings):
    """Settings of the cache of intermediate results; `patchcore cache` shows and clears it."""

    GROUP: ClassVar[str] = "cache"

    enabled: bool = setting(False, "keep intermediate results for later runs", effect=False)
    root: str | None = setting(
        None,
        "folder of the cache; null: $PATCHCORE_CACHE, or patchcore/features in ~/.cache",
        effect=False,
    )
    limit_gib: float = setting(
        20.0,
        "largest size of the cache; before a new entry would exceed it, the entries not used for "
        "the longest time are deleted",
        unit="GiB",
        above=0,
        effect=False,
        idle=lambda cache: "without cache.enabled=true" * (not cache["enabled"]),
    )
    precision: Precision = setting(
        Precision.float32,
        "precision of layer maps in the cache; float32 gives the same results as a run without "
        "the cache",
        effect=lambda cache: cache["enabled"] and cache["precision"] is not Precision.float32,
        idle=lambda cache: "without cache.enabled=true" * (not cache["enabled"]),
    )

    def folder(self) -> Path:
        """Return the folder of the cache, and of the records of finished runs.

        Raises:
            InputError: Its name is empty, as that of a variable that is not set, or none to write:
                see `to_write`.
        """
        for name, root in (("cache.root", self.root), (CACHE, os.environ.get(CACHE))):
            if root == "":
                raise InputError(f"{name}: is empty: name a folder, or leave it out")
            if root is not None:
                return home_expanded(to_write(root, name))
        cache = to_write(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "XDG_CACHE_HOME")
        return home_expanded(cache) / "patchcore" / "features"

    def open(self) -> "Store | None":
        """Return the store, or None if the cache is not enabled."""
        return Store(self.folder(), math.ceil(self.limit_gib * 2**30)) if self.enabled else None


@dataclass(frozen=True)
class Entry:
    """Entry of a store, which is one file."""

    key: str
    path: Path
    size: int  # bytes
    used: float  # time of the last read or write, seconds since the epoch


class Store:
    """Store of tensors by key in a folder, of limited size.

    A key is `kind/digest`; the entry is a safetensors file of that name. An entry holds a checksum
    of its key and tensors, which detects damaged and misnamed entries. A store that cannot be read
    or written, for example on a full disk, warns once and stores nothing more, but stops no run.

    Args:
        root: Folder in which the store's own folder is created on the first write.
        limit: Largest size of all entries, bytes. Several processes that write at the same time may
            exceed it by 1/64 each.

    Attributes:
        root: The store's own folder.
        limit: Largest size of all entries, bytes.
    """

    def __init__(self, root: Path, limit: int = 20 * 2**30) -> None:
        self.root = Path(root) / FOLDER
        self.limit = limit
        self._size: int | None = None  # bytes at the last count, plus bytes written since then
        self._uncounted = 0  # bytes written since the last count
        self._broken = False
        self._damaged = 0  # entries that this process found

    def get(
        self, key: str, fits: Callable[[dict[str, Tensor]], bool] = bool
    ) -> dict[str, Tensor] | None:
        """Return the tensors stored under `key`, or None.

        An entry that is damaged, belongs to another key, or does not pass `fits` is deleted. A
        warning names it, or, after the first `NAMED`, says once that there are more. Entries of
        earlier versions are deleted without a warning.

        Args:
            key: Key of the entry, `kind/digest`.
            fits: Function that checks the tensors; it may raise KeyError for a missing name.
        """
        path = self._path(key)
        try:
            if (data := content_of(path)) is None:
                return None
        except OSError as error:
            if not isinstance(error, PermissionError):  # `put` replaces the file, or tells why not
                self._give_up(error)
            return None
        with contextlib.suppress(OSError):  # another user's file, or a read-only disk
            os.utime(path)
        tensors: dict[str, Tensor] = {}
        try:
            tensors = load(data)
            intact = tensors.pop(_CHECKSUM).numpy().tobytes() == _checksum(key, tensors)
        except (SafetensorError, KeyError, TypeError, ValueError):
            intact = False
        if intact:
            try:
                if fits(tensors):
                    return tensors
            except KeyError:
                pass
        with contextlib.suppress(OSError):
            remove(path)
        if _EARLIER not in tensors:
            self._tell_damaged(path)
        return None

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Store tensors under `key` in one step; an entry larger than the limit gives a warning."""
        if self._broken:
            return
        tensors = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
        checksum = torch.tensor(list(_checksum(key, tensors)), dtype=torch.uint8)
        data = save({**tensors, _CHECKSUM: checksum})
        if len(data) > self.limit:
            self._tell_large(len(data))
            return
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(self.root / TAG):
                (self.root / TAG).write_text(TAG_TEXT)
            self._make_room(len(data))
            replace_with(path, data, durable=False)  # the checksum detects incomplete files
        except OSError as error:
            self._give_up(error)

    def entries(self) -> list[Entry]:
        """Return all entries, the least recently used first; before them, those of the future."""
        found, later = [], time.time() + 86_400  # a day, by which the clock of a disk may differ
        for path in self._files(SUFFIX):
            with contextlib.suppress(FileNotFoundError):  # another process has just deleted it
                status = path.lstat()  # what is in an entry's place is one, too
                key = f"{path.parent.name}/{path.name.removesuffix(SUFFIX)}"
                found.append(Entry(key, path, status.st_size, status.st_mtime))
        return sorted(found, key=lambda e: (e.used if e.used < later else 0.0, e.key))

    def folders(self) -> list[Path]:
        """Return the folders of the kinds of entries that there are."""
        return [self.root / kind for kind in KINDS if os.path.isdir(self.root / kind)]

    def size(self) -> int:
        """Return the size of all entries, bytes."""
        return sum(entry.size for entry in self.entries())

    def clear(self) -> int:
        """Delete all entries, and return their size in bytes.

        Raises:
            InputError: an entry cannot be removed.
        """
        freed, left = 0, []
        for entry in self.entries():
            try:
                remove(entry.path)
                freed += entry.size
            except OSError as error:
                left.append(f"{entry.path}: cannot be removed ({error.strerror})")
        self._drop_unfinished(age=STALE)
        self._size = None
        if left:
            raise InputError(f"{left[0]}: remove it yourself")
        return freed

    def _path(self, key: str) -> Path:
        return self.root / f"{key}{SUFFIX}"

    def _files(self, suffix: str) -> list[Path]:
        """Files of the store with a suffix; other processes may delete them at any time."""
        found = []
        for kind in KINDS:
            with contextlib.suppress(OSError), os.scandir(self.root / kind) as files:
                found += [Path(file.path) for file in files if file.name.endswith(suffix)]
        return found

    def _make_room(self, needed: int) -> None:
        """Delete the least recently used entries if the limit is exceeded, down to 15/16 of it.

        If two processes do this at the same time, both delete the same entries.
        """
        self._uncounted += needed
        if self._size is None or self._uncounted > self.limit // 64:
            self._size = self.size()  # other processes write, too
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
            remove(entry.path)
            self._size -= entry.size

    def _drop_unfinished(self, age: float) -> None:
        for path in self._files(".part"):
            with contextlib.suppress(OSError):
                if time.time() - path.lstat().st_mtime > age:
                    remove(path)

    def _tell_damaged(self, path: Path) -> None:
        self._damaged += 1
        if self._damaged <= NAMED:
            told = "is damaged or belongs to another entry; it is dropped and will be rebuilt"
            warnings.warn(f"the cache entry {path} {told}", stacklevel=3)
        elif self._damaged == NAMED + 1:
            told = "are damaged; each is dropped and will be rebuilt"
            warnings.warn(f"more entries of the cache {self.root} {told}", stacklevel=3)

    def _tell_large(self, size: int) -> None:
        if _told.first((self.root, self.limit)):
            limit = f"cache.limit_gib={self.limit / 2**30:.3g}"
            told = f"{limit}, and one has {size / 2**30:.3g} GiB: raise the limit"
            warnings.warn(f"the cache {self.root} keeps no entry above {told}", stacklevel=3)

    def _give_up(self, error: OSError) -> None:
        if not self._broken:
            warn_not_kept(f"the cache {self.root} keeps nothing new", error, self.root)
        self._broken = True


def _checksum(key: str, tensors: dict[str, Tensor]) -> bytes:
    """Checksum of tensors and their key, 16 bytes; 50 times as fast as a cryptographic digest."""
    state = xxhash.xxh3_128(key.encode())
    for name, x in sorted(tensors.items()):
        state.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        state.update(x.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.digest()
