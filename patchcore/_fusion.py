"""Frozen convolutions with all that follows them in one step: the same up to rounding, and faster.

A batch norm is folded into the weights before it, a ReLU is cuDNN's to do as it convolves, and a
convolution of single pixels with a bias is a matrix product that adds it.
"""

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn


class ConvReLU(nn.Conv2d):
    """A convolution and its ReLU, one step of cuDNN's."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the activation, in the precision of the weights."""
        input = input.to(self.weight.dtype)
        if not input.is_cuda or not len(input) or torch.version.hip is not None:
            return super().forward(input).relu()  # where cuDNN is not, or has nothing to do
        assert not isinstance(self.padding, str)  # see `fuse_relus`
        return torch.cudnn_convolution_relu(
            input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class PointwiseConv(nn.Conv2d):
    """A convolution of single pixels as a product, which adds the bias at no cost."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the map, in the precision of the weights, channels last."""
        pixels = input.to(self.weight.dtype).permute(0, 2, 3, 1)  # (B, H, W, C)
        return F.linear(pixels, self.weight[:, :, 0, 0], self.bias).permute(0, 3, 1, 2)


def fuse(network: nn.Module, keep: Collection[str], precision: torch.dtype) -> None:
    """Fuse the convolutions of a network with what follows, in place.

    What torch.fx cannot follow stays as it is.

    Args:
        network: In evaluation mode; it loses its forward hooks.
        keep: Names of modules whose output is wanted as it is.
        precision: That of the convolutions afterwards: else autocast would convert their weights
            for every batch.
    """
    for module in network.modules():
        module._forward_hooks.clear()  # they would run on stand-ins for tensors
    fold_batch_norms(network, keep)
    fuse_relus(network, keep)
    for module in network.modules():
        if not isinstance(module, nn.Conv2d):
            continue
        module.to(precision)
        # In float32 cuDNN may use TF32, which products do not.
        if precision != torch.float32 and type(module) is nn.Conv2d and _is_pointwise(module):
            module.__class__ = PointwiseConv


def fold_batch_norms(network: nn.Module, keep: Collection[str] = ()) -> int:
    """Fold each batch norm that alone reads a convolution into this, in place; count them."""
    folded = 0
    for first, between, second in _pairs(network):
        conv, norm = network.get_submodule(first), network.get_submodule(second)
        rest = _after(norm)
        # Subclasses of convolutions may do more to their weights than multiply by them.
        if type(conv) is not nn.Conv2d or rest is None or {first, *between} & set(keep):
            continue
        assert isinstance(norm, nn.BatchNorm2d)
        _fold(conv, norm)
        network.set_submodule(second, rest)
        folded += 1
    return folded


def fuse_relus(network: nn.Module, keep: Collection[str] = ()) -> int:
    """Make one step of each convolution and the ReLU that alone reads it, in place; count them."""
    fused = 0
    for first, between, second in _pairs(network):
        conv, relu = network.get_submodule(first), network.get_submodule(second)
        if type(conv) is not nn.Conv2d or type(relu) is not nn.ReLU:
            continue
        if {first, *between} & set(keep) or conv.padding_mode != "zeros":
            continue
        if isinstance(conv.padding, str):
            continue
        conv.__class__ = ConvReLU
        network.set_submodule(second, nn.Identity())
        fused += 1
    return fused


class _Tracer(fx.Tracer):
    """Tracer to whom convolutions and batch norms, subclasses too, are one step each."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d | nn.BatchNorm2d) or super().is_leaf_module(
            m, module_qualified_name
        )


def _pairs(network: nn.Module) -> list[tuple[str, list[str], str]]:
    """Modules that run once each, the last alone on the output of the first.

    Returns:
        Names of the first, of modules between them that change nothing, and of the last.
    """
    try:
        nodes = list(_Tracer().trace(network).nodes)
    except Exception:  # of any kind: the network's own code runs on stand-ins for tensors
        return []
    calls = [str(node.target) for node in nodes if node.op == "call_module"]
    pairs = []
    for node in nodes:
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            continue
        chain = _chain(network, node)
        if len(chain) > 1 and all(calls.count(name) == 1 for name in chain):
            pairs.append((chain[-1], chain[1:-1], chain[0]))
    return pairs


def _chain(network: nn.Module, node: fx.Node) -> list[str]:
    """Names from a module back to the first that changes something before it."""
    names = [str(node.target)]
    while True:
        before = node.args[0]
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            return names[:1]
        names.append(str(before.target))
        if not isinstance(network.get_submodule(names[-1]), nn.Identity):
            return names
        node = before


def _is_pointwise(conv: nn.Conv2d) -> bool:
    """Whether it is a product of each pixel's channels, with a bias."""
    return (
        conv.bias is not None
        and conv.kernel_size == conv.stride == (1, 1)
        and conv.padding in ((0, 0), "valid", "same")
        and conv.groups == 1
    )


def _after(norm: nn.Module) -> nn.Module | None:
    """Module for the rest of a batch norm once it is folded; None if it cannot be."""
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_var is None:
        return None
    if type(norm) is nn.BatchNorm2d:
        return nn.Identity()
    if type(norm).__name__ == "BatchNormAct2d":  # timm's, with an activation
        return nn.Sequential(norm.get_submodule("drop"), norm.get_submodule("act"))
    return None


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()  # (C,)
    if norm.affine:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    if norm.affine:
        shift = shift + norm.bias.double()
    weight = conv.weight.double() * scale[:, None, None, None]  # (C, C', p, p)
    like = conv.weight
    conv.weight = nn.Parameter(
        weight.to(like.dtype).contiguous(memory_format=torch.channels_last), requires_grad=False
    )
    conv.bias = nn.Parameter(shift.to(like.dtype), requires_grad=False)
