"""Processes killed at random moments of a multirun, over and over: `python -m tests.faults --help`.

A story is one small multirun in a folder and a cache of its own. It is started, and killed at a
random moment by SIGKILL, SIGTERM or SIGINT, several times; after each kill what looks finished has
to be whole. Then the same command is left alone: it has to end with the table of an undisturbed
multirun, and must not have touched any point that had finished before.

Every start is a fork of one process that has imported the package, and so costs little.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from patchcore.artifact_files import check
from patchcore.cache import Store
from patchcore.report.reading import read_run
from patchcore.resume import damage
from patchcore.runfolder import FINISHED, METRICS, MOVING, TRANSIENT
from tests.composing import remembered
from tests.images import write_mvtec

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PATIENCE = 300  # seconds without a sign of a point after which a process counts as hanging
POINTS = ["patch.size=1,3", "coreset.ratio=0.25,0.5"]
TINY = [
    *("image.resize=32", "image.crop=32", "patch=average", "trainer=cpu", "logger=none"),
    *("figures=false", "trainer.enable_progress_bar=false", "data=mvtec", "data.category=nut"),
    *("data.batch_size=2", "artifact=true"),
]
LAUNCHERS = {
    "basic": [],
    "processes": ["hydra/launcher=processes", "hydra.launcher.n_jobs=2"],
}
"""Launchers whose processes end with the command; jobs of a cluster outlive it by design."""


@dataclass
class Usage:
    """Samples of a process while it ran: its memory in bytes, and its open files."""

    samples: list[tuple[int, int]] = field(default_factory=list)

    def sample(self, process: int) -> None:
        """Look at a process that may have ended."""
        try:
            pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
            files = len(os.listdir(f"/proc/{process}/fd"))
        except (OSError, IndexError):
            return
        if pages:  # else it has ended
            self.samples.append((pages * os.sysconf("SC_PAGE_SIZE"), files))


@dataclass
class Ended:
    """One start of the command, and how it ended: as a shell tells it, below 0 by a signal."""

    code: int
    wall: float  # seconds
    cpu: float  # seconds, those of its child processes too, except for the copies of one
    err: str
    usage: Usage


@dataclass
class Sweep:
    """A multirun that can be started again and again."""

    folder: Path
    root: Path
    points: Sequence[str] = tuple(POINTS)
    launcher: str = "basic"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def results(self) -> Path:
        return self.folder / "sweep"

    def command(self) -> list[str]:
        """Arguments of `patchcore`."""
        place = [f"data.root={self.root}", f"cache.root={self.cache}"]
        place.append(f"hydra.sweep.dir={self.results}")
        return ["train", "--multirun", *TINY, *LAUNCHERS[self.launcher], *self.points, *place]

    def run(self, number: int | None = None, moment: Callable[[], bool] = lambda: False) -> Ended:
        """Start the command; send it the signal `number` once `moment` says so."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "stderr.txt"
        began, usage, sent = time.monotonic(), Usage(), False
        looked, state = began, (-1, -1)
        process = _fork(self.command(), self.folder, log)
        ended = 0
        try:
            while True:
                ended, status, spent = os.wait4(process, os.WNOHANG)
                if ended:
                    break
                usage.sample(process)
                if number is not None and not sent and moment():
                    sent = True
                    # The terminal sends Ctrl-C to all processes of a command.
                    (os.killpg if number == signal.SIGINT else os.kill)(process, number)
                if time.monotonic() - looked > PATIENCE:
                    before, state, looked = state, self.state(), time.monotonic()
                    assert state != before, f"it hangs: {log.read_text()}"
                time.sleep(0.005)
        finally:
            if not ended:
                os.killpg(process, signal.SIGKILL)
        _await_orphans(process)
        code = os.waitstatus_to_exitcode(status)
        cpu = spent.ru_utime + spent.ru_stime
        return Ended(code, time.monotonic() - began, cpu, log.read_text(), usage)

    def numbers(self) -> list[Path]:
        """Folders of the points, in their order."""
        there = self.results.iterdir() if self.results.is_dir() else ()
        return sorted((p for p in there if p.name.isdigit()), key=lambda p: int(p.name))

    def finished(self) -> dict[str, tuple[int, int]]:
        """Points with results that count: what names the very file that their metrics are in."""
        found = {}
        for point in self.numbers():
            for place in (point / FINISHED, point / MOVING, point):  # in the order of its moves
                with contextlib.suppress(FileNotFoundError):
                    status = (place / METRICS).stat()
                    found[point.name] = (status.st_ino, status.st_mtime_ns)
                    break
        return found

    def state(self) -> tuple[int, int]:
        """Number of finished points, and when a point was last begun or looked at again, in ns."""
        times = [0]
        for point in self.numbers():
            with contextlib.suppress(FileNotFoundError):
                times.append((point / ".hydra/overrides.yaml").stat().st_mtime_ns)
        return len(self.finished()), max(times)

    def table(self) -> list[tuple[list[str], dict[str, Any], str, bytes]]:
        """Overrides, metrics less seconds, scores and model of each point."""
        rows = []
        for point in self.numbers():
            overrides = yaml.safe_load((point / ".hydra/overrides.yaml").read_text())
            swept = {each.partition("=")[0] for each in self.points}
            record = json.loads((point / METRICS).read_text())
            record.pop("seconds")
            model = (point / "artifact/model.safetensors").read_bytes()
            own = [each for each in overrides if each.partition("=")[0] in swept]
            rows.append((own, record, (point / "scores.csv").read_text(), model))
        return rows

    def check(self) -> None:
        """Fail unless all that looks finished is whole."""
        for point in self.numbers():
            if (point / METRICS).is_file():
                run = read_run(point)
                assert run.finished, f"{point}: {run.problem}"
                assert damage(point) is None, damage(point)
                check(point / "artifact")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of entries that are damaged
            store = Store(self.cache)
            assert all(store.get(entry.key) is not None for entry in store.entries())
        for page in self.results.glob("report/report.html"):
            assert page.read_text().rstrip().endswith("</html>"), f"{page} is cut off"

    def check_tidy(self) -> None:
        """Fail unless nothing unfinished is left."""
        unfinished = (*TRANSIENT, "error.txt")
        left = [p for p in self.results.rglob("*") if p.name in unfinished or p.suffix == ".part"]
        assert left == [], left


