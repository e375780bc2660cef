from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image
from torchvision import transforms as tv

from patchcore.data.augment import AugmentConfig
from patchcore.data.transforms import (
    ImageConfig,
    build_preparation,
    build_transform,
)
from patchcore.data.view import View
from patchcore.errors import InputError
from patchcore.settings import effective
from tests.processes import execute

RAW = ImageConfig(mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0])


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def nothing(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return np.zeros(image.shape[:2], dtype=bool)


@pytest.mark.parametrize(("height", "width"), [(900, 700), (300, 512), (120, 200), (256, 256)])
def test_equals_the_torchvision_pipeline_of_the_paper(height: int, width: int) -> None:
    image = picture(height, width)
    config = ImageConfig()
    expected = tv.Compose(
        [
            tv.Resize(256),  # antialiased bilinear on PIL images
            tv.CenterCrop(224),
            tv.ToTensor(),
            tv.Normalize(config.mean, config.std),
        ]
    )(Image.fromarray(image))
    ours, mask = build_transform(config)(image, nothing(image), 0)
    assert ours.dtype == torch.float32
    assert mask.shape == (224, 224) and mask.dtype == torch.bool
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_stretching_ignores_the_aspect_ratio() -> None:
    image = picture(103, 400)
    config = ImageConfig(resize=64, crop=None, stretch=True)
    expected = tv.Compose(
        [tv.Resize((64, 64)), tv.ToTensor(), tv.Normalize(config.mean, config.std)]
    )(Image.fromarray(image))
    mask = nothing(image)
    mask[:, :200] = True
    ours, moved = build_transform(config)(image, mask, 0)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    assert moved.shape == (64, 64) and bool(moved[:, :32].all()) and not moved[:, 32:].any()


def test_shrinking_antialiases() -> None:
    stripes = np.zeros((1024, 1024, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    image, _ = build_transform(RAW)(stripes, nothing(stripes), 0)
    assert image.std() < 0.01  # without it, whole stripes survive
    assert abs(image.mean() - 0.5) < 0.01


def test_one_plane_seen_as_three_gives_what_three_equal_planes_give() -> None:
    plane = picture(90, 70)[..., 0]
    seen = np.broadcast_to(plane[..., None], (90, 70, 3))
    whole = ImageConfig(resize=None, crop=None)
    for config in (ImageConfig(resize=32, crop=28), ImageConfig(), whole):
        transform = build_transform(config, AugmentConfig())
        image, _ = transform(seen, nothing(seen), 0)
        expected, _ = transform(np.ascontiguousarray(seen), nothing(seen), 0)
        assert torch.equal(image, expected)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "config",
    [
        ImageConfig(size=64),
        ImageConfig(resize=64, crop=None, stretch=True),
        ImageConfig(resize=None, crop=None),  # not resized
        ImageConfig(resize=50_000, crop=32),  # only the crop is resized
    ],
)
def test_an_image_of_pillow_gives_what_its_pixels_give(config: ImageConfig, mode: str) -> None:
    image = Image.fromarray(picture(90, 120)).convert(mode)
    pixels = np.array(image.convert("RGB"))
    mask = nothing(pixels)
    mask[30:60, 40:80] = True
    prepare = build_preparation(config)
    expected, marked = prepare(pixels, mask, 0)
    found, seen = prepare(image, mask, 0)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(seen, marked)
    assert marked.any()


def test_a_crop_that_does_not_fit_is_refused() -> None:
    image = picture(30, 40)
    with pytest.raises(ValueError, match="a crop of 31 does not fit into 40×30 pixels"):
        build_transform(ImageConfig(resize=None, crop=31))(image, nothing(image), 0)


def test_mask_follows_the_image_and_stays_binary() -> None:
    for height, width in ((300, 400), (2000, 1500), (90, 100)):
        mask = np.zeros((height, width), dtype=bool)
        mask[height // 3 : height // 2, width // 3 : width // 2] = True
        image = np.repeat(mask[..., None], 3, -1).astype(np.uint8) * 255
        seen, moved = build_transform(RAW)(image, mask, 0)
        differs = (seen[0] > 0.5) != moved
        assert differs.float().mean() < 0.005  # pixels of the border
        assert moved.any() and not moved.all()


def test_no_resize_and_no_crop_keep_every_pixel() -> None:
    image = picture(33, 47)
    config = ImageConfig(resize=None, crop=None, mean=RAW.mean, std=RAW.std)
    seen, mask = build_transform(config)(image, nothing(image), 0)
    assert mask.shape == (33, 47)
    np.testing.assert_allclose(seen.permute(1, 2, 0).numpy() * 255, image, atol=1e-3)


AUGMENTATIONS = [
    AugmentConfig(horizontal_flip=True),
    AugmentConfig(vertical_flip=True),
    AugmentConfig(rotate=20),
    AugmentConfig(translate=0.2),
    AugmentConfig(scale=0.2),
    AugmentConfig(brightness=0.2),
    AugmentConfig(contrast=0.3),
    AugmentConfig(saturation=0.5),
    AugmentConfig(noise=0.1),
]


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_each_augmentation_changes_images_by_seed_alone(augment: AugmentConfig) -> None:
    image = picture(40, 40)
    config = ImageConfig(resize=32, crop=32)
    plain, _ = build_transform(config)(image, nothing(image), 0)
    transform = build_transform(config, augment)
    seen = [transform(image, nothing(image), seed)[0] for seed in range(12)]
    again = [transform(image, nothing(image), seed)[0] for seed in range(12)]
    assert all(torch.equal(a, b) for a, b in zip(seen, again, strict=True))
    assert any(not torch.equal(a, plain) for a in seen)
    assert len({a.numpy().tobytes() for a in seen}) > 1


def test_nothing_on_augments_nothing() -> None:
    image = picture(40, 40)
    config = ImageConfig(resize=32, crop=32)
    plain, _ = build_transform(config)(image, nothing(image), 0)
    for seed in range(3):
        seen, _ = build_transform(config, AugmentConfig())(image, nothing(image), seed)
        torch.testing.assert_close(seen, plain, atol=0, rtol=0)


@pytest.mark.parametrize("augment", AUGMENTATIONS[:5])
def test_geometry_moves_image_and_mask_together(augment: AugmentConfig) -> None:
    mask = np.zeros((64, 64), dtype=bool)
    mask[8:24, 14:30] = True
    image = np.repeat(mask[..., None], 3, -1).astype(np.uint8) * 255
    config = ImageConfig(resize=64, crop=48, mean=RAW.mean, std=RAW.std)
    transform = build_transform(config, augment)
    for seed in range(8):
        seen, moved = transform(image, mask, seed)
        assert ((seen[0] > 0.5) != moved).float().mean() < 0.02


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: ImageConfig(resize=0), "image.resize"),
        (lambda: ImageConfig(crop=-1), "image.crop"),
        (lambda: ImageConfig(resize=200, crop=224), "image.crop"),
        (lambda: ImageConfig(bits=33), "image.bits"),
        (lambda: ImageConfig(limit=float("nan")), "image.limit"),
        (lambda: ImageConfig(mean=[0.5]), "image.mean"),
        (lambda: ImageConfig(std=[1.0, 0.0, 1.0]), "image.std"),
        (lambda: AugmentConfig(rotate=200), "augment.rotate"),
        (lambda: AugmentConfig(scale=1.0), "augment.scale"),
        (lambda: AugmentConfig(noise=-0.1), "augment.noise"),
        (lambda: AugmentConfig(seed=-1), "augment.seed"),
    ],
)
def test_settings_out_of_range_are_named(make: Callable[[], object], key: str) -> None:
    with pytest.raises(InputError, match=f"^{key} "):
        make()


