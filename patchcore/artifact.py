"""A fitted model on disk: a folder of safetensors and one YAML file, which `load` reads anywhere.

What an artifact holds
----------------------

`artifact.yaml`. Its first line is the SHA-256 of everything below it. Its keys are:

- `format`: number of this layout; a program refuses a format newer than its own.
- `members`: one entry for a single model, and one for each member of an ensemble. `settings` are
  those of `Parts`, with the registered names of method, coreset and index in `kind`; `image` holds
  the settings of the network's input; `network` holds the digest, dtype and layers of the weights,
  and their file if they are inside; `drawn` is a digest of the random numbers of the method, which
  `load` draws again.
- `scale`: how an ensemble's scales were measured; null for other models.
- `precision`: of the Trainer that fitted the model.
- `decision`: threshold and calibration, or null; its nominal scores are in a file.
- `files`: size and SHA-256 of every other file.
- `data`, `metrics`, `versions`, `lineage` and any other details that were given. `lineage` lists
  the steps that made the model: first `fit`, then each `extend` and `remove`. `data` describes the
  data of the fit. `sources` are the paths of the training images by their numbers; each row of a
  memory has such a number. `pruned` are the paths of those that `method.pruning` left out; in
  `sources`, null keeps their place. `source_digests` and `pruned_digests` are the digests of these
  files as they were read, by which their copies are noticed wherever the files are now. Null: the
  image was removed, or an earlier version wrote the model, or the file was gone when it was saved.
- `other_details`: names of the details that are not among these. Any further key is refused, since
  a newer version may have written it.

`model.safetensors` holds the state of the model without its networks: memories in their own dtype,
and everything that a method has learnt. `weights.safetensors` holds the used part of the network,
if the artifact was saved with weights (`weights_1.safetensors`, … for the members of an ensemble).
Otherwise, `load` finds the weights like a run (`backbone.weights`), and compares their digest.
`decision.safetensors` holds the nominal scores of the decision. `crops.safetensors` holds small
pictures of the memory's patches, if it was saved with crops. `region.safetensors` holds the pixels
that count, if not all of them do.

Every byte is covered by a digest, so a damaged artifact never gives an answer. Nothing is pickled.
The digests protect against accidents only: anyone who can write to the folder can change them, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from patchcore.arguments import check_kind, path_of
from patchcore.artifact_files import (
    DECISION,
    DETAILS,
    GIVEN,
    MADE,
    MODEL,
    REGION,
    check,
    check_details,
    packed,
    read_tensors,
    write_folder,
)
from patchcore.artifact_files import read_description as read_description
from patchcore.backbones import Backbone, BackboneConfig, LayersConfig
from patchcore.coreset import SAMPLERS
from patchcore.data.transforms import ImageConfig
from patchcore.digests import tensors_digest
from patchcore.errors import InputError
from patchcore.explanation import Crops
from patchcore.identity import LIBRARIES, versions
from patchcore.index import INDEXES
from patchcore.index.exact import check_neighbours
from patchcore.inspector import DIGESTS, Inspector, with_digests
from patchcore.keeping import CROPS, weights_files
from patchcore.methods import METHODS, Detector, Parts, build_detector
from patchcore.methods.detector import Method
from patchcore.methods.ensemble import Ensemble
from patchcore.methods.scale import ScaleConfig
from patchcore.patches import PatchConfig
from patchcore.runfolder import DESCRIPTION
from patchcore.scoring import ScoringConfig
from patchcore.sealed import steadily
from patchcore.settings import plain, shown

_REGISTRIES: dict[str, Mapping[str, type]] = {
    "method": METHODS,
    "coreset": SAMPLERS,
    "index": INDEXES,
}
_SETTINGS: dict[str, type] = {
    "backbone": BackboneConfig,
    "layers": LayersConfig,
    "patch": PatchConfig,
    "scoring": ScoringConfig,
}


def save(
    inspector: Inspector, folder: str | Path, *, weights: bool = False, replace: bool = True
) -> None:
    """Write an artifact in one step; an existing one is replaced when the new one is complete.

    Args:
        inspector: Its model is fitted. `details` get `versions`, `lineage` and the digests of
            `sources` if they lack them.
        folder: Made with its parents; nothing else may be in it.
        weights: Whether the networks' weights are kept inside.
        replace: Whether an existing artifact is replaced, and not refused.

    Raises:
        InputError: The model is not fitted or not of a registered kind, the details are not plain
            values, the folder holds something else or lies inside a model, another process replaces
            it, or it cannot be written.
    """
    check_kind(inspector, Inspector, "inspector", "an Inspector")
    description, tensors = _described(inspector, weights)
    write_folder(path_of(folder, "folder"), description, tensors, replace=replace)


def save_model(
    model: Method,
    folder: str | Path,
    image: ImageConfig | Sequence[ImageConfig] | None,
    decision: Any,
    details: Mapping[str, Any] | None,
    weights: bool,
) -> None:
    """Save a model, which stays as it is: see `Method.save`."""
    members: list[Any] = [*model.members] if isinstance(model, Ensemble) else [model]
    networks = [member.backbone for member in members]
    before = [network.tiling for network in networks]
    try:
        inspector = Inspector(model, image, decision, details)
        for network, own in zip(networks, before, strict=True):
            new = network.tiling
            if own and (new is None or (new.side, new.overlap) != (own.side, own.overlap)):
                wanted = f"tiles={own.side}, overlap={own.overlap}"
                raise InputError(
                    f"image.tiles: the model sees images in tiles ({wanted}), which the artifact "
                    f"must name: give image=ImageConfig({wanted}, …)"
                )
        save(inspector, folder, weights=weights)
    finally:
        for network, own in zip(networks, before, strict=True):
            network.tiling = own


def load(folder: str | Path, device: str | torch.device = "cpu") -> Inspector:
    """Read an artifact, ready to score on `device`.

    No training data is needed, and no network where the weights are inside or local. While another
    process replaces the artifact, the earlier or the new one is read.

    Raises:
        InputError: Begins with the file. It is missing, damaged, of a newer format or not an
            artifact; the weights are not available or not those of the artifact; or there is no
            such device.
    """
    folder = path_of(folder, "folder")
    return steadily(folder, lambda: load_once(folder, device))


def load_once(folder: Path, device: str | torch.device) -> Inspector:
    """Read an artifact as `load` does, without regard to processes that replace it meanwhile.

    Raises:
        InputError: See `load`.
    """
    place = _device(device)
    path = folder / DESCRIPTION
    description = check(folder)
    try:
        described = [*enumerate(description["members"])]
        members = [_built(folder, member, f"members.{n}") for n, member in described]
        images = [
            settings_of(ImageConfig, member["image"], f"members.{n}.image")
            for n, member in described
        ]
        model: Method
        if description["scale"] is None:
            (model,) = members
        else:
            model = Ensemble(members, settings_of(ScaleConfig, description["scale"], "scale"))
        _restore(model, read_tensors(folder, MODEL, description))
        if not all(member.memory_patches for member in members):
            raise ValueError(f"{MODEL}: a memory is empty")
        for member in members:
            _check_neighbours(member)
        decision = _read_decision(folder, description)
        crops = None
        if CROPS in description["files"]:
            crops = Crops.of_tensors(
                **read_tensors(folder, CROPS, description, "places", "data", "ends")
            )
        region = None
        if REGION in description["files"]:
            region = read_tensors(folder, REGION, description, "region")["region"].numpy()
        details = {key: description[key] for key in description if key not in MADE}
        check_details(details)
        for key in DIGESTS.keys() & details:  # of an earlier version: the files may have changed
            details.setdefault(DIGESTS[key], [None] * len(details[key]))
        inspector = Inspector(
            model.to(place), images, decision, details, description["precision"], region
        )
    except InputError as error:
        if str(error).startswith(str(folder)):
            raise
        raise InputError(f"{path}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: is not understood ({type(error).__name__}: {reason})") from error
    inspector.crops = crops
    return inspector


# --- what is written --------------------------------------------------------------------------


def _described(
    inspector: Inspector, weights: bool
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Content of artifact.yaml, without the files' digests, and the tensors of every file."""
    model, members = inspector.model, inspector.members
    scaled = not isinstance(model, Ensemble) or model.scales
    if not scaled or not all(member.memory_patches for member in members):
        raise InputError("the model is not fitted: call fit with nominal images before save")
    own = _network_keys(model)
    state = {key: x for key, x in model.state_dict().items() if not key.startswith(own)}
    tensors = {MODEL: packed(state)}
    described = []
    for number, (member, image) in enumerate(zip(members, inspector.images, strict=True)):
        network, file = member.backbone.network, None
        if weights:
            file = weights_files(len(members))[number]
            tensors[file] = packed(network.state_dict())
        described.append(
            {
                "settings": plain_parts(member.parts),
                "drawn": _drawn_digest(member),
                "image": plain(image),
                "network": {
                    "layers": list(member.backbone.layers),
                    "dtype": str(next(network.parameters()).dtype).removeprefix("torch."),
                    "digest": _network_digest(network),
                    "file": file,
                },
            }
        )
    if inspector.crops is not None:
        tensors[CROPS] = inspector.crops.tensors()
    decision = inspector.decision
    if decision is not None:
        tensors[DECISION] = packed({"scores": decision.scores})
    if inspector.region is not None:
        tensors[REGION] = packed({"region": torch.from_numpy(inspector.region)})
    given = plain({key: x for key, x in inspector.details.items() if key not in MADE})
    check_details(given)
    given = with_digests(given)
    made: dict[str, Any] = {
        "members": described,
        "scale": plain(model.config) if isinstance(model, Ensemble) else None,
        "precision": inspector.precision,
        "decision": None if decision is None else plain(decision.values()),
        GIVEN: [key for key in given if key not in DETAILS],
    }
    libraries = ("patchcore", "safetensors", *LIBRARIES)
    usual = {"data": {}, "metrics": {}, "versions": versions(libraries), "lineage": [step("fit")]}
    return {**made, **plain(usual), **given}, tensors


