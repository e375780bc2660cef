"""All methods behind one interface: `METHODS` names them, and `build_detector` makes any of them.

A new method is one file here and one line in `METHODS`; `detector.py` describes the interface. An
`Ensemble` consists of several detectors.
"""

from patchcore.methods.detector import Detector, MethodConfig, Parts, check_unused
from patchcore.methods.padim import Padim, PadimConfig
from patchcore.methods.patchcore import PatchCore
from patchcore.methods.spade import Spade, SpadeConfig
from patchcore.methods.switches import PatchCoreConfig

__all__ = [
    "METHODS",
    "Detector",
    "MethodConfig",
    "Padim",
    "PadimConfig",
    "Parts",
    "PatchCore",
    "PatchCoreConfig",
    "Spade",
    "SpadeConfig",
    "build_detector",
    "check_unused",
]

METHODS: dict[str, type[MethodConfig]] = {
    "padim": PadimConfig,
    "patchcore": PatchCoreConfig,
    "spade": SpadeConfig,
}
"""Settings class of every method, by the name that `method=…` takes."""


def build_detector(parts: Parts) -> Detector:
    """Return the method that `parts.method` names, not fitted yet.

    Raises:
        InputError: A setting has no effect on it.
    """
    check_unused(
        parts.method,
        layers=parts.layers,
        coreset=parts.coreset,
        patch=parts.patch,
        scoring=parts.scoring,
        index=parts.index,
    )
    return parts.method.build(parts)
