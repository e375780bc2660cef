"""Thresholds from nominal images alone, and the promises that they come with."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from patchcore import AllConfig, GreedyConfig, InputError, RandomConfig, load
from patchcore.backbones import Backbone, BackboneConfig, LayersConfig
from patchcore.config import Config
from patchcore.conflicts import check_conflicts
from patchcore.data.augment import AugmentConfig
from patchcore.data.generated import GeneratedConfig
from patchcore.data.transforms import ImageConfig
from patchcore.decision import (
    Decision,
    DecisionConfig,
    DecisionCounts,
    alarms,
    decide,
    image_threshold,
    p_values,
    pixel_threshold,
    rate_interval,
)
from patchcore.extend import widened
from patchcore.index import TorchIndexConfig
from patchcore.methods import METHODS, Detector, Parts, build_detector
from patchcore.methods.detector import Prediction
from patchcore.methods.folds import FeatureBatches, LeftOut, cross_fitted, folds_of, unfitted
from patchcore.methods.patchcore import PatchCore
from patchcore.patches import PatchConfig
from patchcore.scoring import Pool, anomaly_maps
from tests.images import write_mvtec
from tests.runs import TINY, Outcome, patchcore

INFINITE = (math.nan, math.inf, -math.inf)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def naive_p(score: float, nominal: list[float]) -> float:
    return (1 + sum(other >= score for other in nominal)) / (len(nominal) + 1)


# --- images ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.07, 0.29, 0.5, 0.9])
@pytest.mark.parametrize("count", [1, 19, 99, 100])
def test_a_verdict_is_that_of_the_p_value(count: int, rate: float) -> None:
    nominal = (drawn(count) * 30).round() / 10  # ties among them, and with the others
    scores = (drawn(200, seed=1) * 40).round() / 10 - 0.5
    decision = decide(nominal, [torch.zeros(count, 1, 1)], rate, 5)
    p = [naive_p(score, nominal.tolist()) for score in scores.tolist()]
    assert decision.p_value(scores).tolist() == pytest.approx(p)
    least = max(rate, 1 / (count + 1))  # nothing less can be promised
    assert decision.verdict(scores).tolist() == [each <= least + 1e-9 for each in p]
    assert decision.rate == alarms(count, rate) / (count + 1)
    assert decision.rate <= least + 1e-9


def test_the_rate_follows_its_law() -> None:
    """Scores are uniform, so that the rate realised is what lies above the threshold."""
    count, rate = 119, 0.05
    realised = [1 - image_threshold(drawn(count, seed=seed), rate) for seed in range(2000)]
    k = alarms(count, rate)
    law = scipy.stats.beta(k, count + 1 - k)
    assert k == 6 and scipy.stats.kstest(realised, law.cdf).pvalue > 0.01
    error = law.std() / math.sqrt(len(realised))
    assert np.mean(realised) == pytest.approx(k / (count + 1), abs=4 * error)
    low, high = rate_interval(count, k)
    inside = np.mean([low <= each <= high for each in realised])
    assert inside == pytest.approx(0.95, abs=0.02)


def test_p_values_of_nominal_scores_are_uniform() -> None:
    found = [float(p_values(drawn(20, seed=i)[:1], drawn(20, seed=i)[1:].sort().values))
             for i in range(2000)]  # fmt: skip
    counts = np.bincount(np.round(np.array(found) * 20).astype(int), minlength=21)[1:]
    assert counts.sum() == 2000 and scipy.stats.chisquare(counts).pvalue > 0.01


def test_what_so_few_images_cannot_promise_is_not_promised() -> None:
    nominal = drawn(49)
    decision = decide(nominal, [torch.zeros(49, 2, 2)], 0.01, 5)
    assert decision.rate == 1 / 50 and decision.threshold > float(nominal.max())
    (notice,) = decision.notices()
    assert notice.endswith("nominal images: 49 guarantee 0.02")
    assert decision.threshold == pytest.approx(float(nominal.max()), rel=1e-6)
    one = decide(torch.tensor([3.0]), [torch.ones(1, 2, 2)], 0.01, 2)
    assert (one.rate, one.images) == (0.5, 1) and one.interval == pytest.approx((0.025, 0.975))
    assert one.verdict(torch.tensor([3.0, 3.1])).tolist() == [False, True]


def test_equal_scores_raise_no_alarm() -> None:
    decision = decide(torch.full((200,), 2.5), [torch.full((200, 3, 3), 2.5)], 0.1, 5)
    assert decision.verdict(torch.tensor([2.4, 2.5, 2.5001])).tolist() == [False, False, True]
    assert decision.p_value(torch.tensor([2.5, 2.6])).tolist() == pytest.approx([1.0, 1 / 201])
    assert decision.pixel_threshold > 2.5 and decision.pixel_rate == 1 / 201


def test_scores_above_all_keep_their_order() -> None:
    scores = torch.tensor([5.0, 9.0, 7.0])
    decision = decide(drawn(10), [torch.zeros(10, 1, 1)], 0.2, 5)
    assert decision.p_value(scores).tolist() == [1 / 11] * 3
    assert scores.tolist() == [5.0, 9.0, 7.0]


def test_double_precision_decides_as_single_does() -> None:
    nominal = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)  # none is a float32
    decision = decide(nominal, [torch.zeros(3, 1, 1)], 0.25, 2)
    assert not decision.verdict(nominal).any() and not decision.verdict(nominal.float()).any()


@pytest.mark.parametrize("bad", INFINITE)
def test_what_is_no_number_is_refused(bad: float) -> None:
    decision = decide(drawn(10), [drawn(10, 2, 2)], 0.1, 5)
    for call in (
        lambda: decide(torch.tensor([1.0, bad]), [drawn(2, 2, 2)], 0.1, 5),
        lambda: decide(drawn(2), [torch.full((2, 2, 2), bad)], 0.1, 5),
        lambda: decision.verdict(torch.tensor([bad])),
        lambda: decision.p_value(torch.tensor([bad])),
    ):
        with pytest.raises(InputError, match=r"^decision: a score is NaN or infinite"):
            call()
    with pytest.raises(InputError, match=r"^decision: there are no nominal images"):
        pixel_threshold([], 0, 0.1)


# --- pixels ----------------------------------------------------------------------------------


def naive_pixel_threshold(maps: list[Tensor], rate: float) -> float:
    """Lowest pixel such that what exceeds it fits the promise; of no images' rate, the highest."""
    allowed = max(0.0, rate * (len(maps) + 1) - 1)
    found = math.inf
    for value in sorted({float(x) for each in maps for x in each.flatten()}, reverse=True):
        if sum(float((each > value).double().mean()) for each in maps) > allowed + 1e-9:
            break
        found = value
    return found


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.11, 0.3, 0.7])
def test_the_pixel_threshold_equals_the_naive_one(rate: float) -> None:
    sizes = [(4, 6), (4, 6), (3, 3), (4, 6), (5, 2), (3, 3), (3, 3), (1, 1), (4, 6)]
    maps = [(drawn(*size, seed=i) * 20).round() / (1 + i % 3) for i, size in enumerate(sizes)]
    threshold, share = pixel_threshold([each[None] for each in maps], len(maps), rate)
    assert threshold == pytest.approx(naive_pixel_threshold(maps, rate), rel=1e-6)
    losses = [float((each >= threshold).double().mean()) for each in maps]
    assert share == pytest.approx((sum(losses) + 1) / (len(maps) + 1))
    assert share <= max(rate, 1 / (len(maps) + 1)) + 1e-9


