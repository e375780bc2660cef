"""Contaminated training images: what they cost, and what rules that forget some of them give back.

    python experiments/contamination/contamination.py mtd --root MTD --size 128 --weights RESNET18

Features and distances of all images are computed once; each seed then draws its division and its
contamination. A rule judges a training image by its worst patch's distance to the k-th nearest
other training image, in robust deviations of the logarithm, and forgets images above its limit.
The memory is every patch of the images that are left, so that no coreset's chance has a part in
the differences, or a greedy coreset with `--ratio`. All memories of a seed score the same images.
With `--oracles`, labels correct what is dropped, and the figures say which mistakes cost most.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from patchcore.backbones import BackboneConfig, LayersConfig
from patchcore.coreset import GreedyConfig, subsample
from patchcore.data.dataset import ImageDataset, collate
from patchcore.data.mtd import MTDConfig
from patchcore.data.mvtec import MVTecConfig
from patchcore.data.sample import DataConfig
from patchcore.data.transforms import ImageConfig
from patchcore.index import TorchIndex
from patchcore.methods.patchcore import PatchCore
from patchcore.metrics.sweep import auroc, sweep
from patchcore.pruning import deviations

TEST_SHARE = 0.2  # of the nominal images, where the data set has no division of its own
SHARE = 0.1  # anomalous images among the training images, of the nominal ones
OTHERS = (1, 2, 3, 4)
LIMITS = (1.5, 1.75, 2.0, 2.25, 2.5, 3.0)


def features_of(
    data: DataConfig, weights: str, size: int, every: int, device: str
) -> tuple[Tensor, Tensor, int]:
    """Patch features (N, P, D), labels (N,), and how many of the images are for training."""
    network = BackboneConfig("resnet18", weights)
    model = PatchCore(network, LayersConfig(["layer2", "layer3"])).eval().to(device)
    split, record = data.read(), network.input()
    image = ImageConfig(
        mean=list(record.mean), std=list(record.std), view=type(data).VIEW, size=size
    )
    samples = [*split.train, *split.test]
    loader = torch.utils.data.DataLoader(
        ImageDataset(samples, image), batch_size=32, collate_fn=collate
    )
    found = [model.embed(batch["image"].to(device))[:, ::every, ::every] for batch in loader]
    labels = torch.tensor([sample.label for sample in samples])
    return torch.cat(found).flatten(1, 2), labels, len(split.train)


def distances(features: Tensor) -> Tensor:
    """Distance (N, P, N) of every patch to the nearest one of every image."""
    count, patches, _ = features.shape
    x = features.flatten(0, 1) - features.flatten(0, 1).mean(0)
    lengths = x.square().sum(1)
    found = torch.empty(count, patches, count)
    for number, (own, squared) in enumerate(
        zip(x.split(patches), lengths.split(patches), strict=True)
    ):
        away = torch.addmm(lengths, own, x.T, alpha=-2).add_(squared[:, None]).clamp_min_(0)
        found[number] = away.view(patches, count, patches).amin(2).sqrt()
    return found


def divided(
    labels: Tensor, trained: int | None, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nominal and anomalous training images, and test images, by a draw."""
    nominal, anomalous = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
    if trained is None:
        nominal, count = generator.permutation(nominal), round(TEST_SHARE * len(nominal))
        train, held = nominal[count:], nominal[:count]
    else:
        train, held = nominal[:trained], nominal[trained:]
    anomalous = generator.permutation(anomalous)
    count = round(SHARE * len(train))
    return np.sort(train), anomalous[:count], np.concatenate([held, anomalous[count:]])


class Scores:
    """Image AUROC of test images by memories of training images."""

    def __init__(
        self, features: Tensor, away: Tensor, labels: Tensor, test: np.ndarray, ratio: float | None
    ) -> None:
        self.features, self.away, self.labels = features, away[test], labels[test]
        self.test, self.ratio = test, ratio

    def auroc(self, kept: np.ndarray, seed: int) -> float:
        """Return it for the memory of these images."""
        if self.ratio is None:
            scores = self.away[:, :, kept].amin(2).amax(1)
        else:
            x = self.features[kept].flatten(0, 1)
            sampler = GreedyConfig(ratio=self.ratio, seed=seed)
            index = TorchIndex(x[subsample(x, sampler).indices.to(x.device)])
            tests = self.features[self.test]
            scores = torch.stack([index.search(image, 1)[0].max() for image in tests]).cpu()
        return float(auroc(sweep(scores[self.labels == 0], scores[self.labels == 1])))


