"""Random one-line changes to a file of the package: does the file's own test file notice them?

    python tests/mutants.py patchcore/metrics/sweep.py --count 15 --seed 0
    python tests/mutants.py patchcore/coreset --keyword "not interpreter"

Each mutant is one change by an operator of cosmic-ray (another number, comparison, operator, …) at
a random place. Mutants are written into a temporary copy of the project, never into the checkout,
and tested one after another by tests/test_NAME.py (`--tests` and `--keyword` choose others). A
survivor is either a gap in the tests or a change that makes no difference. Seed and count name the
mutants of a file as long as it stays the same.

Every mutant is tested in a fork of this process, which has imported the libraries already.
"""

import argparse
import ast
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: forks share no threads
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
sys.dont_write_bytecode = True  # a mutant is as old as the last one, to the second

import parso  # noqa: E402
from cosmic_ray.ast import ast_nodes  # noqa: E402
from cosmic_ray.mutating import mutate_code  # noqa: E402
from cosmic_ray.plugins import get_operator, operator_names  # noqa: E402

PROJECT = Path(__file__).parents[1]
COPIED = ("patchcore", "conf", "tests", "pyproject.toml", "experiments", "README.md", "LICENSE")
LIBRARIES = ("torch", "torchmetrics", "torchvision", "timm", "pytorch_lightning", "hydra.main")
LIBRARIES += ("scipy.ndimage", "scipy.stats", "sklearn.metrics", "hypothesis", "pytest")
EQUIVALENT = ("Is_Eq", "IsNot_NotEq")  # no difference for None and enums, which `is` is used for


@dataclass(frozen=True)
class Mutant:
    """One change: an operator of cosmic-ray and which of its possible places in a file."""

    path: Path  # relative to the project
    line: int
    operator: str
    occurrence: int


def find_mutants(path: Path) -> dict[tuple[int, int], list[Mutant]]:
    """Mutants of a file by place (line, column), without those in annotations."""
    source = (PROJECT / path).read_text()
    left_out = annotations(source)
    places: dict[tuple[int, int], list[Mutant]] = {}
    nodes = list(ast_nodes(parso.parse(source)))
    for name in operator_names():
        kind = get_operator(name)
        if kind.arguments() or name.endswith(EQUIVALENT):
            continue
        spots = [spot[0] for node in nodes for spot in kind().mutation_positions(node)]
        for occurrence, spot in enumerate(spots):
            if not any(start <= spot < stop for start, stop in left_out):
                places.setdefault(spot, []).append(Mutant(path, spot[0], name, occurrence))
    return places


def annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Spans (start, stop) of the annotations in a source."""
    found: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.arg | ast.AnnAssign):
            found.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            found.append(node.returns)
    return [
        ((node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0))
        for node in found
        if node is not None
    ]


def mutated(mutant: Mutant) -> str:
    """Source of the file with the change."""
    source = (PROJECT / mutant.path).read_text()
    return str(mutate_code(source, get_operator(mutant.operator)(), mutant.occurrence) or source)


def changed_line(mutant: Mutant) -> str:
    """Place of the change, and its line before and after."""
    before = (PROJECT / mutant.path).read_text().splitlines()
    after = mutated(mutant).splitlines()
    lines = [(a.strip(), b.strip()) for a, b in zip(before, after, strict=False) if a != b]
    text = f"`{lines[0][0]}` → `{lines[0][1]}`" if lines else "nothing"
    return f"{mutant.path}:{mutant.line}: {text}"


def run_tests(copy: Path, arguments: list[str], timeout: float) -> tuple[str, str]:
    """Run pytest in a fork: "passed", "failed" or "timed out", and what it printed."""
    log = copy / "log"
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            os.chdir(copy)
            with log.open("w") as file, redirect_stdout(file), redirect_stderr(file):
                os._exit(_run_pytest(copy, arguments))
        finally:
            os._exit(3)  # whatever happens, no fork goes on as if it were the parent
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return ("failed" if status else "passed"), log.read_text()
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timed out", log.read_text()


def _run_pytest(copy: Path, arguments: list[str]) -> int:
    import pytest

    sys.path.insert(0, str(copy))
    quiet = ["-x", "-q", "--tb=short", "-p", "no:cacheprovider"]
    imported = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # libraries of the parent
    code = int(pytest.main([*quiet, *imported, *arguments]))
    import patchcore

    assert Path(patchcore.__file__).is_relative_to(copy)
    sys.stdout.flush()
    return code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("paths", type=Path, nargs="+", help="files or packages of the package")
    parser.add_argument("--count", type=int, default=15, help="mutants (default: 15)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (default: 0)")
    parser.add_argument("--tests", nargs="+", help="test files (default: tests/test_NAME.py)")
    parser.add_argument("--keyword", default="", help="pytest's -k, to leave out slow tests")
    options = parser.parse_args()

    paths = [path.resolve().relative_to(PROJECT) for path in options.paths]
    files = [
        file.relative_to(PROJECT)
        for path in paths
        for file in sorted((PROJECT / path).rglob("*.py")) or [PROJECT / path]
    ]
    places = [mutants for file in files for _, mutants in sorted(find_mutants(file).items())]
    chance = random.Random(options.seed)
    chosen = [
        chance.choice(place) for place in chance.sample(places, min(options.count, len(places)))
    ]
    arguments = options.tests or [f"tests/test_{Path(paths[0].parts[1]).stem}.py"]
    if options.keyword:
        arguments += ["-k", options.keyword]
    for library in LIBRARIES:
        import_module(library)

    # Read now, so that the checkout may change meanwhile.
    changes = [(mutant, mutated(mutant), changed_line(mutant)) for mutant in chosen]
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder).resolve()
        for name in COPIED:
            if (PROJECT / name).is_dir():
                shutil.copytree(
                    PROJECT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__")
                )
            else:
                shutil.copy2(PROJECT / name, copy / name)
        start = time.monotonic()
        outcome, output = run_tests(copy, arguments, 1800)
        timeout = 10 + 5 * (time.monotonic() - start)
        if outcome != "passed":
            sys.exit(f"error: the tests fail without a mutant\n{output}")
        for number, (mutant, source, change) in enumerate(changes, 1):
            target = copy / mutant.path
            kept = target.read_text()
            target.write_text(source)
            outcome, _ = run_tests(copy, arguments, timeout)
            target.write_text(kept)
            if outcome == "passed":
                survivors.append(change)
            verdict = "SURVIVED" if outcome == "passed" else outcome
            print(f"{number}/{len(chosen)} {verdict}: {change}", flush=True)
    caught = len(chosen) - len(survivors)
    print(f"\n{caught} of {len(chosen)} caught ({caught / len(chosen):.0%})")
    for change in survivors:
        print(f"survived: {change}")


if __name__ == "__main__":
    main()
