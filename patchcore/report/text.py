"""The table of a sweep as Markdown and CSV."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from patchcore.report.table import CATEGORY, Summary, Table, number, show, title


def markdown(table: Table) -> str:
    """What varied, the leaderboard, categories, the paper's values, repeats, unfinished runs."""
    parts = ["# PatchCore report", sentence(table)]
    if table.varied:
        rows = [[f"`{key}`", ", ".join(map(show, found))] for key, found in table.varied.items()]
        parts += ["## What varied", _table(["setting", "values"], rows)]
    keys = [factor.key for factor in table.factors]
    lead = [[show(point.settings[key]) for key in keys] for point in table.points]
    rows = [
        [str(i + 1), *lead[i], *(_mean(point.value(key), key) for key in table.metrics)]
        for i, point in enumerate(table.points)
    ]
    parts += ["## Leaderboard", _table(["#", *keys, *map(title, table.metrics)], rows)]
    for names in table.category_sets:
        for metric in table.main_metrics:
            rows = [
                [
                    *lead[i],
                    *(_mean(point.cell(name, metric), metric) for name in names),
                    _mean(point.value(metric), metric),
                ]
                for i, point in enumerate(table.points)
                if point.categories == names
            ]
            parts += [f"## Categories: {title(metric)}", _table([*keys, *names, "average"], rows)]
    rows = [
        [*lead[i], title(metric), *(number(metric, value) for value in (ours, paper, ours - paper))]
        for i, point in enumerate(table.points)
        for metric in table.paper_metrics
        for ours, paper in [(point.value(metric).mean, point.paper(metric))]
        if not math.isnan(paper)
    ]
    if rows:
        head = [*keys, "metric", "ours", "paper", "difference"]
        parts += ["## Beside the paper", _table(head, rows)]
    if table.repeated:
        rows = [
            [*lead[i], title(metric), str(value.count), *spread(metric, value)]
            for i, point in enumerate(table.points)
            for metric in table.main_metrics
            for value in [point.value(metric)]
        ]
        head = [*keys, "metric", "seeds", "mean", "standard deviation", "95 % interval"]
        parts += ["## Repeats over seeds", _table(head, rows)]
    reasons = undefined_reasons(table)
    if reasons:
        parts += ["## Undefined", "\n".join(f"- {_plain(line)}" for line in reasons)]
    if table.unfinished:
        lines = [f"- `{table.name(run)}`: {_plain(table.status(run))}" for run in table.unfinished]
        parts += ["## Not finished", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def points_csv(table: Table) -> str:
    """One row a point: factors, mean of each metric, spread of repeats, the paper's values.

    Numbers in full precision; what is undefined is empty.
    """
    head = ["rank", *(factor.key for factor in table.factors), "finished", "unfinished"]
    head += [
        name
        for key in table.metrics
        for name in ([key, f"{key}_sd", f"{key}_ci95"] if table.repeated else [key])
    ]
    head += [f"paper_{key}" for key in table.paper_metrics]
    rows = []
    for i, point in enumerate(table.points):
        finished = len(point.finished)
        row = [i + 1, *point.settings.values(), finished, len(point.runs) - finished]
        for key in table.metrics:
            value = point.value(key)
            row += [value.mean, value.deviation, value.half] if table.repeated else [value.mean]
        rows.append(row + [point.paper(key) for key in table.paper_metrics])
    return _csv(head, rows)


def runs_csv(table: Table) -> str:
    """One row a run: folder, status, what varied, and every metric as it was written."""
    metrics = list(dict.fromkeys(key for run in table.runs for key in run.metrics))
    keys = list(dict.fromkeys([*table.choices, *table.varied]))
    rows = [
        [
            table.name(run),
            table.status(run),
            *(table.setting(run, key) for key in keys),
            *(run.metrics.get(key) for key in metrics),
        ]
        for run in table.runs
    ]
    return _csv(["folder", "status", *keys, *metrics], rows)


def write_tables(table: Table, folder: Path) -> None:
    """report.md, report.csv (points) and runs.csv."""
    (folder / "report.md").write_text(markdown(table), encoding="utf-8")
    (folder / "report.csv").write_text(points_csv(table), encoding="utf-8")
    (folder / "runs.csv").write_text(runs_csv(table), encoding="utf-8")


def sentence(table: Table) -> str:
    """The sweep in a line."""
    finished = len(table.runs) - len(table.unfinished)
    parts = [_count(len(table.points), "point"), f"from {_count(finished, 'finished run')}"]
    if table.unfinished:
        parts.append(f"and {_count(len(table.unfinished), 'unfinished one')}")
    varied = [factor.key for factor in table.factors]
    if CATEGORY in table.varied:
        varied.append("the category")
    if table.seed_keys:
        varied.append("the seed")
    told = f"; {_listing(varied)} varied" if varied else ""
    return " ".join(parts) + told + "."


def undefined_reasons(table: Table) -> list[str]:
    """Why cells are undefined, each reason once."""
    lines = [f"{title(key)} in every run: {why}" for key, why in table.never_defined.items()]
    for point in table.points:
        reasons: dict[str, list[str]] = {}
        for metric in table.metrics:
            value = point.value(metric)
            if not value.defined:
                reasons.setdefault(value.reason, []).append(title(metric))
        for reason, names in reasons.items():
            what = "every metric" if len(names) == len(table.metrics) else ", ".join(names)
            lines.append(f"{what} of {point.label}: {reason}")
    return lines


def spread(metric: str, value: Summary) -> tuple[str, str, str]:
    """Mean, standard deviation and 95 % interval; – where one repeat gives none."""
    if not value.defined or value.count < 2:
        return number(metric, value.mean), "–", "–"
    ends = [number(metric, value.mean + sign * value.half) for sign in (-1, 1)]
    return number(metric, value.mean), number(metric, value.deviation), f"{ends[0]} – {ends[1]}"


def _mean(value: Summary, metric: str) -> str:
    text = number(metric, value.mean)
    return text if math.isnan(value.half) else f"{text} ± {number(metric, value.half)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)


def _plain(text: str) -> str:
    """Text that ends neither a cell nor a row of Markdown."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def _csv(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        writer.writerow([_field(value) for value in row])
    return file.getvalue()


def _field(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return show(value) if isinstance(value, list | dict | bool) else value


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _listing(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
