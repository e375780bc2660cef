"""Parts that all benchmarks share: timing, one table, one JSON file."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    return parser


def seconds(run: Callable[[], Any], repeats: int = 3, warmup: int = 1) -> float:
    """Median wall time of `run()` in seconds, with the accelerator drained before each reading."""
    times = []
    for i in range(warmup + repeats):
        drain()
        start = time.perf_counter()
        run()
        drain()
        if i >= warmup:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def drain() -> None:
    """Wait for queued device work, so that wall time means something."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine(device: str = "cpu") -> str:
    """One line that names what a figure was measured on."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def report(results: list[dict[str, Any]], path: Path | None, device: str = "cpu") -> None:
    """Print `results` as a Markdown table, with each time as a multiple of ours; save as JSON."""
    ours = next(row["seconds"] for row in results if row["name"] == "ours")
    columns = ["name", "seconds", *(k for k in results[0] if k not in ("name", "seconds"))]
    print(f"\n{machine(device)}\n")
    print("| " + " | ".join([*columns, "times ours"]) + " |")
    print("| --- " * (len(columns) + 1) + "|")
    for row in results:
        cells = [_cell(row.get(key)) for key in columns] + [f"{row['seconds'] / ours:.2f}"]
        print("| " + " | ".join(cells) + " |")
    if path is not None:
        path.write_text(json.dumps({"results": results}, indent=2) + "\n")


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
