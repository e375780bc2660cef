"""Models that grow and shrink: against plain versions, and against fits of the same images."""

import copy
import errno
import os
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from patchcore import (
    AllConfig,
    ApproximateConfig,
    Ensemble,
    GreedyConfig,
    InputError,
    Inspector,
    LearnedConfig,
    RandomConfig,
    ScoringConfig,
    load,
)
from patchcore.artifact import read_description, save
from patchcore.artifact_files import check
from patchcore.coreset import CoresetConfig, greedy_order
from patchcore.data.images import read_image
from patchcore.data.transforms import ImageConfig, build_transform
from patchcore.data.view import View
from patchcore.decision import decide
from patchcore.digests import ChangedError, file_digest
from patchcore.export import load_model
from patchcore.extend import Change, change_artifact, extend, remove, widened
from patchcore.index import FaissIVFPQConfig, TorchIndexConfig, nearest_rows
from patchcore.inspector import DIGESTS, SOURCES
from patchcore.methods import (
    METHODS,
    PadimConfig,
    Parts,
    PatchCoreConfig,
    SpadeConfig,
    build_detector,
)
from patchcore.methods.detector import Fitting, MethodConfig, Prediction
from patchcore.scoring import Distance
from patchcore.sealed import rewrite_description
from tests import reference
from tests.images import write_image
from tests.processes import limited
from tests.runs import patchcore
from tests.test_methods import build, parts

SIZE = (32, 24)
IMAGE = ImageConfig(resize=24, crop=24)


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def detector(coreset: CoresetConfig, scoring: ScoringConfig | None = None) -> Any:
    own = parts("patchcore")
    return build_detector(
        Parts(
            own.method,
            own.backbone,
            own.layers,
            own.patch,
            coreset,
            own.index,
            scoring or own.scoring,
        )
    )


def naive_greedy(points: np.ndarray, chosen: np.ndarray, count: int) -> list[int]:
    """Farthest points from `chosen` and from each other, one at a time."""
    squared = ((points[:, None] - chosen[None]) ** 2).sum(2).min(1)
    picks: list[int] = reference.greedy_coreset(points, count, distances=squared**0.5)[0].tolist()
    return picks


