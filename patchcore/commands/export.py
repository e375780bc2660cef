"""`patchcore export`: convert a saved model for another runtime, and compare the two."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from patchcore.artifact import load
from patchcore.commands.options import Parser, count, new_place, place
from patchcore.data.files import Files, find_folder
from patchcore.errors import InputError, counted, printable
from patchcore.export import FORMATS, export
from patchcore.export.model import DESCRIPTION, FORMAT
from patchcore.measuring import kept_data
from patchcore.outputs import check_outside
from patchcore.sealed import check_target, read_description
from patchcore.settings import plain

MOST = 32  # training images to compare on, at most, unless --images names others


def main() -> None:
    """Entry point: `patchcore export MODEL`."""
    parser = Parser(
        prog="patchcore export",
        description="Convert a model that patchcore train artifact=true has saved into a graph for "
        "another runtime. The graph takes pixels and returns the score and the anomaly map. It is "
        "run in that runtime and compared with the model, and saved only if both agree.",
    )
    parser.add_argument("model", type=place, metavar="MODEL", help="folder of an artifact")
    parser.add_argument(
        "--format",
        choices=[*FORMATS],
        default="onnx",
        help="format of the graph; method=padim needs torch (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=new_place,
        metavar="DIR",
        help="new folder to write to (default: MODEL-FORMAT, "
        "where an earlier export of the same model is replaced)",
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="compare the export with the model on all images in this folder (default: on up to "
        f"{MOST} training images, if they still exist)",
    )
    parser.add_argument(
        "--threads", type=count, metavar="N", help="number of threads of the runtime"
    )
    options = parser.parse_args()
    model = options.model.absolute()
    folder = options.output or model.with_name(f"{model.name}-{options.format}")
    earlier = options.output is None and (folder / DESCRIPTION).is_file()
    if not earlier:
        _check_new(folder, options.output is not None)
    check_target(folder, DESCRIPTION, replace=earlier)
    inspector = load(options.model)
    if earlier:
        _check_earlier(folder, inspector.details)
    if options.images is not None:
        files = Files()
        images = files.images(find_folder(options.images, "--images"), recursive=True)
        source = f"images in {printable(options.images)}"
        if not images:
            others = f"; {passed}" if (passed := files.passed_over()) else ""
            raise InputError(f"--images: there are no images in {options.images}{others}")
        files.tell(f"{counted(len(images), 'image')} to compare on")
    else:
        images = training_images(inspector.details)
        source = "training images" if images else "generated textures: no training image was found"
    found = export(inspector, folder, options.format, images, options.threads, replace=earlier)
    print(f"compared with the model on {source}, through {FORMATS[options.format].runtime}:")
    print(found)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(printable(f"{options.format}: {folder} ({size / 1e6:.1f} MB)"))


def _check_new(folder: Path, asked: bool) -> None:
    """Refuse a folder that holds anything, or lies inside a model."""
    if os.path.isdir(folder) and os.listdir(folder):
        way = "name another folder" if asked else "remove it, or give --output"
        raise InputError(f"{'--output: ' * asked}{folder} is there already: {way}")
    check_outside(folder, "--output")


def _check_earlier(folder: Path, details: Mapping[str, Any]) -> None:
    """Refuse an export of another model; one of this model, as it is or was, is to be replaced."""
    try:
        exported = read_description(folder / DESCRIPTION, FORMAT)["details"]["lineage"][:-1]
        same = exported == plain(details["lineage"])[: len(exported)]
    except (InputError, KeyError, TypeError):
        same = False
    if not (same and exported):
        raise InputError(
            f"{folder} is there already, and is no export of this model: remove it, or give "
            "--output"
        )


def training_images(details: Mapping[str, Any]) -> list[Path]:
    """Return up to `MOST` of the images that a model was fitted to; empty if they are gone."""
    try:
        data = kept_data(details)
        train = [] if data is None else data.read().train
    except (InputError, OmegaConfBaseException):
        return []
    return [sample.path for sample in train[:: -(-len(train) // MOST) or 1]]
