"""Exported models: the same scores, maps and verdicts through other runtimes."""

import errno
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
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
    PatchCore,
    ScoringConfig,
    Spade,
    load,
)
from patchcore.commands.test import asked_data, check_places
from patchcore.data.folder import FolderConfig
from patchcore.data.generated import GeneratedConfig
from patchcore.data.images import read_image
from patchcore.data.mvtec import MVTecConfig
from patchcore.data.transforms import ImageConfig
from patchcore.data.view import View
from patchcore.digests import file_digest
from patchcore.export import FORMATS, Parity, export, load_export, load_model
from patchcore.export.formats import OnnxFormat
from patchcore.export.graph import traced_graph
from patchcore.export.parity import compared
from patchcore.extend import change_artifact
from patchcore.inspector import DIGESTS, SOURCES, Inspector
from patchcore.measuring import kept_data, measure
from patchcore.sealed import rewrite_description
from tests.images import write_image
from tests.processes import limited
from tests.runs import patchcore
from tests.shapes import leave_unchecked

pytestmark = [
    pytest.mark.usefixtures("hints_once"),
    pytest.mark.filterwarnings("ignore:backbone test_resnet has random weights"),
    # PyTorch, of convolutions' weights that lie channels last.
    pytest.mark.filterwarnings("ignore:No complete tensor found in the group"),
]
SIDE = 48
IMAGE = ImageConfig(size=SIDE, view=View.square)
EMBEDDED = BackboneConfig()  # traced in half the time of the smallest of timm's
REWEIGHTED = ScoringConfig(neighbours=2, reweight=3, top_share=0.1, sigma=2)


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions without their checks of shapes, which PyTorch's compilers cannot follow."""
    leave_unchecked(monkeypatch)


def pixels(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)


def nominal(count: int = 4) -> Tensor:
    return (pixels(count).permute(0, 3, 1, 2).float() / 255 - 0.45) / 0.22


def small(layers: list[str] | None = None, network: BackboneConfig = EMBEDDED) -> PatchCore:
    return PatchCore(network, LayersConfig(layers or ["2"]), coreset=GreedyConfig(ratio=0.1))


def inspector(model: Any, **more: Any) -> Inspector:
    return Inspector(model.fit(nominal()), IMAGE, **more)


def needs(format: str) -> None:
    """Skip unless the format's libraries are installed: pip install 'patchcore[export]'."""
    for library in (FORMATS[format].runtime, *FORMATS[format].writers):
        pytest.importorskip(library)


@dataclass
class Exported:
    """An export, also loaded; the model that it is of, and what their comparison said."""

    folder: Path
    loaded: Any
    python: Inspector
    parity: Parity


@pytest.fixture(scope="module")
def traced() -> tuple[Inspector, torch.export.ExportedProgram]:
    """The embedded network with the whole of Eq. 7, and its graph."""
    with pytest.MonkeyPatch.context() as patch:
        leave_unchecked(patch)
        python = inspector(
            PatchCore(coreset=GreedyConfig(ratio=0.5), scoring=REWEIGHTED),
            details={"metrics": {"image_threshold": 0.5}, "lineage": [{"step": "fit"}]},
        )
        return python, traced_graph(python, (SIDE, SIDE))


@pytest.fixture(scope="module")
def translated(
    traced: tuple[Inspector, torch.export.ExportedProgram],
) -> Callable[[], AbstractContextManager[None]]:
    """Context with the one graph, which is translated to ONNX only once: that takes seconds."""
    translate, kept = torch.onnx.export, []

    def export_once(program: torch.export.ExportedProgram, **settings: Any) -> Any:
        assert program is traced[1]
        if not kept:
            kept.append(translate(program, **settings))
        return kept[0]

    @contextmanager
    def context() -> Iterator[None]:
        with (
            mock.patch("patchcore.export.model.traced_graph", lambda *_: traced[1]),
            mock.patch("torch.onnx.export", export_once),
        ):
            yield

    return context


