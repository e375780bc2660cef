"""Pruning of training images whose patches are unlike those of other images: they may be anomalous.

A greedy coreset prefers patches far from all others, so a defect among the training images almost
certainly enters the memory, and similar defects then count as nominal. Nominal patches recur in
many images, patches of a defect in few. Each patch of a first coreset is therefore judged by its
distance to the k-th nearest other image, where the distance to an image is that to its nearest
patch: similar defects support each other only if more than k images have them. An image is judged
by its worst patch. The distrust of an image is the distance of its logarithm from the median over
all images, in units of the median absolute deviation (scaled to a standard deviation). A minority
of anomalous images changes both little (Rousseeuw and Croux, 1993).

Distrusted images are removed as a whole, and single patches of other images are not: a rare nominal
patch looks like a patch of a defect, and losing the former costs more than keeping the latter
(experiments/contamination). SoftPatch (Jiang et al., NeurIPS 2022) weights patches by local outlier
factors at each place of the grid, which needs aligned images. `distrust` in tests/reference.py is
the same as here, image by image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from patchcore.errors import InputError

# Distrust above which an image is removed; see experiments/contamination.
IMAGE_LIMIT = 2.0
_CHUNK = 2**24  # distances at a time
_CONSISTENT = 1.4826  # standard deviation / median absolute deviation of a normal distribution


def support(
    features: Float[Tensor, "patches channels"],
    counts: Sequence[int],
    images: Sequence[int],
    rows: Int64[Tensor, " rows"],
    others: int,
    device: torch.device,
) -> Float32[Tensor, " rows"]:
    """Return the distance of some patches to their k-th nearest other image, on the CPU.

    Args:
        features: Patch features of all images, one image after another, on any device.
        counts: Number of patches of each image.
        images: Number of each image; poses of one image share its number, and count as one image.
        rows: Indices of the patches to judge.
        others: k, the number of other images.
        device: Device of the computation.

    Raises:
        InputError: there are not more than `others` images.
    """
    numbers, image = torch.tensor(list(images)).unique(return_inverse=True)
    if len(numbers) <= others:
        raise InputError(
            f"method.pruning={others} needs more training images than that, and there are "
            f"{len(numbers)}: lower it, or set it to null"
        )
    sources = image.repeat_interleave(torch.tensor(list(counts)))[rows]  # (M,)
    centre = features[rows.to(features.device)].to(device).float().mean(0)  # reduces rounding
    reach = torch.empty(len(rows))
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
            first += count
        own = sources[start : start + at_once].to(device)
        least.scatter_(1, own[:, None], math.inf)
        reach[start : start + at_once] = least.kthvalue(others, 1).values.sqrt().cpu()
    return reach


def deviations(reach: Float32[Tensor, " images"]) -> Float32[Tensor, " images"]:
    """Return the distrust of images, from the distances of their worst patches.

    It is 0 for all images if half of the distances or more are equal up to rounding, because the
    median absolute deviation is then 0.
    """
    logarithms = reach.clamp_min(1e-12).log()
    away = logarithms - logarithms.median()
    spread = _CONSISTENT * away.abs().median()
    return away / spread if float(spread) > 1e-6 else torch.zeros_like(away)


def judged_patches(patches: int, images: int) -> int:
    """Return the number of patches to judge: 1 % of all patches, at least 8 for each image."""
    return min(patches, max(patches // 100, 8 * images))


@dataclass(frozen=True)
class Pruned:
    """Judgement on training images and their patches.

    Attributes:
        patches: True for each patch of a trusted image, on the CPU.
        images: Distrusted images, {number: distrust}, the most distrusted first.
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
    """Judge training images by a coreset of their patches.

    Arguments and errors are those of `support`; `rows` are the indices of the coreset.
    """
    reach = support(features, counts, images, rows, others, device)
    image = torch.tensor(list(images)).repeat_interleave(torch.tensor(list(counts)))  # (N,)
    numbers, place = image[rows].unique(return_inverse=True)  # images with a judged patch
    worst = torch.zeros(len(numbers)).scatter_reduce_(0, place, reach, "amax")
    distrust = zip(numbers.tolist(), deviations(worst).tolist(), strict=True)
    found = {number: value for number, value in distrust if value > IMAGE_LIMIT}
    trusted = ~torch.isin(image, torch.tensor(list(found), dtype=torch.int64))
    return Pruned(trusted, dict(sorted(found.items(), key=lambda each: -each[1])))
