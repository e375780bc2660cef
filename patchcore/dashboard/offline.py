"""Sending offline runs to W&B, also after their folders were moved.

The file of a run names W&B's staged files by absolute paths. So if a folder was moved, or copied to
another machine, `wandb sync` would not send its tables and artifacts. This module first corrects
the paths. The file is a log in LevelDB's format: a header of 7 bytes, then blocks of 32 KiB with
Protobuf records in one or several parts, each after its checksum, length and kind.
"""

import struct
import subprocess
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from patchcore.errors import InputError
from patchcore.writing import complete

MARK, HEAD, BLOCK = b":W&B", 7, 32768
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4
"""Kinds of a record's parts."""
STAGED = "/wandb/data/"
"""Place in a run's folder where W&B stages what it is to send."""


def sync(folder: Path) -> list[Path]:
    """Send every offline run in or below a folder with `wandb sync`; return their folders.

    Raises:
        InputError: There is none, a file that it names is missing, or W&B does not take it.
    """
    files = offline_runs(folder)
    if not files:
        raise InputError(f"{folder}: holds no offline run of W&B; train with logger=wandb")
    for file in files:
        relocate(file)
    runs = [file.parent for file in files]
    command = [sys.executable, "-m", "wandb", "sync", *map(str, runs)]
    if subprocess.run(command, check=False).returncode:
        raise InputError(f"{folder}: wandb sync failed, as told above; nothing here has changed")
    return runs


def offline_runs(folder: Path) -> list[Path]:
    """Return the files of the offline runs in or below a folder, each once.

    A multirun's summary run has links to those of the points beside it, or copies of them where the
    folder was copied so.
    """
    found = folder.resolve().rglob("wandb/offline-run-*/run-*.wandb")
    deepest_last = sorted(found, key=lambda path: len(path.parts))
    return sorted({path.parent.name: path for path in deepest_last if path.is_file()}.values())


def relocate(file: Path) -> int:
    """Correct the paths of staged files in an offline run's file; return the number of corrections.

    Correct paths stay as they are; a file with only correct paths is not written.

    Raises:
        InputError: The file is damaged, or what it names is in neither place.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    root, changed, contents = file.parents[2], 0, []
    for content in records(file):
        record = Record()
        record.ParseFromString(content)
        moved = 0
        if record.WhichOneof("record_type") == "artifact":
            for entry in record.artifact.manifest.contents:
                if not entry.local_path or Path(entry.local_path).is_file():
                    continue
                here = root / "wandb" / "data" / entry.local_path.rpartition(STAGED)[2]
                if not here.is_file():
                    raise InputError(
                        f"{file}: {here} is missing, but {entry.path} is sent from it: copy the "
                        "complete folder of the run"
                    )
                entry.local_path, moved = str(here), moved + 1
        contents.append(record.SerializeToString() if moved else content)
        changed += moved
    if changed:
        head = file.read_bytes()[:HEAD]
        with complete(file) as new:
            for part in (head, *framed(contents)):
                new.write(part)
    return changed


def records(file: Path) -> Iterator[bytes]:
    """Yield the records of an offline run's file, without one that a killed process left
    incomplete.

    Raises:
        InputError: The file was not written by W&B, or a checksum is wrong.
    """
    data, whole = file.read_bytes(), b""
    if data[:4] != MARK:
        raise InputError(f"{file}: is not the file of a W&B run")
    place = HEAD
    while place + HEAD <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEAD:  # too short for the head of a part
            place += left
            continue
        check, length, kind = struct.unpack_from("<IHB", data, place)
        part = data[place + HEAD : place + HEAD + length]
        if len(part) < length:
            return
        if check != _checksum(kind, part):
            raise InputError(f"{file}: is damaged at byte {place}: copy the run's folder again")
        whole += part
        place += HEAD + length
        if kind in (WHOLE, LAST):
            yield whole
            whole = b""


def framed(contents: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the bytes that follow the head of a file with these records."""
    place = HEAD
    for content in contents:
        first = True
        while True:
            left = BLOCK - place % BLOCK
            if left < HEAD:
                yield bytes(left)
                place, left = place + left, BLOCK
            part, content = content[: left - HEAD], content[left - HEAD :]
            kind = (FIRST if first else MIDDLE) if content else (WHOLE if first else LAST)
            yield struct.pack("<IHB", _checksum(kind, part), len(part), kind) + part
            place, first = place + HEAD + len(part), False
            if not content:
                break


def _checksum(kind: int, part: bytes) -> int:
    return zlib.crc32(part, zlib.crc32(bytes([kind])))
