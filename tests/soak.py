"""A long multirun, killed many times: `python -m tests.soak --points 1000 --kills 20`.

The multirun is run twice, once alone and once with kills spread over its points. Both have to end
with the same table; what the kills cost, and how memory and open files grow, is printed.
"""

import argparse
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.faults import SIGNALS, Campaign, Ended, Moment, Sweep, disturb, prepare
from tests.images import write_mvtec


def point_settings(count: int) -> list[str]:
    """Overrides of a multirun with so many points: two patch sizes, ratios, and smoothings."""
    sizes = 2 if count % 2 == 0 else 1
    ratios = next(n for n in range(min(50, count // sizes), 0, -1) if count // sizes % n == 0)
    blurs = count // sizes // ratios
    return [
        f"patch.size={','.join(str(1 + 2 * i) for i in range(sizes))}",
        f"coreset.ratio={','.join(str(round(0.1 + 0.01 * i, 2)) for i in range(ratios))}",
        f"scoring.sigma={','.join(str(1 + i) for i in range(blurs))}",
    ]


def when_finished(count: int, every: float = 0.5) -> Moment:
    """Return the moment when so many points have finished, looked at every so many seconds."""

    def begin(sweep: Sweep) -> Callable[[], bool]:
        last = 0.0

        def now() -> bool:
            nonlocal last
            if time.monotonic() < last + every:
                return False
            last = time.monotonic()
            return len(sweep.finished()) >= count

        return now

    return begin


def growth(ended: Ended) -> str:
    """Memory and open files of a start, at its median and at its end."""
    samples = [(0, 0), *ended.usage.samples]
    (memory, files), (most, open_files) = samples[len(samples) // 2], samples[-2]  # then it ends
    return (
        f"memory {memory / 2**20:.0f} MiB half-way, {most / 2**20:.0f} at the end; "
        f"open files {files} and {open_files}"
    )


def soak(folder: Path, points: int, kills: int, seed: int, every: float = 0.5) -> Campaign:
    """Run a multirun alone and killed so many times.

    Raises:
        AssertionError: The tables differ, or another promise was broken.
    """
    chance, campaign = random.Random(seed), Campaign()
    write_mvtec(folder / "data", (40, 36))
    settings = point_settings(points)
    alone = Sweep(folder / "alone", folder / "data", settings)
    ended = alone.run()
    assert ended.code == 0, ended.err
    print(f"undisturbed: {ended.wall:.0f} s, {ended.cpu:.0f} s of CPU; {growth(ended)}", flush=True)
    campaign.undisturbed = ended.cpu
    expected = alone.table()
    assert len(expected) == points
    shutil.rmtree(alone.cache)
    sweep = Sweep(folder / "killed", folder / "data", settings)
    counts = sorted(chance.sample(range(points), kills))
    plan = [(chance.choice(SIGNALS), when_finished(count, every)) for count in counts]
    ended = disturb(sweep, plan, campaign)
    print(f"last start: {ended.wall:.0f} s, {ended.cpu:.0f} s of CPU; {growth(ended)}")
    assert sweep.table() == expected, "the table differs"
    campaign.stories["basic"] += 1
    return campaign


def main(arguments: Sequence[str] | None = None) -> Campaign:
    """Run as the command line asks, and print what it has come to."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    prepare()
    with tempfile.TemporaryDirectory() as folder:
        campaign = soak(Path(folder), options.points, options.kills, options.seed)
    print(f"{options.points} points: {campaign.sentence()}")
    return campaign


if __name__ == "__main__":
    main()
