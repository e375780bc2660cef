"""Names of runs in the trackers, and whether W&B sends them: resolvers of the presets."""

import netrc
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from patchcore.commands.targets import command_line
from patchcore.digests import digest
from patchcore.errors import printable

LONGEST = 128  # characters of a name or group that W&B accepts
VALUE = 40  # characters of a value in a name
UNTOLD = (
    "artifact",
    "cache",
    "data.root",
    "figures",
    "hydra",
    "logger",
    "objectives",
    "pictures",
    "resume",
    "trainer",
)
"""Prefixes of keys that are left out of a single run's name: they do not change its results."""


def run_group() -> str | None:
    """Return the name that all jobs of a multirun share, from its folder; None for a single run."""
    hydra = HydraConfig.get()
    if hydra.mode is not RunMode.MULTIRUN:
        return None
    return "/".join(Path(hydra.sweep.dir).parts[-2:])[-LONGEST:]


def run_name() -> str:
    """Return the name of this run: the settings that vary in its multirun, or a single run's."""
    hydra: Any = HydraConfig.get()
    multirun = hydra.mode is RunMode.MULTIRUN
    given = dict(_settings(hydra.overrides.task))
    if not multirun:
        told = {key: value for key, value in given.items() if not key.startswith(UNTOLD)}
        return name_of(told) or Path(hydra.runtime.output_dir).name
    fixed = fixed_keys(hydra)
    number = str(OmegaConf.select(hydra, "job.num", default=0))
    told = {key: value for key, value in given.items() if key not in fixed}
    return name_of(told, number) or f"#{number}"


def run_id() -> str | None:
    """Return the trackers' identifier of a multirun's point, which is the same after a restart.

    None for a single run: trackers then make a new identifier each time.
    """
    hydra: Any = HydraConfig.get()
    if hydra.mode is not RunMode.MULTIRUN:
        return None
    return digest(os.path.abspath(hydra.runtime.output_dir), list(hydra.overrides.task))[:16]


def tracking_folder() -> str:
    """Return the absolute path of the multirun's folder, or of a single run's folder."""
    hydra = HydraConfig.get()
    multirun = hydra.mode is RunMode.MULTIRUN
    folder = hydra.sweep.dir if multirun else hydra.runtime.output_dir
    return os.path.abspath(os.path.join(hydra.runtime.cwd, folder))


def name_of(settings: dict[str, str], number: str = "") -> str:
    """Return settings as a name of at most 128 characters.

    Args:
        settings: {key: value as typed}.
        number: Number of the job in its multirun. It is appended to a name that had to be cut, so
            that no two jobs have the same name.
    """
    cut = False
    parts = []
    for key, value in settings.items():
        text = printable(value)
        if len(text) > VALUE:
            text, cut = f"…{text[1 - VALUE :]}", True
        parts.append(f"{printable(key)}={text}")
    name = ", ".join(parts)
    if len(name) > LONGEST:  # the last parts of the keys may be enough
        ends = [key.rpartition(".")[2] for key in settings]
        if len(set(ends)) == len(ends):
            name = ", ".join(
                f"{end}={part.partition('=')[2]}" for end, part in zip(ends, parts, strict=True)
            )
    tail = f" #{number}" if number and (cut or len(name) > LONGEST) else ""
    if len(name) + len(tail) > LONGEST:
        name = f"{name[: LONGEST - len(tail) - 1]}…"
    return name + tail


def fixed_keys(hydra: Any) -> set[str]:
    """Return the keys whose last override has a single value, which all jobs of a multirun share.

    Args:
        hydra: Settings of Hydra itself.
    """
    swept: dict[str, bool] = {}
    params = OmegaConf.select(hydra, "sweeper.params") or {}
    given_before = [f"{key}={value}" for key, value in params.items()]
    for text in [*given_before, *command_line()]:  # which goes before the parameters
        if not re.match(r"[+~]*[\w/@.]+=", text):
            continue  # an option, such as --multirun
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            continue
        swept[override.key_or_group] = override.is_sweep_override()
    return {key for key, several in swept.items() if not several}


def _settings(overrides: Sequence[str]) -> Iterable[tuple[str, str]]:
    """Key and value of each override."""
    for text in overrides:
        key, _, value = text.lstrip("+~").partition("=")
        yield key, value


def wandb_offline() -> bool:
    """Whether W&B stays offline: unless a key is configured, or WANDB_MODE=online asks for it."""
    mode = os.environ.get("WANDB_MODE")
    if mode:
        return mode in ("offline", "dryrun")  # W&B reads the other modes itself
    return not (os.environ.get("WANDB_API_KEY") or _logged_in())


def _logged_in() -> bool:
    """Whether `wandb login` has stored a key in the netrc file."""
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    places = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for place in places:
        try:
            if netrc.netrc(Path(place).expanduser()).authenticators(host or ""):
                return True
        except (OSError, RuntimeError, netrc.NetrcParseError):
            pass  # RuntimeError: there is no home
    return False
