"""Images in, verdicts and regions out: as a stream, in order, whatever the images are."""

import contextlib
import csv
import errno
import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import redirect_stdout
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import patchcore as package
from patchcore import AllConfig, GreedyConfig, InputError, Inspector, Padim, PatchCore, inspection
from patchcore.ahead import Pause
from patchcore.arriving import arriving_images
from patchcore.artifact import save
from patchcore.commands import main
from patchcore.commands import predict as command
from patchcore.data.images import read_image
from patchcore.data.named import named_images
from patchcore.data.synthesis import draw_texture
from patchcore.data.transforms import ImageConfig, build_preparation
from patchcore.data.view import View
from patchcore.decision import Decision
from patchcore.explanation import Crops, cell_at, cut, cut_crops
from patchcore.export import export, load_model
from patchcore.extend import extend
from patchcore.inspection import Broken, Inspection, Region, Thresholds, find_regions, predict
from patchcore.inspector import normalised
from patchcore.overlays import (
    CONTOUR,
    MapFormat,
    Pictures,
    contour,
    map_png,
    overlay,
    picture_path,
    read_map,
)
from patchcore.writing import complete, replace_with
from tests.runs import patchcore

SIZE = 96
IMAGE = ImageConfig(size=64, view=View.whole)


def texture(seed: int, defect: str | None = None) -> NDArray[np.uint8]:
    return draw_texture(np.random.default_rng(seed), SIZE, defect)[0]


@pytest.fixture(scope="module")
def model() -> PatchCore:
    prepare = build_preparation(IMAGE)
    unmarked = np.zeros((SIZE, SIZE), bool)
    batch = np.stack([prepare(texture(i), unmarked, 0)[0] for i in range(12)])
    return PatchCore(coreset=GreedyConfig(ratio=0.2)).fit(
        normalised(torch.from_numpy(batch), IMAGE)
    )


