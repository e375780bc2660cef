"""Generated images: without a download, and hard enough that settings make a difference."""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from patchcore.data.files import Files, expanded
from patchcore.data.layout import read_category
from patchcore.data.mvtec import LAYOUT
from patchcore.data.sample import DataConfig, Split
from patchcore.data.synthesis import (
    OBJECT_DEFECTS,
    TEXTURE_DEFECTS,
    Draw,
    draw_object,
    draw_texture,
)
from patchcore.data.view import View
from patchcore.errors import InputError, counted, lost_link, to_write
from patchcore.machine import named_by
from patchcore.settings import Choice, setting

VERSION = 1  # of the drawings; increase it when they change, so that old files are not read
SUBTLE = 0.2  # strength of the least visible defects, as a share of the most obvious ones


class GeneratedCategory(Choice):
    """Subject of the drawings: a woven fabric, or a steel wheel with screws."""

    texture = "texture"
    object = "object"


@dataclass(kw_only=True)
class GeneratedConfig(DataConfig):
    """Drawn images with defects and exact masks, fully determined by the settings.

    The images are written once, in the layout of MVTec AD, and read from disk after that.
    """

    VIEW: ClassVar = View.crop
    WRITES: ClassVar = True

    root: str | None = setting(
        None,
        "folder to write the images to; null: patchcore/generated in the user's cache",
        effect=False,
    )
    category: GeneratedCategory = setting(
        GeneratedCategory.texture, "woven fabric, or a steel wheel with screws"
    )
    seed: int = setting(0, "seed for drawing the images", low=0)
    size: int = setting(256, "side of the images", unit="px", low=64)
    train_images: int = setting(60, "number of nominal images to train on", unit="images", low=1)
    nominal_images: int = setting(24, "number of nominal images to test on", unit="images", low=1)
    anomalous_images: int = setting(
        36,
        "number of anomalous images to test on; the kinds of defects alternate",
        unit="images",
        low=1,
    )
    strength: float = setting(
        1.0, "visibility of the most obvious defects; 0: nearly invisible", low=0, high=1
    )

    def folder(self) -> Path:
        """Return the folder where the images of these settings are or will be written."""
        settings = {
            "version": VERSION,
            "category": self.category.name,
            "seed": self.seed,
            "size": self.size,
            "images": [self.train_images, self.nominal_images, self.anomalous_images],
            "strength": float(self.strength),
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        if self.root is not None:
            return expanded(to_write(self.root, "data.root"), "data.root") / digest
        try:
            named = to_write(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "XDG_CACHE_HOME")
            cache = Path(named).expanduser()
        except RuntimeError:  # the user has no home folder, as in some containers
            cache = Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"
        return cache / "patchcore" / "generated" / digest

    def _read(self, files: Files) -> Split:
        """Draw and write the images unless they exist, and return their split.

        Raises:
            InputError: the folder cannot be written, or images or masks in it have been removed or
                added.
        """
        folder = self.folder()
        try:
            if not folder.is_dir():
                self._write(folder)
        except OSError as error:
            told = lost_link(folder) or (
                f"cannot write to {folder} ({error.strerror}); set another folder"
            )
            raise InputError(f"data.root: {told}{named_by(folder)}") from error
        place = folder / self.category.name
        parts = ("train/good", "test", "ground_truth")
        if lacking := [part for part in parts if not (place / part).is_dir()]:
            raise InputError(
                f"{place}: lacks {', '.join(lacking)}; remove {folder}, and all are drawn anew"
            )
        split = read_category(files, place, LAYOUT)
        self._check(split, place)
        return split

    def _check(self, split: Split, folder: Path) -> None:
        """Raise InputError unless the split has as many images and masks as the settings say."""
        anomalous = [sample for sample in split.test if sample.label]
        for kind, found, drawn in (
            ("training image", len(split.train), self.train_images),
            ("nominal test image", len(split.test) - len(anomalous), self.nominal_images),
            ("anomalous image", len(anomalous), self.anomalous_images),
            ("mask", sum(x.mask is not None for x in anomalous), self.anomalous_images),
        ):
            if found != drawn:
                were = "was" if drawn == 1 else "were"
                raise InputError(
                    f"{folder}: holds {counted(found, kind)}, but {drawn} {were} drawn; remove "
                    f"{folder.parent}, and all are drawn anew"
                )

    def _write(self, folder: Path) -> None:
        """Write all images at once, so that another process never sees only some of them."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
        try:
            self._draw(unfinished / self.category.name)
            unfinished.chmod(0o755)
            try:
                unfinished.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was quicker, with the same images
                    raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _draw(self, folder: Path) -> None:
        texture = self.category is GeneratedCategory.texture
        draw: Draw = draw_texture if texture else draw_object
        defects = TEXTURE_DEFECTS if texture else OBJECT_DEFECTS
        turns = -(-self.anomalous_images // len(defects))  # rounded up
        plan: list[tuple[str, str | None, float]] = []  # folder, kind of defect, share of turns
        plan += [("train/good", None, 0.0)] * self.train_images
        plan += [("test/good", None, 0.0)] * self.nominal_images
        for i in range(self.anomalous_images):
            turn, kind_number = divmod(i, len(defects))
            plan.append((f"test/{defects[kind_number]}", defects[kind_number], turn / turns))
        for number, (place, kind, share) in enumerate(plan):
            rng = np.random.default_rng([self.seed, texture, number])
            # Each kind goes from subtle to obvious, in even steps with random offsets.
            strength = self.strength * (SUBTLE + (1 - SUBTLE) * (share + rng.uniform() / turns))
            image, mask = draw(rng, self.size, kind, strength)
            pictures = {f"{place}/{number:04d}.png": image}
            if kind is not None:
                truth = mask.astype(np.uint8) * 255
                pictures[f"ground_truth/{kind}/{number:04d}_mask.png"] = truth
            for name, pixels in pictures.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path, compress_level=1)
