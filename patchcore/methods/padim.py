"""PaDiM: a Gaussian for every position of the patch grid (Defard et al., ICPR 2021).

Layers are joined at the finest one's grid and a random subset of their channels is kept: x_ij, D
values at position (i, j). Over the N nominal images it has a mean μ_ij and a covariance

    Σ_ij = 1/(N − 1) Σ_k (x_ij^k − μ_ij)(x_ij^k − μ_ij)ᵀ + ε I,    ε = 0.01

and a patch's score is the Mahalanobis distance √((x − μ)ᵀ Σ⁻¹ (x − μ)). With Σ = L Lᵀ that is
‖L⁻¹ (x − μ)‖, a triangular solve; Σ is never inverted, and all positions are worked on at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from patchcore._traced import traced
from patchcore.backbones import BackboneConfig, LayersConfig
from patchcore.errors import InputError
from patchcore.methods.common import ImageBuffer, check_grid, interpolated
from patchcore.methods.counted import Counted, cells, parts
from patchcore.methods.detector import Detector, Fitting, MethodConfig, Parts, Prediction
from patchcore.methods.origin import UNKNOWN, position_origins
from patchcore.scoring import ScoringConfig, anomaly_maps
from patchcore.settings import setting

EPSILON = 0.01
"""ε of the covariance: positions are few images and many channels."""
_CHUNK = 2**26  # values (256 MiB) in the working memory


@dataclass
class PadimConfig(MethodConfig):
    """PaDiM's own settings."""

    name: ClassVar[str] = "padim"
    levels: ClassVar = ("1", "2", "3")
    reads: ClassVar[dict[str, Any]] = {"scoring": ("sigma",)}
    estimates: ClassVar[bool] = True  # new images change what is compared with, not only add to it

    channels: int | None = setting(
        100,
        "number of channels, drawn from all layers (paper: 100, or 550 for a wide ResNet-50); "
        "null: all",
        unit="channels",
        low=1,
    )
    seed: int = setting(
        0,
        "seed for drawing the channels",
        effect=lambda padim: padim["channels"] is not None,
        idle="without method.channels",
    )

    def build(self, parts: Parts) -> "Padim":
        """See `MethodConfig.build`."""
        return Padim(self, parts.backbone, parts.layers, parts.scoring)


