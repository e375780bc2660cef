import re
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytest import CaptureFixture

from patchcore import (
    AllConfig,
    BackboneConfig,
    LayersConfig,
    PatchConfig,
    PatchCore,
    RandomConfig,
    ScaleConfig,
)
from patchcore.data.augment import AugmentConfig
from patchcore.data.datamodule import AnomalyDataModule
from patchcore.data.dataset import ImageDataset, collate
from patchcore.data.mvtec import MVTecConfig
from patchcore.data.transforms import ImageConfig
from patchcore.metrics import IMAGE_KEYS, MAP_KEYS, MASK_KEYS, PIXEL_KEYS
from patchcore.module import DetectorModule
from patchcore.progress import ProgressBar
from tests import reference
from tests.images import write_mvtec

pytestmark = pytest.mark.filterwarnings("ignore:backbone resnet18 has random weights")
IMAGE = ImageConfig(resize=32, crop=32)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mvtec")
    write_mvtec(root, (40, 36))
    return root


def data(root: Path, augment: AugmentConfig | None = None, batch: int = 3) -> AnomalyDataModule:
    settings = MVTecConfig(root=str(root), category="nut", batch_size=batch)
    return AnomalyDataModule(settings, IMAGE, augment or AugmentConfig())


def model() -> PatchCore:
    patch = PatchConfig(layer_channels=24, channels=16)
    return PatchCore(
        BackboneConfig("resnet18", "none"), LayersConfig(["2", "3"]), patch, AllConfig()
    )


def trainer(**settings: Any) -> pl.Trainer:
    settings = {"max_epochs": 1, "enable_progress_bar": False, **settings}
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )


def fit(source: AnomalyDataModule, **settings: Any) -> DetectorModule:
    module = DetectorModule(model())
    trainer(**settings).fit(module, source)
    return module


@pytest.fixture(scope="module")
def tested(root: Path) -> tuple[DetectorModule, dict[str, float]]:
    """A module after training and testing, and what the Trainer logged."""
    module, runner = DetectorModule(model()), trainer()
    runner.fit(module, data(root))
    (logged,) = runner.test(module, data(root), verbose=False)
    return module, dict(logged)


def test_memory_equals_that_of_fit_without_lightning(
    root: Path, tested: tuple[DetectorModule, dict[str, float]]
) -> None:
    module, _ = tested
    batches = [batch["image"] for batch in data(root).train_dataloader()]
    assert [len(x) for x in batches] == [3, 1]
    assert torch.equal(module.model.memory, model().fit(batches).memory)
    assert module.model.memory.shape == (4 * 16, 16) and module.train_images == 4
    assert not module.model.backbone.training


def test_a_users_own_data_set_has_no_poses(
    root: Path, tested: tuple[DetectorModule, dict[str, float]]
) -> None:
    own: Any = list(data(root).train_dataloader().dataset)
    module = DetectorModule(model())
    trainer().fit(module, torch.utils.data.DataLoader(own, 3, collate_fn=collate))
    assert torch.equal(module.model.memory, tested[0].model.memory)


def test_epochs_without_augmentation_repeat_and_with_it_add_context(root: Path) -> None:
    plain = fit(data(root), max_epochs=2).model.memory
    assert torch.equal(plain[:64], plain[64:]) and len(plain) == 2 * 64
    flips = data(root, AugmentConfig(horizontal_flip=True, noise=0.2, seed=3))
    module = fit(flips, max_epochs=2)
    memory = module.model.memory.unflatten(0, (2, 4, 16))  # (epoch, image, patch, D)
    assert module.train_images == 8
    distances = (memory[0] - memory[1]).flatten(1).norm(dim=1)  # (image,)
    assert (distances > 0.01).all()
    # The features are those of the augmented images, epoch after epoch.
    dataset = ImageDataset(flips.split.train, IMAGE, flips.augment)
    batch = collate(dataset.__getitems__(list(range(8))))["image"]
    expected = module.model.embed(batch).flatten(1, 2)  # (epoch·image, patch, D)
    assert torch.allclose(memory.flatten(0, 1), expected, atol=1e-5)


