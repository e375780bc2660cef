"""Settings of an ensemble's members, and those of a run that have no effect beside them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from patchcore.backbones import BackboneConfig, LayersConfig
from patchcore.data.transforms import ImageConfig
from patchcore.methods.scale import ScaleConfig
from patchcore.settings import Settings, setting


@dataclass
class MemberConfig(Settings):
    """One member of an ensemble; for a group that is None, the member uses the run's own."""

    GROUP: ClassVar[str] = "ensemble.members"

    backbone: BackboneConfig | None = None
    layers: LayersConfig | None = None
    image: ImageConfig | None = None


@dataclass
class EnsembleConfig(Settings):
    """Networks that score together, each with its own memory; empty: the run has a single model."""

    GROUP: ClassVar[str] = "ensemble"

    members: list[MemberConfig] = setting(
        factory=list,
        help="list of members, each with its own backbone, layers or image: {backbone: {…}}",
    )
    scale: ScaleConfig = setting(
        factory=ScaleConfig,
        effect=lambda ensemble: len(ensemble["members"]) > 0,
        idle="without ensemble.members",
    )


TILED = "with image.tiles, where each image is a batch and no layer map is cached"


def own(group: str) -> dict[str, Any]:
    """Return arguments of `setting` for a group of a run that members may have instead."""
    return {
        "effect": lambda run: own_used(run, group),
        "idle": f"because all of ensemble.members have their own {group}",
    }


def own_used(run: Mapping[str, Any], group: str) -> bool:
    """Whether a run's own group is used: without members, or by a member that leaves it out."""
    members = run["ensemble"].members
    return not members or any(getattr(member, group) is None for member in members)


def without_in_tiles(run: Mapping[str, Any]) -> frozenset[str]:
    """Settings of loading and caching without effect on results if all models see tiles.

    Each image is a batch of its own then, and its layer maps are never cached.
    """
    return frozenset({"batch_size", "precision"} if all_tiled(run) else ())


def all_tiled(run: Mapping[str, Any]) -> bool:
    """Whether all models of a run see images in tiles."""
    images = [member.image or run["image"] for member in run["ensemble"].members]
    return all(image.tiles is not None for image in images or [run["image"]])
