"""Sources of data sets: their owners' pages, licences and archives."""

from collections.abc import Mapping
from dataclasses import dataclass, field

NON_COMMERCIAL = "CC BY-NC-SA 4.0: not for commercial use"


@dataclass(frozen=True)
class Archive:
    """Archive file to download."""

    url: str | None  # None: the owners offer no direct link
    holds: tuple[str, ...]  # names at its top, or in a folder at its top
    sha256: str | None = None  # as in anomalib 2; None: not known


@dataclass(frozen=True)
class Source:
    """Source of a data set, as a whole or by category."""

    page: str  # address of the owners' page
    licence: str
    archive: Archive  # of the whole data set
    categories: Mapping[str, Archive] = field(default_factory=dict)  # of single categories