@pytest.mark.parametrize("kind", [ImageConfig, AugmentConfig])
def test_settings_go_through_omegaconf(kind: type) -> None:
    assert OmegaConf.to_object(OmegaConf.structured(kind())) == kind()


def test_importing_asks_no_server(tmp_path: Path) -> None:
    program = (
        "import os, socket, sys, warnings\n"
        "os.environ.pop('NO_ALBUMENTATIONS_UPDATE', None)\n"
        "warnings.simplefilter('error')\n"
        "def refuse(*_): raise RuntimeError('a connection')\n"
        "socket.socket.connect = refuse\n"
        "socket.getaddrinfo = refuse\n"
        "from patchcore.data.augment import AugmentConfig\n"
        "from patchcore.data.transforms import ImageConfig, build_transform\n"
        "build_transform(ImageConfig(), AugmentConfig())\n"
        "assert 'albumentations' not in sys.modules\n"
        "build_transform(ImageConfig(), AugmentConfig(rotate=5))\n"
        "assert 'albumentations' in sys.modules\n"
    )
    execute(program, folder=tmp_path)


@pytest.mark.parametrize(
    "one, other, same",
    [
        (ImageConfig(256, crop=224), ImageConfig(366, crop=320), True),
        (ImageConfig(256, crop=224), ImageConfig(320, crop=320), False),
        (ImageConfig(256, crop=224), ImageConfig(256, True, 224), False),
        (ImageConfig(256, crop=None), ImageConfig(None, crop=None), True),
        (ImageConfig(256, crop=None), ImageConfig(224, True, None), True),
        (ImageConfig(256, crop=None), ImageConfig(224, True, 224), True),
        (ImageConfig(256, crop=None), ImageConfig(256, crop=256), False),
        (ImageConfig(None, crop=224), ImageConfig(None, crop=224), True),
        (ImageConfig(None, crop=224), ImageConfig(None, crop=320), False),
        (ImageConfig(None, crop=224), ImageConfig(256, crop=224), False),
    ],
)
def test_one_view_at_any_size(one: ImageConfig, other: ImageConfig, same: bool) -> None:
    assert one.same_view(other) is other.same_view(one) is same


