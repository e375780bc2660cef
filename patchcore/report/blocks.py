"""Blocks of a report: content without layout, which templates and writers then format."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from patchcore.report.points import Factor, Point, Summary
from patchcore.report.table import Table
from patchcore.report.words import falls, number, show, title

PAGE, MARKDOWN, POINTS_CSV, RUNS_CSV = "page", "markdown", "report.csv", "runs.csv"
"""Forms of a report: the files that a block may appear in."""
PARTIAL = (
    "* Runs are missing, did not finish or have no such metric, so this mean leaves out some "
    "settings, categories or seeds."
)
"""Note on the mark of a mean over an incomplete set of runs."""


@dataclass
class Head:
    """Header of a column.

    Attributes:
        text: Name of the column.
        first: Sort order after the first click, `ascending` or `descending`; empty: not sortable.
        now: Whether the table is sorted by this column at first.
        kind: CSS class of the cell in the page.
        code: Whether the text is a key.
        breaks: Whether the text may break after dots and underscores.
        place: Sort key of the column in Markdown; None: Markdown leaves the column out.
        key: Metric or setting in the column, by which the page can hide it.
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
        text: Content as it is shown.
        sort: Text to sort by; None if the column is not sorted.
        kind: CSS class of the cell in the page.
        hint: Tooltip.
        note: Small text after the content.
        heads: Whether the cell is the row's header.
        mark: `code` for a key, `path` for a folder.
        gallery: Anchor of a gallery; the cell then is a button that opens it.
        value: Content in full precision, for CSV.
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
    """Part of a section, which appears in the forms `forms`."""

    forms: tuple[str, ...] = field(default=(PAGE, MARKDOWN, POINTS_CSV, RUNS_CSV), kw_only=True)

    @property
    def form(self) -> str:
        """Name of the macro in the template that writes it."""
        return type(self).__name__.lower()


@dataclass
class Note(Block):
    """Explanation of the next block; a `plain` one stands in place of a block."""

    text: str
    plain: bool = False


@dataclass
class Heading(Block):
    """Heading inside a section; words that are in `keys` are formatted as code."""

    words: list[str]
    keys: tuple[str, ...] = ()


@dataclass
class Lines(Block):
    """List of lines; each is a text, or a name and a text."""

    name: str
    lines: Sequence[str | tuple[str, str]]


@dataclass
class Grid(Block):
    """Table.

    Attributes:
        kind: CSS classes of the table in the page.
        name: Name of the table for screen readers; it then is a landmark region.
        of: Meaning of a row, `point` or `run`; empty for neither.
        ids: Index of each row's point or run in the page's data.
    """

    heads: list[Head]
    rows: list[list[Cell]]
    kind: str = ""
    name: str = ""
    of: str = ""
    ids: list[int] = field(default_factory=list)


@dataclass
class Forest(Block):
    """Forest plot: one value with its interval per row, around zero, drawn without a script."""

    @dataclass
    class Row:
        """A value, half the width of its interval, and both as text; `kind` is good, bad or ""."""

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
        """Largest distance from zero in the plot, intervals included."""
        return max((abs(row.value) + row.half for row in self.rows), default=0.0) or 1.0


@dataclass
class Chart(Block):
    """Chart that the page's script draws from the page's data; only the page has it.

    Attributes:
        kind: Key of the function in charts.js that draws the chart.
        part: Index of the part of the table that the chart shows.
        caption: Name of the chart, also for screen readers.
    """

    kind: str
    part: int
    caption: str
    forms: tuple[str, ...] = field(default=(PAGE,), kw_only=True)


@dataclass
class Panel(Block):
    """Place that the page's script fills: with a run (`run`) or two runs side by side (`pair`)."""

    kind: str
    forms: tuple[str, ...] = field(default=(PAGE,), kw_only=True)


@dataclass
class Thumb:
    """Thumbnail of a run's gallery; `uri` is the picture as a data URI."""

    anchor: str
    uri: str
    name: str
    note: str


