"""Check of the algorithms' shapes: every call in the tests must fit the annotated arrays.

A module that is imported after `check_shapes` has its functions and dataclasses wrapped: what they
take and return must have the kinds and dimensions that their annotations say, equal names standing
for equal sizes within a call.
"""

import inspect
import sys
from dataclasses import replace
from pathlib import Path
from types import FunctionType

import pytest
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

PACKAGE = Path(__file__).parents[1] / "patchcore"
ALGORITHMS = ["patches", "coreset", "index", "scoring", "metrics"]
ALGORITHMS += ["foreground", "pruning", "tiles", "whitening"]
# Triton compiles their functions from the source.
COMPILED = {"patchcore.coreset.kernel", "patchcore.index.fused"}

typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, too


def checked_modules() -> list[str]:
    """Names of the modules whose shapes are checked; a package stands for its files."""
    names = []
    for name in ALGORITHMS:
        files = [PACKAGE / f"{name}.py"]
        if not files[0].exists():
            files = sorted((PACKAGE / name).glob("[!_]*.py"))
        names += [
            ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in files
        ]
    return [name for name in names if name not in COMPILED]


def check_shapes() -> None:
    """Wrap the algorithms as they are imported."""
    install_import_hook(checked_modules(), "tests.shapes.typechecker")


def leave_unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the checks off for a test whose subject is PyTorch's compilers, which cannot follow."""
    modules = [module for name, module in sys.modules.items() if name.startswith("patchcore.")]
    classes = [
        kind for module in modules for kind in vars(module).values() if inspect.isclass(kind)
    ]
    for owner in {
        *modules,
        *(kind for kind in classes if kind.__module__.startswith("patchcore.")),
    }:
        for name, value in list(vars(owner).items()):
            if isinstance(value, FunctionType) and "jaxtyping" in value.__code__.co_filename:
                monkeypatch.setattr(owner, name, inspect.unwrap(value))
    from patchcore import scoring

    rules = {
        distance: replace(rule, score=inspect.unwrap(rule.score))
        for distance, rule in scoring.RULES.items()
    }
    monkeypatch.setattr(scoring, "RULES", rules)
