import codecs
import json
import os
import shutil
import unicodedata
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from patchcore.commands.groups import SCHEMAS
from patchcore.data.btad import BTADConfig
from patchcore.data.dataset import ImageDataset
from patchcore.data.folder import FolderConfig
from patchcore.data.generated import GeneratedCategory, GeneratedConfig
from patchcore.data.images import read_image, read_mask, read_truth
from patchcore.data.ksdd2 import KSDD2Config
from patchcore.data.loco import LOCOConfig
from patchcore.data.mstc import MSTCConfig
from patchcore.data.mtd import REPEATED, MTDConfig, MTDSplit, exposure_runs
from patchcore.data.mvtec import MVTecConfig
from patchcore.data.mvtec2 import MVTec2Config
from patchcore.data.sample import DataConfig, Masks, Sample
from patchcore.data.transforms import ImageConfig
from patchcore.data.visa import VisAConfig
from patchcore.errors import InputError
from tests.images import write_image, write_mask, write_mvtec
from tests.runs import TINY, patchcore


@pytest.mark.parametrize("kind", SCHEMAS["data"].values())
def test_settings_go_through_omegaconf(kind: type[DataConfig]) -> None:
    config = OmegaConf.structured(kind)
    config.batch_size = 3
    if kind is MTDConfig:
        config.split = "grouped"
    settings = OmegaConf.to_object(config)
    assert isinstance(settings, kind)
    assert settings.batch_size == 3
    assert getattr(settings, "split", MTDSplit.grouped) is MTDSplit.grouped


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        (MVTecConfig, "batch_size", 0),
        (MVTecConfig, "workers", -1),
        (MVTecConfig, "shots", 0),
        (MSTCConfig, "every", 0),
        (MTDConfig, "test_share", 1.0),
        (FolderConfig, "test_share", 1.0),
        (FolderConfig, "masks", "masks"),
        (GeneratedConfig, "train_images", 0),
        (GeneratedConfig, "size", 16),
        (GeneratedConfig, "seed", -1),
        (GeneratedConfig, "strength", 1.5),
    ],
)
def test_settings_out_of_range_are_named(
    kind: type[DataConfig], key: str, value: int | float | str
) -> None:
    with pytest.raises(InputError, match=f"^data.{key} "):
        kind(**{key: value})


# --- MVTec AD --------------------------------------------------------------------------------


def test_mvtec_layout(tmp_path: Path) -> None:
    folder = write_mvtec(tmp_path)
    split = MVTecConfig(root=str(tmp_path), category="nut").read()
    assert split.train == [Sample(folder / f"train/good/{i:03d}.png", 0) for i in range(4)]
    truth = folder / "ground_truth/scratch"
    assert split.test == [
        Sample(folder / "test/bent/000.png", 1, "bent"),
        Sample(folder / "test/good/000.png", 0),
        Sample(folder / "test/good/001.png", 0),
        Sample(folder / "test/scratch/000.png", 1, "scratch", truth / "000_mask.png"),
        Sample(folder / "test/scratch/001.png", 1, "scratch", truth / "001_mask.png"),
    ]


