import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from patchcore.errors import InputError
from patchcore.patches import Mapping, PatchConfig, PatchFeatures, padded, reference_mapping
from tests import reference


def layer_maps(channels: list[int], side: int = 9, seed: int = 0) -> list[torch.Tensor]:
    """One random map per layer, each half as fine as the one before."""
    generator = torch.Generator().manual_seed(seed)
    sides = [max(1, -(-side // 2**i)) for i in range(len(channels))]
    return [
        torch.randn(2, c, s, s + 1, generator=generator)
        for c, s in zip(channels, sides, strict=True)
    ]


def compare(channels: list[int], config: PatchConfig, side: int = 9) -> None:
    maps = layer_maps(channels, side)
    ours = PatchFeatures(channels, config)(maps).numpy()
    mapping = (config.layer_channels, config.channels)
    naive = reference.patch_features(
        [x.double().numpy() for x in maps],
        config.size,
        config.stride,
        *(mapping if config.maps(channels) else (None, None)),
    )
    assert ours.shape == naive.shape
    assert np.abs(ours - naive).max() < 1e-5


@pytest.mark.parametrize("channels", [[96], [48, 96], [24, 48, 96]])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_equals_unfold_and_pool(channels: list[int], stride: int, size: int) -> None:
    for out in (64, 24):
        compare(channels, PatchConfig(size, stride, Mapping.reference, 64, out))
    compare(channels, PatchConfig(size, stride, Mapping.average))


@pytest.mark.parametrize("channels", [[512, 1024], [128, 256], [512, 1792], [64, 128, 256]])
@pytest.mark.parametrize("out", [1024, 384])
def test_equals_unfold_and_pool_at_the_papers_sizes(channels: list[int], out: int) -> None:
    compare(channels, PatchConfig(3, 1, Mapping.reference, 1024, out), side=4)


@settings(max_examples=40, deadline=None)
@given(
    channels=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    size=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 3),
    layer_channels=st.integers(1, 50),
    out=st.integers(1, 60),
)
def test_any_mapping(
    channels: list[int], size: int, stride: int, layer_channels: int, out: int
) -> None:
    compare(channels, PatchConfig(size, stride, Mapping.reference, layer_channels, out), side=5)


@pytest.mark.parametrize(("layers", "channels"), [(3, 1), (4, 1), (5, 2), (3, 2)])
def test_layers_that_share_a_channel_are_all_traced(
    layers: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PatchConfig(mapping=Mapping.reference, layer_channels=16, channels=channels)
    features = PatchFeatures([8] * layers, config)
    maps = [torch.rand(1, 8, 4, 4) for _ in range(layers)]
    plain = features(maps)
    monkeypatch.setattr("patchcore.patches.traced", lambda: True)
    assert torch.allclose(features(maps), plain, atol=1e-6)


@pytest.mark.parametrize("config", [PatchConfig(3), PatchConfig(3, 2, Mapping.reference, 7, 10)])
def test_what_is_traced_is_the_same(config: PatchConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that meet in a channel are among them: 3 · 7 values are pooled to 10."""
    channels = [5, 4, 3]
    maps = layer_maps(channels)
    expected = PatchFeatures(channels, config)(maps)
    monkeypatch.setattr("patchcore.patches.traced", lambda: True)
    assert torch.equal(PatchFeatures(channels, config)(maps), expected)


def test_auto_maps_wide_networks_and_averages_narrow_ones() -> None:
    assert PatchFeatures([512, 1024], PatchConfig()).dimension == 1024
    assert PatchFeatures([128, 256], PatchConfig()).dimension == 384
    assert PatchConfig(channels=49).maps([20, 30])
    assert not PatchConfig(channels=50).maps([20, 30])
    compare([20, 30], PatchConfig(channels=49), side=5)
    compare([20, 30], PatchConfig(channels=50), side=5)


def test_equals_torch_adaptive_pooling() -> None:
    """The naive version itself agrees with the operations that the reference calls."""
    x = torch.randn(2, 7, 6, 5, dtype=torch.float64)
    unfolded = F.unfold(x, 3, padding=1, stride=2)  # (B, C·9, h·w)
    pooled = F.adaptive_avg_pool1d(unfolded.transpose(1, 2), 13)  # (B, h·w, 13)
    naive = reference.patch_features([x.numpy()], 3, 2, 13, 13)
    assert np.allclose(naive.reshape(2, -1, 13), pooled.numpy())
    y = torch.randn(1, 3, 4, 5, dtype=torch.float64)
    resized = F.interpolate(y, size=(7, 11), mode="bilinear", align_corners=False)
    naive = reference.interpolate(y.permute(0, 2, 3, 1).numpy(), (7, 11))
    assert np.allclose(naive, resized.permute(0, 2, 3, 1).numpy())


def test_result_is_contiguous_and_keeps_the_dtype() -> None:
    maps = [x.bfloat16() for x in layer_maps([8, 16])]
    features = PatchFeatures([8, 16], PatchConfig(channels=12)).bfloat16()(maps)
    assert features.is_contiguous() and features.dtype == torch.bfloat16


@pytest.mark.parametrize(("layer", "channels", "taps"), [(0, 512, 1), (1, 1024, 2)])
def test_kernels_are_as_short_as_the_papers_network_allows(
    layer: int, channels: int, taps: int
) -> None:
    lo, first, kernels = reference_mapping(channels, 3, layer, 2, 1024, 1024)
    assert (lo, first.shape, kernels.shape) == (512 * layer, (512,), (512, taps, 3, 3))
    assert kernels.sum((1, 2, 3)) == pytest.approx(np.ones(512))  # constants stay as they are


def test_kernels_that_are_kept_for_later_calls_are_read_only() -> None:
    _, *kept = reference_mapping(16, 3, 0, 2, 12, 12)
    assert not any(array.flags.writeable for array in kept)
    before = [array.copy() for array in kept]
    for buffer in PatchFeatures([16, 16], PatchConfig(layer_channels=12, channels=12)).buffers():
        buffer.zero_()
    for array, copy in zip(kept, before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_nothing_is_stored_or_trained() -> None:
    features = PatchFeatures([8, 16], PatchConfig(channels=12))
    assert not features.state_dict() and not list(features.parameters())


def test_defaults_are_the_papers() -> None:
    config = PatchConfig()
    assert (config.size, config.stride, config.mapping) == (3, 1, Mapping.auto)
    assert (config.layer_channels, config.channels) == (1024, 1024)


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("patch.size", {"size": 2}),
        ("patch.size", {"size": 0}),
        ("patch.stride", {"stride": 0}),
        ("patch.channels", {"channels": 0}),
        ("patch.layer_channels", {"layer_channels": -1}),
    ],
)
def test_bad_settings_are_named(key: str, settings: dict) -> None:
    with pytest.raises(InputError, match=key):
        PatchConfig(**settings)


@pytest.mark.parametrize("images", [0, 1, 15, 16, 17])
def test_images_of_zeros_beside_them_change_no_image(images: int) -> None:
    maps = [x[:1].expand(images, -1, -1, -1) for x in layer_maps([24, 48])]
    maps = [x + torch.arange(images).view(-1, 1, 1, 1) for x in maps]
    features = PatchFeatures([24, 48], PatchConfig(channels=32, layer_channels=32))
    alone, beside = features(maps), features([padded(x) for x in maps])
    assert len(beside) == (32 if images > 16 else 16)
    torch.testing.assert_close(beside[:images], alone)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("images", [1, 5, 16, 33])
def test_on_cuda_features_are_those_of_the_cpu(images: int) -> None:
    maps = [x[:1].expand(images, -1, -1, -1).clone() for x in layer_maps([24, 48])]
    features = PatchFeatures([24, 48], PatchConfig(channels=32, layer_channels=32))
    expected = features(maps)
    found = features.cuda()([x.cuda() for x in maps])
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)
