"""Foreground of images from their own patch features, as in AnomalyDINO (Damm et al., WACV 2025).

In most images, the largest difference is between the object and its background, so the first
principal component of the patch features separates the two. Patches beyond a threshold along this
component are the object. If they cover 35 % of the image's middle or less, the patches beyond the
threshold in the opposite direction are taken instead. The mask is then dilated and closed.
`foreground` in tests/reference.py is the same computation, image by image.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from patchcore.errors import NOT_FINITE, InputError

BORDER = 0.2
"""Share of each side, at either end, that is not in the image's middle."""
COVERED = 0.35
"""Share of the middle that the object must exceed; otherwise the component changes its sign."""
_COLUMNS, _ROUNDS = 8, 24  # of the subspace iteration; the error is about (λ₉ / λ₁)^24


def foreground(
    features: Float[Tensor, "images h w channels"], threshold: float
) -> Bool[Tensor, "images h w"]:
    """Return masks of the object's patches, True for the object; all True where none is found.

    Args:
        features: Patch features of each image.
        threshold: Least coordinate along the first principal component, from the mean of the
            image's features, in the unit of the features; 10 in AnomalyDINO, for DINOv2.

    Raises:
        InputError: features are NaN or infinite.
    """
    images, height, width, _ = features.shape
    if not bool(features.isfinite().all()):
        raise InputError(NOT_FINITE)
    with torch.autocast(features.device.type, enabled=False):
        component = first_component(features.float().flatten(1, 2)).view(images, height, width)
    rows, columns = (slice(int(n * BORDER), int(n * (1 - BORDER))) for n in (height, width))
    middle = (component > threshold)[:, rows, columns].flatten(1).float()
    covered = middle.sum(1) > COVERED * middle.shape[1]  # (B,)
    side = torch.where(covered[:, None, None], component, -component)
    mask = _dilated((side > threshold).float())
    mask = -_dilated(-_dilated(mask)) > 0.5  # closed
    return mask | ~mask.flatten(1).any(1)[:, None, None]


def first_component(
    features: Float32[Tensor, "images patches channels"],
) -> Float32[Tensor, "images patches"]:
    """Return each patch's coordinate along the first principal component of its image's patches.

    The component is found by subspace iteration from fixed vectors. Its sign is chosen so that the
    entry of its direction in feature space with the largest absolute value is positive.
    """
    x = features - features.mean(1, keepdim=True)  # (B, P, D)
    channels = x.shape[2]
    columns = min(_COLUMNS, channels, x.shape[1])
    start = torch.arange(channels * columns, device=x.device, dtype=torch.float32)
    basis = torch.cos(start.square() + start).view(1, channels, columns).expand(len(x), -1, -1)
    orthonormal = orthonormal_by_cholesky if x.is_cuda else orthonormal_by_qr
    for _ in range(_ROUNDS):
        basis = orthonormal(x.mT @ (x @ basis))  # (B, D, columns)
    inner = x @ basis  # (B, P, columns)
    _, rotation = torch.linalg.eigh(inner.mT @ inner)
    first = rotation[:, :, -1:]  # (B, columns, 1)
    direction = (basis @ first)[:, :, 0]  # (B, D)
    largest = direction.gather(1, direction.abs().argmax(1, keepdim=True))  # (B, 1)
    return (inner @ first)[:, :, 0] * largest.sign()


def orthonormal_by_qr(
    columns: Float32[Tensor, "images channels columns"],
) -> Float32[Tensor, "images channels columns"]:
    """Return orthonormal columns that span the same space, by QR decomposition."""
    return torch.linalg.qr(columns)[0]


def orthonormal_by_cholesky(
    columns: Float32[Tensor, "images channels columns"],
) -> Float32[Tensor, "images channels columns"]:
    """Return orthonormal columns that span the same space, by Cholesky decomposition.

    On a GPU, this works on all images at once. Columns that depend linearly on others become
    shorter than 1.
    """
    wide = columns.double()
    inner = wide.mT @ wide  # (B, columns, columns)
    size = inner.diagonal(dim1=1, dim2=2).sum(1)  # (B,)
    spare = (1e-13 * size + torch.finfo(torch.float32).tiny)[:, None, None]
    factor = torch.linalg.cholesky(inner + spare * torch.eye(inner.shape[1], device=inner.device))
    return torch.linalg.solve_triangular(factor, wide.mT, upper=False).mT.float()


def _dilated(mask: Float[Tensor, "images h w"]) -> Float[Tensor, "images h w"]:
    """Maximum over each patch and its neighbours, up to eight inside the image."""
    return F.max_pool2d(mask[:, None], 3, stride=1, padding=1)[:, 0]
