"""Docstrings of the project begin with a noun or a verb: no riddles, no half sentences."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runs import REPOSITORY

RIDDLES = {"how", "what", "where", "whether", "which", "whose", "why"}
PREPOSITIONS = {"after", "as", "at", "by", "for", "from", "in", "of", "on", "over", "to", "with"}
POINTERS = {"it", "its", "ours", "that", "these", "this", "those"}


def docstrings(source: str) -> Iterator[tuple[int, str, bool]]:
    """Line and text of every docstring, constants' included; True where a bool is described."""
    for parent in ast.walk(ast.parse(source)):
        for node in ast.iter_child_nodes(parent):
            match node:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    returns = getattr(parent, "returns", None)
                    yield node.lineno, text, isinstance(returns, ast.Name) and returns.id == "bool"


def riddles(source: str) -> list[str]:
    """First lines, with their numbers, of docstrings that begin with neither noun nor verb."""
    found = []
    for number, text, boolean in docstrings(source):
        first = text.split()[0].strip(",.:;").lower()
        allowed = {"whether"} if boolean else set()
        if first in (RIDDLES | PREPOSITIONS | POINTERS) - allowed:
            found.append(f"{number}: {text.splitlines()[0]}")
    return found


def test_riddles_are_found_wherever_they_stand() -> None:
    source = '"""Of maps."""\nA = 1\n"""Letters."""\nB = 2\n"""How many."""\n'
    source += 'def f() -> bool:\n    """Whether."""\ndef g() -> int:\n    """Whether, too."""\n'
    assert riddles(source) == ["1: Of maps.", "5: How many.", "9: Whether, too."]


@pytest.mark.parametrize("folder", ["patchcore", "experiments", "tests", "docs"])
def test_docstrings_begin_with_a_noun_or_a_verb(folder: str) -> None:
    files = sorted((REPOSITORY / folder).rglob("*.py"))
    assert files
    found = {str(path): riddles(Path(path).read_text()) for path in files}
    assert {path: lines for path, lines in found.items() if lines} == {}
