"""Small charts: where their lines, marks and labels stand. The template chart.svg draws them."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
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
        """Return the place of `value` between the ends, 0 to 1."""
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


@dataclass
class Tick:
    """Label on an axis, at a place of the drawing."""

    at: float
    text: str


@dataclass
class Dot:
    """Drawn mark: its outline, its hint, and where a tag stands."""

    shape: str
    text: str
    interval: str
    tag: str
    x: float
    y: float


@dataclass
class Group:
    """Drawn series: the path of its line and its marks."""

    style: int | None
    line: str
    dots: list[Dot]


@dataclass
class Drawing:
    """Chart in the drawing's own units, for the template chart.svg; `label` is read aloud."""

    label: str
    name: str  # of the horizontal axis
    across: list[Tick]
    up: list[Tick]
    groups: list[Group]
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM
    width: float = WIDTH
    height: float = HEIGHT


def chart(series: Sequence[Series], x: Axis, y: Axis, label: str) -> Drawing:
    """Return a chart; `label` is read to those who cannot see it."""

    def across(value: float) -> float:
        return LEFT + x.share(value) * (WIDTH - LEFT - RIGHT)

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - y.share(value) * (HEIGHT - TOP - BOTTOM)

    widest = max((len(x.show(value)) for value in x.ticks), default=1)
    groups = []
    for one in series:
        places = [(across(mark.x), up(mark.y)) for mark in one.marks]
        line = ""
        if len(places) > 1 and one.line != "none":
            join = "H{0:.1f}V{1:.1f}" if one.line == "steps" else "L{0:.1f} {1:.1f}"
            line = "M{:.1f} {:.1f}".format(*places[0])
            line += "".join(join.format(*place) for place in places[1:])
        dots = []
        for mark, (cx, cy) in zip(one.marks, places, strict=True):
            interval = ""
            if math.isfinite(mark.low):
                interval = f"M{cx:.1f} {up(mark.low):.1f}V{up(mark.high):.1f}"
            shape = outline(one.style or 0, cx, cy)
            dots.append(Dot(shape, mark.text, interval, mark.tag, cx - 6, cy - 6))
        groups.append(Group(one.style, line, dots))
    return Drawing(
        label,
        x.name,
        [Tick(across(v), x.show(v)) for v in _apart(x.ticks, across, 10 + 6.2 * widest)],
        [Tick(up(v), y.show(v)) for v in _apart(y.ticks, up, 13)],
        groups,
    )


def outline(style: int, x: float, y: float) -> str:
    """Return the path of a mark: circle, square, diamond, triangle differ without colours too."""
    return (
        f"M{x - 4:.1f} {y:.1f}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
        f"M{x - 3.5:.1f} {y - 3.5:.1f}h7v7h-7z",
        f"M{x - 5:.1f} {y:.1f}l5 -5l5 5l-5 5z",
        f"M{x - 4.5:.1f} {y + 3.5:.1f}h9l-4.5 -8z",
    )[style % 4]


def _apart(values: Sequence[float], place: Callable[[float], float], least: float) -> list[float]:
    """Values, of rising `values`, whose labels do not run into each other."""
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
