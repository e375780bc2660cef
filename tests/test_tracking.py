"""What the trackers hold after a multirun, read back from their files."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.images import write_mvtec
from tests.runs import TINY, Outcome, installed, patchcore


@dataclass
class Tracked:
    """One W&B run as its file tells it."""

    folder: Path
    id: str = ""
    name: str = ""
    group: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: dict[str, Any] = field(default_factory=dict)  # the last value of each key
    artifacts: dict[str, dict[str, Path]] = field(default_factory=dict)  # {name: {path: file}}
    exit_code: int | None = None  # None: never closed

    def table(self, key: str) -> dict[str, Any]:
        """Columns and data of a logged table."""
        return dict(json.loads(self.artifacts[key][f"{key}.table.json"].read_text()))


def records(path: Path) -> Iterator[bytes]:
    """Records of a .wandb file, in LevelDB's log format: blocks of 32 KiB, records in parts."""
    content, whole = path.read_bytes(), b""
    assert content[:4] == b":W&B"
    place = 7  # after the header
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:  # too short for the head of a record
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


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
                tracked.artifacts[name] = {e.path: Path(e.local_path) for e in entries}
            case "exit":
                tracked.exit_code = record.exit.exit_code
    return tracked


def sweep(folder: Path, *overrides: str) -> tuple[Outcome, list[Path]]:
    """A multirun of the installed command and its jobs' folders."""
    root = folder / "data"
    if not root.exists():
        write_mvtec(root, (40, 36))
    data = ["data=mvtec", f"data.root={root}", "data.category=nut"]
    where = folder / "sweeps" / "today" / "now"
    done = installed(
        *("train", "--multirun", *TINY, *data, *overrides, f"hydra.sweep.dir={where}"),
        cwd=folder,
        env={
            "WANDB_MODE": "offline",
            "WANDB_DATA_DIR": str(folder),
            "WANDB_CACHE_DIR": str(folder),
        },
    )
    return done, sorted(where.glob("[0-9]"))


@pytest.fixture(scope="module", params=["basic", "joblib"])
def jobs(request: Any, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Tracked]]:
    """Folder and W&B run of each of two jobs."""
    folder = tmp_path_factory.mktemp(request.param)
    launcher = [f"hydra/launcher={request.param}"]
    if request.param == "joblib":
        launcher.append("hydra.launcher.n_jobs=2")
    done, folders = sweep(folder, *launcher, "logger=wandb", "coreset.ratio=0.25,0.5")
    assert done.code == 0, done.err
    assert [path.name for path in folders] == ["0", "1"]
    found = []
    for path in folders:
        (file,) = path.glob("wandb/offline-run-*/run-*.wandb")
        found.append((path, read_wandb(file)))
    return found


def test_a_multirun_makes_separate_closed_runs_in_one_group(
    jobs: list[tuple[Path, Tracked]],
) -> None:
    (_, first), (_, second) = jobs
    assert first.id != second.id
    assert first.group == second.group == "today/now"
    assert "coreset.ratio=0.25" in first.name and "coreset.ratio=0.5" in second.name
    assert first.exit_code == second.exit_code == 0
    assert [t.config["coreset"]["ratio"] for _, t in jobs] == [0.25, 0.5]
    assert [t.summary["memory_patches"] for _, t in jobs] == [16, 32]


def test_wandb_holds_settings_and_metrics(jobs: list[tuple[Path, Tracked]]) -> None:
    import yaml

    for folder, tracked in jobs:
        settings = yaml.safe_load((folder / "config.yaml").read_text())
        assert {key: tracked.config[key] for key in settings} == settings
        metrics = json.loads((folder / "metrics.json").read_text())
        for key, value in metrics.items():
            assert tracked.summary[key] == pytest.approx(value), key
        seconds = {f"seconds.{key}": value for key, value in metrics.pop("seconds").items()}
        for key, value in {**metrics, **seconds}.items():
            assert tracked.history[key] == pytest.approx(value, rel=1e-6), key


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


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Settings of a run with W&B and a data set in `tmp_path`."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    write_mvtec(tmp_path, (40, 36))
    data = ["data=mvtec", f"data.root={tmp_path}", "data.category=nut"]
    return [*TINY, *data, "logger=[wandb,csv]", f"hydra.run.dir={tmp_path / 'run'}"]


@pytest.mark.filterwarnings("ignore:backbone resnet18 has random weights")
def test_a_failed_run_is_closed_as_failed(offline: list[str], tmp_path: Path) -> None:
    culprit = tmp_path / "nut/train/good/000.png"
    culprit.write_bytes(b"no image")
    done = patchcore("train", *offline)
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith(f"error: {culprit}: ")
    (file,) = tmp_path.glob("run/wandb/offline-run-*/run-*.wandb")
    assert read_wandb(file).exit_code == 1


@pytest.mark.filterwarnings("ignore:backbone resnet18 has random weights")
def test_nothing_is_opened_for_a_run_that_never_starts(offline: list[str], tmp_path: Path) -> None:
    done = patchcore("train", *offline, "trainer.accelerator=abacus")
    assert done.code == 1 and "error: trainer: " in done.err
    assert not list(tmp_path.rglob("*.wandb"))


def test_an_ensemble_is_one_run_with_its_members_in_the_summary(
    offline: list[str], tmp_path: Path
) -> None:
    members = "ensemble.members=[{},{layers:{names:['1']}}]"
    done = installed("train", *offline, members, cwd=tmp_path)  # its end closes the file
    assert done.code == 0, done.err
    (file,) = tmp_path.glob("run/wandb/offline-run-*/run-*.wandb")
    tracked = read_wandb(file)
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert tracked.exit_code == 0 and len(metrics["members"]) == 2
    assert tracked.history["aupro"] == pytest.approx(metrics["aupro"], rel=1e-6)
    assert tracked.summary["image_auroc"] == metrics["image_auroc"]
    assert tracked.summary["members"] == metrics["members"]
    assert len(tracked.config["ensemble"]["members"]) == 2
