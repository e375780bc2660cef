"""Networks that a multirun keeps from point to point are as good as new ones."""

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from patchcore import reuse
from patchcore.backbones import Backbone, BackboneConfig, LayersConfig
from patchcore.errors import InputError
from patchcore.reuse import make_backbone, networks_kept

LAYERS = LayersConfig(["2", "3"])
IMAGES = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "_kept", type(reuse._kept)())


def same(one: Backbone, other: Backbone) -> bool:
    return all(torch.equal(x, y) for x, y in zip(one(IMAGES), other(IMAGES), strict=True))


def test_outside_a_multirun_nothing_is_kept() -> None:
    with networks_kept(True), networks_kept(False):
        make_backbone(BackboneConfig(), LAYERS)
    make_backbone(BackboneConfig(), LAYERS)
    assert not reuse._kept


@pytest.mark.parametrize("seen", [0, 1, 2])
def test_a_copy_equals_a_new_one_whatever_was_done_to_those_before(seen: int) -> None:
    new = Backbone(BackboneConfig(), LAYERS)
    with networks_kept(True):
        for _ in range(seen):
            used = make_backbone(BackboneConfig(), LAYERS)
            used(IMAGES)
            used.double()
            with torch.no_grad():
                next(used.network.parameters()).zero_()
        made = make_backbone(BackboneConfig(), LAYERS)
    assert same(made, new)
    assert made.layers == new.layers
    assert next(made.parameters()).dtype is torch.float32


def test_settings_and_layers_have_networks_of_their_own() -> None:
    deep = LayersConfig(["3"])
    with networks_kept(True):
        make_backbone(BackboneConfig(), LAYERS)
        assert len(make_backbone(BackboneConfig(), deep).layers) == 1
        with pytest.warns(UserWarning, match="random weights"):
            one = make_backbone(BackboneConfig(weights="none", seed=1), LAYERS)
        with pytest.warns(UserWarning, match="random weights"):
            two = make_backbone(BackboneConfig(weights="none", seed=2), LAYERS)
        with pytest.warns(UserWarning, match="random weights"):  # a copy tells it, too
            again = make_backbone(BackboneConfig(weights="none", seed=1), LAYERS)
    assert not same(one, two)
    assert same(one, again)


def test_a_file_of_weights_that_has_changed_is_read_again(tmp_path: Path) -> None:
    file, network = tmp_path / "w.safetensors", Backbone(BackboneConfig(), LAYERS).network
    config = BackboneConfig(weights=str(file))
    save_file({key: x.contiguous() for key, x in network.state_dict().items()}, file)
    with networks_kept(True):
        before = make_backbone(config, LAYERS)
        assert same(before, make_backbone(config, LAYERS))
        changed = {key: x.contiguous() / 2 for key, x in network.state_dict().items()}
        save_file(changed, file)
        after = make_backbone(config, LAYERS)
    assert not same(before, after)


def test_no_more_are_kept_than_an_ensemble_has() -> None:
    with networks_kept(True):
        for number in range(reuse.MOST + 2):
            with pytest.warns(UserWarning, match="random weights"):
                make_backbone(BackboneConfig(weights="none", seed=number), LAYERS)
    assert len(reuse._kept) == reuse.MOST


def test_warnings_of_any_kind_are_told_with_every_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(config: BackboneConfig, layers: LayersConfig) -> Backbone:
        warnings.warn("weights from afar", FutureWarning, stacklevel=1)
        return Backbone(config, layers)

    monkeypatch.setattr(reuse, "Backbone", build)
    with networks_kept(True):
        for _ in range(2):
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                make_backbone(BackboneConfig(), LAYERS)
            assert [(one.category, str(one.message)) for one in told] == [
                (FutureWarning, "weights from afar")
            ]


def test_a_network_that_cannot_be_built_leaves_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"no weights")
    config = BackboneConfig(weights=str(file))
    with networks_kept(True):
        with pytest.raises(InputError, match="cannot be read"):
            make_backbone(config, LAYERS)
        assert not reuse._kept
        network = Backbone(BackboneConfig(), LAYERS).network
        save_file({key: x.contiguous() for key, x in network.state_dict().items()}, file)
        make_backbone(config, LAYERS)
    assert len(reuse._kept) == 1
