"""The students that were compared, in the form that is trained.

All of them downsample by 4 at once, because the large early maps are what costs time on a
processor, and read each of the teacher's layers off with a 1×1 convolution. `as_shipped` turns the
chosen one into plain convolutions.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from patchcore._embedded import EmbeddedTrunk

TARGETS = (128, 256)  # channels of the teacher's layer2 and layer3


class ConvNorm(nn.Sequential):
    """Convolution without bias, then batch norm; halves, or keeps, the map like a ResNet's."""

    def __init__(self, inp: int, out: int, kernel: int, stride: int = 1) -> None:
        padding = (kernel - 1) // 2
        super().__init__(
            nn.Conv2d(inp, out, kernel, stride, padding, bias=False), nn.BatchNorm2d(out)
        )

    def kernel_and_bias(self, size: int) -> tuple[Tensor, Tensor]:
        """The equivalent convolution's weight, zero-padded to size × size, and its bias."""
        conv, norm = self[0], self[1]
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        weight = conv.weight * scale[:, None, None, None]
        border = (size - weight.shape[-1]) // 2
        return nn.functional.pad(weight, [border] * 4), norm.bias - norm.running_mean * scale


class Plain(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inp: int, out: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = ConvNorm(inp, out, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()

    def fuse(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution that this is, before its ReLU."""
        return self.conv.kernel_and_bias(self.conv[0].kernel_size[0])


class Rep(nn.Module):
    """3×3 + 1×1 + identity, each with batch norm, in training; one 3×3 afterwards (RepVGG)."""

    def __init__(self, inp: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.three, self.one = ConvNorm(inp, out, 3, stride), ConvNorm(inp, out, 1, stride)
        self.same = nn.BatchNorm2d(out) if inp == out and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.three(x) + self.one(x)
        return (y if self.same is None else y + self.same(x)).relu()

    def fuse(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution that this is, before its ReLU."""
        weight, bias = self.three.kernel_and_bias(3)
        weight_one, bias_one = self.one.kernel_and_bias(3)
        weight, bias = weight + weight_one, bias + bias_one
        if self.same is not None:
            norm = self.same
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            weight[:, :, 1, 1] += torch.diag(scale)
            bias = bias + norm.bias - norm.running_mean * scale
        return weight, bias


class Basic(nn.Module):
    """ResNet's basic block."""

    def __init__(self, inp: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.first, self.second = ConvNorm(inp, out, 3, stride), ConvNorm(out, out, 3)
        self.short = nn.Identity() if inp == out else ConvNorm(inp, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return (self.second(self.first(x).relu()) + self.short(x)).relu()


class Student(nn.Module):
    """stem and layer1 (stride 4) → stage2 (8) → stage3 (16); layer2 and layer3 read them off."""

    def __init__(
        self, layer1: nn.Module, stage2: nn.Module, stage3: nn.Module, widths: tuple[int, int]
    ) -> None:
        super().__init__()
        self.layer1, self.stage2 = layer1, stage2
        self.layer2 = Plain(widths[0], TARGETS[0], 1)
        self.stage3 = stage3
        self.layer3 = Plain(widths[1], TARGETS[1], 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stage2(self.layer1(x))
        return [self.layer2(x), self.layer3(self.stage3(x))]

    def start_at(self, means: list[Tensor], stds: list[Tensor]) -> None:
        """Let the outputs begin with the teacher's mean and deviation in every channel."""
        for head, mean, std in zip((self.layer2, self.layer3), means, stds, strict=True):
            head.conv[1].bias.data, head.conv[1].weight.data = mean.clone(), std.clone()


def stage(
    block: Callable[..., nn.Module], inp: int, out: int, depth: int, stride: int
) -> nn.Module:
    """`depth` blocks, of which the first changes width and resolution."""
    return nn.Sequential(
        *[block(out if i else inp, out, stride=1 if i else stride) for i in range(depth)]
    )


def trunk(
    block: Callable[..., nn.Module], widths: tuple[int, int, int], depths: tuple[int, int, int]
) -> Student:
    """7×7 stride-4 stem, then three stages of one kind of block."""
    one, two, three = widths
    layer1 = nn.Sequential(Plain(3, one, 7, 4), stage(block, one, one, depths[0], 1))
    return Student(
        layer1,
        stage(block, one, two, depths[1], 2),
        stage(block, two, three, depths[2], 2),
        (two, three),
    )


def patch_description() -> Student:
    """Network like EfficientAD's: pooling for strides, few layers, a small receptive field."""
    layer1 = nn.Sequential(Plain(3, 32, 4, 2), nn.AvgPool2d(2), Plain(32, 64))
    stage2 = nn.Sequential(nn.AvgPool2d(2), Plain(64, 128))
    stage3 = nn.Sequential(nn.AvgPool2d(2), Plain(128, 256))
    return Student(layer1, stage2, stage3, (128, 256))


DESIGNS: dict[str, Callable[[], Student]] = {
    "pdn": patch_description,
    "resnet-32-64": lambda: trunk(Basic, (32, 64, 128), (2, 2, 2)),
    "plain-32-96": lambda: trunk(Plain, (32, 96, 192), (1, 3, 4)),
    "rep-32-64": lambda: trunk(Rep, (32, 64, 128), (2, 4, 4)),
    "rep-32-96": lambda: trunk(Rep, (32, 96, 192), (1, 3, 4)),
}


@torch.no_grad()
def as_shipped(student: Student) -> EmbeddedTrunk:
    """The same function as a trained `rep-32-96` in evaluation mode, as plain convolutions."""
    trunk = EmbeddedTrunk()
    blocks = [m for m in student.modules() if isinstance(m, Plain | Rep)]
    convolutions = [m for m in trunk.modules() if isinstance(m, nn.Conv2d)]
    for block, convolution in zip(blocks, convolutions, strict=True):
        weight, bias = block.fuse()
        convolution.weight.copy_(weight)
        convolution.bias.copy_(bias)
    return trunk.eval()
