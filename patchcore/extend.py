"""Adding nominal images to a fitted model, and removing some, without fitting it again.

PatchCore continues its greedy selection from the memory bank, among the patches of the new images,
until the memory bank again keeps the same share of all patches. SPADE adds whole images. PaDiM
updates its Gaussians to those of all images. `--remove` removes the rows that came from an image.

The threshold is updated if its guarantee can be kept. Added images are scored by the earlier model,
which has not seen them, and their scores join the nominal scores. With a larger memory bank,
distances can only fall, so the common threshold can only give fewer false alarms. (With Eq. 7,
scores are not plain distances to a nearest neighbour; there this holds approximately.) With
`method.radius`, `method.retrieval` or SPADE, an image is compared only with a part of the memory.
New images change this part, as they change the Gaussians of PaDiM, and scores may rise, so the
decision is dropped. A removed image leaves a hole: patches like its own are now far from the memory
bank, and scores rise by an unknown amount. Therefore the decision is dropped as well, and a model
without a decision gives no verdicts. Metrics belong to the model that was tested, so adding and
removing both move them to the lineage.
"""

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from patchcore import artifact
from patchcore.arguments import check_kind, paths_of
from patchcore.data.copies import reject_copies
from patchcore.data.images import read_image
from patchcore.digests import Snapshot, file_digest
from patchcore.errors import InputError, few, printable, unwritable
from patchcore.explanation import cut_crops
from patchcore.inspector import (
    DIGESTS,
    PRUNED,
    SOURCES,
    Inspector,
    held_images,
    poses_of,
    with_digests,
)
from patchcore.methods.detector import Prediction
from patchcore.methods.ensemble import Ensemble, combined
from patchcore.sealed import check_target, locked


@dataclass(frozen=True)
class Change:
    """Outcome of `extend` or `remove`.

    Attributes:
        images: How many were added or removed.
        patches: How many vectors or distributions the memory has gained.
        step: "images added" or "images removed".
        removed: Paths of the images removed, where they are known.
        dropped: Why the model has lost its decision; empty if it has one, or had none.
    """

    images: int
    patches: int
    step: str = "images added"
    removed: tuple[str, ...] = ()
    dropped: str = ""


def extend(
    inspector: Inspector, images: Sequence[str | Path], count: int | None = None, batch: int = 16
) -> Change:
    """Add nominal images to a model; it stays as it is if that fails.

    Args:
        inspector: Its model, decision and details change.
        images: Files.
        count: Patches to add to each memory; by default as many as leave its share of all patches.
        batch: Images at a time, of those of one size.

    Raises:
        InputError: A file is unreadable, or it or a copy of it is in the model already, or the
            model cannot be extended.
    """
    check_kind(inspector, Inspector, "inspector", "an Inspector")
    images = paths_of(images, "images")
    if (poses := poses_of(inspector)) > 1:
        raise InputError(
            f"the memory bank holds each image in {poses} poses, but an added image would have "
            "only one: fit again with all images"
        )
    names = [str(path.absolute()) for path in images]
    sources = _sources(inspector)
    places = [os.path.realpath(name) for name in names]
    _reject_held(dict(zip(names, places, strict=True)), sources, _digests(inspector, len(sources)))
    first = {place: name for name, place in sorted(zip(names, places, strict=True), reverse=True)}
    twice = sorted(name for place, name in first.items() if places.count(place) > 1)
    if twice:
        told = "was given twice: name it once"
        if len(twice) > 1:
            told = "were given twice: name each once"
        raise InputError(f"{few([*map(printable, twice)])}: {told}")
    if not names:
        raise InputError("images: there are none to add")
    snapshot = Snapshot.of(images)
    image = inspector.images[0]
    copies = reject_copies(
        [Path(name) for name in names],
        held_images(inspector.details),
        lambda path: read_image(path, image.bits, image.limit),
    )
    each: list[list[Any]] = [[] for _ in inspector.members]
    sizes = []
    for prepared in _batches(inspector, images, batch, snapshot):
        sizes.append((prepared[0].shape[1], prepared[0].shape[2]))
        for batches, features in zip(each, inspector.embed(prepared), strict=True):
            batches.append(features)
    numbers = range(len(sources), len(sources) + len(names))
    model, before = inspector.model, inspector.model.memory_patches
    state = model.state_dict()
    try:
        found = [
            member.extend(batches, sizes, numbers, count)
            for member, batches in zip(inspector.members, each, strict=True)
        ]
        crops = inspector.crops
        if crops is not None:
            crops = crops.joined(cut_crops(inspector, [*sources, *names], len(sources)))
        snapshot.check()
    except InputError:
        model.load_state_dict(state)
        raise
    inspector.crops = crops
    predictions = [
        combined(parts, model.scales) if isinstance(model, Ensemble) else parts[0]
        for parts in zip(*found, strict=True)
    ]
    dropped = ""
    why = "".join({*map(_why_scores_may_rise, inspector.members)})
    if inspector.decision is not None and why:
        inspector.decision = None
        dropped = f"new images may raise scores, {why}"
    if inspector.decision is not None:
        pixels = inspector.counted_pixels()
        first_ones = torch.tensor([Path(name) not in copies for name in names])
        known = _chosen(predictions, first_ones)
        inspector.decision = widened(inspector.decision, known, pixels)
    change = Change(len(names), model.memory_patches - before, dropped=dropped)
    added = [snapshot.digests[path] for path in images]
    digests = [*_digests(inspector, len(sources)), *added]
    _note(inspector, "extend", change, [*sources, *names], digests)
    return change


