"""Mistakes of a user, each explained in one line that begins with the key.

For options and choices of earlier versions, the line names their replacement.
"""

import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from patchcore.commands.environment import unknown_backend
from patchcore.commands.own import shadowed
from patchcore.commands.references import place_of
from patchcore.commands.shortages import explain_shortage
from patchcore.errors import InputError, printable

GROUPS = {"model": "method", "search": "hparams_search"}
"""Renamed groups, {earlier name: name}; keys that begin with them are renamed, too."""

PRESETS = (
    *("ensemble_320", "patchcore_1", "patchcore_10", "patchcore_100", "patchcore_100_ivfpq"),
    *("patchcore_25", "wide_resnet101_280", "wide_resnet101_280_123"),
)
CHOICES = {
    **{f"method={name}": f"preset={name}" for name in PRESETS},
    **{f"patch=p{size}": f"patch.size={size}" for size in (1, 3, 5, 7)},
    **{f"layers=only{level}": f"layers={level}" for level in (1, 2, 3)},
    "scoring=cosine": "scoring.distance=cosine",
    "scoring=maximum": "scoring.reweight=0",
    "scoring=squared": "scoring.distance=squared",
    **{f"experiment=paper/table_{n}": "experiment=paper/table_1" for n in (2, 3, "s1", "s2", "s3")},
    "experiment=paper/figure_s3": "experiment=paper/table_1",
    "experiment=paper/figure_s2": "experiment=paper/figure_s1",
    "experiment=paper/figure_6": "experiment=paper/table_s5",
}
"""Renamed choices of groups: {earlier override: override}."""


PLUGINS = {
    **dict.fromkeys(
        ("hydra/launcher/joblib", "hydra/launcher/submitit_local", "hydra/launcher/submitit_slurm"),
        "launchers",
    ),
    "hydra/launcher/ray": "ray",
    "hydra/sweeper/optuna": "optuna",
}
"""Plugins that our choices need, and the extra that installs each."""


def successor(key: str, value: str = "") -> str | None:
    """Return the override that replaces `key` of an earlier version, or its choice `value`.

    None if neither was renamed.
    """
    if value and (now := CHOICES.get(f"{key}={value}")):
        return now
    group, dot, rest = key.partition(".")
    if group in GROUPS:
        return f"{GROUPS[group]}{dot}{rest}{f'={value}' if value else ''}"
    return None


def image_successor(preset: str) -> str:
    """Return the overrides that stand for a preset named by its size; empty for other names.

    >>> image_successor("px280"), image_successor("px256_whole")
    ('image.size=280 image.view=crop', 'image.size=256 image.view=whole')
    """
    match = re.fullmatch(r"(px)?([1-9]\d*)(?:_(square|whole))?", preset)
    if match is None:
        return ""
    view = match[3] or ("crop" if match[1] else "")
    return f"image.size={match[2]}" + (f" image.view={view}" if view else "")


def renamed(key: str, values: str) -> str | None:
    """Return the message for an override that was renamed; None if it was not.

    Args:
        key: Key or group.
        values: One value, or several with commas between them, as typed.
    """
    for value in values.split(",") if re.fullmatch(r"[\w/+.,-]*", values) else [""]:
        if (now := successor(key, value)) is not None:
            typed = f"{key}={value}" if value else key
            return f"{typed}: is now called {now}"
    return None


def renamed_in_file(content: Mapping[Any, Any], in_root: bool) -> Iterator[str]:
    """Yield a message for each renamed key or choice in a settings file.

    Args:
        content: Content of the file.
        in_root: Whether its keys are at the root of all settings.
    """
    given = []
    for default in content.get("defaults") or []:
        for name, choice in default.items() if isinstance(default, Mapping) else ():
            given.append((str(name).removeprefix("override").strip().lstrip("/"), choice))
    if in_root:
        given += [(str(key), "") for key in content]
        node: Any = content
        for key in ("hydra", "sweeper", "params"):
            node = node.get(key) if isinstance(node, Mapping) else None
        given += node.items() if isinstance(node, Mapping) else ()
    for key, value in given:
        if (told := renamed(str(key), str(value))) is not None:
            yield told