def test_mvtec_missing_root_and_category(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^data\.root: there is no folder .*absent; .*mvtec-ad"):
        MVTecConfig(root=str(tmp_path / "absent")).read()
    with pytest.raises(InputError, match=r"^data\.category: .* it has none"):
        MVTecConfig(root=str(tmp_path), category="nut").read()
    write_mvtec(tmp_path)
    with pytest.raises(InputError, match=r"^data\.category: .*no category 'bolt'; it has nut$"):
        MVTecConfig(root=str(tmp_path), category="bolt").read()


@pytest.mark.parametrize("place", ["train/good", "test/good", "test/scratch"])
def test_mvtec_folder_without_images(tmp_path: Path, place: str) -> None:
    folder = write_mvtec(tmp_path)
    for path in (folder / place).iterdir():
        path.unlink()
    with pytest.raises(InputError, match=f"nut/{place}: holds no images"):
        MVTecConfig(root=str(tmp_path), category="nut").read()
    (folder / place).rmdir()
    if place == "train/good":
        with pytest.raises(InputError, match=f"nut/{place}: no such folder"):
            MVTecConfig(root=str(tmp_path), category="nut").read()


def test_mvtec_without_test_images(tmp_path: Path) -> None:
    write_image(tmp_path / "nut/train/good/0.png")
    with pytest.raises(InputError, match="nut/test: no such folder"):
        MVTecConfig(root=str(tmp_path), category="nut").read()
    (tmp_path / "nut/test").mkdir()
    with pytest.raises(InputError, match="nut/test: holds no folder of images"):
        MVTecConfig(root=str(tmp_path), category="nut").read()


@pytest.mark.parametrize("kind", ["scratch", "dent"])
def test_mvtec_mask_without_image(tmp_path: Path, kind: str) -> None:
    folder = write_mvtec(tmp_path)
    write_mask(folder / f"ground_truth/{kind}/007_mask.png")
    with pytest.raises(InputError, match=f"{kind}/007_mask.png: this mask has no image named 007"):
        MVTecConfig(root=str(tmp_path), category="nut").read()


def test_mvtec_mask_of_a_kind_without_images(tmp_path: Path) -> None:
    folder = write_mvtec(tmp_path)
    mask = write_mask(folder / "ground_truth/dent/001_mask.png")
    with pytest.raises(InputError) as caught:
        MVTecConfig(root=str(tmp_path), category="nut").read()
    assert str(caught.value) == (
        f"{mask}: there is no folder {folder}/test/dent with images of such masks; those of "
        f"{folder}/test/scratch/001.png are expected in {folder}/ground_truth/scratch: move the "
        "mask or the image"
    )


def test_mvtec_two_masks_of_one_image(tmp_path: Path) -> None:
    folder = write_mvtec(tmp_path)
    write_mask(folder / "ground_truth/scratch/001.png")
    with pytest.raises(InputError, match=r"001_mask\.png: 001 has the mask .*/001\.png already"):
        MVTecConfig(root=str(tmp_path), category="nut").read()


# --- data sets whose folders or masks differ -------------------------------------------------


@pytest.mark.parametrize("kind", [BTADConfig, LOCOConfig, VisAConfig, KSDD2Config, MSTCConfig])
def test_a_missing_root_tells_the_layout_and_where_the_data_are(
    tmp_path: Path, kind: type[DataConfig]
) -> None:
    with pytest.raises(
        InputError, match=r"^data\.root: there is no folder .*absent; it should hold .* http"
    ):
        kind(root=str(tmp_path / "absent")).read()  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", [BTADConfig, LOCOConfig, VisAConfig])
def test_a_misspelt_category_lists_those_that_are_there(
    tmp_path: Path, kind: type[DataConfig]
) -> None:
    with pytest.raises(InputError, match=r"^data\.category: .*'nuts'; it has none, expected"):
        kind(root=str(tmp_path), category="nuts").read()  # type: ignore[call-arg]
    write_mvtec(tmp_path)
    with pytest.raises(InputError, match=r"^data\.category: .*no category 'nuts'; it has nut$"):
        kind(root=str(tmp_path), category="nuts").read()  # type: ignore[call-arg]


def test_btad_mixes_formats(tmp_path: Path) -> None:
    folder = tmp_path / "03"
    train = [write_image(folder / "train/ok" / name) for name in ("0000.bmp", "0001.png")]
    ok = write_image(folder / "test/ok/0000.bmp")
    ko = [write_image(folder / "test/ko" / name) for name in ("0000.bmp", "0001.png")]
    masks = [write_mask(folder / "ground_truth/ko" / name) for name in ("0000.png", "0001.bmp")]
    config = BTADConfig(root=str(tmp_path), category="03")
    split = config.read()
    assert split.train == [Sample(path, 0) for path in train]
    assert split.test == [
        *(Sample(path, 1, "ko", mask) for path, mask in zip(ko, masks, strict=True)),
        Sample(ok, 0),
    ]
    ko[1].unlink()
    with pytest.raises(InputError, match=r"0001\.bmp: this mask has no image named 0001 in .*/ko"):
        config.read()


def write_loco(root: Path) -> Path:
    folder = root / "box"
    write_image(folder / "train/good/000.png")
    write_image(folder / "validation/good/000.png")
    write_image(folder / "test/good/000.png")
    for kind in ("logical_anomalies", "structural_anomalies"):
        write_image(folder / f"test/{kind}/000.png")
    truth = folder / "ground_truth"
    write_mask(truth / "structural_anomalies/000/000.png")
    write_mask(truth / "logical_anomalies/000/000.png")
    right = np.zeros((10, 12), dtype=np.uint8)
    right[:, -2:] = 240
    Image.fromarray(right).save(truth / "logical_anomalies/000/001.png")
    return folder


def test_loco_unites_the_masks_of_an_image(tmp_path: Path) -> None:
    folder = write_loco(tmp_path)
    config = LOCOConfig(root=str(tmp_path), category="box")
    split = config.read()
    truth = folder / "ground_truth/logical_anomalies/000"
    masks = Masks((truth / "000.png", truth / "001.png"))
    assert split.train == [Sample(folder / "train/good/000.png", 0)]
    assert [(s.label, s.defect_type) for s in split.test] == [
        (0, "good"),
        (1, "logical_anomalies"),
        (1, "structural_anomalies"),
    ]
    assert split.test[1].mask == masks
    whole = ImageConfig(resize=None, crop=None)
    item = ImageDataset(split.test, whole)[1]
    assert item["has_mask"] and np.array_equal(
        item["mask"].numpy(), read_mask(truth / "000.png") | read_mask(truth / "001.png")
    )
    more = LOCOConfig(root=str(tmp_path), category="box", validation=True).read()
    assert more.train == [*split.train, Sample(folder / "validation/good/000.png", 0)]
    assert more.test == split.test


def test_loco_bad_masks(tmp_path: Path) -> None:
    folder = write_loco(tmp_path)
    config = LOCOConfig(root=str(tmp_path), category="box")
    odd = write_mask(folder / "ground_truth/logical_anomalies/000/002.png", (10, 12))
    mask = config.read().test[1].mask
    assert mask is not None
    with pytest.raises(InputError, match=r"002\.png: this mask is 10×12 .*000\.png is 12×10"):
        read_truth(mask)
    odd.rename(odd.parents[1] / "001.png")
    with pytest.raises(InputError, match="this mask has no image named logical_anomalies"):
        config.read()
    lost = write_mask(folder / "ground_truth/logical_anomalies/007/000.png")
    (odd.parents[1] / "001.png").unlink()
    with pytest.raises(InputError, match=f"{lost}: this mask has no image named 007"):
        config.read()


def write_visa(root: Path) -> list[list[str]]:
    """Two categories; returns the rows of the table."""
    rows = [["object", "split", "label", "image", "mask"]]
    for category in ("candle", "pcb1"):
        images, masks = (f"{category}/Data/{kind}" for kind in ("Images", "Masks"))
        for i, side in enumerate(("test", "train", "train")):
            write_image(root / f"{images}/Normal/{i:04d}.JPG", seed=i)
            rows.append([category, side, "normal", f"{images}/Normal/{i:04d}.JPG", ""])
        write_image(root / f"{images}/Anomaly/000.JPG", seed=9)
        labels = np.zeros((10, 12), dtype=np.uint8)
        labels[2, 3], labels[4, 5] = 1, 3
        (root / f"{masks}/Anomaly").mkdir(parents=True)
        Image.fromarray(labels).save(root / f"{masks}/Anomaly/000.png")
        rows.append(
            [category, "test", "anomaly", f"{images}/Anomaly/000.JPG", f"{masks}/Anomaly/000.png"]
        )
    write_table(root, rows)
    return rows


def write_table(root: Path, rows: list[list[str]]) -> None:
    (root / "split_csv").mkdir(exist_ok=True)
    (root / "split_csv/1cls.csv").write_text("".join(",".join(row) + "\n" for row in rows))


def test_visa_in_its_own_layout(tmp_path: Path) -> None:
    write_visa(tmp_path)
    split = VisAConfig(root=str(tmp_path), category="pcb1").read()
    images, masks = (tmp_path / "pcb1/Data" / kind for kind in ("Images", "Masks"))
    mask = Masks((masks / "Anomaly/000.png",), labels=True)
    assert split.train == [Sample(images / f"Normal/000{i}.JPG", 0) for i in (1, 2)]
    assert split.test == [
        Sample(images / "Anomaly/000.JPG", 1, "anomaly", mask),
        Sample(images / "Normal/0000.JPG", 0),
    ]
    assert np.argwhere(read_truth(mask)).tolist() == [[2, 3], [4, 5]]
    assert np.array_equal(read_mask(mask.paths[0]), read_truth(mask))
    more = write_image(images / "Anomaly/007.JPG")
    with pytest.warns(UserWarning, match=rf"data: 1 not listed in .*1cls.csv \(such as {more}\)"):
        assert VisAConfig(root=str(tmp_path), category="pcb1").read() == split
    more.unlink()
    table = tmp_path / "split_csv/1cls.csv"  # as a spreadsheet saves it
    table.write_bytes(codecs.BOM_UTF8 + table.read_bytes().replace(b"\n", b"\r\n"))
    assert VisAConfig(root=str(tmp_path), category="pcb1").read() == split
    with pytest.raises(InputError, match=r"^data\.category: .*'pcb'; it has candle, pcb1$"):
        VisAConfig(root=str(tmp_path), category="pcb").read()


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "RGBA", "LA", "I;16"])
def test_masks_of_labels_in_every_mode(tmp_path: Path, mode: str) -> None:
    values = np.zeros((4, 5), dtype=np.uint8)
    values[1, 2] = 1
    if mode == "P":  # of the index, not of the colour, which is black
        image = Image.fromarray(values)
        image.putpalette([0, 0, 0] * 256)
    elif mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16))
    else:
        image = Image.fromarray(values * 255 if mode == "1" else values).convert(mode)
    image.save(tmp_path / "mask.png")
    region = read_truth(Masks((tmp_path / "mask.png",), labels=True))
    assert region.dtype == np.bool_ and np.argwhere(region).tolist() == [[1, 2]]


