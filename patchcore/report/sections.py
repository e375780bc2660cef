"""Sections of a report: a single list, from which page, Markdown and CSV files are written."""

import math
from collections.abc import Sequence
from typing import Any

from patchcore.errors import counted
from patchcore.report.blocks import (
    MARKDOWN,
    PAGE,
    POINTS_CSV,
    RUNS_CSV,
    Block,
    Cell,
    Fold,
    Grid,
    Head,
    Heading,
    Lines,
    Note,
    Panel,
    Section,
    best_first,
    factor_heads,
    key_head,
    metric_head,
    partial_notes,
    row_head,
    setting_cell,
    setting_cells,
    summary_cell,
    text_cell,
    text_head,
    value_cell,
)
from patchcore.report.comparisons import effect_blocks
from patchcore.report.factorial import factorial_blocks
from patchcore.report.galleries import GALLERY_BYTES, anchor, galleries, pictures
from patchcore.report.plots import curves, fronts, heat, parallel, shares
from patchcore.report.points import Summary
from patchcore.report.reading import CATEGORY, RunFolder
from patchcore.report.sentences import left_out, spread, undefined_reasons
from patchcore.report.table import Table
from patchcore.report.unlike import in_one_memory
from patchcore.report.words import falls, listing, number, show, title

TEXT = (PAGE, MARKDOWN)
PAIR = (
    "The two runs, image by image; images on which they disagree come first. Different models "
    "have different score scales, so images are compared by rank: 100 % is the most suspicious "
    "image of the test set."
)
"""Note of the section that compares two runs."""


def sections(
    table: Table, gallery_bytes: int = GALLERY_BYTES, forms: Sequence[str] = (PAGE,)
) -> list[Section]:
    """Return the sections that have content in some of `forms`.

    Args:
        table: Runs.
        gallery_bytes: Size of all galleries together; those of the best points have priority.
        forms: Forms of the report.
    """
    found = [Section("varied", "What varied", _varied(table), TEXT)]
    effects = {parts[0]: _effects(parts, family, table) for parts, family in table.families}
    for part in table.parts:
        room = gallery_bytes // len(table.parts) if PAGE in forms else 0
        board, *others = _of_part(part, room)
        found += [board, *effects.get(part, []), *others]
    scored = sum(run.finished for run in table.runs)
    alone = scored == 1 == len(table.runs)
    found.insert(0, Section("run", "Run", [Panel("run")] if alone else []))
    pair: list[Block] = [Note(PAIR), Panel("pair")] if scored > 1 else []
    found += [
        Section("pair", "Two runs side by side", pair),
        Section("runs", "Runs", _runs(table), TEXT),
        Section("points", "Points", [_points(table)], (POINTS_CSV,)),
        Section("every-run", "Every run", [_every_run(table)], (RUNS_CSV,)),
    ]
    return [section for section in found if any(section.of(form) for form in forms)]


def _of_part(table: Table, gallery_bytes: int) -> list[Section]:
    """Return all sections about one part of the table, which is one data set."""
    shrunk = pictures(table, gallery_bytes)
    found = [
        Section("leaderboard", "Leaderboard", _leaderboard(table, shrunk), TEXT),
        Section("paper", "Beside the paper", _paper(table), TEXT),
        Section("categories", "Categories", _categories(table), TEXT),
        Section("repeats", "Repeats over seeds", _repeats(table), TEXT),
        Section("curves", "Curves", curves(table)),
        Section("parallel", "Parallel coordinates", parallel(table)),
        Section("shares", "Memory share within a run", shares(table)),
        Section("heat", "Two factors", heat(table)),
        Section("pareto", "Accuracy against cost", fronts(table)),
        Section("galleries", "Galleries", galleries(table, shrunk)),
    ]
    return _of_data(found, [table], "Runs on different data are not ranked together.")


def _effects(parts: list[Table], family: Table, table: Table) -> list[Section]:
    """Return the sections about pairs of runs of one family: see `Table.families`."""
    found = [
        Section("effects", "Effects", effect_blocks(family, table.against), TEXT),
        Section("factorial", "Effects and interactions", factorial_blocks(family), TEXT),
    ]
    note = "Only runs of the same category are paired." if parts[1:] else ""
    return _of_data(found, parts, note or "Runs on different data are not paired.")


