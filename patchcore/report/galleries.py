"""Galleries of the runs, shrunk until all of them fit into the page."""

import base64
import io
import math
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from patchcore.report.blocks import Block, Gallery, Note, Thumb, short
from patchcore.report.folders import own_file
from patchcore.report.reading import RunFolder
from patchcore.report.table import Table
from patchcore.report.words import number, title

GALLERY_BYTES = 4_500_000  # of all galleries together, in base64 as in the page
SMALLEST_GALLERY = 40_000  # bytes; galleries are left out rather than made smaller
MOST_PIXELS = 40_000_000  # larger gallery files are not opened
LARGEST, SMALLEST = 1260, 320  # width of a gallery in the page, pixels


def galleries(table: Table, pictures: dict[RunFolder, str]) -> list[Block]:
    """Return the thumbnails of the runs' galleries, with a note."""
    thumbs = []
    for i, point in enumerate(table.points):
        for run in point.runs:
            if run not in pictures:
                continue
            category = run.category if len(point.categories) > 1 else ""
            place = ", ".join(filter(None, [category, table.seed(run)]))
            name = f"#{i + 1} {short(point, table.shown)}" + (f" · {place}" if place else "")
            values = [
                f"{title(key)} {number(key, run.metrics[key])}"
                for key in table.main_metrics[:2]
                if key in run.metrics
            ]
            note = " · ".join([*values, table.name(run)])
            thumbs.append(Thumb(anchor(table, run), pictures[run], name, note))
    if not thumbs:
        return []
    drawn = sum(_gallery(run) is not None for point in table.points for run in point.finished)
    note = "The nominal images with the highest scores, and the anomalous images with the lowest "
    note += "and the highest scores, with their maps. A click enlarges a gallery; ← and → show the "
    note += "previous and the next."
    if drawn > len(thumbs):
        note += f" {drawn - len(thumbs)} more would make the page too large; each is in its run’s "
        note += "folder as figures/gallery.png."
    return [Note(note), Gallery(thumbs)]


def anchor(table: Table, run: RunFolder) -> str:
    """Return the anchor of a run's gallery in the page."""
    return f"gallery-{table.number}-{table.runs.index(run)}"


def pictures(table: Table, budget: int) -> dict[RunFolder, str]:
    """Return {run: its gallery as a data URI}, the best points' first, within `budget` bytes."""
    paths = [(run, _gallery(run)) for point in table.points for run in point.finished]
    drawn = [(run, path) for run, path in paths if path][: budget // SMALLEST_GALLERY]
    found = {}
    for i, (run, path) in enumerate(tqdm(drawn, "Shrinking galleries", disable=None)):
        uri = shrunk(path, budget // (len(drawn) - i))
        if uri:
            found[run] = uri
            budget -= len(uri)
    return found


def shrunk(path: Path, most: int, widest: int = LARGEST) -> str:
    """Return a PNG file as a JPEG data URI, shrunk until it fits; empty if that is impossible.

    Args:
        path: File of the picture.
        most: Largest length of the URI, in characters.
        widest: Largest width, in pixels.
    """
    try:
        with Image.open(path, formats=["PNG"]) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                return ""
            original = Image.new("RGB", opened.size, "white")
            layer = opened.convert("RGBA")
            original.paste(layer, mask=layer)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return ""
    width = min(widest, original.width)
    while width >= min(SMALLEST, original.width):
        height = max(1, round(original.height * width / original.width))
        file = io.BytesIO()
        image = original.resize((width, height), Image.Resampling.BICUBIC)
        image.save(file, "JPEG", quality=76, progressive=True)
        uri = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
        if len(uri) <= most:
            return uri
        width = int(width * min(0.9, 0.97 * math.sqrt(most / len(uri))))
    return ""


def _gallery(run: RunFolder) -> Path | None:
    return own_file(run.folder, "figures/gallery.png")
