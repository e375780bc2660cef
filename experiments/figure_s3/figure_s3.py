"""The paper's Figure S3: precision–recall and ROC curves of any runs, one panel a method.

Each line is a category. Under each method: the share of images misclassified at the F1-optimal
threshold, and at full recall, over all its runs. Method is what differs between the runs besides
category and seed. Reads scores.csv of finished runs.
"""

import argparse
import csv
from pathlib import Path

import torch
from matplotlib.figure import Figure

from patchcore.metrics import ImageMetrics
from patchcore.report.points import Point
from patchcore.report.reading import RunFolder
from patchcore.report.table import read_runs


def scores_of(run: RunFolder) -> ImageMetrics:
    """The image metrics of a run's scores."""
    with (run.folder / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    metrics = ImageMetrics()
    scores = torch.tensor([float(row["score"]) for row in rows])
    metrics.update(scores, torch.tensor([int(row["label"]) for row in rows]))
    return metrics


def errors(point: Point) -> str:
    """Misclassified images of all the point's runs, at both working points."""
    runs = [run.metrics for run in point.finished]
    images = sum(run["test_images"] for run in runs)
    wrong = sum(run["image_false_positives"] + run["image_false_negatives"] for run in runs)
    at_full_recall = sum(run["errors_at_full_recall"] for run in runs)
    return (
        f"errors: {wrong / images:.1%} at the F1-optimal threshold, "
        f"{at_full_recall / images:.1%} at full recall"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="runs, or folders with runs below")
    parser.add_argument("--out", type=Path, default=Path("figure_s3.png"))
    options = parser.parse_args()
    points = [point for point in read_runs(options.folders, "image_auroc").points if point.finished]
    figure = Figure(figsize=(9, 4.6 * len(points)), layout="constrained")
    parts = figure.subfigures(len(points), 1, squeeze=False)[:, 0]
    for part, point in zip(parts, points, strict=True):
        part.suptitle(f"{point.label}\n{errors(point)}", fontsize=10)
        recall, roc = part.subplots(1, 2)
        for run in point.finished:
            curves = scores_of(run).curves()
            recall.step(curves["recall"], curves["precision"], where="pre", label=run.category)
            roc.plot(curves["fpr"], curves["tpr"], label=run.category)
        recall.set(xlabel="recall", ylabel="precision", title="Precision–recall")
        roc.set(xlabel="false-positive rate", ylabel="true-positive rate", title="ROC")
        for axes in (recall, roc):
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
            axes.grid(alpha=0.3)
        if any(run.category for run in point.finished):
            roc.legend(loc="lower right", fontsize=7)
    figure.savefig(options.out, dpi=120)
    print(f"{len(points)} methods: {options.out}")


if __name__ == "__main__":
    main()
