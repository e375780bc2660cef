"""`patchcore export`: convert a saved model for another runtime, and compare the two."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from patchcore.artifact import load
from patchcore.commands.options import Parser, count, place
from patchcore.data.files import Files, find_folder
from patchcore.errors import InputError, printable
from patchcore.export import FORMATS, export
from patchcore.export.model import DESCRIPTION
from patchcore.measuring import kept_data
from patchcore.outputs import check_outside
from patchcore.sealed import check_target

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
        "--output", type=place, metavar="DIR", help="folder to write to (default: MODEL-FORMAT)"
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
    check_outside(folder, "--output")
    check_target(folder, DESCRIPTION)
    inspector = load(options.model)
    if options.images is not None:
        images = Files().images(find_folder(options.images, "--images"), recursive=True)
        source = f"images in {printable(options.images)}"
        if not images:
            raise InputError(f"--images: there are no images in {options.images}")
    else:
        images = training_images(inspector.details)
        source = "training images" if images else "generated textures: no training image was found"
    found = export(inspector, folder, options.format, images, options.threads)
    print(f"compared with the model on {source}, through {FORMATS[options.format].runtime}:")
    print(found)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(printable(f"{options.format}: {folder} ({size / 1e6:.1f} MB)"))


def training_images(details: Mapping[str, Any]) -> list[Path]:
    """Return up to `MOST` of the images that a model was fitted to; empty if they are gone."""
    try:
        data = kept_data(details)
        train = [] if data is None else data.read().train
    except (InputError, OmegaConfBaseException):
        return []
    return [sample.path for sample in train[:: -(-len(train) // MOST) or 1]]
