"""The MVTec AD folder layout, which several other data sets follow as well."""

from dataclasses import dataclass
from pathlib import Path

from patchcore.data.images import list_images
from patchcore.data.sample import DataConfig, Sample, Split
from patchcore.errors import InputError

LAYOUT = "{category}/train/good, {category}/test/{defect}, {category}/ground_truth/{defect}"
SOURCE = "https://www.mvtec.com/company/research/datasets/mvtec-ad"


@dataclass(kw_only=True)
class MVTecConfig(DataConfig):
    """One category of a data set in the layout of MVTec AD (Bergmann et al., 2019)."""

    root: str = "data/mvtec"  # folder that holds the categories
    category: str = "bottle"  # folder below root

    def read(self) -> Split:
        """Nominal `train/good` to train on, everything below `test` to test on.

        An anomalous image may lack its mask; a mask may not lack its image.

        Raises:
            InputError: root or category is missing, a folder holds no images, or a mask has no
                image.
        """
        folder = self._category_folder()
        train = [Sample(path, 0) for path in _images(folder / "train" / "good")]
        test_folder = folder / "test"
        if not test_folder.is_dir():
            raise InputError(f"{test_folder}: no such folder; expected {LAYOUT}")
        test: list[Sample] = []
        for kind in sorted(child.name for child in test_folder.iterdir() if child.is_dir()):
            images = _images(test_folder / kind)
            if kind == "good":
                test += [Sample(path, 0) for path in images]
            else:
                masks = {_stem(path): path for path in list_images(folder / "ground_truth" / kind)}
                test += [Sample(path, 1, kind, masks.get(path.stem)) for path in images]
        if not test:
            raise InputError(f"{test_folder}: holds no folder of images; expected {LAYOUT}")
        used = {sample.mask for sample in test}
        for mask in list_images(folder / "ground_truth", recursive=True):
            if mask not in used:
                raise InputError(
                    f"{mask}: this mask has no image named {_stem(mask)} in "
                    f"{test_folder / mask.parent.name}; restore the image or remove the mask"
                )
        return Split(train, test)

    def _category_folder(self) -> Path:
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise InputError(
                f"data.root: there is no folder {root}; it should hold {LAYOUT}. "
                f"MVTec AD itself is at {SOURCE}"
            )
        folder = root / self.category
        if not self.category or not folder.is_dir():
            there = sorted(path.name for path in root.iterdir() if (path / "train").is_dir())
            raise InputError(
                f"data.category: {root} has no category {self.category!r}; "
                + (f"it has {', '.join(there)}" if there else f"it has none, expected {LAYOUT}")
            )
        return folder


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected {LAYOUT}")
    images = list_images(folder)
    if not images:
        raise InputError(f"{folder}: holds no images; expected {LAYOUT}")
    return images


def _stem(mask: Path) -> str:
    return mask.stem.removesuffix("_mask")
