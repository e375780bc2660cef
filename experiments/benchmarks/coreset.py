"""The greedy coreset beside one pick at a time, anomalib's, and the bare matrix product.

All four run in this process on the same features; times include the projection. `radius` is the
covering radius in the features' own space, `radius_projected` in the space where ours was picked.
"""

import contextlib
import importlib.util
import io
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from torch import Tensor

from patchcore.coreset import GreedyConfig, Projection, greedy_order, project


def main() -> None:
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=5000, help="patches")
    parser.add_argument("--dim", type=int, default=256, help="dimensions of generated features")
    parser.add_argument("--project", type=int, default=64, help="to so many dimensions; 0: none")
    parser.add_argument("--ratio", type=float, default=0.1, help="share of the patches picked")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--features", type=Path, help="(N, D) tensor in a .pt or .npy file")
    parser.add_argument("--scaling", action="store_true", help="time ours over sizes instead")
    parser.add_argument(
        "--repeats", type=int, default=3, help="of ours and the product, after as many to warm up"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    features = load(args.features, args.n, args.dim).to(args.device)
    projection = Projection.gaussian if args.project else Projection.none
    config = GreedyConfig(dimension=args.project or None, ratio=args.ratio, projection=projection)
    print(f"{len(features)} x {features.shape[1]}, projected to {args.project or 'all'}")
    if args.scaling:
        results = scaling(features, config, args.repeats)
    else:
        results = compare(features, config, args.repeats)
    harness.report(results, args.json, args.device)


def compare(features: Tensor, config: GreedyConfig, repeats: int) -> list[dict[str, Any]]:
    """Time and covering radius of each."""
    count = config.size(len(features))
    points = project(features, config).float()
    picks: dict[str, Tensor] = {}

    def ours() -> None:
        picks["ours"] = greedy_order(project(features, config), count).indices[:count]

    def one_at_a_time() -> None:
        picks["one_at_a_time"] = plain(project(features, config).float(), count, first)

    seconds = {"ours": harness.seconds(ours, repeats, repeats)}
    first = int(picks["ours"][0])
    seconds["one_at_a_time"] = harness.seconds(one_at_a_time, 1, 0)
    sampler = anomalib_sampler()
    if sampler is None:
        print("anomalib is not installed: pip install 'patchcore[benchmarks]'")
    else:

        def anomalib() -> None:
            with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
                chosen = sampler(features, count / len(features) + 1e-9).select_coreset_idxs()
            picks["anomalib"] = torch.tensor(chosen)

        seconds["anomalib"] = harness.seconds(anomalib, 1, 0)
    chosen = points[picks["ours"].to(points.device)]
    seconds["product"] = harness.seconds(lambda: product(points, chosen), repeats, repeats)
    return [
        {
            "name": name,
            "seconds": seconds[name],
            "radius": radius(features, picks[name]) if name in picks else None,
            "radius_projected": radius(points, picks[name]) if name in picks else None,
            "picks": len(picks[name]) if name in picks else None,
        }
        for name in seconds
    ]


def scaling(features: Tensor, config: GreedyConfig, repeats: int) -> list[dict[str, Any]]:
    """Times of this project over N and M, with the exponents of N and M fitted to them."""
    points = project(features, config)
    results: list[dict[str, Any]] = []
    for n in (len(points) // 4, len(points) // 2, len(points)):
        for ratio in (config.ratio / 4, config.ratio / 2, config.ratio):
            m = int(ratio * n)
            best = harness.seconds(lambda n=n, m=m: greedy_order(points[:n], m), repeats)
            results.append({"name": "ours", "seconds": best, "n": n, "m": m})
    table = np.log([[row["n"], row["m"], row["seconds"]] for row in results])
    design = np.column_stack([table[:, :2], np.ones(len(table))])
    (of_n, of_m, _), *_ = np.linalg.lstsq(design, table[:, 2], rcond=None)
    print(f"seconds ~ N^{of_n:.2f} M^{of_m:.2f}")
    return results


def plain(points: Tensor, count: int, first: int) -> Tensor:
    """One pick at a time, as well as that can be written: one fused pass, no synchronisation."""
    norms = points.square().sum(1)
    best = torch.full_like(norms, torch.inf)
    distance = torch.empty_like(norms)
    picks = torch.empty(count, dtype=torch.int64, device=points.device)
    pick = torch.tensor([first], device=points.device)
    for i in range(count):
        picks[i : i + 1] = pick
        torch.addmv(norms, points, points[pick][0], alpha=-2, out=distance)
        distance += norms[pick]
        torch.minimum(best, distance, out=best)
        best[pick] = -1
        pick = best.argmax(keepdim=True)
    return picks.cpu()


def product(points: Tensor, chosen: Tensor) -> None:
    """Multiply as often as the update of all points by all picks needs, and do nothing else."""
    rows = 2048 if points.device.type == "cpu" else 16384
    out = points.new_empty(rows, len(chosen))
    for some in points.split(rows):
        torch.mm(some, chosen.T, out=out[: len(some)])


def radius(points: Tensor, picks: Tensor) -> float:
    """Largest distance from any of `points` to its nearest pick."""
    chosen = points[picks.to(points.device)].float()
    largest = 0.0
    for some in points.split(4096):
        nearest = torch.full((len(some),), torch.inf, device=points.device)
        for part in chosen.split(4096):
            nearest = torch.minimum(nearest, torch.cdist(some.float(), part).amin(1))
        largest = max(largest, float(nearest.max()))
    return largest


def load(path: Path | None, n: int, dimension: int) -> Tensor:
    """The first n rows of a file, or features with a spectrum that decays as real ones' does."""
    if path is None:
        generator = torch.Generator().manual_seed(0)
        mix = torch.randn(dimension, dimension, generator=generator)
        mix *= torch.arange(1, dimension + 1)[:, None] ** -0.5
        return torch.randn(n, dimension, generator=generator) @ mix
    if path.suffix == ".npy":
        return torch.from_numpy(np.array(np.load(path, mmap_mode="r")[:n]))
    return torch.load(path, mmap=True, weights_only=True)[:n].clone()


def anomalib_sampler() -> Callable[[Tensor, float], Any] | None:
    """anomalib's KCenterGreedy, without the imports of the rest of anomalib; None if not there."""
    spec = importlib.util.find_spec("anomalib")
    if spec is None or spec.submodule_search_locations is None:
        return None
    root = Path(spec.submodule_search_locations[0])
    reduction = "models.components.dimensionality_reduction"
    for name in ("models", "models.components", reduction):
        package = types.ModuleType(f"anomalib.{name}")
        package.__path__ = [str(root.joinpath(*name.split(".")))]
        sys.modules[package.__name__] = package
    projection = importlib.import_module(f"anomalib.{reduction}.random_projection")
    sys.modules[f"anomalib.{reduction}"].SparseRandomProjection = projection.SparseRandomProjection  # type: ignore[attr-defined]
    sampling = importlib.import_module("anomalib.models.components.sampling.k_center_greedy")
    return sampling.KCenterGreedy


if __name__ == "__main__":
    main()
