"""Readers of files from elsewhere, given bytes that are nearly right: `python -m tests.fuzz`.

Each target reads a file that a few edits have changed. Any answer is right but an error that is no
`InputError`: that would end a command with a traceback. `tests/test_fuzz.py` runs some of each;
here they are run for as long as one likes.
"""

import argparse
import io
import json
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save as packed

from patchcore import sealed
from patchcore._weights import load_file
from patchcore.artifact_files import check
from patchcore.cache import Store
from patchcore.commands.overrides import as_typed, check_overrides
from patchcore.data.fetch import unpack
from patchcore.data.images import open_array, read_image, read_mask
from patchcore.data.named import named_images
from patchcore.data.realiad import RealIADConfig
from patchcore.data.visa import COLUMNS, TABLE, VisAConfig
from patchcore.errors import InputError
from patchcore.overlays import SCALE, read_map
from patchcore.report.reading import read_overrides, read_run
from patchcore.resume import Finished, damage
from tests.corpus.kept import run_folder
from tests.corpus.lists import tarred, zipped

MEGAPIXELS = 0.5  # larger ones would only take time
NOISE = np.random.default_rng(0).integers(0, 256, (9, 11, 4), dtype=np.uint8)
Edit = tuple[int, int, bytes]
"""Action (0 to 5), place and bytes: see `edited`."""


def edited(data: bytes, edits: Sequence[Edit]) -> bytes:
    """Return bytes after edits: replaced, inserted, cut out, repeated, cut off or inverted."""
    found = bytearray(data)
    for kind, place, more in edits:
        at = place % (len(found) + 1)
        match kind:
            case 0:
                found[at : at + len(more)] = more
            case 1:
                found[at:at] = more
            case 2:
                del found[at : at + 1 + len(more)]
            case 3:
                found[at:at] = found[at : at + 64] * (1 + len(more))
            case 4:
                del found[at:]
            case 5 if at < len(found):
                found[at] ^= 1 << (place % 8)
    return bytes(found)


def drawn(chance: random.Random) -> list[Edit]:
    """Return a few edits by chance."""
    values = (
        b"\x00",
        b"\xff",
        b"\xff" * 4,
        b"\x7f\xff\xff\xff",
        b"\x00" * 8,
        b"[",
        b'"',
        b"{",
        b"1e9",
    )
    return [
        (
            chance.randrange(6) if chance.random() < 0.97 else 4,
            chance.randrange(1 << 16),
            chance.choice(values)
            if chance.random() < 0.5
            else chance.randbytes(chance.randrange(6)),
        )
        for _ in range(1 + int(chance.expovariate(0.6)))
    ]


@dataclass(frozen=True)
class Target:
    """A reader, and files that it takes.

    Attributes:
        seeds: Contents of sound files, by name.
        read: Reads a file in a folder of its own, which it may fill.
    """

    seeds: Callable[[], dict[str, bytes]]
    read: Callable[[Path], Any]


