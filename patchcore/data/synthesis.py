"""Drawing of images: a woven fabric and a turned steel wheel, with and without defects.

The unit of lengths is 1/256 of the side, so that pictures of any size look alike. Pictures vary as
photographs do: in light, colour balance, position, rotation, material and sensor noise.
"""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from math import cos, pi, radians, sin

import numpy as np
import scipy
from numpy.typing import NDArray

Array = NDArray[np.floating]  # single precision throughout
Picture = tuple[NDArray[np.uint8], NDArray[np.bool_]]
Draw = Callable[[np.random.Generator, int, str | None, float], Picture]

UNITS = 256.0  # of length, per side
TEXTURE_DEFECTS = ("blot", "hole", "scratch", "thread", "weave")
OBJECT_DEFECTS = ("blot", "broken_tooth", "colour", "misplaced", "missing_part", "scratch")


def draw_texture(
    rng: np.random.Generator, size: int, defect: str | None = None, strength: float = 1.0
) -> Picture:
    """Draw a woven fabric: a 2/2 twill of blue warp and pale weft.

    Args:
        rng: Source of all random numbers.
        size: Side of the picture, px.
        defect: One of TEXTURE_DEFECTS, or None for a nominal picture.
        strength: From 0, hard to see, to 1, obvious.

    Returns:
        Image (size, size, 3) uint8 and mask (size, size) bool of the defect.
    """
    flaw = rng.spawn(1)[0]  # its own generator: a defect changes nothing in the rest of the picture
    x, y = _grid(size)
    mask = np.zeros((size, size), dtype=bool)
    turn = radians(rng.uniform(-2.5, 2.5))
    u = cos(turn) * x + sin(turn) * y + 1.2 * smooth(rng, size, 4) + rng.uniform(256, 512)
    v = cos(turn) * y - sin(turn) * x + 1.2 * smooth(rng, size, 4) + rng.uniform(256, 512)
    if defect == "weave":
        distance = blob(flaw, x, y, 15 + 12 * strength)
        push = (4.5 + 4.0 * strength) * rise(-distance / 13)
        direction = flaw.uniform(0, 2 * pi)
        u = u + cos(direction) * push
        v = v + sin(direction) * push
        mask = distance < -2

    u, v = u / rng.uniform(8.6, 9.0), v / rng.uniform(8.6, 9.0)  # in threads
    warp, weft = np.floor(u), np.floor(v)  # numbers of the warp and weft threads at each pixel
    warp_up = (warp + weft) % 4 < 2
    across = np.where(warp_up, u - warp, v - weft) * 2 - 1  # −1 to 1 over a thread
    along = np.where(warp_up, (warp + v) % 4, (weft + u) % 4 - 2) / 2  # 0 to 1 over a float
    height = np.sqrt(1 - 0.9 * across**2) * (0.72 + 0.28 * np.sin(pi * np.clip(along, 0, 1)))
    azimuth = radians(rng.uniform(200, 250))
    slope = np.where(warp_up, cos(azimuth) * across, sin(azimuth) * across)
    fibre = rng.standard_normal((2, size, size), dtype=np.float32)
    fuzz = np.where(
        warp_up,
        scipy.ndimage.uniform_filter1d(fibre[0], 7, 0),
        scipy.ndimage.uniform_filter1d(fibre[1], 7, 1),
    )
    dye = rng.normal(1, 0.03, (2, 128)).astype(np.float32)
    shade = (0.32 + 0.68 * height + 0.16 * slope) * (1 + 0.16 * fuzz)
    shade = shade * np.where(warp_up, dye[0][warp.astype(int)], dye[1][weft.astype(int)])
    colour = np.where(warp_up[..., None], _rgb(74, 101, 138), _rgb(200, 191, 172))
    picture = colour * shade[..., None]

    if defect == "blot":
        distance = blob(flaw, x, y, 11 + 12 * strength)
        stain = rise(-distance / 4 + 0.3) * (0.5 + 0.40 * strength)
        picture = mix(picture, picture * _rgb(150, 118, 84) / 200, stain)
        mask = distance < 0
    elif defect == "hole":
        distance = blob(flaw, x, y, 3.5 + 7 * strength) + 0.8 * fuzz
        picture = mix(picture, _rgb(34, 32, 36) * (1 + 0.2 * fuzz[..., None]), cover(distance, 2))
        rim = np.exp(-((distance / 1.6) ** 2)) * (0.2 + 0.3 * strength)
        picture = mix(picture, _rgb(214, 208, 194), rim)
        mask = distance < 1
    elif defect == "scratch":
        distance = stroke(flaw, x, y, 50 + 70 * strength, bend=0.15) - (1.3 + 1.0 * strength)
        worn = cover(distance, 2) * (0.6 + 0.40 * strength) * (1 + 0.3 * fuzz)
        picture = mix(picture, 0.35 * picture + 0.75 * _rgb(196, 198, 200), worn)
        mask = distance < 1
    elif defect == "thread":
        distance = stroke(flaw, x, y, 45 + 60 * strength, bend=1.2) - (1.0 + 0.6 * strength)
        shadow = _moved(cover(distance - 1, 3), 2.0) * 0.4
        picture = mix(picture, 0.25 * picture, shadow)
        shade = (0.75 - 0.22 * distance + 0.1 * fuzz)[..., None]
        tint = _rgb(*((176, 58, 52), (220, 214, 196), (60, 62, 74))[flaw.integers(3)])
        picture = mix(picture, tint * shade, cover(distance, 1.5))
        mask = distance < 0.5
    return _expose(rng, picture, light=0.07), mask