@pytest.fixture(scope="module")
def artifact(model: PatchCore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact") / "model"
    model.save(folder, image=IMAGE, weights=True)
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five nominal images and a stained one, `sub/stained.png`."""
    folder = tmp_path_factory.mktemp("images") / "parts"
    (folder / "sub").mkdir(parents=True)
    for i in range(5):
        Image.fromarray(texture(100 + i)).save(folder / f"{i}.png")
    Image.fromarray(texture(7, "blot")).save(folder / "sub" / "stained.png")
    return folder


@pytest.fixture(scope="module")
def thresholds(model: PatchCore, parts: Path) -> Thresholds:
    """Between the nominal images and the stained one."""
    found = list(predict(Inspector(model, IMAGE), sorted(parts.rglob("*.png"))))
    *nominal, stained = sorted(x.score for x in found if isinstance(x, Inspection))
    assert nominal[-1] < stained
    middle = (nominal[-1] + stained) / 2
    highest = max(float(x.map.max()) for x in found if isinstance(x, Inspection))
    return Thresholds(middle, 0.8 * highest)


def flags(thresholds: Thresholds) -> list[str]:
    return [f"--threshold={thresholds.image}", f"--pixel-threshold={thresholds.pixel}"]


# --- the stream -------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "workers"), [(1, 1), (4, 3)])
def test_results_are_those_of_one_image_after_another(
    model: PatchCore, parts: Path, thresholds: Thresholds, batch: int, workers: int
) -> None:
    inspector = Inspector(model, IMAGE)
    paths = sorted(parts.rglob("*.png"))
    found = list(
        package.predict(inspector, paths, thresholds=thresholds, batch=batch, workers=workers)
    )
    assert [x.path for x in found] == paths
    for result in found:
        assert isinstance(result, Inspection)
        pixels = read_image(result.path)
        prepared = torch.from_numpy(np.asarray(inspector.prepare(pixels)))[None]
        expected = inspector.score(prepared)
        assert result.score == pytest.approx(float(expected.score), rel=1e-5)
        assert result.anomalous == (result.path.name == "stained.png")
        placed = inspector.place(result.map, pixels.shape[:2])
        assert thresholds.pixel is not None
        assert result.regions == find_regions(placed, thresholds.pixel)
        assert result.size == (SIZE, SIZE)
    assert any(x.regions for x in found if isinstance(x, Inspection))


def test_images_of_several_sizes_keep_their_order(model: PatchCore, tmp_path: Path) -> None:
    sizes = [(64, 64), (64, 64), (80, 64), (64, 80), (64, 80), (64, 64), (90, 128)]
    paths = []
    for i, (width, height) in enumerate(sizes):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(np.resize(texture(i), (height, width, 3))).save(paths[-1])
    paths.insert(3, tmp_path / "missing.png")
    found = list(predict(Inspector(model, IMAGE), paths, batch=2))
    assert [x.path for x in found] == paths
    assert [x.size for x in found if isinstance(x, Inspection)] == [(h, w) for w, h in sizes]
    assert [isinstance(x, Broken) for x in found] == [i == 3 for i in range(8)]


def test_a_result_of_a_broken_image_raises_its_reason(model: PatchCore, tmp_path: Path) -> None:
    (found,) = predict(Inspector(model, IMAGE), [tmp_path / "no.png"])
    for name in (each.name for each in fields(Inspection) if each.name != "path"):
        assert not hasattr(found, name)
        with pytest.raises(InputError, match=rf"no\.png.* \(it has no {name}: skip results"):
            getattr(found, name)
    with pytest.raises(AttributeError, match="has no attribute 'other'"):
        found.other  # type: ignore[union-attr]  # noqa: B018
    assert deepcopy(found) == pickle.loads(pickle.dumps(found)) == found


def test_a_missing_path_stops_the_command_but_not_a_list(
    artifact: Path, parts: Path, tmp_path: Path
) -> None:
    """Misspelt on the command line, or gone since the list was written."""
    good, gone = str(parts / "0.png"), str(tmp_path / "no.png")
    done = patchcore("predict", str(artifact), gone, good)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"error: IMAGES: there is no file or folder {gone}")
    (tmp_path / "list").write_text(f"{gone}\n{good}\n")
    listed = patchcore("predict", str(artifact), f"@{tmp_path / 'list'}")
    assert listed.code == 1 and f"not inspected: {gone}: " in listed.err
    assert len(listed.out.splitlines()) == 2


def test_a_folder_in_a_list_is_called_one(model: PatchCore, parts: Path, tmp_path: Path) -> None:
    found = predict(Inspector(model, IMAGE), [tmp_path, parts / "0.png"])
    broken, inspection = found
    assert isinstance(broken, Broken) and isinstance(inspection, Inspection)
    assert broken.reason == f"{tmp_path}: is a folder: name its images"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no.png", "no such image$"),
        ("'no.png", "no such image$"),
        ('"a b.png"', "no such image: write it without quotes$"),
        ("no.png ", "no such image: its name begins or ends with a blank, which"),
    ],
)
def test_what_a_name_in_a_list_has_too_much_is_told(name: str, told: str) -> None:
    with pytest.raises(InputError, match=f"^{name}: there is {told}"):
        read_image(Path(name))


def test_no_stage_runs_far_ahead(model: PatchCore, parts: Path) -> None:
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield parts / "0.png"

    results = predict(Inspector(model, IMAGE), endless(), batch=2, workers=2)
    for done in range(1, 40):
        assert isinstance(next(results), Inspection)
        assert taken <= done + (2 + 2) + 2 + 4  # decoded, in the batch, concluded
    threads = threading.active_count()
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == threads - 2


@pytest.mark.parametrize("one", ["parts/0.png", Path("parts/0.png"), b"parts"])
def test_one_path_is_no_list_of_paths(model: PatchCore, one: Any) -> None:
    with pytest.raises(InputError, match=r"^paths: give a list of image files, not .* alone$"):
        predict(Inspector(model, IMAGE), one)


def test_large_images_share_smaller_batches(model: PatchCore, parts: Path) -> None:
    inspector = Inspector(model, IMAGE)
    seen: list[int] = []
    score = inspector.score

    def counting(batch: Any) -> Any:
        seen.append(len(batch))
        return score(batch)

    paths = [parts / "0.png"] * 7
    with (
        mock.patch.object(inspector, "score", counting),
        mock.patch.object(inspection, "LARGEST_BATCH", 3 * 64 * 64),
    ):
        assert len(list(predict(inspector, paths, batch=5))) == 7
    assert seen == [3, 3, 1]


def test_a_model_that_refuses_one_image_inspects_the_others(model: PatchCore, parts: Path) -> None:
    inspector = Inspector(model, IMAGE)
    score = inspector.score
    refused = read_image(parts / "2.png")
    prepared = torch.from_numpy(np.asarray(inspector.prepare(refused)))

    def picky(batch: Any) -> Any:
        if any(torch.equal(image, prepared) for image in batch):
            raise InputError("patch features are NaN")
        return score(batch)

    with mock.patch.object(inspector, "score", picky):
        found = list(predict(inspector, sorted(parts.glob("*.png"))))
    assert [x.path.name for x in found if isinstance(x, Broken)] == ["2.png"]
    assert len(found) == 5


def test_a_score_that_is_no_number_is_refused(model: PatchCore, parts: Path) -> None:
    inspector = Inspector(model, IMAGE)
    score = inspector.score

    def spoilt(batch: Any) -> Any:
        found = score(batch)
        scores = found.score.clone()
        scores[1] = torch.nan
        return found._replace(score=scores)

    with mock.patch.object(inspector, "score", spoilt):
        found = list(predict(inspector, sorted(parts.glob("*.png"))))
    assert [i for i, x in enumerate(found) if isinstance(x, Broken)] == [1]
    broken = found[1]
    assert isinstance(broken, Broken)
    assert broken.reason == f"{parts / '1.png'}: its score or map is NaN or infinite"


def test_an_image_beyond_the_memory_is_named_and_the_others_are_inspected(
    model: PatchCore, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspector = Inspector(model, IMAGE)
    score, error = inspector.score, RuntimeError("DefaultCPUAllocator: can't allocate memory: …")
    dark = inspector.prepare(read_image(parts / "1.png"))

    def scored(images: torch.Tensor) -> Any:
        if any(np.array_equal(image, dark) for image in images.numpy()):
            raise error
        return score(images)

    monkeypatch.setattr(inspector, "score", scored)
    paths = [parts / f"{i}.png" for i in range(3)]
    first, large, last = predict(inspector, paths)
    assert isinstance(first, Inspection) and isinstance(last, Inspection)
    assert isinstance(large, Broken)
    told = "1.png: there is too little memory to inspect 64×64 pixels, as the network gets it: end"
    assert told in large.reason
    error.args = ("another error",)
    with pytest.raises(RuntimeError, match="another error"):
        list(predict(inspector, paths))


def test_the_models_own_decision_is_used(model: PatchCore, parts: Path) -> None:
    nominal = torch.tensor([0.1, 0.2, 1e6], dtype=torch.float64)  # one of three scores as high
    decision = Decision(0.75, nominal, pixel_threshold=1e9, pixel_rate=0.0, folds=3)
    (found,) = predict(Inspector(model, IMAGE, decision), [parts / "0.png"])
    assert isinstance(found, Inspection)
    assert (found.p_value, found.anomalous, found.regions) == (0.5, True, [])
    other = Thresholds(image=1e9)
    (found,) = predict(Inspector(model, IMAGE, decision), [parts / "0.png"], thresholds=other)
    assert isinstance(found, Inspection)
    assert (found.p_value, found.anomalous, found.regions) == (0.5, False, [])
    (found,) = predict(Inspector(model, IMAGE), [parts / "0.png"])
    assert isinstance(found, Inspection)
    assert (found.p_value, found.anomalous, found.regions) == (None, None, None)


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"workers": 0}])
def test_numbers_that_are_too_small_are_refused(model: PatchCore, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(wrong))} must be at least 1"):
        predict(Inspector(model, IMAGE), [], **wrong)


# --- regions ----------------------------------------------------------------------------------


def test_regions_of_a_map() -> None:
    values = np.zeros((6, 8), np.float32)
    values[1, 1], values[2, 2], values[2, 3] = 5, 4, 9  # touch at a corner
    values[4:6, 6:8] = 3
    values[5, 0] = np.nan
    assert find_regions(values, 3) == [
        Region((1, 1, 4, 3), 3, 9.0, (3, 2)),
        Region((6, 4, 8, 6), 4, 3.0, (6, 4)),
    ]
    assert find_regions(values, 9.5) == []


# --- explanations -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def explained(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Inspector, list[Path]]:
    """A model that knows its images, and keeps crops."""
    folder = tmp_path_factory.mktemp("nominal")
    paths = [folder / f"nominal_{i}.png" for i in range(6)]
    for i, path in enumerate(paths):
        Image.fromarray(texture(i)).save(path)
    prepare = build_preparation(IMAGE)
    unmarked = np.zeros((SIZE, SIZE), bool)
    batch = np.stack([prepare(read_image(path), unmarked, 0)[0] for path in paths])
    whole = PatchCore(coreset=AllConfig()).fit(normalised(torch.from_numpy(batch), IMAGE))
    inspector = Inspector(whole, IMAGE, details={"sources": [str(path) for path in paths]})
    inspector.crops = cut_crops(inspector)
    return inspector, paths


def test_a_nominal_image_is_explained_by_itself(
    explained: tuple[Inspector, list[Path]],
) -> None:
    """All patches are remembered, so each is nearest to itself: image, place and crop are known."""
    inspector, paths = explained
    everything = Thresholds(pixel=-1.0)
    found = list(predict(inspector, paths, thresholds=everything, explain=True))
    grid = inspector.score(torch.zeros(1, 64, 64, 3, dtype=torch.uint8)).nearest.shape[1:]
    for result in found:
        assert isinstance(result, Inspection) and result.regions
        (region,) = result.regions  # the whole image
        x, y = region.at
        near = region.nearest
        assert near is not None
        assert near.image == str(result.path)
        assert near.cell == (y * grid[0] // SIZE, x * grid[1] // SIZE)
        assert near.score == pytest.approx(0, abs=1e-3)
        prepared = np.asarray(inspector.prepare(read_image(result.path)))
        centre = [(c + 0.5) * 64 / n for c, n in zip(near.cell, grid, strict=True)]
        expected = cut(prepared, (centre[0], centre[1]), 48)
        assert near.crop is not None and near.crop.shape == (48, 48, 3)
        assert np.abs(near.crop.astype(int) - expected).mean() < 6  # JPEG


def test_crops_are_kept_in_the_artifact(
    explained: tuple[Inspector, list[Path]], tmp_path: Path
) -> None:
    inspector, paths = explained
    assert inspector.crops is not None
    assert len(inspector.crops) == inspector.model.memory_patches
    save(inspector, tmp_path / "model", weights=True)
    out = tmp_path / "out.jsonl"
    done = patchcore(
        *("predict", str(tmp_path / "model"), str(paths[2]), "--explain", "--pixel-threshold=-1"),
        *("--format=jsonl", f"--output={out}", "--overlays", f"--folder={tmp_path / 'drawn'}"),
    )
    assert done.code == 0, done.err
    record = json.loads(out.read_text())
    (region,) = record["regions"]
    assert region["nearest"]["image"] == str(paths[2])
    with Image.open(record["overlay"]) as picture:
        assert picture.width > SIZE  # both details on the right
        panel = np.array(picture)[6 : 6 + 96, SIZE + 6 :]
    own, other = (panel[:, start : start + 96].astype(float) for start in (0, 102))
    # The same part of the same image, once from the file and once as it was kept.
    assert np.corrcoef(own.ravel(), other.ravel())[0, 1] > 0.7
    gone = inspector.crops.without([2])
    assert all(gone.get((2, y, 0)) is None for y in range(3))
    np.testing.assert_array_equal(gone.get((3, 1, 1)), inspector.crops.get((3, 1, 1)))
    assert len(gone) == len(inspector.crops) * 5 // 6


def test_images_that_are_added_have_crops_too(
    explained: tuple[Inspector, list[Path]], tmp_path: Path
) -> None:
    inspector = deepcopy(explained[0])
    Image.fromarray(texture(9)).save(tmp_path / "added.png")
    extend(inspector, [tmp_path / "added.png"])
    assert inspector.crops is not None
    assert len(inspector.crops) == inspector.model.memory_patches == 7 * 64
    everything = Thresholds(pixel=-1.0)
    paths = [tmp_path / "added.png"]
    (result,) = predict(inspector, paths, thresholds=everything, explain=True)
    assert isinstance(result, Inspection)
    near = result.regions[0].nearest
    assert near is not None and near.image == str(paths[0])
    assert near.crop is not None and near.crop.shape == (48, 48, 3)


def test_models_that_cannot_explain_say_so(model: PatchCore, parts: Path) -> None:
    with pytest.raises(InputError, match="does not know which images its memory bank comes from"):
        predict(Inspector(model, IMAGE), [parts / "0.png"], explain=True)
    prepared = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    gaussians = Padim().fit(normalised(prepared, IMAGE))
    known = Inspector(gaussians, IMAGE, details={"sources": ["a.png", "b.png"]})
    with pytest.raises(InputError, match="padim holds no patches of single images"):
        predict(known, [parts / "0.png"], explain=True)
    exported = SimpleNamespace(decision=None, image=IMAGE)
    with pytest.raises(InputError, match="an exported model has no memory"):
        predict(exported, [parts / "0.png"], explain=True)


def test_cells_are_where_pixels_are() -> None:
    image = ImageConfig(resize=40, crop=20)  # the middle half of each side
    for at, cell in {(50, 50): (0, 0), (149, 50): (0, 3), (100, 120): (2, 2)}.items():
        assert cell_at(at, (200, 200), image, (4, 4)) == cell


def test_crops_that_do_not_belong_together_are_refused() -> None:
    places, data = torch.zeros(1, 3, dtype=torch.int32), torch.zeros(5, dtype=torch.uint8)
    with pytest.raises(InputError, match="pictures are missing"):
        Crops.of_tensors(places, data, torch.tensor([4]))
    with pytest.raises(InputError, match="do not belong together"):
        Crops.of_tensors(places, data, torch.tensor([2, 5]))
    empty = Crops({}).tensors()
    assert len(Crops.of_tensors(**empty)) == 0


# --- pictures ---------------------------------------------------------------------------------


def test_a_map_is_read_as_it_was_written(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(3, 2, (20, 30)).astype(np.float32)
    values[:, 25:] = np.nan
    step = (np.nanmax(values) - np.nanmin(values)) / 65534
    for form, most in ((MapFormat.png, 0.51 * step), (MapFormat.npy, 0.0)):
        path = Pictures(tmp_path, form).write_map(Path("a/b.jpg"), values)
        assert path == tmp_path / f"a/b.jpg.map.{form.value}"
        np.testing.assert_allclose(read_map(path), values, rtol=0, atol=most)
    with Image.open(tmp_path / "a/b.jpg.map.png") as file:
        assert file.mode == "I;16"
    Image.new("L", (3, 3)).save(tmp_path / "other.png")
    with pytest.raises(InputError, match=r"other\.png: is not a map"):
        read_map(tmp_path / "other.png")


@pytest.mark.parametrize("value", [0.0, 2.5, np.nan])
def test_a_map_of_one_value_is_read_too(tmp_path: Path, value: float) -> None:
    values = np.full((3, 4), value, np.float32)
    (tmp_path / "map.png").write_bytes(map_png(values))
    np.testing.assert_array_equal(read_map(tmp_path / "map.png"), values)


def test_contours_lie_inside_regions_and_are_open_at_the_border() -> None:
    marked = np.zeros((9, 9), bool)
    marked[2:7, 2:9] = True
    expected = marked.copy()
    expected[3:6, 3:9] = False
    np.testing.assert_array_equal(contour(marked, 1), expected)


def test_an_overlay_changes_anomalous_pixels_alone() -> None:
    pixels = np.full((40, 40, 3), 100, np.uint8)
    values = np.zeros((40, 40), np.float32)
    values[10:20, 10:20] = 2
    values[14, 14] = 4
    values[0, 0] = np.nan
    drawn = overlay(pixels, values, 1)
    marked = np.nan_to_num(values) >= 1
    assert (drawn[~marked] == 100).all()
    assert (drawn[10, 10:20] == CONTOUR).all()
    assert drawn[12, 12, 2] > drawn[12, 12, 0]  # blue where it is low
    assert drawn[14, 14, 0] > drawn[14, 14, 2]  # orange at the peak
    assert (overlay(pixels, values, 5) == pixels).all()
    assert not (overlay(pixels, values, None) == pixels).all()


def test_pictures_lie_below_their_folder() -> None:
    folder = Path("out")
    for image, expected in {
        "a/b.png": "out/a/b.png.x",
        "/data/b.png": "out/_/data/b.png.x",
        "../b.png": "out/__/b.png.x",
    }.items():
        assert picture_path(folder, Path(image), ".x") == Path(expected)


def test_no_two_images_share_a_picture() -> None:
    names = ["", "/", "../", "_/", "__/", "___/", "____/", "_____/", "a/", "a_/"]
    paths = {Path(f"{one}{two}a.png") for one in names for two in names if two != "/"}
    assert len({picture_path(Path("out"), path, ".x") for path in paths}) == len(paths)
    for name in ("a/_/b.png", "_a/b_.png", "a__b/c.png"):  # as they were
        assert picture_path(Path("out"), Path(name), ".x") == Path(f"out/{name}.x")


@pytest.mark.parametrize("letter", ["a", "é", "面"])
def test_pictures_of_the_longest_names_have_names_of_their_own(letter: str, tmp_path: Path) -> None:
    stem = letter * (248 // len(letter.encode()))  # with its ending 255 bytes at most
    names = [f"{stem}a.png", f"{stem}b.png", "a.png"]
    for name in names:
        (tmp_path / name).touch()
        with complete(picture_path(tmp_path, Path(name), ".overlay.png")) as file:
            file.write(name.encode())
    found = {path.read_bytes().decode() for path in tmp_path.glob("*.png.overlay.png")}
    cut = {path.read_bytes().decode() for path in tmp_path.glob("*~*.overlay.png")}
    assert (found, cut) == ({"a.png"}, set(names[:2]))


# --- files ------------------------------------------------------------------------------------


def test_a_file_is_complete_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    with complete(path, "w") as file:
        file.write("first")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt), complete(path, "w") as file:
        file.write("second")
        raise KeyboardInterrupt
    assert path.read_text() == "first"
    link = tmp_path / "link"
    link.symlink_to(path)
    with complete(link, "w") as file:
        file.write("third")
    assert link.is_symlink() and path.read_text() == "third"
    assert sorted(os.listdir(tmp_path)) == ["link", "results.csv"]


@pytest.mark.parametrize("folder", ["/dev/fd", "/proc/self/fd"])
def test_an_open_file_keeps_what_it_holds(folder: str, tmp_path: Path) -> None:
    """An open file is what /dev/stdout is where a shell has sent it to one."""
    with (tmp_path / "log").open("w") as log:
        log.write("before\n")
        log.flush()
        for name in ("", "/dev/stdout"):
            number = os.dup(1)
            try:
                if name:
                    os.dup2(log.fileno(), 1)
                with complete(Path(name or f"{folder}/{log.fileno()}"), "w") as file:
                    file.write(f"results {name}\n")
            finally:
                os.dup2(number, 1)
                os.close(number)
    assert (tmp_path / "log").read_text() == "before\nresults \nresults /dev/stdout\n"


@pytest.mark.parametrize("write", [complete, replace_with])
def test_a_file_that_cannot_be_made_is_named_as_it_was_asked_for(
    write: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError) as caught:
        if write is complete:
            with complete(tmp_path / "file/results.csv", "w"):
                pass
        else:
            replace_with(tmp_path / "file/results.csv", b"")
    assert caught.value.filename == str(tmp_path / "file/results.csv")


def test_a_link_that_leads_to_itself_is_no_file(tmp_path: Path) -> None:
    loop, other = tmp_path / "loop.csv", tmp_path / "other.csv"
    loop.symlink_to(loop)
    other.symlink_to(tmp_path / "later.csv")
    with pytest.raises(OSError, match="loop") as caught, complete(loop, "w"):
        pass
    assert caught.value.errno == errno.ELOOP
    assert loop.is_symlink()
    with complete(other, "w") as file:  # a link to a file that is not there yet
        file.write("new")
    assert (tmp_path / "later.csv").read_text() == "new"


@pytest.mark.parametrize("option", ["--output", "--folder"])
def test_a_link_that_leads_to_itself_is_told_in_a_line(
    artifact: Path, parts: Path, tmp_path: Path, option: str
) -> None:
    loop = tmp_path / "loop.csv"
    loop.symlink_to(loop)
    image = str(parts / "0.png")
    done = patchcore("predict", str(artifact), image, "--maps=png", option, str(loop))
    assert done.code == 1
    line = done.err.splitlines()[-1]
    assert line.startswith("error: ") and str(loop) in line and "Traceback" not in done.err


# --- names ------------------------------------------------------------------------------------


def test_results_never_replace_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("x.png", "model/artifact.yaml", "list.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("mine")
        with pytest.raises(InputError, match=f"^--output: {name} "):
            command.main(["model", "x.png", "--list", "list.txt", "--output", name])
        assert Path(name).read_text() == "mine"


def test_results_never_replace_those_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run/.contents").write_text("metrics.json\0scores.csv\0")
    for name in ("run/scores.csv", "run/.contents", "run/train.log"):
        with pytest.raises(InputError, match=f"^--output: {name} is of the results of a run; wr"):
            command.main(["model", "x.png", "--output", name, "--format", "csv"])
    with pytest.raises(InputError, match=r"^model: is not an artifact"):
        command.main(["model", "x.png", "--output", "run/parts.csv"])


def test_a_closed_stdout_is_told_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.__stdout__", None)  # as Python has it then
    with pytest.raises(InputError, match=r"^stdout is closed.*--output"):
        command.main(["model", "x.png"])
    with pytest.raises(InputError, match=r"^stdout is closed.*--output"):  # which - means, too
        command.main(["model", "x.png", "--output", "-"])


def test_a_closed_stdin_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed() -> Iterator[bytes]:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        yield b""

    for stdin in (None, SimpleNamespace(buffer=closed())):
        monkeypatch.setattr("sys.stdin", stdin)
        with pytest.raises(InputError, match="IMAGES: stdin cannot be read"):
            list(named_images(["-"]))


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The end of a pipe to write to, of which stdin is the other one.

    It is closed after a minute, so that a test which waits for ever fails instead.
    """
    out, into = os.pipe()
    late = threading.Timer(60, os.close, [into])
    late.start()
    with os.fdopen(out, "rb") as stdin:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=stdin))
        yield into
    assert late.is_alive(), "a result came only at the end of stdin"
    late.cancel()
    with contextlib.suppress(OSError):
        os.close(into)


