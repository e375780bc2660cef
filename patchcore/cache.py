"""A content-addressed store on disk for what sweeps would otherwise compute again and again.

Three kinds of entries: `images` (decoded, resized and cropped pixels with their mask), `maps` (a
backbone's raw layer maps of one image) and `orders` (greedy coreset orders). A key is made from
everything that its entry depends on (see `patchcore.identity`), so no entry is ever out of date.
Entries that have not been used for the longest time are dropped when space is needed. Any number of
processes may share a store: an entry is written to a temporary file and then renamed, and a process
that finds an entry missing computes it.

Entries are in a marked folder of their own, `FOLDER`, inside the configured one, and have their own
suffix. No other files are ever read, counted or removed.
"""

import contextlib
import math
import os
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from patchcore import identity
from patchcore.errors import InputError
from patchcore.identity import maps_key, order_key
from patchcore.settings import Settings, setting

FOLDER = "patchcore-cache-v2"
KINDS = ("images", "maps", "orders")
SUFFIX = ".tensors"
TAG = "CACHEDIR.TAG"  # programs that back folders up know it, and leave out what lies beside it
TAG_TEXT = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# Intermediate results of patchcore, made again when they are missing.\n"
)
_CHECKSUM, _EARLIER = "xxh3", "checksum"
"""Names of an entry's checksum among its tensors, and of that in earlier versions."""
SECONDS = "seconds"
"""Name, among an entry's tensors, of the time that its content took to make, in seconds."""
STALE = 3600  # seconds after which an unfinished file belongs to a process that has died


class Precision(Enum):
    """Number format in which layer maps are kept."""

    float32 = "float32"  # as they are: results are those of a run without the cache, bit for bit
    bfloat16 = "bfloat16"  # rounded, at half the size


