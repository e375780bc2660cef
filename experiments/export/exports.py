"""Exports against the Python model: size, speed and differences on magnetic tiles.

Every network is fitted once at the larger ratio; the memory of the smaller one is its beginning.

    python experiments/export/exports.py --root MTD --resnet18 FILE --densenet201 FILE
"""

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from patchcore import BackboneConfig, GreedyConfig, PatchCore, ScoringConfig
from patchcore.data.images import read_image
from patchcore.data.mtd import MTDConfig
from patchcore.data.sample import Sample
from patchcore.data.transforms import ImageConfig
from patchcore.data.view import View
from patchcore.export import FORMATS
from patchcore.export.graph import traced_graph
from patchcore.export.parity import SCORE_LIMIT, compared
from patchcore.inspector import Inspector, normalised
from patchcore.metrics import ImageMetrics

BATCH = 8
SIDE = 224
SCORINGS = {"maximum": ScoringConfig(), "reweighted": ScoringConfig(reweight=9)}


def batches(inspector: Inspector, samples: Sequence[Sample]) -> Iterator[torch.Tensor]:
    """Prepared images (B, h, w, 3) uint8 of samples."""
    for start in range(0, len(samples), BATCH):
        paths = [sample.path for sample in samples[start : start + BATCH]]
        prepared: list[Any] = [inspector.prepare(read_image(path)) for path in paths]
        yield torch.from_numpy(np.stack(prepared))


def spread(samples: Sequence[Sample], most: int | None) -> list[Sample]:
    """Take at most so many samples, evenly spread; all for None."""
    if most is None or most >= len(samples):
        return list(samples)
    return [samples[i * len(samples) // most] for i in range(most)]


def speed(run: Callable[[torch.Tensor], Any], batch: torch.Tensor, repeats: int) -> float:
    """Images a second, of the fastest of some repeats: the machine does other work, too."""
    run(batch)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run(batch)
        seconds.append(time.perf_counter() - start)
    return len(batch) / min(seconds)


def fitted(backbone: BackboneConfig, train: Sequence[Sample], ratio: float) -> Inspector:
    """A model of training samples."""
    record = backbone.input()
    image = ImageConfig(size=SIDE, view=View.square, mean=list(record.mean), std=list(record.std))
    model = PatchCore(backbone, coreset=GreedyConfig(ratio=ratio))
    inspector = Inspector(model, image)
    model.fit(normalised(batch, image) for batch in batches(inspector, train))
    return inspector


def smaller(inspector: Inspector, patches: int, scoring: ScoringConfig) -> Inspector:
    """The same network with the beginning of its memory, and other scoring."""
    model = PatchCore(inspector.members[0].parts.backbone, scoring=scoring)
    model.memory = inspector.members[0].memories["memory"][:patches].clone()
    return Inspector(model, inspector.images)


def measured(
    inspector: Inspector, test: Sequence[Sample], threads: int, repeats: int
) -> Iterator[dict[str, Any]]:
    """Rows of the table: first eager PyTorch, then each export."""
    pixels = list(batches(inspector, test))
    python = [(x.score.numpy(), x.map.numpy()) for x in map(inspector.score, pixels)]
    metric = ImageMetrics()
    scores = torch.from_numpy(np.concatenate([score for score, _ in python]))
    metric.update(scores, torch.tensor([sample.label for sample in test]))
    values = metric.compute()
    # The F1-optimal threshold is one image's own score, which rounding would flip.
    threshold = float(values["image_threshold"]) * (1 - SCORE_LIMIT / 2)
    yield {
        "runtime": "PyTorch",
        "images a second": speed(inspector.score, pixels[0], repeats),
        "image AUROC": float(values["image_auroc"]),
    }
    program = traced_graph(inspector, (SIDE, SIDE))
    for name in ("onnx", "openvino"):
        with tempfile.TemporaryDirectory() as folder:
            FORMATS[name].write(program, Path(folder))
            run = FORMATS[name].open(Path(folder), threads)
            size = sum(path.stat().st_size for path in Path(folder).iterdir())
            found = compared(
                ((own, run(x.numpy())) for own, x in zip(python, pixels, strict=True)), threshold
            )
            yield {
                "runtime": FORMATS[name].runtime,
                "MB": size / 1e6,
                "images a second": speed(lambda x, run=run: run(x.numpy()), pixels[0], repeats),
                "scores": found.score,
                "maps": found.map_share,
                "flipped": found.flipped,
                "images": found.images,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="folder of the magnetic tiles")
    parser.add_argument("--resnet18", help="file of ImageNet weights; timm's own by default")
    parser.add_argument("--densenet201", help="the same of DenseNet-201")
    parser.add_argument(
        "--networks", nargs="+", default=["embedded", "resnet18", "densenet201", "vit_tiny"]
    )
    parser.add_argument("--scorings", nargs="+", default=[*SCORINGS], choices=[*SCORINGS])
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.01, 0.1])
    parser.add_argument("--train", type=int, help="training images; all by default")
    parser.add_argument("--test", type=int, help="test images; all by default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file that a line is added to for every row")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    networks = {
        "embedded": BackboneConfig(),
        "resnet18": BackboneConfig("resnet18", options.resnet18),
        "densenet201": BackboneConfig("densenet201", options.densenet201),
        "vit_tiny": BackboneConfig("vit_tiny_patch16_224", "none"),
    }
    split = MTDConfig(root=options.root).read()
    train, test = spread(split.train, options.train), spread(split.test, options.test)
    high = max(options.ratios)
    for name in options.networks:
        whole = fitted(networks[name], train, high)
        patches = whole.members[0].memory_patches
        for ratio in sorted(options.ratios):
            kept = max(1, round(patches * ratio / high))
            for scoring in options.scorings:
                inspector = smaller(whole, kept, SCORINGS[scoring])
                for row in measured(inspector, test, options.threads, options.repeats):
                    described = {
                        "network": name,
                        "ratio": ratio,
                        "patches": kept,
                        "scoring": scoring,
                        **row,
                    }
                    line = json.dumps(described)
                    print(line, flush=True)
                    if options.json is not None:
                        with options.json.open("a") as file:
                            file.write(line + "\n")


if __name__ == "__main__":
    main()
