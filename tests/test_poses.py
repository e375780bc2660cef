"""Fixed poses of training images: what they are, and what a run does with them."""

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from patchcore import AllConfig, InputError, load, run
from patchcore.cache import CacheConfig, Store
from patchcore.data import dataset as reading
from patchcore.data.augment import AugmentConfig
from patchcore.data.datamodule import AnomalyDataModule
from patchcore.data.dataset import ImageDataset
from patchcore.data.mvtec import MVTecConfig
from patchcore.data.poses import UPRIGHT, Mirror, Pose, poses
from patchcore.data.sample import Sample
from patchcore.data.transforms import ImageConfig
from patchcore.decision import DecisionConfig
from patchcore.explanation import check_explains, cut_crops
from patchcore.keeping import ArtifactConfig, Keep
from patchcore.settings import effective
from patchcore.switches import check_shared
from tests import reference
from tests.images import write_image, write_mvtec
from tests.runs import config

SIZE = 32
PLAIN = ImageConfig(resize=SIZE, crop=SIZE)
FOUR = AugmentConfig(rotations=2, mirrored=Mirror.horizontal)


def smooth(height: int, width: int) -> Any:
    """A picture (H, W, 3) without a symmetry, whose neighbouring pixels are alike."""
    y, x = np.mgrid[:height, :width]
    planes = [np.sin(x / 5) + y / height, np.cos(y / 7 + x / 9), x * y / (height * width)]
    return np.stack([(p - p.min()) / (p.max() - p.min()) * 255 for p in planes], -1).astype("uint8")


@pytest.mark.parametrize("rotations", [1, 3, 4, 8])
@pytest.mark.parametrize("mirrored", Mirror)
def test_each_pose_is_there_once(rotations: int, mirrored: Mirror) -> None:
    found = poses(rotations, mirrored)
    image = smooth(24, 24)
    unmarked = np.zeros((24, 24), bool)
    pictures = [pose.apply(image, unmarked)[0].tobytes() for pose in found]
    assert found[0] == UPRIGHT and pictures[0] == image.tobytes()
    assert len(set(pictures)) == len(pictures)
    twins = {Mirror.none: 1, Mirror.both: 2 if rotations % 2 == 0 else 4}.get(mirrored, 2)
    assert len(found) == twins * rotations


def test_mirror_images_are_those_that_their_names_say() -> None:
    image, mask = smooth(20, 30), np.arange(600).reshape(20, 30) % 7 == 0
    for mirrored, axes in ((Mirror.horizontal, 1), (Mirror.vertical, 0), (Mirror.both, (0, 1))):
        found = [pose.apply(image, mask) for pose in poses(1, mirrored)]
        assert any(
            np.array_equal(x, np.flip(image, axes)) and np.array_equal(m, np.flip(mask, axes))
            for x, m in found
        )


@pytest.mark.parametrize("degrees", [45.0, 120.0, 180.0, 290.0])
@pytest.mark.parametrize("mirrored", [False, True])
def test_turns_equal_the_naive_version(degrees: float, mirrored: bool) -> None:
    image = smooth(18, 27)
    mask = image[..., 0] > 128
    seen, turned = Pose(mirrored, degrees).apply(image, mask)
    expected = reference.pose(image.astype(float), mirrored, degrees)
    assert np.abs(seen - expected).max() <= 2
    share = reference.pose(mask[..., None].astype(float), mirrored, degrees)[..., 0]
    sure = np.abs(share - 0.5) > 0.45  # elsewhere the nearest pixel decides
    assert sure.mean() > 0.5 and np.array_equal(turned[sure], share[sure] > 0.5)


def test_a_quarter_turn_is_one_to_the_left() -> None:
    image = smooth(5, 8)
    seen, _ = Pose(False, 90).apply(image, image[..., 0] > 100)
    assert np.array_equal(seen, image[:, ::-1].transpose(1, 0, 2))


