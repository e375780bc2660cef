"""Names on the command line stay as they were typed, in tables too."""

import csv
import json
import os
from enum import EnumType
from pathlib import Path
from typing import get_args

import pytest
from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from patchcore.commands.generations import VERSION_BASE
from patchcore.commands.overrides import as_typed
from patchcore.commands.settings_help import options
from patchcore.data.mstc import MSTCConfig
from patchcore.data.mvtec import MVTecConfig
from patchcore.errors import InputError
from patchcore.report.cells import restored
from patchcore.report.folders import Images, listed_pictures
from tests.images import write_image, write_mask, write_mvtec
from tests.runs import TINY, patchcore

pytestmark = pytest.mark.filterwarnings("ignore:backbone resnet18 has random weights")


@pytest.mark.parametrize(
    ("typed", "handed_on"),
    [
        ("data.category=1e3", "data.category='1e3'"),
        ("data.category=7", "data.category='7'"),
        ("+data.category=null", "+data.category='null'"),
        ("data.category=true,nut,-1", "data.category='true',nut,'-1'"),
        ("data.category=choice(nan,01)", "data.category=choice('nan',01)"),
        ("data.category=[1,nut],[2]", "data.category=['1',nut],['2']"),  # one memory for each
        ("data.root=2024", "data.root='2024'"),
        ("data.nominal=1_000", "data.nominal='1_000'"),
        ("cache.root=1.10", "cache.root='1.10'"),
        ("index.factory=1e3", "index.factory='1e3'"),
        ("backbone.weights=true", "backbone.weights='true'"),
        ("layers.names=[1.10,2]", "layers.names=['1.10',2]"),  # a module, and a level
        ("hydra.run.dir=2024_11_27", "hydra.run.dir='2024_11_27'"),
        ("hydra.sweep.dir=1.10", "hydra.sweep.dir='1.10'"),
        ("hydra.sweep.subdir=1e3,2", "hydra.sweep.subdir='1e3','2'"),
        ("hydra.output_subdir=1.0", "hydra.output_subdir='1.0'"),
        ("hydra.job.name=1_0", "hydra.job.name='1_0'"),
        ("+hydra.job.env_set.A=1.10", "+hydra.job.env_set.A='1.10'"),
        ("hydra.launcher.partition=1_0", "hydra.launcher.partition='1_0'"),
        ("hydra.sweeper.study_name=2024_11", "hydra.sweeper.study_name='2024_11'"),
        ("logger.wandb.project=2024", "logger.wandb.project='2024'"),
        ("+logger.wandb.tags=[1.10,nut]", "+logger.wandb.tags=['1.10',nut]"),
        ("logger.csv.version=1.10", "logger.csv.version='1.10'"),
        ("logger.mlflow.run_name=true", "logger.mlflow.run_name='true'"),
        *(
            (text, text)
            for text in (
                "data.root=null",  # what data=generated knows
                "data.nominal_test=null",
                "cache.root=null",
                "backbone.name=null",  # which is refused as null
                "hydra.output_subdir=null",
                "logger.wandb.group=null",
                "logger.csv.version=3",  # a number has a meaning of its own
                "logger.wandb.offline=true",
                "layers.names=[2,3]",
                "hydra.run.dir=out/${now:%Y}",
                "hydra.launcher.n_jobs=2",
                "hydra.verbose=true",
                "data.category=01",  # Hydra takes neither for a number
                "data.category=on",
                "data.category='7'",
                "data.category=range(1,3)",
                "data.category=${seed}",
                "data.category=",
                "data.seed=7",
                "data=mvtec",
                "--multirun",
            )
        ),
    ],
)
def test_names_that_look_like_numbers_get_quotes(typed: str, handed_on: str) -> None:
    assert as_typed([typed]) == [handed_on]


def test_what_no_settings_file_could_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"^data\.root=caf\\xe9: the name of this argument is not"):
        as_typed(["data.root=caf\udce9"])
    with pytest.raises(InputError, match=r"argument is UTF-8, but the locale is not: set LC_ALL="):
        as_typed(["data.root=caf\udcc3\udca9"])  # as LC_ALL=C reads it
    (folder := tmp_path / "caf\udce9").mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=r"caf\\xe9: the name of this folder is not UTF-8"):
        as_typed([])
    folder.rmdir()
    with pytest.raises(InputError, match=r"^the current folder cannot be used"):
        as_typed([])


