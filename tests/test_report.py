import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.ndimage
import torch

from patchcore import AllConfig, BackboneConfig, PatchCore
from patchcore.data.dataset import ImageDataset
from patchcore.data.images import read_image
from patchcore.data.sample import Sample
from patchcore.data.transforms import ImageConfig
from patchcore.metrics import ImageMetrics
from patchcore.overlays import CONTOUR
from patchcore.report import figures
from patchcore.report import images as figure_images
from patchcore.report.folders import Images
from patchcore.report.images import write_images
from patchcore.report.pictured import Pictured, pictures_of
from patchcore.report.reading import read_run
from patchcore.report.run import (
    AnomalyMap,
    GalleryItem,
    Run,
    pick_gallery,
    pick_misclassified,
    read_results,
    write_run,
)
from tests.images import write_image, write_mask

NAN = float("nan")


def make_run(scores: list[float], labels: list[int], **more: Any) -> Run:
    """A run with the metrics of these scores and no pixel metrics."""
    metric = ImageMetrics()
    metric.update(torch.tensor(scores), torch.tensor(labels))
    samples = [
        Sample(Path(f"{i}.png"), label, "scratch" if label else "good")
        for i, label in enumerate(labels)
    ]
    return Run(
        settings={},
        metrics={**metric.compute(), "aupro": NAN, "memory_patches": 7.0, "test_images": 2.0},
        undefined={**metric.undefined(), "aupro": "no anomalous pixels in the test set"},
        seconds={"extract": 1.5},
        samples=samples,
        scores=scores,
        curves=metric.curves(),
        **more,
    )


MIXED = ([0.2, 0.9, 0.4, 0.8, 0.1], [0, 0, 1, 1, 0])
NOMINAL = ([0.2, 0.3], [0, 0])
ANOMALOUS = ([0.2, 0.3], [1, 1])


def item(size: tuple[int, int] = (40, 30), group: str = "g", seed: int = 0) -> GalleryItem:
    rng = np.random.default_rng(seed)
    mask = np.zeros(size, bool)
    mask[5:15, 8:20] = True
    return GalleryItem(
        group,
        Sample(Path("a_rather_long_name_of_an_image_file.png"), 1, "scratch"),
        1.25,
        "missed",
        rng.integers(0, 256, (*size, 3), dtype=np.uint8),
        mask,
        rng.random(size, dtype=np.float32),
    )


def test_record_names_what_is_undefined() -> None:
    record = make_run(*MIXED).record()
    assert record["aupro"] is None
    assert record["undefined"] == {"aupro": "no anomalous pixels in the test set"}
    assert record["seconds"]["extract"] == 1.5
    assert record["image_auroc"] == pytest.approx(4 / 6)
    for key in ("image_false_positives", "errors_at_full_recall", "memory_patches"):
        assert isinstance(record[key], int)
    assert "undefined" not in Run({}, {"aupro": 1.0}, {}, {}, [], [], {}).record()
    json.dumps(record, allow_nan=False)


def test_types_of_several_categories_stay_as_they_were_read() -> None:
    run = make_run(*MIXED)
    run.metrics["decision_threshold"] = 0.5
    read = {"a/scratch": {"images": 1, "recall": 1.0}, "b/scratch": {"images": 1, "recall": 0.0}}
    run.subsets = {"defect_types": read}  # scores.csv has no categories
    assert run.record()["defect_types"] == read
    run.subsets = {"defect_types": {"scratch": {"metrics": {}}}}
    expected = {"scratch": {"metrics": {}, "images": 2, "recall": 0.5}}
    assert run.record()["defect_types"] == expected


def test_summary_is_a_table_with_reasons() -> None:
    lines = make_run(*NOMINAL).summary().splitlines()
    reasons = [line.split(maxsplit=1)[1] for line in lines if line.startswith("undefined")]
    images, pixels = reasons  # each once, for all that it holds for
    assert images.startswith("no anomalous images in the test set: image_auroc, ")
    assert pixels == "no anomalous pixels in the test set: aupro"
    assert not any(line.startswith("image_auroc") for line in lines)
    assert "memory_patches           7" in lines
    assert "seconds.extract          1.5000" in lines


