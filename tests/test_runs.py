"""Runs as their folders and their ends show them: nothing finished is lost, nothing is mixed."""

import contextlib
import csv
import io
import json
import os
import signal
import time
import tomllib
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml
from hydra.errors import MissingConfigException
from tqdm import tqdm

from patchcore.commands import Stopped, stoppable
from patchcore.commands.composed import check_numbers
from patchcore.commands.mistakes import PLUGINS, explain
from patchcore.commands.train import objectives
from patchcore.config import Objective
from patchcore.errors import InputError, warning_line
from patchcore.module import DetectorModule
from patchcore.runfolder import RunFolder
from patchcore.switches import check_switches
from tests.images import write_mvtec
from tests.runs import REPOSITORY, TINY, Outcome, patchcore


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mvtec")
    write_mvtec(root, (40, 36))
    return root


def settings(root: Path, place: Path, *overrides: str) -> list[str]:
    """`overrides` over what makes runs tiny; each key is given once."""
    given = {override.partition("=")[0].lstrip("+") for override in overrides}
    common = [
        *TINY,
        *("logger=none", "figures=false", "trainer.enable_progress_bar=false"),
        *("data=mvtec", f"data.root={root}", "data.category=nut", "data.batch_size=2"),
        f"cache.root={place / 'cache'}",
    ]
    return [o for o in common if o.partition("=")[0] not in given] + list(overrides)


def run(root: Path, place: Path, *overrides: str) -> Outcome:
    folder = f"hydra.run.dir={place / 'run'}"
    return patchcore("train", *settings(root, place, *overrides), folder)


