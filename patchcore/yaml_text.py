"""Settings as YAML text, read and written as OmegaConf does, in a tenth of its time.

OmegaConf uses PyYAML's parser in Python and makes a node of every value, even if only plain values
are needed. Here libyaml parses, if PyYAML was built with it, and only values that OmegaConf could
change or refuse are passed through OmegaConf.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf._utils import get_omega_conf_dumper
from omegaconf.errors import OmegaConfBaseException

from patchcore.errors import InputError

try:
    from omegaconf._yaml import get_yaml_loader  # type: ignore[import-not-found,unused-ignore]
except ImportError:  # OmegaConf 2.3
    from omegaconf._utils import get_yaml_loader

DEEPEST = 100
"""Largest depth of nested lists and mappings that is read; more could crash the process."""

_HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""Matches surrogates, which libyaml cannot read: bytes of file names that are not UTF-8."""

_SIMPLE = {str, int, float, bool, type(None)}


def read_settings(text: str) -> Any:
    """Return the plain values of a YAML text, with interpolations as text; {} for an empty text.

    Equals `OmegaConf.to_container(OmegaConf.load(file))` where that is a mapping or a list.

    Raises:
        InputError: The text has tags, anchors or aliases, or is nested deeper than `DEEPEST`.
        yaml.YAMLError: The text is not YAML, or has a key twice.
        omegaconf.errors.OmegaConfBaseException: OmegaConf does not support a value.
    """
    depth = 0
    quick = yaml.__with_libyaml__ and not _HALF.search(text)
    for event in yaml.parse(text, Loader=yaml.CSafeLoader if quick else yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise InputError(f"YAML nested deeper than {DEEPEST} is not read")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise InputError("YAML anchors and aliases are not read")
        if getattr(event, "tag", None):
            raise InputError("YAML tags are not read")
    content = yaml.load(text, _loader(quick))
    return {} if content is None else _as_settings(content)


def settings_in(folder: Path) -> Any:
    """Return the settings of the run in a folder, or None if they cannot be read."""
    path = folder / "config.yaml"
    if not path.is_file():  # a pipe would never end
        return None
    try:
        return read_settings(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException):
        return None


def write_settings(settings: dict[str, Any]) -> str:
    """Return settings as the YAML text that `OmegaConf.to_yaml` writes.

    Raises:
        omegaconf.errors.OmegaConfBaseException: OmegaConf does not support a value.
    """
    value, dumper = _as_settings(settings), get_omega_conf_dumper()
    try:
        return _dumped(value, dumper)
    except UnicodeEncodeError:  # OmegaConf 2.4 writes with libyaml, which refuses surrogates
        names = ("yaml_representers", "yaml_implicit_resolvers")
        plain = type("Plain", (yaml.Dumper,), {name: getattr(dumper, name) for name in names})
        return _dumped(value, plain)


def _dumped(value: Any, dumper: Any) -> str:
    form = {"default_flow_style": False, "allow_unicode": True, "sort_keys": False}
    text: str = yaml.dump(value, Dumper=dumper, **form)
    return text


def _as_settings(value: Any) -> Any:
    """Return a value as OmegaConf stores it."""
    if type(value) in _SIMPLE and not (isinstance(value, str) and "${" in value):
        return value
    if type(value) is list:
        return [_as_settings(each) for each in value]
    if type(value) is dict and all(type(key) is str for key in value):
        return {key: _as_settings(each) for key, each in value.items()}
    checked: Any = OmegaConf.to_container(
        OmegaConf.create([value]), resolve=False, enum_to_str=True
    )
    return checked[0]


@cache
def _loader(quick: bool) -> Any:
    """Return a loader class with OmegaConf's rules for numbers; it uses libyaml if `quick`."""
    base: Any = yaml.CSafeLoader if quick else yaml.SafeLoader

    class Loader(base):
        yaml_implicit_resolvers = get_yaml_loader().yaml_implicit_resolvers

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = set()
            for key, _ in node.value:
                if key.tag == yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG:
                    if key.value in names:
                        raise yaml.constructor.ConstructorError(
                            None, None, f"duplicate key {key.value}", key.start_mark
                        )
                    names.add(key.value)
            return super().construct_mapping(node, deep)

    return Loader