def distrust(away: Tensor, images: np.ndarray, others: int) -> Tensor:
    """Distrust (n,) of images by their worst patches."""
    own = away[images][:, :, images].clone()
    places = torch.arange(len(images))
    own[places, :, places] = torch.inf
    return deviations(own.kthvalue(others, 2).values.amax(1))


def oracles(
    scores: Scores, away: Tensor, images: np.ndarray, moved: np.ndarray, seed: int
) -> dict[str, float]:
    """Image AUROC where labels correct what is dropped: what a rule could reach at most.

    As many images are named by their distrust as are anomalous.
    """
    some = np.random.default_rng((seed, 1)).permutation(moved)[: len(moved) // 2]
    dropped = {"any half of the anomalous images": some}
    for others in OTHERS:
        named = images[distrust(away, images, others).topk(len(moved)).indices.numpy()]
        right = np.isin(named, moved)
        dropped[f"k = {others}: the anomalous of the named images"] = named[right]
        dropped[f"k = {others}: the nominal of the named images"] = named[~right]
    return {name: scores.auroc(images[~np.isin(images, x)], seed) for name, x in dropped.items()}


def interval(values: Sequence[float]) -> str:
    """Mean and half of its 95 % interval by Student's t."""
    x = np.asarray(values, dtype=float)
    half = stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5 if len(x) > 1 else np.nan
    return f"{x.mean():.4f} ± {half:.4f}"


def main() -> None:
    """Compute, draw, judge, print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", choices=["mtd", "screw"])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--weights", default="tv_in1k", help="of ResNet-18: a tag, or a file")
    parser.add_argument("--size", type=int, default=224, help="of the images, px")
    parser.add_argument("--every", type=int, default=2, help="patch in each direction, for speed")
    parser.add_argument("--ratio", type=float, help="of a greedy coreset; all patches without")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--oracles", action="store_true", help="drop by labels, instead of rules")
    options = parser.parse_args()
    mtd = options.data == "mtd"
    data: DataConfig = MTDConfig(root=str(options.root))
    if not mtd:
        data = MVTecConfig(root=str(options.root), category="screw")
    given = (options.weights, options.size, options.every, options.device)
    with torch.inference_mode():
        features, labels, trained = features_of(data, *given)
        away = distances(features).cpu()
        clean, plain = [], []
        table: dict[tuple[int, float], list[tuple[float, float, float]]] = {}
        gains: dict[str, list[float]] = {}
        for seed in range(options.first, options.first + options.seeds):
            generator = np.random.default_rng(seed)
            train, moved, test = divided(labels, None if mtd else trained, generator)
            scores = Scores(features, away, labels, test, options.ratio)
            images = np.concatenate([train, moved])
            clean.append(scores.auroc(train, seed))
            plain.append(scores.auroc(images, seed))
            if options.oracles:
                for name, value in oracles(scores, away, images, moved, seed).items():
                    gains.setdefault(name, []).append(value - plain[-1])
                continue
            for others in OTHERS:
                judged = distrust(away, images, others)
                for limit in LIMITS:
                    named = (judged > limit).numpy()
                    right = int(labels[images[named]].sum())
                    row = (
                        scores.auroc(images[~named], seed) - plain[-1],
                        right / max(1, named.sum()),
                        right / len(moved),
                    )
                    table.setdefault((others, limit), []).append(row)
    lost = np.subtract(clean, plain)
    print(f"clean {interval(clean)}, contaminated {interval(plain)}, lost {interval(lost)}\n")
    if options.oracles:
        print("| dropped | regained | share of the loss |")
        print("| --- " * 3 + "|")
        for name, values in gains.items():
            print(f"| {name} | {interval(values)} | {100 * np.mean(values) / lost.mean():.0f} % |")
        return
    print("| others | limit | regained | share of the loss | precision of the named | recall |")
    print("| --- " * 6 + "|")
    for (others, limit), rows in table.items():
        gain, precision, recall = zip(*rows, strict=True)
        share = f"{100 * np.mean(gain) / lost.mean():.0f} %"
        cells = [interval(gain), share, f"{np.mean(precision):.2f}", f"{np.mean(recall):.2f}"]
        print(f"| {others} | {limit} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
