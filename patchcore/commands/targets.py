"""Checks of the classes that settings name as `_target_`, so that files cannot run other code.

The user types the command line, so it may name any class. So may the presets of this package. A
settings file from elsewhere (`--config-dir`, `--config-path`, `hydra.searchpath`) may only name
Lightning's Trainer, loggers and callbacks, Hydra's launchers and sweepers, and Optuna's samplers.
"""

import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra._internal.core_plugins import file_config_source, importlib_resources_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from hydra.utils import get_object
from omegaconf import OmegaConf

from patchcore.commands.generations import call
from patchcore.commands.hydra_values import CONCLUSION
from patchcore.commands.mistakes import renamed_in_file
from patchcore.commands.own import OWN
from patchcore.commands.references import is_in_another, remember, text_of
from patchcore.config import Config
from patchcore.errors import InputError
from patchcore.tracking import TRACKERS

ALLOWED = "Lightning's Trainer, loggers and callbacks (pytorch_lightning.loggers.CSVLogger, …)"
VARIABLE = "PATCHCORE_COMMAND_LINE"
"""Environment variable that passes the command line, as JSON, to the processes of a launcher."""
HYDRA_KEYS = {
    *("launcher", "mode", "output_subdir", "run", "searchpath", "sweep", "sweeper", "verbose"),
    *("job.chdir", "job.name"),
}
"""Settings of Hydra that files from elsewhere may change; others could run other code."""
EVERYWHERE = {"experiment", "hparams_search", "preset"}
"""Groups whose files set other groups."""
CHOSEN = ("data", "method", "coreset", "index")
"""Groups whose choice is not among the settings: a choice names a class, which a file may not."""
MOST_VALUES = 100_000
"""Most values in a settings file from elsewhere, with each alias as often as it occurs."""
RESOLVERS = {
    *("hydra", "now", "oc.env", "oc.select", "oc.deprecated"),
    *("in_multirun", "paper", "run_group", "run_id", "run_name", "tracking_folder", "unique"),
    "wandb_offline",
}
"""Resolvers that files from elsewhere may use: they cannot make mappings with a `_target_`."""
SECRET = re.compile(
    r"(?i)secret|token(?!iz)|pass(w|phrase|code|key|file)|credential|session|cookie|webhook|bearer|"
    r"(api|access|account|deploy|master|license|private|ssh)_?key|key(ring|store|tab)|encryption|"
    r"authoriz|authentic|oauth|certificate|conn(ection)?_?str|"
    r"(amqp|broker|database|db|mongo(db)?|mysql|postgres(ql)?|rabbitmq|redis)_ur[il]|"
    r"_pwd\d*(_|$)|(^|_)(auth|certs?|creds?|dsn|hmac|jwt|keys?|otp|pass|pat|pem|pfx|private|pw|salt|"
    r"sas|signature|signing)\d*(_|$)"
)
"""Names of environment variables that files from elsewhere may not read.

Settings are shown in messages, and recorded in the run's folder and trackers.
"""

_typed: list[str] = json.loads(os.environ.get(VARIABLE, "[]"))  # read before a job can change it


def guard(arguments: list[str] | None = None) -> None:
    """Remember the command line and check every settings file from elsewhere as Hydra loads it.

    Args:
        arguments: Arguments of the command, without its name; by default those of this process.
    """
    _typed[:] = sys.argv[1:] if arguments is None else arguments
    os.environ[VARIABLE] = json.dumps(_typed)
    Plugins.instance()  # registers Hydra's own sources, which are replaced here
    types = SourcesRegistry.instance().types
    types["file"] = FileConfigSource
    types["pkg"] = ImportlibResourcesConfigSource


def command_line() -> list[str]:
    """Return the command-line arguments of this process, or of the process that launched it."""
    return list(_typed)


