"""Networks that are built for one point of a multirun and copied for later ones.

Building a network takes longer than copying it: its weights are drawn or read, and one image is
passed through it to find the channels of its layers. The points of a sweep over coresets or patch
sizes all have the same network.
"""

import copy
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from patchcore._weights import is_file
from patchcore.backbones import Backbone, BackboneConfig, LayersConfig

MOST = 4
"""Largest number of networks that are kept: about as many as an ensemble has members."""

_kept: OrderedDict[str, tuple[Backbone, list[Warning | str]]] = OrderedDict()
_wanted = False


@contextmanager
def networks_kept(wanted: bool) -> Iterator[None]:
    """Let `make_backbone` keep networks in this process and return copies, if `wanted`."""
    global _wanted
    before, _wanted = _wanted, wanted
    try:
        yield
    finally:
        _wanted = before


def make_backbone(config: BackboneConfig, layers: LayersConfig) -> Backbone:
    """Return `Backbone(config, layers)`, as a copy of a kept network inside `networks_kept`.

    A copy shares nothing with the kept network, and repeats the warnings of building it.
    """
    if not _wanted:
        return Backbone(config, layers)
    key = _key(config, layers)
    if key not in _kept:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", UserWarning)
            made = Backbone(config, layers)
        _kept[key] = made, [one.message for one in told]
    _kept.move_to_end(key)
    while len(_kept) > MOST:
        _kept.popitem(last=False)
    made, told_then = _kept[key]
    for message in told_then:
        warnings.warn(message, stacklevel=2)
    return copy.deepcopy(made)


def _key(config: BackboneConfig, layers: LayersConfig) -> str:
    """Return a key of all that determines a network: settings, and the state of a weights file."""
    weights = config.resolved()
    state = None
    if is_file(weights) and Path(weights).is_file():
        found = Path(weights).resolve().stat()
        state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    return repr((config, weights, layers, state))
