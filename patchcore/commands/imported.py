"""All slow libraries that a point needs, imported for the processes that `workers` copies.

None of what that makes is garbage, so it is not searched for any. Imports must not set up CUDA,
which a copy could not use: PyTorch asks the driver's library for its devices instead.
"""

import gc
import os
import sys
from contextlib import suppress
from importlib import import_module

from patchcore.commands import tell_unless_ended

MODULES = (
    *("hydra.main", "omegaconf", "torch", "timm", "pytorch_lightning", "torchmetrics"),
    *("scipy.stats", "matplotlib.pyplot", "safetensors.torch", "triton"),
    *("patchcore.runner", "patchcore.commands.train"),
)

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
sys.excepthook = tell_unless_ended
gc.disable()
for name in MODULES:
    with suppress(Exception):  # triton is not everywhere; the point that needs it tells the error
        import_module(name)
gc.freeze()
gc.enable()
