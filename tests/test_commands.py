"""The command as a user meets it: what a run leaves, and what a mistake gets."""

import csv
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from textwrap import indent
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from patchcore import (
    BackboneConfig,
    Ensemble,
    GreedyConfig,
    LayersConfig,
    PatchConfig,
    PatchCore,
    ScoringConfig,
    TorchIndexConfig,
)
from patchcore.commands import COMMANDS, open_streams
from patchcore.commands.composed import to_config
from patchcore.config import Config
from patchcore.data.dataset import ImageDataset, collate
from patchcore.data.images import read_image
from patchcore.data.mvtec import MVTecConfig
from patchcore.data.sample import Sample
from patchcore.data.transforms import ImageConfig
from patchcore.methods import PatchCoreConfig
from patchcore.metrics import IMAGE_KEYS, MAP_KEYS, MASK_KEYS, PIXEL_KEYS
from patchcore.metrics.states import NO_MASKS
from patchcore.patches import Mapping
from patchcore.subsets import SUBSETS
from tests import reference
from tests.images import write_image, write_mask, write_mvtec
from tests.processes import execute
from tests.runs import REPOSITORY, Outcome, patchcore
from tests.runs import TINY as SIZES

pytestmark = pytest.mark.filterwarnings("ignore:backbone resnet18 has random weights")

