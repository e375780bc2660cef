"""`patchcore predict`: inspect images with a fitted model."""

import argparse
import codecs
import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from patchcore.ahead import Pause
from patchcore.arriving import arriving_images
from patchcore.commands.options import (
    Parser,
    add_model_options,
    asked_thresholds,
    count,
    new_place,
    warn_of_no_verdicts,
)
from patchcore.data.files import Files
from patchcore.data.formats import FORMATS
from patchcore.data.mistaken import masks_by_name
from patchcore.data.named import STDIN, TABLE, endless, named_images
from patchcore.errors import InputError, counted, printable
from patchcore.export import load_model
from patchcore.inspection import BATCH, Broken, Inspection, Thresholds, predict
from patchcore.outputs import check_file, check_folder, check_outside
from patchcore.overlays import MapFormat, Pictures
from patchcore.report.cells import harmless
from patchcore.runfolder import is_result
from patchcore.writing import complete

COLUMNS = ("path", "score", "p_value", "verdict", "regions")
ANOMALIES = 3  # exit code
_NO_TEXT = {"bz2", "gz", "ods", "parquet", "xls", "xlsx", "xz", "zip", "zst"}  # endings of files
PREDICTIONS = Path("predictions")
DESCRIPTION = """Inspect images with a fitted model.

IMAGES are files, folders (with all subfolders), globs, @FILE for a list of paths, one per line,
or - for such a list on stdin. Each image gives one row, in the order of the images:

  path      path of the image, as it was found; in CSV, line breaks, other control characters and
            bytes that are not UTF-8 are written as in \\n, \\x1b and \\xe9, and what a spreadsheet
            would take for a formula begins with an apostrophe. JSON lines have the exact path
  score     raw anomaly score; higher is more anomalous
  p_value   share of nominal images that score at least as high (this image counts as one of
            them), from the model's decision
  verdict   anomalous (at or above the threshold) or nominal
  regions   parts of the image whose map is at or above the pixel threshold, as JSON: box (left,
            top, right, bottom), area and at (x, y of the peak) in px of the image, and peak

Unknown values are empty (null in JSON lines): a model without a decision gives no verdict.
A warning counts files in folders that have no ending of an image, and images named like masks.
Images that cannot be inspected are named on stderr and have no row. But a file or folder in IMAGES
that does not exist ends the command before any work: only lists may name images that are gone."""
EPILOG = """exit codes:
  0   all images were inspected, and none is anomalous (or the model gives no verdicts)
  3   at least one image is anomalous, whether or not all could be inspected
  1   an error, or some images could not be inspected and none of the others is anomalous
  130 interrupted with Ctrl-C"""


def main(arguments: list[str] | None = None) -> None:
    """Entry point: `patchcore predict MODEL IMAGES…`."""
    options = _parser().parse_args(arguments)
    images = [*options.images, *(f"@{file}" for file in options.list)]
    if not images:
        raise InputError("IMAGES: name a file, a folder, a glob, @FILE or - for stdin")
    pictures = _pictures(options)
    if options.output == Path(STDIN):  # as IMAGES, it is the standard stream
        options.output = None
    form = _form(options.format, options.output)
    _check_output(options.output, options.model, images)
    inspector = load_model(options.model, device=options.device)
    thresholds = asked_thresholds(options)
    files = Files(unreadable=True)
    paths: Iterable[Path | Pause] = arriving_images(images, files)
    if not endless(images):
        paths = _all_named(images, files)  # a mistake in any argument is told before any work
    if options.explain and thresholds.over(Thresholds.of(inspector.decision)).pixel is None:
        raise InputError("--explain: the model holds no pixel threshold: add --pixel-threshold")
    warn_of_no_verdicts(inspector, thresholds)
    results = predict(
        inspector,
        paths,
        thresholds=thresholds,
        pictures=pictures,
        explain=options.explain,
        batch=options.batch,
        workers=options.workers,
        stop=options.on_error == "stop",
    )
    with _output(options.output) as file:
        counts = _write(results, WRITERS[form](file), _bar(paths, options.output))
        if not counts.inspected + counts.broken:  # an earlier file stays as it was
            raise InputError("IMAGES: stdin names none")
    if endless(images):  # only now are all folders searched
        files.tell(counted(counts.inspected + counts.broken, "image"))
    print(counts.sentence(), file=sys.stderr)
    sys.exit(counts.code())


