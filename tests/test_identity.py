"""Identities: what changes a result changes its name, and nothing else does."""

import ast
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from patchcore import identity
from patchcore.backbones import BackboneConfig, LayersConfig
from patchcore.cache import CacheConfig, Precision
from patchcore.config import Config, Objective
from patchcore.coreset import (
    AllConfig,
    ApproximateConfig,
    GreedyConfig,
    Projection,
    RandomConfig,
    Start,
)
from patchcore.data.augment import AugmentConfig
from patchcore.data.datamodule import AnomalyDataModule
from patchcore.data.folder import FolderConfig
from patchcore.data.generated import GeneratedConfig
from patchcore.data.mvtec import MVTecConfig
from patchcore.data.poses import Mirror
from patchcore.data.sample import Masks, Sample, Split
from patchcore.data.transforms import ImageConfig
from patchcore.decision import DecisionConfig
from patchcore.errors import InputError
from patchcore.identity import device_class, identify, image_recipe, order_key, samples_digest
from patchcore.index import FaissFlatConfig, TorchIndexConfig
from patchcore.label_free import LabelFreeConfig
from patchcore.map_cache import MapCache, network_digest
from patchcore.member_settings import EnsembleConfig, MemberConfig
from patchcore.methods import PadimConfig, PatchCoreConfig, SpadeConfig, build_detector
from patchcore.methods.scale import ScaleConfig
from patchcore.module import DetectorModule
from patchcore.patches import Mapping, PatchConfig
from patchcore.report.folders import Images
from patchcore.scoring import Distance, ScoringConfig
from patchcore.settings import effective
from patchcore.training import parts
from tests.images import write_image, write_mask, write_mvtec
from tests.test_imports import MODULES, imported

TRAINER = {"accelerator": "cpu", "max_epochs": 1, "precision": "32-true"}
SMALL = PatchConfig(mapping=Mapping.reference, layer_channels=16, channels=16)


def config(**groups: Any) -> Config:
    """Settings of a miniature, with other groups where they are given."""
    given = {
        "data": MVTecConfig(category="nut", batch_size=3),
        "image": ImageConfig(resize=32, crop=32),
        "backbone": BackboneConfig("embedded", "shipped"),
        "layers": LayersConfig(["layer2", "layer3"]),
        "method": PatchCoreConfig(),
        "patch": SMALL,
        "coreset": GreedyConfig(ratio=0.3, projection=Projection.gaussian, dimension=8),
        "index": TorchIndexConfig(),
        "trainer": TRAINER,
        "logger": {},
        **groups,
    }
    return Config(**given)


def fingerprint(settings: Config, split: Split | None = None) -> str:
    return identify(settings, split or Split([], [])).fingerprint


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mvtec")
    write_mvtec(root, (40, 36))
    return root


# --- settings --------------------------------------------------------------------------------

