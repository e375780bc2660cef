"""PatchCore anomaly detection.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022.

>>> from patchcore import PatchCore
>>> model = PatchCore().fit(nominal_images)  # (N, 3, H, W), normalised
>>> prediction = model(test_images)          # prediction.score (B,), prediction.map (B, H, W)
"""

from importlib import import_module

# Known to type checkers by its name; importing typing would take longer than all the rest.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from patchcore.artifact import load as load
    from patchcore.backbones import BackboneConfig, LayersConfig
    from patchcore.coreset import (
        AllConfig,
        ApproximateConfig,
        GreedyConfig,
        LearnedConfig,
        RandomConfig,
    )
    from patchcore.errors import InputError
    from patchcore.index import FaissFlatConfig, FaissIVFPQConfig, TorchIndexConfig
    from patchcore.inspection import predict as predict
    from patchcore.inspector import Inspector as Inspector
    from patchcore.methods import Padim, PadimConfig, Spade, SpadeConfig
    from patchcore.methods.detector import Prediction
    from patchcore.methods.ensemble import Ensemble
    from patchcore.methods.patchcore import PatchCore
    from patchcore.methods.scale import Scale, ScaleConfig
    from patchcore.patches import PatchConfig
    from patchcore.scoring import ScoringConfig

__all__ = [
    "AllConfig",
    "ApproximateConfig",
    "BackboneConfig",
    "Ensemble",
    "FaissFlatConfig",
    "FaissIVFPQConfig",
    "GreedyConfig",
    "InputError",
    "LayersConfig",
    "LearnedConfig",
    "Padim",
    "PadimConfig",
    "PatchConfig",
    "PatchCore",
    "Prediction",
    "RandomConfig",
    "Scale",
    "ScaleConfig",
    "ScoringConfig",
    "Spade",
    "SpadeConfig",
    "TorchIndexConfig",
]

_HOMES = {
    "patchcore.artifact": "load",
    "patchcore.backbones": "BackboneConfig LayersConfig",
    "patchcore.config": "Config",
    "patchcore.runner": "run",
    "patchcore.methods": "Padim PadimConfig Spade SpadeConfig",
    "patchcore.coreset": "AllConfig ApproximateConfig GreedyConfig LearnedConfig RandomConfig",
    "patchcore.methods.ensemble": "Ensemble",
    "patchcore.errors": "InputError",
    "patchcore.inspection": "predict",
    "patchcore.inspector": "Inspector",
    "patchcore.index": "FaissFlatConfig FaissIVFPQConfig TorchIndexConfig",
    "patchcore.methods.detector": "Prediction",
    "patchcore.methods.patchcore": "PatchCore",
    "patchcore.methods.scale": "Scale ScaleConfig",
    "patchcore.patches": "PatchConfig",
    "patchcore.scoring": "ScoringConfig",
}
"""Modules of the names, {module: names}. What `__all__` leaves out imports more than torch."""
_MODULES = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    """Import a name when it is first asked for: torch takes seconds, the command's help none."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
