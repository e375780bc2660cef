"""The runs of `run.sh` as Markdown tables, means ± half the 95 % interval over seeds.

    python experiments/mtd_ablations/tables.py OUT

Each row is set beside its table's reference row: Δ is the mean difference in image AUROC of the
same seeds, hence of the same divisions and shots, in points (0.01), with its interval.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from patchcore.report.folders import find_runs
from patchcore.report.points import Summary, student
from patchcore.report.reading import RunFolder, read_run
from patchcore.report.words import number, rank, show, title

Row = tuple[str, ...]
"""Values of a table's keys, as shown."""


@dataclass(frozen=True)
class Study:
    """One table: which runs it shows, what tells rows apart, and what they are compared with."""

    name: str
    studies: tuple[str, ...]  # files of conf/experiment/mtd
    keys: tuple[str, ...]  # settings, groups of which a file was chosen, or network
    reference: Row
    more: tuple[str, ...] = ()  # metrics besides the usual ones


MAIN = ("image_auroc", "pixel_auroc", "aupro")
STUDIES = (
    Study(
        "Memory",
        ("memory", "learned", "method"),
        ("coreset", "coreset.ratio"),
        ("greedy", "0.25"),
        ("memory_used",),
    ),
    Study(
        "Methods",
        ("method", "repeats"),
        ("preset",),
        ("patchcore_1",),
        ("milliseconds_per_image",),
    ),
    Study("Ensemble", ("repeats",), ("network",), ("densenet201",)),
    Study("Neighbourhood", ("size",), ("patch.size",), ("3",)),
    Study("Layers", ("layers",), ("layers.names",), ("[2,3]",)),
    Study("Stride", ("stride",), ("patch.stride",), ("1",)),
    Study("Shots", ("shots",), ("data.shots",), ("50",)),
)


def with_curve(run: RunFolder) -> Iterator[RunFolder]:
    """The run, and one more for each smaller ratio that it tested too."""
    yield run
    for entry in run.ratio_curve:
        if entry["ratio"] != run.settings["coreset.ratio"]:
            settings = {**run.settings, "coreset.ratio": entry["ratio"]}
            yield replace(run, settings=settings, metrics=entry, ratio_curve=[])


def network(run: RunFolder) -> str:
    """The backbone, or that there are several."""
    members = run.settings.get("ensemble.members") or []
    return " + ".join(member["backbone"]["name"] for member in members) or str(
        run.settings["backbone.name"]
    )


def row_of(run: RunFolder, keys: tuple[str, ...]) -> Row:
    """Values of `keys` in a run, which tell its row from others."""
    values = {**run.settings, **run.choices, "network": network(run)}
    return tuple(show(values.get(key)) for key in keys)


def belongs(run: RunFolder, study: Study) -> bool:
    """Whether the table shows this run: SPADE, PaDiM and approximate search among methods alone."""
    if str(run.choices.get("experiment")).removeprefix("mtd/") not in study.studies:
        return False
    exact = (
        run.choices.get("method", "patchcore") == "patchcore" and run.choices["index"] == "torch"
    )
    if "preset" in study.keys:
        return not run.settings.get("ensemble.members")
    return exact


def table(study: Study, runs: list[RunFolder]) -> str:
    """One study in Markdown: a row for every setting and network."""
    rows: dict[Row, dict[int, RunFolder]] = defaultdict(dict)  # {row: {seed: run}}
    keys = study.keys if "network" in study.keys else ("network", *study.keys)
    for run in runs:
        if belongs(run, study):
            rows[row_of(run, keys)][run.settings["seed"]] = run
    metrics = [
        metric
        for metric in (*MAIN, *study.more)
        if any(metric in run.metrics for row in rows.values() for run in row.values())
    ]
    head = [*keys, "seeds", *map(title, metrics), "Δ image AUROC"]
    lines = [head, ["---"] * len(head)]
    for row, by_seed in sorted(rows.items(), key=lambda item: _order(item[0])):
        reference = (*row[: len(keys) - len(study.keys)], *study.reference)
        others = {} if row == reference else rows.get(reference, {})
        cells = [
            _cell(metric, [run.metrics.get(metric) for run in by_seed.values()])
            for metric in metrics
        ]
        lines.append([*row, str(len(by_seed)), *cells, _difference(by_seed, others)])
    return f"### {study.name}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _order(row: Row) -> list[object]:
    """Settings by number where they are numbers."""
    return [rank(float(text) if text.replace(".", "", 1).isdigit() else text) for text in row]


def _cell(metric: str, values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return _text(metric, student(known)) if len(known) == len(values) else "–"


def _text(metric: str, value: Summary) -> str:
    half = f" ± {number(metric, value.half)}" if value.count > 1 else ""
    return number(metric, value.mean) + half


def _difference(these: dict[int, RunFolder], those: dict[int, RunFolder]) -> str:
    """Mean difference over the seeds that both have, in points."""
    both = sorted(these.keys() & those.keys())
    if not both:
        return ""
    key = "image_auroc"
    value = student([100 * (these[s].metrics[key] - those[s].metrics[key]) for s in both])
    return f"{value.mean:+.2f}" + (f" ± {value.half:.2f}" if value.count > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the folder that run.sh wrote")
    options = parser.parse_args()
    found = [read_run(folder) for folder in find_runs(options.out)]
    finished = sorted((run for run in found if run.finished), key=lambda run: str(run.folder))
    runs = [each for run in finished for each in with_curve(run)]
    tables = [table(study, runs) for study in STUDIES]
    print("\n\n".join(text for text in tables if text.count("\n") > 3))
    for run in found:
        if not run.finished:
            print(f"\nnot counted: {run.folder}: {run.problem}")


if __name__ == "__main__":
    main()
