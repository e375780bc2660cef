"""The typed tree of all settings, and its registration with Hydra.

Every parameter is declared once, in the dataclass beside the code that it steers. This file only
nests those; the YAML files under conf/ start from them (`schema/…`) and list what differs.
"""

import errno
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from enum import Enum
from typing import Any

import torch
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from patchcore.backbones import BackboneConfig, LayersConfig
from patchcore.baselines import PadimConfig, SpadeConfig, check_unused
from patchcore.cache import CacheConfig
from patchcore.commands.names import run_group, run_name, wandb_offline
from patchcore.coreset import (
    SAMPLERS,
    ApproximateConfig,
    CoresetConfig,
    GreedyConfig,
    RandomConfig,
)
from patchcore.data.sample import DataConfig
from patchcore.data.sets import DATA_SETS
from patchcore.data.transforms import AugmentConfig, ImageConfig
from patchcore.data.view import successor
from patchcore.ensemble import ScaleConfig
from patchcore.errors import InputError
from patchcore.index import INDEXES, IndexConfig
from patchcore.inputs import fill_inputs
from patchcore.model import ModelConfig, PatchCoreModelConfig
from patchcore.paper import stated
from patchcore.patches import PatchConfig
from patchcore.scoring import ScoringConfig
from patchcore.settings import setting
from patchcore.switches import check_switches

TRAINER_WITHOUT_EFFECT = {
    "accelerator",  # identities hold the class of device that it leads to
    "barebones",
    "default_root_dir",
    "detect_anomaly",
    "enable_autolog_hparams",
    "enable_checkpointing",
    "enable_model_summary",
    "enable_progress_bar",
    "log_every_n_steps",
    "logger",
    "num_sanity_val_steps",
    "precision",  # identities hold it in its one spelling
    "profiler",
}
"""Settings of the Trainer that change no result, or that identities hold in another form."""


class Objective(Enum):
    """What a run can hand to a sweeper that looks for the best."""

    image_auroc = "image_auroc"
    image_ap = "image_ap"
    pixel_auroc = "pixel_auroc"
    pixel_ap = "pixel_ap"
    aupro = "aupro"
    memory_bytes = "memory_bytes"
    memory_patches = "memory_patches"
    seconds = "seconds"  # wall time of extraction, coreset and scoring together
    score_seconds = "score_seconds"  # of scoring alone


@dataclass
class MemberConfig:
    """One member of an ensemble; a group that it leaves out is the run's own."""

    backbone: BackboneConfig | None = None
    layers: LayersConfig | None = None
    image: ImageConfig | None = None


@dataclass
class EnsembleConfig:
    """Networks that score together, each with its own memory; none: the run's own network alone."""

    members: list[MemberConfig] = field(default_factory=list)
    scale: ScaleConfig = setting(
        factory=ScaleConfig, effect=lambda ensemble: len(ensemble["members"]) > 0
    )


def _own_used(run: Mapping[str, Any], group: str) -> bool:
    """Whether a run's own group is used: by itself, or by a member that has none."""
    members = run["ensemble"].members
    return not members or any(getattr(member, group) is None for member in members)


