"""Fitted models as graphs for other runtimes: ONNX, OpenVINO, and PyTorch's own programs."""

from patchcore.export.formats import FORMATS
from patchcore.export.model import (
    ExportedModel,
    Scored,
    compare,
    export,
    load_export,
    load_model,
)
from patchcore.export.parity import Parity

__all__ = [
    "FORMATS",
    "ExportedModel",
    "Parity",
    "Scored",
    "compare",
    "export",
    "load_export",
    "load_model",
]
