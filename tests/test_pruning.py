"""Pruning of nominal patches: the judgement against its naive version, and a run with it."""

import csv
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import patchcore.pruning
from patchcore import (
    AllConfig,
    BackboneConfig,
    Ensemble,
    GreedyConfig,
    InputError,
    Inspector,
    PatchConfig,
    RandomConfig,
    load,
    run,
)
from patchcore.backbones import Backbone, Join, LayersConfig
from patchcore.cache import CacheConfig
from patchcore.coreset import Start
from patchcore.data.mvtec import MVTecConfig
from patchcore.data.transforms import ImageConfig
from patchcore.decision import DecisionConfig
from patchcore.digests import file_digest
from patchcore.extend import change_artifact
from patchcore.identity import order_key
from patchcore.inspector import DIGESTS, PRUNED, SOURCES
from patchcore.keeping import ArtifactConfig, Keep
from patchcore.member_settings import EnsembleConfig, MemberConfig
from patchcore.methods import Parts, PatchCoreConfig, build_detector
from patchcore.methods.common import FeatureBuffer
from patchcore.methods.detector import Fitting
from patchcore.pruning import IMAGE_LIMIT, judged_patches, prune, support
from patchcore.report.distrusted import DISTRUSTED
from patchcore.resume import damage
from tests import reference
from tests.images import write_image, write_mvtec
from tests.runs import config

CPU = torch.device("cpu")
LAYERS = ["layer2", "layer3"]


def detector(coreset: Any = None, join: Join = Join.concat, **settings: Any) -> Any:
    parts = Parts(PatchCoreConfig(**settings), layers=LayersConfig(LAYERS, join))
    parts.coreset, parts.patch = coreset or AllConfig(), PatchConfig(channels=24)
    network = Backbone(BackboneConfig(), LayersConfig(LAYERS))
    with mock.patch("patchcore.methods.detector.make_backbone", lambda *_: network):
        return build_detector(parts)


def images(count: int, seed: int = 0, patches: int = 12, strange: int = 0) -> list[Tensor]:
    """Patches (P, 6) of images of one kind, of which the last ones have three patches of their own.

    Numbers of patches differ.
    """
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randn(5, 6, generator=generator)
    found = []
    for number in range(count):
        kind = torch.randint(5, (patches + number % 3,), generator=generator)
        x = kinds[kind] + 0.1 * torch.randn(len(kind), 6, generator=generator)
        if number >= count - strange:
            x[:3] += 4 * torch.randn(1, 6, generator=generator)
        found.append(x)
    return found


@pytest.mark.parametrize("others", [1, 3, 7])
@pytest.mark.parametrize("chunk", [2**24, 40])
def test_the_judgement_equals_the_naive_version(others: int, chunk: int) -> None:
    patches = images(9, strange=2)
    sources = [0, 1, 2, 3, 4, 4, 5, 6, 7]  # two of them are poses of one
    counts = [len(x) for x in patches]
    rows = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(1))[:30]
    starts = np.cumsum([0, *counts])
    named = [(int(np.searchsorted(starts, r, "right")) - 1, r) for r in rows.tolist()]
    places = [(image, row - int(starts[image])) for image, row in named]
    expected = reference.distrust([x.numpy() for x in patches], sources, places, others)
    for limit in (-100.0, 0.0, 1.0):  # at first all are named
        with (
            mock.patch.object(patchcore.pruning, "_CHUNK", chunk),
            mock.patch.object(patchcore.pruning, "IMAGE_LIMIT", limit),
        ):
            found = prune(torch.cat(patches), counts, sources, rows, others, CPU)
        named = {number: value for number, value in expected.items() if value > limit}
        assert found.images == pytest.approx(named, rel=1e-3, abs=1e-3)
        trusted = [source not in named for source in sources]
        assert found.patches.tolist() == np.repeat(trusted, counts).tolist()


