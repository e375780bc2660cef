"""Figures of one run, drawn into files without matplotlib's global state."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from patchcore.errors import printable
from patchcore.metrics import told

if TYPE_CHECKING:
    from patchcore.report.run import GalleryItem, Run

NOMINAL, ANOMALOUS, OUTLINE = "#2a6f97", "#d1495b", "#00e5a0"
COLOURS = matplotlib.colormaps["plasma"]
OPACITY = 0.9  # of the highest score in a map; the lowest is clear
TILE = 1.9  # inches, longer side of an image in the gallery
DPI = 120  # of figures with axes
COLUMNS = 8  # images in a row
LETTERS = 20  # characters in a line of a name
LINE = 0.155  # inches, height of a line of text


def thresholds(run: Run) -> list[tuple[str, float, str]]:
    """Return name, value and colour of each threshold of the image scores that the run has."""
    keys = (("image_threshold", "black"), ("decision_threshold", "#7b3fa0"))
    found = [(key, run.metrics.get(key, np.nan), colour) for key, colour in keys]
    return [(told(key).title, value, colour) for key, value, colour in found if np.isfinite(value)]


def draw_curves(run: Run, path: Path) -> None:
    """Draw ROC and precision–recall curve of the image scores, with the thresholds' points."""
    figure = Figure(figsize=(9, 4.7), layout="constrained")
    roc, recall = figure.subplots(1, 2)
    curves = {key: value.numpy() for key, value in run.curves.items()}
    if _titled(roc, run, "image_auroc", "ROC", "image AUROC"):
        roc.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")  # chance level
        roc.plot(curves["fpr"], curves["tpr"], color=ANOMALOUS)
    roc.set(xlabel="false-positive rate", ylabel="true-positive rate")
    if _titled(recall, run, "image_ap", "Precision–recall", "image AP"):
        # Steps, so that the area under the curve is the average precision.
        x, y = (
            np.append(0, curves["recall"]),
            np.append(curves["precision"][0], curves["precision"]),
        )
        recall.step(x, y, where="pre", color=ANOMALOUS)
    scores, labels = np.asarray(run.scores), run.labels
    for name, threshold, colour in thresholds(run):
        alarms = scores >= threshold
        hits, false = int(alarms[labels == 1].sum()), int(alarms[labels == 0].sum())
        style: dict[str, Any] = {"marker": "o", "linestyle": "", "color": colour}
        style["label"] = f"{name} {threshold:.3g}"
        if (labels == 1).any() and (labels == 0).any():
            roc.plot(false / (labels == 0).sum(), hits / (labels == 1).sum(), **style)
        if (labels == 1).any() and hits + false:
            recall.plot(hits / (labels == 1).sum(), hits / (hits + false), **style)
    recall.set(xlabel="recall", ylabel="precision")
    for axes in (roc, recall):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="lower center", fontsize=8)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.grid(alpha=0.3)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    """Save a figure, with one layout pass; `savefig` alone would draw it twice for the layout."""
    engine = figure.get_layout_engine()
    if engine is not None:
        figure.set_dpi(DPI)
        engine.execute(figure)
        figure.set_layout_engine(None)
    figure.savefig(path, dpi=DPI)


def _titled(axes: Axes, run: Run, key: str, title: str, metric: str) -> bool:
    """Write the title with the metric's value; if it is undefined, write the reason instead.

    Returns:
        Whether the metric is defined.
    """
    if not np.isnan(run.metrics[key]):
        axes.set_title(f"{title}, {metric} {run.metrics[key]:.4f}")
        return True
    axes.set_title(f"{title}: undefined")
    axes.text(0.5, 0.5, run.undefined.get(key, ""), ha="center", va="center")
    return False


def draw_histogram(run: Run, path: Path) -> None:
    """Draw histograms of nominal and anomalous image scores, with the run's thresholds."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    scores, labels = np.asarray(run.scores), run.labels
    bins = np.histogram_bin_edges(scores, bins=40).tolist()
    for kind, name, colour in ((0, "nominal", NOMINAL), (1, "anomalous", ANOMALOUS)):
        part = scores[labels == kind]
        if len(part):
            axes.hist(part, bins, color=colour, alpha=0.6, label=f"{name} ({len(part)})")
    for name, threshold, colour in thresholds(run):
        axes.axvline(threshold, color=colour, linestyle="--", label=f"{name} {threshold:.3g}")
    axes.set(xlabel="image anomaly score", ylabel="images")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper center", ncols=2)
    _save(figure, path)


def draw_ratio_curve(run: Run, path: Path) -> None:
    """Draw metrics against the share of the training patches that the memory keeps, in percent."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    percent = [100 * row["ratio"] for row in run.ratio_curve]
    for metric, style in (("image_auroc", "o-"), ("pixel_auroc", "s--"), ("aupro", "^:")):
        values = [row[metric] for row in run.ratio_curve]
        if np.isfinite(values).any():
            axes.plot(percent, values, style, label=metric.replace("_", " "))
    axes.set_xscale("log")
    axes.set_xticks(percent, [f"{p:g}" for p in percent])
    axes.minorticks_off()
    axes.set(xlabel="memory, % of the training patches", ylabel="metric")
    axes.grid(alpha=0.3)
    if axes.lines:
        figure.legend(loc="outside right upper")
    _save(figure, path)


