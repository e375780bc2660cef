"""PatchCore's own settings: switches, off by default, for the ideas of later memory-bank methods.

The switches are independent of each other. Combinations that cannot work are refused when a model
is built.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from patchcore.backbones import Join, LayersConfig
from patchcore.coreset import CoresetConfig, LearnedConfig
from patchcore.errors import InputError
from patchcore.index import IndexConfig, TorchIndexConfig
from patchcore.methods.detector import Detector, MethodConfig, Parts
from patchcore.methods.thinning import Thinning
from patchcore.patches import PatchConfig
from patchcore.scoring import ScoringConfig
from patchcore.settings import setting

NARROW = (
    "with method.radius or method.retrieval, each image is compared with different patches, so a "
    "graph would work only for one batch size"
)
FOREGROUND = (
    "with method.foreground, different patches count in each image, so a graph would work only "
    "for some images"
)


@dataclass
class Followed:
    """Settings that patch features follow from, besides the network's."""

    patch: PatchConfig
    layers: list[str]
    whitening: float | None
    shrinkage: float | None
    foreground: float | None
    per_image: int | None
    pruning: int | None
    thinned: dict[str, Any] | None
    """Sampler that selects the patches of each image with `per_image`, without its size."""


@dataclass
class PatchCoreConfig(MethodConfig):
    """PatchCore's own settings; the paper's are groups: layers, patch, coreset, index, scoring."""

    name: ClassVar[str] = "patchcore"
    reads: ClassVar[dict[str, type]] = {
        "layers": LayersConfig,
        "patch": PatchConfig,
        "coreset": CoresetConfig,
        "index": IndexConfig,
        "scoring": ScoringConfig,
    }
    scalable: ClassVar[bool] = True
    nested: ClassVar[bool] = True
    shared: ClassVar[bool] = True

    radius: int | None = setting(
        None,
        "compare a patch only with patches at most this many rows and columns away in the patch "
        "grid; 0: only at its own place; null: anywhere",
        unit="cells",
        low=0,
    )
    retrieval: int | None = setting(
        None,
        "compare an image only with the patches of this many nominal images, those most similar "
        "to it; null: all",
        unit="images",
        low=1,
    )

    whitening: float | None = setting(
        None,
        "whiten patch features by PCA and keep this share of their variance; null: no whitening",
        above=0,
        high=1,
    )
    shrinkage: float | None = setting(
        None,
        "shrinkage of the variances that whitening divides by: this share of each is replaced by "
        "the mean variance; null: the share by Ledoit and Wolf",
        low=0,
        high=1,
        effect=lambda method: method["whitening"] is not None,
        idle="without method.whitening",
    )
    foreground: float | None = setting(
        None,
        "only patches count whose distance from the image's mean, along the first principal "
        "component, is at least this: they are the foreground; null: all patches count",
        unit="length of a patch feature",
        low=0,
    )

    per_image: int | None = setting(
        None,
        "number of patches of each nominal image that the coreset chooses from; the same sampler "
        "picks them, so that large images need no more memory in fitting; null: all",
        unit="patches",
        low=1,
    )

    pruning: int | None = setting(
        None,
        "other training images in which every patch of an image should have its like; images whose "
        "worst patch is far from that many are named and not remembered; null: all are remembered",
        unit="images",
        low=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shrinkage is not None and self.whitening is None:
            raise InputError(
                f"method.shrinkage={self.shrinkage} has no effect without method.whitening: set "
                "both, or leave it out"
            )

    def build(self, parts: Parts) -> Detector:
        """See `MethodConfig.build`; with separate layers a detector of several banks."""
        if parts.layers.join is not Join.concat:
            if self.pruning is not None:
                raise InputError(
                    f"layers.join={parts.layers.join.name} makes several memory banks, but "
                    "method.pruning needs one: set layers.join=concat, or method.pruning=null"
                )
            from patchcore.methods.banks import LayerBanks  # which read these settings

            return LayerBanks(parts)
        from patchcore.methods.patchcore import PatchCore

        groups = (parts.patch, parts.coreset, parts.index, parts.scoring)
        return PatchCore(parts.backbone, parts.layers, *groups, method=self)

    @property
    def local(self) -> bool:
        """Whether a patch's score depends only on the patch and the memory, not on its image."""
        return not self.narrow and self.foreground is None

    @property
    def narrow(self) -> bool:
        """Whether patches are compared with a part of the memory each."""
        return self.radius is not None or self.retrieval is not None

    def check(self, coreset: CoresetConfig, index: IndexConfig) -> None:
        """Raise InputError for a switch that coreset or search cannot go with."""
        if self.per_image is not None:
            if self.retrieval is not None:
                raise InputError(
                    "method.retrieval compares whole images, but method.per_image keeps only a "
                    "part of each: set one of them to null"
                )
            Thinning(self.per_image, coreset, torch.device("cpu"))
        if not self.narrow:
            return
        key = "radius" if self.radius is not None else "retrieval"
        if isinstance(coreset, LearnedConfig):
            raise InputError(
                f"method.{key} needs patches of images, which coreset=learned does not keep: set "
                f"coreset=greedy, or method.{key}=null"
            )
        if not isinstance(index, TorchIndexConfig):
            raise InputError(
                f"method.{key} has its own exact search: set index=torch, or method.{key}=null"
            )


def untraceable(method: PatchCoreConfig) -> str:
    """Return why no graph for batches of any length can be made with these settings, or nothing."""
    if method.narrow:
        return NARROW
    return FOREGROUND if method.foreground is not None else ""
