"""Distance of the label-free choice from the best of several settings, in finished multiruns.

    python experiments/label_free/choice.py RUNS [RUNS …] [--metric image_auroc]

Each RUNS is a folder of runs on one data set that tell `label_free`. Prints Markdown: for each the
number of settings, the best and the median of the metric, that of the settings with the highest
label-free score, how much the best is above it, and Spearman's rank correlation.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from scipy.stats import spearmanr

from patchcore.report.table import read_runs

SCORE = "label_free"


@dataclass
class Choice:
    """Outcome of a choice by the label-free score.

    Attributes:
        settings: How many there were.
        best: Highest value of the metric.
        middle: Its median.
        chosen: That of the settings with the highest label-free score; of equal ones, their mean.
        label: These settings in words.
        correlation: Spearman's, of score and metric over the settings.
    """

    settings: int
    best: float
    middle: float
    chosen: float
    label: str
    correlation: float

    @property
    def regret(self) -> float:
        """Difference between the best and the one chosen."""
        return self.best - self.chosen


def choice(pairs: list[tuple[float, float, str]]) -> Choice:
    """Return what choosing the highest score comes to, of (score, metric, settings in words)."""
    scores, values, labels = zip(*pairs, strict=True)
    highest = [i for i, score in enumerate(scores) if score == max(scores)]
    return Choice(
        len(pairs),
        max(values),
        median(values),
        sum(values[i] for i in highest) / len(highest),
        labels[highest[0]],
        float(spearmanr(scores, values).statistic),
    )


def read(folder: Path, metric: str) -> list[tuple[float, float, str]]:
    """Return score, metric and settings of every point below a folder; means over its seeds."""
    found = []
    for point in read_runs([folder], metric).points:
        score, value = point.value(SCORE), point.value(metric)
        if score.defined and value.defined:
            found.append((score.mean, value.mean, point.label))
    return found


def main() -> None:
    """Parse, read, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUNS")
    parser.add_argument("--metric", default="image_auroc", metavar="KEY")
    options = parser.parse_args()
    print("| runs | settings | best | median | chosen | below the best | rank correlation |")
    print("| --- " * 7 + "|")
    told = []
    for folder in options.folders:
        found = choice(read(folder, options.metric))
        numbers = [f"{x:.4f}" for x in (found.best, found.middle, found.chosen, found.regret)]
        cells = [folder.name, str(found.settings), *numbers, f"{found.correlation:+.2f}"]
        print("| " + " | ".join(cells) + " |")
        told.append(f"{folder.name}: {found.label}")
    print("\nChosen:\n")
    print("\n".join(f"- {line}" for line in told))


if __name__ == "__main__":
    main()
