"""Parts of the documentation that are made from the code when it is built: a hook of MkDocs.

A line `{{ NAME ARGUMENT "TEXT" }}` of a page is replaced by what the function NAME of `PARTS`
returns. So options, metrics, help texts and quoted lines cannot differ from the program.
"""

import html
import importlib
import inspect
import io
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import MISSING
from importlib.resources import files
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "pages"
PART = re.compile(r'^\{\{ (\w+)(?: ([\w./-]+))?(?: "(.*)")? \}\}$', re.MULTILINE)
NAME = re.compile(r"`(patchcore(?:\.\w+)+)`")


def rendered(markdown: str) -> str:
    """Return a page with its generated parts.

    Raises:
        LookupError: A part, a name or a quoted line is not there.
    """

    def made(match: re.Match[str]) -> str:
        name, argument, text = match.groups()
        given = [each for each in (argument, text) if each is not None]
        return PARTS[name](*given)

    page = PART.sub(made, markdown)
    for name in NAME.findall(page):
        found(name)
    return page


def found(name: str) -> Any:
    """Return the module, class, function or constant of a dotted name.

    Raises:
        LookupError: There is none.
    """
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            thing: Any = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        try:
            for part in parts[count:]:
                thing = getattr(thing, part)
        except AttributeError:
            break
        return thing
    raise LookupError(f"{name}: there is no such name")


# --- parts ------------------------------------------------------------------------------------


def code(name: str, text: str) -> str:
    """Return the lines of an object's source that hold a text, with file and line.

    A statement that goes over several lines is quoted to its end.
    """
    lines, start = inspect.getsourcelines(found(name))
    at = next((i for i, line in enumerate(lines) if text in line), None)
    if at is None:
        raise LookupError(f"{name}: no line holds {text!r}")
    end = at + 1
    while _open("".join(lines[at:end])) and end < len(lines):
        end += 1
    package = importlib.import_module(name.partition(".")[0])
    source = Path(inspect.getsourcefile(inspect.unwrap(found(name))) or "")
    file = source.relative_to(Path(str(package.__file__)).parents[1])
    title = f"{name}, line {start + at} of {file}"
    quoted = inspect.cleandoc("".join(lines[at:end]))
    return f'``` {{ .python title="{title}" linenums="{start + at}" }}\n{quoted}\n```'


def _open(text: str) -> bool:
    """Whether brackets are still open at the end of a piece of source."""
    return sum(text.count(left) - text.count(right) for left, right in ("()", "[]", "{}")) > 0


def docstring(name: str) -> str:
    """Return the docstring of an object, its first line left out, as Markdown."""
    text = inspect.getdoc(found(name)) or ""
    lines = text.partition("\n")[2].strip().splitlines()
    kept = [line for line, below in zip(lines, [*lines[1:], ""], strict=True) if not _ruler(below)]
    titled = [f"### {a}" if _ruler(b) else a for a, b in zip(lines, [*lines[1:], ""], strict=True)]
    return "\n".join(line for line in titled if not _ruler(line)) if kept else ""


def _ruler(line: str) -> bool:
    return bool(line) and set(line) == {"-"}


def include(path: str) -> str:
    """Return a file of the project without its title, its relative links as plain text."""
    text = (ROOT / path).read_text(encoding="utf-8").partition("\n")[2]
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]+\)", r"\1", text)


def settings() -> str:
    """Return tables of all settings: key, type, default, unit and range, help."""
    from patchcore.commands.settings_help import default_text, options, type_name
    from patchcore.settings import allowed_range

    groups: dict[str, list[str]] = {}
    for named, option, kind in options():
        key, _, choices = named.partition(" ")
        default = default_text(key, option).removeprefix(" = ")
        if not default and option.default is MISSING and option.default_factory is MISSING:
            default = "by choice"
        bounds = [str(option.metadata.get("unit", "")), allowed_range(option)]
        text = str(option.metadata.get("help", ""))
        if choices:
            text += f" {choices}"
        cells = [f"`{key}`", type_name(kind).replace("|", ", "), f"`{default}`" if default else ""]
        cells += ["; ".join(each for each in bounds if each), _effect(option), plain(text)]
        groups.setdefault(key.partition(".")[0] if "." in key else "", []).append(_row(cells))
    head = _row(["key", "type", "default", "unit; range", "changes results", "meaning"])
    parts = []
    for group, rows in sorted(groups.items()):
        title = f"## `{group}`" if group else "## Of the run itself"
        parts.append("\n".join([title, "", head, _rule(6), *rows]))
    return "\n\n".join(parts)


