"""Identities: fingerprints and cache keys of everything that a result depends on.

The results of a run depend on

- the settings that change results (`patchcore.settings.effective`), and the classes they belong to,
- names, contents, labels and order of the images and masks,
- contents of the weights,
- the source code of the package that takes part,
- versions of the libraries that take part,
- the class of the computing device, and its precision of matrix products.

A stage whose result is cached (decoded images, layer maps, coreset orders) has a key made of those
of these things that the stage depends on. All keys are made in this file.
"""

import ast
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from patchcore.data.poses import UPRIGHT, Pose
from patchcore.data.sample import Sample, Split
from patchcore.digests import digest, file_digest, tensor_digests, tensors_digest
from patchcore.settings import effective

PACKAGE = "patchcore"


def read_sources(folder: Path) -> dict[str, bytes]:
    """Return the source of every module of the package in `folder`: {dotted name: contents}."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found[".".join((PACKAGE, *parts))] = path.read_bytes()
    return found


SOURCES = read_sources(Path(__file__).parent)
"""Source of the package, read once per process, when this module is imported.

Other modules are imported within a second of this. An edit in between is mistaken for the code that
runs, which only a lock on the checkout could exclude.
"""

EXTRACTION = (f"{PACKAGE}.backbones", f"{PACKAGE}.data.dataset")
ORDERING = tuple(
    f"{PACKAGE}.{name}" for name in ("coreset", "patches", "whitening", "foreground", "pruning")
)
RESULTS = (
    f"{PACKAGE}.module",
    f"{PACKAGE}.members",
    f"{PACKAGE}.methods",
    f"{PACKAGE}.data.datamodule",
)
STEERING = (
    f"{PACKAGE}.module",
    f"{PACKAGE}.methods.banks",
    f"{PACKAGE}.methods.counted",
    f"{PACKAGE}.methods.detector",
    f"{PACKAGE}.methods.gathered",
    f"{PACKAGE}.methods.patchcore",
)
"""Modules that call stages: their own source counts, but not that of the modules they import."""
RUNNING = (
    f"{PACKAGE}.commands.composed",
    f"{PACKAGE}.config",
    f"{PACKAGE}.commands.train",
    f"{PACKAGE}.distributed",
    f"{PACKAGE}.keeping",
    f"{PACKAGE}.report.run",
    f"{PACKAGE}.runner",
    f"{PACKAGE}.strategy",
    f"{PACKAGE}.subsets",
    f"{PACKAGE}.training",
)
"""Modules that put a whole run together and write its numbers; they count like `STEERING`."""

CHOSEN = ("coreset", "index", "method")
"""Groups whose class of settings is part of the identity; of `data`, only the images are."""

IMAGE_LIBRARIES = ("numpy", "Pillow")
LIBRARIES = (*IMAGE_LIBRARIES, "scipy", "timm", "torch", "torchvision")
FAISS_LIBRARIES = ("faiss-cpu", "faiss-gpu")
AUGMENTATION_LIBRARIES = ("albucore", "albumentations", "opencv-python-headless")

_PRECISIONS = {"16": "16-mixed", "32": "32-true", "64": "64-true", "bf16": "bf16-mixed"}


@dataclass(frozen=True)
class Identity:
    """Identity of a run.

    Attributes:
        fingerprint: Digest of all that the results depend on, 32 hexadecimal digits. Two runs with
            the same fingerprint have the same metrics and scores, but not the same times.
        provenance: The same in legible form, as in `provenance.json` in the run's folder:
            `fingerprint`; `settings`, nested, those with an effect, with weights files as name and
            digest; `classes`, {path of a group: class of its settings}; `data`, {train, test:
            digest of names, contents, labels and order}; `source`, digest of the code; `versions`,
            {library: version or null}; `device`, its class; `precision`, of the Trainer and of
            matrix products.
    """

    fingerprint: str
    provenance: dict[str, Any]


def identify(config: Any, split: Split) -> Identity:
    """Return the identity of a run.

    Args:
        config: Settings of the run, a `patchcore.config.Config`.
        split: Training and test images of the run.

    Raises:
        InputError: An image, a mask or a weights file cannot be read.
    """
    groups = dict(_groups(config))
    trainer = config.trainer
    parts = {
        "settings": _with_weights(effective(config)),
        "classes": {key: type(groups[key]).__name__ for key in CHOSEN if key in groups},
        "data": {
            "train": samples_digest(split.train, split),
            "test": samples_digest(split.test, split),
        },
        "source": source_digest(
            {*RESULTS, *(type(group).__module__ for group in groups.values())} - {*RUNNING}, RUNNING
        ),
        "versions": versions(_libraries(groups)),
        "device": device_class(str(trainer.get("accelerator", "auto"))),
        "precision": {"trainer": _precision(trainer.get("precision")), **matrix_precision()},
    }
    pretrained = [_downloaded(config) for config in _networks(groups)]
    name = digest(parts, pretrained)
    return Identity(name, {"fingerprint": name, **parts})


def weights_files(config: Any) -> list[Path]:
    """Return the files that a run's networks take their weights from."""
    files = [Path(str(network.weights)) for network in _networks(dict(_groups(config)))]
    return [file for file in files if file.is_file()]


