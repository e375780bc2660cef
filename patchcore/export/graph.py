"""One graph from pixels to score and anomaly map, which runtimes other than PyTorch can run."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from patchcore.data.transforms import ImageConfig, offset_and_scale
from patchcore.errors import InputError
from patchcore.inspector import Inspector
from patchcore.methods.ensemble import Ensemble

MOST = 2**16  # images of a batch


class InspectionGraph(nn.Module):
    """Pixels (B, h, w, 3) uint8 → scores (B,) and anomaly maps (B, h, w), float32.

    Images are at the size that `Inspector.prepare` gives. Making them so small is left to the
    caller: Pillow averages and rounds to 8 bits on the way, which no standard operator does.

    Args:
        inspector: Its model; all members of an ensemble must take images of one size.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, inspector: Inspector) -> None:
        super().__init__()
        self.model = inspector.model
        self.together = isinstance(inspector.model, Ensemble)
        for name, x in zip(("offset", "scale"), _normalisations(inspector.images), strict=True):
            self.register_buffer(name, x, persistent=False)  # (members, 3, 1, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Score images (B, h, w, 3) uint8."""
        pixels = images.permute(0, 3, 1, 2).float()  # (B, 3, h, w)
        inputs = [
            (pixels - offset) * scale for offset, scale in zip(self.offset, self.scale, strict=True)
        ]
        found = self.model(inputs if self.together else inputs[0])
        return found.score, found.map


def traced_graph(inspector: Inspector, size: tuple[int, int]) -> torch.export.ExportedProgram:
    """Return the graph of an inspector for images of `size` (h, w), in batches of any length.

    Raises:
        InputError: The model computes in another precision than float32, takes images of several
            sizes, or is of a kind that cannot be traced; begins with the setting.
    """
    _check(inspector)
    graph = InspectionGraph(inspector).eval()
    example = torch.zeros(2, *size, 3, dtype=torch.uint8, device=inspector.device)
    sizes = ({0: torch.export.Dim("batch", min=1, max=MOST)},)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of layouts, which do not matter here
            return torch.export.export(graph, (example,), dynamic_shapes=sizes)
    except InputError:
        raise
    except Exception as error:  # PyTorch's tracer has dozens of its own
        raise InputError(
            f"{kind(inspector)}: cannot be exported: its graph depends on more than the shape of "
            f"a batch ({reason(error)})"
        ) from error


def reason(error: Exception) -> str:
    """First line of the message of the error that caused another."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def kind(inspector: Inspector) -> str:
    """Setting that names the kind of an inspector's model."""
    return f"method={inspector.members[0].parts.method.name}"


def _check(inspector: Inspector) -> None:
    dtypes = {next(member.backbone.parameters()).dtype for member in inspector.members}
    if inspector.precision != "32-true" or dtypes != {torch.float32}:
        raise InputError(
            f"trainer.precision: the model was fitted with {inspector.precision}, and exports "
            "compute in float32: fit it with trainer.precision=32-true"
        )
    if inspector.region is not None or any(member.partial for member in inspector.members):
        raise InputError(
            "data.region: a model that counts only a part of the images cannot be exported"
        )
    if why := inspector.members[0].untraceable:
        raise InputError(f"{kind(inspector)}: cannot be exported: {why}")


def _normalisations(images: list[ImageConfig]) -> tuple[Tensor, Tensor]:
    """Offsets and scales of each member's input, both (members, 3, 1, 1)."""
    pairs: list[Any] = [offset_and_scale(image) for image in images]
    offset, scale = (torch.stack([torch.from_numpy(p[i]) for p in pairs]) for i in (0, 1))
    return offset[..., None, None], scale[..., None, None]
