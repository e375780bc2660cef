"""Promises of the documentation: each has its tests."""

import ast
import re
from pathlib import Path

from tests.runs import REPOSITORY

PAGE = (REPOSITORY / "docs/pages/promises.md").read_text()
NAMED = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


def defined(path: Path) -> set[str]:
    """Names of the tests in a file."""
    body = ast.parse(path.read_text()).body
    return {each.name for each in body if isinstance(each, ast.FunctionDef)}


def test_every_test_that_is_named_exists() -> None:
    files = {path.name: path for path in (REPOSITORY / "tests").glob("test_*.py")}
    named = NAMED.findall(PAGE)
    assert len(named) > 40
    missing = [f"{a}::{b}" for a, b in named if a not in files or b not in defined(files[a])]
    assert missing == []


def test_every_promise_names_a_test() -> None:
    told = PAGE.partition("## Run by hand")[0]
    rows = [line for line in told.splitlines() if line.startswith("|")]
    promises = [row for row in rows if not re.match(r"\| (-|what |case )", row)]
    assert len(promises) > 30
    assert [row for row in promises if not NAMED.search(row.split(" | ")[-1])] == []
