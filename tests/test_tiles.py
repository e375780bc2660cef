"""Images in tiles: the stitched maps against naive ones, and every way that images take."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from patchcore import (
    AllConfig,
    GreedyConfig,
    InputError,
    Inspector,
    LayersConfig,
    LearnedConfig,
    PatchConfig,
    PatchCore,
    ScoringConfig,
    load,
    run,
)
from patchcore.backbones import CLASS_TOKEN, Join
from patchcore.costs import Costs
from patchcore.data.dataset import ImageDataset, collate
from patchcore.data.sample import Sample
from patchcore.data.transforms import ImageConfig, build_normalisation, offset_and_scale
from patchcore.data.view import View
from patchcore.export import export
from patchcore.extend import extend
from patchcore.inspection import Inspection, predict
from patchcore.keeping import ArtifactConfig, Keep
from patchcore.methods import METHODS, Parts, PatchCoreConfig, build_detector
from patchcore.methods.detector import Detector, Prediction
from patchcore.methods.thinning import Thinning
from patchcore.methods.tiled import tile
from patchcore.report.reading import read_scores
from patchcore.tiles import Streamed, Tiling, cells_of, mirrored
from tests import reference
from tests.images import write_image, write_mvtec
from tests.runs import config

UNIT = 8  # px, of the toy's cells


class Toy(nn.Module):
    """Two layers with cells of 4 and 8 px, of which the deeper sees 15 px around; or everything."""

    name = "toy"

    def __init__(self, sees_all: bool = False, token: bool = False) -> None:
        super().__init__()
        self.input = SimpleNamespace(side=128)
        self.sees_all, self.token, self.tiling = sees_all, token, None
        self.layers, self.channels = ["fine", "coarse"], [5, 6]
        if token:
            self.layers.append(CLASS_TOKEN)
            self.channels.append(3)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.fine = nn.Conv2d(3, 5, 7, stride=4, padding=3)
            self.coarse = nn.Conv2d(5, 6, 3, stride=2, padding=1)
        self.requires_grad_(False)

    @torch.inference_mode()
    def whole(self, images: Tensor) -> list[Tensor]:
        fine = self.fine(images.to(self.fine.weight))
        if self.sees_all:
            fine = fine + fine.mean((2, 3), keepdim=True)
        maps = [fine, self.coarse(fine.tanh())]
        return [*maps, images.mean((2, 3), keepdim=True).to(fine)] if self.token else maps

    def forward(self, images: Tensor) -> Any:
        return self.whole(images) if self.tiling is None else self.tiling.maps(self, images)


def naive(network: Toy) -> Any:
    """Function from an image (3, H, W) to layer maps [(C, h, w), …] in NumPy."""
    return lambda x: [y[0].numpy() for y in network.whole(torch.from_numpy(x)[None])]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def small_bands() -> Any:
    """Bands of one or two rows of units, so that every image has several."""
    with mock.patch("patchcore.tiles.maps.AREA", 20):
        yield


# --- maps ------------------------------------------------------------------------------------


def test_the_reach_of_a_network_is_that_of_its_convolutions() -> None:
    found = cells_of(Toy())
    # A fine cell begins at its pixel 0 and sees 3 px before it; a coarse one sees one fine cell
    # before its own two. So cell 1 of either layer sees what lies 0 to 7 px before its tile's cell.
    assert (found.strides, found.unit, found.reach) == ((4, 8), 8, 8)
    assert cells_of(Toy(sees_all=True)).reach is None
    assert cells_of(Toy(token=True)).strides == (4, 8, 0)


@pytest.mark.parametrize("sees_all", [False, True])
@pytest.mark.parametrize(
    ("size", "side", "overlap", "halo"),
    [((53, 40), 32, 16, 0), ((53, 40), 48, 32, 2), ((9, 70), 32, 16, 1), ((1, 1), 32, 0, 1)],
)
def test_stitched_maps_are_those_of_the_naive_version(
    size: tuple[int, int], side: int, overlap: int, halo: int, sees_all: bool
) -> None:
    network, images = Toy(sees_all), noise(2, 3, *size)
    tiling = Tiling(network, side, overlap, halo)
    assert tiling.cut == (overlap // 2 if overlap and not sees_all else 0)
    maps = tiling.maps(network, images).joined()
    for i, image in enumerate(images.numpy()):
        expected = reference.stitched(
            image,
            naive(network),
            [4, 8],
            side,
            overlap,
            tiling.cut,
            UNIT,
            halo,
        )
        for x, y in zip(maps, expected, strict=True):
            assert x[i].shape == y.shape
            assert np.allclose(x[i], y, atol=1e-6)


def test_tiles_that_share_enough_give_the_maps_of_the_whole_image() -> None:
    network, images = Toy(), noise(1, 3, 88, 120)
    maps = Tiling(network, 48).maps(network, images).joined()
    edge = 2 * UNIT
    rows, columns = (mirrored(-edge, n + 2 * edge, n) for n in (88, 120))
    whole = network.whole(images[:, :, rows[:, None], columns])
    for x, y, stride in zip(maps, whole, (4, 8), strict=True):
        e = edge // stride
        assert torch.allclose(x, y[:, :, e:-e, e:-e], atol=1e-6)
    shared = Tiling(network, 48, 0).maps(network, images).joined()
    assert not torch.allclose(shared[1], whole[1][:, :, 2:-2, 2:-2], atol=1e-3)  # seams show


def test_tiles_are_normalised_as_whole_images_are() -> None:
    image = ImageConfig(tiles=32)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    network = Toy()
    pair = tuple(torch.from_numpy(x) for x in offset_and_scale(image))
    tiling = Tiling(network, 32, normalisation=pair)  # type: ignore[arg-type]
    raw = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    floats = build_normalisation(image)(pixels)[None]
    for x, y in zip(tiling.maps(network, raw), tiling.maps(network, floats), strict=True):
        assert torch.equal(x, y)


def test_the_token_of_an_image_is_the_mean_of_its_tiles() -> None:
    network, images = Toy(token=True), torch.full((1, 3, 64, 64), 0.5)
    maps = Tiling(network, 32, 16).maps(network, images)
    assert len(maps) == 3 and torch.allclose(maps.token, torch.full((1, 3, 1, 1), 0.5))
    assert torch.equal(maps[-1], maps.token)


@pytest.mark.parametrize(
    ("side", "overlap", "message"),
    [
        (
            30,
            None,
            r"image.tiles: toy needs a multiple of 8 px, got 30; the nearest is image.tiles=32",
        ),
        (
            16,
            None,
            r"image.tiles: tiles of 16 px are too small.* set image.tiles=32 or larger",
        ),
        (32, 20, r"image.overlap: toy needs a multiple of 16 px, got 20; .* image.overlap=16"),
        (32, 32, r"image.overlap must be less than image.tiles \(32\), got 32"),
    ],
)
def test_tiles_that_do_not_suit_a_network_are_refused(
    side: int, overlap: int | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Tiling(Toy(), side, overlap)


def test_no_seam_shows_in_the_map_of_a_constant_image() -> None:
    model = build_detector(Parts(PatchCoreConfig()))
    tile(model, 256)
    assert model.backbone.tiling.cut == 96
    model.fit(noise(1, 3, 64, 64))
    found = model(torch.full((1, 3, 300, 210), 0.7))
    assert found.map.shape == (1, 300, 210) and float(found.score) > 1
    assert float((found.map - found.score).abs().max()) < 1e-5


# --- methods ---------------------------------------------------------------------------------


def detector(network: Toy, **settings: Any) -> Detector:
    join, scoring = settings.pop("join", Join.concat), settings.pop("scoring", ScoringConfig())
    coreset, patch = settings.pop("coreset", AllConfig()), settings.pop("patch", PatchConfig())
    parts = Parts(PatchCoreConfig(**settings), layers=LayersConfig(["2", "3"], join))
    parts.coreset, parts.scoring, parts.patch = coreset, scoring, patch
    with mock.patch("patchcore.methods.detector.make_backbone", lambda *_: network):
        model: Detector = build_detector(parts)
    tile(model, 32, None if parts.patch.stride == 1 else 0)
    return model


def same(ours: Prediction, theirs: Prediction) -> None:
    for x, y in zip(ours, theirs, strict=True):
        assert torch.allclose(x, y, atol=1e-5, equal_nan=True)


STREAMED: dict[str, dict[str, Any]] = {
    "plain": {},
    "share": {"scoring": ScoringConfig(2, top_share=0.1)},
    "wide": {"patch": PatchConfig(size=5, stride=2)},
    "separate": {"join": Join.separate},
    "scaled": {"join": Join.scaled},
    "whitening": {"whitening": 0.9},
}


@pytest.mark.parametrize("name", STREAMED)
def test_bands_say_what_whole_images_say(name: str) -> None:
    settings, nominal, test = STREAMED[name], noise(3, 3, 70, 41), noise(2, 3, 70, 41, seed=1)
    banded, at_once = detector(Toy(), **settings), detector(Toy(), **settings)
    banded.fit([nominal[:2], nominal[2:]])
    buffer = at_once.buffer(3)
    buffer.append(at_once.embed(nominal).whole())
    at_once.build_from(buffer)
    assert isinstance(banded.embed(test), Streamed)
    for key, memory in banded.memories.items():
        assert torch.allclose(memory, at_once.memories[key], atol=1e-5)
    found = banded(test)
    same(found, at_once.score(at_once.embed(test).whole(), (70, 41)))
    rows = found.nearest.flatten()
    assert torch.equal(banded.origins(rows), at_once.origins(rows))


def test_patches_at_the_border_of_an_image_have_mirrored_neighbours() -> None:
    model, image = detector(Toy(), patch=PatchConfig(channels=8)), noise(1, 3, 56, 40)
    edge = 4 * UNIT
    rows, columns = (mirrored(-edge, n + 2 * edge, n) for n in (56, 40))
    canvas = image[0][:, rows[:, None], columns].numpy()
    maps = reference.stitched(canvas, naive(Toy()), [4, 8], 32, 16, 8, UNIT)
    expected = reference.patch_features([x[None] for x in maps], 3, 1, 1024, 8)
    cells = edge // 4
    found = model.embed(image).whole()
    assert np.allclose(found, expected[:, cells:-cells, cells:-cells], atol=1e-5)


OTHERS: dict[str, dict[str, Any]] = {
    "radius": {"radius": 1},
    "retrieval": {"retrieval": 1},
    "foreground": {"foreground": 0.1},
    "reweight": {"scoring": ScoringConfig(reweight=3)},
    "banks in part": {"join": Join.separate, "radius": 2},
}


@pytest.mark.parametrize("name", OTHERS)
def test_switches_that_need_a_whole_image_have_it(name: str) -> None:
    settings, nominal, test = OTHERS[name], noise(2, 3, 50, 40), noise(2, 3, 50, 40, seed=1)
    model = detector(Toy(), **settings).fit(nominal)
    found = model(test)
    assert found.map.shape == (2, 50, 40) and found.patch_score.shape == (2, 14, 10)
    own = model(nominal)
    counted = ~own.patch_score.isnan()
    assert float(own.patch_score[counted].abs().max()) < 1e-3 < float(found.score.min())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_tiles(method: str) -> None:
    network = Toy()
    with mock.patch("patchcore.methods.detector.make_backbone", lambda *_: network):
        own: Any = METHODS[method](**({"channels": 5} if method == "padim" else {}))
        model = build_detector(Parts(own, layers=LayersConfig(["2", "3"])))
    tile(model, 32, 16)
    nominal = noise(3, 3, 40, 52)
    found = model.fit(nominal)(torch.cat((nominal[:1], noise(1, 3, 40, 52, seed=2))))
    assert found.map.shape == (2, 40, 52)
    assert float(found.score[0]) < float(found.score[1])


# --- thinning --------------------------------------------------------------------------------


def test_saving_keeps_the_tiles_and_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    model = PatchCore(coreset=GreedyConfig(ratio=0.2))
    tile(model, 64, 32, offset_and_scale(ImageConfig(mean=[0.1] * 3)))
    images = torch.randn(2, 3, 96, 80, generator=torch.Generator().manual_seed(0))
    tiling, expected = model.backbone.tiling, model.fit(images)(images)
    model.save(tmp_path / "model")
    assert model.backbone.tiling is tiling
    again = load(tmp_path / "model")
    own = again.image
    assert (own.tiles, own.overlap, own.resize, own.crop) == (64, 32, None, None)
    for x, y in zip(again.model(images), expected, strict=True):
        torch.testing.assert_close(x, y)
    with pytest.raises(InputError, match=r"^image.tiles: .*give image=ImageConfig\(tiles=64, over"):
        model.save(tmp_path / "whole", image=ImageConfig())
    assert model.backbone.tiling is tiling and not (tmp_path / "whole").exists()
    assert Inspector(model).image.tiles == 64
    assert torch.equal(model(images).map, expected.map)


def test_an_image_hands_on_the_coreset_of_each_of_its_bands() -> None:
    model = detector(Toy(), coreset=GreedyConfig(1.0), per_image=30)
    images = noise(2, 3, 70, 41)
    buffer = model.buffer(2)
    buffer.append(model.embed(images))
    assert buffer.counts == [30, 30] and buffer.grids == [(18, 12)] * 2
    gathered, places = buffer.gathered(), list(buffer.places)
    for i in range(2):
        features = model.embed(images[i : i + 1]).whole().flatten(0, 2)
        assert torch.allclose(gathered[30 * i :][:30], features[places[i]], atol=1e-6)
        start = handed = 0
        for band, share in model.embed(images[i : i + 1]).shares():
            rows = band.flatten(0, 2)
            count = int(30 * share) - handed
            expected, *_ = reference.greedy_coreset(rows.numpy(), count, first_of(rows, count))
            own = places[i][handed : handed + count] - start
            assert sorted(expected.tolist()) == own.tolist()
            start, handed = start + len(rows), handed + count
    model.build_from(buffer)
    assert model.memory_patches == 60 and model.images_had == 2


def first_of(rows: Tensor, count: int) -> int:
    """First pick of the greedy sampler, which is random by its seed."""
    order = GreedyConfig(count=count).sample(rows, rows.device).indices
    assert order is not None
    return int(order[0])


def test_images_that_come_whole_are_thinned_too() -> None:
    model = detector(Toy(), coreset=GreedyConfig(0.5), per_image=20)
    tile(model, None)
    images = noise(3, 3, 40, 40)
    model.fit(images)
    assert model.memory_patches == 30
    few = detector(Toy(), coreset=GreedyConfig(0.5), per_image=1000)
    tile(few, None)
    assert few.fit(images).memory_patches == 150  # of 3 · 100


def test_thinning_needs_a_sampler_that_keeps_a_share() -> None:
    with pytest.raises(InputError, match=r"method.per_image needs a sampler that keeps a share"):
        detector(Toy(), coreset=LearnedConfig(), per_image=5)
    with pytest.raises(InputError, match=r"method.retrieval compares whole images"):
        detector(Toy(), coreset=GreedyConfig(), per_image=5, retrieval=2)
    thin = Thinning(7, GreedyConfig(), torch.device("cpu"))
    assert [thin.before(x / 3) for x in range(4)] == [0, 2, 4, 7]


# --- settings, data, runs ----------------------------------------------------------------------


def test_images_in_tiles_keep_their_size_unless_told_otherwise() -> None:
    native = ImageConfig(tiles=512)
    assert (native.resize, native.stretch, native.crop) == (None, False, None)
    assert (native.size, native.view) == (None, None)
    square = ImageConfig(tiles=512, size=1024, view=View.square)
    assert (square.resize, square.stretch, square.crop) == (1024, True, None)
    native.check_size((20_000, 20_000), Path("x.png"), False)
    with pytest.raises(InputError, match=r"image.overlap=64 has no effect without image.tiles"):
        ImageConfig(overlap=64)


def test_images_of_unlike_sizes_come_one_by_one_and_are_not_copied(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{n}.png", (30 + n, 20)) for n in range(2)]
    dataset = ImageDataset([Sample(path, 0, "good") for path in paths], ImageConfig(tiles=32))
    item = dataset[1]
    assert item["image"].dtype == torch.uint8 and tuple(item["image"].shape) == (3, 20, 31)
    batch = collate([item])
    assert batch["image"].data_ptr() == item["image"].data_ptr()


RUN = {"image": ImageConfig(tiles=64, overlap=32), "coreset": GreedyConfig(0.2)}


def test_a_run_in_tiles_is_tested_kept_loaded_and_extended(tmp_path: Path) -> None:
    folder = write_mvtec(tmp_path / "data", (90, 70))
    write_image(folder / "train/good/other.png", (40, 30))
    write_image(folder / "test/good/other.png", (121, 64))
    settings = config(tmp_path / "data", artifact=ArtifactConfig(Keep.all), **RUN)
    done = run(settings, tmp_path / "run")
    assert done.record["train_images"] == 5 and done.record["test_images"] == 6
    inspector = load(tmp_path / "run/artifact")
    scores = {Path(row.path): row.score for row in read_scores(tmp_path / "run")}
    for found in predict(inspector, sorted(scores)):
        assert isinstance(found, Inspection) and found.map.shape == found.size
        assert found.score == pytest.approx(scores[found.path], rel=1e-5)
    with pytest.raises(InputError, match=r"image.tiles: an exported graph takes one image size"):
        export(inspector, tmp_path / "export")
    change = extend(inspector, [write_image(tmp_path / "more.png", (100, 50))])
    assert change.images == 1 and change.patches > 0


def test_time_measured_inside_another_stage_counts_once() -> None:
    costs, cpu = Costs(), torch.device("cpu")
    with (
        mock.patch("time.perf_counter", side_effect=[0.0, 1.0, 4.0, 9.0]),
        costs.measure("outer", cpu),
        costs.measure("inner", cpu),
    ):
        pass
    assert (costs.seconds("inner"), costs.seconds("outer")) == (3.0, 6.0)
