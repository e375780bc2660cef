"""A run as Python users start it: the folder that the command leaves, with the same numbers."""

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import pytorch_lightning as pl
import timm
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

import patchcore
from patchcore import BackboneConfig, InputError
from patchcore.cache import CacheConfig
from patchcore.config import Config
from patchcore.coreset import GreedyConfig
from patchcore.data.mvtec import MVTecConfig
from patchcore.decision import DecisionConfig
from patchcore.keeping import ArtifactConfig, Keep
from patchcore.module import DetectorModule
from patchcore.report.folders import PICTURES, Images
from patchcore.report.pictured import pictures_of
from patchcore.report.reading import read_run
from tests.images import write_mvtec
from tests.runs import QUIET, config
from tests.runs import patchcore as command


class Watcher(pl.Callback):
    """Counts the batches of every test."""

    seen: list[int] = []  # noqa: RUF012

    def __init__(self, by: int) -> None:
        self.by = by

    def on_test_batch_end(self, *args: Any) -> None:
        self.seen.append(self.by)


def scores(folder: Path) -> list[str]:
    with (folder / "scores.csv").open() as file:
        return [row["score"] for row in csv.DictReader(file)]


def test_a_run_from_python_is_that_of_the_command(tmp_path: Path) -> None:
    write_mvtec(tmp_path, (40, 36))
    callback = {"_target_": f"{__name__}.Watcher", "by": 3}
    Watcher.seen.clear()
    settings = config(tmp_path, trainer={**QUIET, "callbacks": [callback]})
    done = patchcore.run(settings, tmp_path / "python")
    assert Watcher.seen == [3] * 3  # batches of 2 of 5 images
    assert done.folder == tmp_path / "python" and done.warm == []
    assert done.record == json.loads((done.folder / "metrics.json").read_text())
    assert f"image_auroc              {done.record['image_auroc']:.4f}" in done.text
    typed = command(
        *("train", "data=mvtec", f"data.root={tmp_path}", "data.category=nut", "data.batch_size=2"),
        *("image.resize=32", "image.crop=32", "layers.names=[2,3]", "patch=average"),
        *("coreset.ratio=0.5", "trainer=cpu", "logger=none", "figures=false"),
        *(f"cache.root={tmp_path / 'cache'}", f"hydra.run.dir={tmp_path / 'typed'}"),
    )
    assert typed.code == 0, typed.err
    ours, theirs = (scores(tmp_path / name) for name in ("python", "typed"))
    assert ours == theirs and len(ours) == 5
    saved = OmegaConf.load(tmp_path / "python" / "config.yaml")
    assert saved.patch.mapping == "average" and saved.trainer.callbacks == [callback]


def test_a_run_is_taken_over_where_it_has_finished(tmp_path: Path) -> None:
    write_mvtec(tmp_path, (40, 36))
    first = patchcore.run(config(tmp_path), tmp_path / "first")
    again = patchcore.run(config(tmp_path, resume=True), tmp_path / "again")
    assert again.record == first.record
    assert again.text == f"finished before, in {tmp_path / 'first'}"


def test_results_of_another_point_are_not_replaced_without_a_word(tmp_path: Path) -> None:
    write_mvtec(tmp_path, (40, 36))
    place = tmp_path / "sweep" / "0"
    for _ in range(2):
        patchcore.run(config(tmp_path), place, multirun=place.parent)  # warnings are errors
    told = f"^{place}: the results of another point are replaced"
    with pytest.warns(UserWarning, match=told):
        patchcore.run(
            config(tmp_path, coreset=GreedyConfig(ratio=0.2)), place, multirun=place.parent
        )


def test_results_of_other_weights_in_the_same_file_are_told_so(tmp_path: Path) -> None:
    write_mvtec(tmp_path / "data", (40, 36))
    place, file = tmp_path / "sweep" / "0", tmp_path / "own.safetensors"
    network = timm.create_model("resnet18", num_classes=0)
    save_file(network.state_dict(), file)
    settings = config(tmp_path / "data", backbone=BackboneConfig("resnet18", str(file)))
    patchcore.run(settings, place, multirun=place.parent)
    save_file({k: v + 0.01 for k, v in network.state_dict().items()}, file)
    told = (
        f"{place}: its results are replaced, as own.safetensors (backbone.weights) has changed "
        "since; to keep those of several multiruns, give each its own hydra.sweep.dir"
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(told)}$"):
        patchcore.run(settings, place, multirun=place.parent)
    with pytest.warns(UserWarning, match="the results of another point are replaced"):
        patchcore.run(
            replace(settings, coreset=GreedyConfig(ratio=0.2)), place, multirun=place.parent
        )


