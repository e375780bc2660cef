"""Sections that draw metrics: over a factor, the memory's share or two factors, against costs."""

from collections.abc import Callable, Sequence
from itertools import combinations

from patchcore.metrics import METRICS, told
from patchcore.report import charts
from patchcore.report.blocks import (
    Block,
    Cell,
    Figure,
    Figures,
    Fold,
    Grid,
    Head,
    Heading,
    Note,
    row_head,
    short,
    summary_cell,
    text_cell,
    tip,
)
from patchcore.report.charts import STYLES, Mark, Series
from patchcore.report.points import Factor, Point, Summary
from patchcore.report.table import Table
from patchcore.report.words import falls, number, rank, show, title


def curves(table: Table) -> list[Block]:
    """The main metrics over each numeric factor, one line for each setting of the others."""
    blocks: list[Block] = []
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
                        Mark(x, y.mean, tip(point, metric), y.mean - y.half, y.mean + y.half)
                        for x, point, y in sorted(entries, key=lambda entry: entry[0])
                    ],
                )
                for at, entries in lines.items()
            ]
            drawn.append((metric, series, [entries[0][1] for entries in lines.values()]))
        row = _row_of_charts(drawn, others, factor.key, factor.numbers)
        if row:
            blocks += [Heading([factor.key], (factor.key,)), row]
    several = any(point.value(table.metric).count > 1 for point in table.points)
    bars = "; bars are 95 % intervals over seeds" if several else ""
    return blocks and [Note(f"One line for each setting of the other factors{bars}."), *blocks]


def shares(table: Table) -> list[Block]:
    """The metrics of one run at several sizes of its memory."""
    drawn = []
    ticks: set[float] = set()
    for metric in table.main_metrics:
        series, points = [], []
        for point in table.points:
            curve = point.curve(metric)
            if curve:
                ticks |= {share for share, _ in curve}
                texts = [
                    f"{point.label}\nmemory share {show(share)}: {number(metric, value)}"
                    for share, value in curve
                ]
                marks = [Mark(*place, text) for place, text in zip(curve, texts, strict=True)]
                series.append(Series(short(point, table.factors), marks))
                points.append(point)
        drawn.append((metric, series, points))
    row = _row_of_charts(drawn, table.factors, "memory share", sorted(ticks))
    note = "One pass over the test images scores every memory share: the memory of a larger one "
    note += "contains that of a smaller."
    return [Note(note), row] if row else []


def _row_of_charts(
    drawn: Sequence[tuple[str, list[Series], list[Point]]],
    factors: Sequence[Factor],
    x_name: str,
    ticks: Sequence[float],
) -> Figures | None:
    """A chart for each metric with series, and their common legend.

    Args:
        drawn: Metric, its series, and a point of each series.
        factors: Those that tell the series apart.
        x_name: Name of the horizontal axis.
        ticks: Values on it.
    """
    drawn = [entry for entry in drawn if entry[1]]
    if not drawn:
        return None
    named = _styles([point for _, _, points in drawn for point in points], factors)
    figures = []
    for metric, series, points in drawn:
        for one, point in zip(series, points, strict=True):
            one.style = named(point)[0]
        marks = [mark for one in series for mark in one.marks]
        heights = [value for mark in marks for value in (mark.low, mark.y, mark.high)]
        x = charts.axis(x_name, ticks, show, at=ticks)
        y = charts.axis("", heights, logarithmic=False)
        drawing = charts.chart(series, x, y, f"{title(metric)} over {x_name}")
        figures.append(Figure(title(metric), f"over {x_name}", drawing))
    legend = sorted({named(point) for _, _, points in drawn for point in points})
    return Figures(figures, [(style, name) for style, name in legend if name])


def _styles(
    points: Sequence[Point], factors: Sequence[Factor]
) -> Callable[[Point], tuple[int, str]]:
    """The style of a point's series and its name in the legend.

    Each setting of `factors` has its own style while there are enough; then those with the same
    value of one factor share theirs.
    """

    def settings(point: Point) -> list[tuple[int, float, list[tuple[bool, int, str]]]]:
        return [rank(point.settings[factor.key]) for factor in factors]

    names = list(dict.fromkeys(short(p, factors) for p in sorted(points, key=settings)))
    chosen = factors
    if len(names) > STYLES:
        fitting = [factor for factor in factors if len(factor.values) <= STYLES]
        chosen = sorted(fitting, key=lambda factor: -len(factor.values))[:1]
        names = list(dict.fromkeys(short(p, chosen) for p in sorted(points, key=settings)))

    def named(point: Point) -> tuple[int, str]:
        name = short(point, chosen)
        return names.index(name), name

    return named


