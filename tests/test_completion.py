"""Completion scripts, as the shells run them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from patchcore.commands import COMMANDS
from patchcore.commands.completion import SCRIPTS, Words, words
from tests.runs import patchcore


@pytest.fixture(scope="module")
def all_words() -> Words:
    return words()


def test_words_are_those_of_the_declarations(all_words: Words) -> None:
    assert set(all_words.flags) == set(COMMANDS)
    assert "--overlays" in all_words.flags["predict"] and "--metric" in all_words.flags["report"]
    assert all(all_words.flags.values())
    assert all_words.values["coreset"] == ["all", "approximate", "greedy", "learned", "random"]
    assert all_words.values["scoring.distance"] == ["euclidean", "squared", "cosine"]
    assert all_words.values["figures"] == ["true", "false"]
    assert {"coreset", "coreset.ratio", "curve", "hydra/launcher"} <= set(all_words.keys)
    assert not any(" " in key for key in all_words.keys)


CASES = [
    ("tr", ["train"]),
    ("train coreset.rat", ["coreset.ratio="]),
    ("train --multi", ["--multirun"]),
    ("train coreset=gr", ["greedy"]),
    ("train -m seed=0 coreset=greedy,ra", ["greedy,random"]),
    ("train scoring.distance=co", ["cosine"]),
    ("train hydra/launcher=pro", ["processes"]),
    ("train nothing.like.this=x", []),
    ("predict --over", ["--overlays"]),
    ("completion fi", ["fish"]),
]
BASH = """
source "$1"
COMP_LINE="patchcore $2"; COMP_POINT=${#COMP_LINE}
read -ra COMP_WORDS <<< "${COMP_LINE//=/ = }"
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
compopt() { :; }
_patchcore
printf '%s\\n' "${COMPREPLY[@]}"
"""
ZSH = """
compdef() { : }
_describe() { print -rl -- ${commands%%:*} | grep "^$PREFIX" }
_files() { : }
compset() { IGNORED=${PREFIX%"${PREFIX##*[=,]}"}; PREFIX=${PREFIX##*[=,]} }
compadd() {
    [[ $1 == -S ]] && shift 2
    shift
    print -rl -- $@ | grep -e "^$PREFIX" | sed "s/^/${${IGNORED-}#*=}/"
}
source "$1"
words=(patchcore ${=2}) CURRENT=$#words PREFIX=$words[-1]
_patchcore
true
"""
FISH = """
source $argv[1]
for line in (complete -C "patchcore $argv[2]")
    string replace -r '\\t.*' '' -- $line | string replace -r '^[^-]*=(.)' '$1'
end
"""
PROGRAMS = {"bash": ["bash", "-c", BASH, "bash"], "zsh": ["zsh", "-fc", ZSH, "zsh"]}
PROGRAMS["fish"] = ["fish", "--no-config", "-c", FISH]


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_shell_completes(shell: str, all_words: Words, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    script = tmp_path / "script"
    script.write_text(SCRIPTS[shell](all_words))
    (empty := tmp_path / "empty").mkdir()
    for typed, expected in CASES:
        done = subprocess.run(
            [*PROGRAMS[shell], script, typed],
            cwd=empty,  # files are completed where nothing else is known
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.stderr, done.stdout.split()) == ("", expected), typed


def test_the_command_prints_the_script() -> None:
    done = patchcore("completion", "bash")
    assert done.code == 0 and "complete -o bashdefault" in done.out
    assert patchcore("train", "-sc", "install=bash").err == (
        "error: -sc: is now called patchcore completion bash, zsh or fish\n"
    )
    asked = patchcore("completion", "bsh")
    assert asked.code == 1 and re.fullmatch(r"error: .*'bsh'.*\n", asked.err)
