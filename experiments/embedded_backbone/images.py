"""Training images that nobody has to license, made on the device that trains.

`procedural` draws textures and objects from a family of parametrised fields (power-law noise,
gratings, jittered lattices, soft shapes); `photographs` holds pictures bundled with scikit-image;
`add_defects` damages any of them; `augment` is what a camera and its settings do.
Images are float32 (B, 3, size, size) in [0, 1]; all randomness comes from one torch.Generator.
"""

import math
from pathlib import Path

import numpy as np
import skimage
import torch
from skimage.io import imread
from torch import Tensor
from torch.nn import functional as F

TRAIN_PHOTOS = [
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "clock_motion.png",
    "coffee.png",
    "grass.png",
    "horse.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "retina.jpg",
    "rocket.jpg",
]
HELD_OUT_PHOTOS = ["chelsea.png", "coins.png", "gravel.png"]
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
TILE = 256  # px, side of the pieces that photographs are cut into


def normalise(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> the same with ImageNet's mean and deviation taken out."""
    return (images - MEAN.to(images)) / STD.to(images)


class Draw:
    """Random numbers for a batch: `style` is shared by a group of images, `fresh` is not.

    With `groups` equal to `batch` every image is its own category; with fewer, image i belongs to
    group i // (batch // groups), which is how a data set of a few categories is drawn.
    """

    def __init__(self, batch: int, groups: int, size: int, generator: torch.Generator) -> None:
        self.batch, self.groups, self.size = batch, groups, size
        self.generator, self.device = generator, generator.device

    def fresh(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform numbers, one set an image; shape (B, *shape) or (B, 1, 1, 1)."""
        return self._uniform(self.batch, low, high, shape)

    def style(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform numbers, one set a group, repeated over its images."""
        return self._uniform(self.groups, low, high, shape).repeat_interleave(
            self.batch // self.groups, dim=0
        )

    def chance(self, p: float) -> Tensor:
        """1.0 with probability p for a whole group, else 0.0; shape (B, 1, 1, 1)."""
        return (self.style(0, 1) < p).float()

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers (B, *shape)."""
        return torch.randn(self.batch, *shape, generator=self.generator, device=self.device)

    def _uniform(self, rows: int, low: float, high: float, shape: tuple[int, ...]) -> Tensor:
        drawn = torch.rand(
            rows, *(shape or (1, 1, 1)), generator=self.generator, device=self.device
        )
        return low + (high - low) * drawn


def grid(draw: Draw) -> tuple[Tensor, Tensor]:
    """Pixel centres in [-1, 1]: x and y, each (1, 1, size, size)."""
    axis = (torch.arange(draw.size, device=draw.device) + 0.5) * 2 / draw.size - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x[None, None], y[None, None]


def rotate(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates in a frame turned by `angle` radians."""
    return x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()


def standardise(field: Tensor) -> Tensor:
    """Each (1, H, W) map of a batch to mean 0 and deviation 1."""
    std, mean = torch.std_mean(field, dim=(1, 2, 3), keepdim=True)
    return (field - mean) / (std + 1e-6)


def noise(draw: Draw, slope: Tensor, stretch: Tensor, angle: Tensor) -> Tensor:
    """Gaussian noise of amplitude f ** -slope, stretched along `angle`; (B, 1, H, W)."""
    size = draw.size
    fy = torch.fft.fftfreq(size, device=draw.device).view(1, 1, size, 1)
    fx = torch.fft.rfftfreq(size, device=draw.device).view(1, 1, 1, -1)
    u, v = rotate(fx, fy, angle)
    radius = ((u * stretch) ** 2 + (v / stretch) ** 2).sqrt() + 0.5 / size  # (B, 1, H, W/2+1)
    white = torch.fft.rfft2(draw.normal(1, size, size))
    return standardise(torch.fft.irfft2(white * radius**-slope, s=(size, size)))


def smooth(draw: Draw) -> Tensor:
    """Slowly varying noise for warps and outlines, (B, 1, H, W)."""
    return noise(draw, draw.style(1.6, 2.4), draw.style(1, 1), draw.style(0, 1))


def waves(draw: Draw, warp: Tensor) -> Tensor:
    """One or two warped gratings, from sinusoid to square wave; stripes, grids, weaves."""
    x, y = grid(draw)
    total = torch.zeros(1, device=draw.device)
    angle = draw.style(0, math.pi)
    frequency = 2 * math.pi * torch.exp(draw.style(math.log(1.0), math.log(16.0)))
    for turn, weight in ((0.0, 1.0), (math.pi / 2, draw.chance(0.5))):
        u, _ = rotate(x, y, angle + turn + draw.fresh(-0.03, 0.03))
        bend = draw.style(0, 1) ** 3 * warp
        phase = u * frequency * draw.style(0.8, 1.25) + bend + draw.fresh(0, 2 * math.pi)
        sharp = torch.exp(draw.style(-1, 2.5))
        total = total + weight * torch.tanh(sharp * phase.sin()) / torch.tanh(sharp)
    return standardise(total)


def lattice(draw: Draw, warp: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cells around a jittered lattice: tiles, bricks, pebbles, dots, Voronoi cells.

    Returns three (B, 1, H, W) maps: distance to the nearest seed, difference to the second
    nearest (0 on cell borders), and a random value per cell. Worley (1996), 3×3 neighbours.
    """
    x, y = rotate(*grid(draw), draw.style(0, math.pi) + draw.fresh(-0.03, 0.03))
    count = torch.exp(draw.style(math.log(1.5), math.log(9.0)))  # cells across half the image
    aspect = torch.exp(draw.style(-0.5, 0.5))
    x = x * count * aspect + draw.fresh(0, 16) + 0.3 * draw.style(0, 1) ** 2 * warp
    y = y * count / aspect + draw.fresh(0, 16) + 0.3 * draw.style(0, 1) ** 2 * warp
    row, shift, jitter = y.floor(), draw.chance(0.5) * 0.5, draw.style(0, 1)
    square = draw.chance(0.4)  # Chebyshev distance instead of Euclidean
    table = draw.fresh(0, 1, 3, 256)  # a seed's offset and value for 16×16 cells, then repeated
    first = torch.full_like(x, 9.0)
    second, value = first, torch.zeros_like(x)
    for dy in (-1, 0, 1):
        cell_y = row + dy
        skew = shift * (cell_y % 2)
        for dx in (-1, 0, 1):
            cell_x = (x - skew).floor() + dx
            key = ((cell_y % 16) * 16 + cell_x % 16).long().flatten(1)  # (B, H·W)
            seed = table.gather(2, key[:, None].expand(-1, 3, -1)).unflatten(2, x.shape[2:])
            off_x = (x - skew - cell_x - 0.5 - jitter * (seed[:, 0:1] - 0.5)).abs()
            off_y = (y - cell_y - 0.5 - jitter * (seed[:, 1:2] - 0.5)).abs()
            far = torch.lerp((off_x**2 + off_y**2).sqrt(), torch.maximum(off_x, off_y), square)
            value = torch.where(far < first, seed[:, 2:3], value)
            second = torch.minimum(second, torch.maximum(first, far))
            first = torch.minimum(first, far)
    return first, second - first, value * 2 - 1


def outline(draw: Draw, warp: Tensor, radius: tuple[float, float], spread: float) -> Tensor:
    """Signed depth (> 0 inside) of one superellipse near the middle, in half image sides."""
    x, y = grid(draw)
    x, y = x - draw.fresh(-spread, spread), y - draw.fresh(-spread, spread)
    x, y = rotate(x, y, draw.style(0, math.pi) + draw.fresh(-0.1, 0.1))
    size, aspect = draw.style(*radius), torch.exp(draw.style(-0.7, 0.7))
    power = torch.exp(draw.style(math.log(1.0), math.log(8.0)))
    a = (x / (size * aspect)).abs().clamp(1e-4, 20)
    b = (y / (size / aspect)).abs().clamp(1e-4, 20)
    norm = (a**power + b**power) ** (1 / power)
    return (1 - norm + draw.style(0, 1) ** 3 * 0.25 * warp) * size


def palette(draw: Draw, strength: float) -> Tensor:
    """A direction in colour space, mostly luminance as in natural images; (B, 3, 1, 1)."""
    tint = draw.style(-1, 1, 3, 1, 1) * draw.style(0, 1) ** 2
    return strength * (draw.style(-1, 1) + 0.7 * tint)


def texture(draw: Draw) -> Tensor:
    """A surface: random mixture of fields, coloured, perhaps lit as a relief; (B, 3, H, W)."""
    warp = smooth(draw)
    grain = noise(
        draw, draw.style(0, 1.8), torch.exp(draw.style(0, 1) ** 3 * 2.5), draw.style(0, math.pi)
    )
    veins = noise(draw, draw.style(1, 2), torch.exp(draw.style(0, 0.7)), draw.style(0, 3)).abs()
    seed, border, value = lattice(draw, warp)
    gap = draw.style(0.02, 0.25)
    fields = [
        grain,
        torch.tanh(torch.exp(draw.style(-1, 3)) * (grain + draw.style(-1.5, 1.5))),
        1 - veins,
        waves(draw, 3 * warp),
        torch.tanh((draw.style(0.1, 0.5) - seed) * torch.exp(draw.style(1, 3))),
        (border / gap).clamp(0, 1),
        value,
        warp,
    ]
    height = torch.zeros(1, device=draw.device)
    colour = 0.5 + palette(draw, 0.35)
    for field in fields:
        weight = draw.chance(0.3) * draw.style(0.2, 1)
        height = height + weight * field
        colour = colour + weight * field * palette(draw, 0.25)
    colour = colour + 0.15 * draw.style(0, 1) ** 2 * grain
    slope_x = height.diff(dim=3, append=height[..., -1:])
    slope_y = height.diff(dim=2, append=height[..., -1:, :])
    angle = draw.style(0, 2 * math.pi)
    light = slope_x * angle.cos() + slope_y * angle.sin()
    return colour + draw.chance(0.5) * draw.style(0, 0.5) * torch.tanh(2 * light)


def scene(draw: Draw, objects: Tensor) -> Tensor:
    """Textures where `objects` (B, 1, 1, 1) is 0; where it is 1, a shape upon a quieter ground."""
    surface, ground = texture(draw), texture(draw)
    warp = smooth(draw)
    depth = outline(draw, warp, (0.35, 0.8), 0.06)
    second = outline(draw, warp, (0.1, 0.4), 0.03)  # a part of the object, or a hole in it
    edge = torch.exp(draw.style(2.5, 5))
    calm = ground.mean(dim=(2, 3), keepdim=True)
    ground = torch.lerp(calm, ground, draw.style(0, 1) ** 2)
    inside = torch.sigmoid(depth * edge)
    body = surface + draw.style(-0.6, 0.6) * (depth.clamp(0, 0.5) - 0.25)  # shading towards the rim
    part = torch.sigmoid(second * edge) * draw.chance(0.5)
    body = torch.lerp(body, ground + palette(draw, 0.3), part)
    return torch.lerp(surface, torch.lerp(ground, body, inside), objects)


def procedural(draw: Draw, objects: Tensor) -> Tensor:
    """Scenes under uneven light, (B, 3, size, size) in [0, 1]."""
    images = scene(draw, objects)
    x, y = grid(draw)
    u, v = rotate(x, y, draw.fresh(0, 2 * math.pi))
    light = 1 + draw.style(0, 0.25) * u - draw.style(0, 0.2) * (u**2 + v**2)
    return (images * light).clamp(0, 1)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with one σ in pixels an image (B, 1, 1, 1), by the Fourier transform."""
    size = images.shape[-1]
    fy = torch.fft.fftfreq(size, device=images.device).view(1, 1, size, 1)
    fx = torch.fft.rfftfreq(size, device=images.device).view(1, 1, 1, -1)
    gain = torch.exp(-2 * (math.pi * sigma) ** 2 * (fx**2 + fy**2))
    return torch.fft.irfft2(torch.fft.rfft2(images) * gain, s=(size, size))


def add_defects(images: Tensor, draw: Draw, strength: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Damage every image once: stain, scratch, crack, misplaced piece, smear or dent.

    `strength` bounds the contrast of what is added. Returns images and masks (B, 1, H, W) bool.
    """
    x, y = grid(draw)
    x, y = x - draw.fresh(-0.6, 0.6), y - draw.fresh(-0.6, 0.6)
    warp = noise(draw, draw.fresh(1.7, 2.4), draw.fresh(1, 1), draw.fresh(0, 1))
    u, v = rotate(x, y, draw.fresh(0, math.pi))
    radius = torch.exp(draw.fresh(math.log(0.05), math.log(0.25)))
    long = torch.exp(draw.fresh(-0.5, 0.5))
    blob = 1 - ((u / long) ** 2 + (v * long) ** 2).sqrt() / radius + 0.25 * warp
    area = torch.sigmoid(blob * torch.exp(draw.fresh(1.5, 3.5)))
    length, width = draw.fresh(0.15, 0.6), draw.fresh(0.006, 0.03)
    bent = v + 0.05 * draw.fresh(-1, 1) * warp + draw.fresh(-0.5, 0.5) * u**2
    reach = (1 - (u / length) ** 2).clamp(min=0)
    scratch = torch.exp(-((bent / width) ** 2)) * reach.sqrt()
    crack = torch.exp(-((warp / draw.fresh(0.04, 0.12)) ** 2)) * torch.sigmoid(
        8 * (1 - (x**2 + y**2).sqrt() / draw.fresh(0.2, 0.5))
    )
    sign = draw.fresh(-1, 1).sign()
    paint = sign * draw.fresh(*strength) * (1 + 0.5 * draw.fresh(-1, 1, 3, 1, 1))
    moved = images.roll((draw.size // 3, draw.size // 4), (2, 3)).flip(3)
    smear = blur(images, draw.fresh(2, 6))
    bump = draw.fresh(0.5, 1.5) * radius * torch.exp(-((x**2 + y**2) / radius**2))
    flow = torch.cat(grid(draw), 1) + bump * torch.cat([sign * u, v], 1)  # (B, 2, H, W)
    dent = F.grid_sample(
        images, flow.permute(0, 2, 3, 1), padding_mode="reflection", align_corners=False
    )
    options = [
        (images + paint, area),
        (images + paint, scratch),
        (images - paint.abs(), crack),
        (moved, area),
        (smear, area),
        (dent, (bump > 0.15 * bump.amax(dim=(2, 3), keepdim=True)).float()),
    ]
    kind = draw.fresh(0, len(options)).long()
    mask = torch.zeros_like(area)
    result = images
    for index, (changed, where) in enumerate(options):
        chosen = where * (kind == index)
        result, mask = torch.lerp(result, changed, chosen), torch.maximum(mask, chosen)
    return result.clamp(0, 1), mask > 0.4


class Pool:
    """Square pictures (N, 3, side, side) kept as uint8, and random crops of them."""

    def __init__(self, pictures: Tensor, weights: Tensor) -> None:
        self.pictures, self.cumulative = pictures, (weights / weights.sum()).cumsum(0)

    def crop(self, draw: Draw) -> Tensor:
        """Turned, mirrored, stretched, zoomed by at most 1.4; (B, 3, size, size) in [0, 1]."""
        index = torch.searchsorted(self.cumulative, draw.fresh(0, 1).flatten())
        pictures = self.pictures[index.clamp(max=len(self.pictures) - 1)].float() / 255
        x, y = grid(draw)
        zoom = torch.exp(draw.fresh(math.log(0.6), math.log(1.4)))
        zoom = zoom * draw.size / pictures.shape[-1]
        aspect = torch.exp(draw.fresh(-0.2, 0.2))
        u, v = rotate(x * zoom * aspect, y * zoom / aspect, draw.fresh(-math.pi, math.pi))
        u = u * draw.fresh(-1, 1).sign() + draw.fresh(-0.5, 0.5)
        flow = torch.cat([u, v + draw.fresh(-0.5, 0.5)], 1).permute(0, 2, 3, 1)  # (B, H, W, 2)
        return F.grid_sample(pictures, flow, padding_mode="reflection", align_corners=False)


def to_bytes(images: Tensor) -> Tensor:
    """[0, 1] -> uint8."""
    return images.mul(255).round().to(torch.uint8)


def scenes(count: int, side: int, generator: torch.Generator) -> Pool:
    """`count` procedural scenes, half with an object, a third of them damaged."""
    draw = Draw(64, 64, side, generator)
    pictures = torch.empty(count, 3, side, side, dtype=torch.uint8, device=draw.device)
    for part in pictures.split(64):
        images = procedural(draw, draw.chance(0.5))
        part.copy_(to_bytes(damage_some(images, draw))[: len(part)])
    return Pool(pictures, torch.ones(count, device=draw.device))


def photographs(names: list[str], device: torch.device) -> Pool:
    """Pictures bundled in scikit-image's wheel, at several scales.

    Each is resized (antialiased) to a few sizes and cut into overlapping tiles of 256 px; all
    pictures are equally likely, whatever their size.
    """
    folder = Path(skimage.__file__).parent / "data"
    pictures, weights = [], []
    for name in names:
        pixels = imread(folder / name)
        if pixels.ndim == 2:
            pixels = np.stack([pixels] * 3, axis=2)
        cut = tiles(torch.from_numpy(pixels[..., :3].copy()).permute(2, 0, 1)[None].float() / 255)
        pictures.append(to_bytes(cut))
        weights += [1 / len(cut)] * len(cut)
    return Pool(torch.cat(pictures).to(device), torch.tensor(weights, device=device))


def tiles(image: Tensor) -> Tensor:
    """(1, 3, H, W) -> (N, 3, 256, 256): overlapping pieces at up to four scales."""
    short, cut = min(image.shape[2:]), []
    for side in (256, 384, 512, 768):
        if side > max(256, 1.1 * short):
            break
        size = [round(side * length / short) for length in image.shape[2:]]
        scaled = F.interpolate(image, size, mode="bilinear", antialias=True).clamp(0, 1)
        for top in range(0, size[0] - TILE + 1, TILE // 2):
            for left in range(0, size[1] - TILE + 1, TILE // 2):
                cut.append(scaled[..., top : top + TILE, left : left + TILE])
    return torch.cat(cut)


def damage_some(images: Tensor, draw: Draw) -> Tensor:
    """Defects on a third of the images."""
    damaged, _ = add_defects(images, draw, (0.05, 0.5))
    return torch.where(draw.chance(0.33) > 0, damaged, images)


def augment(images: Tensor, draw: Draw) -> Tensor:
    """Colour, contrast, gamma, grey, focus and sensor noise, independently for each image."""
    mix = torch.eye(3, device=draw.device) + draw.normal(3, 3) * 0.3 * draw.fresh(0, 1, 1, 1) ** 2
    grey = (draw.fresh(0, 1, 1, 1) < 0.4).float()
    mix = torch.lerp(mix, torch.full_like(mix, 1 / 3), grey)
    images = torch.einsum("bij,bjhw->bihw", mix, images)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    contrast = torch.exp(draw.fresh(-1.4, 0.5))
    images = (images - mean) * contrast + mean + draw.fresh(-0.15, 0.15)
    images = images.clamp(1e-3, 1) ** torch.exp(draw.fresh(-0.5, 0.5))
    sigma = draw.fresh(0, 1.6) * (draw.fresh(0, 1) < 0.3)
    images = blur(images, sigma)
    level = 0.05 * draw.fresh(0, 1) ** 3
    return (images + level * draw.normal(3, draw.size, draw.size)).clamp(0, 1)


def training_batch(drawn: Pool, taken: Pool, draw: Draw) -> Tensor:
    """Half procedural scenes, half photographs; a third damaged; all augmented; (B, 3, H, W)."""
    half = Draw(draw.batch // 2, draw.batch // 2, draw.size, draw.generator)
    scene_images, photos = drawn.crop(half), taken.crop(half)
    # Pieces of another photograph, or of a scene, inside an outline.
    depth = outline(half, smooth(half), (0.2, 0.7), 0.5)
    inside = (depth > 0).float() * half.chance(0.4)
    other = torch.where(half.chance(0.5) > 0, photos.roll(1, 0), scene_images)
    photos = damage_some(torch.lerp(photos, other, inside), half)
    return augment(torch.cat([scene_images, photos]), draw)