def test_an_image_with_patches_of_its_own_is_named_and_not_remembered() -> None:
    patches = images(30, strange=2)
    counts = [len(x) for x in patches]
    rows = torch.arange(sum(counts))
    found = prune(torch.cat(patches), counts, range(30), rows, 2, CPU)
    assert set([*found.images][:2]) == {28, 29}
    values = [*found.images.values(), IMAGE_LIMIT]
    assert values == sorted(values, reverse=True) and values[1] > 5 * values[2]
    for number, own in enumerate(found.patches.split(counts)):
        assert bool(own.all()) is (number not in found.images) and own.all() == own.any()


def test_images_that_are_alike_are_all_trusted() -> None:
    one = images(1)[0]
    found = prune(torch.cat([one] * 4), [len(one)] * 4, range(4), torch.arange(48), 3, CPU)
    assert bool(found.patches.all()) and not found.images


def test_too_few_images_to_compare_are_refused() -> None:
    with pytest.raises(InputError, match=r"^method.pruning=1 needs more training images than"):
        support(images(1)[0], [12], [0], torch.arange(3), 1, CPU)
    assert [judged_patches(*x) for x in ((10, 4), (1000, 4), (80_000, 100))] == [10, 32, 800]


def write_contaminated(root: Path) -> None:
    """Twelve training images alike but for noise, and anomalous ones each with a patch of its own.

    The test images are another of the first kind, and eight of the second.
    """
    write_mvtec(root, (48, 48))
    generator = np.random.default_rng(0)
    stripes = np.indices((48, 48)).sum(0)[..., None] * np.array([5, 3, 4]) % 160
    for folder, count, strange in (("train/good", 12, 0), ("test/good", 2, 0), ("test/bent", 8, 1)):
        for number in range(count):
            pixels = stripes + generator.integers(0, 8, (48, 48, 3))
            if strange:
                pixels[16:32, 16:32] = generator.integers(0, 256, 3)
            path = write_image(root / "nut" / folder / f"{number:03d}.png")
            Image.fromarray(pixels.astype(np.uint8)).save(path)


def contaminated(root: Path, **groups: Any) -> Any:
    data = MVTecConfig(root=str(root), category="nut", batch_size=4, contamination=0.1)
    image = ImageConfig(resize=48, crop=48)
    return config(root, **{"data": data, "image": image, "coreset": AllConfig(), **groups})


def test_a_run_names_the_images_that_it_distrusts_and_forgets_them(tmp_path: Path) -> None:
    write_contaminated(tmp_path)
    cache = CacheConfig(enabled=True, root=str(tmp_path / "cache"))
    method = PatchCoreConfig(pruning=2)
    settings = {"cache": cache, "method": method, "resume": True}
    found = run(contaminated(tmp_path, **settings), tmp_path / "run")
    with (tmp_path / "run" / DISTRUSTED).open(newline="") as file:
        rows = list(csv.DictReader(file))
    split = contaminated(tmp_path).data.read()
    moved = [x for x in split.train if x.label]
    assert len(moved) == 1
    assert [row["path"] for row in rows] == [str(x.path) for x in moved]
    assert rows[0]["label"] == "1" and float(rows[0]["distrust"]) > IMAGE_LIMIT
    assert "\n1 of 13 training images is distrusted and was dropped: see " in found.text
    plain = run(contaminated(tmp_path), tmp_path / "plain")
    assert not (tmp_path / "plain" / DISTRUSTED).exists() and "distrusted" not in plain.text
    assert found.record["train_images"] == plain.record["train_images"] == 13
    assert found.record["memory_patches"] * 13 == plain.record["memory_patches"] * 12
    again = run(contaminated(tmp_path, **settings), tmp_path / "again")
    assert again.text.startswith("finished before")
    there, taken = ((tmp_path / x / DISTRUSTED).read_bytes() for x in ("run", "again"))
    assert there == taken
    # Where the same images lie elsewhere, the paths are these.
    moved_to = shutil.copytree(tmp_path / "nut", tmp_path / "elsewhere/nut").parent
    data = replace(contaminated(tmp_path).data, root=str(moved_to))
    elsewhere = run(contaminated(tmp_path, **settings, data=data), tmp_path / "other")
    assert elsewhere.text.startswith("finished before")
    told = (tmp_path / "other" / DISTRUSTED).read_bytes()
    assert bytes(moved_to) in told
    assert told.replace(bytes(moved_to), bytes(tmp_path)) == there
    shutil.rmtree(tmp_path / "other")
    (tmp_path / "again" / DISTRUSTED).write_text("path,label,distrust,number\na,1,9.5,13\n")
    reason = f"{tmp_path / 'again' / DISTRUSTED} is damaged (a number is not one of the 13 training"
    assert str(damage(tmp_path / "again")).startswith(reason)
    (tmp_path / "again" / DISTRUSTED).unlink()
    (tmp_path / "run" / DISTRUSTED).unlink()
    with pytest.warns(UserWarning, match=r"distrusted\.csv is damaged \(it is missing\)"):
        warm = run(contaminated(tmp_path, **settings), tmp_path / "run")
    assert "pruning" in warm.warm and (tmp_path / "run" / DISTRUSTED).read_bytes() == there
    numbers = {key: value for key, value in found.record.items() if "seconds" not in key}
    assert numbers.items() <= warm.record.items()