# --- the selection goes on --------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e-4], ids=["apart", "close"])
def test_the_greedy_order_goes_on_from_what_is_covered(scale: float) -> None:
    """Points that lie close together far from their mean need float64, from the same start."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(8, 6))
    points = (centres[rng.integers(0, 8, 300)] + scale * rng.normal(size=(300, 6))).astype(
        np.float32
    )
    chosen = (centres + scale * rng.normal(size=(8, 6))).astype(np.float32)
    wide, before = points.astype(np.float64), chosen.astype(np.float64)
    covered = ((wide[:, None] - before[None]) ** 2).sum(2).min(1)
    order = greedy_order(torch.from_numpy(points), 40, covered=torch.from_numpy(covered), pool=32)
    expected = naive_greedy(wide, before, len(order))
    assert order.indices.tolist() == expected
    left = np.minimum(covered, ((wide[:, None] - wide[expected][None]) ** 2).sum(2).min(1))
    assert float(order.radii[-1]) == pytest.approx(left.max() ** 0.5, rel=1e-4)
    assert (order.radii.diff() <= 0).all()


@pytest.mark.parametrize("shift", [0.0, 100.0], ids=["centred", "far"])
def test_nearest_rows_are_those_of_the_plain_search(shift: float) -> None:
    rng = np.random.default_rng(0)
    memory = (rng.normal(size=(2500, 3)) + shift).astype(np.float32)
    queries = (rng.normal(size=(2100, 3)) + shift).astype(np.float32)
    squared, rows = nearest_rows(torch.from_numpy(memory), torch.from_numpy(queries))
    distances, expected = reference.nearest(queries, memory, 1)
    assert (rows.numpy() == expected).mean() > 0.999  # rounding may exchange two
    np.testing.assert_allclose(squared.numpy(), distances, rtol=1e-3, atol=1e-5)


def test_the_selection_ends_where_all_points_are_picked() -> None:
    points = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    order = greedy_order(points, 5, covered=torch.full((5,), 0.01))
    assert sorted(order.indices.tolist()) == [0, 1, 2, 3, 4]
    assert len(order.radii) == 5


@pytest.mark.parametrize("distance", [Distance.euclidean, Distance.cosine])
def test_patchcore_adds_what_the_plain_greedy_adds(distance: Distance) -> None:
    model = detector(GreedyConfig(ratio=0.2), ScoringConfig(distance=distance)).fit(images(5))
    old, before = model.memory.clone(), model(images(3, 1))
    features = model.embed(images(3, 1))
    (prediction,) = model.extend([features], [SIZE], [7, 8, 9])
    assert all(torch.equal(x, y) for x, y in zip(prediction, before, strict=True))
    rows = features.flatten(0, 2)
    if distance is Distance.cosine:
        rows = torch.nn.functional.normalize(rows, dim=1)
    patches = rows.shape[0] // 3
    assert len(old) == int(0.2 * 5 * patches)
    assert len(model.memory) == round(len(old) * 8 / 5)
    picks = naive_greedy(rows.double().numpy(), old.double().numpy(), len(model.memory) - len(old))
    assert torch.equal(model.memory[: len(old)], old)
    torch.testing.assert_close(model.memory[len(old) :], rows[picks])
    width = features.shape[2]
    expected = [[7 + p // patches, p % patches // width, p % patches % width] for p in picks]
    assert model.origin[len(old) :].tolist() == expected
    assert not model.memory.is_inference()


def test_added_images_are_scored_by_the_models_own_search() -> None:
    pytest.importorskip("faiss", reason="needs the extra faiss")
    own = parts("patchcore")
    own.coreset, own.index = GreedyConfig(ratio=0.5), FaissIVFPQConfig(4, 1, 4, 4)
    model: Any = build_detector(own).fit(images(5))
    exact = build_detector(replace(own, index=TorchIndexConfig()))
    exact.load_state_dict(model.state_dict())
    before = model(images(3, 1))
    assert not torch.equal(exact(images(3, 1)).score, before.score)
    features = model.embed(images(3, 1))
    (prediction,) = model.extend([features], [SIZE], [5, 6, 7])
    assert all(torch.equal(x, y) for x, y in zip(prediction, before, strict=True))
    exact.extend([features], [SIZE], [5, 6, 7])
    assert torch.equal(model.memory, exact.memory)  # the selection needs no such search


def test_rows_know_the_patch_that_they_are() -> None:
    model = detector(GreedyConfig(ratio=0.2))
    batch = images(4)
    model.fit(batch, fitting=Fitting(images=[3, 5, 5, 9]))
    found = {3: [0], 5: [1, 2], 9: [3]}
    features = model.embed(batch)
    for row, (image, top, left) in zip(model.memory, model.origin.tolist(), strict=True):
        assert any(torch.equal(features[place, top, left], row) for place in found[image])
    nearest = model(batch).nearest
    assert torch.equal(model.origins(nearest), model.origin[nearest])
    assert model.images_had == 10


@pytest.mark.parametrize(
    "coreset", [RandomConfig(ratio=0.1), ApproximateConfig(ratio=0.1), AllConfig()]
)
def test_every_sampler_keeps_its_share(coreset: CoresetConfig) -> None:
    model = detector(coreset).fit(images(4))
    share, patches = len(model.memory) / model._gathered, model._gathered // 4
    for seed in (1, 2):  # again and again
        known = len(model.memory)
        model.extend([model.embed(images(2, seed))], [SIZE], [2 * seed + 4, 2 * seed + 5])
        assert len({*map(tuple, model.memory[known:].tolist())}) == len(model.memory) - known
    assert model._gathered == 8 * patches
    assert len(model.memory) == pytest.approx(share * 8 * patches, abs=1)


def test_the_number_of_patches_may_be_asked_for() -> None:
    model = detector(GreedyConfig(ratio=0.1)).fit(images(4))
    known, features = len(model.memory), model.embed(images(1, 1))
    patches = features[0, ..., 0].numel()
    model.extend([features], [SIZE], [4], count=patches)
    assert len(model.memory) == known + patches
    with pytest.raises(InputError, match=f"count must be at most the {patches} patches"):
        model.extend([features], [SIZE], [5], count=patches + 1)
    whole = detector(AllConfig()).fit(images(2))
    with pytest.raises(InputError, match="coreset=all keeps all"):
        whole.extend([features], [SIZE], [4], count=3)


def test_learned_proxies_cannot_grow() -> None:
    model = detector(LearnedConfig(ratio=0.1, steps=2)).fit(images(2))
    assert (model.origin == -1).all()
    with pytest.raises(InputError, match=r"^coreset: this sampler makes the memory bank as"):
        model.extend([model.embed(images(1, 1))], [SIZE], [2])


def test_patchcore_forgets_an_image() -> None:
    model = detector(GreedyConfig(ratio=0.2)).fit(images(5))
    kept = model.memory[model.origin[:, 0] != 2]
    share = len(model.memory) / model._gathered
    assert 0 < len(kept) < len(model.memory)
    model(images(1))  # the index is of the earlier memory
    model.forget([2])
    assert torch.equal(model.memory, kept)
    assert 2 not in model.origin[:, 0]
    assert len(kept) / model._gathered == pytest.approx(share, rel=0.01)
    other = detector(GreedyConfig(ratio=0.2))
    other.memory = kept.clone()
    assert torch.equal(model(images(2, 1)).score, other(images(2, 1)).score)
    with pytest.raises(InputError, match="without these images only 0 patches would be left"):
        model.forget(range(5))


# --- the other methods ------------------------------------------------------------------------


def test_spade_extended_is_spade_fitted_to_all() -> None:
    every = images(5)
    whole, grown = build("spade").fit(every), build("spade").fit(every[:3])
    before = grown(every[3:])
    (prediction,) = grown.extend([grown.embed(every[3:])], [SIZE], [3, 4])
    assert torch.equal(prediction.score, before.score)
    assert all(torch.equal(grown.memories[key], x) for key, x in whole.memories.items())
    assert grown.images == whole.images == [0, 1, 2, 3, 4]
    found = grown(every)
    places = grown.origins(found.nearest)
    positions = torch.arange(found.nearest[0].numel()).view(found.nearest.shape[1:])
    assert torch.equal(
        places[..., 0], torch.arange(5)[:, None, None].expand_as(places[..., 0]).int()
    )
    width = positions.shape[1]
    assert torch.equal(places[0, ..., 1] * width + places[0, ..., 2], positions.int())
    grown.forget([0, 3])
    fewer = build("spade").fit(every[[1, 2, 4]])
    assert all(torch.equal(grown.memories[key], x) for key, x in fewer.memories.items())
    assert grown.images == [1, 2, 4]
    with pytest.raises(InputError, match="none would be left"):
        grown.forget([1, 2, 4])
    with pytest.raises(InputError, match=r"^count: method=spade"):
        grown.extend([grown.embed(every)], [SIZE], range(5, 10), count=3)


@pytest.mark.parametrize("known", [1, 4])
def test_padim_extended_is_padim_fitted_to_all(known: int) -> None:
    every = images(9)
    whole, grown = build("padim").fit(every), build("padim").fit(every[:known])
    before = grown(every[known:])
    batches = [grown.embed(part) for part in every[known:].split(3)]
    found = grown.extend(batches, [SIZE] * len(batches), range(known, 9))
    torch.testing.assert_close(torch.cat([p.score for p in found]), before.score)
    assert grown.images == whole.images == 9
    torch.testing.assert_close(grown.mean, whole.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grown.factor, whole.factor, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        grown(images(2, 1)).score, whole(images(2, 1)).score, rtol=1e-4, atol=0
    )
    assert grown.origins(torch.tensor([0, 5])).tolist() == [
        [-1, 0, 0],
        [-1, 5 // grown.grid[1], 5 % grown.grid[1]],
    ]
    with pytest.raises(InputError, match="method=padim cannot be rid of an image: fit again"):
        grown.forget([0])
    with pytest.raises(InputError, match=r"^count: method=padim"):
        grown.extend(batches, [SIZE] * len(batches), range(9, 17), count=3)


@pytest.mark.parametrize("name", METHODS)
def test_state_dicts_keep_what_growing_needs(name: str) -> None:
    one, other = build(name).fit(images(3)), build(name)
    other.load_state_dict(one.state_dict())
    for model in (one, other):
        model.extend([model.embed(images(2, 1))], [SIZE], [3, 4])
    assert one.images_had == other.images_had == 5 or name == "patchcore"
    assert torch.equal(one(images(2, 2)).score, other(images(2, 2)).score)


# --- images on disk, artifacts and the command ------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Seven pictures, one of another shape."""
    folder = tmp_path_factory.mktemp("images")
    made = [write_image(folder / f"{i}.png", (24, 24), i) for i in range(6)]
    return [*made, write_image(folder / "6.png", (30, 24), 6)]


