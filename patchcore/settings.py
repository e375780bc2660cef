"""Declaration of a setting: its default, help, unit and range, and whether it changes results.

Fingerprints, reports, help and range checks read these notes from the setting's field, so that no
second list has to be kept.
"""

import math
import os
import re
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints

from patchcore.errors import InputError

Effect = bool | Callable[[Mapping[str, Any]], bool]
"""Effect of a setting on results: True, False, or a function of {name: value} of its group."""

Idle = str | Callable[[Mapping[str, Any]], str]
"""Words on why a setting is not used at all; a function gets {name: value} of its group."""

Without = Collection[str] | Callable[[Mapping[str, Any]], Collection[str]]
"""Keys below a setting that change no result, or a function of {name: value} of its group."""


def setting(
    default: Any = None,
    help: str = "",
    *,
    factory: Callable[[], Any] | None = None,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    effect: Effect = True,
    without: Without = (),
    idle: Idle = "",
    kw_only: bool = False,
) -> Any:
    """Return a dataclass field with notes; a field without notes counts as changing results.

    Args:
        default: Default of the field, unless `factory` is given.
        help: One line for `--help` and the documentation, without unit and range.
        factory: Function that makes a mutable default.
        unit: Unit of the value, such as `px`.
        low: Smallest value allowed.
        high: Largest value allowed.
        above: Bound that a value must exceed.
        below: Bound that a value must stay under.
        effect: Whether the setting changes results. A function gets all settings of the same
            dataclass, {name: value}, including this one.
        without: For a mapping or a group: its keys that change no result. A function returns those
            that depend on other groups; it gets what a function for `effect` gets.
        idle: Words that follow "has no effect", such as `without data.shots`, if a function for
            `effect` or `without` says that the setting has none. A function gets what these get,
            and returns the words, or nothing where the setting is used.
        kw_only: Whether the field is a keyword-only argument in Python.
    """
    bounds = {"low": low, "high": high, "above": above, "below": below}
    notes = {"help": help, "unit": unit, "effect": effect, "without": without, "idle": idle}
    metadata = {**notes, **bounds}
    if factory is not None:
        return field(default_factory=factory, metadata=metadata, kw_only=kw_only)
    return field(default=default, metadata=metadata, kw_only=kw_only)


def effective(settings: Any) -> dict[str, Any]:
    """Return the settings of a dataclass that change results, nested, as values for JSON.

    Enums become their names, and paths text. A group in which nothing has an effect is left out.
    """
    values = {option.name: getattr(settings, option.name) for option in fields(settings)}
    kept = {}
    effects = [(each, each.metadata.get("effect", True)) for each in fields(settings)]
    counted = [each for each, effect in effects if (effect(values) if callable(effect) else effect)]
    for option in counted:
        value = values[option.name]
        plain = _effective(value)
        without = option.metadata.get("without", ())
        if without and isinstance(plain, dict):
            left = without(values) if callable(without) else without
            plain = {key: plain[key] for key in plain if key not in left}
        if plain or not (is_dataclass(value) or isinstance(value, Mapping)):
            kept[option.name] = plain
    return kept


