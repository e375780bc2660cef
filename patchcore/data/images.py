"""Image files to arrays: any common mode comes out as 8-bit RGB, any mask as booleans."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from patchcore.data.sample import Masks
from patchcore.errors import InputError


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image as RGB, (H, W, 3) uint8.

    Palette images are expanded, CMYK is converted, transparency is composited over black (what a
    transparent pixel hides never counts), 16-bit values are divided by 257 whatever the image's own
    range is, and an Exif orientation is applied. The three channels of a grey image are read-only
    views of one plane: whoever works on planes needs to do so only once.

    Raises:
        InputError: the file is missing, truncated, no image, or has floating-point pixels.
    """
    image = _decode(path)
    if image.mode.startswith("I"):
        image = Image.fromarray(_eight_bits(image, path))
    elif image.mode == "F":
        raise InputError(f"{path}: floating-point pixels have no fixed range; save as 8 or 16 bits")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    if image.mode == "L":
        plane = np.array(image)  # (H, W)
        return np.broadcast_to(plane[..., None], (*plane.shape, 3))
    return np.array(image.convert("RGB"))


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read a ground-truth mask, (H, W) bool, True where a pixel is brighter than 127 of 255.

    Raises:
        InputError: the file is unreadable, or marks something but nothing above 127 (such as
            masks of zeros and ones).
    """
    image = _decode(path)
    if image.mode.startswith("I"):
        image = Image.fromarray(_eight_bits(image, path))
    grey = np.array(image.convert("L"))
    if 0 < grey.max() <= 127:
        raise InputError(
            f"{path}: the brightest pixel of this mask is {grey.max()} of 255, so nothing would be "
            "marked; save masks with 0 for nominal and 255 for anomalous pixels"
        )
    return grey > 127


def read_truth(mask: Path | Masks) -> NDArray[np.bool_]:
    """Read ground truth of any kind, (H, W) bool: what one of its files marks is True.

    Raises:
        InputError: as `read_mask`, or the files differ in size.
    """
    if isinstance(mask, Path):
        return read_mask(mask)
    first, *others = mask.paths
    marked = _read_region(first, mask)  # (H, W)
    for path in others:
        region = _read_region(path, mask)
        if region.shape != marked.shape:
            raise InputError(
                f"{path}: this mask is {region.shape[1]}×{region.shape[0]} pixels, {first} is "
                f"{marked.shape[1]}×{marked.shape[0]}; masks of one image must agree"
            )
        marked = marked | region
    return marked


def open_array(path: Path, dimensions: int) -> NDArray[np.generic]:
    """An array saved by NumPy, read where it is looked at.

    Raises:
        InputError: there is none, or it has another number of dimensions.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such array of masks") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as an array ({error}); replace it") from error
    if not isinstance(array, np.ndarray) or array.ndim != dimensions:
        raise InputError(f"{path}: the array should have {dimensions} dimensions; replace it")
    return array


def _read_region(path: Path, mask: Masks) -> NDArray[np.bool_]:
    if mask.frame is not None:
        return np.asarray(open_array(path, 3)[mask.frame] != 0)  # (H, W) of (frames, H, W)
    if not mask.labels:
        return read_mask(path)
    image = _decode(path)
    bands = [band != "A" for band in image.getbands()]
    values = np.array(image).reshape(image.height, image.width, len(bands))
    return np.asarray(values[..., bands].any(axis=-1))  # (H, W, bands) → (H, W)


def _decode(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)  # loads the pixels
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such image") from None
    except Exception as error:  # decoders raise many kinds, all of which mean a bad file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path}: cannot be read as an image ({reason}); replace or remove the file"
        ) from error


def _eight_bits(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise InputError(f"{path}: 32-bit pixels have no fixed range; save as 8 or 16 bits")
    return ((values + 128) // 257).astype(np.uint8)  # 65535 → 255, rounded
