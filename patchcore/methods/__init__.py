"""The methods that the paper compares PatchCore with, and the door to all of them."""

from patchcore.backbones import BackboneConfig, LayersConfig
from patchcore.coreset import AllConfig, CoresetConfig
from patchcore.errors import InputError
from patchcore.index import IndexConfig, TorchIndexConfig
from patchcore.methods.common import refuse_unused
from patchcore.methods.padim import Padim, PadimConfig
from patchcore.methods.patchcore import Detector, ModelConfig, PatchCore, PatchCoreModelConfig
from patchcore.methods.spade import Spade, SpadeConfig
from patchcore.patches import PatchConfig
from patchcore.scoring import ScoringConfig

__all__ = ["Padim", "PadimConfig", "Spade", "SpadeConfig", "build_detector", "check_unused"]


def build_detector(
    model: ModelConfig,
    backbone: BackboneConfig,
    layers: LayersConfig,
    patch: PatchConfig,
    coreset: CoresetConfig,
    index: IndexConfig,
    scoring: ScoringConfig,
) -> Detector:
    """The method that `model` names, not fitted yet.

    Raises:
        InputError: A setting has no effect on it.
    """
    check_unused(model, patch, coreset, index, scoring)
    match model:
        case PatchCoreModelConfig():
            return PatchCore(backbone, layers, patch, coreset, index, scoring)
        case SpadeConfig():
            assert isinstance(index, TorchIndexConfig)
            return Spade(model, backbone, layers, index, scoring)
        case PadimConfig():
            return Padim(model, backbone, layers, scoring)
    raise TypeError(f"no method for {type(model).__name__}")


def check_unused(
    model: ModelConfig,
    patch: PatchConfig,
    coreset: CoresetConfig,
    index: IndexConfig,
    scoring: ScoringConfig,
) -> None:
    """Raise InputError for a setting that differs from its default but has no effect on `model`."""
    if isinstance(model, PatchCoreModelConfig):
        return
    name = "spade" if isinstance(model, SpadeConfig) else "padim"
    if not isinstance(coreset, AllConfig):
        raise InputError(f"coreset has no effect on model={name}: leave it out, or set coreset=all")
    refuse_unused("patch", patch, PatchConfig(), name)
    refuse_unused("scoring", scoring, ScoringConfig(sigma=scoring.sigma), name)
    if not isinstance(index, TorchIndexConfig):
        raise InputError(f"index: model={name} has no use for faiss: leave it out, or set torch")
    if name == "padim":
        refuse_unused("index", index, TorchIndexConfig(), name)
