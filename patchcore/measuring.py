"""Test of a saved or exported model, with the same metrics as the test of a run."""

import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from torch import Tensor

from patchcore.data.datamodule import AnomalyDataModule
from patchcore.data.dataset import pixels_alone
from patchcore.data.images import image_size
from patchcore.data.overlaps import check_known
from patchcore.data.sample import DataConfig
from patchcore.data.sets import DATA_SETS
from patchcore.data.transforms import AugmentConfig
from patchcore.errors import InputError
from patchcore.export import ExportedModel
from patchcore.inspection import read_pixels
from patchcore.inspector import Inspector, held_images
from patchcore.machine import check_trainer_variables
from patchcore.module import Batch, Pair, ScoringModule
from patchcore.report.run import Run
from patchcore.settings import plain
from patchcore.subsets import by_subset

AS_KEPT = ("memory_patches", "memory_bytes", "train_images", "label_free")
"""Metrics that a test does not compute anew, but takes from the run that made the model."""


class InspectorModule(ScoringModule):
    """Module that tests a saved or exported model in a Trainer.

    Batches hold pixels instead of normalised images; see `pixels_alone`.

    Args:
        inspector: Model to test.
        paths: Files of the test images, which members of an ensemble at other sizes than the first
            one's get from there.
    """

    def __init__(self, inspector: Inspector | ExportedModel, paths: Sequence[Path] = ()) -> None:
        super().__init__()
        self.inspector = inspector
        self._paths = paths
        self.decision = inspector.decision  # the test counts its verdicts
        self._pixels = inspector.counted_pixels() if isinstance(inspector, Inspector) else None

    def predictions(self, batch: Batch) -> list[tuple[Pair, Tensor, Tensor, Tensor | None]]:
        """See `ScoringModule.predictions`."""
        pixels = batch["image"].permute(0, 2, 3, 1)  # (B, 3, h, w) → (B, h, w, 3)
        pixels = pixels if pixels.dtype == torch.uint8 else pixels.round().byte()
        given: Any = self._of_members(pixels, batch["index"].tolist())
        found = self.inspector.score(given)
        pair = (self.image_metrics, self.pixel_metrics)
        own = self.inspector.counted if isinstance(self.inspector, Inspector) else []
        asked = batch.get("inside")
        if asked is not None and not own:
            raise InputError(
                "data.region: the model was saved without a region, so the whole image counts: "
                "leave out data.region and data.regions"
            )
        if asked is not None and not all(each.equal(own[0].to(each.device)) for each in asked):
            raise InputError(
                "data.region: it differs from the region that the model was fitted with, and a "
                "test cannot change that: leave out data.region"
            )
        counts = None if self._pixels is None else self._pixels.expand(len(found.map), -1, -1)
        return [(pair, found.score.cpu(), found.map.cpu(), counts)]

    def _of_members(self, pixels: Tensor, numbers: Sequence[int]) -> Tensor | list[Tensor]:
        """Input for each member, where the first one gets these pixels (B, h, w, 3)."""
        if self.inspector.alike:
            return pixels
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            each = [*pool.map(self._prepared, numbers)]
        others = (np.stack(made) for made in list(zip(*each, strict=True))[1:])
        return [pixels, *map(torch.from_numpy, others)]

    def _prepared(self, number: int) -> tuple[Any, ...]:
        """Pixels (h, w, 3) of a test image for each member."""
        return tuple(self.inspector.prepare(read_pixels(self.inspector, self._paths[number])))

    def anomaly_map(self, index: int, size: tuple[int, int]) -> Tensor:
        """Raise NotImplementedError: this test keeps no maps, as it draws no pictures."""
        raise NotImplementedError

    def sizes(self) -> dict[str, float]:
        """Return the metrics `AS_KEPT` as the run recorded them; see `ScoringModule.sizes`."""
        told = self.inspector.details.get("metrics", {})
        return {key: told[key] for key in AS_KEPT if key in told}


def measure(inspector: Inspector | ExportedModel, data: DataConfig) -> Run:
    """Test a model on a data set, and return the results as a `Run`.

    The result has no curves over coreset ratios, no members and no pictures.

    Args:
        inspector: Model to test.
        data: Data set; only its test images are scored.

    Raises:
        InputError: The data cannot be read, or the data's region is not the one that the model was
            fitted with, or an image is of another size than that.
    """
    check_trainer_variables()
    split = data.read()
    check_known(held_images(inspector.details), split)
    if isinstance(inspector, Inspector) and inspector.region is not None:
        for sample in split.test:
            inspector.check_size(sample.path, image_size(sample.path, inspector.image.limit))
    if not inspector.alike and any(image.tiles for image in inspector.images):
        data = replace(data, batch_size=1)  # members with tiles take images of any size
    loaded = AnomalyDataModule(data, pixels_alone(inspector.image), AugmentConfig(), split=split)
    module = InspectorModule(inspector, [sample.path for sample in split.test])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with torch.inference_mode():
            trainer.test(module, loaded, verbose=False)
    record = module.record
    name = next((name for name, kind in DATA_SETS.items() if type(data) is kind), "")
    return Run(
        settings={"data": {"set": name, **plain(data)}},
        metrics=record.metrics,
        undefined=record.undefined,
        seconds=record.seconds,
        samples=split.test,
        scores=[record.scores[i] for i in range(len(split.test))],
        curves=record.curves,
        subsets=by_subset(split.test, record.scores, module.pixel_metrics.of),
    )


def kept_data(details: Mapping[str, Any]) -> DataConfig | None:
    """Return the settings of the data that a model was fitted to; None if they were not saved.

    Args:
        details: Details that were saved with the model.

    Raises:
        InputError: This version has no such data set.
    """
    kept = details.get("data", {})
    if not kept.get("set"):
        return None
    if kept["set"] not in DATA_SETS:
        raise InputError(f"data={kept['set']}: this version has no such data set")
    known = OmegaConf.structured(DATA_SETS[kept["set"]])
    data: Any = OmegaConf.to_object(OmegaConf.merge(known, kept["settings"]))
    return data
