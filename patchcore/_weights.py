"""Weights by name or from a file, and the input that their record says they were trained for."""

import difflib
import pickle
import re
import urllib.error
import urllib.request
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from patchcore._record import InputRecord
from patchcore.errors import InputError, counted, local, unreadable

EMBEDDED = "embedded"
"""Name of the network that ships with this package."""
SHIPPED = "shipped"
"""Name of its weights."""
NONE = "none"
"""Name of seeded random weights, of any network."""
FILE_SUFFIXES = {".safetensors", ".pt", ".pth", ".bin", ".ckpt"}


def is_file(weights: str) -> bool:
    """Whether weights are named by a file rather than by a tag."""
    return Path(weights).suffix.lower() in FILE_SUFFIXES


def default_weights(name: str) -> str:
    """Weights of a network where none are named: the paper's, else the first of timm's."""
    if name == EMBEDDED:
        return SHIPPED
    tags = _tags(name)
    if not tags:
        raise InputError(
            f"backbone.weights: timm has no weights for {name!r}: give a .safetensors or .pth "
            "file, or none"
        )
    return "tv_in1k" if "tv_in1k" in tags else tags[0]


def check_names(name: str, weights: str) -> None:
    """Raise InputError unless there is such a network and, where a tag names them, such weights."""
    local(weights, "backbone.weights")
    tags = [SHIPPED] if name == EMBEDDED else _tags(name)
    if not is_file(weights) and weights != NONE and weights not in tags:
        if Path(weights).is_dir():
            raise InputError(f"backbone.weights: {weights} is a folder: name a file in it")
        if Path(weights).is_file():
            raise InputError(
                f"backbone.weights: the name of the file {weights} has to end in one of "
                f"{', '.join(sorted(FILE_SUFFIXES))}: rename it"
            )
        owner = "the embedded network" if name == EMBEDDED else "timm"
        raise InputError(
            f"backbone.weights: {owner} has no weights {name + '.' + weights!r}; give one of "
            f"{', '.join(tags)}, a .safetensors or .pth file, or none"
        )


SAVE = "save the network's state_dict alone, best as .safetensors"
"""Advice for a file that holds more than tensors."""


def check_file(weights: str) -> None:
    """Raise InputError if weights are named by a file that is not there."""
    local(weights, "backbone.weights")
    if is_file(weights) and Path(weights).is_dir():
        raise InputError(f"backbone.weights: {weights} is a folder: name a file in it")
    if is_file(weights) and not Path(weights).is_file():
        raise InputError(f"backbone.weights: no such file: {weights}")


def input_record(name: str, weights: str) -> InputRecord:
    """Record of the input, without building the network or downloading anything.

    Random weights and those of a file have the record of the network's default weights in timm;
    the embedded network has its teacher's, of ImageNet.

    Raises:
        InputError: No such network or tag, or the network takes no RGB images.
    """
    check_names(name, weights)
    if name == EMBEDDED:
        return InputRecord()
    import timm  # a second of import time that `import patchcore` need not pay

    tag = "" if weights == NONE or is_file(weights) else f".{weights}"
    cfg = timm.get_pretrained_cfg(name + tag)
    channels, *_, side = cfg.input_size
    if channels != 3 or not len(cfg.mean) == len(cfg.std) == 3:
        raise InputError(
            f"backbone.name: {name} takes images of {counted(channels, 'channel')}, not RGB"
        )
    return InputRecord(tuple(cfg.mean), tuple(cfg.std), side)


def is_flexible(name: str) -> bool:
    """Whether timm builds this vision transformer for images of any size if asked to.

    BEiT and transformers with relative positions are built for one size.
    """
    import timm

    family = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
    return family in ("vision_transformer", "vision_transformer_hybrid", "deit", "eva")


def require_weights(name: str) -> None:
    """Fail within seconds, not after the hub client's minute of retries.

    Raises:
        InputError: The weights are not in the local cache, and nobody answers.
    """
    import timm
    from huggingface_hub import constants, try_to_load_from_cache

    repository = timm.get_pretrained_cfg(name).hf_hub_id
    files = ("model.safetensors", "pytorch_model.bin")
    if repository and any(isinstance(try_to_load_from_cache(repository, f), str) for f in files):
        return
    try:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        urllib.request.urlopen(request, timeout=5).close()
    except urllib.error.HTTPError:
        return  # it answered
    except OSError as error:
        raise unavailable(name, error) from None


def unavailable(name: str, error: Exception) -> InputError:
    """Error for weights that timm cannot get or read, with the ways out."""
    return InputError(
        f"backbone.weights: {name!r} is not in the local cache and cannot be downloaded, or is "
        f"damaged there ({_reason(error)}); give a local file with "
        "backbone.weights=FILE.safetensors, or use the network that ships with this package: "
        "backbone=embedded"
    )