def test_each_result_comes_before_the_next_path(model: PatchCore, parts: Path, piped: int) -> None:
    results = predict(Inspector(model, IMAGE), arriving_images(["-"]), batch=16, workers=3)
    for path in [*sorted(parts.glob("*.png")), parts / "none.png", parts / "sub/stained.png"]:
        os.write(piped, f"{path}\n".encode())
        assert next(results).path == path  # waits for ever if it needs the next one
    os.write(piped, f"{parts / '0.png'}\n{parts / '1.png'}\n{parts / '2.p'}".encode())
    assert [next(results).path.name for _ in range(2)] == ["0.png", "1.png"]
    os.write(piped, b"ng\n")
    assert next(results).path == parts / "2.png"


def test_paths_that_wait_together_are_scored_together(
    model: PatchCore, parts: Path, piped: int
) -> None:
    inspector = Inspector(model, IMAGE)
    paths = sorted(parts.rglob("*.png"))
    os.write(piped, "".join(f"{path}\n" for path in paths).encode())
    with mock.patch.object(inspector, "score", wraps=inspector.score) as score:
        results = predict(inspector, arriving_images(["-"]), batch=4, workers=2)
        assert [next(results).path for _ in paths] == paths
    assert [len(call.args[0]) for call in score.call_args_list] == [4, 2]


