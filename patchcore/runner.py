"""One run, from its settings to its folder: reuse finished results, or fit, test and write.

`run` can be called from Python, too. This file needs no Hydra: the command passes a function that
creates Lightning's objects by Hydra's rules.
"""

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from patchcore.arguments import check_kind, path_of
from patchcore.cache import RECORDS
from patchcore.checksums import amended
from patchcore.config import Config
from patchcore.data.datamodule import AnomalyDataModule
from patchcore.data.overlaps import check_pictures
from patchcore.data.sample import Split
from patchcore.digests import ChangedError
from patchcore.distributed import ProcessGroup, accompany
from patchcore.errors import InputError
from patchcore.identity import identify, weights_files
from patchcore.keeping import Keep, Keeper, saved_on_request
from patchcore.members import EnsembleModule, Member, shown_map
from patchcore.methods import build_detector
from patchcore.module import DetectorModule, ScoringModule
from patchcore.replaced import what_differs
from patchcore.report.distrusted import DISTRUSTED, copy_distrusted, write_distrusted
from patchcore.report.folders import Images
from patchcore.report.images import places_of, write_images
from patchcore.report.run import (
    SOMETIMES,
    Run,
    categories_of,
    pick_gallery,
    pick_misclassified,
    picture_names,
    write_run,
)
from patchcore.resume import (
    FINGERPRINT_FILE,
    PROVENANCE_FILE,
    SOURCE_FILE,
    Finished,
    copy_pictures,
    copy_scores,
    finished_fingerprint,
    read_provenance,
    read_source,
    write_provenance,
)
from patchcore.reuse import networks_kept
from patchcore.run_artifact import (
    check_kept,
    check_replaceable,
    copy_artifact,
    flaw,
    write_artifact,
)
from patchcore.runfolder import DESCRIPTION, FOLDER, METRICS, RunFolder
from patchcore.settings import plain
from patchcore.strategy import check_batches
from patchcore.subsets import by_subset
from patchcore.switches import check_shared
from patchcore.tracking import moved_loggers, tracking
from patchcore.tracking.tables import Details
from patchcore.training import (
    Make,
    Task,
    build_trainer,
    construct,
    described,
    fit,
    fit_members,
    parts,
    prepare,
    quiet,
    take_part,
    test,
)
from patchcore.writing import replace_with
from patchcore.yaml_text import settings_in, write_settings


@dataclass
class Finish:
    """Finished run.

    Attributes:
        folder: Folder of the run.
        record: Contents of metrics.json.
        warm: Names of the stages that read the cache, so that their seconds are not their costs.
        costs: Costs of the stages without the cache; see `patchcore.costs`. None if not known.
        text: Summary for the screen.
    """

    folder: Path
    record: dict[str, Any]
    warm: list[str]
    costs: dict[str, Any] | None
    text: str


