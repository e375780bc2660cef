"""Selection of some patches of each nominal image, before the coreset of all images.

An image of twelve megapixels has two hundred times as many patches as an image of 224 × 224, and a
coreset considers the patches of all images. With `method.per_image`, the sampler first selects
patches from each image, or from each band of an image in tiles. Then it makes the usual coreset
from the selected patches. For k-centre this is known to be sound: a coreset of coresets covers
every patch within the sum of both radii (Indyk et al., PODS 2014, "Composable core-sets"). The
working memory is that of one band, whatever the image's size.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from patchcore.coreset import CoresetConfig, LearnedConfig, SizedConfig, subsample
from patchcore.errors import InputError


@dataclass(frozen=True)
class Thinning:
    """Choice of an image's patches by a sampler.

    Attributes:
        patches: Number of patches that are selected of an image; all if it has no more.
        sampler: Settings of the sampler, whose size does not matter here.
        device: Where the work is done.
    """

    patches: int
    sampler: CoresetConfig
    device: torch.device

    def __post_init__(self) -> None:
        if isinstance(self.sampler, LearnedConfig) or not isinstance(self.sampler, SizedConfig):
            raise InputError(
                "method.per_image needs a sampler that keeps a share of the patches: set "
                "coreset=greedy, approximate or random, or method.per_image=null"
            )

    def before(self, share: float) -> int:
        """Number of patches that are selected from the first `share` of an image."""
        return int(self.patches * share + 1e-9)

    def chosen(
        self, features: Float[Tensor, "patches channels"], count: int
    ) -> Int64[Tensor, " chosen"]:
        """Return the numbers of the selected patches, at most `count`, ascending, on the CPU."""
        if count >= len(features):
            return torch.arange(len(features))
        if not count:
            return torch.arange(0)
        assert isinstance(self.sampler, SizedConfig)
        sized: dict[str, Any] = {"count": count}
        if hasattr(self.sampler, "radius"):
            sized["radius"] = None
        config = replace(self.sampler, **sized)
        with torch.inference_mode(False):
            found = subsample(features.float(), config, device=self.device).indices
        assert found is not None
        return found.cpu().sort().values
