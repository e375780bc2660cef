"""Masks as the metrics tell of them: images left out, and regions that count nowhere."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from patchcore.metrics import MASK_KEYS, MaskCounts
from tests.images import write_image, write_mask
from tests.runs import TINY, patchcore

pytestmark = pytest.mark.filterwarnings("ignore:backbone resnet18 has random weights")


def counted(*rows: tuple[int, list[int]]) -> MaskCounts:
    """Counts over images given by label and numbers of regions."""
    counts = MaskCounts()
    for label, regions in rows:  # a batch each
        counts.update(torch.tensor([label]), torch.tensor([regions]))
    return counts


def test_each_image_and_region_is_counted_once() -> None:
    counts = counted(
        (0, [0, 0, 0, 0, 0, 0]),
        (1, [0, 0, 0, 0, 0, 0]),  # no mask
        (1, [2, 2, 0, 0, 0, 0]),  # all outside
        (1, [3, 2, 0, 1, 0, 0]),  # outside or lost
        (1, [3, 1, 1, 0, 1, 0]),  # partly outside
        (1, [4, 0, 0, 2, 1, 0]),
    )
    assert counts.compute() == dict(zip(MASK_KEYS, [1, 2, 1, 5, 3, 2], strict=True))
    told = " ".join(counts.notices())
    assert "1 of 5 anomalous images have no mask" in told and "left out" in told
    assert "2 of 5 anomalous images have their defect outside the crop" in told
    assert "1 of 5 anomalous images have part of their defect outside the crop" in told
    assert "3 of 12 marked regions" in told and "image.view=square" in told
    counts.reset()
    counts.update(torch.tensor([0]), torch.zeros(1, 6, dtype=torch.int64))
    assert set(counts.compute().values()) == {0} and counts.notices() == []


def test_nothing_is_told_where_nothing_is_missing() -> None:
    whole = (1, [2, 0, 0, 0, 1, 0])
    assert counted(whole, whole, (0, [0] * 6)).notices() == []
    assert counted((1, [0] * 6), (0, [0] * 6)).notices() == []  # no masks at all: see undefined()
    large = (1, [1, 0, 0, 0, 0, 1])
    assert counted(whole, large).notices() == []
    (told,) = counted(whole, large, large).notices()
    assert told.startswith("2 of 3 masks mark more than half of their image") and "invert" in told


def test_a_run_tells_what_is_left_out(tmp_path: Path) -> None:
    for i in range(4):
        write_image(tmp_path / f"nominal/{i}.png", (90, 32), i)
    for i, columns in enumerate([(0, 8), (0, 8), (20, 40), (40, 50), None]):
        write_image(tmp_path / f"anomalous/{i}.png", (90, 32), 10 + i)
        if columns is not None:
            mask = np.zeros((32, 90), dtype=np.uint8)
            mask[10:20, slice(*columns)] = 255
            (tmp_path / "masks").mkdir(exist_ok=True)
            Image.fromarray(mask).save(tmp_path / f"masks/{i}.png")
    given = [*TINY, "data=folder", f"data.root={tmp_path}", "data.anomalous=anomalous"]
    given += ["data.masks=masks", "figures=false", "logger=none"]
    done = patchcore("train", *given, "image.stretch=false", f"hydra.run.dir={tmp_path}/run")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "run/metrics.json").read_text())
    assert [found[key] for key in MASK_KEYS] == [1, 2, 1, 2, 0, 0]
    for count, words in ((1, "have no mask"), (2, "have their defect outside"), (1, "have part")):
        assert f"warning: {count} of 5 anomalous images {words}" in done.err
        assert done.err.count(words) == 1
    assert "images_outside_crop      2" in done.out
    whole = patchcore("train", *given, "image.stretch=true", f"hydra.run.dir={tmp_path}/whole")
    assert whole.code == 0, whole.err
    found = json.loads((tmp_path / "whole/metrics.json").read_text())
    assert [found[key] for key in MASK_KEYS] == [1, 0, 0, 0, 0, 0]


def test_all_masks_outside_leave_pixel_metrics_undefined(tmp_path: Path) -> None:
    for i in range(3):
        write_image(tmp_path / f"nominal/{i}.png", (90, 32), i)
    write_image(tmp_path / "anomalous/0.png", (90, 32), 9)
    mask = np.zeros((32, 90), dtype=np.uint8)
    mask[:, :5] = 255
    write_mask(tmp_path / "masks/0.png", (90, 32))
    Image.fromarray(mask).save(tmp_path / "masks/0.png")
    given = [*TINY, "data=folder", f"data.root={tmp_path}", "data.anomalous=anomalous"]
    given += ["image.stretch=false", "data.masks=masks", "figures=false", "logger=none"]
    done = patchcore("train", *given, f"hydra.run.dir={tmp_path}/run")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "run/metrics.json").read_text())
    assert found["pixel_auroc"] is None and found["image_auroc"] is not None
    assert "1 left out, as no mask marks anything in view" in found["undefined"]["pixel_auroc"]