def test_names_on_stdin_may_hold_any_byte_but_a_line_feed(piped: int) -> None:
    names = [b"a\rb.png", b"\xef\xbb\xbfx.png", b" c ", b"\xe9.png"]
    os.write(piped, b"\xef\xbb\xbf" + b"\n".join(names[:2]) + b"\r\n\n" + b"\n".join(names[2:]))
    found = arriving_images(["-"])
    expected: list[Any] = [Path(os.fsdecode(name)) for name in names]
    assert [next(found) for _ in range(4)] == [*expected[:3], Pause.here]


def test_images_are_named_in_every_way(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list.txt").write_bytes(b"a.png\r\n\nb c.png\n\xe9.png")
    names = [Path("a.png"), Path("b c.png"), Path(os.fsdecode(b"\xe9.png"))]
    monkeypatch.chdir(tmp_path)
    assert list(named_images(["@list.txt"])) == names
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"x.png\ny.png\n")))
    assert list(named_images(["-"])) == [Path("x.png"), Path("y.png")]
    whole = [*(parts / f"{i}.png" for i in range(5)), parts / "sub" / "stained.png"]
    assert list(named_images([str(parts)])) == whole
    assert list(named_images([str(parts / "*.png"), str(parts / "sub")])) == whole
    assert list(named_images([str(parts / "**" / "*.png")])) == whole
    assert list(named_images([str(parts / "3.png")])) == [parts / "3.png"]


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("{}/sbu", "IMAGES: there is no file or folder {}/sbu; did you mean {}/sub?"),
        ("{}/*.jpg", "IMAGES: no file matches {}/*.jpg"),
        ("@{}/list", "IMAGES: the list {}/list cannot be read (No such file or directory)"),
        ("", "IMAGES is empty: name a folder"),
    ],
)
def test_what_is_not_there_is_named(parts: Path, argument: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        list(named_images([argument.format(parts)]))
    assert str(caught.value) == words.format(parts, parts)


def test_a_list_is_neither_an_image_nor_in_another_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.txt"):
        Image.new("L", (8, 8)).save(tmp_path / name, "PNG")
    Path("in.txt").write_bytes(b"\xef\xbb\xbfa.png\r\n")
    Path("out.txt").write_text("@in.txt\n")
    with pytest.raises(InputError, match=r"^IMAGES: in\.txt is a list of paths: give @in\.txt$"):
        list(named_images(["in.txt"]))
    told = r"^IMAGES: the list out\.txt names another list, @in\.txt: give that as an argument$"
    with pytest.raises(InputError, match=told):
        list(named_images(["@out.txt"]))
    Path("@in.txt").write_bytes(Path("a.png").read_bytes())
    assert list(named_images(["@out.txt", "b.txt"])) == [Path("@in.txt"), Path("b.txt")]


@pytest.mark.parametrize("line", ["path,score\n", '{"path": "a.png", "score": 1.5}\n'])
def test_a_table_of_results_is_no_list(tmp_path: Path, line: str) -> None:
    (tmp_path / "results").write_text(line)
    with pytest.raises(InputError, match=r"^IMAGES: the list .*/results is a table: give the "):
        list(named_images([f"@{tmp_path}/results"]))


def test_a_list_of_paths_from_its_own_folder_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "in.txt").write_text("a.png\n")
    monkeypatch.chdir(tmp_path / "here")
    told = rf"has paths that begin in its own folder.* a\.png: run the command in {tmp_path}, "
    with pytest.raises(InputError, match=told):
        list(named_images([f"@{tmp_path}/in.txt"]))
    monkeypatch.chdir(tmp_path)
    assert list(named_images([f"@{tmp_path}/in.txt", "@in.txt"])) == [Path("a.png")] * 2


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(
        InputError, match=r"holds no images to inspect; 1 file passed over: 1 \.txt"
    ):
        list(named_images([str(tmp_path)]))