def test_visa_as_its_script_writes_it(tmp_path: Path) -> None:
    write_image(tmp_path / "candle/train/good/0001.JPG")
    bad = write_image(tmp_path / "candle/test/bad/000.JPG")
    mask = write_mask(tmp_path / "candle/ground_truth/bad/000.png")
    split = VisAConfig(root=str(tmp_path)).read()
    assert split.test == [Sample(bad, 1, "bad", mask)]


def test_visa_bad_tables_and_files(tmp_path: Path) -> None:
    rows = write_visa(tmp_path)
    config = VisAConfig(root=str(tmp_path))

    def complaint(*changed: list[str]) -> str:
        write_table(tmp_path, [*changed, *rows[len(changed) :]])
        with pytest.raises(InputError) as caught:
            config.read()
        write_table(tmp_path, rows)
        return str(caught.value)

    header, first = rows[:2]
    assert "1cls.csv: the columns should be object, split" in complaint(header[1:])
    assert "1cls.csv: line 2 should say train or test" in complaint(
        header, ["candle", "val", "normal", "x", ""]
    )
    assert "1cls.csv: lists anomalous images" in complaint(
        header, ["candle", "train", "anomaly", first[3], ""]
    )
    again = complaint(header, [*first[:3], rows[2][3].replace("Data/", "Data//"), ""])
    assert f"1cls.csv: line 3 lists {rows[2][3]}, as line 2 does; remove one" in again
    absent = complaint(header, [*first[:3], "candle/Data/Images/Normal/7.JPG", ""])
    assert "7.JPG: no such file, though" in absent
    for other in ("pcb1/Data/Images/Normal/0001.JPG", f"candle/../{rows[5][3]}", "/7.JPG"):
        told = complaint(header, [*first[:3], other, ""])
        assert f"1cls.csv: lists {other}, which is not below {tmp_path / 'candle'};" in told
    backslashes = first[3].replace("/", "\\")
    told = complaint(header, [*first[:3], backslashes, ""])
    assert told.endswith(f"lists {backslashes} with backslashes: write its paths with slashes")
    lost = write_mask(tmp_path / "candle/Data/Masks/Anomaly/001.png")
    told = complaint()
    assert told.startswith(f"{lost}: ") and "1cls.csv lists no image for this mask" in told


def write_ksdd2(root: Path) -> None:
    for side, marked in (("train", (False, True, False)), ("test", (True, False))):
        for number, mark in enumerate(marked, start=10000):
            write_image(root / side / f"{number}.png")
            write_mask(root / side / f"{number}_GT.png", marked=mark)
    write_image(root / "train/10002 (copy).png")
    write_mask(root / "train/10002_GT (copy).png")


def test_ksdd2_trains_on_nominal_images_only(tmp_path: Path) -> None:
    write_ksdd2(tmp_path)
    split = KSDD2Config(root=str(tmp_path)).read()
    train, test = tmp_path / "train", tmp_path / "test"
    assert split.train == [Sample(train / "10000.png", 0), Sample(train / "10002.png", 0)]
    assert split.test == [
        Sample(test / "10000.png", 1, "defect", test / "10000_GT.png"),
        Sample(test / "10001.png", 0),
    ]
    write_mask(train / "10001_GT.png", marked=False)
    assert len(KSDD2Config(root=str(tmp_path)).read().train) == 3  # a changed mask is read anew


