"""Content of a finished run, and how it is written to its folder and read back.

Trackers and Python users read it with `read_results`. `patchcore.report.reading` reads folders
for reports, and says of damaged ones what is wrong.
"""

import csv
import json
import math
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchcore.data.dataset import ImageDataset
from patchcore.data.sample import Sample
from patchcore.data.transforms import ImageConfig
from patchcore.errors import counted
from patchcore.metrics import curves, sweep, told
from patchcore.report import figures
from patchcore.report.cells import harmless
from patchcore.report.checks import STRUCTURES, is_number
from patchcore.report.folders import Images, own_file
from patchcore.report.images import verdict_of
from patchcore.report.reading import SCORES, check_unaltered, read_record, read_scores, read_yaml
from patchcore.subsets import SUBSETS

AnomalyMap = Callable[[int, tuple[int, int]], Tensor]
"""Function that maps the number of a test image and its size (H, W) to its anomaly map (H, W)."""


@dataclass
class GalleryItem:
    """One image of the gallery, with its map."""

    group: str  # title of the gallery's row: see `pick_gallery`
    sample: Sample
    score: float
    verdict: str  # correct, false alarm or missed, at the F1-optimal threshold; "" without one
    image: NDArray[np.uint8]  # (H, W, 3)
    mask: NDArray[np.bool_]  # (H, W)
    map: NDArray[np.float32]  # (H, W), NaN where the image's region leaves pixels out
    limits: tuple[float, float] = (0.0, 1.0)  # scores of the first and last colour, shared by all

    def overlay(self) -> NDArray[np.uint8]:
        """Return the image and, to its right, the image under its map: (H, 2·W, 3)."""
        return np.hstack([self.image, figures.heat(self.image, self.map, *self.limits)])


