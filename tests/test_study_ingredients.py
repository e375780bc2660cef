"""The study of ingredients in miniature: nothing is computed twice that points have in common."""

import json
from collections import Counter
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from patchcore import GreedyConfig
from patchcore.backbones import Join, LayersConfig
from patchcore.cache import CacheConfig
from patchcore.commands.generations import VERSION_BASE
from patchcore.methods import PatchCoreConfig
from patchcore.runner import run
from patchcore.scoring import ScoringConfig
from tests.images import write_mvtec
from tests.runs import config

# The miniature's grids are so small that a foreground, once dilated, is all of them.
pytestmark = pytest.mark.filterwarnings("ignore:method.foreground=0.001. every patch")
ON: dict[str, Any] = {
    "layers.join": "separate",
    "method.whitening": 0.99,
    "method.foreground": 10,
    "method.radius": 2,
    "method.retrieval": 50,
    "scoring.top_share": 0.01,
}
"""Ingredients with the value that switches each on."""


def test_it_crosses_all_ingredients_at_three_seeds() -> None:
    with initialize_config_module("patchcore.conf", **VERSION_BASE):
        cfg = compose("config", ["experiment=ingredients"], return_hydra_config=True)
    swept = OmegaConf.to_container(cfg.hydra.sweeper.params)
    assert isinstance(swept, dict)
    swept.pop("data.category", None)
    assert swept.pop("seed") == "0,1,2"
    off = {"layers.join": "concat"}
    assert swept == {key: f"{off.get(key, 'null')},{value}" for key, value in ON.items()} | {
        "scoring.top_share": "0,0.01"
    }


def groups(on: set[str]) -> dict[str, Any]:
    join = Join.separate if "layers.join" in on else Join.concat
    method = {
        key.partition(".")[2]: {"foreground": 1e-3, "retrieval": 2}.get(key[7:], value)
        for key, value in ON.items()
        if key in on and key.startswith("method.")
    }
    return {
        "layers": LayersConfig(["2", "3"], join),
        "method": PatchCoreConfig(**method),
        "scoring": ScoringConfig(top_share=0.3 if "scoring.top_share" in on else 0.0),
    }


@pytest.fixture(scope="module")
def costs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[set[str], dict[str, Any]]]:
    """Costs of a half of a half of the 2^6 points, in which each pair of ingredients is crossed."""
    root = tmp_path_factory.mktemp("ingredients")
    write_mvtec(root, (40, 36))
    cache = CacheConfig(enabled=True, root=str(root / "cache"))
    names, found = [*ON], []
    for number in range(16):
        bits = [number >> place & 1 for place in range(4)]
        bits += [bits[0] ^ bits[1] ^ bits[2], bits[1] ^ bits[2] ^ bits[3]]
        on = {name for name, bit in zip(names, bits, strict=True) if bit}
        settings = config(root, cache=cache, coreset=GreedyConfig(ratio=0.5), **groups(on))
        run(settings, root / str(number))
        told = json.loads((root / str(number) / "provenance.json").read_text())
        found.append((on, told["costs"]))
    return found


def test_every_image_is_decoded_and_extracted_once(
    costs: list[tuple[set[str], dict[str, Any]]],
) -> None:
    stages = ("extract.decode", "extract.network", "score.decode", "score.network")
    for stage in stages:
        assert [told[stage]["cached"] for _, told in costs] == [False] + [True] * 15, stage


def test_every_distinct_coreset_is_made_once(
    costs: list[tuple[set[str], dict[str, Any]]],
) -> None:
    deciding = {"layers.join", "method.whitening", "method.foreground"}
    made = Counter(frozenset(on & deciding) for on, told in costs if not told["coreset"]["cached"])
    assert len(made) == 8 and set(made.values()) == {1}
