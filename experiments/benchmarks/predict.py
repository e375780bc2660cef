"""Memory and speed of `predict` over many generated images, against decoding and backbone alone.

    python experiments/benchmarks/predict.py --images 20000

Both ways take turns over parts of the same files, so that a busy machine slows them alike. Decoding
and backbone alone is what no inspection can do without: files decoded, resized, normalised, and the
backbone's layer maps, with as many threads.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from harness import machine
from PIL import Image

from patchcore import BackboneConfig, GreedyConfig, Inspector, PatchCore
from patchcore.data.images import read_image
from patchcore.data.synthesis import draw_texture
from patchcore.data.transforms import ImageConfig
from patchcore.inspection import BATCH, Inspection, Thresholds, ahead, predict
from patchcore.inspector import normalised

DRAWN = 50  # different images; files are links to them
PART = 500  # images that each way takes at a time


def main() -> None:
    """Draw, fit, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=256, help="side of an image, px")
    parser.add_argument("--input", type=int, default=224, help="side of the network's input, px")
    parser.add_argument("--backbone", default="embedded")
    parser.add_argument("--weights", help="of the backbone, if they are a file")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=2, help="threads that decode")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        paths = draw(Path(folder), options.images, options.size)
        inspector = fitted(paths[:DRAWN], options.backbone, options.weights, options.input)
        result = measure(inspector, paths, options.workers)
    print(machine())
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result))


def draw(folder: Path, images: int, size: int) -> list[Path]:
    """Write textures, every tenth with a stain, and link as many names to them."""
    sources = []
    for seed in range(DRAWN):
        flaw = "blot" if seed % 10 == 9 else None
        sources.append(folder / f"drawn_{seed}.png")
        pixels, _ = draw_texture(np.random.default_rng(seed), size, flaw)
        Image.fromarray(pixels).save(sources[-1])
    paths = []
    for number in range(images):
        paths.append(folder / f"{number:06d}.png")
        paths[-1].hardlink_to(sources[number % DRAWN])
    return paths


def fitted(paths: list[Path], backbone: str, weights: str | None, size: int) -> Inspector:
    """A model of the nominal ones, 1 % of whose patches are kept."""
    config = BackboneConfig(backbone, **({"weights": weights} if weights else {}))
    record = config.input()
    image = ImageConfig(size=size, mean=list(record.mean), std=list(record.std))
    model = PatchCore(config, coreset=GreedyConfig(ratio=0.01))
    inspector = Inspector(model, image)
    nominal = [path for number, path in enumerate(paths) if number % 10 != 9]
    batch = torch.from_numpy(np.stack([inspector.prepare(read_image(path)) for path in nominal]))
    model.fit(normalised(batch, image))
    return inspector


def measure(inspector: Inspector, paths: list[Path], workers: int) -> dict[str, float]:
    """Images a second of both ways, in turns, and memory from the thousandth image on."""
    first = [x.score for x in predict(inspector, paths[:DRAWN]) if isinstance(x, Inspection)]
    thresholds = Thresholds(float(np.quantile(first, 0.9)), float(np.quantile(first, 0.9)))
    results = predict(inspector, iter(paths), thresholds=thresholds, workers=workers)
    bare = decoded_maps(inspector, iter(paths), workers)
    spent = {"predict": 0.0, "bare": 0.0}
    resident, anomalous = [], 0
    for done in range(0, len(paths), PART):
        start = time.perf_counter()
        for x in islice(results, PART):
            assert isinstance(x, Inspection)
            anomalous += bool(x.anomalous)
        spent["predict"] += time.perf_counter() - start
        if done + PART >= 1000:
            resident.append(memory())
        start = time.perf_counter()
        for _ in islice(bare, PART):
            pass
        spent["bare"] += time.perf_counter() - start
    return {
        "images": len(paths),
        "anomalous": anomalous,
        "predict, images a second": len(paths) / spent["predict"],
        "decoding and backbone alone, images a second": len(paths) / spent["bare"],
        "ratio": spent["bare"] / spent["predict"],
        "memory at the 1,000th, MB": resident[0] if resident else float("nan"),
        "growth from the 1,000th on, MB": max(resident) - resident[0] if resident else float("nan"),
    }


def decoded_maps(inspector: Inspector, paths: Iterator[Path], workers: int) -> Iterator[None]:
    """Decode with as many threads, and run the backbone over batches; yield once an image."""
    backbone = inspector.members[0].backbone
    with ThreadPoolExecutor(workers) as pool, torch.inference_mode():
        decoded = ahead(pool, partial(prepared, inspector), paths, BATCH + workers)
        while batch := list(islice(decoded, BATCH)):
            backbone(normalised(torch.from_numpy(np.stack(batch)), inspector.image))
            yield from [None] * len(batch)


def prepared(inspector: Inspector, path: Path) -> np.ndarray:
    """An image as the network takes it, (h, w, 3) uint8."""
    return np.asarray(inspector.prepare(read_image(path)))


def memory() -> float:
    """Resident memory of this process, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


if __name__ == "__main__":
    main()
