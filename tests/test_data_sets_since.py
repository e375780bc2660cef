"""MVTec AD 2, MVTec 3D-AD, MPDD and Real-IAD: miniatures in their published layouts."""

import codecs
import json
import unicodedata
from pathlib import Path
from typing import Any, Literal

import pytest

from patchcore.data.mpdd import MPDDConfig
from patchcore.data.mvtec2 import MVTec2Config
from patchcore.data.mvtec3d import MVTec3DConfig
from patchcore.data.realiad import RealIADConfig
from patchcore.data.sample import DataConfig, Sample
from patchcore.errors import InputError
from tests.images import write_image, write_mask

KINDS: list[type[DataConfig]] = [MPDDConfig, MVTec2Config, MVTec3DConfig, RealIADConfig]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_missing_is_told_with_the_layout(tmp_path: Path, kind: type[DataConfig]) -> None:
    with pytest.raises(InputError, match=r"^data\.root: .*absent; it should hold .* https://"):
        kind(root=str(tmp_path / "absent")).read()  # type: ignore[call-arg]
    with pytest.raises(InputError, match=r"^data\.category: .*'nuts'; it has none, expected"):
        kind(root=str(tmp_path), category="nuts").read()  # type: ignore[call-arg]


def test_mpdd_is_in_the_layout_of_mvtec(tmp_path: Path) -> None:
    folder = tmp_path / "tubes"
    train = write_image(folder / "train/good/000.png")
    good = write_image(folder / "test/good/000.png")
    flat = write_image(folder / "test/anomalous/001.png")
    mask = write_mask(folder / "ground_truth/anomalous/001_mask.png")
    split = MPDDConfig(root=str(tmp_path), category="tubes").read()
    assert split.train == [Sample(train, 0)]
    assert split.test == [Sample(flat, 1, "anomalous", mask), Sample(good, 0)]


def write_mvtec2(root: Path) -> Path:
    folder = root / "vial"
    for part in ("train/good", "validation/good", "test_public/good", "test_public/bad"):
        for light in ("regular", "overexposed"):
            write_image(folder / part / f"000_{light}.png")
    write_mask(folder / "test_public/ground_truth/bad/000_regular_mask.png")
    write_mask(folder / "test_public/ground_truth/bad/000_overexposed_mask.png")
    for part in ("test_private", "test_private_mixed"):
        write_image(folder / part / "000.png")
    return folder


def test_mvtec2_tests_on_its_public_images(tmp_path: Path) -> None:
    folder = write_mvtec2(tmp_path)
    config = MVTec2Config(root=str(tmp_path), category="vial")
    split = config.read()  # without a word of the private images
    names = [f"000_{light}.png" for light in ("overexposed", "regular")]
    assert split.train == [Sample(folder / "train/good" / name, 0) for name in names]
    public = folder / "test_public"
    masks = [public / f"ground_truth/bad/{name.removesuffix('.png')}_mask.png" for name in names]
    assert split.test == [
        *(Sample(public / "bad" / n, 1, "bad", m) for n, m in zip(names, masks, strict=True)),
        *(Sample(public / "good" / name, 0) for name in names),
    ]
    more = MVTec2Config(root=str(tmp_path), category="vial", validation=True).read()
    extra = [Sample(folder / "validation/good" / name, 0) for name in names]
    assert (more.train, more.test) == (split.train + extra, split.test)
    (public / "bad/000_regular.png").unlink()
    with pytest.raises(InputError, match=r"000_regular_mask\.png: this mask has no image named"):
        config.read()


def write_mvtec3d(root: Path) -> Path:
    folder = root / "tire"
    parts = ("train/good", "validation/good", "test/good", "test/cut", "test/hole")
    for seed, part in enumerate(parts):
        write_image(folder / part / "rgb/000.png", seed=seed)
        (folder / part / "xyz").mkdir()
        (folder / part / "xyz/000.tiff").write_bytes(b"positions of points are not read")
        if part.startswith("test"):
            write_mask(folder / part / "gt/000.png", marked="good" not in part)
    (folder / "calibration").mkdir()
    return folder


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_mask_of_mvtec3d_may_be_named_in_another_form(
    tmp_path: Path, form: Literal["NFC", "NFD"]
) -> None:
    folder = write_mvtec3d(tmp_path) / "test/hole"
    image = write_image(folder / "rgb" / f"{unicodedata.normalize(form, 'bläse')}.png")
    mask = write_mask(folder / "gt/bläse.png")
    found = MVTec3DConfig(root=str(tmp_path), category="tire").read().test
    assert {sample.path: sample.mask for sample in found}[image] == mask


