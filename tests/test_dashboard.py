"""Dashboards of a sweep: their specification against a golden file, and what is sent to W&B."""

import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from patchcore import dashboard
from patchcore.dashboard.offline import HEAD, framed, records, relocate, sync
from patchcore.errors import InputError
from tests.run_folders import write_run
from tests.runs import patchcore

pytest.importorskip("wandb_workspaces", reason="needs: pip install 'patchcore[dashboard]'")

GOLDEN = Path(__file__).with_name("dashboard.json")
"""Specification of the sweep below; PATCHCORE_GOLDEN=1 writes it anew."""
VERSION = "0.4.13"  # of wandb-workspaces that wrote the golden file


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ratios, two patch sizes and two seeds, tracked offline."""
    folder = tmp_path_factory.mktemp("day") / "time"
    wandb = {
        "_target_": "pytorch_lightning.loggers.WandbLogger",
        "project": "tiles",
        "entity": "me",
        "group": "day/time",
        "offline": True,
    }
    points = [(r, p, s) for r in (0.01, 0.1) for p in (1, 3) for s in (0, 1)]
    for number, (ratio, size, seed) in enumerate(points):
        overrides: dict[str, Any] = {"coreset.ratio": ratio, "patch.size": size}
        overrides |= {"seed": seed, "logger.wandb": wandb}
        metrics = {"image_auroc": 0.9 + ratio / 10 + size / 1000 + seed / 5000, "test_images": 100}
        metrics |= {"memory_bytes": int(1e6 * ratio), "seconds": {"score": 1.0}}
        write_run(folder / str(number), overrides, metrics)
    return folder


def strings(value: Any) -> Iterator[str]:
    """Every string in a nest of mappings and lists, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from strings(each)