def draw_gallery(run: Run, path: Path) -> None:
    """Draw the gallery: images, below them the same under their maps, with masks outlined on both.

    All maps of the gallery share one colour scale.
    """
    _draw_items(run.gallery, path)


def draw_misclassified(run: Run, path: Path) -> None:
    """Draw the images that the F1-optimal threshold gets wrong, as a gallery; none: no file."""
    path.unlink(missing_ok=True)  # of an earlier run in this folder
    _draw_items(run.misclassified, path)


def _draw_items(items: list[GalleryItem], path: Path) -> None:
    rows: list[tuple[str, list[GalleryItem]]] = []  # title and images
    for item in items:
        if not rows or rows[-1][1][0].group != item.group:
            rows.append((item.group, []))
        elif len(rows[-1][1]) == COLUMNS:
            rows.append(("", []))
        rows[-1][1].append(item)
    if not rows:
        return
    columns = max(len(row) for _, row in rows)
    sizes = np.array([item.image.shape[:2] for item in items])  # (N, 2) height and width
    height, width = TILE * sizes.max(0) / sizes.max()
    across = max(columns * (max(width, 1.5) + 0.15), 4.0)  # room for the titles and the scale
    longest = [max(len(_name(item)) for item in row) for _, row in rows]  # lines
    heights = [
        2 * height + (0.95 if title else 0.65) + LINE * (lines - 1)
        for (title, _), lines in zip(rows, longest, strict=True)
    ]
    total = sum(heights) + 0.8
    figure = Figure(figsize=(across, total))
    # A single Axes in inches, y downwards: one Axes per picture would take ten times as long.
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, across), ylim=(total, 0), autoscale_on=False)
    axes.axis("off")
    top = 0.0
    for (title, row), own in zip(rows, heights, strict=True):
        if title:
            axes.text(0.08, top + 0.25, title, fontweight="bold", fontsize=11)
        for column, item in enumerate(row):
            _draw_item(
                item, axes, (column + 0.5) * across / columns, top + own - 2 * height, height
            )
        top += own
    scale = figure.add_axes((0.2 / across, 0.5 / total, 1 - 0.4 / across, 0.18 / total))
    colours = ScalarMappable(Normalize(*items[0].limits), COLOURS)
    label = "anomaly score of a pixel; green line: marked defect"
    figure.colorbar(colours, cax=scale, orientation="horizontal", label=label)
    with warnings.catch_warnings():  # characters without a font are drawn as boxes
        warnings.filterwarnings("ignore", r"Glyph \d+", UserWarning)
        figure.savefig(path, dpi=100)


def _draw_item(item: GalleryItem, axes: Axes, centre: float, top: float, height: float) -> None:
    """Draw both pictures of an item, below `top` and centred at `centre`, and its text above.

    Lengths are in inches; each picture is at most `height` high.
    """
    colour = ANOMALOUS if item.verdict in ("missed", "false alarm") else "black"
    words = "\n".join([*_name(item), f"{item.score:.3g} {item.verdict}"])
    axes.text(
        *(centre, top - 0.13, words),
        fontsize=8,
        color=colour,
        ha="center",
        va="bottom",
        parse_math=False,  # dollars are part of a name
    )
    rows, columns = item.image.shape[:2]
    high, wide = TILE * rows / max(rows, columns), TILE * columns / max(rows, columns)
    left = centre - wide / 2
    for place, image in enumerate((item.image, heat(item.image, item.map, *item.limits))):
        upper = top - 0.1 + place * (height + 0.05)
        axes.imshow(image, extent=(left, left + wide, upper + high, upper), aspect="auto")
        if item.mask.any() and not item.mask.all():
            x, y = np.linspace(left, left + wide, columns), np.linspace(upper, upper + high, rows)
            axes.contour(x, y, item.mask, [0.5], colors=OUTLINE, linewidths=0.8)


def _name(item: GalleryItem) -> list[str]:
    """Return the type of defect and the name of an image, in lines that fit above it."""
    name = f"{item.sample.defect_type}/{printable(item.sample.path.stem)}"
    return [name[i : i + LETTERS] for i in range(0, len(name), LETTERS)]


def limits(maps: Sequence[NDArray[np.float32]]) -> tuple[float, float]:
    """Return the typical score of maps (median of their medians) and the highest, for `heat`.

    Args:
        maps: Anomaly maps (H, W); NaN where there is none.
    """
    known = [values for each in maps if (values := each[np.isfinite(each)]).size]
    if not known:
        return 0.0, 1.0
    low = float(np.median([np.median(values) for values in known]))
    return low, max(float(values.max()) for values in known)


def heat(
    image: NDArray[np.uint8], scores: NDArray[np.float32], low: float, high: float
) -> NDArray[np.uint8]:
    """Return a grey image (H, W, 3) under its colour map, more opaque where scores are higher.

    Args:
        image: Pixels (H, W, 3).
        scores: Anomaly map (H, W); NaN where there is none, which gets no colour.
        low: Score that is clear.
        high: Score of the last colour.
    """
    share = (np.nan_to_num(scores, nan=low) - low) / max(high - low, 1e-12)  # (H, W)
    share = share.clip(0, 1)
    colours = COLOURS(share)[..., :3] * 255  # (H, W, 3)
    grey = image.mean(2, keepdims=True)  # (H, W, 1)
    opacity = OPACITY * np.sqrt(share)[..., None]  # the root makes slightly raised scores visible
    return (grey * (1 - opacity) + colours * opacity).astype(np.uint8)