@dataclass
class CacheConfig(Settings):
    """Cache of intermediate results, and its place; `patchcore cache` shows and clears it."""

    GROUP: ClassVar[str] = "cache"

    enabled: bool = setting(False, "keep intermediate results for later runs", effect=False)
    root: str | None = setting(
        None,
        "folder of the cache; null: $PATCHCORE_CACHE, or patchcore/features in ~/.cache",
        effect=False,
    )
    limit_gib: float = setting(
        20.0,
        "largest size of the cache; the entries not used for the longest time are deleted first",
        unit="GiB",
        above=0,
        effect=False,
    )
    precision: Precision = setting(
        Precision.float32,
        "precision of layer maps in the cache; float32 gives the same results as a run without "
        "the cache",
        effect=lambda cache: cache["enabled"] and cache["precision"] is not Precision.float32,
    )

    def folder(self) -> Path:
        """Folder of the cache, and of what runs remember of each other."""
        if root := self.root or os.environ.get("PATCHCORE_CACHE"):
            return _home_expanded(root)
        cache = _home_expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
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
    """Tensors by key below a folder, of bounded size.

    A key is `kind/digest`; the entry is a safetensors file of that name. Among its tensors is a
    checksum of key and tensors, so that an entry that lies under another's name is noticed too. A
    store that cannot be written, such as on a full disk, warns once and remembers nothing more; it
    never stops a run.

    Args:
        root: Folder below which the store has its own, made on the first write.
        limit: Bytes. Several processes that write at once may exceed it by 1/64 each.

    Attributes:
        root: The store's own folder.
    """

    def __init__(self, root: Path, limit: int = 20 * 2**30) -> None:
        self.root = Path(root) / FOLDER
        self.limit = limit
        self._size: int | None = None  # bytes when last counted, plus what was written since
        self._uncounted = 0  # bytes written since
        self._broken = False

    def get(
        self, key: str, fits: Callable[[dict[str, Tensor]], bool] = bool
    ) -> dict[str, Tensor] | None:
        """The tensors stored under `key`, or None.

        An entry that is damaged, belongs to another key, or does not pass `fits` is dropped, with a
        warning; one of an earlier version without. `fits` need not expect any names: a KeyError
        counts as no.
        """
        path = self._path(key)
        try:
            data = b"" if path.is_fifo() else path.read_bytes()  # nobody would write to it
        except FileNotFoundError:
            return None
        except OSError as error:
            self._give_up(error)
            return None
        with contextlib.suppress(OSError):  # somebody else's, or on a disk that is only read
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
            path.unlink(missing_ok=True)
        if _EARLIER not in tensors:
            told = "is damaged or belongs to another entry; it is dropped and will be rebuilt"
            warnings.warn(f"the cache entry {path} {told}", stacklevel=2)
        return None

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Keep tensors under `key`: all at once, or not at all."""
        if self._broken:
            return
        tensors = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
        checksum = torch.tensor(list(_checksum(key, tensors)), dtype=torch.uint8)
        data = save({**tensors, _CHECKSUM: checksum})
        if len(data) > self.limit:
            return
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not (self.root / TAG).exists():
                (self.root / TAG).write_text(TAG_TEXT)
            self._make_room(len(data))
            replace_with(path, data, durable=False)  # its checksum tells if it was torn
        except OSError as error:
            self._give_up(error)

    def entries(self) -> list[Entry]:
        """All entries, the one used longest ago first."""
        found = []
        for path in self._files(SUFFIX):
            with contextlib.suppress(FileNotFoundError):  # another process has just dropped it
                status = path.stat()
                key = f"{path.parent.name}/{path.name.removesuffix(SUFFIX)}"
                found.append(Entry(key, path, status.st_size, status.st_mtime))
        return sorted(found, key=lambda entry: (entry.used, entry.key))

    def size(self) -> int:
        """Bytes of all entries."""
        return sum(entry.size for entry in self.entries())

    def clear(self) -> int:
        """Drop all entries; returns how many bytes they had.

        Raises InputError if one cannot be removed.
        """
        freed = 0
        for entry in self.entries():
            try:
                entry.path.unlink(missing_ok=True)
            except OSError as error:
                raise InputError(f"{entry.path}: cannot be removed ({error.strerror})") from None
            freed += entry.size
        self._drop_unfinished(age=STALE)
        self._size = None
        return freed

    def _path(self, key: str) -> Path:
        return self.root / f"{key}{SUFFIX}"

    def _files(self, suffix: str) -> list[Path]:
        """Files of the store with a suffix, which may be gone by now."""
        found = []
        for kind in KINDS:
            with contextlib.suppress(OSError), os.scandir(self.root / kind) as files:
                found += [Path(file.path) for file in files if file.name.endswith(suffix)]
        return found

    def _make_room(self, needed: int) -> None:
        """Drop the entries used longest ago, until the size is a little below the limit.

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
        for path in self._files(".part"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > age:
                    path.unlink()

    def _give_up(self, error: OSError) -> None:
        if not self._broken:
            warnings.warn(f"the cache {self.root} is not used: {error}", stacklevel=3)
        self._broken = True


def network_digest(model: Any, precision: str, device: torch.device) -> str:
    """Return a digest of all that a batch's layer maps of a detector follow from besides images."""
    backbone = model.backbone
    return identity.network_digest(backbone.network, backbone.layers, precision, device)


class MapCache:
    """Layer maps of one network, image by image.

    Args:
        store: Where they are kept.
        network: Digest of all that maps follow from besides the image: weights, layers, precision.
        precision: How they are kept. Rounding happens in `put` too, so that the run that computes
            the maps sees what later runs will see.
        channels: Channels of each layer, where they are known: other maps are dropped.
    """

    def __init__(
        self,
        store: Store,
        network: str,
        precision: Precision = Precision.float32,
        channels: Sequence[int] = (),
    ) -> None:
        self.store = store
        self.network = network
        self.precision = precision
        self.channels = list(channels)

    def key(self, image: str, batch: int) -> str:
        """Key of the maps of an image, by its digest, computed in a batch of so many images."""
        return maps_key(self.network, self.precision, image, batch)

    def get(self, images: Sequence[str]) -> list[list[Tensor]] | None:
        """Return the maps [(h, w, C), …] of each image of a batch; None unless all are there."""
        found = self.get_timed(images)
        return None if found is None else [maps for maps, _ in found]

    def get_timed(self, images: Sequence[str]) -> list[tuple[list[Tensor], float]] | None:
        """Return `get` with the seconds that the maps of each image took; NaN where unknown."""
        found: list[tuple[list[Tensor], float]] = []
        for image in images:
            entry = self.store.get(
                self.key(image, len(images)),
                lambda entry: self._fit(entry, found[0][0] if found else None),
            )
            if entry is None:
                return None
            seconds = took(entry)
            maps = [self._restored(entry[name]) for name in sorted(entry, key=int)]
            found.append((maps, seconds))
        return found

    def _fit(self, entry: dict[str, Tensor], first: list[Tensor] | None) -> bool:
        """Whether an entry holds maps of these layers, of the sizes of the batch's first image."""
        maps = [entry[str(layer)] for layer in range(len(entry) - (SECONDS in entry))]
        shapes = [tuple(x.shape) for x in maps]
        return (
            all(x.ndim == 3 and x.is_floating_point() and x.numel() > 0 for x in maps)
            and (not self.channels or [shape[-1] for shape in shapes] == self.channels)
            and (first is None or shapes == [tuple(x.shape) for x in first])
        )

    def put(
        self, images: Sequence[str], maps: Sequence[Tensor], seconds: float = math.nan
    ) -> list[Tensor]:
        """Keep the layer maps [(B, C, h, w), …] of a batch; returns them as later runs see them.

        `seconds` are what they took to make.
        """
        maps = [self._rounded(x) for x in maps]
        channels_last = [x.permute(0, 2, 3, 1) for x in maps]  # (B, C, h, w) → (B, h, w, C)
        for i, image in enumerate(images):
            entry = {str(layer): x[i] for layer, x in enumerate(channels_last)}
            entry |= timed(seconds / len(images))
            self.store.put(self.key(image, len(images)), entry)
        return [self._restored(x) for x in maps]

    def _rounded(self, x: Tensor) -> Tensor:
        return x.to(torch.bfloat16) if self.precision is Precision.bfloat16 else x

    def _restored(self, x: Tensor) -> Tensor:
        return x.float() if self.precision is Precision.bfloat16 else x


def timed(seconds: float) -> dict[str, Tensor]:
    """Return the part of an entry that tells how long its content took to make."""
    return {SECONDS: torch.tensor(seconds, dtype=torch.float64)}


def took(entry: dict[str, Tensor]) -> float:
    """Take the seconds out of an entry that its content took; NaN if it does not tell."""
    seconds = entry.pop(SECONDS, None)
    return math.nan if seconds is None or seconds.numel() != 1 else float(seconds)


def replace_with(path: Path, data: bytes, durable: bool = True) -> None:
    """Write a file so that others see the old one, or all of the new one.

    If `durable`, so does whoever looks after the power has failed.
    """
    name = path.parent / f".{path.stem}-{uuid.uuid4().hex}.part"
    handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # as open() would
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        name.unlink(missing_ok=True)
        raise
    if durable:
        _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _checksum(key: str, tensors: dict[str, Tensor]) -> bytes:
    """16 bytes of tensors and their key; it finds damage, at a fiftieth of a cryptographic cost."""
    state = xxhash.xxh3_128(key.encode())
    for name, x in sorted(tensors.items()):
        state.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        state.update(x.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.digest()


def _home_expanded(path: str) -> Path:
    """A path with ~ replaced; where nobody knows a home, a folder for temporary files takes it."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        own = Path(tempfile.gettempdir()) / f"patchcore-{os.getuid()}"
        return own / Path(path).relative_to("~") if path.startswith("~/") else own


@dataclass
class KeptOrders:
    """Coreset orders of some training images, as `patchcore.methods.detector.Kept`.

    Attributes:
        store: Where they are.
        maps: Keys of the images' layer maps.
    """

    store: Store
    maps: list[str]

    def get(
        self, patch: Any, sampler: Any, valid: Callable[[dict[str, Tensor]], bool]
    ) -> dict[str, Tensor] | None:
        """See `Kept.get`."""
        return self.store.get(order_key(self.maps, patch, sampler), valid)

    def put(self, patch: Any, sampler: Any, entry: dict[str, Tensor]) -> None:
        """See `Kept.put`."""
        self.store.put(order_key(self.maps, patch, sampler), entry)
