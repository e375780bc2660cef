"""A module whose memory has no fixed size; state dicts, copies and casts preserve the memory."""

import json
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from patchcore.errors import InputError


class Stateful(nn.Module):
    """A module with a memory, which its state dict, copies and casts preserve.

    A state dict can be loaded into a module with the same settings, whatever the size of its
    memory. It also holds the values of `remembered`. It is refused if settings differ on which the
    memory depends. Buffers keep their dtype when the module is cast, so a network in half precision
    searches a memory in float32.

    Attributes:
        made_again: Names of attributes that are made from the memory where they are None; they are
            neither copied nor pickled.
    """

    made_again: tuple[str, ...] = ()

    def settings(self) -> dict[str, Any]:
        """Settings that the memory depends on, as plain values."""
        return {}

    def remembered(self) -> dict[str, Any]:
        """Further values that the state holds, as plain values: see `remember`."""
        return {}

    def remember(self, values: dict[str, Any]) -> None:
        """Take over the values of `remembered`, once a state has been loaded."""

    def get_extra_state(self) -> Tensor:
        """Settings and further values as JSON in bytes (n,): a tensor, as all of a state dict."""
        values = json.dumps({"settings": self.settings(), "values": self.remembered()})
        return torch.frombuffer(bytearray(values.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Called by `load_state_dict`."""
        self.remember(_unpacked(state)["values"])

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        state = state_dict.get(f"{prefix}_extra_state")
        if state is not None:
            theirs, ours = _unpacked(state)["settings"], self.settings()
            for key in ours | theirs:
                if theirs.get(key) != ours.get(key):
                    raise InputError(
                        f"the state is of a model with {key}={theirs.get(key)}, but this one has "
                        f"{key}={ours.get(key)}: build it with the same settings"
                    )
        for name, buffer in self._buffers.items():
            loaded = state_dict.get(prefix + name)
            if buffer is None or not isinstance(loaded, Tensor) or loaded.ndim != buffer.ndim:
                continue
            if loaded.shape != buffer.shape and loaded.shape[-1] == buffer.shape[-1]:
                self._buffers[name] = buffer.new_empty(loaded.shape)
        for name in self.made_again:
            setattr(self, name, None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after = self._buffers[name]
            if buffer is not None and after is not None and after.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(after.device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for `copy` and `pickle`."""
        return {**self.__dict__, **dict.fromkeys(self.made_again)}


def _unpacked(state: Tensor) -> dict[str, Any]:
    """Content of `Stateful.get_extra_state`."""
    values: dict[str, Any] = json.loads(bytes(state.tolist()))
    return values
