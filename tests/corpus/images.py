"""Images, masks, folders and names."""

import gzip
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patchcore.data.files import Files
from patchcore.data.folder import FolderConfig
from patchcore.data.images import open_array, read_image, read_mask, read_pair
from patchcore.data.mvtec import MVTecConfig
from patchcore.data.realiad import RealIADConfig
from patchcore.data.visa import COLUMNS, TABLE, VisAConfig
from patchcore.report.cells import harmless, restored
from tests.corpus.case import REFUSED, RIGHT, WARNED, case
from tests.images import write_image, write_mask, write_mvtec

NOISE = np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)  # (H, W, 3)
UNREADABLE = "cannot be read as an image"


def encoded(pixels: NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    check = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)


def png_of(width: int, height: int) -> bytes:
    """A PNG that says to have this size, and has one row."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(1 + 3 * 12))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body


def frames(count: int) -> bytes:
    file = io.BytesIO()
    first, *others = [Image.new("RGB", (8, 8), (99 * i, 0, 99)) for i in range(count)]
    first.save(file, "GIF", save_all=True, append_images=others)
    return file.getvalue()


def written(
    kind: str,
    title: str,
    content: Callable[[], bytes],
    check: Callable[[Path], Any],
    outcome: str = RIGHT,
    words: str = "",
    name: str = "a.png",
) -> None:
    """Add a case of one file."""

    @case(kind, title, outcome, f"{name}: {words}" if outcome == REFUSED else words)
    def act(folder: Path) -> Any:
        (folder / name).write_bytes(content())
        return check(folder / name)


def same(expected: NDArray[Any]) -> Callable[[Path], bool]:
    return lambda path: np.array_equal(read_image(path), expected)


def sized(height: int, width: int) -> Callable[[Path], bool]:
    return lambda path: read_image(path).shape == (height, width, 3)


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(NOISE, exif=exif)


def transparent() -> bytes:
    alpha = np.full((10, 12, 1), 255, np.uint8)
    alpha[0] = 0
    return encoded(np.concatenate([NOISE, alpha], axis=-1))


def hidden(path: Path) -> bool:
    pixels = read_image(path)
    return not pixels[0].any() and np.array_equal(pixels[1:], NOISE[1:])


GREY = NOISE[..., 0]
DEEP = GREY.astype(np.uint16) * 257
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
HEIC = b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(40)
BROKEN: list[tuple[str, Callable[[], bytes], str, str]] = [
    ("cut in half", lambda: encoded(NOISE)[:200], UNREADABLE, "a.png"),
    ("empty", bytes, UNREADABLE, "a.png"),
    ("nothing but zeros", lambda: bytes(1000), UNREADABLE, "a.png"),
    ("text", lambda: b"a picture of a nut", UNREADABLE, "a.png"),
    ("a page of a proxy", lambda: b"<!DOCTYPE html><html>Log in</html>", UNREADABLE, "a.jpg"),
    ("a drawing (SVG)", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", UNREADABLE, "a.png"),
    ("PostScript", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "", "a.png"),
    ("compressed once more", lambda: gzip.compress(encoded(NOISE)), UNREADABLE, "a.png"),
    ("a pointer of Git LFS", lambda: POINTER, "is a Git LFS pointer", "a.png"),
    ("a photo of a phone (HEIC)", lambda: HEIC, "cannot be read as an image (it is HEIC", "a.jpg"),
    ("JPEG without its end", lambda: encoded(NOISE, "JPEG")[:-40], UNREADABLE, "a.jpg"),
    ("only a header", lambda: encoded(NOISE)[:33], UNREADABLE, "a.png"),
    ("header of 3,600 megapixels", lambda: png_of(60_000, 60_000), "has 60000×60000", "a.png"),
    ("three frames", lambda: frames(3), "holds 3 frames", "a.gif"),
    (
        "fractions with NaN",
        lambda: encoded(np.full((4, 4), np.nan, np.float32), "TIFF"),
        "holds pixels that are NaN",
        "a.tif",
    ),
    (
        "negative numbers",
        lambda: encoded(np.full((4, 4), -5, np.int32), "TIFF"),
        "its pixels range from -5",
        "a.tif",
    ),
    ("only a mark", lambda: b"P6\n", UNREADABLE, "a.ppm"),
    ("a size that is no number", lambda: b"P6\nx y\n255\n", UNREADABLE, "a.ppm"),
    ("no pixels at all", lambda: b"P6\n0 0\n255\n", UNREADABLE, "a.ppm"),
]
for title, content, words, name in BROKEN:
    written("images", title, content, read_image, REFUSED, words, name)
written("images", "JPEG named PNG", lambda: encoded(NOISE, "JPEG"), sized(10, 12))
written("images", "grey", lambda: encoded(GREY), same(np.stack([GREY] * 3, -1)))
written("images", "grey of 16 bits", lambda: encoded(DEEP), same(np.stack([GREY] * 3, -1)))
written(
    *("images", "12 bits in 16", lambda: encoded(DEEP // 16), sized(10, 12)),
    *(WARNED, "use only the lowest 12 bits"),
)
written("images", "one pixel", lambda: encoded(NOISE[:1, :1]), same(NOISE[:1, :1]))
written(
    "images", "a line of pixels", lambda: encoded(np.zeros((1, 5000, 3), np.uint8)), sized(1, 5000)
)
written("images", "turned by Exif", rotated, same(np.rot90(NOISE, -1)))
written("images", "transparent pixels", transparent, hidden)
written(
    "images",
    "one bit a pixel",
    lambda: encoded(GREY > 99),
    same(np.stack([(GREY > 99) * 255] * 3, -1)),
)
written("images", "text behind the picture", lambda: encoded(NOISE) + b"more", same(NOISE))


@case("images", "a folder with the name of a file", REFUSED, UNREADABLE)
def _(folder: Path) -> Any:
    (folder / "a.png").mkdir()
    return read_image(folder / "a.png")


@case("images", "missing", REFUSED, "a.png: there is no such image")
def _(folder: Path) -> Any:
    return read_image(folder / "a.png")


# --- masks ------------------------------------------------------------------------------------

MARKED = np.zeros((10, 12), dtype=bool)
MARKED[2:6, 3:9] = True


def shows(expected: NDArray[np.bool_]) -> Callable[[Path], bool]:
    return lambda path: np.array_equal(read_mask(path), expected)


def levels() -> bytes:
    values = MARKED.astype(np.uint8)
    values[2:4] *= 3
    return encoded(values)


def ramp() -> bytes:
    return encoded(np.tile(np.linspace(0, 255, 50).astype(np.uint8), (40, 1)))


def clear() -> bytes:
    colours = np.zeros((10, 12, 4), np.uint8)
    colours[..., 0] = MARKED * 255
    return encoded(colours)


RED = np.stack([MARKED * 255, MARKED * 0, MARKED * 0], -1).astype(np.uint8)
WHITE = MARKED.astype(np.uint8) * 255
WRONG: list[tuple[str, Callable[[], bytes], str]] = [
    ("a ramp of greys", ramp, "this mask has areas of blurred grey"),
    ("no black", lambda: encoded(np.where(MARKED, 255, 100).astype(np.uint8)), "no pixel of this"),
    ("all transparent", clear, "every pixel of this mask is transparent"),
    ("cut in half", lambda: encoded(NOISE)[:200], UNREADABLE),
    ("text", lambda: b"0 0 1\n", UNREADABLE),
    ("three frames", lambda: frames(3), "holds 3 frames"),
]
for title, content, words in WRONG:
    written("masks", title, content, read_mask, REFUSED, words)
written("masks", "numbers 0, 1 and 3", levels, shows(MARKED))
written("masks", "red on black", lambda: encoded(RED), shows(MARKED))
written("masks", "16 bits", lambda: encoded(MARKED.astype(np.uint16) * 65535), shows(MARKED))
written("masks", "one bit a pixel", lambda: encoded(MARKED), shows(MARKED))
written(
    "masks",
    "all white",
    lambda: encoded(np.full((9, 9), 255, np.uint8)),
    shows(np.ones((9, 9), bool)),
)
written(
    "masks", "all black", lambda: encoded(np.zeros((9, 9), np.uint8)), shows(np.zeros((9, 9), bool))
)


@case("masks", "of another size than the image", REFUSED, "they must be of one size")
def _(folder: Path) -> Any:
    write_image(folder / "a.png", (12, 10))
    write_mask(folder / "mask.png", (10, 12))
    return read_pair(folder / "a.png", folder / "mask.png")


def saved(*arrays: Any, pickled: bool = False) -> bytes:
    file = io.BytesIO()
    if len(arrays) == 1:
        np.save(file, arrays[0], allow_pickle=pickled)
    else:
        np.savez(file, *arrays)
    return file.getvalue()


def stack(path: Path) -> Any:
    return open_array(path, 3)


ARRAYS: list[tuple[str, Callable[[], bytes], str]] = [
    ("array of two dimensions", lambda: saved(MARKED), "the array should have 3 dimensions"),
    ("array of objects", lambda: saved(np.array([{}]), pickled=True), "cannot be read as an array"),
    ("array with half a header", lambda: saved(MARKED)[:30], "cannot be read as an array"),
    (
        "array whose header is no Python",
        lambda: b"\x93NUMPY\x01\x00" + struct.pack("<H", 8) + b"{'a': (\n" + bytes(99),
        "cannot be read as an array",
    ),
    ("several arrays in one file", lambda: saved(MARKED, MARKED), "the array should have 3"),
    (
        "several arrays, cut in half",
        lambda: saved(MARKED, MARKED)[:150],
        "cannot be read as an arr",
    ),
    ("array cut in half", lambda: saved(np.ones((9, 9, 9)))[:500], "cannot be read as an array"),
]
for title, content, words in ARRAYS:
    written("masks", title, content, stack, REFUSED, words, "01_001.npy")


# --- folders ----------------------------------------------------------------------------------


def parts(folder: Path, nominal: int = 6, anomalous: int = 2, masks: bool = False) -> Path:
    for i in range(nominal):
        write_image(folder / f"nominal/{i}.png")
    for i in range(anomalous):
        write_image(folder / f"anomalous/hole/{i}.png")
        if masks:
            write_mask(folder / f"masks/hole/{i}.png")
    return folder


def listed(folder: Path, **settings: Any) -> tuple[int, int]:
    """Numbers of training and test images."""
    settings = {"anomalous": "anomalous", **settings}
    split = FolderConfig(root=str(folder), **settings).read()
    return len(split.train), len(split.test)


@case("folders", "nominal images missing", REFUSED, "data.nominal: there is no folder")
def _(folder: Path) -> Any:
    return listed(parts(folder, nominal=0))


@case("folders", "a file in place of a folder", REFUSED, "is a file; name the folder that holds it")
def _(folder: Path) -> Any:
    return listed(parts(folder), nominal="nominal/0.png")


@case("folders", "an empty name", REFUSED, "data.nominal is empty: name a folder")
def _(folder: Path) -> Any:
    return listed(parts(folder), nominal=" ")


@case("folders", "a name with a null byte", REFUSED, "holds a null byte")
def _(folder: Path) -> Any:
    return listed(parts(folder), nominal="nominal\0")


@case("folders", "nothing but other formats", REFUSED, "1 .xcf, 1 without extension")
def _(folder: Path) -> Any:
    parts(folder, nominal=0)
    (folder / "nominal").mkdir()
    for name in ("a.xcf", "readme"):
        (folder / "nominal" / name).write_text("x")
    return listed(folder)


@case("folders", "other files beside the images", WARNED, "1 file passed over: 1 .csv")
def _(folder: Path) -> Any:
    parts(folder)
    (folder / "nominal/labels.csv").write_text("x")
    return listed(folder) == (5, 3)


@case("folders", "what systems leave behind")
def _(folder: Path) -> Any:
    parts(folder)
    for name in ("Thumbs.db", ".DS_Store", "._0.png", "desktop.ini"):
        (folder / "nominal" / name).write_text("x")
    return listed(folder) == (5, 3)


@case("folders", "anomalous images inside the nominal", REFUSED, "do not contain each other")
def _(folder: Path) -> Any:
    parts(folder, anomalous=0)
    write_image(folder / "nominal/bad/0.png")
    return listed(folder, anomalous="nominal/bad")


@case("folders", "good images among the anomalous", REFUSED, "named like a folder of nominal")
def _(folder: Path) -> Any:
    parts(folder)
    write_image(folder / "anomalous/good/0.png")
    return listed(folder)


@case("folders", "a link to nothing", REFUSED, "mend the link or remove it")
def _(folder: Path) -> Any:
    parts(folder)
    (folder / "nominal/9.png").symlink_to("gone.png")
    return listed(folder)


@case("folders", "a loop of links", WARNED, "reached by another way too and counted once")
def _(folder: Path) -> Any:
    parts(folder)
    (folder / "nominal/again").symlink_to(".")
    return listed(folder) == (5, 3)


@case("folders", "a pipe with the name of an image", WARNED, "1 file passed over: 1 pipe or device")
def _(folder: Path) -> Any:
    parts(folder)
    os.mkfifo(folder / "nominal/9.png")
    return listed(folder) == (5, 3)


@case("folders", "one nominal image alone", REFUSED, "leaves none for training")
def _(folder: Path) -> Any:
    return listed(parts(folder, nominal=1))


@case("folders", "a mask without its image", REFUSED, "this mask has no images of its name")
def _(folder: Path) -> Any:
    parts(folder, masks=True)
    write_mask(folder / "masks/hole/7.png")
    return listed(folder, masks="masks")


@case("folders", "two masks of an image", REFUSED, "has the mask")
def _(folder: Path) -> Any:
    parts(folder, masks=True)
    write_mask(folder / "masks/hole/0_mask.png")
    return listed(folder, masks="masks")


@case("folders", "masks among the images", REFUSED, "move the masks to a folder of their own")
def _(folder: Path) -> Any:
    parts(folder)
    for i in range(2):
        write_mask(folder / f"anomalous/hole/{i}_mask.png")
    return listed(folder)


@case("folders", "a category that is misspelt", REFUSED, "has no category 'nutt'; it has nut")
def _(folder: Path) -> Any:
    write_mvtec(folder)
    return MVTecConfig(root=str(folder), category="nutt").read()


@case("folders", "a category without test images", REFUSED, "nut/test: no such folder")
def _(folder: Path) -> Any:
    write_image(folder / "nut/train/good/0.png")
    return MVTecConfig(root=str(folder), category="nut").read()


def table(folder: Path, text: str) -> Any:
    """Read VisA by a table."""
    (folder / TABLE).parent.mkdir()
    (folder / TABLE).write_text(text)
    (folder / "pcb1").mkdir()
    return VisAConfig(root=str(folder), category="pcb1").read()


@case("folders", "a table of other columns", REFUSED, "1cls.csv: the columns should be object")
def _(folder: Path) -> Any:
    return table(folder, "image,label\na.png,1\n")


@case("folders", "an empty table", REFUSED, "1cls.csv: the columns should be object")
def _(folder: Path) -> Any:
    return table(folder, "")


@case("folders", "a table with a quote that never ends", REFUSED, "1cls.csv: cannot be read")
def _(folder: Path) -> Any:
    return table(folder, ",".join(COLUMNS) + '\npcb1,"train' + "\nx" * 100_000)


@case("folders", "a table of brackets", REFUSED, "nut.json: cannot be read as JSON")
def _(folder: Path) -> Any:
    (folder / "realiad_jsons").mkdir()
    (folder / "realiad_jsons/nut.json").write_text("[" * 100_000)
    (folder / "realiad_1024/nut").mkdir(parents=True)
    return RealIADConfig(root=str(folder), category="nut").read()


# --- names ------------------------------------------------------------------------------------

NAMES = {
    "not in UTF-8": os.fsdecode(b"caf\xe9.png"),
    "with a line break": "a\nb.png",
    "like a formula": "=HYPERLINK(1).png",
    "like an option": "--help.png",
    "with quotes": 'it\'s "x".png',
    "like a pattern": "a[0]*?.png",
    "with spaces at both ends": " a .png",
    "of 255 bytes": "x" * 251 + ".png",
    "in several alphabets": "日本 grün Ω.PNG",
}


def named(title: str, name: str) -> None:
    @case("names", title)
    def act(folder: Path) -> Any:
        path = write_image(folder / name)
        found = Files().images(folder)
        told = harmless(name)
        return (
            found == [path]
            and read_image(path).any()
            and restored(told) == name
            and (told[0] not in "=+-@\t\r")
        )


for title, name in NAMES.items():
    named(title, name)


@case("names", "two that differ in case alone")
def _(folder: Path) -> Any:
    paths = [write_image(folder / name) for name in ("A.png", "a.png")]
    return Files().images(folder) == paths


@case("names", "one image in two formats")
def _(folder: Path) -> Any:
    for kind in ("png", "jpg"):
        write_image(folder / f"a.{kind}")
    return [path.name for path in Files().images(folder)] == ["a.jpg", "a.png"]


assert zipfile  # of arrays