def run(
    config: Config,
    folder: str | Path,
    *,
    settings: dict[str, Any] | None = None,
    make: Make | None = None,
    origin: Mapping[str, Any] | None = None,
    multirun: Path | None = None,
) -> Finish:
    """Compute a run into `folder`, or copy its results from where it has finished before.

    Earlier results in `folder` are replaced once the new results are complete, and kept if anything
    fails. If a file of the data changes during the run, the run is started again, but only once.

    Args:
        config: The checked settings; nulls are filled in as the command does, by
            `Config.completed`. `config.trainer` holds arguments of Lightning's Trainer. Its
            callbacks, and loggers, are mappings {"_target_": dotted name, argument: …}.
        folder: Folder of the run; created if it does not exist.
        settings: The settings as plain values, for config.yaml; made from `config` by default.
        make: Function that creates Lightning's objects; by default each `_target_` is imported and
            called.
        origin: Additional entries for provenance.json, such as the overrides.
        multirun: Folder of the multirun that the run belongs to, for `artifact.keep`=best.

    With several devices, torchrun or SLURM may start a process for each device. All processes then
    call this function with the same arguments; all but the first return an empty `Finish`.

    Raises:
        InputError: Bad settings or data, an empty name as `folder`, a second change of the data
            during the run, or another process runs in `folder`.

    >>> config = Config(data=MVTecConfig(root="mvtec", category="screw"), …)
    >>> run(config, "runs/screw").record["image_auroc"]
    """
    check_kind(config, Config, "config", "a Config")
    folder = path_of(folder, "folder")
    quiet()
    config, make = config.completed(), make or construct
    settings = plain(config) if settings is None else settings
    keeper = Keeper(config.artifact, config.objectives[0], folder, multirun)
    check_shared(config)
    with networks_kept(multirun is not None), ProcessGroup(config.trainer) as group:
        if group.process.rank:  # started by torchrun or SLURM; only the first process writes
            accompany(take_part)
            return Finish(folder, {}, [], None, "")
        with RunFolder(folder) as place:
            run_in = partial(_run_in, place, config, settings, make, origin or {}, keeper, group)
            try:
                text = run_in()
            except ChangedError as error:
                warnings.warn(
                    f"{error.path}: the file changed while the run was under way; started again "
                    "with the files as they are now",
                    stacklevel=2,
                )
                place.clear()
                text = run_in()
            except FileNotFoundError as error:
                if place.new.is_dir():
                    raise
                raise InputError(
                    f"{folder}: was moved or removed while the run was under way: start the run "
                    "again"
                ) from error
            keeper.settle()
    return Finish(folder, *_told(folder), text)


def _run_in(
    place: RunFolder,
    config: Config,
    settings: dict[str, Any],
    make: Make,
    origin: Mapping[str, Any],
    keeper: Keeper,
    group: ProcessGroup,
) -> str:
    """Do the work of `run` in a locked folder, and return the summary for the screen."""
    folder = place.path
    check_kept(config)
    split = config.data.read().recorded(weights_files(config))
    contaminated = any(x.label for x in split.train)
    if config.decision.false_alarms is not None and contaminated:
        raise InputError(
            "decision.false_alarms needs nominal training images, but some are anomalous "
            "(data.contamination): set it to null"
        )
    if config.judged and contaminated:
        raise InputError(
            "label_free needs nominal training images, but some are anomalous "
            "(data.contamination): set that to 0, or choose another objective"
        )
    identity = identify(config, split)
    name = identity.fingerprint
    asked = False
    if keeper.contest is not None and finished_fingerprint(folder) == name:
        asked = saved_on_request(folder)
    provenance = keeper.noted({**identity.provenance, **origin}, asked)
    finished = Finished(config.cache.folder() / RECORDS)
    wanted = [f"figures/{picture}" for picture in _pictures(config)]
    if getattr(config.method, "pruning", None) is not None:
        wanted.append(DISTRUSTED)
    files = config.artifact.files(len(config.members()))
    source = None
    if config.resume:
        needed = partial(_needed, files, keeper)
        source = finished.find(name, wanted, folder, needed, partial(flaw, folder=folder))
    if source == folder.resolve() and settings_in(folder) == settings:
        told = read_provenance(folder)
        if (noted := keeper.noted(told)) != told:  # noted by no or another multirun
            with amended(folder, PROVENANCE_FILE):
                write_provenance(folder, noted)
        finished.started(name, folder)  # elsewhere it is looked for by this record
        return f"finished before, in {source}"
    model = [] if config.artifact.keep is Keep.none else files
    pictures = places_of(split.test).values() if config.pictures is not Images.none else ()
    place.check(names := [*wanted, *pictures, *model])
    place.check_folders(names)
    holds = place.holds(f"{FOLDER}/{DESCRIPTION}")
    same = holds and finished_fingerprint(folder) == name  # then what is not made again is kept
    if holds and source != folder.resolve() and (model or not same):
        check_replaceable(folder)
    if keeper.multirun is not None and (differs := _replaced(folder, provenance)):
        warnings.warn(
            f"{folder}: {differs}; to keep those of several multiruns, give each its own "
            "hydra.sweep.dir",
            stacklevel=2,
        )
    (place.new / "config.yaml").write_text(write_settings(settings), encoding="utf-8")
    (place.new / FINGERPRINT_FILE).write_text(f"{name}\n")
    if source is None:
        with _marked(folder, name):
            finished.started(name, folder)
            new = place.new
            done = train(config, split, settings, provenance, folder, new, make, keeper, group)
        what = "figures and tables" if config.figures else "tables"
        text = "\n".join([done.summary(), *done.notes, "", f"{what}: {folder}"])
    else:
        there = read_provenance(source)
        spent: dict[str, Any] = {key: there[key] for key in ("warm", "costs") if key in there}
        write_provenance(place.new, {**provenance, **spent})
        take_over(config, split, settings, source, folder, place.new, make, keeper)
        finished.started(name, folder)
        text = f"finished before, in {source}"
    if same:
        copy_artifact(folder, place.new, config, split, provenance)
    if holds:
        check_replaceable(folder, place.new)  # someone may have changed it meanwhile
    place.commit()
    return text


