"""Products in bfloat16 where the processor is several times faster at them, and how much they err.

They never decide anything: what they cannot tell apart is measured in float32.
"""

import torch
from torch import Tensor

_ROUNDOFF = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-9}


def coarse_dtype(like: Tensor) -> torch.dtype:
    """bfloat16 for float32 on a processor with instructions for its products, else `like`'s."""
    if like.device.type != "cpu" or like.dtype != torch.float32:
        return like.dtype
    supported = [f"_is_{name}_supported" for name in ("avx512_bf16", "amx_tile")]
    fast = any(getattr(torch.cpu, name, bool)() for name in supported)
    return torch.bfloat16 if fast else torch.float32


def product_error(dtype: torch.dtype, dimension: int) -> float:
    """Most that x·y of float32 vectors errs in products of `dtype`, as a share of |x| |y|.

    Both factors and the result are rounded; sums over the dimension are float32.
    """
    return 3 * _ROUNDOFF[dtype] + sum_error(dimension)


def sum_error(dimension: int) -> float:
    """Most that a float32 sum of so many terms errs, as a share of the terms' sizes."""
    return dimension * 2.0**-24
