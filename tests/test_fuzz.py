"""Readers of files from elsewhere never end with a traceback, whatever the bytes."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import TARGETS, attempt, edited, hunt

EDITS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 1 << 16), st.binary(max_size=8)),
    min_size=1,
    max_size=5,
)
SEEDS = {name: sorted(target.seeds().items()) for name, target in TARGETS.items()}


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS, which=st.integers(0, 99))
def test_nearly_right_files_are_read_or_refused(
    name: str, tmp_path: Path, edits: list[tuple[int, int, bytes]], which: int
) -> None:
    file, content = SEEDS[name][which % len(SEEDS[name])]
    assert attempt(TARGETS[name], file, edited(content, edits), tmp_path) is None


@pytest.mark.parametrize("name", TARGETS)
def test_sound_files_are_read(name: str, tmp_path: Path) -> None:
    for file, content in SEEDS[name]:
        assert attempt(TARGETS[name], file, content, tmp_path) is None


def test_findings_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> None:
        raise KeyError("oops")

    monkeypatch.setitem(TARGETS, "lists", type(TARGETS["lists"])(TARGETS["lists"].seeds, fail))
    counts, found = hunt(["lists"], 0.05, 0)
    assert counts["lists"] and list(found) == ["lists: KeyError: 'oops'"]