def test_pictures_of_single_images_are_drawn_and_taken_over(tmp_path: Path) -> None:
    write_mvtec(tmp_path, (40, 36))
    first = patchcore.run(config(tmp_path, pictures=Images.all), tmp_path / "first")
    names = {path.relative_to(first.folder) for path in (first.folder / PICTURES).rglob("*.png")}
    assert len(names) == 5
    again = patchcore.run(config(tmp_path, pictures=Images.all, resume=True), tmp_path / "again")
    assert again.text == f"finished before, in {first.folder}"
    for name in [*names, Path("figures/images_all.csv")]:
        assert (again.folder / name).read_bytes() == (first.folder / name).read_bytes()
    found = pictures_of(read_run(again.folder))
    assert {Path(picture) for picture in found.values()} == names
    plain = patchcore.run(config(tmp_path, resume=True), tmp_path / "plain")
    assert plain.record == first.record and not (plain.folder / "figures").exists()


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"callbacks": [{"_target_": "no.such.Class"}]}, r"^trainer\.callbacks\[0\]: No module"),
        ({"callbacks": [{"_target_": f"{__name__}.Watcher"}]}, r"^trainer\.callbacks\[0\]: .*'by'"),
        ({"foo": 1}, r"^trainer: .*'foo'"),
    ],
)
def test_what_cannot_be_made_is_named(
    trainer: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_mvtec(tmp_path, (40, 36))
    with pytest.raises(InputError, match=message):
        patchcore.run(config(tmp_path, trainer={**QUIET, **trainer}), tmp_path / "run")


@pytest.mark.parametrize("given", [None, "greedy", GreedyConfig])
def test_a_group_that_is_no_settings_is_named(given: Any, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^coreset: give settings, such as GreedyConfig\(\), not "
    ):
        config(tmp_path, coreset=given)


def test_a_configuration_that_lacks_groups_names_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^Config lacks .*: give image=.*, method=PatchCoreConf"):
        Config(data=MVTecConfig(root=str(tmp_path)))


def test_pictures_lie_where_the_paths_of_moved_images_put_them(tmp_path: Path) -> None:
    write_mvtec(tmp_path / "old", (40, 36))
    own = {"pictures": Images.all, "cache": CacheConfig(root=str(tmp_path / "cache"))}
    first = patchcore.run(config(tmp_path / "old", **own), tmp_path / "first")
    (tmp_path / "old").rename(tmp_path / "new")
    moved = patchcore.run(config(tmp_path / "new", resume=True, **own), tmp_path / "moved")
    assert moved.text == f"finished before, in {first.folder}"
    found = pictures_of(read_run(moved.folder))
    assert len(found) == 5 == len(list((moved.folder / PICTURES).rglob("*.png")))
    for path, picture in found.items():
        assert Path(path).is_relative_to(tmp_path / "new")
        assert picture.endswith(f"{path}.png") and (moved.folder / picture).is_file()


def test_a_folder_without_a_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^folder: is empty: give a path"):
        patchcore.run(config(tmp_path), "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_run_on_a_gpu_leaves_all_that_one_on_the_cpu_leaves(tmp_path: Path) -> None:
    write_mvtec(tmp_path, (40, 36))
    folders = []
    for device in ("cpu", "gpu"):
        settings = config(
            tmp_path,
            trainer={**QUIET, "accelerator": device, "devices": 1},
            decision=DecisionConfig(false_alarms=0.5),
            curve=[0.25],
            figures=True,
            pictures=Images.all,
            artifact=ArtifactConfig(Keep.all),
        )
        folders.append(patchcore.run(settings, tmp_path / device).folder)
    there, here = ({p.relative_to(f) for p in f.rglob("*") if p.is_file()} for f in folders)
    assert there == here
    both = zip(*map(scores, folders), strict=True)
    assert all(math.isclose(float(one), float(other), rel_tol=1e-3) for one, other in both)


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_leaves_its_device_once_after_the_test_or_an_error(
    fails: bool, tmp_path: Path
) -> None:
    write_mvtec(tmp_path, (40, 36))
    order: list[str] = []

    def end(_: Any) -> None:
        if fails:
            raise RuntimeError("no memory")

    with (
        mock.patch.object(pl.LightningModule, "cpu", lambda _: order.append("leaves")),
        mock.patch.object(DetectorModule, "on_train_end", end),
        mock.patch.object(DetectorModule, "on_test_start", lambda _: order.append("starts")),
        mock.patch.object(DetectorModule, "test_step", lambda *_: order.append("tests")),
        mock.patch.object(DetectorModule, "on_test_epoch_end", lambda _: None),
        pytest.raises(
            RuntimeError if fails else InputError, match="no memory" if fails else "0 test"
        ),
    ):
        patchcore.run(config(tmp_path), tmp_path / "run")
    assert order == (["leaves"] if fails else ["starts", *["tests"] * 3, "leaves"])


def test_a_folder_that_is_moved_during_its_run_is_told(tmp_path: Path) -> None:
    write_mvtec(tmp_path)

    def moved(*_: Any) -> None:
        (tmp_path / "run").rename(tmp_path / "moved")

    told = f"^{tmp_path}/run: was moved or removed while the run was under way: start the run again"
    with (
        mock.patch("patchcore.runner.check_pictures", moved),
        pytest.raises(InputError, match=told),
    ):
        patchcore.run(config(tmp_path), tmp_path / "run")
    assert not (tmp_path / "moved/metrics.json").exists()
