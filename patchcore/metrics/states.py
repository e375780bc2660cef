"""Torchmetrics classes for metrics and counts over a test set, in batches and several processes."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchmetrics import Metric

from patchcore.errors import InputError, counted, printable
from patchcore.metrics.measures import (
    MASK_KEYS,
    image_metrics,
    image_undefined,
    map_metrics,
    pixel_metrics,
    pixel_undefined,
)
from patchcore.metrics.overlap import NO_PIXELS, MapScores
from patchcore.metrics.regions import all_ignored, region_areas
from patchcore.metrics.sweep import Sweep, curves, sweep


class ImageMetrics(Metric):
    """State of `image_metrics`: collects the scores of a test set from batches and processes."""

    is_differentiable = False
    full_state_update = False

    # Lists of scores; a tensor each while processes are synchronised. Scores of float32 models
    # stay float32, the dtype in which torchmetrics gathers empty states.
    nominal: list[Tensor] | Tensor
    anomalous: list[Tensor] | Tensor
    _counts: Sweep  # of the last `compute`
    _undefined: dict[str, str]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nominal", [], dist_reduce_fx="cat")
        self.add_state("anomalous", [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            scores: (B,) raw anomaly scores, any floating dtype.
            labels: (B,) bool or 0/1, True for anomalous.

        Raises:
            InputError: a score is NaN or infinite.
            ValueError: shapes differ or labels are not 0/1.
        """
        if scores.ndim != 1:
            raise ValueError(f"scores must be (B,), got {tuple(scores.shape)}")
        scores = _finite(scores, "image scores")
        labels = _binary(labels, "labels", scores)
        _append(self.nominal, scores[~labels].to(self.device))
        _append(self.anomalous, scores[labels].to(self.device))

    def compute(self) -> dict[str, float]:
        """Return the metrics of all images so far; NaN where `undefined()` has a reason."""
        self._counts = sweep(_join(self.nominal), _join(self.anomalous))
        self._undefined = image_undefined(self._counts)
        return image_metrics(self._counts)

    def undefined(self) -> dict[str, str]:
        """Return the reasons why metrics are NaN, {key: reason}."""
        self.compute()  # cached, and the same on every process
        return self._undefined

    def curves(self) -> dict[str, Tensor]:
        """Return the curves of all images so far, on the CPU; see `patchcore.metrics.sweep`."""
        self.compute()
        return {name: x.cpu() for name, x in curves(self._counts).items()}


