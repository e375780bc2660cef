"""Lists of the image files in folders, in the same order on every machine.

Links are followed. Hidden files and folders are ignored, and so are files that operating systems
and programs leave behind (`JUNK`). Other files that are no images are counted and reported.
Unreadable files and folders are errors.
"""

import errno
import os
import re
import stat
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

from patchcore.data.formats import CAMERA, FORMATS
from patchcore.errors import InputError, broken_link, counted, few, local, printable

JUNK = frozenset(
    {
        "#recycle",
        "$recycle.bin",
        "@eadir",
        "__macosx",
        "__pycache__",
        "desktop.ini",
        "lost+found",
        "system volume information",
        "thumbs.db",
    }
)
_IMAGE = "|".join([*map(re.escape, sorted(FORMATS)), "~[0-9a-f]{16}"])  # ends of images' names
OWN_PICTURE = re.compile(rf"(?i)({_IMAGE})\.(map|overlay)\.png$")
"""Names of pictures that `patchcore predict` writes of images: 7.png.overlay.png.

Long names are shortened: see `patchcore.writing.fitting`.
"""
Identity = tuple[int, int] | str


def composed(path: Path) -> Path:
    """Return a path in Unicode's composed form (NFC), to compare names that look the same.

    Programs of macOS often write é as e and an accent.
    """
    return Path(unicodedata.normalize("NFC", str(path)))


def is_junk(name: str) -> bool:
    """Return whether operating systems leave files or folders of this name behind."""
    return name.casefold() in JUNK or name == ".DS_Store" or name.startswith("._")


def expanded(value: str, key: str) -> Path:
    """Return the path in setting `key`, with `~` expanded.

    Raises:
        InputError: the value is blank or a URL, holds a null byte, or begins with a `~` without a
            home.
    """
    if not value.strip():
        raise InputError(f"{key} is empty: name a folder")
    if "\0" in value:
        raise InputError(f"{key}: {value} is no path, as it holds a null byte")
    try:
        return Path(local(value, key)).expanduser()
    except RuntimeError:
        raise InputError(f"{key}: {value}: ~ leads nowhere; write the path in full") from None


def find_folder(folder: Path | str, key: str, hint: str = "; check the path") -> Path:
    """Return the folder in setting `key`, with `~` expanded.

    Args:
        folder: Value of the setting.
        key: Name of the setting, for messages.
        hint: Text that follows "there is no folder …", by default advice to check the path.

    Raises:
        InputError: there is no such folder, it is a file, or it cannot be accessed.
    """
    text = str(folder)
    named = f"'{text}'" if text != text.strip() else text
    path = expanded(text, key)
    named = str(path) if text.startswith("~") else named
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise InputError(f"{key}: {broken_link(path, os.strerror(errno.ENOENT))}") from None
        trimmed = Path(text.strip()).expanduser()
        if text != text.strip() and trimmed.is_dir():
            hint = "; without the space around its name there is one"
        elif near := like(path, os.path.isdir):
            hint = near
        elif not path.is_absolute():
            named = f"{named} in {printable(os.getcwd())}"
        raise InputError(f"{key}: there is no folder {named}{hint}") from None
    except OSError as error:
        raise InputError(f"{key}: {named} cannot be read ({error.strerror})") from None
    if not stat.S_ISDIR(mode):
        advice = "name the folder that holds it"
        if re.search(r"(?i)\.(7z|rar|t[gx]z|(tar\.)?(bz2|gz|xz|zst)|tar|zip)$", str(folder)):
            advice = "unpack it and name the folder that it holds"
        raise InputError(f"{key}: {named} is a file; {advice}")
    return path


def like(path: Path, fits: Callable[[Path], bool] = os.path.lexists) -> str:
    """Return advice for a message about a path that is not there: one of a similar name, if any.

    Folders that hold runs alone are not meant: the run that tells this may have made them itself.

    Args:
        path: Path that was asked for.
        fits: Function that says whether a path can be meant.
    """
    try:
        names = [name for name in os.listdir(path.parent) if fits(path.parent / name)]
    except OSError:
        return ""
    for name in get_close_matches(path.name, names):
        if not _holds_runs_alone(path.parent / name):
            return f"; did you mean {printable(str(path.parent / name))}?"
    return ""