def explain(error: Exception) -> str | None:
    """Return a user's mistake in one line that begins with the key; None if the error is a bug.

    Hydra's and OmegaConf's own messages take several lines, and advise to add the misspelt key.
    """
    if isinstance(error, InputError):
        return str(error)
    if (message := explain_shortage(error)) is not None:
        return message
    if (message := unknown_backend(error)) is not None:
        return message
    if isinstance(error, UserWarning) and (file := re.match(SHADOWED, str(error))):
        return shadowed(file[1])
    if isinstance(error, RecursionError) and (names := _of_defaults(error.__traceback__)):
        return f"defaults: {_circle(names)}: correct the file"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        place, words = error.problem_mark, " ".join(str(error.problem).split())
        return f"{place.name}: line {place.line + 1} is not understood ({words}): correct the file"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file in PLUGINS:
        return (
            f"{error.missing_cfg_file}: this plugin of Hydra is not installed: pip install "
            f"'patchcore[{PLUGINS[error.missing_cfg_file]}]'"
        )
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        from patchcore.commands.overrides import choices  # here: it imports this module

        group, _, choice = error.missing_cfg_file.rpartition("/")
        names = [*(error.options or ())] or choices().get(group, [])
        first = group.partition("/")[0]
        if first != "hydra" and first in choices():  # the choice lies in a folder of the group
            group, choice = first, f"{group}/{choice}".removeprefix(f"{first}/")
            names = sorted({*names, *choices()[group]})
        known = f"there are {', '.join(names)}"
        if named := _other_suffix(str(error), error.missing_cfg_file):
            return f"{named}: settings files end in .yaml: rename it"
        if not names:
            return f"{error.missing_cfg_file}.yaml: there is no such settings file"
        if group == "image" and (overrides := image_successor(choice)):
            known = f"set {overrides}"
        return f"{group}={choice}: there is no such choice; {known}"
    cause: BaseException = error
    if isinstance(error, HydraException):
        hidden = isinstance(error.__context__, OmegaConfBaseException)
        cause = error.__cause__ or (error.__context__ if hidden else None) or error
    if not isinstance(cause, HydraException | OmegaConfBaseException):
        return None
    key = getattr(cause, "full_key", None)
    if key == "_dummy_":  # in a list of defaults
        return f"{' '.join(str(error).split(', possible')[0].split())}: name a choice of the group"
    file = re.match(r"In '([^']+)': \w+ raised while composing", str(error))
    if not key and file:
        words = " ".join(str(cause).partition("\n    full_key:")[0].split())
        if words == "Cannot merge DictConfig with ListConfig":
            words = "must hold settings (KEY: VALUE), not a list, or was put into one by @"
        told = re.sub("^must be", "a group must be", _plainly("", words))
        return f"{file[1]}.yaml: {told}: correct the file{' or the place' * ('@' in told)}"
    if isinstance(cause, InterpolationResolutionError) and key:
        key = _origin(cause) or key
    if not key:
        if "does not support sweep type" in str(error):
            return (
                "interval(…) is for a search, such as hparams_search=accuracy_seconds: choose one, "
                "or give the values to try, such as coreset.ratio=0.01,0.1"
            )
        words = re.sub(r"(?s)^Error when parsing index:.*?(?=Error parsing)", "", str(error))
        words = words.partition("\nSee https:")[0].partition("\n    full_key:")[0]
        words = " ".join(words.split())
        if unlisted := re.match(r"Could not override '([^']+)'\. No match in the defaults", words):
            return _no_such_group(unlisted[1])
        return _plainly("", words) if "Environment variable" in words else words
    if "Missing mandatory value: hydra.job.num" in str(cause):
        return f"{key}: only hydra.sweep.subdir may hold hydra.job.num, the number of a point"
    if isinstance(cause, MissingMandatoryValue):
        return f"{key} is missing: give {key}=…"
    if isinstance(cause, ConfigAttributeError | ConfigKeyError):
        message = no_such_option(key, cause.object_type)
    else:
        words = " ".join(str(cause).partition("\n    full_key:")[0].split())
        reference = _reference(cause, words, key)
        words = re.sub(r"(?s)^While dereferencing interpolation '.*?': ", "", words)
        message = f"{key}: {_plainly(key, words)}"
        if "Cannot convert 'list' to string" in message:
            message += f"; text in brackets needs two kinds of quotes: \"{key}='[…]'\""
        elif isinstance(cause, InterpolationKeyError):
            message += "; ${ always begins a reference: rename what has it in its name"
        message += place_of(*reference, key) if reference and not file else ""
    typed = re.match(r"(?:Error merging override |Could not override ')([\w.]+)", str(error))
    if typed and typed[1].partition(".")[0] != re.split(r"[.\[]", key)[0]:  # key of a list's item
        message = f"{typed[1]}: {message}"
    else:
        message += _one_by_one(key, message)
    return f"{message} (in {file[1]}.yaml)" if file else message


def _other_suffix(message: str, name: str) -> str | None:
    """Path of a settings file `name` that ends in .yml, in one of the folders that Hydra names."""
    for folder in re.findall(r"path=(?:file://)?(/.+)", message):
        if (path := Path(folder) / f"{name}.yml").is_file():
            return printable(str(path))
    return None


