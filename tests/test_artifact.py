"""Artifacts: a fitted model is kept and read again, and no damaged one gives an answer."""

import copy
import hashlib
import itertools
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from patchcore import (
    AllConfig,
    BackboneConfig,
    Ensemble,
    GreedyConfig,
    InputError,
    Inspector,
    LayersConfig,
    PatchCore,
    ScoringConfig,
    Spade,
    SpadeConfig,
    artifact_files,
    load,
    sealed,
)
from patchcore.artifact import _described, save, step
from patchcore.artifact_files import check, read_description, write_folder
from patchcore.data.transforms import ImageConfig
from patchcore.data.view import View
from patchcore.decision import decide
from patchcore.methods import METHODS
from patchcore.methods.spade import Storage
from patchcore.scoring import Distance
from patchcore.sealed import rewrite_description
from tests.test_methods import ToyConfig, build

SIZE = (32, 24)
IMAGE = ImageConfig(resize=32, crop=24)


def pixels(count: int, seed: int = 0, size: tuple[int, int] = SIZE) -> Tensor:
    """Images (B, h, w, 3) uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *size, 3), generator=generator, dtype=torch.uint8)


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def fitted() -> Callable[[str], Any]:
    """A fitted method by its name, which nobody may change."""
    known: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in known:
            known[name] = build(name).fit(images(5))
        return known[name]

    return get


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that somebody has added."""
    monkeypatch.setitem(METHODS, "toy", ToyConfig)