def samples_digest(samples: Sequence[Sample], split: Split) -> str:
    """Return a digest of samples in their order: names, contents, labels and defect types.

    Names are relative to the deepest folder that contains all images of the split, so that the
    digest does not depend on the place or the spelling of that folder.
    """
    everything = [os.path.abspath(sample.path) for sample in (*split.train, *split.test)]
    common = os.path.commonpath(map(os.path.dirname, everything)) if everything else ""
    return digest(
        [
            [
                os.fsencode(os.path.relpath(os.path.abspath(sample.path), common)),
                sample.label,
                sample.defect_type,
                *sample.contents(split.contents_of),
            ]
            for sample in samples
        ]
    )


def image_recipe(image: Any, pose: Pose = UPRIGHT) -> list[Any]:
    """Return all that a decoded image depends on besides its file: settings, code, libraries.

    Mean, standard deviation and tiles are left out, because pixels are cached before they are
    normalised and cut into tiles. The original pose has the same recipe as in a run without poses.
    """
    later = dict.fromkeys(("mean", "std", "tiles", "overlap"))
    size = {**effective(image), **later}
    recipe = [size, source_digest([f"{PACKAGE}.data.dataset"]), versions(IMAGE_LIBRARIES)]
    return recipe if pose == UPRIGHT else [*recipe, pose.mirrored, pose.degrees]


def image_key(recipe: list[Any], contents: tuple[str | None, ...]) -> str:
    """Return the cache key of decoded pixels, mask and region from the digests of their files."""
    return f"images/{digest(recipe, *contents)}"


def input_digest(recipe: list[Any], image: Any, contents: str) -> str:
    """Return a digest of a network's input from the digest `contents` of an image's file."""
    return digest(recipe, image.mean, image.std, contents)


def defective_digest(image: str, region: Sequence[str], defect: Sequence[Any]) -> str:
    """Return a digest of a network's input with a synthetic defect.

    Args:
        image: Digest of the input without the defect.
        region: Digests of the files that mark the pixels that count, among them the defect's
            centre.
        defect: Kind of the defect, and all numbers that it is drawn from.
    """
    code = source_digest([f"{PACKAGE}.data.defects"])
    return digest(image, list(region), list(defect), code, versions(("numpy", "scipy")))


def network_digest(
    network: nn.Module, layers: Sequence[str], precision: str, device: torch.device
) -> str:
    """Return a digest of all that a batch's layer maps depend on besides its images.

    These are the network with its weights, the layers, the Trainer's precision, the hardware and
    the precision of matrix products (which affect rounding), the code and the libraries.
    """
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    else:
        hardware = f"{device.type} {torch.backends.cpu.get_cpu_capability()}"
    return digest(
        repr(network),
        tensor_digests(network.state_dict().items()),
        list(layers),
        precision,
        hardware,
        matrix_precision(),
        versions(LIBRARIES),
        source_digest(EXTRACTION, STEERING),
    )


def maps_key(network: str, kept_as: Any, image: str, batch: int) -> str:
    """Return the cache key of an image's layer maps, computed in a batch of `batch` images.

    Convolutions may add in another order for another batch size. For the same batch size, the maps
    of an image do not depend on the other images.
    """
    return f"maps/{digest(network, kept_as, image, batch)}"


def counted_key(maps: str, inside: torch.Tensor) -> str:
    """Return a key for the patches of an image that count, by its maps' key and `inside` (H, W)."""
    return f"{maps}/{tensors_digest([('inside', inside)])}"


def order_key(maps: Sequence[str], patch: Any, sampler: Any) -> str:
    """Return the cache key of a coreset order from the keys of the training images' maps.

    The maps' keys include network, precision and hardware. The size of the coreset is left out,
    because one order serves all sizes.
    """
    return "orders/" + digest(
        list(maps),
        effective(patch),
        sampler.unsized(),
        source_digest((*EXTRACTION, *ORDERING), STEERING),
    )


def source_digest(followed: Iterable[str], alone: Iterable[str] = ()) -> str:
    """Return a digest of source files of the package.

    Args:
        followed: Modules that count with all modules of the package that they import, directly or
            indirectly, including imports in functions. A module of another package counts with its
            own file alone.
        alone: Modules that count without their imports; names that do not exist are ignored.
    """
    reached: set[str] = set()
    foreign: dict[str, str | None] = {}
    waiting, modules = list(followed), frozenset(SOURCES)
    while waiting:
        name = waiting.pop()
        if name in SOURCES and name not in reached:
            reached.add(name)
            parts = name.split(".")
            parents = {".".join(parts[:depth]) for depth in range(2, len(parts))}
            # Every import runs the package's __init__.py, which counts alone.
            waiting += {*parents, *_imports(name, SOURCES[name], modules)} - {PACKAGE}
        elif name not in SOURCES:
            file = getattr(sys.modules.get(name), "__file__", None)
            foreign[name] = file_digest(Path(file)) if file and Path(file).is_file() else None
    counted = sorted(reached | {PACKAGE, *alone} & SOURCES.keys())
    return digest({name: _source_digest(SOURCES[name]) for name in counted}, foreign)