def test_batches_make_no_other_pixel_threshold() -> None:
    maps = drawn(40, 8, 8)
    found = [pixel_threshold(maps.split(size), 40, 0.2) for size in (1, 7, 40)]
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-12)


def test_the_expected_share_of_pixels_is_kept() -> None:
    """Images differ as a whole: each has its own level, so that few have most of the alarms."""
    rate, count = 0.05, 60

    def maps(seed: int, images: int) -> Tensor:
        return drawn(images, 1, 1, seed=seed) ** 3 + 0.1 * drawn(images, 8, 8, seed=seed + 10**6)

    shares = []
    for seed in range(300):
        threshold, promised = pixel_threshold([maps(seed, count)], count, rate)
        assert promised <= rate + 1e-9
        shares.append(float((maps(seed + 5000, 50) >= threshold).double().mean()))
    error = np.std(shares) / math.sqrt(len(shares))
    assert rate / 2 < np.mean(shares) < rate + 3 * error


# --- as plain values, and counted ------------------------------------------------------------


def test_a_decision_is_kept_as_plain_values_and_its_scores() -> None:
    decision = decide(drawn(150), [drawn(150, 4, 4)], 0.05, 7)
    values = json.loads(json.dumps(decision.values()))
    again = Decision.of_values(values, decision.scores.clone())
    assert again.values() == decision.values() and torch.equal(again.scores, decision.scores)
    low, high = decision.interval
    assert low < decision.rate < high and values["threshold"] == decision.threshold
    # Another version of SciPy rounds the ends of the interval differently.
    near = {**values, "rate_low": low * (1 + 1e-12), "rate_high": high * (1 - 1e-12)}
    assert Decision.of_values(near, decision.scores).threshold == decision.threshold
    for wrong in (
        {**values, "threshold": values["threshold"] * 1.01},
        {**values, "rate_low": low * (1 + 1e-6)},
        {**values, "false_alarms": 0.2},
        {**values, "images": 149},
        {key: value for key, value in values.items() if key != "pixel_rate"},
        {**values, "false_alarms": "much"},
    ):
        with pytest.raises(InputError, match=r"^decision[:.]"):
            Decision.of_values(wrong, decision.scores)
    with pytest.raises(InputError, match=r"^decision: its threshold or rate is not that of its"):
        Decision.of_values(values, decision.scores + 1)
    with pytest.raises(InputError, match="ascending"):
        Decision.of_values(values, decision.scores.flip(0))


