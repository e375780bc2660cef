"""From distances to an image's anomaly score (Eq. 6, 7) and anomaly map."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from patchcore._traced import traced
from patchcore.errors import InputError

Search = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""(Q, D) queries and k → squared distances (Q, k) and memory rows (Q, k)."""


class Distance(Enum):
    """What becomes of the squared distances of the search."""

    euclidean = "euclidean"  # the paper
    squared = "squared"  # the reference implementation
    cosine = "cosine"  # 1 − cos; patch features are searched at unit length


@dataclass
class ScoringConfig:
    """How patch distances become scores."""

    neighbours: int = 1  # k nearest memory patches whose distances are averaged
    reweight: int = 0  # b of Eq. 7, the neighbour itself counted; 0: no reweighting
    distance: Distance = Distance.euclidean
    top_share: float = 0.0  # of the patches whose scores an image's is the mean of; 0: the maximum
    sigma: float = 4.0  # of the anomaly map's Gaussian, in px; 0: none

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise InputError(f"scoring.neighbours must be at least 1, got {self.neighbours}")
        if self.reweight < 0 or self.reweight == 1:
            raise InputError(
                f"scoring.reweight must be 0 (off) or at least 2, got {self.reweight}; with one "
                "neighbour Eq. 7 makes every score 0"
            )
        if not 0 <= self.top_share <= 1:
            raise InputError(f"scoring.top_share must be in [0, 1], got {self.top_share}")
        if self.sigma < 0:
            raise InputError(f"scoring.sigma must not be negative, got {self.sigma}")


def comparable(features: Tensor, config: ScoringConfig) -> Tensor:
    """Features (…, D) as they are searched: for the cosine distance at unit length.

    There |x − y|² = 2 (1 − cos), so every back end searches by it. A vector of zeros stays one.
    """
    return F.normalize(features, dim=-1) if config.distance is Distance.cosine else features


def score_images(
    patches: Tensor,
    squared: Tensor,
    rows: Tensor,
    memory: Tensor,
    search: Search,
    config: ScoringConfig,
) -> tuple[Tensor, Tensor]:
    """Scores of images (B,) and of their patches (B, h·w): Eq. 6, and Eq. 7 if `reweight` asks.

    With `top_share` each of an image's highest patch scores has its own factor of Eq. 7.

    Args:
        patches: (B, h·w, D) patch features, as they are searched.
        squared: (B·h·w, k) their squared distances to the k nearest memory rows.
        rows: (B·h·w, k) which those are.
        memory: (M, D) memory bank, as it is searched.
        search: Nearest neighbours in it.
    """
    scores = patch_scores(squared, config).view(patches.shape[:2])  # (B, h·w)
    s_star, m_test = highest(scores, config.top_share)  # (B, T)
    if config.reweight:
        image = torch.arange(patches.shape[0], device=patches.device)[:, None]
        m_star = rows[:, 0].view_as(scores)[image, m_test]  # (B, T)
        weight = neighbourhood_weight(
            patches[image, m_test].flatten(0, 1), m_star.flatten(), memory, search, config.reweight
        )
        s_star = s_star * weight.view_as(s_star)
    return s_star.mean(1), scores


def patch_scores(squared: Tensor, config: ScoringConfig) -> Tensor:
    """Anomaly score of each patch (…) from its k squared neighbour distances (…, k)."""
    match config.distance:
        case Distance.euclidean:
            return squared.sqrt().mean(-1)
        case Distance.squared:
            return squared.mean(-1)
        case Distance.cosine:
            return squared.mean(-1) / 2  # of unit vectors


def highest(scores: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The T highest of the patch scores (B, h·w), and the patches where they lie, both (B, T).

    T is that share of the patches, rounded, but at least one: the maximum of Eq. 6.
    """
    count = max(1, round(share * int(scores.shape[1]))) if share else 1
    if count == 1:
        s_star, m_test = scores.max(1, keepdim=True)  # of equal ones the first
        return s_star, m_test
    s_star, m_test = scores.topk(count, dim=1)
    return s_star, m_test


def neighbourhood_weight(
    m_test: Tensor, m_star: Tensor, memory: Tensor, search: Search, b: int
) -> Tensor:
    """The factor of Eq. 7 for each candidate: 1 − softmax of its distances at m*.

    N_b(m*) are the b memory patches nearest to m*, m* itself among them, so that the factor lies in
    [0, 1). Distances are Euclidean, whatever becomes of those of the search.

    Args:
        m_test: (B, D) the candidates: each image's most anomalous patch feature.
        m_star: (B,) memory row of its nearest neighbour.
        memory: (M, D) memory bank.
        search: Nearest neighbours in it.
        b: Size of the neighbourhood.
    """
    _, rows = search(memory[m_star], b)  # (B, b)
    # Of equal memory patches the search may return another one than m*; the distances are the same.
    to_neighbours = _distance(m_test[:, None], memory[rows])  # (B, b)
    to_m_star = _distance(m_test, memory[m_star])  # (B,)
    return 1 - torch.exp(to_m_star - to_neighbours.logsumexp(1))


def anomaly_maps(scores: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """Patch scores (B, h, w) brought to image size (B, H, W).

    Bilinear upsampling (pixel centres at half integers), then a Gaussian of `sigma` px, cut at 4σ,
    with the border mirrored. Both are linear and separable, so each axis is one fixed matrix.
    """
    if traced():
        return _anomaly_maps_traced(scores, size, sigma)
    rows = _upsample_and_blur(scores.shape[1], size[0], sigma).to(scores)  # (H, h)
    columns = _upsample_and_blur(scores.shape[2], size[1], sigma).to(scores)  # (W, w)
    return rows @ scores @ columns.T  # (B, H, W)


@lru_cache(maxsize=16)
def _upsample_and_blur(grid: int, size: int, sigma: float) -> Tensor:
    """(size, grid) matrix of one axis: column i is the response to patch i alone."""
    # float32 whatever the default is: the matrix is kept for later calls.
    identity = torch.eye(grid, dtype=torch.float32)[None]  # (1, grid, grid)
    upsampled = F.interpolate(identity, size=size, mode="linear", align_corners=False)[0].T
    if sigma == 0:
        return upsampled
    return torch.from_numpy(gaussian_filter1d(upsampled.numpy(), sigma, axis=0, mode="reflect"))


def _anomaly_maps_traced(scores: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """`anomaly_maps` up to rounding, by steps that PyTorch's compilers can follow."""
    maps = F.interpolate(scores[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    if sigma == 0:
        return maps
    return _blur(size[0], sigma, maps) @ maps @ _blur(size[1], sigma, maps).T  # (B, H, W)


def _blur(size: int, sigma: float, like: Tensor) -> Tensor:
    """(size, size) matrix of the Gaussian along one axis."""
    reach = int(4 * sigma + 0.5)  # as SciPy cuts it
    offsets = torch.arange(-reach, reach + 1, device=like.device)
    weights = torch.exp(-0.5 * (offsets / sigma).square().to(like))
    weights = weights / weights.sum()
    at = (torch.arange(size, device=like.device)[:, None] + offsets) % (2 * size)
    at = torch.where(at < size, at, 2 * size - 1 - at)  # mirrored, the border pixel twice
    return like.new_zeros(size, size).scatter_add(1, at, weights.expand(size, -1))


def _distance(x: Tensor, y: Tensor) -> Tensor:
    return (x.float() - y.float()).square().sum(-1).sqrt()
