"""Checks for settings that exclude one another; each error says in one line what to do."""

from collections.abc import Mapping
from typing import Any

from patchcore.backbones import Join
from patchcore.coreset import SizedConfig
from patchcore.errors import InputError
from patchcore.index.exact import check_neighbours
from patchcore.scoring import Pool


def check_conflicts(run: Any) -> None:
    """Refuse settings that cannot be combined.

    Args:
        run: The whole tree of settings, a `patchcore.config.Config`.

    Raises:
        InputError: The first conflict, and what to do.
    """
    if run.curve:
        _check_curve(run)
    if run.method.nested and getattr(run.coreset, "count", None) is not None:
        check_neighbours(max(run.scoring.neighbours, run.scoring.reweight), run.coreset.count)
    if run.ensemble.members:
        _check_ensemble(run)
    if getattr(run.method, "pruning", None) is not None:
        _check_pruning(run)
    if run.decision.false_alarms is not None and run.augment.changes():
        raise InputError(
            "decision.false_alarms needs training images that are like test images, and augmented "
            "images are not: set augment=none, or decision.false_alarms=null"
        )
    thinned = getattr(run.method, "per_image", None) is not None
    if thinned and run.decision.false_alarms is not None and run.image.tiles is not None:
        raise InputError(
            "decision.false_alarms cannot thin images in tiles as the run itself does: set "
            "image.tiles, method.per_image or decision.false_alarms to null"
        )
    if run.judged:
        _check_label_free(run)
    if run.scoring.pool is Pool.pixels:
        _check_pixels(run)


def check_loggers(loggers: Mapping[str, Any]) -> None:
    """Refuse a logger that is not given by its settings.

    Raises:
        InputError: The first such logger.
    """
    for name, given in loggers.items():
        if not isinstance(given, Mapping):
            raise InputError(
                f"logger.{name} must be the settings of a logger, such as "
                "{'_target_': 'pytorch_lightning.loggers.CSVLogger', 'save_dir': FOLDER}, got "
                f"{given}"
            )


def _check_curve(run: Any) -> None:
    if not run.method.nested:
        raise InputError("curve needs method=patchcore: no other keeps a coreset")
    if run.layers.join is not Join.concat:
        raise InputError(
            "curve needs a single memory bank: leave it out, or set layers.join=concat"
        )
    coreset = run.coreset
    if not coreset.nested:
        raise InputError(
            "curve needs coreset=greedy, approximate or random, in which a larger memory bank "
            "contains the smaller ones"
        )
    assert isinstance(coreset, SizedConfig)
    if coreset.count is not None or getattr(coreset, "radius", None) is not None:
        raise InputError("curve needs coreset.ratio: set coreset.count and radius to null")
    if twice := [ratio for ratio in run.curve if run.curve.count(ratio) > 1]:
        raise InputError(f"curve names {twice[0]} twice: leave one out")
    for ratio in run.curve:
        if not 0 < ratio <= coreset.ratio:
            raise InputError(
                f"curve must lie in (0, {coreset.ratio}], the largest being coreset.ratio, "
                f"got {ratio}"
            )


def _check_ensemble(run: Any) -> None:
    if not run.method.scalable:
        raise InputError("ensemble.members needs method=patchcore: set ensemble=none")
    if run.curve:
        raise InputError("curve needs a single memory bank: leave it out, or set ensemble=none")
    if any(member.layers.join is not Join.concat for member in run.members()):
        raise InputError("ensemble.members need layers.join=concat: leave layers.join out")
    first, *others = (member.image for member in run.members())
    for number, image in enumerate(others, 2):
        if not image.same_view(first):
            raise InputError(
                f"ensemble.members: member {number} would see a different part of an image than "
                "member 1, so their maps cannot be averaged: give all members the same ratio of "
                "crop to resize, and the same stretch"
            )


def _check_pruning(run: Any) -> None:
    if run.ensemble.members:
        raise InputError(
            "method.pruning works with one memory bank, and an ensemble has several: set "
            "ensemble=none, or method.pruning=null"
        )
    if run.decision.false_alarms is not None:
        raise InputError(
            "decision.false_alarms assumes that all training images are nominal, but "
            "method.pruning does not: set one of them to null"
        )


def _check_label_free(run: Any) -> None:
    if run.augment.changes() or len(run.augment.poses()) > 1:
        raise InputError(
            "label_free needs training images that are like test images, and augmented images are "
            "not: set augment=none, or choose another objective"
        )
    if run.ensemble.members:
        raise InputError(
            "label_free needs a single network: set ensemble=none, or choose another objective"
        )
    if run.image.tiles is not None:
        raise InputError(
            "label_free draws its defects on whole images, not on tiles: set image.tiles=null, or "
            "choose another objective"
        )
    if getattr(run.method, "pruning", None) is not None:
        raise InputError(
            "label_free assumes that all training images are nominal, but method.pruning does "
            "not: set method.pruning=null, or choose another objective"
        )


def _check_pixels(run: Any) -> None:
    others = {
        "decision.false_alarms": run.decision.false_alarms is not None,
        "label_free": run.judged,
        "ensemble.members": bool(run.ensemble.members),
    }
    for name, is_set in others.items():
        if is_set:
            raise InputError(
                f"{name} scores left-out training images by their patches, without maps: leave it "
                "out, or set scoring.pool=patches"
            )