GREEDY = GreedyConfig(projection=Projection.none, start=Start.mean)
TILED = ImageConfig(tiles=32)
CACHED = CacheConfig(enabled=True, precision=Precision.bfloat16)
WHOLE = replace(TILED, tiles=None)
MIXED = EnsembleConfig([MemberConfig(image=TILED), MemberConfig(image=WHOLE)])
TWO = EnsembleConfig([MemberConfig(image=ImageConfig(32, crop=32)) for _ in range(2)])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"seed": 0}, {"seed": 1}),  # by itself; it is handed down to the seeds of the groups
        ({"figures": True}, {"figures": False}),
        ({"pictures": Images.none}, {"pictures": Images.all}),
        ({"resume": True}, {"resume": False}),
        ({"objectives": [Objective.image_ap]}, {"objectives": [Objective.aupro]}),
        ({"paper": {"image_auroc": 1.0}}, {"paper": {}}),
        ({"logger": {"csv": {"save_dir": "a"}}}, {"logger": {}}),
        ({"augment": AugmentConfig(seed=1)}, {"augment": AugmentConfig(seed=2)}),
        ({"backbone": BackboneConfig("a", "b", 0)}, {"backbone": BackboneConfig("a", "b", 1)}),
        ({"coreset": GreedyConfig(pool=8)}, {"coreset": GreedyConfig(chunk=9)}),
        ({"coreset": GreedyConfig(anchors=5)}, {"coreset": GreedyConfig(anchors=6)}),
        ({"coreset": GreedyConfig(distortion=0.5)}, {"coreset": GreedyConfig(distortion=0.6)}),
        ({"coreset": replace(GREEDY, seed=1)}, {"coreset": replace(GREEDY, dimension=5)}),
        ({"coreset": RandomConfig(count=5)}, {"coreset": RandomConfig(count=5, ratio=0.2)}),
        ({"coreset": GreedyConfig(radius=2, ratio=1)}, {"coreset": GreedyConfig(radius=2)}),
        ({"index": TorchIndexConfig(1)}, {"index": TorchIndexConfig(2)}),
        ({"patch": PatchConfig(mapping=Mapping.average, channels=9)},
         {"patch": PatchConfig(mapping=Mapping.average, layer_channels=9)}),
        ({"ensemble": EnsembleConfig(scale=ScaleConfig(seed=1))}, {}),
        ({"decision": DecisionConfig(folds=3, seed=1)}, {}),
        ({"label_free": LabelFreeConfig(folds=3, seed=1)}, {}),
        ({"label_free": LabelFreeConfig(enabled=True)}, {"objectives": [Objective["label_free"]]}),
        ({"ensemble": TWO, "image": ImageConfig(300)}, {"ensemble": TWO}),
        ({"cache": CacheConfig(precision=Precision.bfloat16)}, {}),
        ({"cache": CacheConfig(enabled=True, root="/a", limit_gib=1)}, {}),
        ({"image": TILED, "data": MVTecConfig(category="nut", batch_size=2), "cache": CACHED},
         {"image": TILED}),
        ({"ensemble": EnsembleConfig([MemberConfig(image=TILED)] * 2), "cache": CACHED},
         {"ensemble": EnsembleConfig([MemberConfig(image=TILED)] * 2)}),
        ({"data": MVTecConfig(root="a")}, {"data": MVTecConfig(root="b", workers=3)}),
        ({"data": MVTecConfig(shots_seed=1)}, {"data": MVTecConfig(shots_seed=2)}),
        ({"data": FolderConfig(nominal="a", anomalous="b", masks="c")},
         {"data": FolderConfig(root="x", nominal="d")}),
        ({"data": FolderConfig(nominal_test="a", seed=1)},
         {"data": FolderConfig(nominal_test="b", test_share=0.5)}),
        ({"trainer": {**TRAINER, "precision": 32, "enable_progress_bar": False}}, {}),
        ({"trainer": {"accelerator": "cpu", "strategy": "auto", "max_epochs": 1, "callbacks": []}},
         {"trainer": {"accelerator": "cpu", "limit_train_batches": 1.0, "benchmark": None}}),
        ({"trainer": {"accelerator": "cpu", "use_distributed_sampler": True, "max_steps": -1}},
         {"trainer": {"accelerator": "cpu", "_target_": "pytorch_lightning.Trainer"}}),
        ({"trainer": {**TRAINER, "devices": 2, "num_nodes": 3}},
         {"trainer": {**TRAINER, "devices": 1}}),
        ({"trainer": {**TRAINER, "accelerator": "auto", "log_every_n_steps": 7}},
         {"trainer": {**TRAINER, "accelerator": device_class("auto")}}),
    ],
)  # fmt: skip
def test_settings_without_effect_make_no_other_run(first: Any, second: Any) -> None:
    assert fingerprint(config(**first)) == fingerprint(config(**second))


