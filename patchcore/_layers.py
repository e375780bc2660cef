"""Layers of a network: their names, the axes of their outputs, and when a pass may end."""

import difflib
from typing import Any

import torch
from torch import Tensor, nn

from patchcore.errors import InputError


def resolve(network: nn.Module, name: str) -> str:
    """The module name of a hierarchy level ("2") or module ("layer2")."""
    modules = [n for n, _ in network.named_modules() if n]
    if name in modules:
        return name
    if name.isdigit():
        known = stages(network)
        if int(name) in known:
            return known[int(name)]
        levels = ", ".join(f"{level} ({module})" for level, module in known.items())
        raise InputError(
            f"layers.names: the network has no hierarchy level {name}; "
            + (f"its levels are {levels}" if levels else "it has none: name modules instead")
        )
    close = difflib.get_close_matches(name, modules, 4, 0.3) or modules[:4]
    raise InputError(
        f"layers.names: the network has no module {name!r}; did you mean {', '.join(close)}?"
    )


def stages(network: nn.Module) -> dict[int, str]:
    """Module names of the hierarchy levels j = 1 … 4 that the network has."""
    info = getattr(network, "feature_info", None)
    if info is None:
        return {j: f"layer{j}" for j in range(1, 5) if hasattr(network, f"layer{j}")}
    entries = list(getattr(info, "info", info))
    if token_size(network):
        return {j: entries[-(-j * len(entries) // 4) - 1]["module"] for j in range(1, 5)}
    by_reduction = {entry["reduction"]: entry["module"] for entry in entries}
    return {j: by_reduction[2 ** (j + 1)] for j in range(1, 5) if 2 ** (j + 1) in by_reduction}


def token_size(network: nn.Module) -> int:
    """Side in px of a vision transformer's token; 0 for other networks."""
    if not hasattr(network, "num_prefix_tokens"):
        return 0
    size = getattr(getattr(network, "patch_embed", None), "patch_size", 0)
    return size[0] if isinstance(size, tuple) else size


def axes(network: nn.Module, name: str, x: Any, side: int) -> str:
    """Order of the axes in a layer's output for one image of side × side px.

    Returns:
        "NCHW", "NHWC" or "tokens": (B, prefix + h·w, C).

    Raises:
        InputError: It is no map.
    """
    shape = tuple(x.shape) if isinstance(x, Tensor) and len(x) == 1 else ()
    layout = ""
    if len(shape) == 3 and (size := token_size(network)):
        prefix = shape[1] - (side // size) ** 2
        layout = "tokens" if prefix in (0, network.num_prefix_tokens) else ""
    elif len(shape) == 4:
        _, first, second, third = shape
        square = {"NCHW": second == third <= side, "NHWC": first == second <= side}
        declared = "NHWC" if getattr(network, "output_fmt", "NCHW") == "NHWC" else "NCHW"
        fits = [order for order in square if square[order]]
        layout = declared if declared in fits else "".join(fits)
        pooled = shape[1:3] == (1, 1) if layout == "NHWC" else shape[2:] == (1, 1)
        layout = "" if pooled and side > 64 else layout
    if not layout:
        got = f"of shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise InputError(
            f"layers.names: {name!r} gives no map of the image but {got}; name a layer before the "
            "pooling, such as a level"
        )
    return layout


def cut(
    network: nn.Module, layers: list[str], images: Tensor, kept: str = ""
) -> tuple[str, set[str]]:
    """Drop what runs after the last of `layers` has finished.

    The module that is `kept` stays in any case.

    Returns:
        The layer that finishes last, and the layers whose output is overwritten before that, as
        by a ReLU that works in place.

    Raises:
        InputError: The network takes no such images, or does not run a layer.
    """
    ran: set[str] = set()
    outputs: dict[str, tuple[Any, int]] = {}  # with the number of changes by then
    finished: dict[str, tuple[set[str], set[str]]] = {}  # in order: started, overwritten by then

    def begin(name: str) -> None:
        ran.add(name)

    def finish(name: str, output: Any) -> None:
        changed = {n for n, (x, before) in outputs.items() if _changes(x) != before}
        outputs[name] = output, _changes(output)
        finished[name] = set(ran), changed

    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, n=name: begin(n)))
        if name in layers:
            hook = module.register_forward_hook(lambda *given, n=name: finish(n, given[-1]))
            handles.append(hook)
    try:
        with torch.inference_mode(False), torch.no_grad():  # inference mode counts no changes
            network.eval()(images.clone())
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"backbone.name: this network cannot be run on images (1, 3, {images.shape[2]}, "
            f"{images.shape[3]}): {' '.join(str(error).split())}"
        ) from error
    for handle in handles:
        handle.remove()
    for name in layers:
        if name not in finished:
            raise InputError(f"layers.names: the network has {name!r} but does not run it")
    deepest, (needed, overwritten) = list(finished.items())[-1]
    for name in sorted(ran - needed, reverse=True):  # children before their parents
        if name != kept:
            network.set_submodule(name, nn.Identity())
    return deepest, overwritten


def _changes(output: Any) -> int:
    """Number of times that a tensor was changed in place; 0 for what is none."""
    counts = isinstance(output, Tensor) and not output.is_inference()
    return output._version if counts else 0