def sweep(root: Path, place: Path, *overrides: str, name: str = "sweep") -> Outcome:
    folder = f"hydra.sweep.dir={place / name}"
    return patchcore("train", "--multirun", *settings(root, place, *overrides), folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Files of a run and their contents, without Hydra's own."""
    names = ("config.yaml", "fingerprint.txt", "metrics.json", "scores.csv")
    files = [*(folder / name for name in names), *folder.glob("figures/*")]
    return {path.name: path.read_bytes() for path in files}


# --- one folder, one run ----------------------------------------------------------------------


def test_a_start_that_fails_leaves_what_was_finished(root: Path, tmp_path: Path) -> None:
    assert run(root, tmp_path, "figures=true").code == 0
    before = contents(tmp_path / "run")
    assert len(before) == 8
    mistakes = ["coreset.ratio=1.5", "scoring.neighbours=99", "data.category=bolt", "seed=-1"]
    for mistake in mistakes:
        done = run(root, tmp_path, mistake)
        assert done.code == 1 and done.err.count("error: ") == 1, done.err
        assert contents(tmp_path / "run") == before, mistake
    for error in (ZeroDivisionError, KeyError):  # bugs
        with (
            mock.patch.object(DetectorModule, "on_train_end", side_effect=error),
            pytest.raises(error),
        ):
            run(root, tmp_path, "seed=5")
        assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("which", ["all", "wrong"])
def test_files_in_the_places_of_pictures_are_refused_before_the_work(
    root: Path, tmp_path: Path, which: str
) -> None:
    pictures = f"pictures={which}"
    assert run(root, tmp_path, "pictures=all").code == 0
    made = sorted((tmp_path / "run/figures/images").rglob("*.png"))
    other = tmp_path / "other/run" / made[0].relative_to(tmp_path / "run")
    other.parent.mkdir(parents=True)
    other.write_text("mine")
    with mock.patch("patchcore.runner.train", side_effect=AssertionError):
        done = run(root, tmp_path / "other", "seed=3", pictures)
    assert done.code == 1 and f"error: {other}: would be replaced" in done.err
    assert other.read_text() == "mine"


def test_a_multirun_that_fails_leaves_what_was_finished_and_lists_it(
    root: Path, tmp_path: Path
) -> None:
    assert sweep(root, tmp_path, "seed=0,1").code == 0
    before = [contents(tmp_path / "sweep" / n) for n in "01"]
    away = tmp_path / "away"
    away.mkdir()
    done = sweep(away, tmp_path, "seed=0,1")
    assert done.code == 1 and "error: 2 of the points failed" in done.err
    assert done.err.count(f"data.category: {away} has no category") == 1  # of both points
    assert [contents(tmp_path / "sweep" / n) for n in "01"] == before
    done = sweep(root, tmp_path, "seed=0,1")
    assert done.code == 0 and done.out.count("finished before") == 2
    assert not list((tmp_path / "sweep").rglob("error.txt"))


def test_a_folder_used_again_holds_nothing_of_the_run_before(root: Path, tmp_path: Path) -> None:
    assert run(root, tmp_path, "figures=true", "curve=[0.25]", "logger=csv").code == 0
    assert (tmp_path / "run/figures/ratio_curve.png").exists()
    (tmp_path / "run/notes.txt").write_text("mine")
    assert run(root, tmp_path, "seed=1", "coreset=random").code == 0
    left = {path.name for path in (tmp_path / "run").iterdir()} - {".hydra", "train.log", ".lock"}
    results = {"config.yaml", "fingerprint.txt", "metrics.json", "provenance.json", "scores.csv"}
    assert left == results | {".checksums", ".contents", "notes.txt"}


def test_default_folders_are_never_shared(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs and two multiruns of one and the same second: the clock stands still."""
    from datetime import datetime

    import hydra.core.utils

    class Still(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr(hydra.core.utils, "datetime", Still)
    monkeypatch.chdir(tmp_path)
    done = patchcore("train", *settings(root, tmp_path), "--cfg", "hydra", "--resolve")
    assert "03-04-05-" in done.out and not list(tmp_path.iterdir())
    for _ in range(2):
        assert patchcore("train", *settings(root, tmp_path)).code == 0
        assert patchcore("train", "-m", *settings(root, tmp_path, "seed=0")).code == 0
    assert len(list(tmp_path.glob("outputs/2026-01-02/03-04-05-*/metrics.json"))) == 2
    assert len(list(tmp_path.glob("multirun/2026-01-02/03-04-05-*"))) == 2
    assert len(list(tmp_path.glob("multirun/*/*/0/metrics.json"))) == 2


@pytest.mark.parametrize("case", ["a file", "below a file", "too long"])
def test_a_folder_that_cannot_be_is_named(root: Path, tmp_path: Path, case: str) -> None:
    (tmp_path / "file").write_text("mine")
    where = {"a file": "file", "below a file": "file/x", "too long": "x" * 300}[case]
    for mode, key in (([], "hydra.run.dir"), (["-m"], "hydra.sweep.dir")):
        given = settings(root, tmp_path, "seed=7", f"{key}={tmp_path / where}")
        done = patchcore("train", *mode, *given)
        last = done.err.splitlines()[-1]
        assert done.code == 1 and last.startswith(f"error: {key}: "), done.err
        assert where in last and "choose a" in last
    assert (tmp_path / "file").read_text() == "mine"


# --- points that are taken over ---------------------------------------------------------------


def test_a_point_taken_over_has_the_pictures_and_trackers_of_its_own_settings(
    root: Path, tmp_path: Path
) -> None:
    assert sweep(root, tmp_path, "seed=0", name="plain").code == 0
    done = sweep(root, tmp_path, "seed=0", "figures=true", name="pictures")
    assert done.code == 0  # computed: there was no picture to take over
    assert len(list((tmp_path / "pictures/0/figures").iterdir())) == 4
    with mock.patch("patchcore.runner.train", side_effect=AssertionError):
        for name, wanted in (("again", "true"), ("without", "false")):
            done = sweep(root, tmp_path, "seed=0", f"figures={wanted}", "logger=csv", name=name)
            assert done.code == 0 and "finished before" in done.out, done.err
        # The same folder once more, with trackers now.
        assert sweep(root, tmp_path, "seed=0", "logger=csv", name="plain").code == 0
    assert len(list((tmp_path / "again/0/figures").iterdir())) == 4
    assert not (tmp_path / "without/0/figures").exists()
    found = json.loads((tmp_path / "again/0/metrics.json").read_text())
    for name in ("again", "without", "plain"):
        head, row = (tmp_path / name / "0/csv/metrics.csv").read_text().splitlines()
        logged = dict(zip(head.split(","), row.split(","), strict=True))
        assert float(logged["image_auroc"]) == pytest.approx(found["image_auroc"])
        written = yaml.safe_load((tmp_path / name / "0/config.yaml").read_text())
        assert "csv" in written["logger"]
        assert written["logger"]["csv"]["save_dir"] == str(tmp_path / name / "0")
    assert not (tmp_path / "plain/0/resumed_from.txt").exists()
    for name in ("pictures", "again"):  # as where no image is misclassified
        (tmp_path / name / "0/figures/misclassified.png").unlink()
    done = sweep(root, tmp_path, "seed=0", "figures=true", name="right")
    assert done.code == 0 and "finished before" in done.out, done.err
    assert len(list((tmp_path / "right/0/figures").iterdir())) == 3


# --- ends from outside ------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("phase", ["training_step", "on_train_end", "test_step"])
def test_a_signal_ends_a_run_with_its_code_and_one_line(
    root: Path, tmp_path: Path, number: signal.Signals, phase: str
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.json").write_text("{}")
    (tmp_path / "run/fingerprint.txt").write_text("0" * 32)
    (tmp_path / "run/.hydra").mkdir()
    (tmp_path / "run/.hydra/config.yaml").write_text("seed: 0")
    before, handlers = _handlers(), []

    def stop(self: DetectorModule, *args: Any) -> None:
        handlers.append(_handlers())
        os.kill(os.getpid(), number)

    closed = mock.patch("patchcore.tracking.finish")
    with mock.patch.object(DetectorModule, phase, stop), closed as finish:
        done = run(root, tmp_path, "logger=csv", "seed=3")
    assert done.code == 128 + number
    assert len(handlers) == 1  # it ended there
    last = done.err.splitlines()[-1]
    assert last.startswith(f"interrupted ({number.name}): the earlier results in ")
    assert last.endswith("start the same command again") and "Traceback" not in done.err
    assert finish.call_args.args[1] is False
    assert (tmp_path / "run/metrics.json").read_text() == "{}"
    assert (tmp_path / "run/.hydra/config.yaml").read_text() == "seed: 0"
    assert not (tmp_path / "run/.unfinished").exists()
    assert _handlers() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, None])
@pytest.mark.parametrize(
    "moment", ["patchcore.keeping.Keeper.settle", "patchcore.runfolder.settle"]
)
@pytest.mark.parametrize("first", [True, False])
def test_a_run_that_has_finished_keeps_its_own_settings(
    root: Path, tmp_path: Path, number: signal.Signals | None, moment: str, first: bool
) -> None:
    if not first:
        assert run(root, tmp_path, "seed=0").code == 0
    folder = tmp_path / "run"

    def ends(*_: Any) -> None:
        if moment.startswith("patchcore.keeping") or (folder / ".finished").exists():
            if number is None:
                raise OSError(5, "I/O error")
            os.kill(os.getpid(), number)

    with mock.patch(moment, ends):
        done = run(root, tmp_path, "seed=7")
    told = done.err.splitlines()[-1]
    if number is None:
        assert done.code == 1 and "I/O error" in told
    else:
        there = f"its results are in {folder}"
        if moment.startswith("patchcore.runfolder"):
            there = "start the same command again to put its results in place"
        assert told == f"interrupted (SIGTERM): the run had finished; {there}"
    with RunFolder(folder):
        pass  # puts them in place
    assert yaml.safe_load((folder / "config.yaml").read_text())["seed"] == 7
    assert "seed=7" in yaml.safe_load((folder / ".hydra/overrides.yaml").read_text())


def test_a_signal_ends_a_multirun_and_tells_what_is_kept(root: Path, tmp_path: Path) -> None:
    original, calls = DetectorModule.on_test_start, []

    def stop(self: DetectorModule) -> None:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self)

    with mock.patch.object(DetectorModule, "on_test_start", stop):
        done = sweep(root, tmp_path, "seed=0,1,2")
    assert done.code == 143 and len(calls) == 2
    kept = f"1 finished point is kept in {tmp_path / 'sweep'}; the same command, started again"
    assert done.err.splitlines()[-1].startswith(f"interrupted (SIGTERM): {kept}")
    again = sweep(root, tmp_path, "seed=0,1,2")
    assert again.code == 0 and again.out.count("finished before") == 1
    ends = mock.patch("patchcore.runner.run", side_effect=lambda *_, **__: os.kill(os.getpid(), 15))
    with ends:
        done = sweep(root, tmp_path, "seed=0,1,2")
    assert done.code == 143 and "(SIGTERM): 3 finished points are kept in " in done.err


@pytest.mark.filterwarnings("ignore:.*the results of another point are replaced")
def test_a_failed_point_over_results_of_an_earlier_start_is_told(
    root: Path, tmp_path: Path
) -> None:
    assert sweep(root, tmp_path, "seed=0,1").code == 0
    done = sweep(root, tmp_path, "seed=0", "scoring.neighbours=1,99")
    failed, reason = tmp_path / "sweep/1", "99 neighbours were asked for"
    assert done.code == 1 and reason in done.err
    told = f"also counted, from other starts in this folder: {failed}"
    assert done.out.splitlines()[-1] == told
    report = patchcore("report", str(tmp_path / "sweep"))
    assert f"counted as before: 1: a later start failed: {reason}" in report.out, report.out
    rows = csv.DictReader((tmp_path / "sweep/report/runs.csv").read_text().splitlines())
    assert [f"a later start failed: {reason}" in row["status"] for row in rows] == [False, True]


def test_a_signal_after_the_results_of_a_point_leaves_no_error_beside_them(
    root: Path, tmp_path: Path
) -> None:
    with mock.patch(
        "patchcore.keeping.Keeper.settle", lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    ):
        done = sweep(root, tmp_path, "seed=0,1")
    assert done.code == 143 and "(SIGTERM): 1 finished point is kept in " in done.err
    assert (tmp_path / "sweep/0/metrics.json").is_file()
    assert not (tmp_path / "sweep/0/error.txt").exists()
    assert not (tmp_path / "sweep/1").exists()


def _handlers() -> list[Any]:
    return [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]


def test_stopped_is_told_with_what_is_kept() -> None:
    stop = Stopped(signal.SIGINT)
    assert str(stop) == "interrupted (SIGINT): start the same command again" and stop.code == 130
    assert not isinstance(stop, Exception | KeyboardInterrupt)


@pytest.mark.parametrize("after", [KeyError, SystemExit])
def test_a_signal_that_a_library_swallows_still_ends_the_command(
    after: type[BaseException],
) -> None:
    with pytest.raises(Stopped) as caught, stoppable():
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)
        raise after("no such option")
    assert caught.value.code == 143


class Finalised:
    """An object during whose end the process is told to stop."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def finalise_by_reference() -> None:
    """Have the process told by a callback that waits for an object's end."""
    weakref.finalize(Stopped(2), os.kill, os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("finalise", [Finalised, finalise_by_reference])
def test_a_signal_is_not_lost_in_a_finaliser(finalise: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    with pytest.raises(Stopped) as caught, stoppable():
        finalise()
        while time.monotonic() < end:  # the signal comes again
            pass
    assert caught.value.code == 143


# --- searches ---------------------------------------------------------------------------------


def test_an_undefined_objective_is_none_for_the_sweeper() -> None:
    record = {
        "image_auroc": 0.5,
        "aupro": None,
        "memory_bytes": 7,
        "seconds": {"extract": 1.0, "score": 2.0},
    }
    look = Objective
    assert objectives(record, [look.image_auroc]) == 0.5
    assert objectives(record, [look.seconds, look.memory_bytes]) == (3.0, 7.0)
    assert objectives(record, [look.score_seconds]) == 2.0
    assert objectives(record, [look.aupro]) is None
    assert objectives(record, [look.image_auroc, look.aupro]) is None
    assert objectives(record, [look.pixel_ap]) is None  # not there at all
    assert objectives({**record, "image_auroc": float("inf")}, [look.image_auroc]) is None


# --- Lightning's switches ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "trainer",
    [
        {"limit_train_batches": 1},  # one batch; 1.0 is all
        {"limit_train_batches": 0.5},
        {"limit_test_batches": 0},
        {"fast_dev_run": 2},
        {"fast_dev_run": True},
        {"overfit_batches": 0.1},
        {"max_steps": 3},
        {"max_time": "00:00:01:00"},
        {"min_epochs": 2},
        {"check_val_every_n_epoch": 3},
        {"check_val_every_n_epoch": None},  # which Lightning does not take alone
        {"val_check_interval": 0.5},
        {"sync_batchnorm": True},
        {"use_distributed_sampler": False},
        {"reload_dataloaders_every_n_epochs": 1},
        {"model_registry": "mine"},
        {"default_root_dir": "here"},
        {"accumulate_grad_batches": 2},
        {"barebones": True},
        {"max_epochs": 0},
        {"max_epochs": -1},
        {"max_epochs": None},
        {"max_epochs": 1.5},
        {"max_epochs": 2},
        {"precision": "16-true"},
        {"precision": "bf16-true"},
        {"precision": 64},
        {"precision": "transformer-engine"},
        {"devices": -1},
        {"devices": 0},
        {"devices": True},
        {"devices": []},
        {"devices": "all"},
        {"num_nodes": 0},
        {"strategy": "ddp"},
        {"plugins": ["x"]},
    ],
)
def test_switches_that_would_change_the_numbers_are_refused(trainer: dict[str, Any]) -> None:
    (key,) = trainer
    with pytest.raises(InputError, match=rf"^trainer\.{key}\b") as caught:
        check_switches(trainer, augmented=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "trainer",
    [
        {},
        {"limit_train_batches": 1.0, "fast_dev_run": False, "overfit_batches": 0.0},
        {"max_epochs": 1, "precision": 32, "devices": "1", "num_nodes": 1, "strategy": "auto"},
        {"precision": "bf16-mixed", "devices": [3], "max_steps": -1},
        {"check_val_every_n_epoch": 1, "val_check_interval": 1.0, "sync_batchnorm": False},
        {"use_distributed_sampler": True, "reload_dataloaders_every_n_epochs": 0},
        {"model_registry": None, "default_root_dir": None},
    ],
)
def test_switches_that_change_nothing_are_accepted(trainer: dict[str, Any]) -> None:
    check_switches(trainer, augmented=False)
    check_switches({**trainer, "max_epochs": 3}, augmented=True)


def test_callbacks_are_kept_and_one_that_ends_early_is_noticed(root: Path, tmp_path: Path) -> None:
    timer = "{_target_:pytorch_lightning.callbacks.Timer,duration:'01:00:00:00',verbose:false}"
    two = ["augment=flip", "trainer.max_epochs=2", f"+trainer.callbacks=[{timer}]"]
    done = run(root, tmp_path, *two)
    assert done.code == 0, done.err
    before = contents(tmp_path / "run")
    assert json.loads(before["metrics.json"])["train_images"] == 8
    with mock.patch("pytorch_lightning.callbacks.Timer.time_elapsed", return_value=1e9):
        done = run(root, tmp_path, *two)
    told = "training images were used, not 8: leave out everything that ends"
    assert done.code == 1 and told in done.err, done.err
    assert contents(tmp_path / "run") == before


@pytest.mark.filterwarnings("ignore:You passed")
def test_a_precision_that_the_device_lacks_is_refused(root: Path, tmp_path: Path) -> None:
    done = run(root, tmp_path, "trainer.precision=16-mixed")
    assert done.code == 1
    told = "error: trainer.precision=16-mixed is not available on this device (cpu): set bf16-mixed"
    assert told in done.err


# --- messages ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": {"b": [0.0, float("nan")]}}, r"a\.b\[1\] must be a finite number, got nan"),
        ({"a": {"sigma": float("-inf")}}, r"a\.sigma must be a finite number, got -inf"),
        ({"a": {"shots_seed": -1}}, r"a\.shots_seed must be in \[0, 2\^32\), got -1"),
        ({"seed": 2**32}, r"seed must be in \[0, 2\^32\), got 4294967296"),
        ({"a": {"count": 10**30}}, r"a\.count must be at most 2,147,483,648 in size"),
        ({"e": [{"image": {"crop": 10**6}}]}, r"e\[0\]\.image\.crop must be at most 65,536"),
        ({"scoring": {"sigma": -1e300}}, r"scoring\.sigma must be at most 1,000 in size"),
    ],
)
def test_numbers_out_of_all_proportion_are_named(value: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        check_numbers(value)


def test_numbers_of_any_use_are_accepted() -> None:
    check_numbers({"seed": 2**32 - 1, "a": [True, None, "nan", -1, 0.5, 2**31]})


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "the folder of the results: No space left on de"),
        (OSError(28, "No space left", "/x/y"), "/x/y: No space left: make room or choose"),
        (PermissionError(13, "No", "/x/y"), "/x/y: No: change its permissions or choose another"),
        (OSError(36, "Too long", "/x/y"), "/x/y: Too long: choose a shorter name"),
        (OSError(20, "No directory", "/x/y"), "/x/y: No directory: choose another path"),
        (PermissionError(13, "Permission denied", "/x"), "/x: Permission denied"),
        (MemoryError(), "data.batch_size: there was not enough memory (MemoryError)"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "data.batch_size: there was not"),
        (RuntimeError("[enforce] can't allocate memory: you"), "data.batch_size: there was not"),
        (OSError(12, "Cannot allocate memory"), "data.batch_size: there was not enough memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "data.workers: a"),
    ],
)
def test_what_the_machine_lacks_is_one_line(error: Exception, message: str) -> None:
    told = explain(error)
    assert told is not None and told.startswith(message) and "\n" not in told


