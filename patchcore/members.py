"""Test of an ensemble: it combines the results of members that were tested before."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from patchcore.decision import DecisionConfig
from patchcore.methods.counted import counted_by_all, pixels_in
from patchcore.methods.detector import Detector
from patchcore.methods.ensemble import combined_maps, combined_scores, counted_pixels
from patchcore.methods.folds import LeftOut
from patchcore.methods.scale import Scale
from patchcore.module import Batch, Pair, ScoringModule
from patchcore.record import Record
from patchcore.scoring import anomaly_maps


@dataclass
class Member:
    """One member of an ensemble, fitted and tested.

    Without `model`, neither its memory nor its network is kept.
    """

    backbone: str  # name of the network
    scale: Scale
    record: Record
    model: Detector | None = None  # if the model is to be kept
    left_out: LeftOut | None = None  # see `DetectorModule`


def shown_map(module: ScoringModule, index: int, size: tuple[int, int]) -> Tensor:
    """Return the anomaly map of a test image, NaN where pixels do not count by its region.

    Args:
        module: Module that has tested the image.
        index: Number of the image.
        size: Height and width of the map, px.

    Returns:
        (H, W), on the CPU.
    """
    tested = module.members if isinstance(module, EnsembleModule) else [module]
    cells = [each.record.counted[index] for each in tested if each.record.counted]
    found = module.anomaly_map(index, size)
    return found.masked_fill(~counted_by_all(cells, size).cpu(), math.nan) if cells else found


class EnsembleModule(ScoringModule):
    """Tests an ensemble in a Trainer.

    Labels and masks come from the batches, scores and patch scores from the members' own tests.

    Args:
        members: Members, fitted and tested on the same test images.
        sigma: Standard deviation of the Gaussian that smooths the anomaly maps, in px.
        decision: Settings of the threshold from nominal images, if one is wanted.
    """

    def __init__(
        self, members: Sequence[Member], sigma: float, decision: DecisionConfig | None = None
    ) -> None:
        super().__init__()
        self.members = list(members)
        self.scales = [member.scale for member in members]
        self.sigma = sigma
        self.warm = set().union(*(member.record.warm for member in self.members))
        if decision is not None and decision.false_alarms is not None:
            self._decide(decision)

    def _decide(self, config: DecisionConfig) -> None:
        """Set the decision from the members' combined scores of the left-out nominal images."""
        found = [member.left_out for member in self.members if member.left_out is not None]
        sizes = found[0].sizes
        scores = [
            combined_scores([torch.tensor(each.scores[i]) for each in found], self.scales)
            for i in sizes
        ]
        maps = (
            pixels_in(
                self._map([each.grids[i] for each in found], size),
                [each.counted[i] for each in found if each.counted],
            )
            for i, size in sizes.items()
        )
        self.decide(config, scores, maps)

    def on_test_start(self) -> None:
        each = [member.record.seconds for member in self.members]
        self.seconds = {kind: sum(seconds[kind] for seconds in each) for kind in each[0]}
        super().on_test_start()
        self.costs.clear()
        for member in self.members:
            self.costs.include(member.record.costs)

    def predictions(self, batch: Batch) -> list[tuple[Pair, Tensor, Tensor, Tensor | None]]:
        """See `ScoringModule.predictions`."""
        index = batch["index"].tolist()
        height, width = batch["mask"].shape[-2:]
        each = [torch.tensor([member.record.scores[i] for i in index]) for member in self.members]
        maps = torch.stack([self.anomaly_map(i, (height, width)) for i in index])  # (B, H, W)
        pair = (self.image_metrics, self.pixel_metrics)
        counts = None
        if "inside" in batch:
            counted = [torch.stack([x.record.counted[i] for i in index]) for x in self.members]
            counts = counted_by_all(counted, (height, width))
        return [(pair, combined_scores(each, self.scales), maps, counts)]

    def anomaly_map(self, index: int, size: tuple[int, int]) -> Tensor:
        """See `ScoringModule.anomaly_map`."""
        return self._map([member.record.grids[index] for member in self.members], size)

    def _map(self, grids: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        maps = [anomaly_maps(grid[None], size, self.sigma)[0] for grid in grids]
        return combined_maps(maps, self.scales, counted_pixels(grids, size))

    def sizes(self) -> dict[str, float]:
        """See `ScoringModule.sizes`; sizes are sums over the memories of all members."""
        each = [member.record.metrics for member in self.members]
        rows = sum(x["memory_patches"] for x in each)
        return {
            "memory_patches": rows,
            "memory_bytes": sum(x["memory_bytes"] for x in each),
            "memory_used": sum(x["memory_used"] * x["memory_patches"] for x in each) / rows,
            "train_images": each[0]["train_images"],
        }
