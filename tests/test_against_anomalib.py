"""Presets of later memory banks against anomalib's versions of them, on equal random weights.

Both are fitted to the same images and score the same others. Where anomalib does otherwise than
the paper, or does more than it says, that part of its model is replaced here; each replacement is
a row under "Presets and anomalib" in docs/pages/comparison.md. Run by hand, with the extra
`benchmarks`: `python -m pytest tests/test_against_anomalib.py`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import scipy.ndimage
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from patchcore.coreset import AllConfig
from patchcore.methods import build_detector
from patchcore.methods.detector import Prediction
from patchcore.training import parts
from tests.test_inputs import composed

SIDE, TOKENS = 224, 14**2
RELATIVE = 1e-4
TRANSFORMER, CONVOLUTIONS = "vit_tiny_patch16_224", "resnet18"


pytestmark = pytest.mark.filterwarnings("ignore")  # its own imports warn


@pytest.fixture(scope="module", autouse=True)
def anomalib() -> None:
    pytest.importorskip("anomalib", reason="needs the benchmarks extra", exc_type=ImportError)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of random weights, large enough for images to differ as with trained ones."""
    found = {}
    for name in (TRANSFORMER, CONVOLUTIONS):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = timm.create_model(name, pretrained=False)
        factor = 3 if name == TRANSFORMER else 1
        state = {k: v * factor if v.ndim > 1 else v for k, v in network.state_dict().items()}
        found[name] = tmp_path_factory.mktemp("weights") / f"{name}.safetensors"
        save_file({k: v.contiguous() for k, v in state.items()}, found[name])
    return found


def images(count: int, seed: int) -> Tensor:
    """Images (B, 3, H, W) of smooth noise under fine noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 9, 9, generator=generator)
    fine = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    return F.interpolate(coarse, (SIDE, SIDE), mode="bilinear") + 0.3 * fine


def objects(count: int, seed: int) -> Tensor:
    """Images (B, 3, H, W) with an object in the middle of a ground of its own."""
    inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    inside[48:176, 48:176] = True
    return torch.where(inside, images(count, seed) + 1, 0.3 * images(count, seed + 10) - 1)


@contextmanager
def networks(files: dict[str, Path]) -> Iterator[None]:
    """Let timm make networks with the weights of the files, whatever else is asked for."""
    create = timm.create_model

    def made(name: str, **settings: Any) -> nn.Module:
        name = CONVOLUTIONS if "resnet" in name else TRANSFORMER
        kept = {key: settings[key] for key in ("features_only", "out_indices") if key in settings}
        if "out_indices" in kept:
            kept["out_indices"] = tuple(kept["out_indices"])
        network = create(name, pretrained=False, **kept)
        missing, _ = network.load_state_dict(load_file(files[name]), strict=False)
        assert not missing
        return network

    with mock.patch.object(timm, "create_model", made):
        yield


def ours(preset: str, file: Path, nominal: Tensor, test: Tensor, *overrides: str) -> Prediction:
    """Prediction of a preset with another network and no coreset, by its settings otherwise."""
    typed = [f"preset={preset}", f"backbone.name={file.stem}", f"backbone.weights={file}"]
    config = replace(composed("data=generated", *typed, *overrides), coreset=AllConfig())
    model = build_detector(parts(config)).eval()
    model.fit(nominal)
    with torch.inference_mode():
        found: Prediction = model(test)
    return found


class Gaussian(nn.Module):
    """Gaussian cut at 4σ with mirrored borders, in place of theirs, as `scipy.ndimage` has it."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, maps: Tensor) -> Tensor:
        axes = (0, 0, self.sigma, self.sigma)
        return torch.from_numpy(scipy.ndimage.gaussian_filter(maps.numpy(), axes))


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Assert that no value is farther away than `RELATIVE` of what it should be."""
    found, expected = found.squeeze().double(), expected.squeeze().double()
    assert found.shape == expected.shape
    away = (found - expected).abs() / expected.abs()
    assert float(away.max()) < RELATIVE


def bilinear(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
        return function(maps, size=size, mode="bilinear", align_corners=False)

    return resized


def fitted_dino(files: dict[str, Path], nominal: Tensor, threshold: float | None) -> Any:
    """Their AnomalyDINO; a random network's components are shorter than the threshold is meant."""
    from anomalib.models.image.anomaly_dino.torch_model import AnomalyDINOModel

    with networks(files):
        model = AnomalyDINOModel(masking=threshold is not None)
    if threshold is not None:
        masks = partial(model.compute_background_masks, threshold=threshold)
        model.compute_background_masks = masks
    model.train()(nominal)
    model.fit()
    return model.eval()