@pytest.mark.parametrize(("file", "extra"), PLUGINS.items())
def test_a_plugin_that_is_missing_is_told_with_its_extra(file: str, extra: str) -> None:
    for options in (None, ["basic"]):  # Hydra tells some of these in another way
        error = MissingConfigException(f"Could not load {file}", file, options)
        told = f"{file}: this plugin of Hydra is not installed: pip install 'patchcore[{extra}]'"
        assert explain(error) == told
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    plugin = {"joblib": "joblib-launcher", "ray": "ray-launcher", "optuna": "optuna-sweeper"}
    name = plugin.get(file.rpartition("/")[2], "submitit-launcher")
    assert f"hydra-{name}" in str(extras["optional-dependencies"][extra])


def test_other_errors_of_files_stay_bugs() -> None:
    assert explain(FileNotFoundError(2, "No such file", "/x")) is None
    assert explain(RuntimeError("shapes differ")) is None


def test_a_warning_begins_a_line_of_its_own_below_a_bar() -> None:
    with mock.patch.object(tqdm, "_instances", weakref.WeakSet()):
        assert warning_line("words") == "warning: words\n"
        with tqdm(total=2, file=io.StringIO()):
            assert warning_line("words") == "\nwarning: words\n"
        assert warning_line("words") == "warning: words\n"
