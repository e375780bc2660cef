"""The label-free score: synthetic defects, what takes part in it, and what does not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patchcore import GreedyConfig, InputError
from patchcore.backbones import BackboneConfig
from patchcore.cache import CacheConfig, Store
from patchcore.data.augment import AugmentConfig
from patchcore.data.dataset import ImageDataset
from patchcore.data.defective import DefectiveImages
from patchcore.data.defects import DEFECTS, draw_defect
from patchcore.data.folder import FolderConfig
from patchcore.data.mvtec import MVTecConfig
from patchcore.data.synthesis import draw_object
from patchcore.data.transforms import ImageConfig, build_normalisation
from patchcore.keeping import ArtifactConfig, Keep
from patchcore.label_free import LabelFree, LabelFreeConfig, held_out, separation
from patchcore.map_cache import MapCache
from patchcore.member_settings import EnsembleConfig, MemberConfig
from patchcore.methods import PatchCoreConfig, build_detector
from patchcore.methods.detector import Parts
from patchcore.methods.patchcore import PatchCore
from patchcore.metrics import Objective
from patchcore.patches import Mapping, PatchConfig
from patchcore.runner import run
from tests.images import write_image, write_mvtec
from tests.runs import QUIET, config

BOTH = [Objective["label_free"], Objective["image_auroc"]]


# --- defects ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return draw_object(np.random.default_rng(3), 96)[0]


@pytest.mark.parametrize("kind", DEFECTS)
def test_a_defect_changes_what_its_mask_marks_and_nothing_else(
    kind: str, picture: np.ndarray
) -> None:
    before = picture.copy()
    for strength in (0.0, 1.0):
        found = [draw_defect(np.random.default_rng(7), picture, kind, strength) for _ in "ab"]
        (image, mask), (again, _) = found
        assert (image == again).all() and (picture == before).all()  # the seed decides alone
        assert image.dtype == np.uint8 and image.shape == picture.shape
        changed = (image.astype(int) - picture).any(-1)
        assert changed.any() and mask.any() and mask.mean() < 0.3
        far = np.abs(image.astype(int) - picture).max(-1)[~mask]
        assert far.max() <= 8  # soft edges end below what a mask counts
    other = draw_defect(np.random.default_rng(8), picture, kind, 1.0)[0]
    assert (image != other).any()


def test_plain_defects_differ_more_than_subtle_ones(picture: np.ndarray) -> None:
    def change(strength: float) -> float:
        drawn = [
            draw_defect(np.random.default_rng([i, place]), picture, kind, strength)[0]
            for i, kind in enumerate(DEFECTS)
            for place in range(4)
        ]
        return float(np.mean([np.abs(image.astype(int) - picture).sum() for image in drawn]))

    assert change(0.0) * 2 < change(0.5) < change(1.0) * 0.8


def test_defects_lie_where_pixels_count_and_where_there_is_contrast() -> None:
    flat = np.full((64, 80, 3), 90, dtype=np.uint8)
    flat[20:40, 50:70] = np.random.default_rng(0).integers(0, 255, (20, 20, 1))
    places = np.zeros((64, 80))
    for seed in range(30):
        places += draw_defect(np.random.default_rng(seed), flat, "stain", 0.3)[1]
    assert places[:, 40:].sum() > 4 * places[:, :40].sum()
    inside = np.zeros((64, 80), dtype=bool)
    inside[25:50, 5:25] = True
    for kind in DEFECTS:
        drawn, mask = draw_defect(np.random.default_rng(2), flat, kind, 0.5, inside)
        assert mask[:, :45].sum() > mask[:, 45:].sum(), kind
        assert (drawn[..., 0] == drawn[..., 1]).all()  # grey stays grey


# --- images with defects ---------------------------------------------------------------------


def test_items_are_those_of_plain_loops_and_of_the_cache(tmp_path: Path) -> None:
    samples = MVTecConfig(root=str(write_mvtec(tmp_path, (40, 36)).parent), category="nut").read()
    image = ImageConfig(resize=32, crop=32)
    numbers, seed = [2, 0], 5
    found = DefectiveImages(numbers, 3, seed, samples.train, image)
    pixels = ImageDataset(samples.train, replace(image, mean=[0.0] * 3, std=[1 / 255] * 3))
    assert len(found) == 6
    for item, number in enumerate([2, 2, 2, 0, 0, 0]):
        rng = np.random.default_rng([seed, item])
        strength = rng.uniform()
        plain = pixels[number]["image"].round().byte().permute(1, 2, 0).numpy()
        drawn, mask = draw_defect(rng, plain, DEFECTS[item % 5], strength)
        got = found[item]
        assert torch.equal(got["image"], build_normalisation(image)(drawn))
        assert (got["mask"].numpy() == mask).all() and (got["label"], got["index"]) == (1, number)
    cache = MapCache(Store(tmp_path / "cache"), "network", channels=[2])
    kept = DefectiveImages(numbers, 3, seed, samples.train, image, cache)
    first = kept.__getitems__([0, 1])
    assert torch.equal(first[1]["image"], found[1]["image"]) and "maps" not in first[0]
    cache.put([each["key"] for each in first], [torch.rand(2, 2, 4, 4)])
    again = kept.__getitems__([0, 1])
    assert "image" not in again[0] and again[0]["maps"][0].shape == (4, 4, 2)
    others = DefectiveImages(numbers, 3, seed + 1, samples.train, image, cache)
    keys = {each["key"] for each in (*first, *others.__getitems__([0, 1]))}
    assert len(keys) == 4  # another seed, another key
    with pytest.raises(IndexError):
        found[6]


# --- the score -------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [(10, 3, 4), (10, 5, 99), (2, 5, 1), (9, 2, 1)])
def test_images_are_held_out_fold_by_fold(given: tuple[int, int, int]) -> None:
    images, folds, most = given
    found = held_out(range(images), LabelFreeConfig(images=most, folds=folds))
    flat = [number for fold in found for number in fold]
    assert len(flat) == len(set(flat)) >= min(most, images)
    assert sum(map(len, found[:-1])) < most
    assert all(len(fold) <= -(-images // min(folds, images)) for fold in found)


def test_separation_counts_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    nominal, anomalous = (torch.randint(0, 9, (n,), generator=generator) / 4 for n in (12, 17))
    pairs = [
        1.0 if b > a else 0.5 if b == a else 0.0
        for a in nominal.tolist()
        for b in anomalous.tolist()
    ]
    found = separation(nominal.tolist(), anomalous.tolist())
    assert found == pytest.approx(float(np.mean(pairs)), abs=1e-12)


@pytest.mark.parametrize(
    ("switched", "copies"),
    [({}, {}), ({"whitening": 0.9}, {}), ({"radius": 1}, {}), ({}, {4: 1, 5: 0})],
)
def test_the_score_equals_the_naive_one(switched: dict[str, Any], copies: dict[int, int]) -> None:
    """Plain loops: for every fold a model of its own, one image after another."""
    method = PatchCoreConfig(**switched)
    patch = PatchConfig(mapping=Mapping.average)
    parts = Parts(method, BackboneConfig(), patch=patch, coreset=GreedyConfig(ratio=0.5))
    model = build_detector(parts)
    images = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for copy, original in copies.items():
        images[copy] = images[original]
    settings = LabelFreeConfig(images=4, folds=3, defects=1)
    judge = LabelFree(settings, 6, copies)
    assert not set(judge.numbers) & set(copies)
    defective = images[judge.numbers] + 0.3
    with torch.inference_mode():
        batches = [model.embed(images[:4]), model.embed(images[4:])]
        judge.append(model.embed(defective), judge.numbers)
    judge.measure(model, batches, range(6))
    nominal: list[float] = []
    anomalous: list[float] = []
    whole = PatchCore(**_groups(parts)).fit(images)
    for fold in judge.folds:
        others = [number for number in range(6) if copies.get(number, number) not in fold]
        ratio = len(whole.memory) / (len(others) * len(images[0, 0]) // 8 * 8)
        assert ratio > 0.5
        parts.coreset = GreedyConfig(ratio=min(1.0, 3 / len(others) * (1 + 1e-9)))
        own = PatchCore(**_groups(parts)).fit(images[others])
        for number in fold:
            nominal.append(float(own(images[number][None]).score))
            place = judge.numbers.index(number)
            anomalous.append(float(own(defective[place][None]).score))
    assert judge.score == pytest.approx(separation(nominal, anomalous), abs=1e-9)
    assert 0 < judge.score < 1 or judge.score == 1.0


def _groups(parts: Parts) -> dict[str, Any]:
    names = ("backbone", "layers", "patch", "coreset", "index", "scoring", "method")
    return {name: getattr(parts, name) for name in names}


# --- runs ------------------------------------------------------------------------------------

FEW = LabelFreeConfig(images=2, folds=2, defects=2)


def metrics(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "metrics.json").read_text()))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mvtec(tmp_path_factory.mktemp("label_free"), (40, 36)).parent


def test_no_test_image_takes_part(root: Path, tmp_path: Path) -> None:
    """Test images are replaced, labels exchanged, the anomalous ones removed: all the same."""
    image = ImageConfig(resize=32, stretch=False, crop=32)  # of any data set
    settings = config(root, image=image, objectives=BOTH, label_free=FEW)
    score = run(settings, tmp_path / "as it is").record["label_free"]
    assert 0 <= score <= 1
    other = tmp_path / "other"
    shutil.copytree(root / "nut", other / "nut")
    for number, path in enumerate(sorted((other / "nut/test").rglob("*.png"))):
        write_image(path, (40, 36), 100 + number)
    test = other / "nut/test"
    test.joinpath("good").rename(test / "aside")
    test.joinpath("bent").rename(test / "good")
    test.joinpath("aside").rename(test / "bent")
    changed = run(
        config(other, image=image, objectives=BOTH, label_free=FEW), tmp_path / "changed"
    ).record
    assert changed["label_free"] == score
    shutil.rmtree(test / "scratch")
    shutil.rmtree(test / "bent")
    shutil.rmtree(other / "nut/ground_truth")
    data = FolderConfig(
        root=str(other / "nut"), nominal="train/good", nominal_test="test/good", batch_size=2
    )
    alone = run(
        config(other, data=data, image=image, objectives=BOTH, label_free=FEW), tmp_path / "alone"
    )
    assert alone.record["label_free"] == score and alone.record["image_auroc"] is None


def test_it_is_measured_only_if_asked_and_changes_nothing_else(root: Path, tmp_path: Path) -> None:
    plain = run(config(root), tmp_path / "plain").record
    asked = run(config(root, objectives=BOTH, label_free=FEW), tmp_path / "asked").record
    enabled = replace(FEW, enabled=True)
    also = run(config(root, label_free=enabled), tmp_path / "enabled").record
    assert "label_free" not in plain and "label_free" not in plain["seconds"]
    assert asked["label_free"] == also["label_free"]
    score = asked.pop("label_free")
    assert asked["seconds"].pop("label_free") > 0
    for record in (plain, asked):
        record.pop("seconds")
        record.pop("milliseconds_per_image", None)
    assert plain == asked
    seeds = [replace(FEW, seed=seed) for seed in (1, 2)]
    others = [
        run(config(root, objectives=BOTH, label_free=own), tmp_path / str(own.seed)).record
        for own in seeds
    ]
    assert len({score, *(other["label_free"] for other in others)}) > 1


def test_a_second_run_reads_maps_and_orders(root: Path, tmp_path: Path) -> None:
    def point(name: str, **groups: Any) -> tuple[float, dict[str, bool]]:
        cache = CacheConfig(enabled=True, root=str(tmp_path / "cache"))
        given = {"cache": cache, "objectives": BOTH, "label_free": FEW, **groups}
        done = run(config(root, **given), tmp_path / name)
        assert done.costs is not None
        return done.record["label_free"], {k: v["cached"] for k, v in done.costs.items()}

    first, made = point("first")
    assert not made["label_free.network"] and not made["label_free.fit"]
    again, read = point("again", method=PatchCoreConfig(radius=None))
    other, shared = point("radius", method=PatchCoreConfig(radius=0))
    without = run(config(root, objectives=BOTH, label_free=FEW), tmp_path / "uncached").record
    assert first == again == without["label_free"] and 0 <= other <= 1
    for found in (read, shared):
        stages = ("extract.network", "coreset", "label_free.network", "label_free.fit")
        assert all(found[stage] for stage in stages)


def test_it_decides_a_multirun_of_good_images_alone(root: Path, tmp_path: Path) -> None:
    data = FolderConfig(root=str(root / "nut"), nominal="train/good", batch_size=2)
    scores = {}
    for number, size in enumerate((1, 3)):
        patch = PatchConfig(size=size, mapping=Mapping.average)
        keep = ArtifactConfig(keep=Keep.best)
        judged = {"objectives": BOTH[:1], "label_free": replace(FEW, images=4), "artifact": keep}
        settings = config(root, data=data, patch=patch, **judged)
        done = run(settings, tmp_path / str(number), multirun=tmp_path)
        scores[number] = done.record["label_free"]
    best = max(scores, key=lambda number: (scores[number], -number))
    assert [n for n in scores if (tmp_path / str(n) / "artifact").exists()] == [best]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"augment": AugmentConfig(noise=0.1)}, "label_free needs training images that are"),
        (
            {"ensemble": EnsembleConfig([MemberConfig(), MemberConfig()])},
            "label_free needs a single",
        ),
        ({"data": MVTecConfig(category="nut", contamination=0.5)}, "label_free needs nominal"),
        ({"data": MVTecConfig(category="nut", shots=1)}, "label_free needs at least two training"),
        ({"trainer": {**QUIET, "devices": 2}}, "trainer.devices=2: label_free is for one device"),
    ],
)
def test_what_it_cannot_be_had_with_is_refused(
    groups: dict[str, Any], message: str, root: Path, tmp_path: Path
) -> None:
    if "data" in groups:
        groups["data"].root = str(root)
    with pytest.raises(InputError, match=rf"^{message}"):
        run(config(root, objectives=BOTH, **groups), tmp_path / "run")
    assert not (tmp_path / "run/metrics.json").exists()


def test_the_plan_names_the_cost(capsys: pytest.CaptureFixture[str]) -> None:
    told = LabelFree(LabelFreeConfig(images=30, folds=5, defects=3), 100).plan()
    assert told == (
        "label_free: 40 of 100 training images are held out, with 120 synthetic defects to extract "
        "and 2 further memories to build"
    )
