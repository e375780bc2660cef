"""Images in two roles, and masks among images."""

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchcore import run
from patchcore.cache import CacheConfig
from patchcore.data import images
from patchcore.data.btad import BTADConfig
from patchcore.data.folder import FolderConfig
from patchcore.data.ksdd2 import KSDD2Config
from patchcore.data.loco import LOCOConfig
from patchcore.data.mistaken import bare, masks_by_name, reject_masks
from patchcore.data.mtd import MTDConfig
from patchcore.data.mvtec import MVTecConfig
from patchcore.data.overlaps import check_known, check_pictures
from patchcore.data.sample import Sample, Split
from patchcore.data.visa import VisAConfig
from patchcore.digests import file_digest
from patchcore.errors import InputError
from tests.images import write_image, write_mask, write_mvtec
from tests.runs import config


def write_own(root: Path) -> None:
    """Folders good (6 images), fine (2) and bad (2 in scratch, 1 beside it)."""
    for i in range(6):
        write_image(root / f"good/{i}.png")
    for i in range(2):
        write_image(root / f"fine/{i}.png")
        write_image(root / f"bad/scratch/{i}.png")
    write_image(root / "bad/2.png")


def own(root: Path, **settings: str) -> FolderConfig:
    settings = {"nominal": "good", "nominal_test": "fine", "anomalous": "bad", **settings}
    return FolderConfig(root=str(root), **settings)  # type: ignore[arg-type]


# --- one file in two folders -------------------------------------------------------------------


def relative(root: Path) -> str:
    return "bad/../good"


def absolute(root: Path) -> str:
    return str(root / "good")


def linked(root: Path) -> str:
    (root / "link").symlink_to("good")
    return "link"


def linked_deep(root: Path) -> str:
    (root / "other").mkdir()
    (root / "other/deep").symlink_to(root / "good")
    return "other"


def hard_links(root: Path) -> str:
    (root / "hard").mkdir()
    write_image(root / "hard/own.png")
    os.link(root / "good/3.png", root / "hard/else.png")
    return "hard"


def one_link(root: Path) -> str:
    (root / "soft").mkdir()
    (root / "soft/else.png").symlink_to(root / "good/0.png")
    return "soft"


@pytest.mark.parametrize("key", ["nominal_test", "anomalous", "masks"])
@pytest.mark.parametrize(
    "spelling", [relative, absolute, linked, linked_deep, hard_links, one_link]
)
def test_a_file_in_two_folders_is_refused_by_any_path(
    tmp_path: Path, key: str, spelling: Callable[[Path], str]
) -> None:
    write_own(tmp_path)
    assert own(tmp_path).read()
    with pytest.raises(InputError, match=rf"^data\.{key}: .* is in the folder data\.nominal too"):
        own(tmp_path, **{key: spelling(tmp_path)}).read()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"anomalous": "."}, "data.anomalous: .*fine/0.png is in the folder data.nominal_test too"),
        ({"nominal_test": "bad/scratch"}, "data.anomalous: .*scratch/0.png is in .*nominal_test"),
        ({"masks": "fine"}, "data.masks: .*fine/0.png is in the folder data.nominal_test too"),
    ],
)
def test_folders_in_one_another_are_refused(
    tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    write_own(tmp_path)
    shutil.move(tmp_path / "good", tmp_path.parent / f"{tmp_path.name}-good")
    with pytest.raises(InputError, match=message):
        own(tmp_path, nominal=f"../{tmp_path.name}-good", **settings).read()


@pytest.mark.parametrize(
    ("folder", "role"),
    [("good", "training"), ("fine", "nominal test"), ("bad", "anomalous test")],
)
def test_a_region_is_no_image(tmp_path: Path, folder: str, role: str) -> None:
    write_own(tmp_path)
    write_mask(tmp_path / folder / "region.png")
    (tmp_path / "link.png").symlink_to(tmp_path / folder / "region.png")
    for place in (f"{folder}/region.png", "link.png"):
        config = own(tmp_path, region=str(tmp_path / place))
        with pytest.raises(InputError, match=f"{place}: marks the pixels .* one of the {role} im"):
            config.read()
    (tmp_path / folder / "region.png").rename(tmp_path / "region.png")
    assert own(tmp_path, region=str(tmp_path / "region.png")).read()


@pytest.mark.parametrize("place", ["train/good/9.png", "test/scratch/9.png"])
def test_a_linked_image_has_one_role_in_every_layout(tmp_path: Path, place: str) -> None:
    folder = write_mvtec(tmp_path)
    (folder / place).symlink_to(folder / "test/good/000.png")
    with pytest.raises(InputError, match=r"is both one of the (nominal|anomalous) test images and"):
        MVTecConfig(root=str(tmp_path), category="nut").read()


# --- equal files --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "copy", "message"),
    [
        (
            "good/1.png",
            "fine/9.png",
            r"test images .* training images too: 1 of 6 \(such as .*fine/9\.png = .*good/1\.png",
        ),
        ("good/1.png", "bad/9.png", "test images that are training images too: 1 of 6"),
        ("good/1.png", "bad/9.png", "anomalous images that are nominal images too: 1 "),
        ("fine/1.png", "bad/9.png", "anomalous images that are nominal images too: 1 "),
        ("good/1.png", "good/deep/9.jpg", "copies of other images in the same set: 1 "),
        ("bad/2.png", "bad/scratch/9.png", "copies of other images in the same set: 1 "),
    ],
)
@pytest.mark.filterwarnings("ignore")  # some copies are told in two warnings
def test_equal_pictures_are_told_with_their_number(
    tmp_path: Path, source: str, copy: str, message: str
) -> None:
    write_own(tmp_path)
    (tmp_path / copy).parent.mkdir(exist_ok=True)
    shutil.copy(tmp_path / source, tmp_path / copy)
    with pytest.warns(UserWarning, match=rf"^data: {message}"):
        own(tmp_path).read()


