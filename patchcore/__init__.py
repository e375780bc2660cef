"""PatchCore anomaly detection.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022.

>>> from patchcore import PatchCore
>>> model = PatchCore().fit(nominal_images)  # (N, 3, H, W), normalised
>>> prediction = model(test_images)          # prediction.score (B,), prediction.map (B, H, W)
"""

from patchcore.backbones import BackboneConfig, LayersConfig
from patchcore.baselines import Padim, PadimConfig, Spade, SpadeConfig
from patchcore.coreset import (
    AllConfig,
    ApproximateConfig,
    GreedyConfig,
    LearnedConfig,
    RandomConfig,
)
from patchcore.ensemble import Ensemble, Scale, ScaleConfig
from patchcore.errors import InputError
from patchcore.index import FaissFlatConfig, FaissIVFPQConfig, TorchIndexConfig
from patchcore.model import PatchCore, Prediction
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