def test_ksdd2_bad_input(tmp_path: Path) -> None:
    config = KSDD2Config(root=str(tmp_path))
    with pytest.raises(InputError, match="train: no such folder; expected train/10301"):
        config.read()
    write_ksdd2(tmp_path)
    (tmp_path / "test/10001_GT.png").unlink()
    with pytest.raises(InputError, match=r"10001\.png: has no mask 10001_GT\.png beside it"):
        config.read()
    write_mask(tmp_path / "test/10001_GT.png", marked=False)
    (tmp_path / "test/10001.png").unlink()
    with pytest.raises(InputError, match=r"10001_GT\.png: has no image 10001\.png beside it"):
        config.read()
    write_image(tmp_path / "test/10001.png")
    odd = write_image(tmp_path / "test/photo.png")
    with pytest.raises(InputError, match=r"photo\.png: unlike the other names"):
        config.read()
    odd.unlink()
    for number in (10000, 10002):
        write_mask(tmp_path / f"train/{number}_GT.png")
    with pytest.raises(InputError, match="train: every image is defective"):
        config.read()


def write_mstc(root: Path) -> None:
    """Scene 01 with 7 and 3 training and 6 test frames, of which the last two are anomalous."""
    for video, frames in (("01_001", 7), ("01_002", 3), ("13_001", 1)):
        for i in range(frames):
            write_image(root / f"training/frames/{video}/{998 + i}.jpg")
    for kind in ("test_frame_mask", "test_pixel_mask"):
        (root / "testing" / kind).mkdir(parents=True)
    for i in range(6):
        write_image(root / f"testing/frames/01_0014/{i:03d}.jpg")
    pixels = np.zeros((6, 10, 12), dtype=np.uint8)
    pixels[4, 2, 3] = pixels[5, 6, 7] = 1
    np.save(root / "testing/test_pixel_mask/01_0014.npy", pixels)
    np.save(root / "testing/test_frame_mask/01_0014.npy", pixels.any((1, 2)).astype(np.uint8))


def test_mstc_keeps_every_fifth_frame(tmp_path: Path) -> None:
    write_mstc(tmp_path)
    split = MSTCConfig(root=str(tmp_path)).read()
    kept = [
        sample.path.relative_to(tmp_path / "training/frames").as_posix() for sample in split.train
    ]
    assert kept == ["01_001/998.jpg", "01_001/1003.jpg", "01_002/998.jpg"]  # 999 before 1000
    truth = tmp_path / "testing/test_pixel_mask/01_0014.npy"
    frames = tmp_path / "testing/frames/01_0014"
    anomalous = Sample(frames / "005.jpg", 1, "anomaly", Masks((truth,), frame=5))
    assert split.test == [Sample(frames / "000.jpg", 0), anomalous]
    item = ImageDataset(split.test, ImageConfig(resize=None, crop=None))[1]
    assert item["has_mask"] and np.argwhere(item["mask"].numpy()).tolist() == [[6, 7]]
    every = MSTCConfig(root=str(tmp_path), every=1).read()
    assert (len(every.train), len(every.test)) == (10, 6)
    assert every.test[4].contents()[1] != every.test[5].contents()[1]  # one file, other frames


def test_mstc_needs_no_frames_that_it_skips_in_training(tmp_path: Path) -> None:
    write_mstc(tmp_path)
    whole = MSTCConfig(root=str(tmp_path)).read()
    for number in (999, 1000, 1004):
        (tmp_path / f"training/frames/01_001/{number}.jpg").unlink()
    assert MSTCConfig(root=str(tmp_path)).read() == whole


def test_mstc_bad_input(tmp_path: Path) -> None:
    config = MSTCConfig(root=str(tmp_path))
    (tmp_path / "training/videos").mkdir(parents=True)
    with pytest.raises(InputError, match=r"training/frames: no such folder.*; extract .*videos to"):
        config.read()
    write_mstc(tmp_path)
    with pytest.raises(InputError, match=r"^data\.category: .*no category '13'; it has 01$"):
        MSTCConfig(root=str(tmp_path), category="13").read()
    masks = tmp_path / "testing/test_pixel_mask"
    np.save(masks / "01_0099.npy", np.zeros((1, 10, 12)))
    with pytest.raises(InputError, match=r"01_0099\.npy: this mask has no folder of frames"):
        config.read()
    (masks / "01_0099.npy").unlink()
    frame = tmp_path / "testing/frames/01_0014/003.jpg"
    contents = frame.read_bytes()
    frame.unlink()
    with pytest.raises(
        InputError, match="01_0014: has 5 frames up to number 5, and there are 6 in"
    ):
        config.read()
    frame.write_bytes(contents)
    frame.with_name("a3.jpg").write_bytes(contents)
    with pytest.raises(InputError, match=r"a3\.jpg: the name of a frame should end in a number"):
        config.read()
    frame.with_name("a3.jpg").unlink()
    np.save(masks / "01_0014.npy", np.zeros((6, 10)))
    with pytest.raises(InputError, match=r"01_0014\.npy: the array should have 3 dimensions"):
        config.read()
    (masks / "01_0014.npy").write_bytes(b"not an array")
    with pytest.raises(InputError, match=r"01_0014\.npy: cannot be read as an array"):
        config.read()
    (masks / "01_0014.npy").unlink()
    with pytest.raises(InputError, match=r"01_0014\.npy: there is no such array of masks"):
        config.read()
    (tmp_path / "training/frames/extra").mkdir()
    with pytest.raises(InputError, match="extra: not named like a video"):
        config.read()


def test_mstc_masks_without_plain_marks(tmp_path: Path) -> None:
    write_mstc(tmp_path)
    config = MSTCConfig(root=str(tmp_path), every=2)
    frames, pixels = (
        tmp_path / f"testing/test_{kind}_mask/01_0014.npy" for kind in ("frame", "pixel")
    )
    whole = np.load(pixels)
    marked = whole.copy()
    marked[1:3, 0, 0] = 1  # frame 1 is not kept
    np.save(pixels, marked)
    told = r"^data: test_pixel_mask marks part of 1 frame \(first .*/002\.jpg\) that "
    with pytest.warns(UserWarning, match=told):
        split = config.read()
    assert [sample.label for sample in split.test] == [0, 0, 1]
    for place in (0, 4):  # nominal, and anomalous
        broken = whole.astype(np.float32)
        broken[place, 1, 1] = np.nan
        np.save(pixels, broken)
        with pytest.raises(InputError, match=r"pixel_mask/01_0014\.npy: this mask holds NaN"):
            ImageDataset(config.read().test, ImageConfig(resize=None, crop=None))[2]
    np.save(pixels, whole)
    np.save(frames, np.array([0, np.nan, 0, 0, 1, 1]))
    with pytest.raises(InputError, match=r"frame_mask/01_0014\.npy: this mask holds NaN"):
        config.read()
    np.save(frames, np.array([*"000011"]))
    with pytest.raises(InputError, match=r"should hold numbers, not <U1; replace it"):
        config.read()


