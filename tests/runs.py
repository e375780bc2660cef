"""The `patchcore` command, called as a user calls it, and settings that make its runs tiny."""

import io
import logging
import os
import signal
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from hydra._internal.hydra import Hydra

from patchcore import GreedyConfig, LayersConfig, PatchConfig, TorchIndexConfig
from patchcore.cache import CacheConfig
from patchcore.commands import main
from patchcore.commands.groups import register
from patchcore.config import Config
from patchcore.data.mvtec import MVTecConfig
from patchcore.data.transforms import ImageConfig
from patchcore.methods import PatchCoreConfig
from patchcore.patches import Mapping

register()  # once for all tests that compose settings: it takes as long as composing

REPOSITORY = Path(__file__).parents[1]
TINY = ["image.resize=32", "image.crop=32", "patch=average", "coreset.ratio=0.5", "trainer=cpu"]
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
QUIET |= {"enable_checkpointing": False, "num_sanity_val_steps": 0}


def config(root: Path, **groups: Any) -> Config:
    """Settings of a tiny run from Python, on category `nut` in `root`; `groups` go before them.

    A tenth of the time of the command goes into such a run; the rest is Hydra's, and pictures.
    """
    usual = {
        "data": MVTecConfig(root=str(root), category="nut", batch_size=2),
        "image": ImageConfig(resize=32, crop=32),
        "layers": LayersConfig(["2", "3"]),
        "method": PatchCoreConfig(),
        "patch": PatchConfig(mapping=Mapping.average),
        "coreset": GreedyConfig(ratio=0.5),
        "index": TorchIndexConfig(),
        "trainer": QUIET,
        "logger": {},
        "cache": CacheConfig(root=str(root / "cache")),
        "figures": False,
    }
    return Config(**{**usual, **groups})


@dataclass
class Outcome:
    """Exit code of a command and its two outputs."""

    code: int
    out: str
    err: str


def patchcore(*arguments: str) -> Outcome:
    """The command in this process, which is put back as it was: seconds quicker than a new one."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    signals = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    with (
        mock.patch.dict(os.environ),
        mock.patch.object(sys, "argv", ["patchcore", *arguments]),
        mock.patch.object(warnings, "formatwarning", warnings.formatwarning),
        # Hydra closes every handler that is listed here; absl's would close pytest's own stderr.
        mock.patch.object(logging, "_handlerList", []),
        # Hydra composes all settings a second time to look up hydra.mode, which no test sets.
        mock.patch.object(Hydra, "get_mode", return_value=None),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:  # as the interpreter ends
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        finally:
            for handler in set(root.handlers) - set(handlers):
                root.removeHandler(handler)
                handler.close()
            root.handlers[:] = handlers
            root.setLevel(level)
            for each, handler_before in signals.items():
                signal.signal(each, handler_before)
    return Outcome(code, out.getvalue(), err.getvalue())
