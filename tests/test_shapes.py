"""The check of shapes itself: it sees every algorithm, and it sees wrong shapes."""

import sys
from collections.abc import Callable
from importlib import import_module
from unittest.mock import Mock

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from patchcore.coreset import Coreset, Order, greedy_order, reconstruction_loss, subsample
from patchcore.coreset.all import AllConfig
from patchcore.foreground import foreground
from patchcore.index import TorchIndex
from patchcore.metrics import region_areas, sweep
from patchcore.patches import PatchConfig, PatchFeatures
from patchcore.scoring import ScoringConfig, anomaly_maps, patch_scores
from patchcore.tiles import Band, Tiling, mirrored
from tests.shapes import COMPILED, checked_modules

ROWS, INTS = torch.rand(4, 3), torch.arange(4)


def test_every_file_of_the_algorithms_is_checked() -> None:
    names = set(checked_modules())
    assert names >= {f"patchcore.{name}" for name in ("patches", "scoring")}
    assert names >= {f"patchcore.{n}" for n in ("coreset.order", "index.exact", "metrics.sweep")}
    assert names >= {"patchcore.tiles.maps", "patchcore.tiles.raster", "patchcore.whitening"}
    assert not names & COMPILED
    import_module("patchcore.metrics.states")  # the one that waits until it is asked for
    assert names <= set(sys.modules)


@pytest.mark.parametrize(
    "call",
    [
        lambda: PatchFeatures([3], PatchConfig())([ROWS]),
        lambda: subsample(INTS[:, None], AllConfig()),
        lambda: greedy_order(ROWS[0], 2),
        lambda: reconstruction_loss(ROWS, ROWS[:, :2]),
        lambda: Coreset(ROWS, INTS[:3]),
        lambda: Order(INTS, torch.rand(5), ROWS[0]),
        lambda: TorchIndex(INTS),
        lambda: TorchIndex(ROWS).search(ROWS[0], 1),
        lambda: patch_scores(INTS, ScoringConfig()),
        lambda: anomaly_maps(ROWS, (8, 8), 1.0),
        lambda: sweep(ROWS, ROWS[0]),
        lambda: sweep(ROWS[0], ROWS[0], torch.ones(5)),
        lambda: region_areas(ROWS[None]),
        lambda: Band([ROWS], (1, 1), 0, 1.0),
        lambda: Tiling.tile(Mock(), ROWS, INTS, INTS),
        lambda: mirrored(0, 4, ROWS),
        lambda: foreground(ROWS, 1.0),
    ],
)
def test_a_wrong_shape_or_kind_is_seen(call: Callable[[], Tensor]) -> None:
    with pytest.raises(TypeCheckError):
        call()
