"""A table of runs as one HTML page that needs nothing but itself.

Tables are HTML, charts inline SVG, galleries JPEGs inside the page. The only script sorts tables
and opens galleries (page.js); without it everything but that still shows. The HTML is that of the
templates beside this file, which escape all that they are given.
"""

import re
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from patchcore.errors import printable
from patchcore.report.blocks import PAGE
from patchcore.report.charts import Drawing, outline
from patchcore.report.galleries import GALLERY_BYTES
from patchcore.report.sections import facts, sections
from patchcore.report.sentences import sentence
from patchcore.report.table import Table
from patchcore.report.text import write_tables, write_text


def write_report(table: Table, folder: Path) -> Path:
    """Write report.html, report.md, report.csv and runs.csv; return the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tables(table, folder)
    path = folder / "report.html"
    write_text(path, page(table))
    return path


def page(table: Table, gallery_bytes: int = GALLERY_BYTES) -> str:
    """Return the whole page; its galleries share `gallery_bytes`, the best points' first."""
    return render(
        "page.html",
        name=printable(table.root.name),
        sentence=sentence(table),
        facts=facts(table),
        sections=[(each, each.of(PAGE)) for each in sections(table, gallery_bytes)],
        root=printable(str(table.root)),
        when=f"{datetime.now():%Y-%m-%d %H:%M}",
    )


def figure(drawing: Drawing) -> str:
    """Return a chart as an `<svg>`."""
    return render("figure.html", drawing=drawing)


def render(template: str, **values: Any) -> str:
    """Return what a template makes of values, all of them escaped."""
    return _templates().get_template(template).render(values)


@cache
def _templates() -> Environment:
    found = Environment(
        loader=PackageLoader("patchcore.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals["outline"] = outline
    found.filters["pieces"] = _pieces
    return found


def _pieces(key: str) -> list[str]:
    """Return the pieces of a dotted key that a narrow column may put on lines of their own."""
    return re.findall(r"[^._]*[._]|[^._]+", key)
