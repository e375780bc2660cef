"""Declaration of a setting: its default, help, unit and range, and whether it changes results.

Fingerprints, reports, help and range checks read these notes from the setting's field, so that no
second list has to be kept.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

from patchcore.errors import InputError

Effect = bool | Callable[[Mapping[str, Any]], bool]
"""Effect of a setting on results: True, False, or a function of {name: value} of its group."""

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
        kw_only: Whether the field is a keyword-only argument in Python.
    """
    bounds = {"low": low, "high": high, "above": above, "below": below}
    notes = {"help": help, "unit": unit, "effect": effect, "without": without}
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


@dataclass
class Settings:
    """Base of a group of settings that checks the ranges of its numbers when it is created.

    Attributes:
        GROUP: Key of the group; error messages begin with it.
    """

    GROUP: ClassVar[str]

    def __post_init__(self) -> None:
        """Check the ranges of all numbers: see `check_ranges`."""
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


def check_ranges(settings: Any, group: str) -> None:
    """Refuse numbers of a dataclass that are not finite or outside the range of their setting.

    Values that are not numbers pass, None among them.

    Raises:
        InputError: The first such number; the message begins with `group`.name.
    """
    for option in fields(settings):
        check_range(option, getattr(settings, option.name), f"{group}.{option.name}")


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
        raise InputError(f"{key} must be {allowed_range(option)}, got {value}")
    if not math.isfinite(value):
        raise InputError(f"{key} must be a finite number, got {value}")


def _bounds(option: Field[Any]) -> list[float | None]:
    return [option.metadata.get(bound) for bound in ("low", "high", "above", "below")]