def test_a_memory_is_that_of_the_trusted_patches_alone() -> None:
    model = detector(GreedyConfig(0.3), pruning=2)
    patches = [torch.cat((x, x), 1).repeat(1, 2) for x in images(20, strange=2)]  # (P, 24)
    buffer, fitting = FeatureBuffer(20), Fitting(images=range(5, 25))
    for x in patches:
        buffer.append(x[None, None])  # (1, 1, P, D)
    model.build_from(buffer, fitting)
    assert set([*fitting.distrusted][:2]) == {23, 24}
    assert not set(fitting.distrusted) & set(model.origin[:, 0].tolist())
    rows = [patches[image - 5][column] for image, _, column in model.origin.tolist()]
    assert torch.equal(torch.stack(rows), model.memory)
    assert {"pruning", "coreset"} == set(fitting.seconds) == set(fitting.costs)
    assert all(map(math.isfinite, fitting.costs.values()))
    plain = detector(GreedyConfig(0.3))
    for x in patches:
        buffer.append(x[None, None])
    plain.build_from(buffer, fitting := Fitting())
    assert fitting.distrusted is None and len(plain.memory) > len(model.memory)


def test_an_anomalous_image_in_two_files_is_pruned() -> None:
    """A copy is no other image that has the same patches."""
    patches = images(12, strange=1)
    copies = {12: 11, 13: 3}
    for known, expected in ((copies, {11, 12}), ({}, set())):
        model, fitting = detector(pruning=1), Fitting(images=range(14), copies=known)
        buffer = FeatureBuffer(14)
        for x in [*patches, patches[11], patches[3]]:
            buffer.append(x[None, None])
        model.build_from(buffer, fitting)
        assert set(fitting.distrusted or ()) & {11, 12} == expected
        assert set(model.left_out) == set(fitting.distrusted or ())


def test_pruned_orders_are_kept_apart() -> None:
    followed = [str(detector(pruning=x).followed()) for x in (None, 1, 2)]
    assert len({*followed}) == 3


def test_judgements_of_patches_that_other_samplers_chose_are_kept_apart() -> None:
    """The sampler selects the patches of each image that are judged, with `per_image`."""
    kept: dict[str, Any] = {}

    class Store:
        def get(self, *key: Any) -> Any:
            return kept.get(order_key(["maps"], *key[:2]))

        def put(self, patch: Any, sampler: Any, entry: Any) -> None:
            kept[order_key(["maps"], patch, sampler)] = entry

    patches = images(12, strange=2)
    samplers = (GreedyConfig(0.2), RandomConfig(0.2), GreedyConfig(0.2, start=Start.mean))
    for sampler in (*samplers, GreedyConfig(0.4)):
        found = []
        for store in (Store(), None):
            model = detector(coreset=sampler, per_image=4, pruning=2)
            buffer = model.buffer()
            for x in patches:
                buffer.append(x[None, None])
            model.build_from(buffer, fitting := Fitting(kept=store))
            found.append((fitting.distrusted, model.memory))
        assert found[0][0] == found[1][0] and found[0][1].equal(found[1][1])
    assert len(kept) == 2 * 3 - 1  # random orders are not kept, but judgements of their patches


