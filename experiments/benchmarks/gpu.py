"""One GPU from decoded tensors to scores and maps: images a second by size of the memory.

The backbone has random weights, which take as long as others. Search is given real patch features
(`--features`, whose last rows are the queries), for those of random weights have many times as many
near neighbours; without a file they are of drawn images, by the network that ships. Steps are in
milliseconds for one batch. `at least` is a bound: the multiplications of backbone and search at the
rate of a large product in half precision, measured here. anomalib's model runs in float32 with a
memory of as many of its own features; it has no mapping, so they are longer.
"""

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import harness
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from patchcore import PatchCore
from patchcore.backbones import BackboneConfig
from patchcore.coreset import GreedyConfig, subsample
from patchcore.index import TorchIndex
from patchcore.metrics import PixelMetrics
from patchcore.scoring import anomaly_maps

SIDE = 224  # px


def main() -> None:
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--features", type=Path, help="(N, D) tensor in a .pt file")
    parser.add_argument("--memory", type=int, nargs="+", default=[1638, 16385, 163856])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--backbone", default="wide_resnet50_2")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--maps", type=int, default=1725, help="of which pixel metrics are taken")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    grid = SIDE // 8
    count = args.batch * grid**2  # queries
    if args.features is None:
        from search import drawn  # the data sets' libraries, which a file of features spares

        gathered, queries = drawn(40, 8, "cuda")
        queries = queries.repeat(-(-count // len(queries)), 1)[:count]
    else:
        rows = torch.load(args.features, mmap=True, weights_only=True)
        gathered, queries = rows[:-count].float().cuda(), rows[-count:].float().cuda()
    sizes = sorted({min(size, len(gathered)) for size in args.memory})
    print(f"{args.backbone}, {args.batch} images, {count} x {queries.shape[1]} queries")
    memories = [subsampled(gathered, size) for size in sizes]
    rate = product_rate()
    print(f"product in half precision: {rate / 1e12:.0f} TFLOP/s")
    images = torch.randn(args.batch, 3, SIDE, SIDE, device="cuda")
    model = PatchCore(BackboneConfig(args.backbone, "none"))
    with FlopCounterMode(display=False) as counter:
        model.backbone(images[:1].cpu())
    flop = args.batch * counter.get_total_flops()
    model.cuda()
    results = []
    for precision in (torch.bfloat16, torch.float32):
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == torch.bfloat16):
            name = str(precision).removeprefix("torch.")
            for row in ours(name, model, images, memories, queries, args.repeats):
                product = 2 * queries.numel() * row["memory"]
                results.append({**row, "at least": 1000 * (flop + product) / rate})
    results[0]["name"] = "ours"  # that of the table's times
    results += theirs(args.backbone, images, sizes)
    harness.report(results, args.json, "cuda")
    search_alone(memories, queries, args.repeats)
    pixel_metrics(args.maps)


def ours(
    precision: str,
    model: PatchCore,
    images: Tensor,
    memories: list[Tensor],
    queries: Tensor,
    repeats: int,
) -> list[dict[str, Any]]:
    """Time of each memory, and of each step on its own."""
    grid = SIDE // 8
    features = queries.view(len(images), grid, grid, -1)
    size = (SIDE, SIDE)

    def milliseconds(run: Callable[[], Any]) -> float:
        return 1000 * harness.seconds(run, repeats, warmup=3)

    def whole() -> None:
        model.embed(images)
        model.score(features, size)

    maps = model.backbone(images)
    grids = torch.rand(len(images), grid, grid, device="cuda")
    steps = {
        "backbone": milliseconds(lambda: model.backbone(images)),
        "patches": milliseconds(lambda: model.features(maps)),
    }
    rows = []
    for memory in memories:
        model.memory = memory
        search = milliseconds(lambda: model.search(queries, 1))
        seconds = harness.seconds(whole, repeats, warmup=3)
        rows.append(
            {
                "name": f"ours, {precision}",
                "seconds": seconds,
                "precision": precision,
                "memory": len(memory),
                "images/s": len(images) / seconds,
                **steps,
                "search": search,
                "map": milliseconds(lambda: anomaly_maps(grids, size, 4.0)),
            }
        )
    return rows


def search_alone(memories: list[Tensor], queries: Tensor, repeats: int) -> None:
    """Print times of the search and of that by float32 products, and where their results differ.

    `excess` is the most that a squared distance found exceeds the least, in float64, as a share of
    it, for some queries.
    """
    every = max(1, len(queries) // 512)
    some = queries[::every]
    print("\n| memory | search, ms | by products in float32, ms | rows that differ | excess |")
    print("| --- " * 5 + "|")
    for memory in memories:
        index, plain = TorchIndex(memory), TorchIndex(memory)
        plain._screen = None
        (_, rows), (_, expected) = index.search(queries, 1), plain.search(queries, 1)
        distance = (some.double() - memory[rows[::every, 0]].double()).square().sum(1)
        least = torch.stack([least_distances(some, part) for part in memory.split(16384)]).amin(0)
        times = [
            1000 * harness.seconds(lambda x=x: x.search(queries, 1), repeats, warmup=2)
            for x in (index, plain)
        ]
        cells = [f"{len(memory)}", *(f"{time:.1f}" for time in times)]
        cells += [f"{int((rows != expected).sum())}", f"{float((distance / least - 1).max()):.1e}"]
        print("| " + " | ".join(cells) + " |")


def least_distances(queries: Tensor, memory: Tensor) -> Tensor:
    """Squared distances (Q,) to the nearest row of the memory, by products in float64."""
    x, y = queries.double(), memory.double()
    products = torch.addmm(y.square().sum(1), x, y.T, alpha=-2)
    return products.amin(1) + x.square().sum(1)


def theirs(backbone: str, images: Tensor, sizes: list[int]) -> list[dict[str, Any]]:
    """anomalib's model, with as large memories of random features; nothing where it is missing."""
    make = anomalib_model()
    if make is None:
        print("anomalib is not installed: it is not in the table")
        return []
    model = make(layers=["layer2", "layer3"], backbone=backbone, pre_trained=False).cuda().eval()
    rows = []
    for size in sizes:
        model.memory_bank = torch.rand(size, 1536, device="cuda")
        try:
            with torch.inference_mode():
                seconds = harness.seconds(lambda: model(images), 3)
        except torch.OutOfMemoryError:
            print(f"anomalib with a memory of {size}: out of memory")
            continue
        row = {"name": "anomalib", "seconds": seconds, "precision": "float32", "memory": size}
        rows.append({**row, "images/s": len(images) / seconds})
    return rows


def anomalib_model() -> Callable[..., Any] | None:
    """anomalib's PatchcoreModel, without the imports of the rest of anomalib; None if not there."""
    spec = importlib.util.find_spec("anomalib")
    if spec is None or spec.submodule_search_locations is None:
        return None
    root = Path(spec.submodule_search_locations[0])
    components = "models.components"
    reduction = f"{components}.dimensionality_reduction"
    stubs = {}
    for name in (
        *("data", "utils", "models", components, f"{components}.base", f"{components}.sampling"),
        *(reduction, "models.image", "models.image.patchcore"),
    ):
        package: Any = types.ModuleType(f"anomalib.{name}")
        package.__path__ = [str(root.joinpath(*name.split(".")))]
        sys.modules[package.__name__] = stubs[name] = package

    def load(name: str) -> Any:
        return importlib.import_module(f"anomalib.{name}")

    class InferenceBatch(NamedTuple):
        pred_score: Tensor
        anomaly_map: Tensor

    stubs["data"].InferenceBatch = InferenceBatch
    stubs["utils"].deprecate = load("utils.deprecation").deprecate
    stubs[reduction].SparseRandomProjection = load(
        f"{reduction}.random_projection"
    ).SparseRandomProjection
    parts = stubs[components]
    parts.KCenterGreedy = load(f"{components}.sampling.k_center_greedy").KCenterGreedy
    parts.DynamicBufferMixin = load(f"{components}.base.dynamic_buffer").DynamicBufferMixin
    parts.TimmFeatureExtractor = load(f"{components}.feature_extractors").TimmFeatureExtractor
    parts.GaussianBlur2d = load(f"{components}.filters").GaussianBlur2d
    return load("models.image.patchcore.torch_model").PatchcoreModel


def pixel_metrics(count: int) -> None:
    """Print the seconds of pixel metrics on the host and on the GPU, from maps on the GPU."""
    generator = torch.Generator("cuda").manual_seed(0)
    grids = torch.rand(count, SIDE // 8, SIDE // 8, device="cuda", generator=generator)
    maps = anomaly_maps(grids, (SIDE, SIDE), 4.0)
    masks = maps > maps.flatten()[:: max(1, maps.numel() // 10**6)].quantile(0.98)
    masks[::3] = False  # nominal images
    values = {}
    for device in ("cpu", "cuda"):

        def run(device: str = device) -> None:
            metric = PixelMetrics().to(device)
            for some, flags in zip(maps.split(64), masks.split(64), strict=True):
                metric.update(some, flags)
            values[device] = metric.compute()

        seconds = harness.seconds(run, 1)
        print(f"pixel metrics of {count} maps, {device}: {seconds:.3f} s")
    worst = max(abs(values["cpu"][key] - values["cuda"][key]) for key in values["cpu"])
    print(f"largest difference {worst:.1e}")


def subsampled(features: Tensor, size: int) -> Tensor:
    """A greedy coreset of so many rows."""
    if size == len(features):
        return features
    config = GreedyConfig(ratio=size / len(features))
    return subsample(features, config, device=features.device).memory.cuda().contiguous()


def product_rate(side: int = 8192) -> float:
    """Floating-point operations a second of a large product in half precision."""
    x = torch.randn(side, side, device="cuda", dtype=torch.float16)
    return float(2 * side**3 / harness.seconds(lambda: x @ x, 10, warmup=3))


if __name__ == "__main__":
    main()
