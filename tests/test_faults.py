"""Kills at random moments: what has finished stays, and the table is as if nothing had happened."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import execute
from tests.soak import point_settings

FAULTS = """
import sys
from tests.faults import main
main(["--launchers", sys.argv[1], "--seed", "1", "--kills", *sys.argv[2:]])
"""
SOAK = """
import sys
from tests.soak import main
main(["--points", sys.argv[1], "--kills", sys.argv[2]])
"""
LONG = "PATCHCORE_LONG" in os.environ
HOURS = 3 if LONG else 0.1
LATE = """
import os, subprocess, time
from patchcore.commands import COMMAND, end_with_parent
command = subprocess.Popen(["true"])  # as if it had started this process, which has another parent
command.wait()
os.environ[COMMAND] = str(command.pid)
end_with_parent()
time.sleep(100)
"""
EARLY = """
import os, signal, sys
from joblib import Parallel, delayed
from patchcore.commands import COMMAND
from patchcore.commands.workers import fork_workers
os.environ[COMMAND] = str(os.getpid())
fork_workers()
Parallel(n_jobs=2)(delayed(print)() for _ in range(2))
os.kill(os.getpid(), signal.SIGKILL)
"""
STOPPED = """
import multiprocessing, os
from joblib import Parallel, delayed
from patchcore.commands import COMMAND
from patchcore.commands.workers import fork_workers
os.environ[COMMAND] = str(os.getpid())
fork_workers()
def work():
    multiprocessing.kept = multiprocessing.RLock()  # as progress bars do
    loader = multiprocessing.Process(target=print, args=("loaded",))
    loader.start()
    loader.join()
    raise KeyboardInterrupt
try:
    Parallel(n_jobs=2)(delayed(work)() for _ in range(2))
except KeyboardInterrupt:  # joblib has killed its processes
    pass
"""


def test_multiruns_killed_at_random_moments_end_with_the_same_table(tmp_path: Path) -> None:
    """Ten kills of one multirun; 200 by hand, over launchers too: `python -m tests.faults`."""
    asked = ("basic,processes", "200") if LONG else ("basic", "10", "--short")
    told = execute(FAULTS, *asked, folder=tmp_path, patience=3600 * HOURS).splitlines()[-1]
    kills = int(re.match(r"(\d+) kills", told)[1])  # type: ignore[index]
    assert kills >= 10 and "tables equal, no finished point computed twice" in told
    print(told)


@pytest.mark.skipif(not LONG, reason="an hour of work: set PATCHCORE_LONG=1")
def test_a_long_multirun_killed_again_and_again(tmp_path: Path) -> None:
    """A thousand points and twenty kills, as `python -m tests.soak` by hand."""
    points, kills = "1000", "20"
    run = execute(SOAK, points, kills, folder=tmp_path, patience=3600 * HOURS)
    told = run.splitlines()[-1]
    assert told.startswith(f"{points} points: ") and "tables equal" in told
    print(told)


@pytest.mark.parametrize("count", [6, 1000, 7])
def test_a_long_multirun_has_as_many_points_as_asked_for(count: int) -> None:
    sizes = [text.count(",") + 1 for text in point_settings(count)]
    assert sizes[0] * sizes[1] * sizes[2] == count


def test_a_process_that_starts_after_the_command_was_killed_ends() -> None:
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True)
    assert done.returncode == 1 and not done.stderr


def test_a_process_that_waits_for_its_first_point_ends_with_the_command() -> None:
    # The pipes of the output are closed once the last process has ended.
    done = subprocess.run([sys.executable, "-c", EARLY], capture_output=True, timeout=200)
    assert done.returncode == -signal.SIGKILL


def test_processes_of_a_command_that_ends_early_start_loaders_and_leave_nothing_behind() -> None:
    done = subprocess.run([sys.executable, "-c", STOPPED], capture_output=True, text=True)
    assert done.returncode == 0 and "loaded" in done.stdout and not done.stderr
