"""Resolvers of conf/: `${name:…}` in settings files."""

import secrets
from collections.abc import Mapping
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from patchcore.commands.generations import resolver
from patchcore.commands.names import run_group, run_id, run_name, tracking_folder, wandb_offline
from patchcore.paper import stated


def register_resolvers() -> None:
    """Make the resolvers known to OmegaConf."""
    resolver("in_multirun", in_multirun)
    resolver("paper", paper)
    resolver("run_group", run_group)
    resolver("run_id", run_id)
    resolver("run_name", run_name)
    resolver("tracking_folder", tracking_folder)
    resolver("unique", unique, use_cache=True)
    resolver("wandb_offline", wandb_offline)


def in_multirun() -> bool:
    """Return whether this run is a job of a multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def paper(
    tables: str, method: str = "", column: Any = "", *, _root_: DictConfig
) -> dict[str, float]:
    """Return the paper's values for this run, {metric: value}: see `patchcore.paper.stated`.

    Args:
        tables: Names of the paper's tables, separated by blanks.
        method: Method as the paper calls it, such as patchcore_10 or spade; by default the run's.
        column: Number of shots or network, where the tables have such columns.
    """
    choices = HydraConfig.get().runtime.choices
    method = method or _paper_method(choices, _root_)
    category = OmegaConf.select(_root_, "data.category", default="")
    return stated(tables, method, str(column), choices["data"], str(category))


def _paper_method(choices: Mapping[str, Any], cfg: DictConfig) -> str:
    """Return the paper's name for this run's method; empty where it has none."""
    if (method := choices.get("method", "patchcore")) != "patchcore":
        return str(method)
    shares = {"all": 1.0, "greedy": OmegaConf.select(cfg, "coreset.ratio")}
    if (share := shares.get(choices["coreset"])) is None:
        return ""
    suffix = "_ivfpq" if choices["index"] == "faiss_ivfpq" else ""
    return f"patchcore_{100 * share:g}{suffix}"


def unique() -> str:
    """Return random digits that distinguish runs of the same second; one value per command."""
    return secrets.token_hex(4)  # from the system's generator, which no seed affects
