"""Groups of choices, one from each registry, made known to Hydra."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, Node, OmegaConf

from patchcore.backbones import BackboneConfig
from patchcore.commands.generations import store
from patchcore.commands.resolvers import register_resolvers
from patchcore.config import Config
from patchcore.coreset import SAMPLERS
from patchcore.data.sets import DATA_SETS
from patchcore.index import INDEXES
from patchcore.methods import METHODS
from patchcore.tracking import presets

SCHEMAS: dict[str, Mapping[str, Any]] = {
    "data": DATA_SETS,
    "coreset": SAMPLERS,
    "index": INDEXES,
    "method": METHODS,
}
"""Groups whose choices have settings of their own: {group: {choice: dataclass}}."""


def register() -> None:
    """Make the registries known to Hydra as groups, and the resolvers of conf/ to OmegaConf."""
    register_resolvers()
    store("schema", _seeded(OmegaConf.structured(Config)))
    for group, choices in SCHEMAS.items():
        for name, kind in choices.items():
            node = {group: _seeded(OmegaConf.structured(kind)), **_brought(group, kind)}
            store(name, OmegaConf.create(node), group, "_global_")
    for name, preset in presets().items():
        store(name, preset, "logger")


def _brought(group: str, kind: Any) -> dict[str, Any]:
    """Return the settings outside of its group that a choice changes, too."""
    brought: dict[str, Any] = {}
    if group == "data" and kind.CATEGORIES:  # a multirun runs all of them, unless some are named
        brought["hydra"] = {"sweeper": {"params": {"data.category": all_categories(kind)}}}
    if group == "method":
        if "coreset" not in kind.reads:
            brought["defaults"] = [{"override /coreset": "all"}]
        if kind.levels:
            brought["layers"] = {"names": list(kind.levels)}
    return brought


def all_categories(kind: Any) -> str:
    """Return the categories of a data set as a multirun tries them."""
    return ",".join(f"'{each}'" if each.isdigit() else each for each in kind.CATEGORIES)


def _seeded(node: DictConfig) -> DictConfig:
    """Set every seed in a group's settings to the run's seed, and return the node.

    The backbone's seed is left alone: random weights stay the same whatever the run's seed is.
    """
    own = OmegaConf.get_type(node) in (Config, BackboneConfig)
    for key in node:
        if OmegaConf.is_missing(node, key):
            continue
        if isinstance(inner := node[key], DictConfig):
            _seeded(inner)
        elif re.fullmatch(r"(\w+_)?seed", str(key)) and not own:
            node[key] = "${seed}"
    return node


def settings_of(*kinds: type[Node]) -> set[str]:
    """Return the keys of the settings of some kinds, in all groups."""
    found = {*keys_below(OmegaConf.structured(Config), "", kinds)}
    for group, schemas in SCHEMAS.items():
        for schema in schemas.values():
            found |= {*keys_below(OmegaConf.structured(schema), f"{group}.", kinds)}
    return found


def keys_below(settings: DictConfig, prefix: str, kinds: tuple[type[Node], ...]) -> Iterator[str]:
    """Yield the keys of the values of some kinds in `settings`, each after `prefix`."""
    for key in map(str, settings):
        node = settings._get_node(key)
        if isinstance(node, kinds):
            yield f"{prefix}{key}"
        elif isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            yield from keys_below(node, f"{prefix}{key}.", kinds)
