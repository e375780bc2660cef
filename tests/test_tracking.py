"""Contents of the trackers after a multirun, read back from their files."""

import csv
import io
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from patchcore.cache import Store
from patchcore.commands.names import name_of
from patchcore.commands.targets import build
from patchcore.dashboard.offline import records
from patchcore.errors import InputError
from patchcore.report.words import flatten
from patchcore.subsets import SUBSETS
from patchcore.tracking import moved_loggers, tracking
from patchcore.tracking.wandb import Wandb
from tests.images import write_mvtec
from tests.processes import forkserver
from tests.run_folders import write_run
from tests.runs import TINY, patchcore

XDG = {f"XDG_{name}_HOME": "" for name in ("CACHE", "CONFIG", "DATA")}


@dataclass
class Tracked:
    """One W&B run as its file tells it."""

    folder: Path
    id: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    notes: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: dict[str, Any] = field(default_factory=dict)  # the last value of each key
    artifacts: dict[str, dict[str, Path]] = field(default_factory=dict)  # {name: {path: file}}
    types: dict[str, str] = field(default_factory=dict)  # of the artifacts
    used: list[str] = field(default_factory=list)  # artifacts that it took
    exit_code: int | None = None  # None: never closed

    def table(self, key: str) -> dict[str, Any]:
        """Columns and data of a logged table."""
        return dict(json.loads(self.artifacts[key][f"{key}.table.json"].read_text()))


def read_wandb(path: Path) -> Tracked:
    from wandb.proto.wandb_internal_pb2 import Record

    def unpack(items: Any) -> dict[str, Any]:
        return {
            ".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items
        }

    tracked = Tracked(path.parent)
    for content in records(path):
        record = Record()
        record.ParseFromString(content)
        match record.WhichOneof("record_type"):
            case "run":
                run = record.run
                tracked.id, tracked.name, tracked.group = (
                    run.run_id,
                    run.display_name,
                    run.run_group,
                )
                tracked.job_type, tracked.tags = run.job_type, list(run.tags)
                tracked.notes = run.notes
                tracked.config |= unpack(run.config.update)
            case "config":
                tracked.config |= unpack(record.config.update)
            case "summary":
                tracked.summary |= unpack(record.summary.update)
            case "history":
                tracked.history |= unpack(record.history.item)
            case "artifact":
                name = record.artifact.name.removeprefix(f"run-{tracked.id}-")
                entries = record.artifact.manifest.contents
                tracked.types[name] = record.artifact.type
                if record.artifact.use_after_commit:
                    tracked.used.append(name)
                tracked.artifacts[name] = {e.path: Path(e.local_path) for e in entries}
            case "exit":
                tracked.exit_code = record.exit.exit_code
    return tracked


def finished_run(folder: Path) -> Tracked:
    """The one W&B run below `folder`, as soon as its writer, another process, has closed it."""
    found = folder.glob("wandb/offline-run-*/run-*.wandb")
    (file,) = (path for path in found if not path.parent.is_symlink())  # those are of points
    end = time.monotonic() + 120
    while (tracked := read_wandb(file)).exit_code is None and time.monotonic() < end:
        time.sleep(0.05)
    return tracked