@pytest.fixture(scope="module")
def kept(fitted: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with weights inside, which nobody may change."""
    folder = tmp_path_factory.mktemp("kept") / "model"
    fitted("patchcore").save(folder, image=IMAGE, details={"data": {"set": "noise"}}, weights=True)
    return folder


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with a decision and all details, which nobody may change."""
    folder = tmp_path_factory.mktemp("decided") / "model"
    made = decide(torch.rand(30), [torch.rand(30, 4, 4)], 0.1, folds=2)
    details = {"data": {"set": "noise"}, "sources": ["/a.png"], "pruned": ["/b.png"], "note": 1}
    model = build("patchcore").fit(images(2))
    Inspector(model, IMAGE, made, details).save(folder, weights=True)
    return folder


def assert_same(ours: Inspector, theirs: Inspector) -> None:
    """Equal predictions, bit for bit, and memories of the same dtypes."""
    batch = pixels(3, 1)
    for x, y in zip(ours.score(batch), theirs.score(batch), strict=True):
        assert torch.equal(x, y)
    for name, memory in theirs.model.memories.items():
        assert torch.equal(ours.model.memories[name], memory), name
        assert ours.model.memories[name].dtype == memory.dtype, name


# --- saved and loaded -------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*METHODS, "toy", "ensemble"])
@pytest.mark.parametrize("weights", [False, True], ids=["outside", "inside"])
def test_every_method_is_the_same_again(
    fitted: Callable[[str], Any], name: str, weights: bool, tmp_path: Path
) -> None:
    model = fitted(name)
    model.save(tmp_path / "model", image=IMAGE, weights=weights)
    found = load(tmp_path / "model")
    assert_same(found, Inspector(model, IMAGE))
    assert type(found.model) is type(model)
    files = {"artifact.yaml", "model.safetensors"}
    if weights:
        files |= {"weights_1.safetensors", "weights_2.safetensors"}
        if name != "ensemble":
            files = {"artifact.yaml", "model.safetensors", "weights.safetensors"}
    assert {path.name for path in (tmp_path / "model").iterdir()} == files
    # Kept again, it is the same artifact but for its own time.
    save(found, tmp_path / "again", weights=weights)
    first, second = (read_description(tmp_path / each) for each in ("model", "again"))
    assert first == second


@pytest.mark.filterwarnings("ignore:backbone test_resnet has random weights")
@pytest.mark.parametrize(
    "make",
    [
        lambda: PatchCore(BackboneConfig("test_resnet", "none", 3), LayersConfig(["1", "2"])),
        lambda: PatchCore(scoring=ScoringConfig(neighbours=3, reweight=4, top_share=0.1, sigma=2)),
        lambda: PatchCore(coreset=AllConfig(), scoring=ScoringConfig(distance=Distance.cosine)),
        lambda: PatchCore(coreset=GreedyConfig(count=7, seed=5)),
        lambda: Spade(SpadeConfig(neighbours=2, storage=Storage.float16)),
        lambda: Ensemble([PatchCore(), PatchCore(layers=LayersConfig(["2"]))]),
    ],
    ids=["timm", "reweighted", "cosine", "count", "float16", "ensemble"],
)
def test_settings_come_back(make: Callable[[], Any], tmp_path: Path) -> None:
    model = make().fit(images(5))
    model.save(tmp_path / "model", image=IMAGE)
    found = load(tmp_path / "model")
    assert_same(found, Inspector(model, IMAGE))
    theirs = Inspector(model).members
    for ours, other in zip(found.members, theirs, strict=True):
        named = {**vars(other.parts.backbone), "weights": other.parts.backbone.resolved()}
        assert vars(ours.parts.backbone) == named
        assert ours.parts.method == other.parts.method
        assert ours.parts.coreset == other.parts.coreset
        assert ours.parts.scoring == other.parts.scoring


def test_half_precision_networks_stay_so(tmp_path: Path) -> None:
    model = PatchCore().fit(images(4)).to(torch.bfloat16)
    for weights in (False, True):
        model.save(tmp_path / "model", image=IMAGE, weights=weights)
        found = load(tmp_path / "model")
        assert next(found.model.parameters()).dtype == torch.bfloat16
        assert found.model.memories["memory"].dtype == torch.float32
        assert_same(found, Inspector(model, IMAGE))


def test_it_says_what_made_it(kept: Path, fitted: Callable[[str], Any]) -> None:
    found = load(kept)
    assert found.image == IMAGE
    assert found.decision is None
    assert found.details["data"] == {"set": "noise"}
    assert found.details["versions"]["torch"] == torch.__version__.partition("+")[0]
    (first,) = found.details["lineage"]
    assert first["step"] == "fit" and first["time"].endswith("+00:00")
    description = read_description(kept)
    assert description["format"] == artifact_files.FORMAT
    settings = description["members"][0]["settings"]
    assert settings["method"]["kind"] == "patchcore"
    assert settings["coreset"]["kind"] == "all"
    assert settings["backbone"]["weights"] == "shipped"
    assert description == check(kept)


def test_a_place_inside_a_model_is_refused(kept: Path) -> None:
    before = sorted(kept.rglob("*"))
    for place in (kept / "x", kept / "x/y"):
        with pytest.raises(InputError, match=r"lies inside the model .*: give another folder"):
            load(kept).save(place)
    assert sorted(kept.rglob("*")) == before


def test_details_are_kept_as_given(fitted: Callable[[str], Any], tmp_path: Path) -> None:
    lineage = [step("fit", images=4), step("extend", images=2)]
    details = {"metrics": {"image_auroc": 1 / 3}, "lineage": lineage, "note": "1e3", "format": 99}
    fitted("padim").save(tmp_path / "model", image=IMAGE, details=details)
    found = load(tmp_path / "model").details
    assert found["metrics"] == {"image_auroc": 1 / 3}
    assert found["lineage"] == lineage
    assert found["note"] == "1e3"
    assert "format" not in found


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ([], "tilt"),
        (["members", 0], "members.0.tilt"),
        (["members", 0, "network"], "members.0.network.tilt"),
        (["files", "model.safetensors"], "files.model.safetensors.tilt"),
        (["files"], "files.tilt"),
        (["decision"], "tilt"),
    ],
)
def test_what_a_newer_version_may_have_added_is_refused(
    fitted: Callable[[str], Any], tmp_path: Path, place: list[Any], told: str
) -> None:
    made = decide(torch.rand(30), [torch.rand(30, 4, 4)], 0.1, folds=2)
    folder = tmp_path / "model"
    details = {"note": 1}
    fitted("patchcore").save(folder, image=IMAGE, decision=made, details=details)
    found = inner = check(folder)
    for key in place:
        inner = inner[key]
    file = folder / "model.safetensors"
    inner["tilt"] = found["files"]["model.safetensors"] if place == ["files"] else 1
    if place == ["files"]:
        (folder / "tilt").write_bytes(file.read_bytes())
    rewrite_description(folder, "artifact.yaml", found)
    with pytest.raises(InputError, match=f"yaml: .*holds {told}, which .* newer patchcore"):
        load(folder)