# --- what part of an image is seen, and at what size --------------------------------------------

PRESETS = {224: 256, 280: 320, 288: 329, 320: 366, 360: 411, 448: 512}  # {crop: resize}


@pytest.mark.parametrize(("size", "resize"), PRESETS.items())
def test_a_size_crops_as_the_paper_does(size: int, resize: int) -> None:
    image = ImageConfig(size=size)
    assert (image.resize, image.stretch, image.crop) == (resize, False, size)
    assert image == ImageConfig(resize, crop=size)  # which therefore has that size and view
    assert (image.size, image.view) == (size, View.crop)


def test_the_default_is_the_papers() -> None:
    assert ImageConfig() == ImageConfig(256, False, 224) == ImageConfig(size=224, view=View.crop)


@pytest.mark.parametrize("view", View)
def test_views_of_a_long_image(view: View) -> None:
    pixels = np.zeros((60, 120, 3), np.uint8)
    pixels[:, 60:] = 200
    prepared, mask = build_preparation(ImageConfig(size=28, view=view))(
        pixels, pixels[..., 0] > 0, 0
    )
    sides = {View.crop: (28, 28), View.whole: (28, 56), View.square: (28, 28)}[view]
    assert prepared.shape == (*sides, 3) and mask.shape == sides
    assert mask.mean() == 0.5  # each keeps the middle
    assert ImageConfig(size=28, view=view).kept(32, 64)[1].start == (18 if view is View.crop else 0)


@pytest.mark.parametrize(
    ("image", "size", "view"),
    [
        (ImageConfig(32, crop=32), None, None),
        (ImageConfig(320, False, 280), 280, View.crop),
        (ImageConfig(64, True, None), 64, View.square),
        (ImageConfig(64, crop=None), 64, View.whole),
        (ImageConfig(None, crop=None), None, None),
        (ImageConfig(64, True, 64), None, None),
        (ImageConfig(size=64, view=View.square, crop=32), None, None),
        (ImageConfig(size=320, resize=256, crop=224), 224, View.crop),
    ],
)
def test_size_and_view_stand_for_an_exact_resize_or_are_null(
    image: ImageConfig, size: int | None, view: View | None
) -> None:
    assert (image.size, image.view) == (size, view)
    assert replace(image, bits=12) == replace(image, bits=12, size=9, view=View.crop)


def test_what_is_not_given_follows_from_size_and_view() -> None:
    square = ImageConfig(size=64, view=View.square, resize=32)
    assert (square.resize, square.stretch, square.crop) == (32, True, None)
    assert ImageConfig(size=64, crop=32).resize == 73
    with pytest.raises(InputError, match=r"^image\.size must be at least 1, got 0"):
        ImageConfig(size=0)


def test_stretching_to_no_size_keeps_the_size_on_disk() -> None:
    # As image.resize=null leaves a preset that stretches.
    config = ImageConfig(resize=None, crop=None, stretch=True)
    assert config.resized(30, 50) == (30, 50)
    assert effective(config) == effective(replace(config, stretch=False))


@pytest.mark.parametrize("key", ["mean", "std"])
def test_means_of_whole_values_are_refused(key: str) -> None:
    with pytest.raises(InputError, match=rf"image\.{key} must be from 0 to 1, got \[123.*by 255"):
        ImageConfig(**{key: [123.0, 116.0, 103.0]})
