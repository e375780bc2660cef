"""Pictures in an image file that holds several: frames, pages and previews."""

from pathlib import Path
from typing import Any

from PIL import Image

from patchcore.errors import InputError

NEW_SUBFILE_TYPE = 254  # TIFF tag; its lowest bit marks a preview


def frames(image: Image.Image, path: Path) -> int:
    """Return the number of pictures in a file, without previews and an MPO's other views.

    A preview is a page of a TIFF file that is marked as one, or has the first page's aspect ratio
    and at most half its width.

    Args:
        image: The file, opened; its first page is chosen in the end.
        path: Path of the file, for the message.

    Raises:
        InputError: The first page, which would be read, may itself be a preview.
    """
    count = 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
    if count == 1 or image.format != "TIFF":
        return count
    (width, height), whole = image.size, 0
    for number in range(count):
        image.seek(number)
        if image.width * image.height > width * height:
            raise InputError(
                f"{path}: its page {number + 1} of {image.width}×{image.height} pixels is larger "
                f"than the first of {width}×{height}, so it is not clear which is the image; save "
                "each to a file of its own"
            )
        whole += number == 0 or not _is_preview(image, width, height)
    image.seek(0)
    return whole


def _is_preview(page: Any, width: int, height: int) -> bool:
    """Whether a page of a TIFF file is a smaller version of the first, of this size."""
    if page.tag_v2.get(NEW_SUBFILE_TYPE, 0) & 1:
        return True
    half = 2 * page.width <= width + 1 and 2 * page.height <= height + 1  # rounded up, perhaps
    same = abs(page.width * height - page.height * width) <= max(width, height)
    return bool(half and same)