def test_mvtec3d_reads_its_colour_images(tmp_path: Path) -> None:
    folder = write_mvtec3d(tmp_path)
    config = MVTec3DConfig(root=str(tmp_path), category="tire")
    split = config.read()
    assert split.train == [Sample(folder / "train/good/rgb/000.png", 0)]
    assert split.test == [
        Sample(folder / "test/cut/rgb/000.png", 1, "cut", folder / "test/cut/gt/000.png"),
        Sample(folder / "test/good/rgb/000.png", 0),
        Sample(folder / "test/hole/rgb/000.png", 1, "hole", folder / "test/hole/gt/000.png"),
    ]
    more = MVTec3DConfig(root=str(tmp_path), category="tire", validation=True).read()
    assert more.train == [*split.train, Sample(folder / "validation/good/rgb/000.png", 0)]
    lost = write_mask(folder / "test/cut/gt/001.png")
    with pytest.raises(InputError, match=f"{lost}: this mask has no image named 001"):
        config.read()
    lost.unlink()
    write_mask(folder / "test/good/gt/000.png")
    with pytest.raises(InputError, match=r"good/gt/000\.png: marks part of a nominal image"):
        config.read()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("test/Good/rgb/000.png", "test/Good: nominal images are expected in a folder named good"),
        ("test/ok/rgb/000.png", "test/ok: nominal images are expected in a folder named good"),
        ("train/Good/rgb/000.png", "train/Good: nominal images are expected in a folder named"),
        (
            "test/cut/rgb/000.jpg",
            r"gt/000\.png: this mask has several images named 000 in .*cut/rgb",
        ),
        ("test/cut/gt/000.bmp", r"gt/000\.png: 000 has the mask .*gt/000\.bmp already; remove one"),
        ("test/cut/rgb/000_mask.png", r"000_mask\.png: is a mask by its name, .*folders named gt"),
        ("train/good/rgb/000_gt.png", r"000_gt\.png: is a mask by its name, .*folders named gt"),
        ("validation/good/rgb/000_gt.png", r"000_gt\.png: is a mask by its name"),
    ],
)
def test_what_mvtec3d_does_not_expect_is_refused(tmp_path: Path, place: str, message: str) -> None:
    write_image(write_mvtec3d(tmp_path) / place)
    with pytest.raises(InputError, match=message):
        MVTec3DConfig(root=str(tmp_path), category="tire", validation=True).read()


def test_folders_that_mvtec3d_does_not_read_are_told(tmp_path: Path) -> None:
    write_image(write_mvtec3d(tmp_path) / "train/worn/rgb/000.png")
    with pytest.warns(UserWarning, match=r"^data: not read: [^,]*tire/train/worn; r"):
        MVTec3DConfig(root=str(tmp_path), category="tire").read()


def test_masks_among_validation_images_are_refused(tmp_path: Path) -> None:
    write_mask(write_mvtec2(tmp_path) / "validation/good/000_regular_mask.png")
    with pytest.raises(InputError, match=r"regular_mask\.png: is a mask by its name"):
        MVTec2Config(root=str(tmp_path), category="vial", validation=True).read()


def entry(name: str, kind: str = "OK", mask: str | None = None) -> dict[str, Any]:
    return {"category": "toy", "anomaly_class": kind, "image_path": name, "mask_path": mask}


def write_realiad(root: Path, table: str, train: list[Any], test: list[Any]) -> Path:
    path = root / table / "toy.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = {"normal_class": "OK", "prefix": "toy/"}
    path.write_text(json.dumps({"meta": meta, "train": train, "test": test}))
    return path


