"""Kolektor Surface-Defect Dataset 2 (Božič et al., 2021): metal surfaces from a production line.

246 defective and 2,085 nominal training images, 110 and 894 test images, about 230×630 pixels.

Citation: J. Božič, D. Tabernik, D. Skočaj. Mixed supervision for surface-defect detection: from
weakly to fully supervised learning. Computers in Industry 129, 2021.
Layout: `LAYOUT`, where 10301 is the number of an image. An image is defective if its mask marks
anything. The training folder of the archive also holds copies of one image and its mask, named
"10301 (copy).png" and "10301_GT (copy).png"; such files are passed over.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from patchcore.data.files import Files
from patchcore.data.layout import find_root, images_in, marks
from patchcore.data.sample import DataConfig, Sample, Split
from patchcore.data.source import NON_COMMERCIAL, Archive, Source
from patchcore.errors import InputError
from patchcore.settings import setting

LAYOUT = "train/10301.png with its mask train/10301_GT.png, test/20000.png with test/20000_GT.png"


@dataclass(kw_only=True)
class KSDD2Config(DataConfig):
    """KolektorSDD2 for training on nominal images: defective training images are left out."""

    SOURCE: ClassVar = Source(
        page="https://www.vicos.si/resources/kolektorsdd2",
        licence=NON_COMMERCIAL,
        archive=Archive("https://data.vicos.si/datasets/KSDD/KolektorSDD2.zip", ("train", "test")),
    )

    root: str = setting("data/ksdd2", "folder that holds train and test", effect=False)

    def _read(self, files: Files) -> Split:
        """Return the split: nominal images of `train` to train on, all of `test` to test on.

        Every mask is decoded, once per process.

        Raises:
            InputError: root or a folder is missing or empty, a file name is unlike the others, an
                image lacks its mask or a mask its image, or no training image is nominal.
        """
        root = find_root(self.root, LAYOUT, self.SOURCE.page)
        train, test = (_samples(files, root / side) for side in ("train", "test"))
        nominal = [sample for sample in train if not sample.label]
        if not nominal:
            raise InputError(f"{root / 'train'}: every image is defective; expected {LAYOUT}")
        return Split(nominal, test)


def _samples(files: Files, folder: Path) -> list[Sample]:
    images: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    for path in images_in(files, folder, LAYOUT):
        match = re.fullmatch(r"(\d+)(_GT)?( \(copy\))?", path.stem)
        if match is None:
            raise InputError(f"{path}: unlike the other names; remove it. Expected: {LAYOUT}")
        if not match[3]:
            known = masks if match[2] else images
            if other := known.get(match[1]):
                raise InputError(f"{path}: has the name of {other}; remove one of the two")
            known[match[1]] = path
    if odd := images.keys() ^ masks.keys():
        path = (images | masks)[min(odd)]
        lacks = f"image {min(odd)}" if path in masks.values() else f"mask {min(odd)}_GT"
        raise InputError(f"{path}: has no {lacks}.png beside it; restore that file or remove this")
    return [
        Sample(path, 1, "defect", masks[name]) if marks(masks[name]) else Sample(path, 0)
        for name, path in sorted(images.items())
    ]
