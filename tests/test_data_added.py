"""The steps of CONTRIBUTING.md for a new data set, done in a copy of the project."""

import filecmp
import shutil
from pathlib import Path

from omegaconf import OmegaConf

from tests.images import write_mvtec
from tests.processes import execute
from tests.runs import REPOSITORY, TINY

SCREWS = '''"""Screws (nobody, 2030): three sizes, in the layout of MVTec AD."""

from dataclasses import dataclass
from typing import ClassVar

from patchcore.data.files import Files
from patchcore.data.layout import find_category, find_root, read_category
from patchcore.data.mvtec import LAYOUT
from patchcore.data.sample import DataConfig, Split
from patchcore.data.source import Archive, Source
from patchcore.data.view import View
from patchcore.settings import setting


@dataclass(kw_only=True)
class ScrewsConfig(DataConfig):
    """One size of screws."""

    CATEGORIES: ClassVar = ("m3", "m04")
    SIZE: ClassVar = 40
    VIEW: ClassVar = View.whole
    SOURCE: ClassVar = Source(
        page="https://screws.example",
        licence="CC0",
        archive=Archive("https://screws.example/all.zip", CATEGORIES),
    )

    root: str = setting("data/screws", effect=False)
    category: str = "m3"

    def _read(self, files: Files) -> Split:
        root = find_root(self.root, LAYOUT, self.SOURCE.page)
        return read_category(files, find_category(root, self.category, LAYOUT), LAYOUT)
'''
YAML = """# @package _global_
defaults:
  - schema/screws@data
data:
  shots_seed: ${seed}
hydra:
  sweeper:
    params:
      data.category: m3,m04
"""
RUN = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv.pop(1))
from patchcore.commands import main
from patchcore.data.fetch import find_source
print(find_source("screws").licence)
main()
"""


def add_screws(project: Path) -> None:
    """Do the steps."""
    (project / "patchcore/data/screws.py").write_text(SCREWS)
    registry = project / "patchcore/data/sets.py"
    text = registry.read_text()
    text = text.replace(
        "from patchcore.data.visa import",
        "from patchcore.data.screws import ScrewsConfig\nfrom patchcore.data.visa import",
    )
    text = text.replace('    "visa":', '    "screws": ScrewsConfig,\n    "visa":')
    registry.write_text(text)
    if (project / "conf/data").is_dir():
        (project / "conf/data/screws.yaml").write_text(YAML)


def changed(one: Path, other: Path) -> list[str]:
    """Names of files that are only in one of two folders, or differ."""
    found = filecmp.dircmp(one, other, ignore=["__pycache__", "conf"])
    below = [name for folder in found.common_dirs for name in changed(one / folder, other / folder)]
    return [*found.left_only, *found.right_only, *found.diff_files, *below]


def test_a_new_data_set_is_known_everywhere(tmp_path: Path) -> None:
    project = tmp_path / "project"
    for name in ("patchcore", "conf"):
        shutil.copytree(
            REPOSITORY / name,
            project / name,
            symlinks=True,  # patchcore/conf is one
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    add_screws(project)
    places = [
        name
        for part in ("patchcore", "conf")
        for name in changed(REPOSITORY / part, project / part)
    ]
    assert {"screws.py", "sets.py"} <= set(places) and len(places) <= 4

    for category in ("m3", "m04"):
        write_mvtec(tmp_path / "data", (40, 36)).rename(tmp_path / "data" / category)
    arguments = ["train", "--multirun", "data=screws", f"data.root={tmp_path}/data", *TINY]
    arguments += ["logger=none", "figures=false", f"hydra.sweep.dir={tmp_path}/runs"]
    arguments = [each for each in arguments if not each.startswith("image.")]
    assert execute(RUN, str(project), *arguments, folder=tmp_path).startswith("CC0\n")
    runs = [OmegaConf.load(tmp_path / f"runs/{job}/config.yaml") for job in (0, 1)]
    assert [run.data.category for run in runs] == ["m3", "m04"]
    assert [(run.image.size, run.image.view, run.image.crop) for run in runs] == [
        (40, "whole", None)
    ] * 2
    assert all((tmp_path / f"runs/{job}/metrics.json").is_file() for job in (0, 1))
