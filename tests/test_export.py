"""Exported models: the same scores, maps and verdicts through other runtimes."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from patchcore import (
    BackboneConfig,
    Ensemble,
    GreedyConfig,
    InputError,
    LayersConfig,
    Padim,
    PadimConfig,
    PatchConfig,
    PatchCore,
    ScoringConfig,
    Spade,
)
from patchcore.data.images import read_image
from patchcore.data.transforms import ImageConfig
from patchcore.data.view import View
from patchcore.export import FORMATS, ExportedModel, Parity, export, load_export
from patchcore.export.formats import OnnxFormat
from patchcore.export.model import DESCRIPTION
from patchcore.export.parity import compared
from patchcore.index.exact import TorchIndex, search_traced
from patchcore.inspector import Inspector
from tests.images import write_image
from tests.runs import patchcore
from tests.shapes import leave_unchecked

pytestmark = [
    pytest.mark.filterwarnings("ignore:backbone test_resnet has random weights"),
    # PyTorch, of convolutions' weights that lie channels last.
    pytest.mark.filterwarnings("ignore:No complete tensor found in the group"),
]
SIDE = 48
IMAGE = ImageConfig(size=SIDE, view=View.square)
REWEIGHTED = ScoringConfig(neighbours=2, reweight=3, top_share=0.1, sigma=2)
TINY = {"backbone": BackboneConfig("test_resnet", "none"), "patch": PatchConfig(channels=9)}


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions without their checks of shapes, which PyTorch's compilers cannot follow."""
    leave_unchecked(monkeypatch)


def pixels(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)


def nominal(count: int = 4) -> Tensor:
    return (pixels(count).permute(0, 3, 1, 2).float() / 255 - 0.45) / 0.22


def inspector(model: Any, **more: Any) -> Inspector:
    return Inspector(model.fit(nominal()), IMAGE, **more)


def needs(format: str) -> None:
    """Skip unless the format's libraries are installed: pip install 'patchcore[export]'."""
    for library in (FORMATS[format].runtime, *FORMATS[format].writers):
        pytest.importorskip(library)


@dataclass
class Exported:
    """An export, the model that it is of, and what their comparison said."""

    folder: Path
    python: Inspector
    parity: Parity


@pytest.fixture(scope="module", params=["onnx", "openvino", "torch"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The embedded network with the whole of Eq. 7, in each format."""
    needs(request.param)
    patch = pytest.MonkeyPatch()
    leave_unchecked(patch)
    python = inspector(
        PatchCore(coreset=GreedyConfig(ratio=0.5), scoring=REWEIGHTED),
        details={"metrics": {"image_threshold": 0.5}, "lineage": [{"step": "fit"}]},
    )
    folder = tmp_path_factory.mktemp("export") / request.param
    parity = export(python, folder, request.param, threads=1)
    patch.undo()
    return Exported(folder, python, parity)


def test_an_export_scores_batches_of_any_length_as_the_model_does(exported: Exported) -> None:
    loaded = load_export(exported.folder, threads=1)
    for count in (1, 3):
        batch = pixels(count, seed=count)
        ours, theirs = loaded.score(batch), exported.python.score(batch)
        assert ours.score.dtype == ours.map.dtype == torch.float32
        assert ours.score.shape == (count,) and ours.map.shape == (count, SIDE, SIDE)
        assert torch.allclose(ours.score, theirs.score, rtol=1e-5, atol=0)
        assert (ours.map - theirs.map).abs().max() <= 1e-5 * theirs.map.abs().max()


def test_an_export_says_how_it_was_compared(exported: Exported) -> None:
    parity = exported.parity
    assert parity.images > 4 and parity.threshold == 0.5 and parity.flipped == 0
    assert parity.score < 1e-5 and parity.map_share < 1e-5 and not parity.failures
    assert f"images            {parity.images}\n" in str(parity)


def test_an_export_brings_all_that_inspecting_needs(exported: Exported, tmp_path: Path) -> None:
    loaded = load_export(exported.folder)
    assert loaded.format == exported.folder.name and loaded.size == (SIDE, SIDE)
    assert [step["step"] for step in loaded.details["lineage"]] == ["fit", "export"]
    assert loaded.details["metrics"] == {"image_threshold": 0.5}
    assert loaded.image == IMAGE and loaded.decision is None
    image = read_image(write_image(tmp_path / "image.png", (90, 70)))
    prepared = loaded.prepare(image)
    assert np.array_equal(prepared, exported.python.prepare(image))
    found = loaded.score(torch.from_numpy(prepared)[None])
    assert loaded.place(found.map[0], (70, 90)).shape == (70, 90)


def test_images_of_another_size_are_refused(exported: Exported) -> None:
    loaded = load_export(exported.folder)
    with pytest.raises(InputError, match=r"^images must be uint8 \(B, 48, 48, 3\), got uint8"):
        loaded.score(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"got float32 \(1, 48, 48, 3\)"):
        loaded.score(torch.zeros(1, SIDE, SIDE, 3))


def test_a_damaged_export_is_refused(exported: Exported) -> None:
    for path in sorted(exported.folder.iterdir()):
        whole = path.read_bytes()
        try:
            for data in (whole[:-1], whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]):
                path.write_bytes(data)
                with pytest.raises(InputError, match=f"{path.name}: is damaged"):
                    load_export(exported.folder)
        finally:
            path.write_bytes(whole)
    assert load_export(exported.folder).size == (SIDE, SIDE)


def test_onnx_has_standard_operators_alone(exported: Exported) -> None:
    if exported.folder.name != "onnx":
        pytest.skip("of ONNX files")
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported.folder / OnnxFormat.file)
    assert [(x.domain, x.version) for x in model.opset_import] == [("", 18)]
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    assert [x.name for x in model.graph.input] == ["images"]
    assert [x.name for x in model.graph.output] == ["score", "map"]