def test_settings_with_effect_make_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    changes: list[dict[str, Any]] = [
        {"seed": 1, "trainer": {**TRAINER, "callbacks": [{"_target_": "x"}]}},
        {"augment": AugmentConfig(noise=0.1, seed=1)},
        {"augment": AugmentConfig(noise=0.1, seed=2)},
        {"augment": AugmentConfig(rotations=2)},
        {"augment": AugmentConfig(mirrored=Mirror.vertical)},
        {"backbone": BackboneConfig("resnet18", "none", 1)},
        {"backbone": BackboneConfig("resnet18", "none", 2)},
        {"layers": LayersConfig(["layer3", "layer2"])},
        {"coreset": GreedyConfig(seed=1)},
        {"coreset": GreedyConfig(count=1)},
        {"coreset": GreedyConfig(start=Start.anchors, anchors=2)},
        {"coreset": GreedyConfig(start=Start.anchors, anchors=3)},
        {"coreset": GreedyConfig(dimension=None, distortion=0.5)},
        {"coreset": ApproximateConfig()},
        {"coreset": RandomConfig()},
        {"coreset": AllConfig()},
        {"coreset": GreedyConfig(ratio=0.2), "curve": [0.1]},
        {"index": FaissFlatConfig()},
        {"patch": PatchConfig(channels=9)},
        {"scoring": ScoringConfig(distance=Distance.cosine)},
        {"method": SpadeConfig(), "coreset": AllConfig(), "patch": PatchConfig()},
        {"method": PadimConfig(seed=3), "coreset": AllConfig(), "patch": PatchConfig()},
        *({"decision": DecisionConfig(0.01, *more)} for more in ((), (5,), (10, 1))),
        *({"label_free": LabelFreeConfig(True, *m)} for m in ((), (9,), (60, 9), (60, 5, 9))),
        {"label_free": LabelFreeConfig(seed=1), "objectives": [Objective["label_free"]]},
        {"ensemble": TWO},
        {"ensemble": replace(TWO, scale=ScaleConfig(seed=1))},
        {"cache": CacheConfig(enabled=True, precision=Precision.bfloat16)},
        {"data": MVTecConfig(category="nut", batch_size=2)},
        {"ensemble": MIXED},
        {"ensemble": MIXED, "cache": CACHED},
        {"ensemble": MIXED, "data": MVTecConfig(category="nut", batch_size=2)},
        {"data": MVTecConfig(category="bolt")},
        {"data": MVTecConfig(category="nut", shots=2, shots_seed=1)},
        {"data": MVTecConfig(category="nut", shots=2, shots_seed=2)},
        {"data": GeneratedConfig(seed=4)},
        {"trainer": {**TRAINER, "precision": "bf16"}},
        {"trainer": {**TRAINER, "accelerator": "gpu"}},
        {"trainer": {**TRAINER, "benchmark": True}},
    ]
    names = [fingerprint(config(**change)) for change in ({}, *changes)]
    assert [name for name in names if names.count(name) > 1] == []