def draw_object(
    rng: np.random.Generator, size: int, defect: str | None = None, strength: float = 1.0
) -> Picture:
    """Draw a steel wheel with sixteen teeth and six brass screws, on a dark mat.

    Args:
        rng: Source of all random numbers.
        size: Side of the picture, px.
        defect: One of OBJECT_DEFECTS, or None for a nominal picture.
        strength: From 0, hard to see, to 1, obvious.

    Returns:
        Image (size, size, 3) uint8 and mask (size, size) bool of the defect.
    """
    flaw = rng.spawn(1)[0]  # its own generator: a defect changes nothing in the rest of the picture
    x, y = _grid(size)
    mask = np.zeros((size, size), dtype=bool)
    grain = rng.standard_normal((size, size), dtype=np.float32)
    centre = _point(128 + rng.uniform(-4, 4), 128 + rng.uniform(-4, 4))
    zoom, turn = rng.uniform(0.985, 1.015), radians(rng.uniform(-8, 8))
    dx, dy = (x - centre[0]) / zoom, (y - centre[1]) / zoom
    radius, angle = np.hypot(dx, dy), np.arctan2(dy, dx) - turn
    azimuth = radians(rng.uniform(210, 240))
    light = _towards(azimuth)

    # Signed distances, negative inside.
    rim = radius - (100 + 6 * np.tanh(2.5 * np.cos(16 * angle)))
    if defect == "broken_tooth":
        tooth = turn + 2 * pi * int(flaw.integers(16)) / 16
        place = centre + zoom * (108 - 4 * strength) * _towards(tooth)
        bite = blob(flaw, x, y, 6 + 7 * strength, place)
        mask = (bite < 2) & (rim < 0)  # with its bevel
        rim = np.maximum(rim, -bite)
    bore = radius - 24
    body = np.maximum(rim, -bore)

    # The mat, with the shadow of the wheel.
    mat = _rgb(52, 57, 64) * (1 + 0.09 * scipy.ndimage.uniform_filter1d(grain, 3, 1))[..., None]
    far = np.hypot(dx + 5 * light[0], dy + 5 * light[1])
    mat = mat * (0.35 + 0.65 * rise(np.where(far < 60, 24 - far, far - 100) / 14))[..., None]

    # Turned steel: grooves around the axis, and the two bright sectors that they reflect.
    turned = rng.standard_normal(512, dtype=np.float32)
    groove = np.interp(radius * 2.5, np.arange(512), turned).astype(np.float32)
    fan = np.cos(2 * (angle + turn - azimuth)) + 0.5 * np.cos(4 * (angle + turn - azimuth))
    steel = 0.66 + 0.10 * fan + 0.035 * groove + 0.02 * grain
    facing = (dx * light[0] + dy * light[1]) / np.maximum(radius, 1)  # of outward slopes
    for edge, sign in ((rim, 1), (-(radius - 24), -1), (np.abs(radius - 44) - 3, 0)):
        bevel = np.exp(-((edge + 2) ** 2) / 4)
        steel = steel + 0.26 * bevel * (sign * facing if sign else facing * np.sign(44 - radius))
    steel = steel - 0.10 * cover(np.abs(radius - 44) - 2.5, 2)
    metal = _rgb(196, 200, 206) * steel[..., None]

    chosen = flaw.integers(6)
    for k in range(6):
        seat = centre + zoom * 71 * _towards(turn + 2 * pi * (k + 0.5) / 6)
        head: Array | None = seat
        tint = _rgb(206, 168, 92)
        slot = rng.uniform(0, pi)
        if k == chosen and defect == "missing_part":
            head = None
            mask = np.hypot(x - seat[0], y - seat[1]) < 11
        elif k == chosen and defect == "misplaced":
            head = seat + (2.5 + 6 * strength) * _towards(flaw.uniform(0, 2 * pi))
            for spot in (seat, head):
                mask = mask | (np.hypot(x - spot[0], y - spot[1]) < 11)
        elif k == chosen and defect == "colour":
            other = _rgb(*((186, 112, 84), (176, 180, 184), (112, 104, 96))[flaw.integers(3)])
            tint = tint + (0.5 + 0.5 * strength) * (other - tint)
            mask = np.hypot(x - seat[0], y - seat[1]) < 11
        _put_screw(metal, seat, head, tint, slot, light)

    if defect == "scratch":
        distance = stroke(
            flaw, x, y, 28 + 50 * strength, bend=0.1, middle=_on_ring(flaw, centre, 50, 90)
        )
        groove = cover(distance - 0.4 - 0.6 * strength, 1.6) * (0.35 + 0.55 * strength)
        metal = mix(metal, _rgb(242, 244, 246), groove)
        metal = mix(metal, 0.3 * metal, _moved(groove, 1.0) * 0.6)
        mask = (distance < 1.8) & (body < 0)
    elif defect == "blot":
        distance = blob(flaw, x, y, 6 + 9 * strength, _on_ring(flaw, centre, 36, 92))
        speckle = smooth(flaw, size, 40)
        rust = rise(-distance / 5 + 0.3) * (0.35 + 0.45 * strength) * (1 + 0.25 * speckle)
        metal = mix(metal, metal * _rgb(158, 104, 66) / 190, np.clip(rust, 0, 1))
        mask = (distance < 0) & (body < 0)
    picture = mix(mat, metal, cover(body, 1.5))
    return _expose(rng, picture, light=0.07), mask


