"""Nearest neighbours by torch, faiss flat and faiss IVFPQ: seconds, and what IVFPQ misses.

The memory is every patch of nominal images, the queries are the patches of test images (of both
kinds) that it has not seen. `recall@1` is the share of the queries whose nearest memory patch, as
exact search knows it, is the one found; `distance` the mean found over the mean of exact search.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import torch
from torch import Tensor

from patchcore import FaissFlatConfig, FaissIVFPQConfig, PatchCore, TorchIndexConfig
from patchcore.backbones import BackboneConfig
from patchcore.data.dataset import ImageDataset
from patchcore.data.generated import GeneratedConfig
from patchcore.data.sample import Sample
from patchcore.data.transforms import ImageConfig
from patchcore.index import Index, IndexConfig, build_index


def main() -> None:
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=40, help="nominal images, drawn")
    parser.add_argument("--queries", type=int, default=8, help="test images, drawn")
    parser.add_argument("--features", type=Path, help="(N, D) tensor in a .pt file instead")
    parser.add_argument("--query-rows", type=int, default=6272, help="of it, its last, as queries")
    parser.add_argument("--probes", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--lists", type=int, default=512)
    parser.add_argument("--sub-quantizers", type=int, default=64)
    parser.add_argument("--train", type=int, help="patches that IVFPQ learns from; all by default")
    parser.add_argument("--device", default="cpu", help="of memory and queries; faiss follows")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.features is None:
        memory, queries = drawn(args.images, args.queries, args.device)
    else:
        rows = torch.load(args.features, mmap=True, weights_only=True).float()
        memory, queries = rows[: -args.query_rows], rows[-args.query_rows :]
    memory, queries = memory.to(args.device), queries.to(args.device)
    print(f"memory {len(memory)} x {memory.shape[1]}, {len(queries)} queries")
    gpu = args.device.startswith("cuda")
    results: list[dict[str, Any]] = []
    exact: tuple[Tensor, Tensor] | None = None

    def measure(name: str, index: Index, build: float) -> None:
        nonlocal exact
        found = index.search(queries, 1)
        exact = exact or found
        results.append(
            {
                "name": name,
                "seconds": harness.seconds(lambda: index.search(queries, 1), args.repeats),
                "seconds to build": build,
                "recall@1": float((found[1] == exact[1]).float().mean()),
                "distance": float(found[0].sqrt().mean() / exact[0].sqrt().mean()),
            }
        )

    measure("ours", *built(memory, TorchIndexConfig()))
    measure("faiss flat", *built(memory, FaissFlatConfig(gpu)))
    approximate, build = built(
        memory,
        FaissIVFPQConfig(args.lists, 1, args.sub_quantizers, train_patches=args.train, gpu=gpu),
    )
    for probes in args.probes:
        approximate.index.nprobe = probes  # trained once for all
        measure(f"faiss IVFPQ, {probes} of {args.lists} lists", approximate, build)
    harness.report(results, args.json, args.device)


def built(memory: Tensor, config: IndexConfig) -> tuple[Any, float]:
    """The search back end, and the seconds that it took to build."""
    harness.drain()
    start = time.perf_counter()
    index = build_index(memory, config)
    harness.drain()
    return index, time.perf_counter() - start


def drawn(nominal: int, test: int, device: str) -> tuple[Tensor, Tensor]:
    """Patch features (N, D) of nominal and of test images, by the network that ships with us."""
    model = PatchCore(BackboneConfig("embedded", "shipped")).to(device)
    with tempfile.TemporaryDirectory(prefix="patchcore-search-") as folder:
        half = max(1, test // 2)
        split = GeneratedConfig(
            root=folder,
            train_images=nominal,
            nominal_images=half,
            anomalous_images=max(1, test - half),
        ).read()
        return embedded(model, split.train, device), embedded(model, split.test, device)


def embedded(model: PatchCore, samples: list[Sample], device: str) -> Tensor:
    """Patch features (N, D) of these images."""
    dataset = ImageDataset(samples, ImageConfig())
    features = [
        model.embed(dataset[i]["image"][None].to(device)).flatten(0, 2) for i in range(len(samples))
    ]
    return torch.cat(features)


if __name__ == "__main__":
    main()
