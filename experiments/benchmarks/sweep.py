"""A sweep over patch sizes and coreset ratios, against the dearest of its points run alone.

Three ways to the same points, each with an empty cache: the dearest point alone; one run for each
patch size, whose ratio curve holds all ratios (`curve`); every point a job of one multirun.
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

from patchcore.cache import Store

COMMAND = [sys.executable, "-c", "from patchcore.commands import main; main()", "train"]


def main() -> None:
    """Measure, print a table, and write the JSON file."""
    options = arguments()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="patchcore-sweep-") as name:
        base = Path(name)
        largest = max(options.ratios)
        alone = []
        for size in options.alone or options.sizes:
            folder = base / f"single{size}"
            point = [f"patch.size={size}", f"coreset.ratio={largest}"]
            alone.append(run(options, base, folder, *point, "cache.enabled=true"))
        results["single_seconds"] = max(alone)
        sizes = "patch.size=" + ",".join(map(str, options.sizes))
        curve = f"curve=[{','.join(map(str, options.ratios))}]"
        results["curve_seconds"] = run(
            options, base, base / "curve", "--multirun", sizes, f"coreset.ratio={largest}", curve
        )
        results["cache_bytes"] = Store(base / "curve-cache").size()
        ratios = "coreset.ratio=" + ",".join(map(str, sorted(options.ratios)))
        results["multirun_seconds"] = run(
            options, base, base / "multirun", "--multirun", sizes, ratios
        )
        size = Store(base / "multirun-cache").size()
        results["cache_bytes"] = max(results["cache_bytes"], size)
        results["points"] = len(options.sizes) * len(options.ratios)
        results["largest_difference"] = difference(base, options)
    print(f"\n{harness.machine()}\n")
    single = results["single_seconds"]
    print("| | seconds | times the dearest point |\n| --- | --- | --- |")
    for key in ("single_seconds", "curve_seconds", "multirun_seconds"):
        print(
            f"| {key.removesuffix('_seconds')} | {results[key]:.1f} | {results[key] / single:.2f} |"
        )
    print(
        f"\n{results['points']} points, cache {results['cache_bytes'] / 2**20:.0f} MiB, largest "
        f"difference between the two tables {results['largest_difference']:g}"
    )
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


def arguments() -> argparse.Namespace:
    """Options; the defaults take a few minutes."""
    parser = harness.parser(__doc__.partition("\n")[0])
    parser.add_argument("--data", default="generated", help="a choice of the group data")
    parser.add_argument("--root", help="data.root")
    parser.add_argument("--backbone", default="embedded", help="a choice of the group backbone")
    parser.add_argument("--weights", help="backbone.weights")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.0025, 0.005, 0.01, 0.02])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 3, 5], help="patch sizes")
    parser.add_argument("--alone", type=int, nargs="+", help="sizes run alone; default: all")
    parser.add_argument("--set", nargs="+", default=[], help="more settings, as KEY=VALUE")
    return parser.parse_args()


def run(options: argparse.Namespace, base: Path, folder: Path, *overrides: str) -> float:
    """Wall time in seconds of one command with an empty cache, start of Python included."""
    where = "hydra.sweep.dir" if "--multirun" in overrides else "hydra.run.dir"
    given = {"data.root": options.root, "backbone.weights": options.weights}
    command = [
        *COMMAND,
        *overrides,
        f"data={options.data}",
        f"backbone={options.backbone}",
        *(f"{key}={value}" for key, value in given.items() if value is not None),
        "trainer=cpu",
        "logger=none",
        "trainer.enable_progress_bar=false",
        f"cache.root={base / (folder.name + '-cache')}",
        f"{where}={folder}",
        *options.set,
    ]
    start = time.perf_counter()
    env = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    print(f"{folder.name}: {seconds:.1f} s", flush=True)
    return seconds


def difference(base: Path, options: argparse.Namespace) -> float:
    """Largest difference of any metric between the ratio curves and the separate jobs."""
    jobs = iter(sorted(base.glob("multirun/*/metrics.json"), key=lambda p: int(p.parent.name)))
    worst = 0.0
    for number in range(len(options.sizes)):
        curve = json.loads((base / f"curve/{number}/metrics.json").read_text())["ratio_curve"]
        for row, path in zip(curve, jobs, strict=False):
            job = json.loads(path.read_text())
            pairs = [(row[key], job[key]) for key in row if key != "ratio"]
            worst = max([worst, *(abs(a - b) for a, b in pairs if a is not None and b is not None)])
    return worst


if __name__ == "__main__":
    main()