def test_verdicts_of_a_test_are_counted() -> None:
    decision = Decision(0.2, torch.tensor([1.0, 2.0, 3.0, 4.0]).double(), 0.5, 0.2, 2)
    scores, maps = torch.tensor([4.0, 4.5, 5.0, 1.0, 6.0, 7.0]), drawn(6, 4, 4)
    labels = torch.tensor([0, 0, 1, 1, 1, 1])
    masks = (drawn(6, 4, 4, seed=1) > 0.6) & (labels[:, None, None] == 1)
    known = torch.tensor([True, True, True, True, False, True])
    counts = DecisionCounts(decision)
    for part in (slice(0, 4), slice(4, 6)):
        counts.update(scores[part], maps[part], labels[part], masks[part], known[part])
    found = counts.compute()
    assert (found["decision_recall"], found["decision_false_alarms"]) == (0.75, 0.5)
    marked = masks & known[:, None, None]
    expected = float((maps[marked] >= 0.5).double().mean())
    assert found["decision_pixel_recall"] == pytest.approx(expected)
    shares = [float((maps[i] >= 0.5).double().mean()) for i in (0, 1)]
    assert found["decision_pixel_false_alarms"] == pytest.approx(sum(shares) / 2)
    assert found["decision_images"] == 4 and counts.undefined() == {}


