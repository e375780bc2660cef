"""Overrides as they were typed: Hydra would make numbers and truth values of some names."""

import os
import re
from collections.abc import Sequence
from dataclasses import fields
from functools import cache

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from patchcore.commands.groups import SCHEMAS
from patchcore.errors import InputError, printable


def as_typed(arguments: Sequence[str]) -> list[str]:
    """Arguments of the command line, with quotes around what is a name and looks like a number.

    These are the names of data sets' folders and categories: `data.category=01,1e3,null` becomes
    `data.category='01','1e3','null'`. Values with quotes, brackets or interpolations stay as they
    are. null stays null where a data set knows it.

    Raises:
        InputError: an argument, or the path of the current folder, is not UTF-8, so that no
            settings file could hold it.
    """
    for text, what in [*((argument, "argument") for argument in arguments), (_here(), "folder")]:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{printable(text)}: the name of this {what} is not UTF-8; rename it, or reach it "
                "by a link whose name is"
            ) from None
    return [_typed(_in_full(argument)) for argument in arguments]


_NUMBERS = r"\d[\d.e-]*(,\d[\d.e-]*)*"
_MEANT = {
    "artifact": ("artifact.keep", r"\w+(,\w+)*"),
    "coreset": ("coreset.ratio", _NUMBERS),
    "image": ("image.size", _NUMBERS),
    "layers": ("layers.names", r"\[.*\]|\d(\+\d)*(,\d(\+\d)*)*"),
    "patch": ("patch.size", _NUMBERS),
}
"""Settings that a value given to their group is meant for, and the values: {group: (key, …)}."""
_SWITCHED = {"true": "all", "false": "none"}


def _in_full(argument: str) -> str:
    """Return `patch.size=3` for `patch=3`, and `layers.names=[2,3]` for `layers=2+3`.

    Whoever wants an artifact types `artifact=true`, which is `artifact.keep=all`.
    """
    group, _, value = argument.partition("=")
    key, values = _MEANT.get(group, ("", ""))
    if not key or not re.fullmatch(values, value):
        return argument
    if group == "artifact":
        value = ",".join(_SWITCHED.get(each.lower(), each) for each in value.split(","))
    if group == "layers" and not value.startswith("["):
        value = ",".join(f"[{each.replace('+', ',')}]" for each in value.split(","))
    return f"{key}={value}"


@cache
def _names() -> dict[str, bool]:
    """Keys whose values are text, and whether null is a value too."""
    found: dict[str, bool] = {}
    for schema in SCHEMAS["data"].values():
        for option in fields(schema):
            if option.type in (str, str | None):
                key = f"data.{option.name}"
                found[key] = found.get(key, False) or option.type is not str
    return found


def _typed(argument: str) -> str:
    key, _, value = argument.partition("=")
    name = key.lstrip("+")
    if name not in _names():
        return argument
    choice = re.fullmatch(r"(choice\()(.*)(\))", value)
    before, words, after = choice.groups() if choice else ("", value, "")
    if not words or re.search(r"['\"()\[\]{}$\\]", words):
        return argument
    quoted = (_quoted(word, _names()[name]) for word in words.split(","))
    return f"{key}={before}{','.join(quoted)}{after}"


def _quoted(word: str, nullable: bool) -> str:
    text = word.strip()
    if nullable and text.lower() == "null":
        return word
    try:
        value = OverridesParser.create().parse_override(f"name={text}").value()
    except HydraException:  # Hydra tells so itself
        return word
    return f"'{text}'" if value is None or isinstance(value, bool | int | float) else word


def _here() -> str:
    try:
        return os.getcwd()
    except OSError as error:
        raise InputError(f"the current folder cannot be used ({error.strerror})") from None