@pytest.mark.filterwarnings("ignore:backbone resnet18 has random weights")
def test_a_low_shot_run_on_frames_with_masks(tmp_path: Path) -> None:
    write_mstc(tmp_path)
    done = patchcore(
        "train",
        "data=mstc",
        f"data.root={tmp_path}",
        "data.every=1",
        "data.shots=2",
        *(override for override in TINY if override != "image.crop=32"),
        "logger=none",
        f"hydra.run.dir={tmp_path / 'run'}",
    )
    assert done.code == 0, done.err
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert (metrics["train_images"], metrics["test_images"]) == (2, 6)
    assert 0 <= metrics["pixel_auroc"] <= 1


# --- Magnetic Tile Defects -------------------------------------------------------------------


def tile(number: int, exposure: int, kind: str = "Free") -> Sample:
    path = Path(f"MT_{kind}/Imgs/exp{exposure}_num_{number}.jpg")
    return Sample(path, int(kind != "Free"), kind.lower())


def numbers(runs: list[list[Sample]]) -> list[list[int]]:
    return [sorted(int(sample.path.stem.split("_")[-1]) for sample in run) for run in runs]


def test_runs_end_after_the_last_exposure() -> None:
    first = [tile(1000 + 20 * e, e) for e in range(1, 7)]
    second = [tile(1200 + 20 * e, e) for e in range(1, 7)]
    runs = exposure_runs(second + first)
    assert runs == [first, second]


def test_tiles_taken_by_turns_share_a_run() -> None:
    first = [tile(1000 + 20 * e, e) for e in range(1, 7)]
    second = [tile(1095 + 20 * e, e, "Crack") for e in range(1, 7)]
    assert len(exposure_runs(first + second)) == 1
    apart = [tile(9000 + 20 * e, e, "Crack") for e in range(1, 7)]
    assert len(exposure_runs(first[:4] + apart)) == 2  # the last exposure lacks, but a gap is there


def test_runs_of_a_tile_photographed_twice_are_joined() -> None:
    first, again = 53011, 65001
    assert (first, again) in REPEATED
    samples = [tile(first - 10, 1), tile(first, 2), tile(60000, 1), tile(again, 1)]
    assert numbers(exposure_runs(samples)) == [[53001, 53011, 65001], [60000]]


def write_mtd(root: Path) -> None:
    for t in range(10):
        for e in range(1, 7):
            kind = "MT_Crack" if t == 3 and e < 4 else "MT_Fray" if t == 7 else "MT_Free"
            stem = f"exp{e}_num_{1000 * t + 20 * e}"
            write_image(root / kind / "Imgs" / f"{stem}.jpg")
            write_mask(root / kind / "Imgs" / f"{stem}.png", marked=kind != "MT_Free")


@pytest.mark.filterwarnings("ignore:data. .* lacks :UserWarning")  # of folders
@pytest.mark.parametrize("how", MTDSplit)
def test_mtd_split(tmp_path: Path, how: MTDSplit) -> None:
    write_mtd(tmp_path)
    split = MTDConfig(root=str(tmp_path), split=how, seed=1).read()
    nominal = [sample for sample in split.test if not sample.label]
    anomalous = [sample for sample in split.test if sample.label]
    assert {sample.label for sample in split.train} == {0}
    assert len(split.train) + len(nominal) == 51
    assert not set(split.train) & set(split.test)
    assert [sample.defect_type for sample in anomalous] == ["crack"] * 3 + ["fray"] * 6
    assert all(sample.mask == sample.path.with_suffix(".png") for sample in anomalous)
    assert all(sample.mask is None for sample in split.train + nominal)
    if how is MTDSplit.random:
        assert len(nominal) == 10
        assert MTDConfig(root=str(tmp_path), seed=1).read() == split
        assert MTDConfig(root=str(tmp_path), seed=2).read() != split
    else:
        # The three of the cracked tile, then whole tiles until there are ten.
        assert len(nominal) == 15
        for run in exposure_runs(split.train + split.test):
            assert len({sample in split.test for sample in run}) == 1


