"""Low-shot runs: a seeded draw of nominal training images, in one place for all data sets."""

from pathlib import Path

import numpy as np
import pytest

from patchcore.data.folder import FolderConfig
from patchcore.data.generated import GeneratedConfig
from patchcore.data.mtd import MTDConfig
from patchcore.data.mvtec import MVTecConfig
from patchcore.data.sample import DataConfig, Sample, draw_shots
from patchcore.errors import InputError
from patchcore.identity import samples_digest
from tests.images import write_image, write_mvtec

SAMPLES = [Sample(Path(f"{i:02d}.png"), 0) for i in range(20)]


@pytest.mark.parametrize("seed", range(5))
def test_draws_are_nested_and_in_order(seed: int) -> None:
    smaller: set[Sample] = set()
    for shots in (1, 2, 5, 10, 16, 20):
        drawn = draw_shots(SAMPLES, shots, seed)
        assert len(drawn) == shots
        assert drawn == [sample for sample in SAMPLES if sample in set(drawn)]
        assert smaller < set(drawn)
        smaller = set(drawn)


def test_draws_follow_from_the_seed_and_reach_every_image() -> None:
    assert draw_shots(SAMPLES, 5, 0) == draw_shots(SAMPLES, 5, 0) != draw_shots(SAMPLES, 5, 1)
    counts = np.zeros(20, dtype=int)
    for seed in range(400):
        counts[[SAMPLES.index(sample) for sample in draw_shots(SAMPLES, 5, seed)]] += 1
    assert counts.sum() == 2000
    assert counts.min() > 60  # of 100 expected; 4.6 standard deviations below


def test_more_shots_than_images() -> None:
    with pytest.raises(InputError, match=r"^data\.shots: 21 is more than the 20 nominal"):
        draw_shots(SAMPLES, 21, 0)


def test_a_seed_below_zero_is_named_if_it_draws() -> None:
    with pytest.raises(InputError, match=r"^data\.shots_seed must be at least 0, got -1"):
        MVTecConfig(shots=1, shots_seed=-1)


def data_set(name: str, root: Path, **shots: int) -> DataConfig:
    match name:
        case "mvtec":
            write_mvtec(root)
            return MVTecConfig(root=str(root), category="nut", **shots)
        case "mtd":
            for i in range(8):
                write_image(root / f"MT_Free/Imgs/{i}.jpg", seed=i)
            return MTDConfig(root=str(root), **shots)
        case "folder":
            for i in range(8):
                write_image(root / f"nominal/{i}.png", seed=i)
            return FolderConfig(root=str(root), **shots)
    return GeneratedConfig(
        root=str(root),
        size=64,
        train_images=4,
        nominal_images=1,
        anomalous_images=1,
        **shots,
    )


@pytest.mark.filterwarnings("ignore:data. .* lacks :UserWarning")  # of folders
@pytest.mark.parametrize("name", ["mvtec", "mtd", "folder", "generated"])
def test_every_data_set_draws_and_keeps_its_test_images(tmp_path: Path, name: str) -> None:
    whole = data_set(name, tmp_path).read()
    for shots in (1, 3):
        split = data_set(name, tmp_path, shots=shots, shots_seed=2).read()
        assert split.train == draw_shots(whole.train, shots, 2)
        assert split.test == whole.test
    many = len(whole.train) + 1
    with pytest.raises(InputError, match=rf"^data\.shots: {many} is more than the {many - 1} "):
        data_set(name, tmp_path, shots=many).read()


def test_a_run_is_named_by_the_images_drawn(tmp_path: Path) -> None:
    splits = [
        data_set("mvtec", tmp_path, shots=2, shots_seed=seed).read() for seed in (0, 0, 1, 2, 3)
    ]
    names = [samples_digest(split.train, split) for split in splits]
    assert names[0] == names[1]
    assert (names[0] == names[4]) == (splits[0] == splits[4])
    assert len(set(names)) == len({tuple(split.train) for split in splits}) > 1
    assert samples_digest([], splits[0]) not in names