def _effective(value: Any) -> Any:
    if is_dataclass(value):
        return effective(value)
    if isinstance(value, Mapping):
        return {str(key): _effective(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_effective(item) for item in value]
    if isinstance(value, Enum):
        return value.name
    return str(value) if isinstance(value, Path) else value


class Choice(Enum):
    """Base of the values of a setting that has a few; as text, each is what one types."""

    def __str__(self) -> str:
        """The name, which OmegaConf puts in the place of references such as `${data.category}`."""
        return self.name


@dataclass
class Settings:
    """Base of a group of settings that checks types and ranges when it is created.

    Attributes:
        GROUP: Key of the group; error messages begin with it. Empty: they begin with the setting.
    """

    GROUP: ClassVar[str]

    def __post_init__(self) -> None:
        """Check all values: see `check_types` and `check_ranges`."""
        check_types(self, self.GROUP)
        check_ranges(self, self.GROUP)


def plain(value: Any) -> Any:
    """Return settings as plain values: dataclasses as mappings, tuples as lists, enums as names."""
    if is_dataclass(value):
        return {option.name: plain(getattr(value, option.name)) for option in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value.name if isinstance(value, Enum) else value


def allowed_range(option: Field[Any]) -> str:
    """Return the range of a setting in words that follow "must be"; empty if it has none.

    >>> @dataclass
    ... class Sampler:
    ...     ratio: float = setting(0.1, above=0, high=1)
    >>> allowed_range(fields(Sampler)[0])
    'in (0, 1]'
    """
    low, high, above, below = _bounds(option)
    left = f"({above:g}" if above is not None else f"[{low:g}" if low is not None else ""
    right = f"{below:g})" if below is not None else f"{high:g}]" if high is not None else ""
    if left and right:
        return f"in {left}, {right}"
    if left:
        return f"above {above:g}" if above is not None else f"at least {low:g}"
    if right:
        return f"below {below:g}" if below is not None else f"at most {high:g}"
    return ""


class Groups:
    """Base of a dataclass whose fields are groups of settings, each of its declared type.

    Raises:
        InputError: A field holds another type, such as a network's name instead of its settings.
    """

    def __post_init__(self) -> None:
        own: Any = self
        for group in fields(own):
            value, kind = getattr(own, group.name), group.type
            if isinstance(kind, type) and not isinstance(value, kind):
                default = group.default_factory
                example = default if isinstance(default, type) else kind
                raise InputError(
                    f"{group.name}: give settings, such as {example.__name__}(…), not {value!r}"
                )


_UNSET = "???"  # of a value that is still missing; omegaconf.MISSING, which takes time to import
_WORDS: dict[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
}


@cache
def _types(kind: type) -> dict[str, Any]:
    """Types that the fields of a dataclass declare."""
    return get_type_hints(kind)


def check_types(settings: Any, group: str, examples: Mapping[str, str] | None = None) -> None:
    """Refuse values of a dataclass that are not of the type that their setting declares.

    Values that mean the same are taken and converted: numbers and arrays of NumPy or PyTorch, paths
    for text, names for members of an enum, and other containers than list and dict. Values that are
    still missing ("???") pass.

    Args:
        settings: The dataclass.
        group: Its key; may be empty.
        examples: Code for messages that makes settings, by the name of their group.

    Raises:
        InputError: The first other value; the message begins with `group`.name.
    """
    kind: Any = type(settings)
    declared = _types(kind)
    for option in fields(settings):
        value, key = getattr(settings, option.name), f"{group}.{option.name}".lstrip(".")
        example = (examples or {}).get(option.name) or _example(option)
        if isinstance(value, str) and value == _UNSET:
            continue
        typed = _typed(value, declared[option.name], key, example)
        if typed is not value:
            setattr(settings, option.name, typed)


def _example(option: Field[Any]) -> str:
    default = option.default_factory
    return f"{default.__name__}(…)" if isinstance(default, type) else ""


def _typed(value: Any, kind: Any, key: str, example: str = "") -> Any:
    """A value as `kind` declares it; it is the value itself unless it has to be converted."""
    if kind is Any:
        return value
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (each for each in get_args(kind) if each is not NoneType)
        if value is None:
            return None
    outer = get_origin(kind) or kind
    if value is None and not is_dataclass(outer):
        words = _WORDS.get(outer, "a value")
        raise InputError(f"{key} may not be None: leave it out, or give {words}")
    if not isinstance(value, Mapping) and hasattr(value, "tolist"):  # of NumPy or PyTorch
        value = value.tolist()
    if outer in (list, dict):
        return _container(value, kind, outer, key)
    if issubclass(outer, Enum):
        return _member(value, outer, key)
    if outer is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    wanted = int | float if outer is float else outer
    unlike = isinstance(value, bool) and outer in (int, float)
    if isinstance(value, wanted) and not unlike:
        return value
    if outer in _WORDS:
        raise InputError(f"{key} must be {_WORDS[outer]}, got {shown(value)}")
    raise InputError(
        f"{key}: give settings, such as {example or f'{outer.__name__}(…)'}, not {shown(value)}"
    )


def _container(value: Any, kind: Any, outer: Any, key: str) -> Any:
    """A list or dict whose items are as `kind` declares them."""
    if outer is dict:
        if not isinstance(value, Mapping):
            raise InputError(f"{key} must be a mapping {{name: value}}, got {shown(value)}")
        _, inner = get_args(kind) or (str, Any)
        items = {name: _typed(each, inner, f"{key}.{name}") for name, each in value.items()}
        same = isinstance(value, dict) and all(items[name] is value[name] for name in value)
        return value if same else items
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        hint = f": write [{value!r}]" if isinstance(value, str | int | float) else ""
        raise InputError(f"{key} must be a list, got {shown(value)}{hint}")
    (inner,) = get_args(kind) or (Any,)
    typed = [_typed(each, inner, f"{key}[{number}]") for number, each in enumerate(value)]
    same = isinstance(value, list | tuple) and all(map(lambda x, y: x is y, typed, value))
    return value if same else typed


def _member(value: Any, kind: type[Enum], key: str) -> Enum:
    """A member of an enum, which may be given by its name."""
    if isinstance(value, kind):
        return value
    if isinstance(value, str) and value in kind.__members__:
        return kind[value]
    raise InputError(f"{key} must be {_choices([*kind.__members__])}, got {shown(value)}")


def _choices(names: Sequence[str]) -> str:
    if len(names) > 4:
        return f"one of {', '.join(names)}"
    return " or ".join([", ".join(names[:-1])] * (len(names) > 1) + [names[-1]])


def shown(value: Any) -> str:
    """A value as code, short and in one line; its type where that says more."""
    if value is None or isinstance(
        value, str | bytes | int | float | list | tuple | dict | set | Path
    ):
        return " ".join(reprlib.repr(value).split())
    kind = type(value)
    name = (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    return f"a value of type {name}"


def check_ranges(settings: Any, group: str) -> None:
    """Refuse numbers of a dataclass that are not finite or outside the range of their setting.

    Values that are not numbers pass, None among them.

    Raises:
        InputError: The first such number; the message begins with `group`.name.
    """
    for option in fields(settings):
        key = f"{group}.{option.name}".lstrip(".")
        check_range(option, getattr(settings, option.name), key)


def check_range(option: Field[Any], value: Any, key: str) -> None:
    """Refuse a number that is not finite or outside the declared range; other values pass.

    Raises:
        InputError: The message begins with `key`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    low, high, above, below = _bounds(option)
    inside = (
        (low is None or value >= low)
        and (high is None or value <= high)
        and (above is None or value > above)
        and (below is None or value < below)
    )
    if not inside:
        raise InputError(f"{key} must be {allowed_range(option)}, got {shown(value)}")
    if not math.isfinite(value):
        raise InputError(f"{key} must be a finite number, got {value}")
    if re.fullmatch(r"(.*_)?seed", option.name) and not 0 <= value < 2**32:
        raise InputError(f"{key} must be in [0, 2^32), got {value}")


def _bounds(option: Field[Any]) -> list[float | None]:
    return [option.metadata.get(bound) for bound in ("low", "high", "above", "below")]