@dataclass
class Gallery(Block):
    """Galleries of runs as thumbnails; a click enlarges one."""

    thumbs: list[Thumb]


@dataclass
class Fold(Block):
    """Blocks that are folded away under a summary."""

    summary: str
    blocks: list[Block]


@dataclass
class Section:
    """Section of a report.

    Attributes:
        key: Anchor in the page.
        title: Heading.
        blocks: Content; a section without blocks is left out.
        forms: Forms in which the section appears.
    """

    key: str
    title: str
    blocks: list[Block]
    forms: tuple[str, ...] = (PAGE,)

    def of(self, form: str) -> list[Block]:
        """Return the blocks that appear in a form."""
        return [block for block in self.blocks if form in block.forms] if form in self.forms else []


def best_first(metric: str) -> str:
    """Return the sort order that puts the best value on top."""
    return "ascending" if falls(metric) else "descending"


def metric_head(metric: str, now: bool = False) -> Head:
    """Return the header of a metric's column."""
    return Head(title(metric), best_first(metric), now, place=2, key=metric)


def key_head(key: str, kind: str = "") -> Head:
    """Return the header of a setting's column."""
    return Head(key, "ascending", kind=kind, breaks=True, place=1, key=key)


def text_head(text: str, kind: str = "text") -> Head:
    """Return the header of a column that is not sorted."""
    return Head(text, kind=kind)


def factor_heads(table: Table) -> list[Head]:
    """Return the headers of the settings by which points differ."""
    return [key_head(factor.key, side(factor)) for factor in table.shown]


def side(factor: Factor) -> str:
    """Return the CSS class of a factor's cells: numbers are aligned right, words left."""
    return "" if factor.numbers else "text"


def setting_cell(value: object, kind: str = "") -> Cell:
    """Return the cell of a setting."""
    return Cell(show(value), "" if value is None else show(value), kind, value=value)


def setting_cells(table: Table, point: Point) -> list[Cell]:
    """Return the cells with a point's values of the settings by which points differ."""
    return [setting_cell(point.settings[f.key], side(f)) for f in table.shown]


def text_cell(text: str, kind: str = "") -> Cell:
    """Return a cell of text."""
    return Cell(text, text, f"text {kind}".strip(), value=text)


def value_cell(value: float, text: str, hint: str = "", kind: str = "", note: str = "") -> Cell:
    """Return the cell of a number; NaN sorts last."""
    return Cell(text, "" if math.isnan(value) else repr(value), kind, hint, note, value=value)


def summary_cell(value: Summary, metric: str, kind: str = "", note: str = "") -> Cell:
    """Return the cell of a mean, with half the width of its interval."""
    if not value.defined:
        return value_cell(math.nan, "undefined", value.reason, f"undefined {kind}".strip(), note)
    half = "" if math.isnan(value.half) else f"± {number(metric, value.half)}"
    notes = " ".join(filter(None, [f"{half}{'*' * value.partial}", note]))
    return value_cell(value.mean, number(metric, value.mean), "", kind, notes)


def partial_notes(values: Iterable[Summary]) -> list[Block]:
    """Return the note on the mark of `summary_cell`, if some of the values have it."""
    marked = any(value.partial and value.defined for value in values)
    return [Note(PARTIAL)] if marked else []


def row_head(text: str, kind: str = "", mark: str = "", sort: str | None = None) -> Cell:
    """Return the header cell of a row."""
    return Cell(text, sort, kind, heads=True, mark=mark, value=text)


def short(point: Point, factors: Sequence[Factor]) -> str:
    """Return a short name of a point: text values alone, numbers with the last part of their key.

    A key stays whole if several keys end alike.
    """
    keys = [factor.key for factor in factors]
    ends = [key.split(".")[-1] for key in keys]
    names = [end if ends.count(end) == 1 else key for end, key in zip(ends, keys, strict=True)]
    return ", ".join(
        value if isinstance(value := point.settings[key], str) else f"{name}={show(value)}"
        for name, key in zip(names, keys, strict=True)
    )