def _needed(files: list[str], keeper: Keeper, found: Path) -> list[str]:
    """Files of the model that a finished run must hold to be taken over."""
    return files if keeper.wants(*_told(found)) else []


def _replaced(folder: Path, provenance: Mapping[str, Any]) -> str:
    """Return which sound results of other settings in a folder are replaced; empty for none."""
    if finished_fingerprint(folder) is None:
        return ""
    settings = json.loads(json.dumps(provenance["settings"], default=str))
    before = read_provenance(folder)["settings"]
    if before == settings:
        return ""
    return what_differs(before, settings)


@contextmanager
def _marked(folder: Path, name: str) -> Iterator[None]:
    """Write the fingerprint of a run that begins; a refused run takes back what was not there."""
    mark = folder / FINGERPRINT_FILE
    new = not os.path.lexists(mark)
    if not (folder / METRICS).exists():  # else the file must stay that of the old results
        replace_with(mark, f"{name}\n".encode())
    try:
        yield
    except InputError:
        if new:
            mark.unlink(missing_ok=True)
        raise


def train(
    config: Config,
    split: Split,
    settings: dict[str, Any],
    provenance: Mapping[str, Any],
    folder: Path,
    new: Path,
    make: Make,
    keeper: Keeper,
    group: ProcessGroup,
) -> Run:
    """Fit and test one model or ensemble, and write its results to `new`.

    Args:
        config: The checked settings.
        split: Images of `config.data`, with a snapshot.
        settings: The settings as plain values.
        provenance: Contents of provenance.json, without costs.
        folder: Folder of the run.
        new: Folder for the new results, which are moved to `folder` later.
        make: Function that creates Lightning's objects.
        keeper: Rule for keeping the model.
        group: Processes that take part.

    Raises:
        InputError: Settings or data do not suit each other.
        ChangedError: A file of the data has changed during the run.
    """
    if group.process.size > 1:
        check_batches(group.process.size, split, config.batch)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    with tracking(moved_loggers(settings["logger"], folder, new), folder, make) as trackers:
        loggers = list(trackers.loggers.values())
        # First, as Lightning may refuse its settings.
        trainer = build_trainer(config, new, loggers, make, process=group.process)
        models = [build_detector(parts(own)) for own in config.members()]
        trackers.start(settings, provenance)
        module: ScoringModule
        members: list[Member] = []
        if config.ensemble.members:
            members = fit_members(config, models, new, make, split)
            fitted = [member.model for member in members if member.model is not None]
            module = EnsembleModule(members, config.scoring.sigma, config.decision)
            image = config.members()[0].image
            data = AnomalyDataModule(config.data, image, config.augment, split=split)
        else:
            module, data = prepare(config, models.pop(), trainer, split)
            fitted = [module.model]
        with group.working(Task(config, split, new, make)):
            if isinstance(module, DetectorModule):
                fit(trainer, module, data)
            record = test(trainer, module, data)
        check_pictures(split, config.decision.false_alarms is not None or config.judged)
        distrusted = getattr(module, "distrusted", None)  # an ensemble's module has none
        done = Run(
            notes=[] if distrusted is None else [write_distrusted(new, split.train, distrusted)],
            settings=settings,
            metrics=record.metrics,
            undefined=record.undefined,
            seconds=record.seconds,
            samples=split.test,
            scores=[record.scores[i] for i in range(len(split.test))],
            curves=record.curves,
            ratio_curve=record.ratio_curve,
            members=[described(member) for member in members],
            subsets=by_subset(split.test, record.scores, module.pixel_metrics.of),
        )
        maps = partial(shown_map, module)
        if config.figures:
            dataset = data.test_dataset()
            done.gallery = pick_gallery(done, dataset, maps)
            done.misclassified = pick_misclassified(done, dataset, maps)
        if config.pictures is not Images.none:
            write_images(done, data.test_dataset(), maps, new, config.pictures)
        split.check()
        spent: dict[str, Any] = {"warm": sorted(record.warm), "costs": record.costs.table()}
        write_provenance(new, {**provenance, **spent})
        write_run(done, new, config.figures)
        told = done.record()
        if keeper.wants(told, **spent):
            scales = [member.scale for member in members]
            more = (told, trainer.precision, module.decision)
            write_artifact(new, fitted, scales, config, split, provenance, *more)
        shown = data.test_dataset() if config.figures else None
        details = Details.of(module.decision, fitted, shown, maps)
        trackers.track(new, done.gallery, details=details)
    return done