def step(name: str, **more: Any) -> dict[str, Any]:
    """Return an entry of a lineage: the step, its time, and further facts about it."""
    return {"step": name, "time": datetime.now(UTC).isoformat(timespec="seconds"), **more}


def plain_parts(parts: Parts) -> dict[str, Any]:
    """Return the settings of a detector as plain values; a file of weights by its full path."""
    found = {}
    for option in fields(parts):
        settings = getattr(parts, option.name)
        found[option.name] = plain(settings)
        if (registry := _REGISTRIES.get(option.name)) is not None:
            kinds = [name for name, kind in registry.items() if type(settings) is kind]
            if not kinds:
                raise InputError(
                    f"{option.name}: {type(settings).__name__} is not registered, so nobody could "
                    "load the model: see CONTRIBUTING.md"
                )
            found[option.name] = {"kind": kinds[0], **found[option.name]}
    weights = parts.backbone.resolved()
    if Path(weights).is_file():
        weights = str(Path(weights).resolve())
    found["backbone"]["weights"] = weights
    return found


def _network_keys(model: Method) -> tuple[str, ...]:
    """Beginnings of the keys that a model's networks have in its state dict."""
    named = model.named_modules()
    return tuple(f"{name}." for name, module in named if isinstance(module, Backbone))


def _network_digest(network: nn.Module) -> str:
    """Digest of a network's weights; counters, which only training reads, are left out."""
    state = network.state_dict().items()
    return tensors_digest((key, x) for key, x in state if not key.endswith("num_batches_tracked"))


