"""Explanation of a finding: the nominal patch that is most like it, with its image and picture."""

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from patchcore.data.images import read_image
from patchcore.data.transforms import ImageConfig
from patchcore.errors import InputError
from patchcore.inspector import SOURCES, is_moved, poses_of

Pixels = NDArray[np.uint8]

SIDE = 48  # px of the network's input that a crop shows
MOST = 200_000  # crops of an artifact
QUALITY = 90  # of their JPEG


@dataclass(frozen=True)
class Nearest:
    """The nominal patch that is nearest to one of an image.

    Attributes:
        image: Path of its image when the model was fitted.
        cell: Row and column in that image's grid of patches.
        score: Anomaly score of the patch that it is nearest to.
        crop: (h, w, 3), around the nominal patch; None unless the artifact keeps crops.
    """

    image: str
    cell: tuple[int, int]
    score: float
    crop: Pixels | None = field(default=None, repr=False, compare=False)

    def values(self) -> dict[str, Any]:
        """Plain values of all but the crop."""
        row, column = self.cell
        return {"image": self.image, "row": row, "column": column, "score": self.score}


Place = tuple[int, int, int]
"""Image number, grid row and grid column of a nominal patch."""


class Crops:
    """Small pictures around nominal patches.

    Args:
        coded: Each as JPEG, by its place.
    """

    def __init__(self, coded: Mapping[Place, bytes]) -> None:
        self._coded = dict(coded)

    def __len__(self) -> int:
        return len(self._coded)

    @classmethod
    def of_tensors(cls, places: Tensor, data: Tensor, ends: Tensor) -> Self:
        """Inverse of `tensors`.

        Raises:
            InputError: They do not belong together.
        """
        stops = [0, *ends.tolist()]
        if tuple(places.shape) != (len(ends), 3) or stops != sorted(stops):
            raise InputError("crops: places and pictures do not belong together")
        if stops[-1] != len(data):
            raise InputError("crops: pictures are missing")
        every = data.numpy().tobytes()
        parts = (every[start:stop] for start, stop in pairwise(stops))
        keys = [(image, row, column) for image, row, column in places.tolist()]
        return cls(dict(zip(keys, parts, strict=True)))

    def tensors(self) -> dict[str, Tensor]:
        """Return all of it, to be kept.

        `places` (N, 3) int32; `data` (bytes,) uint8, one picture after the other; `ends` (N,) int64
        end of each.
        """
        every = np.frombuffer(b"".join(self._coded.values()), np.uint8)
        sizes = torch.tensor([len(part) for part in self._coded.values()], dtype=torch.int64)
        places = torch.tensor(list(self._coded), dtype=torch.int32).reshape(-1, 3)
        return {"places": places, "data": torch.from_numpy(every.copy()), "ends": sizes.cumsum(0)}

    def get(self, place: Place) -> Pixels | None:
        """Return the picture (h, w, 3) at a place, or None if there is none."""
        if place not in self._coded:
            return None
        with Image.open(io.BytesIO(self._coded[place]), formats=["JPEG"]) as file:
            return np.array(file.convert("RGB"))

    def without(self, images: Collection[int]) -> "Crops":
        """Return those of other images."""
        return Crops({place: x for place, x in self._coded.items() if place[0] not in images})

    def joined(self, others: "Crops") -> "Crops":
        """Return these and others."""
        return Crops({**self._coded, **others._coded})


def cut_crops(inspector: Any, sources: Sequence[str | None] | None = None, since: int = 0) -> Crops:
    """Return a crop around each nominal patch of an inspector's memory, from its image's file.

    Of an ensemble it is the first member's memory, which its predictions name.

    Args:
        inspector: The model.
        sources: Path of each image by its number; by default those that the model knows.
        since: Number of the first image that is wanted.

    Raises:
        InputError: The model does not know its patches' images or their places in them, a file is
            unreadable, or there are more than `MOST`.
    """
    sources = _sources(inspector, "artifact.crops") if sources is None else sources
    _check_places(inspector, "artifact.crops")
    member = inspector.members[0]
    if member.memory_patches > MOST:
        raise InputError(
            f"artifact.crops: the memory has {member.memory_patches:,} patches, and at most "
            f"{MOST:,} crops are kept: leave it out or lower coreset.ratio"
        )
    places = member.origins(torch.arange(member.memory_patches, device=inspector.device))
    known: dict[int, list[tuple[int, int]]] = {}
    for number, row, column in sorted(map(tuple, places.tolist())):
        if number >= since:
            known.setdefault(number, []).append((row, column))
    grids: dict[tuple[int, int], tuple[int, int]] = {}
    coded: dict[Place, bytes] = {}
    for number, cells in known.items():
        path = sources[number] if number < len(sources) else None
        if path is None:
            continue
        pixels = read_image(Path(path), inspector.image.bits, inspector.image.limit)
        made = inspector.prepare(pixels)
        inputs = made if isinstance(made, tuple) else (made,)
        shape = inputs[0].shape[:2]
        if shape not in grids:
            batch = [torch.from_numpy(each)[None] for each in inputs]
            found = inspector.score(batch[0] if len(batch) == 1 else batch)
            grids[shape] = tuple(found.patch_score.shape[1:])
        for cell in cells:
            crop = cut(inputs[0], _centre(cell, grids[shape], shape), SIDE)
            coded[(number, *cell)] = _jpeg(crop)
    return Crops(coded)


