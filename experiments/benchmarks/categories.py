"""All fifteen categories as one multirun, on images as many and as large as those of MVTec AD.

Images are drawn and kept as PNG files first. Then one multirun with an empty cache; the same points
with the cache it left (decoded images, and what else it kept); and, with another seed, so that a
network of other random weights finds nothing in the cache but the decoded images. The time that
decoding alone takes, with as many processes, stands beside them.

    python experiments/benchmarks/categories.py             one GPU, 5,354 images of 1024 × 1024
    python experiments/benchmarks/categories.py --jobs 4    four points at a time on this GPU
    python experiments/benchmarks/categories.py --share 0.02 --size 64 --backbone resnet18
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from PIL import Image

from patchcore.data.images import decode_image
from patchcore.report.reading import read_run

COMMAND = [sys.executable, "-c", "from patchcore.commands import main; main()", "train"]
COUNTS = {  # training, nominal and anomalous test images of MVTec AD: 3,629 + 1,725
    "bottle": (209, 20, 63),
    "cable": (224, 58, 92),
    "capsule": (219, 23, 109),
    "carpet": (280, 28, 89),
    "grid": (264, 21, 57),
    "hazelnut": (391, 40, 70),
    "leather": (245, 32, 92),
    "metal_nut": (220, 22, 93),
    "pill": (267, 26, 141),
    "screw": (320, 41, 119),
    "tile": (230, 33, 84),
    "toothbrush": (60, 12, 30),
    "transistor": (213, 60, 40),
    "wood": (247, 19, 60),
    "zipper": (240, 32, 119),
}


def main() -> None:
    """Draw the images, measure, print a table, and write the JSON file."""
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1024, help="side of an image, px")
    parser.add_argument("--share", type=float, default=1.0, help="of MVTec AD's numbers of images")
    parser.add_argument("--backbone", default="wide_resnet50_2", help="with random weights")
    parser.add_argument("--ratio", type=float, default=0.1, help="share of the patches picked")
    parser.add_argument("--jobs", type=int, default=1, help="points at a time, each a process")
    parser.add_argument("--folder", type=Path, help="to draw the images in, and keep them")
    parser.add_argument("settings", nargs="*", help="further overrides of patchcore train")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="patchcore-categories-") as name:
        base = Path(name)
        data = options.folder or base / "data"
        paths = draw_all(data, options.size, options.share)
        megabytes = sum(path.stat().st_size for path in paths) / len(paths) / 1e6
        print(f"{len(paths)} images of {options.size} px, {megabytes:.2f} MB each", flush=True)
        rows = [{"name": "decoding alone", "seconds": decoding(paths, options.threads)}]
        for title, seed in (
            ("ours", 0),
            ("everything in the cache", 0),
            ("decoded images in the cache", 1),
        ):
            rows.append({"name": title, **multirun(options, data, base, len(rows), seed)})
            print(json.dumps(rows[-1]), flush=True)
        for row in rows:
            row["images/s"] = len(paths) / row["seconds"]
    rows.sort(key=lambda row: row["name"] != "ours")
    harness.report(rows, options.json, "cuda" if torch.cuda.is_available() else "cpu")


def draw_all(root: Path, size: int, share: float) -> list[Path]:
    """Draw what is not there yet, in MVTec AD's layout; return the images' paths."""
    plan = []
    for category, counts in COUNTS.items():
        folders = ("train/good", "test/good", "test/stain")
        for folder, count in zip(folders, counts, strict=True):
            for number in range(max(2, round(count * share))):
                plan.append(root / category / folder / f"{number:03d}.png")
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(draw, size=size), [path for path in plan if not path.exists()]))
    return plan


def draw(path: Path, size: int) -> None:
    """Write one image, for a defect with its mask: a texture with a camera's noise, a stain."""
    parts = path.parts[-4:]
    chance = np.random.default_rng([ord(letter) for letter in "/".join(parts)])
    texture = np.random.default_rng([ord(letter) for letter in parts[0]])
    coarse = texture.normal(128, 30, (size // 16, size // 16, 3)).clip(0, 255).astype(np.uint8)
    shifted = np.roll(coarse, chance.integers(0, size // 16, 2), (0, 1))
    smooth = Image.fromarray(shifted).resize((size, size), Image.Resampling.BILINEAR)
    image = np.array(smooth, dtype=np.float32)
    image += 2 * chance.standard_normal(image.shape, dtype=np.float32)
    if "stain" in parts:
        y, x = chance.integers(size // 4, size // 2, 2)
        mask = np.zeros((size, size), np.uint8)
        mask[y : y + size // 8, x : x + size // 6] = 255
        image[mask > 0] *= 0.6
        kept = path.parents[2] / "ground_truth" / "stain" / f"{path.stem}_mask.png"
        write(kept, mask)
    write(path, image.clip(0, 255).astype(np.uint8))


def write(path: Path, image: np.ndarray) -> None:
    """Write a PNG file and the folders it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, compress_level=1)


def decoding(paths: list[Path], processes: int) -> float:
    """Seconds that decoding all files takes with so many processes, which are started before."""
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(decode, paths[: 4 * processes]))
        start = time.perf_counter()
        list(pool.map(decode, paths, chunksize=8))
        return time.perf_counter() - start


def decode(path: Path) -> None:
    """Decode a file as the runs do."""
    decode_image(path)


def multirun(options: Any, data: Path, base: Path, number: int, seed: int) -> dict[str, float]:
    """Run all categories; return the wall time and the stages' sums, in seconds."""
    folder = base / str(number)
    settings = [
        "data=mvtec",
        f"data.root={data}",
        f"data.category={','.join(COUNTS)}",
        f"backbone={options.backbone}",
        "backbone.weights=none",
        f"coreset.ratio={options.ratio}",
        f"seed={seed}",
        f"cache.root={base / 'cache'}",
        "cache.limit_gib=50",
        "logger=none",
        "figures=false",
        "trainer.enable_progress_bar=false",
        f"hydra.sweep.dir={folder}",
        *options.settings,
    ]
    if options.jobs > 1:
        settings += ["hydra/launcher=processes", f"hydra.launcher.n_jobs={options.jobs}"]
    start = time.perf_counter()
    threads = max(1, options.threads // options.jobs)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run([*COMMAND, "--multirun", *settings], check=True, env=environment)
    row: dict[str, float] = {"seconds": time.perf_counter() - start}
    for point in range(len(COUNTS)):
        metrics = read_run(folder / str(point)).metrics
        for key, value in metrics.items():
            if key.startswith("seconds."):
                row[key] = row.get(key, 0.0) + value
    return row


if __name__ == "__main__":
    main()