def test_precision_of_products_and_the_device_count(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [fingerprint(config())]
    torch.set_float32_matmul_precision("medium")
    try:
        names.append(fingerprint(config()))
    finally:
        torch.set_float32_matmul_precision("highest")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    names.append(fingerprint(config()))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device_class("auto") == device_class("gpu") == "cuda" and device_class("cpu") == "cpu"
    names.append(fingerprint(config(trainer={**TRAINER, "accelerator": "auto"})))
    assert len(set(names)) == 4


def test_provenance_says_what_the_fingerprint_follows_from(root: Path) -> None:
    settings = config(data=MVTecConfig(root=str(root), category="nut"))
    found = identify(settings, settings.data.read()).provenance
    assert found["fingerprint"] == fingerprint(settings, settings.data.read())
    assert found["settings"]["coreset"]["ratio"] == 0.3
    assert found["settings"]["coreset"]["projection"] == "gaussian"
    assert "root" not in found["settings"]["data"] and "cache" not in found["settings"]
    assert found["classes"]["coreset"] == "GreedyConfig"
    assert found["data"]["train"] != found["data"]["test"]
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["device"] == "cpu" and found["precision"]["trainer"] == "32-true"


# --- images and weights ----------------------------------------------------------------------


def test_names_contents_labels_and_order_of_samples_count(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"part/{name}.png", (8, 8), 1) for name in "ab"]
    mask = write_mask(tmp_path / "masks/b.png", (8, 8))
    a, b = Sample(paths[0], 0), Sample(paths[1], 1, "scratch", mask)
    other = write_image(tmp_path / "part/c.png", (8, 8), 2)
    splits = [
        Split([a], [a, b]),
        Split([a], [b, a]),
        Split([a, a], [a, b]),
        Split([a], [a, replace(b, label=0)]),
        Split([a], [a, replace(b, defect_type="dent")]),
        Split([a], [a, replace(b, mask=None)]),
        Split([a], [a, replace(b, mask=paths[0])]),
        Split([a], [a, replace(b, mask=Masks((mask,)))]),
        Split([a], [a, replace(b, mask=Masks((mask,), labels=True))]),
        Split([a], [a, replace(b, path=paths[0])]),  # the same picture by another name
        Split([a], [a, replace(b, path=other)]),
    ]
    assert len({fingerprint(config(), split) for split in splits}) == len(splits)


def test_neither_place_nor_spelling_of_the_data_counts(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "copy")
    (tmp_path / "link").symlink_to(root)
    places = [
        root,
        tmp_path / "copy",
        tmp_path / "link",
        root / "nut" / "..",
        os.path.relpath(root),
    ]
    splits = [MVTecConfig(root=str(place), category="nut").read() for place in places]
    assert len({samples_digest(split.test, split) for split in splits}) == 1
    assert len({fingerprint(config(), split) for split in splits}) == 1
    (tmp_path / "copy/nut/test/good/000.png").rename(tmp_path / "copy/nut/test/good/0.png")
    renamed = MVTecConfig(root=str(tmp_path / "copy"), category="nut").read()
    assert samples_digest(renamed.test, renamed) != samples_digest(splits[0].test, splits[0])


def test_weights_count_by_their_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / f"{name}.pth" for name in "ab"]
    members = [MemberConfig(backbone=BackboneConfig("resnet18", str(file))) for file in files]
    settings = config(ensemble=EnsembleConfig(members))
    names = []
    for file in (files[0], *files):
        for missing in files:
            missing.touch()
        names.append(fingerprint(settings))
        file.write_text(f"{len(names)}")
    names.append(fingerprint(settings))
    assert len(set(names)) == 4
    split = Split([], []).recorded(identity.weights_files(settings))
    split.check()
    files[1].write_text("others")
    with pytest.raises(InputError, match=r"b\.pth: the file changed"):
        split.check()
    monkeypatch.chdir(tmp_path)
    one = fingerprint(config(backbone=BackboneConfig("resnet18", "a.pth")))
    assert one == fingerprint(config(backbone=BackboneConfig("resnet18", str(files[0]))))
    found = tmp_path / "hub.safetensors"
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: str(found))
    tagged = []
    for text in ("one", "two"):
        found.write_text(text)
        tagged.append(fingerprint(config(backbone=BackboneConfig("resnet18", "tv_in1k"))))
    assert tagged[0] != tagged[1]


# --- source code and libraries ---------------------------------------------------------------


def keys(settings: Config) -> dict[str, str]:
    """Keys of every stage, and the fingerprint."""
    network = torch.nn.Conv2d(1, 1, 1, bias=False)
    torch.nn.init.ones_(network.weight)
    maps = identity.network_digest(network, ["1"], "32-true", torch.device("cpu"))
    return {
        "images": identity.image_key(image_recipe(settings.image), ("a", None)),
        "maps": maps,
        "orders": order_key(["a"], settings.patch, GreedyConfig()),
        "run": fingerprint(settings),
    }


def changed(settings: Config, change: Callable[[], None]) -> set[str]:
    before = keys(settings)
    change()
    return {stage for stage, key in keys(settings).items() if key != before[stage]}


