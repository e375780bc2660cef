"""Identities: everything that a result follows from, as fingerprints and cache keys.

Of a run that is

- its settings that change results (`patchcore.settings.effective`), and the classes they belong to,
- names, contents, labels and order of its images and masks,
- contents of its weights,
- the package's source code that takes part,
- versions of the libraries that take part,
- the class of device that computes, and how precisely it multiplies.

A stage whose outcome is kept (decoded images, layer maps, coreset orders) has a key made of the
same things, as far as that stage follows from them. All keys are made in this file.
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
from patchcore.digests import digest, file_digest, tensors_digest
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
"""The package's source, read once a process, when this module is imported.

That is within a second of the import of the other modules. An edit that falls between the two is
taken for the code that runs; nothing short of a lock on the checkout could exclude it.
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
"""Modules that call stages: their text counts for these, but not that of all they import."""
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
"""Modules that put a run together and write its numbers: as `STEERING`, for a whole run."""

CHOSEN = ("coreset", "index", "method")
"""Groups whose settings are of one of several classes; of `data` the images alone count."""

IMAGE_LIBRARIES = ("numpy", "Pillow")
LIBRARIES = (*IMAGE_LIBRARIES, "scipy", "timm", "torch", "torchvision")
FAISS_LIBRARIES = ("faiss-cpu", "faiss-gpu")
AUGMENTATION_LIBRARIES = ("albucore", "albumentations", "opencv-python-headless")

_PRECISIONS = {"16": "16-mixed", "32": "32-true", "64": "64-true", "bf16": "bf16-mixed"}


@dataclass(frozen=True)
class Identity:
    """Identity of a run.

    Attributes:
        fingerprint: Name of all that its results follow from: two runs of one fingerprint have the
            same metrics and scores, up to the seconds that they took.
        provenance: The same, legible, as `provenance.json` of the run's folder holds it:
            `fingerprint`; `settings`, those with an effect, nested, where a weights file is its
            name and digest; `classes`, {path of a group: class of its settings}; `data`, {train,
            test: digest of names, contents, labels and order}; `source`, digest of the code;
            `versions`, {library: version or null}; `device`, its class; `precision`, of the
            Trainer and of matrix products.
    """

    fingerprint: str
    provenance: dict[str, Any]


def identify(config: Any, split: Split) -> Identity:
    """Return the identity of a run by its settings, a tree of dataclasses, and its images.

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

    Names are relative to the folder that all images of the split have in common, so that neither
    its place nor the way it is spelled matters.
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
    """Return all that a decoded image follows from besides its file: settings, code, libraries.

    Mean and standard deviation are left out, and tiles: pixels are kept before they are normalised
    and cut. Of the fixed poses, an image as it is has the recipe of a run without them.
    """
    later = dict.fromkeys(("mean", "std", "tiles", "overlap"))
    size = {**effective(image), **later}
    recipe = [size, source_digest([f"{PACKAGE}.data.dataset"]), versions(IMAGE_LIBRARIES)]
    return recipe if pose == UPRIGHT else [*recipe, pose.mirrored, pose.degrees]


def image_key(recipe: list[Any], contents: tuple[str | None, ...]) -> str:
    """Return the cache key of decoded pixels, mask and region by the digests of their files."""
    return f"images/{digest(recipe, *contents)}"


def input_digest(recipe: list[Any], image: Any, contents: str) -> str:
    """Return a digest of a network's input by the digest of an image's file."""
    return digest(recipe, image.mean, image.std, contents)


def defective_digest(image: str, region: Sequence[str], defect: Sequence[Any]) -> str:
    """Return a digest of a network's input with a synthetic defect.

    Args:
        image: Digest of the input without it.
        region: Digests of the files that say what counts, where the defect's middle lies.
        defect: Its kind, and all numbers that it is drawn from.
    """
    code = source_digest([f"{PACKAGE}.data.defects"])
    return digest(image, list(region), list(defect), code, versions(("numpy", "scipy")))


def network_digest(
    network: nn.Module, layers: Sequence[str], precision: str, device: torch.device
) -> str:
    """Return a digest of all that a batch's layer maps follow from besides its images.

    That is the network with its weights, the layers, the Trainer's precision, what decides how sums
    are rounded, the code and the libraries.
    """
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    else:
        hardware = f"{device.type} {torch.backends.cpu.get_cpu_capability()}"
    return digest(
        repr(network),
        tensors_digest(network.state_dict().items()),
        list(layers),
        precision,
        hardware,
        matrix_precision(),
        versions(LIBRARIES),
        source_digest(EXTRACTION, STEERING),
    )


def maps_key(network: str, kept_as: Any, image: str, batch: int) -> str:
    """Return the cache key of an image's layer maps, computed in a batch of so many images.

    Convolutions may sum in another order for another batch size; in one of the same size an image's
    maps do not depend on its neighbours.
    """
    return f"maps/{digest(network, kept_as, image, batch)}"


def counted_key(maps: str, inside: torch.Tensor) -> str:
    """Return a key for those patches of an image's layer maps that count, by `inside` (H, W)."""
    return f"{maps}/{tensors_digest([('inside', inside)])}"