@pytest.mark.parametrize("name", ["decision", "region"])
def test_tensors_of_a_newer_version_are_refused(
    fitted: Callable[[str], Any], tmp_path: Path, name: str
) -> None:
    made = decide(torch.rand(30), [torch.rand(30, 4, 4)], 0.1, folds=2)
    inspector = Inspector(fitted("patchcore"), IMAGE, made)
    inspector.region = np.ones((32, 32), bool)
    description, tensors = _described(inspector, False)
    tensors[f"{name}.safetensors"]["tilt"] = torch.ones(1)
    write_folder(tmp_path / "model", description, tensors)
    with pytest.raises(InputError, match=f"{name}.safetensors: holds tilt, which"):
        load(tmp_path / "model")


def test_details_of_earlier_versions_are_not_listed(
    fitted: Callable[[str], Any], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    fitted("padim").save(folder, image=IMAGE, details={"note": "mine"})
    found = check(folder)
    assert found.pop("other_details") == ["note"]
    rewrite_description(folder, "artifact.yaml", found)
    assert load(folder).details["note"] == "mine"


def test_a_decision_comes_with_its_scores(fitted: Callable[[str], Any], tmp_path: Path) -> None:
    scores = torch.rand(30, generator=torch.Generator().manual_seed(0))
    made = decide(scores, [torch.rand(30, 4, 4)], 0.1, folds=2)
    fitted("patchcore").save(tmp_path / "model", image=IMAGE, decision=made)
    found = load(tmp_path / "model").decision
    assert found.values() == made.values()
    assert torch.equal(found.scores, made.scores)
    assert read_description(tmp_path / "model")["decision"]["threshold"] == made.threshold
    rewritten(tmp_path / "model", lambda x: x["decision"].update(threshold=0.0))
    with pytest.raises(InputError, match=r"model/artifact\.yaml: decision: .*threshold"):
        load(tmp_path / "model")


def test_members_keep_their_own_images(fitted: Callable[[str], Any], tmp_path: Path) -> None:
    each = [ImageConfig(size=size, view=View.square) for size in (24, 32)]
    model = fitted("ensemble")
    model.save(tmp_path / "model", image=each)
    found = load(tmp_path / "model")
    assert found.images == each
    batches = [pixels(2, 0, (24, 24)), pixels(2, 0, (32, 32))]
    for x, y in zip(found.score(batches), Inspector(model, each).score(batches), strict=True):
        assert torch.equal(x, y)


def test_weights_of_a_file_are_found_again_and_compared(tmp_path: Path) -> None:
    network = PatchCore().backbone.network.state_dict()
    file = tmp_path / "weights.pth"
    torch.save(network, file)
    model = PatchCore(BackboneConfig("embedded", str(file))).fit(images(4))
    model.save(tmp_path / "outside", image=IMAGE)
    model.save(tmp_path / "inside", image=IMAGE, weights=True)
    assert_same(load(tmp_path / "outside"), Inspector(model, IMAGE))
    torch.save({key: x * 2 for key, x in network.items()}, file)
    with pytest.raises(InputError, match=r"outside/artifact.yaml: the weights .*weights.pth of"):
        load(tmp_path / "outside")
    file.unlink()
    with pytest.raises(InputError, match=r"artifact.yaml: .*no such file.*artifact.weights=true"):
        load(tmp_path / "outside")
    assert_same(load(tmp_path / "inside"), Inspector(model, IMAGE))


# --- damage -----------------------------------------------------------------------------------


def test_one_changed_byte_is_never_an_answer(kept: Path, tmp_path: Path) -> None:
    """A hundred places in each file, its ends among them; the file that is damaged is named."""
    draw = random.Random(0)
    for path in sorted(kept.iterdir()):
        data = path.read_bytes()
        places = {0, len(data) - 1, *(draw.randrange(len(data)) for _ in range(98))}
        folder = shutil.copytree(kept, tmp_path / path.stem)
        for place in places:
            changed = data[place] ^ draw.randrange(1, 256)
            with (folder / path.name).open("r+b") as file:
                file.seek(place)
                file.write(bytes([changed]))
            with pytest.raises(InputError) as error:
                load(folder)
            assert str(error.value).startswith(f"{folder / path.name}: "), place
            with (folder / path.name).open("r+b") as file:
                file.seek(place)
                file.write(data[place : place + 1])
        assert check(folder) == read_description(kept)


def test_truncated_longer_and_missing_files_are_refused(kept: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(kept, tmp_path / "model")
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        for length in (0, 1, 60, len(data) // 2, len(data) - 1, len(data) + 1):
            path.write_bytes((data + b"\n")[:length])
            with pytest.raises(InputError, match=rf"{path.name}: is damaged"):
                load(folder)
        path.unlink()
        with pytest.raises(InputError, match=rf"{path.name}"):
            load(folder)
        path.mkdir()
        with pytest.raises(InputError, match=rf"{path.name}"):
            load(folder)
        path.rmdir()
        path.write_bytes(data)
    assert_same(load(folder), load(kept))


def rewritten(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change an artifact's description and sign it anew, as another version could have."""
    path = folder / "artifact.yaml"
    description = read_description(folder)
    change(description)
    path.write_bytes(sealed._with_digest(yaml.safe_dump(description).encode()))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x: x.update(format=2), "format 2, and this version reads up to 1"),
        (lambda x: x.update(format="1"), "is of format '1', which never was"),
        (lambda x: x.pop("format"), "format is missing"),
        (lambda x: x.pop("members"), "members is missing"),
        (lambda x: x.update(members=[]), r"members must be a list .*, got \[\]"),
        (lambda x: x.update(members=x["members"] * 2), "scale is null, but there are 2 members"),
        (lambda x: x["members"][0].pop("image"), "members.0.image is missing"),
        (lambda x: x["members"][0].update(network=3), "members.0.network must be a mapping .* 3"),
        (lambda x: x["members"][0]["network"].update(dtype="nn"), "network.dtype: .*'nn'"),
        (lambda x: x["members"][0]["network"].update(file="../a"), "network.file: '../a' is not a"),
        (lambda x: x["members"][0]["settings"].update(method=[]), "settings.method.kind: the name"),
        (lambda x: x["members"][0]["settings"].update(patch=None), "settings.patch must be a mapp"),
        (
            lambda x: x["members"][0]["settings"]["patch"].update(size="x"),
            r"members\.0\.settings\.patch\.size: this version lacks the setting or the value",
        ),
        (lambda x: x["members"][0]["settings"]["scoring"].update(neighbours=10**6), "neighbours"),
        (lambda x: x["members"][0]["settings"]["scoring"].update(sigma=1e9), "scoring.sigma must"),
        (lambda x: x.update(precision=8), "precision must be one of 32-true, .*, got 8"),
        (lambda x: x.update(sources=None), "sources must be a list, got None"),
        (lambda x: x.update(lineage=["fit"]), "lineage.0 must be a mapping, got 'fit'"),
        (lambda x: x.update(files={}), "network.file: .* is not among the files"),
        (lambda x: x["members"][0]["settings"].update(oven={}), "is not understood"),
        (lambda x: x["members"][0]["settings"]["patch"].update(hue=1), "this version lacks"),
        (lambda x: x["members"][0]["settings"]["method"].update(kind="x"), "method=x is not known"),
        (lambda x: x["members"][0]["settings"]["patch"].update(channels=8), "draws different"),
        (lambda x: x["members"][0]["settings"]["patch"].update(size=1), "patch.size=3"),
        (lambda x: x["members"][0]["network"].update(digest="0"), "not the weights that the model"),
        (lambda x: x["members"][0].update(drawn="0"), "patchcore draws different random numbers"),
        (lambda x: x["members"][0]["settings"]["patch"].update(size=-5), "patch.size must be at"),
        (lambda x: x["members"][0]["image"].update(crop=-1), "image.crop must be at least 1"),
    ],
)
def test_what_does_not_fit_is_told(
    kept: Path, change: Callable[[dict[str, Any]], Any], told: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(kept, tmp_path / "model")
    rewritten(folder, change)
    with pytest.raises(InputError, match=rf"^{folder}/.*{told}"):
        load(folder)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("pixel_threshold", None, "must be a finite number, got None"),
        ("pixel_threshold", float("nan"), "must be a finite number, got nan"),
        ("pixel_rate", "x", "must be a finite number, got 'x'"),
        ("false_alarms", 1e9, r"must be in \(0, 1\), got 1000000000.0"),
        ("folds", "x", "must be a whole number, got 'x'"),
    ],
)
def test_a_value_that_no_decision_has_is_told_with_its_key(
    decided: Path, key: str, value: Any, told: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(decided, tmp_path / "model")
    rewritten(folder, lambda x: x["decision"].update({key: value}))
    with pytest.raises(InputError, match=rf"^{folder}/artifact\.yaml: decision\.{key} {told}"):
        load(folder)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("source_digests", {"a": 1}, "must be a list, got {'a': 1}"),
        ("source_digests", [], r"must have one entry for each of the 1 in sources, got 0$"),
        ("source_digests", [None, None], r"must have one entry for each of the 1 in .*, got 2$"),
        ("source_digests", [5], r"\.0 must be 32 hexadecimal digits or null, got 5$"),
        ("source_digests", ["g" * 32], r"\.0 must be 32 hexadecimal digits or null, got 'g+"),
        ("pruned_digests", ["ab"], r"\.0 must be 32 hexadecimal digits or null, got 'ab'$"),
        ("pruned_digests", [], r"must have one entry for each of the 1 in pruned, got 0$"),
    ],
)
def test_damaged_digests_of_images_are_told_with_their_key(
    decided: Path, key: str, value: Any, told: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(decided, tmp_path / "model")
    rewritten(folder, lambda x: x.update({key: value}))
    with pytest.raises(InputError, match=rf"^{folder}/artifact\.yaml: {key} ?{told}"):
        load(folder)


FIELDS = (
    *("format", "members", "scale", "precision", "decision", "other_details", "data", "metrics"),
    *("versions", "lineage", "sources", "pruned", "source_digests", "pruned_digests", "files"),
)


@pytest.mark.parametrize("field", FIELDS)
def test_no_value_of_any_field_ends_in_another_error(
    decided: Path, field: str, tmp_path: Path
) -> None:
    """Every field below this one gets values of other types and absurd ones, with a right seal.

    Two each in turn, so that each value comes to many fields; of settings, which are checked where
    they are declared, one.
    """
    folder = shutil.copytree(decided, tmp_path / "model")
    whole = read_description(decided)
    values = itertools.cycle((None, {"a": 1}, "x", -1, 1e12, float("nan"), [None]))
    for place in (found for found in places(whole) if found[0] == field and len(found) < 5):
        for value in itertools.islice(values, 1 if len(place) > 3 else 2):
            changed = inner = copy.deepcopy(whole)
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = value
            rewrite_description(folder, "artifact.yaml", changed)
            try:
                found = load(folder)
                scored = found.score(pixels(1, 1))
                if found.decision is not None:
                    found.decision.verdict(scored.score)
                    assert bool((scored.map >= found.decision.pixel_threshold).any()) in (0, 1)
            except InputError as error:
                assert "\n" not in str(error), (place, value)


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Keys that lead to each value of a nested one; of a list, to its first."""
    if above:
        yield above
    inner = value.items() if isinstance(value, dict) else ()
    inner = [*enumerate(value)][:1] if isinstance(value, list) else inner
    for key, each in inner:
        yield from places(each, (*above, key))


@pytest.mark.parametrize(
    ("file", "key", "change", "told"),
    [
        ("model", "memory", lambda x: x.to(torch.int8), r"memory is torch\.int8"),
        ("model", "memory", lambda x: x * float("nan"), "memory is NaN or infinite"),
        ("model", "memory", lambda x: x[:0], "a memory is empty"),
        ("decision", "scores", lambda x: x[:0], "there are no nominal scores"),
    ],
)
def test_tensors_that_no_model_has_are_refused(
    file: str, key: str, change: Callable[[Tensor], Tensor], told: str, tmp_path: Path
) -> None:
    """Their digests are right, as another program could have written them."""
    folder = tmp_path / "model"
    model = build("patchcore").fit(images(4))
    made = decide(torch.rand(30), [torch.rand(30, 4, 4)], 0.1, folds=2)
    Inspector(model, IMAGE, made).save(folder, weights=True)
    path = folder / f"{file}.safetensors"
    tensors = load_file(path)
    (name,) = (each for each in tensors if each.endswith(key))
    save_file({**tensors, name: change(tensors[name]).contiguous()}, path)
    data = path.read_bytes()
    facts = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rewritten(folder, lambda x: x["files"].update({path.name: facts}))
    with pytest.raises(InputError, match=rf"^{folder}/artifact\.yaml: .*{told}"):
        load(folder)


def test_other_folders_are_no_artifacts(kept: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        load(tmp_path / "none")
    with pytest.raises(InputError, match=r"has no artifact\.yaml"):
        load(tmp_path)
    with pytest.raises(InputError, match="is not an artifact"):
        load(kept / "artifact.yaml")
    shutil.copytree(kept, tmp_path / "artifact")
    with pytest.raises(InputError, match=f"run's folder: give {tmp_path}/artifact"):
        load(tmp_path)
    (tmp_path / "artifact/artifact.yaml").write_text("mean: [1, 2, 3]\n")
    with pytest.raises(InputError, match="was not written by patchcore"):
        load(tmp_path / "artifact")
    with pytest.raises(InputError, match="device: abacus"):
        load(kept, "abacus")


# --- writing ----------------------------------------------------------------------------------


def test_what_cannot_be_kept_is_refused(fitted: Callable[[str], Any], tmp_path: Path) -> None:
    for name in (*METHODS, "toy", "ensemble"):
        with pytest.raises(InputError, match="not fitted"):
            build(name).save(tmp_path / "model")
    with pytest.raises(InputError, match="plain values"):
        fitted("padim").save(tmp_path / "model", details={"mine": object()})
    METHODS.pop("toy")
    with pytest.raises(InputError, match="ToyConfig is not registered"):
        fitted("toy").save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_is_replaced_and_nothing_else_is(
    fitted: Callable[[str], Any], tmp_path: Path
) -> None:
    folder = tmp_path / "deep" / "model"
    fitted("patchcore").save(folder, image=IMAGE, weights=True)
    fitted("padim").save(folder, image=IMAGE)
    assert_same(load(folder), Inspector(fitted("padim"), IMAGE))
    assert sorted(path.name for path in folder.iterdir()) == ["artifact.yaml", "model.safetensors"]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds 'notes.txt'"):
        fitted("patchcore").save(folder, image=IMAGE)
    assert (folder / "notes.txt").read_text() == "mine"
    with pytest.raises(InputError, match="lies inside the model"):
        fitted("patchcore").save(folder / "notes.txt", image=IMAGE)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


STEPS = {
    "tensors": (artifact_files, "save_file"),
    "digest": (sealed, "_measured"),
    "description": (sealed, "_signed"),
    "flush": (sealed, "_flush"),
    "rename": (Path, "rename"),
}


@pytest.mark.parametrize("end", [KeyboardInterrupt(), OSError(28, "No space left")], ids=repr)
@pytest.mark.parametrize("step", STEPS)
def test_an_end_half_way_leaves_what_was_there(
    fitted: Callable[[str], Any], step: str, end: BaseException, tmp_path: Path
) -> None:
    expected = InputError if isinstance(end, OSError) else KeyboardInterrupt
    with mock.patch.object(*STEPS[step], side_effect=end), pytest.raises(expected):
        fitted("patchcore").save(tmp_path / "model", image=IMAGE)
    assert list(tmp_path.iterdir()) == []
    fitted("padim").save(tmp_path / "model", image=IMAGE)
    with mock.patch.object(*STEPS[step], side_effect=end), pytest.raises(expected):
        fitted("patchcore").save(tmp_path / "model", image=IMAGE)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert_same(load(tmp_path / "model"), Inspector(fitted("padim"), IMAGE))


def test_an_end_between_two_renames_puts_the_earlier_one_back(
    fitted: Callable[[str], Any], tmp_path: Path
) -> None:
    fitted("padim").save(tmp_path / "model", image=IMAGE)
    real, made = Path.rename, []

    def rename(path: Path, target: Path) -> Path:
        made.append(path)
        if len(made) == 2:
            raise KeyboardInterrupt
        return real(path, target)

    with mock.patch.object(Path, "rename", rename), pytest.raises(KeyboardInterrupt):
        fitted("patchcore").save(tmp_path / "model", image=IMAGE)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert_same(load(tmp_path / "model"), Inspector(fitted("padim"), IMAGE))


def test_a_kill_between_two_renames_loses_nothing(
    fitted: Callable[[str], Any], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    fitted("padim").save(folder, image=IMAGE)
    folder.rename(tmp_path / ".model.previous")
    with pytest.raises(InputError, match=r"earlier artifact is .*/\.model\.previous: rename it"):
        load(folder)
    with mock.patch.object(sealed, "_put", side_effect=OSError), pytest.raises(InputError):
        fitted("patchcore").save(folder, image=IMAGE)
    assert_same(load(folder), Inspector(fitted("padim"), IMAGE))
    fitted("patchcore").save(folder, image=IMAGE)
    assert_same(load(folder), Inspector(fitted("patchcore"), IMAGE))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("inside", ["artifact.yaml", "artifact/artifact.yaml", "export.yaml"])
def test_a_folder_above_a_model_is_told(tmp_path: Path, inside: str) -> None:
    for name in ("b", "a"):
        (tmp_path / name / inside).parent.mkdir(parents=True)
        (tmp_path / name / inside).touch()
    given = (tmp_path / "a" / inside).parent
    with pytest.raises(InputError, match=rf"artifact: it is a folder above one: give {given}$"):
        load(tmp_path)


def test_an_image_in_place_of_a_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match=r"a\.png: is not an artifact: it is a file: give the fo"):
        load(tmp_path / "a.png")
    (tmp_path / "artifact.yaml").touch()
    for name in ("a.png", "artifact.yaml"):
        with pytest.raises(InputError, match=rf"it is a file: give its folder {tmp_path}$"):
            load(tmp_path / name)