TINY = ["backbone=resnet18", "backbone.weights=none", *SIZES]
KEYS = [
    *IMAGE_KEYS,
    *PIXEL_KEYS,
    *MAP_KEYS,
    *MASK_KEYS,
    *("memory_patches", "memory_bytes", "memory_used", "train_images", "test_images"),
    "seconds",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mvtec")
    write_mvtec(root, (40, 36))
    return root


def nut(root: Path) -> list[str]:
    return ["data=mvtec", f"data.root={root}", "data.category=nut", "data.batch_size=2"]


def train(folder: Path, *overrides: str) -> Outcome:
    """A tiny run into `folder`; nothing is logged unless asked for."""
    logger = [] if any(o.startswith("logger=") for o in overrides) else ["logger=none"]
    return patchcore("train", *TINY, *logger, *overrides, f"hydra.run.dir={folder}")


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """Folder and screen of one run, which many tests look at."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    done = train(folder, *nut(root), "logger=[csv,tensorboard]")
    assert done.code == 0, done.err
    return folder, done


def metrics(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "metrics.json").read_text()))


def logged(folder: Path) -> dict[str, float]:
    """The metrics as trackers name them, in the order of the screen."""
    found = metrics(folder)
    stages = {f"seconds.{key}": value for key, value in found.pop("seconds").items()}
    return {k: v for k, v in found.items() if isinstance(v, int | float)} | stages


# --- a run's folder --------------------------------------------------------------------------


def test_metrics_json_holds_every_number(run: tuple[Path, Outcome]) -> None:
    found = metrics(run[0])
    assert list(found) == [*KEYS, *SUBSETS[:2], "undefined"]
    seconds, whole, types = (found.pop(key) for key in ("seconds", *SUBSETS[:2]))
    assert whole["resamples"] == 1000 and set(whole["metrics"]) < set(IMAGE_KEYS)
    low, high = whole["metrics"]["image_auroc"]
    assert 0 <= low <= found["image_auroc"] <= high <= 1
    assert {kind: each["images"] for kind, each in types.items()} == {"bent": 1, "scratch": 2}
    assert "image_auroc.bent" in run[1].out
    few = found.pop("undefined")  # small images have too few pixels for it
    assert set(few) == {"aupimo"} and "needs more nominal images" in few["aupimo"]
    assert found.pop("aupimo") is None
    assert all(isinstance(value, int | float) for value in found.values())
    assert (found["train_images"], found["test_images"]) == (4, 5)
    assert found["memory_patches"] == 4 * 4 * 4 // 2
    assert found["memory_bytes"] == found["memory_patches"] * (128 + 256) * 4
    assert list(seconds) == ["extract", "coreset", "score"] and min(seconds.values()) > 0
    assert not list(run[0].glob("*.part"))


def test_scores_csv_holds_every_test_image_and_yields_the_metrics(
    run: tuple[Path, Outcome], root: Path
) -> None:
    with (run[0] / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "label", "defect_type", "score", "category"]
    assert {row["category"] for row in rows} == {"nut"}
    assert {row["path"] for row in rows} == {str(p) for p in (root / "nut/test").glob("*/*")}
    for row in rows:
        assert row["defect_type"] == Path(row["path"]).parent.name
        assert row["label"] == str(int(row["defect_type"] != "good"))
    scores = np.array([float(row["score"]) for row in rows])
    labels = np.array([row["label"] == "1" for row in rows])
    found = metrics(run[0])
    assert found["image_auroc"] == pytest.approx(reference.auroc(scores, labels))
    assert found["image_ap"] == pytest.approx(reference.average_precision(scores, labels))
    f1 = (found["image_f1"], found["image_threshold"])
    errors = (found["image_false_positives"], found["image_false_negatives"])
    assert (*f1, *errors) == pytest.approx(reference.best_f1(scores, labels))
    assert found["errors_at_full_recall"] == reference.errors_at_full_recall(scores, labels)


def test_config_yaml_holds_every_setting(run: tuple[Path, Outcome], root: Path) -> None:
    text = (run[0] / "config.yaml").read_text()
    assert "${" not in text and "???" not in text
    settings = yaml.safe_load(text)
    assert settings["coreset"]["ratio"] == 0.5 and settings["image"]["crop"] == 32
    assert settings["data"]["root"] == str(root) and settings["layers"]["names"] == ["2", "3"]
    parts = {
        "data": MVTecConfig(),
        "coreset": GreedyConfig(),
        "index": TorchIndexConfig(),
        "method": PatchCoreConfig(),
        "image": ImageConfig(),
    }
    schema = OmegaConf.structured(Config(trainer={}, logger={}, **parts))  # type: ignore[arg-type]
    read = OmegaConf.merge(schema, settings)
    assert isinstance(read, DictConfig)
    assert to_config(read).scoring == ScoringConfig()
    assert OmegaConf.to_container(read, enum_to_str=True) == settings  # nothing left to defaults


def test_pictures_are_drawn(run: tuple[Path, Outcome]) -> None:
    pictures = {path.name: read_image(path) for path in (run[0] / "figures").iterdir()}
    assert set(pictures) == {"curves.png", "scores.png", "gallery.png", "misclassified.png"}
    for pixels in pictures.values():
        assert pixels.std() > 5


def test_the_screen_shows_progress_then_the_numbers(run: tuple[Path, Outcome]) -> None:
    folder, done = run
    for name in ("Extracting patch features", "coreset", "Scoring test images"):
        assert f"{name}: 100%" in done.err
    lines = done.out.splitlines()
    assert lines[-1] == f"figures and tables: {folder}"
    found = metrics(folder)
    assert lines[0] == f"image_auroc              {found['image_auroc']:.4f}"
    types = [f"image_auroc.{kind}" for kind in found["defect_types"]]
    shown = [key for key in KEYS[:-1] if found[key] is not None]
    shown += [*(f"seconds.{key}" for key in found["seconds"]), *types]
    told = [line for line in lines[:-2] if not line.startswith(("undefined", " "))]
    assert [line.split()[0] for line in told] == shown
    reasons = " ".join(line for line in lines[:-2] if line.startswith(("undefined", " ")))
    assert set(found["undefined"]) <= set(re.findall(r"\w+", reasons))


def test_csv_logger_writes_the_metrics(run: tuple[Path, Outcome]) -> None:
    with (run[0] / "csv" / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    for key, value in logged(run[0]).items():
        assert float(row[key]) == pytest.approx(value, rel=1e-6)
    settings = yaml.safe_load((run[0] / "csv" / "hparams.yaml").read_text())
    assert settings["coreset"]["ratio"] == 0.5


def test_tensorboard_logger_writes_metrics_and_pictures(run: tuple[Path, Outcome]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run[0] / "tensorboard")).Reload()
    assert set(logged(run[0])) <= set(events.Tags()["scalars"])
    assert {"run/text_summary", "_hparams_/experiment"} <= set(events.summary_metadata)
    assert events.Scalars("image_auroc")[0].value == pytest.approx(metrics(run[0])["image_auroc"])
    assert set(events.Tags()["images"]) == {
        "curves",
        "scores",
        "gallery",
        "misclassified",
    }


# --- an ensemble ------------------------------------------------------------------------------

SECOND = "backbone:{name:resnet18,weights:none,seed:1},layers:{names:['1']}"
MEMBERS = f"ensemble.members=[{{}},{{{SECOND},image:{{resize:48,crop:48}}}}]"


@pytest.fixture(scope="module")
def ensemble(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """Folder and screen of a run of two members at two image sizes, with a cache."""
    folder = tmp_path_factory.mktemp("ensemble") / "run"
    cache = ["cache.enabled=true", f"cache.root={folder.parent / 'cache'}"]
    kept = "artifact=true"
    done = train(folder, *nut(root), MEMBERS, "logger=[csv,tensorboard]", kept, *cache)
    assert done.code == 0, done.err
    return folder, done


def test_an_ensembles_scores_are_those_of_the_library(
    ensemble: tuple[Path, Outcome], root: Path
) -> None:
    patch, coreset = PatchConfig(mapping=Mapping.average), GreedyConfig(ratio=0.5)
    pair = [
        PatchCore(BackboneConfig("resnet18", "none", seed), LayersConfig(levels), patch, coreset)
        for seed, levels in ((0, ["2", "3"]), (1, ["1"]))
    ]
    split = MVTecConfig(root=str(root), category="nut").read()

    def items(samples: list[Sample], side: int) -> dict[str, Any]:
        dataset = ImageDataset(samples, ImageConfig(side, crop=side))
        return collate([dataset[i] for i in range(len(samples))])

    library = Ensemble(pair).fit([items(split.train, side)["image"] for side in (32, 48)])
    prediction = library([items(split.test, side)["image"] for side in (32, 48)])
    with (ensemble[0] / "scores.csv").open() as file:
        scores = [float(row["score"]) for row in csv.DictReader(file)]
    assert scores == pytest.approx(prediction.score.tolist(), rel=1e-3, abs=1e-3)
    described = items(split.test, 32)
    known = described["has_mask"]
    maps, masks = list(prediction.map[known].numpy()), list(described["mask"][known].numpy())
    found = metrics(ensemble[0])
    assert found["aupro"] == pytest.approx(reference.aupro(maps, masks, 0.3), abs=1e-3)
    labels = described["label"].numpy() == 1
    assert found["image_auroc"] == pytest.approx(reference.auroc(np.array(scores), labels))
    for member, scale in zip(found["members"], library.scales, strict=True):
        assert member["scale"] == pytest.approx(vars(scale), rel=1e-3)


def scores_in(file: Path) -> list[float]:
    with file.open() as opened:
        return [float(row["score"]) for row in csv.DictReader(opened)]


def test_a_saved_ensemble_of_several_image_sizes_gives_the_numbers_of_its_run(
    ensemble: tuple[Path, Outcome], root: Path, tmp_path: Path
) -> None:
    folder, artifact = ensemble[0], ensemble[0] / "artifact"
    done = patchcore("test", str(artifact), "--output", str(tmp_path / "test"))
    assert done.code == 0, done.err
    assert scores_in(tmp_path / "test/scores.csv") == pytest.approx(
        scores_in(folder / "scores.csv"), rel=1e-5
    )
    expected, found = metrics(folder), metrics(tmp_path / "test")
    keys = [key for key in KEYS if key != "seconds" and key in found]
    assert len(keys) > 20 and not {"image_auroc", "aupro", "pixel_auroc"} - {*keys}
    assert found["undefined"] == expected["undefined"]
    for key in keys:
        assert found[key] == (expected[key] and pytest.approx(expected[key], rel=1e-5)), key
    images = [str(x.path) for x in MVTecConfig(root=str(root), category="nut").read().test]
    told = patchcore("predict", str(artifact), *images, "--format", "csv")
    assert told.code == 0, told.err
    (tmp_path / "found.csv").write_text(told.out)
    assert scores_in(tmp_path / "found.csv") == pytest.approx(
        scores_in(folder / "scores.csv"), rel=1e-5
    )


def test_an_ensembles_folder_is_that_of_any_run_and_tells_of_its_members(
    ensemble: tuple[Path, Outcome],
) -> None:
    folder, done = ensemble
    found = metrics(folder)
    members = found.pop("members")
    assert list(found) == [*KEYS, *SUBSETS[:2], "undefined"]
    assert [member["backbone"] for member in members] == ["resnet18", "resnet18"]
    assert [member["metrics"]["memory_patches"] for member in members] == [32, 288]
    assert found["memory_patches"] == 320 and (found["train_images"], found["test_images"]) == (
        4,
        5,
    )
    for key in ("memory_bytes", "memory_used"):
        weights = [1, 1] if key == "memory_bytes" else [0.1, 0.9]
        sums = [w * member["metrics"][key] for w, member in zip(weights, members, strict=True)]
        assert found[key] == pytest.approx(sum(sums))
    assert list(found["seconds"]) == ["extract", "coreset", "scale", "score"]
    for member in members:
        assert list(member) == ["backbone", "metrics", "undefined", "seconds", "scale"]
        assert [*member["metrics"], "seconds"] == KEYS
        assert set(member["undefined"]) == set(MAP_KEYS)
    assert {path.name for path in (folder / "figures").iterdir()} == {
        "curves.png",
        "scores.png",
        "gallery.png",
        "misclassified.png",
    }
    assert "Extracting patch features (member 2 of 2): 100%" in done.err
    assert (
        f"member 2                 image_auroc {members[1]['metrics']['image_auroc']:.4f}"
        in done.out
    )
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert settings["ensemble"]["members"][1]["image"]["crop"] == 48
    # The trackers hold the ensemble's metrics, once.
    with (folder / "csv" / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    for key, value in logged(folder).items():
        assert float(row[key]) == pytest.approx(value, rel=1e-6)


def test_the_report_shows_an_ensemble_beside_a_single_network(
    ensemble: tuple[Path, Outcome], run: tuple[Path, Outcome], tmp_path: Path
) -> None:
    folders = [str(ensemble[0].parent), str(run[0].parent)]
    done = patchcore("report", *folders, "--out", str(tmp_path / "report"))
    assert done.code == 0, done.err
    with (tmp_path / "report" / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert {float(row["image_auroc"]) for row in rows} == {
        metrics(folder)["image_auroc"] for folder in (ensemble[0], run[0])
    }


# --- test sets that lack something ------------------------------------------------------------


def test_nominal_images_only(tmp_path: Path) -> None:
    for i in range(6):
        write_image(tmp_path / "data/nominal" / f"{i}.png", (32, 32), i)
    done = train(tmp_path / "run", "data=folder", f"data.root={tmp_path / 'data'}")
    assert done.code == 0, done.err
    found = metrics(tmp_path / "run")
    images = [key for key in KEYS if key.startswith(("image_", "errors"))]
    pixels = [*PIXEL_KEYS, *MAP_KEYS]
    assert all(found[key] is None for key in images + pixels)
    assert found["undefined"] == {
        **dict.fromkeys(images, "no anomalous images in the test set"),
        **dict.fromkeys(pixels, "no anomalous pixels in the test set"),
    }
    assert (found["train_images"], found["test_images"]) == (5, 1)
    assert "undefined                no anomalous images in the test set: image_auroc" in done.out
    assert len(list((tmp_path / "run/figures").iterdir())) == 3


def test_anomalous_images_without_masks(tmp_path: Path) -> None:
    for i in range(4):
        write_image(tmp_path / "data/nominal" / f"{i}.png", (32, 32), i)
        write_image(tmp_path / "data/broken" / f"{i}.png", (32, 32), 10 + i)
    done = train(
        tmp_path / "run", "data=folder", f"data.root={tmp_path / 'data'}", "data.anomalous=broken"
    )
    assert done.code == 0, done.err
    found = metrics(tmp_path / "run")
    assert 0 <= found["image_auroc"] <= 1 and found["aupro"] is None
    assert set(found["undefined"]) == {*PIXEL_KEYS, *MAP_KEYS}
    assert {*found["undefined"].values()} == {NO_MASKS}


def test_images_of_several_sizes_and_no_bars(tmp_path: Path) -> None:
    for i, size in enumerate([(64, 32), (48, 32), (40, 56), (33, 47), (64, 32)]):
        write_image(tmp_path / "data/nominal" / f"{i}.png", size, i)
        write_image(tmp_path / "data/broken" / f"{i}.png", size, 10 + i)
        write_mask(tmp_path / "data/masks" / f"{i}.png", size)
    done = train(
        tmp_path / "run",
        *("data=folder", f"data.root={tmp_path / 'data'}", "data.batch_size=1"),
        *("data.anomalous=broken", "data.masks=masks", "image.resize=null", "image.crop=null"),
        "image.stretch=false",
        "trainer.enable_progress_bar=false",
    )
    assert done.code == 0, done.err
    assert done.err == ""
    assert metrics(tmp_path / "run")["aupro"] is not None


# --- mistakes ---------------------------------------------------------------------------------


def refused(done: Outcome, folder: Path) -> str:
    """The one line that a mistake gets; and no folder that looks like a finished run."""
    assert done.code == 1
    assert "Traceback" not in done.err + done.out
    assert "Error executing job" not in done.err and "HYDRA_FULL_ERROR" not in done.err
    assert not list(folder.rglob("metrics.json")) and not list(folder.rglob("scores.csv"))
    last = done.err.splitlines()[-1]
    assert done.err.count("error: ") == 1 and last.startswith("error: ")
    return last.removeprefix("error: ")


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["coreset.ratio=2"], "coreset.ratio must be in (0, 1], got 2.0"),
        (["figures=5"], "figures: must be true or false, got 5"),
        (["artifact.weights=2.5"], "artifact.weights: must be true or false, got 2.5"),
        (["index.gpu=2"], "index.gpu: must be true or false, got 2"),
        (["layers.names=[layer9]"], "layers.names: the network has no module 'layer9'; did you"),
        (["layers.names=['7']"], "layers.names: the network has no hierarchy level 7; its levels"),
        (["backbone.name=resnet19"], "backbone.name: timm has no network 'resnet19'; did you mean"),
        (["backbone.weights=tv"], "backbone.weights: timm has no weights 'resnet18.tv'; give one"),
        (["backbone.weights=no.pth"], "backbone.weights: no such file: no.pth"),
        (["backbone=timm"], "backbone.name: timm has no network ''"),
        (["data.root=/no/such"], "data.root: there is no folder /no/such"),
        (["data.category=bolt"], "data.category: "),
        (["trainer.accelerator=abacus"], "trainer: "),
        (
            ["ensemble.members=[{bckbone:{}}]"],
            "ensemble.members: bckbone: there is no such option; did you mean ba",
        ),
        (["ensemble.members=[{},{image:{}}]"], "ensemble.members: member 2 would see a different"),
        (["ensemble.members=[{},{layers:{names:['7']}}]"], "layers.names: the network has no hier"),
        (["ensemble.members=[{}]", "curve=[0.1]"], "curve needs a single memory bank: leave"),
        (["+trainer.max_epoch=2"], "trainer: Trainer.__init__() got an unexpected keyword argu"),
        (
            ["scoring.neighbours=99"],
            "99 neighbours were asked for, but the memory holds 32 patches",
        ),
    ],
)
def test_a_mistaken_setting_gets_one_line(
    overrides: list[str], message: str, root: Path, tmp_path: Path
) -> None:
    done = train(tmp_path / "run", *nut(root), *overrides)
    assert refused(done, tmp_path).startswith(message)


@pytest.mark.parametrize(
    "case", ["no train folder", "empty folder", "stray mask", "train image", "test image", "mask"]
)
def test_a_broken_data_set_gets_one_line_that_names_the_file(case: str, tmp_path: Path) -> None:
    folder = write_mvtec(tmp_path / "data", (40, 36))
    culprit = {
        "no train folder": folder / "train/good",
        "empty folder": folder / "test/scratch",
        "stray mask": folder / "ground_truth/scratch/009_mask.png",
        "train image": folder / "train/good/003.png",
        "test image": folder / "test/scratch/001.png",
        "mask": folder / "ground_truth/scratch/001_mask.png",
    }[case]
    match case:
        case "no train folder":
            culprit.rename(folder / "train/bad")
        case "empty folder":
            for path in culprit.iterdir():
                path.unlink()
        case "stray mask":
            write_mask(culprit, (40, 36))
        case _:
            culprit.write_bytes(culprit.read_bytes()[: culprit.stat().st_size // 2])
    done = train(tmp_path / "run", *nut(tmp_path / "data"))
    assert refused(done, tmp_path).startswith(f"{culprit}: ")


def test_a_truncated_training_image_gets_one_line_from_a_loader_process_too(
    tmp_path: Path,
) -> None:
    culprit = write_mvtec(tmp_path / "data", (40, 36)) / "train/good/003.png"
    culprit.write_bytes(culprit.read_bytes()[:300])
    done = train(tmp_path / "run", *nut(tmp_path / "data"), "logger=csv", "data.workers=1")
    message = refused(done, tmp_path / "run")
    assert (
        message.startswith(f"{culprit}: cannot be read as an image (") and "replace or" in message
    )


def test_a_truncated_test_image_is_all_that_the_installed_command_says(tmp_path: Path) -> None:
    culprit = write_mvtec(tmp_path / "data", (40, 36)) / "test/scratch/001.png"
    culprit.write_bytes(culprit.read_bytes()[:300])
    command = Path(sys.executable).with_name("patchcore").read_text()
    told = execute(
        f"try:\n{indent(command, '    ')}\nexcept SystemExit as end:\n    print(end)",
        *("train", *TINY, *nut(tmp_path / "data"), "logger=csv", "data.workers=1"),
        "trainer.enable_progress_bar=false",
        folder=tmp_path,
    )
    warning, mistake = told.splitlines()
    assert warning.startswith("warning: backbone resnet18 has random weights")
    assert mistake.startswith(f"error: {culprit}: cannot be read as an image")
    assert not list(tmp_path.rglob("metrics.json")) and not list(tmp_path.rglob("scores.csv"))


def test_a_folder_that_cannot_be_made_is_named(root: Path) -> None:
    done = train(Path("/proc/none"), *nut(root))
    assert done.code == 1 and "Traceback" not in done.err
    told = "error: hydra.run.dir: /proc/none: no folder can be made there: choose another\n"
    assert done.err == told


def test_closed_streams_are_no_error(tmp_path: Path) -> None:
    """Whatever the command then opens gets another number than the screen's."""
    program = "from patchcore.commands import main; main()"
    command = [sys.executable, "-c", program, "train", "--cfg", "job"]
    done = subprocess.run(["bash", "-c", '"$@" <&- >&- 2>&-', "bash", *command], check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_PROCID"])
@pytest.mark.parametrize("value", ["abc", "-1", ""])
def test_numbers_of_processes_are_checked_before_libraries_read_them(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    done = patchcore("predict", "MODEL", "IMAGE")
    told = f"error: the environment variable {name} must be a whole number from 0 on, got {value!r}"
    assert done.code == 1 and done.err.startswith(f"{told}: unset it")
    monkeypatch.setenv(name, "0")
    assert "MODEL: is not an artifact" in patchcore("predict", "MODEL", __file__).err


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_a_process_that_is_alone_has_no_other_rank_than_0(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    done = patchcore("predict", "MODEL", "IMAGE")
    told = f"error: the environment variable {name} is 1, but neither torchrun nor srun started"
    assert done.code == 1 and done.err.startswith(told) and done.err.endswith(": unset it\n")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    if name != "SLURM_PROCID":
        assert patchcore("predict", "MODEL", "IMAGE").err.startswith(told)
    for own in ("SLURM_PROCID", "SLURM_LOCALID"):  # as each of several predictions by srun
        monkeypatch.setenv(own, "1")
    assert "MODEL: is not an artifact" in patchcore("predict", "MODEL", __file__).err


def test_a_backend_that_matplotlib_lacks_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "nonsense")

    def main() -> None:
        matplotlib.rcParams["backend"] = os.environ["MPLBACKEND"]  # as its import does

    monkeypatch.setattr("patchcore.commands.report.main", main)
    done = patchcore("report", ".")
    assert done.code == 1 and done.err == (
        "error: the environment variable MPLBACKEND names no backend of matplotlib ('nonsense'): "
        "unset it\n"
    )


def test_names_that_the_streams_cannot_encode_are_written_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, err = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="ascii"))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(err, encoding="ascii"))
    open_streams()
    print("caf\xe9", flush=True)
    print("\u6f22.png", file=sys.stderr, flush=True)
    assert (out.getvalue(), err.getvalue()) == (b"caf\\xe9\n", b"\\u6f22.png\n")