def test_pixels_that_do_not_count_are_no_share_of_an_image() -> None:
    """Maps are 0 there; a tenth of each image counts."""
    inside = torch.zeros(20, 20, dtype=torch.bool)
    inside[:2] = True
    maps = torch.where(inside, drawn(99, 20, 20) + 1, 0)
    cells = torch.zeros(10, 10, dtype=torch.bool)
    cells[0] = True
    grids = {i: drawn(10, 10, seed=i) for i in range(3)}
    left_out = LeftOut({}, grids, dict.fromkeys(grids, (20, 20)), dict.fromkeys(grids, cells))
    for grid, pixels in zip(grids.values(), left_out.pixels(1.0), strict=True):
        assert torch.equal(pixels, anomaly_maps(grid[None], (20, 20), 1.0)[:, inside])
    left_out.counted = {}
    assert [x.shape for x in left_out.pixels(1.0)] == [(1, 400)] * 3
    decision = decide(maps.amax((1, 2)), maps[:, inside].split(10), 0.05, 5)
    new = torch.where(inside, drawn(200, 20, 20, seed=1) + 1, 0)
    found = float((new[:, inside] >= decision.pixel_threshold).double().mean())
    assert 0.03 < found < 0.06  # a tenth of it, or ten times as much, if all pixels were counted
    counts = DecisionCounts(decision)
    told = (torch.zeros(200), torch.zeros(200, 20, 20).bool(), torch.ones(200).bool())
    counts.update(new.amax((1, 2)), new, *told, inside.expand(200, -1, -1))
    assert counts.compute()["decision_pixel_false_alarms"] == pytest.approx(found)
    predictions = [Prediction(x.amax((1, 2)), x, x, x.long()) for x in new.split(50)]
    with_region = widened(decision, predictions, inside)
    alone = widened(decision, [x._replace(map=x.map[:, :2]) for x in predictions])
    assert with_region.values() == alone.values() != widened(decision, predictions).values()


def test_what_a_test_set_lacks_is_undefined() -> None:
    counts = DecisionCounts(Decision(0.2, torch.tensor([1.0]).double(), 0.5, 0.5, 2))
    nothing = torch.zeros(2, 3, 3, dtype=torch.bool)
    counts.update(drawn(2), drawn(2, 3, 3), torch.zeros(2), nothing, torch.ones(2).bool())
    keys = {"decision_recall", "decision_pixel_recall"}
    assert {key for key, value in counts.compute().items() if math.isnan(value)} == keys
    assert set(counts.undefined()) == keys
    assert counts.undefined()["decision_recall"] == "no anomalous images in the test set"


# --- scores of models that have not seen the image --------------------------------------------


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    """One network for all methods."""
    built = Backbone(BackboneConfig(), LayersConfig(["layer2", "layer3"]))
    with mock.patch("patchcore.methods.detector.make_backbone", lambda *_: built):
        yield


def build(name: str) -> Detector:
    parts = Parts(METHODS[name](), BackboneConfig(), LayersConfig(["layer2", "layer3"]))
    if name == "patchcore":
        parts.patch, parts.coreset = PatchConfig(channels=16), GreedyConfig(ratio=0.25)
    return build_detector(parts)


