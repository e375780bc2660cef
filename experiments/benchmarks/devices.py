"""One device beside several: features of images, the greedy coreset, and the test.

Each process makes the same images that one process alone would make, in the same batches, so picks,
memory, scores and metrics have to be the same; the table says whether they are. Images are made on
the device, outside the times. A first round of the same size warms up: what is compiled for a size
is compiled then.

    python experiments/benchmarks/devices.py --device cuda     two GPUs, 600,000 patches
    python experiments/benchmarks/devices.py --images 24 --test 8 --backbone resnet18 --size 64
"""

import json
import time
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import harness
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from patchcore import BackboneConfig, GreedyConfig, LayersConfig, PatchConfig, PatchCore
from patchcore.coreset.greedy import Projection
from patchcore.digests import tensors_digest
from patchcore.gathering import gather_batches
from patchcore.methods.detector import Fitting
from patchcore.metrics import ImageMetrics
from patchcore.patches import Mapping


def main() -> None:
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--devices", type=int, default=2, help="that share the work")
    parser.add_argument("--images", type=int, default=768, help="training images")
    parser.add_argument("--test", type=int, default=256, help="test images")
    parser.add_argument("--batch", type=int, default=32, help="images at once")
    parser.add_argument("--size", type=int, default=224, help="of the images, in px")
    parser.add_argument("--backbone", default="wide_resnet50_2")
    parser.add_argument("--weights", default="none", help="of it: a file, or none for random ones")
    parser.add_argument("--ratio", type=float, default=0.1, help="share of the patches picked")
    parser.add_argument(
        "--projection",
        default="auto",
        choices=[way.name for way in Projection],
        help="of the patches, for the picks",
    )
    args = parser.parse_args()
    results = [run(args, 1), run(args, args.devices)]
    one, shared = results
    for row in results:
        row["same"] = all(row[key] == one[key] for key in ("picks", "memory", "scores", "auroc"))
    kept = ("name", "seconds", "extract", "coreset", "test", "patches", "auroc", "same")
    harness.report([{key: row[key] for key in kept} for row in results], args.json, args.device)
    for stage in ("extract", "coreset", "test"):
        print(f"{stage}: {one[stage] / shared[stage]:.2f} times as fast on {args.devices}")
    if not shared["same"]:
        raise SystemExit("error: the devices together differ from one alone")


def run(args: Any, devices: int) -> dict[str, Any]:
    """Times and digests of so many processes, as the first of them tells."""
    with TemporaryDirectory() as folder:
        target = Path(folder) / "found.json"
        store = dist.TCPStore("127.0.0.1", 0, devices, True, wait_for_workers=False)
        torch.multiprocessing.spawn(work, (args, devices, store.port, target), nprocs=devices)
        return dict(json.loads(target.read_text()))


def work(rank: int, args: Any, size: int, port: int, target: Path) -> None:
    """Do the share of one process."""
    torch.set_num_threads(max(args.threads // size, 1))
    device = torch.device(args.device, rank) if args.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store = dist.TCPStore("127.0.0.1", port, size, False)
    ways = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    hour = timedelta(hours=1)
    dist.init_process_group(ways, store=store, rank=rank, world_size=size, timeout=hour)
    measured(args, device, args.images, args.test)
    found = measured(args, device, args.images, args.test)
    if rank == 0:
        target.write_text(json.dumps({"name": "ours" if size == 1 else f"{size} devices", **found}))
    dist.destroy_process_group()


def measured(args: Any, device: torch.device, images: int, tests: int) -> dict[str, Any]:
    """Fit to so many images and test as many; times, and digests of what came of it."""
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = PatchCore(
        BackboneConfig(args.backbone, args.weights),
        LayersConfig(["layer2", "layer3"] if "resnet" in args.backbone else ["2", "3"]),
        PatchConfig(mapping=Mapping.average),
        GreedyConfig(ratio=args.ratio, projection=Projection[args.projection]),
    ).to(device)
    buffer = model.buffer(-(-images // size))
    batches = list(torch.arange(images).split(args.batch))[rank::size]
    pictures = [nominal(batch, args.size, device) for batch in batches]
    with torch.inference_mode():
        model.features(model.backbone(pictures[0]))  # which sets the network up for the device

    start = watch()
    for batch in pictures:
        with torch.inference_mode():
            buffer.append(model.features(model.backbone(batch)))
    extract = watch() - start

    places = torch.cat(batches).tolist()
    fitting = Fitting(images=places, places=None if size == 1 else places)
    start = watch()
    model.build_from(buffer, fitting)
    coreset = watch() - start

    batches = list(torch.arange(tests).split(args.batch))[rank::size]
    pictures = [spotted(batch, args.size, device) for batch in batches]
    start = watch()
    scores = [model(batch).score for batch in pictures]
    every = torch.cat(gather_batches(scores)).cpu()
    test = watch() - start
    metrics = ImageMetrics()
    metrics.distributed_available_fn = lambda: False
    metrics.update(every, torch.arange(len(every)) % 2)
    assert model.coreset is not None and model.coreset.indices is not None
    return {
        "seconds": extract + coreset + test,
        "extract": extract,
        "coreset": coreset,
        "test": test,
        "patches": model._gathered,
        "picks": tensors_digest([("picks", model.coreset.indices)]),
        "memory": tensors_digest([("memory", model.memory)]),
        "scores": tensors_digest([("scores", every)]),
        "auroc": metrics.compute()["image_auroc"] if rank == 0 else 0.0,
    }


def nominal(numbers: Tensor, size: int, device: torch.device, more: int = 0) -> Tensor:
    """Images (B, 3, size, size) of soft patterns, each its own by its number and `more`."""
    soft = []
    for number in numbers.tolist():
        generator = torch.Generator().manual_seed(more + number)
        image = torch.randn(1, 3, size // 8, size // 8, generator=generator)
        image = F.interpolate(image, size=(size, size), mode="bilinear")
        soft.append(image + 0.1 * torch.randn(1, 3, size, size, generator=generator))
    return torch.cat(soft).to(device)


def spotted(numbers: Tensor, size: int, device: torch.device) -> Tensor:
    """Other such images, of which those with odd numbers have a spot."""
    images = nominal(numbers, size, device, more=2**20)
    images[numbers % 2 == 1, :, size // 3 : size // 2, size // 3 : size // 2] += 1
    return images


def watch() -> float:
    """Time, once all processes have come here with their devices' work done."""
    harness.drain()
    dist.barrier()
    return time.perf_counter()


if __name__ == "__main__":
    main()
