"""Pixels of more than 8 bits: their depth, their values, and their scaling to 8 bits."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

from patchcore.data.metadata import warn_of_metadata
from patchcore.data.png import pixels_alone
from patchcore.errors import InputError, Told, printable

ORIENTATION = 0x0112  # Exif tag
TURNS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}
"""Functions from stored to upright pixels, by the value of the Exif tag `ORIENTATION`."""

_told = Told()


def orientation(image: Image.Image) -> int:
    """Return an image's Exif orientation, a key of `TURNS`, or 1 if it is to stay as it is.

    Damaged Exif data are ignored with a warning, which Pillow gives for most of them itself.
    """
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except SyntaxError as error:  # no TIFF header
        warn_of_metadata(f"Corrupt EXIF data: {error}")
        return 1
    return value if isinstance(value, int) else 1


def warn_if_dark(path: Path, top: float) -> None:
    """Warn that pixels which were scaled as 16 bits are almost black, once a folder.

    Args:
        path: Image file.
        top: Highest value of its pixels.
    """
    if not 0 < top < 1 << 12:
        return
    if _told.first(path.parent):
        bits = next(bits for bits in (8, 10, 12) if top < 1 << bits)
        warnings.warn(
            f"{printable(str(path))}: its pixels, read as 16 bits, use only the lowest {bits} bits "
            "and so are almost black, as perhaps in other images of its folder: train the model "
            f"with image.bits={bits}, or the depth of their camera",
            stacklevel=2,
        )


def is_deep(image: ImageFile.ImageFile, path: Path) -> bool:
    """Whether a file has several channels of more than 8 bits, of which Pillow keeps the upper 8.

    To be asked before the pixels are loaded.
    """
    if image.mode not in ("RGB", "RGBA", "LA"):
        return False
    if image.format == "JPEG2000":
        return _jpeg2000_bits(path) > 8
    settings = image.tile[0].args if image.tile else ()
    if image.format == "PPM":  # settings end with the value of white
        return isinstance(settings, tuple) and settings[-1] > 255
    return ";16" in str(settings)


def _jpeg2000_bits(path: Path) -> int:
    """Depth of the deepest channel of a JPEG 2000 file, by the header of its code stream."""
    data = path.read_bytes()
    header = data.find(b"\xff\x4f\xff\x51")  # markers SOC and SIZ
    end = header + 42 + 3 * int.from_bytes(data[header + 40 : header + 42], "big")
    return max((depth & 127 for depth in data[header + 42 : end : 3]), default=0) + 1


def declared_bits(image: Image.Image) -> int | None:
    """Depth of pixels that a TIFF file declares (BitsPerSample), if that is 9 to 15 bits."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return None
    bits = max(np.atleast_1d(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, 1)))
    return int(bits) if 8 < bits < 16 else None


def raw_greys(image: Image.Image, file: Image.Image) -> NDArray[Any]:
    """Pixels of a grey image of more than 8 bits, (H, W), as in the file it was read from.

    Pillow takes unsigned numbers of 32 bits for signed ones.
    """
    values = np.array(image)
    if values.dtype == np.int32 and isinstance(file, TiffImagePlugin.TiffImageFile):
        # One number for each of the file's channels, of which a grey image has one.
        bits = np.atleast_1d(file.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, 1))
        kind = np.atleast_1d(file.tag_v2.get(TiffImagePlugin.SAMPLEFORMAT, 1))
        if bits.tolist() == [32] and kind.tolist() == [1]:
            return values.view(np.uint32)
    return values


def deep_greys(image: Image.Image, file: Image.Image) -> NDArray[Any]:
    """Pixels of a grey image of more than 8 bits, (H, W); transparent ones are 0.

    Args:
        image: The image, upright.
        file: The file that it was read from.
    """
    values = raw_greys(image, file)
    if (key := image.info.get("transparency")) is not None:
        values = np.where(values == key, 0, values)
    return values


def deep_colours(image: Image.Image, path: Path) -> NDArray[np.uint16]:
    """Read all 16 bits of each channel, (H, W, 3 or 4) in the order RGBA, turned upright."""
    import cv2  # here, as few files need it and the import is slow

    data = np.frombuffer(pixels_alone(path.read_bytes()), np.uint8)
    pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    transparent = image.mode in ("RGBA", "LA") and not _is_premultiplied(image)
    if (
        pixels is None
        or pixels.ndim != 3
        or pixels.dtype != np.uint16
        or (transparent and pixels.shape[-1] < 4)
    ):
        raise InputError(f"{path}: its 16-bit colours cannot be read; save as 8 bits or as grey")
    pixels[..., :3] = pixels[..., 2::-1]
    if not transparent:
        pixels = pixels[..., :3]
    if (key := image.info.get("transparency")) is not None:
        alpha = np.where((pixels == key).all(axis=-1), 0, 0xFFFF).astype(np.uint16)
        pixels = np.dstack([pixels, alpha])
    turn = TURNS.get(orientation(image))
    return pixels if turn is None else turn(pixels)


def _is_premultiplied(image: Image.Image) -> bool:
    """Whether the colours of a TIFF file are stored as composited over black."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    return 1 in np.atleast_1d(image.tag_v2.get(TiffImagePlugin.EXTRASAMPLES, 0))


def eight_bit_colours(
    pixels: NDArray[np.uint16], bits: int | None, path: Path
) -> NDArray[np.uint8]:
    """Scale colours and, by their own range if that is larger, alphas (H, W, 3 or 4) to 8 bits."""
    colours, alphas = pixels[..., :3], pixels[..., 3:]
    scaled = eight_bits(colours, bits, path)
    if not alphas.size:
        return scaled
    deeper = bits is not None and alphas.max() >= 1 << bits
    return np.dstack([scaled, eight_bits(alphas, 16 if deeper else bits, path)])


def eight_bits(values: NDArray[Any], bits: int | None, path: Path) -> NDArray[np.uint8]:
    """Scale values from 0–(2^bits − 1), or from 0–1 if `bits` is None, to 0–255, rounded."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError(f"{path}: holds pixels that are NaN or infinite; save the image anew")
    low, high = values.min().item(), values.max().item()
    most = 1 if bits is None else (1 << bits) - 1
    if low < 0 or high > most:
        depth = "fractions" if bits is None else f"{bits} bits"
        remedy = "" if low < 0 else "set image.bits to their depth, or "
        raise InputError(
            f"{path}: its pixels range from {low:g} to {high:g}, and {depth} from 0 to {most}; "
            f"{remedy}save the image as 8 or 16 bits"
        )
    if values.dtype.kind == "f":
        return np.rint(values.astype(np.float64) * (255 / most)).astype(np.uint8)
    return ((values.astype(np.int64) * 255 + most // 2) // most).astype(np.uint8)