def test_missing_classes_are_told(tmp_path: Path) -> None:
    write_mtd(tmp_path)
    words = r"data: .* lacks MT_Blowhole, MT_Break, MT_Uneven; read: "
    with pytest.warns(UserWarning, match=words):
        MTDConfig(root=str(tmp_path)).read()
    for name in ("Blowhole", "Break", "Uneven"):
        write_image(tmp_path / f"MT_{name}/Imgs/exp1_num_1.jpg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MTDConfig(root=str(tmp_path)).read()


@pytest.mark.parametrize(
    ("kind", "there", "words"),
    [
        (BTADConfig, ("train/ok", "test/ko"), "x/test lacks ok"),
        (LOCOConfig, ("train/good", "test/good"), "lacks logical_anomalies, structural_anomalies"),
        (MVTec2Config, ("train/good", "test_public/good"), "x/test_public lacks bad"),
        (MVTecConfig, ("train/good", "test/hole"), "x lacks ground_truth"),
        (BTADConfig, ("train/ok", "test/ok", "test/ko"), "x lacks ground_truth"),
        (LOCOConfig, ("train/good", "test/good"), "x lacks validation"),
    ],
)
def test_missing_kinds_of_test_images_are_told(
    kind: type[DataConfig], there: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    for number, folder in enumerate(there):
        write_image(tmp_path / "x" / folder / "1.png", seed=number)
    with pytest.warns(UserWarning, match=words):
        kind(root=str(tmp_path), category="x").read()  # type: ignore[call-arg]


def test_mtd_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^data\.root: there is no folder .*github"):
        MTDConfig(root=str(tmp_path / "absent")).read()
    with pytest.raises(InputError, match=r"^data\.root: .* has no folder MT_Free"):
        MTDConfig(root=str(tmp_path)).read()
    (tmp_path / "MT_Free").mkdir()
    with pytest.raises(InputError, match="MT_Free/Imgs: no such folder"):
        MTDConfig(root=str(tmp_path)).read()
    write_mtd(tmp_path)
    odd = write_image(tmp_path / "MT_Free/Imgs/photo.jpg")
    with pytest.raises(InputError, match=r"photo\.jpg: the name should read"):
        MTDConfig(root=str(tmp_path), split=MTDSplit.grouped).read()
    with pytest.raises(InputError, match=r"^data\.test_share: 0\.999 leaves none"):
        MTDConfig(root=str(tmp_path), test_share=0.999).read()
    odd.unlink()
    lost = write_mask(tmp_path / "MT_Fray/Imgs/exp1_num_9.png")
    with pytest.raises(InputError, match=r"exp1_num_9\.png: this mask has no image"):
        MTDConfig(root=str(tmp_path)).read()
    lost.unlink()
    (tmp_path / "MT_Break/Imgs").mkdir(parents=True)
    with pytest.raises(InputError, match="MT_Break/Imgs: holds no images"):
        MTDConfig(root=str(tmp_path)).read()


def test_mtd_itself(mtd_root: Path) -> None:
    split = MTDConfig(root=str(mtd_root)).read()
    assert (len(split.train), len(split.test)) == (762, 190 + 392)
    for seed in range(3):
        split = MTDConfig(root=str(mtd_root), split=MTDSplit.grouped, seed=seed).read()
        assert len(split.train) + len(split.test) == 952 + 392
        assert 190 <= sum(not sample.label for sample in split.test) < 190 + 14
        train = {sample.path for sample in split.train}
        for run in exposure_runs(split.train + split.test):
            assert len({sample.path in train for sample in run}) == 1


# --- a user's folders ------------------------------------------------------------------------


def write_folders(root: Path) -> None:
    for i in range(10):
        write_image(root / f"ok/day{i % 2}/{i}.png", seed=i)
    for name in ("scratch/1.jpg", "hole/1.jpg", "hole/2.jpg", "3.jpg"):
        write_image(root / "bad" / name)
    for name in ("scratch/1.png", "hole/1_mask.png", "2.png"):
        write_mask(root / "masks" / name)


def test_folders_with_defect_types_and_masks(tmp_path: Path) -> None:
    write_folders(tmp_path)
    split = FolderConfig(root=str(tmp_path), nominal="ok", anomalous="bad", masks="masks").read()
    assert len(split.train) == 8
    held_out = [sample for sample in split.test if not sample.label]
    assert len(held_out) == 2
    assert not {sample.path for sample in held_out} & {sample.path for sample in split.train}
    bad, masks = tmp_path / "bad", tmp_path / "masks"
    assert split.test[2:] == [
        Sample(bad / "3.jpg", 1, "anomalous"),
        Sample(bad / "hole/1.jpg", 1, "hole", masks / "hole/1_mask.png"),
        Sample(bad / "hole/2.jpg", 1, "hole", masks / "2.png"),
        Sample(bad / "scratch/1.jpg", 1, "scratch", masks / "scratch/1.png"),
    ]


def test_folders_hold_out_by_seed(tmp_path: Path) -> None:
    write_folders(tmp_path)
    splits = [
        FolderConfig(root=str(tmp_path), nominal="ok", seed=seed).read() for seed in (0, 0, 1)
    ]
    assert splits[0] == splits[1] != splits[2]
    assert all(sample.label == 0 for sample in splits[0].test)


def test_folder_of_nominal_test_images(tmp_path: Path) -> None:
    write_folders(tmp_path)
    split = FolderConfig(root=str(tmp_path), nominal="ok/day0", nominal_test="ok/day1").read()
    assert [sample.path.name for sample in split.train] == [f"{i}.png" for i in (0, 2, 4, 6, 8)]
    assert [sample.path.name for sample in split.test] == [f"{i}.png" for i in (1, 3, 5, 7, 9)]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_that_look_the_same_belong_together(
    tmp_path: Path, form: Literal["NFC", "NFD"]
) -> None:
    name, other = (unicodedata.normalize(each, "prüf") for each in (form, "NFC"))  # type: ignore[arg-type]
    for place in ("nominal/1.png", "nominal/2.png", f"bad/é/{name}.png"):
        write_image(tmp_path / place)
    mask = write_mask(tmp_path / f"masks/é/{other}_mask.png")
    split = FolderConfig(root=str(tmp_path), anomalous="bad", masks="masks").read()
    assert [sample.mask for sample in split.test if sample.label] == [mask]
    folder = write_mvtec(tmp_path / "mvtec", (8, 8))
    image = write_image(folder / f"test/scratch/{name}.png", (8, 8))
    mask = write_mask(folder / f"ground_truth/scratch/{other}_mask.png", (8, 8))
    found = MVTecConfig(root=str(tmp_path / "mvtec"), category="nut").read().test
    assert {sample.path: sample.mask for sample in found}[image] == mask


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize(
    ("kind", "truth"),
    [
        (MVTecConfig, "ground_truth/{}/0_mask.png"),
        (MVTec2Config, "test_public/ground_truth/{}/0_mask.png"),
        (LOCOConfig, "ground_truth/{}/0/000.png"),
    ],
)
def test_folders_of_defects_whose_names_look_the_same_belong_together(
    tmp_path: Path, kind: type[DataConfig], truth: str, form: Literal["NFC", "NFD"]
) -> None:
    other: Literal["NFC", "NFD"] = "NFC" if form == "NFD" else "NFD"
    defect = unicodedata.normalize(form, "bläse")
    test = "test_public" if kind is MVTec2Config else "test"
    write_image(tmp_path / "nut/train/good/0.png", (8, 8))
    image = write_image(tmp_path / f"nut/{test}/{defect}/0.png", (8, 8), 1)
    mask = write_mask(
        tmp_path / "nut" / truth.format(unicodedata.normalize(other, "bläse")), (8, 8)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the data set always has is missing
        (found,) = kind(root=str(tmp_path), category="nut").read().test  # type: ignore[call-arg]
    assert (found.path, found.defect_type) == (image, defect) and found.mask in (
        mask,
        Masks((mask,)),
    )


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_masks_in_a_subfolder_may_be_named_in_another_form(
    tmp_path: Path, form: Literal["NFC", "NFD"]
) -> None:
    write_image(tmp_path / "nominal/bläse.png", (8, 8))
    mask = write_image(
        tmp_path / f"nominal/masks/{unicodedata.normalize(form, 'bläse')}.png", (8, 8), 1
    )
    with pytest.raises(InputError, match=f"^{mask}: looks like a mask"):
        FolderConfig(root=str(tmp_path)).read()


@pytest.mark.parametrize("root", ["..", ".", "train/..", None])
def test_a_category_in_place_of_its_data_set_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str | None
) -> None:
    folder = write_mvtec(tmp_path)
    monkeypatch.chdir(folder / "train" if root == ".." else folder)
    root = root or str(folder)
    with pytest.raises(InputError) as caught:
        MVTecConfig(root=root, category="nut").read()
    assert str(caught.value) == (
        f"data.root: {root} is the folder of a category: set data.root={tmp_path} and "
        "data.category=nut"
    )


def test_a_folder_in_a_category_in_place_of_its_data_set_is_told(tmp_path: Path) -> None:
    root = write_mvtec(tmp_path) / "train"
    told = f"^data.root: {root} is in the folder of a category: set data.root={tmp_path} and data.c"
    with pytest.raises(InputError, match=told):
        MVTecConfig(root=str(root), category="nut").read()


@pytest.mark.parametrize("place", ["nut", "store"])
def test_a_category_deeper_than_its_data_set_is_told(tmp_path: Path, place: str) -> None:
    write_mvtec(tmp_path / place)
    with pytest.raises(InputError) as caught:
        MVTecConfig(root=str(tmp_path), category="nut").read()
    assert str(caught.value) == (
        f"data.root: {tmp_path} has no category 'nut', and {tmp_path}/{place} has one: set "
        f"data.root={tmp_path}/{place}"
    )
    assert MVTecConfig(root=str(tmp_path / place), category="nut").read().train


def test_folders_bad_input(tmp_path: Path) -> None:
    write_folders(tmp_path)
    root = str(tmp_path)
    with pytest.raises(InputError, match=r"^data\.nominal: there is no folder .*nominal"):
        FolderConfig(root=root).read()
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"^data\.anomalous: .*none holds no images \(\.avif"):
        FolderConfig(root=root, nominal="ok", anomalous="none").read()
    with pytest.raises(InputError, match=r"^data\.masks: there is no folder"):
        FolderConfig(root=root, nominal="ok", anomalous="bad", masks="truth").read()
    with pytest.raises(InputError, match=r"^data\.nominal_test: .* is in the folder data.nominal"):
        FolderConfig(root=root, nominal="ok", nominal_test="ok/day1").read()
    with pytest.raises(InputError, match=r"^data\.anomalous: .* is in the folder data.nominal"):
        FolderConfig(root=root, nominal=".", anomalous="bad", test_share=0).read()
    with pytest.raises(InputError, match=r"^data\.test_share: 0\.95 of 10 .* leaves none"):
        FolderConfig(root=root, nominal="ok", test_share=0.95).read()
    with pytest.raises(InputError, match=r"^data\.test_share: no image is left to test on"):
        FolderConfig(root=root, nominal="ok", test_share=0).read()
    write_image(tmp_path / "bad/good/1.jpg")
    with pytest.raises(InputError, match=r"^data\.anomalous: .*good is named like"):
        FolderConfig(root=root, nominal="ok", anomalous="bad").read()


def test_anomalous_images_beside_the_nominal_ones_are_not_learned(tmp_path: Path) -> None:
    for name in ("train/good/1.png", "test/good/2.png", "test/bent/3.png"):
        write_image(tmp_path / name, (8, 8), int(name[-5]))
    root = str(tmp_path)
    for given, key in (
        ({"nominal": "test"}, "nominal"),
        ({"nominal": "."}, "nominal"),
        ({"nominal": "train", "nominal_test": "test"}, "nominal_test"),
    ):
        with pytest.raises(InputError, match=rf"test/bent: lies beside good, .*set data\.{key} to"):
            FolderConfig(root=root, **given).read()
    split = FolderConfig(root=root, nominal="train", anomalous="test/bent", test_share=0).read()
    assert [sample.path.name for sample in split.train] == ["1.png"]


def test_images_in_good_are_nominal_wherever_that_folder_lies(tmp_path: Path) -> None:
    names = ["good/cam1/1.png", "2024/good/2.png", "2024/good_2/3.png", "2025/OK/cam1/4.png"]
    for name in names:
        write_image(tmp_path / "nominal" / name, (8, 8), int(name[-5]))
    config = FolderConfig(root=str(tmp_path), test_share=0, anomalous="bad")
    write_image(tmp_path / "bad/5.png", (8, 8), 5)
    with pytest.raises(InputError, match=r"nominal/2024: lies beside good, "):
        config.read()  # as 2024/good_2 may hold anything
    shutil.move(tmp_path / "nominal/2024/good_2", tmp_path / "nominal/good_2")
    assert len(config.read().train) == 4
    write_image(tmp_path / "nominal/2025/crack/6.png", (8, 8), 6)
    with pytest.raises(InputError, match=r"nominal/2025/crack: lies beside OK, "):
        config.read()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("hole/9.png", "hole/9.png: this mask has no images of its name"),
        (
            "dent/3_mask.png",
            "dent/3_mask.png: this mask has no image of its name in .*/bad/dent; masks of "
            ".*/bad/3.jpg are expected in .*/masks: move the mask or the image",
        ),
        ("dent/2.png", "bad/dent; masks of .*/bad/hole/2.jpg are expected in .*/masks/hole: move"),
        ("1.png", "masks/1.png: this mask has 2 images of its name"),
        ("hole/1.png", "hole/1_mask.png: .*hole/1.jpg has the mask .*hole/1.png already"),
    ],
)
def test_folders_masks_that_match_no_single_image(tmp_path: Path, mask: str, message: str) -> None:
    write_folders(tmp_path)
    write_mask(tmp_path / "masks" / mask)
    with pytest.raises(InputError, match=message):
        FolderConfig(root=str(tmp_path), nominal="ok", anomalous="bad", masks="masks").read()


