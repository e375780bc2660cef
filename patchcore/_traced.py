"""Check for a program being made of a model, which then may not look at values."""

import torch


def traced() -> bool:
    """Whether `torch.compile`, `torch.export` or `torch.jit.trace` is following this call."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()
