"""Names in settings files that YAML or Hydra would read as numbers, so that 1.10 would be 1.1."""

from collections.abc import Iterator
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, Node, OmegaConf
from omegaconf._utils import get_yaml_loader

from patchcore.commands.texts import is_text, typed_name
from patchcore.errors import InputError

_NUMBERS = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "float", "int")}
"""Tags in YAML of what is read as a number or a truth value."""
_TRIED = "hydra.sweeper.params"  # values to try in a multirun, by the keys of their settings


def check_names(file: str, text: str, package: str) -> None:
    """Refuse a name that YAML reads as other characters, such as 1.10, 2024_11 or yes.

    Args:
        file: Path of a settings file, for the message.
        text: Its content.
        package: Dotted key below which its settings lie; empty for all settings.

    Raises:
        InputError: There is such a name; the message has its line.
    """
    where = [(package, yaml.compose(text, get_yaml_loader()))]
    while where:
        key, node = where.pop()
        for name, inner in _inside(key, node):
            where.append((name, inner))
        if getattr(node, "tag", "") not in _NUMBERS or not is_text(key):
            continue
        value = yaml.load(node.value, get_yaml_loader())
        if str(value) != node.value:
            raise InputError(
                f"{file}: line {node.start_mark.line + 1}: {key}: {node.value} would be read as "
                f"{value}: write '{node.value}' with quotes"
            )


def _inside(key: str, node: Any) -> Iterator[tuple[str, Any]]:
    """Yield the keys and nodes of a mapping or list in YAML."""
    if isinstance(node, yaml.MappingNode):
        for name, inner in node.value:
            whole = f"{key}.{name.value}" if key else str(name.value)
            yield whole.removeprefix(f"{_TRIED}."), inner
    elif isinstance(node, yaml.SequenceNode):
        yield from ((key, inner) for inner in node.value)


def quote_tried(config: Any, package: str) -> None:
    """Put quotes around names that look like numbers among a file's values to try in a multirun.

    Args:
        config: Settings of the file, which change.
        package: Dotted key below which they lie; empty for all settings.
    """
    if not f"{_TRIED}.".startswith(f"{package}." if package else ""):
        return
    path = _TRIED.removeprefix(package).removeprefix(".")
    found = OmegaConf.select(config, path) if path else config
    for key in found if isinstance(found, DictConfig) else ():
        node: Any = found._get_node(key)
        values = node._value() if isinstance(node, Node) else None
        if isinstance(values, str):
            found[key] = typed_name(f"{key!s}={values}").partition("=")[2]