def _all_named(images: Sequence[str], files: Files) -> list[Path]:
    """Return all images that the arguments name; what is left out or odd is told in a warning.

    Raises:
        InputError: There are none, or as in `named_images`.
    """
    paths = list(named_images(images, files))
    if not paths:
        raise InputError(f"IMAGES: there are none in {printable(' or '.join(images))}")
    masks = masks_by_name(paths)
    if masks and [*map(str, paths)] != [*images]:  # else nothing but these files is asked for
        told = "inspected as images, though named like masks"
        files.note(f"{told}: {len(masks):,} (such as {masks[0]})")
    files.note_alike(paths)
    files.tell(f"{counted(len(paths), 'image')} to inspect")
    return paths


def _form(asked: str | None, output: Path | None) -> str:
    """Return the format of the results: the one asked for, or that of the file's ending.

    Raises:
        InputError: The two differ, or the ending is that of JSON and no format is asked for, or
            that of files which are no text.
    """
    ending = output.suffix.lower().removeprefix(".") if output is not None else ""
    if ending == "json" and asked != "jsonl":
        raise InputError(
            f"--output: {output} is a name for JSON, and results are CSV or JSON lines: name it "
            "*.jsonl, or add --format jsonl"
        )
    if ending in _NO_TEXT:
        raise InputError(
            f"--output: {output} is a name for {ending}, and results are CSV or JSON lines, as "
            "plain text: name it *.csv or *.jsonl"
        )
    if ending in WRITERS and asked not in (None, ending):
        raise InputError(
            f"--output: {output} is a name for {ending}, and --format is {asked}: change one"
        )
    return asked or (ending if ending in WRITERS else "csv")


def _check_output(output: Path | None, model: Path, images: Sequence[str]) -> None:
    """Refuse an output that would overwrite the model or the images, or cannot be written."""
    if output is None:
        if sys.__stdout__ is None:
            raise InputError("stdout is closed, and the results go there: name a file by --output")
        return
    if output.suffix.lower() in FORMATS:
        raise InputError(f"--output: {output} is an image's name; results are CSV or JSON lines")
    place = Path(_real(output))
    read = [model, *(Path(name.removeprefix("@")) for name in images if not os.path.isdir(name))]
    if any(place.is_relative_to(_real(path)) for path in read):
        raise InputError(f"--output: {output} is read by this command; write to another file")
    if is_result(place):
        raise InputError(f"--output: {output} is of the results of a run; write to another file")
    if place.is_file() and not _replaceable(place):
        raise InputError(
            f"--output: {output} is there already and holds something else than such results: "
            "write to another file, or remove this one"
        )
    check_file(output, "--output")


def _replaceable(file: Path) -> bool:
    """Whether a file is empty or begins like results of this command, or cannot be read."""
    try:
        with file.open("rb") as opened:
            begin = opened.read(100).removeprefix(codecs.BOM_UTF8)
    except OSError:  # `check_file` tells whether it may be written
        return True
    return not begin or TABLE.match(begin) is not None


def _real(path: Path | str) -> str:
    return os.path.realpath(os.path.expanduser(path))


class Counts:
    """Counts of images that were inspected, judged, found anomalous, or could not be inspected."""

    def __init__(self) -> None:
        self.inspected = self.judged = self.anomalous = self.broken = 0

    def sentence(self) -> str:
        """Return all counts in one line."""
        text = f"{self.inspected:,} inspected"
        if self.inspected:
            found = f"{self.anomalous:,} anomalous" if self.judged else "no verdicts: no threshold"
            text = f"{text}, {found}"
        return text + (f"; {self.broken:,} could not be inspected" if self.broken else "")

    def code(self) -> int:
        """Return the exit code: see `EPILOG`."""
        return ANOMALIES if self.anomalous else int(bool(self.broken))


