"""`patchcore train --help`: groups, their choices and every option, from the declarations."""

import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, field, fields, is_dataclass
from enum import Enum
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from patchcore.commands.groups import SCHEMAS
from patchcore.commands.overrides import choices
from patchcore.config import Config
from patchcore.settings import allowed_range

USAGE = """\
usage: patchcore train [OPTION=VALUE …] [--multirun] [--cfg job]

Fit a method to nominal images, test it, and write the results to a folder.

examples:
  patchcore train                                          generated images
  patchcore train data=folder data.root=DIR                images of your own
  patchcore train data=mvtec data.root=DIR data.category=bottle coreset=random
  patchcore train --multirun patch.size=1,3,5 seed=0,1,2   every combination
  patchcore train --multirun experiment=paper/table_1 data.root=DIR
  patchcore train method=spade --cfg job   show all settings, run nothing
"""
COLUMN = 24  # column where help texts begin


def settings_help(width: int | None = None) -> str:
    """Return the help: examples, the choices of every group, and every option.

    Args:
        width: Largest width of a line, in characters; 0: one line per group or option, for `grep`.
            By default that of the terminal, at most 100; 0 if stdout is not a terminal.
    """
    if width is None:
        width = min(shutil.get_terminal_size().columns, 100) if sys.stdout.isatty() else 0
    lines = [*USAGE.splitlines(), "", "groups: GROUP=CHOICE sets all settings of the choice"]
    for group, names in sorted(choices().items()):
        if group == group.partition("/")[0] != "hydra" or group.startswith("hydra/"):
            lines += _entry(group, ", ".join(names), width)
    lines += ["", "options: type = default, text [unit; range]; (only with these choices)"]
    for key, option, kind in options():
        head = f"{key}: {type_name(kind)}{default_text(key, option)}"
        lines += _entry(head, _said(option), width)
    lines += ["", "hydra.*: folders, launchers and sweepers, see patchcore train --hydra-help"]
    return "\n".join(lines)


def options() -> Iterator[tuple[str, Field[Any], Any]]:
    """Yield key, declaration and type of every option, including those of each choice."""
    kinds = get_type_hints(Config)
    for option in fields(Config):
        if option.name in SCHEMAS:
            yield from _choices_options(option.name, SCHEMAS[option.name])
        elif is_dataclass(kinds[option.name]):
            yield from _group_options(option.name, kinds[option.name])
        else:
            yield option.name, option, kinds[option.name]


def _group_options(group: str, kind: Any) -> Iterator[tuple[str, Field[Any], Any]]:
    kinds = get_type_hints(kind)
    for option in fields(kind):
        if is_dataclass(kinds[option.name]):
            yield from _group_options(f"{group}.{option.name}", kinds[option.name])
        else:
            yield f"{group}.{option.name}", option, kinds[option.name]


def _choices_options(
    group: str, registry: Mapping[str, Any]
) -> Iterator[tuple[str, Field[Any], Any]]:
    """Yield each option of a group's choices once, with the choices that have it."""
    found = {
        name: {key: (option, kind) for key, option, kind in _group_options(group, each)}
        for name, each in registry.items()
    }
    said: dict[str, tuple[Field[Any], Any]] = {}
    for own in found.values():
        said |= {key: value for key, value in own.items() if key not in said}
    for key, (option, kind) in said.items():
        having = [name for name, own in found.items() if key in own]
        texts: dict[str, list[str]] = {}
        for name in having:
            texts.setdefault(_said(found[name][key][0]), []).append(name)
        several = len({str(found[name][key][0].default) for name in having}) > 1
        if several or len(texts) > 1:  # each choice has its own default, or its own text
            notes = dict(option.metadata)
            if len(texts) > 1:
                each = (f"{text} ({', '.join(names)})" for text, names in texts.items())
                notes = {"help": "; ".join(each)}
            option = field(metadata=notes) if several else _noted(option, notes)
        of = "" if len(having) == len(found) else f" ({', '.join(having)})"
        yield f"{key}{of}", option, kind


def _noted(option: Field[Any], notes: Mapping[str, Any]) -> Field[Any]:
    """Return a declaration with the same default and other notes."""
    if option.default_factory is not MISSING:
        return field(default_factory=option.default_factory, metadata=notes)
    return field(default=option.default, metadata=notes)


def _entry(head: str, text: str, width: int) -> list[str]:
    """Return the lines of an entry: the head, and the text beside it or, if it is long, below."""
    if not width:
        return [f"  {head}".ljust(COLUMN - 2) + f"  {text}".rstrip()]
    indent = " " * COLUMN
    texts = textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent)
    if texts and len(head) < COLUMN - 3:
        texts[0] = f"  {head}".ljust(COLUMN) + texts[0][COLUMN:]
        return texts
    heads = textwrap.wrap(head, width, initial_indent="  ", subsequent_indent="    ")
    return [*heads, *texts]


def _said(option: Field[Any]) -> str:
    """Return help, unit and range of an option in one text."""
    unit, bounds = option.metadata.get("unit", ""), allowed_range(option)
    more = [*([unit] if unit else []), *([bounds] if bounds else [])]
    text = str(option.metadata.get("help", ""))
    return " ".join([*([text] if text else []), *([f"[{'; '.join(more)}]"] if more else [])])


def type_name(kind: Any) -> str:
    """Return the type of an option in words, such as integer, or the list of its values."""
    if get_origin(kind) in (Union, UnionType):
        inner = [type_name(each) for each in get_args(kind) if each is not type(None)]
        return " or ".join([*inner, "null"])
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "|".join(each.name for each in kind)
    if get_origin(kind) is list:
        return f"list of {type_name(get_args(kind)[0])}"
    if get_origin(kind) in (dict, Mapping):
        return "mapping"
    names = {str: "text", int: "integer", float: "number", bool: "true|false"}
    return names.get(kind, getattr(kind, "__name__", str(kind)).removesuffix("Config").lower())


def default_text(key: str, option: Field[Any]) -> str:
    """Return ` = ` and the default of an option; empty if it has no default to show."""
    if re.search(r"\.(\w+_)?seed\b", key) and not key.startswith("backbone"):
        return " = the run's seed"
    value = option.default
    if option.default_factory is not MISSING:
        value = option.default_factory()
    # Mappings, and groups that have to be chosen, have no default to show.
    return "" if value is MISSING or value in ("???", {}) else f" = {_shown(value)}"


def _shown(value: Any) -> str:
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
