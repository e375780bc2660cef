"""A fitted model kept, copied, cast, compiled and exported: the same scores."""

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from patchcore import (
    AllConfig,
    BackboneConfig,
    Ensemble,
    FaissFlatConfig,
    FaissIVFPQConfig,
    GreedyConfig,
    InputError,
    LayersConfig,
    Padim,
    PadimConfig,
    PatchConfig,
    PatchCore,
    Prediction,
    RandomConfig,
    ScoringConfig,
    Spade,
    SpadeConfig,
)
from patchcore.methods.spade import Storage
from patchcore.scoring import Distance
from tests.processes import execute
from tests.shapes import leave_unchecked

Model = PatchCore | Spade | Padim | Ensemble
REWEIGHTED = ScoringConfig(neighbours=3, reweight=4, top_share=0.1, sigma=2)
BUILDERS: dict[str, Callable[[], Model]] = {
    "patchcore": PatchCore,
    "reweighted": lambda: PatchCore(scoring=REWEIGHTED),
    "cosine": lambda: PatchCore(scoring=ScoringConfig(distance=Distance.cosine, sigma=0)),
    "timm": lambda: PatchCore(BackboneConfig("test_resnet", "none"), patch=PatchConfig(channels=9)),
    "spade": lambda: Spade(SpadeConfig(neighbours=3, storage=Storage.float16)),
    "padim": lambda: Padim(PadimConfig(channels=12)),
    "ensemble": lambda: Ensemble(
        [PatchCore(), PatchCore(layers=LayersConfig(["2"]), scoring=REWEIGHTED)]
    ),
}
METHODS = ("patchcore", "spade", "padim", "ensemble")
TRACED = ("spade", "padim", "ensemble")  # whose members are PatchCore's, one of them reweighted
pytestmark = [
    pytest.mark.usefixtures("hints_once"),
    pytest.mark.filterwarnings("ignore:backbone test_resnet has random weights"),
    pytest.mark.filterwarnings("ignore:.torch.jit.trace"),
    # PyTorch, of convolutions' weights that lie channels last.
    pytest.mark.filterwarnings("ignore:No complete tensor found in the group"),
]


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions without their checks of shapes, which PyTorch's compilers cannot follow."""
    leave_unchecked(monkeypatch)


def images(count: int, seed: int = 0, size: int = 48) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, size, size, generator=generator, dtype=torch.float32)


@pytest.fixture(scope="module")
def fitted() -> Callable[[str], Any]:
    """A fitted model by its name, which nobody may change."""
    known: dict[str, Model] = {}

    def get(name: str) -> Model:
        if name not in known:
            known[name] = BUILDERS[name]().fit(images(4))
        return known[name]

    return get


def assert_equal(ours: Prediction, theirs: Prediction) -> None:
    for x, y in zip(ours, theirs, strict=True):
        assert torch.equal(x, y)


def assert_near(ours: Prediction, theirs: Prediction, share: float = 1e-5) -> None:
    for x, y in zip(ours[:3], theirs[:3], strict=True):
        assert x.dtype == torch.float32
        assert (x - y).abs().max() <= share * y.abs().max()


def saved(x: Any, weights_only: bool) -> Any:
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


@pytest.mark.parametrize("name", BUILDERS)
def test_copies_score_the_same(fitted: Callable[[str], Any], name: str) -> None:
    model = fitted(name)
    batch = images(3, seed=1)
    expected = model(batch)  # whatever is made of the memory is there now
    fresh = BUILDERS[name]()
    fresh.load_state_dict(saved(model.state_dict(), weights_only=True))
    for same in (
        fresh,
        copy.deepcopy(model),
        copy.copy(model),
        pickle.loads(pickle.dumps(model)),
        saved(model, weights_only=False),
        copy.deepcopy(copy.deepcopy(model)),
    ):
        assert_equal(same(batch), expected)
        assert_equal(same(images(1, seed=2)), model(images(1, seed=2)))  # another batch size
    assert_equal(model(batch), expected)


@pytest.mark.parametrize("name", BUILDERS)
def test_copies_of_an_unfitted_model_can_be_fitted(fitted: Callable[[str], Any], name: str) -> None:
    batch = images(2, seed=1)
    for model in (copy.deepcopy(BUILDERS[name]()), pickle.loads(pickle.dumps(BUILDERS[name]()))):
        with pytest.raises(InputError, match="call fit"):
            model(batch)
        assert_equal(model.fit(images(4))(batch), fitted(name)(batch))


def test_a_copy_is_independent_of_its_model(fitted: Callable[[str], Any]) -> None:
    model = fitted("patchcore")
    before = model(images(2, seed=1))
    copy.deepcopy(model).fit(images(4, seed=5))
    assert_equal(model(images(2, seed=1)), before)


def test_a_pickled_model_scores_in_another_process(
    fitted: Callable[[str], Any], tmp_path: Path
) -> None:
    torch.save(fitted("reweighted"), tmp_path / "model.pt")
    torch.save(images(2, seed=1), tmp_path / "images.pt")
    program = (
        "import sys, torch\n"
        "model = torch.load('model.pt', weights_only=False)\n"
        "hook = model.backbone.network.layer2.register_forward_hook(lambda *_: None)\n"
        "torch.save(tuple(model(torch.load('images.pt'))), 'out.pt')\n"
    )
    execute(program, folder=tmp_path)
    assert_equal(
        Prediction(*torch.load(tmp_path / "out.pt")), fitted("reweighted")(images(2, seed=1))
    )


