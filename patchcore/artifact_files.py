"""Files of an artifact: see `patchcore.artifact` for what they hold, `patchcore.sealed` for how."""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file
from torch import Tensor

from patchcore import sealed
from patchcore.errors import InputError, unreadable
from patchcore.inspector import DIGESTS, PRUNED, SOURCES
from patchcore.keeping import CROPS, weights_files
from patchcore.outputs import EXPORT
from patchcore.runfolder import DESCRIPTION, FOLDER
from patchcore.settings import shown

FORMAT = 1
MODEL, DECISION = "model.safetensors", "decision.safetensors"
REGION = "region.safetensors"
FILES = (MODEL, DECISION, REGION, CROPS)
"""Files of an artifact besides the networks' weights."""
GIVEN = "other_details"
"""Key of artifact.yaml: names of the details that are not among `DETAILS`."""
MADE = ("format", "members", "scale", "precision", "decision", "files", GIVEN)
"""Keys of artifact.yaml that follow from the model; the others are an inspector's `details`."""
DETAILS = ("data", "metrics", "versions", "lineage", SOURCES, PRUNED, *DIGESTS.values())
"""Details with a meaning of their own."""
_MAPPINGS = ("data", "metrics", "versions")  # of these; the others are lists
_DIGEST = re.compile("[0-9a-f]{32}")
_PATHS = ((SOURCES, str | None, "a path or null"), (PRUNED, str, "a path"))


def write_folder(
    folder: Path,
    description: Mapping[str, Any],
    tensors: Mapping[str, dict[str, Tensor]],
    *,
    replace: bool = True,
) -> None:
    """Write an artifact in one step; an existing one is replaced when the new one is complete.

    Args:
        folder: Made with its parents.
        description: Content of artifact.yaml, to which `format` and `files` are added.
        tensors: Content of each other file, {file: {name: tensor}}.
        replace: Whether an existing artifact is replaced, and not refused.

    Raises:
        InputError: The description holds no plain values, or the folder something else; or it
            cannot be written.
    """

    def write(new: Path) -> dict[str, Any]:
        for name, content in tensors.items():
            try:
                save_file(content, new / name)
            except SafetensorError as error:
                raise _of_the_system(error) from error
        return {"format": FORMAT, **description}

    sealed.write_sealed(folder, DESCRIPTION, write, replace=replace)


def read_description(folder: Path) -> dict[str, Any]:
    """Return the contents of artifact.yaml, after checking that they are not damaged.

    Raises:
        InputError: Begins with the file: it is missing, damaged, of a newer format, or none.
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION).exists():
        raise InputError(f"{folder}: is not an artifact: {_advice(folder)}")
    path = folder / DESCRIPTION
    found = sealed.read_description(path, FORMAT)
    if isinstance(given := found.get(GIVEN), list):  # earlier versions did not list them
        sealed.check_keys(path, found, (*MADE, *DETAILS, *given))
    sealed.need_keys(path, found, ("members", "scale", "precision", "decision"))
    members: Any = found["members"]
    if not isinstance(members, list) or not members:
        raise InputError(
            f"{path}: members must be a list of one model or more, got {shown(members)}: "
            f"{sealed.REMEDY}"
        )
    count = len(members)
    if count > 1 and found["scale"] is None:
        raise InputError(
            f"{path}: scale is null, but there are {count} members, which need one: {sealed.REMEDY}"
        )
    known = [*FILES, *weights_files(1), *weights_files(count)]
    sealed.check_keys(path, found["files"], known, "files.")
    for number in range(count):
        member, where = members[number], f"members.{number}."
        sealed.exact_keys(path, member, ("settings", "drawn", "image", "network"), where)
        network, inside = member["network"], f"{where}network."
        sealed.exact_keys(path, network, ("layers", "dtype", "digest", "file"), inside)
        file = network["file"]
        if file is not None and (not isinstance(file, str) or file not in found["files"]):
            raise InputError(
                f"{path}: {inside}file: {shown(file)} is not among the files of the artifact: "
                f"{sealed.REMEDY}"
            )
        dtype = getattr(torch, str(network["dtype"]), None)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise InputError(
                f"{path}: {inside}dtype: weights have no dtype {shown(network['dtype'])}: "
                f"{sealed.REMEDY}"
            )
        sealed.need_keys(path, member["settings"], ("method",), f"{where}settings.")
    return found


def packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as safetensors can hold them: on the CPU, in order, none sharing a place."""
    found: dict[str, Tensor] = {}
    places = set()
    for key, x in tensors.items():
        x = x.detach().cpu().contiguous()
        place = x.untyped_storage().data_ptr()
        found[key] = x.clone() if place in places else x
        places.add(place)
    return found