def _no_such_group(name: str) -> str:
    from patchcore.commands.overrides import choices  # here: it imports this module

    known = sorted(choices())
    close = get_close_matches(name, known, 1)
    rest = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
    return f"{name}: no settings choose from such a group; {rest}"


def _reference(error: BaseException, words: str, key: str) -> tuple[str, bool] | None:
    """Reference at a key that an error is about, and whether it is one to another kind of value."""
    if given := re.match(r"While dereferencing interpolation '(.*?)': ", words):
        return given[1], True
    node: Any = getattr(error, "child_node", None)
    if not isinstance(error, InterpolationResolutionError) or node is None:
        return None
    own = _raw(node._get_root(), key)
    return None if own is None else (str(own._value()), False)


def _origin(error: OmegaConfBaseException) -> str | None:
    """Key where a reference stands that cannot be followed; other settings may refer to that key.

    None if the reference is relative or of no key.
    """
    node: Any = error.child_node
    root = None if node is None else node._get_root()
    passed: list[str] = []
    while node is not None and node._is_interpolation():
        key = node._get_full_key("")
        if key in passed:  # in a circle
            return key
        if not key:
            break
        passed.append(key)
        for named in re.findall(r"\$\{([\w.]+)\}", str(node._value())):
            other = _raw(root, named)
            if other is not None and not _resolves(other):
                node = other
                break
    return passed[-1] if passed else None


def _raw(root: Any, key: str) -> Any:
    """Node of a key before interpolations are resolved; None if there is none."""
    *above, last = key.split(".")
    node = root
    for name in (*above, last):
        if not isinstance(node, DictConfig) or node._is_none() or node._is_missing():
            return None
        node = node._get_node(name, validate_access=False)
        if node is None:
            return None
    return node


def _resolves(node: Any) -> bool:
    try:
        node._dereference_node()
    except OmegaConfBaseException:
        return False
    return True


_KINDS = {"Integer": "a whole number", "Float": "a number", "valid bool": "true or false"}
_UNLIKE = re.compile(
    rf"Value '(.*?)' (?:of type '\w+' )?(?:could not|is not) .*({'|'.join(_KINDS)})"
)
"""Matches OmegaConf's message for a value of a wrong type."""


def _plainly(key: str, words: str) -> str:
    """Return OmegaConf's message about the value of a key in terms of settings."""
    if unlike := _UNLIKE.match(words):
        value = "settings" if "of type 'DictConfig'" in words else unlike[1] or "nothing"
        return f"must be {_KINDS[unlike[2]]}, got {value}"
    if choices := re.fullmatch(r"Invalid value '(.*)', expected one of \[(.*)\]", words):
        return f"must be one of {choices[2]}, got {choices[1]}"
    if absent := re.match(r"Interpolation key '(.*)' not found", words):
        return f"refers to {absent[1]}, which does not exist"
    if words.startswith(("Recursive interpolation", "Interpolation to parent node")):
        return "refers to itself, directly or through others: give a value"
    if absent := re.search(r"Environment variable '(.*)' not found", words):
        return (
            f"the environment variable {absent[1]} is not set: set it, or write a value for that "
            f"case, such as ${{oc.env:{absent[1]},0}}"
        )
    if re.match(r"(missing|extraneous input|mismatched input|token recognition|no viable) ", words):
        return "is not understood: check the brackets of ${…}"
    if re.search(r"\w+\(\) missing \d+ required", words):
        return "cannot be resolved, for an argument is missing: write it, such as ${oc.env:NAME}"
    if absent := re.match(r"\w+ raised while resolving interpolation: \W*(.*?)\W*$", words):
        return f"cannot be resolved: {absent[1]}"
    if re.match(r"field '.*' is not Optional|Incompatible value 'None' for field", words):
        return "may not be null: leave it out, or give a value"
    if re.search(r"is not a ListConfig, .*list,? or tuple\.$", words):
        return f"must be a list: '{key}=[…]'"
    if several := re.match(
        r"Value ([\[{].*[\]}]) \((?:list|dict)\) is not a valid input for <enum", words
    ):
        return f"must be one value, got {several[1]}"
    if re.match(r"Cannot assign \w+ to Dict\[", words):
        return f"must hold settings (KEY: VALUE), such as ++{key}.KEY=VALUE"
    if words.endswith("(DictConfig) does not support deletion"):
        return f"cannot be removed: leave ~{key} out"
    if words == "Cannot merge DictConfig with ListConfig":
        return "is a list where settings (KEY: VALUE) belong, or settings where a list belongs"
    plain = re.search(r"\w+ is not a subclass of \w+\. value: ?(.*)", words)
    if plain and plain[1] == "None":  # in a list
        return "may not be null: leave it out, or give a value"
    if plain:
        return f"must be settings (KEY: VALUE), got {plain[1] or 'nothing'}"
    return words


