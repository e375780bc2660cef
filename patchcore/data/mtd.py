"""Magnetic Tile Defects (Huang et al., 2018), with the paper's split or one without leakage.

Citation: Y. Huang, C. Qiu, Y. Guo, X. Wang, K. Yuan. Surface Defect Saliency of Magnetic Tile. CASE
2018.
Layout: `LAYOUT`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from patchcore.data.files import Files
from patchcore.data.layout import find_root, marks, note_missing
from patchcore.data.sample import DataConfig, Sample, Split
from patchcore.data.source import Archive, Source
from patchcore.errors import InputError, counted
from patchcore.settings import Choice, setting

LAYOUT = "MT_Free/Imgs/*.jpg, MT_Blowhole/Imgs/*.jpg with masks *.png, and so on"
CLASSES = ("MT_Blowhole", "MT_Break", "MT_Crack", "MT_Fray", "MT_Free", "MT_Uneven")
_PAGE = "https://github.com/abin24/Magnetic-tile-defect-datasets."
LAST_EXPOSURE = 6
CLOSE = 200  # difference of numbers up to which two series of exposures may show one tile

# Tiles that were photographed in two runs, by one number of each run. They were found by
# correlating all pairs of pictures, and confirmed by eye.
REPEATED = (
    (5892, 5907),
    (8676, 10334),
    (36280, 36290),
    (37098, 37243),
    (53011, 65001),
    (85665, 85781),
    (86064, 86828),
    (108812, 108889),
    (306586, 309352),
    (320864, 320895),
    (355636, 358102),
)


class MTDSplit(Choice):
    """Division of the defect-free images into training and test images."""

    random = "random"
    grouped = "grouped"


@dataclass(kw_only=True)
class MTDConfig(DataConfig):
    """Magnetic Tile Defects: 952 defect-free images and 392 with one of five defects.

    Every tile was photographed under about six exposures. `split=random` draws test images one by
    one (the paper's protocol, Table 6), so most test tiles are known from training. `split=grouped`
    draws whole runs of exposures (see `exposure_runs`), so that no tile is in both training and
    test: defect-free images in a run with a defective one are always test images, and further runs
    are drawn until the share is reached. All defective images are test images. Four masks of class
    Uneven are empty: these images count as anomalous, and their anomalous pixels as unknown.
    """

    SOURCE: ClassVar = Source(
        page=_PAGE,
        licence="none stated; its owners welcome its use and ask to be cited",
        # The commit fixes the content. No checksum: GitHub may compress the archive differently.
        archive=Archive(
            f"{_PAGE}/archive/cc4eb530b57b9cb7225bf76023873043ffd50655.zip",
            CLASSES,
        ),
    )

    root: str = setting("data/mtd", "folder that holds MT_Free, MT_Blowhole, …", effect=False)
    split: MTDSplit = setting(
        MTDSplit.random, "random, as in the paper; or grouped: no tile is in both training and test"
    )
    test_share: float = setting(
        0.2, "share of the defect-free images that are tested on", above=0, below=1
    )
    seed: int = setting(0, "seed of the division", low=0)

    def _read(self, files: Files) -> Split:
        """Divide the defect-free images; every defective image is a test image.

        Raises:
            InputError: root or a class is missing or empty, a mask has no image or several, a mask
                marks part of a defect-free image, a file name lacks exposure or number (only with
                `split=grouped`), or no training image would be left.
        """
        nominal, anomalous = self._samples(files)
        count = round(self.test_share * len(nominal))
        generator = np.random.default_rng(self.seed)
        if self.split is MTDSplit.random:
            held_out = {nominal[i] for i in generator.permutation(len(nominal))[:count]}
        else:
            held_out = _hold_out_runs(nominal, anomalous, count, generator)
        train = [sample for sample in nominal if sample not in held_out]
        if not train:
            raise InputError(
                f"data.test_share: {self.test_share} leaves none of the "
                f"{counted(len(nominal), 'defect-free image')} of {self.root} for training; lower "
                "it"
            )
        return Split(train, [sample for sample in nominal if sample in held_out] + anomalous)

    def _inseparable(self, test: Sequence[Sample]) -> list[list[Sample]]:
        """See `DataConfig`: groups are the photographs of one tile, with `split=grouped`."""
        if self.split is MTDSplit.random:
            return super()._inseparable(test)
        return exposure_runs([*test])

    def _samples(self, files: Files) -> tuple[list[Sample], list[Sample]]:
        root = find_root(self.root, LAYOUT, self.SOURCE.page)
        if not (root / "MT_Free").is_dir():
            raise InputError(f"data.root: {root} has no folder MT_Free; expected {LAYOUT}")
        note_missing(files, root, CLASSES)
        nominal: list[Sample] = []
        anomalous: list[Sample] = []
        for parent in files.folders(root, images=True):
            if not parent.name.startswith("MT_"):
                continue
            folder = parent / "Imgs"
            if not folder.is_dir():
                raise InputError(f"{folder}: no such folder; expected {LAYOUT}")
            paths = files.images(folder)
            images = [path for path in paths if path.suffix.lower() != ".png"]
            masks = {path.stem: path for path in paths if path.suffix.lower() == ".png"}
            if lost := masks.keys() - {path.stem for path in images}:
                raise InputError(
                    f"{masks[min(lost)]}: this mask has no image {min(lost)}.jpg beside it; "
                    "restore the image or remove the mask"
                )
            stems = [path.stem for path in images]
            for path in images:
                if path.stem in masks and stems.count(path.stem) > 1:
                    raise InputError(
                        f"{masks[path.stem]}: this mask has several images named {path.stem} "
                        "beside it; remove all but one"
                    )
            if not images:
                raise InputError(f"{folder}: holds no images; expected {LAYOUT}")
            kind = parent.name.removeprefix("MT_").lower()
            if kind == "free":
                nominal += [Sample(path, 0) for path in images]
                if marked := [mask for mask in masks.values() if marks(mask)]:
                    raise InputError(
                        f"{marked[0]}: this mask marks part of a defect-free image; remove it or "
                        "move both to the class of the defect"
                    )
            else:
                anomalous += [Sample(path, 1, kind, masks.get(path.stem)) for path in images]
        return nominal, anomalous


def exposure_runs(samples: list[Sample]) -> list[list[Sample]]:
    """Group `exp<E>_num_<N>` images so that all photographs of a tile are in one group.

    N increases through the recording, and E through the exposures of a tile. A new run begins where
    E does not increase, but only if this is certainly another tile: the last exposure was reached
    and E begins again at 0 or 1, or N jumps by more than `CLOSE`. Otherwise two tiles may have been
    photographed alternately, and share a run. Runs that `REPEATED` names are joined.

    Raises:
        InputError: a file name does not have this form.
    """
    runs: list[list[Sample]] = []
    run_of: dict[int, list[Sample]] = {}  # by number
    last_exposure = last_number = 0
    for exposure, number, sample in sorted(
        ((*_exposure_and_number(sample.path), sample) for sample in samples),
        key=lambda item: (item[1], item[0], item[2].path.as_posix()),
    ):
        anew = exposure <= last_exposure
        complete = last_exposure >= LAST_EXPOSURE and exposure <= 1
        if not runs or (anew and (complete or number - last_number > CLOSE)):
            runs.append([])
        runs[-1].append(sample)
        run_of[number] = runs[-1]
        last_exposure, last_number = exposure, number
    for first, again in REPEATED:
        source, target = run_of.get(again, []), run_of.get(first, [])
        if source and target and source is not target:
            target += source
            run_of |= {number: target for number, run in run_of.items() if run is source}
            runs = [run for run in runs if run is not source]
    return runs


def _exposure_and_number(path: Path) -> tuple[int, int]:
    match = re.fullmatch(r"exp(\d+)_num_(\d+)", path.stem)
    if match is None:
        raise InputError(
            f"{path}: the name should read exp<exposure>_num_<number>, as data.split=grouped needs "
            "both; rename the file or use data.split=random"
        )
    return int(match[1]), int(match[2])


def _hold_out_runs(
    nominal: list[Sample], anomalous: list[Sample], count: int, generator: np.random.Generator
) -> set[Sample]:
    """Hold out whole runs until they have `count` defect-free images, mixed runs first."""
    runs = exposure_runs(nominal + anomalous)
    mixed = [run for run in runs if any(sample.label for sample in run)]
    free = [run for run in runs if not any(sample.label for sample in run)]
    held_out = {sample for run in mixed for sample in run if not sample.label}
    for i in generator.permutation(len(free)):
        if len(held_out) >= count:
            break
        held_out.update(free[i])
    return held_out