def test_metrics_json_comes_last_and_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(*MIXED)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(figures, "draw_gallery", fail)
        write_run(run, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.replace", fail)
        write_run(run, tmp_path)
    assert not (tmp_path / "metrics.json").exists()
    write_run(run, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == run.record()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "figures",
        "metrics.json",
        "scores.csv",
    ]


@pytest.mark.parametrize("scores, labels", [MIXED, NOMINAL, ANOMALOUS])
def test_results_are_read_as_they_were_written(
    scores: list[float], labels: list[int], tmp_path: Path
) -> None:
    undefined = dict.fromkeys(("image_auroc", "pixel_auroc", "aupro"), NAN)
    curve = [{"ratio": 0.5, **undefined, "memory_patches": 3.0}]
    member = {"backbone": "r", "metrics": {"image_auroc": NAN, "memory_patches": 4.0}}
    run = make_run(scores, labels, ratio_curve=curve, members=[member])
    (tmp_path / "config.yaml").write_text("seed: ${other}\n")
    write_run(run, tmp_path)
    found = read_results(tmp_path)
    assert found.record() == run.record()
    assert {k for k in found.metrics if np.isnan(found.metrics[k])} == {
        k for k in run.metrics if np.isnan(run.metrics[k])
    }
    assert found.settings == {"seed": "${other}"}
    assert list(found.scores) == scores and found.labels.tolist() == labels
    assert [s.defect_type for s in found.samples] == [s.defect_type for s in run.samples]
    assert {k: v.tolist() for k, v in found.curves.items()} == {
        k: pytest.approx(v.tolist()) for k, v in run.curves.items()
    }
    assert [path.name for path in found.pictures] == sorted(
        path.name for path in (tmp_path / "figures").iterdir()
    )


def test_results_of_a_damaged_run_are_refused(tmp_path: Path) -> None:
    write_run(make_run(*MIXED), tmp_path, pictures=False)
    (tmp_path / "scores.csv").write_text("path,label,defect_type,score\na,2,good,0.1\n")
    with pytest.raises(ValueError, match=r"scores\.csv: row 2 is damaged"):
        read_results(tmp_path)


@pytest.mark.parametrize("scores, labels", [MIXED, NOMINAL, ANOMALOUS, ([0.5, 0.5], [0, 1])])
def test_pictures_of_any_test_set(scores: list[float], labels: list[int], tmp_path: Path) -> None:
    run = make_run(scores, labels)
    figures.draw_curves(run, tmp_path / "curves.png")
    figures.draw_histogram(run, tmp_path / "scores.png")
    for name in ("curves", "scores"):
        pixels = read_image(tmp_path / f"{name}.png")
        assert pixels.std() > 5
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (border == 255).all()  # nothing is clipped
    assert plt.get_fignums() == []  # nothing is left in matplotlib's global state


def test_figures_are_those_of_matplotlibs_own_way_to_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = (figures.draw_curves, figures.draw_histogram)
    for number, each in enumerate(draw):
        each(make_run(*MIXED), tmp_path / f"once{number}.png")
    monkeypatch.setattr(figures, "_save", lambda figure, path: figure.savefig(path, dpi=120))
    for number, each in enumerate(draw):
        each(make_run(*MIXED), tmp_path / f"twice{number}.png")
        once, twice = (read_image(tmp_path / f"{name}{number}.png") for name in ("once", "twice"))
        assert np.array_equal(once, twice)


@pytest.mark.parametrize("size", [(40, 30), (24, 96), (96, 24)])
@pytest.mark.parametrize("groups", [["a"], ["a", "a", "a", "b"]])
def test_gallery_keeps_shapes_and_clips_nothing(
    size: tuple[int, int], groups: list[str], tmp_path: Path
) -> None:
    gallery = [item(size, group) for group in groups]
    for tile in gallery:
        tile.image[:], tile.mask[:] = (0, 200, 0), False
    figures.draw_gallery(make_run(*MIXED, gallery=gallery), tmp_path / "gallery.png")
    pixels = read_image(tmp_path / "gallery.png")
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (border == 255).all()
    labels, count = scipy.ndimage.label((pixels == (0, 200, 0)).all(2))
    assert count == len(groups)
    for rows, columns in scipy.ndimage.find_objects(labels):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        assert height / width == pytest.approx(size[0] / size[1], rel=0.05)
        assert max(height, width) > 100


def test_gallery_marks_the_region_and_the_error(tmp_path: Path) -> None:
    tile = item()
    tile.image[:] = 255
    figures.draw_gallery(make_run(*MIXED, gallery=[tile]), tmp_path / "gallery.png")
    pixels = read_image(tmp_path / "gallery.png").astype(int)
    top = pixels[: len(pixels) // 2]
    for colour in (figures.OUTLINE, figures.ANOMALOUS):
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(top - rgb).max(2) < 40).sum() > 20


def test_an_empty_gallery_draws_nothing(tmp_path: Path) -> None:
    figures.draw_gallery(make_run(*MIXED), tmp_path / "gallery.png")
    assert not list(tmp_path.iterdir())


def test_heat_is_clear_where_the_score_is_low_and_coloured_where_it_is_high() -> None:
    image = np.full((1, 3, 3), [[[90, 120, 30]]], np.uint8)
    shown = figures.heat(image, np.array([[-5.0, 1.0, 9.0]], np.float32), 1.0, 2.0)
    assert shown.dtype == np.uint8
    assert shown[0, 0].tolist() == shown[0, 1].tolist() == [80, 80, 80]
    assert shown[0, 2, 0] > 200 > 100 > shown[0, 2, 2]  # yellow
    flat = figures.heat(image, np.ones((1, 3), np.float32), 1.0, 1.0)
    assert np.isfinite(flat).all()


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, ImageDataset, PatchCore]:
    """Nine nominal and five anomalous images with made-up scores."""
    folder = tmp_path_factory.mktemp("images")
    labels = [0] * 9 + [1] * 5
    samples = []
    for i, label in enumerate(labels):
        path = write_image(folder / f"{i}.png", (32, 32), i)
        mask = write_mask(folder / "masks" / f"{i}.png", (32, 32)) if label else None
        samples.append(Sample(path, label, "scratch" if label else "good", mask))
    scores = [float(i % 7) / 10 for i in range(14)]
    run = make_run(scores, labels)
    run.samples = samples
    dataset = ImageDataset(samples, ImageConfig(resize=None, crop=None))
    with pytest.warns(UserWarning, match="random weights"):
        model = PatchCore(BackboneConfig("resnet18", "none"), coreset=AllConfig())
    return run, dataset, model.fit(dataset[0]["image"][None])


