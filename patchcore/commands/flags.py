"""Flags of `patchcore train`, which are Hydra's, checked before anything slow is imported."""

import io
import sys
from argparse import Action, ArgumentParser
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from difflib import get_close_matches
from pathlib import Path

import yaml  # type: ignore[import-untyped]
from hydra._internal.utils import get_args_parser

from patchcore.errors import InputError, printable

CONFIG_NAME = "config"
"""Name of the main settings file of `patchcore train`."""


def check_flags(arguments: Sequence[str]) -> None:
    """Refuse flags that Hydra does not take.

    These are unknown ones, one without its value or with two, one between settings, and some pairs
    of flags.

    Args:
        arguments: Of the command line, without the program.

    Raises:
        InputError: One line with the flag and the closest existing one, or with the setting that
            follows a flag.
    """
    parser: ArgumentParser = get_args_parser()
    told = io.StringIO()
    try:
        with redirect_stderr(told), redirect_stdout(io.StringIO()):
            given, strange = parser.parse_known_args(arguments)
    except SystemExit as end:
        if not end.code:  # --version, which the command itself prints
            return
        reason = told.getvalue().strip().rpartition("error: ")[2]
        raise InputError(reason.removeprefix("argument ")) from None
    for each in strange:
        if each.startswith("-"):
            flag = each.partition("=")[0]
            near = get_close_matches(flag, _flags(parser._actions), 1)
            hint = f"did you mean {near[0]}?" if near else "patchcore train --help lists them"
            raise InputError(f"{printable(flag)}: there is no such option; {hint}")
    _check_once(parser, arguments)
    modes = [
        name
        for name in ("run", "multirun", "cfg", "info")
        if getattr(given, name) not in (None, False)
    ]
    if len(modes) > 1:
        raise InputError(f"--{modes[0]} and --{modes[1]} exclude each other: leave one out")
    if given.resolve and not (given.cfg or given.help):
        raise InputError("--resolve has no effect without --cfg: give --cfg job, or leave it out")
    if given.config_path is not None:
        name = (given.config_name or CONFIG_NAME).removesuffix(".yaml")
        _check_main(Path(given.config_path) / f"{name}.yaml", "--config-path")
    elif given.config_dir is not None:
        _check_beside(Path(given.config_dir), given.config_name)
    if strange and not given.help:  # Hydra's parser wants all settings side by side
        raise InputError(
            f"{printable(strange[0])}: a flag is between this setting and earlier ones; write "
            "flags such as --multirun before all settings"
        )


def _check_once(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    """Refuse a second value of a flag, which would replace the first."""
    counting = ArgumentParser(add_help=False)
    for action in parser._actions:
        if action.option_strings and action.nargs != 0:
            counting.add_argument(
                *action.option_strings, dest=action.dest, action="append", nargs=action.nargs
            )
        elif action.option_strings:
            counting.add_argument(*action.option_strings, dest=action.dest, action="store_true")
    for name, values in vars(counting.parse_known_args(arguments)[0]).items():
        if not isinstance(values, list) or len(values) == 1:
            continue
        *_, before, last = map(printable, map(str, values))
        flag = f"--{name.replace('_', '-')}"
        advice = "give one"
        if flag == "--config-dir":
            advice = f"give one, and the other by hydra.searchpath=[{before}]"
        raise InputError(f"{flag}: takes one value, got {before} and {last}: {advice}")


def _check_main(file: Path, flag: str) -> None:
    """Refuse main settings without defaults, such as those that a run has left."""
    if flag == "--config-path" and not file.is_absolute():  # for Hydra, it is in the package
        return
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # Hydra tells it
        return
    if not isinstance(content, dict) or "defaults" not in content:
        raise InputError(
            f"{flag}: {file} has no list of defaults, so it cannot be the main settings: "
            "to repeat a run, type the command in its report; to change settings, put a file into "
            "a folder experiment and name it with --config-dir and experiment=NAME"
        )


def _check_beside(folder: Path, name: str | None) -> None:
    """Refuse a file with the name of the main settings, which are read in its place.

    A warning names it where it was not asked for.
    """
    file = folder / f"{(name or CONFIG_NAME).removesuffix('.yaml')}.yaml"
    if not file.is_file():
        return
    if file.stem != CONFIG_NAME:
        _check_main(file, "--config-name")
        return
    told = (
        f"{printable(str(file))} {{}} read, as {file.name} is the name of the built-in main "
        "settings: to change settings, begin the file with 'defaults: [config, _self_]' and give "
        "it another name, for --config-name; to repeat a run, type the command in its report"
    )
    if name is not None:
        raise InputError(f"--config-name: {told.format('would not be')}")
    print(f"warning: {told.format('is not')}", file=sys.stderr)


def _flags(actions: Sequence[Action]) -> list[str]:
    return [flag for action in actions for flag in action.option_strings if flag[:2] == "--"]
