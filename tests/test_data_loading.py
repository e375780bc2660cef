import sys
import threading
from collections.abc import Iterator
from itertools import count
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch.utils.data import Dataset

from patchcore.data.augment import AugmentConfig
from patchcore.data.datamodule import AnomalyDataModule, silence_broken_pipes
from patchcore.data.dataset import EpochSampler, ImageDataset, Loader, collate, made_ahead
from patchcore.data.mvtec import MVTecConfig
from patchcore.data.sample import Sample
from patchcore.data.transforms import ImageConfig
from patchcore.digests import ChangedError
from patchcore.errors import InputError
from tests.images import write_image, write_mask, write_mvtec

SMALL = ImageConfig(resize=10, crop=8)
WHOLE = ImageConfig(resize=None, crop=None)


def module(root: Path, augment: AugmentConfig | None = None, workers: int = 0) -> AnomalyDataModule:
    data = MVTecConfig(root=str(root), category="nut", batch_size=3, workers=workers)
    return AnomalyDataModule(data, SMALL, augment or AugmentConfig())


def test_test_batches(tmp_path: Path) -> None:
    write_mvtec(tmp_path)
    data = module(tmp_path)
    batches = list(data.test_dataloader())
    assert [len(batch["label"]) for batch in batches] == [3, 2]
    first = batches[0]
    assert first["image"].shape == (3, 3, 8, 8) and first["image"].dtype == torch.float32
    assert first["mask"].shape == (3, 8, 8) and first["mask"].dtype == torch.bool
    assert first["label"].dtype == first["index"].dtype == torch.int64
    assert first["has_mask"].dtype == torch.bool
    assert all(second >= 0 for second in first.pop("seconds"))
    whole = {key: torch.cat([batch[key] for batch in batches]) for key in first}
    assert whole["index"].tolist() == [0, 1, 2, 3, 4]
    assert whole["label"].tolist() == [sample.label for sample in data.split.test]
    assert whole["has_mask"].tolist() == [False, True, True, True, True]  # bent has no mask
    assert whole["mask"].flatten(1).any(1).tolist() == [False, False, False, True, True]


def test_training_loads_every_image_in_order(tmp_path: Path) -> None:
    write_mvtec(tmp_path)
    loader = module(tmp_path).train_dataloader()
    for _ in range(2):
        assert torch.cat([batch["index"] for batch in loader]).tolist() == [0, 1, 2, 3]


def test_augmentation_differs_by_epoch_and_not_by_workers(tmp_path: Path) -> None:
    write_mvtec(tmp_path)
    augment = AugmentConfig(brightness=0.3, rotate=30)

    def epochs(workers: int, augment: AugmentConfig) -> list[torch.Tensor]:
        loader = module(tmp_path, augment, workers).train_dataloader()
        images = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            images.append(torch.cat([batch["image"] for batch in loader]))
        return images

    here, apart = epochs(0, augment), epochs(2, augment)
    assert torch.equal(here[0], apart[0]) and torch.equal(here[1], apart[1])
    assert all(not torch.equal(a, b) for a, b in zip(*here, strict=True))
    other = epochs(0, AugmentConfig(brightness=0.3, rotate=30, seed=1))
    assert not torch.equal(here[0], other[0])
    plain = epochs(0, AugmentConfig())
    assert torch.equal(plain[0], plain[1])
    data = module(tmp_path, augment)
    tested = [torch.cat([b["image"] for b in data.test_dataloader()]) for _ in range(2)]
    assert torch.equal(tested[0], tested[1])


@pytest.mark.parametrize(
    ("augment", "number"),
    [(AugmentConfig(brightness=0.3, rotate=30, noise=0.1), 1), (AugmentConfig(), 3)],
)
def test_batches_made_ahead_are_those_of_plain_loading(
    tmp_path: Path, augment: AugmentConfig, number: int
) -> None:
    write_mvtec(tmp_path)
    data = module(tmp_path, augment)

    def epochs(ahead: int) -> list[dict[str, Any]]:
        loader: Any = data.train_dataloader()
        assert loader.ahead == 0  # there is no GPU to be ahead of
        loader.ahead, found = ahead, []
        torch.manual_seed(0)
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            found += list(loader)
        return [*found, {"drawn": torch.rand(3)}]

    plain, ahead = epochs(0), epochs(number)
    assert len(plain) == len(ahead) == 5
    for one, other in zip(plain, ahead, strict=True):
        one.pop("seconds", None), other.pop("seconds", None)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_batches_are_made_while_an_earlier_one_is_worked_on() -> None:
    made: dict[int, threading.Event] = {number: threading.Event() for number in range(5)}

    def make(number: int) -> int:
        made[number].set()
        return number

    found = []
    for batch in made_ahead(make, iter(range(5)), 2):
        found.append(batch)
        assert all(made[later].wait(60) for later in range(batch, min(batch + 3, 5)))
    assert found == [0, 1, 2, 3, 4]


