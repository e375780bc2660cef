"""Trouble with the machine while a run is under way: what is told, and what is left."""

import multiprocessing
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from PIL import Image

from patchcore import runner
from patchcore.commands.mistakes import explain
from patchcore.commands.sweep import failures
from patchcore.data import dataset
from patchcore.report.reading import read_run
from tests.images import write_mvtec
from tests.processes import limited
from tests.runs import TINY, Outcome, config, patchcore


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mvtec")
    write_mvtec(root, (40, 36))
    return root


def train(root: Path, place: Path, *overrides: str) -> Outcome:
    """A tiny run, or a multirun if the overrides say so."""
    several = [each for each in overrides if each.startswith("-")]
    return patchcore(
        *("train", *several, *TINY, "logger=none", "figures=false"),
        *("trainer.enable_progress_bar=false", "data=mvtec", f"data.root={root}"),
        *("data.category=nut", f"cache.root={place / 'cache'}"),
        f"hydra.{'sweep' if several else 'run'}.dir={place / 'run'}",
        *(each for each in overrides if each not in several),
    )


def told(done: Outcome) -> str:
    """The one line that a command ends with."""
    assert done.code == 1 and "Traceback" not in done.err, done.err
    assert done.err.count("error: ") == 1, done.err
    return done.err.splitlines()[-1]


# --- disk -------------------------------------------------------------------------------------

STEPS = [
    "patchcore.runner.write_settings",
    "patchcore.runner.write_provenance",
    "patchcore.report.run.csv.writer",
    "patchcore.runner.write_run",
    "patchcore.runfolder._flush",
    "patchcore.runfolder._list",
]


def contents(folder: Path) -> dict[str, bytes]:
    names = ("config.yaml", "fingerprint.txt", "metrics.json", "provenance.json", "scores.csv")
    return {name: (folder / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has finished."""
    folder = tmp_path_factory.mktemp("finished")
    runner.run(config(root), folder)
    return folder


@pytest.mark.parametrize("step", STEPS)
def test_a_disk_that_is_full_at_any_step_leaves_the_earlier_results(
    root: Path, finished: Path, step: str
) -> None:
    before = contents(finished)
    full = OSError(28, "No space left on device")
    with mock.patch(step, side_effect=full), pytest.raises(OSError, match="No space") as caught:
        runner.run(config(root, seed=1), finished)
    assert str(explain(caught.value)).endswith("make room or choose another folder")
    assert contents(finished) == before and read_run(finished).finished
    assert not [path for path in finished.iterdir() if path.name.startswith(".un")]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 KiB."""
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(tmp_path / "disk")]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield tmp_path / "disk"
    subprocess.run(["umount", "-l", str(tmp_path / "disk")], check=True)


def test_a_disk_that_is_full_is_one_line(root: Path, disk: Path, tmp_path: Path) -> None:
    done = train(root, tmp_path, f"hydra.run.dir={disk / 'run'}")
    assert told(done).endswith("No space left on device: make room or choose another folder")
    assert not list(disk.rglob("metrics.json"))


def test_a_limit_of_the_size_of_files_is_one_line(root: Path, tmp_path: Path) -> None:
    with limited(2000):
        done = train(root, tmp_path, f"hydra.run.dir={tmp_path / 'run'}")
    assert "File too large: raise the limit of a file's size (ulimit -f)" in told(done)


# --- memory and processes ---------------------------------------------------------------------


def _train_in_little_memory(root: Path, place: Path, log: Path) -> None:
    status = Path("/proc/self/status").read_text().split()
    used = int(status[status.index("VmSize:") + 1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)
    log.write_text(told(train(root, place)))


def test_an_image_beyond_the_memory_is_named_with_what_to_lower(tmp_path: Path) -> None:
    write_mvtec(tmp_path, (40, 36))
    Image.new("1", (22_000, 22_000)).save(tmp_path / "nut/train/good/003.png")
    context = multiprocessing.get_context("fork")
    given = (tmp_path, tmp_path, tmp_path / "log")
    process = context.Process(target=_train_in_little_memory, args=given)
    process.start()
    process.join(120)
    assert process.exitcode == 0
    line = (tmp_path / "log").read_text()
    assert "003.png: there is too little memory for its 22000×22000 pixels; lower data.ba" in line
    assert not (tmp_path / "run/metrics.json").exists()


def test_a_loader_that_is_killed_is_one_line(root: Path, tmp_path: Path) -> None:
    us, read = os.getpid(), dataset.decode_pair

    def killed(*args: Any) -> Any:
        if os.getpid() != us:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(*args)

    with mock.patch.object(dataset, "decode_pair", killed):
        done = train(root, tmp_path, "data.workers=1")
    assert told(done).startswith("error: data.workers: a loader process was killed")
    assert not (tmp_path / "run/metrics.json").exists()
    assert train(root, tmp_path, "data.workers=1").code == 0


# --- time -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:coreset.ratio has no effect with coreset.count")
def test_points_that_fail_are_told_whatever_the_clock_says(root: Path, tmp_path: Path) -> None:
    """Clock that jumps back by decades once the multirun has begun, or a file server that is late.

    Points are known by the change of their files, then.
    """
    clock = SimpleNamespace(time=lambda: 4e9)
    with mock.patch("patchcore.commands.sweep.time", clock):
        done = train(root, tmp_path, "--multirun", "+coreset.count=100000")
    assert done.code == 1 and "error: 1 of the points failed" in done.err, done.err
    file = tmp_path / "run/0/.hydra/overrides.yaml"
    before = {file: file.stat().st_mtime_ns}
    assert failures(tmp_path / "run", 4e9, before=before) == []  # of an earlier multirun
    os.utime(file, (1, 1))
    ((point, _),) = failures(tmp_path / "run", 4e9, before=before)
    assert point == tmp_path / "run/0"