@pytest.mark.filterwarnings("default")
def test_equal_pictures_are_told_in_every_layout(tmp_path: Path) -> None:
    folder = write_mvtec(tmp_path)
    shutil.copy(folder / "train/good/001.png", folder / "test/good/000.png")
    with pytest.warns(
        UserWarning, match=r"^data: test images that are training images too: 1 of 5"
    ):
        MVTecConfig(root=str(tmp_path), category="nut").read()


@pytest.mark.parametrize("name", ["9.png", "9.bmp"])
@pytest.mark.filterwarnings("default")
def test_pictures_saved_anew_are_told_by_the_run_that_reads_them(tmp_path: Path, name: str) -> None:
    folder = write_mvtec(tmp_path)
    with Image.open(folder / "train/good/001.png") as image:
        image.save(folder / "test/good" / name, compress_level=0)
    told = rf"test/good/{name} = .*train/good/001\.png"
    for number in range(2):  # without and with images in the cache
        cache = CacheConfig(root=str(tmp_path / "cache"), enabled=True)
        with pytest.warns(
            UserWarning,
            match=r"^data: by their pixels, test images that are training images too: 1 of 6 "
            rf"\(such as .*{told}",
        ):
            run(config(tmp_path, cache=cache), tmp_path / f"run{number}")


@pytest.mark.filterwarnings("default")
def test_images_that_a_model_was_fitted_to_are_told_by_its_test(tmp_path: Path) -> None:
    write_own(tmp_path)
    shutil.copytree(tmp_path / "good", tmp_path / "held")
    split = own(tmp_path).read()
    copied = [(path, None) for path in sorted((tmp_path / "held").rglob("*.png"))]
    check_known(copied, split)  # none is among the test's
    check_known([(sample.path, None) for sample in split.train], split)
    fitted = tmp_path / "held/9.png"
    shutil.copy(split.test[0].path, fitted)
    for source, copy in {fitted: f" = {fitted}", split.test[0].path: ""}.items():
        with pytest.warns(UserWarning, match=told_of(split, copy)):
            check_known([(source, None)], split)


def told_of(split: Split, copy: str) -> str:
    """Pattern of the warning of a model that was fitted to the first test image."""
    return (
        rf"^data: test images that the model was fitted to: 1 of {len(split.test)} "
        rf"\(such as {split.test[0].path}{copy}\); "
    )