def test_scores_and_metrics_equal_naive_ones(
    root: Path, tested: tuple[DetectorModule, dict[str, float]]
) -> None:
    module, logged = tested
    source = data(root)
    items = [ImageDataset(source.split.test, IMAGE)[i] for i in range(5)]
    prediction = module.model(collate(items)["image"])
    scores = np.array([module.record.scores[i] for i in range(5)])
    assert np.allclose(scores, prediction.score, rtol=1e-4)
    labels = np.array([item["label"] for item in items], bool)
    assert labels.sum() == 3
    assert logged["image_auroc"] == pytest.approx(reference.auroc(scores, labels), abs=1e-6)
    assert logged["image_ap"] == pytest.approx(reference.average_precision(scores, labels))
    # The bent nut lacks its mask, so its pixels count neither way.
    known = [i for i, item in enumerate(items) if item["has_mask"]]
    assert len(known) == 4
    masks = [items[i]["mask"].numpy() for i in known]
    maps = [prediction.map[i].numpy() for i in known]
    assert logged["aupro"] == pytest.approx(reference.aupro(maps, masks, 0.3), abs=1e-4)


def test_what_is_logged_is_what_metrics_says(
    tested: tuple[DetectorModule, dict[str, float]],
) -> None:
    module, logged = tested
    sizes = {"memory_patches", "memory_bytes", "memory_used", "train_images", "test_images"}
    seconds = {f"seconds.{key}" for key in ("extract", "coreset", "score")}
    keys = {*IMAGE_KEYS, *PIXEL_KEYS, *MAP_KEYS, *MASK_KEYS, *sizes}
    assert set(module.record.metrics) == keys
    assert set(logged) == set(module.record.metrics) | seconds
    for key, value in module.record.metrics.items():
        assert logged[key] == pytest.approx(value, rel=1e-6, nan_ok=key in MAP_KEYS)
    assert (module.record.metrics["train_images"], module.record.metrics["test_images"]) == (4, 5)
    assert module.record.metrics["memory_bytes"] == 64 * 16 * 4
    assert all(logged[key] > 0 for key in seconds)
    assert set(module.record.undefined) == set(MAP_KEYS)  # small maps have too few pixels


def test_memory_used_is_the_share_that_was_ever_nearest(
    root: Path, tested: tuple[DetectorModule, dict[str, float]]
) -> None:
    source = data(root)
    items = [ImageDataset(source.split.test, IMAGE)[i] for i in range(5)]
    patches = tested[0].model.embed(collate(items)["image"]).flatten(0, 2).numpy()
    memory = tested[0].model.memory.numpy()
    _, rows = reference.nearest(patches, memory, 1)
    assert tested[1]["memory_used"] == pytest.approx(len(set(rows[:, 0].tolist())) / len(memory))


def test_memory_used_of_every_ratio(root: Path) -> None:
    patch = PatchConfig(layer_channels=24, channels=16)
    coreset = RandomConfig(ratio=0.5)
    whole = PatchCore(BackboneConfig("resnet18", "none"), LayersConfig(["2", "3"]), patch, coreset)
    module, runner = DetectorModule(whole, curve=[0.1, 0.25]), trainer()
    runner.fit(module, data(root))
    runner.test(module, data(root), verbose=False)
    source = data(root)
    items = [ImageDataset(source.split.test, IMAGE)[i] for i in range(5)]
    patches = whole.embed(collate(items)["image"]).flatten(0, 2).numpy()
    for row in module.record.ratio_curve:
        size = int(row["memory_patches"])
        _, rows = reference.nearest(patches, whole.memory[:size].numpy(), 1)
        assert row["memory_used"] == pytest.approx(len(set(rows[:, 0].tolist())) / size)
    assert row["memory_used"] == module.record.metrics["memory_used"] < 1


