"""Settings files of one's own, in folders that the command line names."""

import io
import re
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from patchcore.errors import InputError

OWN = ("patchcore.conf", "hydra.conf")
"""Packages whose settings files are built in, and trusted."""


def own_folders(arguments: Sequence[str]) -> list[Path]:
    """Return the folders of --config-dir, --config-path and hydra.searchpath; none of packages."""
    named: list[str] = []
    try:
        with redirect_stderr(io.StringIO()):
            given, _ = get_args_parser().parse_known_args(arguments)
        named += [each for each in (given.config_dir, given.config_path) if each]
    except SystemExit:  # `check_flags` tells it
        pass
    for argument in arguments:
        if re.match(r"\+*hydra\.searchpath=", argument):
            try:
                value = OverridesParser.create().parse_override(argument).value()
            except HydraException:  # `check_overrides` tells it
                continue
            named += map(str, value if isinstance(value, list) else [value])
    folders = (each.removeprefix("file://") for each in named)
    return [Path(each) for each in folders if "://" not in each]


def own_choices(folders: Sequence[Path], group: str) -> list[str]:
    """Return the choices of a group in these folders, and in folders of the group's own."""
    files = (
        (file, folder / group)
        for folder in folders
        for pattern in ("*.yaml", "*/*.yaml")
        for file in (folder / group).glob(pattern)
    )
    return [file.relative_to(above).with_suffix("").as_posix() for file, above in files]


def check_shadowed(file: str, sources: Iterable[Any]) -> None:
    """Refuse a settings file of one's own if a built-in one of the same name is read in its place.

    Args:
        file: Name of the file that is read, without suffix, such as experiment/example.
        sources: Hydra's sources of settings files, in the order in which they are searched.

    Raises:
        InputError: There is such a file.
    """
    if "/" not in file:  # the main settings, which other folders may have, too
        return
    trusted = [
        each.path in OWN
        for each in sources
        if each.scheme() in ("file", "pkg") and each.is_config(file)
    ]
    if trusted[:1] == [True] and not all(trusted):
        raise InputError(shadowed(file))


def shadowed(file: str) -> str:
    """Return the message for a settings file with the name of a built-in choice.

    >>> shadowed("preset/paper/a")
    'preset/paper/a.yaml: preset=paper/a is built in: give the file another name'
    """
    cut = file.rpartition("/") if file.startswith("hydra/") else file.partition("/")
    return f"{file}.yaml: {cut[0]}={cut[2]} is built in: give the file another name"