@pytest.mark.filterwarnings("error")
def test_images_that_a_model_was_fitted_to_are_told_wherever_they_are_now(tmp_path: Path) -> None:
    write_own(tmp_path)
    split = own(tmp_path).read()
    gone, digests = tmp_path / "gone.png", [file_digest(sample.path) for sample in split.test]
    for held in ([(gone, digests[0])], [(gone, digests[0]), (tmp_path / "twin.png", digests[0])]):
        with pytest.warns(UserWarning, match=told_of(split, f" = {gone}")):
            check_known(held, split)
    check_known([(sample.path, file_digest(sample.path)) for sample in split.train], split)
    check_known([(split.test[0].path, file_digest(split.train[0].path))], split)  # was replaced
    words = (
        "^model: copies of 2 of its 3 images are not noticed, .* and their files are gone "
        rf"\(such as {gone}\): "
    )
    with pytest.warns(UserWarning, match=words):
        check_known([(tmp_path / "x.png", None), (gone, None), (gone, digests[0][::-1])], split)


@pytest.mark.filterwarnings("error")
def test_test_images_that_are_training_images_are_told_once(tmp_path: Path) -> None:
    write_own(tmp_path)
    shutil.copy(tmp_path / "good/0.png", tmp_path / "fine/0.png")
    with pytest.warns(UserWarning, match="^data: test images that are training images too: 1 of"):
        split = own(tmp_path).read()
    for digest in (file_digest(tmp_path / "good/0.png"), None):
        for path in (tmp_path / "good/0.png", Path(shutil.copy(tmp_path / "good/0.png", tmp_path))):
            check_known([(path, digest)], split)


def test_pictures_of_one_size_are_not_taken_for_equal(tmp_path: Path) -> None:
    for name in ("good/1.bmp", "good/2.bmp", "fine/1.bmp", "bad/1.bmp"):
        write_image(tmp_path / name)
    assert len({path.stat().st_size for path in tmp_path.rglob("*.bmp")}) == 1
    own(tmp_path).read()  # a warning would be an error


# --- masks beside and below their images --------------------------------------------------------

WORDS = (
    *("annotation", "annotations", "ground_truth", "groundtruth", "gt", "label", "labels"),
    *("mask", "masks", "seg", "segmentation"),
)


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("7_mask", "7"),
        ("Mask_7", "7"),
        ("mask-", "mask-"),
        ("7_MASK", "7"),
        ("a-mask", "a"),
        ("7_GT", "7"),
        ("mask", "mask"),
        ("7", "7"),
        ("gt_7", "7"),
        ("7.Ground-Truth", "7"),
        ("ground_truth_7", "7"),
        ("label_7_mask", "label_7"),
        ("mask_7_label", "7_label"),
        ("label_7_seg", "label_7"),
        ("label", "label"),
        ("overmask", "overmask"),
        *((f"7_{word}", "7") for word in WORDS),
        *((f"{word}-7", "7") for word in WORDS),
    ],
)
def test_name_of_a_masks_image(stem: str, name: str) -> None:
    assert bare(stem) == name


@pytest.mark.parametrize("stem", ["1_label", "seg_1"])
def test_masks_whose_names_images_have_too_are_known_by_their_pixels(
    tmp_path: Path, stem: str
) -> None:
    write_own(tmp_path)
    image = tmp_path / f"good/{stem}.png"
    told = f"{stem}.png: looks like a mask, and lies among images"
    numbers = np.arange(120, dtype=np.uint8).reshape(10, 12) // 40
    for mask in (Image.fromarray(numbers), Image.fromarray(numbers * 90)):
        mask.save(image)
        with pytest.raises(InputError, match=told):
            own(tmp_path).read()
    write_image(image)
    assert image in [sample.path for sample in own(tmp_path).read().train]
    folder = image.parent
    assert masks_by_name([image]) == []
    assert masks_by_name([image, folder / "1.png", folder / "gt.png"]) == [image]


def test_a_folder_of_masks_alone_is_known_by_its_pixels(tmp_path: Path) -> None:
    masks = [write_mask(tmp_path / f"masks/{i}.png") for i in range(4)]
    assert masks_by_name(masks) == masks
    write_image(masks[1], (8, 8), 1)  # a folder of this name may hold images, as all of a product
    assert masks_by_name(masks) == []
    masks[1].write_bytes(b"broken")
    assert masks_by_name(masks) == []


