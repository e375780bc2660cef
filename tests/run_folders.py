"""Run folders as `patchcore train` leaves them, made up."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from PIL import Image

SETTINGS = {
    "data": {"root": "data/mvtec", "category": "bottle", "seed": 0},
    "backbone": {"name": "resnet18", "weights": "weights/resnet18.safetensors"},
    "patch": {"size": 3, "stride": 1},
    "layers": {"names": ["2", "3"]},
    "coreset": {"ratio": 0.01, "count": None, "seed": 0},
    "seed": 0,
}


def write_run(
    folder: Path,
    overrides: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    choices: dict[str, str] | None = None,
    gallery: tuple[int, int] | None = None,
) -> Path:
    """A run with SETTINGS but for `overrides`; without `metrics` it never finished."""
    config = OmegaConf.create(SETTINGS)
    for key, value in (overrides or {}).items():
        OmegaConf.update(config, key, value, force_add=True)
    folder.mkdir(parents=True)
    OmegaConf.save(config, folder / "config.yaml")
    if choices is not None:
        (folder / ".hydra").mkdir()
        hydra = {"hydra": {"runtime": {"choices": choices}, "job": {"name": "${missing}"}}}
        OmegaConf.save(OmegaConf.create(hydra), folder / ".hydra" / "hydra.yaml")
        OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    if gallery:
        (folder / "figures").mkdir()
        noise = np.random.default_rng(0).integers(0, 256, (*gallery[::-1], 4), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "figures" / "gallery.png", compress_level=0)
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def area(scores: list[float], labels: list[int]) -> float:
    """Image AUROC of these scores."""
    split = [
        [x for x, label in zip(scores, labels, strict=True) if label == kind] for kind in (0, 1)
    ]
    pairs = [(x > y) + (x == y) / 2 for x in split[1] for y in split[0]]
    return sum(pairs) / len(pairs)


def write_scores(folder: Path, scores: list[float], labels: list[int], **metrics: float) -> Path:
    """Add test images with these scores, `good` or in turn `scratch` and `hole`, and metrics.

    The image AUROC becomes that of the scores.
    """
    rows = [
        f"test/{i:03}.png,{label},{('scratch', 'hole')[i % 2] if label else 'good'},{score!r}"
        for i, (score, label) in enumerate(zip(scores, labels, strict=True))
    ]
    (folder / "scores.csv").write_text("\n".join(["path,label,defect_type,score", *rows]) + "\n")
    record = json.loads((folder / "metrics.json").read_text())
    record |= {"test_images": len(scores), "image_auroc": area(scores, labels), **metrics}
    (folder / "metrics.json").write_text(json.dumps(record))
    return folder


def write_overrides(folder: Path, overrides: list[str]) -> None:
    """Add the overrides that Hydra notes of a run."""
    (folder / ".hydra").mkdir(exist_ok=True)
    OmegaConf.save(OmegaConf.create(overrides), folder / ".hydra" / "overrides.yaml")


def write_sweep(folder: Path, gallery: tuple[int, int] = (420, 490)) -> Path:
    """4 ratios × 3 patch sizes × 2 backbones: 24 points with paper values and galleries.

    One point's pixel metrics are undefined; the smallest memories come with scores at many ratios.
    """
    chance = np.random.default_rng(0)
    job = 0
    for name, gain in (("resnet18", 0.0), ("wide_resnet50_2", 0.012)):
        for size in (1, 3, 5):
            for ratio in (0.0025, 0.005, 0.01, 0.02):
                score = 0.93 + gain + 0.01 * np.log10(ratio / 0.0025) + 0.02 * (size > 1)
                score += chance.normal(0, 0.002) - 0.004 * (size == 5)
                patches = round(ratio * 597_000)
                metrics = {
                    "image_auroc": score,
                    "image_ap": 0.98 * score,
                    "image_f1": 0.95 * score,
                    "image_threshold": 3.7,
                    "image_false_positives": int(600 * (1 - score)),
                    "image_false_negatives": int(300 * (1 - score)),
                    "pixel_auroc": None if job == 7 else score - 0.05,
                    "aupro": None if job == 7 else score - 0.11,
                    "memory_patches": patches,
                    "memory_bytes": patches * 4096,
                    "train_images": 762,
                    "test_images": 582,
                    "seconds": {
                        "extract": 20 + 200 * gain * 100,
                        "coreset": 900 * ratio,
                        "score": (20 + 4000 * ratio) * (1 + size / 20),
                    },
                }
                if job == 7:
                    reason = "no test image has a mask"
                    metrics["undefined"] = {"pixel_auroc": reason, "aupro": reason}
                if ratio == 0.0025 and name == "resnet18":
                    metrics["ratio_curve"] = [
                        {"ratio": share, "memory_patches": 1, "image_auroc": score + share}
                        for share in (0.0025, 0.005, 0.01)
                    ]
                overrides = {
                    "backbone.name": name,
                    "backbone.weights": f"weights/{name}.safetensors",
                    "patch.size": size,
                    "coreset.ratio": ratio,
                }
                if ratio == 0.01 and size == 3:
                    overrides["paper"] = {"image_auroc": 0.979}
                write_run(folder / str(job), overrides, metrics, gallery=gallery)
                job += 1
    return folder