_source_digest = lru_cache(maxsize=1024)(digest)


@lru_cache(maxsize=1024)
def _imports(module: str, source: bytes, modules: frozenset[str]) -> frozenset[str]:
    """Modules of the package that `source` imports anywhere, by their dotted names."""
    is_package = any(name.startswith(f"{module}.") for name in modules)
    found = set()
    for node in import_statements(source):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".") if is_package else module.split(".")[:-1]
                above = parts[: len(parts) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return frozenset(found & modules)


_STATEMENT = re.compile(
    rb"^[ \t]*((?:from [\w.]+ )?import (?:\([\w\s,]+\)|[\w., \t]+))(?:#.*)?$", re.MULTILINE
)


def import_statements(source: bytes) -> Iterable[ast.AST]:
    """Return nodes of a source that include all its import statements, also those in functions.

    If every word "import" is in a line that is an import statement, only these lines are parsed:
    parsing the whole package would take half a second.
    """
    lines = _STATEMENT.findall(source)
    if len(lines) == len(re.findall(rb"\bimport\b", source)):
        with suppress(SyntaxError):  # a line of text that looks like a statement
            return ast.parse(b"\n".join(lines)).body
    return ast.walk(ast.parse(source))


def versions(libraries: Iterable[str]) -> dict[str, str | None]:
    """Return the versions of installed libraries, {name: version}; None for missing libraries."""
    found: dict[str, str | None] = {}
    for library in libraries:
        try:
            found[library] = version(library)
        except metadata.PackageNotFoundError:
            found[library] = None
    return found


version = cache(metadata.version)
"""Version of an installed library, kept for the process, which has imported this version."""


def device_class(accelerator: str) -> str:
    """Return the class of device (cpu, cuda, mps, …) that Lightning's `accelerator` selects."""
    if accelerator not in ("auto", "gpu"):
        return accelerator
    if torch.cuda.device_count():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def matrix_precision() -> dict[str, Any]:
    """Return the settings of this process that affect the precision of float32 matrix products."""
    return {
        "float32_matmul": torch.get_float32_matmul_precision(),
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_convolution": torch.backends.cudnn.allow_tf32,
        "tf32_override": os.environ.get("NVIDIA_TF32_OVERRIDE"),
    }


def _groups(settings: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all dataclasses of a tree of settings with their dotted paths; the root's is empty."""
    yield path, settings
    for option in fields(settings):
        value = getattr(settings, option.name)
        below = f"{path}.{option.name}".lstrip(".")
        if is_dataclass(value):
            yield from _groups(value, below)
        elif isinstance(value, list):
            for number, item in enumerate(value):
                if is_dataclass(item):
                    yield from _groups(item, f"{below}.{number}")


def _networks(groups: Mapping[str, Any]) -> list[Any]:
    """Settings of all networks of a run, including those of an ensemble's members."""
    return [group for path, group in groups.items() if path.rpartition(".")[2] == "backbone"]


def _libraries(groups: Mapping[str, Any]) -> list[str]:
    """Libraries that take part in a run with these groups of settings."""
    libraries = list(LIBRARIES)
    if type(groups.get("index")).__name__.startswith("Faiss"):
        libraries += FAISS_LIBRARIES
    if "augment" in groups and groups["augment"].changes():
        libraries += AUGMENTATION_LIBRARIES
    return sorted(libraries)


def _precision(value: Any) -> str:
    """The Trainer's precision in its full spelling."""
    return _PRECISIONS.get(str(value), str(value or "32-true"))


def _with_weights(settings: Any) -> Any:
    """Settings in which each path of a weights file is replaced by the file's name and digest."""
    if isinstance(settings, dict):
        return {
            key: _weights(value) if key == "weights" else _with_weights(value)
            for key, value in settings.items()
        }
    return [_with_weights(item) for item in settings] if isinstance(settings, list) else settings


def _weights(value: Any) -> Any:
    if isinstance(value, str) and (file := Path(value)).is_file():
        return f"{file.name}@{file_digest(file)}"
    return value


def _downloaded(network: Any) -> str | None:
    """Digest of the downloaded weights of a timm tag; None for other weights or without a file."""
    weights, name = str(network.weights), str(network.name)
    if weights == "none" or "." in weights or name == "embedded":
        return None
    from huggingface_hub import try_to_load_from_cache  # here, as few runs need it

    for file in ("model.safetensors", "pytorch_model.bin"):
        try:
            found = try_to_load_from_cache(f"timm/{name}.{weights}", file)
        except ValueError:  # not a valid name of a repository
            return None
        if isinstance(found, str):
            return file_digest(Path(found).resolve())
    return None
