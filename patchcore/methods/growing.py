"""Adding images to a PatchCore memory bank, and removing some, without a new fit."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from patchcore.errors import InputError, counted
from patchcore.index import TorchIndex, nearest_rows
from patchcore.methods.common import FeatureBuffer
from patchcore.methods.counted import Counted, Described, counted_rows, parts, predict
from patchcore.methods.detector import Prediction
from patchcore.methods.nearby import image_means
from patchcore.methods.origin import patch_origins

if TYPE_CHECKING:
    from patchcore.methods.patchcore import PatchCore


@torch.inference_mode()
def extend_memory(
    model: "PatchCore",
    batches: Sequence[Tensor | Counted | Described],
    sizes: Sequence[tuple[int, int]],
    images: Sequence[int],
    count: int | None,
) -> list[Prediction]:
    """Add further images to a memory bank: see `PatchCore.extend`."""
    predictions, covered = [], []
    buffer = FeatureBuffer(len(images), model.device, model.thinning)
    with torch.autocast(model.device.type, enabled=False):
        exact = model.search if model.index_config.exact else TorchIndex(model.memory).search
        same = model.index_config.exact and not model.method.narrow  # as the model's own search
        for batch, size in zip(batches, sizes, strict=True):
            x, counts = parts(batch)
            x = model._searched(x.to(model.device))
            rows, k = counted_rows(x, counts), model.scoring.neighbours
            quick = k == 1 and x.device.type == "cpu"
            found = nearest_rows(model.memory, rows) if quick else exact(rows, k)
            token = model.token_searched(batch)
            near = found if same else model._found(x, counts, token)
            own = (model.memory, model.search, model.scoring)
            predictions.append(predict(x, counts, size, near, *own))
            covered.append(_at_places(found[0][:, 0], x, counts))  # (B, h·w)
            some = x if counts is None else Counted(x, counts)
            buffer.append(some if token is None else Described(some, token))
        places, widths = buffer.places, [width for _, width in buffer.grids]
        means = None
        if model.method.retrieval is not None:
            means = image_means(buffer.gathered(), buffer.counts, images, buffer.tokens)
        features, kept = buffer.take(), len(model.memory)
        whole = model._gathered + len(features)
        if count is None:
            count = max(1, round(kept * whole / model._gathered) - kept)
        if count > len(features):
            raise InputError(
                f"count must be at most the {counted(len(features), 'patch')} of the images, got "
                f"{count}"
            )
        images_covered = (each for batch in covered for each in batch)  # (h·w) each
        pairs = zip(images_covered, places, strict=True)
        distances = torch.cat([each[place.to(each.device)] for each, place in pairs])
        chosen = model.coreset_config.extend(features, distances, count, model.device)
        origin = patch_origins(chosen, places, widths, images).to(model.device)
        added = features[chosen.to(features.device)].to(model.memory)
    with torch.inference_mode(False):
        model.memory = torch.cat((model.memory, added))
        model.origin = torch.cat((model.origin, origin))
        if means is not None:
            model.pooled_of = torch.cat((model.pooled_of, means[0]))
            model.pooled = torch.cat((model.pooled, means[1]))
    model.coreset, model._gathered = None, whole
    return predictions


def _at_places(values: Tensor, features: Tensor, counts: Tensor | None) -> Tensor:
    """Values of the patches that count, at the places (B, h·w) of all."""
    if counts is None:
        return values.view(len(features), -1)
    found = values.new_full(counts.shape, torch.inf)
    found[counts] = values
    return found.flatten(1)


def forget_images(model: "PatchCore", images: Collection[int]) -> None:
    """Remove images from a memory bank: see `PatchCore.forget`."""
    out = torch.isin(model.origin[:, 0].cpu(), torch.tensor(sorted(images), dtype=torch.int32))
    left, needed = int((~out).sum()), max(model.scoring.neighbours, model.scoring.reweight)
    if left < needed:
        raise InputError(
            f"without these images only {counted(left, 'patch')} would be left, fewer than the "
            f"{counted(needed, 'neighbour')} that a search needs: remove fewer, or fit again"
        )
    rows = (~out).to(model.memory.device)
    model._gathered = round(model._gathered * left / len(model.memory))
    model.coreset, model.memory, model.origin = None, model.memory[rows], model.origin[rows]
    if model.method.retrieval is not None:
        stay = ~torch.isin(model.pooled_of[:, 0].cpu(), torch.tensor(sorted(images)))
        stay = stay.to(model.pooled.device)
        model.pooled_of, model.pooled = model.pooled_of[stay], model.pooled[stay]


def images_had(model: "PatchCore") -> int:
    """See `PatchCore.images_had`."""
    numbers = [model.origin[:, 0]]
    if model.method.retrieval is not None:  # which knows images without a patch here, too
        numbers.append(model.pooled_of[:, 0])
    highest = (int(each.max()) for each in numbers if len(each))
    return max([*highest, *model.left_out], default=-1) + 1
