"""Libraries of the processes that tests start, imported once for all of these; see `processes.py`.

So is the package itself. None of what that makes is garbage: it is not searched for any.
"""

import gc
from importlib import import_module

LIBRARIES = (
    *("torch", "torchmetrics", "torchvision", "timm", "pytorch_lightning", "scipy.stats"),
    *("hydra.main", "jinja2", "matplotlib.pyplot", "safetensors.torch", "wandb"),
    "patchcore.runner",
)

gc.disable()
for name in LIBRARIES:
    import_module(name)
gc.freeze()
gc.enable()