def test_a_mask_is_not_said_to_be_of_an_image_that_has_one(tmp_path: Path) -> None:
    for name in ("nominal/1.png", "nominal/2.png", "bad/spot/7_old.png", "bad/scratch/7.png"):
        write_image(tmp_path / name, (8, 8), len(name))
    for kind in ("spot", "scratch"):
        write_mask(tmp_path / f"masks/{kind}/7_mask.png")
    told = f"spot/7_mask.png: this mask has no images of its name in {tmp_path}/bad; restore its"
    with pytest.raises(InputError, match=told):
        FolderConfig(root=str(tmp_path), anomalous="bad", masks="masks").read()


def test_images_that_differ_in_their_endings_need_masks_of_their_own(tmp_path: Path) -> None:
    for name in ("nominal/1.png", "nominal/2.png", "bad/hole/7.png", "bad/hole/7.jpg"):
        write_image(tmp_path / name, (8, 8), len(name))
    write_mask(tmp_path / "masks/hole/7_mask.png")
    told = r"7_mask.png: this mask has 2 images of its name in .*; rename one of 7.jpg and 7.png"
    with pytest.raises(InputError, match=told):
        FolderConfig(root=str(tmp_path), anomalous="bad", masks="masks").read()


@pytest.mark.parametrize("link", [os.link, os.symlink, shutil.copy])
def test_a_picture_in_place_of_its_mask_is_told(tmp_path: Path, link: Any) -> None:
    for name in ("nominal/1.png", "nominal/2.png", "bad/1.png", "bad/2.png"):
        write_image(tmp_path / name)
    (tmp_path / "masks").mkdir()
    image, mask = tmp_path / "bad/1.png", tmp_path / "masks/1.png"
    link(image, mask)
    with pytest.raises(InputError, match=f"^{mask}: this mask is the picture {image} itself; rest"):
        FolderConfig(root=str(tmp_path), anomalous="bad", masks="masks").read()