# --- the command ------------------------------------------------------------------------------


@pytest.mark.parametrize("piped", ["", "-"])
def test_files_that_are_passed_over_are_counted(
    artifact: Path,
    parts: Path,
    thresholds: Thresholds,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    piped: str,
) -> None:
    for name in ("1.png", "2.HEIC", "3", "4.heic", "Thumbs.db"):
        shutil.copy(parts / "0.png", tmp_path / name)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"")))
    told = re.escape(
        "data: 3 files passed over: 2 .heic, 1 without extension (such as "
        f"{tmp_path / '2.HEIC'}); .heic cannot be read: convert such files to PNG; "
        f"read: 1 image{'' if piped else ' to inspect'}"
    )
    with pytest.warns(UserWarning, match=f"^{told}$"):
        done = patchcore("predict", str(artifact), str(tmp_path), *piped, *flags(thresholds))
    assert done.code == 0 and done.err == "1 inspected, 0 anomalous\n"


def test_rows_that_would_be_equal_are_told(
    artifact: Path, parts: Path, thresholds: Thresholds, tmp_path: Path
) -> None:
    for name in ("a\nb.png", "a\\nb.png"):
        shutil.copy(parts / "0.png", tmp_path / name)
    with pytest.warns(UserWarning, match=r"1 path in tables will stand for several files"):
        patchcore("predict", str(artifact), str(tmp_path), *flags(thresholds))


