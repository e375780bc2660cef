"""A table of runs as one self-contained HTML page.

Tables are HTML, and galleries are JPEGs inside the page. Vega-Lite draws the charts; its scripts,
from vendor/, are also inside the page, and so are the data for charts, filters and runs, as JSON.
Tables and galleries also show without scripts. The templates beside this file make the HTML; they
escape every value.
"""

import json
import re
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from patchcore.errors import InputError, printable
from patchcore.outputs import check_folder
from patchcore.report.blocks import PAGE
from patchcore.report.galleries import GALLERY_BYTES
from patchcore.report.pagedata import page_data
from patchcore.report.pictured import Pictured
from patchcore.report.sections import facts, sections
from patchcore.report.sentences import sentence
from patchcore.report.table import Table
from patchcore.report.text import write_tables, write_text
from patchcore.report.written import REPORT, check_own

VENDOR = Path(__file__).parent / "vendor"
SCRIPTS = ("vega.min.js", "vega-lite.min.js", "vega-embed.min.js")
"""Files of VENDOR, in the order of their dependencies."""
FILES = (*REPORT,)
"""Files of a report."""


def check_report(folder: Path, option: str) -> None:
    """Refuse a folder to which `write_report` could not write.

    Args:
        folder: Folder to write to.
        option: Option that names it, for the message.

    Raises:
        InputError: The folder cannot be made or written to, a file of the report is a folder, or
            it would replace a file that no report has written.
    """
    check_folder(folder, option)
    for name in FILES:
        if (folder / name).is_dir():
            raise InputError(f"{option}: {folder / name} is a folder: name another --out")
    check_written(folder)


def check_written(folder: Path) -> None:
    """Refuse a folder in which a report would replace a file that no report has written.

    Raises:
        InputError: The file is named.
    """
    check_own(folder, REPORT, "a report", "name another folder with --out DIR")


def write_report(table: Table, folder: Path) -> Path:
    """Write report.html, report.md, report.csv and runs.csv; return the path of the page.

    Raises:
        InputError: Such a file is there, and no report has written it.
    """
    check_written(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tables(table, folder)
    path = folder / FILES[0]
    write_text(path, page(table, folder=folder))
    return path


def page(table: Table, gallery_bytes: int = GALLERY_BYTES, folder: Path | None = None) -> str:
    """Return the HTML of the whole page.

    Args:
        table: Runs.
        gallery_bytes: Size of all galleries together; those of the best points have priority.
        folder: Folder of the page, for relative links to the runs' folders; None: no links.
    """
    runs = [run for part in table.parts for point in part.points for run in point.finished]
    return (
        _templates()
        .get_template("page.html")
        .render(
            name=printable(table.root.name),
            sentence=sentence(table),
            facts=facts(table),
            sections=[(each, each.of(PAGE)) for each in sections(table, gallery_bytes)],
            data=script_json(page_data(table, folder, Pictured(runs))),
            vendored=[vendored(name) for name in SCRIPTS],
            root=printable(str(table.root)),
            when=f"{datetime.now():%Y-%m-%d %H:%M}",
        )
    )


def script_json(content: Any) -> Markup:
    """Return JSON for a `<script>` element, escaped so that it cannot end it or begin markup."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return Markup(re.sub("[<>&]", lambda sign: f"\\u{ord(sign[0]):04x}", text))


@cache
def vendored(name: str) -> Markup:
    """Return a script of VENDOR, without the reference to its source map, which is not included."""
    text = (VENDOR / name).read_text("utf-8")
    return Markup(re.sub(r"//# sourceMappingURL=\S+\s*$", "", text))


@cache
def _templates() -> Environment:
    found = Environment(
        loader=PackageLoader("patchcore.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["pieces"] = _pieces
    return found


def _pieces(key: str) -> list[str]:
    """Return the pieces of a dotted key, between which a narrow column may break the line."""
    return re.findall(r"[^._]*[._]|[^._]+", key)