def heat(table: Table) -> list[Block]:
    """Each pair of factors as a table of colours."""
    pairs = [
        sorted(pair, key=lambda factor: -len(factor.values))
        for pair in combinations(table.factors, 2)
    ]
    shown = [block for pair in pairs[:3] for block in _heat_tables(table, *pair)]
    hidden = [block for pair in pairs[3:] for block in _heat_tables(table, *pair)]
    if hidden:
        shown.append(Fold(f"{len(pairs) - 3} more pairs", hidden))
    note = f"The stronger the colour, the {'more' if falls(table.metric) else 'better'}."
    if len(table.factors) > 2:
        note += " Each cell shows the best point there is over the other factors."
    return shown and [Note(note), *shown]


def _heat_tables(table: Table, down: Factor, across: Factor) -> list[Block]:
    """The main metrics over two factors; empty if they never varied apart."""
    places: dict[tuple[str, str], list[Point]] = {}
    for point in table.points:
        at = (show(point.settings[down.key]), show(point.settings[across.key]))
        places.setdefault(at, []).append(point)
    rows, columns = [list(map(show, factor.values)) for factor in (down, across)]
    if len(places) <= max(len(rows), len(columns)):
        return []
    figures = []
    axes = [factor.key.split(".")[-1] for factor in (down, across)]
    heads = [Head("", corner=(axes[0], axes[1])), *(Head(column) for column in columns)]
    for metric in table.main_metrics:
        best = {at: min(found, key=lambda p: table.cost(p, metric)) for at, found in places.items()}
        means = [p.value(metric).mean for p in best.values() if p.value(metric).defined]
        low, high = min(means, default=0.0), max(means, default=0.0)
        body = []
        for row in rows:
            cells = [row_head(row)]
            for column in columns:
                if (row, column) not in best:
                    cells.append(Cell("·", kind="none", hint="no run"))
                    continue
                point = best[row, column]
                value = point.value(metric)
                share = (value.mean - low) / (high - low) if high > low else 0.5
                text, hint = number(metric, value.mean), tip(point, metric)
                cells.append(
                    Cell(text, hint=hint, share=share)
                    if value.defined
                    else Cell("undefined", kind="undefined", hint=hint)
                )
            body.append(cells)
        name = f"{title(metric)} over {down.key} and {across.key}"
        figures.append(Figure(title(metric), grid=Grid(heads, body, "heat", name)))
    keys = (down.key, across.key)
    return [Heading([down.key, "and", across.key], keys), Figures(figures)]


def fronts(table: Table) -> list[Block]:
    """Accuracy against each cost, and the points that nothing beats in both."""
    ranks = {point: i + 1 for i, point in enumerate(table.points)}
    figures: list[Figure] = []
    lists: list[Block] = []
    for cost in (key for key, measure in METRICS.items() if measure.cost):
        points = [p for p in table.points if p.value(table.metric).defined]
        points = [point for point in points if point.value(cost).defined]
        if cost not in table.metrics or len(points) < 2:
            continue
        scale = told(cost).scale

        def mark(point: Point, cost: str = cost, scale: float = scale) -> Mark:
            text = f"{tip(point, table.metric)}\n{title(cost)}: "
            text += number(cost, point.value(cost).mean)
            return Mark(point.value(cost).mean * scale, point.value(table.metric).mean, text)

        front = table.front(cost)
        marks = [mark(point) for point in front]
        for one, point in zip(marks, front, strict=True):
            one.tag = str(ranks[point])
        beaten = [mark(point) for point in points if point not in front]
        x = charts.axis(title(cost), [one.x for one in marks + beaten])
        y = charts.axis("", [one.y for one in marks + beaten], logarithmic=False)
        series = [Series("beaten", beaten, None, "none"), Series("front", marks, 0, "steps")]
        name = f"{title(table.metric)} against {title(cost)}"
        drawing = charts.chart(series, x, y, f"{name}; the front is in the table below")
        figures.append(Figure(title(table.metric), f"against {title(cost)}", drawing))
        body = [
            [
                row_head(str(ranks[point])),
                text_cell(point.label, "wrap"),
                summary_cell(point.value(table.metric), table.metric),
                summary_cell(point.value(cost), cost),
            ]
            for point in front
        ]
        heads = [Head("#"), Head("point", kind="text"), Head(title(table.metric))]
        heads.append(Head(title(cost)))
        lists += [Heading([name]), Grid(heads, body, "", f"Pareto front, {name}")]
    if not figures:
        return []
    warm = ""
    if any(run.warm for point in table.points for run in point.finished):
        warm = " Points whose seconds come from a cache are left out."
    note = "The Pareto front: no other point is both better and cheaper. Numbers are places in the "
    note += f"leaderboard.{warm}"
    return [Note(note), Figures(figures), Fold("The fronts as tables", lists)]
