"""Settings files of one's own, in folders that the command line names."""

import io
import re
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException


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