def _reject_held(
    places: Mapping[str, str], sources: Sequence[str | None], digests: Sequence[str | None]
) -> None:
    """Refuse paths that the model knows, and say whether their files are still its images.

    Args:
        places: {path of an image to add: the same without links}.
        sources: Path of each image of the model.
        digests: Digest of each.
    """
    held: dict[str, set[str | None]] = {}
    for name, digest in zip(sources, digests, strict=True):
        if name is not None:
            held.setdefault(os.path.realpath(name), set()).add(digest)
    known = sorted(name for name, place in places.items() if place in held)
    if not known:
        return
    replaced = []
    for name in known:
        recorded = held[places[name]]
        if None not in recorded and file_digest(Path(name)) not in recorded:
            replaced.append(name)
    told = (
        ("is in the model already: leave it out", "are in the model already: leave them out"),
        (
            "was replaced since the model learned it: give the new image another name, or remove "
            "the earlier one (--remove)",
            "were replaced since the model learned them: give the new images other names, or "
            "remove the earlier ones (--remove)",
        ),
    )[bool(replaced)]
    names = replaced or known
    raise InputError(f"{few([*map(printable, names)])}: {told[len(names) > 1]}")


def _why_scores_may_rise(model: Any) -> str:
    """Reason why new images may raise the scores of others; empty if they cannot."""
    method = model.parts.method
    if getattr(method, "narrow", False):
        return "as an image is compared with a part of the memory"
    return "as they change the Gaussians" if getattr(method, "estimates", False) else ""


def remove(inspector: Inspector, images: Sequence[str | Path]) -> Change:
    """Remove nominal images from a model, and its decision with them.

    Args:
        inspector: Its model, decision and details change.
        images: Paths as the model knows them, or their ends, as far as these are of one image.

    Raises:
        InputError: The model does not know an image, or cannot remove it.
    """
    check_kind(inspector, Inspector, "inspector", "an Inspector")
    paths_of(images, "images")
    sources = _sources(inspector)
    pruned = inspector.details.get(PRUNED, ())
    numbers = sorted({_number(sources, pruned, path) for path in images})
    if not numbers:
        raise InputError("images: there are none to remove")
    model, before = inspector.model, inspector.model.memory_patches
    state = model.state_dict()
    try:
        for member in inspector.members:
            member.forget(numbers)
    except InputError:
        model.load_state_dict(state)
        raise
    dropped = "" if inspector.decision is None else "images were removed"
    inspector.decision = None
    if inspector.crops is not None:
        inspector.crops = inspector.crops.without(numbers)
    gone = tuple(name for number in numbers if (name := sources[number]) is not None)
    change = Change(len(numbers), model.memory_patches - before, "images removed", gone, dropped)
    kept, digests = (
        [None if number in numbers else each for number, each in enumerate(values)]
        for values in (sources, _digests(inspector, len(sources)))
    )
    _note(inspector, "remove", change, kept, digests)
    return change