def maps_of(dataset: ImageDataset, model: PatchCore) -> AnomalyMap:
    return lambda index, size: model(dataset[index]["image"][None]).map[0]


def test_gallery_shows_the_worst_of_both_kinds_and_the_best_finds_once(
    scored: tuple[Run, ImageDataset, PatchCore],
) -> None:
    run, dataset, model = scored
    items = pick_gallery(run, dataset, maps_of(dataset, model), each=3)
    shown: dict[str, list[int]] = {}
    for found in items:
        shown.setdefault(found.group, []).append(int(found.sample.path.stem))
    nominal, missed, found_ = shown.values()
    assert {run.scores[i] for i in nominal} == {0.6, 0.5, 0.4}
    assert [run.scores[i] for i in nominal] == sorted(
        (run.scores[i] for i in nominal), reverse=True
    )
    assert [run.scores[i] for i in missed] == [0.2, 0.3, 0.4]
    assert [run.scores[i] for i in found_] == [0.6, 0.5]
    assert len({i for part in shown.values() for i in part}) == 8
    threshold = run.metrics["image_threshold"]
    for found in items:
        alarm = found.score >= threshold
        expected = "correct" if alarm == (found.sample.label == 1) else "false alarm"
        assert found.verdict == ("missed" if found.sample.label and not alarm else expected)