def load_file(network: nn.Module, path: Path, modules: Collection[str] = ()) -> None:
    """Load a state dict; everything that the cut network needs must be in it, with its shape.

    Args:
        modules: Names of all modules that the network had before it was cut, if any are to be
            compared: a deeper network of the same family has all tensors of a shallower one.

    Raises:
        InputError: The file cannot be read, holds something else, or does not fit.
    """
    state = _state(_read(path), path)
    left = {name for name, _ in network.named_children()}
    for key in state if modules else ():
        if key.partition(".")[0] in left and key.rpartition(".")[0] not in modules:
            raise InputError(
                f"backbone.weights: {path} holds {key!r}, for which the network has no place; "
                "set backbone.name to the network that the file is of"
            )
    for key, value in network.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        if key not in state:
            advice = _why_lacking(key, state, network.state_dict())
            raise InputError(f"backbone.weights: {path} lacks {key!r}{advice}")
        loaded = state[key]
        if odd := _without_values(loaded):
            raise InputError(
                f"backbone.weights: {path} holds {key!r} as {odd}, and the network needs plain "
                "values: save the state_dict of the loaded network"
            )
        if loaded.shape != value.shape:
            raise InputError(
                f"backbone.weights: {path} holds {key!r} as {tuple(loaded.shape)}, but the "
                f"network needs {tuple(value.shape)}"
            )
        if loaded.is_floating_point() != value.is_floating_point() or loaded.is_complex():
            raise InputError(
                f"backbone.weights: {path} holds {key!r} as {_dtype(loaded)}, but the network "
                f"needs {_dtype(value)}: export its weights unquantised"
            )
        try:
            value.copy_(loaded)
        except (NotImplementedError, RuntimeError):  # of a dtype that PyTorch cannot convert
            raise InputError(
                f"backbone.weights: {path} holds {key!r} as {_dtype(loaded)}, which cannot be "
                f"converted to {_dtype(value)}: export its weights unquantised"
            ) from None
        if not bool(value.isfinite().all()):
            raise InputError(
                f"backbone.weights: {path} holds NaN or infinite values in {key!r}; train or "
                "export it again"
            )
        if key.endswith("running_var") and bool((value < 0).any()):
            raise InputError(
                f"backbone.weights: {path} holds negative variances in {key!r}; train or export it "
                "again"
            )
    matrices = [x for x in network.state_dict().values() if x.ndim > 1 and x.numel() > 1]
    if matrices and all(bool((x == x.flatten()[0]).all()) for x in matrices):
        warnings.warn(
            f"backbone.weights: in {path}, each tensor holds one value alone: its scores are no "
            "better than chance",
            stacklevel=3,
        )


def _tags(name: str) -> list[str]:
    """Tags of timm's weights of a network, its default first. Raises InputError if unknown."""
    import timm

    if name not in timm.list_models(name):  # given a name, it sorts no list of a thousand
        models = timm.list_models()
        base, _, tag = name.partition(".")
        close = difflib.get_close_matches(name, models, 3, 0.5)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        if base in models:
            hint = f"; use backbone.name={base} backbone.weights={tag}"
        raise InputError(f"backbone.name: timm has no network {name!r}{hint}")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
    default = timm.get_pretrained_cfg(name).tag
    return sorted(tags, key=lambda tag: tag != default)


def _read(path: Path) -> Any:
    """The file's contents, in the format that its first bytes show; nothing in it is executed."""
    try:
        if _is_safetensors(path):
            from safetensors.torch import load_file as load

            return load(path)
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # the error tells it
            # Given a path, PyTorch would choose the format by its extension.
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        words = f"backbone.weights: {path} cannot be read: {_reason(error)}"
        if not words.endswith(SAVE):
            words += "; replace it with an intact copy"
        raise unreadable(path, words) from None


def _is_safetensors(path: Path) -> bool:
    """Whether a file is in safetensors' format, by its contents or, if damaged, by its name."""
    with open(path, "rb") as file:
        start = file.read(9)  # the length of a header in JSON, and its brace
    if start[8:] == b"{":
        return True
    return path.suffix.lower() == ".safetensors" and not start.startswith((b"PK", b"\x80"))


def _reason(error: Exception) -> str:
    """An error in one line. PyTorch's advice to load a file unsafely is not passed on."""
    text = " ".join(str(error).split())
    broken = pickle.UnpicklingError | KeyError | IndexError  # of text, in place of a pickle
    if isinstance(error, broken) or "weights_only" in text:
        found = re.search(r"(?:GLOBAL|global|class|function) '?([\w.]+\.\w+)", text)
        return (
            "it is not a plain file of tensors"
            + (f", but holds {found[1]}" if found else "")
            + f"; {SAVE}"
        )
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _state(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what a file holds, without the wrappers that trainers put around it."""
    while isinstance(loaded, dict):
        inner = [loaded[key] for key in ("state_dict", "model") if key in loaded]
        if not inner or not isinstance(inner[0], dict):
            break
        loaded = inner[0]
    if not isinstance(loaded, dict):
        raise InputError(
            f"backbone.weights: {path} holds {_kind(loaded)}, not a state dict: save "
            "network.state_dict()"
        )
    state = {str(key).removeprefix("module."): value for key, value in loaded.items()}
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        names = f"only {', '.join(list(state)[:3])}" if state else "nothing"
        raise InputError(
            f"backbone.weights: {path} holds no tensors by name ({names}): save "
            "network.state_dict()"
        )
    return tensors


def _why_lacking(key: str, state: Collection[str], needed: Collection[str]) -> str:
    """Advice for a file that lacks a tensor, which may be that of a model around the network."""
    for longer in state:
        part = longer.removesuffix(f".{key}")
        own = (name for name in needed if not name.endswith("num_batches_tracked"))
        if part != longer and all(f"{part}.{name}" in state for name in own):
            return (
                f", but holds {longer!r}: save the state_dict of its part {part!r} alone, or take "
                f"'{part}.' off the names"
            )
    return "; is it another network's, or was it cut before the deepest of layers.names?"


def _without_values(x: Tensor) -> str:
    """Kind of a tensor that does not hold a value for each place; empty for a plain tensor."""
    if x.is_meta:
        return "a tensor without values (of the device meta)"
    if x.is_nested:
        return "a nested tensor"
    return "" if x.layout is torch.strided else f"a tensor of the layout {x.layout}"


def _kind(x: Any) -> str:
    if isinstance(x, Tensor):
        if odd := _without_values(x):
            return odd
        return f"a tensor {tuple(x.shape)}"
    return f"an object of type {type(x).__name__}"


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