def test_a_state_of_another_size_replaces_memory_and_index() -> None:
    small = PatchCore(coreset=GreedyConfig(ratio=0.01)).fit(images(4))
    large = PatchCore(coreset=GreedyConfig(ratio=0.1)).fit(images(4, seed=3))
    batch = images(2, seed=1)
    before = large(batch)
    large.load_state_dict(small.state_dict())
    assert len(large.memory) == len(small.memory) < 10 and large.coreset is None
    assert_equal(large(batch), small(batch))
    # A memory of the same size is copied into the old one: what was made of that is stale.
    one, other = (PatchCore(coreset=RandomConfig(count=9)).fit(images(4, s)) for s in (0, 3))
    other(batch)
    other.load_state_dict(one.state_dict())
    assert_equal(other(batch), one(batch))
    assert not torch.equal(before.score, large(batch).score)


def test_a_state_may_be_kept_as_safetensors(fitted: Callable[[str], Any], tmp_path: Path) -> None:
    model = fitted("padim")
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, tmp_path / "state.safetensors")
    fresh = BUILDERS["padim"]()
    fresh.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert_equal(fresh(images(2, seed=1)), model(images(2, seed=1)))


@pytest.mark.filterwarnings("ignore:layers.names=.*coarser")
@pytest.mark.parametrize(
    ("name", "other", "key"),
    [
        ("patchcore", lambda: PatchCore(patch=PatchConfig(size=5)), "patch.size"),
        ("patchcore", BUILDERS["cosine"], "scoring.distance"),
        ("patchcore", lambda: PatchCore(layers=LayersConfig(["3", "2"])), "layers.names"),
        ("padim", lambda: Padim(PadimConfig(channels=12, seed=1)), "method.seed"),
        ("spade", lambda: Spade(SpadeConfig(neighbours=3)), "method.storage"),
        ("ensemble", lambda: Ensemble([BUILDERS["cosine"](), PatchCore()]), "scoring.distance"),  # type: ignore[list-item]
    ],
)
def test_a_state_of_other_settings_is_refused(
    fitted: Callable[[str], Any], name: str, other: Callable[[], Model], key: str
) -> None:
    model = other()
    with pytest.raises(InputError, match=f"the state is of a model with {key}="):
        model.load_state_dict(fitted(name).state_dict())
    with pytest.raises(InputError, match="call fit"):
        model(images(1))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("dtype", "share"), [(torch.float16, 0.02), (torch.bfloat16, 0.1), (torch.float64, 1e-4)]
)
def test_other_precisions_score_nearly_the_same(
    fitted: Callable[[str], Any], name: str, dtype: torch.dtype, share: float
) -> None:
    batch, expected = images(2, seed=1), fitted(name)(images(2, seed=1))
    cast = copy.deepcopy(fitted(name)).to(dtype)
    own = BUILDERS[name]().to(dtype)
    torch.set_default_dtype(dtype)  # as Lightning's precisions do
    try:
        assert_near(cast(batch), expected, share)
        again = own.fit(images(4).to(dtype))(batch.to(dtype))
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in again[:3])
    if dtype is torch.float64:  # coarser ones may pick other patches for the memory
        assert_near(again, expected, share)
    for key, value in fitted(name).state_dict().items():
        if "backbone" not in key:
            assert torch.equal(cast.state_dict()[key], value)  # the memory has lost nothing
    assert_equal(fitted(name)(batch), expected)  # nor has what is kept between calls


@pytest.mark.parametrize("name", TRACED)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("unchecked")
def test_compiled_models_score_the_same(fitted: Callable[[str], Any], name: str) -> None:
    model, batch = fitted(name), images(2, seed=1)
    torch._dynamo.reset()
    # The default back end only turns what it is handed into C++, which takes a minute.
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_near(compiled(batch), model(batch))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, (batch,), check_trace=False)
    assert_near(Prediction(*traced(batch)), model(batch))


@pytest.mark.usefixtures("unchecked")
def test_an_exported_spade_scores_the_same(fitted: Callable[[str], Any]) -> None:
    """`patchcore export` refuses it, unlike the other methods; see test_export.py for these."""
    model, batch = fitted("spade"), images(3, seed=1)
    program = torch.export.export(model, (batch,))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    exported = torch.export.load(file).module()
    assert_near(Prediction(*exported(batch)), model(batch))


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_exported_says_so(fitted: Callable[[str], Any]) -> None:
    pytest.importorskip("faiss")
    index = FaissIVFPQConfig(lists=2, sub_quantizers=8, bits=2)
    model = PatchCore(index=index, coreset=AllConfig()).fit(images(4))
    with (
        warnings.catch_warnings(),
        pytest.raises(InputError, match=r"^index: an approximate search cannot be"),
    ):
        warnings.simplefilter("ignore")
        torch.jit.trace(model, (images(1),), check_trace=False)


def test_models_with_a_faiss_index_are_copied() -> None:
    pytest.importorskip("faiss")
    model = PatchCore(index=FaissFlatConfig()).fit(images(4))
    expected = model(images(2, seed=1))
    assert_equal(copy.deepcopy(model)(images(2, seed=1)), expected)
    assert_equal(pickle.loads(pickle.dumps(model))(images(2, seed=1)), expected)