def check_explains(inspector: Any) -> None:
    """Refuse a model that cannot say what its memory comes from.

    Raises:
        InputError: It cannot.
    """
    if not hasattr(inspector, "members"):
        raise InputError("--explain: an exported model has no memory to look at: give the artifact")
    _sources(inspector, "--explain")
    _check_places(inspector, "--explain")
    member = inspector.members[0]
    rows = torch.arange(member.memory_patches, device=inspector.device)
    if not bool((member.origins(rows)[:, 0] >= 0).any()):
        raise InputError(
            f"--explain: the memory bank of {member.parts.method.name} holds no patches of single "
            "images"
        )


def nearest_nominal(
    inspector: Any, cell: tuple[int, int], scores: Tensor, nearest: Tensor
) -> Nearest | None:
    """Return the nominal patch nearest to that at a cell; None where its image is not known.

    Args:
        inspector: Gave the prediction.
        cell: Row and column in the grid of the image.
        scores, nearest: (h, w) patch scores and memory rows of the image.
    """
    row = nearest[cell][None].to(inspector.device)
    number, *place = inspector.members[0].origins(row)[0].tolist()
    sources = inspector.details.get(SOURCES, ())
    path = sources[number] if 0 <= number < len(sources) else None
    if path is None:
        return None
    crops = inspector.crops
    crop = None if crops is None else crops.get((number, place[0], place[1]))
    return Nearest(path, (place[0], place[1]), float(scores[cell]), crop)


def cell_at(
    at: tuple[int, int], size: tuple[int, int], image: ImageConfig, grid: tuple[int, int]
) -> tuple[int, int]:
    """Row and column of the patch that a pixel of an image lies in.

    Args:
        at: x and y, px of the image.
        size: (H, W) of the image.
        image: How the network's input is made from it.
        grid: Rows and columns of patches.
    """
    resized = image.resized(*size)
    cell = []
    for place, length, side, kept, cells in zip(
        reversed(at), size, resized, image.kept(*resized), grid, strict=True
    ):
        share = ((place + 0.5) * side / length - kept.start) / (kept.stop - kept.start)
        cell.append(min(max(int(share * cells), 0), cells - 1))
    return cell[0], cell[1]


def cut(pixels: Pixels, centre: tuple[float, float], side: int) -> Pixels:
    """Return the square of a side around a point (y, x), moved inside the image (H, W, 3).

    A side of the image that is shorter is there whole.
    """
    places = []
    for middle, length in zip(centre, pixels.shape[:2], strict=True):
        start = min(max(round(middle - side / 2), 0), max(length - side, 0))
        places.append(slice(start, start + side))
    return np.ascontiguousarray(pixels[places[0], places[1]])


def own_crop(pixels: Pixels, at: tuple[int, int], image: ImageConfig) -> Pixels:
    """Return what a crop shows, of an image (H, W, 3) in its own pixels, around x and y."""
    height, width = pixels.shape[:2]
    side = max(1, round(SIDE * height / image.resized(height, width)[0]))
    return cut(pixels, (at[1], at[0]), side)


def _centre(
    cell: tuple[int, int], grid: tuple[int, int], shape: tuple[int, ...]
) -> tuple[float, float]:
    y, x = ((c + 0.5) * length / n for c, n, length in zip(cell, grid, shape, strict=True))
    return y, x


def _sources(inspector: Any, key: str) -> Sequence[str | None]:
    found: Sequence[str | None] = inspector.details.get(SOURCES) or ()
    if not any(found):
        raise InputError(
            f"{key}: the model does not know which images its memory bank comes from: train with "
            f"artifact=true, or save it with details={{{SOURCES!r}: paths}}"
        )
    return found


def _check_places(inspector: Any, key: str) -> None:
    """Raise InputError if a memory's patches lie elsewhere in the files of their images."""
    if poses_of(inspector) > 1:
        how, what = "in several poses", "rotations and augment.mirrored"
    elif is_moved(inspector):
        how = "moved at random"
        what = "horizontal_flip, vertical_flip, rotate, translate and scale"
    else:
        return
    raise InputError(
        f"{key}: the memory bank holds images {how}, so it cannot locate patches in the original "
        f"images: leave it out, or fit without augment.{what}"
    )


def _jpeg(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY, subsampling=0)
    return file.getvalue()