EVERY = {"images", "maps", "orders", "run"}


@pytest.mark.parametrize(
    ("module", "stages"),
    [
        ("data.transforms", EVERY),
        ("data.images", EVERY),
        ("data.dataset", EVERY),
        ("cache", EVERY),
        ("map_cache", EVERY),
        ("identity", EVERY),
        ("errors", EVERY),
        ("", EVERY),  # the package's first file runs before any other
        ("backbones", EVERY - {"images"}),
        ("_embedded", EVERY - {"images"}),
        ("_fusion", EVERY - {"images"}),
        ("module", EVERY - {"images"}),
        ("methods.patchcore", EVERY - {"images"}),
        ("methods.banks", EVERY - {"images"}),
        ("patches", {"orders", "run"}),
        ("whitening", {"orders", "run"}),
        ("foreground", {"orders", "run"}),
        ("coreset.order", {"orders", "run"}),
        ("coreset.kernel", {"orders", "run"}),  # imported inside a function
        ("scoring", {"run"}),
        ("index.exact", {"run"}),
        ("index.fused", {"run"}),  # imported inside a function
        ("index.local", {"run"}),
        ("methods.nearby", {"run"}),
        ("methods.switches", {"run"}),
        ("metrics", {"run"}),
        ("methods.ensemble", {"run"}),
        ("methods.folds", {"run"}),
        ("decision", {"run"}),
        ("label_free", {"run"}),
        ("data.defects", {"run"}),
        ("data.defective", {"run"}),
        ("methods.spade", {"run"}),
        ("data.synthesis", {"run"}),  # of the data set that is chosen
        ("data.layout", {"run"}),
        ("config", {"run"}),
        ("report.run", {"run"}),
        ("data.mtd", set()),  # of others
        ("data.fetch", set()),
        ("report.page", set()),
        ("report.pagedata", set()),
        ("commands.report", set()),
        ("tracking", set()),
        ("paper", set()),
    ],
)
def test_an_edited_file_makes_another_run_where_it_takes_part(
    module: str, stages: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"patchcore.{module}".rstrip(".")
    edited = {**identity.SOURCES, name: identity.SOURCES[name] + b"\nSIDE = 1\n"}
    settings = config(data=GeneratedConfig())
    monkeyed = changed(settings, lambda: monkeypatch.setattr(identity, "SOURCES", edited))
    assert monkeyed == stages


def test_sources_are_those_of_the_files(tmp_path: Path) -> None:
    package = tmp_path / "patchcore"
    shutil.copytree(Path(identity.__file__).parent, package, symlinks=True)  # conf is a link
    assert identity.read_sources(package) == identity.SOURCES
    (package / "report/templates/page.css").write_text("body {}")
    assert identity.read_sources(package) == identity.SOURCES
    with (package / "scoring.py").open("a") as file:
        file.write("SIDE = 1\n")
    found = identity.read_sources(package)
    assert {name for name in found if found[name] != identity.SOURCES[name]} == {
        "patchcore.scoring"
    }


def test_lines_of_imports_say_what_whole_files_do() -> None:
    for name, source in identity.SOURCES.items():
        expected = MODULES[name.removeprefix(identity.PACKAGE).lstrip(".")]
        found = imported(identity.import_statements(source))
        own = [
            {each for each in names if each.startswith("patchcore")} for names in (found, expected)
        ]
        assert own[0] == own[1] and found >= expected, name


@pytest.mark.parametrize(
    "source",
    [
        "import a.b, c as d  # one\nfrom e import (\n    f,\n    g,\n)\n",
        "if x:\n\timport a\nfrom patchcore.b import c, d\n",
        "try: import a\nexcept ImportError: import b\n",
        "import a; from b import c\n",
        "from a import \\\n    b\nimport c\n",
        "from a import (  # import b\n    c,  # not d\n)\n",
        "from a  import b\nfrom c import *\n",
        "import a\r\nfrom b import c\r\n",
        "from ä import ö\nimport ü\n",
        "x = 'import a'\nimport b\n",
        "'''One may\nimport this or that\n'''\nimport b\n",
    ],
)
def test_imports_are_found_however_they_are_written(source: str) -> None:
    found = imported(identity.import_statements(source.encode()))
    assert found == imported(ast.walk(ast.parse(source))) != set()


def test_relative_imports_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in (b"from . import scoring", b"from .scoring import *", b"from .data import mtd"):
        sources = {**identity.SOURCES, "patchcore.patches": text}
        found = identity._imports("patchcore.patches", text, frozenset(sources))
        assert found & {"patchcore.scoring", "patchcore.data.mtd"}
    found = identity._imports("patchcore.data.mtd", b"from ..scoring import x", frozenset(sources))
    assert "patchcore.scoring" in found
    found = identity._imports("patchcore.data", b"from . import mtd", frozenset(sources))
    assert "patchcore.data.mtd" in found


@pytest.mark.parametrize(
    ("library", "groups", "stages"),
    [
        ("Pillow", {}, EVERY),
        ("numpy", {}, EVERY),
        ("torch", {}, {"maps", "run"}),
        ("torchvision", {}, {"maps", "run"}),
        ("timm", {}, {"maps", "run"}),
        ("scipy", {}, {"maps", "run"}),
        ("faiss-cpu", {}, set()),
        ("faiss-cpu", {"index": FaissFlatConfig()}, {"run"}),
        ("albumentations", {}, set()),
        ("albumentations", {"augment": AugmentConfig(noise=0.1)}, {"run"}),
        ("wandb", {}, set()),
    ],
)
def test_another_version_of_a_library_makes_another_run_where_it_takes_part(
    library: str, groups: Any, stages: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str, real: Callable[[str], str] = metadata.version) -> str:
        return "0.0.1" if name == library else real(name)

    found = changed(config(**groups), lambda: monkeypatch.setattr(identity, "version", version))
    # An order's key holds those of its training images' maps, which name the libraries.
    assert found - {"orders"} == stages - {"orders"}


def test_the_key_of_maps_names_weights_layers_and_precision() -> None:
    model = build_detector(parts(config()))
    keys = [network_digest(model, "32-true", torch.device("cpu"))]
    keys.append(network_digest(model, "bf16-mixed", torch.device("cpu")))
    model.backbone.layers.reverse()
    keys.append(network_digest(model, "32-true", torch.device("cpu")))
    next(model.backbone.parameters()).data.add_(1)
    keys.append(network_digest(model, "32-true", torch.device("cpu")))
    assert len(set(keys)) == 4


# --- equal names, equal results --------------------------------------------------------------

SPACE: dict[str, list[Any]] = {
    "backbone.seed": [0, 1],
    "backbone.name": ["embedded", "resnet18"],
    "patch.size": [1, 3],
    "patch.mapping": [Mapping.reference, Mapping.average],
    "patch.channels": [16, 24],
    "coreset.seed": [0, 1, 2],
    "coreset.ratio": [0.2, 0.3],
    "coreset.count": [None, 7],
    "coreset.projection": [Projection.none, Projection.gaussian, Projection.sparse],
    "coreset.start": [Start.random, Start.mean, Start.anchors],
    "coreset.anchors": [3, 4],
    "coreset.pool": [None, 16],
    "coreset.chunk": [None, 11],
    "coreset.distortion": [0.5, 0.9],
    "index.chunk_mib": [1, 256],
    "scoring.neighbours": [1, 2],
    "scoring.sigma": [0.0, 2.0],
    "scoring.top_share": [0.0, 0.3],
    "augment.noise": [0.0, 0.2],
    "augment.seed": [0, 1],
    "image.resize": [32, 36],
    "data.shots": [None, 2],
    "data.shots_seed": [0, 1],
    "data.root": ["{root}", "{root}/nut/.."],
    "cache.enabled": [False, True],
    "cache.precision": [Precision.float32, Precision.bfloat16],
    "run.seed": [0, 1],
    "run.figures": [True, False],
    "run.pictures": [Images.none, Images.all],
}


def settings_of(choice: dict[str, Any], root: Path, cache: Path) -> Config:
    groups: dict[str, dict[str, Any]] = {}
    for key, value in choice.items():
        group, _, name = key.partition(".")
        groups.setdefault(group, {})[name] = value
    data = {**groups["data"], "root": groups["data"]["root"].format(root=root)}
    network = groups["backbone"]
    weights = "shipped" if network["name"] == "embedded" else "none"
    return config(
        data=MVTecConfig(category="nut", batch_size=3, **data),
        image=ImageConfig(crop=32, **groups["image"]),
        augment=AugmentConfig(**groups["augment"]),
        backbone=BackboneConfig(weights=weights, **network),
        patch=PatchConfig(layer_channels=16, **groups["patch"]),
        coreset=GreedyConfig(dimension=8, **groups["coreset"]),
        index=TorchIndexConfig(**groups["index"]),
        scoring=ScoringConfig(**groups["scoring"]),
        cache=CacheConfig(root=str(cache), **groups["cache"]),
        **groups["run"],
    )


def result(run: Config) -> tuple[bytes, ...]:
    """All that a run finds, bit for bit."""
    model = build_detector(parts(run))
    store, cache = run.cache.open(), None
    if store is not None:
        digest = network_digest(model, "32-true", torch.device("cpu"))
        cache = MapCache(store, digest, run.cache.precision)
    data = AnomalyDataModule(run.data, run.image, run.augment, cache)
    module = DetectorModule(model, cache)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, enable_model_summary=False, num_sanity_val_steps=0, **quiet
    )
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    maps = [module.anomaly_map(i, (32, 32)).numpy() for i in sorted(module.record.scores)]
    scores = np.array([module.record.scores[i] for i in sorted(module.record.scores)])
    return scores.tobytes(), np.stack(maps).tobytes()