def take_over(
    config: Config,
    split: Split,
    settings: dict[str, Any],
    source: Path,
    folder: Path,
    new: Path,
    make: Make,
    keeper: Keeper,
) -> None:
    """Copy the results of a finished run from `source` to `new`, for the run's folder `folder`.

    Numbers are those of the source. Paths, pictures and trackers follow these settings.
    """
    names = copy_scores(source, split.test, new, categories_of(split.test, settings))
    if wanted := _pictures(config):
        (new / "figures").mkdir()
        for picture in [*wanted, SOMETIMES]:
            if (source / "figures" / picture).is_file():
                (new / "figures" / picture).write_bytes((source / "figures" / picture).read_bytes())
        if config.pictures is not Images.none:
            copy_pictures(source, config.pictures, names, places_of(split.test), new)
    if keeper.wants(*_told(source)):
        copy_artifact(source, new, config, split, read_provenance(new))
    copy_distrusted(source, split.train, new)
    origin = source
    if source == folder.resolve():  # only settings without effect on results have changed
        origin = Path(text) if (text := read_source(source)) else source
    if origin != folder.resolve():
        (new / SOURCE_FILE).write_text(f"{origin}\n")
    (new / METRICS).write_bytes((source / METRICS).read_bytes())
    with tracking(moved_loggers(settings["logger"], folder, new), folder, make) as trackers:
        taken = str(origin) if origin != folder.resolve() else ""
        trackers.start(settings, read_provenance(new), taken)
        trackers.track(new, tested=False)


def _pictures(config: Config) -> list[str]:
    return picture_names(config.figures, bool(config.curve), config.pictures)


def _told(folder: Path) -> tuple[dict[str, Any], list[str], dict[str, Any] | None]:
    """Contents of a finished run's metrics.json, its stages that read the cache, and its costs."""
    provenance = read_provenance(folder)
    record = dict(json.loads((folder / METRICS).read_text()))
    return record, list(provenance.get("warm", [])), provenance.get("costs")
