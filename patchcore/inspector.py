"""A fitted model with everything needed to inspect an image, from pixels to a map in its own size.

pixels of a file → prepare → score → place
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchcore.arguments import check_kind
from patchcore.data.transforms import ImageConfig, Pixels, build_preparation, offset_and_scale
from patchcore.digests import file_digest
from patchcore.errors import InputError, counted, printable
from patchcore.methods.counted import counted_by_all, counted_cells
from patchcore.methods.detector import Detector, Method, Prediction
from patchcore.methods.ensemble import Ensemble
from patchcore.methods.tiled import tile
from patchcore.settings import shown
from patchcore.switches import PRECISIONS
from patchcore.tiles import whole

if TYPE_CHECKING:
    from patchcore.explanation import Crops

SOURCES = "sources"
"""Key of the details: path of each training image by its number, null where it was removed."""
PRUNED = "pruned"
"""Key of the details: paths of the training images that `method.pruning` left out."""
DIGESTS = {SOURCES: "source_digests", PRUNED: "pruned_digests"}
"""Keys of the details: digest of each of these files; null where it is not known."""
POSES = "poses"
"""Key of the details' `data`: in how many poses each training image is remembered, if several."""
MOVED = "moved"
"""Key of the details' `data`: true where random changes moved the pixels of the training images."""
AUTOCAST = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
"""Dtypes of the Trainer's precisions under which a network's dtype is not that of its weights."""
MOST_SIZES = 4
"""Sizes of images for which a model with a region remembers which of their pixels count."""


def normalised(batch: Tensor, image: ImageConfig) -> Tensor:
    """The network's input (B, 3, h, w) float32 of pixels (B, h, w, 3) uint8.

    Equal to `patchcore.data.transforms.build_normalisation` bit for bit.
    """
    offset, scale = (torch.from_numpy(x).to(batch.device) for x in offset_and_scale(image))
    return ((batch.float() - offset) * scale).permute(0, 3, 1, 2)


def placed(
    values: NDArray[np.float32], size: tuple[int, int], image: ImageConfig
) -> NDArray[np.float32]:
    """Anomaly map of the network's input, brought to the pixels of the original image.

    Each pixel takes the map's value at its centre, bilinearly; at the edge, the nearest value.

    Args:
        values: (h, w) map.
        size: (H, W) of the image.
        image: How the input was made from it.

    Returns:
        (H, W), NaN where the crop has left the image out.

    Raises:
        InputError: The map is not of the size that such an image gets.
    """
    resized = image.resized(*size)
    try:
        kept = image.kept(*resized)
    except ValueError as error:
        raise InputError(f"image.crop: {error}") from None
    expected = tuple(side.stop - side.start for side in kept)
    if values.shape != expected:
        raise InputError(
            f"the map has {values.shape} values, but an image of {size} gets {expected}: give the "
            "size (height, width) of the image that it was made from"
        )
    if resized == tuple(size):  # its pixels are the image's
        found = np.full(size, np.nan, np.float32)
        found[kept] = values
        return found
    rows, top, bottom, down = _along(size[0], resized[0], kept[0])
    columns, left, right, across = _along(size[1], resized[1], kept[1])
    tall = values[top] * (1 - down[:, None]) + values[bottom] * down[:, None]  # (H seen, w)
    found = np.full(size, np.nan, np.float32)
    found[rows, columns] = tall[:, left] * (1 - across) + tall[:, right] * across
    return found


