"""Pruning of nominal images with patches unlike those of all others, for they may be anomalous.

A greedy coreset seeks patches far from all others, so a defect among the training images is sure to
enter the memory, and everything like it then counts as nominal. Nominal patches recur from image to
image; those of a defect do so in few. Each patch of a first coreset is judged by its distance to
the k-th nearest other image, where an image is as far as its nearest patch: defects that are alike
support each other only if k or more images have them. An image is judged by its worst patch. The
logarithms of the images' distances have a median and a median absolute deviation, which a minority
of anomalous images moves little (Rousseeuw and Croux, 1993), and an image's distrust is how many
such deviations it lies above the median.

Distrusted images are forgotten whole, and no patches of others: a rare nominal patch looks like one
of a defect, and losing it costs more than keeping the defect's (experiments/contamination).
SoftPatch (Jiang et al., NeurIPS 2022) weighs patches by local outlier factors at one place of the
grid, which needs images that are aligned. Image by image this is `distrust` in tests/reference.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from patchcore.errors import InputError

# Deviations above which an image is not remembered: see experiments/contamination.
IMAGE_LIMIT = 2.0
_CHUNK = 2**24  # distances at a time
_CONSISTENT = 1.4826  # of the median absolute deviation with a normal law's standard deviation


def support(
    features: Float[Tensor, "patches channels"],
    counts: Sequence[int],
    images: Sequence[int],
    rows: Int64[Tensor, " rows"],
    others: int,
    device: torch.device,
) -> Float32[Tensor, " rows"]:
    """Return how far the like of some patches is in other images, on the CPU.

    Args:
        features: Of all images, one image after another, on any device.
        counts: Number of each image's patches.
        images: Number of each image; several poses of one share its number, and are one image.
        rows: Patches that are judged.
        others: How many other images have a patch as near.
        device: Where the work is done.

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
    """Return the distrust of images by the distances of their worst patches.

    It is 0 throughout where half of the distances or more equal the median but for rounding: there
    is no deviation to measure by.
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
        patches: Whether each patch is of a trusted image, on the CPU.
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
    """Judge the patches of nominal images by a coreset of them.

    Arguments are those of `support`; `rows` are the coreset.
    """
    reach = support(features, counts, images, rows, others, device)
    image = torch.tensor(list(images)).repeat_interleave(torch.tensor(list(counts)))  # (N,)
    numbers, place = image[rows].unique(return_inverse=True)  # images with a judged patch
    worst = torch.zeros(len(numbers)).scatter_reduce_(0, place, reach, "amax")
    distrust = zip(numbers.tolist(), deviations(worst).tolist(), strict=True)
    found = {number: value for number, value in distrust if value > IMAGE_LIMIT}
    trusted = ~torch.isin(image, torch.tensor(list(found), dtype=torch.int64))
    return Pruned(trusted, dict(sorted(found.items(), key=lambda each: -each[1])))
