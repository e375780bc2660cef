"""A user's own images: a folder of nominal ones and whatever else there is."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from patchcore.data.images import EXTENSIONS, list_images
from patchcore.data.sample import DataConfig, Sample, Split
from patchcore.errors import InputError
from patchcore.settings import setting


@dataclass(kw_only=True)
class FolderConfig(DataConfig):
    """Folders of images, searched with all their subfolders; paths are relative to root.

    Below `anomalous`, the first subfolder names the defect type; images beside it are "anomalous".
    Below `masks`, the mask of `scratch/7.jpg` is `scratch/7.png` or `scratch/7_mask.png`, or the
    same at the top of `masks` if no other image is named 7.
    """

    # folder to which the others are relative; results follow from the images, not from their place
    root: str = setting(".", effect=False)
    nominal: str = setting("nominal", effect=False)  # folder of nominal images, to train on
    # folder of nominal images to test on; null holds some out
    nominal_test: str | None = setting(None, effect=False)
    # folder of anomalous images to test on, if there are any
    anomalous: str | None = setting(None, effect=False)
    # folder of masks of anomalous images, if there are any
    masks: str | None = setting(None, effect=False)
    # share of nominal images held out when nominal_test is null
    test_share: float = setting(0.2, effect=lambda data: data["nominal_test"] is None)
    # of the choice of held-out images
    seed: int = setting(
        0, effect=lambda data: data["nominal_test"] is None and data["test_share"] > 0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed < 0:
            raise InputError(f"data.seed must be 0 or more, got {self.seed}")
        if not 0 <= self.test_share < 1:
            raise InputError(f"data.test_share must be in [0, 1), got {self.test_share}")
        if self.masks is not None and self.anomalous is None:
            raise InputError("data.masks needs data.anomalous, the folder of the masked images")

    def _read(self) -> Split:
        """Nominal images to train on; held-out or separate nominal and all anomalous ones to test.

        Raises:
            InputError: a folder is missing or holds no images, an image is nominal and anomalous
                or in training and test at once, a mask has no image or more than one, or nothing
                would be left to train or to test on.
        """
        nominal = self._images("nominal")
        if self.nominal_test is None:
            train, test = self._hold_out(nominal)
        else:
            train, test = nominal, self._images("nominal_test")
        anomalous = [] if self.anomalous is None else self._images("anomalous")
        for key, paths in (("nominal_test", test), ("anomalous", anomalous)):
            if twice := set(train).intersection(paths):
                raise InputError(
                    f"data.{key}: {min(twice)} is in the folder data.nominal too; "
                    "use folders that do not contain each other"
                )
        samples = [Sample(path, 0) for path in test] + self._anomalous_samples(anomalous)
        if not samples:
            raise InputError(
                "data.test_share: no image is left to test on; raise it, "
                "or set data.nominal_test or data.anomalous"
            )
        return Split([Sample(path, 0) for path in train], samples)

    def _folder(self, key: str) -> Path:
        return Path(self.root).expanduser() / Path(getattr(self, key)).expanduser()

    def _images(self, key: str) -> list[Path]:
        folder = self._folder(key)
        if not folder.is_dir():
            raise InputError(f"data.{key}: there is no folder {folder}")
        images = list_images(folder, recursive=True)
        if not images:
            raise InputError(
                f"data.{key}: {folder} holds no images ({', '.join(sorted(EXTENSIONS))})"
            )
        return images

    def _hold_out(self, images: list[Path]) -> tuple[list[Path], list[Path]]:
        if not self.test_share:
            return images, []
        count = max(1, round(self.test_share * len(images)))
        if count >= len(images):
            raise InputError(
                f"data.test_share: {self.test_share} of {len(images)} nominal images leaves none "
                "for training; lower it or set data.nominal_test"
            )
        order = np.random.default_rng(self.seed).permutation(len(images))
        held_out = {images[i] for i in order[:count]}
        return [path for path in images if path not in held_out], sorted(held_out)

    def _anomalous_samples(self, images: list[Path]) -> list[Sample]:
        if not images:
            return []
        folder = self._folder("anomalous")
        masks = self._match_masks(images)
        samples = []
        for path in images:
            parts = path.relative_to(folder).parts
            kind = parts[0] if len(parts) > 1 else "anomalous"
            if kind == "good":
                raise InputError(
                    f"data.anomalous: {folder / kind} is named like a folder of nominal images; "
                    "give those as data.nominal_test, or rename it"
                )
            samples.append(Sample(path, 1, kind, masks.get(path)))
        return samples

    def _match_masks(self, images: list[Path]) -> dict[Path, Path]:
        if self.masks is None:
            return {}
        folder = self._folder("anomalous")
        by_place: dict[Path, list[Path]] = {}
        by_name: dict[Path, list[Path]] = {}
        for image in images:
            by_place.setdefault(image.relative_to(folder).with_suffix(""), []).append(image)
            by_name.setdefault(Path(image.stem), []).append(image)
        matches: dict[Path, Path] = {}
        for mask in self._images("masks"):
            place = mask.relative_to(self._folder("masks")).with_suffix("")
            bare = place.with_name(place.name.removesuffix("_mask"))
            found = next(
                (
                    images_of[name]
                    for images_of in (by_place, by_name)
                    for name in (place, bare)
                    if name in images_of
                ),
                [],
            )
            if len(found) != 1:
                raise InputError(
                    f"{mask}: this mask has {len(found) or 'no'} images of its name in {folder}; "
                    + ("name their subfolder too" if found else "restore its image or remove it")
                )
            if found[0] in matches:
                raise InputError(
                    f"{mask}: {found[0]} has the mask {matches[found[0]]} already; remove one"
                )
            matches[found[0]] = mask
        return matches
