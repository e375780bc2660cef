"""Regions of images that do not count: in the memory, in scores, maps and metrics, and on disk."""

import json
import os
import shutil
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest import mock
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from patchcore import InputError, Inspector, PatchCore, load
from patchcore.artifact import save
from patchcore.backbones import Join, LayersConfig
from patchcore.data.augment import AugmentConfig
from patchcore.data.dataset import ImageDataset, collate
from patchcore.data.images import read_image
from patchcore.data.mvtec import MVTecConfig
from patchcore.data.sample import Sample
from patchcore.data.transforms import ImageConfig
from patchcore.data.view import View
from patchcore.extend import change_artifact
from patchcore.inspection import Inspection, Thresholds
from patchcore.inspection import predict as inspected
from patchcore.inspector import MOST_SIZES, placed
from patchcore.measuring import kept_data, measure
from patchcore.members import EnsembleModule, shown_map
from patchcore.methods import Parts, PatchCoreConfig, build_detector
from patchcore.methods.counted import Counted, cells
from patchcore.methods.detector import Fitting
from patchcore.methods.ensemble import Ensemble
from patchcore.methods.scale import Scale
from patchcore.metrics import PixelMetrics
from patchcore.module import DetectorModule
from patchcore.overlays import MapFormat, Pictures
from patchcore.record import Record
from patchcore.report import figures
from patchcore.scoring import anomaly_maps, cell_pixels
from tests import reference
from tests.images import write_image, write_mvtec
from tests.runs import TINY, Outcome, patchcore
from tests.test_methods import build