@pytest.mark.parametrize("name", ["1_mask.png", "ground_truth/1.png", "GT/x/9.png"])
def test_masks_among_images_are_told(
    artifact: Path, parts: Path, thresholds: Thresholds, tmp_path: Path, name: str
) -> None:
    for each in ("1.png", name):
        (tmp_path / each).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(parts / "0.png", tmp_path / each)
    told = f"inspected as images, though named like masks: 1 (such as {tmp_path / name})"
    told = f"data: {told}; read: 2 images to inspect"
    with pytest.warns(UserWarning, match=f"^{re.escape(told)}$"):
        done = patchcore("predict", str(artifact), str(tmp_path), *flags(thresholds))
    assert done.code == 0 and done.err == "2 inspected, 0 anomalous\n"
    alone = str(tmp_path / name)  # nothing else is asked for
    done = patchcore("predict", str(artifact), alone, *flags(thresholds))
    assert done.code == 0 and done.err == "1 inspected, 0 anomalous\n"


def test_a_folder_of_masks_alone_is_told(
    artifact: Path, parts: Path, thresholds: Thresholds, tmp_path: Path
) -> None:
    shutil.copy(parts / "0.png", tmp_path / "7_mask.png")
    told = f"inspected as images, though named like masks: 1 (such as {tmp_path / '7_mask.png'})"
    with pytest.warns(UserWarning, match=re.escape(told)):
        patchcore("predict", str(artifact), str(tmp_path), *flags(thresholds))


def test_csv_of_a_folder(artifact: Path, parts: Path, thresholds: Thresholds) -> None:
    done = patchcore("predict", str(artifact), str(parts), *flags(thresholds))
    assert done.err == "6 inspected, 1 anomalous\n"
    assert done.code == 3
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert [Path(row["path"]).name for row in rows] == [
        *(f"{i}.png" for i in range(5)),
        "stained.png",
    ]
    assert [row["verdict"] for row in rows] == ["nominal"] * 5 + ["anomalous"]
    assert {row["p_value"] for row in rows} == {""}
    (first, *_) = json.loads(rows[-1]["regions"])
    left, top, right, bottom = first["box"]
    assert 0 <= left <= first["at"][0] < right <= SIZE
    assert 0 <= top <= first["at"][1] < bottom <= SIZE
    assert 0 < first["area"] <= (right - left) * (bottom - top)
    assert first["peak"] >= (thresholds.pixel or 0)


