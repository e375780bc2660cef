"""The plan of a run, the memory that is free, and the refusal of what cannot have it."""

import math
from pathlib import Path

import pytest
import torch

from patchcore import machine
from patchcore.errors import InputError
from patchcore.methods import common
from patchcore.methods.common import FeatureBuffer
from patchcore.plan import Plan


def test_a_plan_is_one_line() -> None:
    plan = Plan(224, 56, 400.0, 56.0, "2 threads", False, 715_000_000, 12_345_678_900)
    assert plan.seconds == pytest.approx(224 / 400 + 224 / 56)
    assert str(plan) == (
        "plan: 224 training and 56 test images, 400 images/s decoded (2 threads), 56 through the "
        "network: extraction about 5 s, 715 MB of patch features (12.3 GB free)"
    )


def test_what_is_done_beside_does_not_add_up() -> None:
    assert Plan(1000, 9, 100.0, 500.0, "16 threads", True).seconds == 10
    assert Plan(1000, 9, 500.0, 100.0, "16 threads", True).seconds == 10
    cached = Plan(1000, 9, math.nan, 100.0, "16 threads", False, 1_200_000_000)
    assert cached.seconds == 10
    assert "test images, images from the cache (16" in str(cached)
    assert str(cached).endswith("about 10 s, 1.2 GB of patch features")  # nothing free is told


MEMINFO = "MemTotal: 9000 kB\nMemFree: 100 kB\nMemAvailable: 5000 kB\nSwapFree: 1000 kB\n"


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 6000 * 1024),
        ({"memory.max": "max\n", "memory.current": "7", "memory.stat": ""}, 6000 * 1024),
        ({"memory.max": "900", "memory.current": "500", "memory.stat": "inactive_file 50"}, 450),
        (
            {
                "memory.max": "900",
                "memory.current": "800",
                "memory.stat": "anon 5\nactive_file 500\ninactive_file 50",
            },
            650,
        ),
        ({"memory.max": "900", "memory.current": "999", "memory.stat": "anon 5"}, 0),
        (
            {
                "memory/memory.limit_in_bytes": "900",
                "memory/memory.usage_in_bytes": "500",
                "memory/memory.stat": "total_inactive_file 20\ncache 9",
            },
            420,
        ),
        (
            {
                "memory/memory.limit_in_bytes": str(2**63 - 4096),
                "memory/memory.usage_in_bytes": "500",
                "memory/memory.stat": "",
            },
            6000 * 1024,
        ),
    ],
)
def test_free_memory_of_a_machine_and_its_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], free: int
) -> None:
    (tmp_path / "memory").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "meminfo").write_text(MEMINFO)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")
    assert machine.available_memory() == free


def test_without_linux_all_memory_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "absent")
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "absent")
    monkeypatch.setattr(machine.os, "sysconf", {"SC_PHYS_PAGES": 3, "SC_PAGE_SIZE": 4096}.get)
    assert machine.available_memory() == 3 * 4096


def test_features_without_room_are_refused_with_the_number_that_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = torch.rand(2, 5, 5, 8)  # 800 bytes an image
    monkeypatch.setattr(common, "available_memory", lambda: 800 * 70)
    fits = FeatureBuffer(70)
    fits.append(batch)
    assert (fits.nbytes, fits.free) == (800 * 70, 800 * 70)
    with pytest.raises(InputError, match=r"^data\.shots: .* of 1,000 images .* at most 70 of them"):
        FeatureBuffer(1000).append(batch)
    alone = FeatureBuffer(1000)  # images may be of several sizes, and later ones smaller
    alone.append(batch[:1])
    assert alone.nbytes == 800 * 1000
    monkeypatch.setattr(common, "available_memory", lambda: None)
    FeatureBuffer(1000).append(batch)