def _drawn_digest(member: Detector) -> str:
    """Digest of the numbers that a method draws by its seed, or else makes again from its settings.

    Another version of a library could draw other numbers. Rounded values are left out, since they
    may differ.
    """
    own, kept = _network_keys(member), member.state_dict()
    drawn = [(key, x) for key, x in member.named_buffers() if key not in kept]
    return tensors_digest(
        (key, x) for key, x in drawn if not (x.is_floating_point() or key.startswith(own))
    )


# --- what is read -----------------------------------------------------------------------------


def _built(folder: Path, member: dict[str, Any], where: str) -> Detector:
    """A detector with its network, without its memory; `where` is its key in artifact.yaml."""
    parts, network = _parts(member["settings"], f"{where}.settings"), member["network"]
    inside = network["file"]
    backbone = parts.backbone
    if inside is not None:
        backbone = replace(backbone, weights=str(folder / inside))
    try:
        detector = build_detector(replace(parts, backbone=backbone))
    except InputError as error:
        way = (
            ""
            if inside
            else ("; the artifact does not contain the weights: save it with artifact.weights=true")
        )
        raise InputError(f"{folder / DESCRIPTION}: {error}{way}") from error
    detector.parts = parts
    detector.to(getattr(torch, network["dtype"]))
    found = _network_digest(detector.backbone.network)
    if found != network["digest"] or detector.backbone.layers != network["layers"]:
        raise InputError(
            f"{folder / (inside or DESCRIPTION)}: the weights {backbone.weights} of "
            f"{backbone.name} are not the weights that the model was fitted with: restore those "
            "weights, or fit again"
        )
    if member["drawn"] != _drawn_digest(detector):
        raise InputError(
            f"{folder / DESCRIPTION}: {parts.method.name} draws different random numbers here than "
            "where it was fitted: install the library versions that its `versions` lists, or fit "
            "again"
        )
    return detector


