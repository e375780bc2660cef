"""Settings, on the command line and in files."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from hydra import compose, initialize_config_module
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins

from patchcore import LayersConfig, PatchCore
from patchcore.commands import targets
from patchcore.commands.composed import check_numbers, to_config
from patchcore.commands.generations import VERSION_BASE
from patchcore.commands.groups import register
from patchcore.commands.overrides import as_typed, check_overrides
from patchcore.switches import check_switches
from tests.corpus.case import REFUSED, case

register()


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Files are read as the command reads them; Hydra's sources are put back."""
    Plugins.instance()
    types = SourcesRegistry.instance().types
    before = dict(types)
    with mock.patch.object(targets, "_typed", []):
        targets.guard([])
        try:
            yield
        finally:
            types.clear()
            types.update(before)


def composed(*overrides: str) -> Any:
    """Settings as `patchcore train` takes them."""
    typed = as_typed(["logger=none", *overrides])
    check_overrides(typed)
    with initialize_config_module("patchcore.conf", **VERSION_BASE):
        return to_config(compose("config", typed))


TYPED: list[tuple[str, list[str], str]] = [
    ("a share above 1", ["coreset.ratio=1.5"], "coreset.ratio must be in (0, 1], got 1.5"),
    ("a misspelt key", ["coreset.ratoi=0.1"], "did you mean coreset.ratio?"),
    ("a misspelt choice", ["coreset=greddy"], "coreset=greddy: there is no such choice"),
    ("a word for a number", ["coreset.ratio=much"], "coreset.ratio: must be a number, got much"),
    ("a variable that is not set", ["data.root=${oc.env:NO_SUCH}"], "data.root: "),
    ("no number", ["scoring.sigma=nan"], "scoring.sigma must be a finite number, got nan"),
    ("no layers", ["layers.names=[]"], "layers.names"),
    ("an endless cache", ["cache.limit_gib=inf"], "cache.limit_gib must be a finite number"),
]
REJECTED: list[tuple[str, str, str]] = [
    ("truth for a choice", "patch=true", "patch=true: there is no such choice"),
    ("no key", "=3", "=3: not understood: type KEY=VALUE"),
    ("two dots", "a..b=3", "a..b=3: not understood: type KEY=VALUE"),
    ("an open bracket", "layers.names=[fc", "layers.names: the value needs its own quotes"),
    ("a path with =", "data.root=/a/run=3", "data.root: the value needs its own quotes"),
    ("a comma in a path", "data.root=a,b", "data.root: a comma separates several values"),
    ("an old name", "model=spade", "model=spade: is now called method=spade"),
    ("a name not in UTF-8", "data.root=caf\udce9", "data.root=caf\\xe9: the name of this argument"),
]
NUMBERS: list[tuple[str, dict[str, Any], str]] = [
    ("a seed below 0", {"seed": -1}, "seed must be in [0, 2^32), got -1"),
    ("a seed of 23 digits", {"coreset": {"seed": 10**22}}, "coreset.seed must be in [0, 2^32)"),
    ("a size of a megametre", {"image": {"crop": 10**9}}, "image.crop must be at most 65,536"),
    ("infinity", {"a": {"b": [float("inf")]}}, "a.b[0] must be a finite number, got inf"),
]
BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]\n" for i in range(1, 11))
FILES: list[tuple[str, str, str]] = [
    ("a file with tabs", "scoring:\n\tsigma: 2\n", "mine"),
    ("a file with a key twice", "seed: 1\nseed: 2\n", "mine"),
    ("a file with a misspelt key", "scoring:\n  sigmma: 2\n", "(in experiment/mine.yaml)"),
    (
        "a file that names a program",
        "logger:\n  x:\n    _target_: os.system\n",
        "_target_=os.system",
    ),
    ("a file with code", "seed: !!python/object/apply:os.getpid []\n", "mine"),
    ("a file of a list", "- 1\n", "mine"),
    ("a file in Latin-1", "# caf\udce9\nseed: 1\n", "mine.yaml: is not text in UTF-8"),
    ("a file with a NUL byte", "seed: 1\0\n", "mine.yaml: is not text in UTF-8"),
    ("a file of a billion values", BOMB, "mine.yaml: its aliases stand for more than 100,000"),
    ("a file that holds itself", "curve: &a [*a]\n", "mine.yaml: its aliases stand for more"),
    ("defaults that are no list", "defaults: random\n", "defaults: must be a list"),
    (
        "defaults that name their own file",
        "defaults: [/experiment: mine]\n",
        "mine.yaml names itself",
    ),
    ("a word for a group", "scoring: loud\n", "mine.yaml: a group must be settings"),
    ("a file with brackets without end", "seed: " + "[" * 20_000, "mine"),
]


def typed(title: str, overrides: list[str], words: str) -> None:
    @case("settings", title, REFUSED, words)
    def act(folder: Path) -> Any:
        return composed(*overrides)


def rejected(title: str, argument: str, words: str) -> None:
    @case("settings", title, REFUSED, words)
    def act(folder: Path) -> Any:
        return check_overrides(as_typed([argument]))


def numbered(title: str, values: dict[str, Any], words: str) -> None:
    @case("settings", title, REFUSED, words)
    def act(folder: Path) -> Any:
        return check_numbers(values)


def filed(title: str, text: str, words: str) -> None:
    @case("settings", title, REFUSED, words)
    def act(folder: Path) -> Any:
        (folder / "experiment").mkdir()
        content = f"# @package _global_\n{text}".encode("utf-8", "surrogateescape")
        (folder / "experiment/mine.yaml").write_bytes(content)
        with guarded():
            return composed(f"hydra.searchpath=['file://{folder}']", "experiment=mine")


def beginning(title: str, group: str, content: str, words: str) -> None:
    @case("settings", title, REFUSED, words)
    def act(folder: Path) -> Any:
        (folder / group).mkdir()
        (folder / group / "mine.yaml").write_text(content)
        with guarded():
            return composed(f"hydra.searchpath=['file://{folder}']", f"{group}=mine")


FIRST = "must begin with the line '# @package _global_'"
beginning("an experiment without its first line", "experiment", "seed: 1\n", FIRST)
beginning("an empty experiment", "experiment", "", FIRST)
beginning("a byte-order mark", "experiment", "\ufeff# @package _global_\n", "a byte-order mark")
beginning("a file without its kind", "coreset", "ratio: 0.2\n", "add the line 'defaults: [KIND]'")

for title, overrides, words in TYPED:
    typed(title, overrides, words)
for title, argument, words in REJECTED:
    rejected(title, argument, words)
for title, values, words in NUMBERS:
    numbered(title, values, words)
for title, content, words in FILES:
    filed(title, content, words)


@case("settings", "only some of the test images", REFUSED, "trainer.limit_test_batches")
def _(folder: Path) -> Any:
    return check_switches({"limit_test_batches": 1}, augmented=False)


@case("settings", "a layer under two names", REFUSED, "layers.names")
def _(folder: Path) -> Any:
    return PatchCore(layers=LayersConfig(["2", "layer2"]))


@case("settings", "a layer that the network lacks", REFUSED, "layers.names")
def _(folder: Path) -> Any:
    return PatchCore(layers=LayersConfig(["conv9"]))
