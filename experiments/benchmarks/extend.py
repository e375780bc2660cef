"""Extending a memory: seconds beside one bare matrix product, and the result beside a refit.

`product` is the float32 product of the new patches with the memory, chunk by chunk into one buffer;
`extend` is all that extending costs once the new images' patches are extracted: their distances to
the memory, their scores by it, the greedy selection and the new memory. Both run in turn, and the
ratio is of the medians after one warm-up. Memory and patches are drawn numbers.

`--mtd DIR` instead fits on the magnetic tiles but some, adds these, and fits on all for as many
patches: covering radius over all nominal patches, and image AUROC on the test images, of both. The
seed of a coreset alone moves the AUROC by more than the two differ, hence several.
"""

import argparse
import statistics
import time
from pathlib import Path

import harness
import torch
from torch import Tensor

from patchcore import GreedyConfig, PatchCore
from patchcore.backbones import BackboneConfig
from patchcore.data.dataset import ImageDataset, collate
from patchcore.data.mtd import MTDConfig
from patchcore.data.sample import Sample
from patchcore.data.transforms import ImageConfig
from patchcore.index import TorchIndex
from patchcore.metrics import ImageMetrics


def main() -> None:
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--memory", type=int, default=100_000, help="patches in it, drawn")
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--images", type=int, default=50, help="images to add")
    parser.add_argument("--patches", type=int, default=784, help="patches an image, drawn")
    parser.add_argument("--ratio", type=float, default=0.1, help="share of patches that is kept")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--mtd", type=Path, help="folder of the magnetic tiles, for the quality")
    parser.add_argument("--seeds", type=int, default=10, help="coresets to compare, with --mtd")
    parser.add_argument("--weights", default="tv_in1k", help="of the ResNet-18, with --mtd")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.mtd is None:
        speed(args)
    else:
        quality(args)


def speed(args: argparse.Namespace) -> None:
    """Print the seconds of the product and of the extension, and their ratio."""
    generator = torch.Generator().manual_seed(0)
    model = PatchCore(BackboneConfig("embedded", "shipped"), coreset=GreedyConfig(args.ratio))
    model = model.to(args.device)
    memory = torch.randn(args.memory, args.dimension, generator=generator).to(args.device)
    side = round(args.patches**0.5)
    shape = (args.images, side, side, args.dimension)
    features = torch.randn(shape, generator=generator).to(args.device)
    times: dict[str, list[float]] = {"product": [], "extend": []}

    def measure(name: str, start: float) -> None:
        harness.drain()
        times[name].append(time.perf_counter() - start)

    rows = features.flatten(0, 2)
    for _ in range(1 + args.repeats):
        harness.drain()
        start = time.perf_counter()
        product(rows, memory)
        measure("product", start)
        model.memory, model._gathered = memory, round(args.memory / args.ratio)
        model.origin = torch.zeros(len(memory), 3, dtype=torch.int32, device=memory.device)
        start = time.perf_counter()
        model.extend(features.split(10), [(224, 224)] * -(-args.images // 10), range(args.images))
        measure("extend", start)
    added = len(model.memory) - args.memory
    print(f"{args.memory:,} × {args.dimension} memory, {len(rows):,} patches, {added:,} added")
    print(harness.machine(args.device))
    medians = {name: statistics.median(each[1:]) for name, each in times.items()}
    for name, each in times.items():
        print(f"{name:8} {medians[name]:8.3f} s   ({', '.join(f'{x:.3f}' for x in each)})")
    print(f"ratio    {medians['extend'] / medians['product']:8.3f}")


def product(rows: Tensor, memory: Tensor) -> None:
    """Multiply rows (N, D) with all of the memory (M, D), keeping nothing."""
    at_once = max(1, 2**28 // len(memory))
    buffer = rows.new_empty(at_once, len(memory))
    for some in rows.split(at_once):
        torch.mm(some, memory.T, out=buffer[: len(some)])


def quality(args: argparse.Namespace) -> None:
    """Print radius and image AUROC of extended memories and of refitted ones, seed by seed."""
    split = MTDConfig(root=str(args.mtd)).read()
    image = ImageConfig(224)
    model = PatchCore(BackboneConfig("resnet18", args.weights)).to(args.device)
    nominal = embedded(model, split.train, image).to(args.device)
    test = embedded(model, split.test, image).to(args.device)
    labels = torch.tensor([sample.label for sample in split.test])
    old, new = nominal[: -args.images], nominal[-args.images :]
    print(f"fitted to {len(old)} images, extended by {len(new)}, tested on {len(test)}")
    print("seed  patches   radius: before  extended  refitted   AUROC: before  extended  refitted")
    found = []
    for seed in range(args.seeds):
        model.coreset_config = GreedyConfig(ratio=args.ratio, seed=seed)
        model.build(old.flatten(0, 2))
        before = measured(model, nominal, test, labels)
        model.extend([new], [(224, 224)], range(len(new)))
        extended = measured(model, nominal, test, labels)
        model.coreset_config = GreedyConfig(count=len(model.memory), seed=seed)
        model.build(nominal.flatten(0, 2))
        refitted = measured(model, nominal, test, labels)
        radii, aurocs = zip(before, extended, refitted, strict=True)
        cells = [f"{x:9.4f}" for x in radii] + [f"{x:9.5f}" for x in aurocs]
        print(f"{seed:4} {len(model.memory):8,}   {' '.join(cells)}")
        found.append((*radii, *aurocs))
    values = torch.tensor(found, dtype=torch.float64)  # (seeds, 6)
    ratios, difference = values[:, 1] / values[:, 2], values[:, 4] - values[:, 5]
    error = float(difference.std()) / len(found) ** 0.5 if len(found) > 1 else float("nan")
    print(f"radius of a refit's: mean {float(ratios.mean()):.4f}, most {float(ratios.max()):.4f}")
    print(f"AUROC above a refit's: {float(difference.mean()):+.5f} ± {error:.5f} (standard error)")
    print(f"AUROC of refits by seed: standard deviation {float(values[:, 5].std()):.5f}")


def measured(
    model: PatchCore, nominal: Tensor, test: Tensor, labels: Tensor
) -> tuple[float, float]:
    """Covering radius of the nominal patches, and image AUROC."""
    index = TorchIndex(model.memory)
    radius = max(float(index.search(x.flatten(0, 2), 1)[0].max()) for x in nominal.split(16))
    metrics = ImageMetrics()
    scores = torch.cat([model.score(part, (224, 224)).score.cpu() for part in test.split(16)])
    metrics.update(scores, labels)
    return radius**0.5, float(metrics.compute()["image_auroc"])


def embedded(model: PatchCore, samples: list[Sample], image: ImageConfig) -> Tensor:
    """Patch features (N, h, w, D) of images, on the CPU."""
    dataset = ImageDataset(samples, image)
    batches = [range(i, min(i + 16, len(samples))) for i in range(0, len(samples), 16)]
    return torch.cat(
        [
            model.embed(collate([dataset[i] for i in batch])["image"].to(model.device)).cpu()
            for batch in batches
        ]
    )


if __name__ == "__main__":
    main()
