"""The artifact in a run's folder: written with a record of the run, checked, and copied."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from patchcore.artifact import plain_parts, save, step
from patchcore.artifact_files import check
from patchcore.data.files import expanded
from patchcore.data.images import read_truth
from patchcore.data.sample import DataConfig, Split
from patchcore.data.sets import DATA_SETS
from patchcore.decision import Decision
from patchcore.errors import InputError
from patchcore.explanation import cut_crops
from patchcore.inspector import DIGESTS, MOVED, POSES, SOURCES, Inspector, without_pruned
from patchcore.keeping import Keep
from patchcore.methods import Detector
from patchcore.methods.ensemble import Ensemble
from patchcore.methods.scale import Scale
from patchcore.runfolder import DESCRIPTION, FOLDER, METRICS, of_another_run
from patchcore.sealed import REMEDY, read_description, rewrite_description
from patchcore.settings import plain
from patchcore.training import parts


def write_artifact(
    folder: Path,
    models: Sequence[Detector],
    scales: Sequence[Scale],
    config: Any,
    split: Split,
    provenance: Mapping[str, Any],
    record: Mapping[str, Any],
    precision: str,
    decision: Decision | None = None,
) -> None:
    """Write the artifact of a run to its folder.

    Args:
        folder: Folder of the run.
        models: Fitted models: the members of an ensemble, or a single one.
        scales: Scales of the ensemble's members; empty for a single model.
        config: Settings of the run.
        split: Images of the run.
        provenance: Contents of its provenance.json, at least `data` and `fingerprint`.
        record: Contents of its metrics.json.
        precision: Precision of its Trainer.
        decision: Threshold from nominal images, if one was asked for.
    """
    model: Any = models[0]
    if scales:
        model = Ensemble(models, config.ensemble.scale)
        model.scales = list(scales)
    details: dict[str, Any] = {
        "data": _data(config, split, provenance),
        **_images(split),
        "metrics": record,
        "lineage": [step("fit", images=len(split.train), fingerprint=provenance["fingerprint"])],
    }
    images = [own.image for own in config.members()]
    shared = None if config.data.region is None else split.train[0].region
    region = None if shared is None else read_truth(shared, config.image.limit)
    inspector = Inspector(model, images, decision, details, precision, region)
    if config.artifact.crops:
        inspector.crops = cut_crops(inspector)
    save(inspector, folder / FOLDER, weights=config.artifact.weights)


def check_kept(config: Any) -> None:
    """Refuse to keep an artifact that could not reproduce what the run did.

    Raises:
        InputError: Each image has its own region (`data.regions`), which is not known for future
            images; or crops are asked for, but augmentation moves what the memory holds.
    """
    if config.artifact.keep is not Keep.none and config.data.regions is not None:
        raise InputError(
            "artifact: a saved model cannot know the data.regions of future images: set "
            "data.region (one mask for all images), or artifact=false"
        )
    if config.artifact.crops and len(config.augment.poses()) > 1:
        raise InputError(
            "artifact.crops shows images as they are, but the memory bank also holds them turned: "
            "leave out artifact.crops, or augment.rotations and augment.mirrored"
        )
    if config.artifact.crops and config.augment.moves():
        raise InputError(
            "artifact.crops shows images as they are, but random changes move what the memory bank "
            "holds: leave out artifact.crops, or augment.horizontal_flip, vertical_flip, rotate, "
            "translate and scale"
        )


def flaw(run: Path, folder: Path) -> str | None:
    """Return why the artifact in a run's folder is not as that run left it; None if it is.

    Args:
        run: Folder of a finished run.
        folder: Folder of the present run. If it is the same one, an extended artifact is no flaw:
            it stays where it is.

    Raises:
        InputError: The artifact is of another run, and the present run would replace it.
    """
    here = run.resolve() == folder.resolve()
    try:
        found = check(run / FOLDER)
    except InputError as error:
        return str(error).removesuffix(f": {REMEDY}")  # another run is found, or it is made again
    if of_another_run(found, run):
        if here:
            check_replaceable(folder)
        return f"{run / FOLDER}: is the model of another run"
    return f"{run / FOLDER}: was extended" if len(found["lineage"]) > 1 and not here else None


def check_replaceable(folder: Path, new: Path | None = None) -> None:
    """Refuse to replace an artifact that was extended, or that the run there did not make.

    Args:
        folder: Folder of the run.
        new: Folder with the new results, which may hold the same artifact.

    Raises:
        InputError: `folder` holds such an artifact, and `new` does not hold the same.
    """
    there = folder / FOLDER / DESCRIPTION
    try:
        found = read_description(there, sys.maxsize)  # of any format
        marked = new is None or (folder / METRICS).is_file()  # else by the present run
        foreign = marked and of_another_run(found, folder)
        if len(found["lineage"]) <= 1 and not foreign:
            return
        told = "is the model of another run" if foreign else "was extended"
        if new is not None and (new / FOLDER / DESCRIPTION).read_bytes() == there.read_bytes():
            return
    except FileNotFoundError:  # there is no new one
        pass
    except (InputError, KeyError, TypeError):  # it is damaged, or none
        return
    raise InputError(
        f"{folder / FOLDER}: {told}, and this run would replace it: move it to another "
        "place, or give another folder (hydra.run.dir or hydra.sweep.dir)"
    )


def copy_artifact(
    source: Path, folder: Path, config: Any, split: Split, provenance: Mapping[str, Any]
) -> None:
    """Copy the artifact of the run in `source` to a folder that has none, without other files.

    Paths, and settings without effect, are those of the present run; in an artifact that was
    extended or is of another run, all stays as it is. A partial copy is removed: a better point of
    a multirun may delete the source meanwhile.

    Args:
        source: Folder of a finished run with the same fingerprint.
        folder: Folder for the new results.
        config: Settings of the present run.
        split: Images of the present run.
        provenance: Contents of its provenance.json, at least `data`.
    """
    old, new = source / FOLDER, folder / FOLDER
    if new.exists() or not old.is_dir():
        return
    try:
        new.mkdir()
        for name in (DESCRIPTION, *read_description(old / DESCRIPTION, sys.maxsize)["files"]):
            shutil.copyfile(old / name, new / name)
        found = check(new)
        if len(found["lineage"]) <= 1 and not of_another_run(found, source):
            rewrite_description(new, DESCRIPTION, _of_this_run(found, config, split, provenance))
    except (OSError, InputError):
        shutil.rmtree(new, ignore_errors=True)


def _of_this_run(
    found: dict[str, Any], config: Any, split: Split, provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Contents of artifact.yaml with the paths and settings of another run of the same results."""
    members = [
        {**member, "settings": plain_parts(parts(own)), "image": plain(own.image)}
        for member, own in zip(found["members"], config.members(), strict=True)
    ]
    told = {**found, "members": members, "data": plain(_data(config, split, provenance))}
    before = found.get(SOURCES) or ()
    if len(before) == len(split.train):
        pruned = [number for number, name in enumerate(before) if name is None]
        told.update(without_pruned(_images(split), pruned))
    return told


def _images(split: Split) -> dict[str, Any]:
    """Details about the training images: absolute paths, and digests of the files as read."""
    paths = [sample.path for sample in split.train]
    return {
        SOURCES: [str(path.absolute()) for path in paths],
        DIGESTS[SOURCES]: [split.contents_of(path) for path in paths],
    }


def _placed(data: DataConfig) -> DataConfig:
    """Settings with absolute paths, which name the same images in whatever folder they are read."""
    keys = ("root", "region", "regions")
    given = {key: value for key in keys if isinstance(value := getattr(data, key, None), str)}
    places: dict[str, Any] = {
        key: str(expanded(value, f"data.{key}").absolute()) for key, value in given.items()
    }
    return replace(data, **places)


def _data(config: Any, split: Split, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Details of a model about the data of its run."""
    found = {
        "set": next((name for name, kind in DATA_SETS.items() if type(config.data) is kind), ""),
        "settings": _placed(config.data),
        "train_images": len(split.train),
        "test_images": len(split.test),
        "digests": provenance["data"],
    }
    if (poses := len(config.augment.poses())) > 1:
        found[POSES] = poses
    elif config.augment.moves():
        found[MOVED] = True
    return found