def test_a_pruned_image_is_not_in_the_model(tmp_path: Path) -> None:
    """Adding gives it a number of its own, and only then it can be removed."""
    write_contaminated(tmp_path)
    settings = {"method": PatchCoreConfig(pruning=2), "artifact": ArtifactConfig(Keep.all)}
    run(contaminated(tmp_path, **settings), tmp_path / "run")
    split = contaminated(tmp_path).data.read()
    paths = [str(sample.path.absolute()) for sample in split.train]
    (out,) = (number for number, sample in enumerate(split.train) if sample.label)
    kept = [None if number == out else path for number, path in enumerate(paths)]
    folder, name = tmp_path / "run/artifact", "/".join(Path(paths[out]).parts[-2:])

    def check(sources: list[str | None], pruned: list[str]) -> None:
        inspector = load(folder)
        assert inspector.members[0].left_out == (out,) and inspector.members[0].images_had >= 13
        assert (inspector.details[SOURCES], inspector.details[PRUNED]) == (sources, pruned)
        for key, names in ((SOURCES, sources), (PRUNED, pruned)):
            digests = [None if name is None else file_digest(Path(name)) for name in names]
            assert inspector.details[DIGESTS[key]] == digests

    check(kept, [paths[out]])
    for asked in (name, paths[out]):
        with pytest.raises(InputError, match=f"{name}: is not in the model: pruning left it out"):
            change_artifact(folder, removed=[asked])
    _, (added,) = change_artifact(folder, [Path(paths[out])])
    assert added.images == 1 and added.patches > 0
    check([*kept, paths[out]], [])
    _, (removed,) = change_artifact(folder, removed=[name])
    assert removed.patches == -added.patches
    check([*kept, None], [])


def test_a_pruned_image_is_known_by_its_contents_when_it_is_added(tmp_path: Path) -> None:
    write_contaminated(tmp_path)
    settings = {"method": PatchCoreConfig(pruning=2), "artifact": ArtifactConfig(Keep.all)}
    run(contaminated(tmp_path, **settings), tmp_path / "run")
    folder = tmp_path / "run/artifact"
    (pruned,) = load(folder).details[PRUNED]
    change_artifact(folder, [Path(pruned).rename(tmp_path / "moved.png")])
    details = load(folder).details
    assert details[SOURCES][-1] == str(tmp_path / "moved.png")
    assert (details[PRUNED], details[DIGESTS[PRUNED]]) == ([], [])


def test_the_last_image_is_pruned_and_its_number_is_not_given_again() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = 0.01 * torch.randn(8, 3, 32, 32, generator=generator)
    batch[7] += torch.randn(3, 32, 32, generator=generator)
    model = detector(pruning=2).fit(batch)
    assert model.left_out == (7,) and model.images_had == 8
    names = [f"/{number}.png" for number in range(8)]
    inspector = Inspector(model, details={SOURCES: names})
    assert inspector.details == {SOURCES: [*names[:7], None], PRUNED: names[7:]}
    assert Inspector(model, details=inspector.details).details == inspector.details
    digests = [f"{number:032x}" for number in range(8)]
    known = Inspector(model, details={SOURCES: names, DIGESTS[SOURCES]: digests}).details
    assert known[DIGESTS[SOURCES]] == [*digests[:7], None]
    assert known[DIGESTS[PRUNED]] == digests[7:]
    both = Ensemble([model, detector().fit(batch)])  # one of which remembers it
    assert Inspector(both, details={SOURCES: names}).details == {SOURCES: names}


def test_what_pruning_cannot_be_had_with_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^layers.join=separate makes several memory banks"):
        detector(join=Join.separate, pruning=1)
    method = PatchCoreConfig(pruning=1)
    with pytest.raises(InputError, match=r"^decision.false_alarms assumes that all"):
        config(tmp_path, method=method, decision=DecisionConfig(0.1))
    two = EnsembleConfig([MemberConfig(), MemberConfig()])
    with pytest.raises(InputError, match=r"^method.pruning works with one memory bank"):
        config(tmp_path, method=method, ensemble=two)
    with pytest.raises(InputError, match=r"^method.pruning must be at least 1, got 0"):
        PatchCoreConfig(pruning=0)