SIZE = (32, 24)
METHODS = ["patchcore", "spade", "padim", "ensemble"]


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def left(count: int) -> Tensor:
    """Pixels (B, H, W) of two of the three columns of cells."""
    inside = torch.zeros(count, *SIZE, dtype=torch.bool)
    inside[:, :, : SIZE[1] * 2 // 3] = True
    return inside


def naive_cells(inside: NDArray[np.bool_], grid: tuple[int, int]) -> NDArray[np.bool_]:
    """A cell counts if at least half of its pixels lie inside."""
    height, width = inside.shape
    members: dict[tuple[int, int], list[bool]] = {}
    for y in range(height):
        for x in range(width):
            cell = (y * grid[0] // height, x * grid[1] // width)
            members.setdefault(cell, []).append(bool(inside[y, x]))
    found = np.zeros(grid, dtype=bool)
    for cell, pixels in members.items():
        found[cell] = sum(pixels) * 2 >= len(pixels)
    return found


# --- the rule ---------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(4, 3), (5, 7), (32, 24)])
def test_a_cell_counts_if_half_of_it_lies_inside(grid: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    inside = rng.random((3, *SIZE)) < 0.5
    inside[:, :16] = inside[:, :16].repeat(4, axis=2)[:, :, :24]
    found = cells(torch.from_numpy(inside), grid)
    for image, counts in zip(inside, found.numpy(), strict=True):
        assert np.array_equal(counts, naive_cells(image, grid))
    half = torch.zeros(1, 4, 4, dtype=torch.bool)
    half[0, :, 0] = True
    assert cells(half, (1, 2)).tolist() == [[[True, False]]]
    with pytest.raises(InputError, match=r"data.region: it covers less than half of every patch"):
        cells(torch.zeros(1, *SIZE, dtype=torch.bool), grid)


def test_pixels_count_with_their_cell() -> None:
    counts = torch.tensor([[[True, False, True], [False, True, True]]])
    found = cell_pixels(counts, (5, 7))[0]
    for y in range(5):
        for x in range(7):
            assert found[y, x] == counts[0, y * 2 // 5, x * 3 // 7]


@pytest.mark.parametrize("sigma", [0.0, 2.0])
def test_maps_are_means_of_what_counts_and_zero_elsewhere(sigma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    grid = torch.rand(2, 4, 3, generator=generator)
    counts = torch.rand(2, 4, 3, generator=generator) < 0.6
    maps = anomaly_maps(torch.where(counts, grid, torch.nan), SIZE, sigma)
    for scores, own, found in zip(grid.numpy(), counts.numpy(), maps.numpy(), strict=True):
        above = reference.anomaly_map(np.where(own, scores, 0), SIZE, sigma)
        weight = reference.anomaly_map(own.astype(float), SIZE, sigma)
        pixels = own[np.arange(32)[:, None] * 4 // 32, np.arange(24)[None] * 3 // 24]
        expected = np.where(pixels, above / np.where(pixels, weight, 1), 0)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    constant = anomaly_maps(torch.where(counts, 3.0, torch.nan), SIZE, sigma)
    torch.testing.assert_close(constant, 3.0 * cell_pixels(counts, SIZE))


# --- every method -----------------------------------------------------------------------------


def fitted(name: str, batch: Tensor, inside: Tensor | None) -> Any:
    """A method fitted to what is inside."""
    model = build(name)
    members = model.members if name == "ensemble" else [model]
    scales = []
    for member in members:
        buffer = member.buffer(len(batch))
        for some in range(0, len(batch), 2):
            part = slice(some, some + 2)
            own = None if inside is None else inside[part]
            buffer.append(member.learn(member.backbone(batch[part]), inside=own))
        fitting = Fitting(scale=model.config if name == "ensemble" else None)
        member.build_from(buffer, fitting)
        scales.append(fitting.measured)
    if name == "ensemble":
        model.scales = scales
    return model


def predict(model: Any, batch: Tensor, inside: Tensor | None) -> Any:
    if inside is not None and hasattr(model, "members"):
        return model(batch, [inside] * len(model.members))
    return model(batch, inside)


def spoilt(features: Counted) -> Counted:
    """Features with other values where they do not count."""
    x, counts = features
    parts = x if isinstance(x, list) else [x]
    first = torch.where(counts[..., None], parts[0], 50.0)
    return Counted([first, *parts[1:]] if isinstance(x, list) else first, counts)


@pytest.mark.parametrize("name", ["patchcore", "spade", "padim"])
def test_what_does_not_count_has_no_part(name: str) -> None:
    model, other = fitted(name, images(4), left(4)), build(name)
    buffer = other.buffer(4)
    buffer.append(spoilt(model.embed(images(4), left(4))))
    other.build_from(buffer)
    features = model.embed(images(2, 1), left(2))
    found = model.score(features, SIZE)
    for scoring in (model, other):
        again = scoring.score(spoilt(features), SIZE)
        assert torch.equal(again.score, found.score)
        assert torch.equal(again.map, found.map)


@pytest.mark.parametrize("name", METHODS)
def test_maps_are_finite_and_zero_where_nothing_counts(name: str) -> None:
    model = fitted(name, images(4), left(4))
    found = predict(model, images(2, 1), left(2))
    pixels = cell_pixels(~found.patch_score.isnan(), SIZE)
    assert torch.equal(pixels, left(2))
    assert found.map.isfinite().all()
    assert (found.map[~pixels] == 0).all() and found.map[pixels].any()


@pytest.mark.parametrize("name", METHODS)
def test_a_region_of_everything_changes_nothing(name: str) -> None:
    every = torch.ones(4, *SIZE, dtype=torch.bool)
    plain, whole = fitted(name, images(4), None), fitted(name, images(4), every)
    before, after = predict(plain, images(2, 1), None), predict(whole, images(2, 1), every[:2])
    torch.testing.assert_close(after.score, before.score, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after.map, before.map, rtol=1e-4, atol=1e-4)


def test_patchcore_keeps_and_searches_patches_that_count() -> None:
    inside = left(4)
    inside[1] = ~inside[1]  # another region for each image
    model = fitted("patchcore", images(4), inside)
    for image, row, column in model.origin.tolist():
        x = model.embed(images(4)[image : image + 1], inside[image : image + 1])
        assert x.counts[0, row, column]
    features, counts = model.embed(images(4), inside)
    assert model._gathered == int(counts.sum())
    found = model.score(Counted(features, counts), SIZE)
    memory = model.memory.numpy()
    for i in range(4):
        own = features[i][counts[i]].numpy()  # (n, D)
        squared = ((own[:, None] - memory[None]) ** 2).sum(2)
        nearest = np.sqrt(squared.min(1))
        assert float(found.score[i]) == pytest.approx(nearest.max(), rel=1e-4, abs=1e-4)
        patch_scores = found.patch_score[i][counts[i]].numpy()
        np.testing.assert_allclose(patch_scores, nearest, rtol=1e-3, atol=1e-3)
    assert (found.nearest[~counts] == -1).all() and (found.nearest[counts] >= 0).all()
    assert (model.origins(found.nearest)[~counts] == -1).all()
    model.extend([model.embed(images(2, 1), left(2))], [SIZE], [4, 5])
    grown = model.origin[model.origin[:, 0] >= 4]
    assert len(grown) and (grown[:, 2] < 2).all()


def test_padim_fits_each_position_to_the_images_where_it_counts() -> None:
    inside = left(6)
    inside[4:] = True
    model = fitted("padim", images(6), inside)
    height, width = model.grid
    features = model.embed(images(6)).flatten(1, 2)  # (N, h·w, D)
    for position in range(height * width):
        x = features[:, position] if position % width < 2 else features[4:, position]
        assert int(model.number[position]) == len(x)
        torch.testing.assert_close(model.mean[position], x.mean(0), rtol=1e-4, atol=1e-5)
        covariance = torch.cov(x.T) + 0.01 * torch.eye(x.shape[1])
        own = model.factor[position]
        torch.testing.assert_close(own @ own.T, covariance, rtol=1e-3, atol=1e-4)
    model = fitted("padim", images(4), left(4))
    assert model.partial
    found = model(images(1, 1))  # all of it counts, but the model knows the left half
    assert found.patch_score[0].isnan().any(0).tolist() == [False, False, True]
    right = ~left(1)
    with pytest.raises(InputError, match="no position that counts in this image counted"):
        model(images(1, 1), right)


def test_spade_looks_only_at_pixels_that_count() -> None:
    model = fitted("spade", images(3), left(3))
    found = model(images(2, 1), left(2))
    width = found.nearest.shape[2]
    counts = ~found.patch_score.isnan()
    assert (found.nearest[counts] % width < 2).all()
    plain = fitted("spade", images(3), None)
    assert (found.patch_score[counts] >= plain(images(2, 1)).patch_score[counts] - 1e-5).all()
    model.extend([model.embed(images(1, 2))], [SIZE], [3])  # without a region all of it counts
    positions = found.nearest[0].numel()
    assert model.counts.view(4, positions).sum(1).tolist() == [positions * 2 // 3] * 3 + [positions]
    model.forget([0, 3])
    assert len(model.counts) == 2 * positions


# --- metrics ----------------------------------------------------------------------------------


def test_pixel_metrics_leave_out_what_does_not_count() -> None:
    """The metrics are those of images that are cropped."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(4, 8, 8, generator=generator)
    masks = torch.zeros(4, 8, 8, dtype=torch.bool)
    masks[0, 2:4, 2:6], masks[1, 1:3, 5:8] = True, True  # the second lies outside
    counts = torch.zeros(4, 8, 8, dtype=torch.bool)
    counts[:, :, :4] = True
    within, cropped = PixelMetrics(), PixelMetrics()
    within.update(maps, masks, torch.ones(4, dtype=torch.bool), counts)
    known = torch.tensor([True, False, True, True])
    cropped.update(maps[:, :, :4], masks[:, :, :4], known)
    assert within.compute() == cropped.compute()
    assert within.left_out() == 1


# --- on disk ----------------------------------------------------------------------------------


def write_region(path: Path, size: tuple[int, int], share: float = 0.5) -> Path:
    """A region of the left part of an image of that width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size[1], size[0]), dtype=np.uint8)
    pixels[:, : round(share * size[0])] = 255
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize(
    "image",
    [
        ImageConfig(resize=16, crop=12),
        ImageConfig(resize=13, crop=None, stretch=True),
        ImageConfig(resize=None, crop=9),
    ],
    ids=["crop", "square", "as is"],
)
def test_a_region_passes_through_the_view_of_its_image(image: ImageConfig) -> None:
    region = np.random.default_rng(0).random((20, 30)) < 0.5
    height, width = image.resized(20, 30)
    rows, columns = image.kept(height, width)
    seen = image.seen(region)
    for y in range(rows.start, rows.stop):
        for x in range(columns.start, columns.stop):
            nearest = region[int((y + 0.5) * 20 / height), int((x + 0.5) * 30 / width)]
            assert seen[y - rows.start, x - columns.start] == nearest


def test_items_and_batches_bring_what_counts(tmp_path: Path) -> None:
    path = write_image(tmp_path / "1.png", (30, 20))
    region = write_region(tmp_path / "region.png", (30, 20))
    image = ImageConfig(resize=16, crop=12)
    dataset = ImageDataset([Sample(path, 0, region=region)] * 2, image)
    batch = collate([dataset[0], dataset[1]])
    assert batch["inside"].shape == (2, 12, 12)
    assert batch["inside"][0].any() and not batch["inside"][0].all()
    assert "inside" not in ImageDataset([Sample(path, 0)], image)[0]
    small = write_region(tmp_path / "small.png", (20, 20))
    with pytest.raises(
        InputError, match=r"small.png: the region is 20×20 pixels, the image .*30×20"
    ):
        ImageDataset([Sample(path, 0, region=small)], image)[0]
    empty = write_region(tmp_path / "empty.png", (30, 20), 0)
    with pytest.raises(InputError, match=r"empty.png: marks nothing in the visible part of"):
        ImageDataset([Sample(path, 0, region=empty)], image)[0]
    with pytest.raises(InputError, match=r"augment: with data.region"):
        ImageDataset([Sample(path, 0, region=region)], image, AugmentConfig(vertical_flip=True))
    assert ImageDataset([Sample(path, 0, region=region)], image, AugmentConfig(brightness=0.1))[0]


def test_regions_are_found_by_the_ends_of_paths(tmp_path: Path) -> None:
    write_mvtec(tmp_path)
    folder = tmp_path / "regions"

    def read(**more: Any) -> Any:
        return MVTecConfig(root=str(tmp_path), category="nut", **more).read()

    for i in range(4):
        write_region(folder / f"train/good/{i:03d}.png", (12, 10))
    with pytest.raises(InputError, match=r"data.regions: .* has no mask for .*test"):
        read(regions=str(folder))
    for kind, count in (("good", 2), ("scratch", 2), ("bent", 1)):
        for i in range(count):
            write_region(folder / f"test/{kind}/{i:03d}.png", (12, 10))
    split = read(regions=str(folder))
    for sample in (*split.train, *split.test):
        assert sample.region == folder / sample.path.relative_to(tmp_path / "nut")
        assert sample.files()[-1] == sample.region
    write_region(folder / "other/good/000.png", (12, 10))  # maybe of another category
    read(regions=str(folder))
    extra = write_region(folder / "test/good/009.png", (12, 10))
    words = r"masks in data.regions without an image: 1 \(such as .*test/good/009.png\)"
    with pytest.warns(UserWarning, match=words):
        read(regions=str(folder))
    read(regions=str(folder), shots=2)
    extra.unlink()
    shutil.rmtree(folder / "test/scratch")
    write_region(folder / "000.png", (12, 10))
    write_region(folder / "001.png", (12, 10))
    assert read(regions=str(folder)).test  # each suits one image that has no longer end
    shutil.rmtree(folder / "test/bent")
    with pytest.raises(InputError, match=r"000.png suits .* and .*: put the masks into folders"):
        read(regions=str(folder))
    with pytest.raises(InputError, match=r"data.region: there is no file nowhere.png"):
        read(region="nowhere.png")
    with pytest.raises(InputError, match="exclude each other"):
        read(region="a.png", regions="b")


pytestmark = pytest.mark.filterwarnings("ignore:backbone resnet18 has random weights")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mvtec")
    write_mvtec(root, (40, 36))
    return root


def run(root: Path, place: Path, name: str, *overrides: str) -> Outcome:
    return patchcore(
        "train",
        *TINY,
        *("logger=none", "figures=false", "trainer.enable_progress_bar=false"),
        *("data=mvtec", f"data.root={root}", "data.category=nut", "data.batch_size=2"),
        *(f"cache.root={place / 'cache'}", "cache.enabled=true", "artifact=true", "resume=true"),
        f"hydra.run.dir={place / name}",
        *overrides,
    )


def test_runs_keep_to_their_region_and_so_do_their_artifacts(root: Path, tmp_path: Path) -> None:
    region = write_region(tmp_path / "region.png", (40, 36))
    for name, overrides in (("plain", []), ("half", [f"data.region={region}"])):
        done = run(root, tmp_path, name, *overrides)
        assert done.code == 0, done.err
    plain, half = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("plain", "half")
    )
    assert half["memory_patches"] < plain["memory_patches"]
    prints = [(tmp_path / name / "provenance.json").read_text() for name in ("plain", "half")]
    names = [json.loads(text)["fingerprint"] for text in prints]
    assert names[0] != names[1]
    # Another content is another run; another place of the same content is the same.
    again = tmp_path / "elsewhere.png"
    shutil.copy(region, again)
    assert "finished before" in run(root, tmp_path, "same", f"data.region={again}").out
    write_region(again, (40, 36), 0.7)
    assert "finished before" not in run(root, tmp_path, "other", f"data.region={again}").out
    other = json.loads((tmp_path / "other" / "metrics.json").read_text())
    assert other["memory_patches"] > half["memory_patches"]  # the cached order is another's
    # The artifact alone gives the scores of the test.
    shutil.move(tmp_path / "half" / "artifact", tmp_path / "model")
    data = kept_data(load(tmp_path / "model").details)
    assert isinstance(data, MVTecConfig) and data.region == str(region)
    tested = measure(load(tmp_path / "model"), data)
    assert tested.metrics["image_auroc"] == half["image_auroc"]
    with pytest.raises(InputError, match=r"data.region: it differs from the region that the model"):
        measure(load(tmp_path / "model"), replace(data, region=str(again)))
    region.unlink()
    inspector = load(tmp_path / "model")
    rows = (tmp_path / "half" / "scores.csv").read_text().splitlines()[1:]
    pairs = [(Path(row.split(",")[0]), float(row.split(",")[3])) for row in rows]
    prepared = [inspector.prepare(np.array(Image.open(path).convert("RGB"))) for path, _ in pairs]
    found = [
        inspector.score(torch.from_numpy(np.stack(prepared[i : i + 2])))
        for i in range(0, len(prepared), 2)
    ]
    scores = torch.cat([each.score for each in found])
    torch.testing.assert_close(
        scores, torch.tensor([score for _, score in pairs]), rtol=1e-5, atol=0
    )
    assert all((each.map[:, :, -4:] == 0).all() for each in found)
    with pytest.raises(
        InputError, match=r"data.region: .* images of 40×36 pixels, but this image has 10×10"
    ):
        inspector.prepare(np.zeros((10, 10, 3), np.uint8))


@pytest.mark.parametrize("view", [View.square, View.whole])
def test_images_of_another_size_than_the_models_region_are_not_tested(
    tmp_path: Path, view: View
) -> None:
    region = np.ones((50, 50), dtype=bool)
    model = fitted("patchcore", images(4), left(4))
    inspector = Inspector(model, ImageConfig(size=32, view=view), region=region)
    folder = write_mvtec(tmp_path, (50, 50))
    data = MVTecConfig(root=str(tmp_path), category="nut", batch_size=2)
    assert measure(inspector, data).metrics["test_images"] > 0
    culprit = write_image(folder / "test/good/other.png", (96, 40))
    told = f"^data.region: .* of 50×50 pixels, but {culprit} has 96×40$"
    with pytest.raises(InputError, match=told):
        measure(inspector, data)


@pytest.mark.parametrize(
    ("share", "overrides"),
    [
        (0.3, []),
        (1.0, ["method.foreground=0.5", "image.resize=96", "image.crop=96"]),
        (1.0, ["ensemble.members=[{layers:{names:['3']}},{layers:{names:['1']}}]"]),
    ],
    ids=["plain", "foreground", "ensemble"],
)
def test_the_pixels_that_count_are_the_same_in_run_and_test(
    root: Path, tmp_path: Path, share: float, overrides: list[str]
) -> None:
    region = write_region(tmp_path / "region.png", (40, 36), share)
    counted = [f"data.region={region}", "decision.false_alarms=0.3", *overrides]
    done = run(root, tmp_path, "run", *counted)
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "run/metrics.json").read_text())
    data = kept_data(load(tmp_path / "run/artifact").details)
    assert data is not None
    tested = measure(load(tmp_path / "run/artifact"), data).metrics
    keys = [key for key in record if key.startswith(("pixel_", "aupro", "decision_"))]
    assert len(keys) > 12
    for key in keys:
        assert tested[key] == pytest.approx(record[key], rel=1e-6), key
    if share == 1:  # the whole image counts, the background that is left out among it
        done = run(root, tmp_path, "whole", "decision.false_alarms=0.3", *overrides)
        whole = json.loads((tmp_path / "whole/metrics.json").read_text())
        assert {key: whole[key] for key in keys} == {key: record[key] for key in keys}


def test_an_artifact_is_not_written_into_another(tmp_path: Path) -> None:
    fitted("patchcore", images(4), left(4)).save(tmp_path / "model", weights=True)
    new = write_image(tmp_path / "new.png", (SIZE[1], SIZE[0]))
    before = {path: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    with pytest.raises(InputError, match=r"model/grown: lies inside the model"):
        change_artifact(tmp_path / "model", [new], output=tmp_path / "model/grown")
    assert {path: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before


def test_an_artifact_with_a_region_extends(tmp_path: Path) -> None:
    region = np.zeros(SIZE, dtype=bool)
    region[:, :16] = True
    image = ImageConfig(resize=None, crop=None)
    model = fitted("patchcore", images(4), left(4))
    inspector = Inspector(model, image, region=region)
    save(inspector, tmp_path / "model", weights=True)
    assert "region.safetensors" in os.listdir(tmp_path / "model")
    new = write_image(tmp_path / "new.png", (SIZE[1], SIZE[0]))
    change_artifact(tmp_path / "model", [new], output=tmp_path / "grown")
    grown = load(tmp_path / "grown")
    assert np.array_equal(grown.region, region)
    member = grown.members[0]
    assert isinstance(member, PatchCore)
    origin = member.origin
    assert (origin[origin[:, 0] == 4][:, 2] < 2).all()
    other = write_image(tmp_path / "other.png", (20, 20))
    with pytest.raises(InputError, match=r"other.png: data.region: the model's region"):
        change_artifact(tmp_path / "model", [other], output=tmp_path / "no")


def test_autocast_counts_every_pixel_of_a_cell() -> None:
    inside = torch.zeros(1, 64, 64, dtype=torch.bool)
    inside[0, :16, :32] = True
    inside[0, 15, 31] = False  # 511 of 1024 pixels, which bfloat16 does not tell from 512
    inside[0, 32:, 32:] = True
    with torch.autocast("cpu", torch.bfloat16):
        assert cells(inside, (2, 2)).tolist() == [[[False, False], [False, True]]]


@pytest.mark.filterwarnings("ignore:layers.names=.*coarser")
@pytest.mark.parametrize("layers", [["3", "2"], ["2", "3"]])
@pytest.mark.parametrize("threshold", [-100.0, 1e-9])
def test_pixels_of_an_ensemble_count_whatever_its_grids(
    layers: list[str], threshold: float, tmp_path: Path
) -> None:
    """Patch scores are on the first member's grid; pixels count by those of all members."""
    region = np.zeros((64, 64), dtype=bool)
    region[6:41, 11:30] = region[23:58, 27:56] = True
    images = [write_image(tmp_path / f"{i}.png", (64, 64), seed=i) for i in range(3)]
    members = [
        build_detector(Parts(PatchCoreConfig(), layers=LayersConfig([layer]))) for layer in layers
    ]
    model = Ensemble(members)
    model.scales = [Scale(0.0, 1.0, 0.0, 1.0)] * 2
    inspector = Inspector(model, ImageConfig(resize=64, crop=64), region=region)
    pixels = [np.asarray(inspector.prepare(read_image(path))) for path in images]
    for member, features in zip(
        members, inspector.embed(torch.from_numpy(np.stack(pixels[:2]))), strict=True
    ):
        buffer = member.buffer(2)
        buffer.append(features)
        member.build_from(buffer, Fitting(images=[0, 1]))
    counted = inspector.counted_pixels()
    assert counted is not None
    (found,) = inspected(inspector, images[2:], thresholds=Thresholds(pixel=threshold))
    assert isinstance(found, Inspection)
    assert sum(each.area for each in found.regions or []) == int(counted.sum())


def test_pixels_that_do_not_count_are_in_no_region(tmp_path: Path) -> None:
    """A standardised score of 0, which the map holds there, is an ordinary one."""
    region = np.zeros((64, 64), dtype=bool)
    region[16:48, 16:48] = True
    images = [write_image(tmp_path / f"{i}.png", (64, 64), seed=i) for i in range(3)]
    layers = LayersConfig(["2", "3"], join=Join.scaled)
    model = build_detector(Parts(PatchCoreConfig(), layers=layers))
    inspector = Inspector(model, ImageConfig(resize=64, crop=64), region=region)
    pixels = [np.asarray(inspector.prepare(read_image(path))) for path in images]
    features = inspector.embed(torch.from_numpy(np.stack(pixels)))[0]
    buffer = model.buffer(3)
    buffer.append(features)
    model.build_from(buffer, Fitting(images=[0, 1, 2]))
    pictures = Pictures(tmp_path / "out", maps=MapFormat.npy, overlays=True)
    thresholds = Thresholds(pixel=-100.0)
    (found,) = inspected(inspector, images[:1], thresholds=thresholds, pictures=pictures)
    assert isinstance(found, Inspection)
    assert [each.box for each in found.regions or []] == [(16, 16, 48, 48)]
    kept = np.load(found.files["map"])
    np.testing.assert_array_equal(np.isnan(kept), ~region)
    np.testing.assert_array_equal(kept[region], found.map[region])
    whole, drawn = read_image(images[0]), read_image(found.files["overlay"])
    np.testing.assert_array_equal(drawn[~region], whole[~region])
    assert (drawn[region] != whole[region]).any()
    app = pytest.importorskip("patchcore.serving.app", reason="needs the extra serve")
    served = app.Service(inspector, thresholds, app.Limits())._inspect(images[0].read_bytes(), True)
    assert served["overlay_picture"] == app._uri(drawn)


def test_pixels_that_do_not_count_are_found_once_for_a_size() -> None:
    region = np.zeros((64, 80), dtype=bool)
    region[16:48, 20:60] = True
    model = fitted("patchcore", images(4), left(4))
    inspector = Inspector(model, ImageConfig(resize=32, crop=32), region=region)
    drawn = np.random.default_rng(0)
    maps = [drawn.random((32, 32), np.float32) for _ in range(3)]
    sizes = [(64, 80), (64, 80), *((64, 70 + i) for i in range(MOST_SIZES + 1)), (64, 80)]
    share = inspector.counted_pixels()
    assert share is not None
    with mock.patch("patchcore.inspector.placed", wraps=placed) as made:
        for size, values in zip(sizes, cycle(maps), strict=False):
            found = inspector.place(values, size)
            counts = placed(share.float().numpy(), size, inspector.image) >= 0.5
            expected = np.where(counts, placed(values, size, inspector.image), np.nan)
            np.testing.assert_array_equal(found, expected)
    assert made.call_count == 2 * len(sizes) - 2  # the first size was met three times


@pytest.mark.parametrize("several", [False, True])
def test_maps_to_be_drawn_have_no_scores_outside_the_region(several: bool) -> None:
    """Their 0 would be an ordinary score of an ensemble, above a negative threshold."""
    cells = torch.tensor([[True, True], [False, True]])
    others = torch.tensor([[True, False], [False, True]])
    records = [Record(counted={7: each}) for each in (cells, others)]
    if several:
        module = Mock(spec=EnsembleModule, members=[Mock(record=each) for each in records])
    else:
        module = Mock(spec=DetectorModule, record=records[1])
    module.anomaly_map.return_value = torch.full((4, 4), -2.0)
    found = shown_map(module, 7, (4, 4))
    inside = torch.eye(2).repeat_interleave(2, 0).repeat_interleave(2, 1).bool()
    assert (found[inside] == -2).all() and found[~inside].isnan().all()
    assert figures.limits([found.numpy()]) == (-2, -2) and figures.limits([]) == (0, 1)
    pixels = np.full((4, 4, 3), 60, np.uint8)
    heated = figures.heat(pixels, found.numpy(), -3.0, -2.0)
    np.testing.assert_array_equal(heated[~inside], pixels[~inside])
    assert (heated[inside] != pixels[inside]).any()
    for each in records:
        each.counted.clear()
    assert (shown_map(module, 7, (4, 4)) == -2).all()
