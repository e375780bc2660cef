"""Metrics against naive NumPy versions and scikit-learn."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.distributed
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from patchcore.errors import InputError
from patchcore.metrics import (
    IMAGE_KEYS,
    MAP_KEYS,
    MASK_KEYS,
    METRICS,
    PIXEL_KEYS,
    ImageMetrics,
    Objective,
    PixelMetrics,
    area_under,
    image_metrics,
    pixel_metrics,
    precision_recall_curve,
    pro_curve,
    region_areas,
    roc_curve,
    sweep,
    told,
)
from tests import reference
from tests.processes import forkserver

quick = settings(deadline=None, max_examples=60, database=None)
dtypes = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
# Few levels make ties; 30 and more is where a sigmoid would saturate.
levels = st.sampled_from([1, 2, 5, 1000])


@st.composite
def image_sets(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Scores (N,) and bool labels (N,), at least one of each label."""
    n = draw(st.integers(2, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.random(n) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    labels[rng.permutation(n)[:2]] = [False, True]
    scores = 30 + rng.integers(0, draw(levels), n) * 0.125 + labels * draw(st.sampled_from([0, 4]))
    return torch.from_numpy(scores).to(draw(dtypes)), torch.from_numpy(labels)


@st.composite
def pixel_sets(draw: st.DrawFn) -> list[tuple[Tensor, Tensor]]:
    """Maps (H, W) and bool masks (H, W) of several sizes, with both kinds of pixels."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    level, dtype, share = draw(levels), draw(dtypes), draw(st.sampled_from([0.05, 0.3, 0.8]))
    pairs = []
    for i in range(draw(st.integers(1, 4))):
        h, w = rng.integers(2, 9, 2)
        mask = rng.random((h, w)) < share * rng.integers(0, 2)
        if i == 0:
            mask[0, 0], mask[-1, -1] = True, False
        scores = 30 + rng.integers(0, level, (h, w)) * 0.125 + mask * rng.integers(0, 3)
        pairs.append((torch.from_numpy(scores).to(dtype), torch.from_numpy(mask)))
    return pairs


def naive_image(scores: Tensor, labels: Tensor) -> dict[str, float]:
    s, y = scores.double().numpy(), labels.numpy()
    f1, threshold, fp, fn = reference.best_f1(s, y)
    return {
        "image_auroc": reference.auroc(s, y),
        "image_ap": reference.average_precision(s, y),
        "image_f1": f1,
        "image_threshold": threshold,
        "image_false_positives": fp,
        "image_false_negatives": fn,
        "errors_at_full_recall": reference.errors_at_full_recall(s, y),
    }


def naive_pixel(pairs: list[tuple[Tensor, Tensor]], limit: float = 0.3) -> dict[str, float]:
    maps = [scores.double().numpy() for scores, _ in pairs]
    masks = [mask.numpy() for _, mask in pairs]
    s = np.concatenate([m.ravel() for m in maps])
    y = np.concatenate([m.ravel() for m in masks])
    return {
        "pixel_auroc": reference.auroc(s, y),
        "pixel_ap": reference.average_precision(s, y),
        "pixel_f1": reference.best_f1(s, y)[0],
        "aupro": reference.aupro(maps, masks, limit),
        "aupro_005": reference.aupro(maps, masks, 0.05),
    }


def of_images(scores: Tensor, labels: Tensor) -> ImageMetrics:
    metric = ImageMetrics()
    metric.update(scores, labels)
    return metric


def of_pixels(pairs: list[tuple[Tensor, Tensor]], limit: float = 0.3) -> PixelMetrics:
    metric = PixelMetrics(limit)
    for scores, mask in pairs:
        metric.update(scores[None], mask[None])
    return metric


def without_maps(values: dict[str, float]) -> dict[str, float]:
    """Metrics but those that need more nominal pixels than a few small maps have."""
    assert set(MAP_KEYS) <= set(values)
    return {key: value for key, value in values.items() if key not in MAP_KEYS}


def assert_close(got: dict[str, float], expected: dict[str, float]) -> None:
    assert got == pytest.approx(expected, rel=1e-12, abs=1e-12)


# --- image metrics ---------------------------------------------------------------------------


@quick
@given(image_sets())
def test_image_metrics_equal_naive(data: tuple[Tensor, Tensor]) -> None:
    got = of_images(*data).compute()
    assert tuple(got) == IMAGE_KEYS
    assert_close(got, naive_image(*data))


@quick
@given(image_sets())
def test_image_metrics_equal_scikit_learn(data: tuple[Tensor, Tensor]) -> None:
    got = of_images(*data).compute()
    s, y = data[0].double().numpy(), data[1].numpy()
    assert got["image_auroc"] == pytest.approx(sklearn.metrics.roc_auc_score(y, s))
    assert got["image_ap"] == pytest.approx(sklearn.metrics.average_precision_score(y, s))
    called = s >= got["image_threshold"]
    assert got["image_f1"] == pytest.approx(sklearn.metrics.f1_score(y, called))
    _, fp, fn, _ = sklearn.metrics.confusion_matrix(y, called).ravel()
    assert (got["image_false_positives"], got["image_false_negatives"]) == (fp, fn)
    precision, recall, _ = sklearn.metrics.precision_recall_curve(y, s)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    assert got["image_f1"] == pytest.approx(f1.max())


@quick
@given(image_sets())
def test_curves_lie_on_those_of_scikit_learn(data: tuple[Tensor, Tensor]) -> None:
    curves = of_images(*data).curves()
    s, y = data[0].double().numpy(), data[1].numpy()
    fpr, tpr, _ = sklearn.metrics.roc_curve(y, s, drop_intermediate=False)
    ours = list(zip(curves["fpr"].tolist(), curves["tpr"].tolist(), strict=True))
    assert ours[0] == (0.0, 0.0)
    assert ours[-1] == (1.0, 1.0)
    assert set(ours) <= set(zip(fpr.tolist(), tpr.tolist(), strict=True))
    along = (curves["fpr"] + curves["tpr"]).numpy()  # rises along the curve
    np.testing.assert_allclose(np.interp(fpr + tpr, along, curves["fpr"]), fpr, atol=1e-12)

    precision, recall, thresholds = sklearn.metrics.precision_recall_curve(y, s)
    at_anomalous = np.isin(thresholds, s[y])
    np.testing.assert_allclose(curves["precision"], precision[:-1][at_anomalous][::-1])
    np.testing.assert_allclose(curves["recall"], recall[:-1][at_anomalous][::-1])


@quick
@given(image_sets(), st.data())
def test_image_metrics_in_any_split_and_order(
    data: tuple[Tensor, Tensor], draw: st.DataObject
) -> None:
    scores, labels = data
    order = torch.tensor(draw.draw(st.permutations(range(len(scores)))))
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(scores)), max_size=5)))
    metric = ImageMetrics()
    for batch in order.tensor_split(cuts):  # some batches are empty
        metric.update(scores[batch], labels[batch].int())
    assert metric.compute() == of_images(scores, labels).compute()


def test_image_metrics_of_a_worked_example() -> None:
    scores = torch.tensor([1.0, 2.0, 3.0, 3.0, 4.0, 5.0])
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    assert_close(
        of_images(scores, labels).compute(),
        {
            "image_auroc": (1 + 1.5 + 3) / 9,
            "image_ap": 1 / 3 * (1 + 2 / 4 + 3 / 5),
            "image_f1": 6 / 8,
            "image_threshold": 2.0,
            "image_false_positives": 2,
            "image_false_negatives": 0,
            "errors_at_full_recall": 2,
        },
    )


def test_constant_image_scores() -> None:
    got = of_images(torch.full((10,), 7.0), torch.arange(10) < 4).compute()
    assert_close(got, naive_image(torch.full((10,), 7.0), torch.arange(10) < 4))
    assert (got["image_auroc"], got["image_ap"]) == (0.5, 0.4)


def test_highest_of_equally_good_thresholds() -> None:
    got = of_images(torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([1, 0, 0, 1])).compute()
    assert (got["image_f1"], got["image_threshold"]) == (2 / 3, 4.0)


def test_signed_zeros_are_one_threshold() -> None:
    scores = torch.tensor([0.0, -0.0, 0.0, -0.0])
    assert of_images(scores, torch.tensor([0, 0, 1, 1])).compute()["image_auroc"] == 0.5


# --- pixel metrics ---------------------------------------------------------------------------


@quick
@given(pixel_sets(), st.sampled_from([0.05, 0.3, 1.0]))
def test_pixel_metrics_equal_naive(pairs: list[tuple[Tensor, Tensor]], limit: float) -> None:
    got = without_maps(of_pixels(pairs, limit).compute())
    assert tuple(got) == PIXEL_KEYS
    assert_close(got, naive_pixel(pairs, limit))


@quick
@given(pixel_sets())
def test_pixel_metrics_equal_scikit_learn(pairs: list[tuple[Tensor, Tensor]]) -> None:
    got = of_pixels(pairs).compute()
    s = torch.cat([scores.flatten() for scores, _ in pairs]).double().numpy()
    y = torch.cat([mask.flatten() for _, mask in pairs]).numpy()
    assert got["pixel_auroc"] == pytest.approx(sklearn.metrics.roc_auc_score(y, s))
    assert got["pixel_ap"] == pytest.approx(sklearn.metrics.average_precision_score(y, s))


@quick
@given(pixel_sets(), st.randoms(use_true_random=False))
def test_pixel_metrics_in_any_order(pairs: list[tuple[Tensor, Tensor]], random: object) -> None:
    shuffled = list(pairs)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert_close(*(without_maps(of_pixels(each).compute()) for each in (shuffled, pairs)))


@pytest.mark.parametrize("cuts", [[], [1], [2, 2, 5], [1, 2, 3, 4, 5, 6]])
def test_pixel_metrics_in_any_split(cuts: list[int]) -> None:
    rng = torch.Generator().manual_seed(0)
    maps = torch.rand(7, 12, 9, generator=rng)
    masks = torch.rand(7, 12, 9, generator=rng) < 0.2
    metric = PixelMetrics()
    for a, b in zip(maps.tensor_split(cuts), masks.tensor_split(cuts), strict=True):
        metric.update(a, b)
    whole = naive_pixel(list(zip(maps, masks, strict=True)))
    assert_close(without_maps(metric.compute()), whole)


def test_aupro_of_a_worked_example() -> None:
    metric = PixelMetrics(fpr_limit=0.5)
    metric.update(
        torch.tensor([[[9.0, 5.0, 5.0, 3.0, 3.0], [8.0, 5.0, 5.0, 5.0, 5.0]]]),
        torch.tensor([[[0, 0, 0, 1, 1], [0, 0, 0, 1, 1]]]),
    )
    metric.update(torch.tensor([[[9.0, 7.0]]]), torch.tensor([[[0, 1]]]))
    # Regions of 4 and 1 pixels, 7 nominal ones. Falling thresholds 9, 8, 7, 5, 3 give
    # (FPR, PRO) = (2/7, 0), (3/7, 0), (3/7, 1/2), (1, 3/4), (1, 1).
    at_limit = 1 / 2 + 1 / 4 * (1 / 2 - 3 / 7) / (1 - 3 / 7)
    area = (1 / 2 - 3 / 7) * (1 / 2 + at_limit) / 2
    assert metric.compute()["aupro"] == pytest.approx(area / 0.5)


def test_each_region_counts_the_same() -> None:
    masks = torch.zeros(1, 20, 20, dtype=torch.bool)
    masks[0, :10, :10], masks[0, 15, 15] = True, True
    maps = torch.zeros(1, 20, 20)
    maps[0, 15, 15] = 1.0  # one of two regions is found, of one pixel in 101
    counts = sweep(maps[~masks], maps[masks], 1 / region_areas(masks))
    assert pixel_metrics(counts, fpr_limit=1e-9)["aupro"] == pytest.approx(0.5)


def test_regions_touch_at_corners_but_not_across_images() -> None:
    masks = torch.zeros(2, 3, 3, dtype=torch.bool)
    masks[0, 0, 0] = masks[0, 1, 1] = masks[0, 0, 2] = masks[1, 2, 2] = masks[1, 0, 0] = True
    assert region_areas(masks).tolist() == [3, 3, 3, 1, 1]


def test_perfect_constant_and_inverted_maps() -> None:
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, 2:5, 3:6] = True

    def values(maps: Tensor) -> dict[str, float]:
        metric = PixelMetrics()
        metric.update(maps, masks)
        return without_maps(metric.compute())

    share, keys = 9 / 128, ("pixel_auroc", "pixel_ap", "pixel_f1", "aupro", "aupro_005")
    f1 = 2 * share / (1 + share)
    for maps, expected in (
        (masks.float(), [1] * 5),
        (torch.ones(2, 8, 8), [0.5, share, f1, 0.15, 0.025]),
        (-masks.float(), [0, share, f1, 0, 0]),
    ):
        assert_close(values(maps), dict(zip(keys, expected, strict=True)))


def test_scores_are_used_raw() -> None:
    rng = torch.Generator().manual_seed(0)
    maps = torch.randint(0, 64, (3, 10, 10), generator=rng).float()
    masks = torch.rand(3, 10, 10, generator=rng) < 0.3
    low, high = PixelMetrics(), PixelMetrics()
    low.update(maps, masks)
    high.update(maps * 1024 + 2.0**20, masks)  # exact in float32
    assert without_maps(low.compute()) == without_maps(high.compute())


def test_area_under_is_cut_at_the_limit() -> None:
    x, y = torch.tensor([0.0, 0.0, 0.5, 1.0]), torch.tensor([0.0, 0.4, 0.8, 1.0])
    assert area_under(x, y) == pytest.approx(0.3 + 0.45)
    assert area_under(x, y, 0.5) == pytest.approx(0.3)
    assert area_under(x, y, 0.25) == pytest.approx(0.125)


def test_overlap_without_weights_is_recall() -> None:
    counts = sweep(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0, 3.0]))
    for ours, other in zip(roc_curve(counts), pro_curve(counts), strict=True):
        assert torch.equal(ours, other)


# --- what is undefined, and bad input --------------------------------------------------------


def nan_keys(values: dict[str, float]) -> set[str]:
    return {key for key, value in values.items() if math.isnan(value)}


def test_nominal_images_alone() -> None:
    metric = of_images(torch.rand(5), torch.zeros(5, dtype=torch.int64))
    assert nan_keys(metric.compute()) == set(IMAGE_KEYS) == set(metric.undefined())
    assert set(metric.undefined().values()) == {"no anomalous images in the test set"}
    assert all(len(curve) == 0 for curve in metric.curves().values())


def test_anomalous_images_alone() -> None:
    metric = of_images(torch.tensor([3.0, 1.0, 2.0]), torch.ones(3, dtype=torch.bool))
    assert metric.undefined() == dict.fromkeys(IMAGE_KEYS, "no nominal images in the test set")
    assert nan_keys(metric.compute()) == set(IMAGE_KEYS)
    assert metric.curves()["precision"].tolist() == [1.0, 1.0, 1.0]
    assert len(metric.curves()["fpr"]) == 0


def test_empty_masks_alone() -> None:
    metric = PixelMetrics()
    metric.update(torch.rand(2, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool))
    keys = (*PIXEL_KEYS, *MAP_KEYS)
    assert nan_keys(metric.compute()) == set(keys)
    assert metric.undefined() == dict.fromkeys(keys, "no anomalous pixels in the test set")


def test_full_masks_alone() -> None:
    metric = PixelMetrics()
    metric.update(torch.rand(2, 4, 4), torch.ones(2, 4, 4, dtype=torch.bool))
    reasons = dict.fromkeys(PIXEL_KEYS, "no nominal pixels in the test set")
    reasons["aupimo"] = "no nominal images in the test set"
    assert nan_keys(metric.compute()) == set(reasons)
    assert metric.undefined() == reasons


def test_images_without_a_mask_are_left_out() -> None:
    rng = torch.Generator().manual_seed(0)
    maps, masks = torch.rand(4, 6, 6, generator=rng), torch.rand(4, 6, 6, generator=rng) < 0.3
    known = torch.tensor([True, False, True, False])
    metric = PixelMetrics()
    metric.update(maps, masks, known)
    expected = naive_pixel(list(zip(maps[known], masks[known], strict=True)))
    assert_close(without_maps(metric.compute()), expected)
    assert metric.left_out() == 2
    assert set(metric.undefined()) == set(MAP_KEYS)


def test_no_mask_at_all() -> None:
    metric = PixelMetrics()
    metric.update(torch.rand(3, 4, 4), torch.zeros(3, 4, 4), known=torch.zeros(3))
    assert nan_keys(metric.compute()) == {*PIXEL_KEYS, *MAP_KEYS}
    reason = "no anomalous pixels in the test set; 3 left out, as no mask marks anything in view"
    assert set(metric.undefined().values()) == {reason}


def test_reset_forgets_everything() -> None:
    images, pixels = ImageMetrics(), PixelMetrics()
    for _ in range(2):
        images.update(torch.rand(3), torch.zeros(3))
        pixels.update(torch.rand(1, 2, 2), torch.eye(2)[None], torch.tensor([False]))
        assert len(images.undefined()) == len(IMAGE_KEYS)
        assert pixels.left_out() == 1
        images.reset()
        pixels.reset()
    images.update(torch.tensor([1.0, 2.0]), torch.tensor([0, 1]))
    pixels.update(torch.eye(2)[None], torch.eye(2)[None])
    assert images.undefined() == {} and set(pixels.undefined()) == set(MAP_KEYS)
    assert pixels.left_out() == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite(bad: float) -> None:
    scores = torch.tensor([0.0, bad, 1.0, bad])
    with pytest.raises(InputError, match=r"^image scores: 2 of 4 are NaN or infinite"):
        ImageMetrics().update(scores, torch.zeros(4))
    with pytest.raises(InputError, match=r"^anomaly maps: 2 of 4 are NaN or infinite"):
        PixelMetrics().update(scores.view(1, 2, 2), torch.zeros(1, 2, 2))


def mismatches() -> list[tuple[Callable[[], None], str]]:
    images, pixels = ImageMetrics().update, PixelMetrics().update
    maps, masks = torch.rand(2, 3, 3), torch.zeros(2, 3, 3)
    return [
        (lambda: images(torch.rand(2, 1), torch.zeros(2)), r"scores must be \(B,\), got \(2, 1\)"),
        (lambda: images(torch.tensor(0.5), torch.tensor(1)), r"scores must be \(B,\), got \(\)"),
        (lambda: images(torch.rand(2), torch.zeros(3)), r"labels must be \(2,\), got \(3,\)"),
        (lambda: images(torch.rand(2), torch.tensor([0, 2])), "labels must be bool or 0/1"),
        (lambda: pixels(maps[:, None], masks), r"maps must be \(B, H, W\), got \(2, 1, 3, 3\)"),
        (lambda: pixels(maps, masks[:1]), r"masks must be \(2, 3, 3\), got \(1, 3, 3\)"),
        (lambda: pixels(maps, masks + 255), "masks must be bool or 0/1"),
        (lambda: pixels(maps, masks, torch.ones(3)), r"known must be \(2,\), got \(3,\)"),
    ]


@pytest.mark.parametrize("case", range(len(mismatches())))
def test_shapes_and_values_that_do_not_fit(case: int) -> None:
    call, message = mismatches()[case]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_without_any_image_every_metric_is_undefined() -> None:
    for metric in (ImageMetrics(), PixelMetrics()):
        assert all(map(math.isnan, metric.compute().values()))
        assert "no anomalous" in metric.undefined().popitem()[1]


@pytest.mark.parametrize("limit", [0.0, -0.3, 1.1, math.nan])
def test_limit_out_of_range(limit: float) -> None:
    with pytest.raises(InputError, match=r"fpr_limit must be in \(0, 1\]"):
        PixelMetrics(limit)


# --- several processes -----------------------------------------------------------------------


def shards() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(3)
    maps = torch.randint(0, 40, (5, 8, 8), generator=rng).float()
    masks = (torch.rand(5, 8, 8, generator=rng) < 0.3) & (torch.arange(5) < 3)[:, None, None]
    return maps, masks, torch.arange(5) != 1


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    maps, masks, known = shards()
    results = []
    for cut in (2, 5):  # at 5 the second process has no image
        mine = slice(0, cut) if rank == 0 else slice(cut, 5)
        images, pixels = ImageMetrics(), PixelMetrics()
        if cut < 5 or rank == 0:
            images.update(maps[mine].amax((1, 2)), masks[mine].any(2).any(1))
            pixels.update(maps[mine], masks[mine], known[mine])
        results.append(images.compute() | pixels.compute() | {"left_out": pixels.left_out()})
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_agree_with_one(tmp_path: Path) -> None:
    forkserver()
    start = torch.multiprocessing.start_processes
    start(worker, (str(tmp_path),), nprocs=2, start_method="forkserver")
    maps, masks, known = shards()
    expected = naive_image(maps.amax((1, 2)), masks.any(2).any(1)) | {"left_out": 1}
    expected |= naive_pixel(list(zip(maps[known], masks[known], strict=True)))
    for rank in range(2):
        split, alone = torch.load(tmp_path / f"{rank}.pt")
        assert_close(without_maps(split), expected)
        assert_close(without_maps(alone), expected)


def test_pure_functions_serve_without_the_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.rand(30, generator=generator), torch.arange(30) % 3 == 0
    counts = sweep(scores[~labels], scores[labels])
    assert image_metrics(counts) == of_images(scores, labels).compute()
    precision, recall = precision_recall_curve(counts)
    assert recall[-1] == 1.0
    assert float(precision[-1]) == pytest.approx(10 / (10 + float(counts.fp[-1])))


def test_a_metric_is_declared_once_with_all_that_is_told_of_it() -> None:
    assert {each.name for each in Objective} == {
        *("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "pixel_f1"),
        *("aupro", "aupro_005", "aupimo"),
        *("label_free", "memory_bytes", "memory_patches", "seconds", "score_seconds"),
    }
    assert {key for key, measure in METRICS.items() if measure.better == ""} == {
        *("image_threshold", "train_images", "test_images", "decision_images"),
        *("decision_threshold", "decision_rate", "decision_rate_low", "decision_rate_high"),
        *("decision_pixel_threshold", "decision_pixel_rate"),
    }
    falling = {key for key, measure in METRICS.items() if measure.better == "low"}
    assert falling == {
        *("image_false_positives", "image_false_negatives", "errors_at_full_recall"),
        *("seconds", "score_seconds", "milliseconds_per_image", "memory_patches", "memory_bytes"),
        *("decision_false_alarms", "decision_pixel_false_alarms"),
        *MASK_KEYS,
    }
    shares = {"decision_false_alarms", "decision_pixel_false_alarms"}
    assert {key for key in METRICS if METRICS[key].whole} == {
        *(falling - shares - {"seconds", "score_seconds", "milliseconds_per_image"}),
        *("train_images", "test_images", "decision_images"),
    }
    assert all(METRICS[key].compute for key in (*IMAGE_KEYS, *PIXEL_KEYS, *MAP_KEYS))
    assert {(m.unit, m.scale) for m in METRICS.values() if m.scale != 1} == {("MB", 1e-6)}
    costs = {"seconds", "milliseconds_per_image", "memory_bytes"}
    assert {key for key, measure in METRICS.items() if measure.cost} == costs
    assert {key for key, measure in METRICS.items() if measure.main} == {
        *("image_auroc", "pixel_auroc", "aupro")
    }
    free = {"image_threshold", "decision_threshold", "decision_pixel_threshold"}
    for key, measure in METRICS.items():
        assert measure.low == (-math.inf if key in free else 0), key
        bounded = not (measure.whole or measure.unit or key in free)
        assert measure.high == (1 if bounded else math.inf), key


def test_a_metric_of_another_version_is_its_words_alone() -> None:
    assert told("seconds.score") is METRICS["seconds"]
    unknown = told("some_new_metric")
    assert (unknown.title, unknown.better, unknown.of) == ("some new metric", "high", "run")
