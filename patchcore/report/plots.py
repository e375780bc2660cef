"""Sections with charts of metrics: over factors, over the memory's share, against costs.

The page's script draws the charts from the page's data (`patchcore.report.pagedata`), so that they
follow the reader's filters. This module decides which charts make sense for a table.
"""

from patchcore.metrics import METRICS
from patchcore.report.blocks import (
    Block,
    Chart,
    Fold,
    Grid,
    Head,
    Heading,
    Note,
    partial_notes,
    row_head,
    summary_cell,
    text_cell,
)
from patchcore.report.points import Point
from patchcore.report.table import Table
from patchcore.report.words import title


def curves(table: Table) -> list[Block]:
    """Return the chart of the metric over a factor, with a line per setting of the others."""
    if not any(point.value(key).defined for point in table.points for key in table.main_metrics):
        return []
    if not table.factors:
        return []
    several = any(point.value(table.metric).count > 1 for point in table.points)
    bars = "; bars are 95 % intervals over seeds, cut at the metric's bounds" if several else ""
    note = f"One line for each setting of the other factors{bars}."
    return [Note(note), Chart("curves", table.place, "Metric over a setting")]


def parallel(table: Table) -> list[Block]:
    """Return parallel coordinates: each point is a line across settings, metric and costs."""
    if len(table.factors) < 2 or not any(p.value(table.metric).defined for p in table.points):
        return []
    note = "Each line is a point. On each axis the lowest value, or the first word, is at the "
    note += "bottom."
    return [Note(note), Chart("parallel", table.place, "Settings, metric and costs of every point")]


def shares(table: Table) -> list[Block]:
    """Return the chart of metrics at several memory sizes within a run."""
    if not any(point.curve(key) for point in table.points for key in table.main_metrics):
        return []
    note = (
        "One pass over the test images gives the metrics of all shares, because the memory bank of "
        "a larger share contains that of a smaller share."
    )
    return [Note(note), Chart("shares", table.place, "Metric over the memory's share")]


def heat(table: Table) -> list[Block]:
    """Return the heat map over two factors; empty if no two factors varied independently."""
    columns = [[str(point.settings[f.key]) for point in table.points] for f in table.factors]
    apart = any(
        len(set(zip(one, other, strict=True))) > max(len(set(one)), len(set(other)))
        for i, one in enumerate(columns)
        for other in columns[:i]
    )
    if not apart:
        return []
    note = "The stronger the colour, the better."
    if len(table.factors) > 2:
        note += " Each cell shows the best point over all values of the other factors."
    return [Note(note), Chart("heat", table.place, "Metric over two settings")]


def fronts(table: Table) -> list[Block]:
    """Return the chart of the metric against costs, and tables of the Pareto fronts."""
    ranks = {point: i + 1 for i, point in enumerate(table.points)}
    lists: list[Block] = []
    for cost in costs(table):
        front = table.front(cost)
        name = f"{title(table.metric)} against {title(cost)}"
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
        ids = [table.ids[point] for point in front]
        grid = Grid(heads, body, "", f"Pareto front, {name}", of="point", ids=ids)
        values = [point.value(key) for point in front for key in (table.metric, cost)]
        lists += [Heading([name]), grid, *partial_notes(values)]
    if not lists:
        return []
    warm = ""
    if any(run.warm for point in table.points for run in point.finished):
        warm = " Points whose times come from a cache are left out."
    note = "The line is the Pareto front: points than which no other is both better and cheaper. "
    note += f"Numbers are ranks in the leaderboard.{warm}"
    chart = Chart("pareto", table.place, "Metric against a cost, with the Pareto front")
    return [Note(note), chart, Fold("The fronts of all points as tables", lists)]


def costs(table: Table) -> list[str]:
    """Return the costs that are known for at least two points."""

    def known(point: Point, cost: str) -> bool:
        return point.value(table.metric).defined and point.value(cost).defined

    found = [key for key, measure in METRICS.items() if measure.cost and key in table.metrics]
    return [key for key in found if sum(known(point, key) for point in table.points) > 1]
