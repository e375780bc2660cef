"""Settings that Hydra has composed: checked, completed, and converted to objects."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from patchcore.backbones import BackboneConfig
from patchcore.commands.groups import SCHEMAS
from patchcore.commands.mistakes import no_such_option, without_kind
from patchcore.commands.references import check_references
from patchcore.config import Config
from patchcore.data.inputs import complete_images
from patchcore.data.transforms import FILLED, ImageConfig
from patchcore.errors import InputError
from patchcore.settings import check_range

LARGEST = {
    "image.size": 2**16,
    "image.resize": 2**16,
    "image.crop": 2**16,
    "image.tiles": 2**16,
    "image.overlap": 2**16,
    "data.size": 2**14,
    "data.workers": 1024,
    "patch.size": 2**10,
    "scoring.sigma": 1000,
}
"""Largest values of sizes; more would exhaust memory or processes before any image is read."""


def to_config(cfg: DictConfig) -> Config:
    """Return the settings as objects, each checked by its `__post_init__`.

    Null values in `cfg` that depend on the network's weights are filled in, too: see `fill_inputs`.

    Raises:
        InputError: A value is out of its range, or there is no such option.
        omegaconf.errors.OmegaConfBaseException: A value is missing or of a wrong type.
    """
    check_references(cfg)
    values = OmegaConf.to_container(cfg, resolve=True)  # its errors name the key
    OmegaConf.resolve(cfg)  # once, for all later reads
    reject_added(cfg)
    for group in SCHEMAS:
        if words := without_kind(group, OmegaConf.get_type(cfg[group])):
            raise InputError(f"{group}: {words}")
    check_numbers(values)
    check_declared(cfg)  # before timm is imported for what the weights record
    fill_inputs(cfg)
    for i, member in enumerate(cfg.ensemble.members):
        with _of_member(i):
            OmegaConf.to_object(member)
    config = OmegaConf.to_object(cfg)
    if not isinstance(config, Config):
        raise TypeError("the configuration does not start from the schema")
    return config


def reject_added(node: DictConfig) -> None:
    """Refuse keys that +key=value or YAML files have added and the schema does not have.

    Raises:
        InputError: There is no such option.
    """
    schema = OmegaConf.get_type(node)
    if not is_dataclass(schema):
        return
    names = {option.name for option in fields(schema)}
    for key in node:
        if key not in names:
            raise InputError(no_such_option(node._get_full_key(key), schema))
        if not OmegaConf.is_missing(node, key) and isinstance(child := node[key], DictConfig):
            reject_added(child)


def check_declared(node: DictConfig) -> None:
    """Refuse numbers outside of the ranges that their settings declare.

    Raises:
        InputError: As the settings object itself raises it.
    """
    schema = OmegaConf.get_type(node)
    declared = {option.name: option for option in fields(schema)} if is_dataclass(schema) else {}
    for key in node:
        if OmegaConf.is_missing(node, key):
            continue
        value = node[key]
        if isinstance(value, DictConfig):
            check_declared(value)
        elif isinstance(value, ListConfig) and value and isinstance(value[0], DictConfig):
            for each in value:
                check_declared(each)
        elif key in declared:
            check_range(declared[str(key)], value, node._get_full_key(key))


def check_numbers(value: Any, key: str = "") -> None:
    """Refuse numbers that no setting can have; each setting declares its own, narrower range.

    Raises:
        InputError: A number is not finite, or too large to be meant; the key is named.
    """
    match value:
        case dict():
            # Groups last: their seeds follow from the run's, which is the one to name.
            for name, each in sorted(value.items(), key=lambda item: isinstance(item[1], dict)):
                check_numbers(each, f"{key}.{name}" if key else str(name))
        case list():
            for i, each in enumerate(value):
                check_numbers(each, f"{key}[{i}]")
        case float() if not math.isfinite(value):
            raise InputError(f"{key} must be a finite number, got {value}")
        case bool():
            pass
        case int() if re.search(r"(^|[._])seed$", key):
            if not 0 <= value < 2**32:
                raise InputError(f"{key} must be in [0, 2^32), got {value}")
        case int() | float():
            most = next((n for end, n in LARGEST.items() if f".{key}".endswith(f".{end}")), 2**31)
            if abs(value) > most:
                raise InputError(f"{key} must be at most {most:,} in size, got {value}")


def fill_inputs(cfg: DictConfig) -> None:
    """Replace null and missing settings of backbones and images by the values that are used.

    So fingerprint and `config.yaml` hold what is used: see `Config.completed`. Nothing is built or
    downloaded.

    Raises:
        InputError: A network or tag does not exist, or a setting of an image is out of its range.
    """
    members = cfg.ensemble.members
    own = [cfg.backbone if each.backbone is None else each.backbone for each in members]
    networks = [BackboneConfig(cfg.backbone.name, cfg.backbone.weights)]
    cfg.backbone.weights = networks[0].resolved()
    for i, backbone in enumerate(own):
        with _of_member(i):
            networks.append(BackboneConfig(backbone.name, backbone.weights))
            backbone.weights = networks[-1].resolved()
    image: Any = OmegaConf.merge(OmegaConf.structured(ImageConfig), cfg.image)
    kind: Any = OmegaConf.get_type(cfg.data)
    given = [None if each.image is None else _given(each.image) for each in members]
    records = [network.input() for network in networks]
    completed = complete_images(kind, records, _given(image), given)
    for member in members:
        if member.image is None:
            member.image = image.copy()
    images = (cfg.image, *(member.image for member in members))
    for node, found in zip(images, completed, strict=True):
        for key in FILLED:
            node[key] = getattr(found, key)


@contextmanager
def _of_member(number: int) -> Iterator[None]:
    """Name a member of an ensemble in the messages about its settings."""
    try:
        yield
    except InputError as error:
        raise InputError(f"ensemble.members[{number}].{error}") from None


def _given(image: DictConfig) -> dict[str, Any]:
    return {str(key): image[key] for key in image if not OmegaConf.is_missing(image, str(key))}