def order_key(maps: Sequence[str], patch: Any, sampler: Any) -> str:
    """Return the cache key of a coreset order by the keys of the training images' maps.

    Those name network, precision and machine. Sizes are left out: one order serves all of them.
    """
    settings = {**effective(sampler), "ratio": None, "count": None, "radius": None}
    return "orders/" + digest(
        list(maps),
        effective(patch),
        type(sampler).__name__,
        settings,
        source_digest((*EXTRACTION, *ORDERING), STEERING),
    )


def source_digest(followed: Iterable[str], alone: Iterable[str] = ()) -> str:
    """Return a digest of source files of the package.

    Args:
        followed: Modules that count with all that they import from the package, at any depth and
            inside functions too. One of another package counts with its own file.
        alone: Modules that count without their imports; those that do not exist are passed over.
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
            # Whoever imports anything imports the package's own first file: it counts alone.
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
    """Return nodes, among them all import statements of a source wherever they stand.

    Where every word "import" is one of a line that is such a statement, which is nearly everywhere,
    these lines alone are parsed: to parse the whole package takes half a second.
    """
    lines = _STATEMENT.findall(source)
    if len(lines) == len(re.findall(rb"\bimport\b", source)):
        with suppress(SyntaxError):  # a line of prose
            return ast.parse(b"\n".join(lines)).body
    return ast.walk(ast.parse(source))


def versions(libraries: Iterable[str]) -> dict[str, str | None]:
    """Return the versions of libraries as they are installed; None for those that are not."""
    found: dict[str, str | None] = {}
    for library in libraries:
        try:
            found[library] = version(library)
        except metadata.PackageNotFoundError:
            found[library] = None
    return found


version = cache(metadata.version)
"""Version of an installed library: what a process has imported stays as it is."""


def device_class(accelerator: str) -> str:
    """Return the class of device (cpu, cuda, mps, …) that Lightning's `accelerator` leads to."""
    if accelerator not in ("auto", "gpu"):
        return accelerator
    if torch.cuda.device_count():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def matrix_precision() -> dict[str, Any]:
    """Return how this process multiplies float32 matrices."""
    return {
        "float32_matmul": torch.get_float32_matmul_precision(),
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_convolution": torch.backends.cudnn.allow_tf32,
        "tf32_override": os.environ.get("NVIDIA_TF32_OVERRIDE"),
    }


def _groups(settings: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All dataclasses of a tree of settings, by their dotted paths; the root's is empty."""
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
    """Settings of all networks of a run, its ensemble's members' among them."""
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
    """Settings with each weights file as its name and digest, wherever it lies."""
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
    """Digest of a timm tag's weights where they have been downloaded; None elsewhere."""
    weights, name = str(network.weights), str(network.name)
    if weights == "none" or "." in weights or name == "embedded":
        return None
    from huggingface_hub import try_to_load_from_cache  # here: few runs need it

    for file in ("model.safetensors", "pytorch_model.bin"):
        try:
            found = try_to_load_from_cache(f"timm/{name}.{weights}", file)
        except ValueError:  # it is no name that a repository can have
            return None
        if isinstance(found, str):
            return file_digest(Path(found).resolve())
    return None
