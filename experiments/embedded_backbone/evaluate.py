"""Figures that designs are chosen by: unexplained variance, and PatchCore on generated defects.

    python -m experiments.embedded_backbone.evaluate FILE FILE

measures weights that `train.py` exported, one row a file, beside their teacher.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.embedded_backbone.images import (
    HELD_OUT_PHOTOS,
    Draw,
    Pool,
    add_defects,
    augment,
    normalise,
    photographs,
    procedural,
)
from patchcore._embedded import EmbeddedTrunk

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


def load_teacher(spec: str) -> nn.Module:
    """NAME (timm tag, downloaded) or NAME=FILE (safetensors); forward gives layer2 and layer3."""
    name, _, file = spec.partition("=")
    teacher = timm.create_model(name, pretrained=not file, features_only=True, out_indices=(2, 3))
    if file:
        missing = teacher.load_state_dict(load_file(file), strict=False).missing_keys
        if missing:
            raise SystemExit(f"{file} lacks {len(missing)} tensors of {name}, first: {missing[0]}")
    return teacher.eval().requires_grad_(False)


@torch.inference_mode()
def measure(
    networks: dict[str, Network],
    teacher: Network,
    device: torch.device,
    held_out: int,
    categories: int,
) -> dict[str, dict[str, float]]:
    """Print and return the measures of each network; detection alone for the teacher itself.

    Args:
        held_out: Images of each kind for the unexplained variance.
        categories: Of generated defects; with 0 there is no detection.
    """
    photos = photographs(HELD_OUT_PHOTOS, device)
    results = {}
    for name, network in networks.items():
        row: dict[str, float] = {}
        if categories:
            row |= detection(network, device, categories)._asdict()
        if network is not teacher:
            for kind, source in (("procedural", None), ("photographs", photos)):
                missed = unexplained(network, teacher, source, device, held_out)
                row |= {f"{kind}_{k}": v for k, v in missed._asdict().items()}
        results[name] = row
        print(name, ", ".join(f"{k} {v:.4f}" for k, v in row.items()), flush=True)
    return results


def options(description: str) -> argparse.ArgumentParser:
    """A parser with the options that training and evaluation share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--teacher", default="resnet18.tv_in1k", help="timm NAME, or NAME=FILE")
    parser.add_argument("--held-out", type=int, default=512, help="images for the variance")
    parser.add_argument("--categories", type=int, default=24, help="of generated defects")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def auroc(scores: Tensor, labels: Tensor) -> float:
    """Area under the ROC of scores (N,) for boolean labels (N,), by ranks; no ties expected."""
    ranks = scores.argsort().argsort().double() + 1
    positive = int(labels.sum())
    area = ranks[labels].sum() - positive * (positive + 1) / 2
    return float(area / (positive * (len(labels) - positive)))


def unexplained(
    student: Network, teacher: Network, photos: Pool | None, device: torch.device, count: int
) -> Unexplained:
    """Unexplained variance on `count` held-out crops of `photos`; on procedural scenes if None."""
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


def main() -> None:
    """Measure the teacher and every file."""
    parser = options((__doc__ or "").splitlines()[0])
    parser.add_argument("weights", nargs="+", type=Path, help="of the design that ships")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    args = parser.parse_args()
    device = torch.device(args.device)
    teacher = load_teacher(args.teacher).to(device)
    networks: dict[str, Network] = {"teacher": teacher}
    for file in args.weights:
        trunk = EmbeddedTrunk()
        trunk.load_state_dict({k: v.float() for k, v in load_file(file).items()})
        networks[str(file)] = trunk.to(device).eval()
    results = measure(networks, teacher, device, args.held_out, args.categories)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
