"""One broken or odd input, what should come of it, and what does."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from patchcore.commands.mistakes import explain

RIGHT, REFUSED, WARNED = "right", "refused", "warned"


@dataclass(frozen=True)
class Case:
    """An input and its expected outcome.

    Attributes:
        kind: What is odd: "images", "masks", …
        title: The input in words.
        outcome: `RIGHT` without a word, `WARNED` and right, or `REFUSED`.
        words: Text that the refusal or warning holds.
        act: Makes the input in an empty folder and has it read; returns whether the value is right.
    """

    kind: str
    title: str
    outcome: str
    words: str
    act: Callable[[Path], Any]


CASES: list[Case] = []


def case(
    kind: str, title: str, outcome: str = RIGHT, words: str = ""
) -> Callable[[Callable[[Path], Any]], Callable[[Path], Any]]:
    """Decorate the function that makes an input and has it read."""

    def add(act: Callable[[Path], Any]) -> Callable[[Path], Any]:
        CASES.append(Case(kind, title, outcome, words, act))
        return act

    return add


@dataclass(frozen=True)
class Found:
    """Outcome of an input: `RIGHT`, `WARNED`, `REFUSED`, "wrong" or "crash", and in which words.

    A user's mistake is told as `patchcore` tells it.
    """

    outcome: str
    told: str = ""

    def expected_by(self, case: Case) -> bool:
        """Whether it is what the case expects, in one line."""
        same = self.outcome == case.outcome and case.words in self.told
        return same and "\n" not in self.told


def observe(case: Case, folder: Path) -> Found:
    """Read the input of a case in an empty folder."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            right = case.act(folder)
        except Exception as error:
            if (message := explain(error)) is None:
                return Found("crash", f"{type(error).__name__}: {error}")
            return Found(REFUSED, message)
    if not isinstance(right, bool | np.bool_) or not right:
        return Found("wrong", f"was taken for {type(right).__name__}" if right is not False else "")
    return Found(WARNED, "; ".join(str(each.message) for each in told)) if told else Found(RIGHT)


def row(case: Case, found: Found) -> str:
    """Return a line of the printed table."""
    mark = "ok" if found.expected_by(case) else "NO"
    text = f"{mark:3}{case.kind:15}{case.title:52}{found.outcome:9}{found.told}"
    return text if mark == "NO" else text[:200]
