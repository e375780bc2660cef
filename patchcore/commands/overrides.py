"""Checks and corrections of the overrides as they were typed, before Hydra parses them.

Messages of Hydra's parser are hard to understand, and the parser would turn some names into numbers
or truth values.
"""

import math
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from omegaconf import BooleanNode, FloatNode, IntegerNode

from patchcore.commands.environment import current_folder
from patchcore.commands.groups import SCHEMAS, settings_of
from patchcore.commands.mistakes import image_successor, renamed
from patchcore.commands.own import own_choices, own_folders
from patchcore.commands.texts import quoted_text, typed_name
from patchcore.data.files import expanded
from patchcore.errors import InputError, printable
from patchcore.keeping import Keep
from patchcore.tracking import presets


def as_typed(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of the command line, with quotes around names that look like numbers.

    These are the values of `texts.is_text`: `data.category=01,1e3,null` becomes
    `data.category='01','1e3','null'`, and `[1,2]` (several categories in one memory) becomes
    `['1','2']`. Other values with quotes, brackets or interpolations do not change. null stays null
    except for settings of a data set that may not be null. Choices of groups get quotes if they are
    files of one's own.

    Raises:
        InputError: An argument, or the path of the current folder, is not UTF-8, so that no
            settings file could hold it.
    """
    for text, what in [
        *((argument, "argument") for argument in arguments),
        (current_folder(), "folder"),
    ]:
        try:
            text.encode()
        except UnicodeEncodeError:
            name = f"{printable(text)}: the name of this {what}"
            if _is_utf8(os.fsencode(text)):
                raise InputError(
                    f"{name} is UTF-8, but the locale is not: set LC_ALL=C.UTF-8"
                ) from None
            raise InputError(
                f"{name} is not UTF-8; rename it, or use a link to it whose name is in UTF-8"
            ) from None
    full = [_in_full(argument) for argument in arguments]
    folders = own_folders(full)
    return [_own_choice(typed_name(argument), folders) for argument in full]


def _own_choice(argument: str, folders: Sequence[Path]) -> str:
    """Return `group=choice` with quotes around choices of one's own that look like numbers."""
    group, _, value = argument.partition("=")
    name = group.lstrip("+")
    if not folders or name not in choices():
        return argument
    own = own_choices(folders, name)
    words = (quoted_text(word, name) if word in own else word for word in value.split(","))
    return f"{group}={','.join(words)}"


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


_NUMBERS = r"\d[\d.e-]*(,\d[\d.e-]*)*"
_MEANT = {
    "artifact": ("artifact.keep", r"\w+(,\w+)*"),
    "coreset": ("coreset.ratio", _NUMBERS),
    "image": ("image.size", _NUMBERS),
    "layers": ("layers.names", r"\[.*\]|\d(\+\d)*(,\d(\+\d)*)*"),
    "patch": ("patch.size", _NUMBERS),
}
"""Settings that stand for their group if the value matches: {group: (key, pattern of values)}."""
_FOLDERS = {"hydra.run.dir", "hydra.sweep.dir"}
_SWITCHED = {"true": "all", "false": "none"}


def _in_full(argument: str) -> str:
    """Return an abbreviated override in full.

    `patch=3` becomes `patch.size=3`, `layers=2+3` becomes `layers.names=[2,3]`, `artifact=true`
    becomes `artifact.keep=all`, and ~ in a folder of Hydra's becomes the home folder.
    """
    group, _, value = argument.partition("=")
    if group in ("--config-dir", "--config-path") and value.startswith("~"):  # shells leave it
        return f"{group}={expanded(value, group)}"
    if group in _FOLDERS and (home := re.fullmatch(r"(['\"]?)(~[^'\"$,\\]*)\1", value)):
        return f"{group}='{expanded(home[2], group)}'"
    key, values = _MEANT.get(group, ("", ""))
    if not key or not re.fullmatch(values, value):
        return argument
    if group == "artifact":
        value = ",".join(_kept(each) for each in value.split(","))
    if group == "layers" and not value.startswith("["):
        value = ",".join(f"[{each.replace('+', ',')}]" for each in value.split(","))
    return f"{key}={value}"


def _kept(word: str) -> str:
    name = _SWITCHED.get(word.lower(), word)
    if name not in Keep.__members__:
        raise InputError(
            f"artifact={word}: there is no such choice; there are true (all), false (none), best"
        )
    return name


MOST_POINTS = 1_000_000
"""Most values of a range; each would become a run."""
_SWEEPS = {
    "choice": "choice(1,2)",
    "range": "range(0,3)",
    "interval": "interval(0.01,0.1)",
    "sort": "sort(3,1,2)",
    "shuffle": "shuffle(1,2,3)",
    "glob": "glob(*)",
}
"""Functions of several values, each as it may be typed."""
_WITH_VALUE = {"-c", "--cfg", "-i", "--info", "-p", "--package", "-cp", "--config-path"}
_WITH_VALUE |= {"-cn", "--config-name", "-cd", "--config-dir"}
_SEVERAL = {"-m", "--multirun", "hydra.mode=MULTIRUN"}


def check_overrides(arguments: Sequence[str], typed: Sequence[str] = ()) -> None:
    """Refuse overrides that cannot be meant as they were typed.

    Args:
        arguments: Of the command line, without the program; see `as_typed`.
        typed: The same before `as_typed`, for messages that repeat a value.

    Raises:
        InputError: One line with the key, and what to type instead.
    """
    several = not _SEVERAL.isdisjoint(arguments)
    words = dict(zip(arguments, typed, strict=False))
    given = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if argument.startswith("-") or before in _WITH_VALUE:
            continue
        if "=" not in argument:
            if re.fullmatch(r"[\w./]+", argument):
                raise InputError(f"{argument}: not understood: type {argument}=VALUE")
            if not argument.startswith("~"):
                raise InputError(_quote(argument))
            if argument == "~seed":
                raise InputError("~seed: other seeds follow from it: give seed=NUMBER instead")
            continue
        override = _parsed(argument)
        if override is None:
            raise InputError(_quote(argument))
        given.append((argument, override))
    for argument, override in given:
        if told := renamed(override.key_or_group, argument.partition("=")[2]):
            raise InputError(told)
    for argument, override in given:
        if override.key_or_group == "hydra" and not override.is_delete():
            raise InputError(
                f"{argument}: hydra is no choice: set its keys, such as hydra.run.dir=…"
            )
        _check_plain(override)
        _check_meant(override, argument)
        if override.is_sweep_override():
            _check_ends(override)
            if not several and override.is_choice_sweep():
                word = words.get(argument, argument)
                same = word.partition("=")[0] == argument.partition("=")[0]  # or it is in full
                raise InputError(_one_or_several(word if same else argument))
        else:
            _check_choice(override, argument, own_folders(arguments))


def quoted(argument: str) -> str:
    """Return `key=value` quoted for bash or zsh, so that Hydra reads the value as plain text.

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
    """Yield group and name of each preset below a folder; in a subfolder, also `folder/name`."""
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
    if dashed := re.fullmatch(r"[–—−](.+)", argument):  # as text editors make of hyphens
        return f"{argument}: begins with a dash: type hyphens, as in --{dashed[1].lstrip('-–—')}"
    if not key or _parsed(f"{key}=x") is None:
        return f"{argument}: not understood: type KEY=VALUE, such as coreset.ratio=0.01"
    if several := re.fullmatch(rf"({'|'.join(_SWEEPS)})\(.*\)", argument.partition("=")[2]):
        return (
            f"{key}: {several[1]}(…) is not understood: type it as in {_SWEEPS[several[1]]}; for "
            f"text, type {quoted(argument)}"
        )
    value = argument.partition("=")[2]
    single = re.sub(r",(\s*,)+", ",", value)
    tidy = re.sub(r"(?:^|(?<=[\[{(]))\s*,|,\s*(?=[\]})]|$)", "", single)
    if tidy and tidy != value and _parsed(f"{key}={tidy}") is not None:
        return (
            f"{argument}: a comma has no value before or after it: type "
            f"{shlex.quote(f'{key}={tidy}')}; for text, type {quoted(argument)}"
        )
    return (
        f"{key}: the value needs its own quotes inside the shell's quotes: type {quoted(argument)}"
    )


def _one_or_several(argument: str) -> str:
    key, _, value = argument.partition("=")
    meant = ""
    if key in settings_of(IntegerNode, FloatNode):
        decimal = re.fullmatch(r"[-+]?\d*,\d+", value) and key in settings_of(FloatNode)
        point = f"{key}={value.replace(',', '.')}"
        meant = f"a decimal number takes a point, as in {point}" if decimal else "give one"
    elif re.fullmatch(r"\[[^\[\]]+\](,\[[^\[\]]+\])+", value):  # layers=2,3
        items = dict.fromkeys(re.sub(r"[\[\]]", "", value).split(","))
        meant = f"one list of them is '{key}=[{','.join(items)}]'"
    if meant:
        return (
            f"{key}: a comma separates several values: {meant}; --multirun tries the values one "
            "after another"
        )
    return (
        f"{key}: a comma separates several values: for one value with a comma, type "
        f"{quoted(argument)}; a list, where the option takes one, is '{key}=[{value}]'; --multirun "
        "tries the values one after another"
    )


def _check_plain(override: Override) -> None:
    """Refuse numbers that OmegaConf would take for true, and 01 as it would take it for 1."""
    value, key = override.value(), override.key_or_group
    for each in value.list if isinstance(value, ChoiceSweep) else [value]:
        number = isinstance(each, int | float) and each not in (0, 1)
        if number and key in settings_of(BooleanNode):
            raise InputError(f"{key}: must be true or false, got {each}")
        if not isinstance(each, str) or not re.fullmatch(r"[-+]?0\d+", each):
            continue
        if key in settings_of(IntegerNode, FloatNode):
            raise InputError(
                f"{key}: {each} would be read as {int(each)}: write {int(each)}; a decimal number "
                "takes a point"
            )


def _check_meant(override: Override, argument: str) -> None:
    """Refuse layers in no form that is known, and a further choice of a group that has one."""
    if override.key_or_group == "layers" and isinstance(override.value(), str | int | float):
        raise InputError(
            f"{argument}: not understood: type levels, such as layers=2+3, or names of modules, "
            "such as 'layers.names=[layer2,layer3]'"
        )
    if override.is_add() and not override.is_force_add() and override.key_or_group in SCHEMAS:
        raise InputError(f"{argument}: there is a choice already, which {argument[1:]} replaces")


def _check_ends(override: Override) -> None:
    """Refuse an interval or a range that holds nothing, or too much."""
    value, key = override.value(), override.key_or_group
    if isinstance(value, IntervalSweep | RangeSweep):
        kind = "interval" if isinstance(value, IntervalSweep) else "range"
        step = value.step if isinstance(value, RangeSweep) else 1
        ends = value.start, value.stop if isinstance(value, RangeSweep) else value.end
        start, end, stride = (float(each or 0) for each in (*ends, step))
        if not all(map(math.isfinite, (start, end, stride))):
            raise InputError(f"{key}: the ends and the step of the {kind} must be finite numbers")
        if not stride:
            raise InputError(f"{key}: the step of the range from {ends[0]} to {ends[1]} is zero")
        values = (end - start) / stride
        if values <= 0:
            hint = ": the step has the wrong sign" if stride < 0 < end - start else ""
            raise InputError(f"{key}: the {kind} from {ends[0]} to {ends[1]} holds no values{hint}")
        if kind == "range" and values > MOST_POINTS:
            raise InputError(f"{key}: the range holds more than {MOST_POINTS:,} values")


def _check_choice(override: Override, argument: str, folders: Sequence[Path]) -> None:
    """Refuse a number, or null, as the choice of a group."""
    group = override.key_or_group
    names = choices().get(group)
    if not group:
        raise InputError(_quote(argument))
    value = override.value()
    if group in SCHEMAS and isinstance(value, list) and len(value) != 1:
        raise InputError(
            f"{group}: takes one choice, got {len(value)}; there are {', '.join(names or [])}"
        )
    if names is None or override.package is not None or isinstance(value, str | list):
        return
    if override.is_delete():
        return
    names = sorted({*names, *own_choices(folders, group)})
    typed = argument.partition("=")[2]
    close = [name for name in names if re.fullmatch(f"[a-z]+{re.escape(typed)}", name)]
    close = close or get_close_matches(typed, names, 1)
    hint = f"did you mean {group}={close[0]}? " if close else ""
    if group == "image" and (overrides := image_successor(typed)):
        hint = f"did you mean {overrides}? "
    if value is None:
        hint = "leave it out; "
    raise InputError(
        f"{group}={typed}: there is no such choice; {hint}there are {', '.join(names)}"
    )
