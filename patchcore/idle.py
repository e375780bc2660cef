"""Settings that were given although they have no effect beside the run's other settings.

Each declares by `setting(idle=…)` what it lacks. Settings that a method does not read, or that
exclude one another, are refused instead: see `patchcore.methods.check_unused` and
`patchcore.conflicts`.
"""

from collections.abc import Collection, Iterator
from dataclasses import Field, fields, is_dataclass
from typing import Any

from patchcore.settings import effective


def idle_words(settings: Any, key: str) -> str:
    """Return why the setting `key` has no effect, in words that follow "has no effect".

    Empty if it has one, or if there is no such setting.

    Args:
        settings: Settings with this key, such as a whole `patchcore.config.Config`.
        key: Dotted name of a setting or a group.
    """
    name, _, rest = key.partition(".")
    if not is_dataclass(settings):
        return ""
    values = {option.name: getattr(settings, option.name) for option in fields(settings)}
    option = next((each for each in fields(settings) if each.name == name), None)
    if option is None:
        return ""
    words = _words(option, values)
    inner = values[name]
    if inner is None or inner is False:  # left out, or switched off: nobody expects an effect
        return ""
    if words and not _is_passive(inner, rest):
        return words
    without = option.metadata.get("without")
    if callable(without) and rest in without(values):
        return str(option.metadata.get("idle", ""))
    return idle_words(inner, rest) if rest else ""


def idle_settings(run: Any, keys: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield each of the keys that has no effect on a run, with the reason: see `idle_words`.

    Args:
        run: All settings, a `patchcore.config.Config`.
        keys: Dotted names of what was given.
    """
    exact = {"image.resize", "image.crop"}
    for key in dict.fromkeys(keys):
        words = idle_words(run, key)
        if not words and key == "seed" and not _has_seed(effective(run)):
            words = "because nothing random takes part"
        if not words and key == "image.size" and exact.issubset(keys):
            words = "with image.resize and image.crop"
        if not words and key == "image.view" and {*exact, "image.stretch"}.issubset(keys):
            words = "with image.resize, image.crop and image.stretch"
        if words:
            yield key, words


def advice(words: str) -> str:
    """Return what to do about a setting that is idle for the reason that `words` tell."""
    return "give both, or leave it out" if words.startswith("without ") else "leave it out"


def _words(option: Field[Any], values: dict[str, Any]) -> str:
    words, effect = option.metadata.get("idle", ""), option.metadata.get("effect", True)
    if callable(words):
        return str(words(values))
    return str(words) if callable(effect) and not effect(values) else ""


def _is_passive(group: Any, key: str) -> bool:
    """Whether a key of a group changes no results anyway, as the switch of the group itself."""
    known = fields(group) if is_dataclass(group) else ()
    notes = {option.name: option.metadata for option in known}
    return key in notes and notes[key].get("effect") is False


def _has_seed(settings: Any) -> bool:
    """Whether any setting with an effect is a seed."""
    if isinstance(settings, list):
        return any(map(_has_seed, settings))
    if not isinstance(settings, dict):
        return False
    return any(key.endswith("seed") or _has_seed(each) for key, each in settings.items())
