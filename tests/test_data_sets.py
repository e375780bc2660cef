from pathlib import Path

import pytest
from omegaconf import OmegaConf

from patchcore.data.folder import FolderConfig
from patchcore.data.generated import GeneratedCategory, GeneratedConfig
from patchcore.data.images import read_image, read_mask
from patchcore.data.mtd import REPEATED, MTDConfig, MTDSplit, exposure_runs
from patchcore.data.mvtec import MVTecConfig
from patchcore.data.sample import DataConfig, Sample
from patchcore.errors import InputError
from tests.images import write_image, write_mask, write_mvtec


@pytest.mark.parametrize("kind", [MVTecConfig, MTDConfig, FolderConfig, GeneratedConfig])
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
            write_image(root / kind / "Imgs" / f"{stem}.jpg", seed=t)
            write_mask(root / kind / "Imgs" / f"{stem}.png", marked=kind != "MT_Free")


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


def test_folders_bad_input(tmp_path: Path) -> None:
    write_folders(tmp_path)
    root = str(tmp_path)
    with pytest.raises(InputError, match=r"^data\.nominal: there is no folder .*nominal"):
        FolderConfig(root=root).read()
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"^data\.anomalous: .*none holds no images \(\.bmp"):
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


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("hole/9.png", "hole/9.png: this mask has no images of its name"),
        ("1.png", "masks/1.png: this mask has 2 images of its name"),
        ("hole/1.png", "hole/1_mask.png: .*hole/1.jpg has the mask .*hole/1.png already"),
    ],
)
def test_folders_masks_that_match_no_single_image(tmp_path: Path, mask: str, message: str) -> None:
    write_folders(tmp_path)
    write_mask(tmp_path / "masks" / mask)
    with pytest.raises(InputError, match=message):
        FolderConfig(root=str(tmp_path), nominal="ok", anomalous="bad", masks="masks").read()


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
    image.unlink()
    assert len(config.read().train) == 1  # what a user removes stays removed


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
