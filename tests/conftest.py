# ruff: noqa: E402 (what has to be said before PyTorch is imported)
import gc
import os
import signal
import typing
from collections.abc import Iterator
from copy import deepcopy
from functools import cache, lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

# Tests compute little at a time: a second thread gains nothing, and on a busy machine it waits in a
# loop for its turn. Set before PyTorch is imported, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
gc.disable()  # until all is imported: none of it is garbage; see `pytest_collection_finish`

import timm
import torch
from hypothesis import settings
from lightning_fabric.utilities.registry import _load_external_callbacks as external_callbacks
from matplotlib.legend import Legend
from pytorch_lightning.trainer.connectors import callback_connector as connector
from torch import nn

from tests.shapes import check_shapes

check_shapes()  # before anything imports the package

settings.register_profile("fixed", derandomize=True, database=None, deadline=None)
settings.load_profile("fixed")  # before any test inherits from it

SHARED = Path(os.environ.get("PATCHCORE_SHARED", Path(__file__).parents[2] / "shared"))


def shared(path: str) -> Path:
    """A file of the real data and weights that are not part of the project, or a skip."""
    if not (SHARED / path).exists():
        pytest.skip(f"needs {path} under PATCHCORE_SHARED ({SHARED})")
    return SHARED / path


def pytest_collection_finish() -> None:
    """Leave what was imported out of the search for garbage, and search seldom.

    Libraries are more than a million objects: to look through them again and again took a sixth of
    the tests' time.
    """
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()


@pytest.fixture(scope="session")
def resnet18_weights() -> Path:
    return shared("weights/resnet18_tv_to_layer3.safetensors")


@pytest.fixture(scope="session")
def mtd_root() -> Path:
    return shared("data/mtd")


@pytest.fixture(autouse=True, scope="session")
def interrupts() -> None:
    """Let SIGINT end runs, also in a shell's background job, which is started to ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def legends() -> Iterator[None]:
    """Refuse a legend without a place: matplotlib looks for the best one and warns where that
    takes it a second, which a busy machine does now and then."""

    def refused(self: Legend, *_: Any) -> None:
        raise AssertionError(f"the legend of {self.get_texts()} states no place (loc=)")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Legend, "_find_best_position", refused)
        yield


@pytest.fixture(autouse=True, scope="session")
def networks() -> Iterator[None]:
    """Draw a network's random weights once for all tests: it takes longer than most runs."""
    create = timm.create_model

    @lru_cache(maxsize=4)
    def drawn(name: str, seed: int, sizes: tuple[tuple[str, Any], ...]) -> nn.Module:
        return create(name, **dict(sizes))

    def copied(name: str, pretrained: bool = False, **sizes: Any) -> nn.Module:
        if pretrained:
            return create(name, pretrained=True, **sizes)
        return deepcopy(drawn(name, torch.initial_seed(), (*sizes.items(),)))

    with mock.patch("timm.create_model", copied):
        yield


@pytest.fixture(autouse=True, scope="session")
def extensions_once() -> Iterator[None]:
    """Let Lightning look for other packages' callbacks once, not for every trainer."""
    with mock.patch.object(connector, "_load_external_callbacks", cache(external_callbacks)):
        yield


@pytest.fixture(scope="session")
def hints_once() -> Iterator[None]:
    """Let PyTorch look up the types of a class's fields once as it reads exported programs.

    It does so for every node of a graph, which takes half of the reading.
    """
    from torch._export.serde import serialize  # slow to import

    @cache
    def hints(kind: type) -> dict[str, Any]:
        return typing.get_type_hints(kind, globalns=vars(serialize.schema))

    def known(kind: type, globalns: Any) -> dict[str, Any]:
        assert globalns is vars(serialize.schema)
        return hints(kind)

    own = SimpleNamespace(**{**vars(typing), "get_type_hints": known})
    with mock.patch.object(serialize, "typing", own):
        yield


@pytest.fixture(autouse=True, scope="session")
def settings_once() -> Iterator[None]:
    """Compose what all tests compose once; see `tests/composing.py`."""
    from tests.composing import remembered  # imports the package, whose functions are wrapped first

    with remembered():
        yield