def _put_screw(
    metal: Array, seat: Array, head: Array | None, tint: Array, slot: float, light: Array
) -> None:
    """Draw the countersunk seat of a screw and its slotted head, unless `head` is None."""
    x, y = _grid(len(metal))
    per_unit = len(metal) / UNITS
    low, high = ((seat - 24) * per_unit).astype(int), ((seat + 24) * per_unit).astype(int)
    window = np.s_[max(low[1], 0) : high[1], max(low[0], 0) : high[0]]
    x, y, under = x[window], y[window], metal[window]
    hole = np.hypot(x - seat[0], y - seat[1])
    under = mix(under, 0.35 * under, cover(hole - 12.5, 2))
    under = mix(under, _rgb(30, 31, 34), cover(hole - 8, 2))
    if head is not None:
        dx, dy = x - head[0], y - head[1]
        distance = np.hypot(dx, dy)
        facing = (dx * light[0] + dy * light[1]) / 11
        shade = 0.85 + 0.30 * facing * np.minimum(distance / 7, 1)
        shade += 0.25 * np.exp(-((dx - 4 * light[0]) ** 2 + (dy - 4 * light[1]) ** 2) / 12)
        shade *= 1 - 0.6 * cover(np.abs(dx * sin(slot) - dy * cos(slot)) - 1.3, 1.5)
        under = mix(under, tint * shade[..., None], cover(distance - 11, 1.5))
    metal[window] = under


def _expose(rng: np.random.Generator, picture: Array, light: float) -> NDArray[np.uint8]:
    """Apply the effects of a camera: exposure, uneven light, colour balance, noise."""
    size = len(picture)
    x, y = _grid(size)
    way = rng.uniform(0, 2 * pi)
    slope = (cos(way) * (x - 128) + sin(way) * (y - 128)) / 128
    gain = 1 + light * (0.6 * rng.uniform(-1, 1) + rng.uniform(0, 1) * slope)
    gain = gain + 0.2 * light * smooth(rng, size, 3)
    balance = 1 + 0.015 * rng.standard_normal(3, dtype=np.float32)
    noise = 2.5 * rng.standard_normal(picture.shape, dtype=np.float32)
    return np.clip(picture * gain[..., None] * balance + noise, 0, 255).astype(np.uint8)


