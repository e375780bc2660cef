"""Settings whose values are text, so that `1.10` or `2024_11` means these characters."""

import re
from dataclasses import fields
from functools import cache

from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf, StringNode

from patchcore.commands.groups import SCHEMAS, keys_below, settings_of
from patchcore.data.sample import Category

_LOGGERS = (
    r"logger\.\w+\.(artifact_location|checkpoint_name|dir|entity|experiment_name|group|id|job_type|"
    r"name|notes|prefix|project|run_id|run_name|save_dir|sub_dir|tags(\.\w+)?|tracking_uri|version)"
)
_HYDRA = (
    r"hydra\.(job\.env_set\.\w+|searchpath|sweeper\.(storage|study_name)|launcher\.(account|comment|"
    r"constraint|exclude|gres|name|nodelist|partition|qos|submitit_folder))"
)
_UNDECLARED = re.compile(rf"data\.category|layers\.names|{_LOGGERS}|{_HYDRA}")
"""Keys of texts whose type no dataclass declares, or that are lists of texts."""
_NUMBERED = re.compile(r"layers\.names|logger\.\w+\.version")
"""Keys of texts that may also be whole numbers, with a meaning of their own."""


def is_text(key: str) -> bool:
    """Return whether the value of a setting is text, or a list of texts."""
    return key in _declared() or _UNDECLARED.fullmatch(key) is not None


@cache
def _declared() -> set[str]:
    hydra = keys_below(OmegaConf.structured(HydraConf), "hydra.", (StringNode,))
    return {*settings_of(StringNode), *hydra}


@cache
def _never_null() -> set[str]:
    """Keys of a data set's names, among which null is one, too."""
    names: dict[str, bool] = {}
    for schema in SCHEMAS["data"].values():
        for option in fields(schema):
            if option.type in (str, str | None, Category):
                key = f"data.{option.name}"
                names[key] = names.get(key, False) or option.type == str | None
    return {key for key, nullable in names.items() if not nullable}


def typed_name(argument: str) -> str:
    """Return `key=value` with quotes around texts that look like numbers; see `as_typed`."""
    key, _, value = argument.partition("=")
    name = key.lstrip("+")
    if not is_text(name):
        return argument
    choice = re.fullmatch(r"(choice\()(.*)(\))", value)
    before, words, after = choice.groups() if choice else ("", value, "")
    if re.fullmatch(r"\[[^\[\]]+\](,\[[^\[\]]+\])*", words):  # lists of names
        lists = (typed_name(f"{name}={each}") for each in words[1:-1].split("],["))
        inner = "],[".join(each.partition("=")[2] for each in lists)
        return f"{key}={before}[{inner}]{after}"
    if not words or re.search(r"['\"()\[\]{}$\\]", words):
        return argument
    quoted = (quoted_text(word, name) for word in words.split(","))
    return f"{key}={before}{','.join(quoted)}{after}"


def quoted_text(word: str, key: str) -> str:
    """Return a text with quotes if Hydra would read it as a number, or as true or null.

    null has none where it is meant.
    """
    text = word.strip()
    if text.lower() == "null" and key not in _never_null():
        return word
    try:
        value = OverridesParser.create().parse_override(f"name={text}").value()
    except HydraException:  # Hydra reports this itself
        return word
    if str(value) == text and isinstance(value, int) and _NUMBERED.fullmatch(key):
        return word
    return f"'{text}'" if value is None or isinstance(value, bool | int | float) else word
