"""Agreement of what several files say of the project: versions, extras, commands."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.runs import REPOSITORY

PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
LOCK = (REPOSITORY / "requirements.lock").read_text()
WORKFLOW = (REPOSITORY / ".github/workflows/tests.yml").read_text()
DOCKERFILE = (REPOSITORY / "docker/Dockerfile").read_text()


def requirements(extras: list[str]) -> list[Requirement]:
    """Requirements of the package with extras, the package's own among these resolved."""
    found = []
    for text in [*PROJECT["dependencies"], *(each for extra in extras for each in EXTRAS[extra])]:
        requirement = Requirement(text)
        if requirement.name == "patchcore":
            found += requirements(sorted(requirement.extras))
        else:
            found.append(requirement)
    return found


def locked() -> dict[str, str]:
    """Version of every package in the lock file."""
    pairs = re.findall(r"^([\w.-]+)==([^\s;]+)", LOCK, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pairs}


def test_the_lock_file_has_an_allowed_version_of_everything() -> None:
    versions = locked()
    for requirement in requirements(["dev", "faiss-gpu"]):
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), requirement
    assert "://" not in LOCK  # versions alone, for whatever index there is


def test_the_containers_install_extras_that_there_are_from_the_lock_file() -> None:
    installs = re.findall(r"--constraint requirements\.lock '\.\[([\w,-]+)\]'", DOCKERFILE)
    assert len(installs) == DOCKERFILE.count("uv pip install") == 2
    for extras in installs:
        assert set(extras.split(",")) <= EXTRAS.keys()
    stages = re.findall(r"^FROM \S+ AS (\w[\w-]*)$", DOCKERFILE, re.MULTILINE)
    assert stages[-2:] == ["cuda", "cpu"]
    for stage in stages[-2:]:
        (body,) = re.findall(rf"AS {stage}\n((?:(?!FROM).*\n)*)", DOCKERFILE)
        assert body.rstrip().endswith("USER 1000")  # not root


def test_compose_files_name_the_images_targets_and_commands_that_there_are() -> None:
    from patchcore.commands import COMMANDS

    compose = yaml.safe_load((REPOSITORY / "docker/compose.yaml").read_text())
    gpu = yaml.safe_load((REPOSITORY / "docker/compose.gpu.yaml").read_text())
    assert compose["x-patchcore"]["build"]["dockerfile"] == "docker/Dockerfile"
    assert gpu["services"].keys() <= compose["services"].keys() <= COMMANDS.keys()
    serve = compose["services"]["serve"]
    assert serve["command"][0] == "serve" and "/health" in serve["healthcheck"]["test"][-1]
    assert all(port.startswith("127.0.0.1:") for port in serve["ports"])


def test_the_workflow_tests_every_version_that_is_stated() -> None:
    matrix = yaml.safe_load(WORKFLOW)["jobs"]["tests"]["strategy"]["matrix"]
    stated = [
        text.rpartition(" ")[2]
        for text in PROJECT["classifiers"]
        if re.search(r"Python :: 3\.\d+$", text)
    ]
    assert matrix["python"] == stated
    assert (REPOSITORY / matrix["include"][0]["lock"]).is_file()
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    used = set(re.findall(r"make ([\w-]+)", WORKFLOW + (REPOSITORY / ".ci/run").read_text()))
    assert {"test", "test-next", "docs", "audit"} <= used <= targets


@pytest.mark.parametrize("reached", [True, False])
def test_the_audit_checks_the_lock_file_or_says_that_it_did_not(
    tmp_path: Path, reached: bool
) -> None:
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    tools = tmp_path / ".venv/audit/bin"
    tools.mkdir(parents=True)
    (tmp_path / ".venv/audit/installed").touch()
    for name, script in (("python", f"exit {1 - reached}"), ("pip-audit", 'echo "$@"; exit 3')):
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    done = subprocess.run(["make", "audit"], cwd=tmp_path, capture_output=True, text=True)
    if reached:
        assert done.returncode == 2 and "--requirement requirements.lock" in done.stdout
    else:
        assert done.returncode == 0 and "so requirements.lock was not checked" in done.stdout


def test_licence_and_version_are_one() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert citation["version"] == PROJECT["version"]
    licence = (REPOSITORY / "LICENSE").read_text()
    assert "Apache License" in licence and "END OF TERMS AND CONDITIONS" in licence
    assert f"## {PROJECT['version']}" in (REPOSITORY / "CHANGELOG.md").read_text()


def test_every_rule_has_the_tool_that_installs_in_it() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    recipes = re.findall(r"^[.\w/-]+:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    using = [recipe for recipe in recipes if "\t$(INSTALL)" in recipe]
    assert len(using) >= 4
    for recipe in using:  # with TORCH=cpu it is uv
        assert "$(if $(TORCH)" in recipe.partition("$(INSTALL)")[0], recipe


def test_the_demo_needs_no_tools_of_developers() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    (rule,) = re.findall(r"^demo: (.*)$", makefile, re.MULTILINE)
    (recipe,) = re.findall(r"^\.venv/installed:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert rule == ".venv/installed"
    assert "[dev]" not in recipe and "--editable .\n" in recipe


TEXTS = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "CITATION.cff", "Makefile"),
    *("pyproject.toml", "requirements.lock", ".pre-commit-config.yaml", "mkdocs.yml"),
    *(str(path.relative_to(REPOSITORY)) for path in sorted(REPOSITORY.glob("docker/*"))),
]


@pytest.mark.parametrize("name", TEXTS)
def test_texts_are_plain(name: str) -> None:
    text = Path(REPOSITORY / name).read_text(encoding="utf-8")
    assert text.endswith("\n") and not text.endswith("\n\n")
    assert not re.search(r"[ \t]+$", text, re.MULTILINE), "white space ends a line"
    assert "\u00a0" not in text