def _effect(option: Any) -> str:
    effect = option.metadata.get("effect", True)
    return "depends" if callable(effect) else "yes" if effect else "no"


def choices() -> str:
    """Return a list of every group's choices, with the words on top of a file or class."""
    from patchcore.commands import overrides
    from patchcore.commands.groups import SCHEMAS
    from patchcore.tracking import TRACKERS

    parts = []
    for group, names in sorted(overrides.choices().items()):
        if "/" in group.removeprefix("hydra/") or group == "hydra":
            continue
        rows = []
        for name in names:
            if name in SCHEMAS.get(group, {}):
                words = _first_sentence(SCHEMAS[group][name])
            elif group == "logger":
                words = _first_sentence(type(TRACKERS[name])) if name in TRACKERS else "no tracker"
            else:
                words = _head(group, name)
            rows.append(_row([f"`{name}`", words]))
        parts.append("\n".join([f"## `{group}`", "", _row(["choice", ""]), _rule(2), *rows]))
    return "\n\n".join(parts)


def _first_sentence(thing: Any) -> str:
    return " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())


def _head(group: str, name: str) -> str:
    """Return the comment on top of a settings file, without its commands."""
    text = files("patchcore.conf").joinpath(f"{group}/{name}.yaml").read_text(encoding="utf-8")
    lines = []
    for line in text.splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        if not line.startswith("#   "):
            lines.append(line.lstrip("# "))
    return plain(" ".join(lines))


def metrics() -> str:
    """Return a table of all metrics, from their declarations."""
    from patchcore.metrics import METRICS

    rows = [_row(["key", "title", "of", "better", "range", "unit", "objective"]), _rule(7)]
    for key, measure in METRICS.items():
        bounds = [f"{x:g}" if abs(x) != float("inf") else "" for x in (measure.low, measure.high)]
        within = f"{bounds[0]} to {bounds[1]}" if all(bounds) else ""
        within = within or (f"from {bounds[0]}" if bounds[0] else "")
        objective = "yes" if measure.objective else ""
        cells = [f"`{key}`", measure.title, measure.of, measure.better, within, measure.unit]
        rows.append(_row([*cells, objective]))
    return "\n".join(rows)


def commands() -> str:
    """Return a section for every command, with its help."""
    from patchcore.commands import COMMANDS

    return "\n\n".join(f"## {name}\n\n{_help(name)}" for name in COMMANDS)


def _help(name: str) -> str:
    """Return what `patchcore NAME --help` prints; of `train` the part before its lists."""
    if name == "train":
        from patchcore.commands.settings_help import USAGE

        return f"```text\n{USAGE.strip()}\n```"
    before, sys.argv = sys.argv, ["patchcore", "--help"]
    try:
        with redirect_stdout(io.StringIO()) as told, suppress(SystemExit):
            sys.argv = [f"patchcore {name}", "--help"]
            importlib.import_module(f"patchcore.commands.{name}").main()
    finally:
        sys.argv = before
    return f"```text\n{told.getvalue().strip()}\n```"


def plain(text: str) -> str:
    """Return text as Markdown that shows it as it is: braces would be taken for attributes."""
    shown = html.escape(text, quote=False)
    return shown.replace("{", "&#123;").replace("}", "&#125;")


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _rule(columns: int) -> str:
    return _row(["---"] * columns)


PARTS: dict[str, Callable[..., str]] = {
    "code": code,
    "docstring": docstring,
    "include": include,
    "settings": settings,
    "choices": choices,
    "metrics": metrics,
    "commands": commands,
}


# --- hook -------------------------------------------------------------------------------------


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill a page in, before MkDocs turns it into HTML."""
    return rendered(markdown)


FORMULA = re.compile(
    r'<(span|div) class="arithmatex">(?:\\\((?P<inline>.*?)\\\)|\\\[(?P<block>.*?)\\\])</\1>',
    re.DOTALL,
)


def on_page_content(html: str, **_: Any) -> str:
    """Turn formulas into MathML, which browsers draw without any script."""
    return FORMULA.sub(_mathml, html)


def _mathml(match: re.Match[str]) -> str:
    from latex2mathml.converter import convert

    formula = match["inline"] or match["block"]
    display = "inline" if match["inline"] else "block"
    made: str = convert(html.unescape(formula).strip(), display=display)
    return made if display == "inline" else f"<div>{made}</div>"


def pages() -> Iterator[Path]:
    """Yield all pages as they are written."""
    yield from sorted(PAGES.rglob("*.md"))