@pytest.fixture(scope="module", params=["onnx", "openvino", "torch"])
def exported(
    request: pytest.FixtureRequest,
    traced: tuple[Inspector, torch.export.ExportedProgram],
    translated: Callable[[], AbstractContextManager[None]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Exported:
    """One graph, traced once, in each format."""
    needs(request.param)
    python, _ = traced
    folder = tmp_path_factory.mktemp("export") / request.param
    with pytest.MonkeyPatch.context() as patch, translated():
        leave_unchecked(patch)
        parity = export(python, folder, request.param, threads=1)
    return Exported(folder, load_export(folder, threads=1), python, parity)


def test_an_export_scores_batches_of_any_length_as_the_model_does(exported: Exported) -> None:
    loaded = exported.loaded
    for count in (1, 3):
        batch = pixels(count, seed=count)
        ours, theirs = loaded.score(batch), exported.python.score(batch)
        assert ours.score.dtype == ours.map.dtype == torch.float32
        assert ours.score.shape == (count,) and ours.map.shape == (count, SIDE, SIDE)
        assert torch.allclose(ours.score, theirs.score, rtol=1e-5, atol=0)
        assert (ours.map - theirs.map).abs().max() <= 1e-5 * theirs.map.abs().max()


def test_an_export_says_how_it_was_compared(exported: Exported) -> None:
    parity = exported.parity
    assert (
        parity.images > 4
        and parity.threshold == pytest.approx(0.5, rel=1e-4)
        and parity.flipped == 0
    )
    assert parity.score < 1e-5 and parity.map_share < 1e-5 and not parity.failures
    assert f"images            {parity.images}\n" in str(parity)


def test_an_export_brings_all_that_inspecting_needs(exported: Exported, tmp_path: Path) -> None:
    loaded = exported.loaded
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
    loaded = exported.loaded
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


def test_an_export_of_a_newer_version_is_refused(exported: Exported) -> None:
    path = exported.folder / "export.yaml"
    whole = path.read_bytes()
    found = yaml.safe_load(whole)
    try:
        rewrite_description(exported.folder, "export.yaml", {**found, "tilt": 1})
        with pytest.raises(InputError, match=r"export.yaml: holds tilt, which .* newer patchcore"):
            load_export(exported.folder)
    finally:
        path.write_bytes(whole)


def test_onnx_has_standard_operators_alone(exported: Exported) -> None:
    if exported.folder.name != "onnx":
        pytest.skip("of ONNX files")
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported.folder / OnnxFormat.file)
    assert [(x.domain, x.version) for x in model.opset_import] == [("", 18)]
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    assert [x.name for x in model.graph.input] == ["images"]
    assert [x.name for x in model.graph.output] == ["score", "map"]


def test_what_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = inspector(small())
    monkeypatch.setattr(FORMATS["torch"], "write", lambda program, folder: None)
    for shift, words in ((1.001, "scores differ by 1.0e-03"), (np.nan, "scores differ by inf")):

        def run(images: Any, shift: float = shift) -> tuple[Any, Any]:
            found = python.score(torch.from_numpy(images))
            return found.score.numpy() * np.float32(shift), found.map.numpy()

        monkeypatch.setattr(FORMATS["torch"], "open", lambda folder, threads, run=run: run)
        monkeypatch.setattr("patchcore.export.model.traced_graph", lambda *_: None)
        with pytest.raises(
            InputError, match=f"nothing was written, .* differs from the model: {words}"
        ):
            export(python, tmp_path / "export", "torch")
        assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(program: Any, folder: Path) -> None:
        raise InputError("no counterpart of aten::such")

    whole = ImageConfig(size=SIDE, view=View.whole)
    model = small()
    python = inspector(model)
    cases = [
        (
            inspector(Spade()),
            "method=spade: cannot be exported: it searches the nominal images",
        ),
        (Inspector(model, IMAGE, precision="16-mixed"), "trainer.precision: the model was fitted"),
        (Inspector(model, whole), "image.view=whole gives every image its own size"),
        (
            Inspector(
                Ensemble([small(), small()]).fit(nominal()),
                [IMAGE, ImageConfig(size=64, view=View.square)],
            ),
            "ensemble.members: their images have several sizes",
        ),
    ]
    for each, words in cases:
        with pytest.raises(InputError, match=f"^{words}"):
            export(each, tmp_path / "export", "torch")
    monkeypatch.setattr(FORMATS["torch"], "write", refuse)
    monkeypatch.setattr("patchcore.export.model.traced_graph", lambda *_: None)
    with pytest.raises(InputError, match=r"^method=patchcore: cannot be exported to torch, which "):
        export(python, tmp_path / "export", "torch")
    with pytest.raises(InputError, match=r"^format: there is no 'onxx'; there are onnx, openvino"):
        export(python, tmp_path / "export", "onxx")
    monkeypatch.setattr(FORMATS["onnx"], "writers", ("no_such_library",))
    monkeypatch.setattr(FORMATS["onnx"], "runtime", "no_such_library")
    with pytest.raises(InputError, match=r"^no_such_library is not installed, .*pip install"):
        export(python, tmp_path / "export", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_images_of_their_own_aspect_ratio_fix_the_size(tmp_path: Path) -> None:
    network = BackboneConfig("test_resnet", "none")  # of timm, with a few layers
    python = Inspector(
        small(["1"], network).fit(nominal()),
        ImageConfig(size=SIDE, view=View.whole),
    )
    images = [write_image(tmp_path / f"{i}.png", size) for i, size in enumerate([(64, 48), (9, 9)])]
    parity = export(python, tmp_path / "export", "torch", images)
    assert load_export(tmp_path / "export").size == (48, 64)
    assert parity.images == 1  # the other has another size


def test_ensembles_and_padim_are_exported(tmp_path: Path) -> None:
    padim = Padim(PadimConfig(channels=6), EMBEDDED, LayersConfig(["2"]))
    for model in (Ensemble([small(["1"]), small()]), padim):
        python = inspector(model)
        export(python, tmp_path / "export", "torch")  # the second in place of the first
        loaded = load_export(tmp_path / "export")
        for count in (2, 5):
            found, expected = (each.score(pixels(count, seed=1)) for each in (loaded, python))
            assert torch.allclose(found.score, expected.score, rtol=1e-4)


def test_an_operation_that_a_format_lacks_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = inspector(Padim(PadimConfig(channels=6), EMBEDDED, LayersConfig(["2"])))
    program = traced_graph(python, (SIDE, SIDE))
    monkeypatch.setattr("patchcore.export.model.traced_graph", lambda *_: program)
    for format in ("onnx", "openvino"):
        needs(format)
        told = f"^method=.*: cannot be exported to {format}, .*: choose --format torch$"
        with pytest.raises(InputError, match=told):
            export(python, tmp_path / "export", format)
        assert not (tmp_path / "export").exists()


@pytest.mark.parametrize(
    ("format", "writes", "error"),
    [
        ("onnx", "torch.onnx.ONNXProgram.save", OSError(errno.ENOSPC, "No space left on device")),
        ("openvino", "shutil.copyfile", OSError(errno.ENOSPC, "No space left on device")),
        ("torch", "pathlib.Path.write_bytes", OSError(errno.ENOSPC, "No space left on device")),
    ],
)
def test_a_graph_that_cannot_be_written_lacks_no_operation(
    traced: tuple[Inspector, torch.export.ExportedProgram],
    translated: Callable[[], AbstractContextManager[None]],
    format: str,
    writes: str,
    error: Exception,
    tmp_path: Path,
) -> None:
    needs(format)
    told = (
        rf"^{tmp_path}/export: cannot be written \(No space left on device\): make room or choose "
        "another folder$"
    )
    failing = mock.patch(writes, side_effect=error)
    with translated(), failing, pytest.raises(InputError, match=told):
        export(traced[0], tmp_path / "export", format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["onnx", "openvino", "torch"])
def test_a_graph_for_which_there_is_no_room_is_a_line(
    traced: tuple[Inspector, torch.export.ExportedProgram],
    translated: Callable[[], AbstractContextManager[None]],
    format: str,
    tmp_path: Path,
) -> None:
    needs(format)
    told = "File too large" if format != "openvino" else "in .*, where it is made first: make room"
    with translated(), limited(20_000), pytest.raises(OSError, match=told):
        FORMATS[format].write(traced[1], tmp_path)


def test_an_export_is_told_from_an_artifact(tmp_path: Path) -> None:
    (tmp_path / "export.yaml").touch()
    with pytest.raises(InputError, match="an export, which only predict, test and serve accept"):
        load(tmp_path)


@pytest.mark.parametrize("graph", ["model.onnx", "model.xml", "model.pt2"])
def test_an_export_without_its_description_is_no_artifact(graph: str, tmp_path: Path) -> None:
    (tmp_path / graph).touch()
    with pytest.raises(InputError, match=rf": has the graph {graph}, but no export\.yaml: copy"):
        load_model(tmp_path)


def test_differences_are_the_largest_of_all_images() -> None:
    rng = np.random.default_rng(0)
    ours = [(rng.random(3, np.float32), rng.random((3, 4, 5), np.float32)) for _ in range(3)]
    theirs = [(s * np.float32(1 + 1e-3), m + np.float32(1e-2)) for s, m in ours]
    threshold = float(ours[1][0][2]) * 1.0005
    found = compared(zip(ours, theirs, strict=True), threshold)
    pairs = list(zip(ours, theirs, strict=True))
    score = max(abs(a - b) / a for (x, _), (y, _) in pairs for a, b in zip(x, y, strict=True))
    share = max(
        np.abs(a - b).max() / a.max() for (_, x), (_, y) in pairs for a, b in zip(x, y, strict=True)
    )
    assert found.images == 9 and found.flipped == 1
    assert found.score == pytest.approx(score, rel=1e-4)
    assert found.map == pytest.approx(1e-2, rel=1e-4)
    assert found.map_share == pytest.approx(share, rel=1e-4)
    assert [text.split(" ")[0] for text in found.failures] == ["scores", "maps", "1"]


def test_scores_on_both_sides_of_zero_have_a_unit() -> None:
    ours, theirs = (np.float32([1e-9]), np.zeros((1, 2, 2))), (np.zeros(1), np.zeros((1, 2, 2)))
    assert compared([(ours, theirs)]).score == pytest.approx(1)
    assert compared([(ours, theirs)], unit=1).score == pytest.approx(1e-9)


def test_a_score_that_is_no_number_is_a_difference() -> None:
    fine = (np.ones(1, np.float32), np.ones((1, 2, 2), np.float32))
    for bad in (np.nan, np.inf):
        found = compared([(fine, (np.float32([bad]), fine[1]))])
        assert found.score == np.inf and found.failures
        found = compared([(fine, (fine[0], np.full((1, 2, 2), bad, np.float32)))])
        assert found.map_share == np.inf and found.failures


def write_data(root: Path) -> dict[str, Any]:
    """Images on disk, and what an artifact tells of them."""
    for i in range(4):
        write_image(root / f"nominal/{i}.png", (SIDE, SIDE), i)
    for i in range(2):
        write_image(root / f"more/{i}.png", (SIDE, SIDE), 10 + i)
        path = root / f"anomalous/{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((SIDE, SIDE, 3), 250 * i, np.uint8)).save(path)
    settings = {"root": str(root), "nominal_test": "more", "anomalous": "anomalous"}
    return {"set": "folder", "settings": settings}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with images, an artifact of them, and its export."""
    root = tmp_path_factory.mktemp("kept")
    patch = pytest.MonkeyPatch()
    leave_unchecked(patch)
    details = {"data": write_data(root / "data"), "metrics": {"memory_patches": 36}}
    model = small().fit(nominal())
    model.save(root / "model", image=IMAGE, details=details)
    done = patchcore("export", str(root / "model"), "--format", "torch")
    patch.undo()
    assert done.code == 0, done.err
    assert "compared with the model on training images, through torch:" in done.out
    assert f"torch: {root / 'model-torch'} (" in done.out
    return root


@pytest.mark.parametrize("saved", [True, False])
def test_an_export_knows_the_images_that_its_model_was_fitted_to(
    tmp_path: Path, saved: bool
) -> None:
    details = {"data": write_data(tmp_path / "data")}
    data, path = kept_data(details), tmp_path / "old.png"
    assert data is not None
    shutil.copy(tmp_path / "data/more/1.png", path)
    python = inspector(small(), details={**details, SOURCES: [str(path), None]})
    if saved:
        python.save(tmp_path / "model")
        path.rename(tmp_path / "new.png")
        python = load_model(tmp_path / "model")
    export(python, tmp_path / "export", "torch")
    path.unlink(missing_ok=True)
    loaded = load_export(tmp_path / "export")
    digests = [file_digest(tmp_path / "data/more/1.png"), None]
    assert loaded.details[DIGESTS[SOURCES]] == digests
    words = (
        r"^data: test images that the model was fitted to: 1 of 4 "
        rf"\(such as {tmp_path}/data/more/1\.png = {path}\); "
    )
    with pytest.warns(UserWarning, match=words):
        measure(loaded, data)


def test_an_export_is_made_again_after_an_extension(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_unchecked(monkeypatch)
    for name in ("model", "model-torch"):
        shutil.copytree(kept / name, tmp_path / name)
    folder = tmp_path / "model-torch"
    done = patchcore("export", str(tmp_path / "model"), "--format=torch", f"--output={folder}")
    assert done.code == 1
    assert done.err == f"error: --output: {folder} is there already: name another folder\n"
    new = write_image(tmp_path / "new.png", (SIDE, SIDE), 77)
    change_artifact(tmp_path / "model", [new])
    done = patchcore("export", str(tmp_path / "model"), "--format", "torch")
    assert done.code == 0, done.err
    steps = [step["step"] for step in load_model(folder).details["lineage"]]
    assert steps == ["fit", "extend", "export"]

    shutil.rmtree(tmp_path / "model")
    shutil.copytree(kept / "model", tmp_path / "model")  # not the one that was extended
    done = patchcore("export", str(tmp_path / "model"), "--format", "torch")
    assert done.code == 1
    assert done.err == (
        f"error: {folder} is there already, and is no export of this model: remove it, or give "
        "--output\n"
    )
    (folder / "export.yaml").unlink()
    done = patchcore("export", str(tmp_path / "model"), "--format", "torch")
    assert done.code == 1
    assert done.err == f"error: {folder} is there already: remove it, or give --output\n"


def test_the_command_tells_why_it_cannot_export(kept: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    out = ["--output", str(tmp_path / "out")]
    for more, words in (
        (["--images", str(tmp_path / "none")], "--images: there is no folder"),
        (["--images", str(tmp_path / "empty")], "--images: there are no images in"),
    ):
        done = patchcore("export", str(kept / "model"), "--format", "torch", *out, *more)
        assert done.code == 1 and done.err.startswith(f"error: {words}")
    done = patchcore("export", str(tmp_path), *out)
    assert done.code == 1 and "is not an artifact" in done.err
    assert not (tmp_path / "out").exists()


def test_the_command_tells_of_images_in_a_folder_whose_name_is_not_utf_8(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_unchecked(monkeypatch)
    images = tmp_path / "caf\udce9"
    write_data(images)
    (images / "1.heic").touch()
    out = ["--format", "torch", "--output", str(tmp_path / "out"), "--images", str(images)]
    with pytest.warns(UserWarning, match=r"^data: 1 file passed over: 1 \.heic \(such as"):
        done = patchcore("export", str(kept / "model"), *out)
    assert done.code == 0, done.err
    assert f"compared with the model on images in {tmp_path}/caf\\xe9, through" in done.out


@pytest.mark.parametrize("folder", ["model", "model-torch"])
def test_what_is_deployed_is_what_is_measured(kept: Path, tmp_path: Path, folder: str) -> None:
    done = patchcore("test", str(kept / folder), "--output", str(tmp_path / "found"))
    assert done.code == 0, done.err
    assert done.err == ""  # no banners
    record = json.loads((tmp_path / "found/metrics.json").read_text())
    assert record["image_auroc"] == 1 and record["test_images"] == 4
    assert record["memory_patches"] == 36  # as the run told
    assert "image_auroc              1.0000" in done.out
    rows = (tmp_path / "found/scores.csv").read_text().splitlines()[1:]
    python = load_model(kept / "model")
    for row in rows:
        path, _, _, score, _ = row.split(",")
        batch = torch.from_numpy(np.array(read_image(Path(path))))[None]
        assert float(score) == pytest.approx(float(python.score(batch).score), rel=1e-5)
    again = patchcore("test", str(kept / folder), "--output", str(tmp_path / "found"))
    assert again.code == 1 and "is there already: name another folder" in again.err


def test_of_several_tests_with_one_output_one_wins(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "found"

    def both(*arguments: Any) -> Any:
        """Another process ends its test into the same folder in the meantime."""
        monkeypatch.undo()
        assert patchcore("test", str(kept / "model"), "--output", str(out)).code == 0
        return measure(*arguments)

    monkeypatch.setattr("patchcore.commands.test.measure", both)
    done = patchcore("test", str(kept / "model"), "--output", str(out))
    assert done.code == 1
    assert (
        done.err == f"error: --output: {out / 'scores.csv'} is there already: name another folder\n"
    )


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.nominl_test=x"], "data.nominl_test: there is no such option; did you mean"),
        (["data=mvtc"], "data=mvtc: there is no such choice; there are btad, folder"),
        (["coreset.ratio=1"], "coreset.ratio=1: not understood: type data=NAME"),
        (["data.batch_size=many"], "data.batch_size: must be a whole number, got many"),
        (["--threads=2"], "--threads: is for an export: set OMP_NUM_THREADS for an artifact"),
        (["--threads=0"], "argument --threads: must be a whole number from 1 on, got 0"),
        (["--thread=2"], "--thread: there is no such option; did you mean --threads"),
        ([f"--output={__file__}"], "--output: .*test_export.py is a file: name a folder"),
        (["data.anomalous=none"], "data.anomalous: there is no folder"),
        (["data=mvtec", "data.root=none"], "data.root: there is no folder none"),
        (["data=mvtec", "data.category=a,b"], "data.category=a,b: not understood: give one value"),
        (["data=mvtec", "data.root=a=b"], "data.root: the value needs its own quotes"),
    ],
)
def test_settings_of_a_test_are_checked(kept: Path, overrides: list[str], words: str) -> None:
    done = patchcore("test", str(kept / "model"), *overrides)
    assert done.code == 1
    assert re.match(f"error: ({words})", done.err), done.err
    assert done.err.count("\n") == 1


def test_other_data_may_be_tested_on(kept: Path) -> None:
    kept_settings = kept_data(load_model(kept / "model").details)
    assert isinstance(kept_settings, FolderConfig)
    asked = asked_data(kept_settings, ["data.batch_size=3", "data=folder"])
    assert asked == replace(kept_settings.placed(), batch_size=3)
    other = asked_data(kept_settings, ["data=generated", "data.train_images=2"])
    assert other == GeneratedConfig(train_images=2)
    named = asked_data(kept_settings, ["data=mvtec", "data.category=01", "data.root='a, b'"])
    assert (named.category, named.root) == ("01", "a, b")
    for name in ("yes", "1e3", "010", "null", "[yes,010]"):
        found = asked_data(None, ["data=mvtec", f"data.category={name}"])
        assert found.category == (["yes", "010"] if name.startswith("[") else name)
    with pytest.raises(InputError, match=r"^data: the model does not record which data set it was"):
        asked_data(None, [])


def test_folders_that_are_typed_are_those_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders that the model records are below that of its run, which may be gone."""
    monkeypatch.chdir(tmp_path)
    kept = FolderConfig(root="/where/it/was", nominal="good", masks="masks", anomalous="/bad")
    found = asked_data(kept, ["data.anomalous=BAD", "data.masks=M"])
    assert isinstance(found, FolderConfig)
    places = [found.root, found.nominal, found.anomalous, found.masks]
    assert places == [".", "/where/it/was/good", "BAD", "M"]
    moved = asked_data(kept, ["data.root=/new", "data.anomalous=BAD", "data.masks=null"])
    assert isinstance(moved, FolderConfig)
    assert [moved.root, moved.nominal, moved.anomalous] == ["/new", "good", "BAD"]


def test_a_folder_that_has_moved_is_told_as_the_models_own(tmp_path: Path) -> None:
    place = tmp_path / "was"
    told = r", which the model's own run has read, is not there: give data\.root=… if the images"
    whole, own = MVTecConfig(root=str(place), category="a"), FolderConfig(root=str(place))
    with pytest.raises(InputError, match=rf"^data\.root: {place}{told}"):
        check_places(whole, asked_data(whole, []))
    with pytest.raises(InputError, match=rf"^data\.nominal: {place}/nominal{told}"):
        check_places(own, asked_data(own, ["data.anomalous=b"]))
    for kept in (whole, own, None):  # these are told as anything that was typed
        check_places(kept, asked_data(kept, ["data=mvtec", "data.root=b", "data.category=a"]))
    check_places(own, asked_data(own, ["data.root=b"]))
    check_places(own, asked_data(own, ["data.nominal=b"]))
    (place / "nominal").mkdir(parents=True)
    check_places(own, asked_data(own, []))
    check_places(whole, asked_data(whole, []))


def test_what_is_about_the_runs_own_images_is_left_out_for_others() -> None:
    """Masks of other images, and a share of images that would not be tested on."""
    kept = FolderConfig(
        nominal="/n", nominal_test="/t", anomalous="/a", masks="/m", contamination=0.1
    )
    assert asked_data(kept, ["data=folder", "data.root=/", "data.anomalous=/a/"]) == replace(
        kept, root="/", anomalous="/a/"
    )
    with pytest.warns(UserWarning) as told:
        found = asked_data(kept, ["data.nominal=/x", "data.anomalous=/b"])
    assert found == FolderConfig(nominal="/x", anomalous="/b")
    words = "is left out, as it is about the {} images of the model's own run: give data.{} for oth"
    for warning, (setting, about) in zip(
        told,
        [
            ("nominal_test=/t", "nominal"),
            ("masks=/m", "anomalous"),
            ("contamination=0.1", "nominal"),
        ],
        strict=True,
    ):
        key = setting.partition("=")[0]
        assert str(warning.message).startswith(f"data.{setting} {words.format(about, key)}")
    with pytest.warns(UserWarning, match=r"^data\.contamination=0\.1 is left out, as it is about"):
        found = asked_data(MVTecConfig(category="a", contamination=0.1), ["data.category=b"])
    assert found == MVTecConfig(category="b")