def test_a_misspelt_option_is_all_that_is_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = patchcore("train", "coreset.ratoi=0.1")
    assert done.code == 1 and done.out == ""
    assert (
        done.err == "error: coreset.ratoi: there is no such option; did you mean coreset.ratio?\n"
    )
    assert not list(tmp_path.iterdir())


def test_weights_that_cannot_be_had_are_named_with_two_ways_out(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    done = train(tmp_path / "run", *nut(root), "backbone.weights=tv_in1k")
    message = refused(done, tmp_path)
    for part in ("resnet18.tv_in1k", "backbone.weights=FILE.safetensors", "backbone=embedded"):
        assert part in message


def test_a_bug_keeps_its_traceback(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from patchcore.module import DetectorModule

    monkeypatch.setattr(DetectorModule, "on_train_end", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "run", *nut(root))
    assert not list(tmp_path.rglob("metrics.json"))


def test_in_a_multirun_the_other_jobs_go_on(root: Path, tmp_path: Path) -> None:
    sweep = f"hydra.sweep.dir={tmp_path}"
    done = patchcore("train", "-m", *TINY, *nut(root), "logger=none", "seed=-1,5", sweep)
    assert done.code == 1
    assert "error: 1 of the points failed:" in done.err
    assert "seed must be in [0, 2^32), got -1\n" in done.err
    assert "seed=-1" in done.err
    assert [path.parent.name for path in tmp_path.rglob("metrics.json")] == ["1"]


# --- the command itself -----------------------------------------------------------------------


def test_help_lists_the_commands() -> None:
    for arguments in ([], ["-h"], ["--help"]):
        done = patchcore(*arguments)
        assert done.code == 0 and "train" in done.out and "patchcore COMMAND" in done.out


def test_help_of_a_command_lists_groups_and_settings() -> None:
    done = patchcore("train", "--help")
    assert done.code == 0
    assert re.search(r"^  coreset +all, approximate, greedy, learned, random$", done.out, re.M)
    assert re.search(r"^  logger +csv, mlflow, none, tensorboard, wandb$", done.out, re.M)


def test_help_has_examples_and_fits_on_a_screen() -> None:
    lines = patchcore("--help").out.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    assert any(line.startswith("  patchcore train ") for line in lines)


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    for option in ("-V", "--version"):
        assert patchcore(option).out == f"patchcore {version('patchcore')}\n"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "train"])
