"""`patchcore cache`: show or clear the cache of intermediate results."""

import os
import time
from collections import defaultdict
from pathlib import Path

from patchcore.cache import RECORDS, TAG, CacheConfig, Entry, Store
from patchcore.commands.options import Parser, new_place
from patchcore.errors import InputError, counted, lost_link, printable
from patchcore.machine import named_by

KINDS = {
    "images": "decoded and resized images",
    "maps": "layer maps of backbones",
    "orders": "coreset orders",
}


def main(arguments: list[str] | None = None) -> None:
    """Entry point: `patchcore cache [show | clear | path]`."""
    parser = Parser(
        prog="patchcore cache",
        description="Show or clear the cache, in which sweeps keep results that they need again.",
        epilog="The cache is in $PATCHCORE_CACHE, or else in patchcore/features below "
        "$XDG_CACHE_HOME (~/.cache).",
    )
    parser.add_argument(
        "action",
        nargs="?",
        choices=("show", "clear", "path"),
        default="show",
        help="show the cache's content (default), clear it, or print its folder",
    )
    parser.add_argument(
        "--root", type=new_place, metavar="DIR", help="folder of another cache (cache.root)"
    )
    options = parser.parse_args(arguments)
    root = None if options.root is None else str(options.root)
    folder = CacheConfig(root=root).folder()
    store = Store(folder)
    if file := next(filter(os.path.isfile, (store.root, *store.root.parents)), None):
        if root is not None:
            raise InputError(f"--root: {file} is a file: name the folder of a cache")
        raise InputError(f"{file}: is a file, where the cache's folder belongs{named_by(folder)}")
    if options.action == "path":
        print(printable(str(store.root)))
    elif lost := lost_link(store.root):
        raise InputError(f"{lost}{named_by(folder)}" if root is None else f"--root: {lost}")
    elif options.root is not None and not store.root.parent.is_dir():
        raise InputError(f"--root: there is no folder {store.root.parent}")
    elif not store.root.is_dir():
        print(printable(f"there is no cache in {store.root.parent}"))
    elif closed := [each for each in (store.root, *store.folders()) if not _is_open(each)]:
        raise InputError(f"{closed[0]}: cannot be read (Permission denied): change its permissions")
    elif options.action == "clear":
        print(printable(f"{_size(store.clear())} freed in {store.root}{_left(store)}"))
    else:
        print(_table(store))


def _is_open(folder: Path) -> bool:
    return os.access(folder, os.R_OK | os.X_OK)


def _table(store: Store) -> str:
    kinds: dict[str, list[Entry]] = defaultdict(list)
    entries = store.entries()
    for entry in entries:
        kinds[entry.key.partition("/")[0]].append(entry)
    lines = [printable(str(store.root))]
    for kind, some in sorted(kinds.items()):
        purpose = KINDS.get(kind, kind)
        oldest = max(0.0, time.time() - min(entry.used for entry in some)) / 86400
        lines.append(
            f"{purpose:28} {_entries(some)} {_size(_bytes(some)):>10}   "
            f"unused for up to {oldest:.1f} days"
        )
    lines.append(f"{'in all':28} {_entries(entries)} {_size(_bytes(entries)):>10}")
    return "\n".join(lines)


def _entries(entries: list[Entry]) -> str:
    return f"{len(entries):9,} {'entry' if len(entries) == 1 else 'entries':7}"


def _left(store: Store) -> str:
    """Part of the sentence about clearing: what stays, which is other files and records of runs."""
    others = sum(len(files) for *_, files in os.walk(store.root)) - (store.root / TAG).is_file()
    left = [f"{counted(others, 'other file')} there"] if others else []
    if (store.root.parent / RECORDS).is_dir():
        left.append(f"the records of finished runs in {store.root.parent / RECORDS}")
    return f"; left: {', and '.join(left)}" if left else ""


def _bytes(entries: list[Entry]) -> int:
    return sum(entry.size for entry in entries)


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
