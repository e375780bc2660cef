"""PatchCore's own settings: switches, off by default, for what other memory banks do.

Each is independent of the others. What they cannot be had with is refused when a model is built.
"""

from dataclasses import dataclass
from typing import ClassVar

from patchcore.backbones import Join, LayersConfig
from patchcore.coreset import CoresetConfig, LearnedConfig
from patchcore.errors import InputError
from patchcore.index import IndexConfig, TorchIndexConfig
from patchcore.methods.detector import Detector, MethodConfig, Parts
from patchcore.patches import PatchConfig
from patchcore.scoring import ScoringConfig
from patchcore.settings import setting


@dataclass
class Followed:
    """Settings that patch features follow from, besides the network's."""

    patch: PatchConfig
    layers: list[str]


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

    radius: int | None = setting(
        None,
        "rows and columns of the patch grid, at most, between a patch and those that it is "
        "compared with: 0 at its own place alone; null: anywhere",
        unit="cells",
        low=0,
    )
    retrieval: int | None = setting(
        None,
        "nominal images most like an image, with whose patches alone its own are compared; null: "
        "all",
        unit="images",
        low=1,
    )

    def build(self, parts: Parts) -> Detector:
        """See `MethodConfig.build`; with separate layers a detector of several banks."""
        if parts.layers.join is not Join.concat:
            from patchcore.methods.banks import LayerBanks  # which read these settings

            return LayerBanks(parts)
        from patchcore.methods.patchcore import PatchCore

        groups = (parts.patch, parts.coreset, parts.index, parts.scoring)
        return PatchCore(parts.backbone, parts.layers, *groups, method=self)

    @property
    def narrow(self) -> bool:
        """Whether patches are compared with a part of the memory each."""
        return self.radius is not None or self.retrieval is not None

    def check(self, coreset: CoresetConfig, index: IndexConfig) -> None:
        """Raise InputError for a switch that coreset or search cannot go with."""
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
                f"method.{key} searches by itself, exactly: set index=torch, or method.{key}=null"
            )
