"""The steps of CONTRIBUTING.md for a sampler, an index and a scoring rule, done in a copy."""

import json
import shutil
from pathlib import Path

from tests.images import write_mvtec
from tests.processes import execute
from tests.runs import REPOSITORY, TINY

SAMPLER = '''"""Sampler that keeps every n-th patch."""

from dataclasses import dataclass

import torch

from patchcore.coreset.order import Order
from patchcore.coreset.sampler import Coreset, CoresetConfig
from patchcore.coreset.space import take
from patchcore.settings import setting


@dataclass
class EveryConfig(CoresetConfig):
    """Keep every n-th patch."""

    every: int = setting(2, "of so many patches one is kept", unit="patches", low=1)
    seed: int = setting(0, "seed of nothing")

    def sample(
        self,
        features: torch.Tensor,
        device: torch.device,
        order: Order | None = None,
        progress: bool = False,
    ) -> Coreset:
        indices = torch.arange(0, len(features), self.every)
        return Coreset(take(features, indices), indices)
'''
INDEX = '''"""Search as plain as can be."""

from dataclasses import dataclass

import torch

from patchcore.index.exact import Index, IndexConfig


class PlainIndex(Index):
    """Squared distances to all rows of the memory."""

    def __init__(self, memory: torch.Tensor) -> None:
        self.memory = memory

    def search(self, queries: torch.Tensor, neighbours: int) -> tuple[torch.Tensor, torch.Tensor]:
        found = torch.cdist(queries, self.memory).square().topk(neighbours, 1, largest=False)
        return found.values, found.indices


@dataclass
class PlainConfig(IndexConfig):
    """Settings of the plain search: none."""

    def build(self, memory: torch.Tensor) -> Index:
        return PlainIndex(memory)
'''
RULE = '''
def logarithmic(squared: Tensor) -> Tensor:
    """Logarithm of one more than the mean squared distance."""
    return squared.mean(-1).log1p()


RULES = {
    Distance.logarithmic: Rule(logarithmic),
'''
RUN = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv.pop(1))
from patchcore.commands import main
from patchcore.commands.settings_help import settings_help
from patchcore.coreset.every import EveryConfig
from patchcore.errors import InputError
print(settings_help(80))
try:
    EveryConfig(every=0)
except InputError as error:
    print(error)
main()
"""


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def add(package: Path) -> None:
    """Do the steps: two files a sampler, two an index, one a scoring rule."""
    (package / "coreset/every.py").write_text(SAMPLER)
    samplers = package / "coreset/__init__.py"
    edit(
        samplers,
        "from patchcore.coreset.greedy import",
        "from patchcore.coreset.every import EveryConfig\nfrom patchcore.coreset.greedy import",
    )
    edit(
        samplers,
        '    "greedy": GreedyConfig,',
        '    "every": EveryConfig,\n    "greedy": GreedyConfig,',
    )
    (package / "index/plain.py").write_text(INDEX)
    indexes = package / "index/__init__.py"
    line = "from patchcore.index.exact import"
    edit(indexes, line, f"from patchcore.index.plain import PlainConfig\n{line}")
    edit(indexes, '    "torch": Torch', '    "plain": PlainConfig,\n    "torch": Torch')
    scoring = package / "scoring.py"
    edit(scoring, '    cosine = "cosine"', '    cosine = "cosine"\n    logarithmic = "logarithmic"')
    edit(scoring, "\nRULES = {\n", RULE)


def test_what_is_added_is_known_everywhere(tmp_path: Path) -> None:
    project = tmp_path / "project"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "patchcore", project / "patchcore", ignore=ignore)
    add(project / "patchcore")
    data = write_mvtec(tmp_path / "data", (40, 36))

    arguments = ["data=mvtec", f"data.root={data.parent}", f"data.category={data.name}", *TINY]
    arguments = [each for each in arguments if not each.startswith("coreset")]
    arguments += ["coreset=every", "index=plain", "scoring.distance=logarithmic", "logger=none"]
    arguments += ["figures=false", f"hydra.run.dir={tmp_path}/run", "seed=3"]
    told = execute(RUN, str(project), "train", *arguments, folder=tmp_path)
    assert "coreset.every (every): integer = 2" in told and "one is kept [patches; at least" in told
    assert "plain, torch" in told and "euclidean|squared|cosine|logarithmic" in told
    assert "coreset.every must be at least 1, got 0" in told
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["image_auroc"] is not None
    settings = json.loads((tmp_path / "run/provenance.json").read_text())["settings"]
    assert settings["coreset"] == {"every": 2, "seed": 3}
    assert settings["scoring"]["distance"] == "logarithmic"
