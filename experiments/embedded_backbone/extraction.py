"""Images a second through the whole of `patchcore train`'s extraction, embedded against ResNet-18.

    python -m experiments.embedded_backbone.extraction data=mtd data.root=MTD

Reading, resizing, network, patch features and Lightning's loop, as the command runs them with these
overrides. The networks take turns in one process; the table holds the median of the rounds, and
where the time goes.
"""

import argparse
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_module
from omegaconf import open_dict

from patchcore.backbones import Backbone
from patchcore.commands.composed import to_config
from patchcore.commands.generations import VERSION_BASE
from patchcore.commands.groups import register
from patchcore.commands.train import build
from patchcore.config import Config
from patchcore.data import datamodule
from patchcore.data.datamodule import AnomalyDataModule
from patchcore.data.dataset import ImageDataset
from patchcore.methods import PatchCore
from patchcore.methods.common import FeatureBuffer
from patchcore.module import DetectorModule
from patchcore.patches import PatchFeatures
from patchcore.progress import ProgressBar

STAGES: dict[str, tuple[Any, str]] = {
    "read, resize, normalise": (ImageDataset, "__getitems__"),
    "make a batch": (datamodule, "collate"),
    "network": (Backbone, "forward"),
    "patch features": (PatchFeatures, "forward"),
    "keep them": (FeatureBuffer, "append"),
}


@contextmanager
def stopwatches() -> Iterator[dict[str, float]]:
    """Wall seconds spent in each stage while the context lasts."""
    spent = dict.fromkeys(STAGES, 0.0)

    def timed(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args)
            finally:
                spent[stage] += time.perf_counter() - start

        return call

    with ExitStack() as stack:
        for stage, (owner, name) in STAGES.items():
            stack.enter_context(mock.patch.object(owner, name, timed(stage, getattr(owner, name))))
        yield spent


def configured(overrides: list[str]) -> Config:
    """Settings as `patchcore train` gets them; of the memory only one patch is kept."""
    register()
    fixed = ["coreset=random", "coreset.count=1", "cache.enabled=false"]
    with initialize_config_module("patchcore.conf", **VERSION_BASE):
        cfg = compose("config", [*overrides, *fixed, "resume=false", "logger=none"])
    with open_dict(cfg):
        cfg.pop("hydra", None)
    return to_config(cfg)


def extract(config: Config) -> dict[str, float]:
    """Milliseconds an image: of wall time in all and in each stage, of processor time in all."""
    model = PatchCore(config.backbone, config.layers, config.patch, config.coreset)
    data = AnomalyDataModule(config.data, config.image, config.augment)
    module = DetectorModule(model)
    with tempfile.TemporaryDirectory() as folder, stopwatches() as spent:
        trainer: pl.Trainer = build(
            "trainer",
            config.trainer,
            logger=False,
            default_root_dir=folder,
            callbacks=[ProgressBar()],
        )
        began = time.process_time()
        trainer.fit(module, data)
        processor = time.process_time() - began
    seconds = {"all": module.seconds["extract"], "processor": processor, **spent}
    seconds["the rest"] = seconds["all"] - sum(spent.values())
    return {key: value / module.train_images * 1e3 for key, value in seconds.items()}


def main() -> None:
    """Print the table; write the medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("overrides", nargs="+", help="of `patchcore train`: the data, above all")
    parser.add_argument("--resnet18", type=Path, help="weights; without, timm's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    weights = [f"backbone.weights={args.resnet18}"] if args.resnet18 else []
    networks = {
        "embedded": configured([*args.overrides, "backbone=embedded"]),
        "resnet18": configured([*args.overrides, "backbone=resnet18", *weights]),
    }
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in networks}
    for _ in range(args.rounds):
        for name, config in networks.items():
            rounds[name].append(extract(config))
    results = {
        name: {key: median(row[key] for row in rows) for key in rows[0]}
        for name, rows in rounds.items()
    }
    print(f"\nms an image, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| |", " | ".join(results), "|\n| --- | --- | --- |")
    for key in [*STAGES, "the rest", "all", "processor"]:
        print(f"| {key} |", " | ".join(f"{row[key]:.2f}" for row in results.values()), "|")
    print("| images a second |", " | ".join(f"{1e3 / row['all']:.0f}" for row in results.values()))
    ratio = results["resnet18"]["all"] / results["embedded"]["all"]
    print(f"\nembedded is {ratio:.2f} times as fast")
    if args.json:
        args.json.write_text(json.dumps({"times as fast": ratio, "ms an image": results}))


if __name__ == "__main__":
    main()
