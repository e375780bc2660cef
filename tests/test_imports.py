"""Directions of the imports, and the cost of `import patchcore`."""

import ast
import gc
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from patchcore.commands import load

PACKAGE = Path(__file__).parents[1] / "patchcore"
ALGORITHMS = {"backbones", "patches", "coreset", "index", "scoring", "metrics"}
ALGORITHMS |= {"foreground", "pruning", "tiles", "whitening"}
# Modules of this package that an algorithm may import besides its own files.
COMMON = {"errors", "machine", "settings", "_embedded", "_fusion", "_layers"}
COMMON |= {"_precision", "_record", "_traced", "_weights"}
LIGHTNING = {"pytorch_lightning", "lightning"}
HYDRA = {"hydra", "hydra_plugins"}


def module_name(path: Path) -> str:
    """Dotted name below the package: `data.folder`, or `data` for its __init__."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str) -> set[str]:
    """Dotted names of all modules that are imported anywhere in the source."""
    return imported(ast.walk(ast.parse(source)))


def imported(nodes: Iterable[ast.AST]) -> set[str]:
    """Dotted names of all modules that statements among the nodes import."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(names: set[str]) -> set[str]:
    """First component below `patchcore` of each import from this package."""
    return {name.split(".")[1] for name in names if name.startswith("patchcore.")}


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


MODULES = {module_name(path): imports(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def test_imports_are_found_wherever_they_stand() -> None:
    source = (
        "import a.b, c\nfrom patchcore import errors\ndef f():\n    from patchcore.d.e import g"
    )
    assert imports(source) == {"a.b", "c", "patchcore.errors", "patchcore.d.e.g"}
    assert ours(imports(source)) == {"errors", "d"}
    assert set(MODULES) >= ALGORITHMS | {"", "methods.patchcore", "module", "runner"}
    assert set(PARTS) >= ALGORITHMS | {"coreset.order", "coreset.kernel"}


PARTS = sorted(name for name in MODULES if name.split(".")[0] in ALGORITHMS)


@pytest.mark.parametrize("name", PARTS)
def test_algorithms_import_neither_each_other_nor_frameworks(name: str) -> None:
    room = {name.split(".")[0]}  # files of one algorithm may import each other
    assert ours(MODULES[name]) - room <= COMMON
    assert not roots(MODULES[name]) & (LIGHTNING | HYDRA | {"omegaconf"})


@pytest.mark.parametrize("name", sorted(COMMON))
def test_what_algorithms_share_imports_no_more_than_they_may(name: str) -> None:
    assert ours(MODULES[name]) <= COMMON
    assert not roots(MODULES[name]) & (LIGHTNING | HYDRA | {"omegaconf"})


@pytest.mark.parametrize("name", sorted(MODULES))
def test_frameworks_are_imported_at_the_doors_only(name: str) -> None:
    place = name.split(".")[0]
    if place not in {
        *("data", "measuring", "module", "progress", "runner", "strategy", "tracking", "training"),
        "commands",
    }:
        assert not roots(MODULES[name]) & LIGHTNING
    if place not in {"config", "commands"}:
        assert not roots(MODULES[name]) & HYDRA
        # The runner has settings and trackers, but gets Lightning's objects made; the package's own
        # file names both for type checkers only.
        if place not in {"", "runner", "training"}:
            assert not ours(MODULES[name]) & {"config", "commands", "runner"}


IMPORT = """
import json, sys
sockets = []
sys.addaudithook(lambda event, args: sockets.append(event) if event.startswith("socket.") else None)
import patchcore.commands
at_once = sorted(sys.modules)
from patchcore import *
found = {"at_once": at_once, "sockets": sockets[:], "modules": sorted(sys.modules)}
"""
MISTAKES = """
from patchcore.commands import main
told = []
for mistake in ("nonsense=1", "coreset.ratio=7"):
    sys.argv = ["patchcore", "train", "logger=none", mistake]
    try:
        main()
    except SystemExit as end:
        told.append(str(end))
found |= {"told": told, "to_tell": sorted(sys.modules)}
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Modules that a new process has loaded after each of three steps, and what it opened."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT + MISTAKES + "print(json.dumps(found))"],
        cwd=tmp_path_factory.mktemp("outputs"),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stderr == ""
    return dict(json.loads(done.stdout))


def test_import_is_light_and_opens_no_socket(loaded: dict[str, Any]) -> None:
    assert "patchcore.methods.patchcore" in loaded["modules"]
    assert loaded["sockets"] == []
    # Seconds of import time each, and some of them ask a server.
    heavy = LIGHTNING | HYDRA
    heavy |= {"albumentations", "faiss", "matplotlib", "timm", "torchmetrics", "torchvision"}
    heavy |= {"omegaconf", "wandb", "cv2", "PIL", "pandas", "sklearn"}
    assert heavy.isdisjoint(loaded["modules"])


def test_the_package_alone_and_its_command_are_there_at_once(loaded: dict[str, Any]) -> None:
    """A signal is only told in words when it comes after the first imports."""
    assert "patchcore.commands" in loaded["at_once"] and "torch" not in loaded["at_once"]


def test_a_mistake_is_told_without_the_libraries_of_a_run(loaded: dict[str, Any]) -> None:
    assert loaded["told"][0].startswith("error: nonsense: there is no such option")
    assert loaded["told"][1:] == ["error: coreset.ratio must be in (0, 1], got 7.0"]
    # Seconds of import time each.
    heavy = {"albumentations", "lightning_fabric", "matplotlib", "pytorch_lightning"}
    heavy |= {
        "scipy.ndimage",
        "scipy.stats",
        "timm",
        "torch._dynamo",
        "torchmetrics",
        "torchvision",
        "wandb",
    }
    assert heavy.isdisjoint(loaded["to_tell"])


def test_a_wrong_flag_is_told_before_pytorch_is_imported() -> None:
    source = """
import sys
from patchcore.commands import main
sys.argv = ["patchcore", "train", "data=mtd", "--mulitrun", "seed=0,1"]
try:
    main()
except SystemExit as end:
    print(end, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    told = "error: --mulitrun: there is no such option; did you mean --multirun?"
    assert (done.stdout, done.stderr) == (f"{told} False\n", "")


def test_modules_are_loaded_without_a_search_for_garbage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "seen_at_import.py").write_text("import gc\nsearched = gc.isenabled()\n")
    (tmp_path / "not_to_be_had.py").write_text("import nothing_of_the_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = gc.get_freeze_count()
    assert load("seen_at_import").searched is False
    assert gc.isenabled() and gc.get_freeze_count() > before
    with pytest.raises(ModuleNotFoundError):
        load("not_to_be_had")
    assert gc.isenabled()


def test_the_audit_hook_sees_sockets() -> None:
    source = IMPORT.replace("from patchcore import *", "import socket; socket.socket().close()")
    done = subprocess.run(
        [sys.executable, "-c", source + "print(json.dumps(found))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["sockets"] == ["socket.__new__"]


def test_files_are_short() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert [str(path) for path, length in lengths.items() if length > 450] == []
    assert lengths[PACKAGE / "config.py"] <= 200
