"""A sweep with seeds and failing points, interrupted once and continued, as W&B's files tell it."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from patchcore import runner
from patchcore.commands import Stopped
from patchcore.dashboard.offline import offline_runs, relocate
from patchcore.tracking.multirun import overview
from tests.images import write_mvtec
from tests.run_folders import write_run
from tests.runs import TINY, patchcore
from tests.test_tracking import XDG, Tracked, finished_run, read_wandb

RATIOS, SIZES, SEEDS = ("0.25", "0.5", "2"), ("3",), ("0", "1")  # a share of 2 is refused
if os.environ.get("PATCHCORE_LONG"):  # 24 points that finish, three that fail
    RATIOS, SIZES, SEEDS = ("0.1", "0.2", "0.3", "0.5", "2"), ("1", "3"), ("0", "1", "2")
POINTS = [(float(r), int(p), int(s)) for r in RATIOS for p in SIZES for s in SEEDS]
FINISHED = [number for number, (ratio, _, _) in enumerate(POINTS) if ratio <= 1]
TABLES = {"test_images", "defect_types", "confusion", "score_histogram", "radius_curve"}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("home")
    write_mvtec(home / "data", (40, 36))
    command = ["train", "--multirun", *TINY, "logger=wandb", "trainer.enable_progress_bar=false"]
    command += ["data=mvtec", f"data.root={home / 'data'}", "data.category=nut", "figures=false"]
    command += [f"cache.root={home / 'cache'}", f"hydra.sweep.dir={home / 'sweeps/a/b'}"]
    command += [f"coreset.ratio={','.join(RATIOS)}", f"patch.size={','.join(SIZES)}"]
    command += [f"seed={','.join(SEEDS)}"]
    calls = []

    def interrupted(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise Stopped(2)
        return test(*arguments)  # type: ignore[arg-type]

    test = runner.test
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"WANDB_MODE": "offline", "HOME": str(home), **XDG}.items():
            patch.setenv(name, value)
        with mock.patch("patchcore.runner.test", interrupted):
            first = patchcore(*command)
        assert first.code == 130, first.err
        stopped = finished_run(home / "sweeps/a/b/1")
        assert stopped.exit_code == 1 and stopped.tags[-1] == "interrupted"
        assert stopped.summary["reason"].startswith("interrupted (SIGINT): ")
        second = patchcore(*command)
    failed = f"{len(POINTS) - len(FINISHED)} of the points failed"
    assert second.code == 1 and failed in second.err, second.err
    yield home / "sweeps/a/b"


@pytest.fixture(scope="module")
def points(sweep: Path) -> list[Tracked]:
    return [finished_run(sweep / str(number)) for number in range(len(POINTS))]


def test_every_point_is_one_run_of_the_group_and_of_one_shape(
    sweep: Path, points: list[Tracked]
) -> None:
    assert {run.group for run in points} == {"a/b"}
    assert len({run.id for run in points}) == len(points)
    keys = ("coreset.ratio", "patch.size", "seed")
    assert [tuple(run.config[key] for key in keys) for run in points] == POINTS
    assert len({frozenset(set(run.config) - {"_wandb"}) for run in map(plain, points)}) == 1
    varied = [key for key, given in zip(keys, (RATIOS, SIZES, SEEDS), strict=True) if given[1:]]
    for run, point in zip(points, POINTS, strict=True):
        values = dict(zip(keys, point, strict=True))
        assert run.name == ", ".join(f"{key}={values[key]:g}" for key in varied)
    for run in points:
        assert run.config["choices.backbone"] == "embedded"
        assert run.config["logger.wandb.offline"] is True
        assert run.tags[:4] == ["mvtec", "nut", "embedded", "patchcore"]


def plain(run: Tracked) -> Tracked:
    """The run without what W&B adds to its configuration for charts."""
    run.config = {key: x for key, x in run.config.items() if not key.startswith("_wandb")}
    return run


def test_finished_points_hold_all_tables_and_failed_ones_their_reason(
    sweep: Path, points: list[Tracked]
) -> None:
    for number in FINISHED:
        run = points[number]
        assert (run.exit_code, run.summary["status"]) == (0, "finished")
        assert set(run.artifacts) >= TABLES
        table = run.table("test_images")
        record = json.loads((sweep / str(number) / "metrics.json").read_text())
        assert len(table["data"]) == record["test_images"]
        assert run.history["progress/test_images"] == record["test_images"]
        kinds = [name for name, kind in run.types.items() if kind == "dataset"]
        assert kinds and run.used == kinds
    assert len({tuple(run.used) for run in points[: len(FINISHED)]}) == 1  # one data set for all
    for number in range(len(FINISHED), len(POINTS)):
        run = points[number]
        reason = (sweep / str(number) / "error.txt").read_text().strip()
        assert (run.exit_code, run.tags[-1]) == (1, "failed")
        assert (run.summary["status"], run.summary["reason"]) == ("failed", reason)
        assert reason == "coreset.ratio must be in (0, 1], got 2.0"


def test_the_multirun_has_one_summary_run(sweep: Path, points: list[Tracked]) -> None:
    run = finished_run(sweep)
    assert (run.job_type, run.group, run.exit_code) == ("sweep", "a/b", 0)
    assert run.id not in {point.id for point in points}
    counts = len(POINTS), len(FINISHED), len(POINTS) - len(FINISHED)
    assert tuple(run.summary[key] for key in ("runs", "finished", "failed")) == counts
    board = run.table("leaderboard")
    rows = [dict(zip(board["columns"], row, strict=True)) for row in board["data"]]
    defined = [row for row in rows if row["image_auroc"] is not None]
    assert {row["coreset.ratio"] for row in defined} == {float(r) for r in RATIOS[:-1]}
    assert all(row["repeats"] == len(SEEDS) for row in defined)
    assert run.summary["best.image_auroc"] == max(row["image_auroc"] for row in defined)
    axes = {axis[0] for axis in run.config["sweep.axes"]}
    assert axes == {"coreset.ratio"} | ({"patch.size"} if SIZES[1:] else set())


def test_points_without_the_metric_have_no_rank(tmp_path: Path) -> None:
    for i in range(3):
        record = {"image_auroc": 0.9, "aupro": 0.5 + i / 10 if i else None}
        write_run(tmp_path / str(i), {"patch.size": 2 * i + 1}, record)
    board = overview(tmp_path, "aupro").tables["leaderboard"]
    rows = [dict(zip(board.columns, row, strict=True)) for row in board.rows]
    assert [(row["rank"], row["aupro"]) for row in rows] == [(1, 0.7), (2, 0.6), (None, None)]


def test_data_sets_are_neither_averaged_nor_ranked_together(tmp_path: Path) -> None:
    for root, quality in (("metal", 0.9), ("wood", 0.5)):
        for size in (1, 3):
            settings = {"data.root": root, "patch.size": size}
            write_run(tmp_path / f"{root}{size}", settings, {"image_auroc": quality + size / 100})
    view = overview(tmp_path)
    factors = [
        dict(zip(view.tables["factors"].columns, row, strict=True))
        for row in view.tables["factors"].rows
    ]
    found = {(row["patch_size"], row["data"]): row["image_auroc"] for row in factors}
    assert found == {
        (size, f"data.root={root}"): pytest.approx(quality + size / 100)
        for root, quality in (("metal", 0.9), ("wood", 0.5))
        for size in (1, 3)
    }
    assert len({row["series"] for row in factors}) == 2
    best = {key: value for key, value in view.numbers.items() if key.startswith("best")}
    assert sorted(best.values()) == pytest.approx([0.53, 0.93])
    assert set(best) == {"best.data 1.image_auroc", "best.data 2.image_auroc"}
    assert "data.root=wood: patch.size=3" in view.best


def test_several_categories_in_one_memory_are_a_point_of_their_own(tmp_path: Path) -> None:
    for number, (category, value) in enumerate((("a", 0.9), ("b", 0.8), (["a", "b"], 0.5))):
        settings = {"data.category": category}
        write_run(tmp_path / str(number), settings, {"image_auroc": value})
    view = overview(tmp_path)
    rows = view.tables["leaderboard"].rows
    joint = "categories=a, b in one memory"
    assert [row[:2] for row in rows] == [[1, "categories=a, b"], [1, joint]]
    best = {key: value for key, value in view.numbers.items() if key.startswith("best")}
    assert best == {
        "best.data 1.image_auroc": pytest.approx(0.85),
        "best.data 2.image_auroc": 0.5,
    }
    assert view.best == f"categories=a, b: all; {joint}: all"


def test_all_runs_stand_beside_the_summary_run_in_one_folder(sweep: Path) -> None:
    beside = {path.name: path for path in (sweep / "wandb").glob("offline-run-*")}
    own = {name for name, path in beside.items() if not path.is_symlink()}
    runs = [next((sweep / str(n)).glob("wandb/offline-run-*")) for n in range(len(POINTS))]
    assert len(own) == 1 and set(beside) - own == {run.name for run in runs}
    for run in runs:
        assert not beside[run.name].readlink().is_absolute()
        assert beside[run.name].resolve() == run.resolve()
    files = offline_runs(sweep)  # none twice, and under their own paths
    assert [file.parent for file in files] == sorted([*runs, *(sweep / "wandb" / x for x in own)])


def test_a_sweep_that_was_moved_is_sent_whole(sweep: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(sweep, copy)
    away = sweep.rename(sweep.with_name("away"))
    try:
        for file in offline_runs(copy):
            before = read_wandb(file)
            assert (relocate(file) > 0) == bool(before.artifacts)
            after = read_wandb(file)
            assert set(after.artifacts) == set(before.artifacts)
            for files in after.artifacts.values():
                assert all(path.is_relative_to(copy) for path in files.values() if path.name)
                assert all(path.is_file() for path in files.values() if path.name)
            assert (after.summary, after.config) == (before.summary, before.config)
    finally:
        away.rename(sweep)