# --- generated images ------------------------------------------------------------------------


def generated(root: Path, category: GeneratedCategory, seed: int = 0) -> GeneratedConfig:
    return GeneratedConfig(
        root=str(root),
        category=category,
        seed=seed,
        size=64,
        train_images=2,
        nominal_images=2,
        anomalous_images=6,
    )


@pytest.mark.parametrize("category", GeneratedCategory)
def test_generated_images_are_the_same_again(tmp_path: Path, category: GeneratedCategory) -> None:
    splits = [
        generated(tmp_path / name, category, seed).read()
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    first, again, other = ([s.path.read_bytes() for s in x.train + x.test] for x in splits)
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))
    assert len(set(first)) == len(first)
    assert [sample.label for sample in splits[0].test].count(0) == 2
    for sample in splits[0].test:
        assert read_image(sample.path).shape == (64, 64, 3)
        assert (sample.mask is None) == (sample.label == 0)
        assert sample.mask is None or read_mask(sample.mask).any()


def test_generated_images_are_written_once(tmp_path: Path) -> None:
    config = generated(tmp_path, GeneratedCategory.texture)
    image = config.read().train[0].path
    written = image.stat().st_mtime_ns
    config.read()
    assert image.stat().st_mtime_ns == written
    assert [path.name for path in tmp_path.iterdir()] == [config.folder().name]


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("1 training image, but 2", "train/good"),
        ("1 nominal test image, but 2", "test/good"),
        ("5 masks, but 6", "ground_truth/*"),
    ],
)
def test_removed_generated_images_are_told(tmp_path: Path, kind: str, place: str) -> None:
    config = generated(tmp_path, GeneratedCategory.texture)
    split = config.read()
    folder = config.folder()
    min(folder.glob(f"texture/{place}/*.png")).unlink()
    with pytest.raises(InputError, match=f"texture: holds {kind} were drawn; remove .* anew"):
        config.read()
    shutil.rmtree(folder / "texture" / place.split("/")[0])
    told = rf"^{folder}/texture: lacks .*; remove {folder}, and all are drawn anew$"
    with pytest.raises(InputError, match=told):
        config.read()
    shutil.rmtree(folder)
    assert config.read() == split


def test_two_processes_write_the_same_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = generated(tmp_path, GeneratedCategory.object)
    draw = GeneratedConfig._draw

    def draw_while_another_finishes(self: GeneratedConfig, folder: Path) -> None:
        draw(self, folder)
        if not config.folder().is_dir():
            monkeypatch.setattr(GeneratedConfig, "_draw", draw)
            config.read()

    monkeypatch.setattr(GeneratedConfig, "_draw", draw_while_another_finishes)
    assert len(config.read().test) == 8
    assert [path.name for path in tmp_path.iterdir()] == [config.folder().name]


def test_a_failure_while_drawing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: GeneratedConfig, folder: Path) -> None:
        folder.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(GeneratedConfig, "_draw", full)
    with pytest.raises(InputError, match=r"^data\.root: cannot write to .*No space left"):
        generated(tmp_path, GeneratedCategory.object).read()
    assert not list(tmp_path.iterdir())


def test_generated_images_lie_in_the_cache_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folders = {
        GeneratedConfig(category=category, seed=seed).folder()
        for category in GeneratedCategory
        for seed in (0, 1)
    }
    assert len(folders) == 4
    assert {folder.parent for folder in folders} == {tmp_path / "patchcore/generated"}
