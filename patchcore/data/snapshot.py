"""Files of a run as they were when it began, so that none can change under its hands."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from patchcore.digests import Signature, file_digest, signature
from patchcore.errors import InputError

T = TypeVar("T")


class ChangedError(InputError):
    """A file is not what it was when the run began; with the files as they are now it may work."""


@dataclass(frozen=True)
class Snapshot:
    """Contents of files at one moment.

    Attributes:
        digests: {path: digest of its contents}.
        signatures: {path: signature that goes with them}.
    """

    digests: dict[Path, str]
    signatures: dict[Path, Signature]

    @classmethod
    def of(cls, paths: Iterable[Path]) -> Self:
        """Take the snapshot of files. Raises InputError if one cannot be read."""
        digests, signatures = {}, {}
        for path in dict.fromkeys(paths):
            signatures[path] = _signature(path)  # first: a change while it is read must show
            digests[path] = file_digest(path)
        return cls(digests, signatures)

    def digest(self, path: Path) -> str:
        """Return the digest of a file's contents at that moment, or now if it is not among them."""
        return self.digests.get(path) or file_digest(path)

    def read(self, paths: Iterable[Path], reader: Callable[[], T]) -> T:
        """Return what `reader` makes of files, none of which differs from the snapshot.

        Files that were only touched, or put back, are read: their contents are compared.

        Raises:
            ChangedError: One differs, or changes while it is read.
            InputError: One is gone.
        """
        watched = [path for path in paths if path in self.digests]
        for _ in range(3):
            before = [_signature(path) for path in watched]
            for path, found in zip(watched, before, strict=True):
                self._compare(path, found)
            try:
                value = reader()
            except InputError:  # what a file has changed to may be unreadable
                for path in watched:
                    self._compare(path, _signature(path))
                raise
            after = [_signature(path) for path in watched]
            if before == after:
                return value
        settled = [x == y for x, y in zip(before, after, strict=True)]
        raise _changed(watched[settled.index(False)])

    def check(self) -> None:
        """Raise ChangedError if a file that is still there differs from the snapshot."""
        for path in self.digests:
            try:
                found = signature(path)
            except OSError:  # it has gone: what was made of it was made of the right contents
                continue
            self._compare(path, found)

    def _compare(self, path: Path, found: Signature) -> None:
        if found != self.signatures[path] and file_digest(path) != self.digests[path]:
            raise _changed(path)


def _signature(path: Path) -> Signature:
    try:
        return signature(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _changed(path: Path) -> ChangedError:
    return ChangedError(
        f"{path}: the file changed while the run was under way, so none of its numbers is kept; "
        "run it again"
    )