def test_gallery_items_hold_the_image_its_mask_its_map_and_one_scale(
    scored: tuple[Run, ImageDataset, PatchCore],
) -> None:
    run, dataset, model = scored
    items = pick_gallery(run, dataset, maps_of(dataset, model), each=2)
    for found in items:
        index = int(found.sample.path.stem)
        written = read_image(found.sample.path)
        assert np.abs(found.image.astype(int) - written).max() <= 1
        assert found.mask.sum() == (256 if found.sample.label else 0)
        expected = model(dataset[index]["image"][None]).map[0]
        assert torch.allclose(torch.from_numpy(found.map), expected)
        assert found.limits == items[0].limits
        assert found.overlay().shape == (32, 64, 3)
    low, high = items[0].limits
    assert high == max(found.map.max() for found in items)
    assert min(found.map.min() for found in items) <= low < high


def test_misclassified_images_are_all_that_the_threshold_gets_wrong(
    scored: tuple[Run, ImageDataset, PatchCore],
) -> None:
    run, dataset, model = scored
    run = replace(run, scores=torch.tensor(run.scores).tolist())  # float32, as a model's are
    threshold = run.metrics["image_threshold"]
    wrong = [
        i
        for i, (s, label) in enumerate(zip(run.scores, run.labels, strict=True))
        if (s >= threshold) != (label == 1)
    ]
    counts = {key: run.metrics[f"image_false_{key}"] for key in ("positives", "negatives")}
    assert sum(counts.values()) == len(wrong) > 2
    items = pick_misclassified(run, dataset, maps_of(dataset, model))
    assert sorted(int(found.sample.path.stem) for found in items) == wrong
    assert {found.verdict for found in items} <= {"false alarm", "missed"}
    alarms = [found.score for found in items if found.verdict == "false alarm"]
    misses = [found.score for found in items if found.verdict == "missed"]
    assert alarms == sorted(alarms, reverse=True) and misses == sorted(misses)
    assert items[0].group == f"{counts['positives']:.0f} false alarms"
    few = pick_misclassified(run, dataset, maps_of(dataset, model), most=1)
    assert few[0].group == f"{counts['positives']:.0f} false alarms, the worst 1"
    assert few[0].score == alarms[0]
    nominal = make_run(*NOMINAL)
    assert pick_misclassified(nominal, dataset, maps_of(dataset, model)) == []


