"""`patchcore completion`: a script with which bash, zsh or fish completes the command with Tab.

The script itself holds all words, taken from the declarations of settings when it is printed:
starting Python at every Tab would take seconds. Hydra's own completion does start Python, and it
calls the program by a name that differs from `patchcore train`.
"""

import argparse
import io
import re
import shlex
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from importlib.metadata import version
from types import UnionType
from typing import Any, Union, get_args, get_origin

from patchcore.commands import COMMANDS
from patchcore.commands.options import Parser
from patchcore.commands.overrides import choices
from patchcore.commands.settings_help import options

TRAIN_FLAGS = ("--multirun", "--cfg", "--config-dir", "--config-name", "--help", "--info")
"""Options of Hydra that are useful with `patchcore train`."""
EPILOG = """Run this once, and again after an update:
  bash  mkdir -p ~/.local/share/bash-completion/completions
        patchcore completion bash > ~/.local/share/bash-completion/completions/patchcore
  zsh   patchcore completion zsh > ~/.patchcore.zsh
  fish  mkdir -p ~/.config/fish/completions
        patchcore completion fish > ~/.config/fish/completions/patchcore.fish
Then start a new shell. bash needs its package bash-completion; zsh needs, at the end of ~/.zshrc:
  autoload -Uz compinit && compinit
  source ~/.patchcore.zsh"""


@dataclass(frozen=True)
class Words:
    """All that can be completed.

    Attributes:
        flags: Options of each command, {command: names}.
        values: Choices of each group, and values of options that have only a few: {key: values}.
        keys: All groups and options of `patchcore train`.
    """

    flags: Mapping[str, list[str]]
    values: Mapping[str, list[str]]
    keys: list[str]


