"""Whitening of patch features: PCA to a share of the variance, with a shrunk covariance.

After whitening, directions in which nominal features hardly differ count as much as those in which
they differ most: Euclidean distances of whitened features are Mahalanobis distances. The unbiased
covariance has eigenvalues λ₁ ≥ λ₂ ≥ … and eigenvectors v₁, v₂, …. The first d eigenvalues, which
hold the share of the variance, are kept and shrunk towards their mean m (Ledoit and Wolf, 2004):

    zᵢ = vᵢᵀ (x − μ) / √((1 − ρ) λᵢ + ρ m),    i = 1 … d

MH-PatchCore does the same before its coreset (arXiv 2605.27748). Features are read in up to three
passes, chunk by chunk: for the mean, the covariance, and fourth moments to estimate ρ. `whitening`
in tests/reference.py is the same, term by term.
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
    """Return the mean of features, and the matrix that whitens differences from the mean.

    If all features are equal, up to rounding, the matrix is the identity.

    Args:
        features: One or more patch features, on any device.
        share: Share of the variance that the kept components hold together, in (0, 1].
        shrinkage: ρ, in [0, 1]; None: Ledoit and Wolf's estimate of the best value.
        device: Device of the computation, in float64, and of the results.

    Raises:
        InputError: features are NaN or infinite.
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
    held = variances[variances > least]  # the others are rounding errors
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
    """Return Ledoit and Wolf's ρ: expected squared error of S over ‖S − m I‖², in [0, 1].

    S is the covariance, and m the mean of its eigenvalues.

    Args:
        variances: Eigenvalues of the covariance of `count` vectors.
        fourth: Mean fourth power of the lengths of the vectors, from their mean.
        count: Number of vectors.
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
    """Return whitened features on their own device; the computation is on the matrix's device.

    Args:
        features: Patch features.
        mean: Mean from `fit_whitening`.
        matrix: Matrix from `fit_whitening`.
    """
    if traced():
        return (features - mean) @ matrix.T
    rows = features.reshape(-1, features.shape[-1])
    found = rows.new_empty(len(rows), len(matrix))
    for some in torch.arange(len(rows)).split(max(1, _CHUNK // rows.shape[1])):
        part = slice(int(some[0]), int(some[-1]) + 1)
        found[part] = (rows[part].to(mean) - mean) @ matrix.T
    return found.view(*features.shape[:-1], len(matrix))
