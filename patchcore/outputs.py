"""Checks of the places that results are written to, before the work whose results they are."""

import contextlib
import os
import re
import tempfile
from pathlib import Path

from patchcore.errors import InputError, lost_link
from patchcore.writing import descriptor

ARTIFACT, EXPORT = "artifact.yaml", "export.yaml"
"""Files that mark a folder as an artifact or as an export."""


def check_folder(folder: Path, option: str = "") -> None:
    """Refuse a folder that cannot be made, or in which no file can be written.

    Nothing is left there. A missing folder is not made.

    Args:
        folder: Folder to write to; it may be missing, and so may folders above it.
        option: Option that names it, for the message.

    Raises:
        InputError: It is a file or in one, its name is impossible, or there is no permission.
    """
    named = f"{option}: {folder}" if option else str(folder)
    try:
        above = Path(os.path.abspath(folder))
        if lost := lost_link(above):
            raise InputError(f"{option}: {lost}" if option else str(lost))
        while True:
            try:
                above.stat()
                break
            except FileNotFoundError:
                above = above.parent
            except NotADirectoryError:  # a file is taken for a folder further up
                above = above.parent
        if not above.is_dir():
            if above == Path(os.path.abspath(folder)):
                raise InputError(f"{named} is a file: name a folder")
            raise InputError(f"{named} cannot be made, because {above} is a file: name another")
        os.rmdir(tempfile.mkdtemp(prefix=".patchcore-", dir=above))
    except OSError as error:
        raise InputError(
            f"{named} cannot be written to ({error.strerror or error}): name another folder"
        ) from error


def check_removable(folder: Path) -> None:
    """Refuse a folder that `patchcore.writing.remove_folder` could not remove.

    Raises:
        InputError: A disk or volume is mounted there; or it, or a folder in it, is another user's
            and holds files that may not be removed, or cannot be listed.
    """
    if _is_mounted(folder):
        raise InputError(
            f"{folder}: a disk or volume is mounted there, so it cannot be replaced: choose a "
            "folder inside it"
        )
    for place, folders, files in os.walk(folder, onerror=_check_unlisted):
        if folders or files:
            check_own(Path(place))


def _is_mounted(folder: Path) -> bool:
    """Whether a file system, or a folder of one, is mounted at a folder."""
    if os.path.ismount(folder):
        return True
    try:
        mounted = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:  # another system than Linux
        return False
    told = (line.split()[4] for line in mounted)  # with blanks and the like as \\040
    places = {re.sub(rb"\\(\d{3})", lambda code: bytes([int(code[1], 8)]), each) for each in told}
    return os.fsencode(os.path.realpath(folder)) in places


def _check_unlisted(error: OSError) -> None:
    """Refuse a folder that cannot be listed, unless its user may change that."""
    with contextlib.suppress(OSError):  # it lies in a folder of this user that cannot be searched
        check_own(Path(error.filename))


def check_own(folder: Path) -> None:
    """Refuse a folder of another user, unless this user may remove the files in it.

    Raises:
        InputError: It is such a folder.
        OSError: There is no such folder, or one above it does not let it be seen.
    """
    if os.stat(folder).st_uid != os.geteuid() and not may_change(folder):
        raise InputError(
            f"{folder}: belongs to another user, and you may not remove its files: name another "
            "folder, or use a copy of this one"
        )


def may_change(folder: Path) -> bool:
    """Whether this user may add files to a folder and remove files from it."""
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=True)


def model_around(folder: Path) -> Path | None:
    """Return the artifact or export that a folder is or lies in; None if there is none."""
    place = Path(os.path.realpath(folder))
    for each in (place, *place.parents):
        if any((each / name).is_file() for name in (ARTIFACT, EXPORT)):
            return each
    return None


def check_outside(folder: Path, option: str) -> None:
    """Refuse a folder inside a model, which could not be replaced or extended afterwards.

    Args:
        folder: Folder to write to.
        option: Option that names the folder, for the message.

    Raises:
        InputError: It is a model's folder or lies inside.
    """
    if model := model_around(folder):
        same = model == Path(os.path.realpath(folder))
        where = "is a model" if same else f"lies inside the model {model}"
        raise InputError(f"{option}: {folder} {where}: name another folder")


def check_file(path: Path, option: str) -> None:
    """Refuse a file that cannot be written; a pipe or a device, such as /dev/stdout, passes.

    Args:
        path: File to write, in a folder that has to exist.
        option: Option that names it, for the message.

    Raises:
        InputError: It is a folder, there is no such folder, its name is impossible, or there is no
            permission.
    """
    if descriptor(path) is not None:
        return
    try:
        if path.is_dir():
            raise InputError(f"{option}: {path} is a folder: name a file")
        if path.exists() and not path.is_file():
            return
        if lost := lost_link(Path(os.path.abspath(path.parent))):
            raise InputError(f"{option}: {lost}")
        if not path.parent.is_dir():
            raise InputError(f"{option}: there is no folder {path.parent}: make it first")
        target = Path(os.path.realpath(path))  # a link stays, and its target is replaced
        if target.parent.is_dir():
            os.stat(target)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError(
            f"{option}: {path} cannot be written ({error.strerror or error}): name another file"
        ) from error
    check_folder(target.parent, option)