def test_json_lines_with_maps_and_overlays(
    artifact: Path, parts: Path, thresholds: Thresholds, tmp_path: Path
) -> None:
    out, folder = tmp_path / "results.jsonl", tmp_path / "pictures"
    done = patchcore(
        *("predict", str(artifact), str(parts), "--format=jsonl", f"--output={out}"),
        *("--maps=png", "--overlays", f"--folder={folder}", *flags(thresholds)),
    )
    assert (done.code, done.out) == (3, "")
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(records) == 6
    for record in records:
        values = read_map(Path(record["map"]))
        assert values.shape == (SIZE, SIZE) == (record["height"], record["width"])
        with Image.open(record["overlay"]) as picture:
            drawn = np.array(picture)
        marked = values >= (thresholds.pixel or 0)
        assert bool((drawn != read_image(Path(record["path"]))).any()) == bool(marked.any())
        assert record["regions"] == [] if not marked.any() else record["regions"]


@pytest.mark.usefixtures("hints_once")
def test_an_exported_model_inspects_too(
    artifact: Path, parts: Path, thresholds: Thresholds, tmp_path: Path
) -> None:
    model, paths = tmp_path / "exported", [str(parts / "3.png"), str(parts / "sub" / "stained.png")]
    export(load_model(artifact), model, "torch", images=[Path(path) for path in paths])
    for folder in (artifact, model):
        done = patchcore("predict", str(folder), *paths, *flags(thresholds), "--device=cpu")
        assert done.code == 3, done.err
        rows = list(csv.DictReader(io.StringIO(done.out)))
        assert [row["verdict"] for row in rows] == ["nominal", "anomalous"]
        assert json.loads(rows[1]["regions"])
    done = patchcore("predict", str(model), *paths, "--device=cuda")
    assert done.err == "error: device: an exported model runs on the CPU, not on cuda\n"


def test_nothing_found_is_0_and_no_threshold_is_told(
    artifact: Path, parts: Path, tmp_path: Path
) -> None:
    done = patchcore("predict", str(artifact), str(parts / "0.png"))
    assert done.code == 0
    assert "the model holds no threshold, so there are no verdicts" in done.err
    assert done.err.endswith("\n1 inspected, no verdicts: no threshold\n")
    (row,) = csv.DictReader(io.StringIO(done.out))
    assert (row["verdict"], row["p_value"], row["regions"]) == ("", "", "")
    (broken := tmp_path / "broken.png").write_bytes(b"")
    done = patchcore("predict", str(artifact), str(broken), "--threshold=1e9")
    assert done.code == 1
    assert done.err.endswith("\n0 inspected; 1 could not be inspected\n")
    done = patchcore("predict", str(artifact), str(parts / "0.png"), "--threshold=1e9")
    assert (done.code, done.err) == (0, "1 inspected, 0 anomalous\n")


def spoil(folder: Path, way: int, number: int) -> Path:
    """Write an image that is broken in one of ten ways."""
    path = folder / f"broken_{way}_{number}.png"
    whole = io.BytesIO()
    Image.fromarray(texture(number)).save(whole, "PNG" if way % 2 else "JPEG")
    data = whole.getvalue()
    match way:
        case 0:
            path.write_bytes(data[: len(data) // 2])  # a JPEG that was cut off
        case 1:
            path.write_bytes(data[: len(data) // 2])  # a PNG that was cut off
        case 2:
            path.write_bytes(b"")
        case 3:
            path.write_bytes(data[:200] + bytes(400) + data[600:])  # damaged inside
        case 4:
            path.write_text("no image at all")
        case 5:
            path.symlink_to(folder / "nowhere.png")
        case 6:
            frames = [Image.new("L", (9, 9), level) for level in (10, 200)]
            frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])
        case 7:
            Image.fromarray(np.full((9, 9), np.nan, np.float32)).save(path, "TIFF")
        case 8:
            header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 20_000, 8, 0, 0, 0, 0)
            size = struct.pack(">I", len(header) - 4)  # 600 megapixels, it says
            check = struct.pack(">I", zlib.crc32(header))
            pixels = struct.pack(">I", 8) + b"IDAT" + bytes(12)
            path.write_bytes(b"\x89PNG\r\n\x1a\n" + size + header + check + pixels)
        case 9:
            path.write_bytes(data[:8] + bytes(20) + data[8:])  # no header
    return path


def test_twenty_broken_files_of_two_hundred_are_named(
    artifact: Path, parts: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    sources = [(parts / f"{i}.png").read_bytes() for i in range(5)]
    for i in range(180):
        (folder / f"part_{i:03d}.png").write_bytes(sources[i % 5])
    broken = {spoil(folder, way, number) for way in range(10) for number in range(2)}
    done = patchcore("predict", str(artifact), str(folder), "--threshold=1e9")
    assert done.code == 1
    assert len(list(csv.DictReader(io.StringIO(done.out)))) == 180
    *reports, last = done.err.splitlines()
    assert last == "180 inspected, 0 anomalous; 20 could not be inspected"
    assert len(reports) == 20
    assert sum("600 megapixels; at most 500 are decoded" in report for report in reports) == 2
    named = {report.removeprefix("not inspected: ").partition(": ")[0] for report in reports}
    assert named == {str(path) for path in broken}
    assert all(len(report.rpartition(": ")[2]) > 10 for report in reports)


def test_a_broken_image_stops_by_choice_and_leaves_what_was(
    artifact: Path, parts: Path, tmp_path: Path
) -> None:
    out, bad = tmp_path / "results.csv", tmp_path / "bad.png"
    earlier = "path,score,p_value,verdict,regions\n"
    out.write_text(earlier)
    bad.write_text("no image")
    done = patchcore(
        *("predict", str(artifact), str(parts), str(bad), "--on-error=stop", f"--output={out}")
    )
    assert done.code == 1
    assert f"error: {bad}: cannot be read as an image" in done.err
    assert out.read_text() == earlier
    assert sorted(os.listdir(tmp_path)) == ["bad.png", "results.csv"]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_results_replace_results_and_nothing_else(
    artifact: Path, parts: Path, tmp_path: Path, form: str
) -> None:
    out, own = tmp_path / "results.txt", b"PK\3\4 of mine"
    out.write_bytes(own)
    given = ("predict", str(artifact), str(parts), f"--output={out}", f"--format={form}")
    done = patchcore(*given)
    assert (done.code, out.read_bytes()) == (1, own)
    assert done.err.startswith(f"error: --output: {out} is there already and holds something else")
    out.write_bytes(b"")
    assert patchcore(*given).code in (0, 3)
    first = out.read_bytes()
    assert patchcore(*given).code in (0, 3) and out.read_bytes() == first != b""


@pytest.mark.parametrize(
    ("name", "more", "form"),
    [
        ("x.jsonl", [], "jsonl"),
        ("x.json", ["--format=jsonl"], "jsonl"),
        ("x.CSV", [], "csv"),
        ("x", [], "csv"),
        ("x.txt", ["--format=jsonl"], "jsonl"),
    ],
)
def test_the_ending_of_the_output_is_its_format(
    artifact: Path, parts: Path, name: str, more: list[str], form: str, tmp_path: Path
) -> None:
    out = tmp_path / name
    done = patchcore("predict", str(artifact), str(parts), f"--output={out}", *more)
    assert out.is_file(), done.err
    first = out.read_text().splitlines()[0]
    assert first.startswith('{"path": ' if form == "jsonl" else "path,score,")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--overlay"], "--overlay: there is no such option; did you mean --overlays?"),
        (["--nonsense=3"], "--nonsense: there is no such option; see patchcore predict --help"),
        (["--format=xml"], "argument --format: invalid choice: 'xml'"),
        (["--batch=0"], "argument --batch: must be a whole number from 1 on, got 0"),
        (["--threshold=nan"], "argument --threshold: must be a finite number, got nan"),
        (["--pixel-threshold=inf"], "argument --pixel-threshold: must be a finite number, got inf"),
        (["--threshold=high"], "argument --threshold: must be a finite number, got high"),
        (["--output=x.json"], "--output: x.json is a name for JSON, and results are CSV or JSON"),
        (["--output=x.json", "--format=csv"], "--output: x.json is a name for JSON"),
        (
            ["--output=x.csv.GZ", "--format=csv"],
            "--output: x.csv.GZ is a name for gz, and results are CSV or JSON lines, as plain tex",
        ),
        (
            ["--output=x.csv", "--format=jsonl"],
            "--output: x.csv is a name for csv, and --format is jsonl",
        ),
        (
            ["--output=x.JSONL", "--format=csv"],
            "--output: x.JSONL is a name for jsonl, and --format is csv",
        ),
        (["--output=nowhere/x.csv"], "--output: there is no folder nowhere: make it first"),
        (["--maps=png", f"--folder={__file__}"], f"--folder: {__file__} is a file: name a folder"),
        (["--folder=here"], "--folder: nothing is written there: add --maps png or --overlays"),
        (["--explain"], "--explain: the model holds no pixel threshold: add --pixel-threshold"),
        (["--device=nowhere"], "device: nowhere is not a device; choose cpu, cuda, …"),
        (["--device=meta"], "device: meta is not available here"),
    ],
)
def test_mistakes_are_told_in_a_line(
    artifact: Path, parts: Path, arguments: list[str], words: str
) -> None:
    done = patchcore("predict", str(artifact), str(parts / "0.png"), *arguments)
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith(f"error: {words}")


