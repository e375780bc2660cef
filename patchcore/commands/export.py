"""`patchcore export`: a kept model as a graph for another runtime, compared with it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from patchcore.artifact import load
from patchcore.commands.options import Parser, count
from patchcore.data.files import Files, find_folder
from patchcore.errors import InputError, printable
from patchcore.export import FORMATS, export
from patchcore.measuring import kept_data

MOST = 32  # training images that are compared where none are named


def main() -> None:
    """Parse, export, print."""
    parser = Parser(
        prog="patchcore export",
        description="Write a model that patchcore train artifact=true has saved as a graph for "
        "another runtime. The graph takes pixels and gives score and anomaly map. It is run "
        "in that runtime, compared with the model, and saved only if both agree.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder of an artifact")
    parser.add_argument("--format", choices=[*FORMATS], default="onnx", help="default: %(default)s")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder to write to (default: MODEL-FORMAT)"
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="images on which the export is compared with the model, all of them (default: "
        "training images, if they still exist)",
    )
    parser.add_argument(
        "--threads", type=count, metavar="N", help="number of threads of the runtime"
    )
    options = parser.parse_args()
    inspector = load(options.model)
    if options.images is not None:
        images = Files().images(find_folder(options.images, "--images"), recursive=True)
        source = f"images in {options.images}"
        if not images:
            raise InputError(f"--images: there are no images in {options.images}")
    else:
        images = training_images(inspector.details)
        source = "training images" if images else "drawn textures, as no training images are there"
    model = options.model.absolute()
    folder = options.output or model.with_name(f"{model.name}-{options.format}")
    found = export(inspector, folder, options.format, images, options.threads)
    print(f"compared with the model on {source}, through {FORMATS[options.format].runtime}:")
    print(found)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(printable(f"{options.format}: {folder} ({size / 1e6:.1f} MB)"))


def training_images(details: Mapping[str, Any]) -> list[Path]:
    """Return some of the images that a model was fitted to, if they are still there."""
    try:
        data = kept_data(details)
        train = [] if data is None else data.read().train
    except (InputError, OmegaConfBaseException):
        return []
    return [sample.path for sample in train[:: -(-len(train) // MOST) or 1]]