def _holds_runs_alone(folder: Path) -> bool:
    """Whether a folder is that of a run, or has no files but those of runs, at any depth."""
    found = False
    for _place, folders, files in os.walk(folder):
        if ".hydra" in folders:
            found = True
            folders.clear()
        elif files and {*files} != {"multirun.yaml"}:
            return False
    return found


def identity(path: Path) -> Identity:
    """Return an identifier of a file or folder that is the same for all paths and links to it.

    Raises:
        InputError: there is no such file or folder.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    return _identity(path, status)


class Files:
    """Finder of image files; collects what was passed over, for one warning by `tell`.

    Args:
        unreadable: Whether to list unreadable image files like the others, so that the error comes
            when they are opened; otherwise the first such file is an error.
    """

    def __init__(self, unreadable: bool = False) -> None:
        self._unreadable = unreadable
        self._passed_over: dict[Path, str] = {}  # extension by path
        self._again: dict[Path, Path] = {}  # other path of the same file or folder, which was read
        self._runs: list[Path] = []  # folders with pictures that runs have drawn
        self._notes: list[str] = []

    def images(self, folder: Path, recursive: bool = False, once: bool = False) -> list[Path]:
        """Return the image files in a folder, sorted by path, without the pictures of runs below.

        Args:
            folder: Folder to search.
            recursive: Whether to list the images of subfolders; if not, subfolders must hold none.
            once: Whether to list a file once if several paths lead to it; a path without links is
                preferred. Masks are listed by every path, because images may share a mask.

        Raises:
            InputError: a folder, link or file cannot be read, or images lie in a subfolder and
                `recursive` is off.
        """
        found: list[tuple[bool, str, Path]] = []  # reached by a link, for sorting, path
        visited: dict[Identity, Path] = {}
        real: list[tuple[Path, tuple[Identity, ...], bool]] = [(folder, (), False)]
        linked: list[tuple[Path, tuple[Identity, ...], bool]] = []
        while real or linked:  # linked folders come last
            here, above, by_link = real.pop() if real else linked.pop(0)
            me = identity(here)
            if me in above or (once and me in visited):  # a loop, or read before
                if once:
                    self._again[here] = visited[me]
                continue
            visited[me] = here
            for path, status in _entries(here, self._unreadable):
                link = by_link or path.is_symlink()
                if status is None:
                    found.append((link, path.as_posix(), path))
                elif stat.S_ISDIR(status.st_mode) and _is_of_run(path):
                    self._runs.append(path)
                elif stat.S_ISDIR(status.st_mode):
                    (linked if link else real).append((path, (*above, me), link))
                elif self._is_image(path, status):
                    if here != folder and not recursive:
                        raise InputError(
                            f"{path}: lies below {folder}, whose subfolders are not read; "
                            "move it up or remove it"
                        )
                    found.append((link, path.as_posix(), path))
        if once:
            found = self._distinct(found)
        return [path for _, _, path in sorted(found, key=lambda item: item[1])]

    def folders(self, folder: Path, images: bool = False) -> list[Path]:
        """Return the subfolders of a folder, sorted by name.

        Args:
            folder: Folder to search.
            images: Whether images may lie beside the subfolders.

        Raises:
            InputError: the folder cannot be read, or images lie beside the subfolders.
        """
        found = []
        for path, status in _entries(folder):
            assert status is not None
            if stat.S_ISDIR(status.st_mode):
                found.append(path)
            elif not images and self._is_image(path, status):
                raise InputError(
                    f"{path}: lies beside the folders of images in {folder}; move it into one of "
                    "them or remove it"
                )
        return found

    def note(self, text: str) -> None:
        """Add a text to the warning of `tell`."""
        self._notes.append(text)

    def note_alike(self, paths: Iterable[Path]) -> None:
        """Note files whose paths are the same text in tables: see `printable`.

        Args:
            paths: Paths of all images that will be in one table.
        """
        names = set(map(str, paths))
        if all(map(str.isprintable, names)):
            return
        rows = Counter(map(printable, names))
        if alike := [name for name, count in rows.items() if count > 1]:
            self.note(
                f"{counted(len(alike), 'path')} in tables will stand for "
                f"several files (such as {min(alike)}), because line breaks and the like are "
                "written as \\n there; rename one of each"
            )

    def passed_over(self) -> str:
        """Return a text with the numbers of files passed over, by extension; empty if none were.

        It says what to do about photographs in formats that are not read.
        """
        kinds = Counter(self._passed_over.values())
        if not kinds:
            return ""
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        total = counted(kinds.total(), "file")
        text = f"{total} passed over: {counts} (such as {min(self._passed_over)})"
        if unread := sorted(CAMERA & kinds.keys()):
            text = f"{text}; {few(unread)} cannot be read: convert such files to PNG"
        return text

    def tell(self, read: str) -> None:
        """Warn in one line of everything that was left out, if anything.

        Args:
            read: Description of the images that were read.
        """
        parts = [text] if (text := self.passed_over()) else []
        if self._again:
            path, first = min(self._again.items())
            parts.append(
                f"{len(self._again)} reached by another way too and counted once (such as {path}, "
                f"which is {first})"
            )
        if self._runs:
            found = f"{counted(len(self._runs), 'folder')} of results"
            parts.append(f"{found} passed over (such as {min(self._runs)})")
        parts += self._notes
        if parts:
            text = f"data: {'; '.join(parts)}; read: {read}"
            warnings.warn(printable(text), stacklevel=3)

    def _is_image(self, path: Path, status: os.stat_result) -> bool:
        """Whether a file is an image; other files are counted. An unreadable image is an error."""
        kind = path.suffix.lower()
        if not stat.S_ISREG(status.st_mode):
            self._passed_over[path] = "pipe or device"
            return False
        if kind not in FORMATS:
            self._passed_over[path] = printable(kind) or "without extension"
            return False
        if OWN_PICTURE.search(path.name):
            self._passed_over[path] = "pictures of predict"
            return False
        if not self._unreadable and not os.access(path, os.R_OK):
            raise InputError(f"{path}: this file is not readable; change its permissions")
        return True

    def _distinct(self, found: Sequence[tuple[bool, str, Path]]) -> list[tuple[bool, str, Path]]:
        first: dict[Identity, tuple[bool, str, Path]] = {}
        for item in sorted(found):
            me = identity(item[2])
            if me in first:
                self._again[item[2]] = first[me][2]
            else:
                first[me] = item
        return list(first.values())


def _is_of_run(folder: Path) -> bool:
    """Whether a folder is the folder of a run, or its subfolder `figures`."""
    run = folder.parent if folder.name == "figures" else folder
    marks = ("fingerprint.txt", "provenance.json")
    return all(os.path.isfile(run / name) for name in marks)  # False if it cannot be read


def _entries(
    folder: Path, unreadable: bool = False
) -> Iterator[tuple[Path, os.stat_result | None]]:
    """Yield the paths in a folder, sorted by name, with their status; links are followed.

    Hidden files and `JUNK` are left out. The status is None for an image that cannot be accessed
    if `unreadable`; otherwise such a file is an error.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise _closed(folder, error) from None
    for name in names:
        if name.startswith(".") or name.casefold() in JUNK:
            continue
        path = folder / name
        try:
            yield path, path.stat()
        except OSError as error:
            if not os.access(folder, os.X_OK):  # it names its files, and opens none
                raise _closed(folder, error) from None
            if unreadable and path.suffix.lower() in FORMATS:
                yield path, None
                continue
            if path.is_symlink():
                raise broken_link(path, error.strerror) from None
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _closed(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"{folder}: this folder cannot be read ({error.strerror}); change its permissions, or "
        "remove it"
    )


def _identity(path: Path, status: os.stat_result) -> Identity:
    # File systems without file numbers give 0.
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)
