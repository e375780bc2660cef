"""`patchcore extend`: add nominal images to a model, or take some out, without fitting again."""

from pathlib import Path

from patchcore.commands.options import Parser, new_place, place
from patchcore.data.files import Files, expanded
from patchcore.data.mistaken import reject_defects, reject_masks
from patchcore.errors import InputError, counted, missing, printable
from patchcore.extend import change_artifact


def main(arguments: list[str] | None = None) -> None:
    """Entry point: `patchcore extend MODEL IMAGES…`."""
    parser = Parser(
        prog="patchcore extend",
        description="Add nominal images to a model without fitting it again, or remove some.",
        epilog="Removing an image also removes the model's threshold, because its false-alarm rate "
        "would no longer hold: use predict --threshold, or train again. So does adding one to a "
        "model with method=spade, method=padim, method.radius or method.retrieval.",
    )
    parser.add_argument("model", type=place, metavar="MODEL", help="folder of an artifact")
    parser.add_argument(
        "images", nargs="*", metavar="IMAGES", help="nominal images, or folders of them"
    )
    parser.add_argument(
        "--remove",
        nargs="+",
        default=[],
        metavar="PATH",
        help="images to remove: their paths as the model knows them, or the ends of these paths",
    )
    parser.add_argument(
        "--count",
        type=int,
        metavar="N",
        help="number of patches to add (default: the same share of all patches that the memory "
        "bank keeps already)",
    )
    parser.add_argument(
        "--output",
        type=new_place,
        metavar="DIR",
        help="new folder to write to (default: MODEL is replaced)",
    )
    parser.add_argument(
        "--device", default="cpu", help="device to compute on (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.count is not None and options.count < 1:
        raise InputError(f"--count must be at least 1, got {options.count}")
    if options.count is not None and not options.images:
        raise InputError("--count has no effect without images to add")
    inspector, changes = change_artifact(
        options.model,
        image_files(options.images),
        options.remove,
        count=options.count,
        output=options.output,
        device=options.device,
    )
    for change in changes:
        print(f"{change.step}: {change.images}, {change.patches:+,} in the memory")
        for name in change.removed:
            print(printable(f"  {name}"))
    print(f"memory: {inspector.model.memory_patches:,}")
    if inspector.decision is None:
        why = [f", because {change.dropped}" for change in changes if change.dropped]
        print("".join(["threshold: none", *why]))
    else:
        decision = inspector.decision
        print(
            f"threshold: {decision.threshold:.6g}, from {counted(decision.images, 'nominal image')}"
        )
    print(printable(f"model: {options.output or options.model}"))


def image_files(names: list[str]) -> list[Path]:
    """Return the image files that `names` stand for: files, and folders with all subfolders.

    Raises:
        InputError: A name does not exist, a folder holds no images, or masks or a folder beside
            `good` lie among the images.
    """
    files, found = Files(), []
    together: dict[Path, list[Path]] = {}  # images by the folder that was named, or is theirs
    for name in names:
        if not name:
            raise InputError("IMAGES is empty: name an image or a folder (. is the current one)")
        path = expanded(name, "IMAGES")
        if not path.exists():
            raise missing(path, "file or folder")
        images = files.images(path, recursive=True, once=True) if path.is_dir() else [path]
        if not images:
            raise InputError(f"{printable(name)}: holds no images")
        together.setdefault(path if path.is_dir() else path.parent, []).extend(images)
        found += images
    for folder, images in together.items():
        reject_masks(images, folder, "name images alone, or move the masks to another folder")
        reject_defects(images, folder, "name each folder of nominal images")
    if names:
        files.tell(f"{counted(len(found), 'image')} to add")
    return found