@dataclass
class Run:
    """Content of a run, which is written to its folder and read from it.

    Attributes:
        settings: Settings as in config.yaml.
        metrics: Values by the keys of `patchcore.metrics.METRICS`; NaN if undefined.
        undefined: Reasons for metrics that are NaN: {key: reason}.
        seconds: Time of each stage, in seconds.
        samples: Test images, N.
        scores: Anomaly scores of the samples, in the same order.
        curves: Points of the curves: see `patchcore.metrics.ImageMetrics.curves`.
        ratio_curve: Metrics at each memory ratio, ascending.
        gallery, misclassified: Images with their maps; empty for a run that was read.
        members: Members of an ensemble: `metrics` and further entries of each.
        subsets: Metrics of parts of the test: see `patchcore.subsets.by_subset`.
        pictures: Files of the pictures; empty for a run that was not read.
        notes: Lines that the screen shows after the metrics; empty for a run that was read.
    """

    settings: dict[str, Any]
    metrics: dict[str, float]
    undefined: dict[str, str]
    seconds: dict[str, float]
    samples: Sequence[Sample]
    scores: Sequence[float]
    curves: dict[str, Tensor]
    ratio_curve: list[dict[str, float]] = field(default_factory=list)
    gallery: list[GalleryItem] = field(default_factory=list)
    misclassified: list[GalleryItem] = field(default_factory=list)
    members: list[dict[str, Any]] = field(default_factory=list)
    subsets: dict[str, Any] = field(default_factory=dict)
    pictures: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels (N,): 0 nominal, 1 anomalous."""
        return np.array([sample.label for sample in self.samples])

    @property
    def defect_types(self) -> dict[str, dict[str, float]]:
        """Number of images and recall of each type of defect: {type: {images, recall}}.

        Recall is at the threshold from nominal images; empty without such a threshold. Types are
        named as in `subsets`.
        """
        threshold = self.metrics.get("decision_threshold")
        called: dict[str, list[bool]] = {}
        for sample, score in zip(self.samples, self.scores, strict=True):
            if sample.label and threshold is not None:
                kind = "/".join(filter(None, [sample.category, sample.defect_type]))
                called.setdefault(kind, []).append(score >= threshold)
        return {
            kind: {"images": len(each), "recall": sum(each) / len(each)}
            for kind, each in sorted(called.items())
        }

    def record(self) -> dict[str, Any]:
        """Return the content of metrics.json; undefined metrics are None, with their reasons.

        The reasons are under `undefined`, and those of an ensemble's members in their own entries.
        """
        record: dict[str, Any] = _numbers(self.metrics)
        record["seconds"] = dict(self.seconds)
        record |= self.subsets
        if types := self.defect_types:
            known = self.subsets.get("defect_types", {})
            if known.keys() <= types.keys():  # not so for a run that was read with categories
                record["defect_types"] = {k: {**known.get(k, {}), **v} for k, v in types.items()}
        if self.ratio_curve:
            record["ratio_curve"] = [_numbers(row) for row in self.ratio_curve]
        if self.members:
            record["members"] = [
                {**member, "metrics": _numbers(member["metrics"])} for member in self.members
            ]
        return {**record, "undefined": self.undefined} if self.undefined else record

    def summary(self) -> str:
        """Return the metrics as a table for a terminal."""
        lines = []
        for key, value in self.record().items():
            if key in STRUCTURES or value is None:
                continue
            text = f"{value:.4f}" if isinstance(value, float) else f"{value:,}"
            lines.append(f"{key:24} {text}")
        for key, value in self.seconds.items():
            lines.append(f"{f'seconds.{key}':24} {value:.4f}")
        for kind, found in self.defect_types.items():
            text = f"{found['recall']:.4f} of {counted(int(found['images']), 'image')}"
            lines.append(f"{f'recall.{kind}':24} {text}")
        for part in ("categories", "defect_types"):
            for name, found in self.subsets.get(part, {}).items():
                if (auroc := found["metrics"].get("image_auroc")) is not None:
                    text = f"{auroc:.4f}"
                    if ends := found["intervals"].get("image_auroc"):
                        text += f" [{ends[0]:.4f}, {ends[1]:.4f}]"
                    text += f" of {counted(found['images'], 'image')}"
                    lines.append(f"{f'image_auroc.{name}':24} {text}")
        for number, member in enumerate(self.members, 1):
            auroc = f"image_auroc {member['metrics']['image_auroc']:.4f}"
            lines.append(f"{f'member {number}':24} {auroc}, {member['backbone']}")
        for row in self.ratio_curve:
            ratio, patches = row["ratio"], row["memory_patches"]
            auroc = f"image_auroc {row['image_auroc']:.4f}"
            lines.append(f"{f'at ratio {ratio:g}':24} {auroc}, {counted(round(patches), 'patch')}")
        reasons: dict[str, list[str]] = {}
        for key in (key for key, value in self.record().items() if value is None):
            reasons.setdefault(self.undefined.get(key, "no reason is known"), []).append(key)
        for reason, keys in reasons.items():
            text = f"{'undefined':24} {reason}: {', '.join(keys)}"
            lines += textwrap.wrap(text, 100, subsequent_indent=" " * 25)
        return "\n".join(lines)

    @staticmethod
    def thinned(x: Tensor, y: Tensor, most: int = 500) -> list[list[float]]:
        """Return at most `most` points [x, y] of a curve, evenly chosen, with both ends."""
        keep = torch.linspace(0, len(x) - 1, min(most, len(x))).round().long()
        return torch.stack([x[keep], y[keep]], 1).tolist()


def pick_gallery(
    run: Run, dataset: ImageDataset, anomaly_map: AnomalyMap, each: int = 6
) -> list[GalleryItem]:
    """Return the images of the gallery with their anomaly maps, up to `each` per group.

    The groups are the nominal images with the highest scores, where false alarms are first, and the
    anomalous images with the lowest scores, where misses are first, and with the highest scores. No
    image is in two groups.
    """
    scores, labels = np.asarray(run.scores), run.labels
    rising = np.argsort(scores, kind="stable")
    nominal, anomalous = rising[labels[rising] == 0], rising[labels[rising] == 1]
    groups = {
        "nominal, highest scores": nominal[::-1][:each],
        "anomalous, lowest scores": anomalous[:each],
        "anomalous, highest scores": anomalous[each:][::-1][:each],
    }
    return _items(run, dataset, anomaly_map, groups)


def pick_misclassified(
    run: Run, dataset: ImageDataset, anomaly_map: AnomalyMap, most: int = 40
) -> list[GalleryItem]:
    """Return the images that the F1-optimal threshold gets wrong, as the paper's Figures S1 and S2.

    False alarms start at the highest score, missed images at the lowest; up to `most` of each.
    """
    scores, labels = np.asarray(run.scores), run.labels
    threshold = run.metrics["image_threshold"]
    rising = np.argsort(scores, kind="stable")
    if math.isnan(threshold):
        return []
    groups = {}
    for name, label, order in (("false alarms", 0, rising[::-1]), ("missed", 1, rising)):
        wrong = (labels[order] == label) & ((scores[order] >= threshold) != bool(label))
        found = order[wrong]
        name = f"{len(found)} {name}" + (f", the worst {most}" if len(found) > most else "")
        groups[name] = found[:most]
    return _items(run, dataset, anomaly_map, groups)


def _items(
    run: Run,
    dataset: ImageDataset,
    anomaly_map: AnomalyMap,
    groups: dict[str, NDArray[np.int64]],
) -> list[GalleryItem]:
    """Images with their maps, all with the same limits of the colours.

    Args:
        run: Results of the run.
        dataset: Test images.
        anomaly_map: Function that returns the anomaly map of a test image.
        groups: {title of the group: numbers of its images}.
    """
    items = []
    for group, chosen in groups.items():
        for i in chosen:
            loaded = dataset[int(i)]
            height, width = loaded["mask"].shape
            items.append(
                GalleryItem(
                    group,
                    dataset.samples[i],
                    float(run.scores[i]),
                    verdict_of(
                        run.scores[i], dataset.samples[i].label, run.metrics["image_threshold"]
                    ),
                    _pixels(loaded["image"], dataset.image),
                    loaded["mask"].numpy(),
                    anomaly_map(int(i), (height, width)).numpy(),
                )
            )
    if items:
        limits = figures.limits([item.map for item in items])
        for item in items:
            item.limits = limits
    return items


def _numbers(metrics: dict[str, float]) -> dict[str, float | None]:
    """Metrics as values for JSON: None for NaN, and integers for counts."""
    return {
        key: None if math.isnan(value) else int(value) if told(key).whole else value
        for key, value in metrics.items()
    }


SOMETIMES = "misclassified.png"
"""Picture that a run draws only if the F1-optimal threshold gets an image wrong."""


def picture_names(
    figures: bool = True, ratio_curve: bool = False, images: Images = Images.none
) -> list[str]:
    """Return the names of the files in figures/ that a run with these settings always has.

    Pictures of single images are represented by the file that lists them.
    """
    names = ["curves.png", "scores.png", "gallery.png"] if figures else []
    names += ["ratio_curve.png"] if figures and ratio_curve else []
    return names if images is Images.none else [*names, images.list_name]


def categories_of(samples: Sequence[Sample], settings: Mapping[str, Any]) -> list[str]:
    """Return the category of each sample, as scores.csv has it; empty if the data have none.

    Args:
        samples: Images of a run.
        settings: Settings of the run as plain values.
    """
    data = settings.get("data")
    own = data.get("category") if isinstance(data, Mapping) else None
    usual = own if isinstance(own, str) else ""  # else several, which the samples hold
    return [harmless(sample.category or usual) for sample in samples]


def write_run(run: Run, folder: Path, pictures: bool = True) -> None:
    """Write scores.csv, figures/ and metrics.json to a folder without results of another run.

    metrics.json comes last and appears at once, because it marks a finished run.
    """
    with (folder / "scores.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(SCORES)
        categories = categories_of(run.samples, run.settings)
        for sample, score, category in zip(run.samples, run.scores, categories, strict=True):
            name, kind = harmless(sample.name), harmless(sample.defect_type)
            writer.writerow([name, sample.label, kind, score, category])
    if pictures:
        _draw(run, folder / "figures")
    partial = folder / "metrics.json.part"
    partial.write_text(json.dumps(run.record(), indent=2) + "\n")
    os.replace(partial, folder / "metrics.json")


def read_results(folder: Path) -> Run:
    """Return the finished run in a folder, of any origin.

    Raises:
        ValueError: metrics.json, scores.csv or config.yaml is not as `patchcore train` writes it,
            or a file was changed after the run had finished.
    """
    record = read_record(folder)
    check_unaltered(folder)
    rows = read_scores(folder)
    scores = torch.tensor([row.score for row in rows], dtype=torch.float64)
    anomalous = torch.tensor([bool(row.label) for row in rows], dtype=torch.bool)
    names = sorted(path.name for path in folder.glob("figures/*.png"))
    found = (own_file(folder, f"figures/{name}") for name in names)
    return Run(
        settings=read_yaml(folder, "config.yaml"),
        metrics=_values({k: v for k, v in record.items() if k not in STRUCTURES}),
        undefined=record.get("undefined", {}),
        seconds=record.get("seconds", {}),
        samples=[Sample(Path(row.path), row.label, row.defect_type) for row in rows],
        scores=[row.score for row in rows],
        curves=curves(sweep(scores[~anomalous], scores[anomalous])),
        ratio_curve=[_values(row) for row in record.get("ratio_curve", [])],
        members=[
            {**member, "metrics": _values(member.get("metrics", {}))}
            for member in record.get("members", [])
        ],
        subsets={key: record[key] for key in SUBSETS if key in record},
        pictures=[path for path in found if path],
    )


def _values(numbers: dict[str, Any]) -> dict[str, float]:
    """Metrics from JSON, NaN for null; entries that are not numbers are skipped."""
    given = {key: math.nan if value is None else value for key, value in numbers.items()}
    return {key: value for key, value in given.items() if is_number(value)}


def _draw(run: Run, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    figures.draw_curves(run, folder / "curves.png")
    figures.draw_histogram(run, folder / "scores.png")
    figures.draw_gallery(run, folder / "gallery.png")
    figures.draw_misclassified(run, folder / "misclassified.png")
    if run.ratio_curve:
        figures.draw_ratio_curve(run, folder / "ratio_curve.png")


def _pixels(image: Tensor, config: ImageConfig) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) of an image (3, H, W), whose normalisation is undone unless it is uint8."""
    if image.dtype == torch.uint8:
        return image.permute(1, 2, 0).numpy()
    mean, std = torch.tensor(config.mean), torch.tensor(config.std)
    pixels = image.permute(1, 2, 0) * std + mean  # (H, W, 3)
    return (pixels * 255).round().clamp(0, 255).byte().numpy()
