"""Check of typed overrides ahead of Hydra, whose parser's own words help nobody."""

import re
import shlex
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from patchcore.commands.groups import SCHEMAS
from patchcore.commands.renamed import renamed
from patchcore.data.view import successor
from patchcore.errors import InputError
from patchcore.tracking import presets

_WITH_VALUE = {"-c", "--cfg", "-i", "--info", "-p", "--package", "-cp", "--config-path"}
_WITH_VALUE |= {"-cn", "--config-name", "-cd", "--config-dir"}
_SEVERAL = {"-m", "--multirun", "hydra.mode=MULTIRUN"}


def check_overrides(arguments: Sequence[str]) -> None:
    """Refuse what cannot be meant as it was typed.

    Args:
        arguments: Of the command line, without the program.

    Raises:
        InputError: One line with the key, and what to type instead.
    """
    several = not _SEVERAL.isdisjoint(arguments)
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if argument.startswith("-") or before in _WITH_VALUE:
            continue
        if "=" not in argument:
            if re.fullmatch(r"[\w./]+", argument):
                raise InputError(f"{argument}: not understood: type {argument}=VALUE")
            continue
        override = _parsed(argument)
        if override is None:
            raise InputError(_quote(argument))
        if told := renamed(override.key_or_group, argument.partition("=")[2]):
            raise InputError(told)
        if override.is_sweep_override():
            if not several and override.is_choice_sweep():
                raise InputError(_one_or_several(argument))
        else:
            _check_choice(override, argument)


def quoted(argument: str) -> str:
    """`key=value` with the value as text whatever it holds, as typed in bash or zsh.

    >>> print(quoted("data.root=/a/b=c (2)"))
    "data.root='/a/b=c (2)'"
    """
    key, _, value = argument.partition("=")
    if not set(value) & set("'\\$`\"!"):
        return f"\"{key}='{value}'\""
    mark = '"' if "'" in value else "'"
    inner = value.replace(f"\\{mark}", f"\\\\\\{mark}").replace(mark, f"\\{mark}")
    if inner.endswith("\\"):  # would escape the closing mark
        inner += "\\"
    return shlex.quote(f"{key}={mark}{inner}{mark}")


@cache
def choices() -> dict[str, list[str]]:
    """Return the choices of every group, registered or under conf/: {group: names}."""
    found: dict[str, list[str]] = {group: [*names] for group, names in SCHEMAS.items()}
    found["logger"] = [*presets()]
    for group, name in _presets(files("patchcore.conf"), ""):
        found.setdefault(group, []).append(name)
    return {group: sorted(names) for group, names in found.items() if group}


def _presets(folder: Traversable, group: str) -> Iterator[tuple[str, str]]:
    """Group and name of every preset below a folder; one in a subfolder is also `folder/name`."""
    for entry in folder.iterdir():
        if entry.is_dir():
            inner = f"{group}/{entry.name}" if group else entry.name
            for below, name in _presets(entry, inner):
                yield below, name
                if group:
                    yield group, f"{below.removeprefix(f'{group}/')}/{name}"
        elif entry.name.endswith(".yaml"):
            yield group, entry.name.removesuffix(".yaml")


def _parsed(argument: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None


def _quote(argument: str) -> str:
    key = argument.partition("=")[0]
    if not key or _parsed(f"{key}=x") is None:
        return f"{argument}: not understood: type KEY=VALUE, such as coreset.ratio=0.01"
    return f"{key}: the value needs quotes, inside others for the shell: type {quoted(argument)}"


def _one_or_several(argument: str) -> str:
    key, _, value = argument.partition("=")
    return (
        f"{key}: a comma makes several values: with quotes it is one, type {quoted(argument)}; a "
        f"list is '{key}=[{value}]'; --multirun tries one after another"
    )


def _check_choice(override: Override, argument: str) -> None:
    """Refuse a number or nothing where a group's choice belongs."""
    group = override.key_or_group
    names = choices().get(group)
    if not group:
        raise InputError(_quote(argument))
    value = override.value()
    if names is None or override.package is not None or isinstance(value, str | list):
        return
    if override.is_delete():
        return
    typed = argument.partition("=")[2]
    close = [name for name in names if re.fullmatch(f"[a-z]+{re.escape(typed)}", name)]
    close = close or get_close_matches(typed, names, 1)
    hint = f"did you mean {group}={close[0]}? " if close else ""
    if group == "image" and (overrides := successor(typed)):
        hint = f"did you mean {overrides}? "
    if value is None:
        hint = "leave it out; "
    raise InputError(
        f"{group}={typed}: there is no such choice; {hint}there are {', '.join(names)}"
    )
