"""The table of a sweep as Markdown and CSV."""

import csv
import io
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from patchcore.report.cells import harmless, markdown_code, markdown_text
from patchcore.report.points import Summary
from patchcore.report.reading import CATEGORY
from patchcore.report.table import Table
from patchcore.report.words import is_left_out, number, show, title


def markdown(table: Table) -> str:
    """What varied, the leaderboard, categories, the paper's values, repeats, unfinished runs."""
    parts = ["# PatchCore report", sentence(table)]
    if table.varied:
        rows = [
            [markdown_code(key), markdown_text(", ".join(map(show, found)))]
            for key, found in table.varied.items()
        ]
        parts += ["## What varied", _table(["setting", "values"], rows)]
    for part in table.parts:
        if part.number:
            parts.append(f"# Data {part.number}: {markdown_text(part.data)}")
        parts += _part(part)
    if table.unfinished:
        lines = [
            f"- {markdown_code(table.name(run))}: {markdown_text(table.status(run))}"
            for run in table.unfinished
        ]
        parts += ["## Not finished", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _part(table: Table) -> list[str]:
    """The sections of Markdown on one data set."""
    keys = [markdown_text(factor.key) for factor in table.factors]
    names = {key: markdown_text(title(key)) for key in [*table.metrics, *table.paper_metrics]}
    lead = [
        [markdown_text(show(point.settings[factor.key])) for factor in table.factors]
        for point in table.points
    ]
    rows = [
        [_place(table, i), *lead[i], *(_mean(point.value(key), key) for key in table.metrics)]
        for i, point in enumerate(table.points)
    ]
    head = ["#", *keys, *(names[key] for key in table.metrics)]
    parts = ["## Leaderboard", _table(head, rows)]
    for categories in table.category_sets:
        for metric in table.main_metrics:
            rows = [
                [
                    *lead[i],
                    *(_mean(point.cell(name, metric), metric) for name in categories),
                    _mean(point.value(metric), metric),
                ]
                for i, point in enumerate(table.points)
                if point.categories == categories
            ]
            head = [*keys, *map(markdown_text, categories), "average"]
            parts += [f"## Categories: {names[metric]}", _table(head, rows)]
    rows = [
        [*lead[i], names[metric], *(number(metric, value) for value in (ours, paper, ours - paper))]
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
            [*lead[i], names[metric], str(value.count), *spread(metric, value)]
            for i, point in enumerate(table.points)
            for metric in table.main_metrics
            for value in [point.value(metric)]
        ]
        head = [*keys, "metric", "seeds", "mean", "standard deviation", "95 % interval"]
        parts += ["## Repeats over seeds", _table(head, rows)]
    for name, lines in (("Left out", left_out(table)), ("Undefined", undefined_reasons(table))):
        if lines:
            parts += [f"## {name}", "\n".join(f"- {markdown_text(line)}" for line in lines)]
    return parts


def points_csv(table: Table) -> str:
    """One row a point: factors, mean of each metric, spread of repeats, the paper's values.

    Numbers in full precision; what is undefined is empty. Points of unlike data have a rank of
    their own each.
    """
    parts = table.parts
    factors = list(dict.fromkeys(factor.key for part in parts for factor in part.factors))
    metrics = [key for key in table.metrics if any(key in part.metrics for part in parts)]
    head = ["data"] if len(parts) > 1 else []
    head += ["rank", *factors, "finished", "unfinished"]
    head += [
        name
        for key in metrics
        for name in ([key, f"{key}_sd", f"{key}_ci95"] if table.repeated else [key])
    ]
    head += [f"paper_{key}" for key in table.paper_metrics]
    rows = []
    for part in parts:
        for i, point in enumerate(part.points):
            finished = len(point.finished)
            row: list[Any] = [part.data] if len(parts) > 1 else []
            row.append(i + 1 if point.value(table.metric).defined else None)
            row += [point.settings.get(key, table.setting(point.runs[0], key)) for key in factors]
            row += [finished, len(point.runs) - finished]
            for key in metrics:
                value = point.value(key)
                row.append(value.mean)
                row += [value.deviation, value.half] if table.repeated else []
            rows.append(row + [point.paper(key) for key in table.paper_metrics])
    return _csv(head, rows)


def runs_csv(table: Table) -> str:
    """One row a run: folder, status, what varied, and every metric as it was written."""
    metrics = list(dict.fromkeys(key for run in table.runs for key in run.metrics))
    keys = list(dict.fromkeys([*table.choices, *table.varied]))
    part_of = {run.folder: part.data for part in table.parts for run in part.runs}
    rows = [
        [
            table.name(run),
            table.status(run),
            *([part_of.get(run.folder)] if len(table.parts) > 1 else []),
            *(table.setting(run, key) for key in keys),
            *(run.metrics.get(key) for key in metrics),
        ]
        for run in table.runs
    ]
    data = ["data"] if len(table.parts) > 1 else []
    return _csv(["folder", "status", *data, *keys, *metrics], rows)


def write_tables(table: Table, folder: Path) -> None:
    """Write report.md, report.csv (points) and runs.csv."""
    write_text(folder / "report.md", markdown(table))
    write_text(folder / "report.csv", points_csv(table))
    write_text(folder / "runs.csv", runs_csv(table))


def write_text(path: Path, text: str) -> None:
    """Write a file at once: no cut-off one remains, and no link leads to another."""
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".part", dir=path.parent)
    try:
        with open(handle, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.write(text)
        Path(name).chmod(0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sentence(table: Table) -> str:
    """The sweep in a line."""
    finished = len(table.runs) - len(table.unfinished)
    points = sum(len(part.points) for part in table.parts)
    parts = [_count(points, "point"), f"from {_count(finished, 'finished run')}"]
    if table.unfinished:
        parts.append(f"and {_count(len(table.unfinished), 'unfinished one')}")
    varied = [factor.key for factor in table.factors]
    if CATEGORY in table.varied:
        varied.append("the category")
    if table.seed_keys:
        varied.append("the seed")
    told = f"; {_listing(varied)} varied" if varied else ""
    unlike = f" {len(table.parts)} sets of data, each ranked alone." if table.parts[1:] else ""
    return f"{' '.join(parts)}{told}.{unlike}"


def undefined_reasons(table: Table) -> list[str]:
    """Why cells are undefined, each reason once."""
    lines = []
    for key, reasons in table.never_defined.items():
        runs = reasons.total()
        every = "every finished run" if table.unfinished else "every run"
        for why, count in reasons.items():
            where = every if count == runs else f"{count} of {runs} finished runs"
            lines.append(f"{title(key)} in {where}: {why}")
    alike: dict[tuple[str, str], list[str]] = {}
    for point in table.points:
        reasons_of: dict[str, list[str]] = {}
        for metric in table.metrics:
            value = point.value(metric)
            if not value.defined:
                reasons_of.setdefault(value.reason, []).append(title(metric))
        for reason, names in reasons_of.items():
            what = "every metric" if len(names) == len(table.metrics) else ", ".join(names)
            alike.setdefault((what, reason), []).append(point.label)
    for (what, reason), labels in alike.items():
        some = "; ".join(labels[:3]) + (f" and {len(labels) - 3} more" if labels[3:] else "")
        lines.append(f"{what} of {some}: {reason}")
    return lines


def left_out(table: Table) -> list[str]:
    """What metrics do not cover: counts of images and regions that were left out of them."""
    lines = []
    for key in table.metrics:
        if not is_left_out(key):
            continue
        told = {
            point.label: value.mean
            for point in table.points
            if (value := point.value(key)).defined and value.mean > 0
        }
        if told and len(set(told.values())) == 1 and len(told) == len(table.points):
            lines.append(f"{title(key)} in every point: {number(key, next(iter(told.values())))}")
        else:
            lines += [f"{title(key)} of {name}: {number(key, n)}" for name, n in told.items()]
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


def _place(table: Table, index: int) -> str:
    return str(index + 1) if table.points[index].value(table.metric).defined else "–"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown from cells that are Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _csv(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([_field(name) for name in head])
    for row in rows:
        writer.writerow([_field(value) for value in row])
    return file.getvalue()


def _field(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str | list | dict | bool):
        return harmless(value if isinstance(value, str) else show(value))
    return value


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _listing(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