def _fork(arguments: list[str], folder: Path, log: Path) -> int:
    """Start the command in a fork of this process, whose group is its own."""
    sys.stdout.flush()
    ready, begun = os.pipe()
    if process := os.fork():
        os.close(begun)
        os.read(ready, 1)  # ends as the child closes it, or ends
        os.close(ready)
        return process
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)  # until the command has its own handlers
        for handle, path in ((1, log.with_name("stdout.txt")), (2, log)):
            with path.open("w") as file:
                os.dup2(file.fileno(), handle)
        os.chdir(folder)
        os.close(ready)
        os.close(begun)
        _command(arguments)
    finally:
        os._exit(99)


def _command(arguments: list[str]) -> None:
    """Run `patchcore` and leave, as its script does."""
    from patchcore.commands import main

    sys.argv, code = ["patchcore", *arguments], 0
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _await_orphans(group: int) -> None:
    """Wait until the other processes of a command have ended, too, by themselves."""
    end = time.monotonic() + PATIENCE
    while _is_alive(group):
        if time.monotonic() > end:
            os.killpg(group, signal.SIGKILL)
            raise AssertionError("processes of the command stay after its end")
        time.sleep(0.05)


def _is_alive(group: int) -> bool:
    """Whether any process of a group runs; those that nobody has waited for do not."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            state, _, own = path.read_text().rpartition(")")[2].split()[:3]
            if int(own) == group and state not in "ZX":
                return True
    return False


# --- stories ----------------------------------------------------------------------------------


@dataclass
class Campaign:
    """Outcome of many kills.

    Attributes:
        kills: Signals that hit a running process, by name.
        missed: Those that came when it had ended by itself.
        stories: Multiruns that were completed afterwards, by launcher.
        disturbed, undisturbed: CPU seconds of those and of as many without kills.
    """

    kills: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    stories: Counter[str] = field(default_factory=Counter)
    disturbed: float = 0.0
    undisturbed: float = 0.0

    def sentence(self) -> str:
        """All of it in one line."""
        kinds = ", ".join(f"{count} {name}" for name, count in sorted(self.kills.items()))
        told = ", ".join(f"{count} {name}" for name, count in sorted(self.stories.items()))
        return (
            f"{self.kills.total()} kills ({kinds}; {self.missed} came too late), "
            f"{self.stories.total()} multiruns completed ({told}): tables equal, no finished point "
            f"computed twice; {self.disturbed:.0f} s of CPU, undisturbed {self.undisturbed:.0f} s"
        )


Moment = Callable[[Sweep], Callable[[], bool]]
"""Function that is called as a start begins, and returns one that says when to kill it."""


def after(seconds: float) -> Moment:
    """Return a moment so long after the start."""

    def begin(_: Sweep) -> Callable[[], bool]:
        end = time.monotonic() + seconds
        return lambda: time.monotonic() >= end

    return begin


def disturb(
    sweep: Sweep, kills: Iterable[tuple[signal.Signals, Moment]], campaign: Campaign
) -> Ended:
    """Start a multirun and kill it again and again, then let it end; return how it ended.

    Raises:
        AssertionError: A promise was broken.
    """
    known: dict[str, tuple[int, int]] = {}
    for kind, moment in (*kills, (None, after(1e9))):
        ended = sweep.run(kind, moment(sweep))
        campaign.disturbed += ended.cpu
        sweep.check()
        now = sweep.finished()
        for point, file in known.items():
            assert now.get(point) == file, f"point {point} was computed twice"
        known = now
        if kind is None:
            break
        hit = ended.code in (-kind, 128 + kind)
        assert hit or ended.code == 0, f"{kind.name}: code {ended.code}\n{ended.err}"
        assert "Traceback" not in ended.err, ended.err
        if ended.code == 128 + kind:
            # Other processes of the command may have a last word, too.
            told = [line for line in ended.err.splitlines() if line.startswith("interrupted")]
            assert told and told[-1].startswith(f"interrupted ({kind.name})"), ended.err
        campaign.kills[kind.name] += hit
        campaign.missed += not hit
    assert ended.code == 0, ended.err
    sweep.check_tidy()
    return ended


def run_stories(
    folder: Path,
    kills: int,
    seed: int,
    launchers: Sequence[str],
    each: Sequence[int] = (1, 2, 3, 6),
    points: Sequence[str] = tuple(POINTS),
    minutes: float = 1e9,
) -> Campaign:
    """Kill multiruns of these points until so many kills have hit.

    Args:
        each: Numbers of kills that a story may have.
        minutes: Time after which no other story begins.

    Raises:
        AssertionError: A promise was broken.
    """
    chance, campaign = random.Random(seed), Campaign()
    root, end = folder / "data", time.monotonic() + 60 * minutes
    write_mvtec(root, (40, 36))
    reference, usual = {}, {}
    for launcher in launchers:
        sweep = Sweep(folder / f"undisturbed-{launcher}", root, points, launcher)
        usual[launcher] = sweep.run()
        assert usual[launcher].code == 0, usual[launcher].err
        reference[launcher] = sweep.table()
        assert reference[launcher] == reference[launchers[0]], "launchers differ"
    while campaign.kills.total() < kills and time.monotonic() < end:
        launcher = launchers[campaign.stories.total() % len(launchers)]
        sweep = Sweep(folder / "story", root, points, launcher)
        some = min(chance.choice(each), kills - campaign.kills.total())
        # Each takes less than the one before, as what has finished stays.
        walls = [usual[launcher].wall / (1 + i) for i in range(some)]
        plan = [(chance.choice(SIGNALS), after(chance.uniform(0.02, wall))) for wall in walls]
        disturb(sweep, plan, campaign)
        assert sweep.table() == reference[launcher], "the table differs"
        campaign.stories[launcher] += 1
        campaign.undisturbed += usual[launcher].cpu
        shutil.rmtree(sweep.folder)
        print(campaign.sentence(), flush=True)
    return campaign


def prepare() -> None:
    """Import what every start needs, once, and let multiruns tell nothing of the outside."""
    import matplotlib.pyplot
    import pytorch_lightning
    import timm  # noqa: F401

    import patchcore.commands.train
    import patchcore.runner

    assert pytorch_lightning and matplotlib and patchcore
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def main(arguments: Sequence[str] | None = None) -> Campaign:
    """Run stories as the command line asks, and print what they have come to."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--launchers", default="basic", help=", ".join(LAUNCHERS))
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--short", action="store_true", help="two points, and all kills in one")
    options = parser.parse_args(arguments)
    prepare()
    with tempfile.TemporaryDirectory() as folder, remembered():
        launchers = options.launchers.split(",")
        less = {"each": [options.kills], "points": POINTS[:1]} if options.short else {}
        found = run_stories(
            *(Path(folder), options.kills, options.seed, launchers),
            **{"minutes": options.minutes, **less},
        )
    print(found.sentence())
    return found


if __name__ == "__main__":
    main()
