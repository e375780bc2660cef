"""Every study runs, end to end, on images and a network so small that it takes a second."""

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from patchcore.commands.composed import to_config
from patchcore.commands.generations import VERSION_BASE
from patchcore.commands.train import build, resolved
from patchcore.report.reading import read_run
from patchcore.runner import run
from tests.images import write_mvtec
from tests.runs import REPOSITORY, patchcore
from tests.test_data_sets import write_mstc, write_mtd

EXPERIMENTS = REPOSITORY / "conf" / "experiment"
STUDIES = sorted(str(path.relative_to(EXPERIMENTS))[:-5] for path in EXPERIMENTS.rglob("*.yaml"))
SMALL = [
    "backbone.name=test_resnet",
    "backbone.weights=none",
    "image.resize=32",
    "image.crop=null",
    "trainer=cpu",
    "trainer.enable_progress_bar=false",
    "logger=none",
    "figures=false",
]
pytestmark = pytest.mark.filterwarnings("ignore:data. .*mtd lacks MT_:UserWarning")
MEMBER = "{backbone:{name:test_resnet,weights:none}}"
SMALLER = {
    "coreset=learned": ["coreset.steps=3"],
    "preset=ensemble_320": [f"ensemble.members=[{MEMBER},{MEMBER}]"],
}
FEW = ["data.train_images=4", "data.nominal_images=2", "data.anomalous_images=2"]
FEWER = {"data.shots": "1,2"}
"""Values that a study sweeps over, where its own would not suit the small data."""


def composed(study: str, *overrides: str) -> DictConfig:
    """All settings of a study, Hydra's included."""
    with initialize_config_module("patchcore.conf", **VERSION_BASE):
        return compose("config", [f"experiment={study}", *overrides], return_hydra_config=True)


def points(sweep: dict[str, str]) -> list[list[str]]:
    """The first of all points, and one at the other end of the longest list of settings."""
    lists = {
        key: re.split(r",(?![^\[]*\])", FEWER.get(key, values)) for key, values in sweep.items()
    }
    longest = max(lists.keys() - {"data.category"}, key=lambda key: len(lists[key]), default="")
    return [
        [f"{key}={values[end if key == longest else 0]}" for key, values in lists.items()]
        for end in ([0, -1] if longest else [0])
    ]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("studies")
    write_mvtec(root / "mvtec").rename(root / "mvtec" / "bottle")
    write_mtd(root / "mtd")
    write_mstc(root / "mstc")
    return root


@pytest.fixture(autouse=True)
def hydra_config(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # a run has its own
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so little work is slower with more on a busy machine
    yield
    torch.set_num_threads(threads)
    HydraConfig.instance().cfg = None


@pytest.mark.filterwarnings("ignore:backbone test_resnet has random weights")
@pytest.mark.parametrize("study", STUDIES)
def test_every_study_runs(study: str, data: Path, tmp_path: Path) -> None:
    hydra = composed(study).hydra
    chosen = points(hydra.sweeper.params or {})
    if study.startswith("paper/") and "- /experiment/" in source(study):
        chosen = chosen[:1]  # another study's runs
    for i, point in enumerate(chosen):
        small = [setting for key in point for setting in SMALLER.get(key, [])]
        root = data / hydra.runtime.choices.data
        if root.name == "generated":
            small += FEW
        cfg = composed(
            study, *point, *SMALL, *small, f"data.root={root}", f"cache.root={data / 'cache'}"
        )
        folder = tmp_path / str(i)
        folder.mkdir()
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = str(folder)
            cfg.hydra.mode = RunMode.RUN
            HydraConfig.instance().set_config(cfg)
            del cfg["hydra"]
        run(to_config(cfg), folder, settings=resolved(cfg), make=build)
        assert 0 <= json.loads((folder / "metrics.json").read_text())["image_auroc"] <= 1
        if i == 0 and study in STATED:
            assert STATED[study].items() <= read_run(folder).paper.items()


STATED = {
    "paper/table_1": {"image_auroc": 1.0},
    "paper/table_5": {"average_pixel_auroc": 0.98},
    "paper/table_6": {"image_auroc": 0.979},
    "paper/table_6_mstc": {"average_pixel_auroc": 0.918},
    "paper/table_s5": {"average_image_auroc": 0.841},
}
"""Values of the paper that the first point must have."""


def source(study: str) -> str:
    return (EXPERIMENTS / f"{study}.yaml").read_text()


@pytest.mark.filterwarnings("ignore:backbone test_resnet has random weights")
def test_a_study_sweeps_by_itself_and_over_other_data(data: Path, tmp_path: Path) -> None:
    shared = [*SMALL, f"cache.root={data / 'cache'}"]

    def swept(name: str, *overrides: str) -> list[list[str]]:
        folder = f"hydra.sweep.dir={tmp_path / name}"
        experiment = "experiment=paper/figure_4"
        done = patchcore("train", "--multirun", experiment, *overrides, *shared, folder)
        assert done.code == 0, done.err
        lines = [
            OmegaConf.load(tmp_path / name / str(i) / ".hydra/overrides.yaml")
            for i in range(len(list((tmp_path / name).glob("*/metrics.json"))))
        ]
        swept = ("data.category=", "patch.size=")
        return [[str(text) for text in line if str(text).startswith(swept)] for line in lines]

    mvtec = f"data.root={data / 'mvtec'}"
    sizes = "patch.size=1,3"  # what is typed replaces the file's
    assert swept("mvtec", mvtec, "data.category=bottle", sizes) == [
        ["data.category=bottle", "patch.size=1"],
        ["data.category=bottle", "patch.size=3"],
    ]
    assert len(composed("paper/figure_4").hydra.sweeper.params["data.category"].split(",")) == 15
    assert swept("mtd", "data=mtd", f"data.root={data / 'mtd'}", sizes) == [
        ["patch.size=1"],
        ["patch.size=3"],
    ]


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_says_how_to_run_it_and_what_to_expect(study: str) -> None:
    head = " ".join(line for line in source(study).splitlines() if line.startswith("#"))
    assert f"experiment={study} " in head and "Expect" in head
    assert re.search(r"\d runs|CPU core|As long as", head)
