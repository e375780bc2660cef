"""Check of the algorithms' shapes: every call in the tests must fit the annotated arrays.

A module that is imported after `check_shapes` has its functions and dataclasses wrapped: what they
take and return must have the kinds and dimensions that their annotations say, equal names standing
for equal sizes within a call.
"""

from pathlib import Path

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

PACKAGE = Path(__file__).parents[1] / "patchcore"
ALGORITHMS = ["patches", "coreset", "index", "scoring", "metrics"]
COMPILED = {"patchcore.coreset.kernel"}  # Triton compiles its functions from their source

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