def change_artifact(
    folder: Path,
    images: Sequence[Path] = (),
    removed: Sequence[str | Path] = (),
    *,
    count: int | None = None,
    output: Path | None = None,
    device: str = "cpu",
) -> tuple[Inspector, list[Change]]:
    """Remove images from an artifact, then add others, and write it at once, or not at all.

    Args:
        folder: Of the artifact.
        images: Files to add.
        removed: See `remove`.
        count: See `extend`.
        output: New folder to write to; by default the artifact is replaced.
        device: Where the work is done.

    Returns:
        The model as it was written, and its changes in their order.

    Raises:
        InputError: See `patchcore.artifact.load`, `extend` and `remove`; or `output` lies inside a
            model or holds something, or another process changes the artifact.
    """
    target, replace = (folder, True) if output is None else (output, False)
    with _alone(target):
        weights = any(
            member["network"]["file"] for member in artifact.read_description(folder)["members"]
        )
        check_target(target, artifact.DESCRIPTION, replace=replace)
        of = file_digest(folder / artifact.DESCRIPTION)
        inspector = artifact.load(folder, device)
        start = len(inspector.details["lineage"])
        changes = []
        if removed:
            changes.append(remove(inspector, removed))
        if images:
            changes.append(extend(inspector, images, count))
        if not changes:
            raise InputError("images: there are none to add, and none to remove")
        inspector.details["lineage"][start]["of"] = of
        if replace and file_digest(folder / artifact.DESCRIPTION) != of:  # without locks
            raise InputError(f"{folder}: was changed meanwhile: run the command again")
        artifact.save(inspector, target, weights=weights, replace=replace)
    return inspector, changes


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lock a folder to write to, see `patchcore.sealed.locked`."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder))
        except OSError as error:
            raise unwritable(folder, error) from error
        yield


def _chosen(predictions: Sequence[Prediction], which: Tensor) -> list[Prediction]:
    """Predictions, in batches, of the images that `which` (images,) bool names."""
    parts = which.split([len(each.score) for each in predictions])
    return [
        Prediction(*(values[part.to(values.device)] for values in each))
        for each, part in zip(predictions, parts, strict=True)
    ]


def widened(decision: Any, predictions: Sequence[Prediction], pixels: Tensor | None = None) -> Any:
    """A `patchcore.decision.Decision` that includes further nominal images.

    Image scores join. Of the earlier images' pixels only the sum of their shares at the threshold
    is known, so this is kept where the new ones' shares leave the promise, and raised for those
    alone where not: at a higher threshold the earlier shares are no larger.

    Args:
        decision: The earlier one.
        predictions: Of the images, by a model that has not seen them.
        pixels: (H, W) bool, pixels of their maps that count; None: all.
    """
    scores = torch.cat([decision.scores, *(p.score.cpu().double() for p in predictions)])
    before, after = decision.images + 1, len(scores) + 1
    spent = decision.pixel_rate * before - 1  # sum of the earlier images' shares
    allowed = max(decision.false_alarms * after, 1) - 1 - spent  # a rate of 1 / after at least
    maps = [p.map.flatten(1) if pixels is None else p.map.cpu()[:, pixels] for p in predictions]
    values, shares = _near(maps, decision.pixel_threshold)
    place = int((shares.cumsum(0) > allowed + 1e-9).int().argmax()) if len(values) else 0
    threshold = decision.pixel_threshold
    if float(shares.sum()) > allowed + 1e-9:
        above = torch.nextafter(values[place], torch.tensor(math.inf))
        threshold = max(threshold, float(above))
    added = float(shares[values >= threshold].sum())
    return replace(
        decision,
        scores=scores.sort().values,
        pixel_threshold=threshold,
        pixel_rate=(spent + added + 1) / after,
    )


