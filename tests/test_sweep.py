"""Sweeps: the same results from a cache, interrupted, failing, or spread over processes."""

import importlib.util
import json
import os
import pickle
import random
import signal
import time
from contextlib import nullcontext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from hydra import initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError

from patchcore import AllConfig, GreedyConfig, PatchConfig, RandomConfig, ScoringConfig, runner
from patchcore.backbones import Backbone
from patchcore.cache import CacheConfig, Precision, Store
from patchcore.commands.generations import VERSION_BASE, Points
from patchcore.commands.sweep import Conclusion, failures, record_failure
from patchcore.commands.workers import fork_workers
from patchcore.coreset import ApproximateConfig, Projection, SizedConfig, Start
from patchcore.costs import fresh
from patchcore.data.transforms import AugmentConfig
from patchcore.errors import InputError
from patchcore.patches import Mapping
from patchcore.resume import read_provenance
from patchcore.tracking import presets
from tests.composing import remembered
from tests.images import write_image, write_mvtec
from tests.processes import forked_jobs, forkserver
from tests.runs import QUIET, REPOSITORY, TINY, Outcome, config, patchcore

FOUR = ["patch.size=1,3", "coreset.ratio=0.25,0.5"]
TWO = ["patch.size=1,3"]  # the second and the last of the four
LONG = bool(os.environ.get("PATCHCORE_LONG"))
LAUNCHED = TWO if LONG else ["patch.size=3"]  # a process that starts takes longer than its point


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mvtec")
    write_mvtec(root, (40, 36))
    return root


def settings(root: Path, cache: Path, *overrides: str) -> list[str]:
    """`overrides` over what makes runs tiny; each key is given once."""
    given = {override.partition("=")[0].lstrip("+") for override in overrides}
    common = [
        *TINY,
        *("logger=none", "figures=false", "trainer.enable_progress_bar=false"),
        *("data=mvtec", f"data.root={root}", "data.category=nut", "data.batch_size=2"),
        f"cache.root={cache}",
    ]
    return [o for o in common if o.partition("=")[0] not in given] + list(overrides)


def single(
    root: Path,
    cache: Path,
    folder: Path,
    on: bool = False,
    precision: Precision = Precision.float32,
    **groups: Any,
) -> Any:
    """One run, with the cache on or off; its metrics, less the seconds that they took."""
    kept = CacheConfig(enabled=on, root=str(cache), precision=precision)
    return metrics(runner.run(config(root, cache=kept, **groups), folder).folder)


def patches(**settings: Any) -> PatchConfig:
    return PatchConfig(mapping=Mapping.average, **settings)


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


@pytest.mark.parametrize("sampler", [GreedyConfig, ApproximateConfig, RandomConfig])
def test_results_are_equal_with_and_without_the_cache(
    root: Path, tmp_path: Path, sampler: type[SizedConfig]
) -> None:
    cache, coreset = tmp_path / "cache", sampler(ratio=0.5)
    without = single(root, cache, tmp_path / "without", coreset=coreset)
    assert not Store(cache).entries()
    for folder in ("cold", "warm"):
        assert single(root, cache, tmp_path / folder, on=True, coreset=coreset) == without
        scores = (tmp_path / folder / "scores.csv").read_text()
        assert scores == (tmp_path / "without/scores.csv").read_text()


def test_rounded_maps_change_little_and_always_alike(root: Path, tmp_path: Path) -> None:
    rounded = {"on": True, "precision": Precision.bfloat16}
    runs = [single(root, tmp_path, tmp_path / f, **rounded) for f in ("cold", "warm")]
    exact = single(root, tmp_path, tmp_path / "exact")
    assert runs[0] == runs[1]
    assert runs[0]["image_threshold"] == pytest.approx(exact["image_threshold"], rel=0.05)
    assert runs[0]["image_threshold"] != exact["image_threshold"]