@dataclass
class Config:
    """One experiment: a category, a model, and how it is run and tracked."""

    data: DataConfig = MISSING
    # From the class: an instance has mean and std filled in.
    image: ImageConfig = setting(MISSING, effect=lambda run: _own_used(run, "image"))
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    backbone: BackboneConfig = setting(
        factory=BackboneConfig, effect=lambda run: _own_used(run, "backbone")
    )
    layers: LayersConfig = setting(
        factory=LayersConfig, effect=lambda run: _own_used(run, "layers")
    )
    model: ModelConfig = MISSING
    patch: PatchConfig = field(default_factory=PatchConfig)
    coreset: CoresetConfig = MISSING
    index: IndexConfig = MISSING
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    # of pytorch_lightning.Trainer
    trainer: dict[str, Any] = setting(MISSING, without=TRAINER_WITHOUT_EFFECT)
    logger: dict[str, Any] = setting(MISSING, effect=False)  # {name: a Lightning logger}
    # of everything random: handed down to the seeds of the groups, which are what has an effect
    seed: int = setting(0, effect=lambda run: bool(run["trainer"].get("callbacks")))
    curve: list[float] = field(default_factory=list)  # ratios to test at too, up to coreset.ratio
    cache: CacheConfig = field(default_factory=CacheConfig)
    # draw a run's pictures, which takes seconds
    figures: bool = setting(True, effect=False)
    # take over a finished run of the same settings and images
    resume: bool = setting(False, effect=False)
    objectives: list[Objective] = setting(factory=lambda: [Objective.image_auroc], effect=False)
    # what it states: see patchcore.paper
    paper: dict[str, float] = setting(factory=dict, effect=False)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed must be in [0, 2^32), got {self.seed}")
        if not self.objectives:
            raise InputError("objectives is empty: name at least one, such as image_auroc")
        if self.curve:
            self._check_curve()
        if isinstance(self.trainer, Mapping):
            check_switches(self.trainer, self.augment.changes())
        check_unused(self.model, self.patch, self.coreset, self.index, self.scoring)
        if self.ensemble.members:
            self._check_ensemble()

    def members(self) -> list["Config"]:
        """The settings of every PatchCore that the run fits: its ensemble's, or just its own."""
        if not self.ensemble.members:
            return [self]
        return [
            replace(
                self,
                backbone=member.backbone or self.backbone,
                layers=member.layers or self.layers,
                image=member.image or self.image,
                ensemble=EnsembleConfig(),
            )
            for member in self.ensemble.members
        ]

    def _check_ensemble(self) -> None:
        if not isinstance(self.model, PatchCoreModelConfig):
            raise InputError("ensemble.members needs model=patchcore: set ensemble=none")
        if self.curve:
            raise InputError("curve is of one memory: leave it out, or set ensemble=none")
        first, *others = (member.image for member in self.members())
        for number, image in enumerate(others, 2):
            if not image.same_view(first):
                raise InputError(
                    f"ensemble.members: member {number} would see another part of an image than "
                    "member 1, so their maps cannot be averaged: give their images one ratio of "
                    "crop to resize, and one stretch"
                )

    def _check_curve(self) -> None:
        if not isinstance(self.model, PatchCoreModelConfig):
            raise InputError("curve needs model=patchcore: no other keeps a coreset")
        coreset = self.coreset
        if not isinstance(coreset, GreedyConfig | ApproximateConfig | RandomConfig):
            raise InputError(
                "curve needs coreset=greedy, approximate or random, whose memories of different "
                "ratios contain each other"
            )
        if coreset.count is not None or getattr(coreset, "radius", None) is not None:
            raise InputError("curve needs coreset.ratio: set coreset.count and radius to null")
        for ratio in self.curve:
            if not 0 < ratio <= coreset.ratio:
                raise InputError(
                    f"curve must lie in (0, {coreset.ratio}], the largest being coreset.ratio, "
                    f"got {ratio}"
                )


LARGEST = {
    "image.size": 2**16,
    "image.resize": 2**16,
    "image.crop": 2**16,
    "data.size": 2**14,
    "data.workers": 1024,
    "patch.size": 2**10,
    "scoring.sigma": 1000,
}
"""Sizes beyond which memory or processes run out before any image is read: {key: largest}."""

SCHEMAS: dict[str, dict[str, type]] = {
    "data": DATA_SETS,
    "coreset": SAMPLERS,
    "index": INDEXES,
    "model": {
        "padim": PadimConfig,
        "patchcore": PatchCoreModelConfig,
        "spade": SpadeConfig,
    },
}
"""Groups whose choices have settings of their own: {group: {choice: dataclass}}."""


def register() -> None:
    """Make the schemas known to Hydra, and the resolvers that conf/ uses to OmegaConf."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for group, choices in SCHEMAS.items():
        for name, node in choices.items():
            store.store(group=f"{group}/schema", name=name, node=node)
    OmegaConf.register_new_resolver("in_multirun", in_multirun, replace=True)
    OmegaConf.register_new_resolver("paper", paper, replace=True)
    OmegaConf.register_new_resolver("run_group", run_group, replace=True)
    OmegaConf.register_new_resolver("unique", unique, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    OmegaConf.register_new_resolver("wandb_offline", wandb_offline, replace=True)


def to_config(cfg: DictConfig) -> Config:
    """Real settings objects, each checked by its `__post_init__`.

    Null in `cfg` that stands for what the weights record is replaced there too: see `fill_inputs`.

    Raises:
        InputError: A value is out of its range, or there is no such option.
        omegaconf.errors.OmegaConfBaseException: A value is missing or of a wrong type.
    """
    _reject_added(cfg)
    check_numbers(OmegaConf.to_container(cfg, resolve=True))
    fill_inputs(cfg)
    config = OmegaConf.to_object(cfg)
    if not isinstance(config, Config):
        raise TypeError("the configuration does not start from the schema")
    return config


def check_numbers(value: Any, key: str = "") -> None:
    """Refuse numbers that no setting can have; narrower ranges stand beside each setting.

    Raises:
        InputError: A number is not finite, or too large to be meant; the key is named.
    """
    match value:
        case dict():
            # A seed of a group follows from the run's: that is the one to name.
            for name, each in sorted(value.items(), key=lambda item: isinstance(item[1], dict)):
                check_numbers(each, f"{key}.{name}" if key else str(name))
        case list():
            for i, each in enumerate(value):
                check_numbers(each, f"{key}[{i}]")
        case float() if not math.isfinite(value):
            raise InputError(f"{key} must be a finite number, got {value}")
        case bool():
            pass
        case int() if re.search(r"(^|[._])seed$", key):
            if not 0 <= value < 2**32:
                raise InputError(f"{key} must be in [0, 2^32), got {value}")
        case int() | float():
            most = next((n for end, n in LARGEST.items() if f".{key}".endswith(f".{end}")), 2**31)
            if abs(value) > most:
                raise InputError(f"{key} must be at most {most:,} in size, got {value}")


def explain(error: Exception) -> str | None:
    """A user's mistake in one line that begins with the key; None if the error is a bug.

    Hydra and OmegaConf take several lines for it, and end with the advice to add the misspelt key.
    """
    if isinstance(error, InputError):
        return str(error)
    if (message := _of_the_machine(error)) is not None:
        return message
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        known = f"there are {', '.join(error.options)}"
        if group == "image" and (overrides := successor(choice)):
            known = f"set {overrides}"
        return f"{group}={choice}: there is no such choice; {known}"
    cause: BaseException = error
    if isinstance(error, HydraException):
        hidden = isinstance(error.__context__, OmegaConfBaseException)
        cause = error.__cause__ or (error.__context__ if hidden else None) or error
    if not isinstance(cause, HydraException | OmegaConfBaseException):
        return None
    key = getattr(cause, "full_key", None)
    if not key:
        return " ".join(str(error).split())
    if isinstance(cause, MissingMandatoryValue):
        return f"{key} is missing: give {key}=…"
    if isinstance(cause, ConfigAttributeError | ConfigKeyError):
        message = _no_such_option(key, cause.object_type)
    else:
        message = f"{key}: " + " ".join(str(cause).partition("\n    full_key:")[0].split())
        if "Cannot convert 'list' to string" in message:
            message += f"; text in brackets needs quotes inside others: \"{key}='[…]'\""
        elif isinstance(cause, InterpolationKeyError):
            message += "; a $ that belongs to the text is written \\$"
    file = re.match(r"In '([^']+)': \w+ raised while composing", str(error))
    return f"{message} (in {file[1]}.yaml)" if file else message


_DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP),
}
"""Errors of files that are not the program's."""