def _near(maps: Sequence[Tensor], threshold: float) -> tuple[Tensor, Tensor]:
    """Pixels at or above the threshold, falling, and the share of its image that each is.

    Args:
        maps: Pixels (B, P) of images, in batches.
        threshold: See above.
    """
    values, shares = [torch.empty(0)], [torch.empty(0, dtype=torch.float64)]
    for batch in maps:
        pixels = batch.flatten().float()
        near = pixels[pixels >= threshold].cpu()
        values.append(near)
        shares.append(torch.full(near.shape, 1 / batch.shape[1], dtype=torch.float64))
    falling, order = torch.cat(values).sort(descending=True)
    return falling, torch.cat(shares)[order]


def _batches(
    inspector: Inspector, images: Sequence[Path], most: int, snapshot: Snapshot
) -> Iterator[list[Tensor]]:
    """Prepared images, [(B, h, w, 3) uint8 for each member], as long as they are of one size."""
    waiting: list[list[Tensor]] = []
    shapes: list[torch.Size] = []  # of those that wait, one for each member
    image = inspector.image
    for path in images:
        pixels = snapshot.read([path], partial(read_image, path, image.bits, image.limit))
        try:
            found = inspector.prepare(pixels)
        except InputError as error:
            raise InputError(f"{printable(str(path))}: {error}") from error
        parts = found if isinstance(found, tuple) else (found,) * len(inspector.members)
        tensors = [torch.from_numpy(part) for part in parts]
        own = [tensor.shape for tensor in tensors]
        if waiting and (len(waiting) == most or own != shapes):
            yield [torch.stack(each) for each in zip(*waiting, strict=True)]
            waiting = []
        shapes = own
        waiting.append(tensors)
    yield [torch.stack(each) for each in zip(*waiting, strict=True)]


def _sources(inspector: Inspector) -> list[str | None]:
    """Path of each image that the model has had, by number; None where it is not known."""
    known = list(inspector.details.get(SOURCES, ()))
    had = max(member.images_had for member in inspector.members)
    return known + [None] * (had - len(known))


def _digests(inspector: Inspector, count: int) -> list[str | None]:
    """Digest of each of `_sources`, of which there are `count`."""
    known = list(with_digests(inspector.details).get(DIGESTS[SOURCES], ()))
    return known + [None] * (count - len(known))


def _number(sources: Sequence[str | None], pruned: Sequence[str], path: str | Path) -> int:
    """Number of the image that a path, or the end of one, stands for; none of those `pruned`."""
    asked = PurePath(path).parts
    whole = str(Path(path).absolute())
    if whole in sources:
        return sources.index(whole)
    fitting = [
        number
        for number, name in enumerate(sources)
        if name is not None and PurePath(name).parts[-len(asked) :] == asked
    ]
    if len(fitting) == 1:
        return fitting[0]
    shown = printable(str(path)) or "''"
    if fitting:
        raise InputError(
            f"{shown}: {len(fitting)} images of the model end like this; give a longer part of the "
            "path"
        )
    if any(name == whole or PurePath(name).parts[-len(asked) :] == asked for name in pruned):
        raise InputError(f"{shown}: is not in the model: pruning left it out: do not name it")
    if not any(sources):
        raise InputError(f"{shown}: the model does not know its images' paths: fit again without")
    raise InputError(f"{shown}: is not among the images in the model's memory bank")


def _note(
    inspector: Inspector,
    step: str,
    change: Change,
    sources: Sequence[str | None],
    digests: Sequence[str | None],
) -> None:
    """Tell of a change in the details; metrics of the model as it was belong to its past."""
    details = inspector.details
    entry = artifact.step(
        step,
        images=change.images,
        patches=change.patches,
        decision=inspector.decision is not None,
        metrics_before=details.get("metrics", {}),
    )
    lineage = [*details.get("lineage", [artifact.step("fit")]), entry]
    details.update(with_digests(details))
    added = {*digests} - {*details.get(DIGESTS[SOURCES], ())}
    details.update({SOURCES: list(sources), DIGESTS[SOURCES]: list(digests)})
    details.update({"metrics": {}, "lineage": lineage})
    if PRUNED in details:  # unless they have been added
        left = [
            (name, digest)
            for name, digest in zip(details[PRUNED], details[DIGESTS[PRUNED]], strict=True)
            if name not in sources and (digest is None or digest not in added)
        ]
        details[PRUNED], details[DIGESTS[PRUNED]] = ([x[i] for x in left] for i in range(2))