@cache
def _grid(size: int) -> tuple[Array, Array]:
    """x and y of pixel centres, (size, size) each."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(UNITS / size)
    x, y = np.meshgrid(axis, axis)
    for array in (x, y):
        array.setflags(write=False)
    return x, y


@cache
def _spline(size: int, cells: int) -> Array:
    """Cubic B-spline weights of `cells` + 3 knots at each of `size` pixels, (size, cells + 3)."""
    place = (np.arange(size) + 0.5) * cells / size
    t = np.abs(place[:, None] - np.arange(-1, cells + 2)[None, :])
    near = 2 / 3 - t**2 + t**3 / 2
    weights = np.where(t < 1, near, np.clip(2 - t, 0, None) ** 3 / 6).astype(np.float32)
    weights.setflags(write=False)
    return weights


def smooth(rng: np.random.Generator, size: int, cells: int) -> Array:
    """Return a smooth random field (size, size) of about unit variance.

    Args:
        rng: Source of all random numbers.
        size: Side of the field, px.
        cells: Number of bumps along each side.
    """
    weights = _spline(size, cells)
    knots = rng.standard_normal((cells + 3, cells + 3), dtype=np.float32)
    return weights @ knots @ weights.T / np.float32(0.48)


def blob(
    rng: np.random.Generator,
    x: Array,
    y: Array,
    radius: float,
    place: Array | None = None,
) -> Array:
    """Return the approximate signed distance to an irregular spot, negative inside.

    Args:
        rng: Source of all random numbers.
        x: Horizontal positions of the pixels, (H, W).
        y: Vertical positions of the pixels, (H, W).
        radius: Mean radius of the spot, in the unit of `x` and `y`.
        place: Centre (2,) of the spot, as (x, y); None: drawn.
    """
    centre = _point(rng.uniform(40, 216), rng.uniform(40, 216)) if place is None else place
    turn, stretch = rng.uniform(0, pi), rng.uniform(1.0, 1.5)
    dx, dy = x - centre[0], y - centre[1]
    p = (cos(turn) * dx + sin(turn) * dy) / stretch
    q = (cos(turn) * dy - sin(turn) * dx) * stretch
    angle = np.arctan2(q, p)
    outline = np.ones_like(x)
    for k in range(2, 7):
        outline += rng.normal(0, 0.22 / k) * np.cos(k * angle + rng.uniform(0, 2 * pi))
    return np.hypot(p, q) - radius * outline


def stroke(
    rng: np.random.Generator,
    x: Array,
    y: Array,
    length: float,
    bend: float,
    middle: Array | None = None,
) -> Array:
    """Return the distance (H, W) to a winding line, in the unit of `x` and `y`.

    Args:
        rng: Source of all random numbers.
        x: Horizontal positions of the pixels, (H, W).
        y: Vertical positions of the pixels, (H, W).
        length: Length of the line.
        bend: Twice the standard deviation of the change of direction at each of 14 steps, radians.
        middle: Mean (2,) of the line's points, as (x, y); None: drawn.
    """
    steps = 14
    heading = rng.uniform(0, pi) + np.cumsum(rng.normal(0, bend / 2, steps))
    way = np.stack([np.cos(heading), np.sin(heading)], 1) * length / steps
    points = np.concatenate([np.zeros((1, 2)), np.cumsum(way, 0)])
    points += (rng.uniform(60, 196, 2) if middle is None else middle) - points.mean(0)
    points = points.astype(np.float32)
    nearest = np.full(x.shape, np.inf, dtype=np.float32)
    for (ax, ay), (bx, by) in pairwise(points):
        ex, ey = bx - ax, by - ay
        t = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex**2 + ey**2), 0, 1)
        nearest = np.minimum(nearest, (x - ax - t * ex) ** 2 + (y - ay - t * ey) ** 2)
    return np.sqrt(nearest)


def _on_ring(rng: np.random.Generator, centre: Array, inner: float, outer: float) -> Array:
    return centre + rng.uniform(inner, outer) * _towards(rng.uniform(0, 2 * pi))


def _point(x: float, y: float) -> Array:
    return np.array([x, y], dtype=np.float32)


def _towards(angle: float) -> Array:
    return _point(cos(angle), sin(angle))


def _rgb(red: float, green: float, blue: float) -> Array:
    return np.array([red, green, blue], dtype=np.float32)


def rise(t: Array) -> Array:
    """Return a smooth step from 0 at t ≤ 0 to 1 at t ≥ 1."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def cover(distance: Array, softness: float) -> Array:
    """Return the share of each pixel inside an edge, 0 to 1, from its signed distance.

    The share falls linearly over a width of `softness` around the edge.
    """
    return np.clip(0.5 - distance / softness, 0, 1)


def _moved(field: Array, way: float) -> Array:
    """Shift a field right and down; the gap is filled with zeros."""
    n = max(1, round(way * len(field) / UNITS))
    return np.pad(field, ((n, 0), (n, 0)))[:-n, :-n]


def mix(under: Array, over: Array, share: Array) -> Array:
    """Blend two pictures (H, W, 3): `under` where the share (H, W) is 0, `over` where it is 1."""
    return under + (over - under) * share[..., None]
