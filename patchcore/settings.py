"""Declaration of a setting: its default, and once and for all whether it changes results.

Fingerprints and reports read this beside the setting itself, so no list of exceptions exists
elsewhere.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

Effect = bool | Callable[[Mapping[str, Any]], bool]
"""Whether a setting changes results: always, never, or depending on its siblings by name."""


def setting(
    default: Any = None,
    *,
    factory: Callable[[], Any] | None = None,
    effect: Effect = True,
    without: Collection[str] = (),
) -> Any:
    """Return a dataclass field; one that is declared without this function has an effect.

    Args:
        default: Its default; `factory` makes it where it is mutable.
        effect: Whether it changes results. A function is given the settings beside it,
            {name: value}, with this one among them.
        without: For a mapping: the keys that change no result.
    """
    metadata = {"effect": effect, "without": frozenset(without)}
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def effective(settings: Any) -> dict[str, Any]:
    """Return the settings of a dataclass that change results, nested, as JSON can hold them.

    Enums become their names. A group in which nothing has an effect is left out.
    """
    values = {option.name: getattr(settings, option.name) for option in fields(settings)}
    kept = {}
    for option in fields(settings):
        effect = option.metadata.get("effect", True)
        if not (effect(values) if callable(effect) else effect):
            continue
        value = values[option.name]
        if isinstance(value, Mapping):
            without = option.metadata.get("without", ())
            value = {key: value[key] for key in value if key not in without}
        plain = _plain(value)
        if plain or not (is_dataclass(value) or isinstance(value, Mapping)):
            kept[option.name] = plain
    return kept


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return effective(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.name
    return str(value) if isinstance(value, Path) else value
