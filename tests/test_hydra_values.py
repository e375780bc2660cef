"""Odd values of Hydra's own settings: one line that begins with the key."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from patchcore.cache import CacheConfig
from patchcore.commands.generations import VERSION_BASE
from patchcore.commands.hydra_values import CONCLUSION, check_cache, check_hydra, check_moved
from patchcore.errors import InputError
from tests.runs import patchcore

JOBLIB = ["hydra/launcher=processes"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [*JOBLIB, "hydra.launcher.n_jobs=0"],
            "hydra.launcher.n_jobs may not be 0: give the number of jobs that run at a time, or -1 "
            "for one a processor",
        ),
        (
            [*JOBLIB, "hydra.launcher.n_jobs=100000"],
            "hydra.launcher.n_jobs must be at most 1,024, got 100,000",
        ),
        (
            ["hydra.run.dir='~/a/${seed}'"],
            "hydra.run.dir: ~/a/0: ~ has no meaning in a settings file or beside references: write "
            "the path in full",
        ),
        (
            ["hydra.sweep.dir='\\${HOME}/a'"],
            "hydra.sweep.dir: ${HOME}/a: $ has no meaning in a settings file or beside references: "
            "write the path in full",
        ),
        *(
            (
                [f"{override}"],
                "hydra.callbacks.conclusion: cannot be removed or replaced, because it tells "
                "points that fail: leave it as it is",
            )
            for override in ("~hydra.callbacks.conclusion", "hydra.callbacks.conclusion=null")
        ),
        (["hydra.sweep.dir="], "hydra.sweep.dir is empty: name a folder; . is the current one"),
        (
            ["hydra.run.dir='s3://b/c'"],
            "hydra.run.dir: s3://b/c is a URL, and URLs are neither read nor written: name a path "
            "of this machine",
        ),
        (["hydra.run.dir="], "hydra.run.dir is empty: name a folder; . is the current one"),
        (
            ["hydra.sweep.subdir="],
            "hydra.sweep.subdir is empty: name a folder for each point, such as ${hydra.job.num}",
        ),
        (
            ["hydra.output_subdir=' '"],
            "hydra.output_subdir is empty: name a folder, such as .hydra",
        ),
        *(
            (
                [f"hydra.output_subdir={inner}"],
                "hydra.output_subdir: must be a folder inside that of the run, got "
                f"{inner}: name one, such as .hydra",
            )
            for inner in (".", "./", "a/..", "..", "../x", "a/../../b", "/x", "//x")
        ),
        *(
            (
                [f"hydra.output_subdir={inner}"],
                f"hydra.output_subdir: {inner}: {first} is a name of results, which a run "
                "replaces: name another folder, such as .hydra",
            )
            for inner, first in (
                ("artifact", "artifact"),
                ("a/../.unfinished/b", ".unfinished"),
                ("config.yaml", "config.yaml"),
                ("figures/a", "figures"),
            )
        ),
        *(
            (
                [f"hydra.job.name={name}"],
                "hydra.job.name: must be a name, not a path, as the log is called NAME.log, got "
                f"{name}",
            )
            for name in ("exp/one", "/one", "one/", "")
        ),
        (
            ["hydra.sweeper.max_batch_size=0"],
            "hydra.sweeper.max_batch_size must be at least 1, or null for all points, got 0",
        ),
        (
            ["hydra.verbose=7"],
            "hydra.verbose must be true, false, or names of loggers ([a,b]), got 7",
        ),
        (["hydra.launcher=x"], "hydra.launcher: choose it by hydra/launcher=NAME, not x"),
        (["hydra.sweeper=null"], "hydra.sweeper: choose it by hydra/sweeper=NAME, not null"),
    ],
)
def test_values_without_meaning_are_refused(overrides: list[str], message: str) -> None:
    with initialize_config_module(config_module="patchcore.conf", **VERSION_BASE):
        composed = compose("config", ["logger=none", *overrides], return_hydra_config=True)
    with pytest.raises(InputError) as caught:
        check_hydra(composed.hydra)
    assert str(caught.value) == message


def test_usual_values_pass() -> None:
    usual = {
        "run": {"dir": "."},
        "sweep": {"dir": "${nope}"},
        "output_subdir": None,
        "job": {"name": "train"},
        "launcher": {"n_jobs": -1},
        "sweeper": {"max_batch_size": None},
        "verbose": ["a"],
        "callbacks": {"conclusion": {"_target_": CONCLUSION}},
    }
    check_hydra(OmegaConf.create(usual))
    check_hydra(OmegaConf.create({**usual, "output_subdir": "./a//b/../c"}))
    with pytest.raises(InputError, match=r"^hydra\.verbose must be true"):
        check_hydra(OmegaConf.create({**usual, "verbose": None}))


def test_they_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from patchcore.commands import main; main()", "train"]
    done = subprocess.run(
        [*command, "logger=none", "hydra.run.dir="], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stderr == "error: hydra.run.dir is empty: name a folder; . is the current one\n"
    assert done.returncode == 1 and [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*JOBLIB, "hydra.launcher.n_jobs=abc"], "hydra.launcher.n_jobs: must be a whole number, "),
        (
            [*JOBLIB, "hydra.launcher.batch_size=0"],
            "hydra.launcher: batch_size must be 'auto' or a positive integer, got: 0: correct its",
        ),
        (
            ["hydra.sweep.dir=m/${seed}"],
            "hydra.sweep.dir: must be the same for all points, got m/0 and m/1: let hydra.sweep",
        ),
        (
            ["hydra.sweep.dir=m/${hydra.job.num}"],
            "hydra.sweep.dir: only hydra.sweep.subdir may hold hydra.job.num, the number of a poi",
        ),
        (["hydra.job.num=abc"], "hydra.job.num: must be a whole number, got abc"),
        (["hydra.job_logging=3"], "hydra.job_logging: must hold settings (KEY: VALUE), such as"),
        (
            ["hydra.job_logging.handlers.file.class=foo.bar"],
            "hydra.job_logging or hydra.hydra_logging: Unable to configure handler 'file' (Cannot",
        ),
        (["hydra=x"], "hydra=x: hydra is no choice: set its keys, such as hydra.run.dir=…"),
        (
            ["artifact=best", "objectives=[image_auroc],[pixel_auroc]"],
            "artifact=best keeps the model that is best by the first objective, which must be the "
            "same for all points, got image_auroc and pixel_auroc: run a multirun for each, or",
        ),
        (
            ["hydra.launcher._target_=a.b"],
            "hydra: Invalid plugin 'a.b': not the hydra_plugins package: choose hydra/launcher=",
        ),
    ],
)
def test_odd_values_are_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    place = f"hydra.sweep.dir={tmp_path}"
    done = patchcore("train", "--multirun", "logger=none", place, "seed=0,1", *arguments)
    assert done.code == 1 and "Traceback" not in done.err
    assert done.err.splitlines()[-1].startswith(f"error: {message}")


def test_each_run_would_have_a_cache_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PATCHCORE_CACHE", raising=False)
    told = r"^cache.root: rel: with hydra.job.chdir=true, each run would have a cache of its own"
    for cache in (CacheConfig(root="/rel"), CacheConfig()):
        check_cache(cache, True)
    check_cache(CacheConfig(root="rel"), None)
    with pytest.raises(InputError, match=told):
        check_cache(CacheConfig(root="rel"), True)
    monkeypatch.setenv("PATCHCORE_CACHE", "rel")
    with pytest.raises(InputError, match=told):
        check_cache(CacheConfig(), True)


def test_relative_paths_that_another_current_folder_hides_are_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, place = tmp_path / "start", tmp_path / "start/run"
    place.mkdir(parents=True)
    (start / "data").mkdir()
    (start / "own.pth").touch()
    monkeypatch.chdir(place)

    def check(chdir: bool | None = True, **settings: Any) -> None:
        check_moved(OmegaConf.create(settings), str(start), chdir)

    member = {"backbone": {"weights": "own.pth"}}
    for key, settings in (
        ("data.root", {"data": {"root": "data"}}),
        ("data.region", {"data": {"region": "own.pth"}}),
        ("backbone.weights", member),
        ("ensemble.members.1.backbone.weights", {"ensemble": {"members": [{}, member]}}),
    ):
        name = "data" if key == "data.root" else "own.pth"
        with pytest.raises(InputError) as caught:
            check(**settings)
        assert str(caught.value) == (
            f"{key}: {name}: with hydra.job.chdir=true, relative paths begin in the folder of the "
            f"run, {place}, where there is none: give a path that begins with /, such as "
            f"{start / name}"
        )
        for chdir in (False, None):
            check(chdir, **settings)
    for root in ("../data", str(start / "data"), "elsewhere", None):
        check(data={"root": root}, backbone={"weights": "none"})
    monkeypatch.chdir(start)
    given = [
        "data=mvtec",
        "data.root=data",
        "data.category=nut",
        "hydra.run.dir=run",
        "logger=none",
    ]
    done = patchcore("train", "backbone=embedded", *given, "hydra.job.chdir=true")
    assert done.code == 1
    assert done.err.startswith("error: data.root: data: with hydra.job.chdir=true, relative paths")


def test_settings_are_shown_resolved(tmp_path: Path) -> None:
    shown = patchcore("train", "--cfg", "job", "--resolve", f"hydra.run.dir={tmp_path / 'new'}")
    assert shown.code == 0, shown.err
    assert f"save_dir: {tmp_path / 'new'}\n" in shown.out and not (tmp_path / "new").exists()
    assert "output_dir: ???" in patchcore("train", "--cfg", "hydra").out
