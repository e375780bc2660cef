"""False-alarm rates on held-out nominal images at thresholds from the training images alone.

Nominal images are divided at random, again and again: a model is fitted on most of them, its
training images are scored as if it had not seen them, thresholds follow, and the rest is counted. A
split passes where its false alarms lie in the binomial 95 % band of the wanted rate.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from scipy.stats import betabinom, binom
from torch import Tensor

from patchcore.backbones import BackboneConfig, LayersConfig
from patchcore.coreset import GreedyConfig
from patchcore.data.dataset import ImageDataset, collate
from patchcore.data.generated import GeneratedCategory, GeneratedConfig
from patchcore.data.mtd import MTDConfig
from patchcore.data.sample import DataConfig
from patchcore.data.transforms import ImageConfig
from patchcore.decision import alarms, image_threshold, pixel_threshold
from patchcore.index import TorchIndex
from patchcore.methods.folds import LeftOut, cross_fitted
from patchcore.methods.patchcore import PatchCore
from patchcore.scoring import anomaly_maps

RATES = (0.005, 0.01, 0.02, 0.05)


def nominal_features(model: PatchCore, data: DataConfig, most: int) -> tuple[Tensor, list[int]]:
    """Patch features (N, h, w, D) of the nominal images of a category, and the images' size."""
    split = data.read()
    samples = [sample for sample in (*split.train, *split.test) if not sample.label][:most]
    record = model.parts.backbone.input()
    image = ImageConfig(mean=list(record.mean), std=list(record.std), view=type(data).VIEW)
    loader = torch.utils.data.DataLoader(
        ImageDataset(samples, image), batch_size=32, collate_fn=collate, num_workers=data.workers
    )
    features = [model.embed(batch["image"].to(model.device)) for batch in loader]
    return torch.cat(features), list(next(iter(loader))["mask"].shape[1:])


def rows_left_out(model: PatchCore, features: Tensor) -> LeftOut:
    """Scores of fitted images (N, h, w, D) by the one memory, without the rows that are theirs."""
    count, height, width = features.shape[:3]
    coreset = model.coreset
    assert coreset is not None and coreset.indices is not None
    origin = coreset.indices.to(features.device) // (height * width)  # (M,)
    found = LeftOut()
    for number in range(count):
        left = model.memory[origin != number]
        squared, _ = TorchIndex(left).search(features[number].flatten(0, 1), 1)
        grid = squared[:, 0].sqrt().view(height, width)
        found.scores[number], found.grids[number] = float(grid.max()), grid.cpu()
    return found


