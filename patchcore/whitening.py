"""Whitening of patch features: PCA to a share of the variance, with a shrunk covariance.

Directions in which nominal features hardly differ count as much, afterwards, as those in which they
differ most: Euclidean distances of whitened features are Mahalanobis distances. With the
covariance's eigenvalues λ₁ ≥ λ₂ ≥ … and its eigenvectors v₁, v₂, … the first d are kept that hold
the share, and shrunk towards their mean m (Ledoit and Wolf 2004),

    zᵢ = vᵢᵀ (x − μ) / √((1 − ρ) λᵢ + ρ m),    i = 1 … d

as MH-PatchCore does before its coreset (arXiv 2605.27748). Features are read in three passes, chunk
by chunk: mean, covariance, and fourth moments for ρ. Term by term this is `whitening` in
tests/reference.py.
"""

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from patchcore._traced import traced
from patchcore.errors import InputError

_CHUNK = 2**22  # values at a time


def fit_whitening(
    features: Float[Tensor, "patches channels"],
    share: float,
    shrinkage: float | None,
    device: torch.device,
) -> tuple[Float32[Tensor, "1 channels"], Float32[Tensor, "kept channels"]]:
    """Return the mean of features and the matrix that whitens what differs from it.

    Features that are all equal stay as they are.

    Args:
        features: At least one, on any device.
        share: Share of the variance that the components kept hold together.
        shrinkage: ρ, in [0, 1]; None: Ledoit and Wolf's estimate of the best.
        device: Where the work is done, in float64.

    Raises:
        InputError: Features are NaN or infinite.
    """
    count, channels = features.shape
    chunks = features.split(max(1, _CHUNK // channels))
    total = torch.zeros(channels, dtype=torch.float64, device=device)
    for some in chunks:
        total += some.to(device, torch.float64).sum(0)
    mean = total / count  # (D,)
    covariance = torch.zeros(channels, channels, dtype=torch.float64, device=device)
    for some in chunks:
        x = some.to(device, torch.float64) - mean
        covariance += x.T @ x
    covariance /= count
    if not bool(covariance.isfinite().all()):
        raise InputError(
            "the nominal images' patch features are NaN or infinite: check the images, "
            "backbone.weights and trainer.precision"
        )
    variances, vectors = torch.linalg.eigh(covariance)  # ascending
    variances, vectors = variances.flip(0), vectors.flip(1)
    least = variances[0] * channels * torch.finfo(torch.float64).eps
    held = variances[variances > least]  # beyond lies rounding alone
    if float(variances[0]) <= 1e-12 * float(mean.square().sum()):
        return mean.float()[None], torch.eye(channels, device=device)
    shares = held.cumsum(0) / held.sum()
    kept = min(len(held), int((shares < share - 1e-12).sum()) + 1)
    held, vectors = held[:kept], vectors[:, :kept]
    if shrinkage is None:
        fourth = torch.zeros((), dtype=torch.float64, device=device)
        for some in chunks:
            z = (some.to(device, torch.float64) - mean) @ vectors
            fourth += z.square().sum(1).square().sum()
        shrinkage = best_shrinkage(held, float(fourth) / count, count)
    shrunk = (1 - shrinkage) * held + shrinkage * held.mean()
    shrunk *= count / max(1, count - 1)  # of the unbiased covariance
    return mean.float()[None], (vectors / shrunk.sqrt()).T.float().contiguous()


def best_shrinkage(variances: Float[Tensor, " kept"], fourth: float, count: int) -> float:
    """Return ρ by Ledoit and Wolf: the share of its squared error that a covariance can expect.

    Args:
        variances: Eigenvalues of the covariance of `count` vectors, about their mean.
        fourth: Mean fourth power of the vectors' lengths.
        count: How many vectors.
    """
    squared = float(variances.square().sum())  # ‖S‖²
    away = squared - float(variances.sum()) ** 2 / len(variances)  # ‖S − m I‖²
    if away <= 1e-12 * squared:
        return 0.0
    return min(max((fourth - squared) / count / away, 0.0), 1.0)


def whiten(
    features: Float[Tensor, "*patches channels"],
    mean: Float[Tensor, "1 channels"],
    matrix: Float[Tensor, "kept channels"],
) -> Float[Tensor, "*patches kept"]:
    """Return whitened features, where they were; the work is done where the matrix is."""
    if traced():
        return (features - mean) @ matrix.T
    rows = features.reshape(-1, features.shape[-1])
    found = rows.new_empty(len(rows), len(matrix))
    for some in torch.arange(len(rows)).split(max(1, _CHUNK // rows.shape[1])):
        part = slice(int(some[0]), int(some[-1]) + 1)
        found[part] = (rows[part].to(mean) - mean) @ matrix.T
    return found.view(*features.shape[:-1], len(matrix))
