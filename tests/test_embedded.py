"""The network that ships with the package, and the program that trained it."""

import hashlib
import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from patchcore import _embedded
from patchcore.backbones import Backbone, BackboneConfig, LayersConfig, load_embedded
from patchcore.errors import InputError

ROOT = Path(__file__).parents[1]
SHIPPED = files("patchcore") / "weights" / _embedded.SHIPPED_FILE
SHARED = Path(os.environ.get("PATCHCORE_SHARED", ROOT.parent / "shared"))


def test_maps_have_the_grids_of_a_resnet() -> None:
    trunk = load_embedded()
    maps: dict[str, torch.Tensor] = {}
    for name in ("layer1", "layer2", "layer3"):
        trunk.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: maps.update({name: output})
        )
    with torch.inference_mode():
        layer2, layer3 = trunk(torch.randn(2, 3, 224, 224))
    assert maps["layer1"].shape == (2, 32, 56, 56)
    assert maps["layer2"] is layer2 and layer2.shape == (2, 128, 28, 28)
    assert maps["layer3"] is layer3 and layer3.shape == (2, 256, 14, 14)
    assert layer2.dtype == layer3.dtype == torch.float32
    assert layer2.isfinite().all() and layer3.isfinite().all()
    assert not trunk.training


def test_channels_are_alive() -> None:
    torch.manual_seed(0)
    with torch.inference_mode():
        maps = load_embedded()(torch.randn(4, 3, 96, 96))
    for layer in maps:
        silent = (layer.amax((0, 2, 3)) == 0).float().mean()
        assert silent < 0.1


def test_weights_are_small_and_those_of_the_card() -> None:
    data = SHIPPED.read_bytes()
    assert len(data) <= 8_000_000
    digest = hashlib.sha256(data).hexdigest()
    assert digest == _embedded.SHIPPED_SHA256
    assert digest in (files("patchcore") / "weights" / "MODEL_CARD.md").read_text()


def package(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package's folder of weights, of our own."""
    (root / "weights").mkdir()
    monkeypatch.setattr(_embedded, "files", lambda name: root)
    return root / "weights" / _embedded.SHIPPED_FILE


def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = package(tmp_path, monkeypatch)
    data = bytearray(SHIPPED.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match=rf"{_embedded.SHIPPED_FILE} has SHA-256 .* install"):
        load_embedded()


def test_missing_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = package(tmp_path, monkeypatch)
    with pytest.raises(InputError, match="missing") as caught:
        load_embedded()
    assert str(file) in str(caught.value)


def test_another_training_is_used_from_its_file(tmp_path: Path) -> None:
    layers, images = LayersConfig(), torch.randn(1, 3, 64, 64)
    file = tmp_path / "embedded.safetensors"
    file.write_bytes(SHIPPED.read_bytes())
    shipped = Backbone(BackboneConfig("embedded", "shipped"), layers)(images)
    same = Backbone(BackboneConfig("embedded", str(file)), layers)(images)
    assert all(torch.equal(a, b) for a, b in zip(shipped, same, strict=True))
    save_file({name: x / 2 for name, x in load_file(file).items()}, file)
    other = Backbone(BackboneConfig("embedded", str(file)), layers)(images)
    assert not any(torch.equal(a, b) for a, b in zip(shipped, other, strict=True))
    file.unlink()
    with pytest.raises(InputError, match=f"backbone.weights: no such file: {file}"):
        Backbone(BackboneConfig("embedded", str(file)), layers)


def test_fusing_changes_nothing() -> None:
    pytest.importorskip("skimage", reason="scikit-image is needed to train the network")
    from experiments.embedded_backbone.designs import DESIGNS, as_shipped

    torch.manual_seed(0)
    student = DESIGNS["rep-32-96"]()
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    student.eval()
    with torch.inference_mode():
        x = torch.randn(2, 3, 64, 64)
        for trained, shipped in zip(student(x), as_shipped(student)(x), strict=True):
            torch.testing.assert_close(trained, shipped, rtol=1e-4, atol=1e-4)


def test_it_resembles_its_teacher() -> None:
    """Far less of ResNet-18's variance is missed than the 1.0 that a constant would miss."""
    pytest.importorskip("skimage", reason="scikit-image is needed to draw the images")
    weights = SHARED / "weights" / "resnet18_tv_to_layer3.safetensors"
    if not weights.is_file():
        pytest.skip(f"no {weights}: set PATCHCORE_SHARED to the folder that holds weights/")
    from experiments.embedded_backbone.evaluate import load_teacher, unexplained

    with torch.inference_mode():
        missed = unexplained(
            load_embedded(), load_teacher(f"resnet18={weights}"), None, torch.device("cpu"), 16
        )
    assert max(missed) < 0.6


def test_training_program_runs(tmp_path: Path) -> None:
    """Three steps from a random teacher, down to a file that measures like the student."""
    pytest.importorskip("skimage", reason="scikit-image is needed to train the network")
    import timm

    teacher = tmp_path / "teacher.safetensors"
    save_file(timm.create_model("resnet18", pretrained=False).state_dict(), teacher)
    command = [sys.executable, "-m", "experiments.embedded_backbone.train"]
    command += ["--designs", "rep-32-96", "pdn", "--device", "cpu"]
    command += ["--teacher", f"resnet18={teacher}", "--out", str(tmp_path / "out")]
    command += ["--steps", "3", "--batch", "4", "--size", "64", "--scenes", "8"]
    command += ["--held-out", "2", "--categories", "0"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results) == {"teacher", "rep-32-96", "pdn"}
    assert all(error > 0 for error in results["pdn"].values())
    measured = tmp_path / "measured.json"
    command = [sys.executable, "-m", "experiments.embedded_backbone.evaluate"]
    command += [str(tmp_path / "out" / "embedded.safetensors"), "--device", "cpu"]
    command += ["--teacher", f"resnet18={teacher}", "--json", str(measured)]
    command += ["--held-out", "2", "--categories", "0"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    exported = json.loads(measured.read_text())[str(tmp_path / "out" / "embedded.safetensors")]
    assert exported == pytest.approx(results["rep-32-96"], rel=0.02)  # float16


def test_measures_of_the_study() -> None:
    """A perfect student misses nothing; the shipped network sees generated defects."""
    pytest.importorskip("skimage", reason="scikit-image is needed to draw the images")
    from experiments.embedded_backbone.evaluate import auroc, detection, unexplained

    def colours(x: torch.Tensor) -> list[torch.Tensor]:
        return [nn.functional.avg_pool2d(x, 8), nn.functional.avg_pool2d(x, 16)]

    device = torch.device("cpu")
    assert max(unexplained(colours, colours, None, device, 2)) == 0
    with torch.inference_mode():
        found = detection(load_embedded(), device, categories=4, nominal=8, test=8)
    assert found.image_auroc > 0.65 and found.pixel_auroc > 0.72
    scores, labels = torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([False, False, True, True])
    assert auroc(scores, labels) == 0.75