def check_targets(key: str, settings: Any) -> None:
    """Check every class that `settings` name, before any of them is called.

    Raises:
        InputError: A class is neither named on the command line nor allowed in files.
    """
    for place, name in _targets(settings, key):
        if not (isinstance(name, str) and (_is_typed(name) or _is_known(name))):
            raise InputError(f"{place}={name}: {_advice(place, name)}")


def build(key: str, settings: Any, **more: Any) -> Any:
    """Return an object from the `_target_` and the arguments in `settings`.

    Raises:
        InputError: The class refuses the arguments, cannot be imported or may not be named.
    """
    check_targets(key, settings)
    try:
        return call(settings, **more)
    except Exception as error:  # Hydra 1.3 wraps the errors of a class, 1.4 does not
        raise InputError(f"{key}: {' '.join(str(error.__cause__ or error).split())}") from error


class FileConfigSource(file_config_source.FileConfigSource):
    """Settings files of a folder, checked. Hydra tells sources apart by the class's name."""

    def load_config(self, config_path: str) -> ConfigResult:
        file = f"{self.path}/{config_path}"
        name = f"{file.removesuffix('.yaml')}.yaml"
        try:
            _check_text(name)
            return _checked(file, config_path, super().load_config(config_path))
        except RecursionError:
            raise InputError(f"{name}: is nested too deeply: correct the file") from None
        except (UnicodeDecodeError, yaml.reader.ReaderError):
            raise InputError(f"{name}: is not text in UTF-8: save it as UTF-8") from None


class ImportlibResourcesConfigSource(
    importlib_resources_config_source.ImportlibResourcesConfigSource
):
    """Settings files of a package, checked unless they are this package's or Hydra's own."""

    def load_config(self, config_path: str) -> ConfigResult:
        result = super().load_config(config_path)
        if self.path in OWN:
            return result
        return _checked(f"{self.path}/{config_path}", config_path, result)


def _check_text(file: str) -> None:
    """Refuse a file whose aliases stand for very many values, or whose first line Hydra misses.

    Numbers that YAML reads in another base are refused, too: 010 is 8 there, and 1:30 is 90.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
        remember(file, text)
        for line, number in _in_other_bases(text) if re.search(r"\b0\w|\d:\d", text) else ():
            value = yaml.safe_load(number)
            raise InputError(
                f"{file}: line {line}: {number} would be read as {value}: write {value}, or "
                f"'{number}' with quotes if it is a text"
            )
        node = yaml.compose(text, yaml.SafeLoader) if "*" in text else None
    except (OSError, yaml.MarkedYAMLError):  # Hydra reports these itself
        return
    if text.startswith("\ufeff# @package"):
        raise InputError(f"{file}: begins with a byte-order mark: save it as UTF-8 without one")
    if node is not None and _values(node, {}) > MOST_VALUES:
        raise InputError(f"{file}: its aliases stand for more than {MOST_VALUES:,} values")


def _in_other_bases(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of each whole number in YAML that does not count in tens."""
    resolve = yaml.resolver.Resolver().resolve
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and event.tag is None:
            number = resolve(yaml.ScalarNode, event.value, (True, False)).endswith(":int")
            if number and re.match(r"[-+]?0\w|.*:", event.value):
                yield event.start_mark.line + 1, event.value


def _values(node: yaml.Node, known: dict[int, float]) -> float:
    """Return the number of values in a node, those of an alias as often as it occurs.

    It is infinite where a node holds itself.
    """
    if id(node) not in known:
        known[id(node)] = math.inf
        inner = [] if isinstance(node, yaml.ScalarNode) else node.value
        pairs = (each if isinstance(each, tuple) else (each,) for each in inner)
        known[id(node)] = 1 + sum(_values(each, known) for pair in pairs for each in pair)
    return known[id(node)]


