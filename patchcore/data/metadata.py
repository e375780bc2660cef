"""Warnings of Pillow about the metadata (Exif, TIFF tags) of a file, with the file's name."""

import threading
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any, Concatenate, ParamSpec, TypeVar

from PIL import JpegImagePlugin, TiffImagePlugin

from patchcore.errors import Told, printable

P = ParamSpec("P")
T = TypeVar("T")
_reading = threading.local()
_told = Told()


def naming(read: Callable[Concatenate[Path, P], T]) -> Callable[Concatenate[Path, P], T]:
    """Make a reader of image files name the file where Pillow warns of its metadata, once a file.

    This holds for the thread that reads: Python's own ways to catch warnings hold for all threads.
    """

    @wraps(read)
    def reader(path: Path, *args: P.args, **kwargs: P.kwargs) -> T:
        outer, _reading.path = getattr(_reading, "path", None), path
        try:
            return read(path, *args, **kwargs)
        finally:
            _reading.path = outer

    return reader


def warn_of_metadata(message: Any, *args: Any, **more: Any) -> None:
    """Warn of damaged metadata of the file that this thread reads, once a file.

    Outside of a reader, the warning is `warnings.warn(message, *args, **more)`.
    """
    path = getattr(_reading, "path", None)
    if path is None:
        warnings.warn(message, *args, **more)
        return
    if _told.first(path):
        words = " ".join(str(message).split())
        warnings.warn(
            f"{printable(str(path))}: its metadata (Exif or TIFF tags) are damaged ({words}): "
            "check that it is upright, or save it again without them",
            stacklevel=2,
        )


class _Warnings(ModuleType):
    """The module `warnings` for Pillow's files that read metadata."""

    warn = staticmethod(warn_of_metadata)

    def __getattr__(self, name: str) -> Any:
        return getattr(warnings, name)


for _plugin in (JpegImagePlugin, TiffImagePlugin):
    vars(_plugin)["warnings"] = _Warnings("warnings")