def test_categories_of_a_multirun_stay_as_typed() -> None:
    typed = as_typed(["data=mvtec", "data.category=01,1e3,null,nut"])
    (points,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(typed), None)
    with initialize_config_module("patchcore.conf", **VERSION_BASE):
        found = [compose("config", list(point)).data.category for point in points]
    assert found == ["01", "1e3", "null", "nut"]


def test_names_of_folders_stay_as_typed() -> None:
    typed = ["hydra.run.dir=1.10", "hydra.sweep.subdir=2024_11_27", "cache.root=1e3"]
    typed += ["logger=csv", "logger.csv.name=true"]
    with initialize_config_module("patchcore.conf", **VERSION_BASE):
        found = compose("config", as_typed(typed), return_hydra_config=True)
    assert (found.hydra.run.dir, found.hydra.sweep.subdir) == ("1.10", "2024_11_27")
    assert (found.cache.root, found.logger.csv.name) == ("1e3", "true")


def test_references_to_a_choice_are_what_one_types() -> None:
    kinds = [(key, each) for key, _, kind in options() for each in (kind, *get_args(kind))]
    enums = [(key, each) for key, each in kinds if isinstance(each, EnumType)]
    assert {"data.split (mtd)", "image.view", "objectives", "artifact.keep"} <= dict(enums).keys()
    assert [key for key, each in enums if [*map(str, each)] != [*each.__members__]] == []
    typed = ["hydra.run.dir=runs/${data.category}", "hydra.sweep.subdir=${layers.join}"]
    with initialize_config_module("patchcore.conf", **VERSION_BASE):
        found = compose("config", as_typed(typed), return_hydra_config=True)
    assert (found.hydra.run.dir, found.hydra.sweep.subdir) == ("runs/texture", "concat")


@pytest.mark.parametrize(("kind", "read"), [(MVTecConfig, "1"), (MSTCConfig, "1.0")])
def test_a_file_that_lost_the_name_is_told_to_quote_it(
    tmp_path: Path, kind: type, read: str
) -> None:
    if kind is MVTecConfig:
        write_mvtec(tmp_path).rename(tmp_path / "01")
    else:
        write_image(tmp_path / "training/frames/01_001/0.jpg")
        write_image(tmp_path / "testing/frames/01_001/0.jpg")
    with pytest.raises(InputError, match=r"it has 01; in a file, names that look like a number"):
        kind(root=str(tmp_path), category=read).read()


NAMES = ["caf\udce9", "a\nb", "=1+1", 'x, "y"', "$\\frac$", "日本", "n" * 240]


def test_names_of_any_kind_survive_a_run(tmp_path: Path) -> None:
    for i in range(4):
        write_image(tmp_path / f"data/nominal/{i}.png", (40, 36))
    for name in NAMES:
        write_image(tmp_path / "data/bad" / name / f"{name}.png", (40, 36))
        write_mask(tmp_path / "data/masks" / name / f"{name}.png", (40, 36))
    done = patchcore(
        *("train", "data=folder", f"data.root={tmp_path / 'data'}", "data.anomalous=bad"),
        *("data.masks=masks", *TINY, "logger=csv", f"hydra.run.dir={tmp_path / 'run'}"),
        "pictures=all",
    )
    assert done.code == 0, done.err
    with (tmp_path / "run/scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    kinds = {row["defect_type"].removeprefix("'") for row in rows}  # no formula in a spreadsheet
    assert kinds == {"good", "caf\\xe9", "a\\nb", *NAMES[2:]}
    assert f"{tmp_path}/data/bad/caf\\xe9/caf\\xe9.png" in {row["path"] for row in rows}
    record = json.loads((tmp_path / "run/metrics.json").read_text(encoding="utf-8"))
    assert record["test_images"] == 1 + len(NAMES) and record["aupro"] is not None
    assert os.path.getsize(tmp_path / "run/figures/gallery.png") > 0
    (tmp_path / "run/figures/images_all.csv").read_text(encoding="utf-8")
    listed = listed_pictures(tmp_path / "run", Images.all)
    assert listed is not None and {path for path, _ in listed} == {
        restored(x["path"]) for x in rows
    }
    for _, picture in listed:
        assert (tmp_path / "run" / picture).is_file()