def test_the_backbone_runs_once_for_all_that_comes_after_it(root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    single(root, cache, tmp_path / "first", on=True)
    greedy = GreedyConfig(ratio=0.5, projection=Projection.sparse, start=Start.mean)
    changes: list[dict[str, Any]] = [
        {"patch": patches(size=1)},
        {"patch": patches(stride=2)},
        {"coreset": AllConfig()},
        {"coreset": greedy},
        {"scoring": ScoringConfig(reweight=3, sigma=2)},
        {"curve": [0.1]},
    ]
    for i, change in enumerate(changes):
        forward = mock.patch.object(
            Backbone, "forward", autospec=True, side_effect=Backbone.forward
        )
        decode = mock.patch("patchcore.data.dataset.decode_pair", side_effect=AssertionError)
        with forward as calls, decode:
            single(root, cache, tmp_path / str(i), on=True, **change)
        assert calls.call_count == 0


def test_a_larger_ratio_continues_the_order_of_a_smaller(root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    def run(ratio: float, name: str, cache: Path = cache) -> Any:
        return single(root, cache, tmp_path / name, on=True, coreset=GreedyConfig(ratio=ratio))

    run(0.1, "small")
    orders = [e for e in Store(cache).entries() if e.key.startswith("orders/")]
    assert len(orders) == 1
    with mock.patch("patchcore.coreset.greedy.greedy_order", side_effect=AssertionError):
        run(0.05, "smaller")
    continued = run(0.9, "large")
    assert continued == run(0.9, "fresh", tmp_path / "other")
    assert [e.key for e in Store(cache).entries() if "orders/" in e.key] == [orders[0].key]
    with mock.patch("patchcore.coreset.greedy.greedy_order", side_effect=AssertionError):
        run(0.9, "again")


def test_augmented_images_are_never_kept(root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    flip = AugmentConfig(horizontal_flip=True)
    single(root, cache, tmp_path / "run", on=True, augment=flip)
    kinds = [entry.key.partition("/")[0] for entry in Store(cache).entries()]
    assert kinds.count("maps") == kinds.count("images") == 5 and "orders" not in kinds


def test_a_damaged_entry_is_reported_and_rebuilt(root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = single(root, cache, tmp_path / "first", on=True)
    for kind in ("images", "maps", "orders"):
        entry = next(e for e in Store(cache).entries() if e.key.startswith(kind))
        data = bytearray(entry.path.read_bytes())
        data[-40] ^= 1
        entry.path.write_bytes(data)
        with pytest.warns(UserWarning, match=f"{entry.path} is damaged"):
            assert single(root, cache, tmp_path / kind, on=True) == first
        assert Store(cache).get(entry.key) is not None


# --- the ratio curve -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "scoring"),
    [(GreedyConfig, {}), (RandomConfig, {}), (GreedyConfig, {"reweight": 3})],
    ids=["greedy", "random", "reweighted"],
)
def test_one_run_gives_the_metrics_of_every_ratio(
    root: Path, tmp_path: Path, sampler: type[SizedConfig], scoring: dict[str, int]
) -> None:
    def run(name: str, ratio: float, **groups: Any) -> Any:
        groups = {"coreset": sampler(ratio=ratio), "scoring": ScoringConfig(**scoring), **groups}
        return single(root, tmp_path, tmp_path / name, **groups)

    whole = run("curve", 0.5, curve=[0.25, 0.1])
    curve = whole.pop("ratio_curve")
    assert [row["ratio"] for row in curve] == [0.1, 0.25, 0.5]
    assert {key: curve[-1][key] for key in curve[-1] if key != "ratio"}.items() <= whole.items()
    for row in curve:
        ratio = row.pop("ratio")
        assert row.items() <= run(str(ratio), ratio).items()


def test_the_ratio_curve_is_drawn_and_logged_against_the_memory(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    csv = {**presets()["csv"]["csv"], "save_dir": str(folder)}
    trainer = {**QUIET, "log_every_n_steps": 1}
    more = {"figures": True, "logger": {"csv": csv}, "trainer": trainer}
    single(root, tmp_path, folder, curve=[0.1, 0.25], **more)
    assert (folder / "figures/ratio_curve.png").stat().st_size > 5000
    lines = (folder / "csv/metrics.csv").read_text().splitlines()
    columns = lines[0].split(",")
    rows = [dict(zip(columns, line.split(","), strict=True)) for line in lines[1:]]
    logged = [row for row in rows if row["ratio_curve/ratio"]]
    assert [float(row["ratio_curve/ratio"]) for row in logged] == [0.1, 0.25, 0.5]
    assert [row["step"] for row in logged] == ["6", "16", "32"]
    assert all(row["ratio_curve/image_auroc"] for row in logged)


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
    assert "image_auroc: 0.99" in (tmp_path / "again/0/config.yaml").read_text()


def test_only_broken_points_and_other_data_are_computed(root: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_mvtec(data, (40, 36))

    def computed(name: str, root: Path = data, resume: bool = True) -> int:
        """Run two points into a folder; how many were computed."""
        with mock.patch("patchcore.runner.train", wraps=runner.train) as train:
            for size in (1, 3):
                folder = tmp_path / name / str(size)
                single(root, tmp_path / "cache", folder, patch=patches(size=size), resume=resume)
        return train.call_count

    assert computed("sweep") == 2
    (tmp_path / "sweep/3/metrics.json").unlink()  # as if it had been killed
    assert computed("sweep") == 1
    assert computed("sweep") == computed("again") == 0
    write_image(data / "nut/test/good/000.png", (40, 36), 99)  # the same name, another picture
    assert computed("other") == 2
    assert computed("asked", root, resume=False) == 2


def _sweep(root: Path, cache: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    with remembered():
        os._exit(multirun(root, cache, folder, *FOUR).code)


def _start(root: Path, cache: Path, folder: Path) -> BaseProcess:
    process = forkserver().Process(target=_sweep, args=(root, cache, folder))
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
            time.sleep(moments.uniform(0, 0.2))
            process.kill()  # or it has just ended by itself, on a fast machine
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


@pytest.mark.filterwarnings("ignore:coreset.ratio has no effect with coreset.count")
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
    after = settings(root, tmp_path / "cache", f"hydra.run.dir={tmp_path / 'after'}")
    assert patchcore("train", *after).code == 0  # a later run owes nothing to it


def test_points_never_share_a_folder(root: Path, tmp_path: Path) -> None:
    ended = multirun(root, tmp_path, tmp_path / "sweep", *TWO, "hydra.sweep.subdir=same")
    assert ended.code == 1 and "hydra.sweep.subdir=same: several points would" in ended.err
    assert not (tmp_path / "sweep/same").exists()  # before any was run
    apart = multirun(root, tmp_path, tmp_path / "sweep", *TWO, "hydra.sweep.subdir=p${patch.size}")
    assert apart.code == 0, apart.err
    assert {path.name for path in (tmp_path / "sweep").glob("p*")} == {"p1", "p3"}


def test_a_multirun_without_points_is_a_mistake(root: Path, tmp_path: Path) -> None:
    ended = multirun(root, tmp_path, tmp_path / "sweep", "backbone=glob(nothing*)")
    assert ended.code == 1 and "error: the multirun has no points" in ended.err


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
        (tmp_path / "2", "it ended without a message: was it killed?"),
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
        ("hydra_plugins.hydra_submitit_launcher", "launchers", ["submitted", "cpus_per_task=1"]),
        ("hydra_plugins.hydra_ray_launcher", "ray", ["ray_cluster", "ray.remote.num_cpus=1"]),
    ],
    ids=["submitit", "ray"],
)
def test_the_same_sweep_by_any_launcher(
    root: Path, undisturbed: Path, tmp_path: Path, module: str, extra: str, launcher: list[str]
) -> None:
    """The last point, or two at once on one empty cache; joblib's two are in `test_tracking.py`."""
    needs("hydra_plugins", extra)
    needs(module, extra)
    chosen = [f"hydra/launcher={launcher[0]}", f"hydra.launcher.{launcher[1]}"]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    forked = forked_jobs() if "submitit" in module else nullcontext()
    with mock.patch.dict(os.environ, threads), forked:
        done = multirun(root, tmp_path / "cache", tmp_path / "sweep", *LAUNCHED, *chosen)
    assert done.code == 0, done.err
    expected = [point[1:] for point in table(undisturbed)[1 if LONG else 3 :: 2]]
    assert [point[1:] for point in table(tmp_path / "sweep")] == expected
    store = Store(tmp_path / "cache")
    assert all(store.get(entry.key) is not None for entry in store.entries())
    with mock.patch("patchcore.runner.train", side_effect=AssertionError):
        assert multirun(root, tmp_path / "cache", tmp_path / "again", *LAUNCHED).code == 0


@pytest.mark.filterwarnings("ignore")  # of Optuna and its sweeper
def test_a_search_without_trials_is_told(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    search = ["hparams_search=accuracy_seconds", "coreset.ratio=interval(0.1,0.5)"]
    ended = multirun(root, tmp_path, tmp_path / "s", *search, "hydra.sweeper.n_trials=0")
    assert ended.code == 1 and "error: hydra.sweeper.n_trials: no trial was run" in ended.err
    ended = multirun(root, tmp_path, tmp_path / "s", search[1])
    assert ended.code == 1 and "error: interval(…) is for a search, such as" in ended.err


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
    folders = [p.parent for p in (tmp_path / "sweep").glob("*/metrics.json")]
    points = [metrics(folder) for folder in folders]
    assert len(points) == 3 and best["solutions"]
    costs = [point["memory_bytes"] for point in points]
    if second == "seconds":  # what is measured is computed
        assert all(read_provenance(folder)["warm"] == [] for folder in folders)
        assert not Store(tmp_path / "cache").entries()
        told = [read_provenance(folder)["costs"] for folder in folders]
        costs = [fresh(each, "score", metrics=False) for each in told]
    found = [[p["image_auroc"], cost] for p, cost in zip(points, costs, strict=True)]
    assert all(solution["values"] in found for solution in best["solutions"])


@pytest.mark.filterwarnings("ignore")  # of Optuna and its sweeper
def test_a_search_draws_the_same_points_when_it_is_started_again(
    root: Path, tmp_path: Path
) -> None:
    needs("hydra_plugins.hydra_optuna_sweeper", "optuna")
    search = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1"]
    search.append("coreset.ratio=interval(0.2,0.9)")
    for finished in (0, 2):
        done = multirun(root, tmp_path / "cache", tmp_path / "sweep", *search)
        assert done.code == 0, done.err
        assert done.out.count("finished before") == finished
    told = yaml.safe_load((tmp_path / "sweep/0/.hydra/hydra.yaml").read_text())["hydra"]
    assert told["sweeper"]["sampler"]["seed"] == 0


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


@pytest.fixture(scope="module")
def composing() -> tuple[Any, Any]:
    """Hydra's loader, and the settings of a multirun that it has composed."""
    with initialize_config_module("patchcore.conf", **VERSION_BASE):
        loader = GlobalHydra.instance().config_loader()
        given = ["hydra.job.chdir=false", "hydra.sweep.dir=somewhere"]
        return loader, loader.load_configuration("config", given, run_mode=RunMode.MULTIRUN)


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["patch.size=5", "coreset.ratio=0.2", "method.radius=null"],
        ["patch.size=${seed}", "layers.names=[layer2,layer3]", "cache.root='a=b,c'"],
        ["backbone=resnet18", "backbone.weights=none", "seed=4"],
        ["coreset.ratio=0.2", "patch=reference", "+trainer.callbacks=[]", "scoring.neighbours=2"],
        ["hydra.job.name=other", "seed=3"],
        ["~trainer.enable_progress_bar", "++data.root=x", "seed=3"],
    ],
)
def test_a_points_settings_are_those_that_hydra_composes(
    composing: tuple[Any, Any], more: list[str]
) -> None:
    loader, master = composing
    points = Points(loader)
    overrides = ["figures=false", "image.size=64", *more]
    points.load_sweep_config(master, ["figures=false", "image.size=32", "seed=9"])
    plain = loader.load_sweep_config(master, overrides)
    for _ in range(2):  # once to be checked, once to be run
        made = points.load_sweep_config(master, overrides)
        assert OmegaConf.to_yaml(made) == OmegaConf.to_yaml(plain)
        assert made._metadata == plain._metadata
        with pytest.raises(ConfigAttributeError):
            made.nothing = 1
        made.seed = 77  # Hydra and the run may change it


def test_points_that_choose_alike_are_composed_once(composing: tuple[Any, Any]) -> None:
    loader, master = composing
    points = Points(loader)
    read = ConfigLoaderImpl.load_sweep_config
    with mock.patch.object(ConfigLoaderImpl, "load_sweep_config", autospec=True) as composed:
        composed.side_effect = read
        for size in ("1", "3"):
            for mapping in ("patch=average", "patch=reference"):
                points.load_sweep_config(master, [mapping, f"patch.size={size}"])
    assert composed.call_count == 2
    assert points.list_groups("backbone") == loader.list_groups("backbone")
    elsewhere = pickle.loads(pickle.dumps(points))  # as joblib sends it
    assert isinstance(elsewhere, Points) and not elsewhere._composed
    assert elsewhere.load_sweep_config(master, ["seed=7"]).seed == 7


def test_settings_of_points_that_have_ended_are_let_go(root: Path, tmp_path: Path) -> None:
    ends: list[Any] = []
    own = Conclusion.on_job_end

    def remember(self: Conclusion, config: Any, job_return: Any, **kwargs: Any) -> None:
        own(self, config, job_return, **kwargs)
        ends.append(job_return)
        assert job_return.cfg is not None  # for other callbacks

    with mock.patch.object(Conclusion, "on_job_end", remember):
        ended = multirun(root, tmp_path, tmp_path / "sweep", "seed=0,1,2", "hydra.job.name=x")
    assert ended.code == 0, ended.err
    assert [end.cfg is None for end in ends] == [True, True, False]
    assert [end.hydra_cfg is None for end in ends] == [True, True, False]


@pytest.mark.parametrize("killed", [False, True], ids=["copied", "anew"])
def test_processes_of_joblib_begin_without_ctrl_c(killed: bool) -> None:
    joblib = pytest.importorskip("joblib", reason="needs the extra launchers")
    from joblib.externals.loky import get_reusable_executor

    forkserver()
    fork_workers()
    own = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    look = joblib.delayed(signal.pthread_sigmask)(signal.SIG_BLOCK, [])
    gone = mock.patch("multiprocessing.popen_forkserver.Popen.__init__", side_effect=EOFError)
    try:
        with gone if killed else nullcontext():
            assert joblib.Parallel(n_jobs=2)([look, look]) == [{*own, signal.SIGINT}] * 2
    finally:
        get_reusable_executor().shutdown(wait=True)
    assert signal.SIGINT not in own == signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_of_many_compositions_the_last_are_kept(
    composing: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Points, "MOST", 2)
    points = Points(composing[0])
    for name in ("average", "reference", "p3_to_384"):
        assert points.load_sweep_config(composing[1], [f"patch={name}"])
    assert list(points._composed) == [("patch=p3_to_384",)]


@pytest.mark.parametrize("wrong", ["patch.sise=3", "patch.size=three", "seed=[1", "nothing=3"])
def test_mistakes_are_told_as_hydra_tells_them(composing: tuple[Any, Any], wrong: str) -> None:
    loader, master = composing
    told = []
    for each in (loader, Points(loader)):
        with pytest.raises(HydraException) as error:
            each.load_sweep_config(master, ["seed=1", wrong])
        told.append(str(error.value))
    assert told[0] == told[1]


def test_a_multirun_composes_its_files_once(root: Path, tmp_path: Path) -> None:
    read = ConfigLoaderImpl.load_sweep_config
    with mock.patch.object(ConfigLoaderImpl, "load_sweep_config", autospec=True) as composed:
        composed.side_effect = read
        ended = multirun(root, tmp_path, tmp_path / "sweep", *TWO)
    assert ended.code == 0, ended.err
    assert composed.call_count == 1  # both choose alike