def check_details(details: Mapping[str, Any]) -> None:
    """Refuse details with a meaning of their own that are of another type.

    Raises:
        InputError: Begins with the name of the detail.
    """
    for key in DETAILS:
        kind, words = (dict, "a mapping") if key in _MAPPINGS else (list, "a list")
        if key in details and not isinstance(details[key], kind):
            raise InputError(f"{key} must be {words}, got {shown(details[key])}")
    for key, inner, words in (("lineage", dict, "a mapping"), *_PATHS):
        for number, each in enumerate(details.get(key, ())):
            if not isinstance(each, inner):
                raise InputError(f"{key}.{number} must be {words}, got {shown(each)}")
    for key, digests in DIGESTS.items():
        for number, each in enumerate(found := details.get(digests, ())):
            if each is not None and not (isinstance(each, str) and _DIGEST.fullmatch(each)):
                words = "32 hexadecimal digits or null"
                raise InputError(f"{digests}.{number} must be {words}, got {shown(each)}")
        if digests in details and len(found) != (count := len(details.get(key, ()))):
            raise InputError(
                f"{digests} must have one entry for each of the {count} in {key}, got {len(found)}"
            )


def check(folder: Path) -> dict[str, Any]:
    """Return the contents of artifact.yaml, after checking that no file is damaged.

    Raises:
        InputError: See `patchcore.artifact.load`.
    """
    description = read_description(folder)
    sealed.check_files(Path(folder), description)
    return description


def read_tensors(
    folder: Path, name: str, description: dict[str, Any], *known: str
) -> dict[str, Tensor]:
    """Tensors of a file, read from the same bytes as its digest; `known` are all, if any are given.

    Raises:
        InputError: The file is damaged or cannot be read, or holds an unknown tensor.
    """
    path = folder / name
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != description["files"][name]["sha256"]:
            words = f"is damaged: its SHA-256 is another: {sealed.REMEDY}"
            raise unreadable(path, f"{path}: {words}")
        found = load_tensors(data)
        sealed.check_keys(path, found, known or found)
        return found
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except SafetensorError as error:
        raise InputError(f"{path}: holds no tensors ({error})") from error


def _of_the_system(error: SafetensorError) -> OSError:
    """Error of the operating system that an error of safetensors tells of, by its number if any."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    if found is None:
        return OSError(str(error))
    return OSError(int(found[1]), os.strerror(int(found[1])))


def _advice(folder: Path) -> str:
    """Reason why a folder is not an artifact, and a place where one may be."""
    aside = sealed.aside(folder)
    if aside.is_dir():
        return f"a save was killed; the earlier artifact is {aside}: rename it"
    if (folder / FOLDER / DESCRIPTION).is_file():
        return f"it is a run's folder: give {folder / FOLDER}"
    if folder.is_file():
        if folder.name in (DESCRIPTION, *FILES) or (folder.parent / DESCRIPTION).is_file():
            return f"it is a file: give its folder {folder.parent}"
        return "it is a file: give the folder of an artifact, before the other arguments"
    if folder.is_symlink() and not folder.exists():
        return f"it is a link that leads to {os.readlink(folder)}: mend the link"
    if not folder.is_dir():
        return "there is no such folder"
    if (folder / EXPORT).is_file():
        return (
            "it is an export, which only predict, test and serve accept: give the artifact that "
            "it was made from"
        )
    for inside in (DESCRIPTION, f"{FOLDER}/{DESCRIPTION}", EXPORT):
        if found := sorted(folder.glob(f"*/{inside}")):
            return f"it is a folder above one: give {found[0].parent}"
    return f"it has no {DESCRIPTION}: give the artifact folder of a run with artifact=true"
