"""Sources of data sets: their owners' pages, licences and archives."""

from collections.abc import Mapping
from dataclasses import dataclass, field

NON_COMMERCIAL = "CC BY-NC-SA 4.0: not for commercial use"


@dataclass(frozen=True)
class Archive:
    """One file to download."""

    url: str | None  # null: its owners offer no direct link
    holds: tuple[str, ...]  # folders at its top, or in the one folder there
    sha256: str | None = None  # null: none is known; the others are those that anomalib 2 states


@dataclass(frozen=True)
class Source:
    """Source of a data set, whole or by category."""

    page: str
    licence: str
    archive: Archive
    categories: Mapping[str, Archive] = field(default_factory=dict)