@pytest.mark.parametrize(
    ("masks", "places"),
    [
        ("bad", ["bad/scratch/0_mask.png", "bad/scratch/1_Mask.tif", "bad/2-gt.bmp"]),
        ("./fine/../bad", ["bad/scratch/0_mask.png"]),
        ("bad/scratch", ["bad/scratch/0_mask.png"]),
        ("bad/masks", ["bad/masks/scratch/0_mask.png", "bad/masks/2.png"]),
        ("bad/ground_truth", ["bad/ground_truth/scratch/1.png"]),
        ("truth", ["truth/scratch/1_mask.png", "truth/2.png"]),
    ],
)
def test_masks_anywhere_are_paired_and_not_tested(
    tmp_path: Path, masks: str, places: list[str]
) -> None:
    write_own(tmp_path)
    for place in places:
        write_mask(tmp_path / place)
    split = own(tmp_path, masks=masks).read()
    anomalous = [sample for sample in split.test if sample.label]
    assert [sample.path.name for sample in anomalous] == ["2.png", "0.png", "1.png"]
    found = {Path(s.mask).relative_to(tmp_path) for s in anomalous if isinstance(s.mask, Path)}
    assert {(tmp_path / path).resolve() for path in found} == {tmp_path / x for x in places}
    for sample in anomalous:
        assert sample.mask is None or bare(Path(str(sample.mask)).stem) == sample.path.stem
    assert [sample.defect_type for sample in anomalous] == ["anomalous", "scratch", "scratch"]


@pytest.mark.parametrize(
    ("settings", "places", "message"),
    [
        ({}, ["bad/scratch/0_mask.png"], "0_mask.png: is a mask by its name.*data.masks"),
        ({}, ["bad/masks/scratch/0.png", "bad/masks/2.png"], "masks/2.png: looks like a mask"),
        ({}, ["bad/scratch/GT/odd.png"], "GT/odd.png: looks like a mask"),
        ({}, ["bad/scratch/0.bmp"], "scratch/0.bmp: looks like a mask"),
        ({}, ["good/1_gt.png"], "good/1_gt.png: is a mask by its name"),
        ({}, ["fine/masks/1.png"], "fine/masks/1.png: looks like a mask"),
        ({"masks": "bad"}, [], "^data.masks: .*bad holds the images of data.anomalous"),
        ({"masks": "bad"}, ["bad/2.bmp", "bad/2_mask.png"], "2_mask.png: this mask has 2 images"),
        ({"masks": "bad"}, ["bad/2_gt.png", "bad/2_mask.png"], "has the mask .* already"),
    ],
)
def test_masks_among_images_are_refused(
    tmp_path: Path, settings: dict[str, str], places: list[str], message: str
) -> None:
    write_own(tmp_path)
    for place in places:
        write_mask(tmp_path / place)
    with pytest.raises(InputError, match=message):
        own(tmp_path, **settings).read()


@pytest.mark.parametrize("place", ["7_mask.png", "ground_truth/hole/7.png"])
def test_masks_without_images_are_no_images(place: str, tmp_path: Path) -> None:
    path = tmp_path / place
    write_mask(path)
    with pytest.raises(InputError, match=rf"^{path}: looks like a mask by its name and its pixels"):
        reject_masks([path], path.parent, "name images alone")
    reject_masks([write_image(path)], path.parent, "name images alone")  # a picture of noise


def test_images_in_a_folder_named_like_masks_are_images(tmp_path: Path) -> None:
    write_own(tmp_path)
    write_image(tmp_path / "bad/mask/face.png")  # a picture of noise, with no image of its name
    write_image(tmp_path / "bad/2.jpg")  # and two photographs of one name
    kinds = [sample.defect_type for sample in own(tmp_path).read().test if sample.label]
    assert sorted(kinds) == ["anomalous", "anomalous", "mask", "scratch", "scratch"]