@pytest.mark.parametrize("name", METHODS)
def test_scores_equal_those_of_models_fitted_to_the_other_images(
    name: str, network: Callable[[], None]
) -> None:
    images, model = drawn(9, 3, 32, 24), build(name)
    features = [model.embed(part) for part in images.split(4)]
    numbers = [5, 3, 8, 0, 1, 2, 4, 6, 7]
    found = cross_fitted(model, features, numbers, 4, seed=3)
    assert set(found.scores) == set(found.grids) == set(numbers) and found.sizes == {}
    fold = folds_of(numbers, 4, 3)
    assert sorted(list(fold.values()).count(each) for each in range(4)) == [2, 2, 2, 3]
    for out in range(4):
        inside = torch.tensor([fold[number] == out for number in numbers])
        other = build(name)
        if isinstance(other, PatchCore):  # as many patches as of all images
            other.coreset_config = GreedyConfig(count=9 * 12 // 4)
        other.fit(images[~inside])
        prediction = other(images[inside])
        for i, place in enumerate(inside.nonzero()[:, 0].tolist()):
            expected = float(prediction.score[i])
            assert found.scores[numbers[place]] == pytest.approx(expected, rel=1e-5)
            grid = found.grids[numbers[place]]
            assert torch.allclose(grid, prediction.patch_score[i], rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="fit"):  # the model itself has seen nothing
        model(images)


def test_copies_of_an_image_are_left_out_together(network: Callable[[], None]) -> None:
    images, model = drawn(4, 3, 32, 24), build("patchcore")
    twice = [model.embed(images), model.embed(images)]  # as from two epochs
    found = cross_fitted(model, twice, [0, 1, 2, 3] * 2, 4)
    assert len(found.scores) == 4 and min(found.scores.values()) > 0.01


def test_images_in_several_files_are_left_out_together(network: Callable[[], None]) -> None:
    images, model = drawn(4, 3, 32, 24), build("patchcore")
    images = torch.cat((images, images[[1, 0, 1]]))  # 4, 5 and 6 are copies
    copies = {4: 1, 5: 0, 6: 1}
    found = cross_fitted(model, [model.embed(images)], range(7), 3, copies=copies)
    fold = folds_of(range(4), 3, 0)
    assert set(found.scores) == set(fold)
    for out in range(3):
        others = [n for n in range(7) if fold[copies.get(n, n)] != out]
        other: Any = build("patchcore")
        other.coreset_config = GreedyConfig(count=7 * 12 // 4)  # as many as of all images
        other.fit(images[others])
        for number in (n for n in fold if fold[n] == out):
            expected = float(other(images[number][None]).score)
            assert found.scores[number] == pytest.approx(expected, rel=1e-5) and expected > 0.01
    with pytest.raises(InputError, match="needs at least two training images that differ"):
        cross_fitted(model, [model.embed(images[[0, 0]])], range(2), 2, copies={1: 0})


@pytest.mark.parametrize("poses", [1, 3])
def test_models_without_a_fold_know_which_copies_are_of_one_image(
    poses: int, network: Callable[[], None]
) -> None:
    model, told = build("patchcore"), []
    fit = PatchCore.build_from

    def seen(own: Any, buffer: Any, fitting: Any) -> None:
        told.append(fitting.images)
        fit(own, buffer, fitting)

    numbers = [number for number in range(4) for _ in range(poses)]
    features = model.embed(drawn(4 * poses, 3, 32, 32))
    with mock.patch.object(PatchCore, "build_from", seen):
        cross_fitted(model, [features], numbers, 2)
    fold = folds_of(numbers, 2, 0)
    assert told == [[n for n in numbers if fold[n] != out] for out in range(2)]


def test_a_coreset_keeps_as_many_patches_of_fewer_images(network: Callable[[], None]) -> None:
    model = build("patchcore")
    features = model.embed(drawn(10, 3, 32, 32))
    sizes = []
    for share in (1.0, 0.5):
        part = unfitted(model, share)
        buffer = part.buffer(10)
        buffer.append(features[: round(10 * share)])
        part.build_from(buffer)
        sizes.append(part.memory_patches)
        assert part.backbone is model.backbone
    assert sizes[0] == sizes[1] > 0 and model.memory_patches == 0
    assert unfitted(model, 0.1).parts.coreset.ratio == 0.25  # type: ignore[attr-defined]


@pytest.mark.parametrize("sampler", [GreedyConfig, RandomConfig])
def test_a_count_near_the_number_of_patches_keeps_all_of_fewer_images(
    sampler: Callable[..., Any], network: Callable[[], None]
) -> None:
    images = drawn(4, 3, 32, 32)
    patches = PatchCore(coreset=AllConfig()).fit(images).memory_patches
    scores = []
    for coreset in (sampler(count=patches - 1), AllConfig()):
        model = PatchCore(coreset=coreset)
        scores.append(cross_fitted(model, [model.embed(images)], range(4), 2).scores)
    assert scores[0] == pytest.approx(scores[1])
    with pytest.raises(InputError, match=r"^coreset\.count must be at most the"):
        PatchCore(coreset=sampler(count=patches + 1)).fit(images)


def test_one_image_cannot_be_left_out(network: Callable[[], None]) -> None:
    model = build("patchcore")
    features = [model.embed(drawn(1, 3, 32, 32))]
    with pytest.raises(InputError, match=r"^decision\.false_alarms needs at least two training"):
        cross_fitted(model, features * 2, [0, 0], 2)


def test_batches_are_handed_on_once() -> None:
    batches = FeatureBatches(3)
    for i in range(3):
        batches.append((torch.full((1, 2), i), torch.zeros(1)))
    assert [int(first[0, 0]) for first, _ in batches.empty()] == [0, 1, 2]
    assert batches.batches == []


# --- in a run --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mvtec")
    write_mvtec(root, (40, 36))
    return root


def train(root: Path, folder: Path, *overrides: str) -> Outcome:
    data = ["data=mvtec", f"data.root={root}", "data.category=nut", "data.batch_size=2"]
    run = ["logger=none", "figures=false", f"hydra.run.dir={folder}"]
    return patchcore("train", *TINY, *data, *run, *overrides)


def metrics(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "metrics.json").read_text()))