def _of_data(found: list[Section], parts: list[Table], note: str) -> list[Section]:
    """Name the data of sections, unless there is only one set of data."""
    if parts[0].number:
        told = " ".join(f"Data {part.number}: {part.data}." for part in parts)
        numbers = listing([str(part.number) for part in parts])
        for section in found:
            section.key += f"-{parts[0].number}"
            section.title += f", data {numbers}"
            section.blocks = section.blocks and [Note(f"{told} {note}"), *section.blocks]
    return found


def facts(table: Table) -> list[tuple[str, str, str, str]]:
    """Return the key facts at the top of the page: (name, value, note, CSS class) of each."""
    found = []
    for part in table.parts:
        where = f", data {part.number}" if part.number else ""
        best = part.points[0]
        if not best.value(table.metric).defined:
            continue
        value = number(table.metric, best.value(table.metric).mean)
        found.append((f"best {title(table.metric)}{where}", value, best.label, ""))
        cheap = {"seconds": "fewest seconds", "memory_bytes": "smallest memory, MB"}
        for metric, name in cheap.items():
            cheapest = min(part.points, key=lambda point: part.cost(point, metric))
            cost = cheapest.value(metric)
            if len(part.points) > 1 and cost.defined:
                reached = number(table.metric, cheapest.value(table.metric).mean)
                note = f"{title(table.metric)} {reached}"
                found.append((f"{name}{where}", number(metric, cost.mean), note, ""))
    finished = len(table.runs) - len(table.unfinished)
    spent = math.fsum(run.spent for run in table.runs)
    note = f"took {number('seconds', round(spent))} s, with what caches held" if spent else ""
    found.append(("finished runs", str(finished), note, ""))
    if table.unfinished:
        found.append(("unfinished runs", str(len(table.unfinished)), "see Runs", "warn"))
    return found


def _varied(table: Table) -> list[Block]:
    """Return the settings that varied, with their roles, and the constant ones folded away."""
    rows = []
    for factor in table.factors:
        note = f"with it: {', '.join(factor.follows)}" if factor.follows else ""
        rows.append((factor.key, factor.values, "factor", note))
    if CATEGORY in table.varied:
        several = any(in_one_memory(run) for run in table.known)
        note = "averaged over" + "; a list is one memory, ranked alone" * several
        rows.append((CATEGORY, table.varied[CATEGORY], "category", note))
    for key, others in table.seed_keys.items():
        note = f"repeats; with it: {', '.join(others)}" if others else "repeats"
        rows.append((key, table.varied[key], "seed", note))
    body = [
        [
            row_head(key, "text", "code"),
            text_cell(", ".join(map(show, values)), "wrap"),
            text_cell(kind),
            text_cell(note, "wrap"),
        ]
        for key, values, kind, note in rows
    ]
    heads = [text_head(name) for name in ("setting", "values", "kind", "")]
    varied: Block = Note("Nothing: all runs have the same settings.", plain=True, forms=(PAGE,))
    if rows:
        varied = Grid(heads, body)
    constant = [
        [row_head(key, "text", "code"), text_cell(show(value), "wrap")]
        for key, value in table.constant.items()
    ]
    heads = [text_head(name) for name in ("setting", "value")]
    are = "is" if len(constant) == 1 else "are"
    summary = f"{counted(len(constant), 'setting')} {are} the same in all runs"
    return [varied, Fold(summary, [Grid(heads, constant)], forms=(PAGE,))]


