"""Sweeps: the same results from a cache, interrupted, failing, or spread over processes."""

import importlib.util
import json
import os
import random
import re
import signal
import time
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import yaml

from patchcore.backbones import Backbone
from patchcore.cache import Store
from patchcore.commands.sweep import failures, record_failure
from patchcore.errors import InputError
from patchcore.resume import read_provenance
from tests.images import write_image, write_mvtec
from tests.runs import REPOSITORY, TINY, Outcome, patchcore

pytestmark = [
    pytest.mark.filterwarnings("ignore:backbone resnet18 has random weights"),
    pytest.mark.filterwarnings("ignore:Failed experiment"),
]
FOUR = ["patch.size=1,3", "coreset.ratio=0.25,0.5"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mvtec")
    write_mvtec(root, (40, 36))
    return root


def settings(root: Path, cache: Path, *overrides: str) -> list[str]:
    """`overrides` over what makes runs tiny; each key is given once, and none that is not there."""
    given = {override.partition("=")[0].lstrip("+") for override in overrides}
    if not {"coreset=all", "coreset=learned"}.isdisjoint(overrides):
        given.add("coreset.ratio")
    common = [
        *TINY,
        "logger=none",
        "data=mvtec",
        f"data.root={root}",
        "data.category=nut",
        "data.batch_size=2",
        "trainer.enable_progress_bar=false",
        f"cache.root={cache}",
    ]
    return [o for o in common if o.partition("=")[0] not in given] + list(overrides)


def single(root: Path, cache: Path, folder: Path, *overrides: str) -> dict[str, Any]:
    """One run; its metrics, less the seconds that they took."""
    done = patchcore("train", *settings(root, cache, *overrides), f"hydra.run.dir={folder}")
    assert done.code == 0, done.err
    return metrics(folder)


def multirun(root: Path, cache: Path, folder: Path, *overrides: str) -> Outcome:
    sweep = f"hydra.sweep.dir={folder}"
    return patchcore("train", "--multirun", *settings(root, cache, *overrides), sweep)


def metrics(folder: Path) -> dict[str, Any]:
    record = json.loads((folder / "metrics.json").read_text())
    return {key: value for key, value in record.items() if key != "seconds"}


def table(folder: Path) -> list[tuple[list[str], dict[str, Any], str]]:
    """Overrides, metrics and scores of each point of a multirun, in order."""
    points = sorted((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    return [
        (
            [
                override
                for override in yaml.safe_load((point / ".hydra/overrides.yaml").read_text())
                if override.startswith(("patch.size", "coreset.ratio"))
            ],
            metrics(point),
            (point / "scores.csv").read_text(),
        )
        for point in points
    ]


@pytest.fixture(scope="module")
def undisturbed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four points, one after another."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = multirun(root, folder / "cache", folder, *FOUR)
    assert done.code == 0, done.err
    return folder


# --- the cache -------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["greedy", "approximate", "random"])
def test_results_are_equal_with_and_without_the_cache(
    root: Path, tmp_path: Path, sampler: str
) -> None:
    coreset = f"coreset={sampler}"
    without = single(root, tmp_path / "cache", tmp_path / "without", coreset)
    assert not Store(tmp_path / "cache").entries()
    for folder in ("cold", "warm"):
        found = single(root, tmp_path / "cache", tmp_path / folder, coreset, "cache.enabled=true")
        assert found == without
        scores = (tmp_path / folder / "scores.csv").read_text()
        assert scores == (tmp_path / "without/scores.csv").read_text()


def test_rounded_maps_change_little_and_always_alike(root: Path, tmp_path: Path) -> None:
    rounded = ["cache.enabled=true", "cache.precision=bfloat16"]
    runs = [single(root, tmp_path / "cache", tmp_path / f, *rounded) for f in ("cold", "warm")]
    exact = single(root, tmp_path / "cache", tmp_path / "exact")
    assert runs[0] == runs[1]
    assert runs[0]["image_threshold"] == pytest.approx(exact["image_threshold"], rel=0.05)
    assert runs[0]["image_threshold"] != exact["image_threshold"]


def test_the_backbone_runs_once_for_all_that_comes_after_it(root: Path, tmp_path: Path) -> None:
    cache, on = tmp_path / "cache", "cache.enabled=true"
    single(root, cache, tmp_path / "first", on)
    changes = [
        ["patch.size=1"],
        ["patch.stride=2"],
        ["patch.size=3"],
        ["coreset=all"],
        ["coreset.projection=sparse", "coreset.start=mean"],
        ["scoring=reweighted", "scoring.reweight=3", "scoring.sigma=2"],
        ["curve=[0.1]"],
    ]
    for i, change in enumerate(changes):
        forward = mock.patch.object(
            Backbone, "forward", autospec=True, side_effect=Backbone.forward
        )
        decode = mock.patch("patchcore.data.dataset.read_image", side_effect=AssertionError)
        with forward as calls, decode:
            single(root, cache, tmp_path / str(i), on, *change)
        assert calls.call_count == 0


def test_a_larger_ratio_continues_the_order_of_a_smaller(root: Path, tmp_path: Path) -> None:
    cache, on = tmp_path / "cache", "cache.enabled=true"
    single(root, cache, tmp_path / "small", on, "coreset.ratio=0.1")
    orders = [e for e in Store(cache).entries() if e.key.startswith("orders/")]
    assert len(orders) == 1
    with mock.patch("patchcore.coreset.greedy.greedy_order", side_effect=AssertionError):
        single(root, cache, tmp_path / "smaller", on, "coreset.ratio=0.05")
    continued = single(root, cache, tmp_path / "large", on, "coreset.ratio=0.9")
    fresh = single(root, tmp_path / "other", tmp_path / "fresh", on, "coreset.ratio=0.9")
    assert continued == fresh
    assert [e.key for e in Store(cache).entries() if "orders/" in e.key] == [orders[0].key]
    with mock.patch("patchcore.coreset.greedy.greedy_order", side_effect=AssertionError):
        single(root, cache, tmp_path / "again", on, "coreset.ratio=0.9")


def test_augmented_images_are_never_kept(root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    single(root, cache, tmp_path / "run", "cache.enabled=true", "augment=flip")
    kinds = [entry.key.partition("/")[0] for entry in Store(cache).entries()]
    assert kinds.count("maps") == kinds.count("images") == 5 and "orders" not in kinds


def test_a_damaged_entry_is_reported_and_rebuilt(root: Path, tmp_path: Path) -> None:
    cache, on = tmp_path / "cache", "cache.enabled=true"
    first = single(root, cache, tmp_path / "first", on)
    for kind in ("images", "maps", "orders"):
        entry = next(e for e in Store(cache).entries() if e.key.startswith(kind))
        data = bytearray(entry.path.read_bytes())
        data[-40] ^= 1
        entry.path.write_bytes(data)
        with pytest.warns(UserWarning, match=f"{entry.path} is damaged"):
            assert single(root, cache, tmp_path / kind, on) == first
        assert Store(cache).get(entry.key) is not None


# --- the ratio curve -------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["coreset=greedy", "coreset=random", "scoring=reweighted"])
def test_one_run_gives_the_metrics_of_every_ratio(root: Path, tmp_path: Path, change: str) -> None:
    ratios = [0.1, 0.25, 0.5]
    scoring = ["scoring.reweight=3"] if change == "scoring=reweighted" else []
    whole = single(root, tmp_path, tmp_path / "curve", change, *scoring, "curve=[0.25,0.1]")
    curve = whole.pop("ratio_curve")
    assert [row["ratio"] for row in curve] == ratios
    assert {key: curve[-1][key] for key in curve[-1] if key != "ratio"}.items() <= whole.items()
    for row in curve:
        ratio = row.pop("ratio")
        separate = single(
            root, tmp_path, tmp_path / str(ratio), change, *scoring, f"coreset.ratio={ratio}"
        )
        assert row.items() <= separate.items()
    assert (tmp_path / "curve/figures/ratio_curve.png").stat().st_size > 5000
    assert not (tmp_path / "0.5/figures/ratio_curve.png").exists()


def test_the_ratio_curve_is_logged_against_the_memory(root: Path, tmp_path: Path) -> None:
    single(root, tmp_path, tmp_path / "run", "curve=[0.1,0.25]", "logger=csv")
    lines = (tmp_path / "run/csv/metrics.csv").read_text().splitlines()
    columns = lines[0].split(",")
    rows = [dict(zip(columns, line.split(","), strict=True)) for line in lines[1:]]
    logged = [row for row in rows if row["ratio_curve/ratio"]]
    assert [float(row["ratio_curve/ratio"]) for row in logged] == [0.1, 0.25, 0.5]
    assert [row["step"] for row in logged] == ["6", "16", "32"]
    assert all(row["ratio_curve/image_auroc"] for row in logged)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["curve=[0.1,0.6]"], r"curve must lie in \(0, 0.5\], .* got 0.6"),
        (["curve=[0]"], r"curve must lie in \(0, 0.5\]"),
        (["curve=[0.1]", "coreset=learned"], "curve needs coreset=greedy, approximate or random"),
        (["curve=[0.1]", "coreset.count=5"], "curve needs coreset.ratio"),
        (["objectives=[]"], "objectives is empty"),
        (["objectives=[auroc]"], "objectives"),
        (["cache.limit_gib=0"], "cache.limit_gib must be above 0"),
    ],
)
def test_bad_settings_are_named(
    root: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    done = patchcore("train", *settings(root, tmp_path, *overrides), f"hydra.run.dir={tmp_path}")
    assert done.code == 1
    assert re.search(f"^error: {message}", done.err), done.err


# --- resuming --------------------------------------------------------------------------------


def test_a_multirun_started_again_computes_nothing(
    root: Path, undisturbed: Path, tmp_path: Path
) -> None:
    cache = undisturbed / "cache"
    with mock.patch("patchcore.runner.train", side_effect=AssertionError):
        # Another folder, another order, other settings that change no result.
        again = ["patch.size=3,1", "coreset.ratio=0.25,0.5", "data.workers=1"]
        again += ["+paper.image_auroc=0.99"]
        assert multirun(root, cache, tmp_path / "again", *again).code == 0
    first, second = table(undisturbed), table(tmp_path / "again")
    assert [point[1:] for point in second] == [
        point[1:] for point in (first[i] for i in (2, 3, 0, 1))
    ]
    assert (tmp_path / "again/0/resumed_from.txt").read_text().startswith(str(undisturbed))
    assert (tmp_path / "again/0/figures/curves.png").exists()
    assert "image_auroc: 0.99" in (tmp_path / "again/0/config.yaml").read_text()


def test_only_broken_points_and_other_data_are_computed(root: Path, tmp_path: Path) -> None:
    cache, folder = tmp_path / "cache", tmp_path / "sweep"
    data = tmp_path / "data"
    write_mvtec(data, (40, 36))
    points = ["patch.size=1,3"]
    assert multirun(data, cache, folder, *points).code == 0
    (folder / "1/metrics.json").unlink()  # as if it had been killed
    with mock.patch("patchcore.runner.train", side_effect=AssertionError) as train:
        multirun(data, cache, folder, *points)
    assert train.call_count == 1
    assert multirun(data, cache, folder, *points).code == 0
    write_image(data / "nut/test/good/000.png", (40, 36), 99)  # the same name, another picture
    with mock.patch("patchcore.runner.train", side_effect=AssertionError) as train:
        multirun(data, cache, tmp_path / "other", *points)
    assert train.call_count == 2
    with mock.patch("patchcore.runner.train", side_effect=AssertionError) as train:
        multirun(root, cache, tmp_path / "asked", *points, "resume=false")
    assert train.call_count == 2


def _sweep(root: Path, cache: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    os._exit(multirun(root, cache, folder, *FOUR).code)


def _start(root: Path, cache: Path, folder: Path) -> BaseProcess:
    context = get_context("forkserver")
    context.set_forkserver_preload(["patchcore.commands.train", "tests.test_sweep"])
    process = context.Process(target=_sweep, args=(root, cache, folder))
    process.start()
    return process


def test_killed_three_times_it_ends_with_the_same_table(
    root: Path, undisturbed: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    finished: dict[str, Path] = {}  # fingerprint: where it was computed
    moments = random.Random(0)
    for attempt in range(4):
        folder = tmp_path / f"attempt{attempt}"
        process = _start(root, cache, folder)
        if attempt < 3:
            # At a random moment of the point after the next one to finish.
            done, end = len(finished), time.monotonic() + 60
            while time.monotonic() < end and process.is_alive():
                now = {p for p in folder.glob("*/metrics.json")}
                if len(now) > done or (attempt == 0 and (folder / "0/fingerprint.txt").exists()):
                    break
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.5))
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
        process.join(120)
        for record in folder.glob("*/metrics.json"):
            point = record.parent
            name = (point / "fingerprint.txt").read_text().strip()
            if (point / "resumed_from.txt").exists():
                assert finished[name].is_dir()
            else:
                assert name not in finished, "computed twice"
                finished[name] = point
    assert process.exitcode == 0
    assert table(folder) == table(undisturbed)
    assert len(finished) == 4


# --- points that fail ------------------------------------------------------------------------


def test_a_point_that_fails_stops_no_other(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    done = multirun(root, tmp_path / "cache", folder, "+coreset.count=4,100000,5")
    assert done.code == 1
    assert (folder / "0/metrics.json").exists() and (folder / "2/metrics.json").exists()
    assert not (folder / "1/metrics.json").exists()
    assert "error: 1 of the points failed:" in done.err
    reason = "coreset.count must be at most the 64 patches, got 100000"
    assert reason in done.err and f"{folder}/1: " in done.err and "Traceback" not in done.err
    assert (folder / "1/error.txt").read_text() == f"{reason}\n"
    single(root, tmp_path / "cache", tmp_path / "after")  # a later run owes nothing to it


def test_a_bug_leaves_its_traceback_beside_the_point(root: Path, tmp_path: Path) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("by zero")

    with mock.patch("patchcore.runner.train", fail):
        done = multirun(root, tmp_path / "cache", tmp_path / "sweep", "patch.size=1,3")
    assert done.code == 1 and "error: 2 of the points failed:" in done.err
    assert "ZeroDivisionError: by zero" in done.err
    assert "Traceback" in (tmp_path / "sweep/1/error.txt").read_text()


def test_points_that_ended_without_a_word_are_listed(tmp_path: Path) -> None:
    for number in (2, 10, 3):
        folder = tmp_path / str(number) / ".hydra"
        folder.mkdir(parents=True)
        (folder / "overrides.yaml").write_text("- patch=p1\n")
    (tmp_path / "3/metrics.json").write_text("{}")
    record_failure(tmp_path / "10", InputError("coreset.ratio is wrong"))
    assert failures(tmp_path) == [
        (tmp_path / "2", "it ended without a word: killed?"),
        (tmp_path / "10", "coreset.ratio is wrong"),
    ]
    assert failures(tmp_path, since=time.time() + 10) == []


# --- launchers and sweepers ------------------------------------------------------------------


def needs(module: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"needs the extra {extra}: pip install 'patchcore[{extra}]'")


@pytest.mark.filterwarnings("ignore")  # of the launchers' own
@pytest.mark.parametrize(
    ("module", "extra", "launcher"),
    [
        ("hydra_plugins.hydra_joblib_launcher", "launchers", ["processes", "n_jobs=4"]),
        ("hydra_plugins.hydra_submitit_launcher", "launchers", ["submitted", "cpus_per_task=1"]),
        ("hydra_plugins.hydra_ray_launcher", "ray", ["ray_cluster", "ray.remote.num_cpus=1"]),
    ],
    ids=["joblib", "submitit", "ray"],
)
def test_the_same_sweep_by_any_launcher(
    root: Path, undisturbed: Path, tmp_path: Path, module: str, extra: str, launcher: list[str]
) -> None:
    """Four points at once, all on one cache that is empty in the beginning."""
    needs("hydra_plugins", extra)
    needs(module, extra)
    chosen = [f"hydra/launcher={launcher[0]}", f"hydra.launcher.{launcher[1]}"]
    with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": str(torch.get_num_threads())}):
        done = multirun(root, tmp_path / "cache", tmp_path / "sweep", *FOUR, *chosen)
    assert done.code == 0, done.err
    assert table(tmp_path / "sweep") == table(undisturbed)
    store = Store(tmp_path / "cache")
    assert all(store.get(entry.key) is not None for entry in store.entries())
    with mock.patch("patchcore.runner.train", side_effect=AssertionError):
        assert multirun(root, tmp_path / "cache", tmp_path / "again", *FOUR).code == 0


@pytest.mark.filterwarnings("ignore")  # of Optuna and its sweeper
@pytest.mark.parametrize("second", ["seconds", "memory"])
def test_optuna_looks_for_two_objectives(root: Path, tmp_path: Path, second: str) -> None:
    needs("hydra_plugins", "optuna")
    needs("hydra_plugins.hydra_optuna_sweeper", "optuna")
    sweeper = [f"hparams_search=accuracy_{second}", "hydra.sweeper.n_trials=3"]
    space = ["patch.size=1,3", "coreset.ratio=interval(0.2,0.6)"]
    done = multirun(root, tmp_path / "cache", tmp_path / "sweep", *sweeper, *space)
    assert done.code == 0, done.err
    best = yaml.safe_load((tmp_path / "sweep/optimization_results.yaml").read_text())
    points = [json.loads(p.read_text()) for p in (tmp_path / "sweep").glob("*/metrics.json")]
    assert len(points) == 3 and best["solutions"]
    if second == "seconds":  # what is measured is computed
        folders = [p.parent for p in (tmp_path / "sweep").glob("*/metrics.json")]
        assert all(read_provenance(folder)["warm"] == [] for folder in folders)
        assert not Store(tmp_path / "cache").entries()
    costs = [p["memory_bytes"] if second == "memory" else p["seconds"]["score"] for p in points]
    found = [[p["image_auroc"], cost] for p, cost in zip(points, costs, strict=True)]
    assert all(solution["values"] in found for solution in best["solutions"])


def test_every_point_of_the_wandb_sweep_is_a_run(tmp_path: Path) -> None:
    sweep = yaml.safe_load((REPOSITORY / "experiments/sweeps/wandb_sweep.yaml").read_text())
    assert sweep["command"][:2] == ["patchcore", "train"]
    assert sweep["command"][-1] == "${args_no_hyphens}"  # becomes key=value
    generator = np.random.default_rng(0)
    for _ in range(3):
        point = []
        for key, parameter in sweep["parameters"].items():
            if "values" in parameter:
                point.append(f"{key}={generator.choice(parameter['values'])}")
            else:
                point.append(f"{key}={generator.uniform(parameter['min'], parameter['max'])}")
        done = patchcore("train", *sweep["command"][2:-1], *point, "--cfg", "job")
        assert done.code == 0, done.err
        assert sweep["metric"]["name"] == "image_auroc"
