"""Blocks that a report is made of: content without a form, which templates and writers give it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from patchcore.report.points import Factor, Point, Summary
from patchcore.report.table import Table
from patchcore.report.words import falls, number, show, title

PAGE, MARKDOWN, POINTS_CSV, RUNS_CSV = "page", "markdown", "report.csv", "runs.csv"
"""Forms of a report."""


@dataclass
class Head:
    """Header of a column.

    Attributes:
        first: The order that a first click sorts in, `ascending` or `descending`; empty for none.
        now: Whether the table starts in that order.
        kind: Class of the cell in the page.
        code: Whether the text is a key.
        breaks: Whether it may break after dots and underscores.
        place: Group of the column in Markdown, which has them in this order; None for none there.
        key: Metric or setting that the column holds; the page hides columns by it.
    """

    text: str
    first: str = ""
    now: bool = False
    kind: str = ""
    code: bool = False
    breaks: bool = False
    place: int | None = 0
    key: str = ""


@dataclass
class Cell:
    """Cell of a table.

    Attributes:
        sort: Text that is sorted by; None where the column is not sorted.
        kind: Class of the cell in the page.
        hint: Shown on hovering.
        note: Smaller, behind the text.
        heads: Whether it is the row's header.
        mark: `code` for a key, `path` for a folder.
        gallery: Anchor of a gallery that a button opens.
        value: The same in full precision, for CSV.
    """

    text: str
    sort: str | None = None
    kind: str = ""
    hint: str = ""
    note: str = ""
    heads: bool = False
    mark: str = ""
    gallery: str = ""
    value: Any = None


@dataclass
class Block:
    """Part of a section; `forms` are those that have it."""

    forms: tuple[str, ...] = field(default=(PAGE, MARKDOWN, POINTS_CSV, RUNS_CSV), kw_only=True)

    @property
    def form(self) -> str:
        """Name of the macro in the template that writes it."""
        return type(self).__name__.lower()


@dataclass
class Note(Block):
    """Sentences about what follows, or instead of it where they are plain."""

    text: str
    plain: bool = False


@dataclass
class Heading(Block):
    """Heading inside a section; keys among its words are code."""

    words: list[str]
    keys: tuple[str, ...] = ()


@dataclass
class Lines(Block):
    """List of sentences; each is a text, or a name and a text."""

    name: str
    lines: Sequence[str | tuple[str, str]]


@dataclass
class Grid(Block):
    """Table; one with a name is a region that can be scrolled to.

    Attributes:
        of: Kind of thing that the rows stand for, `point` or `run`; empty for neither.
        ids: The place of each row's point or run in the page's data.
    """

    heads: list[Head]
    rows: list[list[Cell]]
    kind: str = ""
    name: str = ""
    of: str = ""
    ids: list[int] = field(default_factory=list)


@dataclass
class Forest(Block):
    """Values with their intervals around zero, one below the other, drawn without a script."""

    @dataclass
    class Row:
        """A value, half its interval and both in words; `kind` is good, bad or neither."""

        name: str
        value: float
        half: float
        text: str
        kind: str = ""

    name: str
    rows: list[Row]
    forms: tuple[str, ...] = field(default=(PAGE,), kw_only=True)

    @property
    def reach(self) -> float:
        """Largest distance from zero that is drawn."""
        return max((abs(row.value) + row.half for row in self.rows), default=0.0) or 1.0


@dataclass
class Chart(Block):
    """Chart that the page's script draws from the page's data; only the page has it.

    Attributes:
        kind: Key of the function that makes it, in charts.js.
        part: Place of the part of the table that it shows.
        caption: Its name, which is read aloud.
    """

    kind: str
    part: int
    caption: str
    forms: tuple[str, ...] = field(default=(PAGE,), kw_only=True)


@dataclass
class Panel(Block):
    """Place that the page's script fills: a run (`run`), two side by side (`pair`)."""

    kind: str
    forms: tuple[str, ...] = field(default=(PAGE,), kw_only=True)


@dataclass
class Thumb:
    """Gallery of a run, small; `uri` holds the picture."""

    anchor: str
    uri: str
    name: str
    note: str


@dataclass
class Gallery(Block):
    """Galleries of runs; a click shows one large."""

    thumbs: list[Thumb]


@dataclass
class Fold(Block):
    """Blocks that are shown on demand."""

    summary: str
    blocks: list[Block]


@dataclass
class Section:
    """Section of a report.

    Attributes:
        key: Anchor in the page.
        blocks: Content; a section without any is left out.
        forms: Forms that have it.
    """

    key: str
    title: str
    blocks: list[Block]
    forms: tuple[str, ...] = (PAGE,)

    def of(self, form: str) -> list[Block]:
        """Blocks that a form has."""
        return [block for block in self.blocks if form in block.forms] if form in self.forms else []


def best_first(metric: str) -> str:
    """The order that puts the best on top."""
    return "ascending" if falls(metric) else "descending"


def metric_head(metric: str, now: bool = False) -> Head:
    """Header of a metric's column."""
    return Head(title(metric), best_first(metric), now, place=2, key=metric)


def key_head(key: str, kind: str = "") -> Head:
    """Header of a setting's column."""
    return Head(key, "ascending", kind=kind, breaks=True, place=1, key=key)


def text_head(text: str, kind: str = "text") -> Head:
    """Header of a column that is not sorted."""
    return Head(text, kind=kind)


def factor_heads(table: Table) -> list[Head]:
    """Headers of the columns that tell points apart."""
    return [key_head(factor.key, side(factor)) for factor in table.factors]


def side(factor: Factor) -> str:
    """Class of a factor's cells: numbers stand right, words left."""
    return "" if factor.numbers else "text"


def setting_cell(value: object, kind: str = "") -> Cell:
    """Cell of a setting."""
    return Cell(show(value), "" if value is None else show(value), kind, value=value)


def setting_cells(table: Table, point: Point) -> list[Cell]:
    """Cells that tell a point from others."""
    return [setting_cell(point.settings[f.key], side(f)) for f in table.factors]


def text_cell(text: str, kind: str = "") -> Cell:
    """Cell of words."""
    return Cell(text, text, f"text {kind}".strip(), value=text)


def value_cell(value: float, text: str, hint: str = "", kind: str = "", note: str = "") -> Cell:
    """Cell of a number; NaN sorts last."""
    return Cell(text, "" if math.isnan(value) else repr(value), kind, hint, note, value=value)


def summary_cell(value: Summary, metric: str, kind: str = "", note: str = "") -> Cell:
    """Cell of a mean with half its interval."""
    if not value.defined:
        return value_cell(math.nan, "undefined", value.reason, f"undefined {kind}".strip(), note)
    half = "" if math.isnan(value.half) else f"± {number(metric, value.half)}"
    notes = " ".join(filter(None, [half, note]))
    return value_cell(value.mean, number(metric, value.mean), "", kind, notes)


def row_head(text: str, kind: str = "", mark: str = "", sort: str | None = None) -> Cell:
    """Header cell of a row."""
    return Cell(text, sort, kind, heads=True, mark=mark, value=text)


def short(point: Point, factors: Sequence[Factor]) -> str:
    """A point in few words: words stand for themselves, numbers have the end of their key."""
    keys = [factor.key for factor in factors]
    ends = [key.split(".")[-1] for key in keys]
    names = [end if ends.count(end) == 1 else key for end, key in zip(ends, keys, strict=True)]
    return ", ".join(
        value if isinstance(value := point.settings[key], str) else f"{name}={show(value)}"
        for name, key in zip(names, keys, strict=True)
    )