def scored_split(
    model: PatchCore, features: Tensor, fit: Tensor, held: Tensor, folds: int
) -> tuple[LeftOut, Tensor, Tensor]:
    """Scores of the fitted images as if they had not been there; of the others as they are.

    Scores (m,) and patch scores (m, h, w) of the held-out images.
    """
    batches = [features[some] for some in fit.split(64)]
    buffer = model.buffer(len(fit))
    for batch in batches:
        buffer.append(batch)
    model.build_from(buffer)
    if folds:
        left_out = cross_fitted(model, batches, range(len(fit)), folds)
    else:
        left_out = rows_left_out(model, features[fit])
    found = [model.score(features[some], (1, 1)) for some in held.split(64)]
    scores = torch.cat([x.score for x in found]).cpu()
    return left_out, scores, torch.cat([x.patch_score for x in found])


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row a rate: counts of false alarms in every split, and the shares of pixels."""
    weights = BackboneConfig("resnet18", options.weights)
    coreset = GreedyConfig(ratio=options.ratio)
    model = PatchCore(weights, LayersConfig(["layer2", "layer3"]), coreset=coreset)
    model.eval().to(options.device)
    n, m = options.fitted, options.held
    data: DataConfig
    if options.data == "mtd":
        data = MTDConfig(root=str(options.root), workers=options.workers)
    else:
        data = GeneratedConfig(
            root=str(options.root),
            category=GeneratedCategory[options.data],
            train_images=n + m,
            nominal_images=1,
            anomalous_images=1,
            workers=options.workers,
        )
    features, size = nominal_features(model, data, 2**31 if options.data == "mtd" else n + m)
    features = features[:, :: options.every, :: options.every].contiguous()
    print(f"{options.data}: {len(features)} nominal images, {n} fitted, {m} held out", flush=True)
    counts: dict[float, list[int]] = {rate: [] for rate in RATES}
    shares: dict[float, list[float]] = {rate: [] for rate in RATES}
    start, rows = time.perf_counter(), list[dict[str, Any]]()
    for done in range(1, options.splits + 1):
        split = options.first + done - 1
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(split))
        fit, held = order[:n].to(features.device), order[n : n + m].to(features.device)
        coreset.seed = split
        left_out, scores, grids = scored_split(model, features, fit, held, options.folds)
        nominal = torch.tensor(list(left_out.scores.values()))
        maps = None
        if split < options.pixels:
            of_nominal = torch.stack(list(left_out.grids.values())).to(options.device)
            maps = [
                anomaly_maps(x, (size[0], size[1]), model.scoring.sigma)
                for x in (of_nominal, grids)
            ]
        for rate in RATES:
            counts[rate].append(int((scores >= image_threshold(nominal, rate)).sum()))
            if maps is not None:
                threshold, _ = pixel_threshold(maps[0].split(64), n, rate)
                shares[rate].append(float((maps[1] >= threshold).float().mean()))
        if done % 20 == 0 or done == options.splits:
            each = (time.perf_counter() - start) / done
            print(f"{done} splits, {each:.2f} s each", flush=True)
            rows = [
                {
                    "data": options.data,
                    "method": f"{options.folds} folds" if options.folds else "rows left out",
                    **{"rate": rate, "fitted": n, "held": m, "counts": counts[rate]},
                    "pixel_shares": shares[rate],
                }
                for rate in RATES
            ]
            if options.out:
                options.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def line(row: dict[str, Any]) -> str:
    """Row of the table: how many splits lie in the bands, and the mean rates."""
    n, m, rate = row["fitted"], row["held"], row["rate"]
    counts = torch.tensor(row["counts"])
    k = alarms(n, rate)
    bands = {"binomial": binom(m, rate), "beta": betabinom(m, k, n + 1 - k)}
    inside, expected = {}, {}
    for name, law in bands.items():
        low, high = law.ppf(0.025), law.ppf(0.975)
        inside[name] = float(((counts >= low) & (counts <= high)).float().mean())
        expected[name] = float(bands["beta"].cdf(high) - bands["beta"].cdf(low - 1))
    low, high = (int(bands["binomial"].ppf(x)) for x in (0.025, 0.975))
    shares = row["pixel_shares"]
    pixels = f"{100 * sum(shares) / len(shares):.2f} %" if shares else "–"
    return (
        f"| {row['data']} | {row['method']} | {100 * rate:g} % | {100 * k / (n + 1):.2f} % | "
        f"{100 * float(counts.float().mean()) / m:.2f} % | {low} to {high} | "
        f"{100 * inside['binomial']:.1f} % | {100 * expected['binomial']:.1f} % | "
        f"{100 * inside['beta']:.1f} % | {100 * expected['beta']:.1f} % | {pixels} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=["mtd", *(each.name for each in GeneratedCategory)])
    parser.add_argument("--root", type=Path, required=True, help="images; generated ones go there")
    parser.add_argument("--weights", default="tv_in1k", help="of ResNet-18: a tag, or a file")
    parser.add_argument("--fitted", type=int, default=852, help="images of every split to fit on")
    parser.add_argument("--held", type=int, default=100, help="held-out images of every split")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first split")
    parser.add_argument("--pixels", type=int, default=20, help="splits to measure pixels in, too")
    parser.add_argument(
        "--folds", type=int, default=10, help="0: leave rows out of one memory instead"
    )
    parser.add_argument("--ratio", type=float, default=0.01, help="of the coreset")
    parser.add_argument("--every", type=int, default=1, help="patch in each direction, for speed")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON lines: what is counted, as it comes")
    options = parser.parse_args()
    with torch.inference_mode():
        rows = measure(options)
    for row in rows:
        print(line(row), flush=True)


if __name__ == "__main__":
    main()
