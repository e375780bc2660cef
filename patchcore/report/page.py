"""A table of runs as one HTML page that needs nothing but itself.

Tables are HTML, charts inline SVG, galleries JPEGs inside the page. The only script sorts tables
and opens galleries (page.js); without it everything but that still shows.
"""

import base64
import io
import math
from collections.abc import Callable, Sequence
from datetime import datetime
from html import escape
from importlib import resources
from itertools import combinations
from pathlib import Path
from string import Template

from PIL import Image
from tqdm import tqdm

from patchcore.errors import printable
from patchcore.metrics import METRICS, told
from patchcore.report import charts
from patchcore.report.charts import STYLES, Mark, Series
from patchcore.report.folders import own_file
from patchcore.report.points import Factor, Point, Summary
from patchcore.report.reading import CATEGORY, RunFolder
from patchcore.report.table import Table
from patchcore.report.text import (
    left_out,
    sentence,
    spread,
    undefined_reasons,
    write_tables,
    write_text,
)
from patchcore.report.words import falls, number, rank, show, title

GALLERY_BYTES = 6_000_000  # of all galleries together, as they stand in the page
SMALLEST_GALLERY = 40_000  # bytes; with less room than that a gallery is left out
MOST_PIXELS = 40_000_000  # of a gallery that is opened at all
LARGEST, SMALLEST = 1260, 320  # width of a gallery in the page, pixels
COSTS = tuple(key for key, measure in METRICS.items() if measure.cost)
"""Metrics that accuracy is weighed against."""


