"""Sentences and spreads of a report."""

from patchcore.errors import counted
from patchcore.report.folders import failure
from patchcore.report.points import Summary
from patchcore.report.reading import CATEGORY
from patchcore.report.table import Table
from patchcore.report.unlike import shared_categories
from patchcore.report.words import is_left_out, listing, number, title


def sentence(table: Table) -> str:
    """Return a summary of the sweep in one line.

    It has the counts of points and runs, what varied, and why another metric than the usual ranks.
    """
    finished = len(table.runs) - len(table.unfinished)
    points = sum(len(part.points) for part in table.parts)
    parts = [counted(points, "point"), f"from {counted(finished, 'finished run')}"]
    if others := len(table.unfinished):
        parts.append(f"and {others} that {'is' if others == 1 else 'are'} not counted")
    varied = [factor.key for factor in table.factors]
    if CATEGORY in table.varied:
        varied.append("the category")
    if table.seed_keys:
        varied.append("the seed")
    told = f"; {listing(varied)} varied" if varied else ""
    why = f"; {table.reason}" if table.reason else ""
    unlike = f" {len(table.parts)} sets of data, each ranked alone." if table.parts[1:] else ""
    if shared := shared_categories([part.runs for part in table.parts]):
        unlike += (
            f" Several of them have runs of {shared}: to rank these points together, report on the "
            "folders of these runs alone."
        )
    edited = sum(run.edited and run.finished for run in table.runs)
    marked = ""
    if edited:
        marked = (
            f" config.yaml of {counted(edited, 'run')} was changed or removed after the run had "
            "finished, so the settings shown may not be those of the figures."
        )
    return f"{' '.join(parts)}{told}{why}.{unlike}{marked}"


def data_sets(table: Table) -> list[str]:
    """Return what each set of data is, one line each; empty if there is only one."""
    return [f"data {part.number}: {part.data}" for part in table.parts if part.number]


def best(table: Table, most: int = 5) -> list[str]:
    """Return, for every part of the table, a heading and its best points, one line each.

    A part without any value of the metric has one line, which says why.
    """
    lines = []
    for part in table.parts:
        placed = [point for point in part.points if point.value(part.metric).defined]
        where = f" of data {part.number}" if part.number else ""
        if not placed:
            reasons = dict.fromkeys(point.value(part.metric).reason for point in part.points)
            more = f" (and {counted(len(reasons) - 1, 'other reason')})" if len(reasons) > 1 else ""
            first = next(iter(reasons))
            lines.append(f"no rank by {title(part.metric)}{where}: {first}{more}")
            continue
        repeated = any(point.value(part.metric).count > 1 for point in placed[:most])
        notes = ["±: half of Student's 95 % interval over seeds"] * repeated
        if any(point.value(part.metric).partial for point in placed[:most]):
            notes.append("*: some runs are missing or did not finish")
        told = f" ({'; '.join(notes)})" if notes else ""
        of = f"{len(placed[:most])} of {len(placed)}"
        lines.append(f"best by {title(part.metric)}{where}, {of}{told}:")
        values = []
        for point in placed[:most]:
            value = point.value(part.metric)
            half = f" ± {number(part.metric, value.half)}" if value.count > 1 else ""
            values.append(f"{number(part.metric, value.mean)}{half}{'*' * value.partial}")
        wide = max(map(len, values))
        lines += [
            f"  {i}  {value:{wide}}  {point.label}"
            for i, (value, point) in enumerate(zip(values, placed, strict=False), 1)
        ]
    return lines


def not_counted(table: Table) -> list[str]:
    """Return the runs that are not counted, each with the reason, one line each."""
    return [f"not counted: {table.name(run)}: {table.status(run)}" for run in table.unfinished]


def later_failures(table: Table) -> list[str]:
    """Return the finished runs in whose folders a later start has failed, one line each."""
    return [
        f"counted as before: {table.name(run)}: a later start failed: {why}"
        for run in table.known
        if run.finished and (why := failure(run.folder))
    ]


def undefined_reasons(table: Table) -> list[str]:
    """Return the reasons why values are undefined, one line per reason."""
    lines = []
    runs = len(table.runs) - len(table.unfinished)
    for key, reasons in table.without_column.items():
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
    """Return the counts of images and regions that metrics leave out, one line each."""
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
    """Return mean, standard deviation and 95 % interval as text; – if there is only one repeat."""
    if not value.defined or value.count < 2:
        return number(metric, value.mean), "–", "–"
    ends = [number(metric, end) for end in value.ends(metric)]
    return number(metric, value.mean), number(metric, value.deviation), f"{ends[0]} – {ends[1]}"
