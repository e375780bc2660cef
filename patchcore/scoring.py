"""Anomaly score (Eq. 6, 7) and anomaly map of an image, from the distances of its patches.

`RULES` says for each `Distance` how a patch is scored. A new rule is a function, its name in
`Distance`, and its line in `RULES`. Term by term the scores are `image_score` and `anomaly_map` in
tests/reference.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import scipy
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from patchcore._traced import traced
from patchcore.errors import InputError
from patchcore.settings import Choice, Settings, setting

Search = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""(Q, D) queries and k → squared distances (Q, k) and memory rows (Q, k)."""


class Distance(Choice):
    """Rule by which squared distances of the search become the score of a patch."""

    euclidean = "euclidean"  # the paper
    squared = "squared"  # the reference implementation
    cosine = "cosine"  # 1 − cos; patch features are searched at unit length


class Pool(Choice):
    """Values from which the score of an image is computed."""

    patches = "patches"  # the paper
    pixels = "pixels"  # of the anomaly map, as RAD has it


@dataclass
class ScoringConfig(Settings):
    """Settings of how patch distances become scores."""

    GROUP: ClassVar[str] = "scoring"

    neighbours: int = setting(
        1,
        "number of nearest patches in the memory bank whose distances are averaged",
        unit="patches",
        low=1,
    )
    reweight: int = setting(
        0,
        "b of Eq. 7, including the nearest neighbour itself; 0: no reweighting",
        unit="patches",
        low=0,
    )
    distance: Distance = setting(
        Distance.euclidean,
        "euclidean (as in the paper), squared (as in the authors' implementation) or cosine",
    )
    top_share: float = setting(
        0.0,
        "an image's score is the mean over this share of its patches, those with the highest "
        "scores; 0: the maximum",
        low=0,
        high=1,
    )
    sigma: float = setting(
        4.0,
        "standard deviation of the anomaly map's Gaussian; 0: none",
        unit="px",
        low=0,
        high=10_000,
    )
    pool: Pool = setting(
        Pool.patches,
        "patches or pixels: whether an image's score comes from the scores of its patches or from "
        "the pixels of its anomaly map",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reweight == 1:
            raise InputError(
                f"scoring.reweight must be 0 (off) or at least 2, got {self.reweight}; with one "
                "neighbour Eq. 7 makes every score 0"
            )
        if self.reweight and self.pool is Pool.pixels:
            raise InputError(
                f"scoring.reweight={self.reweight} weights the patches' scores, but "
                "scoring.pool=pixels takes the image's score from its map: use only one of them"
            )


def euclidean(squared: Float[Tensor, "*patches neighbours"]) -> Float[Tensor, "*patches"]:
    """Mean Euclidean distance to the neighbours."""
    return squared.sqrt().mean(-1)


def squared_euclidean(squared: Float[Tensor, "*patches neighbours"]) -> Float[Tensor, "*patches"]:
    """Mean squared distance to the neighbours."""
    return squared.mean(-1)


def cosine(squared: Float[Tensor, "*patches neighbours"]) -> Float[Tensor, "*patches"]:
    """Mean cosine distance to the neighbours: half the squared distance of unit vectors."""
    return squared.mean(-1) / 2


@dataclass(frozen=True)
class Rule:
    """Score of a patch from its squared distances to the neighbours, and the form of the search."""

    score: Callable[[Tensor], Tensor]  # (…, k) squared distances → (…) scores
    unit_length: bool = False  # whether features are searched at unit length


RULES = {
    Distance.euclidean: Rule(euclidean),
    Distance.squared: Rule(squared_euclidean),
    Distance.cosine: Rule(cosine, unit_length=True),
}


def comparable(
    features: Float[Tensor, "*patches channels"], config: ScoringConfig
) -> Float[Tensor, "*patches channels"]:
    """Features in the form for the search: with unit length for the cosine distance.

    Then |x − y|² = 2 (1 − cos), so every back end can search by it. A zero vector stays zero.
    """
    return F.normalize(features, dim=-1) if RULES[config.distance].unit_length else features


def score_images(
    patches: Float[Tensor, "images patches channels"],
    squared: Float[Tensor, "queries neighbours"],
    rows: Int64[Tensor, "queries neighbours"],
    memory: Float[Tensor, "memory channels"],
    search: Search,
    config: ScoringConfig,
) -> tuple[Float[Tensor, " images"], Float[Tensor, "images patches"]]:
    """Scores of images and of their patches: Eq. 6, and Eq. 7 if `reweight` asks.

    With `top_share` each of an image's highest patch scores has its own factor of Eq. 7.

    Args:
        patches: Patch features, as they are searched.
        squared: Squared distances of all patches of all images to their nearest memory rows.
        rows: Those memory rows.
        memory: Memory bank, as it is searched.
        search: Nearest neighbours in it.
        config: How to score.
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


def patch_scores(
    squared: Float[Tensor, "*patches neighbours"], config: ScoringConfig
) -> Float[Tensor, "*patches"]:
    """Anomaly score of each patch from its squared distances to its neighbours."""
    return RULES[config.distance].score(squared)


def highest(
    scores: Float[Tensor, "images patches"], share: float
) -> tuple[Float[Tensor, "images top"], Int64[Tensor, "images top"]]:
    """Highest of the patch scores, falling, and the patches where they lie.

    Their number is that share of the patches, rounded, but at least one (the maximum of Eq. 6).
    """
    count = max(1, round(share * int(scores.shape[1]))) if share else 1
    if count == 1:
        s_star, m_test = scores.max(1, keepdim=True)  # of equal ones the first
        return s_star, m_test
    s_star, m_test = scores.topk(count, dim=1)
    return s_star, m_test


def neighbourhood_weight(
    m_test: Float[Tensor, "candidates channels"],
    m_star: Int64[Tensor, " candidates"],
    memory: Float[Tensor, "memory channels"],
    search: Search,
    b: int,
) -> Float[Tensor, " candidates"]:
    """Factor of Eq. 7 for each candidate: 1 − softmax of its distances at m*.

    N_b(m*) are the b memory patches nearest to m*, m* itself among them, so that the factor lies in
    [0, 1). Distances are Euclidean, whatever becomes of those of the search.

    Args:
        m_test: Candidates: the patch features with an image's highest scores.
        m_star: Memory row of each one's nearest neighbour.
        memory: Memory bank.
        search: Nearest neighbours in it.
        b: Size of the neighbourhood.
    """
    _, rows = search(memory[m_star], b)  # (B, b)
    # The search may return an equal memory patch in place of m*; the distances are the same.
    to_neighbours = _distance(m_test[:, None], memory[rows])  # (B, b)
    to_m_star = _distance(m_test, memory[m_star])  # (B,)
    return 1 - torch.exp(to_m_star - to_neighbours.logsumexp(1))


def cell_of(length: int, cells: int) -> Int64[Tensor, " pixels"]:
    """Cell of the patch grid that each pixel along one side lies in."""
    return torch.arange(length) * cells // length


def cell_pixels(
    counts: Bool[Tensor, "*images h w"], size: tuple[int, int]
) -> Bool[Tensor, "*images height width"]:
    """Pixels that lie in the cells that count."""
    rows, columns = cell_of(size[0], counts.shape[-2]), cell_of(size[1], counts.shape[-1])
    return counts[..., rows, :][..., columns]


def anomaly_maps(
    scores: Float[Tensor, "images h w"], size: tuple[int, int], sigma: float
) -> Float[Tensor, "images height width"]:
    """Patch scores brought to image size (height, width), in px.

    Bilinear upsampling (pixel centres at half integers), then a Gaussian of `sigma` px, cut at 4σ,
    with the border mirrored. Both are linear and separable, so each axis is one fixed matrix.
    A patch whose score is NaN does not count. The weights of the other patches then sum to 1 at
    every pixel of a patch that counts, and the map is 0 elsewhere. Autocast changes nothing: in its
    precision a map would have about a hundred levels.
    """
    if traced():
        return _anomaly_maps_traced(scores, size, sigma)
    counts = ~scores.isnan()
    if not bool(counts.all()):
        weights = anomaly_maps(counts.to(scores), size, sigma)
        maps = anomaly_maps(scores.nan_to_num(0), size, sigma)
        return torch.where(cell_pixels(counts, size), maps / weights, torch.zeros_like(maps))
    with torch.autocast(scores.device.type, enabled=False):
        rows = _upsample_and_blur(scores.shape[1], size[0], sigma).to(scores)  # (H, h)
        columns = _upsample_and_blur(scores.shape[2], size[1], sigma).to(scores)  # (W, w)
        return rows @ scores @ columns.T  # (B, H, W)


def pixel_scores(
    maps: Float[Tensor, "images height width"],
    scores: Float[Tensor, "images h w"],
    config: ScoringConfig,
) -> Float[Tensor, " images"]:
    """Return scores of images by their anomaly maps: see `Pool.pixels`.

    Args:
        maps: From `anomaly_maps`.
        scores: Of the patches, NaN for those that do not count; nor do the pixels in their cells.
        config: `top_share` is the share of the pixels, the highest, whose mean is the score.
    """
    counts = ~scores.isnan()
    if traced() or bool(counts.all()):
        return highest(maps.flatten(1), config.top_share)[0].mean(1)
    inside = cell_pixels(counts, (maps.shape[1], maps.shape[2]))
    each = [highest(x[own][None], config.top_share)[0] for x, own in zip(maps, inside, strict=True)]
    return torch.stack([top.mean() for top in each])


@lru_cache(maxsize=16)
def _upsample_and_blur(grid: int, size: int, sigma: float) -> Float32[Tensor, "size grid"]:
    """Matrix of one axis: column i is the response to patch i alone."""
    # float32 whatever the default is: the matrix is kept for later calls.
    identity = torch.eye(grid, dtype=torch.float32)[None]  # (1, grid, grid)
    upsampled = F.interpolate(identity, size=size, mode="linear", align_corners=False)[0].T
    if sigma == 0:
        return upsampled
    return torch.from_numpy(
        scipy.ndimage.gaussian_filter1d(upsampled.numpy(), sigma, axis=0, mode="reflect")
    )


def _anomaly_maps_traced(
    scores: Float[Tensor, "images h w"], size: tuple[int, int], sigma: float
) -> Float[Tensor, "images height width"]:
    """`anomaly_maps` up to rounding, by steps that PyTorch's compilers can follow."""
    maps = F.interpolate(scores[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    if sigma == 0:
        return maps
    return _blur(size[0], sigma, maps) @ maps @ _blur(size[1], sigma, maps).T  # (B, H, W)


def _blur(size: int, sigma: float, like: Tensor) -> Float[Tensor, "size size"]:
    """Matrix of the Gaussian along one axis."""
    reach = int(4 * sigma + 0.5)  # as SciPy cuts it
    offsets = torch.arange(-reach, reach + 1, device=like.device)
    weights = torch.exp(-0.5 * (offsets / sigma).square().to(like))
    weights = weights / weights.sum()
    at = (torch.arange(size, device=like.device)[:, None] + offsets) % (2 * size)
    at = torch.where(at < size, at, 2 * size - 1 - at)  # mirrored, the border pixel twice
    return like.new_zeros(size, size).scatter_add(1, at, weights.expand(size, -1))


def _distance(
    x: Float[Tensor, "*rows channels"], y: Float[Tensor, "*others channels"]
) -> Float32[Tensor, "..."]:
    """Euclidean distances of vectors, broadcast."""
    return (x.float() - y.float()).square().sum(-1).sqrt()