@pytest.mark.parametrize("kind", ["CSVLogger", "TensorBoardLogger"])
def test_a_name_that_leads_out_of_the_run_is_refused(kind: str, tmp_path: Path) -> None:
    def moved(folder: Path = tmp_path, **names: Any) -> Any:
        own = {"_target_": f"pytorch_lightning.loggers.{kind}", "save_dir": str(folder), **names}
        return moved_loggers({"x": own}, tmp_path, tmp_path / "new")["x"]["save_dir"]

    for key, name in (("name", "../../a"), ("version", "a/../.."), ("sub_dir", "/a")):
        with pytest.raises(InputError, match=rf"^logger\.x\.{key}: {name} leads out of the run'"):
            moved(**{key: name})
    assert moved(name="a/b..c", version=3) == moved(name=None) == str(tmp_path / "new")
    assert moved(tmp_path.parent, name="../a") == str(tmp_path.parent)  # a folder of one's own


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A multirun of two jobs by the launcher of a name, in a home of its own; its folder."""
    known: dict[str, Path] = {}

    def get(launcher: str) -> Path:
        if launcher in known:
            return known[launcher]
        folder = tmp_path_factory.mktemp(launcher)
        write_mvtec(folder / "data", (40, 36))
        data = ["data=mvtec", f"data.root={folder / 'data'}", "data.category=nut"]
        chosen = [f"hydra/launcher={launcher}", f"cache.root={folder / 'cache'}"]
        chosen += ["hydra.launcher.n_jobs=2"] if launcher == "processes" else []
        where = folder / "sweeps/today/now"
        forkserver()  # has imported the libraries for joblib's processes, too
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            for name, value in {"WANDB_MODE": "offline", "HOME": str(folder), **XDG}.items():
                patch.setenv(name, value)
            done = patchcore(
                *("train", "--multirun", *TINY, *data, *chosen, "logger=wandb", "artifact=true"),
                *("coreset.ratio=0.25,0.5", f"hydra.sweep.dir={where}"),
            )
        assert done.code == 0, done.err
        assert sorted(path.name for path in where.glob("[0-9]*")) == ["0", "1"]
        known[launcher] = where
        return where

    return get


@pytest.fixture(scope="module", params=["basic", "processes"])
def jobs(request: Any, sweeps: Callable[[str], Path]) -> list[tuple[Path, Tracked]]:
    """Folder and W&B run of each of two jobs."""
    folder = sweeps(request.param)
    return [(path, finished_run(path)) for path in (folder / "0", folder / "1")]


def test_jobs_in_processes_of_their_own_find_the_same(sweeps: Callable[[str], Path]) -> None:
    """Both begin with one cache, which is empty."""

    def found(folder: Path) -> dict[str, Any]:
        record = json.loads((folder / "metrics.json").read_text())
        return {key: value for key, value in record.items() if key != "seconds"}

    one, other = sweeps("basic"), sweeps("processes")
    for name in ("0", "1"):
        assert found(one / name) == found(other / name)
    caches = [
        {entry.key for entry in Store(path.parents[2] / "cache").entries()} for path in (one, other)
    ]
    assert caches[0] == caches[1] != set()


def test_a_multirun_makes_separate_closed_runs_in_one_group(
    jobs: list[tuple[Path, Tracked]],
) -> None:
    (_, first), (_, second) = jobs
    assert first.id != second.id
    assert first.group == second.group == "today/now"
    assert (first.name, second.name) == ("coreset.ratio=0.25", "coreset.ratio=0.5")
    assert [t.config["logger.wandb.offline"] for _, t in jobs] == [True, True]
    assert first.exit_code == second.exit_code == 0
    assert [t.config["coreset.ratio"] for _, t in jobs] == [0.25, 0.5]
    assert [t.config["choices.backbone"] for _, t in jobs] == ["embedded", "embedded"]
    for folder, tracked in jobs:
        assert tracked.job_type == "train"
        assert tracked.tags == ["mvtec", "nut", "embedded", "patchcore"]
        assert tracked.notes.startswith("patchcore train ") and str(folder) in tracked.notes
        assert (tracked.summary["status"], tracked.summary["reason"]) == ("finished", "")
    assert [t.summary["memory_patches"] for _, t in jobs] == [16, 32]


def test_wandb_holds_settings_and_metrics(jobs: list[tuple[Path, Tracked]]) -> None:
    import yaml

    for folder, tracked in jobs:
        settings = flatten(yaml.safe_load((folder / "config.yaml").read_text()))
        assert {key: tracked.config[key] for key in settings} == settings
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics.pop("aupimo") is None and "aupimo" in metrics["undefined"]
        for key, value in flatten(metrics).items():
            assert tracked.summary[key] == value, key  # exact, where Lightning logs float32
            if key.partition(".")[0] not in (*SUBSETS, "undefined"):  # which are tables
                assert tracked.history[key] == pytest.approx(value, rel=1e-6), key


def test_wandb_holds_the_model_with_its_run(jobs: list[tuple[Path, Tracked]]) -> None:
    for folder, tracked in jobs:
        assert tracked.types[f"model-{tracked.id}"] == "model"
        logged = tracked.artifacts[f"model-{tracked.id}"]
        assert set(logged) == {"artifact.yaml", "model.safetensors"}
        for name, copy in logged.items():
            assert copy.read_bytes() == (folder / "artifact" / name).read_bytes()


def test_wandb_holds_curves_pictures_and_the_table_of_errors(
    jobs: list[tuple[Path, Tracked]],
) -> None:
    for _, tracked in jobs:
        for name, columns in (
            ("roc_table", ["fpr", "tpr"]),
            ("precision_recall_table", ["recall", "precision"]),
        ):
            table = tracked.table(name)
            assert table["columns"] == columns and len(table["data"]) >= 3
        gallery = tracked.table("gallery")
        *described, picture = gallery["columns"]
        assert described == ["group", "path", "defect type", "score", "verdict"]
        assert picture == "image and map"
        assert {(row[0], row[2]) for row in gallery["data"]} == {
            ("nominal, highest scores", "good"),
            ("anomalous, lowest scores", "bent"),
            ("anomalous, lowest scores", "scratch"),
        }
        assert len(gallery["data"]) == 5
        for row in gallery["data"]:
            assert row[4] in ("correct", "missed", "false alarm")
            with Image.open(tracked.artifacts["gallery"][row[-1]["path"]]) as image:
                assert image.size == (2 * 32, 32)
        for name in ("curves", "scores", "gallery"):
            drawn = tracked.folder / "files" / tracked.summary[f"figures/{name}.path"]
            assert drawn.is_file()


def test_all_that_wandb_writes_is_in_the_runs_folders(
    jobs: list[tuple[Path, Tracked]],
) -> None:
    sweeps = jobs[0][0].parent
    home = sweeps.parents[2]
    assert not [path for path in home.rglob("*wandb*") if not path.is_relative_to(sweeps)]
    for folder, tracked in jobs:
        for files in tracked.artifacts.values():
            assert all(path.is_relative_to(folder) for path in files.values())


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Settings of a run with W&B and a data set in `tmp_path`."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    write_mvtec(tmp_path, (40, 36))
    data = ["data=mvtec", f"data.root={tmp_path}", "data.category=nut"]
    return [*TINY, *data, "logger=[wandb,csv]", f"hydra.run.dir={tmp_path / 'run'}"]


def test_a_failed_run_is_closed_as_failed(offline: list[str], tmp_path: Path) -> None:
    culprit = tmp_path / "nut/train/good/000.png"
    culprit.write_bytes(b"no image")
    done = patchcore("train", *offline)
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith(f"error: {culprit}: ")
    assert finished_run(tmp_path / "run").exit_code == 1
    assert os.environ["WANDB_MODE"] == "offline" and "WANDB_DATA_DIR" not in os.environ


def test_nothing_is_opened_for_a_run_that_never_starts(offline: list[str], tmp_path: Path) -> None:
    done = patchcore("train", *offline, "trainer.accelerator=abacus")
    assert done.code == 1 and "error: trainer: " in done.err
    assert not list(tmp_path.rglob("*.wandb"))


def test_an_ensemble_is_one_run_with_its_members_in_the_summary(
    offline: list[str], tmp_path: Path
) -> None:
    members = "ensemble.members=[{},{layers:{names:['1']}}]"
    done = patchcore("train", *offline, members)
    assert done.code == 0, done.err
    assert "anonymous" not in done.err  # a warning of W&B about an argument of Lightning
    tracked = finished_run(tmp_path / "run")
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert tracked.exit_code == 0 and len(metrics["members"]) == 2
    assert tracked.history["aupro"] == pytest.approx(metrics["aupro"], rel=1e-6)
    assert tracked.summary["image_auroc"] == metrics["image_auroc"]
    assert tracked.summary["members"] == metrics["members"]
    assert len(tracked.config["ensemble.members"]) == 2


def finished_folder(folder: Path) -> Path:
    """A small finished run without pictures."""
    curve = [{"ratio": 0.5, "memory_patches": 3, "aupro": None}]
    metrics = {"image_auroc": 1.0, "aupro": None, "test_images": 4, "seconds": {"score": 0.5}}
    more = {"undefined": {"aupro": "no masks"}, "ratio_curve": curve}
    write_run(folder, {}, {**metrics, **more})
    rows = ["path,label,defect_type,score", "a,0,good,0.1", "b,0,good,0.2", "'=c,1,'=cut,0.7"]
    (folder / "scores.csv").write_text("\n".join([*rows, "d,1,cut,0.9"]) + "\n")
    return folder


def test_a_run_that_was_finished_before_is_tracked_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = finished_folder(tmp_path / "run")
    chosen = {
        "wandb": {
            "_target_": "pytorch_lightning.loggers.WandbLogger",
            "save_dir": str(folder),
            "name": "n",
            "offline": True,
        },
        "csv": {
            "_target_": "pytorch_lightning.loggers.CSVLogger",
            "save_dir": str(folder),
            "name": None,
            "version": "csv",
        },
        "tensorboard": {
            "_target_": "pytorch_lightning.loggers.TensorBoardLogger",
            "save_dir": str(folder),
            "name": None,
            "version": "tensorboard",
        },
    }
    with tracking(chosen, folder, build) as trackers:
        trackers.start({"seed": 3})
        trackers.track(folder, tested=False)
    tracked = finished_run(folder)
    assert (tracked.exit_code, tracked.name, tracked.config["seed"]) == (0, "n", 3)
    assert tracked.history["image_auroc"] == tracked.summary["image_auroc"] == 1.0
    assert tracked.history["seconds.score"] == tracked.summary["seconds.score"] == 0.5
    assert tracked.history["ratio_curve/memory_patches"] == 3
    assert tracked.table("roc_table")["data"][-1] == [1.0, 1.0]
    text = (folder / "csv/metrics.csv").read_text()
    row = next(csv.DictReader(io.StringIO(text)))
    assert row["image_auroc"] == "1.0" and row["seconds.score"] == "0.5"
    assert list(folder.glob("tensorboard/events*"))


def test_a_mode_that_wandb_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "quux")
    for settings in ({}, {"mode": "offline"}):
        with pytest.raises(InputError, match="environment variable WANDB_MODE must be online"):
            Wandb().more_settings(settings)


@pytest.mark.parametrize("mode", ["offline", "online", "dryrun", "disabled"])
@pytest.mark.parametrize("offline", [True, False])
def test_wandb_runs_in_the_mode_that_the_settings_record(
    mode: str, offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    target = "pytorch_lightning.loggers.WandbLogger"
    chosen = {"w": {"_target_": target, "save_dir": str(tmp_path), "offline": offline}}
    asked = {}

    def init(**given: Any) -> None:
        asked.update(given)
        raise OSError("the network is\nunreachable")

    monkeypatch.setattr("wandb.init", init)
    with (
        pytest.raises(
            InputError, match=r"^logger\.w: cannot start: the network is unreachable; or"
        ),
        tracking(chosen, tmp_path, build) as trackers,
    ):
        trackers.start({"seed": 0})
    wanted = "offline" if offline else "online"
    assert asked["mode"] == ("disabled" if mode == "disabled" else wanted)
    assert os.environ["WANDB_MODE"] == mode


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, ""),
        ({"seed": "1", "coreset.ratio": "0.1"}, "seed=1, coreset.ratio=0.1"),
        ({"data.root": "/a" * 50}, f"data.root=…{('/a' * 50)[-39:]} #7"),
        (
            {f"{'long' * 8}.k{i}": str(i) for i in range(9)},
            ", ".join(f"k{i}={i}" for i in range(9)),
        ),
        ({"a\nb": "x\udce4\n"}, "a\\nb=x\\xe4\\n"),
    ],
)
def test_names_tell_settings_and_fit(settings: dict[str, str], name: str) -> None:
    assert name_of(settings, "7") == name


def test_names_that_are_cut_stay_apart() -> None:
    names = {name_of({f"key{i}": "x" * 30 for i in range(9)}, str(job)) for job in range(20)}
    assert len(names) == 20 and max(map(len, names)) <= 128
