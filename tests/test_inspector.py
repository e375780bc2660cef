"""Inspector: an image's pixels to its score, and the map back to the image's own pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from patchcore import BackboneConfig, Ensemble, InputError, Inspector, LayersConfig, PatchCore
from patchcore.data.generated import GeneratedConfig
from patchcore.data.transforms import ImageConfig, build_normalisation, build_transform
from patchcore.data.view import View
from patchcore.inspection import Inspection, predict
from patchcore.inspector import normalised, placed
from patchcore.measuring import measure


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def model() -> PatchCore:
    generator = torch.Generator().manual_seed(0)
    return PatchCore().fit(torch.randn(4, 3, 32, 32, generator=generator))


IMAGE = ImageConfig(resize=40, crop=32, mean=[0.4, 0.5, 0.6], std=[0.1, 0.2, 0.3])


def test_input_is_normalised_as_in_training() -> None:
    batch = noise(3, 16, 12, 3)
    expected = torch.stack([build_normalisation(IMAGE)(each) for each in batch])
    assert torch.equal(normalised(torch.from_numpy(batch), IMAGE), expected)


@pytest.mark.filterwarnings("ignore:backbone resnet18 has random weights")
def test_members_that_get_other_pixels_are_measured_together(tmp_path: Path) -> None:
    """Both views show all of an image, at one size and at different aspect ratios."""
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    backbone, layers = BackboneConfig("resnet18", "none"), LayersConfig(["1"])
    ensemble = Ensemble([PatchCore(backbone, layers), PatchCore(backbone, layers)]).fit(images)
    views = [ImageConfig(size=32, view=view) for view in (View.whole, View.square)]
    assert not Inspector(ensemble, views).alike
    assert Inspector(ensemble, [views[0], ImageConfig(size=32, view=View.whole)]).alike
    size = {"train_images": 2, "nominal_images": 2, "anomalous_images": 2}
    data = GeneratedConfig(root=str(tmp_path), size=64, **size)
    inspector = Inspector(ensemble, views)
    paths = [sample.path for sample in data.read().test]
    alone = [found.score for found in predict(inspector, paths) if isinstance(found, Inspection)]
    assert measure(inspector, data).scores == pytest.approx(alone)


def test_scores_are_those_of_the_training_way(model: PatchCore) -> None:
    pixels = [noise(70, 50, 3, seed=1), noise(50, 90, 3, seed=2)]
    transform = build_transform(IMAGE)
    inputs = [transform(each, np.zeros(each.shape[:2], bool), 0)[0] for each in pixels]
    expected = model(torch.stack(inputs))
    inspector = Inspector(model, IMAGE)
    prepared = [inspector.prepare(each) for each in pixels]
    assert all(isinstance(each, np.ndarray) and each.shape == (32, 32, 3) for each in prepared)
    found = inspector.score(torch.from_numpy(np.stack(prepared)))
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x, y)


def test_mixed_precision_is_that_of_the_trainer(model: PatchCore) -> None:
    batch = torch.from_numpy(noise(2, 32, 32, 3))
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(normalised(batch, IMAGE))
    found = Inspector(model, IMAGE, precision="bf16-mixed").score(batch)
    assert torch.equal(found.score, expected.score)
    assert not torch.equal(found.score, Inspector(model, IMAGE).score(batch).score)


def test_members_see_their_own_input(model: PatchCore) -> None:
    generator = torch.Generator().manual_seed(1)
    other = PatchCore(layers=LayersConfig(["2"]))
    both = Ensemble([model, other]).fit(torch.randn(4, 3, 32, 32, generator=generator))
    small, large = (ImageConfig(resize=size * 5 // 4, crop=size) for size in (32, 64))
    inspector = Inspector(both, [small, large])
    pixels = noise(90, 120, 3)
    prepared = inspector.prepare(pixels)
    assert isinstance(prepared, tuple)
    assert [each.shape for each in prepared] == [(32, 32, 3), (64, 64, 3)]
    batches = [torch.from_numpy(each)[None] for each in prepared]
    found = inspector.score(batches)
    inputs = [normalised(x, image) for x, image in zip(batches, (small, large), strict=True)]
    assert torch.equal(found.score, both(inputs).score)
    assert found.map.shape == (1, 32, 32)
    # Members of one size share the pixels, even if they are normalised by other values.
    darker = ImageConfig(resize=40, crop=32, mean=[0.1] * 3)
    alike = Inspector(both, [small, darker])
    shared = alike.prepare(pixels)
    assert isinstance(shared, np.ndarray)
    batch = torch.from_numpy(shared)[None]
    expected = both([normalised(batch, small), normalised(batch, darker)])
    assert torch.equal(alike.score(batch).score, expected.score)


def test_images_are_by_default_those_of_the_weights() -> None:
    with pytest.warns(UserWarning, match="random weights"):
        model = PatchCore(BackboneConfig("test_vit", "none"))
    image = Inspector(model).image
    assert (image.mean, image.std) == ([0.5] * 3, [0.5] * 3)
    assert (image.size, image.view) == (224, View.crop)


def test_what_does_not_fit_is_refused(model: PatchCore) -> None:
    with pytest.raises(InputError, match="1 member, but 2 settings"):
        Inspector(model, [IMAGE, IMAGE])
    with pytest.raises(InputError, match="one view"):
        whole = ImageConfig(size=32, view=View.whole)
        Inspector(Ensemble([model, model]), [IMAGE, whole])
    inspector = Inspector(model, ImageConfig(resize=None, crop=32))
    for wrong in (noise(40, 40), noise(40, 40, 4), noise(40, 40, 3).astype(np.float32)):
        with pytest.raises(InputError, match=r"uint8 \(H, W, 3\)"):
            inspector.prepare(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"image\.crop: a crop of 32 does not fit into 40×20"):
        inspector.prepare(noise(20, 40, 3))
    for wrong in (torch.zeros(1, 32, 32, 3), torch.zeros(1, 3, 32, 32, dtype=torch.uint8)):
        with pytest.raises(InputError, match=r"uint8 \(B, h, w, 3\)"):
            inspector.score(wrong)
    batch = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    with pytest.raises(InputError, match="1 member, but 2 batches"):
        inspector.score([batch, batch])


# --- place ------------------------------------------------------------------------------------


def naive_place(
    values: NDArray[np.float32], size: tuple[int, int], image: ImageConfig
) -> NDArray[np.float32]:
    """Pixel by pixel: where its centre lies in the map, and the four values around."""
    height, width = image.resized(*size)
    rows, columns = image.kept(height, width)
    found = np.full(size, np.nan, np.float32)
    for i in range(size[0]):
        for j in range(size[1]):
            y, x = (i + 0.5) * height / size[0], (j + 0.5) * width / size[1]
            if not (rows.start <= y < rows.stop and columns.start <= x < columns.stop):
                continue
            y = min(max(y - rows.start - 0.5, 0), values.shape[0] - 1)
            x = min(max(x - columns.start - 0.5, 0), values.shape[1] - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, len(values) - 1), min(left + 1, values.shape[1] - 1)
            down, across = y - top, x - left
            upper = values[top, left] * (1 - across) + values[top, right] * across
            lower = values[bottom, left] * (1 - across) + values[bottom, right] * across
            found[i, j] = upper * (1 - down) + lower * down
    return found


VIEWS = {
    "crop": ImageConfig(size=14, view=View.crop),
    "whole": ImageConfig(size=14, view=View.whole),
    "square": ImageConfig(size=14, view=View.square),
    "own size": ImageConfig(resize=None, crop=None),
    "crop alone": ImageConfig(resize=None, crop=7),
    "odd": ImageConfig(resize=15, crop=8),
}


@pytest.mark.parametrize("size", [(31, 45), (60, 18), (9, 8), (16, 16)], ids=str)
@pytest.mark.parametrize("view", VIEWS)
def test_maps_are_placed_pixel_by_pixel(view: str, size: tuple[int, int]) -> None:
    image = VIEWS[view]
    shape = tuple(side.stop - side.start for side in image.kept(*image.resized(*size)))
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = placed(values, size, image)
    assert found.shape == size and found.dtype == np.float32
    np.testing.assert_allclose(found, naive_place(values, size, image), rtol=1e-5, atol=1e-6)
    assert np.isnan(found).any() == (image.crop is not None)


def test_a_whole_map_is_placed_as_torch_interpolates() -> None:
    values = torch.randn(14, 20, generator=torch.Generator().manual_seed(0))
    image = ImageConfig(size=14, view=View.whole)
    found = placed(values.numpy(), (70, 100), image)
    expected = F.interpolate(values[None, None], (70, 100), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(found, expected[0, 0].numpy(), rtol=0, atol=1e-5)


def test_an_own_map_stays_as_it_is() -> None:
    values = np.random.default_rng(0).normal(size=(9, 8)).astype(np.float32)
    np.testing.assert_array_equal(placed(values, (9, 8), VIEWS["own size"]), values)


def test_the_crop_is_where_the_image_was(model: PatchCore) -> None:
    """A bright spot comes back to the place that it was taken from."""
    pixels = np.zeros((120, 200, 3), np.uint8)
    pixels[60:66, 110:116] = 255
    inspector = Inspector(model, IMAGE)
    prepared = inspector.prepare(pixels)
    assert isinstance(prepared, np.ndarray)
    back = inspector.place(torch.from_numpy(prepared[..., 0].copy()), (120, 200))
    peak = np.unravel_index(np.nanargmax(back), back.shape)
    assert 58 <= peak[0] < 68 and 108 <= peak[1] < 118
    seen = ~np.isnan(back)
    assert seen.any(axis=1).sum() == 96 and seen.any(axis=0).sum() == 96  # 32 of 40 of 120


def test_a_map_of_another_size_is_refused(model: PatchCore) -> None:
    with pytest.raises(InputError, match=r"\(32, 30\) values, but an image of \(50, 50\) gets"):
        Inspector(model, IMAGE).place(np.zeros((32, 30)), (50, 50))
    with pytest.raises(InputError, match=r"image\.crop: a crop"):
        placed(np.zeros((7, 7), np.float32), (5, 5), VIEWS["crop alone"])