def _parser() -> Parser:
    parser = Parser(
        prog="patchcore predict",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    add_model_options(parser)
    parser.add_argument("images", metavar="IMAGES", nargs="*", help="images to inspect: see above")
    parser.add_argument(
        "--list",
        action="append",
        default=[],
        metavar="FILE",
        help="inspect the images whose paths are in a file",
    )
    parser.add_argument(
        "--format",
        choices=WRITERS,
        help="CSV, or JSON lines (default: by the ending of --output, .csv or .jsonl, else csv)",
    )
    parser.add_argument(
        "--output",
        type=new_place,
        metavar="FILE",
        help="write to this file instead of stdout (-); earlier results in it are replaced",
    )
    parser.add_argument(
        "--maps",
        choices=[each.value for each in MapFormat],
        help="write each anomaly map in its image's own size: as a 16-bit PNG, which records how "
        "to convert it to scores, or as a NumPy file of the scores",
    )
    parser.add_argument(
        "--overlays", action="store_true", help="write each image with its regions outlined"
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="add the nearest nominal patch to each region: its image, row and column in its grid "
        "of patches, and the distance to it; overlays show both, if the artifact keeps crops "
        "(artifact.crops=true)",
    )
    parser.add_argument(
        "--folder",
        type=new_place,
        metavar="DIR",
        help=f"folder for maps and overlays (default: {PREDICTIONS})",
    )
    parser.add_argument(
        "--on-error",
        choices=("skip", "stop"),
        default="skip",
        help="name an image that cannot be inspected and go on, or stop (default: skip)",
    )
    parser.add_argument(
        "--batch",
        type=count,
        default=BATCH,
        metavar="N",
        help="number of images that are scored together (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=count,
        metavar="N",
        help="number of threads that decode (default: the number of processors)",
    )
    return parser


def _pictures(options: argparse.Namespace) -> Pictures | None:
    """Pictures that the options ask for; their folder must not be inspected by the next run."""
    if options.maps is None and not options.overlays:
        if options.folder is not None:
            raise InputError("--folder: nothing is written there: add --maps png or --overlays")
        return None
    folder = options.folder or PREDICTIONS
    check_outside(folder, "--folder")
    check_folder(folder, "--folder")
    inside = Path(_real(folder))
    for image in options.images:
        if os.path.isdir(image) and inside.is_relative_to(_real(image)):
            raise InputError(
                f"--folder: {folder} lies in {image}, so that the next run would inspect its "
                "pictures: name another folder"
            )
    maps = None if options.maps is None else MapFormat(options.maps)
    return Pictures(folder, maps, options.overlays)


@contextmanager
def _output(path: Path | None) -> Iterator[IO[str]]:
    """Yield the file of the results, in UTF-8; without a path, stdout.

    Names that are not UTF-8 are exact in JSON lines only.
    """
    if path is None:
        yield sys.stdout
        return
    with complete(path, "w", encoding="utf-8", newline="") as file:
        yield file


def _bar(paths: Iterable[Any], output: Path | None) -> Any:
    """Progress bar on stderr, unless results go to the terminal or stderr is not a terminal."""
    return tqdm(
        desc="Inspecting",
        total=len(paths) if isinstance(paths, list) else None,
        unit=" images",
        disable=None if output is not None or not sys.stdout.isatty() else True,
        dynamic_ncols=True,
        file=sys.stderr,
    )


def _write(
    results: Iterator[Inspection | Broken], write: Callable[[Inspection], None], bar: Any
) -> Counts:
    counts = Counts()
    with bar:
        for result in results:
            if isinstance(result, Broken):
                counts.broken += 1
                with tqdm.external_write_mode(sys.stderr):
                    print(f"not inspected: {result.reason}", file=sys.stderr)
            else:
                counts.inspected += 1
                counts.judged += result.anomalous is not None
                counts.anomalous += bool(result.anomalous)
                write(result)
            bar.update()
    return counts


def _csv(file: IO[str]) -> Callable[[Inspection], None]:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)

    def write(result: Inspection) -> None:
        values = result.values()
        regions = "" if result.regions is None else json.dumps(values["regions"])
        known = ["" if values[key] is None else values[key] for key in COLUMNS[1:-1]]
        writer.writerow([harmless(printable(values["path"])), *known, regions])
        file.flush()

    return write


def _jsonl(file: IO[str]) -> Callable[[Inspection], None]:
    def write(result: Inspection) -> None:
        file.write(json.dumps(result.values()) + "\n")
        file.flush()

    return write


WRITERS = {"csv": _csv, "jsonl": _jsonl}
