"""Image that could not be inspected, in place of a result."""

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from patchcore.errors import InputError

RESULTS = {"size", "score", "map", "p_value", "anomalous", "regions", "files", "counted"}
RESULTS |= {"values"}
"""Attributes of `patchcore.inspection.Inspection` that such an image lacks."""


class NotInspectedError(InputError, AttributeError):
    """Error: a result was read of an image that has none."""


@dataclass(frozen=True)
class Broken:
    """An image that could not be inspected, and why, in one line that begins with its path.

    Reading a result of it, such as `score`, raises `NotInspectedError`.
    """

    path: Path
    reason: str

    def __getattr__(self, name: str) -> NoReturn:
        if name in RESULTS:
            raise NotInspectedError(
                f"{self.reason} (it has no {name}: skip results that are of "
                "patchcore.inspection.Broken, or give predict stop=True)"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
