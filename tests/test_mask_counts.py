"""Masks as the metrics tell of them: images left out, and regions that count nowhere."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from patchcore.data.dataset import ImageDataset
from patchcore.data.sample import Sample
from patchcore.data.transforms import ImageConfig
from patchcore.metrics import MASK_KEYS, PIXEL_KEYS, MaskCounts, PixelMetrics, pimo_areas
from patchcore.metrics.overlap import NO_PIXELS
from patchcore.metrics.states import NO_MASKS
from tests import reference
from tests.images import write_image, write_mask
from tests.runs import TINY, patchcore

pytestmark = pytest.mark.filterwarnings("ignore:backbone resnet18 has random weights")


NOTHING, OUTSIDE = [0] * 6, [2, 2, 0, 0, 0, 0]
"""Numbers of regions of an image without a mask, and of one with its defects outside the crop."""


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
        (1, [2, 1, 0, 0, 1, 0]),  # one outside, in whose pixels the other is
        (1, [2, 0, 0, 2, 0, 0]),  # both lost
    )
    assert counts.compute() == dict(zip(MASK_KEYS, [1, 3, 1, 0, 1, 6, 5, 3], strict=True))
    told = " ".join(counts.notices())
    assert "1 of 7 anomalous images has no mask that marks anything; it is left out" in told
    assert "3 of 7 anomalous images have their defect outside the crop" in told
    assert "image metrics count them, pixel metrics leave them out. image.view" in told
    assert "1 of 7 anomalous images has its defect lost in resizing; image metrics count it" in told
    assert "1 of 7 anomalous images has part of its defect outside the crop" in told
    assert "2 of 16 marked regions" in told and "image.view=square" in told  # of images that stay
    counts.reset()
    counts.update(torch.tensor([0]), torch.zeros(1, 6, dtype=torch.int64))
    assert set(counts.compute().values()) == {0} and counts.notices() == []


def test_the_first_image_of_each_kind_is_named() -> None:
    counts = MaskCounts()
    rows = torch.tensor([[0] * 6, [0] * 6, [2, 2, 0, 0, 0, 0], [3, 1, 1, 0, 1, 0]])
    counts.update(torch.tensor([0, 1, 1, 1]), rows, numbers=torch.tensor([0, 5, 3, 4]))
    counts.update(torch.tensor([1, 1]), rows[1:3], numbers=torch.tensor([1, 2]))
    names = ["good", "two", "three", "four", "five\n", "six"]
    told = counts.notices(names)
    assert told[0].startswith("2 of 5 anomalous images (the first is two) have no mask")
    assert told[1].startswith("2 of 5 anomalous images (the first is three) have their defect")
    assert told[2].startswith("1 of 5 anomalous images (five\\n) has part of its defect")
    assert not any("first" in line for line in counts.notices())
    counts.reset()
    counts.update(torch.tensor([1]), torch.tensor([[2, 0, 0, 1, 0, 1]]), numbers=torch.tensor([1]))
    regions, masks = counts.notices(names)
    assert regions.startswith("1 of 2 marked regions (in two), of one pixel, was lost in resizing")
    assert masks.startswith("1 of 1 mask (that of two) marks more than half of its image")
    rows = torch.tensor([[3, 0, 0, 2, 0, 1]])
    counts.update(torch.tensor([1]), rows, numbers=torch.tensor([2]))
    regions, masks = counts.notices(names)
    assert regions.startswith(
        "3 of 5 marked regions (the first is in two), of one pixel each, were"
    )
    assert masks.startswith("2 of 2 masks (the first is that of two) mark more than half of their")


def marking(size: tuple[int, int], *boxes: tuple[slice, slice]) -> NDArray[np.uint8]:
    mask = np.zeros(size, dtype=np.uint8)
    for box in boxes:
        mask[box] = 255
    return mask


# At a third of the size, the nearest pixel of each three is the middle one, which none of these is.
SPECK = marking((48, 48), (slice(21, 22), slice(21, 22)))
MERGED = marking((48, 48), (slice(0, 2), slice(0, 1)), (slice(0, 2), slice(2, 3)))
SEEN = marking((48, 48), (slice(15, 30), slice(18, 33)))


def test_an_image_whose_mask_shows_nothing_is_neither_nominal_nor_anomalous(tmp_path: Path) -> None:
    """Pixel metrics are those of the other images, and each image left out is told once."""
    image = write_image(tmp_path / "image.png", (48, 48))
    samples = [Sample(image, 0) for _ in range(4)]
    for name, mask in (("a", SEEN), ("speck", SPECK), ("b", SEEN.T), ("merged", MERGED)):
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
        samples.append(Sample(image, 1, "bent", tmp_path / f"{name}.png"))
    items = [*ImageDataset(samples, ImageConfig(resize=16, crop=10))]
    masks = torch.stack([item["mask"] for item in items])
    known = torch.tensor([item["has_mask"] for item in items])
    assert known.tolist() == [True, True, True, True, True, False, True, False]
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(8, 10, 10, generator=generator) + masks * 0.3 + ~known[:, None, None] * 0.4
    every, others, counts = PixelMetrics(), PixelMetrics(), MaskCounts()
    every.update(maps, masks, known)
    others.update(maps[known], masks[known])
    assert every.compute() == pytest.approx(others.compute(), nan_ok=True)
    kept, marked = maps[known].double().numpy(), masks[known].numpy()
    expected = reference.average_precision(kept.ravel(), marked.ravel())
    assert every.compute()["pixel_ap"] == pytest.approx(expected)
    naive = reference.aupimo([*kept], [*marked], 0.05, 0.5)
    assert pimo_areas(every._scores(), 0.05, 0.5).tolist() == pytest.approx(naive)
    labels = torch.tensor([item["label"] for item in items])
    counts.update(labels, torch.stack([item["regions"] for item in items]))
    assert every.left_out() == sum(counts.compute()[key] for key in MASK_KEYS[:4]) == 2
    outside, lost = counts.notices()
    assert outside.startswith("1 of 4 anomalous images has its defect outside the crop")
    assert lost.startswith("1 of 4 anomalous images has its defect lost in resizing")


def test_a_region_lost_in_an_image_of_which_a_part_is_resized_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = write_image(tmp_path / "image.png", (48, 48))
    Image.fromarray(SPECK).save(tmp_path / "mask.png")
    monkeypatch.setattr("patchcore.data.transforms.LARGEST", 200)
    samples = [Sample(image, 1, "bent", tmp_path / "mask.png")]
    item = ImageDataset(samples, ImageConfig(resize=16, crop=10))[0]
    assert not item["has_mask"] and item["regions"].tolist() == [1, 0, 0, 1, 0, 0]


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
    for i, columns in enumerate([(0, 8), (0, 8), (20, 40), (40, 50), None, (33, 34)]):
        write_image(tmp_path / f"anomalous/{i}.png", (90, 32), 10 + i)
        if columns is not None:
            mask = np.zeros((32, 90), dtype=np.uint8)
            mask[10 : 11 if i == 5 else 20, slice(*columns)] = 255
            (tmp_path / "masks").mkdir(exist_ok=True)
            Image.fromarray(mask).save(tmp_path / f"masks/{i}.png")
    given = [*TINY, "data=folder", f"data.root={tmp_path}", "data.anomalous=anomalous"]
    given += ["data.masks=masks", "figures=false", "logger=none"]
    done = patchcore("train", *given, "image.stretch=false", f"hydra.run.dir={tmp_path}/run")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "run/metrics.json").read_text())
    assert [found[key] for key in MASK_KEYS] == [1, 2, 0, 0, 1, 2, 0, 0]
    told = ((1, 4, "has no mask"), (2, 0, "have their defect outside"), (1, 2, "has part"))
    for count, first, words in told:
        example = f"({'the first is ' * (count > 1)}{tmp_path}/anomalous/{first}.png)"
        assert f"warning: {count} of 6 anomalous images {example} {words}" in done.err
        assert done.err.count(words) == 1
    assert "images_outside_crop      2" in done.out
    whole = patchcore("train", *given, "image.stretch=true", f"hydra.run.dir={tmp_path}/whole")
    assert whole.code == 0, whole.err
    found = json.loads((tmp_path / "whole/metrics.json").read_text())
    assert [found[key] for key in MASK_KEYS] == [1, 0, 1, 0, 0, 0, 1, 0]
    (line,) = [line for line in whole.err.splitlines() if "resizing" in line]
    first = tmp_path / "anomalous/5.png"
    assert line.startswith(f"warning: 1 of 6 anomalous images ({first}) has its defect lost")


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


@pytest.mark.parametrize(
    ("regions", "reason"),
    [
        ([], NO_PIXELS),
        ([NOTHING, NOTHING], NO_MASKS),
        ([NOTHING, OUTSIDE], f"{NO_PIXELS}; 2 left out, as no mask marks anything in view"),
        ([OUTSIDE], f"{NO_PIXELS}; 1 left out, as no mask marks anything in view"),
    ],
)
def test_why_there_are_no_anomalous_pixels(regions: list[list[int]], reason: str) -> None:
    counts, pixels = MaskCounts(), PixelMetrics()
    labels = torch.tensor([0, *[1] * len(regions)])
    counts.update(labels, torch.tensor([NOTHING, *regions]))
    pixels.update(torch.rand(len(labels), 2, 2), torch.zeros(len(labels), 2, 2), labels == 0)
    others = {"decision_pixel_recall": NO_PIXELS, "image_auroc": "no nominal images"}
    found = counts.explained({**pixels.undefined(), **others})
    assert found.pop("image_auroc") == "no nominal images"
    assert {*found.values()} == {reason} and {*PIXEL_KEYS} < {*found}
    alone = pixels.of([*range(len(labels))])[1]
    assert {*alone.values()} == {*pixels.undefined().values()}


def test_images_with_their_defect_outside_the_region_are_counted_and_told(tmp_path: Path) -> None:
    for i in range(4):
        write_image(tmp_path / f"nominal/{i}.png", (32, 32), i)
    (tmp_path / "masks").mkdir()
    for i, top in enumerate((2, 20, 20)):  # the first one is inside
        write_image(tmp_path / f"anomalous/{i}.png", (32, 32), 10 + i)
        mask = np.zeros((32, 32), dtype=np.uint8)
        mask[top : top + 4, 4:20] = 255
        Image.fromarray(mask).save(tmp_path / f"masks/{i}.png")
    region = np.zeros((32, 32), dtype=np.uint8)
    region[:12] = 255
    Image.fromarray(region).save(tmp_path / "region.png")
    given = [*TINY, "data=folder", f"data.root={tmp_path}", "data.anomalous=anomalous"]
    given += ["data.masks=masks", "figures=false", "logger=none", "image.crop=null"]
    given += [f"data.region={tmp_path}/region.png", f"hydra.run.dir={tmp_path}/run"]
    done = patchcore("train", *given)
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "run/metrics.json").read_text())
    assert [found[key] for key in MASK_KEYS] == [0, 0, 0, 2, 0, 0, 0, 0]
    words = f"(the first is {tmp_path}/anomalous/1.png) have their defect outside the region that"
    assert done.err.count(words) == 1