def _of_the_machine(error: Exception) -> str | None:
    """A full disk, a folder that cannot be written, too little memory; else None."""
    if isinstance(error, OSError) and error.errno in _DISK:
        place = error.filename or "the folder of the results"
        return f"{place}: {error.strerror}: make room or choose another folder"
    words = " ".join(str(error).split())
    if isinstance(error, RuntimeError) and "DataLoader worker" in words:
        return (
            "data.workers: a loader process was killed, most often for lack of memory: set "
            "data.workers or data.batch_size lower"
        )
    memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    memory |= isinstance(error, OSError) and error.errno == errno.ENOMEM
    if memory or (isinstance(error, RuntimeError) and "can't allocate memory" in words):
        return (
            "data.batch_size: the memory was not enough "
            f"({words[:150] or type(error).__name__}): set it, image.size or coreset.ratio lower"
        )
    return None


def _no_such_option(key: str, parent: Any) -> str:
    if not is_dataclass(parent):
        return f"{key}: there is no such option; if whoever gets it knows it, write +{key}=…"
    names = [option.name for option in fields(parent)]
    close = get_close_matches(key.rpartition(".")[2], names, 1)
    rest = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
    return f"{key}: there is no such option; {rest}"


def _reject_added(node: DictConfig) -> None:
    """Refuse what +key=value and YAML files can smuggle past the schema."""
    schema = OmegaConf.get_type(node)
    if not is_dataclass(schema):
        return
    names = {option.name for option in fields(schema)}
    for key in node:
        if key not in names:
            raise InputError(_no_such_option(node._get_full_key(key), schema))
        if not OmegaConf.is_missing(node, key) and isinstance(child := node[key], DictConfig):
            _reject_added(child)


def in_multirun() -> bool:
    """Whether this run is one of several."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def paper(
    tables: str, method: str = "", column: Any = "", *, _root_: DictConfig
) -> dict[str, float]:
    """What the paper's `tables` state for this run (see `patchcore.paper.stated`).

    `method` is the run's own unless given, as the paper calls it: patchcore_10, spade, ….
    """
    choices = HydraConfig.get().runtime.choices
    method = method or _paper_method(choices, _root_)
    category = OmegaConf.select(_root_, "data.category", default="")
    return stated(tables, method, str(column), choices["data"], str(category))


def _paper_method(choices: Mapping[str, Any], cfg: DictConfig) -> str:
    """The paper's name for this run's method; empty where it has none."""
    if (model := choices.get("model", "patchcore")) != "patchcore":
        return str(model)
    shares = {"all": 1.0, "greedy": OmegaConf.select(cfg, "coreset.ratio")}
    if (share := shares.get(choices["coreset"])) is None:
        return ""
    suffix = "_ivfpq" if choices["index"] == "faiss_ivfpq" else ""
    return f"patchcore_{100 * share:g}{suffix}"


def unique() -> str:
    """Digits that tell runs of one second apart; one command always gets the same."""
    return secrets.token_hex(4)  # of the system: no seed may make it repeat