def test_threads_hand_over_pythons_lock_soon_while_batches_are_made_ahead() -> None:
    usual = sys.getswitchinterval()
    batches = made_ahead(lambda number: number, range(9), 2)
    next(batches)
    hurried = sys.getswitchinterval()
    assert hurried < usual
    others = made_ahead(lambda number: number, range(9), 2)
    next(others)
    batches.close()
    assert sys.getswitchinterval() == hurried  # until the last one has ended
    others.close()
    assert sys.getswitchinterval() == usual


def test_only_so_many_batches_are_begun() -> None:
    taken = []

    def given() -> Iterator[int]:
        for number in range(9):
            taken.append(number)
            yield number

    batches = made_ahead(lambda number: number, given(), 2)
    assert next(batches) == 0 and taken == [0, 1, 2]
    assert next(batches) == 1 and taken == [0, 1, 2, 3]
    batches.close()


def test_reading_ahead_ends_with_whoever_asks() -> None:
    before = threading.active_count()
    batches = made_ahead(lambda number: number, range(9), 2)
    assert next(batches) == 0
    batches.close()
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("device", "workers", "augment", "ahead"),
    [
        ("cuda", 0, AugmentConfig(), 2),  # there are no more batches
        ("cpu", 0, AugmentConfig(), 0),
        ("cuda", 1, AugmentConfig(), 0),
        ("cuda", 0, AugmentConfig(noise=0.1), 1),  # the augmentation has a state
    ],
)
def test_only_a_gpu_leaves_the_cores_to_decoding(
    tmp_path: Path, device: str, workers: int, augment: AugmentConfig, ahead: int
) -> None:
    write_mvtec(tmp_path)
    data = module(tmp_path, augment, workers=workers)
    data.trainer = mock.Mock(strategy=mock.Mock(root_device=torch.device(device)))
    loader: Any = data.train_dataloader()
    assert loader.ahead == ahead and loader.dataset.batches == max(1, ahead)


def test_a_gpu_has_three_batches_made_ahead(tmp_path: Path) -> None:
    write_mvtec(tmp_path)
    data = module(tmp_path)
    data.data.batch_size = 1
    data.trainer = mock.Mock(strategy=mock.Mock(root_device=torch.device("cuda")))
    loader: Any = data.train_dataloader()
    assert loader.ahead == 3 and loader.dataset.batches == 3


@pytest.mark.parametrize("batches", [1, 3])
def test_batches_that_are_made_together_share_seconds(tmp_path: Path, batches: int) -> None:
    write_mvtec(tmp_path)
    data = module(tmp_path)
    dataset: Any = data.train_dataloader().dataset
    dataset.batches = batches
    with (
        mock.patch("torch.get_num_threads", return_value=6),
        mock.patch("time.perf_counter", side_effect=count(0.0, 1.0)),
    ):
        item = dataset.__getitems__([0])[0]
    assert item["seconds"] == [1 / batches, 1 / batches]  # one item in each batch


def test_batches_that_are_made_together_share_threads(tmp_path: Path) -> None:
    dataset = ImageDataset([Sample(write_image(tmp_path / "a.png", (20, 30)), 0)] * 12, SMALL)
    six, lock, running = threading.Barrier(6, timeout=60), threading.Lock(), [0, 0]

    def item(*_: Any) -> list[dict[str, Any]]:
        with lock:
            running[0] += 1
            running[1] = max(running)
        six.wait()  # passes once six items of whatever batches are made at the same time
        with lock:
            running[0] -= 1
        return [{}]

    with (
        mock.patch("torch.get_num_threads", return_value=6),
        mock.patch.object(dataset, "_posed", item),
    ):
        batches = [list(range(start, start + 4)) for start in (0, 4, 8)]
        assert len(list(made_ahead(dataset.__getitems__, batches, 3))) == 3
    assert running == [0, 6]


