"""A whole run on Magnetic Tile Defects, from command to metrics, beside anomalib's PatchCore.

    python experiments/benchmarks/mtd_end_to_end.py --root data/mtd --weights resnet18.safetensors

Both run on the CPU in a process of their own, one after the other, with the same weights, the same
training and test images at the same size, the same layers, share of the coreset and score (distance
to the nearest neighbour). Ours is the command as a user types it, with its figures; anomalib's is
its Engine without pictures and validation, which would take it longer. Its copies of the masks are
made binary beforehand, for it takes every value above 0 for a defect. `--images 20` takes the first
images of each class alone. anomalib may be installed elsewhere: `--anomalib PYTHON` names the
interpreter that has it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness

NAME = "anomalib"
SIDE = 224  # px of the network's input
RATIO = 0.01


def main() -> None:
    """Prepare both folders, run both, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=Path("data/mtd"), help="of the data set")
    parser.add_argument("--weights", type=Path, required=True, help="of ResNet-18, safetensors")
    parser.add_argument("--images", type=int, help="of each class; all unless given")
    parser.add_argument("--anomalib", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    weights = options.weights.resolve()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        root = linked(options.root.resolve(), folder / "mtd", options.images)
        print(arranged(root, folder / NAME))
        rows = [ours(root, weights, folder / "run")]
        command = [options.anomalib, str(Path(__file__).resolve().parent / "mtd_anomalib.py")]
        rows.append(measured(NAME, [*command, str(folder / NAME), str(weights)], folder))
        rows[1] |= json.loads((folder / "result.json").read_text())
    harness.report(rows, options.json)


def ours(root: Path, weights: Path, folder: Path) -> dict[str, Any]:
    """Return the row of `patchcore train`."""
    command = [sys.executable, "-c", "from patchcore.commands import main; main()", "train"]
    command += ["data=mtd", f"data.root='{root}'", "backbone=resnet18"]
    command += [f"backbone.weights='{weights}'", f"coreset.ratio={RATIO}", f"image.size={SIDE}"]
    command += ["trainer=cpu", "logger=none", f"hydra.run.dir='{folder}'"]
    row = measured("ours", command, root.parent)
    record = json.loads((folder / "metrics.json").read_text())
    return row | {"image AUROC": record["image_auroc"], "pixel AUROC": record["pixel_auroc"]}


def measured(name: str, command: list[str], folder: Path) -> dict[str, Any]:
    """Run a command and return its wall time and the most memory that one process of it had."""
    with (folder / f"{name}.log").open("wb") as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        taken = time.perf_counter() - start
    if status:
        sys.exit(
            f"{name} failed:\n{(folder / f'{name}.log').read_text('utf-8', 'replace')[-3000:]}"
        )
    cpu = usage.ru_utime + usage.ru_stime
    return {
        "name": name,
        "seconds": taken,
        "CPU seconds": cpu,
        "peak memory, GB": usage.ru_maxrss * 1024 / 1e9,
    }


def linked(root: Path, folder: Path, images: int | None) -> Path:
    """Return a folder in the data set's layout with links to the first images of each class."""
    for inner in sorted(root.glob("MT_*/Imgs")):
        target = folder / inner.relative_to(root)
        target.mkdir(parents=True)
        for image in sorted(inner.glob("*.jpg"))[:images]:
            for file in (image, image.with_suffix(".png")):
                (target / file.name).symlink_to(file)
    return folder


def arranged(root: Path, folder: Path) -> str:
    """Link the images of our split as anomalib's Folder takes them; return their numbers."""
    import numpy as np
    from PIL import Image

    from patchcore.data.images import read_mask
    from patchcore.data.mtd import MTDConfig

    split = MTDConfig(root=str(root)).read()
    for side in ("train", "normal", "abnormal", "masks"):
        (folder / side).mkdir(parents=True)
    for number, sample in enumerate([*split.train, *split.test]):
        train = number < len(split.train)
        side = "train" if train else "abnormal" if sample.label else "normal"
        (folder / side / f"{number:05}.jpg").symlink_to(sample.path.resolve())
        if sample.label:
            assert isinstance(sample.mask, Path)
            marked = read_mask(sample.mask).astype(np.uint8) * 255
            Image.fromarray(marked).save(folder / "masks" / f"{number:05}.png")
    return str(split)


if __name__ == "__main__":
    main()