@pytest.fixture(scope="module")
def kept(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Artifact of a method fitted to the first four pictures; nobody may change it."""
    folder, known = tmp_path_factory.mktemp("kept"), set()

    def get(name: str) -> Path:
        if name not in known:
            model = build(name)
            batch = torch.cat([inputs(path) for path in files[:4]])
            model.fit(batch)
            details = {SOURCES: [str(path) for path in files[:4]], "metrics": {"image_auroc": 0.9}}
            model.save(folder / name, image=IMAGE, details=details, weights=True)
            known.add(name)
        return folder / name

    return get


def inputs(path: Path) -> Tensor:
    """A picture as the network takes it."""
    pixels = read_image(path, None, 100)
    mask = np.zeros(pixels.shape[:2], dtype=bool)
    return build_transform(IMAGE)(pixels, mask, 0)[0][None]


@pytest.mark.parametrize("name", [*METHODS, "ensemble"])
def test_an_artifact_grows(
    kept: Callable[[str], Path], files: list[Path], name: str, tmp_path: Path
) -> None:
    folder = kept(name)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    inspector, changes = change_artifact(folder, files[4:], output=tmp_path / "grown")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    old = load(folder).model.memory_patches
    assert changes == [Change(3, inspector.model.memory_patches - old)]
    assert (changes[0].patches == 0) == (name == "padim")  # as many Gaussians as there were
    again = load(tmp_path / "grown")
    for key, memory in inspector.model.memories.items():
        assert torch.equal(again.model.memories[key], memory)
    assert again.details[SOURCES] == [str(path) for path in files]
    assert again.details["metrics"] == {}  # of the model as it was
    fit, grown = again.details["lineage"]
    assert (fit["step"], grown["step"]) == ("fit", "extend")
    assert grown["images"] == 3 and grown["metrics_before"] == {"image_auroc": 0.9}
    assert len(grown["of"]) > 20
    files_inside = [m["network"]["file"] for m in read_description(tmp_path / "grown")["members"]]
    assert all(files_inside)
    # The same as the methods do with the pictures' features.
    own = load(folder)
    for member, theirs in zip(own.members, again.members, strict=True):
        batches = [member.embed(torch.cat([inputs(path) for path in files[4:]]))]
        member.extend(batches, [(24, 24)], [4, 5, 6])
        for key, memory in theirs.memories.items():
            torch.testing.assert_close(member.memories[key], memory, rtol=1e-5, atol=1e-6)
    if isinstance(again.model, Ensemble) and isinstance(own.model, Ensemble):
        assert again.model.scales == own.model.scales


def test_an_image_is_taken_out_and_put_back(
    kept: Callable[[str], Path], files: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(kept("spade"), folder)
    whole = load(folder)
    _, changes = change_artifact(folder, removed=["1.png"])
    assert changes[0].images == 1 and changes[0].patches < 0
    fewer = load(folder)
    assert fewer.details[SOURCES] == [str(files[0]), None, str(files[2]), str(files[3])]
    assert [step["step"] for step in fewer.details["lineage"]] == ["fit", "remove"]
    change_artifact(folder, [files[1]])
    back = load(folder)
    assert back.members[0].images == [0, 2, 3, 4]  # type: ignore[attr-defined]
    order = [0, 3, 1, 2]
    for key, memory in whole.model.memories.items():
        torch.testing.assert_close(back.model.memories[key][order], memory)


def test_what_cannot_be_done_leaves_the_artifact(
    kept: Callable[[str], Path], files: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(kept("patchcore"), folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    other = tmp_path / "elsewhere" / "1.png"

    def refused(message: str, *arguments: Any, **more: Any) -> None:
        with pytest.raises(InputError, match=message):
            change_artifact(folder, *arguments, **more)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    refused("broken.png", [files[4], broken])
    refused("0.png: is in the model already", [files[0]])
    several = r"^\S+/0\.png and \S+/1\.png: are in the model already: leave them out$"
    refused(several, [*files[:2], files[4]])
    many = r"/0\.png, \S+/1\.png, \S+/2\.png and 1 more: are in the model already: leave them out$"
    refused(many, files[:4])
    refused("was given twice: name it once", [files[4], files[4]])
    refused(r"/4\.png and \S+/5\.png: were given twice: name each once$", [*files[4:6]] * 2)
    copy = Path(shutil.copy(files[1], tmp_path / "copy.png"))
    refused(r"copy\.png: has the contents of .*/1\.png, which is in the model already", [copy])
    saved = []
    for name in ("saved.bmp", "saved.png"):  # of other sizes in bytes
        with Image.open(files[1]) as picture:
            picture.save(tmp_path / name, compress_level=0)
        saved.append(tmp_path / name)
        words = rf"{name}: has the same pixels as .*/1\.png, which is in the model already: leave"
        refused(words, [files[4], tmp_path / name])
    words = r"saved\.bmp: has the same pixels as .*, and \S+\.png is a copy, too: leave them out$"
    refused(words, saved)
    copies = [Path(shutil.copy(files[1], tmp_path / f"{number}.png")) for number in range(5)]
    words = r"/0\.png: has the con.*, and \S+/1\.png, \S+/2\.png and 2 more are copies, too"
    refused(words, copies)
    linked = tmp_path / "linked"
    linked.symlink_to(files[0].parent)
    for folder_of in (files[0].parent / ".." / files[0].parent.name, linked):
        refused(r"0\.png: is in the model already", [folder_of / "0.png"])
        refused("4.png: was given twice: name it once", [files[4], folder_of / "4.png"])
    refused("5.png: is not among the images in the model's memory bank", [], ["5.png"])
    refused("elsewhere/1.png: is not among the images", [], [other])
    refused("0 patches would be left", [], ["0.png", "1.png", "2.png", "3.png"])
    refused("count must be at most", [files[4]], count=10**6)
    refused("none to add, and none to remove")


def fitted(folder: Path, images: list[Path], name: str = "spade") -> Path:
    """Artifact of a method fitted to images."""
    model = build(name).fit(torch.cat([inputs(path) for path in images]))
    details = {SOURCES: [str(path) for path in images]}
    model.save(folder, image=IMAGE, details=details, weights=True)
    return folder


def copied(images: list[Path], folder: Path) -> list[Path]:
    folder.mkdir()
    return [Path(shutil.copy(path, folder)) for path in images]


@pytest.mark.parametrize("name", ["patchcore", "spade", "ensemble"])
def test_images_of_the_model_are_known_wherever_their_files_are(
    files: list[Path], name: str, tmp_path: Path
) -> None:
    old = copied(files[:4], tmp_path / "old")
    folder = fitted(tmp_path / "model", old, name)
    before = (folder / "artifact.yaml").read_bytes()
    digests = [file_digest(path) for path in files]
    assert load(folder).details[DIGESTS[SOURCES]] == digests[:4]
    new = [path.rename(tmp_path / path.name) for path in old]
    told = f"{new[1]}: has the contents of {old[1]}, which is in the model already: leave it out"
    with pytest.raises(InputError, match=f"^{told}$"):
        change_artifact(folder, [files[4], new[1]])
    with pytest.raises(InputError, match=r"/0\.png: has the .* and 1 more are copies, too: leave"):
        change_artifact(folder, new)
    assert (folder / "artifact.yaml").read_bytes() == before

    change_artifact(folder, [new[1]], removed=[old[1]])
    change_artifact(folder, [files[4]])
    found = load(folder).details
    assert found[SOURCES] == [
        *(str(old[0]), None, str(old[2]), str(old[3])),
        *(str(new[1]), str(files[4])),
    ]
    assert found[DIGESTS[SOURCES]] == [digests[0], None, *digests[2:4], digests[1], digests[4]]
    new[1].unlink()
    with pytest.raises(InputError, match=f"^{files[1]}: has the contents of {new[1]}, which is in"):
        change_artifact(folder, [files[1]])


def test_a_copy_that_the_model_holds_twice_is_in_it_until_both_are_removed(
    files: list[Path], tmp_path: Path
) -> None:
    old = copied(files[:3], tmp_path / "old")
    folder = fitted(tmp_path / "model", [*old, Path(shutil.copy(old[0], tmp_path / "twin.png"))])
    shutil.rmtree(tmp_path / "old")
    (tmp_path / "twin.png").unlink()
    with pytest.raises(InputError, match=f"^{files[0]}: has the contents of {old[0]}, which is"):
        change_artifact(folder, [files[0]])
    with pytest.raises(InputError, match=f"has the contents of {tmp_path}/twin.png, which is"):
        change_artifact(folder, [files[0]], removed=["old/0.png"])
    _, changes = change_artifact(folder, [files[0]], removed=["old/0.png", "twin.png"])
    assert [change.images for change in changes] == [2, 1]


def test_a_file_that_was_replaced_is_no_longer_an_image_of_the_model(
    files: list[Path], tmp_path: Path
) -> None:
    old = copied(files[:3], tmp_path / "old")
    folder = fitted(tmp_path / "model", old)
    shutil.copy(files[4], old[0])
    with pytest.raises(InputError, match=f"^{files[0]}: has the contents of {old[0]}, which is"):
        change_artifact(folder, [files[0]])
    words = f"^{old[0]}: was replaced since the model learned it: give the new image another name"
    with pytest.raises(InputError, match=words):
        change_artifact(folder, [old[0], old[1]])
    shutil.copy(files[5], old[1])
    words = "/0.png and .*/1.png: were replaced since the model learned them: give the new images"
    with pytest.raises(InputError, match=words):
        change_artifact(folder, old)
    with pytest.raises(InputError, match=f"^{old[2]}: is in the model already: leave it out$"):
        change_artifact(folder, old[2:])
    _, changes = change_artifact(folder, old[:1], removed=old[:1], output=tmp_path / "second")
    assert [change.images for change in changes] == [1, 1]
    old[0].unlink()
    assert change_artifact(folder, [files[4]])[1][0].images == 1


def test_a_model_of_an_earlier_version_knows_the_files_that_are_there(
    files: list[Path], tmp_path: Path
) -> None:
    old = copied(files[:4], tmp_path / "old")
    folder = fitted(tmp_path / "model", old)
    description = read_description(folder)
    del description[DIGESTS[SOURCES]]
    rewrite_description(folder, "artifact.yaml", description)
    assert load(folder).details[DIGESTS[SOURCES]] == [None] * 4
    change_artifact(folder, [files[4]], output=tmp_path / "silent")  # a warning would be an error
    with pytest.raises(InputError, match=f"^{files[1]}: has the contents of {old[1]}, which is in"):
        change_artifact(folder, [files[1]])
    for path in old[2:]:
        path.unlink()
    words = (
        "^model: copies of 2 of its 4 images are not noticed, as their contents were not recorded "
        rf"and their files are gone \(such as {old[2]}\): restore the files, or fit again$"
    )
    with pytest.warns(UserWarning, match=words):
        change_artifact(folder, [files[2], files[4]])
    digests = load(folder).details[DIGESTS[SOURCES]]
    assert digests == [None] * 4 + [file_digest(files[2]), file_digest(files[4])]


def test_a_file_that_changes_while_it_is_added_is_not_added(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fitted(tmp_path / "model", files[:3])
    inspector, path = load(folder), Path(shutil.copy(files[4], tmp_path / "new.png"))
    before = {key: x.clone() for key, x in inspector.model.memories.items()}
    embed = inspector.embed

    def change(batch: Any) -> Any:
        shutil.copy(files[5], path)
        return embed(batch)

    monkeypatch.setattr(inspector, "embed", change)
    with pytest.raises(ChangedError, match=f"^{path}: the file changed"):
        extend(inspector, [path])
    assert all(torch.equal(inspector.model.memories[key], x) for key, x in before.items())
    assert len(inspector.details[SOURCES]) == 3


def test_a_name_that_several_images_have_must_be_longer(tmp_path: Path) -> None:
    sources = [str(tmp_path / name / "1.png") for name in ("a", "b")]
    model = build("spade").fit(images(2))
    inspector = Inspector(model, IMAGE, details={SOURCES: sources})
    with pytest.raises(InputError, match="2 images of the model end like this"):
        remove(inspector, ["1.png"])
    assert remove(inspector, ["b/1.png"]).images == 1
    assert inspector.details[SOURCES] == [sources[0], None]
    nameless = Inspector(build("spade").fit(images(2)), IMAGE)
    with pytest.raises(InputError, match="does not know its images' paths"):
        remove(nameless, ["1.png"])


def test_an_ensemble_whose_second_member_fails_is_as_before(files: list[Path]) -> None:
    first, second = detector(GreedyConfig(ratio=0.2)), detector(LearnedConfig(ratio=0.2, steps=2))
    batch = torch.cat([inputs(path) for path in files[:4]])
    model = Ensemble([first, second])
    model.fit(batch)
    memory = first.memory.clone()
    with pytest.raises(InputError, match="coreset: this sampler"):
        extend(Inspector(model, IMAGE), files[4:])
    assert torch.equal(first.memory, memory)


def test_an_ensemble_is_extended_where_sizes_differ_for_one_member_alone(tmp_path: Path) -> None:
    """Both pictures have one size for the first member, and two for the second."""
    paths = [
        write_image(tmp_path / f"{i}.png", (100, width), i) for i, width in enumerate((150, 152))
    ]
    views = [ImageConfig(size=size, view=View.whole) for size in (16, 96)]
    model = Ensemble([detector(GreedyConfig(ratio=0.5)) for _ in views]).fit(images(4))
    inspector = Inspector(model, views)
    sizes = [[part.shape[:2] for part in inspector.prepare(read_image(x, None, 1))] for x in paths]
    assert sizes[0][0] == sizes[1][0] and sizes[0][1] != sizes[1][1]
    before, each = model.memory_patches, deepcopy(inspector)
    assert extend(inspector, paths).images == 2 and model.memory_patches > before
    for path in paths:  # one by one they are of one size
        extend(each, [path])
    assert model.memory_patches == pytest.approx(each.model.memory_patches, abs=2)


@pytest.mark.parametrize(
    ("method", "kept"),
    [
        (PatchCoreConfig(), True),
        (PatchCoreConfig(radius=1), False),
        (PatchCoreConfig(retrieval=1), False),
        (SpadeConfig(), False),
        (PadimConfig(), False),
    ],
)
def test_a_decision_is_kept_only_where_scores_cannot_rise(
    method: MethodConfig, kept: bool, files: list[Path], tmp_path: Path
) -> None:
    """The others compare an image with a part of the memory, or with Gaussians that change."""
    model = build_detector(Parts(method))
    inspector = Inspector(model, IMAGE, details={SOURCES: [os.fspath(x) for x in files[:4]]})
    seen = torch.cat([inputs(path) for path in files[:4]])
    found = model.fit(seen)(seen)
    inspector.decision = decide(found.score, [found.map], 0.2, 4)
    save(inspector, tmp_path / "kept")
    done = patchcore("extend", os.fspath(tmp_path / "kept"), os.fspath(files[4]))
    assert (done.code, done.err) == (0, "")
    decision = load(tmp_path / "kept").decision
    assert decision is None if not kept else decision.images == 5
    assert ("threshold: none, because new images may raise scores" in done.out) is not kept
    if kept:
        done = patchcore("extend", os.fspath(tmp_path / "kept"), "--remove", "0.png")
        assert "threshold: none, because images were removed" in done.out
    done = patchcore("extend", os.fspath(tmp_path / "kept"), os.fspath(files[5]))
    assert "threshold: none\n" in done.out  # it had none before


def test_new_images_may_raise_scores_of_spade() -> None:
    """They are near others, or among fewer than K, of which the mean distance is taken."""
    model, tested = build("spade").fit(images(4)), images(3, seed=1)
    before = model(tested).score
    model.extend([model.embed(4 * images(2, seed=2))], [SIZE], [4, 5])
    assert bool((model(tested).score > before).all())


def test_the_command_extends_and_removes(
    kept: Callable[[str], Path], files: list[Path], tmp_path: Path
) -> None:
    more = tmp_path / "more"
    for path in files[4:]:
        write_image(more / path.name, (24, 24), 40 + int(path.stem))
    output = os.fspath(tmp_path / "grown")
    done = patchcore("extend", os.fspath(kept("patchcore")), os.fspath(more), "--output", output)
    assert (done.code, done.err) == (0, ""), done.err
    grown = load(output).model.memory_patches
    assert f"images added: 3, +{grown - load(kept('patchcore')).model.memory_patches}" in done.out
    assert f"model: {output}" in done.out
    done = patchcore("extend", output, "--remove", "more/4.png", "0.png")
    assert done.code == 0
    assert "images removed: 2, -" in done.out and f"  {more / '4.png'}\n" in done.out
    assert "threshold: none\n" in done.out
    assert load(output).model.memory_patches < grown
    for arguments, message in (
        ([output, "nowhere"], "error: nowhere: there is no such file or folder"),
        ([output, "--count", "3"], "error: --count has no effect"),
        ([output, os.fspath(more), "--count", "0"], "error: --count must be at least 1"),
        ([os.fspath(more)], "is not an artifact"),
    ):
        done = patchcore("extend", *arguments)
        assert done.code == 1
        assert message in done.err


@pytest.mark.parametrize("mask", ["5_mask.png", "masks/5.png", "ground_truth/crack/9.png"])
def test_masks_are_not_learned(
    kept: Callable[[str], Path], files: list[Path], tmp_path: Path, mask: str
) -> None:
    more = tmp_path / "more"
    more.mkdir()
    shutil.copy(files[5], more / "5.png")
    (more / mask).parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (24, 24)).save(more / mask)
    for given in ([more], sorted(more.glob("*.png"))):
        if given == [more / "5.png"]:
            continue
        done = patchcore(
            *("extend", str(kept("patchcore")), *map(str, given), "--output", str(tmp_path / "new"))
        )
        assert done.code == 1 and done.err.startswith(f"error: {more / mask}: ")
        assert "mask" in done.err and done.err.endswith("move the masks to another folder\n")
        assert not (tmp_path / "new").exists()


def test_a_folder_beside_that_of_nominal_images_is_not_learned(
    kept: Callable[[str], Path], files: list[Path], tmp_path: Path
) -> None:
    root, new = tmp_path / "screw", tmp_path / "new"
    for number, part in enumerate(("train/good", "test/Good", "test/crack/rgb"), start=4):
        (root / part).mkdir(parents=True)
        shutil.copy(files[number], root / part)
    given = ["extend", str(kept("patchcore"))]
    done = patchcore(*given, str(root), "--output", str(new))
    assert done.code == 1 and not new.exists()
    assert done.err == (
        f"error: {root}/test/crack: lies beside Good, so its images may be anomalous; name each "
        "folder of nominal images\n"
    )
    done = patchcore(*given, f"{root}/train", f"{root}/test/Good", "--output", str(new))
    assert done.code == 0 and done.out.startswith("images added: 2, "), done.err


def test_a_damaged_image_is_one_line(kept: Callable[[str], Path], tmp_path: Path) -> None:
    path = write_image(tmp_path / "cut.png", (24, 24), 40)
    path.write_bytes(path.read_bytes()[:900])
    output = tmp_path / "grown"
    done = patchcore("extend", os.fspath(kept("patchcore")), str(path), "--output", str(output))
    assert done.code == 1 and not output.exists()
    assert done.err.startswith(f"error: {path}: cannot be read as an image (")
    assert done.err.count("\n") == 1


def test_copies_among_new_images_are_told_as_in_training(
    kept: Callable[[str], Path], files: list[Path], tmp_path: Path
) -> None:
    twin = Path(shutil.copy(files[4], tmp_path / "twin.png"))
    with Image.open(files[5]) as picture:
        picture.save(tmp_path / "twin.bmp")
    change_artifact(kept("patchcore"), [files[4], files[6]], output=tmp_path / "no_warning")
    with pytest.warns(UserWarning, match="copies of other images in the same set: 1 .such as"):
        both = [files[5], tmp_path / "twin.bmp"]
        change_artifact(kept("patchcore"), both, output=tmp_path / "saved")
    first, second = sorted([files[4], twin])
    words = f"^images: copies of other images in the same set: 1 .such as {second} = {first}.; each"
    with pytest.warns(UserWarning, match=words):
        change_artifact(kept("patchcore"), [first, second], output=tmp_path / "grown")


def test_copies_count_once_in_the_promise(files: list[Path], tmp_path: Path) -> None:
    twins = [Path(shutil.copy(files[4], tmp_path / f"twin{i}.png")) for i in range(3)]
    with Image.open(files[5]) as picture:
        picture.save(tmp_path / "twin.bmp")
    model = build_detector(Parts(PatchCoreConfig()))
    seen = torch.cat([inputs(path) for path in files[:4]])
    found = model.fit(seen)(seen)
    decision = decide(found.score, [found.map], 0.2, 4)
    values = []
    for added in ([files[4], files[5]], [twins[0], files[5], tmp_path / "twin.bmp", *twins[1:]]):
        details = {SOURCES: [os.fspath(x) for x in files[:4]]}
        inspector = Inspector(copy.deepcopy(model), IMAGE, details=details)
        inspector.decision = decision
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "images: copies of other images")
            extend(inspector, added, batch=2)
        assert inspector.decision is not None and inspector.decision.images == 6
        values.append(inspector.decision.values())
        assert len(inspector.details[SOURCES]) == 4 + len(added)
    assert values[0] == values[1]


def test_an_extension_replaces_no_other_model_and_none_that_is_being_changed(
    kept: Callable[[str], Path], files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, other = tmp_path / "model", tmp_path / "other"
    shutil.copytree(kept("patchcore"), folder)
    shutil.copytree(kept("spade"), other)
    before = {path.name: path.read_bytes() for path in other.iterdir()}
    done = patchcore("extend", str(folder), str(files[4]), "--output", str(other))
    assert (done.code, done.err) == (
        1,
        f"error: {other}: is there already: name another folder\n",
    )
    assert {path.name: path.read_bytes() for path in other.iterdir()} == before

    def load_and_extend(*arguments: Any) -> Any:
        """Another process asks for the same while the model has been read."""
        found = load(*arguments)
        with ThreadPoolExecutor() as pool:
            error = pool.submit(change_artifact, folder, [files[5]]).exception()
        assert f"{folder}: another process is changing it: wait until that ends" in str(error)
        return found

    monkeypatch.setattr("patchcore.artifact.load", load_and_extend)
    change_artifact(folder, [files[4]])
    monkeypatch.undo()
    change_artifact(folder, [files[5]])
    assert load(folder).details[SOURCES][4:] == [str(files[4]), str(files[5])]


@pytest.mark.parametrize("read", [load, load_model])
def test_a_model_that_is_extended_while_it_is_read_is_read_whole(
    kept: Callable[[str], Path],
    files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[[Path], Any],
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(kept("patchcore"), folder)

    def check_and_extend(*arguments: Any) -> Any:
        found = check(*arguments)
        monkeypatch.setattr("patchcore.artifact.check", check)
        change_artifact(folder, [files[4]])
        return found

    monkeypatch.setattr("patchcore.artifact.check", check_and_extend)
    assert read(folder).details[SOURCES] == [str(path) for path in files[:5]]


def test_where_there_are_no_locks_no_addition_is_lost(
    kept: Callable[[str], Path], files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(kept("patchcore"), folder)

    def flock(*arguments: Any) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    def load_and_extend(*arguments: Any) -> Any:
        monkeypatch.setattr("patchcore.artifact.load", load)
        found = load(*arguments)
        change_artifact(folder, [files[5]])
        return found

    monkeypatch.setattr("fcntl.flock", flock)
    monkeypatch.setattr("patchcore.artifact.load", load_and_extend)
    with pytest.raises(InputError, match="model: was changed meanwhile: run the command again"):
        change_artifact(folder, [files[4]])
    assert load(folder).details[SOURCES][4:] == [str(files[5])]


def test_a_model_for_which_there_is_no_room_is_a_line(
    kept: Callable[[str], Path], files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = rf"^{tmp_path}/grown: cannot be written \(.*\): "
    arguments = (kept("patchcore"), [files[4]])
    told = words + r"raise the limit of a file's size \(ulimit -f\) or choose another folder$"
    with limited(1000), pytest.raises(InputError, match=told):
        change_artifact(*arguments, output=tmp_path / "grown")

    def full(*arguments: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space (os error 28)")

    monkeypatch.setattr("patchcore.artifact_files.save_file", full)
    with pytest.raises(InputError, match=words + "make room or choose another folder$"):
        change_artifact(*arguments, output=tmp_path / "grown")
    assert not list(tmp_path.iterdir())


# --- the threshold ----------------------------------------------------------------------------


def predictions(count: int, seed: int, shift: float = 0.0) -> Prediction:
    """Scores and maps of noise."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(count, 8, 8, generator=generator) + shift
    return Prediction(maps.amax((1, 2)), maps, maps, torch.zeros(count, 8, 8, dtype=torch.int64))


@pytest.mark.parametrize("shift", [0.0, 0.3], ids=["alike", "higher"])
@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_a_threshold_with_more_images_keeps_its_promise(rate: float, shift: float) -> None:
    decision = pytest.importorskip("patchcore.decision", reason="needs the nominal threshold")
    old, new = predictions(30, 0), predictions(12, 1, shift)
    before = decision.decide(old.score, [old.map], rate, folds=5)
    after = widened(before, [new])
    assert after.images == 42
    assert after.scores.tolist() == sorted([*before.scores.tolist(), *new.score.double().tolist()])
    assert after.pixel_threshold >= before.pixel_threshold
    # Expected loss of an image to come, from all images' own shares at the threshold.
    shares = [(m >= after.pixel_threshold).double().mean() for m in (*old.map, *new.map)]
    assert (sum(shares) + 1) / 43 <= after.pixel_rate + 1e-9
    assert after.pixel_rate <= max(rate, before.pixel_rate) + 1e-9
    if shift:
        assert after.pixel_threshold > before.pixel_threshold