class PixelMetrics(Metric):
    """State of `pixel_metrics` and `map_metrics`: collects maps from batches and processes.

    For float32 maps, it keeps 4 bytes per nominal and 8 bytes per anomalous pixel. On a CUDA
    device, metrics are computed there.

    Args:
        fpr_limit: False-positive rate up to which AUPRO is taken, in (0, 1].

    Raises:
        InputError: `fpr_limit` is out of range.
    """

    is_differentiable = False
    full_state_update = False

    nominal: list[Tensor] | Tensor
    anomalous: list[Tensor] | Tensor
    areas: list[Tensor] | Tensor  # float32, exact for regions below 2^24 pixels
    sizes: list[Tensor] | Tensor  # float32, numbers of pixels of each image: see `_written`
    unmasked: Tensor

    def __init__(self, fpr_limit: float = 0.3) -> None:
        super().__init__()
        if not 0 < fpr_limit <= 1:
            raise InputError(f"fpr_limit must be in (0, 1], got {fpr_limit}")
        self.fpr_limit = fpr_limit
        self.add_state("nominal", [], dist_reduce_fx="cat")
        self.add_state("anomalous", [], dist_reduce_fx="cat")
        self.add_state("areas", [], dist_reduce_fx="cat")
        self.add_state("sizes", [], dist_reduce_fx="cat")
        self.add_state("unmasked", torch.tensor(0), dist_reduce_fx="sum")
        self._left_out = 0
        self._undefined: dict[str, str] = {}

    def update(
        self,
        maps: Tensor,
        masks: Tensor,
        known: Tensor | None = None,
        counts: Tensor | None = None,
    ) -> None:
        """Add a batch; H and W may differ between batches.

        Args:
            maps: (B, H, W) raw anomaly maps, any floating dtype.
            masks: (B, H, W) bool or 0/1, True where anomalous; all False for a nominal image.
            known: (B,) bool, False for an anomalous image whose mask is missing or marks nothing
                in view. Such an image is left out, because it is unknown which of its pixels are
                anomalous; `left_out()` counts it. All True by default.
            counts: (B, H, W) bool, False for pixels to leave out; all True by default. An image
                whose mask marks only such pixels is left out, as if `known` were False.

        Raises:
            InputError: a score is NaN or infinite.
            ValueError: shapes differ or masks are not 0/1.
        """
        if maps.ndim != 3:
            raise ValueError(f"maps must be (B, H, W), got {tuple(maps.shape)}")
        maps = _finite(maps, "anomaly maps", self.device if self.device.type == "cuda" else "cpu")
        masks = _binary(masks, "masks", maps)
        if counts is not None:
            counts = _binary(counts, "counts", maps)
            lost = all_ignored(masks, counts)
            known = ~lost if known is None else known.to(lost.device) & ~lost
        numbers = torch.zeros(len(maps), 2, dtype=torch.int64, device=maps.device)
        if known is not None:
            known = _binary(known, "known", maps[:, 0, 0])
            self.unmasked = self.unmasked + int((~known).sum())
            maps, masks = maps[known], masks[known]
            counts = counts if counts is None else counts[known]
        masks = masks if counts is None else masks & counts
        free = ~masks if counts is None else ~masks & counts
        each = torch.stack([x.flatten(1).count_nonzero(1) for x in (free, masks)], 1)  # (B, 2)
        numbers[slice(None) if known is None else known] = each
        _append(self.sizes, _written(numbers).to(self.device))
        _append(self.nominal, _selected(maps, free).to(self.device))  # (B, H, W) → (N,)
        _append(self.anomalous, _selected(maps, masks).to(self.device))
        _append(self.areas, region_areas(masks).to(self.device))

    def compute(self) -> dict[str, float]:
        """Return the metrics of all maps so far; NaN where `undefined()` has a reason."""
        values, self._undefined = self._of(self._scores(), _join(self.areas))
        self._left_out = int(self.unmasked)
        return values

    def of(self, images: Sequence[int]) -> tuple[dict[str, float], dict[str, str]]:
        """Return the metrics of some images alone, and reasons of NaN, {key: reason}.

        Args:
            images: Numbers of the images, counted from 0 in the order of the calls of `update`.
        """
        scores = self._scores()
        chosen = torch.zeros(len(scores.free), dtype=torch.bool)
        chosen[torch.as_tensor(images, dtype=torch.int64)] = True
        free, marked = (
            chosen.repeat_interleave(numbers).to(scores.nominal.device)
            for numbers in (scores.free, scores.marked)
        )
        kept = (_selected(scores.nominal, free), _selected(scores.anomalous, marked))
        own = MapScores(*kept, scores.free[chosen], scores.marked[chosen])
        values, undefined = self._of(own, _selected(_join(self.areas), marked))
        left_out = int((own.free + own.marked == 0).sum())
        return values, {key: reason + _note(left_out) for key, reason in undefined.items()}

    def _scores(self) -> MapScores:
        free, marked = _read(_join(self.sizes)).unbind(1)
        return MapScores(_join(self.nominal), _join(self.anomalous), free, marked)

    def _of(self, scores: MapScores, areas: Tensor) -> tuple[dict[str, float], dict[str, str]]:
        weights = 1 / (areas if areas.is_cuda else areas.cpu()).double()
        counts = sweep(scores.nominal, scores.anomalous, weights)
        values, undefined = map_metrics(scores)
        values = pixel_metrics(counts, self.fpr_limit) | values
        return values, pixel_undefined(counts) | undefined

    def undefined(self) -> dict[str, str]:
        """Return the reasons why metrics are NaN, {key: reason}."""
        note = _note(self.left_out())
        return {key: reason + note for key, reason in self._undefined.items()}

    def left_out(self) -> int:
        """Return the number of images left out of the pixel metrics; see `known` of `update`."""
        self.compute()  # cached, and the same on every process
        return self._left_out


def _note(left_out: int) -> str:
    return f"; {left_out} left out, as no mask marks anything in view" if left_out else ""


def _finite(scores: Tensor, name: str, device: torch.device | str = "cpu") -> Tensor:
    """Check that scores are finite, and move them to a device, in at least float32."""
    scores = scores.detach().to(device, torch.promote_types(scores.dtype, torch.float32))
    bad = int((~scores.isfinite()).count_nonzero())
    if bad:
        raise InputError(
            f"{name}: {bad} of {scores.numel()} are NaN or infinite; metrics need finite scores, "
            "so check the images, the weights and the precision"
        )
    return scores


