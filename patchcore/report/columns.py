"""Columns of a report's table, one value for each run: which of them change together.

A column is a list of texts that are equal for equal values; see `patchcore.report.words.token`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from patchcore.report.words import token


def determines(one: Sequence[str], other: Sequence[str]) -> bool:
    """Return whether the second column is a function of the first."""
    return len(set(one)) == len(set(zip(one, other, strict=True)))


def equivalent(one: Sequence[str], other: Sequence[str]) -> bool:
    """Return whether each column is a function of the other."""
    return determines(one, other) and determines(other, one)


def grouped(columns: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Group the keys of columns that change together: {first of them: the others}."""
    found: dict[str, list[str]] = {}
    for key, column in columns.items():
        for leader, followers in found.items():
            settles = key.startswith(f"{leader}.")  # a setting of the group that was chosen
            if (settles and determines(columns[leader], column)) or equivalent(
                columns[leader], column
            ):
                followers.append(key)
                break
        else:
            found[key] = []
    return found


def grouped_seeds(
    points: Sequence[str], seeds: Mapping[str, Sequence[Any]]
) -> dict[str, list[str]]:
    """Group seeds that make repeats: {seed: seeds that change with it}.

    The runs of a point never agree in all keys of the result unless they agree in all seeds. A run
    may lack a seed, such as that of its coreset with `coreset=all`; the value is then None. One
    seed follows another if it changes with it in all runs that have it. A seed of one value makes
    no repeats.

    Args:
        points: Text for each run that is equal for the runs of one point.
        seeds: Seeds by key, one for each run.
    """
    found: dict[str, list[str]] = {}
    told = [*points]  # by the point and the seeds found so far
    # Seeds that most runs have come first, so that the others can follow them.
    for key in sorted(seeds, key=lambda key: (seeds[key].count(None), key.count("."))):
        column = [token(value) for value in seeds[key]]
        leader = None
        if determines(told, column):
            if len({*column} - {token(None)}) < 2:
                continue
            leader = next((other for other in found if _follows(seeds[key], seeds[other])), None)
        if leader is None:
            found[key] = []
            told = [token(pair) for pair in zip(told, column, strict=True)]
        else:
            found[leader].append(key)
    return found


def _follows(seed: Sequence[Any], leader: Sequence[Any]) -> bool:
    """Whether a seed changes with another in all runs that have it."""
    pairs = [pair for pair in zip(seed, leader, strict=True) if pair[0] is not None]
    own, others = ([token(value) for value in column] for column in zip(*pairs, strict=True))
    return token(None) not in others and equivalent(own, others)