def test_images_are_told_from_masks_whatever_their_depth(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).random((32, 32))
    write_own(tmp_path)
    deep = tmp_path / "bad/masks/face.tif"  # of 20 bits, as image.bits will say
    deep.parent.mkdir()
    Image.fromarray((noise * 2**20).astype(np.int32)).save(deep)
    dark = (noise * 4000).astype(np.uint16)  # a camera's 12 bits in a file of 16
    for name in ("0.png", "0.tif"):
        Image.fromarray(dark).save(tmp_path / "bad/scratch" / name)
    (tmp_path / "fine/masks").mkdir()
    Image.fromarray(dark[::-1]).save(tmp_path / "fine/masks/nose.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        split = own(tmp_path).read()
    names = {sample.path.name for sample in split.test}
    assert {"face.tif", "0.tif", "nose.png"} < names
    Image.fromarray((noise > 0.5) * np.int32(2**20 - 1)).save(deep)
    with pytest.raises(InputError, match=r"masks/face\.tif: looks like a mask"):
        own(tmp_path).read()


def test_the_size_of_images_is_checked_by_the_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = 1e-6  # megapixels
    read_image = vars(images.read_image)["__wrapped__"]
    monkeypatch.setattr(read_image, "__defaults__", (None, small))
    monkeypatch.setattr(images.read_truth, "__defaults__", (small,))
    write_own(tmp_path)
    write_image(tmp_path / "bad/mask/face.png")  # is opened to see whether it is a mask
    write_mask(tmp_path / "masks/fine/0.png", marked=False)  # and this one, whether it marks much
    assert len(own(tmp_path, masks="masks").read().test) == 6


@pytest.mark.parametrize("place", ["train/good/000_mask.png", "test/scratch/001_mask.png"])
def test_masks_among_the_images_of_a_layout_are_refused(tmp_path: Path, place: str) -> None:
    folder = write_mvtec(tmp_path)
    write_mask(folder / place)
    with pytest.raises(InputError, match=rf"{place}: is a mask .*; masks belong in .*ground_truth"):
        MVTecConfig(root=str(tmp_path), category="nut").read()


def test_a_picture_that_is_its_own_mask_is_refused(tmp_path: Path) -> None:
    write_own(tmp_path)
    shutil.copytree(tmp_path / "bad", tmp_path / "masks")
    with pytest.raises(
        InputError, match=r"masks/2\.png: this mask is the picture .*bad/2\.png its"
    ):
        own(tmp_path, masks="masks").read()


@pytest.mark.filterwarnings("ignore:data. .* lacks :UserWarning")  # of folders
def test_one_mask_one_image_in_the_layouts_with_masks_beside_images(tmp_path: Path) -> None:
    for name in ("MT_Free/Imgs/1.jpg", "MT_Free/Imgs/2.jpg", "MT_Fray/Imgs/3.jpg"):
        write_image(tmp_path / name)
    write_mask(tmp_path / "MT_Fray/Imgs/3.png")
    assert MTDConfig(root=str(tmp_path), test_share=0.5).read()
    write_image(tmp_path / "MT_Fray/Imgs/3.bmp")
    with pytest.raises(InputError, match=r"3\.png: this mask has several images named 3 beside it"):
        MTDConfig(root=str(tmp_path), test_share=0.5).read()
    for name in ("train/1.png", "train/1.jpg", "test/1.png"):
        write_image(tmp_path / name)
    with pytest.raises(InputError, match=r"train/1\.png: has the name of .*1\.jpg; remove one of"):
        KSDD2Config(root=str(tmp_path)).read()


# --- masks of nominal images --------------------------------------------------------------------


def test_black_masks_of_nominal_images_are_accepted(tmp_path: Path) -> None:
    folder = write_mvtec(tmp_path / "mvtec")
    before = MVTecConfig(root=str(tmp_path / "mvtec"), category="nut").read()
    mask = write_mask(folder / "ground_truth/good/000.png", marked=False)
    config = MVTecConfig(root=str(tmp_path / "mvtec"), category="nut")
    assert config.read() == before
    write_mask(mask)
    with pytest.raises(InputError, match=r"good/000\.png: this mask marks part of a nominal image"):
        config.read()

    write_own(tmp_path)
    before = own(tmp_path).read()
    for place in ("fine/0.png", "good/1_mask.png", "4.png"):
        write_mask(tmp_path / "masks" / place, marked=False)
    assert own(tmp_path, masks="masks").read() == before
    write_mask(tmp_path / "masks/4.png")
    with pytest.raises(InputError, match=r"masks/4\.png: this mask marks part of an image that is"):
        own(tmp_path, masks="masks").read()


@pytest.mark.filterwarnings("ignore:data. .* lacks :UserWarning")  # of folders
@pytest.mark.parametrize("kind", [BTADConfig, LOCOConfig, VisAConfig, MTDConfig])
def test_masks_of_nominal_images_in_other_layouts(tmp_path: Path, kind: type) -> None:
    if kind is MTDConfig:
        for name in ("MT_Free/Imgs/1.jpg", "MT_Free/Imgs/2.jpg", "MT_Fray/Imgs/3.jpg"):
            write_image(tmp_path / name)
        mask, config = "MT_Free/Imgs/1.png", MTDConfig(root=str(tmp_path), test_share=0.5)
    elif kind is VisAConfig:
        images, masks = "x/Data/Images/Normal", "x/Data/Masks/Normal"
        for side in ("train", "test"):
            write_image(tmp_path / f"{images}/{side}.JPG")
        (tmp_path / "split_csv").mkdir()
        (tmp_path / "split_csv/1cls.csv").write_text(
            f"object,split,label,image,mask\nx,train,normal,{images}/train.JPG,\n"
            f"x,test,normal,{images}/test.JPG,{masks}/1.png\n"
        )
        mask, config = f"{masks}/1.png", VisAConfig(root=str(tmp_path), category="x")
    else:
        good = "ok" if kind is BTADConfig else "good"
        write_image(tmp_path / f"x/train/{good}/0.png")
        write_image(tmp_path / f"x/test/{good}/1.png")
        mask = (
            f"x/ground_truth/{good}/1.png" if kind is BTADConfig else "x/ground_truth/good/1/0.png"
        )
        config = kind(root=str(tmp_path), category="x")
    write_mask(tmp_path / mask, marked=False)
    split = config.read()
    assert all(sample.mask is None for sample in split.train + split.test)
    write_mask(tmp_path / mask)
    with pytest.raises(InputError, match=f"{mask}: (this mask )?marks part of"):
        config.read()


# --- what else lies in a layout -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("test/000.png", "test/000.png: lies beside the folders of images"),
        ("train/000.png", "train/000.png: lies beside the folders of images"),
        ("ground_truth/000.png", "ground_truth/000.png: masks are expected in a folder"),
        ("test/scratch/deep/000.png", "deep/000.png: lies below .*scratch, whose subfolders are"),
        ("train/good/day1/000.png", "day1/000.png: lies below .*good, whose subfolders are not"),
        ("test/Good/000.png", "test/Good: nominal images are expected in a folder named good"),
        ("test/OK/000.png", "test/OK: nominal images are expected in a folder named good"),
        ("train/GOOD/000.png", "train/GOOD: nominal images are expected in a folder named good"),
        ("test/scratch/000.jpg", "000_mask.png: this mask has several images named 000 in"),
    ],
)
def test_what_a_layout_does_not_expect_is_refused(tmp_path: Path, place: str, message: str) -> None:
    folder = write_mvtec(tmp_path)
    write_image(folder / place)
    with pytest.raises(InputError, match=message):
        MVTecConfig(root=str(tmp_path), category="nut").read()


