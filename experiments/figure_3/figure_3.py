"""The paper's Figure 3: a greedy coreset covers what a random share leaves out.

Two clouds of 2-D points, one of several dense clusters and one spread evenly, and for each the same
number of points kept by both. Prints how far the farthest point is from the nearest kept one.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from patchcore.coreset import CoresetConfig, GreedyConfig, RandomConfig, subsample

POINTS, KEPT = 2000, 40


def multimodal(generator: np.random.Generator) -> Tensor:
    """Eight clusters, (N, 2), most points in few of them."""
    centres = generator.uniform(0.1, 0.9, (8, 2))
    shares = np.array([0.35, 0.3, 0.2, 0.08, 0.04, 0.015, 0.01, 0.005])
    cluster = generator.choice(len(centres), POINTS, p=shares)
    points = centres[cluster] + generator.normal(0, 0.03, (POINTS, 2))
    return torch.from_numpy(points).float()


def uniform(generator: np.random.Generator) -> Tensor:
    """Evenly over the unit square, (N, 2)."""
    return torch.from_numpy(generator.uniform(0, 1, (POINTS, 2))).float()


def radius(points: Tensor, kept: Tensor) -> float:
    """Largest distance from a point to its nearest kept one."""
    return float(torch.cdist(points, kept).min(1).values.max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("figure_3.png"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = np.random.default_rng(options.seed)
    clouds = {"multimodal": multimodal(generator), "uniform": uniform(generator)}
    samplers: dict[str, CoresetConfig] = {
        "greedy coreset": GreedyConfig(count=KEPT, seed=options.seed),
        "random share": RandomConfig(count=KEPT, seed=options.seed),
    }
    figure = Figure(figsize=(8, 8), layout="constrained")
    for row, (cloud, points) in zip(figure.subplots(2, 2), clouds.items(), strict=True):
        for axes, (name, config) in zip(row, samplers.items(), strict=True):
            kept = subsample(points, config).memory
            reach = radius(points, kept)
            print(f"{cloud:12} {name:16} covering radius {reach:.3f}")
            axes.scatter(*points.T, s=4, color="#b8c4ce", linewidths=0)
            axes.scatter(*kept.T, s=18, color="#d1495b", linewidths=0)
            axes.set_title(f"{cloud}, {name}: radius {reach:.2f}", fontsize=10)
            axes.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05), aspect="equal", xticks=[], yticks=[])
    figure.savefig(options.out, dpi=120)


if __name__ == "__main__":
    main()
