"""Several detectors as one: their scores and maps on one scale (see `scale`), then averaged."""

from collections.abc import Iterable, Sequence
from dataclasses import astuple
from itertools import repeat
from types import NoneType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchcore._traced import traced
from patchcore.arguments import check_kind, size_of
from patchcore.backbones import Join
from patchcore.errors import InputError, counted
from patchcore.methods.counted import counted_by_all
from patchcore.methods.detector import Detector, Fitting, Method, Prediction
from patchcore.methods.scale import Scale, ScaleConfig
from patchcore.scoring import Pool, anomaly_maps


def combined_scores(scores: Sequence[Tensor], scales: Sequence[Scale]) -> Tensor:
    """Mean of the members' image scores, each (…), once they are on one scale."""
    return torch.stack([s.scores(x) for x, s in zip(scores, scales, strict=True)]).mean(0)


def combined_maps(
    maps: Sequence[Tensor], scales: Sequence[Scale], counts: Tensor | None = None
) -> Tensor:
    """Mean of the members' anomaly maps, each (…, H, W), once they are on one scale.

    0, the nominal mean, where pixels do not count by `counts` (…, H, W).
    """
    found = torch.stack([s.maps(x) for x, s in zip(maps, scales, strict=True)]).mean(0)
    return found if counts is None else torch.where(counts, found, torch.zeros_like(found))


def counted_pixels(grids: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Pixels (…, H, W) that count with all members, by their patch scores [(…, h, w), …]."""
    return counted_by_all([~grid.isnan() for grid in grids], size)


def combined(predictions: Sequence[Prediction], scales: Sequence[Scale]) -> Prediction:
    """Mean of the members' predictions of the same images, once they are on one scale.

    Maps must have one size. Patch scores have the first member's grid, and `nearest` are its rows.
    A pixel or a patch counts if it counts with all members.
    """
    grids = [p.patch_score for p in predictions]
    height, width = grids[0].shape[1:]
    pixels = patches = None
    if not traced() and any(bool(grid.isnan().any()) for grid in grids):
        size = predictions[0].map.shape[1:]
        pixels = counted_pixels(grids, (size[0], size[1]))
        patches = counted_pixels(grids, (height, width))
        patch_scores = [anomaly_maps(grid, (height, width), 0) for grid in grids]
    else:
        patch_scores = [
            F.interpolate(grid[:, None], (height, width), mode="bilinear")[:, 0] for grid in grids
        ]
    found = combined_maps(patch_scores, scales)
    return Prediction(
        combined_scores([p.score for p in predictions], scales),
        combined_maps([p.map for p in predictions], scales, pixels),
        found if patches is None else torch.where(patches, found, torch.nan),
        predictions[0].nearest,
    )


class Ensemble(Method):
    """Several detectors that score as one.

    Attributes:
        members: Each with a memory of its own.
        scales: Of the members; empty before `fit`.

    Args:
        members: They may differ in everything: network, layers, coreset, scoring.
        config: How the scales are measured.
    """

    def __init__(self, members: Sequence[Detector], config: ScaleConfig | None = None) -> None:
        super().__init__()
        check_kind(members, Sequence, "members", "a list of detectors")
        if not members:
            raise InputError("an ensemble needs at least one member")
        for number, member in enumerate(members):
            check_kind(member, Detector, f"members[{number}]", "a detector, such as PatchCore()")
        check_kind(config, (ScaleConfig, NoneType), "config", "ScaleConfig(…)")
        for parts in (member.parts for member in members):
            if not parts.method.scalable:
                name = parts.method.name
                raise InputError(f"an ensemble cannot have {name} as a member: no scale")
            if parts.layers.join is not Join.concat:
                raise InputError("an ensemble's members need layers.join=concat")
            if parts.scoring.pool is Pool.pixels:
                raise InputError(
                    "an ensemble's members need scoring.pool=patches: their scores are measured "
                    "without maps"
                )
        self.members: Sequence[Detector] = nn.ModuleList(members)  # type: ignore[assignment]
        self.config = config or ScaleConfig()
        self.scales: list[Scale] = []

    def remembered(self) -> dict[str, Any]:
        """See `Stateful.remembered`."""
        return {"scales": [astuple(scale) for scale in self.scales]}

    def remember(self, values: dict[str, Any]) -> None:
        """See `Stateful.remember`."""
        self.scales = [Scale(*scale) for scale in values["scales"]]

    def fit(
        self, images: Tensor | Sequence[Tensor | Iterable[Tensor]], progress: bool = False
    ) -> Self:
        """Let every member remember nominal images, and measure its scale.

        Args:
            images: One batch (B, 3, H, W) for all members; or for each member the same images at
                its own size, as one batch or an iterable of batches.
        """
        scales = []
        for member, own in zip(self.members, self._each(images), strict=True):
            fitting = Fitting(progress, scale=self.config)
            member.fit(own, fitting=fitting)
            assert fitting.measured is not None
            scales.append(fitting.measured)
        self.scales = scales
        return self

    @torch.inference_mode()
    def forward(
        self, images: Tensor | Sequence[Tensor], inside: Sequence[Tensor] | None = None
    ) -> Prediction:
        """Score images: (B, 3, H, W) for all members, or for each the images at its own size.

        If `inside`, (B, H, W) for each member, is given, only the pixels inside count.

        Map and patch scores have the size and grid of the first member's, in standard deviations
        from the nominal mean. `nearest` are rows of the first member's memory.
        """
        if not self.scales:
            raise InputError("the ensemble has no scale: call fit with nominal images first")
        batches: Sequence[Any] = self._each(images)
        (height, width), *_ = [
            size_of(batch, member.backbone.tiling is not None)
            for member, batch in zip(self.members, batches, strict=True)
        ]
        predictions = [
            member.score(member.embed(batch, own), (height, width))
            for member, batch, own in zip(
                self.members, batches, inside or repeat(None, len(batches)), strict=True
            )
        ]
        return combined(predictions, self.scales)

    @property
    def memories(self) -> dict[str, Tensor]:
        """See `Method.memories`; their names begin with the members' numbers."""
        return {
            f"{number}.{name}": memory
            for number, member in enumerate(self.members)
            for name, memory in member.memories.items()
        }

    @property
    def memory_patches(self) -> int:
        """Sum of the members'."""
        return sum(member.memory_patches for member in self.members)

    def _each(
        self, images: Tensor | Sequence[Tensor | Iterable[Tensor]]
    ) -> Sequence[Tensor | Iterable[Tensor]]:
        """Images for each member."""
        if isinstance(images, Tensor):
            return [images] * len(self.members)
        if isinstance(images, str) or not isinstance(images, Sequence):
            size_of(images)  # refuses it
        if len(images) != len(self.members):
            raise InputError(
                f"the ensemble has {counted(len(self.members), 'member')}, but images for "
                f"{len(images)} were given: give one batch for all, or one for each"
            )
        return images