def test_folders_that_are_not_read_are_told(tmp_path: Path) -> None:
    folder = write_mvtec(tmp_path)
    write_image(folder / "preview.png")
    write_image(folder / "train/worn/000.png")
    write_mask(folder / "masks/scratch/000.png")
    with pytest.warns(UserWarning, match=r"^data: not read: .*nut/masks, .*nut/train/worn; r"):
        split = MVTecConfig(root=str(tmp_path), category="nut").read()
    assert Sample(folder / "train/worn/000.png", 0) not in split.train


def test_two_images_of_one_name_without_masks_are_two_images(tmp_path: Path) -> None:
    folder = write_mvtec(tmp_path)
    write_image(folder / "test/bent/000.jpg")
    kinds = [s.defect_type for s in MVTecConfig(root=str(tmp_path), category="nut").read().test]
    assert kinds.count("bent") == 2


def test_copies_among_training_images_are_numbered(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1), ("c", 0), ("d", 1), ("e", 0), ("f", 2)):
        write_image(tmp_path / f"{name}.png", (8, 8), seed)
    paths = sorted(tmp_path.iterdir())
    split = Split([Sample(path, 0) for path in paths], [])
    assert split.copies() == split.recorded().copies() == {2: 0, 3: 1, 4: 0}


@pytest.mark.filterwarnings("ignore:data. by their pixels, copies of other images")
def test_training_images_saved_anew_are_told_where_they_are_held_out(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    paths = [tmp_path / name for name in ("a.png", "b.bmp")]
    for path in paths:
        Image.fromarray(pixels).save(path)
    split = Split([Sample(path, 0) for path in paths], []).recorded()
    assert split.snapshot is not None and split.copies() == {}
    check_pictures(split, held_out=True)  # nothing was read
    for path in paths:
        split.snapshot.note(path, pixels)
    told = f"{paths[1]}: a training image saved anew counts as another part, so the threshold"
    with pytest.warns(UserWarning, match=told):
        check_pictures(split, held_out=True)
