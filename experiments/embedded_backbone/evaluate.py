"""What designs are chosen on: unexplained variance, and PatchCore on generated defects."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.embedded_backbone.images import (
    Draw,
    Pool,
    add_defects,
    augment,
    normalise,
    procedural,
)

Network = Callable[[Tensor], list[Tensor]]  # (B, 3, H, W) -> [layer2 map, layer3 map]
SIZE = 224


class Unexplained(NamedTuple):
    """Share of the teacher's variance that a student misses, mean over channels, per layer."""

    layer2: float
    layer3: float


class Detection(NamedTuple):
    """Means over the generated categories."""

    image_auroc: float
    pixel_auroc: float


def auroc(scores: Tensor, labels: Tensor) -> float:
    """Area under the ROC of scores (N,) for boolean labels (N,), by ranks; no ties expected."""
    ranks = scores.argsort().argsort().double() + 1
    positive = int(labels.sum())
    area = ranks[labels].sum() - positive * (positive + 1) / 2
    return float(area / (positive * (len(labels) - positive)))


def unexplained(
    student: Network, teacher: Network, photos: Pool | None, device: torch.device, count: int
) -> Unexplained:
    """On `count` held-out images: crops of `photos`, or procedural scenes where it is None."""
    generator = torch.Generator(device).manual_seed(1_000_003)
    error = [0.0, 0.0]
    sums: list[list[Tensor]] = [[], []]
    squares: list[list[Tensor]] = [[], []]
    errors: list[list[Tensor]] = [[], []]
    for start in range(0, count, 32):
        batch = min(32, count - start)
        draw = Draw(batch, batch, SIZE, generator)
        images = photos.crop(draw) if photos else procedural(draw, draw.chance(0.5))
        x = normalise(augment(images, draw))
        for layer, (ours, theirs) in enumerate(zip(student(x), teacher(x), strict=True)):
            ours, theirs = ours.double(), theirs.double()
            sums[layer].append(theirs.mean((0, 2, 3)))
            squares[layer].append(theirs.square().mean((0, 2, 3)))
            errors[layer].append((ours - theirs).square().mean((0, 2, 3)))
    for layer in range(2):
        mean, square, wrong = (torch.stack(v[layer]).mean(0) for v in (sums, squares, errors))
        variance = (square - mean.square()).clamp(min=1e-12)
        error[layer] = float((wrong / variance).mean())
    return Unexplained(*error)


def patches(maps: list[Tensor]) -> Tensor:
    """3×3 means of both layers on layer2's grid, (B, h, w, D)."""
    first, second = (F.avg_pool2d(m.float(), 3, 1, 1) for m in maps)
    second = F.interpolate(second, first.shape[2:], mode="bilinear", align_corners=False)
    return torch.cat([first, second], 1).permute(0, 2, 3, 1)  # (B, h, w, D)


def greedy(features: Tensor, count: int) -> Tensor:
    """Plain greedy k-centre over (N, D): `count` rows."""
    picks = [0]
    nearest = torch.cdist(features, features[:1])[:, 0]
    for _ in range(count - 1):
        picks.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, torch.cdist(features, features[picks[-1]][None])[:, 0])
    return features[picks]


def detection(
    network: Network, device: torch.device, categories: int = 24, nominal: int = 16, test: int = 60
) -> Detection:
    """PatchCore at 1 % on generated categories, half of them objects; half of the test damaged."""
    image_scores, pixel_scores = [], []
    for category in range(categories):
        generator = torch.Generator(device).manual_seed(2_000_003 + category)
        draw = Draw(nominal + test, 1, SIZE, generator)
        objects = torch.full((draw.batch, 1, 1, 1), float(category % 2), device=device)
        images = procedural(draw, objects)
        images[-test // 2 :], masks = add_defects(
            images[-test // 2 :], Draw(test // 2, test // 2, SIZE, generator), (0.06, 0.4)
        )
        images = (images + 0.01 * draw.normal(3, SIZE, SIZE)).clamp(0, 1)
        features = torch.cat([patches(network(normalise(x))) for x in images.split(8)])
        bank = greedy(features[:nominal].flatten(0, 2), nominal * features.shape[1] ** 2 // 100)
        distance = torch.cdist(features[nominal:].flatten(1, 2), bank).amin(2)  # (test, h·w)
        labels = torch.arange(test, device=device) >= test - test // 2
        image_scores.append(auroc(distance.amax(1), labels))
        maps = F.interpolate(
            distance.unflatten(1, features.shape[1:3])[:, None], SIZE, mode="bilinear"
        )
        truth = torch.cat([torch.zeros_like(masks), masks])
        pixel_scores.append(auroc(maps.flatten(), truth.flatten()))
    return Detection(sum(image_scores) / categories, sum(pixel_scores) / categories)