def _one_by_one(key: str, message: str) -> str:
    """Advice for a message about values in brackets where a run takes one; empty for others."""
    listed = re.search(r"must be .*, got \[([^\[\]{}]+)\]$", message)
    if not listed:
        return ""
    values = [each.strip(" '") for each in listed[1].split(",")]
    if len(values) == 1:
        return f": leave the brackets out ({key}={values[0]})"
    return f": for a run of each, type --multirun {key}={','.join(values)}"


def _of_defaults(trace: TracebackType | None) -> list[str]:
    """Settings files whose lists of defaults were being followed, the outermost first."""
    found: list[str] = []
    for frame, _ in traceback.walk_tb(trace):
        if frame.f_globals["__name__"].endswith("defaults_list"):
            path = frame.f_locals.get("path")
            found += [path] if isinstance(path, str) and found[-1:] != [path] else []
    return found


SHADOWED = r"\s*'((?!hydra/)[^']+)' is validated against ConfigStore schema with the same name"
"""Beginning of Hydra's warning of a settings file that has the name of a built-in choice."""


def _circle(names: Sequence[str]) -> str:
    """Say which files name each other; `names` go round and round."""
    last = [place for place, name in enumerate(names) if name == names[-1]]
    around = names[last[-2] + 1 :] if len(last) > 1 else names[-1:]
    files = [f"{name}.yaml" for name in around]
    if len(files) == 1:
        return f"{files[0]} names itself"
    return f"{', '.join(files)} name each other in a circle"


def without_kind(group: str, schema: Any, name: str = "") -> str:
    """Return words for settings of a file that does not say of which kind they are; else "".

    Args:
        group: Such as data.
        schema: Dataclass of its settings.
        name: Option that was given, which some kinds have.
    """
    from patchcore.commands.groups import SCHEMAS  # here: help for other mistakes need not wait

    kinds = SCHEMAS.get(group, {})
    if not kinds or schema in kinds.values():
        return ""
    having = [kind for kind in kinds if name in {option.name for option in fields(kinds[kind])}]
    *others, last = having or kinds
    names = f"{', '.join(others)} or {last}" if others else last
    return (
        f"the settings file does not say which {group} it is for: add the line 'defaults: [KIND]', "
        f"where KIND is {names}"
    )


def no_such_option(key: str, parent: Any) -> str:
    """Return the message for an unknown key, with the closest option of its `parent`."""
    if (now := successor(key)) is not None:
        return f"{key}: is now called {now}"
    if not is_dataclass(parent):
        tried = key.removeprefix("hydra.sweeper.params.")
        known = "if the class that receives it knows it,"
        if tried != key:
            known = f"write --multirun {tried}=… to try several values, or"
        return f"{key}: there is no such option; {known} write +{key}=…"
    names = [option.name for option in fields(parent)]
    if not names and (told := _without_settings(key, parent)):
        return told
    group, dot, name = key.rpartition(".")
    if words := without_kind(group, parent, name):
        return f"{key}: {words}"
    if name == group:
        return f"{key}: its settings are those of {group} already: leave the line '{name}:' out"
    close = get_close_matches(name, names, 1)
    rest = f"did you mean {group}{dot}{close[0]}?" if close else f"there are {', '.join(names)}"
    return f"{key}: there is no such option{_elsewhere(group, name, parent)}; {rest}"


def _elsewhere(group: str, name: str, kind: Any) -> str:
    """Words for the choice that lacks an option, if another choice of its group has it; else ""."""
    from patchcore.commands.groups import SCHEMAS  # here: it is slow

    kinds = SCHEMAS.get(group, {})
    having = [each for each in kinds.values() if name in {option.name for option in fields(each)}]
    chosen = next((f" with {group}={choice}" for choice in kinds if kinds[choice] is kind), "")
    return chosen if having else ""


def _without_settings(key: str, kind: Any) -> str:
    """Message for a setting of a choice that has none; empty if `kind` is no choice."""
    from patchcore.commands.groups import SCHEMAS  # here: it is slow

    group = key.partition(".")[0]
    chosen = [name for name, each in SCHEMAS.get(group, {}).items() if each is kind]
    if not chosen:
        return ""
    message = f"{key}: {group}={chosen[0]} has no settings: leave it out"
    if group == "coreset":
        others = [name for name, each in SCHEMAS["method"].items() if "coreset" not in each.reads]
        message += f", or choose another coreset (method={' and '.join(others)} have none)"
    return message
