"""An exported model: a folder that is enough for a runtime to inspect images.

`export.yaml` has its own digest and holds everything that the graph beside it lacks: how images are
brought to the graph's size, the decision, the model's details, and the digests of the other
files. So the folder is enough for `patchcore predict FOLDER IMAGES`, and a damaged folder never
gives an answer. In Python it is used like an `Inspector`.
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from patchcore.arguments import check_kind, path_of, paths_of
from patchcore.artifact import load_once, settings_of, step
from patchcore.artifact_files import check_details
from patchcore.data.images import read_image
from patchcore.data.synthesis import TEXTURE_DEFECTS, draw_texture
from patchcore.data.transforms import ImageConfig, Pixels
from patchcore.errors import InputError
from patchcore.export.formats import FORMATS, Format, Run
from patchcore.export.graph import kind, traced_graph
from patchcore.export.parity import SCORE_LIMIT, Pair, Parity, compared
from patchcore.identity import versions
from patchcore.inspector import Inspector, Preparing, with_digests
from patchcore.methods.ensemble import Ensemble
from patchcore.outputs import ARTIFACT, EXPORT
from patchcore.sealed import check_target, exact_keys, read_sealed, steadily, write_sealed
from patchcore.settings import plain

FORMAT = 1
DESCRIPTION = EXPORT
KEYS = (
    *("format", "kind", "size", "image", "decision", "parity", "exporters", "details"),
    "files",
)
"""Keys of export.yaml."""
BATCH = 8  # images that are compared at a time


class Scored(NamedTuple):
    """Scores of a batch of images by an exported model; higher is more anomalous."""

    score: Tensor  # (B,) anomaly score of each image
    map: Tensor  # (B, h, w) anomaly map at the graph's size


class ExportedModel(Preparing):
    """A graph in the hands of its runtime; prepares, scores and places images as an `Inspector`.

    Attributes:
        size: (h, w) of the images that `score` takes.
        format: Name of the graph's format.
        decision, details: As those of the `Inspector` that was exported.
    """

    def __init__(
        self,
        run: Run,
        image: ImageConfig,
        size: tuple[int, int],
        format: str,
        decision: Any = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__([image], decision, details)
        self.size = size
        self.format = format
        self._run = run

    def score(self, batch: Tensor) -> Scored:
        """Score prepared images (B, h, w, 3) uint8.

        Raises:
            InputError: They are no such tensor, or of another size.
        """
        if batch.dtype != torch.uint8 or tuple(batch.shape[1:]) != (*self.size, 3):
            kind = str(batch.dtype).removeprefix("torch.")
            raise InputError(
                f"images must be uint8 (B, {self.size[0]}, {self.size[1]}, 3), got {kind} "
                f"{tuple(batch.shape)}: the size was fixed by the export"
            )
        score, maps = self._run(batch.cpu().contiguous().numpy())
        return Scored(torch.from_numpy(score), torch.from_numpy(maps))


def export(
    inspector: Inspector,
    folder: str | Path,
    format: str = "onnx",
    images: Sequence[Path] = (),
    threads: int | None = None,
    *,
    replace: bool = True,
) -> Parity:
    """Export a fitted model, and compare it with the Python model; returns the differences.

    Args:
        folder: Made with its parents.
        format: Name in `FORMATS`.
        images: Image files to compare on; where the view keeps an image's own aspect ratio, the
            first fixes the graph's size. Without any, drawn textures are compared.
        threads: Of the runtime that is compared.
        replace: Whether an export that is there is replaced once this one is good, and not refused.

    Raises:
        InputError: The model cannot be exported to the format, a library is missing, or the export
            differs too much; then nothing is left of it.
    """
    check_kind(inspector, Inspector, "inspector", "an Inspector")
    target, images = path_of(folder, "folder"), paths_of(images, "images")
    writer = _format(format)
    writer.check()
    check_target(target, DESCRIPTION, replace=replace)
    size = _size(inspector, images)
    program = traced_graph(inspector, size)
    found = Parity()

    def write(new: Path) -> dict[str, Any]:
        nonlocal found
        try:
            writer.write(program, new)
        except InputError as error:
            why = "which lacks an operation of its graph"
            raise InputError(
                f"{kind(inspector)}: cannot be exported to {format}, {why}: choose --format torch"
            ) from error
        found = compare(inspector, writer.open(new, threads), size, images)
        if found.failures:
            raise InputError(
                f"{folder}: nothing was written, because the export differs from the model: "
                + ", ".join(found.failures)
            )
        return _description(inspector, writer, size, found)

    write_sealed(target, DESCRIPTION, write, replace=replace)
    return found


def load_export(folder: str | Path, threads: int | None = None) -> ExportedModel:
    """Read an export, ready to score on the CPU.

    While another process replaces it, the earlier or the new one is read.

    Args:
        threads: How many the runtime may use; None leaves that to it.

    Raises:
        InputError: Begins with the file: it is missing, damaged, of a newer format or no export;
            or the runtime is not installed.
    """
    folder = path_of(folder, "folder")
    return steadily(folder, lambda: _load_export(folder, threads))


def _load_export(folder: Path, threads: int | None) -> ExportedModel:
    description, path = read_sealed(folder, DESCRIPTION, FORMAT), folder / DESCRIPTION
    exact_keys(path, description, KEYS)
    if (kept := description["decision"]) is not None:
        exact_keys(path, kept, ("values", "scores"), "decision.")
    try:
        writer = _format(description["kind"])
        height, width = description["size"]
        size = (int(height), int(width))
        image = settings_of(ImageConfig, description["image"], "image")
        decision = _decision(description["decision"])
        details = dict(description["details"])
        check_details(details)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise InputError(f"{path}: is not understood ({error})") from error
    run = writer.open(folder, threads)
    return ExportedModel(run, image, size, writer.name, decision, details)


def load_model(
    folder: str | Path, threads: int | None = None, device: str = "cpu"
) -> Inspector | ExportedModel:
    """Read an artifact or an export.

    Args:
        threads: How many a runtime may use; PyTorch's are those of the process.
        device: Of an artifact's model; auto is a GPU if there is one. An export runs on the CPU.

    Raises:
        InputError: Begins with the folder or file, which is neither or damaged; or there is no such
            device.
    """
    folder = path_of(folder, "folder")
    return steadily(folder, lambda: _load_model(folder, threads, device))


def _load_model(folder: Path, threads: int | None, device: str) -> Inspector | ExportedModel:
    if not (folder / DESCRIPTION).is_file() or (folder / ARTIFACT).is_file():
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        graphs = [each.file for each in FORMATS.values() if (folder / each.file).is_file()]
        if graphs and not (folder / ARTIFACT).is_file():
            raise InputError(
                f"{folder}: has the graph {graphs[0]}, but no {DESCRIPTION}: copy the whole folder "
                "of the export, or export the model again"
            )
        return load_once(folder, device)
    if device not in ("auto", "cpu"):
        raise InputError(f"device: an exported model runs on the CPU, not on {device}")
    return _load_export(folder, threads)


def compare(
    inspector: Inspector, run: Run, size: tuple[int, int], images: Sequence[Path] = ()
) -> Parity:
    """Return the differences between an inspector and an exported graph of it.

    The threshold of the verdicts is the decision's, or else the F1-optimal one of its test. That
    is the score of one of its images, which rounding would flip; it is lowered by half of what
    scores may differ.

    Args:
        size: (h, w) of the images that the graph takes.
        images: Image files, or none for drawn textures: see `export`.

    Raises:
        InputError: An image cannot be read.
    """
    unit = 1.0 if isinstance(inspector.model, Ensemble) else 0.0

    def both() -> Iterator[tuple[Pair, Pair]]:
        for batch in _batches(inspector, size, images):
            found = inspector.score(batch)
            python = (found.score.float().cpu().numpy(), found.map.float().cpu().numpy())
            yield python, run(batch.numpy())

    return compared(both(), _threshold(inspector), unit)


def _batches(
    inspector: Inspector, size: tuple[int, int], images: Sequence[Path]
) -> Iterator[Tensor]:
    """Prepared images (B, h, w, 3) uint8; those of another size, if any, are left out."""
    image = inspector.image
    files = (read_image(path, image.bits, image.limit) for path in images)
    batch: list[Tensor] = []
    for each in files if images else _textures(max(size)):
        pixels = _prepared(inspector, each)
        if pixels.shape[:2] == size:
            batch.append(torch.from_numpy(pixels))
        if len(batch) == BATCH:
            yield torch.stack(batch)
            batch = []
    if batch:
        yield torch.stack(batch)


def _textures(side: int) -> Iterator[Pixels]:
    """Drawn pictures (S, S, 3) uint8, of which every other one has a defect."""
    for seed, defect in enumerate(TEXTURE_DEFECTS):
        for drawn in (None, defect):
            yield draw_texture(np.random.default_rng(seed), max(side, 64), drawn)[0]


def _prepared(inspector: Inspector, image: Pixels) -> Pixels:
    pixels = inspector.prepare(image)
    if isinstance(pixels, tuple):
        raise InputError(
            "ensemble.members: their images have several sizes, but an exported graph takes one: "
            "give all members the same image.size"
        )
    return pixels


def _size(inspector: Inspector, images: Sequence[Path]) -> tuple[int, int]:
    """Height and width of the images that the model takes."""
    image = inspector.image
    if any(each.tiles is not None for each in inspector.images):
        raise InputError(
            "image.tiles: an exported graph takes one image size, but tiles are for images of any "
            "size: use the model itself, or fit it with image.tiles=null"
        )
    if images:
        first = read_image(images[0], image.bits, image.limit)
        height, width = _prepared(inspector, first).shape[:2]
        return height, width
    side = image.crop or (image.resize if image.stretch else None)
    if side is None:
        raise InputError(
            "image.view=whole gives every image its own size, but an exported graph takes one: "
            "name images (--images) of which the first has the wanted size"
        )
    return side, side


def _threshold(inspector: Inspector) -> float | None:
    if inspector.decision is not None:
        return float(inspector.decision.threshold)
    optimal = inspector.details.get("metrics", {}).get("image_threshold")
    if optimal is None:
        return None
    return float(optimal) - SCORE_LIMIT / 2 * abs(float(optimal))


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise InputError(f"format: there is no {name!r}; there are {', '.join(FORMATS)}")
    return FORMATS[name]


def _description(
    inspector: Inspector, writer: Format, size: tuple[int, int], parity: Parity
) -> dict[str, Any]:
    """Content of export.yaml."""
    decision, libraries = inspector.decision, (writer.runtime, *writer.writers)
    lineage = [*inspector.details.get("lineage", []), step("export", kind=writer.name)]
    details = plain({**inspector.details, "lineage": lineage})
    check_details(details)
    return {
        "format": FORMAT,
        "kind": writer.name,
        "size": list(size),
        "image": plain(inspector.image),
        "decision": None
        if decision is None
        else {"values": plain(decision.values()), "scores": decision.scores.tolist()},
        "parity": plain(parity),
        "exporters": versions(("torch", *libraries)),
        "details": with_digests(details),
    }


def _decision(kept: Mapping[str, Any] | None) -> Any:
    """Inverse of what `_description` keeps of a decision."""
    if kept is None:
        return None
    scores = torch.as_tensor(kept["scores"], dtype=torch.float64).reshape(-1)
    return import_module("patchcore.decision").Decision.of_values(kept["values"], scores)