def test_scale_leaves_all_epochs_of_an_image_out(root: Path) -> None:
    flips = data(root, AugmentConfig(horizontal_flip=True, noise=0.2, seed=3))
    module = DetectorModule(model(), scale=ScaleConfig())
    trainer(max_epochs=2).fit(module, flips)
    images = list(module.model.memory.unflatten(0, (8, 16)).numpy())  # (epoch·image, patch, D)
    rows = [(i, j) for i in range(8) for j in range(16)]
    assert module.scale is not None and module.seconds["scale"] > 0
    expected = reference.nominal_scale(images, [0, 1, 2, 3] * 2, rows)
    assert astuple(module.scale) == pytest.approx(expected, rel=1e-4)


def test_a_second_test_starts_afresh(
    root: Path, tested: tuple[DetectorModule, dict[str, float]]
) -> None:
    _, logged = tested
    module = fit(data(root))
    trainer().test(module, data(root), verbose=False)
    (again,) = trainer().test(module, data(root, batch=2), verbose=False)
    assert len(module.image_metrics.nominal) + len(module.image_metrics.anomalous) <= 2 * 3
    for key in (*IMAGE_KEYS, *PIXEL_KEYS):
        assert again[key] == pytest.approx(logged[key], rel=1e-4)


def test_bfloat16_autocast_gives_nearly_the_same_scores(
    root: Path, tested: tuple[DetectorModule, dict[str, float]]
) -> None:
    module, runner = DetectorModule(model()), trainer(precision="bf16-mixed")
    runner.fit(module, data(root))
    runner.test(module, data(root), verbose=False)
    assert module.model.memory.dtype == torch.float32
    exact = tested[0].model.memory
    errors = (module.model.memory - exact).norm(dim=1)  # (M,)
    assert 0 < errors.max() < 0.05 * exact.norm(dim=1).max()
    # A distance is off by no more than its two ends are.
    for i, score in tested[0].record.scores.items():
        assert module.record.scores[i] == pytest.approx(score, abs=3 * float(errors.max()))


@pytest.mark.parametrize(
    ("precision", "share"), [("16-true", 0.02), ("bf16-true", 0.1), ("64-true", 1e-4)]
)
def test_true_precisions_give_nearly_the_same_scores(
    root: Path, tested: tuple[DetectorModule, dict[str, float]], precision: Any, share: float
) -> None:
    module, runner = DetectorModule(model()), trainer(precision=precision)
    runner.fit(module, data(root))
    runner.test(module, data(root), verbose=False)
    assert module.model.memory.dtype == torch.float32
    for i, score in tested[0].record.scores.items():
        assert module.record.scores[i] == pytest.approx(score, rel=share)
    plain = fit(data(root))  # nothing that is kept between calls was made in that precision
    trainer().test(plain, data(root), verbose=False)
    assert plain.record.scores == tested[0].record.scores


def test_bars_say_what_is_being_done(root: Path, capsys: CaptureFixture[str]) -> None:
    settings: dict[str, Any] = {"enable_progress_bar": True, "callbacks": [ProgressBar()]}
    module, runner = DetectorModule(model()), trainer(max_epochs=2, **settings)
    runner.fit(module, data(root))
    runner.test(module, data(root), verbose=False)
    out, err = capsys.readouterr()
    assert out == ""
    assert "Extracting patch features, epoch 2 of 2: 100%" in err and "2/2" in err
    assert "Scoring test images: 100%" in err
    for word in ("Epoch", "Testing", "DataLoader", "v_num", "plan:"):  # two batches need none
        assert word not in err


def test_the_second_batch_shows_the_plan(root: Path, capsys: CaptureFixture[str]) -> None:
    settings: dict[str, Any] = {"enable_progress_bar": True, "callbacks": [ProgressBar()]}
    loaded = data(root)
    loaded.data.batch_size = 1
    trainer(max_epochs=2, **settings).fit(DetectorModule(model()), loaded)
    out, err = capsys.readouterr()
    told = re.findall(r"plan: .*", err)
    assert out == "" and len(told) == 1
    images = f"plan: {2 * len(loaded.split.train)} training and {len(loaded.split.test)} test"
    assert told[0].startswith(images)
    assert re.search(
        r" images/s decoded \(1 thread\), .* MB of patch features \(.* free\)$", told[0]
    )