def test_long_rows_of_misclassified_images_are_broken(tmp_path: Path) -> None:
    items = [item() for _ in range(figures.COLUMNS + 2)]
    for tile in items:
        tile.image[:], tile.mask[:] = (0, 200, 0), False
    path = tmp_path / "misclassified.png"
    figures.draw_misclassified(make_run(*MIXED, misclassified=items), path)
    pixels = read_image(path)
    labels, count = scipy.ndimage.label((pixels == (0, 200, 0)).all(2))
    places = scipy.ndimage.find_objects(labels)
    assert count == len(items)
    assert len({rows.start // 20 for rows, _ in places}) == 2
    figures.draw_misclassified(make_run(*MIXED), path)  # nothing is wrong now
    assert not path.exists()


def test_pictures_can_be_left_out(tmp_path: Path) -> None:
    write_run(make_run(*MIXED), tmp_path, pictures=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "scores.csv"]


@pytest.mark.parametrize("which", [Images.all, Images.wrong])
def test_pictures_of_single_images_are_listed_and_of_their_size(
    scored: tuple[Run, ImageDataset, PatchCore], which: Images, tmp_path: Path
) -> None:
    run, dataset, _ = scored
    run = replace(run, metrics={**run.metrics, "decision_threshold": 0.45, "test_images": 14})
    cropped = ImageDataset(dataset.samples, ImageConfig(resize=None, crop=24))
    write_images(run, cropped, lambda i, size: torch.full(size, float(i)), tmp_path, which)
    write_run(run, tmp_path, pictures=False)
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    written = read_run(tmp_path)
    found = pictures_of(written)
    wrong = {
        sample.name
        for sample, score in zip(run.samples, run.scores, strict=True)
        if (score >= 0.45) != (sample.label == 1)
    }
    assert set(found) == (wrong if which is Images.wrong else {s.name for s in run.samples})
    assert 0 < len(wrong) < len(run.samples)
    for name, picture in found.items():
        pixels = read_image(tmp_path / picture)
        assert (pixels[:4, :4] == read_image(Path(name))[:4, :4]).all()  # at its own size
        assert pixels.shape[0] > 32 and pixels.shape[1] >= figure_images.NARROWEST
    shown = Pictured([written])
    places = {i for i, sample in enumerate(run.samples) if sample.name in found}
    assert set(shown.of(written)) == places and len(shown.uris) == len(places)
    assert shown.uris[0].startswith("data:image/jpeg;base64,")
    assert Pictured([written], 1000).uris == []  # there is no room


def test_a_picture_is_anchored_at_the_threshold_and_outlines_both_regions() -> None:
    image = np.full((60, 200, 3), 120, np.uint8)
    mask = np.zeros((60, 200), bool)
    mask[10:30, 10:60] = True
    values = np.full((60, 200), 1.0, np.float32)
    values[20:50, 100:150] = 5.0
    values[:, 190:] = np.nan
    shown = figure_images.drawn(image, mask, values, 4.0, ["a" * 300, "score"])
    assert shown.shape[1] == figure_images.NARROWEST
    left, right = shown[:60, :200], shown[:60, 206:406]
    border = mask & ~scipy.ndimage.binary_erosion(mask, border_value=1)
    assert (left[border] == figure_images.MASK).all()
    assert (right[border] == figure_images.MASK).all()
    assert (left[~border] == 120).all()
    assert (right[20, 100:150] == CONTOUR).all() and (right[20:50, 100] == CONTOUR).all()
    assert (right[45, 30] == 120).all()  # below half the threshold no colour
    assert (right[:, 190:] == 120).all()  # not looked at
    expected = figures.heat(image[:1, :1], np.full((1, 1), 5, np.float32), 2.0, 6.0)[0, 0]
    assert (right[30, 120] == expected).all()
    other = figure_images.drawn(image, mask, np.where(values == 5, 5, values * 0), 4.0, ["score"])
    assert (other[30, 206 + 120] == expected).all()  # whatever else the map holds
    assert other.shape[0] < shown.shape[0]  # long names go on in a next line
    plain = figure_images.drawn(image, mask, values, None, ["score"])
    assert not (plain[:60] == CONTOUR).all(-1).any()
    assert figure_images.limits(values, None) == (1.0, 5.0)
    assert figure_images.limits(values, -1.0) == (-7.0, 5.0)


def test_gallery_of_a_run_without_anomalies_has_no_verdict(
    scored: tuple[Run, ImageDataset, PatchCore],
) -> None:
    _, dataset, model = scored
    run = make_run([0.1 * i for i in range(9)], [0] * 9)
    dataset = ImageDataset(dataset.samples[:9], dataset.image)
    items = pick_gallery(run, dataset, maps_of(dataset, model), each=2)
    assert [found.verdict for found in items] == ["", ""]
    assert [int(found.sample.path.stem) for found in items] == [8, 7]


def test_thinned_curves_keep_their_ends() -> None:
    x = torch.linspace(0, 1, 2001)
    points = Run.thinned(x, x**2, most=50)
    assert len(points) == 50 and points[0] == [0, 0] and points[-1] == [1, 1]
    assert Run.thinned(x[:3], x[:3]) == [[a, a] for a in x[:3].tolist()]
    assert Run.thinned(x[:0], x[:0]) == []
