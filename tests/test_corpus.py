"""Broken and odd inputs of every kind: each is refused in one line, told, or read rightly."""

from collections import Counter
from pathlib import Path

import pytest

from tests.corpus import CASES, observe, row

KINDS = {
    *("archives", "artifacts", "cache entries", "folders", "images", "lists", "masks", "names"),
    *("run folders", "settings", "weights"),
}


def test_there_are_many_of_every_kind() -> None:
    counts = Counter(case.kind for case in CASES)
    assert set(counts) == KINDS and min(counts.values()) >= 10 and counts.total() >= 150
    assert len({(case.kind, case.title) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_input_has_its_expected_outcome(kind: str, tmp_path: Path) -> None:
    wrong = []
    for number, case in enumerate(each for each in CASES if each.kind == kind):
        folder = tmp_path / str(number)
        folder.mkdir()
        found = observe(case, folder)
        line = row(case, found).replace(str(folder), "…")
        print(line)
        if not found.expected_by(case):
            wrong.append(line)
    assert wrong == []
