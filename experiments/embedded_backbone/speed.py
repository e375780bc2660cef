"""Processor time of an image: every design against ResNet-18 to layer3, interleaved.

    python -m experiments.embedded_backbone.speed

One thread, and the processor's time rather than the clock's: other programs then hardly matter.
"""

import argparse
import time

import timm
import torch
from torch import nn
from tqdm import trange

from experiments.embedded_backbone.designs import DESIGNS, ConvNorm, Plain, Rep, Student


def folded(student: Student) -> nn.Module:
    """The student as it would ship: batch norms folded, branches merged. Weights are random."""
    student.eval()
    for name, module in list(student.named_modules()):
        if isinstance(module, Rep):
            conv = with_bias(module.three[0])
            student.set_submodule(name, nn.Sequential(conv, nn.ReLU(inplace=True)))
        elif isinstance(module, Plain):
            conv = with_bias(module.conv[0])
            student.set_submodule(name, nn.Sequential(conv, nn.ReLU(inplace=True)))
    for name, module in list(student.named_modules()):
        if isinstance(module, ConvNorm):
            student.set_submodule(name, with_bias(module[0]))
    return student


def with_bias(conv: nn.Conv2d) -> nn.Conv2d:
    """A convolution of the same shape, with a bias."""
    kernel, stride, padding = conv.kernel_size[0], conv.stride[0], conv.padding[0]
    return nn.Conv2d(conv.in_channels, conv.out_channels, kernel, stride, padding)


def main() -> None:
    """Print a table of the best of all rounds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    networks: dict[str, nn.Module] = {
        "resnet18": timm.create_model("resnet18", features_only=True, out_indices=(2, 3))
    }
    networks |= {name: folded(make()) for name, make in DESIGNS.items()}
    images = torch.randn(args.batch, 3, 224, 224).to(memory_format=torch.channels_last)
    best = dict.fromkeys(networks, float("inf"))
    with torch.inference_mode():
        for network in networks.values():
            network.eval().to(memory_format=torch.channels_last)(images)
        for _ in trange(args.rounds):
            for name, network in networks.items():
                start = time.process_time()
                network(images)
                best[name] = min(best[name], time.process_time() - start)
    for name, seconds in best.items():
        parameters = sum(p.numel() for p in networks[name].parameters()) / 1e6
        print(
            f"{name:14s} {parameters:5.2f} M parameters  {seconds / args.batch * 1e3:6.2f} ms an "
            f"image  {best['resnet18'] / seconds:5.2f} times ResNet-18's speed"
        )


if __name__ == "__main__":
    main()