DINO = ("image.size=224", f"scoring.top_share={1 / TOKENS}")  # 1 %, rounded down


def test_anomaly_dino(weights: dict[str, Path]) -> None:
    nominal, test = images(6, 0), images(3, 1)
    model = fitted_dino(weights, nominal, None)
    model.anomaly_map_generator.blur = Gaussian(4)
    with torch.no_grad(), mock.patch.object(F, "interpolate", bilinear(F.interpolate)):
        theirs = model(test)
    off = "method.foreground=null"
    found = ours("anomaly_dino", weights[TRANSFORMER], nominal, test, off, *DINO)
    assert_close(found.map, theirs.anomaly_map)
    assert_close(found.score, theirs.pred_score)


def test_anomaly_dino_with_a_foreground(weights: dict[str, Path]) -> None:
    nominal, test = objects(6, 0), objects(3, 1)
    model = fitted_dino(weights, nominal, 2.0)
    generator = model.anomaly_map_generator
    with torch.no_grad(), mock.patch.object(generator, "forward") as drawn:
        theirs = model(test)
    grid = drawn.call_args.args[0][:, 0]
    on = "method.foreground=2"
    found = ours("anomaly_dino", weights[TRANSFORMER], nominal, test, on, *DINO)
    counts = ~found.patch_score.isnan()
    assert torch.equal(counts, grid > 0) and 0.3 < float(counts.float().mean()) < 0.7
    assert_close(found.patch_score[counts], grid[counts])
    assert_close(found.score, theirs.pred_score)


def test_rad(weights: dict[str, Path]) -> None:
    from anomalib.models.image.rad.torch_model import RadModel

    nominal, test = images(6, 0), images(3, 1)
    with networks(weights):
        model = RadModel(k_image=3)
    model.train()(nominal)
    model.build_memory_bank()
    model.eval().blur = Gaussian(1)
    with torch.no_grad():
        theirs = model(test)
    share = f"scoring.top_share={int(0.01 * SIDE**2) / SIDE**2}"  # 1 %, rounded down
    settings = ("image.size=224", "method.retrieval=3", share)
    found = ours("rad", weights[TRANSFORMER], nominal, test, *settings)
    assert_close(found.map, theirs.anomaly_map)
    assert_close(found.score, theirs.pred_score)


def test_super_add(weights: dict[str, Path]) -> None:
    from anomalib.models.image.super_add.torch_model import SuperADDModel

    nominal, test, layers = images(6, 0), images(3, 1), [2, 5, 8, 11]
    with networks(weights):
        model = SuperADDModel(layers=layers, patch_size=SIDE)
    model.train()(nominal)
    model.subsample_embedding()
    model.eval().blur = Gaussian(4)
    with torch.no_grad():
        theirs = model(test)
    names = ",".join(f"blocks.{layer}" for layer in layers)
    settings = ("image.size=224", f"layers.names=[{names}]")
    found = ours("super_add", weights[TRANSFORMER], nominal, test, *settings)
    channels = model.memory_bank.shape[-1]
    assert_close(found.map / channels, theirs.anomaly_map)
    assert_close(found.score / channels, theirs.pred_score)


def test_mh_patchcore(weights: dict[str, Path]) -> None:
    from anomalib.models.image.mh_patchcore.torch_model import MHPatchcoreModel

    nominal, test = images(3, 0), images(2, 1)
    whole = {"memory_bank_size": 10_000, "local_coreset_size": 10_000}
    with networks(weights):
        model = MHPatchcoreModel(CONVOLUTIONS, num_neighbors=1, **whole)
    with torch.no_grad():
        x = model.train()(nominal)
        for part in (model.pca, model.covariance):
            part.update(x)
            part.finalize()
            x = part(x)
        model.memory_bank.update(x)
        model.memory_bank.finalize()
        theirs = model.eval()(test)
    settings = ("scoring.reweight=0", "scoring.distance=squared")
    found = ours("mh_patchcore", weights[CONVOLUTIONS], nominal, test, *settings)
    assert_close(found.map, theirs.anomaly_map)
    assert_close(found.score, theirs.pred_score)