def test_a_misspelt_option_of_any_command_gets_one_line(name: str) -> None:
    first = "bash" if name == "completion" else "mvtec" if name == "fetch" else "show"
    done = patchcore(name, *([first, "X"] if name in ("predict", "extend") else [first]), "--hepl")
    assert (done.code, done.out) == (1, "")
    assert done.err == "error: --hepl: there is no such option; did you mean --help?\n"


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("trian", "did you mean train?"),
        ("reports", "did you mean report?"),
        ("xyz", "there is train, test, "),
        ("data=mtd", "options of runs come after patchcore train"),
        ("--multirun", "options of runs come after patchcore train"),
        ("tr\nain", "did you mean train?"),
    ],
)
def test_an_unknown_command_is_named(typed: str, told: str) -> None:
    done = patchcore(typed)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"error: no command {typed!r}; {told}")
    assert done.err.count("\n") == 1


def test_the_wheel_holds_all_settings_and_works_anywhere(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    files = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
    for name in (*files, "patchcore", "conf", "tests"):
        (source / name).symlink_to(REPOSITORY / name)
    build = "from setuptools.build_meta import *; build_sdist('sdist'); build_wheel('wheel')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    with tarfile.open(next((source / "sdist").glob("*.tar.gz"))) as file:
        packed = {Path(name).relative_to(Path(name).parts[0]) for name in file.getnames()}
    with zipfile.ZipFile(next((source / "wheel").glob("*.whl"))) as file:
        file.extractall(site)
    conf = REPOSITORY / "conf"
    shipped = {path.relative_to(site / "patchcore/conf") for path in site.rglob("conf/**/*.yaml")}
    assert shipped == {path.relative_to(conf) for path in conf.rglob("*.yaml")}
    assert (site / "patchcore/py.typed").is_file() and [*site.glob("*/licenses/LICENSE")]
    assert not any(path.parts[:1] == ("tests",) for path in packed)  # nothing to run them on
    assert packed >= {Path("patchcore/conf") / path for path in shipped}
    modules = {path.relative_to(site) for path in site.rglob("*.py")}
    assert modules >= {p.relative_to(REPOSITORY) for p in REPOSITORY.glob("patchcore/**/*.py")}
    # Editable installs come after the program's own folder.
    program = "import patchcore.commands as c; print(c.__file__); c.main()"
    told = execute(program, "train", "--cfg", "job", "coreset=random", folder=site)
    where, *settings = told.splitlines()
    assert where == str(site / "patchcore/commands/__init__.py")
    assert "ratio: 0.1" in "\n".join(settings)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_nearly_the_same_scores(root: Path, tmp_path: Path) -> None:
    scores = {}
    for device in ("cpu", "gpu"):
        folder = tmp_path / device
        done = train(folder, *nut(root), f"trainer={device}", "coreset.ratio=1")
        assert done.code == 0, done.err
        scores[device] = np.genfromtxt(folder / "scores.csv", delimiter=",", skip_header=1)[:, -1]
    assert np.allclose(scores["cpu"], scores["gpu"], rtol=0.02)


@pytest.mark.parametrize("arguments", [["--help"], ["cache", "path"]])
def test_a_closed_pipe_ends_a_command_quietly(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    program = "from patchcore.commands import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(
    ("arguments", "unbuffered"), [(["--help"], ""), (["--help"], "1"), (["cache", "path"], "")]
)
def test_a_full_disk_behind_stdout_is_one_line(arguments: list[str], unbuffered: str) -> None:
    program = "from patchcore.commands import main; main()"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    told = b"error: stdout: No space left on device: make room or choose another folder\n"
    assert (done.returncode, done.stderr) == (1, told)


@pytest.mark.parametrize("command", ["train", "predict", "cache"])
def test_a_current_folder_that_is_gone_is_one_line(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    done = patchcore(command)
    told = (
        "error: the current folder cannot be used (No such file or directory): change to another "
        "(cd)\n"
    )
    assert (done.code, done.out, done.err) == (1, "", told)


def test_too_little_memory_to_load_a_library_is_one_line() -> None:
    """A process of its own gets less than PyTorch takes, as with `ulimit -v`."""
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (3 * 10**8,) * 2); "
        "from patchcore.commands import main; main()"
    )
    for arguments in (["train", "--help"], ["predict", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True
        )
        assert done.returncode == 1
        assert re.fullmatch(
            r"error: there was not enough memory to load a library \(.*failed to map segment.*\): "
            r"raise the limit of memory \(ulimit -v\), or end other programs\n",
            done.stderr,
        )


def test_a_thread_that_cannot_be_started_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def main() -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("patchcore.commands.report.main", main)
    done = patchcore("report", ".")
    assert done.code == 1
    assert done.err.startswith("error: no further thread can be started: raise the limit of memory")
