"""Fused convolutions, against the networks as they are."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from patchcore._fusion import ConvReLU, PointwiseConv, fold_batch_norms, fuse, fuse_relus
from patchcore.backbones import Backbone, BackboneConfig, LayersConfig

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def trained(network: nn.Module) -> nn.Module:
    """The network, its batch norms as if they had seen images."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.normal_(generator=generator).mul_(0.1)
            module.running_var.uniform_(0.5, 2, generator=generator)
            if module.affine:
                module.weight.data.uniform_(0.5, 2, generator=generator)
                module.bias.data.normal_(generator=generator).mul_(0.1)
    return network.eval()


def backbone(name: str, layers: list[str]) -> Backbone:
    with pytest.warns(UserWarning, match="random weights"):
        made = Backbone(BackboneConfig(name, "none"), LayersConfig(layers))
    trained(made.network)
    return made


class Small(nn.Module):
    """Convolutions and batch norms in all relations."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, bias=True)
        self.plain = nn.BatchNorm2d(4, affine=False)
        self.shared = nn.Conv2d(4, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.twice = nn.Conv2d(4, 4, 1, bias=False)
        self.after_twice = nn.BatchNorm2d(4)
        self.wanted = nn.Conv2d(4, 4, 1)
        self.after_wanted = nn.BatchNorm2d(4)
        self.batch = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.plain(self.first(x))
        y = self.shared(x)
        x = self.norm(y) + y  # the convolution is read twice
        x = self.after_twice(self.twice(self.twice(x)))  # or runs twice
        return self.batch(self.after_wanted(self.wanted(x)))


def test_only_a_norm_that_alone_reads_a_convolution_is_folded() -> None:
    network = trained(Small())
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network(images)
        assert fold_batch_norms(network, keep=["wanted"]) == 1
        torch.testing.assert_close(network(images), expected)
        assert isinstance(network.plain, nn.Identity)
        assert isinstance(network.norm, nn.BatchNorm2d)
        assert fold_batch_norms(network) == 1
        torch.testing.assert_close(network(images), expected)
        assert isinstance(network.after_wanted, nn.Identity)


def test_a_network_that_cannot_be_followed_stays_as_it_is() -> None:
    class Branching(Small):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else x

    network = trained(Branching())
    assert fold_batch_norms(network) == 0 and isinstance(network.plain, nn.BatchNorm2d)


@pytest.mark.parametrize(
    ("name", "layers", "folded"),
    [
        ("resnet18", ["2", "3"], 15),
        ("densenet121", ["1"], 7),  # others read joined outputs
        ("mobilenetv2_050", ["2"], 18),  # batch norms with activations
        ("convnext_atto", ["1"], 0),
    ],
)
def test_folded_copies_give_the_same_maps(name: str, layers: list[str], folded: int) -> None:
    made = backbone(name, layers)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        network = made._fuse(torch.float32)
        for x, y in zip(made._outputs(network, images), made(images), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)
    before, after = (
        sum(isinstance(module, nn.BatchNorm2d) for module in each.modules())
        for each in (made.network, network)
    )
    assert before - after == folded


def test_a_relu_that_alone_reads_a_convolution_is_one_step_with_it() -> None:
    network = trained(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    )
    network.append(nn.ReLU6())
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network(images)
        assert fuse_relus(network) == 0 and fold_batch_norms(network) == 1
        assert fuse_relus(network, keep=["1"]) == 0  # what the ReLU reads is wanted
        assert fuse_relus(network) == 1
        assert type(network[0]) is ConvReLU and type(network[3]) is nn.Conv2d
        torch.testing.assert_close(network(images), expected)


def test_a_convolution_of_single_pixels_is_a_product() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 1, stride=2)
    ).eval()
    images = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0)).double()
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = network.double()(images)
        fuse(network, [], torch.float64)
        assert [type(x) is PointwiseConv for x in network] == [True, False, False]
        torch.testing.assert_close(network(images), expected)
        assert network[0](images).is_contiguous(memory_format=torch.channels_last)


def test_a_layer_is_given_as_it_is_though_its_norm_could_be_folded() -> None:
    made = backbone("resnet18", ["layer1.0.conv1", "layer1.0.bn1"])
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = made._outputs(made._fuse(torch.float32), images)
        for x, y in zip(found, made(images), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


def test_copies_are_dropped_when_weights_change() -> None:
    made = backbone("resnet18", ["1"])
    for change in (
        lambda: made.double(),
        lambda: made.load_state_dict(made.state_dict()),
        lambda: made.network.load_state_dict(made.network.state_dict()),
    ):
        made._fused[torch.float32] = nn.Identity()
        change()
        assert not made._fused
    made._fused[torch.float32] = nn.Identity()
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert not other._fused and made._fused
        other.load_state_dict(other.state_dict())
        assert made._fused  # the copy forgets its own alone


@cuda
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_050", "wide_resnet50_2"])
def test_on_cuda_maps_are_those_of_the_cpu(name: str) -> None:
    made = backbone(name, ["1", "2"])
    images = torch.randn(4, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    expected = made(images)
    made.cuda()
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        for x, y in zip(made(images.cuda()), expected, strict=True):
            torch.testing.assert_close(x.cpu(), y, rtol=1e-3, atol=1e-3)
    finally:
        torch.backends.cudnn.allow_tf32 = before
    with torch.autocast("cuda", torch.bfloat16):
        for x, y in zip(made(images.cuda()), expected, strict=True):
            assert x.dtype == torch.bfloat16
            error = torch.linalg.vector_norm(x.cpu().float() - y) / torch.linalg.vector_norm(y)
            assert error < 0.04
    assert set(made._fused) == {torch.float32, torch.bfloat16}