def write_report(table: Table, folder: Path) -> Path:
    """Write report.html, report.md, report.csv and runs.csv; the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tables(table, folder)
    path = folder / "report.html"
    write_text(path, page(table))
    return path


def page(table: Table, gallery_bytes: int = GALLERY_BYTES) -> str:
    """The whole page; its galleries share `gallery_bytes`, the best points' first."""
    sections = [("varied", "What varied", _varied(table))]
    for part in table.parts:
        sections += _sections(part, gallery_bytes // len(table.parts))
    sections.append(("runs", "Runs", _runs(table)))
    sections = [section for section in sections if section[2]]
    links = "".join(f'<li><a href="#{key}">{escape(name)}</a></li>' for key, name, _ in sections)
    bodies = "".join(
        f'<section id="{key}" aria-labelledby="{key}-title">'
        f'<h2 id="{key}-title">{escape(name)}</h2>{body}</section>\n'
        for key, name, body in sections
    )
    root = escape(printable(str(table.root)))
    body = (
        f'<header class="top"><h1>PatchCore report</h1>'
        f'<p class="lead">{escape(sentence(table))}</p>{_facts(table)}</header>\n'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n<main id="main">\n{bodies}</main>\n'
        f'<footer class="foot">Runs below <span class="path">{root}</span>; '
        f"written by <code>patchcore report</code>, {datetime.now():%Y-%m-%d %H:%M}.</footer>"
    )
    return Template(_resource("page.html")).substitute(
        title=escape(f"PatchCore report: {printable(table.root.name)}"),
        style=_resource("page.css"),
        script=_resource("page.js"),
        body=body,
    )


def _sections(table: Table, gallery_bytes: int) -> list[tuple[str, str, str]]:
    """Anchor, title and content of every section on one data set."""
    pictures = _pictures(table, gallery_bytes)
    sections = [
        ("leaderboard", "Leaderboard", _leaderboard(table, pictures)),
        ("paper", "Beside the paper", _paper(table)),
        ("categories", "Categories", _categories(table)),
        ("repeats", "Repeats over seeds", _repeats(table)),
        ("curves", "Curves", _curves(table)),
        ("shares", "Memory share within a run", _shares(table)),
        ("heat", "Two factors", _heat(table)),
        ("pareto", "Accuracy against cost", _fronts(table)),
        ("galleries", "Galleries", _galleries(table, pictures)),
    ]
    if not table.number:
        return sections
    note = f"Data {table.number}: {table.data}. Runs of unlike data are not ranked together."
    return [
        (f"{key}-{table.number}", f"{name}, data {table.number}", body and _note(note) + body)
        for key, name, body in sections
    ]


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _facts(table: Table) -> str:
    """The first things one wants to know, as tiles."""
    facts = []
    for part in table.parts:
        where = f", data {part.number}" if part.number else ""
        best = part.points[0]
        if not best.value(table.metric).defined:
            continue
        value = number(table.metric, best.value(table.metric).mean)
        facts.append((f"best {title(table.metric)}{where}", value, best.label, ""))
        for metric in ("seconds", "memory_bytes"):
            cheapest = min(part.points, key=lambda point: part.cost(point, metric))
            cost = cheapest.value(metric)
            if len(part.points) > 1 and cost.defined:
                name = "fewest seconds" if metric == "seconds" else "smallest memory, MB"
                reached = number(table.metric, cheapest.value(table.metric).mean)
                note = f"{title(table.metric)} {reached}"
                facts.append((f"{name}{where}", number(metric, cost.mean), note, ""))
    finished = len(table.runs) - len(table.unfinished)
    spent = math.fsum(run.spent for run in table.runs)
    note = f"{number('seconds', round(spent))} s together" if spent else ""
    facts.append(("finished runs", str(finished), note, ""))
    if table.unfinished:
        facts.append(("unfinished runs", str(len(table.unfinished)), "see Runs", "warn"))
    tiles = "".join(
        f'<div class="{kind}"><dt>{escape(name)}</dt>'
        f"<dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for name, value, note, kind in facts
    )
    return f'<dl class="facts">{tiles}</dl>'


def _varied(table: Table) -> str:
    """The varied settings, what they stand for, and the constant ones folded away."""
    rows = []
    for factor in table.factors:
        note = f"with it: {', '.join(factor.follows)}" if factor.follows else ""
        rows.append((factor.key, factor.values, "factor", note))
    if CATEGORY in table.varied:
        rows.append((CATEGORY, table.varied[CATEGORY], "category", "averaged over"))
    for key, others in table.seed_keys.items():
        note = f"repeats; with it: {', '.join(others)}" if others else "repeats"
        rows.append((key, table.varied[key], "seed", note))
    body = [
        [
            _head(f"<code>{escape(key)}</code>", "row", "text"),
            _text(", ".join(map(show, values)), "wrap"),
            _text(kind),
            _text(note, "wrap"),
        ]
        for key, values, kind, note in rows
    ]
    heads = [_head(name, "col", "text") for name in ("setting", "values", "kind", "")]
    varied = _table(heads, body) if rows else "<p>Nothing: all runs have the same settings.</p>"
    constant = [
        [_head(f"<code>{escape(key)}</code>", "row", "text"), _text(show(value), "wrap")]
        for key, value in table.constant.items()
    ]
    heads = [_head(name, "col", "text") for name in ("setting", "value")]
    return (
        f"{varied}<details><summary>{len(constant)} settings are the same in all runs</summary>"
        f"{_table(heads, constant)}</details>"
    )


def _leaderboard(table: Table, pictures: dict[RunFolder, str]) -> str:
    """Every point; a click on a column sorts."""
    several = any(len(point.runs) > 1 for point in table.points)
    first = [key for key in table.metrics if key == table.metric]
    others = [key for key in table.metrics if key != table.metric]
    heads = [_sorter("#", "ascending")]
    heads += [_sorter(escape(title(key)), _first(key), True) for key in first]
    heads += [_sorter(_breaking(f.key), "ascending", kind=_side(f)) for f in table.factors]
    heads += [_sorter("runs", "descending")] if several else []
    heads += ['<th scope="col" class="tool">gallery</th>'] if pictures else []
    heads += [_sorter(escape(title(key)), _first(key)) for key in others]
    costs = {key: [table.cost(point, key) for point in table.points] for key in table.metrics}
    body = []
    for i, point in enumerate(table.points):
        placed = point.value(table.metric).defined
        row = [_head(str(i + 1) if placed else "–", "row", value=str(i + 1) if placed else "")]
        cells = {
            key: _summary(
                point.value(key),
                key,
                "best" if costs[key][i] == min(costs[key]) < max(costs[key]) else "",
            )
            for key in table.metrics
        }
        row += [cells[key] for key in first]
        row += [_setting(point.settings[f.key], _side(f)) for f in table.factors]
        if several:
            row.append(_value(len(point.finished), f"{len(point.finished)} of {len(point.runs)}"))
        if pictures:
            run = next((run for run in point.runs if run in pictures), None)
            name = escape(f"gallery of {point.label}")
            row.append(
                f'<td class="tool" data-v=""><button type="button" aria-label="{name}" '
                f'data-gallery="{_anchor(table, run)}">view</button></td>'
                if run
                else '<td class="tool" data-v=""></td>'
            )
        row += [cells[key] for key in others]
        body.append(row)
    note = "A click on a column sorts by it. Best of each column in colour."
    if table.category_sets:
        note += " Metrics are class averages: the mean over the categories."
    if table.repeated:
        note += " ± is half the 95 % interval over seeds (Student's t)."
    listed = ""
    for name, lines in (("Left out", left_out(table)), ("Undefined", undefined_reasons(table))):
        items = "".join(f"<li>{escape(line)}</li>" for line in lines)
        if items:
            listed += f'<p class="note reasons-of">{name}:</p><ul class="reasons">{items}</ul>'
    return f'<p class="note">{note}</p>{_table(heads, body, "sortable", "Leaderboard")}{listed}'


def _paper(table: Table) -> str:
    """Ours beside what the paper states."""
    body = []
    for point in table.points:
        for metric in table.paper_metrics:
            ours, theirs = point.value(metric), point.paper(metric)
            if not math.isnan(theirs):
                body.append(
                    [
                        *_settings(table, point),
                        _text(title(metric)),
                        _summary(ours, metric),
                        _value(theirs, number(metric, theirs)),
                        _value(ours.mean - theirs, f"{ours.mean - theirs:+.4f}")
                        if ours.defined
                        else _value(math.nan, "undefined"),
                    ]
                )
    heads = [*_factor_heads(table), _sorter("metric", "ascending", kind="text")]
    heads += [_sorter(name, "descending") for name in ("ours", "paper", "difference")]
    return _table(heads, body, "sortable", "Beside the paper") if body else ""


def _categories(table: Table) -> str:
    """For each metric: points × categories, and the class average."""
    parts = []
    for names in table.category_sets:
        points = [point for point in table.points if point.categories == names]
        for metric in table.main_metrics:
            best = {
                name: max(
                    (point.cell(name, metric).mean for point in points),
                    key=lambda mean: -math.inf if math.isnan(mean) else mean,
                )
                for name in names
            }
            body = []
            for point in points:
                stated = {name: point.paper(metric, name) for name in names}
                known = {value for value in stated.values() if not math.isnan(value)}
                each = len(known) > 1  # else it is the average's
                row = _settings(table, point)
                for name in names:
                    cell = point.cell(name, metric)
                    note = (
                        f"paper {number(metric, stated[name])}"
                        if each and stated[name] in known
                        else ""
                    )
                    kind = "best" if len(points) > 1 and cell.mean == best[name] else ""
                    row.append(_summary(cell, metric, kind, note))
                body.append([*row, _summary(point.value(metric), metric, "mean")])
            heads = [_sorter(escape(name), _first(metric)) for name in names]
            heads = [*_factor_heads(table), *heads, _sorter("average", _first(metric))]
            parts.append(f"<h3>{escape(title(metric))}</h3>")
            parts.append(_table(heads, body, "sortable", f"{title(metric)} of each category"))
    note = (
        '<p class="note">The average is the mean over the categories, as the papers report it; '
        "undefined where a category has no finished run or no value.</p>"
    )
    return note + "".join(parts) if parts else ""


def _repeats(table: Table) -> str:
    """Mean, standard deviation and interval of each point."""
    if not table.repeated:
        return ""
    body = []
    for point in table.points:
        for metric in table.main_metrics:
            value = point.value(metric)
            mean, deviation, interval = spread(metric, value)
            body.append(
                [
                    *_settings(table, point),
                    _text(title(metric)),
                    _value(value.count or math.nan, str(value.count or "–")),
                    _value(value.mean, mean, kind="" if value.defined else "undefined"),
                    _value(value.deviation, deviation),
                    _value(2 * value.half, interval),
                ]
            )
    heads = [*_factor_heads(table), _sorter("metric", "ascending", kind="text")]
    heads += [_sorter("seeds", "descending"), _sorter("mean", "descending")]
    heads += [_sorter(name, "ascending") for name in ("standard deviation", "95 % interval")]
    note = '<p class="note">Intervals are Student’s; they sort by width.</p>'
    return note + _table(heads, body, "sortable", "Repeats over seeds")


def _curves(table: Table) -> str:
    """The main metrics over each numeric factor, one line for each setting of the others."""
    parts = []
    for factor in table.factors:
        if not factor.numbers:
            continue
        others = [other for other in table.factors if other is not factor]
        points = [point for point in table.points if point.settings[factor.key] is not None]
        drawn = []
        for metric in table.main_metrics:
            lines: dict[tuple[str, ...], list[tuple[float, Point, Summary]]] = {}
            for point in points:
                if point.value(metric).defined:
                    entry = (point.settings[factor.key], point, point.value(metric))
                    at = tuple(show(point.settings[other.key]) for other in others)
                    lines.setdefault(at, []).append(entry)
            series = [
                Series(
                    ", ".join(at),
                    [
                        Mark(x, y.mean, _tip(point, metric), y.mean - y.half, y.mean + y.half)
                        for x, point, y in sorted(entries, key=lambda entry: entry[0])
                    ],
                )
                for at, entries in lines.items()
            ]
            drawn.append((metric, series, [entries[0][1] for entries in lines.values()]))
        row = _row_of_charts(drawn, others, factor.key, factor.numbers)
        parts.append(f"<h3><code>{escape(factor.key)}</code></h3>{row}" if row else "")
    note = '<p class="note">One line for each setting of the other factors.</p>'
    several = any(point.value(table.metric).count > 1 for point in table.points)
    if several:
        note = note.replace(".</p>", "; bars are 95 % intervals over seeds.</p>")
    return note + "".join(parts) if any(parts) else ""


def _shares(table: Table) -> str:
    """The metrics of one run at several sizes of its memory."""
    drawn = []
    shares: set[float] = set()
    for metric in table.main_metrics:
        series, points = [], []
        for point in table.points:
            curve = point.curve(metric)
            if curve:
                shares |= {share for share, _ in curve}
                texts = [
                    f"{point.label}\nmemory share {show(share)}: {number(metric, value)}"
                    for share, value in curve
                ]
                marks = [Mark(*place, text) for place, text in zip(curve, texts, strict=True)]
                series.append(Series(_short(point, table.factors), marks))
                points.append(point)
        drawn.append((metric, series, points))
    charts = _row_of_charts(drawn, table.factors, "memory share", sorted(shares))
    note = "One pass over the test images scores every memory share: the memory of a larger one "
    note += "contains that of a smaller."
    return f'<p class="note">{note}</p>{charts}' if charts else ""


def _row_of_charts(
    drawn: Sequence[tuple[str, list[Series], list[Point]]],
    factors: Sequence[Factor],
    x_name: str,
    ticks: Sequence[float],
) -> str:
    """A chart for each metric with series, and their common legend.

    Args:
        drawn: Metric, its series, and a point of each series.
        factors: What tells the series apart.
    """
    drawn = [entry for entry in drawn if entry[1]]
    if not drawn:
        return ""
    named = _styles([point for _, _, points in drawn for point in points], factors)
    parts = []
    for metric, series, points in drawn:
        for one, point in zip(series, points, strict=True):
            one.style = named(point)[0]
        marks = [mark for one in series for mark in one.marks]
        heights = [value for mark in marks for value in (mark.low, mark.y, mark.high)]
        x = charts.axis(x_name, ticks, show, at=ticks)
        caption = f"{escape(title(metric))} <small>over {escape(x_name)}</small>"
        picture = charts.chart(
            series, x, charts.axis("", heights, logarithmic=False), f"{title(metric)} over {x_name}"
        )
        parts.append(f"<figure><figcaption>{caption}</figcaption>{picture}</figure>")
    legend = dict(sorted({named(point) for _, _, points in drawn for point in points}))
    items = "".join(
        f"<li>{charts.swatch(style)}{escape(name)}</li>" for style, name in legend.items() if name
    )
    listed = f'<ul class="legend" aria-label="Legend">{items}</ul>' if items else ""
    return f'<div class="figures">{"".join(parts)}</div>{listed}'


def _styles(
    points: Sequence[Point], factors: Sequence[Factor]
) -> Callable[[Point], tuple[int, str]]:
    """The style of a point's series and its name in the legend.

    Each setting of `factors` has its own style while there are enough; then those with the same
    value of one factor share theirs.
    """

    def settings(point: Point) -> list[tuple[int, float, list[tuple[bool, int, str]]]]:
        return [rank(point.settings[factor.key]) for factor in factors]

    names = list(dict.fromkeys(_short(p, factors) for p in sorted(points, key=settings)))
    chosen = factors
    if len(names) > STYLES:
        fitting = [factor for factor in factors if len(factor.values) <= STYLES]
        chosen = sorted(fitting, key=lambda factor: -len(factor.values))[:1]
        names = list(dict.fromkeys(_short(p, chosen) for p in sorted(points, key=settings)))

    def named(point: Point) -> tuple[int, str]:
        name = _short(point, chosen)
        return names.index(name), name

    return named


def _heat(table: Table) -> str:
    """Each pair of factors as a table of colours."""
    pairs = [
        sorted(pair, key=lambda factor: -len(factor.values))
        for pair in combinations(table.factors, 2)
    ]
    shown = "".join(_heat_tables(table, *pair) for pair in pairs[:3])
    hidden = "".join(_heat_tables(table, *pair) for pair in pairs[3:])
    if hidden:
        shown += f"<details><summary>{len(pairs) - 3} more pairs</summary>{hidden}</details>"
    note = f"The stronger the colour, the {'more' if falls(table.metric) else 'better'}."
    if len(table.factors) > 2:
        note += " Each cell shows the best point there is over the other factors."
    return f'<p class="note">{note}</p>{shown}' if shown else ""


def _heat_tables(table: Table, down: Factor, across: Factor) -> str:
    """The main metrics over two factors; empty if they never varied apart."""
    places: dict[tuple[str, str], list[Point]] = {}
    for point in table.points:
        at = (show(point.settings[down.key]), show(point.settings[across.key]))
        places.setdefault(at, []).append(point)
    rows, columns = [list(map(show, factor.values)) for factor in (down, across)]
    if len(places) <= max(len(rows), len(columns)):
        return ""
    parts = []
    for metric in table.main_metrics:
        best = {at: min(found, key=lambda p: table.cost(p, metric)) for at, found in places.items()}
        means = [p.value(metric).mean for p in best.values() if p.value(metric).defined]
        low, high = min(means, default=0.0), max(means, default=0.0)
        body = []
        for row in rows:
            cells = [_head(escape(row), "row")]
            for column in columns:
                if (row, column) not in best:
                    cells.append('<td class="none" title="no run">·</td>')
                    continue
                point = best[row, column]
                value = point.value(metric)
                tip = escape(_tip(point, metric))
                share = (value.mean - low) / (high - low) if high > low else 0.5
                cells.append(
                    f'<td title="{tip}" style="--t:{share:.3f}">{number(metric, value.mean)}</td>'
                    if value.defined
                    else f'<td class="undefined" title="{tip}">undefined</td>'
                )
            body.append(cells)
        axes = [factor.key.split(".")[-1] for factor in (down, across)]
        corner = f"<small>{escape(axes[0])} ↓<br>{escape(axes[1])} →</small>"
        heads = [f'<td class="none">{corner}</td>']
        heads += [_head(escape(column), "col") for column in columns]
        parts.append(
            f"<figure><figcaption>{escape(title(metric))}</figcaption>"
            f"{_table(heads, body, 'heat', f'{title(metric)} over {down.key} and {across.key}')}"
            "</figure>"
        )
    name = f"<code>{escape(down.key)}</code> and <code>{escape(across.key)}</code>"
    return f'<h3>{name}</h3><div class="figures">{"".join(parts)}</div>'


def _fronts(table: Table) -> str:
    """Accuracy against each cost, and the points that nothing beats in both."""
    ranks = {point: i + 1 for i, point in enumerate(table.points)}
    parts, lists = [], []
    for cost in COSTS:
        points = [p for p in table.points if p.value(table.metric).defined]
        points = [point for point in points if point.value(cost).defined]
        if cost not in table.metrics or len(points) < 2:
            continue
        scale = told(cost).scale

        def mark(point: Point, cost: str = cost, scale: float = scale) -> Mark:
            tip = f"{_tip(point, table.metric)}\n{title(cost)}: "
            tip += number(cost, point.value(cost).mean)
            return Mark(point.value(cost).mean * scale, point.value(table.metric).mean, tip)

        front = table.front(cost)
        marks = [mark(point) for point in front]
        for one, point in zip(marks, front, strict=True):
            one.tag = str(ranks[point])
        beaten = [mark(point) for point in points if point not in front]
        x = charts.axis(title(cost), [one.x for one in marks + beaten])
        y = charts.axis("", [one.y for one in marks + beaten], logarithmic=False)
        series = [Series("beaten", beaten, None, "none"), Series("front", marks, 0, "steps")]
        name = f"{title(table.metric)} against {title(cost)}"
        caption = f"{escape(title(table.metric))} <small>against {escape(title(cost))}</small>"
        picture = charts.chart(series, x, y, f"{name}; the front is in the table below")
        parts.append(f"<figure><figcaption>{caption}</figcaption>{picture}</figure>")
        body = [
            [
                _head(str(ranks[point]), "row"),
                _text(point.label, "wrap"),
                _summary(point.value(table.metric), table.metric),
                _summary(point.value(cost), cost),
            ]
            for point in front
        ]
        heads = [_head("#", "col"), _head("point", "col", "text")]
        heads += [_head(escape(title(key)), "col") for key in (table.metric, cost)]
        lists.append(f"<h3>{escape(name)}</h3>{_table(heads, body, '', f'Pareto front, {name}')}")
    if not parts:
        return ""
    warm = ""
    if any(run.warm for point in table.points for run in point.finished):
        warm = " Points whose seconds come from a cache are left out."
    return (
        '<p class="note">The Pareto front: no other point is both better and cheaper. Numbers are '
        f'places in the leaderboard.{warm}</p><div class="figures">{"".join(parts)}</div>'
        f"<details><summary>The fronts as tables</summary>{''.join(lists)}</details>"
    )


def _galleries(table: Table, pictures: dict[RunFolder, str]) -> str:
    """Thumbnails; a click shows one large."""
    items = []
    for i, point in enumerate(table.points):
        for run in point.runs:
            if run not in pictures:
                continue
            category = run.category if len(point.categories) > 1 else ""
            place = ", ".join(filter(None, [category, table.seed(run)]))
            name = f"#{i + 1} {_short(point, table.factors)}" + (f" · {place}" if place else "")
            values = [f"{title(k)} {number(k, run.metrics[k])}" for k in table.main_metrics[:2]
                      if k in run.metrics]  # fmt: skip
            note = " · ".join([*values, table.name(run)])
            anchor = _anchor(table, run)
            items.append(
                f'<button type="button" class="thumb" id="{anchor}" data-gallery="{anchor}">'
                f'<img src="{pictures[run]}" alt="{escape(f"gallery of {name}")}">'
                f"<strong>{escape(name)}</strong><span>{escape(note)}</span></button>"
            )
    if not items:
        return ""
    drawn = sum(_gallery(run) is not None for point in table.points for run in point.finished)
    note = "The most suspicious nominal, and the least and most suspicious anomalous images, with "
    note += "their maps. A click shows one large; ← and → go to the next."
    if drawn > len(items):
        note += f" {drawn - len(items)} more would make the page too large; each lies in its run’s "
        note += "folder as figures/gallery.png."
    return f'<p class="note">{note}</p><div class="galleries">{"".join(items)}</div>'


def _runs(table: Table) -> str:
    """Every run's folder and what became of it; those that did not finish in the open."""
    heads = [
        _sorter("folder", "ascending", kind="text"),
        _sorter("status", "ascending", kind="text"),
    ]
    keys = [factor.key for factor in table.factors]
    keys += [key for key in (CATEGORY, *table.seed_keys) if key in table.varied]
    heads += [_sorter(_breaking(key), "ascending") for key in keys]
    heads += [_sorter(escape(title(key)), _first(key)) for key in table.metrics]

    def rows(runs: Sequence[RunFolder]) -> list[list[str]]:
        return [
            [
                _head(f'<span class="path">{escape(name)}</span>', "row", "text", name),
                _text(table.status(run), "wrap"),
                *(_setting(table.setting(run, key)) for key in keys),
                *(
                    _value(run.metrics[key], number(key, run.metrics[key]))
                    if key in run.metrics
                    else _value(math.nan, "undefined", run.why(key), "undefined")
                    for key in table.metrics
                ),
            ]
            for run in runs
            for name in [table.name(run)]
        ]

    out = ""
    if table.unfinished:
        body = [row[: 2 + len(keys)] for row in rows(table.unfinished)]
        head = heads[: 2 + len(keys)]
        out = f"<h3>Not finished</h3>{_table(head, body, 'sortable', 'Runs that did not finish')}"
    every = _table(heads, rows(table.runs), "sortable", "Every run")
    return f"{out}<details><summary>All {len(table.runs)} runs</summary>{every}</details>"


def _pictures(table: Table, budget: int) -> dict[RunFolder, str]:
    """{run: its gallery as a data URI}, the best points' first, within `budget` bytes."""
    drawn = [(run, path) for point in table.points for run in point.finished
             if (path := _gallery(run))][: budget // SMALLEST_GALLERY]  # fmt: skip
    found = {}
    for i, (run, path) in enumerate(tqdm(drawn, "Shrinking galleries", disable=None)):
        uri = _shrunk(path, budget // (len(drawn) - i))
        if uri:
            found[run] = uri
            budget -= len(uri)
    return found


def _shrunk(path: Path, most: int) -> str:
    """A picture as a JPEG data URI of at most `most` characters; empty if it cannot be."""
    try:
        with Image.open(path, formats=["PNG"]) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                return ""
            original = Image.new("RGB", opened.size, "white")
            layer = opened.convert("RGBA")
            original.paste(layer, mask=layer)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return ""
    width = min(LARGEST, original.width)
    while width >= min(SMALLEST, original.width):
        height = max(1, round(original.height * width / original.width))
        file = io.BytesIO()
        image = original.resize((width, height), Image.Resampling.BICUBIC)
        image.save(file, "JPEG", quality=76, progressive=True)
        uri = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
        if len(uri) <= most:
            return uri
        width = int(width * min(0.9, 0.97 * math.sqrt(most / len(uri))))
    return ""


def _gallery(run: RunFolder) -> Path | None:
    return own_file(run.folder, "figures/gallery.png")


def _anchor(table: Table, run: RunFolder) -> str:
    return f"gallery-{table.number}-{table.runs.index(run)}"


def _short(point: Point, factors: Sequence[Factor]) -> str:
    """A point in few words: words stand for themselves, numbers have the end of their key."""
    keys = [factor.key for factor in factors]
    ends = [key.split(".")[-1] for key in keys]
    names = [end if ends.count(end) == 1 else key for end, key in zip(ends, keys, strict=True)]
    return ", ".join(
        value if isinstance(value := point.settings[key], str) else f"{name}={show(value)}"
        for name, key in zip(names, keys, strict=True)
    )


def _tip(point: Point, metric: str) -> str:
    """What hovering over a value tells."""
    value = point.value(metric)
    text = f"{point.label}\n{title(metric)} {number(metric, value.mean)}"
    if not math.isnan(value.half):
        text += f" ± {number(metric, value.half)} ({value.count} seeds)"
    return f"{text}: {value.reason}" if value.reason else text


def _table(
    heads: Sequence[str], body: Sequence[Sequence[str]], kind: str = "", name: str = ""
) -> str:
    """A table that scrolls sideways on its own."""
    rows = "\n".join(f"<tr>{''.join(row)}</tr>" for row in body)
    label = f' aria-label="{escape(name)}"' if name else ""
    region = f' role="region"{label}' if name else ""
    return (
        f'<div class="scroll" tabindex="0"{region}><table class="{kind}"{label}>'
        f"<thead><tr>{''.join(heads)}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
    )


def _head(inner: str, scope: str, kind: str = "", value: str | None = None) -> str:
    """A header cell around HTML; `value` is sorted by."""
    sorted_by = "" if value is None else f' data-v="{escape(value)}"'
    return f'<th scope="{scope}" class="{kind}"{sorted_by}>{inner}</th>'


def _sorter(inner: str, first: str, now: bool = False, kind: str = "") -> str:
    """A column's header that sorts: at first `first`, then the other way."""
    state = f' aria-sort="{first}"' if now else ""
    return (
        f'<th scope="col" class="{kind}" data-first="{first}"{state}>'
        f'<button type="button">{inner}</button></th>'
    )


def _breaking(key: str) -> str:
    """A dotted key that a narrow column may break after its dots."""
    return escape(key).replace(".", ".<wbr>").replace("_", "_<wbr>")


def _first(metric: str) -> str:
    """The order that puts the best on top."""
    return "ascending" if falls(metric) else "descending"


def _factor_heads(table: Table) -> list[str]:
    return [_sorter(_breaking(f.key), "ascending", kind=_side(f)) for f in table.factors]


def _settings(table: Table, point: Point) -> list[str]:
    return [_setting(point.settings[f.key], _side(f)) for f in table.factors]


def _side(factor: Factor) -> str:
    """Numbers stand right, words left."""
    return "" if factor.numbers else "text"


def _setting(value: object, kind: str = "") -> str:
    sorted_by = "" if value is None else show(value)
    return f'<td class="{kind}" data-v="{escape(sorted_by)}">{escape(show(value))}</td>'


def _text(text: str, kind: str = "") -> str:
    return f'<td class="text {kind}" data-v="{escape(text)}">{escape(text)}</td>'


def _value(value: float, text: str, hint: str = "", kind: str = "", note: str = "") -> str:
    """A number; NaN sorts last."""
    sorted_by = "" if math.isnan(value) else repr(value)
    about = f' title="{escape(hint)}"' if hint else ""
    small = f" <small>{escape(note)}</small>" if note else ""
    return f'<td class="{kind}" data-v="{sorted_by}"{about}>{escape(text)}{small}</td>'


def _summary(value: Summary, metric: str, kind: str = "", note: str = "") -> str:
    """A mean with half its interval."""
    if not value.defined:
        return _value(math.nan, "undefined", value.reason, f"undefined {kind}", note)
    half = "" if math.isnan(value.half) else f"± {number(metric, value.half)}"
    return _value(
        value.mean, number(metric, value.mean), "", kind, " ".join(filter(None, [half, note]))
    )


def _resource(name: str) -> str:
    return resources.files("patchcore.report").joinpath(name).read_text(encoding="utf-8")
