"""Counts of what masks tell of the test images, and of what was lost of it on the way."""

import torch
from torch import Tensor
from torchmetrics import Metric

from patchcore.metrics import MASK_KEYS


class MaskCounts(Metric):
    """Counts of what the masks of anomalous images tell and what was lost of them.

    - `images_without_mask`: no mask, or one that marks nothing; left out of pixel metrics.
    - `images_outside_crop`: all that is marked lies outside the crop; left out of pixel metrics.
    - `images_cut_by_crop`: part of what is marked lies outside the crop.
    - `regions_outside_crop`, `regions_lost_in_resizing`: marked regions that count nowhere.
    - `regions_merged`: regions that touch another since resizing; AUPRO counts them as one.
    """

    is_differentiable = False
    full_state_update = False
    counts: Tensor  # (9,) int64

    def __init__(self) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(9, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, labels: Tensor, regions: Tensor) -> None:
        """Add a batch.

        Args:
            labels: (B,) bool or 0/1, true for anomalous.
            regions: (B, 6) int64, numbers of each mask's regions: marked, wholly outside the crop,
                partly outside, lost in resizing, merged; and 1 where they cover most of the image.
        """
        marked, outside, cut, lost, merged, most = regions[labels.bool()].to(self.device).unbind(1)
        unseen = (outside > 0) & (outside + lost == marked)
        sums = [
            marked == 0,
            unseen,
            ~unseen & (outside + cut > 0),
            outside,
            lost,
            merged,
            marked > 0,
            marked,
            most,
        ]
        self.counts = self.counts + torch.stack([x.sum() for x in sums])

    def compute(self) -> dict[str, int]:
        """The counts so far, keyed by `MASK_KEYS`."""
        return dict(zip(MASK_KEYS, self.counts.tolist(), strict=False))

    def notices(self) -> list[str]:
        """Sentences on what is missing from the metrics, each with its remedy; none if nothing."""
        found = self.compute()
        *_, masked, regions, most = self.counts.tolist()
        images = masked + found["images_without_mask"]
        lines = []
        if masked and (count := found["images_without_mask"]):
            lines.append(
                f"{count} of {images} anomalous images have no mask that marks anything; they are "
                "left out of the pixel metrics"
            )
        if count := found["images_outside_crop"]:
            lines.append(
                f"{count} of {images} anomalous images have their defect outside the crop, where "
                "it cannot be found; image metrics count them, pixel metrics leave them out. "
                "image.view=square takes images whole"
            )
        if count := found["images_cut_by_crop"]:
            lines.append(
                f"{count} of {images} anomalous images have part of their defect outside the crop; "
                "image.view=square takes images whole"
            )
        if count := found["regions_lost_in_resizing"]:
            lines.append(
                f"{count} of {regions} marked regions, of one pixel each, were lost in resizing "
                "and count as nominal; a larger image.size keeps them"
            )
        if 2 * most > masked:
            lines.append(
                f"{most} of {masked} masks mark more than half of their image; if black marks "
                "their defects, invert them, as white should"
            )
        return lines
