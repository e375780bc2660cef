"""Pictures of single test images at their own resolution, with anomaly map, score and verdict.

The image is on the left, the same under its anomaly map on the right; score, verdict and a legend
are below. The pixel threshold, if there is one, is the middle of the colour scale. If it is
positive, the scale is the same in all pictures of a run.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from patchcore.data.dataset import ImageDataset
from patchcore.data.images import read_pair
from patchcore.data.sample import Sample
from patchcore.inspector import placed
from patchcore.overlays import CONTOUR, THINNEST, contour, picture_path
from patchcore.report import figures
from patchcore.report.cells import harmless
from patchcore.report.folders import PICTURES, Images

if TYPE_CHECKING:
    from patchcore.report.run import AnomalyMap, Run

MASK = (0, 229, 160)  # as `figures.OUTLINE`
GAP = 6  # px between the two images and around the text
NARROWEST = 460  # px, least width of a picture, for the text
LETTERS = 13  # px, height of the letters
Pixels = NDArray[np.uint8]


def write_images(
    run: "Run", dataset: ImageDataset, anomaly_map: "AnomalyMap", folder: Path, which: Images
) -> None:
    """Write pictures of a run's test images to the folder PICTURES, and the file that lists them.

    Verdicts use the threshold from nominal images, or else the F1-optimal threshold.

    Args:
        run: Results of the run.
        dataset: Test images.
        anomaly_map: Function that returns the anomaly map of a test image.
        folder: Folder of the run.
        which: Choice of the images.
    """
    threshold, name = _threshold(run)
    pixel = run.metrics.get("decision_pixel_threshold")
    rows = []
    for i, (sample, score) in enumerate(zip(run.samples, run.scores, strict=True)):
        verdict = verdict_of(score, sample.label, threshold)
        if which is Images.wrong and verdict not in ("missed", "false alarm"):
            continue
        pixels, mask = read_pair(sample.path, sample.mask, dataset.image.bits, dataset.image.limit)
        size = (pixels.shape[0], pixels.shape[1])
        seen = dataset.image.kept(*dataset.image.resized(*size))
        height, width = (side.stop - side.start for side in seen)
        values = placed(anomaly_map(i, (height, width)).numpy(), size, dataset.image)
        kind = "nominal" if sample.label == 0 else f"anomalous, {sample.defect_type}"
        told = [sample.name, f"truth: {kind}; image score {score:.4g}"]
        told[1] += f", {name} {threshold:.4g}: {verdict}" if verdict else ", no threshold"
        picture = drawn(pixels, mask, values, pixel, told)
        path = folder / _place(sample)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path, "PNG", compress_level=3)
        rows.append((sample.name, _place(sample).as_posix()))
    target = folder / "figures" / which.list_name
    target.parent.mkdir(exist_ok=True)
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "picture"])
        writer.writerows([harmless(cell) for cell in row] for row in rows)


def places_of(samples: Sequence[Sample]) -> dict[str, str]:
    """Return {path of an image, as in tables: place of its picture in a run's folder}."""
    return {harmless(sample.name): _place(sample).as_posix() for sample in samples}


def _place(sample: Sample) -> Path:
    """Place of an image's picture in a run's folder; its name is text in UTF-8, as in tables."""
    return picture_path(Path(PICTURES), Path(sample.name), ".png")


def drawn(
    pixels: Pixels,
    mask: NDArray[np.bool_],
    values: NDArray[np.float32],
    threshold: float | None,
    words: Sequence[str],
) -> Pixels:
    """Return the picture of an image: the image, the image under its map, and text below.

    Args:
        pixels: Image (H, W, 3), shown at this size.
        mask: Mask (H, W) of the marked defect, outlined in green on both.
        values: Anomaly map (H, W); NaN where the model did not see the image, which gets no colour.
        threshold: Pixel threshold: the score of the contour and of the middle of the colour scale.
            Without it there is no contour, and the colours span the map's own values.
        words: Lines above the legend; long ones are wrapped.

    Returns:
        Picture (H', W', 3).
    """
    low, high = limits(values, threshold)
    seen = np.isfinite(values)
    heated = pixels.copy()
    heated[seen] = figures.heat(pixels, np.where(seen, values, low), low, high)[seen]
    width = max(1, round(max(mask.shape) / THINNEST))
    if threshold is not None:
        heated[contour(seen & (np.where(seen, values, -np.inf) >= threshold), width)] = CONTOUR
    plain = pixels.copy()
    for one in (plain, heated):
        one[contour(mask, width)] = MASK
    across = max(2 * pixels.shape[1] + GAP, NARROWEST)
    strip = _strip(across, words, (low, high), threshold, bool(mask.any()))
    whole = np.full((pixels.shape[0] + strip.shape[0], across, 3), 255, np.uint8)
    whole[: pixels.shape[0], : pixels.shape[1]] = plain
    whole[: pixels.shape[0], pixels.shape[1] + GAP : 2 * pixels.shape[1] + GAP] = heated
    whole[pixels.shape[0] :] = strip
    return whole


def limits(values: NDArray[np.float32], threshold: float | None) -> tuple[float, float]:
    """Return the scores of the first and last colour.

    For a positive threshold, these are 0.5 and 1.5 times the threshold. For another threshold, they
    span the map with the threshold in the middle. Without a threshold, they span the map.
    """
    if threshold is not None and threshold > 0:
        return threshold / 2, 3 * threshold / 2
    seen = values[np.isfinite(values)]
    low, high = (float(seen.min()), float(seen.max())) if seen.size else (0.0, 1.0)
    if threshold is not None:  # at or below zero
        half = max(high - threshold, threshold - low)
        return threshold - half, threshold + half
    return low, high


def _strip(
    across: int,
    words: Sequence[str],
    ends: tuple[float, float],
    threshold: float | None,
    marked: bool,
) -> Pixels:
    """Strip (h, across, 3) on white: text, the meaning of the outlines and the colour scale."""
    font = ImageFont.truetype(
        str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), LETTERS
    )
    lines = [part for line in words for part in _broken(line, font, across - 2 * GAP)]
    legend = []
    if marked:
        legend.append((MASK, "marked defect"))
    if threshold is not None:
        legend.append((CONTOUR, f"pixels at or above the threshold {threshold:.4g}"))
    step = LETTERS + 5
    height = GAP + step * (len(lines) + len(legend)) + 3 * step
    strip = Image.new("RGB", (across, height), "white")
    draw = ImageDraw.Draw(strip)
    top = GAP
    for line in lines:
        draw.text((GAP, top), line, fill="black", font=font)
        top += step
    for colour, text in legend:
        draw.rectangle((GAP, top + 5, GAP + 22, top + 9), fill=colour)
        draw.text((GAP + 30, top), text, fill="black", font=font)
        top += step
    bar = figures.COLOURS(np.linspace(0, 1, across - 2 * GAP))[None, :, :3] * 255  # (1, w, 3)
    strip.paste(Image.fromarray(np.repeat(bar.astype(np.uint8), 10, 0)), (GAP, top + 4))
    draw = ImageDraw.Draw(strip)
    texts = [(0.0, f"{ends[0]:.4g}"), (1.0, f"{ends[1]:.4g}"), (0.5, "anomaly score of a pixel")]
    if threshold is not None:
        draw.line((across // 2, top + 1, across // 2, top + 17), fill="black", width=2)
        texts[2] = (0.5, f"pixel score; threshold {threshold:.4g}")
    for place, text in texts:
        wide = draw.textlength(text, font)
        left = GAP + place * (across - 2 * GAP) - place * wide
        draw.text((left, top + 18), text, fill="black", font=font)
    return np.array(strip)


def _broken(line: str, font: ImageFont.FreeTypeFont, across: float) -> list[str]:
    """Return a line wrapped to a width: at spaces, and anywhere in words that are too long."""
    found = [""]
    for word in line.split(" "):
        if found[-1] and font.getlength(f"{found[-1]} {word}") > across:
            found.append("")
        elif found[-1]:
            found[-1] += " "
        for letter in word:
            if found[-1] and font.getlength(found[-1] + letter) > across:
                found.append("")
            found[-1] += letter
    return found


def _threshold(run: "Run") -> tuple[float, str]:
    """Return the threshold for verdicts, NaN if there is none, and its name."""
    own = run.metrics.get("decision_threshold")
    if own is not None and np.isfinite(own):
        return own, "threshold"
    return run.metrics.get("image_threshold", float("nan")), "F1-optimal threshold"


def verdict_of(score: float, label: int, threshold: float) -> str:
    """Return `correct`, `false alarm` or `missed`; empty without a threshold."""
    if np.isnan(threshold):
        return ""
    alarm = score >= threshold
    return "correct" if alarm == bool(label) else "false alarm" if alarm else "missed"
