"""Peak memory of fitting and inspecting in tiles, by the image's size: a process each.

    python experiments/tiles/memory.py

Each process writes nominal images of noise, fits a model to them in tiles, and inspects one, from
its file to its anomaly map in its own size. `peak` is the resident set's largest size, as the
operating system tells it; images and map are part of it. The C library of Linux keeps freed blocks
for later by a threshold that grows with their size; fixed at 1 MB, large ones go back at once.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from patchcore import GreedyConfig, PatchCore
from patchcore.data.dataset import ImageDataset, collate
from patchcore.data.sample import Sample
from patchcore.data.transforms import ImageConfig
from patchcore.inspection import predict
from patchcore.inspector import Inspector
from patchcore.methods import PatchCoreConfig

SETTINGS: dict[str, dict[str, str]] = {
    "as it is": {},
    "large blocks handed back": {"MALLOC_MMAP_THRESHOLD_": "1000000"},
}
SIZES = ((1024, 768), (2048, 1536), (4096, 3072))


def main() -> None:
    """Print a line for each size, and its share of the first one's peak."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiles", type=int, default=512, help="side of a tile, px")
    parser.add_argument("--images", type=int, default=3, help="nominal images")
    parser.add_argument("--per-image", type=int, default=2000, help="patches handed on of each")
    parser.add_argument("--size", type=int, nargs=2, help="width and height: measure these here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.size:
        print(measured(args))
        return
    firsts: dict[str, int] = {}
    for width, height in SIZES:
        command = [sys.executable, *sys.argv, "--size", str(width), str(height)]
        shown = []
        for name, more in SETTINGS.items():
            environment = {**os.environ, **more}
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, env=environment
            )
            peak = int(done.stdout.split()[-1])
            first = firsts.setdefault(name, peak)
            shown.append(f"{name} {peak / 1024:.0f} MiB, {peak / first:.3f}")
        print(f"{width} × {height}: {'; '.join(shown)}", flush=True)


def measured(args: argparse.Namespace) -> int:
    """Return the peak in KiB of this process once it has fitted and inspected."""
    width, height = args.size
    image = ImageConfig(tiles=args.tiles)
    coreset, method = GreedyConfig(0.1), PatchCoreConfig(per_image=args.per_image)
    model = PatchCore(coreset=coreset, method=method)
    inspector = Inspector(model, image)  # which lets the model see its images in tiles
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.bmp" for number in range(args.images)]
        for number, path in enumerate(paths):
            write(path, width, height, number)
        dataset = ImageDataset([Sample(path, 0, "good") for path in paths], image)
        batches = (collate([dataset[number]])["image"] for number in range(len(paths)))
        model.fit(batches)
        (found,) = predict(inspector, paths[:1], workers=1)
        assert found.map.shape == (height, width)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def write(path: Path, width: int, height: int, seed: int) -> None:
    """Write an image of noise in strips, so that writing takes less than reading."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (width, height))
    for top in range(0, height, 256):
        strip = rng.integers(0, 256, (256, width, 3), dtype=np.uint8)
        picture.paste(Image.fromarray(strip), (0, top))
    picture.save(path)


if __name__ == "__main__":
    main()