def _parts(settings: Mapping[str, Any], where: str) -> Parts:
    """Inverse of `plain_parts`."""
    found = {}
    for key, values in settings.items():
        kind = _SETTINGS.get(key)
        if key in _REGISTRIES:
            if not isinstance(values, dict) or not isinstance(values.get("kind"), str):
                raise InputError(f"{where}.{key}.kind: the name of the {key} is missing")
            values = dict(values)
            name = values.pop("kind")
            if name not in _REGISTRIES[key]:
                raise InputError(
                    f"{key}={name} is not known to this version: install or import "
                    "the package that registers it"
                )
            kind = _REGISTRIES[key][name]
        if kind is None:
            raise ValueError(f"settings of {key}")
        found[key] = settings_of(kind, values, f"{where}.{key}")
    return Parts(**found)


def settings_of(kind: type, values: Any, where: str) -> Any:
    """Settings of a class from plain values, which refer to nothing else; `where` is their key."""
    if not isinstance(values, dict):
        raise InputError(f"{where} must be a mapping {{name: value}}, got {shown(values)}")
    if "${" in str(values):
        raise ValueError("settings refer to something else")
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), values))
    except OmegaConfBaseException as error:
        reason = str(error).partition("\n")[0]
        key = f"{where}.{error.full_key}" if error.full_key else where
        raise InputError(
            f"{key}: this version lacks the setting or the value ({reason})"
        ) from error


def _check_neighbours(model: Detector) -> None:
    """Refuse settings that ask for more neighbours than the memory of a fitted model holds."""
    read = model.parts.method.reads.get("scoring", ())
    if isinstance(read, type) or "neighbours" in read:
        scoring = model.parts.scoring
        check_neighbours(max(scoring.neighbours, scoring.reweight), model.memory_patches)


def _restore(model: Method, state: dict[str, Tensor]) -> None:
    """Load the saved state into a model, in its own dtypes."""
    made = model.state_dict()
    for key, x in state.items():
        if key in made and x.is_floating_point() != made[key].is_floating_point():
            raise ValueError(f"{MODEL}: {key} is {x.dtype}")
        if x.is_floating_point() and not bool(x.isfinite().all()):
            raise ValueError(f"{MODEL}: {key} is NaN or infinite")
    left, unknown = model.load_state_dict(state, strict=False, assign=True)
    left = [key for key in left if not key.startswith(_network_keys(model))]
    if left or unknown:
        raise ValueError(f"{MODEL}: the state lacks {left} and has {unknown}")


def _read_decision(folder: Path, description: dict[str, Any]) -> Any:
    values = description["decision"]
    if values is None:
        return None
    scores = read_tensors(folder, DECISION, description, "scores")["scores"]
    try:
        return import_module("patchcore.decision").Decision.of_values(values, scores)
    except InputError as error:
        raise InputError(f"{folder / DESCRIPTION}: {error}") from error


def _device(device: str | torch.device) -> torch.device:
    check_kind(device, (str, int, torch.device), "device", "text, such as 'cpu', or a torch.device")
    try:
        place = torch.device(device)
        torch.empty(0, device=place).cpu()  # meta keeps no values
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        if reason.startswith("Expected one of"):  # and twenty names follow
            raise InputError(f"device: {device} is not a device; choose cpu, cuda, …") from error
        raise InputError(f"device: {device} is not available here ({reason})") from error
    return place
