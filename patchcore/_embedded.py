"""The network that ships in the package: a small trunk distilled from an ImageNet ResNet-18.

`weights/MODEL_CARD.md` says what it was made from and what it is worth;
`experiments/embedded_backbone/` holds the program that trained it.
"""

import hashlib
from importlib.resources import files

import torch
from safetensors.torch import load
from torch import Tensor, nn

from patchcore.errors import InputError

SHIPPED_FILE = "embedded.safetensors"
SHIPPED_SHA256 = "d2bf56cebeef7b04b55e527c0df103017bf306afae180e294a0fdca47180f53c"


class EmbeddedTrunk(nn.Module):
    """3×3 convolutions and ReLU; `layer2` and `layer3` imitate a ResNet-18's layers of that name.

    The two are 1×1 convolutions that read the teacher's maps off the narrower stages, which pass
    their own features on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(_conv(3, 32, 7, 4), _conv(32, 32))
        self.stage2 = nn.Sequential(_conv(32, 96, 3, 2), _conv(96, 96), _conv(96, 96))
        self.layer2 = _conv(96, 128, 1)
        self.stage3 = nn.Sequential(
            _conv(96, 192, 3, 2), _conv(192, 192), _conv(192, 192), _conv(192, 192)
        )
        self.layer3 = _conv(192, 256, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W), normalised as for ImageNet, float.

        Returns:
            The maps of layer2 (B, 128, H/8, W/8) and layer3 (B, 256, H/16, W/16), rounded up.
        """
        x = self.stage2(self.layer1(x))
        layer2 = self.layer2(x)
        return layer2, self.layer3(self.stage3(x))


def load_embedded() -> EmbeddedTrunk:
    """The trunk with its weights, float32, in evaluation mode.

    Raises:
        InputError: The file in the package is missing or not the one that was released.
    """
    file = files("patchcore") / "weights" / SHIPPED_FILE
    if not file.is_file():
        raise InputError(f"{file} is missing; install the package again")
    data = file.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != SHIPPED_SHA256:
        raise InputError(
            f"{file} has SHA-256 {found}, expected {SHIPPED_SHA256}; install the package again"
        )
    # Stored in float16: half the size, and no measurable difference in the maps.
    weights = {name: tensor.to(torch.float32) for name, tensor in load(data).items()}
    trunk = EmbeddedTrunk()
    trunk.load_state_dict(weights)
    return trunk.eval()


def _conv(inp: int, out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inp, out, kernel, stride, kernel // 2), nn.ReLU(inplace=True))
