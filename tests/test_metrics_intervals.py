"""Bootstrap intervals of image metrics: against metrics of each resample, and a naive bootstrap."""

import math
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from patchcore.data.sample import Sample
from patchcore.metrics import IMAGE_KEYS, METRICS, Sweep, image_metrics, intervals, sweep
from patchcore.metrics.bootstrap import resampled
from patchcore.subsets import by_subset

RANKED = [key for key in IMAGE_KEYS if METRICS[key].better]


def drawn(counts: Sweep, number: int) -> tuple[Tensor, Tensor]:
    """Nominal and anomalous scores of one resample that give its counts."""
    row = {f.name: getattr(counts, f.name) for f in fields(counts)}
    thresholds, tp, fp, above = (row[x][number] for x in ("thresholds", "tp", "fp", "fp_above"))
    first = torch.cat([torch.tensor([True]), tp.diff() > 0])
    thresholds, tp, fp, above = (x[first] for x in (thresholds, tp, fp, above))
    gain = tp.diff(prepend=torch.zeros(1).double()).long()
    before = above - torch.cat([torch.zeros(1).double(), fp[:-1]])
    nominal = torch.cat(
        [
            (thresholds + 1e-3).repeat_interleave(before.long()),
            thresholds.repeat_interleave((fp - above).long()),
            torch.full((counts.nominal - int(fp[-1]),), -1e3, dtype=torch.float64),
        ]
    )
    return nominal, thresholds.repeat_interleave(gain)


@settings(deadline=None, max_examples=12, database=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([3, 1000]))
def test_metrics_of_many_resamples_are_those_of_each(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    nominal, anomalous = (rng.integers(0, levels, n) / 4.0 for n in rng.integers(1, 9, 2))
    counts = resampled(nominal, anomalous, 8, rng)
    several = {key: METRICS[key].compute(counts, 1.0) for key in IMAGE_KEYS}  # type: ignore[misc]
    for number in range(8):
        of_one = drawn(counts, number)
        assert len(of_one[0]) == len(nominal) and len(of_one[1]) == len(anomalous)
        expected = image_metrics(sweep(*of_one))
        got = {key: float(values[number]) for key, values in several.items()}  # type: ignore[index]
        assert got == pytest.approx(expected, rel=1e-12, abs=1e-12)


def naive(
    nominal: NDArray[np.float64], anomalous: NDArray[np.float64], number: int = 300
) -> dict[str, list[float]]:
    rng = np.random.default_rng(1)
    found = []
    for _ in range(number):
        again = [torch.from_numpy(rng.choice(each, len(each))) for each in (nominal, anomalous)]
        found.append(image_metrics(sweep(*again)))
    return {key: np.quantile([x[key] for x in found], [0.025, 0.975]).tolist() for key in RANKED}


def test_intervals_are_those_of_a_naive_bootstrap() -> None:
    rng = np.random.default_rng(0)
    nominal = rng.normal(0, 1, 60)
    anomalous = np.concatenate([rng.normal(1, 1, 12), rng.normal(3, 1, 30)])
    found, slow = intervals(nominal, anomalous), naive(nominal, anomalous)
    assert list(found) == RANKED == list(slow)
    for key, expected in slow.items():
        room = 5 if METRICS[key].whole else 0.03
        assert found[key] == pytest.approx(expected, abs=room), key
        assert found[key][0] < found[key][1]
    assert intervals(nominal, anomalous) == found != intervals(nominal, anomalous, seed=1)
    again = intervals(nominal, anomalous, 1000, 0.95, 0)
    assert found == again != intervals(nominal, anomalous, 999)


def test_intervals_do_not_depend_on_the_types_of_defects() -> None:
    rng = np.random.default_rng(0)
    values = [*rng.normal(0, 1, 30), *rng.normal(1, 1, 12)]
    found = []
    for kinds in (["cut"] * 12, [f"cut {i}" for i in range(12)], ["cut", "dent"] * 6):
        samples = [Sample(Path(f"{i}.png"), 0, "good") for i in range(30)]
        samples += [Sample(Path(f"{30 + i}.png"), 1, kind) for i, kind in enumerate(kinds)]
        found.append(by_subset(samples, dict(enumerate(values)), lambda _: ({}, {})))
    expected = intervals(np.array(values[:30]), np.array(values[30:]))
    for each in found:
        assert each["intervals"]["metrics"] == {key: list(ends) for key, ends in expected.items()}


def test_intervals_hold_what_they_say() -> None:
    """Count intervals that hold the true AUROC of two normal distributions: about 190 of 200."""
    rng = np.random.default_rng(0)
    true, held = 0.5 * (1 + math.erf(1 / 2)), 0  # of means one apart, deviations of 1
    for _ in range(200):
        ends = intervals(rng.normal(0, 1, 40), rng.normal(1, 1, 40), 300)["image_auroc"]
        held += ends[0] <= true <= ends[1]
    assert 180 <= held <= 198


def test_intervals_of_what_is_undefined() -> None:
    several = np.arange(3.0)
    for nominal, anomalous in ((several, []), ([], several), (several, [1.0]), ([1.0], several)):
        assert intervals(np.array(nominal), np.array(anomalous)) == {}


def test_a_type_of_a_single_image_has_no_interval() -> None:
    samples = [Sample(Path(f"{i}.png"), int(i > 2), "cut" if i > 2 else "good") for i in range(4)]
    found = by_subset(samples, {0: 0.1, 1: 0.2, 2: 0.8, 3: 0.7}, lambda _: ({}, {}))
    cut = found["defect_types"]["cut"]
    assert cut["intervals"] == {} and cut["metrics"]["image_auroc"] == pytest.approx(2 / 3)
    assert "intervals" not in found


def test_types_of_defects_without_nominal_images_tell_why() -> None:
    samples = [Sample(Path(f"{i}.png"), 1, "cut") for i in range(2)]
    found = by_subset(samples, {0: 0.5, 1: 0.7}, lambda _: ({}, {}))
    reasons = dict.fromkeys(RANKED, "no nominal images in the test set")
    cut = {"images": 2, "metrics": {}, "intervals": {}, "undefined": reasons}
    assert found == {"defect_types": {"cut": cut}}


def test_resamples_that_find_no_room_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    nominal, anomalous = np.arange(20.0), np.arange(15.0, 25)
    whole = intervals(nominal, anomalous)
    monkeypatch.setattr("patchcore.metrics.bootstrap._AT_ONCE", 70)
    parts = intervals(nominal, anomalous)
    assert parts != whole
    assert parts["image_auroc"] == pytest.approx(whole["image_auroc"], abs=0.02)