@pytest.mark.parametrize("augment", [AugmentConfig(), AugmentConfig(noise=0.2, rotate=30)])
def test_a_batch_made_side_by_side_holds_the_items(tmp_path: Path, augment: AugmentConfig) -> None:
    paths = [write_image(tmp_path / f"{i}.png", (20 + i, 30), seed=i) for i in range(40)]
    dataset = ImageDataset([Sample(path, 0) for path in paths], SMALL, augment)
    alone = torch.stack([dataset[i]["image"] for i in range(len(paths))])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        batch = collate(dataset.__getitems__(list(range(len(paths)))))
    finally:
        torch.set_num_threads(threads)
    assert batch["index"].tolist() == list(range(len(paths)))
    assert torch.equal(batch["image"], alone)
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)


class Recorder(pl.LightningModule):
    """Notes what arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.images: list[torch.Tensor] = []
        self.tested: list[int] = []

    def configure_optimizers(self) -> None:
        return None

    def training_step(self, batch: dict[str, torch.Tensor]) -> None:
        self.images.append(batch["image"].clone())

    def test_step(self, batch: dict[str, torch.Tensor]) -> None:
        self.tested += batch["index"].tolist()


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_with_a_trainer(tmp_path: Path) -> None:
    write_mvtec(tmp_path)
    data, recorder = module(tmp_path, AugmentConfig(brightness=0.3)), Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(recorder, data)
    trainer.test(recorder, data, verbose=False)
    assert len(recorder.images) == 4
    assert not torch.equal(recorder.images[0], recorder.images[2])  # epochs differ
    assert recorder.tested == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("workers", "ahead"), [(0, 0), (1, 0), (0, 1), (0, 3)])
def test_a_truncated_image_is_one_clear_line(tmp_path: Path, workers: int, ahead: int) -> None:
    folder = write_mvtec(tmp_path, (64, 64))
    path = folder / "test/good/001.png"
    path.write_bytes(path.read_bytes()[:2000])
    loader: Any = module(tmp_path, workers=workers).test_dataloader()
    loader.ahead = ahead
    with pytest.raises(InputError) as caught:
        list(loader)
    message = str(caught.value)
    assert message.startswith(f"{path}: cannot be read as an image")
    assert "\n" not in message


def test_missing_folder_shows_before_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^data\.root"):
        module(tmp_path / "absent").prepare_data()


def test_a_mask_that_marks_nothing_counts_as_unknown(tmp_path: Path) -> None:
    image = write_image(tmp_path / "image.png")
    mask = write_mask(tmp_path / "mask.png", marked=False)
    item = ImageDataset([Sample(image, 1, "uneven", mask)], SMALL)[0]
    assert item["label"] == 1 and item["has_mask"] is False


def test_a_defect_outside_the_crop_leaves_the_image_unknown(tmp_path: Path) -> None:
    image = write_image(tmp_path / "image.png", (40, 40))
    corner = np.zeros((40, 40), dtype=np.uint8)
    corner[:2, :2] = 255
    Image.fromarray(corner).save(tmp_path / "mask.png")
    dataset = ImageDataset(
        [Sample(image, 1, "chip", tmp_path / "mask.png")], ImageConfig(resize=40, crop=20)
    )
    assert dataset[0]["has_mask"] is False and not dataset[0]["mask"].any()
    assert dataset[0]["regions"].tolist() == [1, 1, 0, 0, 0, 0]
    corner[18:20, 18:20] = 255  # another inside: what is seen is known
    Image.fromarray(corner).save(tmp_path / "mask.png")
    assert dataset[0]["has_mask"] is True
    assert dataset[0]["regions"].tolist() == [2, 1, 0, 0, 0, 0]


def test_a_black_mask_of_a_nominal_image_says_nothing_new(tmp_path: Path) -> None:
    image = write_image(tmp_path / "image.png")
    black = write_mask(tmp_path / "black.png", marked=False)
    item = ImageDataset([Sample(image, 0, mask=black)], SMALL)[0]
    assert item["has_mask"] is True and not item["mask"].any()
    marked = write_mask(tmp_path / "marked.png")
    with pytest.raises(InputError, match=r"marked\.png: marks a defect, but its image .*nominal"):
        ImageDataset([Sample(image, 0, mask=marked)], SMALL)[0]


def test_loops_over_the_data_set_end(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{i}.png", seed=i) for i in range(3)]
    dataset = ImageDataset([Sample(path, 0) for path in paths], SMALL)
    assert [item["index"] for item in dataset] == [0, 1, 2]
    assert len(list(dataset)) == 3 and len(list(reversed(dataset))) == 3
    assert dataset[-1]["index"] == 2 and dataset[-3]["index"] == 0
    for item in (3, -4, 10**12):
        with pytest.raises(IndexError, match=f"item {item} of 3"):
            dataset[item]
    assert list(ImageDataset([], SMALL)) == []
    batches = torch.utils.data.DataLoader(dataset, batch_size=2, collate_fn=collate)
    assert [batch["index"].tolist() for batch in batches] == [[0, 1], [2]]


def test_a_line_of_pixels_is_read_or_named(tmp_path: Path) -> None:
    path = tmp_path / "line.png"
    Image.new("L", (60_000, 1), 9).save(path)
    sample = [Sample(path, 0)]
    assert ImageDataset(sample, ImageConfig())[0]["image"].shape == (3, 224, 224)
    square = ImageConfig(resize=32, crop=None, stretch=True)
    assert ImageDataset(sample, square)[0]["image"].shape == (3, 32, 32)
    for config in (ImageConfig(crop=None), ImageConfig(resize=20_000, crop=9000)):
        with pytest.raises(
            InputError, match=r"^image\.resize: .*60000×1 of .*line\.png, more than"
        ):
            ImageDataset(sample, config)[0]


def test_mask_of_another_size_is_named(tmp_path: Path) -> None:
    image = write_image(tmp_path / "image.png", (12, 10))
    mask = write_mask(tmp_path / "mask.png", (10, 12))
    with pytest.raises(InputError, match=r"mask\.png: the mask is 10×12 .*image\.png is 12×10"):
        ImageDataset([Sample(image, 1, "chip", mask)], SMALL)[0]


def test_image_smaller_than_the_crop_is_named(tmp_path: Path) -> None:
    image = write_image(tmp_path / "image.png", (12, 10))
    with pytest.raises(InputError, match=r"^image\.crop: 11 is more than .*12×10 .*image\.png"):
        ImageDataset([Sample(image, 0)], ImageConfig(resize=None, crop=11))[0]


def test_sizes_that_differ_need_single_batches(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{i}.png", size) for i, size in enumerate([(9, 7), (8, 7)])]
    dataset = ImageDataset([Sample(path, 0) for path in paths], WHOLE)
    with pytest.raises(InputError, match=r"^data\.batch_size: .*8×7 and 9×7 .*batch_size=1"):
        collate([dataset[0], dataset[1]])
    assert collate([dataset[0]])["image"].shape == (1, 3, 7, 9)


def test_quarter_turns_need_square_images(tmp_path: Path) -> None:
    image = write_image(tmp_path / "0.png", (9, 7))
    quarters = ImageDataset([Sample(image, 0)], WHOLE, AugmentConfig(rotations=4))
    with pytest.raises(InputError, match=r"^augment\.rotations: a quarter .* image\.view=square"):
        collate(quarters.__getitems__([0]))
    halves = ImageDataset([Sample(image, 0)], WHOLE, AugmentConfig(rotations=2))
    assert collate(halves.__getitems__([0]))["image"].shape == (2, 3, 7, 9)


class Refusing(Dataset[Any]):
    """Data set whose only item is refused."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, item: int) -> Any:
        raise InputError("a.png: InputError: cannot be read; remove it")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_has_the_same_text_from_any_process(workers: int) -> None:
    with pytest.raises(InputError) as error:
        list(Loader(Refusing(), num_workers=workers))
    assert str(error.value) == "a.png: InputError: cannot be read; remove it"