def _checked(file: str, config_path: str, result: ConfigResult) -> ConfigResult:
    """Return `result`; raise InputError if it has something that is not allowed in such a file."""
    file = f"{file.removesuffix('.yaml')}.yaml"
    content = OmegaConf.to_container(result.config, resolve=False)
    if isinstance(content, dict):
        group = config_path.rpartition("/")[0].replace("/", ".")
        if group.partition(".")[0] in EVERYWHERE and not result.header.get("package"):
            raise InputError(f"{file}: must begin with the line '# @package _global_'")
        package = (result.header.get("package") or group).replace("_group_", group)
        package = package.removeprefix("_global_").lstrip(".")
        for problem in _problems(content, package.split(".") if package else []):
            raise InputError(f"{file}: {problem}")
        from patchcore.commands.spelling import check_names, quote_tried  # it imports this module

        check_names(file, text_of(file), package)
        quote_tried(result.config, package)
        if unsaid := [] if package else _unsaid(content):
            raise InputError(
                f"{file}: holds every setting of a run, but not its choice of {', '.join(unsaid)}, "
                "for which defaults would be taken: keep only the settings that differ, and choose "
                "in the defaults, as in 'defaults: [override /coreset: random]'; to repeat a run, "
                "type the command in its report"
            )
        for key in _open_keys(content, package):
            typed = any(each.lstrip("+").startswith(f"{key}=") for each in _typed)
            if not typed and not is_in_another(file, key):  # Hydra would take the default
                raise InputError(
                    f"{file}: {key}: ??? asks for a value: give {key}=…, or write it in the file, "
                    "or remove the line"
                )
    return result


def _unsaid(content: Mapping[Any, Any]) -> list[str]:
    """Return the groups whose choice nothing gives, if a file gives all sections of settings."""
    sections = [option.name for option in fields(Config) if is_dataclass(option.type)]
    if not all(isinstance(content.get(name), Mapping) for name in sections):
        return []
    groups = {
        str(name).partition("@")[0].removeprefix("override ").strip(" /")
        for default in content.get("defaults") or []
        for name in (default if isinstance(default, dict) else [default])
    }
    groups |= {each.partition("=")[0].lstrip("+") for each in _typed}
    return [group for group in CHOSEN if group not in groups]


def _open_keys(content: Mapping[Any, Any], package: str) -> Iterator[str]:
    """Yield the dotted keys of values that a file leaves to others, by ???."""
    for name, value in content.items():
        key = f"{package}.{name}" if package else str(name)
        if isinstance(value, Mapping):
            yield from _open_keys(value, key)
        elif value == "???" and key != "defaults":
            yield key


def _problems(content: dict[Any, Any], package: list[str]) -> Iterator[str]:
    """Yield reasons to refuse a file, one line each; `package` is the path of its keys."""
    for place, name in _targets(content):
        if not (isinstance(name, str) and (_is_known(name) or _is_hydras(name))):
            yield f"{place}={name}: {_advice(place, name)}"
    for text in _texts(content):
        if "_target_" in text and text != "_target_":
            yield f"{text}: a text may not hold _target_: give it on the command line instead"
        for resolver in re.findall(r"\$\{\s*([^{}:]*?(?:\$\{[^}]*\})?[^{}:]*?)\s*:", text):
            if resolver not in RESOLVERS:
                known = ", ".join(sorted(RESOLVERS))
                yield f"${{{resolver}:…}}: a file from elsewhere may use {known} only"
        for name in re.findall(r"oc\.env\s*:\s*([^,}]*)", text):
            if "${" in name or SECRET.search(re.sub(r"\W", "", name)):
                yield (
                    f"${{oc.env:{name}}}: a file from elsewhere may not read a variable that may "
                    "hold a secret: give the value on the command line instead"
                )
    if not isinstance(content.get("defaults") or [], list):
        yield "defaults: must be a list, such as [greedy]"
        return
    for default in content.get("defaults") or []:
        for name in default if isinstance(default, dict) else [default]:
            into = str(name).partition("@")[2].removeprefix("_global_.")
            if into.split(".")[0] == "hydra" or (into and package[:1] == ["hydra"]):
                yield f"defaults: {name}: only the command line may add to hydra"
    yield from renamed_in_file(content, not package)
    names = {option.name for option in fields(Config)}
    for key in content if not package else ():
        group, dot, name = str(key).partition(".")
        if dot and group in names:
            yield f"{key}: write '{group}:' and in the next line, indented, '{name}: …'"
    for key in reversed(package):
        content = {key: content}
    hydra = content.get("hydra")
    if isinstance(hydra, Mapping):
        yield from _hydra_problems(hydra)
    elif hydra is not None:
        yield f"hydra={hydra}: must be a mapping"