def test_realiad_is_what_its_table_lists(tmp_path: Path) -> None:
    images = tmp_path / "realiad_1024/toy"
    names = [f"OK/S000{i}/toy_000{i}_OK_C{i}.jpg" for i in (1, 2, 3)]
    bad, mask = (f"NG/AK/S0004/toy_0004_NG_AK_C1{end}" for end in (".jpg", ".png"))
    for name in (*names, bad):
        write_image(images / name)
    write_mask(images / mask)
    train, test = [entry(names[1]), entry(names[0])], [entry(names[2]), entry(bad, "AK", mask)]
    table = write_realiad(tmp_path, "realiad_jsons", train, test)
    config = RealIADConfig(root=str(tmp_path), category="toy")
    split = config.read()
    assert split.train == [Sample(images / names[1], 0), Sample(images / names[0], 0)]
    anomalous = Sample(images / bad, 1, "AK", images / mask)
    assert split.test == [Sample(images / names[2], 0), anomalous]
    # Other tables lie in either place; one of a contaminated division alone may train on defects.
    write_realiad(tmp_path, "realiad_jsons/realiad_jsons_sv", train[:1], test)
    table.write_bytes(codecs.BOM_UTF8 + table.read_bytes())
    assert config.read() == split
    single = RealIADConfig(root=str(tmp_path), category="toy", table="realiad_jsons_sv").read()
    assert single.train == split.train[:1]
    write_realiad(tmp_path, "realiad_jsons_fuiad_0.4", [*train, test[1]], test[:1])
    table_04 = {"category": "toy", "table": "realiad_jsons_fuiad_0.4"}
    assert RealIADConfig(root=str(tmp_path), **table_04).read().train == [*split.train, anomalous]
    shot = RealIADConfig(root=str(tmp_path), **table_04, shots=1).read()
    assert len(shot.train) == 1 and shot.train[0] in split.train  # never the anomalous one
    with pytest.raises(InputError, match=r"^data\.shots: 3 is more than the 2 nominal training"):
        RealIADConfig(root=str(tmp_path), **table_04, shots=3).read()
    with pytest.raises(InputError, match=r"'nuts'; it has toy$"):
        RealIADConfig(root=str(tmp_path), category="nuts").read()
    with pytest.raises(InputError, match=r"realiad_256/toy: no such folder, though .*toy\.json"):
        RealIADConfig(root=str(tmp_path), category="toy", images="realiad_256").read()
    write_mask(images / "OK.png")
    for lists, message in (
        (([*train, test[1]], test), "lists anomalous images to train on"),
        (([], test), "lists no image to train on"),
        ((train, [entry("OK/7.jpg")]), r"OK/7\.jpg: no such file, though .*toy\.json lists it"),
        ((train, [entry("../other/7.jpg")]), r"toy\.json: lists \.\./other/7\.jpg, which is not"),
        ((train, [entry("/7.jpg")]), r"toy\.json: lists /7\.jpg, which is not below .*toy;"),
        ((train, [entry(names[2]) | {"category": "toys"}]), r"entry is of the category toys;"),
        ((train, [{"image_path": names[0]}]), "an entry has no image_path and anomaly_class"),
        ((train, ["OK/7.jpg"]), r"an entry has no image_path and anomaly_class: \{\}"),
        ((train, [entry(names[0], "OK", "OK.png")]), r"OK\.png: marks part of .*calls OK"),
        (([*train, train[0]], test), rf"toy\.json: lists .*{names[1]} more than once"),
        ((train, [*test, train[0]]), rf"toy\.json: lists .*{names[1]} more than once"),
        ((train, {}), r"toy\.json: has no lists train and test"),
    ):
        write_realiad(tmp_path, "realiad_jsons", *lists)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=message):
            config.read()
    whole = table.read_text()
    for content, reason in (
        (whole[:30].encode(), r".*: line 1 column 31 "),
        (b"", "Expecting value: line 1 column 1"),
        (whole.encode("utf-16"), "'utf-8' codec can't decode byte 0xff in position 0"),
    ):
        table.write_bytes(content)
        words = rf"toy\.json: cannot be read as JSON \({reason}.*\); restore the file"
        with pytest.raises(InputError, match=words):
            config.read()
    for text in ("[]", '{"train": []}'):
        table.write_text(text)
        with pytest.raises(InputError, match=r"toy\.json: has no lists train and test"):
            config.read()
