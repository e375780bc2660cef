"""Commands and examples of README and documentation, checked without running what is dear."""

import re
import shlex
import subprocess
from collections.abc import Iterator

from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import open_dict

from patchcore.commands import COMMANDS
from patchcore.commands.completion import Words
from patchcore.commands.composed import to_config
from patchcore.commands.generations import VERSION_BASE
from patchcore.commands.overrides import as_typed, check_overrides

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ASIDE = {"docker", "make", "mkdir", "mlflow", "pip", "wandb"}
"""Programs that are not the project's."""
OWN_CHOICES = {"experiment=mine"}
"""Choices that a reader makes first."""


def blocks(text: str, language: str) -> list[str]:
    """Contents of the fenced blocks of a language, in their order."""
    return [content for name, content in FENCE.findall(text) if name == language]


def unlike_rows(text: str) -> list[str]:
    """Rows of Markdown tables with more or fewer cells than the header; headers without a table."""
    found, fenced = [], False
    above: list[str] = []
    for line in [*text.splitlines(), ""]:
        fenced ^= line.startswith("```")
        if line.startswith("|") and not fenced:
            above.append(line)
            continue
        cells = [len(re.split(r"(?<!\\)\|", row.strip().strip("|"))) for row in above]
        underlined = [re.fullmatch(r"[|: -]*-[|: -]*", row) is not None for row in above]
        if above and (len(above) < 3 or not underlined[1]):
            found.append(above[0])
        found += [row for row, count in zip(above, cells, strict=True) if count != cells[0]]
        above = []
    return found


def commands(text: str) -> Iterator[str]:
    """Lines of all blocks of commands."""
    for block in blocks(text, "bash"):
        yield from filter(None, block.splitlines())


def check_command(line: str, words: Words) -> None:
    """Fail unless both shells take a command as it stands and the program knows its options.

    What trains is composed to checked settings, one point of a sweep; nothing runs.
    """
    subprocess.run(["bash", "-n", "-c", line], check=True, capture_output=True)
    words_typed = shlex.split(line)
    while re.fullmatch(r"[A-Z_]+=\w+", words_typed[0]):  # a variable of the environment
        words_typed.pop(0)
    program, *arguments = words_typed
    assert program in ASIDE or program == "patchcore", line
    assert harmless(line), f"zsh or bash would change it: {line}"
    if program != "patchcore":
        return
    command, *rest = arguments
    assert command in COMMANDS, line
    if command == "train":
        check_train(rest)
        return
    flags = {each for each in rest if each.startswith("-")}
    assert flags <= set(words.flags[command]), line


def harmless(line: str) -> bool:
    """Whether neither shell finds anything to expand in `key=value` outside of quotes.

    Patterns of files, as in `outputs/*/wandb`, are meant to be expanded.
    """
    bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", line)
    options = [word for word in bare.split() if "=" in word]
    return not any(set(word) & set("[]{}*?()<>&|;$!`~^\\#") for word in options)


def check_train(arguments: list[str]) -> None:
    """Compose the first point of what `patchcore train` was given; its settings pass all checks."""
    typed = as_typed(arguments)
    check_overrides(typed)
    overrides = [each for each in typed if "=" in each and not each.startswith("-")]
    if not OWN_CHOICES.isdisjoint(overrides):
        return
    parsed = OverridesParser.create().parse_overrides(overrides)
    plain = [each.input_line or "" for each in parsed if not each.is_sweep_override()]
    swept = [each for each in parsed if each.is_sweep_override()]
    if all(each.is_choice_sweep() for each in swept):
        plain = BasicSweeper.split_arguments(parsed, None)[0][0]
    try:
        with initialize_config_module("patchcore.conf", **VERSION_BASE):
            cfg = compose("config", list(plain), return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = "outputs"
            HydraConfig.instance().set_config(cfg)
            del cfg["hydra"]
        to_config(cfg)
    finally:
        HydraConfig.instance().cfg = None