def _leaderboard(table: Table, shrunk: dict[RunFolder, str]) -> list[Block]:
    """Return the table of all points, and the lists of what it leaves out or cannot define."""
    several = any(len(point.runs) > 1 for point in table.points)
    first = [key for key in table.metrics if key == table.metric]
    others = [key for key in table.metrics if key != table.metric]
    heads = [Head("#", "ascending"), *(metric_head(key, True) for key in first)]
    heads += factor_heads(table)
    heads += [Head("runs", "descending", place=None, key="runs")] if several else []
    heads += [Head("gallery", kind="tool", place=None)] if shrunk else []
    heads += [metric_head(key) for key in others]
    costs = {key: [table.cost(point, key) for point in table.points] for key in table.metrics}
    body = []
    for i, point in enumerate(table.points):
        placed = point.value(table.metric).defined
        row = [row_head(str(i + 1) if placed else "–", sort=str(i + 1) if placed else "")]
        cells = {
            key: summary_cell(
                point.value(key),
                key,
                "best" if costs[key][i] == min(costs[key]) < max(costs[key]) else "",
            )
            for key in table.metrics
        }
        row += [cells[key] for key in first]
        row += setting_cells(table, point)
        if several:
            finished = len(point.finished)
            row.append(value_cell(finished, f"{finished} of {len(point.runs)}"))
        if shrunk:
            run = next((run for run in point.runs if run in shrunk), None)
            opens = anchor(table, run) if run else ""
            row.append(Cell(f"gallery of {point.label}" if run else "", "", "tool", gallery=opens))
        row += [cells[key] for key in others]
        body.append(row)
    note = (
        "A click on a column sorts by it; a click on a number opens its runs. The best value of "
        "each column is in colour."
    )
    averages = "Metrics are class averages: means over the categories."
    spreads = (
        "± is half the width of the 95 % interval over seeds (Student's t), before it is cut at "
        "the bounds of the metric, such as 1 for AUROC."
    )
    told = [averages] * bool(table.category_sets) + [spreads] * table.repeated
    blocks: list[Block] = [Note(" ".join([note, *told]), forms=(PAGE,))]
    ids = list(table.ids.values())
    blocks.append(Grid(heads, body, "sortable board", "Leaderboard", of="point", ids=ids))
    blocks += partial_notes(point.value(key) for point in table.points for key in table.metrics)
    for name, lines in (("Left out", left_out(table)), ("Undefined", undefined_reasons(table))):
        blocks += [Lines(name, lines)] if lines else []
    return blocks


def _paper(table: Table) -> list[Block]:
    """Return the table of the runs' values beside the paper's."""
    body = []
    ids = []
    for point in table.points:
        for metric in table.paper_metrics:
            ours, theirs = point.value(metric), point.paper(metric)
            if not math.isnan(theirs):
                difference = value_cell(math.nan, "undefined")
                ids.append(table.ids[point])
                if ours.defined:
                    difference = value_cell(ours.mean - theirs, f"{ours.mean - theirs:+.4f}")
                body.append(
                    [
                        *setting_cells(table, point),
                        text_cell(title(metric)),
                        summary_cell(ours, metric),
                        value_cell(theirs, number(metric, theirs)),
                        difference,
                    ]
                )
    heads = [*factor_heads(table), Head("metric", "ascending", kind="text", place=2)]
    heads += [Head(name, "descending", place=2) for name in ("ours", "paper", "difference")]
    grid = Grid(heads, body, "sortable", "Beside the paper", of="point", ids=ids)
    values = [point.value(key) for point in table.points for key in table.paper_metrics]
    return [grid, *partial_notes(values)] if body else []


def _categories(table: Table) -> list[Block]:
    """Return a table of points × categories for each metric, with the class average."""
    blocks: list[Block] = []
    shown: list[Summary] = []
    for names in table.category_sets:
        points = [point for point in table.points if point.categories == names]
        for metric in table.main_metrics:
            choose = min if falls(metric) else max
            best = {}
            for name in names:
                means = [point.cell(name, metric).mean for point in points]
                known = [mean for mean in means if not math.isnan(mean)]
                best[name] = choose(known, default=math.nan)
            body = []
            for point in points:
                stated = {name: point.paper(metric, name) for name in names}
                given = {value for value in stated.values() if not math.isnan(value)}
                each = len(given) > 1  # else it is the average's
                row = setting_cells(table, point)
                for name in names:
                    cell = point.cell(name, metric)
                    shown.append(cell)
                    beside = each and stated[name] in given
                    note = f"paper {number(metric, stated[name])}" if beside else ""
                    kind = "best" if len(points) > 1 and cell.mean == best[name] else ""
                    row.append(summary_cell(cell, metric, kind, note))
                shown.append(point.value(metric))
                body.append([*row, summary_cell(shown[-1], metric, "mean")])
            heads = [Head(name, best_first(metric), place=2) for name in (*names, "average")]
            heads = [*factor_heads(table), *heads]
            blocks.append(Heading([title(metric)]))
            ids = [table.ids[point] for point in points]
            name = f"{title(metric)} of each category"
            blocks.append(Grid(heads, body, "sortable", name, of="point", ids=ids))
    note = (
        "The average is the mean over the categories, as the papers report it. It is undefined if "
        "a category has no finished run or no value."
    )
    return blocks and [Note(note), *partial_notes(shown), *blocks]