def main(arguments: list[str] | None = None) -> None:
    """Entry point: `patchcore completion SHELL`."""
    parser = Parser(
        prog="patchcore completion",
        description="Print a script with which a shell completes commands, settings and choices.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=[*SCRIPTS])
    shell = parser.parse_args(arguments).shell
    print(f"{_HEADS[shell]}{SCRIPTS[shell](words())}")


def words() -> Words:
    """Return the words, from the commands' parsers and the declarations of the settings."""
    values: dict[str, list[str]] = {
        group: names
        for group, names in choices().items()
        if "/" not in group.removeprefix("hydra/") and group != "hydra"
    }
    keys = [*values]
    for named, _, kind in options():
        key = named.partition(" ")[0]  # the rest names the choices that have the option
        keys.append(key)
        if few := _values(kind):
            values[key] = few
    flags = {name: _flags(name) for name in COMMANDS if name not in ("train", "completion")}
    flags |= {"train": [*TRAIN_FLAGS], "completion": ["--help"]}
    return Words(flags, values, sorted(set(keys)))


def _values(kind: Any) -> list[str]:
    """Values of a type that has only a few; empty for other types."""
    if get_origin(kind) in (Union, UnionType):
        found = [value for each in get_args(kind) for value in _values(each)]
        return [*found, "null"] if found and type(None) in get_args(kind) else found
    if kind is bool:
        return ["true", "false"]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [each.name for each in kind]
    return []


def _flags(command: str) -> list[str]:
    """Options of a command, from its own help."""
    before, sys.argv = sys.argv, [f"patchcore {command}", "--help"]
    try:
        with redirect_stdout(io.StringIO()) as told, suppress(SystemExit):
            import_module(f"patchcore.commands.{command}").main()
    finally:
        sys.argv = before
    return sorted(set(re.findall(r"^ +(?:-\w, )?(--[\w-]+)", told.getvalue(), re.MULTILINE)))


def bash(words: Words) -> str:
    """Return the script for bash, which splits words at = if COMP_WORDBREAKS contains it."""
    values = "\n".join(
        f"            {key}) values={shlex.quote(' '.join(few))} ;;"
        for key, few in words.values.items()
    )
    flags = "\n".join(
        f"        {command}) values={shlex.quote(' '.join(names))} ;;"
        for command, names in words.flags.items()
    )
    keys = " ".join(f"{key}=" for key in words.keys)
    return f"""\
_patchcore() {{
    local word=${{COMP_LINE:0:COMP_POINT}} values='' before=''
    word=${{word##*[[:space:]]}}
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W '{" ".join(COMMANDS)} --help --version' -- "$word"))
        return
    fi
    if [[ ${{COMP_WORDS[1]}} == train && $word == *=* ]]; then
        case ${{word%%=*}} in
{values}
        esac
        before=${{word%"${{word##*[=,]}}"}}
        word=${{word##*[=,]}}
        [[ $COMP_WORDBREAKS == *=* ]] && before=${{before#*=}}
        COMPREPLY=($(compgen -P "$before" -W "$values" -- "$word"))
        return
    fi
    case ${{COMP_WORDS[1]}} in
{flags}
        *) return ;;
    esac
    case ${{COMP_WORDS[1]}} in
        train) values+=' {keys}' ;;
        completion) values+=' {" ".join(SCRIPTS)}' ;;
    esac
    COMPREPLY=($(compgen -W "$values" -- "$word"))
    [[ ${{COMPREPLY[0]-}} == *= ]] && compopt -o nospace
    return 0
}}
complete -o bashdefault -o default -F _patchcore patchcore"""


def zsh(words: Words) -> str:
    """Return the script for zsh, to be put into its `fpath` or sourced."""
    commands = "\n".join(
        f"        {shlex.quote(f'{name}:{purpose}')}" for name, purpose in COMMANDS.items()
    )
    values = "\n".join(
        f"                {key}) compadd -- {shlex.join(few)} ;;"
        for key, few in words.values.items()
    )
    flags = "\n".join(
        f"        {command}) compadd -- {' '.join(names)} ;;"
        for command, names in words.flags.items()
    )
    keys = " ".join(f"{key}=" for key in words.keys)
    return f"""\
_patchcore() {{
    local -a commands=(
{commands}
    )
    if ((CURRENT == 2)); then
        _describe command commands
        return
    fi
    if [[ $words[2] == train ]]; then
        if [[ $PREFIX == *=* ]]; then
            local key=${{PREFIX%%=*}}
            compset -P '*[=,]'
            case $key in
{values}
                *) _files ;;
            esac
            return
        fi
        compadd -S '' -- {keys}
    fi
    case $words[2] in
{flags}
    esac
    case $words[2] in
        train) ;;
        completion) compadd -- {" ".join(SCRIPTS)} ;;
        *) _files ;;
    esac
}}
if [[ $funcstack[1] == _patchcore ]]; then
    _patchcore "$@"
else
    compdef _patchcore patchcore
fi"""


def fish(words: Words) -> str:
    """Return the script for fish."""
    commands = "\n".join(
        f"complete -c patchcore -f -n __fish_use_subcommand -a {name} -d {_fish_quoted(purpose)}"
        for name, purpose in COMMANDS.items()
    )
    values = "\n".join(
        f"            case {_fish_quoted(key)}\n"
        f"                printf '%s\\n' $before{{{','.join(few)}}}"
        if len(few) > 1
        else f"            case {_fish_quoted(key)}\n                echo $before{few[0]}"
        for key, few in words.values.items()
    )
    flags = "\n".join(
        f"complete -c patchcore -n '__fish_seen_subcommand_from {command}' -l {name[2:]}"
        for command, names in words.flags.items()
        for name in names
    )
    keys = " ".join(f"{key}=" for key in words.keys)
    return f"""\
function __patchcore_settings
    set -l word (commandline -ct)
    if string match -q '*=*' -- $word
        set -l before (string replace -r '[^=,]*$' '' -- $word)
        switch (string split -m 1 = -- $word)[1]
{values}
        end
    else
        printf '%s\\n' {keys}
    end
end
{commands}
complete -c patchcore -f -n __fish_use_subcommand -l help -l version
complete -c patchcore -f -n '__fish_seen_subcommand_from completion' -a '{" ".join(SCRIPTS)}'
set -l known '__fish_seen_subcommand_from train; and count (__patchcore_settings) > /dev/null'
complete -c patchcore -f -n $known -a '(__patchcore_settings)'
{flags}"""


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SCRIPTS = {"bash": bash, "zsh": zsh, "fish": fish}
"""Functions that make the scripts: {shell: function}."""
_MADE = f"# Tab completion of patchcore {version('patchcore')}, made by: patchcore completion "
_HEADS = {
    "bash": f"{_MADE}bash\n",
    "zsh": f"#compdef patchcore\n{_MADE}zsh\n",
    "fish": f"{_MADE}fish\n",
}