def test_the_specification_is_that_of_the_golden_file(sweep: Path, tmp_path: Path) -> None:
    done = patchcore("dashboard", str(sweep), "--dry-run", "--output", str(tmp_path / "spec.json"))
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "spec.json").read_text())
    if os.environ.get("PATCHCORE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, separators=(",", ":")) + "\n")
    assert (found["entity"], found["project"], found["group"]) == ("me", "tiles", "day/time")
    text = set(strings(found))
    assert {"config:coreset.ratio.value", "config:patch.size.value", "config:seed.value"} <= text
    assert {"summary:image_auroc", "summary:cost.memory_bytes", "summary:cost.seconds"} <= text
    assert {"wandb/line/v0", "wandb/confusion_matrix/v1", "factors", "coreset_ratio"} <= text
    kinds = {"Parallel Coordinates Plot", "Parameter Importance", "Scatter Plot", "Run Comparer"}
    assert kinds <= text and "test_images" in " ".join(text)
    if importlib.metadata.version("wandb-workspaces") != VERSION:
        pytest.skip(f"the golden file is of wandb-workspaces {VERSION}")
    assert found == json.loads(GOLDEN.read_text())


def test_runs_that_are_not_counted_are_named(sweep: Path, tmp_path: Path) -> None:
    shutil.copytree(sweep, tmp_path / "moved")
    (tmp_path / "moved/3/metrics.json").write_text('{"image_auroc": 0.')
    with pytest.warns(UserWarning) as told:
        dashboard.from_folder(tmp_path / "moved")
    (line,) = map(str, (each.message for each in told))
    assert line.startswith(f"{tmp_path / 'moved'}: not counted: 3: damaged: metrics.json: ")


def test_without_output_the_specification_is_printed(sweep: Path) -> None:
    done = patchcore("dashboard", str(sweep), "--dry-run")
    assert done.code == 0 and json.loads(done.out)["report"]["title"] == "Sweep day/time"


def test_settings_are_read_by_their_dotted_keys() -> None:
    from patchcore.dashboard.panels import flat

    assert flat("config:coreset.value.ratio") == "config:coreset.ratio.value"
    assert flat("config:seed.value") == "config:seed.value"
    assert flat(["summary:cost.seconds", {"a": "config.a.value.b.c"}]) == [
        "summary:cost.seconds",
        {"a": "config.a.b.c.value"},
    ]


def test_the_group_is_that_of_any_point_with_settings(sweep: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sweep, tmp_path / "day/time")
    (folder / "7/config.yaml").unlink()
    with pytest.warns(UserWarning, match="not counted: 7: config.yaml is missing"):
        assert dashboard.from_folder(folder).group == "day/time"


@pytest.mark.parametrize("objective", ["image_auroc", "memory_bytes"])
def test_a_group_is_read_from_its_summary_run(objective: str, sweep: Path, tmp_path: Path) -> None:
    from patchcore.tracking.multirun import described, overview

    folder = shutil.copytree(sweep, tmp_path / "day/time")
    for path in folder.glob("*/config.yaml"):
        path.write_text(f"{path.read_text()}objectives: [{objective}]\n")
    local, view = dashboard.from_folder(folder), overview(folder)
    run = mock.Mock(config=json.loads(json.dumps(described(view).config())))
    with mock.patch("wandb.Api") as api:
        api.return_value.runs.return_value = [run]
        found = dashboard.from_wandb("day/time", "", "me", "tiles")
    assert found == local and local.metric == objective
    assert local.metric in view.tables["factors"].columns  # which the charts read
    api.return_value.runs.assert_called_once_with(
        "me/tiles", {"group": "day/time", "jobType": "sweep"}
    )


def test_another_metric_has_curves_where_points_have_it(sweep: Path) -> None:
    """The charts read tables of the summary run, which was ranked by its own metric."""
    from patchcore.dashboard import specification
    from patchcore.tracking.multirun import described, overview

    view = overview(sweep)
    factors = view.tables["factors"]
    assert {"image_auroc", "memory_bytes"} <= set(factors.columns)
    kept = dict(zip(factors.columns, factors.rows[0], strict=True))
    assert (kept["coreset_ratio"], kept["patch_size"]) == (0.01, "1")
    assert kept["image_auroc"] == pytest.approx(0.9021) and kept["memory_bytes"] == 10_000
    told = described(view).config()
    for whole in (True, False):
        if not whole:  # the summary run of an earlier version
            del told["sweep.metrics"]
        run = mock.Mock(config=json.loads(json.dumps(told)))
        with mock.patch("wandb.Api") as api:
            api.return_value.runs.return_value = [run]
            found = dashboard.from_wandb("day/time", "memory_bytes", "me", "tiles")
            assert found.metric == "memory_bytes"
            assert ("factors" in set(strings(specification(found)))) == whole
            own = dashboard.from_wandb("day/time", "image_auroc", "me", "tiles")
            assert "factors" in set(strings(specification(own)))
            if whole:
                with pytest.raises(InputError, match=r"no point has a value of 'aupro'; choose"):
                    dashboard.from_wandb("day/time", "aupro", "me", "tiles")
    local = dashboard.from_folder(sweep, "memory_bytes")
    assert "factors" in set(strings(specification(local)))


def test_a_metric_that_no_point_has_is_told_in_a_line(sweep: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sweep, tmp_path / "day/time")
    for path in folder.glob("*/metrics.json"):
        record = json.loads(path.read_text()) | {"aupro": None, "undefined": {"aupro": "no masks"}}
        path.write_text(json.dumps(record))
    for metric, words in (
        ("aupro", "error: --metric: no point has a value of 'aupro'; choose one of image_auroc,"),
        ("pixel_auroc", "error: metric: no run has 'pixel_auroc'; choose one of image_auroc,"),
    ):
        done = patchcore("dashboard", str(folder), "--dry-run", "--metric", metric)
        assert done.code == 1 and done.err.startswith(words) and done.err.count("\n") == 1


def test_mistakes_are_told_in_a_line(sweep: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "run", {}, {"image_auroc": 1.0, "test_images": 4, "seconds": {}})
    with pytest.raises(InputError, match="not in a W&B group: a dashboard needs a multirun with"):
        dashboard.from_folder(tmp_path)
    with mock.patch("wandb.Api", side_effect=OSError("no\nroute")):
        done = patchcore("dashboard", "nowhere", "--dry-run")
    assert (done.code, done.err) == (
        1,
        "error: nowhere: is no folder, and W&B cannot be asked: no route\n",
    )
    with mock.patch(
        "wandb_workspaces.workspaces.Workspace.save", side_effect=ValueError("no\nkey")
    ):
        done = patchcore("dashboard", str(sweep))
    assert (done.code, done.err) == (
        1,
        "error: W&B: no key; --dry-run prints what would be sent\n",
    )
    with pytest.raises(InputError, match="holds no offline run"):
        sync(tmp_path)


def written(folder: Path, staged: str, padding: int) -> Path:
    """An offline run's file with an artifact of one file, and records longer than a block."""
    from wandb.proto.wandb_internal_pb2 import Record

    record = Record()
    record.artifact.name = "results"
    entry = record.artifact.manifest.contents.add()
    entry.path, entry.local_path = "scores.csv", staged
    record.artifact.description = "x" * padding
    line = Record()
    line.output_raw.line = "y" * 70_000
    file = folder / "wandb/offline-run-1/run-1.wandb"
    file.parent.mkdir(parents=True)
    contents = [line.SerializeToString(), record.SerializeToString(), b"", b"\x08\x01"]
    file.write_bytes(b":W&B\xe1\xbe\x00" + b"".join(framed(contents)))
    assert list(records(file)) == contents
    return file


@pytest.mark.parametrize("padding", [0, 27_900, *range(28_420, 28_440, 3)])
def test_a_moved_run_names_its_files_where_they_are(tmp_path: Path, padding: int) -> None:
    """Whatever the length of a record, and so where the blocks cut it."""
    file = written(tmp_path, "/gone/0/wandb/data/artifacts/staging/tmp1", padding)
    before = file.read_bytes()
    with pytest.raises(InputError, match=r"scores\.csv is sent from it: copy the complete"):
        relocate(file)
    assert file.read_bytes() == before
    here = tmp_path / "wandb/data/artifacts/staging/tmp1"
    here.parent.mkdir(parents=True)
    here.touch()
    assert relocate(file) == 1
    assert str(here).encode() in b"".join(records(file)) and len(list(records(file))) == 4
    assert relocate(file) == 0


def test_damage_is_told_and_a_cut_record_left_out(tmp_path: Path) -> None:
    file = written(tmp_path, "", 0)
    content = file.read_bytes()
    file.write_bytes(content[:-3])
    assert len(list(records(file))) == 3
    damaged = bytearray(content)
    damaged[HEAD + 20] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(InputError, match=f"is damaged at byte {HEAD}"):
        list(records(file))


def test_sync_sends_every_run(tmp_path: Path) -> None:
    file = written(tmp_path, "", 0)
    with mock.patch("subprocess.run") as run:
        run.return_value.returncode = 0
        assert sync(tmp_path) == [file.parent]
        assert run.call_args.args[0][-2:] == ["sync", str(file.parent)]
        run.return_value.returncode = 1
        with pytest.raises(InputError, match="wandb sync failed"):
            sync(tmp_path)