def encoded(pixels: Any, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def images() -> dict[str, bytes]:
    """Small images of every format and many modes."""
    exif = Image.Exif()
    exif[0x0112] = 6
    colours, grey = NOISE[..., :3], NOISE[..., 0]
    deep = grey.astype(np.uint16) * 200
    found = {
        "a.png": encoded(NOISE, "PNG", exif=exif),
        "b.png": encoded(deep, "PNG"),
        "c.png": encoded(grey > 99, "PNG"),
        "a.jpg": encoded(colours, "JPEG", exif=exif),
        "a.tif": encoded(colours, "TIFF"),
        "b.tif": encoded(deep, "TIFF"),
        "c.tif": encoded(grey.astype(np.float32) / 255, "TIFF"),
        "d.tif": encoded(colours, "TIFF", compression="tiff_lzw"),
        "a.bmp": encoded(colours, "BMP"),
        "a.webp": encoded(NOISE, "WEBP", lossless=True),
        "a.ppm": encoded(colours, "PPM"),
        "a.tga": encoded(NOISE, "TGA"),
        "a.jp2": encoded(colours, "JPEG2000"),
    }
    file = io.BytesIO()
    palette = Image.fromarray(grey).convert("P")
    palette.save(file, "PNG", transparency=bytes(range(9)))
    found["p.png"] = file.getvalue()
    file = io.BytesIO()
    palette.save(file, "GIF", transparency=3)
    return {**found, "a.gif": file.getvalue()}


def arrays() -> dict[str, bytes]:
    file, several = io.BytesIO(), io.BytesIO()
    np.save(file, np.ones((2, 3, 4), np.uint8))
    np.savez(several, np.ones(3))
    return {"a.npy": file.getvalue(), "b.npy": several.getvalue()}


def maps() -> dict[str, bytes]:
    text = PngInfo()
    text.add_text(SCALE, json.dumps({"offset": 1.0, "step": 0.5}))
    return {"a.png": encoded(NOISE[..., 0].astype(np.uint16), "PNG", pnginfo=text), **arrays()}


def entries() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        store.put("maps/a", {"0": torch.ones(1, 2, 3), "1": torch.ones(1, 2, 3).bfloat16()})
        return {"a.tensors": (store.root / "maps/a.tensors").read_bytes()}


def read_entry(path: Path) -> Any:
    store = Store(path.parent)
    (store.root / "maps").mkdir(parents=True)
    path.rename(store.root / "maps/a.tensors")
    return store.get("maps/a")


def descriptions() -> dict[str, bytes]:
    content = {
        "format": 1,
        "members": [{"settings": {}}],
        "files": {"x": {"bytes": 1, "sha256": ""}},
    }
    return {"artifact.yaml": yaml.safe_dump(content).encode()}


def read_description(path: Path) -> Any:
    path.write_bytes(sealed._with_digest(path.read_bytes()))
    return check(path.parent)


RUN = ("metrics.json", "scores.csv", "provenance.json", "config.yaml", "fingerprint.txt")


def run_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        run = run_folder(Path(folder))
        found = {name: (run / name).read_bytes() for name in RUN}
    return {**found, "overrides.yaml": b"- seed=1\n- coreset.ratio=0.1\n"}


def read_results(path: Path) -> Any:
    """Read a run one of whose files is this one; none of its numbers counts if it is damaged."""
    run = run_folder(path.parent)
    target = run / path.name
    if path.name == "overrides.yaml":
        target = run / ".hydra" / path.name
        target.parent.mkdir()
    path.rename(target)
    found = read_run(run)
    assert found.finished or not found.metrics or "settings" in found.problem
    assert "\n" not in found.problem
    read_overrides(run)
    Finished(path.parent / "runs").find("a1")
    return damage(run)


def read_archive(path: Path) -> Any:
    root = path.parent / "data"
    root.mkdir()
    unpack(path, root / "x", ("train",), root)
    outside = [each for each in path.parent.iterdir() if each.name not in (path.name, "data")]
    assert outside == []


def read_weights(path: Path) -> Any:
    with torch.no_grad():
        load_file(torch.nn.Linear(2, 2), path)


def states() -> dict[str, bytes]:
    state = {"weight": torch.eye(2), "bias": torch.zeros(2)}
    file = io.BytesIO()
    torch.save(state, file)
    return {"a.safetensors": packed(state), "a.pth": file.getvalue()}


def read_table(path: Path) -> Any:
    root = path.parent
    (root / "nut").mkdir()
    if path.suffix == ".json":
        (root / "realiad_jsons").mkdir()
        path.rename(root / "realiad_jsons/nut.json")
        (root / "realiad_1024/nut").mkdir(parents=True)
        return RealIADConfig(root=str(root), category="nut").read()
    (root / TABLE).parent.mkdir()
    path.rename(root / TABLE)
    return VisAConfig(root=str(root), category="nut").read()


def tables() -> dict[str, bytes]:
    rows = f"{','.join(COLUMNS)}\nnut,train,normal,a.png,\nnut,test,anomaly,b.png,m.png\n"
    entry = {"image_path": "a.png", "mask_path": None, "anomaly_class": "OK"}
    return {
        "a.csv": rows.encode(),
        "a.json": json.dumps({"train": [entry], "test": [entry]}).encode(),
    }


def typed() -> dict[str, bytes]:
    texts = ("coreset.ratio=0.1,0.2", "data.root='a b'", "+a.b={c:[1,2]}", "patch.size=choice(1,3)")
    return {str(i): text.encode() for i, text in enumerate(texts)}


def read_typed(path: Path) -> Any:
    return check_overrides(as_typed([path.read_bytes().decode("utf-8", "surrogateescape")]))


TARGETS = {
    "images": Target(images, lambda path: read_image(path, limit=MEGAPIXELS)),
    "masks": Target(images, lambda path: read_mask(path, limit=MEGAPIXELS)),
    "arrays": Target(arrays, lambda path: open_array(path, 3)),
    "maps": Target(maps, read_map),
    "cache entries": Target(entries, read_entry),
    "artifacts": Target(descriptions, read_description),
    "run folders": Target(run_files, read_results),
    "lists": Target(
        lambda: {"a.txt": b"a.png\r\nb.png\n"}, lambda p: list(named_images([f"@{p}"]))
    ),
    "tables": Target(tables, read_table),
    "archives": Target(
        lambda: {"a": zipped(), "b": tarred(), "c": tarred(mode="w:gz")}, read_archive
    ),
    "weights": Target(states, read_weights),
    "settings": Target(typed, read_typed),
}


def attempt(target: Target, name: str, data: bytes, folder: Path) -> str | None:
    """Read a file; return the traceback of what is no `InputError`, or None."""
    place = folder / "case"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    path = place / name
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            target.read(path)
        except InputError as error:
            return None if "\n" not in str(error) else f"several lines: {error}"
        except Exception:
            return traceback.format_exc()
    return None


def hunt(names: Sequence[str], seconds: float, seed: int) -> tuple[Counter[str], dict[str, str]]:
    """Read files by chance for so long; return executions by target, and findings."""
    chance, counts, found = random.Random(seed), Counter[str](), dict[str, str]()
    seeds = {name: list(TARGETS[name].seeds().items()) for name in names}
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            for name in names:
                file, content = chance.choice(seeds[name])
                data = edited(content, drawn(chance))
                counts[name] += 1
                if told := attempt(TARGETS[name], file, data, Path(folder)):
                    key = f"{name}: {told.strip().splitlines()[-1][:120]}"
                    if key not in found:
                        found[key] = f"{file} {data!r}\n{told}"
                        print(f"FINDING {key}\n{found[key]}", flush=True)
    return counts, found


def main(arguments: Sequence[str] | None = None) -> dict[str, str]:
    """Fuzz as the command line asks, and print the number of executions; return the findings."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    names = options.targets or list(TARGETS)
    counts, found = hunt(names, options.seconds, options.seed)
    told = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    print(f"{counts.total():,} executions ({told}), {len(found)} findings")
    return found


if __name__ == "__main__":
    sys.exit(bool(main()))
