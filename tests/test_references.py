"""References to other settings that cannot be followed: the key where they stand is named."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module

from patchcore.commands.composed import to_config
from patchcore.commands.generations import VERSION_BASE
from patchcore.commands.mistakes import explain
from tests.runs import patchcore


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=${nope}"], "seed: refers to nope, which does not exist; ${ always begins"),
        (["seed=${patch.nope}"], "seed: refers to patch.nope, which does not exist; ${ "),
        (["seed=a${nope}b"], "seed: refers to nope, which does not exist; ${ always begins"),
        (["seed=${coreset.ratio}", "coreset.ratio=${x}"], "coreset.ratio: refers to x, which "),
        (["data.root=${image.limi}"], "data.root: refers to image.limi, which does not exist"),
        (["curve=[${nope}]"], "curve[0]: refers to nope, which does not exist; ${ always"),
        (["seed=${.nope}"], "seed: refers to nope, which does not exist; ${ always begins"),
        (["seed=${seed}"], "seed: refers to itself, directly or through others: give a value"),
        (["seed=${coreset.seed}"], "seed: refers to itself, directly or through others"),
        (
            ["seed=${oc.env:NO_SUCH}"],
            "seed: the environment variable NO_SUCH is not set: set it, or write a value for that "
            "case, such as ${oc.env:NO_SUCH,0}",
        ),
        (["seed=${oc.env:}"], "seed: cannot be resolved, for an argument is missing: write it"),
        (["curve=[${curve}]"], "curve[0]: refers to itself, directly or through others"),
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


@pytest.mark.parametrize(
    ("key", "reference", "message"),
    [
        ("seed", "${oc.env:PLACE}", "must be a whole number, got /here"),
        ("coreset.ratio", "${oc.env:PLACE}", "must be a number, got /here"),
        ("figures", "${seed}x", "must be true or false, got 0x"),
        ("pictures", "${seed}", "must be one of none, all, wrong, got 0"),
        ("seed", "${coreset}", "must be a whole number, got settings"),
        ("seed", "${oc.decode:abc}", "must be a whole number, got abc"),
        ("seed", "${oc.select:nope}", "may not be null: leave it out, or give a value"),
        ("curve", "${seed}", "must be a list: 'curve=[…]', got 0"),
        ("ensemble.members", "${coreset}", "must be a list: 'ensemble.members=[…]', got settings"),
        ("decision", "${seed}", "must be settings (KEY: VALUE) of its own kind, got 0"),
        ("decision", "${coreset}", "must be settings (KEY: VALUE) of its own kind, got settings"),
    ],
)
def test_a_reference_that_gives_another_kind_of_value_is_told(
    key: str, reference: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACE", "/here")
    with initialize_config_module(config_module="patchcore.conf", **VERSION_BASE):
        cfg: Any = compose("config", ["logger=none", f"{key}={reference}"])
    with pytest.raises(Exception) as caught:
        to_config(cfg)
    assert explain(caught.value) == f"{key}: {message} ({reference})"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "coreset:\n  ratio: ${oc.env:PLACE}",
            "coreset.ratio: must be a number, got /here (${oc.env:PLACE} in FILE)",
        ),
        ("curve: ${seed}", "curve: must be a list: 'curve=[…]', got 0 (${seed} in FILE)"),
        ("seed: ${oc.env:HOME", "seed: is not understood: check the brackets of ${…}"),
        ("seed: ${oc.env:[1,}", "seed: is not understood: check the brackets of ${…}"),
        (
            "data:\n  seed: ${seed}\nseed: ${oc.env:NO_SUCH}",
            "seed: the environment variable NO_SUCH is not set: set it, or write a value for that "
            "case, such as ${oc.env:NO_SUCH,0} (in FILE)",
        ),
    ],
)
def test_the_file_of_a_reference_is_named(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACE", "/here")
    file = tmp_path / "experiment/mine.yaml"
    file.parent.mkdir()
    file.write_text(f"# @package _global_\n{text}\n")
    place = ["--config-dir", str(tmp_path), f"hydra.run.dir={tmp_path / 'run'}"]
    done = patchcore("train", *place, "experiment=mine", "logger=none")
    assert done.err == f"error: {message}\n".replace("FILE", str(file))


def test_a_group_that_nothing_chooses_from_is_told(tmp_path: Path) -> None:
    (tmp_path / "corset").mkdir()
    (tmp_path / "corset/mine.yaml").write_text("ratio: 0.1\n")
    done = patchcore("train", "--config-dir", str(tmp_path), "corset=mine", "logger=none")
    assert done.err == (
        "error: corset: no settings choose from such a group; did you mean coreset?\n"
    )
