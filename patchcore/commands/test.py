"""`patchcore test`: test an artifact or an export on a data set, with the metrics of a run."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from patchcore.commands.composed import check_numbers
from patchcore.commands.options import Parser, count, new_place, place
from patchcore.commands.overrides import check_overrides, quoted
from patchcore.commands.texts import typed_name
from patchcore.data.files import expanded
from patchcore.data.folder import FOLDERS, FolderConfig
from patchcore.data.sample import DataConfig
from patchcore.data.sets import DATA_SETS
from patchcore.errors import InputError, printable
from patchcore.export import ExportedModel, load_model
from patchcore.idle import advice, idle_words
from patchcore.measuring import kept_data, measure
from patchcore.outputs import check_folder, check_outside
from patchcore.report.run import write_run
from patchcore.sealed import locked
from patchcore.settings import plain
from patchcore.training import quiet

FILES = ("scores.csv", "metrics.json")
_ABOUT = {
    "nominal_test": ("nominal",),
    "masks": ("anomalous",),
    "contamination": ("category", "nominal", "nominal_test", "anomalous"),
}
"""Settings of a run's data that hold for its own images alone: {setting: those of the images}."""


def main() -> None:
    """Entry point: `patchcore test MODEL KEY=VALUE…`."""
    parser = Parser(
        prog="patchcore test",
        description="Measure a model that patchcore train artifact=true has saved, or an export "
        "of it, on a data set. By default, this is the data set of the model's own run.",
    )
    parser.add_argument(
        "model", type=place, metavar="MODEL", help="folder of an artifact or export"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="data=NAME and data.KEY=VALUE, as in patchcore train",
    )
    parser.add_argument(
        "--output", type=new_place, metavar="DIR", help="folder for metrics.json and scores.csv"
    )
    parser.add_argument(
        "--threads", type=count, metavar="N", help="number of threads of an export's runtime"
    )
    options = parser.parse_args()
    if options.output is not None:
        check_outside(options.output, "--output")
        _check_output(options.output)
    quiet()
    inspector = load_model(options.model, options.threads)
    if options.threads is not None and not isinstance(inspector, ExportedModel):
        raise InputError("--threads: is for an export: set OMP_NUM_THREADS for an artifact")
    kept = kept_data(inspector.details)
    data = asked_data(kept, options.overrides)
    check_places(kept, data)
    done = measure(inspector, data)
    print(done.summary())
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        with locked(options.output):
            _check_output(options.output)  # again, as others may test into it, too
            write_run(done, options.output, pictures=False)
        print(f"\nmetrics and scores: {printable(str(options.output))}")


def asked_data(kept: DataConfig | None, overrides: Sequence[str]) -> DataConfig:
    """Return the settings of the data to test on: those in `kept`, changed by `overrides`.

    Args:
        kept: Settings of the data that the model was fitted to, if they are known.
        overrides: `data=NAME` and `data.KEY=VALUE`.

    Raises:
        InputError: An override is not one of these, there is no such data set, a number is out of
            range, or no data set is known.
        omegaconf.errors.OmegaConfBaseException: A setting does not exist, or its value is missing
            or of a wrong type.
    """
    chosen: str | None = None
    settings: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not (key == "data" or key.startswith("data.")):
            raise InputError(
                f"{override}: not understood: type data=NAME or data.KEY=VALUE; other settings "
                "are the model's own"
            )
        if key == "data":
            chosen = value
        else:
            settings.update([_given(override)])
    if chosen is not None and chosen not in DATA_SETS:
        names = ", ".join(DATA_SETS)
        raise InputError(f"data={chosen}: there is no such choice; there are {names}")
    own = kept is not None and (chosen is None or DATA_SETS[chosen] is type(kept))
    if isinstance(kept, FolderConfig) and "data.root" not in settings:
        kept = kept.placed()  # what is typed is relative to the current folder, as in train
    if not own and chosen is None:
        raise InputError(
            "data: the model does not record which data set it was fitted to: give data=NAME"
        )
    if own:
        kept = _without_strangers(kept, settings)
    known: Any = OmegaConf.structured(type(kept) if own else DATA_SETS[str(chosen)])
    tree = OmegaConf.create({"data": OmegaConf.merge(known, plain(kept)) if own else known})
    for key, value in settings.items():
        try:
            OmegaConf.update(tree, key, value)
        except OmegaConfBaseException as error:
            error.full_key = key
            raise
    check_numbers(OmegaConf.to_container(tree))
    data: Any = OmegaConf.to_object(tree)["data"]  # type: ignore[index,call-overload]
    for key in settings:
        if words := idle_words(data, key.removeprefix("data.")):
            warnings.warn(f"{key} has no effect {words}: {advice(words)}", stacklevel=2)
    return data


def _without_strangers(kept: Any, typed: Mapping[str, Any]) -> Any:
    """Return the settings in `kept` without those about images that are not tested on.

    Args:
        kept: Settings of the data that the model was fitted to.
        typed: Values that replace some of them, by `data.KEY`.
    """
    usual = {option.name: option.default for option in fields(kept)}
    changes = {}
    for key, owners in _ABOUT.items():
        value = getattr(kept, key, None)
        if key not in usual or value == usual[key] or f"data.{key}" in typed:
            continue
        for owner in owners:
            new, old = typed.get(f"data.{owner}", MISSING), getattr(kept, owner, MISSING)
            if new == MISSING or os.path.abspath(str(new)) == os.path.abspath(str(old)):
                continue
            changes[key] = usual[key]
            warnings.warn(
                f"data.{key}={value} is left out, as it is about the {owner} images of the model's "
                f"own run: give data.{key} for others",
                stacklevel=3,
            )
            break
    return replace(kept, **changes)


def check_places(kept: DataConfig | None, asked: DataConfig) -> None:
    """Refuse a data set of which a folder that the model's own run has read is not there any more.

    Args:
        kept: Settings of the data that the model was fitted to, if they are known.
        asked: Settings of the data to test on.

    Raises:
        InputError: There is no such folder, and no other was typed.
    """
    if type(kept) is not type(asked) or asked.WRITES:
        return
    keys = ["root"]
    if isinstance(kept, FolderConfig):
        kept, keys = kept.placed(), ["root", *FOLDERS]
    for key in keys if getattr(asked, "root", None) == getattr(kept, "root", None) else ():
        place = getattr(asked, key)
        if place is None or place != getattr(kept, key) or os.path.exists(expanded(place, key)):
            continue
        raise InputError(
            f"data.{key}: {printable(str(place))}, which the model's own run has read, is not "
            "there: give data.root=… if the images have moved"
        )


def _given(override: str) -> tuple[str, Any]:
    """Return key and value of `data.KEY=VALUE`, read as `patchcore train` reads them.

    Raises:
        InputError: The value is not understood, or there are several.
    """
    typed = typed_name(override)
    check_overrides(["--multirun", typed])  # which allows several values; below says what to type
    found = OverridesParser.create().parse_override(typed)
    if found.is_sweep_override() or found.package is not None:
        raise InputError(
            f"{override}: not understood: give one value; one with a comma needs quotes, such as "
            f"{quoted(override)}"
        )
    return found.key_or_group, found.value()


def _check_output(folder: Path) -> None:
    """Refuse a file, and a folder that holds results, because results are never overwritten."""
    check_folder(folder, "--output")
    for name in FILES:
        if os.path.lexists(folder / name):
            raise InputError(f"--output: {folder / name} is there already: name another folder")
