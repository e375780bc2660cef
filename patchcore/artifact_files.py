"""Files of an artifact: written all at once, and read only if every byte is as it was written.

`patchcore.artifact` says what they hold.
"""

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file
from torch import Tensor

from patchcore.errors import InputError
from patchcore.keeping import DESCRIPTION

FORMAT = 1
LARGEST_DESCRIPTION = 1 << 26  # bytes; a larger file is none of ours
_OWN_FILE = re.compile(r"(artifact\.yaml|(model|decision|weights(_\d+)?)\.safetensors)")
_MARK = b"# patchcore artifact; SHA-256 of what follows this line: "


def write_folder(
    folder: Path, description: Mapping[str, Any], tensors: Mapping[str, dict[str, Tensor]]
) -> None:
    """Write an artifact, all at once; one that is there already is replaced when this is complete.

    Args:
        folder: Made with its parents.
        description: Content of artifact.yaml, to which `format` and `files` are added.
        tensors: Content of each other file, {file: {name: tensor}}.

    Raises:
        InputError: The description holds no plain values, or the folder something else; or it
            cannot be written.
    """
    folder = folder.absolute()
    new = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}.part")
    files = {}
    try:
        _check_replaceable(folder)
        new.mkdir(parents=True)
        try:
            for name, content in tensors.items():
                save_file(content, new / name)
                files[name] = _measured(new / name)
                _flush(new / name)
            whole = {"format": FORMAT, **description, "files": files}
            _write(new / DESCRIPTION, _signed(whole, folder))
            _flush(new)
            _put(new, folder)
        except BaseException:  # Ctrl-C too
            shutil.rmtree(new, ignore_errors=True)
            raise
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{folder}: the artifact cannot be written ({reason})") from error


def read_description(folder: Path) -> dict[str, Any]:
    """Return the contents of artifact.yaml, once they are known to be undamaged.

    Raises:
        InputError: Begins with the file: it is missing, damaged, of a newer format, or none.
    """
    path = Path(folder) / DESCRIPTION
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= LARGEST_DESCRIPTION else b""
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: is no artifact, for {_advice(Path(folder))}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    first, _, body = data.partition(b"\n")
    if not first.startswith(_MARK):
        raise InputError(f"{path}: is damaged, or no artifact's: its first line is another")
    if data != _with_digest(body):
        raise InputError(f"{path}: is damaged or was edited: its digest is another")
    try:
        found = yaml.safe_load(body)
        number = found["format"]
    except (yaml.YAMLError, UnicodeError, TypeError, KeyError) as error:
        raise InputError(f"{path}: is not understood ({type(error).__name__})") from error
    if not isinstance(number, int) or number > FORMAT:
        raise InputError(
            f"{path}: is of format {number}, and this version reads up to {FORMAT}: install a "
            "newer patchcore"
        )
    return dict(found)


def check(folder: Path) -> dict[str, Any]:
    """Return the contents of artifact.yaml, once all files are known to be undamaged.

    Raises:
        InputError: See `load`.
    """
    description = read_description(folder)
    _check_files(Path(folder), description)
    return description


def read_tensors(folder: Path, name: str, description: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a file, of the very bytes that its digest is of."""
    path = folder / name
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != description["files"][name]["sha256"]:
            raise InputError(f"{path}: is damaged: its SHA-256 is another")
        return load_tensors(data)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except SafetensorError as error:
        raise InputError(f"{path}: holds no tensors ({error})") from error


def _signed(description: dict[str, Any], folder: Path) -> bytes:
    try:
        text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True, width=100)
        return _with_digest(text.encode())
    except (yaml.YAMLError, UnicodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{folder}: details must be plain values ({reason})") from error


def _with_digest(body: bytes) -> bytes:
    return _MARK + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def _check_replaceable(folder: Path) -> None:
    """Put back what a killed `save` had moved aside; refuse a folder with other things in it."""
    if not folder.exists() and _aside(folder).exists():
        _aside(folder).rename(folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file: give a folder for the artifact")
    others = sorted(name for name in os.listdir(folder) if not _OWN_FILE.fullmatch(name))
    if others:
        raise InputError(
            f"{folder}: holds {others[0]!r}, which is no artifact's: give another folder"
        )


def _put(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; what is there is moved aside first, and removed afterwards."""
    aside = _aside(folder)
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    try:
        new.rename(folder)
    except BaseException:
        if not folder.exists() and aside.exists():
            aside.rename(folder)
        raise
    _flush(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush(path: Path) -> None:
    """Make sure that a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _measured(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": found}


def _advice(folder: Path) -> str:
    """Why a folder is no artifact, and where one may be."""
    if _aside(folder.absolute()).is_dir():
        return f"a save was killed; the earlier artifact is {_aside(folder.absolute())}: rename it"
    if (folder / "artifact" / DESCRIPTION).is_file():
        return f"it is a run's folder: give {folder / 'artifact'}"
    if not folder.is_dir():
        return "there is no such folder"
    return f"it has no {DESCRIPTION}: give a folder that save or artifact=true has made"


def _check_files(folder: Path, description: dict[str, Any]) -> None:
    """Refuse an artifact unless all of its files are there, whole and unchanged."""
    for name, expected in description["files"].items():
        path = folder / str(name)
        try:
            size = path.stat().st_size
            if size != expected["bytes"]:
                raise InputError(f"{path}: is damaged: it has {size} bytes of {expected['bytes']}")
            found = _measured(path)
        except FileNotFoundError:
            raise InputError(f"{path}: is missing from the artifact") from None
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        if found != expected:
            raise InputError(f"{path}: is damaged: its SHA-256 is another")
