"""The typed tree of all settings, and its registration with Hydra.

Every parameter is declared once, in the dataclass beside the code that it steers. This file only
nests those; the YAML files under conf/ start from them (`schema/…`) and list what differs.
"""

import netrc
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from patchcore.backbones import BackboneConfig, LayersConfig
from patchcore.baselines import PadimConfig, SpadeConfig, check_unused
from patchcore.cache import CacheConfig
from patchcore.coreset import (
    AllConfig,
    ApproximateConfig,
    CoresetConfig,
    GreedyConfig,
    LearnedConfig,
    RandomConfig,
)
from patchcore.data.btad import BTADConfig
from patchcore.data.folder import FolderConfig
from patchcore.data.generated import GeneratedConfig
from patchcore.data.ksdd2 import KSDD2Config
from patchcore.data.loco import LOCOConfig
from patchcore.data.mstc import MSTCConfig
from patchcore.data.mtd import MTDConfig
from patchcore.data.mvtec import MVTecConfig
from patchcore.data.sample import DataConfig
from patchcore.data.transforms import AugmentConfig, ImageConfig
from patchcore.data.visa import VisAConfig
from patchcore.ensemble import ScaleConfig
from patchcore.errors import InputError
from patchcore.index import FaissFlatConfig, FaissIVFPQConfig, IndexConfig, TorchIndexConfig
from patchcore.inputs import fill_inputs
from patchcore.model import ModelConfig, PatchCoreModelConfig
from patchcore.paper import stated
from patchcore.patches import PatchConfig
from patchcore.scoring import ScoringConfig
from patchcore.settings import setting

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


SCHEMAS: dict[str, dict[str, type]] = {
    "data": {
        "btad": BTADConfig,
        "folder": FolderConfig,
        "generated": GeneratedConfig,
        "ksdd2": KSDD2Config,
        "loco": LOCOConfig,
        "mstc": MSTCConfig,
        "mtd": MTDConfig,
        "mvtec": MVTecConfig,
        "visa": VisAConfig,
    },
    "coreset": {
        "all": AllConfig,
        "approximate": ApproximateConfig,
        "greedy": GreedyConfig,
        "learned": LearnedConfig,
        "random": RandomConfig,
    },
    "index": {
        "faiss_flat": FaissFlatConfig,
        "faiss_ivfpq": FaissIVFPQConfig,
        "torch": TorchIndexConfig,
    },
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
    fill_inputs(cfg)
    config = OmegaConf.to_object(cfg)
    if not isinstance(config, Config):
        raise TypeError("the configuration does not start from the schema")
    return config


def explain(error: Exception) -> str | None:
    """A user's mistake in one line that begins with the key; None if the error is a bug.

    Hydra and OmegaConf take several lines for it, and end with the advice to add the misspelt key.
    """
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"{group}={choice}: there is no such choice; there are {', '.join(error.options)}"
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
    file = re.match(r"In '([^']+)': \w+ raised while composing", str(error))
    return f"{message} (in {file[1]}.yaml)" if file else message


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


def run_group() -> str | None:
    """What the jobs of one multirun share: the name of their common folder."""
    hydra = HydraConfig.get()
    if hydra.mode is not RunMode.MULTIRUN:
        return None
    return "/".join(Path(hydra.sweep.dir).parts[-2:])


def run_name() -> str:
    """What tells this run from others: the overrides it was started with."""
    job = HydraConfig.get().job
    return (job.override_dirname or job.name)[:128]  # W&B takes no more


def wandb_offline() -> bool:
    """W&B stays offline unless a key is configured, or WANDB_MODE=online asks for it."""
    mode = os.environ.get("WANDB_MODE")
    if mode:
        return mode == "offline"  # W&B follows the others itself
    return not (os.environ.get("WANDB_API_KEY") or _logged_in())


def _logged_in() -> bool:
    """Whether `wandb login` has left a key where it keeps it."""
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    places = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for place in places:
        try:
            if netrc.netrc(Path(place).expanduser()).authenticators(host or ""):
                return True
        except (OSError, netrc.NetrcParseError):
            pass
    return False
