"""Checks of the arguments of the Python API: one line says what is wanted and what was given."""

import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from patchcore.ahead import Pause
from patchcore.errors import InputError, local
from patchcore.settings import shown

BRIGHT = 20
"""Value that images of no usual normalisation reach without negative values."""
_FILES = "for files use patchcore train or patchcore.run to fit, and patchcore.predict to score"


def check_kind(value: Any, kind: type | tuple[type, ...], key: str, wanted: str) -> None:
    """Refuse an argument of another type; `wanted` follows "must be".

    Raises:
        InputError: The message begins with `key`.
    """
    if not isinstance(value, kind):
        raise InputError(f"{key} must be {wanted}, got {shown(value)}")


def path_of(value: Any, key: str) -> Path:
    """Return a path that was given as text or as a path; InputError for anything else.

    An empty text and a URL are refused. `Path("")` cannot be, because it equals `Path(".")`.
    """
    check_kind(value, (str, os.PathLike), key, "a path")
    if not os.fspath(value):
        raise InputError(f'{key}: is empty: give a path; "." is the current folder')
    return Path(local(value, key) if isinstance(value, str) else value)


def paths_of(values: Any, key: str) -> list[Path]:
    """Return the paths of a list; InputError for anything else, such as one path alone."""
    if isinstance(values, str | bytes | os.PathLike) or not isinstance(values, Iterable):
        raise InputError(f"{key} must be a list of image files, got {shown(values)}")
    return [path_of(value, f"{key}[{number}]") for number, value in enumerate(values)]


def batches_of(images: Any, tiled: bool = False) -> Iterator[Tensor]:
    """Yield the batches of `fit`, each checked by `size_of`: one alone, or those of an iterable.

    Raises:
        InputError: There are no such tensors.
    """
    alone = isinstance(images, Tensor | str | bytes | os.PathLike | dict)
    if not alone and hasattr(images, "__array__"):
        size_of(images, tiled)  # refuses it: an array is no batch, nor are its rows
    if not alone and not isinstance(images, Iterable) and not hasattr(images, "__getitem__"):
        alone = True
    for number, batch in enumerate([images] if alone else images):
        size_of(batch, tiled)
        if number == 0 and not tiled and batch.numel() and _pixels(batch):
            warnings.warn(
                f"images: values from {batch.min():.3g} to {batch.max():.3g} look like pixels of 0 "
                "to 255, but fit takes images normalised as the backbone expects: divide them by "
                "255, subtract image.mean and divide by image.std",
                stacklevel=3,
            )
        yield batch


def _pixels(batch: Tensor) -> bool:
    """Whether no value is negative and some are far above what normalised images have."""
    return bool(batch.min() >= 0) and bool(batch.max() > BRIGHT)


def size_of(images: Any, tiled: bool = False) -> tuple[int, int]:
    """Return the size (H, W) of a batch of images, px.

    Args:
        images: Should be (B, 3, H, W) float.
        tiled: Whether the network normalises pixels itself, which are uint8 then.

    Raises:
        InputError: It is no such tensor.
    """
    wanted = "images must be float tensors (B, 3, H, W), normalised as the backbone expects"
    if not isinstance(images, Tensor):
        hint = "give torch tensors" if hasattr(images, "__array__") else _FILES
        if isinstance(images, list | tuple | dict):
            hint = "of batches with labels, give the images alone"
        raise InputError(f"{wanted}, got {shown(images)}: {hint}")
    if images.ndim != 4:
        hint = ": add a dimension by images[None]" if images.ndim == 3 else ""
        raise InputError(f"{wanted}, got the shape {tuple(images.shape)}{hint}")
    if not tiled and not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        raise InputError(f"{wanted}, got {kind}: an Inspector takes pixels as they are")
    height, width = images.shape[-2:]
    return height, width


def stream_of(inspector: Any, paths: Any) -> Iterator[Path | Pause]:
    """Return the paths of images for `patchcore.predict`, which may come one by one without end.

    A `Pause` among them stays.

    Raises:
        InputError: `inspector` inspects no images, `paths` is one path or nothing with items; or,
            when its turn comes, an item is no path.
    """
    if not hasattr(inspector, "prepare"):
        words = "an Inspector, as patchcore.load gives it, or an exported model"
        raise InputError(f"inspector must be {words}, got {shown(inspector)}")
    if isinstance(paths, str | bytes | os.PathLike):
        raise InputError(f"paths: give a list of image files, not {paths!r} alone")
    if not isinstance(paths, Iterable):
        raise InputError(f"paths must be a list of image files, got {shown(paths)}")
    return (
        path if isinstance(path, Pause) else path_of(path, f"paths[{number}]")
        for number, path in enumerate(paths)
    )
