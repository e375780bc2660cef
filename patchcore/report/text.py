"""Writers of a report's sections as Markdown and CSV."""

import csv
import io
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from patchcore.report.blocks import (
    MARKDOWN,
    POINTS_CSV,
    RUNS_CSV,
    Block,
    Cell,
    Grid,
    Head,
    Heading,
    Lines,
    Note,
)
from patchcore.report.cells import harmless, markdown_code, markdown_text
from patchcore.report.sections import sections
from patchcore.report.sentences import sentence
from patchcore.report.table import Table
from patchcore.report.words import show


def markdown(table: Table) -> str:
    """Return the report as Markdown, from what varied to the runs that did not finish."""
    parts = ["# PatchCore report", sentence(table)]
    for section in sections(table, forms=(MARKDOWN,)):
        parts.append(f"## {markdown_text(section.title)}")
        parts += [_block(block) for block in section.of(MARKDOWN)]
    return "\n\n".join(parts) + "\n"


def points_csv(table: Table) -> str:
    """Return CSV with one row per point, in full precision; undefined values are empty."""
    return _csv(table, POINTS_CSV)


def runs_csv(table: Table) -> str:
    """Return CSV with one row per run, in the same format as `points_csv`."""
    return _csv(table, RUNS_CSV)


def write_tables(table: Table, folder: Path) -> None:
    """Write report.md, report.csv (points) and runs.csv."""
    write_text(folder / "report.md", markdown(table))
    write_text(folder / "report.csv", points_csv(table))
    write_text(folder / "runs.csv", runs_csv(table))


def write_text(path: Path, text: str) -> None:
    """Write a file in one step: it is never incomplete, and a link is replaced, not followed."""
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".part", dir=path.parent)
    try:
        with open(handle, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.write(text)
        Path(name).chmod(0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _block(block: Block) -> str:
    """Return a block in Markdown."""
    match block:
        case Note():
            return markdown_text(block.text)
        case Heading():
            words = [markdown_code(x) if x in block.keys else markdown_text(x) for x in block.words]
            return f"### {' '.join(words)}"
        case Lines():
            lines = "\n".join(f"- {_line(line)}" for line in block.lines)
            return f"### {markdown_text(block.name)}\n\n{lines}" if block.name else lines
        case Grid():
            return _grid(block)
    raise TypeError(f"{type(block).__name__} has no form in Markdown")


def _line(line: str | tuple[str, str]) -> str:
    if isinstance(line, str):
        return markdown_text(line)
    return f"{markdown_code(line[0])}: {markdown_text(line[1])}"


def _grid(grid: Grid) -> str:
    """Return a table in Markdown, with columns sorted by `Head.place`."""
    columns: list[tuple[int, int, Head]] = [
        (head.place, i, head) for i, head in enumerate(grid.heads) if head.place is not None
    ]
    columns.sort(key=lambda column: column[:2])
    lines = [[markdown_text(head.text) for *_, head in columns], ["---"] * len(columns)]
    lines += [[_cell(row[i]) for _, i, _ in columns] for row in grid.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(cell: Cell) -> str:
    text = markdown_code(cell.text) if cell.mark else markdown_text(cell.text)
    return " ".join(filter(None, [text, markdown_text(cell.note)]))


def _csv(table: Table, form: str) -> str:
    """Return the only table of a form as CSV."""
    ((grid,),) = (section.of(form) for section in sections(table, forms=(form,)))
    assert isinstance(grid, Grid)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([_field(head.text) for head in grid.heads])
    for row in grid.rows:
        writer.writerow([_field(cell.value) for cell in row])
    return file.getvalue()


def _field(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str | list | dict | bool):
        return harmless(value if isinstance(value, str) else show(value))
    return value
