"""Reading of image files: images of any common mode become 8-bit RGB, masks become booleans."""

import errno
import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError

from patchcore.data.completeness import check_complete
from patchcore.data.depths import (
    declared_bits,
    deep_colours,
    deep_greys,
    eight_bit_colours,
    eight_bits,
    is_deep,
    orientation,
    raw_greys,
    warn_if_dark,
)
from patchcore.data.formats import CAMERA, FORMATS
from patchcore.data.frames import frames
from patchcore.data.marks import marked_pixels, marked_values, opaque_marks
from patchcore.data.metadata import naming
from patchcore.data.png import plain_png, scale_transparent_grey
from patchcore.data.sample import Masks
from patchcore.data.tiff import is_white_zero, prepare, stored_size
from patchcore.data.transparency import is_transparent, over_black
from patchcore.errors import InputError, above, broken_link, missing, unreadable

LIMIT = 500.0  # most megapixels (10^6 pixels) of an image file, by default
LOSSY = ("AVIF", "JPEG", "JPEG2000", "MPO", "WEBP")  # formats that may change the values of pixels
HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
"""Brands by which a file says that it holds pictures in HEIC."""
P = ParamSpec("P")
T = TypeVar("T")
_OPENING = threading.Lock()


def _named(read: Callable[Concatenate[Path, P], T]) -> Callable[Concatenate[Path, P], T]:
    """Make a reader name the file in warnings, and in an InputError if memory runs out."""

    @wraps(read)
    def reader(path: Path, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(path, *args, **kwargs)
        except MemoryError:
            with _open(path, math.inf) as file:
                width, height = file.size
            raise InputError(
                f"{path}: there is too little memory for its {width}×{height} pixels; lower "
                "data.batch_size, or save the image smaller"
            ) from None

    return naming(reader)


@_named
def read_image(path: Path, bits: int | None = None, limit: float = LIMIT) -> NDArray[np.uint8]:
    """Return the pixels of `decode_image`, (H, W, 3) uint8; see `rgb_pixels`.

    Raises:
        InputError: As `decode_image` does.
    """
    return rgb_pixels(decode_image(path, bits, limit))


def rgb_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels (H, W, 3) uint8 of an image of mode RGB or L.

    The three channels of a grey image are read-only views of one plane.
    """
    pixels = np.array(image)  # (H, W, 3) or (H, W)
    return pixels if pixels.ndim == 3 else np.broadcast_to(pixels[..., None], (*pixels.shape, 3))


@_named
def decode_image(path: Path, bits: int | None = None, limit: float = LIMIT) -> Image.Image:
    """Decode an image to 8 bits, as Pillow's image of mode RGB, or L if it is grey.

    Palette images are expanded; CMYK, YCbCr and LAB are converted; transparent images are
    composited over black, so that the hidden colour of a transparent pixel never counts; and an
    Exif orientation is applied. The content of a file tells its format, not its extension, except
    for TGA, which has no signature.

    Pixels of more than 8 bits are scaled by a fixed range, whatever the image shows: 0 to
    2^`bits` − 1 becomes 0 to 255. Without `bits`, the depth is the one that a TIFF file declares if
    that is 9 to 15 bits, else 16 bits; floating-point pixels then range from 0 to 1. A warning is
    given, once a folder, if 16-bit pixels use only the lowest 12 bits.

    Args:
        path: Image file.
        bits: Depth of pixels with more than 8 bits, 1 to 32; None: see above.
        limit: Most megapixels that are decoded.

    Raises:
        InputError: the file is missing, truncated, no image, larger than `limit` or than the
            memory, or holds several frames or values outside the range.
    """
    with _open(path, limit) as file:
        depth = bits or declared_bits(file) or (None if file.mode == "F" else 16)
        deep = is_deep(file, path)
        image = _upright(file, path)
        if deep and (depth != 16 or "transparency" in image.info):
            image = Image.fromarray(eight_bit_colours(deep_colours(file, path), depth, path))
    if image.mode == "F" or image.mode.startswith("I"):
        values = deep_greys(image, file)
        if depth == 16:
            warn_if_dark(path, values.max().item())
        image = Image.fromarray(eight_bits(values, depth, path))
    elif deep and depth == 16:
        warn_if_dark(path, _deepest_if_dark(file, image, path))
    if image.mode == "1":
        image = image.convert("L")
    if is_transparent(image):
        image = over_black(image, path)
    return image if image.mode == "L" else _rgb(image)


@_named
def bits_in_use(path: Path, limit: float = LIMIT) -> int | None:
    """Return the number of bits, at least 8, that the largest value of an image's pixels takes.

    With this depth `read_image` refuses no image for its range. None stands for pixels of 8 bits,
    fractions, and values that are not finite.

    Raises:
        InputError: As `read_image` does for a file that it cannot decode.
    """
    with _open(path, limit) as file:
        deep = is_deep(file, path)
        image = _upright(file, path)
        if deep:
            top = deep_colours(file, path)[..., :3].max().item()
        elif image.mode == "F" or image.mode.startswith("I"):
            top = deep_greys(image, file).max().item()
        else:
            return None
    if not math.isfinite(top) or (image.mode == "F" and top <= 1):
        return None
    return max(8, math.ceil(top).bit_length())


@_named
def image_size(path: Path, limit: float = LIMIT) -> tuple[int, int]:
    """Return the height and width in pixels that `read_image` would give, mostly from the header.

    Raises:
        InputError: As `read_image` does, as far as what was read tells.
    """
    with _open(path, limit) as file:
        with _decoding(path):  # Exif data of a PNG file may follow its pixels
            turned = orientation(file) >= 5  # rows become columns
        width, height = stored_size(file)
        return (width, height) if turned else (height, width)


@_named
def read_mask(path: Path, limit: float = LIMIT) -> NDArray[np.bool_]:
    """Read a ground-truth mask, (H, W) bool, by the rule of `marked_pixels`.

    Transparent pixels are background; see `opaque_marks`. An Exif orientation is applied.

    Raises:
        InputError: the file is unreadable, larger than `limit` megapixels, holds several frames,
            or does not make clear which pixels are marked.
    """
    with _open(path, limit) as file:
        lossy = file.format in LOSSY or file.info.get("compression") == "jpeg"  # in a TIFF
        deep = is_deep(file, path)
        image = _upright(file, path)
        if deep:
            pixels: NDArray[Any] = deep_colours(file, path)
    if image.mode == "P":
        _reject_hidden_labels(image, path)
    if image.mode == "1":
        image = image.convert("L")  # Pillow's own booleans are bytes of 255
    if not deep:
        pixels = _mask_pixels(image, file)
    if pixels.ndim == 3 and pixels.shape[-1] == 4:
        return opaque_marks(pixels, str(path), lossy)
    return marked_pixels(pixels, str(path), lossy)


def read_pair(
    path: Path, mask: Path | Masks | None, bits: int | None = None, limit: float = LIMIT
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return what `decode_pair` does, but the image as pixels, (H, W, 3) uint8."""
    image, marked = decode_pair(path, mask, bits, limit)
    return rgb_pixels(image), marked


def decode_pair(
    path: Path, mask: Path | Masks | None, bits: int | None = None, limit: float = LIMIT
) -> tuple[Image.Image, NDArray[np.bool_]]:
    """Decode an image, and its ground truth (H, W) bool, which is all False without a mask.

    Raises:
        InputError: as in `decode_image` and `read_truth`, or the two differ in size.
    """
    image = decode_image(path, bits, limit)
    if mask is None:
        return image, np.zeros((image.height, image.width), dtype=bool)
    marked = read_truth(mask, limit)
    if marked.shape != (image.height, image.width):
        raise InputError(
            f"{mask}: the mask is {marked.shape[1]}×{marked.shape[0]} pixels, its image {path} is "
            f"{image.width}×{image.height}; they must be of one size"
        )
    return image, marked


def read_truth(mask: Path | Masks, limit: float = LIMIT) -> NDArray[np.bool_]:
    """Read ground truth of any kind, (H, W) bool: True where any of its files marks the pixel.

    Raises:
        InputError: as in `read_mask` and `open_array`, or the files differ in size.
    """
    if isinstance(mask, Path):
        return read_mask(mask, limit)
    first, *others = mask.paths
    marked = _read_region(first, mask, limit)  # (H, W)
    for path in others:
        region = _read_region(path, mask, limit)
        if region.shape != marked.shape:
            raise InputError(
                f"{path}: this mask is {region.shape[1]}×{region.shape[0]} pixels, {first} is "
                f"{marked.shape[1]}×{marked.shape[0]}; masks of one image must agree"
            )
        marked = marked | region
    return marked


def open_array(path: Path, dimensions: int) -> NDArray[np.generic]:
    """Open an array file of NumPy (.npy) as a read-only memory map.

    Raises:
        InputError: the file is missing or unreadable, has another number of dimensions, or holds
            no numbers.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise missing(path, "array of masks") from None
    except Exception as error:  # headers are Python literals or archives, so errors are of any kind
        why = " ".join(str(error).split()) or type(error).__name__
        raise unreadable(path, f"{path}: cannot be read as an array ({why}); replace it") from error
    if not isinstance(array, np.ndarray) or array.ndim != dimensions:
        raise InputError(f"{path}: the array should have {dimensions} dimensions; replace it")
    if array.dtype.kind not in "biuf":
        raise InputError(f"{path}: the array should hold numbers, not {array.dtype}; replace it")
    return array


def _mask_pixels(image: Image.Image, file: Image.Image) -> NDArray[Any]:
    """Return the pixels of a mask, (H, W), (H, W, 3) or, if some may be transparent, (H, W, 4)."""
    if image.mode == "F" or image.mode.startswith("I"):
        values = raw_greys(image, file)  # (H, W)
        if (key := image.info.get("transparency")) is None:
            return values
        alpha = np.where(values == key, 0, np.iinfo(values.dtype).max).astype(values.dtype)
        return np.stack([values, values, values, alpha], axis=-1)
    if is_transparent(image):
        return np.array(image.convert("RGBA"))
    return np.array(image if image.mode == "L" else _rgb(image))


@naming
def _read_region(path: Path, mask: Masks, limit: float) -> NDArray[np.bool_]:
    if mask.frame is not None:
        return marked_values(open_array(path, 3)[mask.frame], str(path))  # of (frames, H, W)
    if not mask.labels:
        return read_mask(path, limit)
    with _open(path, limit) as file:
        deep = is_deep(file, path)
        image = _upright(file, path)
        if deep:
            return np.asarray(deep_colours(file, path)[..., :3].any(axis=-1))
    bands = [band != "A" for band in image.getbands()]
    values = np.array(image).reshape(image.height, image.width, len(bands))
    return np.asarray(values[..., bands].any(axis=-1))  # (H, W, bands) → (H, W)


@cache
def _decoders(extension: str) -> list[str]:
    """Pillow's decoders to try; that of TGA, which has no signature, only for its extensions."""
    Image.init()
    names = sorted(set(FORMATS.values()) & Image.OPEN.keys())
    return [name for name in names if name != "TGA" or FORMATS.get(extension) == "TGA"]


def _open(path: Path, limit: float) -> ImageFile.ImageFile:
    """Open an image file and read its header, but not its pixels."""
    decoders = _decoders(path.suffix.lower())
    if not os.path.isfile(path) and os.path.exists(path):  # a pipe would never end
        raise _unreadable(path, OSError("it is a folder, a pipe or a device"))
    try:
        with _OPENING:  # Pillow's own limit is lower, and applies to the whole process
            usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = Image.open(path, formats=decoders)
            finally:
                Image.MAX_IMAGE_PIXELS = usual
        scale_transparent_grey(image)
        megapixels = image.width * image.height / 1e6
        if megapixels <= limit:
            number = frames(image, path)
            prepare(image, path)
    except InputError:
        image.close()
        raise
    except FileNotFoundError:
        raise missing(path, "image") from None
    except Exception as error:  # decoders raise errors of any kind for a bad file
        raise _unreadable(path, error) from error
    if megapixels > limit:
        image.close()
        raise InputError(
            f"{path}: has {image.width}×{image.height} pixels, {above(megapixels, limit)} "
            f"megapixels; at most {limit:.12g} are decoded. Raise image.limit if that is intended, "
            "which a model takes from its training"
        )
    if number > 1:
        image.close()
        raise InputError(f"{path}: holds {number} frames; save each to a file of its own")
    return image


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Refuse a file that Pillow fails to decode, with errors of any kind."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error


def _upright(file: ImageFile.ImageFile, path: Path) -> Image.Image:
    """Decode the pixels, apply the Exif orientation, and let 0 be black."""
    with _decoding(path):
        if (plain := plain_png(file, path)) is None:
            file.load()
            check_complete(file, path)
        upright = image = plain or file
        if orientation(image) != 1:  # or exif_transpose would copy it
            upright = ImageOps.exif_transpose(image)
    if not is_white_zero(image):
        return upright
    if image.mode == "F":
        raise InputError(
            f"{path}: 0 is white in this file (PhotometricInterpretation 0), which has no meaning "
            "for floating-point pixels; save it with 0 as black"
        )
    return Image.fromarray(0xFFFF - np.asarray(upright, dtype=np.uint16))


def _unreadable(path: Path, error: Exception) -> InputError:
    if isinstance(error, PermissionError):
        return InputError(f"{path}: cannot be read ({error.strerror}); change its permissions")
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return broken_link(path, os.strerror(errno.ELOOP))
    text = " ".join(str(error).split()) or type(error).__name__
    reason, known = getattr(error, "strerror", None) or text, False
    if isinstance(error, UnidentifiedImageError):
        reason, known = _unidentified(path)
    advice = "replace or remove it"
    if "MAX_TEXT_" in text:  # Pillow's limits of what a PNG file may unpack to, beside its pixels
        reason, advice = "it holds more text than is read", "save it again without its metadata"
    if known:  # other programs may open it
        advice = f"save it as PNG or JPEG, grey or RGB, or {advice}"
    return unreadable(path, f"{path}: cannot be read as an image ({reason}); {advice}")


def _unidentified(path: Path) -> tuple[str, bool]:
    """Reason why none of Pillow's decoders takes a file, and whether it begins like an image."""
    decoders = _decoders(path.suffix.lower())
    start = b""
    with suppress(OSError), open(path, "rb") as file:
        start = file.read(256)
    if not start:
        return "the file is empty", False
    if _is_heic(start):
        return "it is HEIC, which is not supported", True
    for name in decoders if len(start) >= 16 else []:
        decoder, begins = Image.OPEN[name]
        if begins is None or begins(start[:16]) is not True:  # as many as Pillow looks at
            continue
        try:
            with open(path, "rb") as file:
                decoder(file, "")
        except Exception as error:  # of any kind
            words = " ".join(str(error).split()) or type(error).__name__
            kind = f"{'an' if name == 'AVIF' else 'a'} {name} file"
            told = "has a pixel format that is not supported, or is damaged"
            return f"it begins like {kind}, but {told}: {words}", True
    if path.suffix.lower() in CAMERA:
        return f"its format, {path.suffix.lower()}, is not supported", True
    return f"it is none of {', '.join(decoders)}", False


def _is_heic(start: bytes) -> bool:
    """Whether a file that begins so is HEIC, by its first or, if that is general, other brands."""
    size = min(int.from_bytes(start[:4], "big"), len(start))
    others = {start[place : place + 4] for place in range(16, size, 4)}
    first = start[8:12]
    general = first in (b"mif1", b"msf1")  # for AVIF, too
    return start[4:8] == b"ftyp" and (first in HEIC or (general and not HEIC.isdisjoint(others)))


def _deepest_if_dark(file: Image.Image, image: Image.Image, path: Path) -> int:
    """Highest value of deep colours, which `image` holds in 8 bits; 0 if they are not dark."""
    top = np.asarray(image.convert("RGB")).max().item()
    if not 0 < top <= 1 << 4:  # rounded up, perhaps
        return 0
    deepest = int(deep_colours(file, path)[..., :3].max())
    # Colours of a file that declares less than 16 bits have been scaled.
    return deepest if abs(deepest / 257 - top) <= 1 else 0


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode != "LAB":
        return image if image.mode == "RGB" else image.convert("RGB")
    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    return cast(Image.Image, converted)  # only a change in place returns None


def _reject_hidden_labels(image: Image.Image, path: Path) -> None:
    """Refuse a mask whose palette shows several of its numbers as black."""
    used = np.flatnonzero(image.histogram())
    colours = np.array(image.getpalette("RGB")).reshape(-1, 3)
    if (~colours[used[used < len(colours)]].any(axis=-1)).sum() > 1:
        raise InputError(
            f"{path}: the palette of this mask shows several of its numbers as black, so it is not "
            "clear which are marked; save it with 0 for nominal and 255 for anomalous pixels"
        )
