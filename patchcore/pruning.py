"""Pruning of patches that have no like in other training images, some of which may be anomalous.

A greedy coreset seeks patches far from all others, so a defect among the training images is sure to
enter the memory, and everything like it then counts as nominal. Nominal patches recur from image to
image; those of a defect do so in few. Each patch of a first coreset is judged by its distance to
the k-th nearest other image, where an image is as far as its nearest patch: defects that are alike
support each other only if k or more images have them. The logarithms of these distances have a
median and a median absolute deviation, which a minority of defects moves little (Rousseeuw and
Croux, 1993), and a patch's distrust is how many such deviations it lies above the median.

All patches of the training images follow the judgement on the coreset's patch that is nearest to
them. SoftPatch (Jiang et al., NeurIPS 2022) weighs patches by local outlier factors at one place of
the grid, which needs images that are aligned. Patch by patch this is `distrust` in
tests/reference.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from patchcore.errors import InputError

# Limits on trial: set on one draw of screws (MVTec AD), and not yet on other data.
PATCH_LIMIT = 2.0  # deviations above which a patch is not remembered
IMAGE_LIMIT = 2.5  # deviations of its worst patch above which an image is not
_CHUNK = 2**24  # distances at a time
_CONSISTENT = 1.4826  # of the median absolute deviation with a normal law's standard deviation


def support(
    features: Float[Tensor, "patches channels"],
    counts: Sequence[int],
    images: Sequence[int],
    rows: Int64[Tensor, " rows"],
    others: int,
    device: torch.device,
) -> tuple[Float32[Tensor, " rows"], Int64[Tensor, " patches"]]:
    """Return how far the like of some patches is, and which of them is nearest to each patch.

    Args:
        features: Of all images, one image after another, on any device.
        counts: Number of each image's patches.
        images: Number of each image; several poses of one share its number, and are one image.
        rows: Patches that are judged.
        others: How many other images have a patch as near.
        device: Where the work is done.

    Returns:
        Distances of the judged patches, and for every patch the place in `rows` of that nearest to
        it, both on the CPU.

    Raises:
        InputError: There are no more images than that.
    """
    numbers, image = torch.tensor(list(images)).unique(return_inverse=True)
    if len(numbers) <= others:
        raise InputError(
            f"method.pruning={others} needs more training images than that, and there are "
            f"{len(numbers)}: lower it, or set it to null"
        )
    sources = image.repeat_interleave(torch.tensor(list(counts)))[rows]  # (M,)
    centre = features[rows.to(features.device)].to(device).float().mean(0)  # takes length: rounding
    reach, nearest = torch.empty(len(rows)), torch.zeros(len(features), dtype=torch.int64)
    nearest_squared = torch.full((len(features),), math.inf)
    at_once = max(1, _CHUNK // max(counts))
    for start in range(0, len(rows), at_once):
        some = rows[start : start + at_once].to(features.device)
        judged = features[some].to(device).float() - centre  # (m, D)
        lengths = judged.square().sum(1)
        least = judged.new_full((len(judged), len(numbers)), math.inf)  # (m, I)
        first = 0
        for number, count in zip(image.tolist(), counts, strict=True):
            if not count:
                continue
            x = features[first : first + count].to(device).float() - centre  # (P, D)
            squared = torch.addmm(lengths[:, None], judged, x.T, alpha=-2)
            squared = squared.add_(x.square().sum(1)).clamp_min_(0)  # (m, P)
            least[:, number] = torch.minimum(least[:, number], squared.amin(1))
            found, place = (each.cpu() for each in squared.min(0))
            here = slice(first, first + count)
            nearer = found < nearest_squared[here]
            nearest[here] = torch.where(nearer, place + start, nearest[here])
            nearest_squared[here] = torch.where(nearer, found, nearest_squared[here])
            first += count
        own = sources[start : start + at_once].to(device)
        least.scatter_(1, own[:, None], math.inf)
        reach[start : start + at_once] = least.kthvalue(others, 1).values.sqrt().cpu()
    return reach, nearest


def deviations(reach: Float32[Tensor, " rows"]) -> Float32[Tensor, " rows"]:
    """Return the distrust of patches by their distances from `support`.

    It is 0 throughout where no distance differs from the median beyond rounding.
    """
    logarithms = reach.clamp_min(1e-12).log()
    away = logarithms - logarithms.median()
    spread = _CONSISTENT * away.abs().median()
    return away / spread if float(spread) > 1e-6 else torch.zeros_like(away)


def judged_patches(patches: int, images: int) -> int:
    """Return how many patches of so many, of so many images, are judged: 1 %, or 8 an image."""
    return min(patches, max(patches // 100, 8 * images))


@dataclass(frozen=True)
class Pruned:
    """Judgement on the patches of nominal images.

    Attributes:
        patches: Whether each patch is trusted, on the CPU; none of a distrusted image is.
        images: Distrusted images, {number: distrust of its most distrusted patch}, the worst first.
    """

    patches: Bool[Tensor, " patches"]
    images: dict[int, float]


def prune(
    features: Float[Tensor, "patches channels"],
    counts: Sequence[int],
    images: Sequence[int],
    rows: Int64[Tensor, " rows"],
    others: int,
    device: torch.device,
) -> Pruned:
    """Judge the patches of nominal images by a coreset of them.

    Arguments are those of `support`; `rows` are the coreset.
    """
    reach, nearest = support(features, counts, images, rows, others, device)
    distrust = deviations(reach)  # (M,)
    image = torch.tensor(list(images)).repeat_interleave(torch.tensor(list(counts)))  # (N,)
    worst: dict[int, float] = {}
    for number, value in zip(image[rows].tolist(), distrust.tolist(), strict=True):
        worst[number] = max(value, worst.get(number, -math.inf))
    found = {number: value for number, value in worst.items() if value > IMAGE_LIMIT}
    trusted = (distrust <= PATCH_LIMIT)[nearest] & ~torch.isin(image, torch.tensor(list(found)))
    return Pruned(trusted, dict(sorted(found.items(), key=lambda each: -each[1])))