def test_a_batch_holds_an_image_in_all_poses_from_one_decoded_file(tmp_path: Path) -> None:
    write_mvtec(tmp_path, (SIZE, SIZE))
    data = MVTecConfig(root=str(tmp_path), category="nut", batch_size=9)
    module = AnomalyDataModule(data, PLAIN, FOUR)
    with mock.patch.object(reading, "decode_pair", wraps=reading.decode_pair) as read:
        batches = list(module.train_dataloader())
    assert read.call_count == len(module.split.train) == 4
    assert [len(batch["index"]) for batch in batches] == [8, 8]
    assert batches[1]["index"].tolist() == [2] * 4 + [3] * 4
    upright = ImageDataset(module.split.train, PLAIN)[2]["image"]
    for seen, pose in zip(batches[1]["image"], FOUR.poses(), strict=False):
        expected = upright.flip(2) if pose.mirrored else upright
        assert torch.equal(seen, expected.rot90(int(pose.degrees // 90), (1, 2)))
    assert torch.equal(ImageDataset(module.split.train, PLAIN, FOUR)[2]["image"], upright)
    assert len(next(iter(module.test_dataloader()))["index"]) == 5


def written(root: Path, augment: AugmentConfig) -> None:
    """Training images of a data set in all poses, a file each, in the order of a run's batches."""
    for path in sorted((root / "nut/train/good").iterdir()):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        for number, pose in enumerate(augment.poses()):
            turned, _ = pose.apply(pixels, np.zeros(pixels.shape[:2], bool))
            Image.fromarray(np.ascontiguousarray(turned)).save(
                path.with_stem(f"{path.stem}_{number}")
            )
        path.unlink()


def test_a_run_remembers_every_pose_as_if_it_were_an_image(tmp_path: Path) -> None:
    settings = {"coreset": AllConfig(), "image": PLAIN}
    for name in ("posed", "naive"):
        write_mvtec(tmp_path / name, (SIZE, SIZE))
    written(tmp_path / "naive", FOUR)
    ours = run(config(tmp_path / "posed", augment=FOUR, **settings), tmp_path / "a")
    naive = run(config(tmp_path / "naive", **settings), tmp_path / "b")
    assert ours.record["train_images"] == naive.record["train_images"] == 16
    assert ours.record["memory_patches"] == naive.record["memory_patches"]
    scores = [np.loadtxt(tmp_path / x / "scores.csv", str, delimiter=",")[1:, 3] for x in "ab"]
    assert np.allclose(*(each.astype(float) for each in scores), rtol=1e-5)


def test_poses_are_kept_apart_in_the_cache_and_the_image_itself_is_shared(tmp_path: Path) -> None:
    write_mvtec(tmp_path, (SIZE, SIZE))
    cache = CacheConfig(enabled=True, root=str(tmp_path / "cache"))

    def entries(augment: AugmentConfig, folder: str) -> tuple[int, dict[str, Any]]:
        record = run(config(tmp_path, augment=augment, cache=cache), tmp_path / folder).record
        keys = [entry.key for entry in Store(tmp_path / "cache").entries()]
        return sum(key.startswith("images/") for key in keys), record

    plain, _ = entries(AugmentConfig(), "plain")
    posed, first = entries(FOUR, "first")
    with mock.patch.object(reading, "decode_pair", side_effect=AssertionError):
        again, second = entries(FOUR, "again")
    assert (plain, posed - plain, again - posed) == (9, 12, 0)
    assert {**first, "seconds": {}} == {**second, "seconds": {}}


def test_all_poses_of_an_image_are_left_out_together(tmp_path: Path) -> None:
    write_mvtec(tmp_path, (SIZE, SIZE))
    decision = DecisionConfig(false_alarms=0.5, folds=4)
    record = run(config(tmp_path, augment=FOUR, decision=decision), tmp_path / "run").record
    assert record["decision_images"] == 4
    # An image that its own mirror image stayed behind of would be found in the memory: no distance.
    assert record["decision_threshold"] > 1e-3


@pytest.mark.parametrize("change", [{"noise": 0.1}, {"rotate": 5.0}, {"horizontal_flip": True}])
def test_fixed_poses_and_random_changes_exclude_each_other(change: dict[str, Any]) -> None:
    with pytest.raises(
        InputError, match=r"^augment.rotations and augment.mirrored give fixed poses"
    ):
        AugmentConfig(rotations=4, **change)
    assert not AugmentConfig(rotations=4).changes() and AugmentConfig(**change).changes()


def test_poses_are_part_of_what_a_result_follows_from() -> None:
    kinds = [AugmentConfig(), AugmentConfig(rotations=4), FOUR]
    assert len({str(effective(kind)) for kind in kinds}) == 3
    assert effective(AugmentConfig(4, seed=1)) == effective(AugmentConfig(4, seed=2))


def test_what_poses_cannot_be_had_with_is_refused(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"^augment: with data.region"):
        ImageDataset([Sample(path, 0, region=path)], PLAIN, FOUR)
    two = config(tmp_path, augment=FOUR, trainer={"accelerator": "cpu", "devices": 2})
    with pytest.raises(InputError, match=r"^trainer.devices=2: augment.rotations or mirrored"):
        check_shared(two)
    with pytest.raises(InputError, match=r"^trainer.max_epochs=2 would put the same patches"):
        config(tmp_path, augment=FOUR, trainer={"accelerator": "cpu", "max_epochs": 2})
    write_mvtec(tmp_path, (SIZE, SIZE))
    crops = ArtifactConfig(Keep.all, crops=True)
    turned = AugmentConfig(rotate=5.0)
    with pytest.raises(
        InputError, match=r"^artifact.crops .*: leave out .* augment.horizontal_flip"
    ):
        run(config(tmp_path, augment=turned, artifact=crops), tmp_path / "run")
    with pytest.raises(InputError, match=r"^artifact.crops shows images as they are"):
        run(config(tmp_path, augment=FOUR, artifact=crops), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rotations": 2}, "in several poses, .* fit without augment.rotations"),
        ({"horizontal_flip": True}, "moved at random, .* fit without augment.horizontal_flip"),
        ({"brightness": 0.1}, None),
    ],
)
def test_a_model_of_moved_images_explains_nothing(
    tmp_path: Path, change: dict[str, Any], message: str | None
) -> None:
    write_mvtec(tmp_path, (SIZE, SIZE))
    kept = ArtifactConfig(Keep.all)
    run(config(tmp_path, augment=AugmentConfig(**change), artifact=kept), tmp_path / "run")
    inspector = load(tmp_path / "run/artifact")
    if message is None:
        check_explains(inspector)
        assert len(cut_crops(inspector)) == inspector.model.memory_patches
        return
    for key, refused in (("--explain", check_explains), ("artifact.crops", cut_crops)):
        with pytest.raises(InputError, match=f"^{key}: the memory bank holds images {message}"):
            refused(inspector)