@pytest.mark.filterwarnings("ignore:backbone resnet18 has random weights")
def test_equal_fingerprints_if_and_only_if_equal_results(root: Path, tmp_path: Path) -> None:
    """Compare random settings and neighbours of theirs, every pair of them.

    "Only if" cannot hold for settings whose effect depends on more than settings, so these are
    drawn above from where they have one: `data.batch_size` (rounding on other hardware),
    `patch.mapping=auto` and `coreset.dimension` (by the network's channels), seeds of draws that
    take everything, and draws of different seeds that happen to be equal.
    """
    chance = random.Random(7)
    choices = []
    for _ in range(4):
        base = {key: chance.choice(values) for key, values in SPACE.items()}
        choices.append(base)
        for key in chance.sample(sorted(SPACE), 3):
            other = chance.choice([value for value in SPACE[key] if value != base[key]])
            choices.append({**base, key: other})
    names, results = [], []
    for choice in choices:
        run = settings_of(choice, root, tmp_path)
        names.append(fingerprint(run, run.data.read()))
        results.append(result(run))
    pairs = [(i, j) for i in range(len(names)) for j in range(i)]
    for i, j in pairs:
        differing = {key for key in SPACE if choices[i][key] != choices[j][key]}
        assert (names[i] == names[j]) == (results[i] == results[j]), differing
    equal = sum(names[i] == names[j] for i, j in pairs)
    assert 0 < equal < len(pairs)


def test_effects_are_told_of_every_setting() -> None:
    """A function for an effect is given the settings beside it, and never fails on defaults."""
    shown = effective(config())
    assert shown["coreset"] == {
        "ratio": 0.3,
        "count": None,
        "seed": 0,
        "radius": None,
        "projection": "gaussian",
        "dimension": 8,
        "start": "random",
    }
    assert "augment" in shown and "seed" not in shown["augment"]