class Changed(Dataset[Any]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, item: int) -> Any:
        raise ChangedError.of(Path("/data/a, b: c/7.png"))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_changed_file_is_named_by_any_process(workers: int) -> None:
    with pytest.raises(ChangedError) as error:
        list(Loader(Changed(), num_workers=workers))
    assert error.value.path == "/data/a, b: c/7.png"
    assert str(error.value) == str(ChangedError.of(Path(error.value.path)))


def test_epochs_number_on() -> None:
    sampler = EpochSampler(3)
    assert list(sampler) == [0, 1, 2]
    sampler.set_epoch(2)
    assert list(sampler) == [6, 7, 8]
    assert len(sampler) == 3


def test_a_loader_process_whose_command_has_ended_ends_quietly(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    usual = Queue._on_queue_feeder_error
    monkeypatch.setattr(Queue, "_on_queue_feeder_error", staticmethod(usual))  # put back later
    silence_broken_pipes(0)
    for batch, told in (("a batch", ""), (lambda: None, "Traceback")):  # the other has no pickle
        queue = torch.multiprocessing.get_context().Queue()
        queue._reader.close()  # as when the process that reads has ended
        queue.put(batch)
        queue.close()
        queue.join_thread()
        err = capfd.readouterr().err
        assert told in err and bool(err) == bool(told)