class Preparing:
    """Base of models that inspect images: from images to the model, and from maps back to images.

    Attributes:
        images: How the input of the model, or of each member of an ensemble, is made.
        decision: A `patchcore.decision.Decision`, or None where none was made.
        details: Further facts about the model, as plain values.
        alike: Whether all members get the same pixels: one size and one view.

    Raises:
        InputError: The members see different parts of an image.
    """

    def __init__(
        self,
        images: Sequence[ImageConfig],
        decision: Any = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        self.images = list(images)
        self.decision = decision
        self.details = dict(details or {})
        first, *others = self.images
        if not all(other.same_view(first) for other in others):
            raise InputError(
                "image: all members must see the same part of an image: give them one view"
            )
        self._prepare = [build_preparation(image) for image in self.images]
        self.alike = all(
            (other.resize, other.stretch, other.crop) == (first.resize, first.stretch, first.crop)
            for other in others
        )

    @property
    def image(self) -> ImageConfig:
        """Settings of the input; an ensemble's maps have the first member's size."""
        return self.images[0]

    def prepare(self, pixels: Pixels) -> Pixels | tuple[Pixels, ...]:
        """Resize and crop an image's pixels (H, W, 3) uint8 as in training: (h, w, 3) uint8.

        The members of an ensemble that work at several sizes get one each.

        Raises:
            InputError: It is no such array, or it is smaller than the crop.
        """
        check_kind(pixels, np.ndarray, "pixels", "an array uint8 (H, W, 3)")
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            raise InputError(f"pixels must be uint8 (H, W, 3), got {pixels.dtype} {pixels.shape}")
        unmarked = np.broadcast_to(np.False_, pixels.shape[:2])
        steps = self._prepare[:1] if self.alike else self._prepare
        try:
            made = tuple(prepare(pixels, unmarked, 0)[0] for prepare in steps)
        except ValueError as error:
            raise InputError(f"image.crop: {error}") from None
        return made[0] if self.alike else made

    def place(self, values: Tensor | NDArray[Any], size: tuple[int, int]) -> NDArray[np.float32]:
        """See `placed`; `values` is the anomaly map (h, w) of an image of `size` (H, W)."""
        if isinstance(values, Tensor):
            values = values.float().cpu().numpy()
        return placed(np.asarray(values, np.float32), size, self.image)


class Inspector(Preparing):
    """A fitted model, and the preparation of its images.

    Args:
        model: Fitted; set to evaluation mode.
        images: How the input is made of an image's pixels: one for all, or one for each member of
            an ensemble, all of one view; kept as a list with one for each. By default the paper's
            size and crop, or the images' own size in the model's tiles, with the mean and standard
            deviation of the network's weights.
        decision: A `patchcore.decision.Decision`, or None where none was made.
        details: What else is known of the model, as plain values. `data`, `metrics`, `lineage` and
            `versions` are those of artifact.yaml; see `patchcore.artifact`.
        precision: Of the Trainer that the model was fitted by; scores follow from it.
        region: (H, W) pixels of every image that count, True; None: all do. All images have that
            size then.

    Attributes:
        crops: Pictures of the memory's patches, if they were kept: `explanation.cut_crops`.

    Raises:
        InputError: The images' settings are too few or too many, or of several views; or there is
            no such precision.
    """

    def __init__(
        self,
        model: Method,
        images: ImageConfig | Sequence[ImageConfig] | None = None,
        decision: Any = None,
        details: Mapping[str, Any] | None = None,
        precision: str = "32-true",
        region: NDArray[np.bool_] | None = None,
    ) -> None:
        check_kind(model, Method, "model", "a fitted detector or ensemble")
        check_kind(details, (Mapping, NoneType), "details", "a mapping")
        self.model = model.eval()
        members = self.members
        if images is None:
            images = [_usual_image(member) for member in members]
        check_kind(
            images, (ImageConfig, list, tuple), "images", "ImageConfig(…), or a list of them"
        )
        each = [images] * len(members) if isinstance(images, ImageConfig) else list(images)
        for number, own in enumerate(each):
            check_kind(own, ImageConfig, f"images[{number}]", "ImageConfig(…)")
        if len(each) != len(members):
            raise InputError(
                f"image: the model has {counted(len(members), 'member')}, but {len(each)} settings "
                "of images were given: give one for all, or one for each"
            )
        super().__init__(each, decision, _without_left_out(details or {}, members))
        for member, own in zip(members, each, strict=True):
            tile(member, own.tiles, own.overlap, offset_and_scale(own))
        if precision not in PRECISIONS:
            names = ", ".join(PRECISIONS)
            raise InputError(f"precision must be one of {names}, got {shown(precision)}")
        self.precision = precision
        self.crops: Crops | None = None
        self.region = region
        self._kept_hidden: dict[tuple[int, int], NDArray[np.bool_]] = {}
        self._inside = [
            torch.from_numpy(image.seen(region)).to(self.device)
            for image in self.images
            if region is not None
        ]

    def save(self, folder: str | Path, *, weights: bool = False) -> None:
        """Write the model as an artifact: see `patchcore.artifact.save`."""
        import_module("patchcore.artifact").save(self, folder, weights=weights)

    @property
    def members(self) -> list[Detector]:
        """The detectors of an ensemble; a single model alone."""
        if isinstance(self.model, Ensemble):
            return list(self.model.members)
        assert isinstance(self.model, Detector)
        return [self.model]

    @property
    def counted(self) -> list[Tensor]:
        """Pixels (h, w) bool of each member's input that count by the model's region; or none."""
        return list(self._inside)

    @torch.inference_mode()
    def counted_pixels(self) -> Tensor | None:
        """Return the pixels (H, W) bool of anomaly maps that count, on the CPU; None: all.

        By the model's region the same ones count in every image.
        """
        if not self._inside:
            return None
        cells = []
        for member, inside in zip(self.members, self._inside, strict=True):
            blank = torch.zeros(1, 3, *inside.shape, device=inside.device)
            grid = member(blank, inside[None]).patch_score  # (1, h, w)
            cells.append(counted_cells(member, grid, inside[None])[0].cpu())
        height, width = self._inside[0].shape
        return counted_by_all(cells, (height, width))

    def place(self, values: Tensor | NDArray[Any], size: tuple[int, int]) -> NDArray[np.float32]:
        """See `Preparing.place`; NaN, too, where most of a pixel does not count by the region."""
        found = super().place(values, size)
        if self._share is not None:
            found[self._hidden(self._share, (size[0], size[1]))] = np.nan
        return found

    def _hidden(self, share: Tensor, size: tuple[int, int]) -> NDArray[np.bool_]:
        """Pixels (H, W) that do not count in images of a size; kept for a few sizes."""
        hidden = self._kept_hidden.get(size)
        if hidden is None:
            hidden = ~(super().place(share, size) >= 0.5)
            if len(self._kept_hidden) < MOST_SIZES:
                self._kept_hidden[size] = hidden
        return hidden

    @cached_property
    def _share(self) -> Tensor | None:
        """Pixels (h, w) of anomaly maps that count, 1, and that do not, 0; None: all do."""
        counted = self.counted_pixels()
        return None if counted is None else counted.float()

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.members[0].device

    def prepare(self, pixels: Pixels) -> Pixels | tuple[Pixels, ...]:
        """See `Preparing.prepare`. Raises InputError too if the region is of another size."""
        check_kind(pixels, np.ndarray, "pixels", "an array uint8 (H, W, 3)")
        self.check_size("this image", (pixels.shape[0], pixels.shape[1]))
        return super().prepare(pixels)

    def check_size(self, name: str | Path, size: tuple[int, int]) -> None:
        """Raise InputError unless an image's size (H, W) is that of the region, if there is one."""
        if self.region is not None and size != self.region.shape:
            (height, width), (tall, wide) = size, self.region.shape
            raise InputError(
                f"data.region: the model's region is for images of {wide}×{tall} pixels, but "
                f"{printable(str(name))} has {width}×{height}"
            )

    def embed(self, batch: Tensor | Sequence[Tensor]) -> list[Any]:
        """Features of prepared images, as `score` takes them, for each member."""
        with self._autocast():
            inputs = self._inputs(batch)
            each = zip(self.members, inputs, self._counted(len(inputs[0])), strict=True)
            return [whole(member.embed(images, inside)) for member, images, inside in each]

    @torch.inference_mode()
    def score(self, batch: Tensor | Sequence[Tensor]) -> Prediction:
        """Score prepared images (B, h, w, 3) uint8, or one such batch for each member.

        Raises:
            InputError: They are no such tensors.
        """
        inputs = self._inputs(batch)
        with self._autocast():
            if isinstance(self.model, Ensemble):
                counted = self._counted(len(inputs[0])) if self._inside else None
                found = self.model(inputs, counted)
            else:
                found = self.model(inputs[0], self._counted(len(inputs[0]))[0])
        assert isinstance(found, Prediction)
        return found

    def _counted(self, images: int) -> list[Any]:
        """Pixels (B, h, w) that count of each member's input; None where all do."""
        if not self._inside:
            return [None] * len(self.members)
        return [inside.expand(images, -1, -1) for inside in self._inside]

    def _autocast(self) -> torch.autocast:
        dtype = AUTOCAST.get(self.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def _inputs(self, batch: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """Input of each member's network."""
        check_kind(batch, (Tensor, list, tuple), "images", "tensors uint8 (B, h, w, 3)")
        batches = [batch] * len(self.members) if isinstance(batch, Tensor) else list(batch)
        for each in batches:
            check_kind(each, Tensor, "images", "tensors uint8 (B, h, w, 3)")
            if each.ndim != 4 or each.shape[3] != 3 or each.dtype != torch.uint8:
                found = f"{str(each.dtype).removeprefix('torch.')} {tuple(each.shape)}"
                raise InputError(f"images must be uint8 (B, h, w, 3), got {found}")
        if len(batches) != len(self.members):
            raise InputError(
                f"the model has {counted(len(self.members), 'member')}, but "
                f"{counted(len(batches), 'batch')} {'was' if len(batches) == 1 else 'were'} given"
            )
        return [
            normalised(each.to(self.device), image)
            if image.tiles is None
            else each.to(self.device).permute(0, 3, 1, 2)  # tiles are normalised one by one
            for each, image in zip(batches, self.images, strict=True)
        ]


def poses_of(inspector: Any) -> int:
    """Return in how many poses a model remembers each of its images."""
    return int(_data_of(inspector).get(POSES, 1))


def is_moved(inspector: Any) -> bool:
    """Whether the pixels of a model's training images were moved by random changes."""
    return bool(_data_of(inspector).get(MOVED, False))


def held_images(details: Mapping[str, Any]) -> list[tuple[Path, str | None]]:
    """Return the path of each image that a model holds, and the digest of its file.

    Images without a known path are left out; the digest is None where it was not recorded.
    """
    sources = details.get(SOURCES) or ()
    digests = [*(details.get(DIGESTS[SOURCES]) or ()), *[None] * len(sources)]
    each = zip(sources, digests, strict=False)
    return [(Path(name), digest) for name, digest in each if name is not None]


def with_digests(details: Mapping[str, Any]) -> dict[str, Any]:
    """Return details with `DIGESTS` of the files that are there now, unless they have them."""
    found = dict(details)
    for key, digests in DIGESTS.items():
        if key in details and digests not in details:
            with ThreadPoolExecutor() as pool:
                found[digests] = list(pool.map(_digest, details[key]))
    return found


def _digest(name: str | None) -> str | None:
    try:
        return None if name is None else file_digest(Path(name))
    except (InputError, ValueError):  # a path may not hold a null character
        return None


def without_pruned(details: Mapping[str, Any], numbers: Iterable[int]) -> dict[str, Any]:
    """Return details in which the images of these numbers are `PRUNED`, and no longer `SOURCES`."""
    sources = list(details.get(SOURCES) or ())
    left = [n for n in numbers if n < len(sources) and sources[n] is not None]
    found = dict(details)
    for key, to in ((SOURCES, PRUNED), (DIGESTS[SOURCES], DIGESTS[PRUNED])):
        if left and key in details:
            each = list(details[key])
            before = details.get(to, [None] * len(details.get(PRUNED, ())))
            found[key] = [None if n in left else value for n, value in enumerate(each)]
            found[to] = [*before, *(each[n] for n in left)]
    return found


def _data_of(inspector: Any) -> Mapping[str, Any]:
    data = inspector.details.get("data")
    return data if isinstance(data, Mapping) else {}


def _without_left_out(details: Mapping[str, Any], members: Sequence[Detector]) -> dict[str, Any]:
    """Details in which images that no member remembers are `PRUNED`, and no longer `SOURCES`."""
    numbers = sorted(set.intersection(*(set(member.left_out) for member in members)))
    return without_pruned(details, numbers)


def _usual_image(member: Detector) -> ImageConfig:
    record, tiling = member.backbone.input, member.backbone.tiling
    tiles = {} if tiling is None else {"tiles": tiling.side, "overlap": tiling.overlap}
    return ImageConfig(mean=list(record.mean), std=list(record.std), **tiles)


def _along(
    length: int, resized: int, kept: slice
) -> tuple[slice, NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Positions of the pixels of one side in a map of the part of it that is kept.

    Returns:
        Pixels that the map covers; their two neighbours in it, and the second one's share.
    """
    centres = (np.arange(length) + 0.5) * (resized / length)  # in pixels of the resized image
    seen = np.flatnonzero((centres >= kept.start) & (centres < kept.stop))
    last = kept.stop - kept.start - 1
    places = np.clip(centres[seen] - kept.start - 0.5, 0, last)
    lower = np.floor(places).astype(np.intp)
    covered = slice(seen[0], seen[-1] + 1) if len(seen) else slice(0, 0)
    return covered, lower, np.minimum(lower + 1, last), (places - lower).astype(np.float32)