def _repeats(table: Table) -> list[Block]:
    """Return mean, standard deviation and interval of each point with repeats."""
    if not table.repeated:
        return []
    body = []
    shown: list[Summary] = []
    for point in table.points:
        for metric in table.main_metrics:
            value = point.value(metric)
            shown.append(value)
            mark = "*" * (value.partial and value.defined)
            mean, deviation, interval = spread(metric, value)
            low, high = value.ends(metric)
            body.append(
                [
                    *setting_cells(table, point),
                    text_cell(title(metric)),
                    value_cell(value.count or math.nan, str(value.count or "–")),
                    value_cell(value.mean, mean, "", "" if value.defined else "undefined", mark),
                    value_cell(value.deviation, deviation),
                    value_cell(high - low, interval),
                ]
            )
    heads = [*factor_heads(table), Head("metric", "ascending", kind="text", place=2)]
    heads += [Head(name, "descending", place=2) for name in ("seeds", "mean")]
    heads += [Head(name, "ascending", place=2) for name in ("standard deviation", "95 % interval")]
    note = Note(
        "Intervals are Student’s, cut at the bounds of the metric, such as 1 for AUROC; the column "
        "sorts by their width.",
        forms=TEXT,
    )
    ids = [table.ids[point] for point in table.points for _ in table.main_metrics]
    grid = Grid(heads, body, "sortable", "Repeats over seeds", of="point", ids=ids)
    return [note, grid, *partial_notes(shown)]


def _runs(table: Table) -> list[Block]:
    """Return a table of the runs that did not finish, and a folded table of all runs."""
    heads = [Head(name, "ascending", kind="text") for name in ("folder", "status")]
    keys = [factor.key for factor in table.factors]
    keys += [key for key in (CATEGORY, *table.seed_keys) if key in table.varied]
    heads += [*(key_head(key) for key in keys), *(metric_head(key) for key in table.metrics)]

    def rows(runs: Sequence[RunFolder]) -> list[list[Cell]]:
        return [
            [
                row_head(table.name(run), "text", "path", table.name(run)),
                text_cell(table.status(run), "wrap"),
                *(setting_cell(table.setting(run, key)) for key in keys),
                *(
                    value_cell(run.metrics[key], number(key, run.metrics[key]))
                    if key in run.metrics
                    else value_cell(math.nan, "undefined", run.why(key), "undefined")
                    for key in table.metrics
                ),
            ]
            for run in runs
        ]

    places = {run: i for i, run in enumerate(table.runs)}
    blocks: list[Block] = []
    if table.unfinished:
        body = [row[: 2 + len(keys)] for row in rows(table.unfinished)]
        head = heads[: 2 + len(keys)]
        left = [(table.name(run), table.status(run)) for run in table.unfinished]
        blocks = [
            Heading(["Not finished"]),
            Grid(
                head,
                body,
                "sortable",
                "Runs that did not finish",
                of="run",
                ids=[places[run] for run in table.unfinished],
                forms=(PAGE,),
            ),
            Lines("", left, forms=(MARKDOWN,)),
        ]
    ids = list(places.values())
    every = Grid(heads, rows(table.runs), "sortable", "Every run", of="run", ids=ids)
    return [*blocks, Fold(f"All runs, {len(table.runs)}", [every], forms=(PAGE,))]


def _points(table: Table) -> Grid:
    """One row per point: factors, mean of each metric, spread of repeats, the paper's values.

    Each part of the table (each data set) has its own ranks.
    """
    parts = table.parts
    factors = list(dict.fromkeys(factor.key for part in parts for factor in part.shown))
    metrics = [key for key in table.metrics if any(key in part.metrics for part in parts)]
    head = ["data"] if len(parts) > 1 else []
    head += ["rank", *factors, "finished", "unfinished"]
    for key in metrics:
        head += [key, f"{key}_sd", f"{key}_ci95"] if table.repeated else [key]
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
    return _plain(head, rows)


def _every_run(table: Table) -> Grid:
    """One row per run: folder, status, settings that varied, and every metric as it was written."""
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
    return _plain(["folder", "status", *data, *keys, *metrics], rows)


def _plain(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Grid:
    """Table of values in full precision."""
    return Grid([Head(name) for name in head], [[Cell("", value=v) for v in row] for row in rows])
