"""Kolektor Surface-Defect Dataset 2 (Božič et al., 2021): metal surfaces from a production line.

246 defective and 2,085 nominal training images, 110 and 894 test images, about 230×630 pixels.

Source: https://www.vicos.si/resources/kolektorsdd2, or `patchcore fetch ksdd2`.
Licence: CC BY-NC-SA 4.0 (not for commercial use).
Citation: J. Božič, D. Tabernik, D. Skočaj. Mixed supervision for surface-defect detection: from
weakly to fully supervised learning. Computers in Industry 129, 2021.
Layout: `LAYOUT`, 10301 being a number; an image is defective if its mask marks anything. The
training folder of the archive also holds copies of an image and its mask, named "10301 (copy).png"
and "10301_GT (copy).png"; such files are passed over.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from patchcore.data.images import read_mask
from patchcore.data.layout import find_root, images_in
from patchcore.data.sample import DataConfig, Sample, Split
from patchcore.errors import InputError
from patchcore.settings import setting

LAYOUT = "train/10301.png with its mask train/10301_GT.png, test/20000.png with test/20000_GT.png"
SOURCE = "The data are at https://www.vicos.si/resources/kolektorsdd2"


@dataclass(kw_only=True)
class KSDD2Config(DataConfig):
    """KolektorSDD2 without supervision: its defective training images are left out."""

    root: str = setting("data/ksdd2", effect=False)  # folder that holds train and test

    def _read(self) -> Split:
        """Nominal images of `train` to train on, all of `test` to test on.

        Every mask is decoded, once a process.

        Raises:
            InputError: root or a folder is missing or empty, a file name is unlike the others, an
                image lacks its mask or a mask its image, or no training image is nominal.
        """
        root = find_root(self.root, LAYOUT, SOURCE)
        train, test = (_samples(root / side) for side in ("train", "test"))
        nominal = [sample for sample in train if not sample.label]
        if not nominal:
            raise InputError(f"{root / 'train'}: every image is defective; expected {LAYOUT}")
        return Split(nominal, test)


def _samples(folder: Path) -> list[Sample]:
    images: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    for path in images_in(folder, LAYOUT):
        match = re.fullmatch(r"(\d+)(_GT)?( \(copy\))?", path.stem)
        if match is None:
            raise InputError(f"{path}: unlike the other names; remove it, or expected {LAYOUT}")
        if not match[3]:
            (masks if match[2] else images)[match[1]] = path
    if odd := images.keys() ^ masks.keys():
        path = (images | masks)[min(odd)]
        lacks = f"image {min(odd)}" if path in masks.values() else f"mask {min(odd)}_GT"
        raise InputError(f"{path}: has no {lacks}.png beside it; restore that or remove this")
    return [
        Sample(path, 1, "defect", masks[name]) if _marks(masks[name]) else Sample(path, 0)
        for name, path in sorted(images.items())
    ]


def _marks(mask: Path) -> bool:
    status = mask.stat()
    return _marks_unchanged(mask, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=2**13)
def _marks_unchanged(mask: Path, *signature: int) -> bool:
    return bool(read_mask(mask).any())
