"""Networks of one point of a multirun, for the next ones in the same process.

Building a network takes longer than copying it: its weights are drawn or read, and images run
through it until all about its layers is known. A point of a sweep over coresets or patch sizes has
the network of the point before.
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
"""Networks that are kept; an ensemble has about as many members."""

_kept: OrderedDict[str, tuple[Backbone, list[str]]] = OrderedDict()
_wanted = False


@contextmanager
def networks_kept(wanted: bool) -> Iterator[None]:
    """Let `make_backbone` keep networks, and copy those that it has kept."""
    global _wanted
    before, _wanted = _wanted, wanted
    try:
        yield
    finally:
        _wanted = before


def make_backbone(config: BackboneConfig, layers: LayersConfig) -> Backbone:
    """Return `Backbone(config, layers)`, as a copy where that is kept.

    A copy shares nothing with the network that is kept, and tells the warnings of building it.
    """
    if not _wanted:
        return Backbone(config, layers)
    key = _key(config, layers)
    if key not in _kept:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", UserWarning)
            made = Backbone(config, layers)
        _kept[key] = made, [str(one.message) for one in told if one.category is UserWarning]
    _kept.move_to_end(key)
    while len(_kept) > MOST:
        _kept.popitem(last=False)
    made, told_then = _kept[key]
    for message in told_then:
        warnings.warn(message, stacklevel=2)
    return copy.deepcopy(made)


def _key(config: BackboneConfig, layers: LayersConfig) -> str:
    """All that a network follows from: settings, and of weights in a file which state of it."""
    weights = config.resolved()
    state = None
    if is_file(weights) and Path(weights).is_file():
        found = Path(weights).resolve().stat()
        state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    return repr((config, weights, layers, state))