class Padim(Detector):
    """A Gaussian for every position; images must be aligned and of one size.

    Fitting holds N·h·w·D float32 values and 256 MiB; what remains are h·w·D·(D + 1) values.
    Layers are by default those of the paper, 1 to 3.

    Attributes:
        images: Number of images to which the Gaussians were fitted.
        number: (h·w, 1) N of each position: the number of images in which it counted.
        mean: (h·w, D) of the nominal images; empty before `fit`.
        factor: (h·w, D, D) lower Cholesky factors L of the covariances.
        channels: (D,) which of the joined layers' channels are used, ascending.
    """

    mean: Tensor
    factor: Tensor
    channels: Tensor
    number: Tensor
    one_size = True

    def __init__(
        self,
        config: PadimConfig | None = None,
        backbone: BackboneConfig | None = None,
        layers: LayersConfig | None = None,
        scoring: ScoringConfig | None = None,
    ) -> None:
        self.config = config or PadimConfig()
        super().__init__(
            Parts(
                self.config,
                backbone or BackboneConfig(),
                layers or LayersConfig(["1", "2", "3"]),
                scoring=scoring or ScoringConfig(),
            )
        )
        total = sum(self.backbone.channels)
        count = total if self.config.channels is None else self.config.channels
        if count > total:
            raise InputError(
                f"method.channels must be at most {total}, the channels of layers "
                f"{', '.join(self.backbone.layers)}, got {count}"
            )
        generator = torch.Generator().manual_seed(self.config.seed)
        channels = torch.randperm(total, generator=generator)[:count].sort().values
        self.register_buffer("channels", channels, persistent=False)
        bounds = torch.tensor([0, *self.backbone.channels]).cumsum(0)  # of each layer's channels
        self._first = bounds[:-1].tolist()
        self._drawn = torch.searchsorted(channels, bounds).diff().tolist()  # of each layer
        self.register_buffer("mean", torch.empty(0, count))
        self.register_buffer("factor", torch.empty(0, count, count))
        self.register_buffer("number", torch.empty(0, 1, dtype=torch.int64))
        self.grid, self.images, self._partial = (0, 0), 0, False

    def settings(self) -> dict[str, Any]:
        """See `Stateful.settings`."""
        drawn = {f"method.{key}": value for key, value in vars(self.config).items()}
        return {**super().settings(), **drawn}

    def remembered(self) -> dict[str, Any]:
        """See `Stateful.remembered`."""
        return {"grid": self.grid, "images": self.images, "partial": self._partial}

    def remember(self, values: dict[str, Any]) -> None:
        """See `Stateful.remember`."""
        height, width = values["grid"]
        self.grid, self.images = (height, width), values["images"]
        self._partial = values["partial"]

    @torch.inference_mode()
    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """The drawn channels (B, h, w, D), float32, of layer maps [(B, C, h, w), …]."""
        grid = (maps[0].shape[2], maps[0].shape[3])
        layers = zip(maps, self.channels.split(self._drawn), self._first, strict=True)
        drawn = [x[:, channels - first].float() for x, channels, first in layers if len(channels)]
        return torch.cat([interpolated(x.permute(0, 2, 3, 1), grid) for x in drawn], dim=-1)

    def counted(self, maps: Sequence[Tensor], inside: Tensor) -> Counted:
        """See `Detector.counted`; a Gaussian uses the images in which its position counts."""
        features = self.features(maps)
        return Counted(features, cells(inside, (features.shape[1], features.shape[2])))

    def buffer(self, images: int = 0) -> ImageBuffer:
        """See `Detector.buffer`."""
        return ImageBuffer(images)

    def build_from(self, buffer: ImageBuffer, fitting: Fitting | None = None) -> None:
        """See `Detector.build_from`."""
        counts, features = buffer.take_counts(), buffer.take()
        self.grid = (features.shape[1], features.shape[2])
        progress = fitting is not None and fitting.progress
        self.build(features.flatten(1, 2), progress, None if counts is None else counts.flatten(1))

    @torch.inference_mode()
    def build(self, features: Tensor, progress: bool = False, counts: Tensor | None = None) -> None:
        """Fit the Gaussians to features (N, h·w, D), on the model's device wherever they lie.

        Each position uses the images in which it counts, by `counts` (N, h·w).
        """
        images, positions, channels = features.shape
        if counts is not None:
            with torch.inference_mode(False):
                unit = torch.eye(channels, device=self.device)
                self.mean = torch.zeros(positions, channels, device=self.device)
                self.factor = (EPSILON**0.5 * unit).repeat(positions, 1, 1)
                self.number = torch.zeros(positions, 1, dtype=torch.int64, device=self.device)
            self.images = 0
            self._join(features, counts)
            return
        at_once = max(1, _CHUNK // (channels * (2 * images + 2 * channels)))
        means, factors = [], []
        with (
            torch.autocast(self.device.type, enabled=False),
            tqdm(total=positions, desc="Gaussians", disable=not progress) as bar,
        ):
            for chunk in features.split(at_once, dim=1):
                x = chunk.to(self.device).transpose(0, 1)  # (N, p, D) → (p, N, D)
                mean = x.mean(1)  # (p, D)
                x = x - mean[:, None]
                covariance = x.mT @ x / max(1, images - 1)  # (p, D, D)
                covariance.diagonal(dim1=1, dim2=2).add_(EPSILON)
                means.append(mean)
                factors.append(cholesky(covariance))
                bar.update(len(mean))
        with torch.inference_mode(False):
            self.mean, self.factor = torch.cat(means), torch.cat(factors)
            self.number = torch.full((positions, 1), images, device=self.device)
        self.images, self._partial = images, False

    @torch.inference_mode()
    def extend(
        self,
        batches: Sequence[Tensor | Counted],
        sizes: Sequence[tuple[int, int]],
        images: Sequence[int],
        count: int | None = None,
    ) -> list[Prediction]:
        """See `Detector.extend`: the Gaussians become those of all images, up to rounding."""
        if count is not None:
            raise InputError("count: method=padim has no patches to count: leave it out")
        predictions = [self.score(*pair) for pair in zip(batches, sizes, strict=True)]
        split = [parts(batch) for batch in batches]
        features = torch.cat([x.flatten(1, 2) for x, _ in split])  # (m, h·w, D)
        counted = [
            torch.ones(x.shape[:3], dtype=torch.bool) if counts is None else counts.cpu()
            for x, counts in split
        ]
        self._join(features, torch.cat(counted).flatten(1))
        return predictions

    def _join(self, features: Tensor, counts: Tensor) -> None:
        """Let further images take part: features (m, h·w, D), where they count by (m, h·w).

        Sums of squares about the mean S = (N − 1)(Σ − ε I) of two groups of n and m images join to
        S₁ + S₂ + (μ₂ − μ₁)(μ₂ − μ₁)ᵀ n m / (n + m) (Chan, Golub, LeVeque 1979), in float64.
        """
        images, _, channels = features.shape
        at_once = max(1, _CHUNK // (channels * (4 * images + 8 * channels)))
        means, factors, numbers = [], [], []
        with torch.autocast(self.device.type, enabled=False):
            for mean, factor, known, chunk, counted in zip(
                self.mean.split(at_once),
                self.factor.split(at_once),
                self.number.split(at_once),
                features.split(at_once, dim=1),
                counts.split(at_once, dim=1),
                strict=True,
            ):
                scatter = factor.double() @ factor.double().mT  # (p, D, D)
                scatter.diagonal(dim1=1, dim2=2).sub_(EPSILON)
                scatter *= (known - 1).clamp(min=0)[:, :, None]
                w = counted.to(self.device).T[:, :, None].double()  # (m, p) → (p, m, 1)
                more = w.sum(1).long()  # (p, 1)
                x = chunk.to(self.device).transpose(0, 1).double()  # (m, p, D) → (p, m, D)
                middle = (x * w).sum(1) / more.clamp(min=1)  # (p, D)
                x = (x - middle[:, None]) * w
                number = known + more  # (p, 1)
                step, share = middle - mean, more / number.clamp(min=1)
                scatter += x.mT @ x + step[:, :, None] * (step * known * share)[:, None, :]
                covariance = scatter / (number - 1).clamp(min=1)[:, :, None]
                covariance.diagonal(dim1=1, dim2=2).add_(EPSILON)
                means.append((mean + step * share).float())
                factors.append(cholesky(covariance.float()))
                numbers.append(number)
        with torch.inference_mode(False):
            self.mean, self.factor = torch.cat(means), torch.cat(factors)
            self.number = torch.cat(numbers)
        self.images += images
        self._partial = not bool((self.number > 0).all())

    @property
    def partial(self) -> bool:
        """See `Detector.partial`: a position that counted in no image is not scored."""
        return self._partial

    @property
    def images_had(self) -> int:
        """See `Detector.images_had`."""
        return self.images

    def origins(self, rows: Tensor) -> Tensor:
        """See `Detector.origins`: a Gaussian belongs to no single image, but has a position."""
        images = torch.tensor([UNKNOWN], dtype=torch.int32)
        return position_origins(rows, images, self.grid)

    @torch.inference_mode()
    def score(self, features: Tensor | Counted, size: tuple[int, int]) -> Prediction:
        """Score features (B, h, w, D) of images of `size` (H, W).

        An image's score is the highest of its patches', before they are smoothed to a map.
        `Prediction.nearest` is the position of the patch, which is the number of its Gaussian.
        """
        if not len(self.mean):
            raise InputError("the model is not fitted: call fit with nominal images first")
        drawn, counts = parts(features)
        count, height, width, _ = drawn.shape
        check_grid((height, width), self.grid)
        with torch.autocast(drawn.device.type, enabled=False):
            x = (drawn.flatten(1, 2) - self.mean).permute(1, 2, 0)  # (h·w, D, B)
            at_once = max(1, _CHUNK // (2 * x.shape[1] * count)) if not traced() else len(x)
            chunks = zip(self.factor.split(at_once), x.split(at_once), strict=True)
            whitened = (torch.linalg.solve_triangular(*pair, upper=False) for pair in chunks)
            scores = torch.cat([y.square().sum(1).sqrt() for y in whitened]).T  # (B, h·w)
            grid = scores.reshape(count, height, width)  # (B, h, w)
            if counts is not None or self.partial:
                known = (self.number > 0).view(1, height, width).expand_as(grid)
                counts = known if counts is None else counts & known
                if not bool(counts.flatten(1).any(1).all()):
                    raise InputError(
                        "data.region: no position that counts in this image counted in a nominal "
                        "image"
                    )
                grid = torch.where(counts, grid, torch.nan)
                scores = torch.where(counts, grid, -torch.inf).flatten(1)
            nearest = torch.arange(height * width, device=grid.device).view(height, width)
            maps = anomaly_maps(grid, size, self.scoring.sigma)
            return Prediction(scores.amax(1), maps, grid, nearest.expand_as(grid))

    @property
    def memory_patches(self) -> int:
        """h·w, the Gaussians."""
        return len(self.mean)

    @property
    def memories(self) -> dict[str, Tensor]:
        """See `Method.memories`."""
        return {"mean": self.mean, "factor": self.factor}


def cholesky(covariance: Tensor) -> Tensor:
    """Lower factors of covariances (p, D, D). Raises InputError where float32 cannot tell them."""
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if bool(failed.any()) or not bool(factor.isfinite().all()):
        raise InputError(
            "a position's covariance has no Cholesky factor in float32: the features are infinite "
            f"or too large beside ε = {EPSILON}; use another backbone or fewer method.channels"
        )
    return factor
