"""The typed tree of all settings.

Every parameter is declared once, in a dataclass beside the code that uses it. This file only nests
these dataclasses; `patchcore.conflicts` checks conditions that involve several of them.
`commands/groups.py` makes a group of choices from each registry. The YAML files under conf/ are
further choices; each lists only the values that differ from the defaults.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from omegaconf import MISSING

from patchcore.backbones import BackboneConfig, LayersConfig
from patchcore.cache import CacheConfig
from patchcore.conflicts import check_conflicts, check_loggers
from patchcore.coreset import CoresetConfig
from patchcore.data.augment import AugmentConfig
from patchcore.data.inputs import complete_images
from patchcore.data.sample import DataConfig
from patchcore.data.transforms import ImageConfig
from patchcore.decision import DecisionConfig
from patchcore.errors import InputError
from patchcore.index import IndexConfig
from patchcore.keeping import ArtifactConfig
from patchcore.label_free import LabelFreeConfig
from patchcore.member_settings import (
    TILED,
    EnsembleConfig,
    all_tiled,
    own,
    own_used,
    without_in_tiles,
)
from patchcore.methods import MethodConfig, check_unused
from patchcore.metrics import Objective
from patchcore.paper import check_values
from patchcore.patches import PatchConfig
from patchcore.report.folders import Images
from patchcore.scoring import ScoringConfig
from patchcore.settings import check_ranges, check_types, setting
from patchcore.switches import check_switches, without_effect


def _label_free(config: LabelFreeConfig, objectives: list[Objective]) -> bool:
    """Whether a run measures its label-free score."""
    return config.enabled or Objective["label_free"] in objectives


@dataclass
class Config:
    """One experiment: its data, its model, and how it is run and tracked.

    Raises:
        InputError: A setting is missing, out of its range, or in conflict with others.
    """

    data: DataConfig = setting(MISSING, without=without_in_tiles, idle=TILED)
    # MISSING, so that the command starts from the class: an instance has mean and std filled in.
    image: ImageConfig = setting(MISSING, effect=lambda run: own_used(run, "image"))
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    backbone: BackboneConfig = setting(factory=BackboneConfig, **own("backbone"))
    layers: LayersConfig = setting(factory=LayersConfig, **own("layers"))
    method: MethodConfig = MISSING
    patch: PatchConfig = field(default_factory=PatchConfig)
    coreset: CoresetConfig = MISSING
    index: IndexConfig = MISSING
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    decision: DecisionConfig = field(default_factory=DecisionConfig)
    label_free: LabelFreeConfig = setting(
        factory=LabelFreeConfig,
        effect=lambda run: _label_free(run["label_free"], run["objectives"]),
        idle="without label_free.enabled=true or objectives=[label_free]",
    )
    trainer: dict[str, Any] = setting(
        MISSING,
        "arguments of pytorch_lightning.Trainer",
        without=lambda run: without_effect(run["trainer"]),
    )
    logger: dict[str, Any] = setting(
        MISSING, "trackers, as {name: a Lightning logger and its arguments}", effect=False
    )
    # The groups' own seeds default to this one; callbacks are all that it changes by itself.
    seed: int = setting(
        0, "seed of everything random", effect=lambda run: bool(run["trainer"].get("callbacks"))
    )
    curve: list[float] = setting(
        factory=list,
        help="smaller ratios at which the model is tested, too; coreset.ratio is the largest",
    )
    cache: CacheConfig = setting(factory=CacheConfig, without=without_in_tiles, idle=TILED)
    artifact: ArtifactConfig = field(default_factory=ArtifactConfig)
    figures: bool = setting(True, "draw a run's figures, which takes a few seconds", effect=False)
    pictures: Images = setting(
        Images.none,
        "test images of which to save a picture each, with map and verdict",
        effect=False,
    )
    resume: bool = setting(
        False,
        "take over the results of a finished run with equal settings; true in a multirun",
        effect=False,
    )
    objectives: list[Objective] = setting(
        factory=lambda: [Objective["image_auroc"]],
        help="metrics or costs that a search optimises",
        effect=False,
    )
    paper: dict[str, float] = setting(
        factory=dict, help="the paper's values for this run; rates are in [0, 1]", effect=False
    )

    def __post_init__(self) -> None:
        self._check_complete()
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed must be in [0, 2^32), got {self.seed}")
        if not self.objectives:
            raise InputError("objectives is empty: name at least one, such as image_auroc")
        if len({*self.objectives}) < len(self.objectives):
            raise InputError("objectives names a metric twice: name each once")
        if isinstance(self.trainer, Mapping):
            check_switches(self.trainer, self.augment.changes())
        check_values(self.paper)
        groups = ("layers", "coreset", "patch", "scoring", "index")
        check_unused(self.method, **{group: getattr(self, group) for group in groups})
        check_conflicts(self)

    def _check_complete(self) -> None:
        """Refuse a Config made in Python without a required group, or with something else for one.

        Those of the command always have every group.
        """
        usual = {
            "data": "FolderConfig(…)",
            "image": "ImageConfig()",
            "method": "PatchCoreConfig()",
            "coreset": "GreedyConfig()",
            "index": "TorchIndexConfig()",
            "trainer": "{}",
            "logger": "{}",
        }
        absent = [f"{key}={made}" for key, made in usual.items() if getattr(self, key) == MISSING]
        if absent:
            raise InputError(f"Config lacks settings without a default: give {', '.join(absent)}")
        check_types(self, "", usual)
        check_loggers(self.logger)
        check_ranges(self, "")

    def members(self) -> list["Config"]:
        """Return the settings of each model that the run fits: one per member, or just its own."""
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

    def completed(self) -> "Config":
        """Return the settings without nulls that depend on the network or the data set.

        `backbone.weights` is named, and images are as `complete_images` says. Settings that are
        complete are returned as they are.

        Raises:
            InputError: A network or tag does not exist, or settings are in conflict.
        """
        members = self.ensemble.members
        networks = [self.backbone, *(member.backbone or self.backbone for member in members)]
        image, *own = complete_images(
            type(self.data),
            [network.input() for network in networks],
            self.image.given(),
            [None if member.image is None else member.image.given() for member in members],
        )
        backbone, *theirs = (replace(each, weights=each.resolved()) for each in networks)
        completed = [
            replace(member, backbone=member.backbone and network, image=each)
            for member, network, each in zip(members, theirs, own, strict=True)
        ]
        ensemble = replace(self.ensemble, members=completed)
        return replace(self, image=image, backbone=backbone, ensemble=ensemble)

    @property
    def batch(self) -> int:
        """Number of images in a batch: one with tiles."""
        return 1 if all_tiled(vars(self)) else self.data.batch_size

    @property
    def judged(self) -> bool:
        """Whether the run measures its label-free score."""
        return _label_free(self.label_free, self.objectives)