@pytest.fixture(scope="module")
def plain(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Metrics of a run without a decision."""
    folder = tmp_path_factory.mktemp("plain")
    assert train(root, folder).code == 0
    return metrics(folder)


random_weights = pytest.mark.filterwarnings("ignore:backbone resnet18 has random weights")


@random_weights
def test_a_run_tells_of_its_decision_and_changes_nothing_else(
    root: Path, plain: dict[str, Any], tmp_path: Path
) -> None:
    done = train(
        *(root, tmp_path, "decision.false_alarms=0.25", "decision.folds=9", "artifact=true")
    )
    assert done.code == 0, done.err
    kept = load(tmp_path / "artifact").decision
    assert kept is not None and kept.folds == 4  # as many as there are images
    found = metrics(tmp_path)
    seconds, types = found.pop("seconds"), found.pop("defect_types")
    assert "Folds: 100%" in done.err
    assert list(seconds) == ["extract", "cross_fit", "coreset", "score"]
    same = plain.keys() - {"seconds", "defect_types"}
    assert same == {k for k in found if not k.startswith("decision_")}
    assert all(found[key] == plain[key] for key in same)
    assert found["decision_images"] == 4 and found["decision_rate"] == 0.2
    rows = [row.split(",") for row in (tmp_path / "scores.csv").read_text().splitlines()[1:]]
    called = [(kind, float(score) >= found["decision_threshold"]) for _, _, kind, score, _ in rows]
    for kind, count in (("bent", 1), ("scratch", 2)):
        of_kind = [verdict for name, verdict in called if name == kind]
        assert types[kind] == {
            **plain["defect_types"][kind],
            "images": count,
            "recall": sum(of_kind) / count,
        }
        assert f"recall.{kind}" in done.out
    good = [verdict for name, verdict in called if name == "good"]
    assert found["decision_false_alarms"] == sum(good) / 2
    total = [verdict for name, verdict in called if name != "good"]
    assert found["decision_recall"] == sum(total) / 3


@random_weights
@pytest.mark.filterwarnings("ignore:data. copies of other images in the same set. 4")
def test_a_run_counts_copies_of_its_images_once(root: Path, tmp_path: Path) -> None:
    """A model with a copy of an image would not be one without the image."""
    shutil.copytree(root, tmp_path / "data")
    good = tmp_path / "data/nut/train/good"
    shutil.copytree(good, tmp_path / "copies")
    for path in (tmp_path / "copies").iterdir():
        path.rename(good / f"copy of {path.name}")
    least = ["coreset.ratio=1", "scoring.neighbours=1", "scoring.reweight=0"]
    given = [*least, "decision.false_alarms=0.25", "label_free.enabled=true", "label_free.images=4"]
    found = []
    for data in (root, tmp_path / "data"):
        done = train(data, tmp_path / "run", *given)
        assert done.code == 0, done.err
        found.append(metrics(tmp_path / "run"))
    assert [each["train_images"] for each in found] == [4, 8]
    assert [each["decision_images"] for each in found] == [4, 4]
    for key in ("decision_threshold", "decision_rate", "decision_pixel_threshold"):
        assert found[0][key] == pytest.approx(found[1][key], rel=1e-5), key


@random_weights
def test_an_artifact_holds_the_decision(root: Path, tmp_path: Path) -> None:
    asked = ["decision.false_alarms=0.25", "decision.folds=2", "artifact=true"]
    done = train(root, tmp_path, *asked)
    assert done.code == 0, done.err
    decision = load(tmp_path / "artifact").decision
    assert decision is not None and decision.images == 4
    assert decision.threshold == metrics(tmp_path)["decision_threshold"]


@random_weights
def test_an_ensemble_decides_on_its_joint_scores(root: Path, tmp_path: Path) -> None:
    members = "ensemble.members=[{layers:{names:[layer2]}},{layers:{names:[layer3]}}]"
    asked = ["decision.false_alarms=0.25", "decision.folds=4"]
    done = train(root, tmp_path, members, *asked)
    assert done.code == 0, done.err
    found = metrics(tmp_path)
    each = [member["metrics"]["decision_threshold"] for member in found["members"]]
    assert found["decision_images"] == 4 and 0 <= found["decision_recall"] <= 1
    # In standard deviations from the nominal mean, as the joint scores are.
    scales = [member["scale"] for member in found["members"]]
    scaled = [(x - s["score_mean"]) / s["score_std"] for x, s in zip(each, scales, strict=True)]
    assert found["decision_threshold"] <= sum(scaled) / 2 + 1e-5
    assert found["seconds"]["cross_fit"] > 0


def test_augmented_images_and_learning_are_refused() -> None:
    given = {
        **{"data": GeneratedConfig(), "image": ImageConfig()},
        **{"coreset": GreedyConfig(), "index": TorchIndexConfig()},
        **{"method": METHODS["patchcore"](), "trainer": {}, "logger": {}},
    }
    decision, augment = DecisionConfig(0.01), AugmentConfig(horizontal_flip=True)
    with mock.patch("patchcore.config.check_unused"), mock.patch("patchcore.config.check_switches"):
        Config(**given, decision=decision)
        with pytest.raises(InputError, match=r"^decision\.false_alarms needs training images that"):
            Config(**given, decision=decision, augment=augment)
        Config(**given, decision=replace(decision, false_alarms=None), augment=augment)


@pytest.mark.parametrize(
    ("per_image", "tiles", "rate"),
    [(20, 64, 0.1), (20, None, 0.1), (20, 64, None), (None, 64, 0.1)],
)
def test_thinned_tiles_are_refused(
    per_image: int | None, tiles: int | None, rate: float | None
) -> None:
    """Folds would thin whole images, the run itself thins their bands."""
    config = mock.MagicMock(curve=[], judged=False, coreset=GreedyConfig())
    config.method = METHODS["patchcore"](per_image=per_image)
    config.ensemble.members, config.scoring.pool = [], Pool.patches
    config.augment.changes.return_value = False
    config.image.tiles, config.decision.false_alarms = tiles, rate
    if None not in (per_image, tiles, rate):
        with pytest.raises(InputError, match=r"^decision\.false_alarms cannot thin images in tile"):
            check_conflicts(config)
    else:
        check_conflicts(config)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"false_alarms": 0.0}, r"^decision\.false_alarms must be in \(0, 1\), got 0"),
        ({"false_alarms": 1.0}, r"^decision\.false_alarms must be in \(0, 1\), got 1"),
        ({"folds": 1}, r"^decision\.folds must be at least 2, got 1"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        DecisionConfig(**values)