def _binary(flags: Tensor, name: str, like: Tensor) -> Tensor:
    """Check that flags have the shape of `like`, and move them to its device as bool."""
    if flags.shape != like.shape:
        raise ValueError(f"{name} must be {tuple(like.shape)}, got {tuple(flags.shape)}")
    if flags.dtype != torch.bool and not ((flags == 0) | (flags == 1)).all():
        raise ValueError(f"{name} must be bool or 0/1")
    return flags.to(like.device, torch.bool)


def _selected(values: Tensor, flags: Tensor) -> Float[Tensor, " selected"]:
    """Values where the flags are set."""
    if values.device.type != "cpu":
        return values[flags]
    return torch.from_numpy(values.numpy()[flags.numpy()])  # several times faster than in torch


def _append(state: list[Tensor] | Tensor, values: Float[Tensor, " scores"]) -> None:
    """Add scores to a state. Raises RuntimeError while processes are synchronised."""
    if isinstance(state, Tensor):
        raise RuntimeError("metric is synchronised: call unsync() before update()")
    state.append(values)


def _written(numbers: Int64[Tensor, "images 2"]) -> Float[Tensor, " parts"]:
    """Split numbers below 2^36 into two exact float32: all states need one dtype for gathering."""
    return torch.stack([numbers // 4096, numbers % 4096], -1).flatten().float()


def _read(parts: Float[Tensor, " parts"]) -> Int64[Tensor, "images 2"]:
    """Join the numbers that `_written` has split, on the CPU."""
    high, low = parts.cpu().long().view(-1, 2, 2).unbind(-1)
    return 4096 * high + low


def _join(state: list[Tensor] | Tensor) -> Float[Tensor, " scores"]:
    """All scores of a state, synchronised or not."""
    if isinstance(state, Tensor):
        return state
    return torch.cat(state) if state else torch.empty(0)


_COUNTS = (*MASK_KEYS, "masks", "regions", "regions_nominal", "masks_of_most")
"""Names of what `MaskCounts` counts."""
NO_MASKS = (
    "no anomalous image has a mask that marks anything; with data=folder, give data.masks, the "
    "folder of the masks"
)


class MaskCounts(Metric):
    """Counts of missing, cropped, lost and merged ground truth of anomalous images.

    - `images_without_mask`: no mask, or one that marks nothing; left out of pixel metrics.
    - `images_outside_crop`: all marked regions are outside the crop, or some are and the others
      lost in resizing; left out of pixel metrics.
    - `images_lost_in_resizing`: all marked regions are lost in resizing; left out of pixel metrics.
    - `images_outside_region`: all marked pixels in view are among those that do not count
      (`data.region`); left out of pixel metrics.
    - `images_cut_by_crop`: some marked pixels are outside the crop, but not all of them.
    - `regions_outside_crop`, `regions_lost_in_resizing`: marked regions that pixel metrics miss.
    - `regions_merged`: regions joined with another by resizing; AUPRO counts them as one.
    """

    is_differentiable = False
    full_state_update = False
    counts: Tensor  # (counts,) int64, in the order of _COUNTS
    examples: list[Tensor] | Tensor  # `_written` numbers of images and of counts that they raise

    def __init__(self) -> None:
        super().__init__()
        self.add_state("examples", [], dist_reduce_fx="cat")
        self.add_state("counts", torch.zeros(len(_COUNTS), dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        labels: Tensor,
        regions: Tensor,
        ignored: Tensor | None = None,
        numbers: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            labels: (B,) bool or 0/1, True for anomalous.
            regions: (B, 6) int64, see `patchcore.data.regions.Regions.counts`: numbers of
                regions that are marked, wholly outside the crop, partly outside, lost in resizing,
                and merged; and 1 if regions cover more than half of the image.
            ignored: (B,) bool, True where all marked pixels in view do not count; see
                `all_ignored`. All False by default.
            numbers: (B,) int64, the images' numbers, for `notices`. None by default.
        """
        ignored = torch.zeros_like(labels) if ignored is None else ignored
        marked, outside, cut, lost, merged, most = regions[labels.bool()].to(self.device).unbind(1)
        seen = marked > outside + lost + merged
        unseen = ~seen & (marked > 0)
        sums = [  # in the order of _COUNTS
            marked == 0,
            unseen & (outside > 0),
            unseen & (outside == 0),
            seen & ignored.to(labels.device)[labels.bool()].bool().to(self.device),
            seen & (outside + cut > 0),
            outside,
            lost,
            merged,
            marked > 0,
            marked,
            lost * seen,
            most,
        ]
        self.counts = self.counts + torch.stack([x.sum() for x in sums])
        if numbers is None:
            _append(self.examples, _written(self.counts.new_empty(0, 2)))
        else:
            counts, images = torch.stack(sums).nonzero().unbind(1)
            own = numbers[labels.bool()].to(self.device)[images]
            _append(self.examples, _written(torch.stack([own, counts], -1)))

    def compute(self) -> dict[str, int]:
        """Return the counts so far, by `MASK_KEYS`."""
        return dict(zip(MASK_KEYS, self.counts.tolist(), strict=False))

    def explained(self, undefined: Mapping[str, str]) -> dict[str, str]:
        """Return reasons of undefined metrics; those of no anomalous pixels tell of the masks.

        Args:
            undefined: {key: reason}.
        """
        found = dict(zip(_COUNTS, self.counts.tolist(), strict=True))
        left_out = sum(found[key] for key in MASK_KEYS[:4])
        why = NO_PIXELS + _note(left_out) if found["masks"] or not left_out else NO_MASKS
        return {
            key: why if reason.startswith(NO_PIXELS) else reason
            for key, reason in undefined.items()
        }

    def notices(self, names: Sequence[str] = ()) -> list[str]:
        """Return sentences on ground truth that the metrics miss, most with a remedy.

        Args:
            names: Names of the images by their `numbers`, so that each sentence on images can name
                the only or the first of them. Without names, none is named.
        """
        found = dict(zip(_COUNTS, self.counts.tolist(), strict=True))
        masked, lost, most = found["masks"], found["regions_nominal"], found["masks_of_most"]
        images = masked + found["images_without_mask"]
        examples = _read(_join(self.examples))

        def first(key: str, before: str = "") -> str:
            numbers = examples[examples[:, 1] == _COUNTS.index(key), 0]
            number = int(numbers.min()) if len(numbers) else len(names)
            name = names[number] if number < len(names) else ""
            which = before if found[key] == 1 else f"the first is {before}"
            return f" ({which}{printable(name)})" if name else ""

        def some(key: str, one: str, more: str) -> str:
            rest = one if found[key] == 1 else more
            return f"{found[key]} of {counted(images, 'anomalous image')}{first(key)} {rest}"

        def unseen(key: str, place: str) -> str:
            one = f"has its defect {place}; image metrics count it, pixel metrics leave it out"
            more = (
                f"have their defect {place}; image metrics count them, pixel metrics leave them out"
            )
            return some(key, one, more)

        lines = []
        if masked and found["images_without_mask"]:
            one = "has no mask that marks anything; it is left out of the pixel metrics"
            more = "have no mask that marks anything; they are left out of the pixel metrics"
            lines.append(some("images_without_mask", one, more))
        if found["images_outside_crop"]:
            told = unseen("images_outside_crop", "outside the crop, where it cannot be found")
            lines.append(f"{told}. image.view=square takes images whole")
        if found["images_lost_in_resizing"]:
            told = unseen("images_lost_in_resizing", "lost in resizing")
            lines.append(f"{told}. A larger image.size keeps it")
        if found["images_outside_region"]:
            place = "outside the region that counts (data.region, data.regions)"
            lines.append(unseen("images_outside_region", place))
        if found["images_cut_by_crop"]:
            one = "has part of its defect outside the crop"
            told = some("images_cut_by_crop", one, "have part of their defect outside the crop")
            lines.append(f"{told}; image.view=square takes images whole")
        if lost:  # in images that are not left out
            one = (
                "of one pixel, was lost in resizing and counts as nominal; a larger image.size "
                "keeps it"
            )
            more = (
                "of one pixel each, were lost in resizing and count as nominal; a larger "
                "image.size keeps them"
            )
            regions = counted(found["regions"], "marked region")
            which = f"{lost} of {regions}{first('regions_nominal', 'in ')}"
            lines.append(f"{which}, {one if lost == 1 else more}")
        if 2 * most > masked:
            one = (
                "marks more than half of its image; if its defects are black, invert the mask, as "
                "defects should be white"
            )
            more = (
                "mark more than half of their image; if their defects are black, invert the "
                "masks, as defects should be white"
            )
            which = f"{most} of {counted(masked, 'mask')}{first('masks_of_most', 'that of ')}"
            lines.append(f"{which} {one if most == 1 else more}")
        return lines
