"""References in settings, such as `${seed}`: the files they stand in, and what they give."""

import re
from dataclasses import is_dataclass
from typing import Any

from omegaconf import Container, DictConfig, ListConfig, OmegaConf

from patchcore.errors import InputError

_texts: dict[str, str] = {}  # of the settings files from elsewhere that this process has read


def remember(file: str, text: str) -> None:
    """Remember the text of a settings file, in which a reference may stand."""
    _texts[file] = text


def text_of(file: str) -> str:
    """Return the remembered text of a settings file; empty if it is unknown."""
    return _texts.get(file, "")


def is_in_another(file: str, key: str) -> bool:
    """Whether another of the files holds a key of this name."""
    name = f"{key.rpartition('.')[2]}:"
    return any(name in text for other, text in _texts.items() if other != file)


def place_of(reference: str, followed: bool, key: str) -> str:
    """Return words in parentheses on a reference and the settings file that it stands in.

    Args:
        reference: As it is written, such as `${oc.env:HOME}`.
        followed: Whether the reference gives a value; else only the file is told, if it is known.
        key: Dotted name of the setting.
    """
    name = re.split(r"[.\[]", re.sub(r"(\[\d+\])+$", "", key))[-1]
    found = [file for file, text in _texts.items() if reference in text and f"{name}:" in text]
    words = [reference] if followed else []
    words += [f"in {found[0]}"] if len(found) == 1 else []
    return f" ({' '.join(words)})" if words else ""


def check_references(node: DictConfig) -> None:
    """Refuse a reference to another kind of value in place of a list or of a group's settings.

    Raises:
        InputError: The key, what the reference gives, and what is expected.
        omegaconf.errors.OmegaConfBaseException: The reference cannot be followed.
    """
    for key in node:
        inner: Any = node._get_node(key)
        if not isinstance(inner, Container) or inner._is_none() or inner._is_missing():
            continue
        if not inner._is_interpolation():
            if isinstance(inner, DictConfig):
                check_references(inner)
            continue
        found, name = node[key], node._get_full_key(key)
        wanted, text = "", str(inner._value())
        if isinstance(inner, ListConfig) and not isinstance(found, ListConfig | list):
            wanted = f"must be a list: '{name}=[…]'"
        elif isinstance(inner, DictConfig) and not _suits(inner, found):
            wanted = "must be settings (KEY: VALUE) of its own kind"
        if wanted:
            raise InputError(f"{name}: {wanted}, got {_shown(found)}{place_of(text, True, name)}")


def _suits(node: DictConfig, found: Any) -> bool:
    """Whether a value may stand in place of a group, or of a mapping of plain values."""
    kind = node._metadata.ref_type
    if not isinstance(found, DictConfig | dict):
        return False
    given = OmegaConf.get_type(found) if isinstance(found, DictConfig) else dict
    return not is_dataclass(kind) or issubclass(given or dict, kind)


def _shown(value: Any) -> str:
    return "settings" if isinstance(value, DictConfig) else str(value)