def _hydra_problems(hydra: Mapping[Any, Any]) -> Iterator[str]:
    for key, value in hydra.items():
        if key == "job" and isinstance(value, Mapping):
            names = [f"job.{name}" for name in value]
        elif key == "callbacks" and value == {"conclusion": {"_target_": CONCLUSION}}:
            names = []  # a copy of our own config.yaml
        else:
            names = [str(key)]
        for name in names:
            if name not in HYDRA_KEYS and name != "defaults":
                known = ", ".join(sorted(HYDRA_KEYS))
                yield (
                    f"hydra.{name}: a file from elsewhere may set {known} only; if you mean it, "
                    "give it on the command line"
                )
    sweeper = hydra.get("sweeper")
    for given in (sweeper or {}).get("params") or {} if isinstance(sweeper, Mapping) else []:
        if re.match(r"[+~]*hydra\b", str(given)):
            yield f"hydra.sweeper.params.{given}: only the command line may set hydra"


def _targets(settings: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield key and value of every `_target_` at any depth."""
    items: Any = ()
    if isinstance(settings, Mapping):
        items = settings.items()
    elif isinstance(settings, list | tuple):
        items = enumerate(settings)
    for key, value in items:
        inner = f"{place}.{key}" if place else str(key)
        if key == "_target_":
            yield inner, value
        yield from _targets(value, inner)


def _texts(content: Any) -> Iterator[str]:
    """Yield every key and text at any depth."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield str(key)
            yield from _texts(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _texts(value)


def _is_typed(name: str) -> bool:
    """Whether the user named this class on the command line."""
    return any("_target_" in text and name in re.findall(r"[\w.]+", text) for text in _typed)


def _is_known(name: str) -> bool:
    """Whether `name` is a class that runs may use: of a tracker, or Lightning's."""
    return any(name == tracker.target for tracker in TRACKERS.values()) or _is_lightning(name)


def _is_lightning(name: str) -> bool:
    """Whether `name` is Lightning's Trainer or one of its loggers or callbacks."""
    if not re.fullmatch(r"pytorch_lightning(\.\w+)+", name):
        return False
    import pytorch_lightning as pl
    from pytorch_lightning.loggers import Logger

    found = _class(name)
    return found is not None and issubclass(found, pl.Trainer | Logger | pl.Callback)


def _is_hydras(name: str) -> bool:
    """Whether `name` is a launcher or sweeper of Hydra, a sampler of Optuna, or `CONCLUSION`."""
    if name == CONCLUSION:
        return True
    allowed = r"(hydra_plugins|hydra\._internal\.core_plugins|optuna\.samplers)(\.\w+)+"
    return re.fullmatch(allowed, name) is not None and _class(name) is not None


def _class(name: str) -> type | None:
    """The class of this name, if it is one and belongs to the package that the name begins with."""
    try:
        found = get_object(name)
    except Exception:  # whatever the import of a module of that package raises
        return None
    own = isinstance(found, type) and found.__module__.split(".")[0] == name.split(".")[0]
    return found if own else None


def _advice(place: str, name: Any) -> str:
    return (
        f"files may name {ALLOWED}; if you mean this one, give it on the command line: "
        f"'{place}={name}'"
    )
