"""References to other settings that cannot be followed: the key where they stand is named."""

from typing import Any

import pytest
from hydra import compose, initialize_config_module

from patchcore.commands.composed import to_config
from patchcore.commands.generations import VERSION_BASE
from patchcore.commands.mistakes import explain


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=${nope}"], "seed: refers to nope, which does not exist; write a literal $ as \\$"),
        (["seed=${patch.nope}"], "seed: refers to patch.nope, which does not exist; write a "),
        (["seed=a${nope}b"], "seed: refers to nope, which does not exist; write a literal $"),
        (["seed=${coreset.ratio}", "coreset.ratio=${x}"], "coreset.ratio: refers to x, which "),
        (["data.root=${image.limi}"], "data.root: refers to image.limi, which does not exist"),
        (["curve=[${nope}]"], "curve[0]: refers to nope, which does not exist; write a literal"),
        (["seed=${.nope}"], "seed: refers to nope, which does not exist; write a literal $"),
        (["seed=${seed}"], "seed: refers to itself, directly or through others: give a value"),
        (["seed=${coreset.seed}"], "seed: refers to itself, directly or through others"),
        (
            ["seed=${oc.env:NO_SUCH}"],
            "seed: cannot be resolved: Environment variable 'NO_SUCH' not found",
        ),
        (["seed=${nope:3}"], "seed: Unsupported interpolation type nope"),
    ],
)
def test_the_key_where_a_reference_stands_is_named(overrides: list[str], message: str) -> None:
    with initialize_config_module(config_module="patchcore.conf", **VERSION_BASE):
        cfg: Any = compose("config", ["logger=none", *overrides])
    with pytest.raises(Exception) as caught:
        to_config(cfg)
    told = explain(caught.value)
    assert told is not None and told.startswith(message) and "\n" not in told
