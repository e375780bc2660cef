"""The documentation: it builds without warnings, and what it shows is what the program does."""

import importlib.util
import inspect
import logging
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from patchcore import PatchCore
from patchcore.commands import COMMANDS
from patchcore.commands.completion import Words
from patchcore.commands.completion import words as find_words
from patchcore.commands.overrides import choices
from patchcore.commands.settings_help import options
from patchcore.metrics import METRICS
from patchcore.report.run import pick_misclassified
from tests.documents import blocks, check_command, commands, unlike_rows
from tests.images import write_image
from tests.runs import REPOSITORY

PAGES = sorted((REPOSITORY / "docs/pages").rglob("*.md"))
TEXTS = {str(path.relative_to(REPOSITORY / "docs/pages")): path.read_text() for path in PAGES}
README = (REPOSITORY / "README.md").read_text()
CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text()


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """The hook that makes the generated parts."""
    path = REPOSITORY / "docs/generate.py"
    specification = importlib.util.spec_from_file_location("docs_generate", path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rendered(generate: ModuleType) -> dict[str, str]:
    """All pages with their generated parts; every name and quoted line in them is found."""
    return {name: generate.rendered(text) for name, text in TEXTS.items()}


def test_every_setting_and_metric_is_in_the_reference(
    generate: ModuleType, rendered: dict[str, str]
) -> None:
    settings, metrics = rendered["reference/settings.md"], rendered["reference/metrics.md"]
    for named, option, _ in options():
        key = named.partition(" ")[0]
        (row, *_) = re.findall(rf"^\| `{re.escape(key)}` \|.*$", settings, re.MULTILINE)
        text = generate.plain(str(option.metadata.get("help", "")))
        assert text.replace("|", "\\|") in row, key
    row = next(line for line in settings.splitlines() if line.startswith("| `coreset.ratio`"))
    assert "| number | `0.1` | in (0, 1] | depends |" in row
    assert [key for key in METRICS if f"| `{key}` | " not in metrics] == []


def test_every_command_and_choice_is_in_the_reference(rendered: dict[str, str]) -> None:
    texts = rendered["reference/commands.md"].split("\n## ")[1:]
    assert [text.partition("\n")[0] for text in texts] == [*COMMANDS]
    assert all("usage: patchcore" in text for text in texts)
    page = rendered["reference/choices.md"]
    for group in ("data", "coreset", "preset", "experiment", "hydra/launcher"):
        missing = [name for name in choices()[group] if f"| `{name}` | " not in page]
        assert missing == [], group


def test_tables_are_whole(rendered: dict[str, str]) -> None:
    assert unlike_rows("| a | b |\n| --- | --- |\n| 1 | 2 |\n") == []
    assert unlike_rows("| a | b |\n| --- | --- |\n| 1 | 2 | | 3 | 4 |\n") == ["| 1 | 2 | | 3 | 4 |"]
    assert unlike_rows("| a | b | | --- | --- |\n| 1 | 2 |\n") != []
    texts = dict(rendered)
    for place in ("*.md", ".github/*.md", "experiments/**/*.md", "patchcore/**/*.md"):
        texts |= {str(path): path.read_text() for path in REPOSITORY.glob(place)}
    assert texts.keys() >= {str(REPOSITORY / "README.md"), "concepts.md"}
    assert {name: rows for name, text in texts.items() if (rows := unlike_rows(text))} == {}


def test_the_number_of_misclassified_images_is_that_of_the_figure() -> None:
    most = inspect.signature(pick_misclassified).parameters["most"].default
    assert f"at most {most} false alarms and {most} misses" in TEXTS["reference/files.md"]


def test_every_setting_has_help() -> None:
    missing = [key for key, option, _ in options() if not option.metadata.get("help")]
    assert missing == []


def test_quoted_lines_are_those_of_the_code(generate: ModuleType) -> None:
    quoted = generate.code("patchcore.scoring.euclidean", "sqrt")
    assert "return squared.sqrt().mean(-1)" in quoted
    assert " of patchcore/scoring.py" in quoted
    (line,) = re.findall(r'linenums="(\d+)"', quoted)
    source = (REPOSITORY / "patchcore/scoring.py").read_text().splitlines()
    assert source[int(line) - 1].strip() == "return squared.sqrt().mean(-1)"
    with pytest.raises(LookupError, match="no line holds"):
        generate.code("patchcore.scoring.euclidean", "cube root")
    with pytest.raises(LookupError, match="there is no such name"):
        generate.rendered("as in `patchcore.scoring.hyperbolic`")


@pytest.fixture(scope="module")
def all_words() -> Words:
    return find_words()


SEEN = set(commands(README))  # tested there
LINES = dict.fromkeys(line for text in TEXTS.values() for line in commands(text))


@pytest.mark.parametrize("line", [line for line in LINES if line not in SEEN])
def test_every_command_is_taken_by_both_shells_and_by_the_program(
    line: str, all_words: Words
) -> None:
    check_command(line, all_words)


def test_the_examples_of_the_guide_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, fit, whole = blocks(TEXTS["guides/model.md"], "python")
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        write_image(tmp_path / f"IMAGES/{name}.png", (64, 64))
    names: dict[str, Any] = {"nominal_images": torch.rand(2, 3, 64, 64)}
    names["test_images"] = torch.rand(1, 3, 64, 64)
    exec(fit, names)
    assert isinstance(names["model"], PatchCore)
    (tmp_path / "parts").mkdir()
    (tmp_path / "mine").rename("parts/artifact")
    exec(load, names)
    assert names["found"].path == Path("IMAGES/b.png")
    exec(whole.partition("done = ")[0], names)  # a whole run is what other tests make
    assert names["config"].coreset.ratio == 0.02


def test_it_builds_without_warnings(
    generate: ModuleType,
    rendered: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    needed = "the documentation's builder: pip install 'patchcore[docs]'"
    build = pytest.importorskip("mkdocs.commands.build", reason=needed).build
    load_config = pytest.importorskip("mkdocs.config", reason=needed).load_config
    monkeypatch.setattr(sys, "path", [*sys.path])
    config = load_config(str(REPOSITORY / "mkdocs.yml"), site_dir=str(tmp_path), strict=True)
    with caplog.at_level(logging.WARNING):
        build(config)
    assert [record.getMessage() for record in caplog.records] == []
    page = (tmp_path / "concepts.html").read_text()
    assert page.count("<math") >= 10 and "arithmatex" not in page
    formulas = re.findall(r"<math.*?</math>", page, re.DOTALL)
    assert [each for each in formulas if "\\" in each or "&#x29F5;" in each] == []  # not drawn
    assert "return squared.sqrt().mean(-1)" in re.sub(r"<[^>]+>", "", page)
    loaded = re.findall(r'(?:src|href)="(https?://[^"]+\.(?:js|css|woff2?))', page)
    assert loaded == []  # pages open without a network
