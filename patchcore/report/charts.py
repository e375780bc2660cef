"""Small charts as inline SVG: no script, no font, colours from the page's style sheet."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 360, 236  # of the drawing, in its own units
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 38  # margins
STYLES = 8  # series that differ in colour or shape


@dataclass
class Mark:
    """One value."""

    x: float
    y: float
    text: str  # shown on hovering
    low: float = math.nan  # ends of the interval; NaN for none
    high: float = math.nan
    tag: str = ""  # written beside it


@dataclass
class Series:
    """Marks of one style, joined in order."""

    name: str
    marks: list[Mark]
    style: int | None = 0  # None for marks that stand back
    line: str = "straight"  # or steps, or none


@dataclass
class Axis:
    """A scale with its ticks."""

    name: str
    low: float
    high: float
    logarithmic: bool = False
    ticks: list[float] = field(default_factory=list)
    show: Callable[[float], str] = "{:g}".format

    def share(self, value: float) -> float:
        """Where `value` lies between the ends, 0 to 1."""
        ends = (self.low, self.high, value)
        low, high, at = map(math.log, ends) if self.logarithmic else ends
        return (at - low) / (high - low)


def axis(
    name: str,
    values: Sequence[float],
    show: Callable[[float], str] | None = None,
    at: Sequence[float] | None = None,
    logarithmic: bool | None = None,
) -> Axis:
    """A scale that holds all finite `values`, with a little room.

    Args:
        show: How a tick is written; with as many decimals as the ticks need unless given.
        at: Where the ticks are; at round numbers unless given.
        logarithmic: Unless given, so where the values are positive, span a factor of 8 and are
            the more evenly spread for it.
    """
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite), max(finite)
    if logarithmic is None:
        logarithmic = low > 0 and high >= 8 * low
        logarithmic = logarithmic and _uneven(map(math.log, finite)) < _uneven(finite)
    if logarithmic:
        room = (high / low) ** 0.08 if high > low else 1.5
        found = Axis(name, low / room, high * room, True)
    else:
        room = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
        found = Axis(name, low - room, high + room)
    found.ticks = list(at) if at is not None else _round_numbers(found)
    if show is not None:
        found.show = show
    elif not logarithmic:
        decimals = max(len(f"{tick:.10f}".rstrip("0").split(".")[1]) for tick in found.ticks)
        found.show = f"{{:,.{decimals}f}}".format
    return found


def chart(series: Sequence[Series], x: Axis, y: Axis, label: str) -> str:
    """A chart as an `<svg>`; `label` is read to those who cannot see it."""

    def across(value: float) -> float:
        return LEFT + x.share(value) * (WIDTH - LEFT - RIGHT)

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - y.share(value) * (HEIGHT - TOP - BOTTOM)

    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">'
    ]
    for value in _apart(y.ticks, up, 13):
        at = up(value)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{right}"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{at + 3.5:.1f}" text-anchor="end">{escape(y.show(value))}'
            "</text>"
        )
    widest = max((len(x.show(value)) for value in x.ticks), default=1)
    for value in _apart(x.ticks, across, 10 + 6.2 * widest):
        at = across(value)
        parts.append(f'<path class="tick" d="M{at:.1f} {bottom}v4"/>')
        parts.append(
            f'<text x="{at:.1f}" y="{bottom + 15}" text-anchor="middle">{escape(x.show(value))}'
            "</text>"
        )
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>')
    parts.append(
        f'<text class="name" x="{(LEFT + right) / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{escape(x.name)}</text>"
    )
    for one in series:
        style = "back" if one.style is None else f"s{one.style}"
        parts.append(f'<g class="{style}">')
        places = [(across(mark.x), up(mark.y)) for mark in one.marks]
        if len(places) > 1 and one.line != "none":
            join = "H{0:.1f}V{1:.1f}" if one.line == "steps" else "L{0:.1f} {1:.1f}"
            path = "M{:.1f} {:.1f}".format(*places[0])
            path += "".join(join.format(*place) for place in places[1:])
            parts.append(f'<path class="line" d="{path}"/>')
        for mark, (cx, cy) in zip(one.marks, places, strict=True):
            if math.isfinite(mark.low):
                ends = f"M{cx:.1f} {up(mark.low):.1f}V{up(mark.high):.1f}"
                parts.append(f'<path class="interval" d="{ends}"/>')
            shape = _shape(one.style or 0, cx, cy)
            text = f"<title>{escape(mark.text)}</title>"
            parts.append(f'<path class="mark" d="{shape}">{text}</path>')
            if mark.tag:
                parts.append(
                    f'<text class="tag" x="{cx - 6:.1f}" y="{cy - 6:.1f}" text-anchor="end">'
                    f"{escape(mark.tag)}</text>"
                )
        parts.append("</g>")
    return "".join([*parts, "</svg>"])


def swatch(style: int) -> str:
    """The sign of a series, for a legend."""
    return (
        f'<svg class="swatch" viewBox="0 0 22 12" aria-hidden="true"><g class="s{style}">'
        f'<path class="line" d="M0 6H22"/><path class="mark" d="{_shape(style, 11, 6)}"/></g></svg>'
    )


def _shape(style: int, x: float, y: float) -> str:
    """Circle, square, diamond, triangle: the series differ without colours too."""
    return (
        f"M{x - 4:.1f} {y:.1f}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
        f"M{x - 3.5:.1f} {y - 3.5:.1f}h7v7h-7z",
        f"M{x - 5:.1f} {y:.1f}l5 -5l5 5l-5 5z",
        f"M{x - 4.5:.1f} {y + 3.5:.1f}h9l-4.5 -8z",
    )[style % 4]


def _apart(values: Sequence[float], place: Callable[[float], float], least: float) -> list[float]:
    """Those of rising `values` whose labels do not run into each other."""
    kept: list[float] = []
    for value in values:
        if not kept or abs(place(value) - place(kept[-1])) >= least:
            kept.append(value)
    return kept


def _uneven(values: Iterable[float]) -> float:
    """The widest gap between neighbours over the mean one."""
    ordered = sorted(set(values))
    gaps = [b - a for a, b in pairwise(ordered)]
    return max(gaps) * len(gaps) / (ordered[-1] - ordered[0])


def _round_numbers(scale: Axis) -> list[float]:
    """About five round numbers on a scale."""
    if scale.logarithmic:
        powers = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
        for digits in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
            found = [digit * 10.0**power for power in powers for digit in digits]
            found = [value for value in found if scale.low <= value <= scale.high]
            if len(found) > 2:
                return found
    raw = (scale.high - scale.low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(step for step in (1, 2, 2.5, 5, 10) if step * power >= raw * 0.999) * power
    first = math.ceil(scale.low / step - 1e-9)
    last = math.floor(scale.high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]