def test_a_reader_that_has_had_enough_ends_it_without_a_word(
    artifact: Path, parts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def fileno(self) -> int:
            return spare

    spare = os.open(tmp_path / "spare", os.O_CREAT | os.O_WRONLY)
    try:
        typed = ["patchcore", "predict", str(artifact), str(parts), "--threshold=1e9"]
        with (
            redirect_stdout(Closed()),
            mock.patch("sys.argv", typed),
            pytest.raises(SystemExit) as end,
        ):
            main()
        assert os.path.samestat(os.fstat(spare), os.stat(os.devnull))
    finally:
        os.close(spare)
    assert end.value.code == 1
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output=/proc/x.csv"], "--output: /proc cannot be written to ("),
        (["--output=/dev/full"], "/dev/full: No space left on device: make room"),
        (["--overlays", "--folder=/proc/x"], "--folder: /proc/x cannot be written to ("),
    ],
)
def test_an_output_that_cannot_be_written_is_named(
    artifact: Path, parts: Path, arguments: list[str], words: str
) -> None:
    done = patchcore("predict", str(artifact), str(parts / "0.png"), *arguments)
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith(f"error: {words}")


def test_a_full_disk_behind_stdout_is_told_in_a_line(artifact: Path, parts: Path) -> None:
    program = "from patchcore.commands import main; main()"
    line = [sys.executable, "-c", program, "predict", str(artifact), str(parts)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    told = "error: stdout: No space left on device: make room or choose another folder"
    assert done.stderr.splitlines()[-1] == told


@pytest.mark.parametrize("full", [False, True])
def test_messages_that_nobody_reads_take_no_results_away(
    artifact: Path, parts: Path, tmp_path: Path, full: bool
) -> None:
    """Stderr is a pipe whose reader is gone, or lies on a full disk."""
    (tmp_path / "broken.png").write_text("words")
    program = "from patchcore.commands import main; main()"
    line = [sys.executable, "-c", program, "predict", str(artifact), str(parts), str(tmp_path)]
    if full:
        told = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, told = os.pipe()
        os.close(reading)
    output = tmp_path / "out.csv"
    done = subprocess.run([*line, "--threshold=1e9", f"--output={output}"], stderr=told)
    os.close(told)
    assert done.returncode == 1  # as one image is broken
    assert len(output.read_text().splitlines()) == 1 + 6


def test_pictures_do_not_become_images(artifact: Path, parts: Path) -> None:
    folder = parts / "predictions"
    done = patchcore("predict", str(artifact), str(parts), "--overlays", f"--folder={folder}")
    assert done.code == 1
    assert f"error: --folder: {folder} lies in {parts}" in done.err
    assert not folder.exists()


def test_no_images_are_a_mistake(artifact: Path) -> None:
    done = patchcore("predict", str(artifact))
    assert done.code == 1
    assert done.err.startswith("error: IMAGES: name a file")
